package localpg

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

const superuser = "postgres"

const (
	readyWithin     = 2 * time.Minute  // for a start, with the crash recovery of a large database
	fastWithin      = 10 * time.Second // for a fast shutdown, which makes a checkpoint
	immediateWithin = 5 * time.Second  // for an immediate one; after 5 s the server itself kills its children
	gonePoll        = 5 * time.Millisecond
)

// Config describes a server. The zero value is a temporary server of whatever PostgreSQL [Find] finds.
type Config struct {
	// Dir is the folder of the server; see the package's comment. If it is missing it is made; if not, it must be
	// empty or made by this package. Default: a temporary folder, which Stop removes.
	Dir string

	// InMemory makes the temporary folder in memory, on Linux with 8 GiB free there. Databases are then made and dropped
	// in a fraction of the time. Default false.
	InMemory bool

	// Binaries is the PostgreSQL to run. Default: what Find finds, except that a version that made the data in
	// Dir is preferred to a newer one.
	Binaries Binaries

	// Settings are server settings, as in postgresql.conf, for example "max_connections": "300". They override
	// the defaults of this package: to listen on no address, to use port 5432, and to show time in UTC.
	// unix_socket_directories is refused.
	Settings map[string]string

	// Primary, if not nil, makes a new server a standby that follows the primary. Its data is copied from there, by
	// pg_basebackup, and it has the primary's settings, which Settings override. Default: none.
	Primary *Server

	// Name is how the primary's synchronous_standby_names calls the standby.
	Name string

	// Logger gets a line at each start and stop. Default: none. It gets none at a death; see Done and Err.
	Logger *slog.Logger

	// Detached lets the server go on if this process ends without Stop. Default false: Linux then shuts the
	// server down with the process.
	Detached bool
}

func (c Config) validate() error {
	if _, ok := c.Settings["unix_socket_directories"]; ok {
		return errors.New("localpg: the setting unix_socket_directories belongs to localpg")
	}
	if port, ok := c.Settings["port"]; ok {
		if n, err := strconv.Atoi(port); err != nil || n < 1 || n > 65535 {
			return fmt.Errorf("localpg: the setting port is %q, not a port number", port)
		}
	}
	return nil
}

// Server is a running PostgreSQL. Its methods may be called from several goroutines.
type Server struct {
	bin      Binaries
	home     string // the data folder's real path
	temp     bool   // Stop removes home
	settings map[string]string
	args     []string
	detached bool
	account  *account
	lock     *os.File
	socket   string // the socket's folder
	output   *os.File
	dsn      string
	log      *slog.Logger

	life atomic.Pointer[process] // the present or last run

	mu     sync.Mutex // lets one of Stop, Kill and Restart run at a time
	closed bool       // Stop has succeeded
}

// Start starts a server and returns when it answers. The context limits the start, and not how long the server
// runs. A server that an earlier process left behind in the same folder is stopped first.
//
// The error is one line that says what to do; it wraps [ErrNotFound] if there is no PostgreSQL to run.
func Start(ctx context.Context, config Config) (_ *Server, err error) {
	if err := config.validate(); err != nil {
		return nil, err
	}
	s := &Server{temp: config.Dir == "", detached: config.Detached, log: config.Logger}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	defer func() {
		if err != nil {
			s.release()
		}
	}()

	if s.temp {
		sweep(ctx)
		s.home, err = makeTemp(config.InMemory)
	} else {
		s.home, err = openFolder(config.Dir)
	}
	if err != nil {
		return nil, err
	}
	if s.account, err = accountFor(s.home); err != nil {
		return nil, err
	}
	if s.lock, err = takeLock(s.home); err != nil {
		return nil, err
	}
	if err := s.chooseBinaries(config.Binaries); err != nil {
		return nil, err
	}
	if err := s.handOver(); err != nil {
		return nil, err
	}
	if err := s.account.checkReach(ctx, s.bin, s.home); err != nil {
		return nil, err
	}
	if err := stopOrphan(ctx, s.home); err != nil {
		return nil, err
	}
	if err := s.prepare(ctx, config); err != nil {
		return nil, err
	}
	if err := s.run(ctx); err != nil {
		return nil, err
	}
	return s, nil
}

// chooseBinaries chooses the PostgreSQL to run, and refuses data that it cannot read.
func (s *Server) chooseBinaries(given Binaries) (err error) {
	made, err := dataMajor(s.home)
	if err != nil {
		return err
	}
	s.bin = given
	switch {
	case given.Dir == "":
		want, _ := strconv.Atoi(made) // 0 if there is no data, or a version before 10 such as 9.6, which is too old
		s.bin, err = find(os.Getenv(BinEnv), places, want)
	case given.Major == 0:
		s.bin, err = inspect(given.Dir)
	}
	if err != nil {
		return err
	}
	if made != "" && made != strconv.Itoa(s.bin.Major) {
		return fmt.Errorf("localpg: the data in %s was made by PostgreSQL %s, and the server in %s is PostgreSQL %s: "+
			"set %s to the bin folder of PostgreSQL %s, or choose another folder",
			s.home, made, s.bin.Dir, s.bin.Version, BinEnv, made)
	}
	return nil
}

// handOver gives the folder to the server's user if that user cannot enter it, as when root made it by mktemp -d.
// Otherwise the folder keeps its owner.
func (s *Server) handOver() error {
	if s.account == nil {
		return nil
	}
	info, err := os.Stat(s.home)
	if err != nil {
		return fmt.Errorf("localpg: data folder: %w", err)
	}
	if s.account.mayExecute(info) {
		return nil
	}
	return s.account.chown(s.home)
}

// prepare makes what every run needs: the data, the socket's folder, the arguments, the DSN and the log.
func (s *Server) prepare(ctx context.Context, config Config) error {
	made, err := dataMajor(s.home)
	if err != nil {
		return err
	}
	if made == "" {
		if err := makeData(ctx, s.bin, s.home, s.account, s.temp, config.Primary, config.Name); err != nil {
			return err
		}
	}

	all := map[string]string{
		"listen_addresses":        "",
		"port":                    "5432", // given always, since PostgreSQL and pgx would take another one from PGPORT
		"unix_socket_permissions": "0700",
		"timezone":                "UTC",
		"log_timezone":            "UTC",
	}
	if s.temp {
		// With the default a killed server leaves files in /dev/shm, which may be small.
		all["dynamic_shared_memory_type"] = "mmap"
	}
	s.settings = map[string]string{}
	if config.Primary != nil {
		maps.Copy(s.settings, config.Primary.settings)
	}
	maps.Copy(s.settings, config.Settings)
	maps.Copy(all, s.settings)
	if s.socket, err = makeSocketDir(s.home, all["port"], s.account); err != nil {
		return err
	}
	all["unix_socket_directories"] = s.socket

	s.args = []string{"-D", filepath.Join(s.home, "data")}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		s.args = append(s.args, "-c", name+"="+all[name])
	}
	query := "?host=" + s.socket + "&port=" + all["port"] // without escapes, which a plain path does not need
	s.dsn = (&url.URL{Scheme: "postgres", User: url.User(superuser), Path: "/postgres"}).String() + query

	s.output, err = openLog(s.home)
	return err
}

// run starts the server and waits until it answers.
func (s *Server) run(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyWithin)
	defer cancel()
	for {
		p, err := s.launch()
		if err != nil {
			return err
		}
		s.life.Store(p)
		err = s.waitReady(ctx, p)
		if err == nil {
			s.log.Info("postgres started", "version", s.bin.Version, "dir", s.home, "pid", p.pid)
			return nil
		}
		p.asked.Store(true)
		_ = p.end(context.WithoutCancel(ctx), 0)
		// After a crash the last backends need a moment to notice that their postmaster is gone. Then it is tried
		// again.
		if !strings.Contains(err.Error(), "shared memory block") || ctx.Err() != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// waitReady waits until the server answers, and returns an error if it ends before.
func (s *Server) waitReady(ctx context.Context, p *process) error {
	config, err := pgconn.ParseConfig(s.dsn)
	if err != nil {
		return fmt.Errorf("localpg: %w", err)
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		conn, err := pgconn.ConnectConfig(ctx, config)
		if err == nil {
			_ = conn.Close(ctx)
			return nil
		}
		select {
		case <-p.done:
			return p.err
		case <-ctx.Done():
			return fmt.Errorf("localpg: PostgreSQL did not get ready: %w (%w)", ctx.Err(), err)
		case <-tick.C:
		}
	}
}

// DSN returns a connection string for the superuser and the database postgres, which pgx and psql understand.
// It stays the same over Restart, and over starts on the same folder.
func (s *Server) DSN() string { return s.dsn }

// Dir returns the real path of the server's folder.
func (s *Server) Dir() string { return s.home }

// Binaries returns the PostgreSQL that runs.
func (s *Server) Binaries() Binaries { return s.bin }

// PID returns the process id of the postmaster of the present or last run.
func (s *Server) PID() int { return s.life.Load().pid }

// Done returns a channel that is closed when the present run ends, whoever ends it. After Restart there is a new one.
func (s *Server) Done() <-chan struct{} { return s.life.Load().done }

// Err says why the server died. It is nil while the server runs, and after a Stop that found it alive.
func (s *Server) Err() error {
	p := s.life.Load()
	select {
	case <-p.done:
		return p.err
	default:
		return nil
	}
}

// Stop shuts the server down, waits until it is gone, and removes a temporary folder. Clients are disconnected. If
// the shutdown takes longer than 10 s, or than the context allows, the server is stopped without a checkpoint, and
// at last killed. Committed data is safe in each case. Stop also cleans up after a server that died. A second Stop
// does nothing.
func (s *Server) Stop(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	if err := s.end(ctx); err != nil {
		return err
	}
	s.closed = true
	s.release()
	s.log.Info("postgres stopped", "dir", s.home)
	return nil
}

// end ends the present run.
func (s *Server) end(ctx context.Context) error {
	p := s.life.Load()
	p.asked.Store(true)
	return p.end(ctx, fastWithin)
}

// Kill makes the server crash: the postmaster and all its children get SIGKILL, and are gone when Kill returns.
// Restart brings the server back; Stop cleans up.
func (s *Server) Kill() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.life.Load().kill()
}

// Restart stops the server, if it still runs, and starts it again on the same data with the same DSN.
func (s *Server) Restart(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return errors.New("localpg: restart: the server was stopped for good")
	}
	if err := s.end(ctx); err != nil {
		return err
	}
	// The children of a killed server may outlive it, and so does the lock file of its socket.
	if err := stopOrphan(ctx, s.home); err != nil {
		return err
	}
	if err := emptyDir(s.socket); err != nil {
		return err
	}
	return s.run(ctx)
}

func emptyDir(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("localpg: socket folder: %w", err)
	}
	for _, entry := range entries {
		if err := os.RemoveAll(filepath.Join(dir, entry.Name())); err != nil {
			return fmt.Errorf("localpg: socket folder: %w", err)
		}
	}
	return nil
}

// release closes the log and the lock, and removes the socket's folder and a temporary server's folder. The lock is
// released last: until then nobody else uses the folder.
func (s *Server) release() {
	if s.output != nil {
		_ = s.output.Close()
	}
	if s.socket != "" {
		_ = os.RemoveAll(s.socket)
	}
	if s.temp && s.home != "" {
		_ = os.RemoveAll(s.home)
	}
	if s.lock != nil {
		_ = s.lock.Close()
	}
}

// stopOrphan ends the processes of a PostgreSQL that runs on the folder without an owner. The caller holds the lock.
func stopOrphan(ctx context.Context, home string) error {
	data := filepath.Join(home, "data")
	if err := stopPostmaster(ctx, data); err != nil {
		return err
	}
	// If only the postmaster was killed, a backend does not notice before the end of its statement. Until then it
	// keeps a new server from starting.
	left := serversOf(data)
	for _, pid := range left {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	if !waitGone(ctx, immediateWithin, left...) {
		return fmt.Errorf("localpg: processes %v of an earlier PostgreSQL of %s do not end", left, home)
	}
	return nil
}

// stopPostmaster ends the postmaster that postmaster.pid names. If that process id belongs to another program by now,
// PostgreSQL would take the program for a live server, so the file is removed.
func stopPostmaster(ctx context.Context, data string) error {
	pidFile := filepath.Join(data, "postmaster.pid")
	raw, err := os.ReadFile(pidFile)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("localpg: look for a server left behind: %w", err)
	}
	line, _, _ := strings.Cut(string(raw), "\n")
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil || pid <= 1 || !alive(pid) {
		return nil // PostgreSQL itself removes the file
	}
	if !isServerOf(pid, data) {
		// Should the server have left shared memory, PostgreSQL finds that without the file.
		if err := os.Remove(pidFile); err != nil {
			return fmt.Errorf("localpg: remove a stale postmaster.pid: %w", err)
		}
		return nil
	}
	for _, step := range []struct {
		signal syscall.Signal
		within time.Duration
	}{{syscall.SIGINT, fastWithin}, {syscall.SIGQUIT, immediateWithin}} {
		_ = syscall.Kill(pid, step.signal)
		if waitGone(ctx, step.within, pid) {
			return nil
		}
	}
	if !killTree(pid) {
		return fmt.Errorf("localpg: the PostgreSQL that an earlier process left behind on %s (process %d) does not end",
			data, pid)
	}
	return nil
}
