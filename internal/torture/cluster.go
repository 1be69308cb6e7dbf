package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pawl-fsm/pawl/db/localpg"
)

// A cluster is the database of a run: a server, and a standby where the scenario has one.
type cluster struct {
	dir      string // Its servers' folders are in it.
	archive  string // The folder of archived WAL; empty if there is none.
	password string
	servers  []*server
	primary  int // The index of the server that takes writes.
	// replication is the way of the standby to the first server; nil if there is no standby.
	replication *link
	settings    map[string]string
}

// A server is one PostgreSQL, with a port that stays the same.
type server struct {
	*localpg.Server
	name string
	port int
}

// What the cluster of a scenario is like.
type clusterConfig struct {
	standby     bool
	synchronous bool // Commits wait for the standby.
	archive     bool
	settings    map[string]string
}

// connectTimeout bounds how long a client tries one server, so that it comes to the other one.
const connectTimeout = 2

func newCluster(ctx context.Context, dir string, config clusterConfig) (_ *cluster, err error) {
	c := &cluster{dir: dir, password: rand.Text(), settings: map[string]string{
		"listen_addresses": "127.0.0.1", "max_connections": "150", "wal_keep_size": "512MB", "log_checkpoints": "off",
		"shared_buffers": "64MB", "max_wal_size": "256MB",
	}}
	maps.Copy(c.settings, config.settings)
	defer func() {
		if err != nil {
			c.stop(context.WithoutCancel(ctx))
		}
	}()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	if config.archive {
		c.archive = filepath.Join(dir, "archive")
		if err := os.Mkdir(c.archive, 0o777); err != nil {
			return nil, err
		}
		// The server runs as another user where root starts it.
		if err := os.Chmod(c.archive, 0o777); err != nil {
			return nil, err
		}
		c.settings["archive_mode"] = "on"
		c.settings["archive_command"] = "cp %p " + c.archive + "/%f"
	}
	if err := c.add(ctx, "one", nil); err != nil {
		return nil, err
	}
	if err := c.makeRoles(ctx, c.writer()); err != nil {
		return nil, err
	}
	if !config.standby {
		return c, nil
	}
	return c, c.addStandby(ctx, config.synchronous)
}

// makeRoles lets the superuser connect over TCP, and makes the roles of the service and of SQL callers.
func (c *cluster) makeRoles(ctx context.Context, s *server) error {
	for _, sql := range []string{"alter role postgres password ", "create role pawl login password ", "create role app login password "} {
		if err := execute(ctx, s.DSN(), sql+"'"+c.password+"'"); err != nil {
			return err
		}
	}
	return nil
}

// add starts a server on a folder that is empty or has data, with settings of its own beside the cluster's.
func (c *cluster) add(ctx context.Context, name string, settings map[string]string) error {
	port, err := freePort()
	if err != nil {
		return err
	}
	s, err := c.start(ctx, name, port, settings)
	if err != nil {
		return err
	}
	c.servers = append(c.servers, s)
	return nil
}

func (c *cluster) start(ctx context.Context, name string, port int, settings map[string]string) (*server, error) {
	all := maps.Clone(c.settings)
	maps.Copy(all, settings)
	all["port"] = strconv.Itoa(port)
	pg, err := localpg.Start(ctx, localpg.Config{Dir: filepath.Join(c.dir, name), Settings: all})
	if err != nil {
		return nil, err
	}
	return &server{Server: pg, name: name, port: port}, nil
}

// addStandby copies the primary and starts the copy as a standby, which streams through a link of its own.
func (c *cluster) addStandby(ctx context.Context, synchronous bool) error {
	if err := c.copyPrimary(ctx, "two"); err != nil {
		return err
	}
	if err := c.touch("two", "standby.signal"); err != nil {
		return err
	}
	var err error
	if c.replication, err = newLink("replication", local(c.servers[0].port)); err != nil {
		return err
	}
	host, port, err := net.SplitHostPort(c.replication.address())
	if err != nil {
		return err
	}
	source := fmt.Sprintf("host=%s port=%s user=postgres password=%s application_name=standby", host, port, c.password)
	if err := c.add(ctx, "two", map[string]string{"primary_conninfo": source, "wal_retrieve_retry_interval": "200ms"}); err != nil {
		return err
	}
	if err := c.untilStreaming(ctx); err != nil {
		return err
	}
	if !synchronous {
		return nil
	}
	// Not as an argument of the server: that could not be changed while it runs.
	if err := c.exec(ctx, "alter system set synchronous_standby_names = 'standby'"); err != nil {
		return err
	}
	return c.exec(ctx, "select pg_reload_conf()")
}

func (c *cluster) untilStreaming(ctx context.Context) error {
	return until(ctx, time.Minute, "the standby to stream", func(ctx context.Context) (bool, error) {
		return ask[bool](ctx, c.writer().DSN(), "select count(*) > 0 from pg_stat_replication where state = 'streaming'")
	})
}

// copyPrimary makes a base backup, which becomes the data of a server that is not there yet.
func (c *cluster) copyPrimary(ctx context.Context, name string) error {
	p := c.writer()
	home := filepath.Join(c.dir, name)
	if err := os.Mkdir(home, 0o755); err != nil {
		return err
	}
	if err := c.handOver(home); err != nil {
		return err
	}
	return c.program(ctx, "pg_basebackup", "-D", filepath.Join(home, "data"), "-c", "fast", "-X", "stream", "-d",
		fmt.Sprintf("host=127.0.0.1 port=%d user=postgres password=%s", p.port, c.password))
}

// program runs a program of PostgreSQL as the user that the servers run as.
func (c *cluster) program(ctx context.Context, name string, args ...string) error {
	path, err := c.servers[0].Binaries().Path(name)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Dir = "/"
	if uid, gid, ok := c.owner(); ok {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: gid}}
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, strings.TrimSpace(string(out)))
	}
	return nil
}

// owner is the user of the servers, if it is another than this process's.
func (c *cluster) owner() (uid, gid uint32, other bool) {
	info, err := os.Stat(filepath.Join(c.servers[0].Dir(), "data"))
	if err != nil || os.Geteuid() != 0 {
		return 0, 0, false
	}
	stat := info.Sys().(*syscall.Stat_t)
	return stat.Uid, stat.Gid, true
}

func (c *cluster) handOver(path string) error {
	if uid, gid, other := c.owner(); other {
		return os.Chown(path, int(uid), int(gid))
	}
	return nil
}

// touch makes an empty file in a server's data.
func (c *cluster) touch(name, file string) error {
	path := filepath.Join(c.dir, name, "data", file)
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		return err
	}
	return c.handOver(path)
}

// writer is the server that takes writes.
func (c *cluster) writer() *server { return c.servers[c.primary] }

// promote makes the standby the primary. The old primary must be dead.
func (c *cluster) promote(ctx context.Context) error {
	c.primary = 1 - c.primary
	return until(ctx, time.Minute, "the promotion", func(ctx context.Context) (bool, error) {
		standby, err := ask[bool](ctx, c.writer().DSN(), "select pg_is_in_recovery()")
		if err == nil && standby {
			// It does not wait here, since a standby cancels statements that are in the way of its recovery.
			err = c.exec(ctx, "select pg_promote(false)")
		}
		return !standby, err
	})
}

// exec runs a statement on the primary, as its superuser.
func (c *cluster) exec(ctx context.Context, sql string) error {
	return execute(ctx, c.writer().DSN(), sql)
}

// url names all servers, as a role; at says where each is reached, by default at its own port.
func (c *cluster) url(role string, at func(i int) string) string {
	if at == nil {
		at = func(i int) string { return local(c.servers[i].port) }
	}
	hosts := make([]string, len(c.servers))
	for i := range c.servers {
		hosts[i] = at(i)
	}
	return fmt.Sprintf("postgres://%s:%s@%s/postgres?sslmode=disable&target_session_attrs=read-write&connect_timeout=%d",
		role, c.password, strings.Join(hosts, ","), connectTimeout)
}

// stop ends the servers and removes their data. Their logs stay.
func (c *cluster) stop(ctx context.Context) {
	if c.replication != nil {
		c.replication.close()
	}
	for _, s := range c.servers {
		_ = s.Kill() // A shutdown would wait for clients, and nobody needs the data.
		_ = s.Stop(ctx)
		_ = os.RemoveAll(filepath.Join(s.Dir(), "data"))
	}
	if c.archive != "" {
		_ = os.RemoveAll(c.archive)
	}
}

// freePort returns a port that nobody listens on now.
func freePort() (int, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	return listener.Addr().(*net.TCPAddr).Port, listener.Close()
}

// execute runs a statement over a connection of its own.
func execute(ctx context.Context, dsn, sql string) error {
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	if _, err := conn.Exec(ctx, sql); err != nil {
		return fmt.Errorf("%s: %w", firstWords(sql), err)
	}
	return nil
}

// ask returns the one value of a query, over a connection of its own.
func ask[T any](ctx context.Context, dsn, sql string) (value T, err error) {
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		return value, err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	if err := conn.QueryRow(ctx, sql).Scan(&value); err != nil {
		return value, fmt.Errorf("%s: %w", firstWords(sql), err)
	}
	return value, nil
}

// firstWords names a statement in an error, without what may be a password.
func firstWords(sql string) string {
	words := strings.Fields(sql)
	return strings.Join(words[:min(len(words), 3)], " ")
}

// until calls look until it returns true. Errors of look are reported only if the time is over.
func until(ctx context.Context, within time.Duration, what string, look func(context.Context) (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	var last error
	for {
		done, err := look(ctx)
		if done && err == nil {
			return nil
		}
		if err != nil && ctx.Err() == nil {
			last = err
		}
		if !sleep(ctx, 50*time.Millisecond) {
			return errors.Join(fmt.Errorf("waited %v for %s", within, what), last)
		}
	}
}

// sleep returns false if the context ends before the time is over.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
