package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// errNoPooler says that a scenario cannot run here.
var errNoPooler = errors.New("there is no pgbouncer: apt-get install pgbouncer, or brew install pgbouncer")

// findPooler returns the program.
func findPooler() (string, error) {
	const debian = "/usr/sbin/pgbouncer" // Which is not in every user's PATH.
	if _, err := os.Stat(debian); err == nil {
		return debian, nil
	}
	path, err := exec.LookPath("pgbouncer")
	if err != nil {
		return "", errNoPooler
	}
	return path, nil
}

// startPooler starts a PgBouncer before the cluster's server. It returns its port, and what ends it.
func startPooler(ctx context.Context, c *cluster, mode string) (port int, stop func(), err error) {
	program, err := findPooler()
	if err != nil {
		return 0, nil, err
	}
	if port, err = freePort(); err != nil {
		return 0, nil, err
	}
	size := map[string]int{"session": 100, "transaction": 10}[mode]
	dir := filepath.Join(c.dir, "pooler")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return 0, nil, err
	}
	lines := []string{
		"[databases]",
		fmt.Sprintf("postgres = host=127.0.0.1 port=%d dbname=postgres user=pawl password=%s", c.servers[0].port, c.password),
		"[pgbouncer]", "listen_addr = 127.0.0.1", fmt.Sprintf("listen_port = %d", port), "unix_socket_dir =", "auth_type = any",
		"pool_mode = " + mode, "max_client_conn = 300", fmt.Sprintf("default_pool_size = %d", size),
		"server_login_retry = 1",
	}
	file := filepath.Join(dir, "pgbouncer.ini")
	if err := os.WriteFile(file, []byte(strings.Join(lines, "\n")+"\n"), 0o644); err != nil {
		return 0, nil, err
	}
	log, err := os.Create(filepath.Join(dir, "pgbouncer.log"))
	if err != nil {
		return 0, nil, err
	}
	defer log.Close() // The process has a descriptor of its own.
	cmd := exec.Command(program, file)
	cmd.Dir, cmd.Stderr = "/", log
	if uid, gid, ok := c.owner(); ok { // PgBouncer refuses to run as root.
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: gid}}
	}
	if err := cmd.Start(); err != nil {
		return 0, nil, fmt.Errorf("start pgbouncer: %w", err)
	}
	stop = func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
	address := local(port)
	err = until(ctx, 10*time.Second, "pgbouncer to listen", func(ctx context.Context) (bool, error) {
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
		if err == nil {
			_ = conn.Close()
		}
		return err == nil, err
	})
	if err != nil {
		stop()
		return 0, nil, err
	}
	return port, stop, nil
}
