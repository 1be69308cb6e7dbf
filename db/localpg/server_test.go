package localpg_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pawl-fsm/pawl/db/localpg"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

func TestStartStop(t *testing.T) {
	t.Parallel()
	s := start(t, localpg.Config{Settings: map[string]string{"fsync": "off", "max_connections": "300"}})
	if got := query1[string](t, s.DSN(), "show max_connections"); got != "300" {
		t.Errorf("max_connections = %s, want 300", got)
	}
	if got := query1[string](t, s.DSN(), "show server_encoding"); got != "UTF8" {
		t.Errorf("server_encoding = %s, want UTF8", got)
	}
	if got := query1[string](t, s.DSN(), "show listen_addresses"); got != "" {
		t.Errorf("listen_addresses = %q, want none", got)
	}
	if !running(s) || s.Err() != nil {
		t.Errorf("a running server: running %v, err %v", running(s), s.Err())
	}

	// An open connection does not hold the stop up.
	conn, err := pgx.Connect(t.Context(), s.DSN())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	stop(t, s)
	stop(t, s)
	if running(s) || s.Err() != nil {
		t.Errorf("a stopped server: running %v, err %v", running(s), s.Err())
	}
	if localpg.Alive(s.PID()) {
		t.Error("the postmaster is still there after Stop")
	}
	if _, err := os.Stat(s.Dir()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the temporary folder is still there: %v", err)
	}
	if err := s.Restart(t.Context()); err == nil {
		t.Error("Restart after Stop succeeded")
	}
}

func TestStopWithCancelledContext(t *testing.T) {
	t.Parallel()
	s := start(t, localpg.Config{})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	if localpg.Alive(s.PID()) {
		t.Error("the postmaster is still there after Stop")
	}
}

func TestSocketIsPrivate(t *testing.T) {
	t.Parallel()
	s := start(t, localpg.Config{})
	config, err := pgx.ParseConfig(s.DSN())
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(config.Host)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o700 {
		t.Errorf("the socket's folder has mode %v, want 0700", info.Mode().Perm())
	}
}

// Over TCP, which a caller may open, nobody gets in without a password.
func TestTCPAsksForPassword(t *testing.T) {
	t.Parallel()
	s := start(t, localpg.Config{Settings: map[string]string{"listen_addresses": "127.0.0.1", "port": bounded.Port(t)}})
	config, err := pgx.ParseConfig(s.DSN())
	if err != nil {
		t.Fatal(err)
	}
	config.Host = "127.0.0.1"
	if conn, err := pgx.ConnectConfig(t.Context(), config); err == nil {
		_ = conn.Close(t.Context())
		t.Error("connected without a password")
	}
	exec1(t, s.DSN(), "alter role postgres password 'sesame'")
	config.Password = "sesame"
	conn, err := pgx.ConnectConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.Close(t.Context())
}

func TestPsqlUnderstandsTheDSN(t *testing.T) {
	t.Parallel()
	s := start(t, localpg.Config{})
	psql, err := s.Binaries().Path("psql")
	if err != nil {
		t.Skip(err)
	}
	out, err := bounded.Command(t, psql, "-XAtc", "select current_user", s.DSN()).CombinedOutput()
	if err != nil || strings.TrimSpace(string(out)) != "postgres" {
		t.Errorf("psql %s: %v: %s", s.DSN(), err, out)
	}
}

func TestEnvironmentDoesNotLeakIn(t *testing.T) {
	t.Setenv("PGPORT", "1")
	t.Setenv("PGDATA", "/nowhere")
	t.Setenv("PGHOST", "nowhere.invalid")
	t.Setenv("PGUSER", "nobody-known")
	s := start(t, localpg.Config{})
	if got := query1[string](t, s.DSN(), "select current_user::text"); got != "postgres" {
		t.Errorf("connected as %s", got)
	}
}

func TestDataFolderKeepsData(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(openFolder(t), "made", "on the way") // a blank, so that the socket goes elsewhere
	first := start(t, localpg.Config{Dir: dir})
	if got := query1[string](t, first.DSN(), "show fsync"); got != "on" {
		t.Errorf("fsync = %s, want on", got)
	}
	exec1(t, first.DSN(), "create table kept as select 42 as n")
	if err := first.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := query1[int](t, first.DSN(), "select n from kept"); got != 42 {
		t.Errorf("after Restart: %d, want 42", got)
	}
	stop(t, first)

	second := start(t, localpg.Config{Dir: dir})
	if second.DSN() != first.DSN() {
		t.Errorf("the DSN changed from %s to %s", first.DSN(), second.DSN())
	}
	if got := query1[int](t, second.DSN(), "select n from kept"); got != 42 {
		t.Errorf("after Stop and Start: %d, want 42", got)
	}
}

func TestKillIsACrash(t *testing.T) {
	t.Parallel()
	dir := folder(t)
	s := start(t, localpg.Config{Dir: dir})
	exec1(t, s.DSN(), "create table kept as select 42 as n")
	kids := localpg.Children(s.PID())
	if len(kids) == 0 {
		t.Fatal("the postmaster has no children to kill")
	}
	if err := s.Kill(); err != nil {
		t.Fatal(err)
	}
	for _, pid := range append(kids, s.PID()) {
		if localpg.Alive(pid) {
			t.Errorf("process %d survived", pid)
		}
	}
	bounded.Receive(t, "the death of the server", s.Done())
	if err := s.Err(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("Err = %v, want to hear of the kill", err)
	}

	if err := s.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s.Err() != nil {
		t.Errorf("Err after Restart = %v", s.Err())
	}
	if got := query1[int](t, s.DSN(), "select n from kept"); got != 42 {
		t.Errorf("after Kill and Restart: %d, want 42", got)
	}

	if err := s.Kill(); err != nil {
		t.Fatal(err)
	}
	stop(t, s)
	again := start(t, localpg.Config{Dir: dir})
	if got := query1[int](t, again.DSN(), "select n from kept"); got != 42 {
		t.Errorf("after Kill and Start: %d, want 42", got)
	}
}

func TestDoneTellsOfADeath(t *testing.T) {
	t.Parallel()
	s := start(t, localpg.Config{})
	if err := syscall.Kill(s.PID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	bounded.Receive(t, "the death of the server", s.Done())
	if s.Err() == nil {
		t.Error("Err is nil after a death")
	}
}

// A backend that does not look up from its work must not keep the server from coming back.
func TestRestartAfterTheDeathOfThePostmasterAlone(t *testing.T) {
	t.Parallel()
	s := start(t, localpg.Config{})
	conn, err := pgx.Connect(t.Context(), s.DSN())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	ended := make(chan error, 1)
	go func() {
		_, err := conn.Exec(context.Background(), "select count(*) from (select generate_series(1, 1000000000000)) s")
		ended <- err
	}()
	bounded.True(t, "the statement to run", func() bool {
		return query1[int](t, s.DSN(), "select count(*) from pg_stat_activity where state = 'active'") >= 2
	})
	if err := syscall.Kill(s.PID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	bounded.Receive(t, "the death of the server", s.Done())
	if err := s.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := bounded.Receive(t, "the statement", ended); err == nil {
		t.Error("a statement of the dead server succeeded")
	}
	if got := query1[int](t, s.DSN(), "select 1"); got != 1 {
		t.Errorf("select 1 = %d", got)
	}
}

// A terminal sends ^C to the processes of one session's foreground group, which the server must not be in.
func TestTerminalDoesNotReachTheServer(t *testing.T) {
	t.Parallel()
	s := start(t, localpg.Config{})
	group, err := syscall.Getpgid(s.PID())
	if err != nil {
		t.Fatal(err)
	}
	if group == syscall.Getpgrp() {
		t.Error("the server is in our process group")
	}
}
