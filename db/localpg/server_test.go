package localpg_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"go.uber.org/goleak"

	"github.com/pawl-fsm/pawl/db/localpg"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// helperEnv makes the test binary act as a program that starts a server on the folder named by its value.
const helperEnv = "LOCALPG_TEST_HELPER_DIR"

func TestMain(m *testing.M) {
	if dir, ok := os.LookupEnv(helperEnv); ok {
		help(dir)
		return
	}
	goleak.VerifyTestMain(m)
}

// help starts a server, prints its process id and DSN, and waits to be killed.
func help(dir string) {
	s, err := localpg.Start(context.Background(), localpg.Config{Dir: dir, Detached: os.Getenv("DETACHED") != ""})
	if err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	fmt.Println("started", s.PID(), s.Dir(), s.DSN())
	_, _ = io.Copy(io.Discard, os.Stdin)
}

// folder makes a data folder that, unlike t.TempDir's, an unprivileged user can be let into.
func folder(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "localpg-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// openFolder makes one that everybody may pass through, for folders below it.
func openFolder(t *testing.T) string {
	t.Helper()
	dir := folder(t)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func needBinaries(t *testing.T) {
	t.Helper()
	if _, err := localpg.Find(); err != nil {
		t.Skip(err)
	}
}

func start(t *testing.T, config localpg.Config) *localpg.Server {
	t.Helper()
	needBinaries(t)
	s, err := localpg.Start(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, s) })
	return s
}

func stop(t *testing.T, s *localpg.Server) {
	t.Helper()
	if err := s.Stop(bounded.Context(t)); err != nil {
		t.Error(err)
	}
}

func exec1(t *testing.T, dsn, sql string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	bounded.Exec(t, conn, sql)
}

func query1[T any](t *testing.T, dsn, sql string) T {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	return bounded.Value[T](t, conn, sql)
}

func running(s *localpg.Server) bool {
	select {
	case <-s.Done():
		return false
	default:
		return true
	}
}

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

func TestOneOwner(t *testing.T) {
	t.Parallel()
	dir := folder(t)
	s := start(t, localpg.Config{Dir: dir})
	_, err := localpg.Start(t.Context(), localpg.Config{Dir: dir})
	if err == nil || !strings.Contains(err.Error(), "in use by process "+strconv.Itoa(os.Getpid())) {
		t.Errorf("a second Start: %v, want to hear who has it", err)
	}
	if !running(s) {
		t.Error("the second Start ended the first server")
	}
}

func TestDeepFolder(t *testing.T) {
	t.Parallel()
	dir := openFolder(t)
	for len(dir) < 200 { // bounded: each round makes it longer
		dir = filepath.Join(dir, "deeper-and-deeper")
	}
	s := start(t, localpg.Config{Dir: dir})
	config, err := pgx.ParseConfig(s.DSN())
	if err != nil {
		t.Fatal(err)
	}
	if got := query1[int](t, s.DSN(), "select 1"); got != 1 {
		t.Errorf("select 1 = %d", got)
	}
	stop(t, s)
	if _, err := os.Stat(config.Host); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket's folder %s is still there: %v", config.Host, err)
	}
}

func TestRefusesForeignFolder(t *testing.T) {
	t.Parallel()
	needBinaries(t)
	dir := folder(t)
	if err := os.WriteFile(filepath.Join(dir, "thesis.txt"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := localpg.Start(t.Context(), localpg.Config{Dir: dir})
	if err == nil || !strings.Contains(err.Error(), "thesis.txt") {
		t.Errorf("Start = %v, want a refusal", err)
	}
	info, err := os.Stat(dir)
	if err != nil {
		t.Fatal(err)
	}
	if int(info.Sys().(*syscall.Stat_t).Uid) != os.Geteuid() {
		t.Error("a refused folder was handed over")
	}
}

func TestRefusesOtherMajor(t *testing.T) {
	t.Parallel()
	needBinaries(t)
	dir := folder(t)
	a := serverUser(t)
	data := filepath.Join(dir, "data")
	if err := os.Mkdir(data, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(data, "PG_VERSION"), []byte("12\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 {
		if err := os.Chown(data, a.uid, a.gid); err != nil {
			t.Fatal(err)
		}
	}
	bin, err := localpg.Find()
	if err != nil {
		t.Fatal(err)
	}
	_, err = localpg.Start(t.Context(), localpg.Config{Dir: dir})
	if err == nil || !strings.Contains(err.Error(), "made by PostgreSQL 12") || !strings.Contains(err.Error(), "is PostgreSQL "+bin.Version) {
		t.Errorf("Start = %v, want both versions named", err)
	}
}

func TestBadSettingIsExplained(t *testing.T) {
	t.Parallel()
	needBinaries(t)
	_, err := localpg.Start(t.Context(), localpg.Config{Settings: map[string]string{"no_such_setting": "1"}})
	if err == nil || !strings.Contains(err.Error(), "no_such_setting") || strings.Contains(err.Error(), "\n") {
		t.Errorf("Start = %v, want one line that names the setting", err)
	}
	for _, settings := range []map[string]string{{"unix_socket_directories": "/tmp"}, {"port": "x"}} {
		if _, err := localpg.Start(t.Context(), localpg.Config{Settings: settings}); err == nil {
			t.Errorf("Start with %v succeeded", settings)
		}
	}
}

func TestCutShortInitdbIsCleared(t *testing.T) {
	t.Parallel()
	dir := folder(t)
	left := filepath.Join(dir, "init-12345")
	if err := os.MkdirAll(filepath.Join(left, "base"), 0o700); err != nil {
		t.Fatal(err)
	}
	start(t, localpg.Config{Dir: dir})
	if _, err := os.Stat(left); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s is still there: %v", left, err)
	}
}

// A process id that went to another program must not look like a live server, neither to us nor to PostgreSQL.
func TestRecycledProcessID(t *testing.T) {
	t.Parallel()
	dir := folder(t)
	s := start(t, localpg.Config{Dir: dir})
	if err := s.Kill(); err != nil {
		t.Fatal(err)
	}
	stop(t, s)

	other := bounded.Command(t, "sleep", "600")
	if os.Geteuid() == 0 {
		a := serverUser(t)
		other.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(a.uid), Gid: uint32(a.gid)}}
	}
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = other.Process.Kill()
		bounded.Result(t, "the other program", other.Wait)
	}()
	pidFile := filepath.Join(dir, "data", "postmaster.pid")
	raw, err := os.ReadFile(pidFile)
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := bytes.Cut(raw, []byte("\n"))
	raw = append([]byte(strconv.Itoa(other.Process.Pid)+"\n"), rest...)
	if err := os.WriteFile(pidFile, raw, 0o600); err != nil {
		t.Fatal(err)
	}

	start(t, localpg.Config{Dir: dir})
	if !localpg.Alive(other.Process.Pid) {
		t.Error("the other program was ended")
	}
}

// helper is another process that started a server.
type helper struct {
	cmd  *exec.Cmd
	pid  int // of the postmaster
	dir  string
	dsn  string
	line string
}

func startHelper(t *testing.T, cmd *exec.Cmd, dir string, env ...string) helper {
	t.Helper()
	needBinaries(t)
	cmd.Env = append(append(os.Environ(), helperEnv+"="+dir), env...)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = stdin.Close()
		_ = cmd.Process.Kill()
		bounded.Result(t, "the helper", cmd.Wait)
	})
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	h := helper{cmd: cmd, line: strings.TrimSpace(line)}
	if fields := strings.Fields(line); fields[0] == "started" {
		h.dir, h.dsn = fields[2], fields[3]
		if h.pid, err = strconv.Atoi(fields[1]); err != nil {
			t.Fatal(err)
		}
	}
	return h
}

func (h helper) kill(t *testing.T) {
	t.Helper()
	if err := h.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	bounded.Result(t, "the helper", h.cmd.Wait) // "signal: killed"
}

func TestServerDiesWithItsProcess(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("only Linux ties a process to its parent")
	}
	h := startHelper(t, bounded.Command(t, os.Args[0]), "")
	if h.pid == 0 {
		t.Fatal(h.line)
	}
	h.kill(t)
	if !localpg.WaitGone(t.Context(), time.Minute, h.pid) {
		t.Fatal("the server outlived its process")
	}
	if _, err := os.Stat(h.dir); err != nil {
		t.Fatalf("the temporary folder is gone although nobody stopped the server: %v", err)
	}
	localpg.Sweep(t.Context())
	if _, err := os.Stat(h.dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the temporary folder was not swept: %v", err)
	}
}

func TestSweepLeavesTheLivingAlone(t *testing.T) {
	t.Parallel()
	h := startHelper(t, bounded.Command(t, os.Args[0]), "")
	if h.pid == 0 {
		t.Fatal(h.line)
	}
	localpg.Sweep(t.Context())
	if got := query1[int](t, h.dsn, "select 1"); got != 1 {
		t.Errorf("select 1 = %d", got)
	}
	h.kill(t)
	if !localpg.WaitGone(t.Context(), time.Minute, h.pid) && runtime.GOOS == "linux" {
		t.Error("the server outlived its process")
	}
	localpg.Sweep(t.Context())
}

func TestOrphanIsStoppedAndReplaced(t *testing.T) {
	t.Parallel()
	dir := folder(t)
	h := startHelper(t, bounded.Command(t, os.Args[0]), dir, "DETACHED=1")
	if h.pid == 0 {
		t.Fatal(h.line)
	}
	exec1(t, h.dsn, "create table kept as select 42 as n")
	h.kill(t)
	if !localpg.Alive(h.pid) {
		t.Fatal("a detached server died with its process")
	}

	s := start(t, localpg.Config{Dir: dir})
	if localpg.Alive(h.pid) {
		t.Error("the orphan still runs")
	}
	if s.PID() == h.pid {
		t.Error("the orphan was adopted")
	}
	if got := query1[int](t, s.DSN(), "select n from kept"); got != 42 {
		t.Errorf("after the orphan: %d, want 42", got)
	}
}

type ids struct{ uid, gid int }

// serverUser is the user that root runs servers as.
func serverUser(t *testing.T) ids {
	t.Helper()
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err := strconv.Atoi(u.Uid)
		if err != nil {
			t.Fatal(err)
		}
		gid, err := strconv.Atoi(u.Gid)
		if err != nil {
			t.Fatal(err)
		}
		return ids{uid, gid}
	}
	t.Skip("no user postgres or nobody")
	return ids{}
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

func TestRootRunsAsSomebodyElse(t *testing.T) {
	t.Parallel()
	needRoot(t)
	s := start(t, localpg.Config{Dir: folder(t)})
	info, err := os.Stat("/proc/" + strconv.Itoa(s.PID()))
	if err != nil {
		t.Skip(err)
	}
	if uid := info.Sys().(*syscall.Stat_t).Uid; int(uid) != serverUser(t).uid {
		t.Errorf("the server runs as user %d, want %d", uid, serverUser(t).uid)
	}
}

func TestClosedParentIsPassedAndLeftAlone(t *testing.T) {
	t.Parallel()
	needRoot(t)
	needBinaries(t)
	closed := folder(t) // 0700, root's
	if runtime.GOOS == "linux" {
		start(t, localpg.Config{Dir: filepath.Join(closed, "data")})
	} else {
		_, err := localpg.Start(t.Context(), localpg.Config{Dir: filepath.Join(closed, "data")})
		if err == nil || !strings.Contains(err.Error(), `"chmod o+x `+closed+`"`) || strings.Contains(err.Error(), "\n") {
			t.Errorf("Start = %v, want one line with the command that helps", err)
		}
	}
	info, err := os.Stat(closed)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o700 || info.Sys().(*syscall.Stat_t).Uid != 0 {
		t.Error("a folder that was not given was changed")
	}
}

func TestDataOfRootIsExplained(t *testing.T) {
	t.Parallel()
	needRoot(t)
	needBinaries(t)
	dir := folder(t)
	if err := os.Mkdir(filepath.Join(dir, "data"), 0o700); err != nil {
		t.Fatal(err)
	}
	_, err := localpg.Start(t.Context(), localpg.Config{Dir: dir})
	if err == nil || !strings.Contains(err.Error(), "chown -R") {
		t.Errorf("Start = %v, want the command that helps", err)
	}
}

// The other tests run as root where root runs them; this one covers the other case there.
func TestOrdinaryUser(t *testing.T) {
	t.Parallel()
	needRoot(t)
	nobody, err := user.Lookup("nobody")
	if err != nil {
		t.Skip(err)
	}
	uid, _ := strconv.ParseUint(nobody.Uid, 10, 32)
	gid, _ := strconv.ParseUint(nobody.Gid, 10, 32)

	// go test keeps its binaries where only their owner can go.
	place := openFolder(t)
	program := filepath.Join(place, "helper")
	raw, err := os.ReadFile(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(program, raw, 0o755); err != nil {
		t.Fatal(err)
	}
	dir := folder(t)
	if err := os.Chown(dir, int(uid), int(gid)); err != nil {
		t.Fatal(err)
	}

	cmd := bounded.Command(t, program)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
	h := startHelper(t, cmd, dir)
	if h.pid == 0 {
		t.Fatal(h.line)
	}
	exec1(t, h.dsn, "create table kept as select 42 as n")
	h.kill(t)

	// Root takes the same folder over, as the user who has it.
	s := start(t, localpg.Config{Dir: dir})
	if got := query1[int](t, s.DSN(), "select n from kept"); got != 42 {
		t.Errorf("after the ordinary user: %d, want 42", got)
	}
	if info, err := os.Stat("/proc/" + strconv.Itoa(s.PID())); err == nil {
		if got := info.Sys().(*syscall.Stat_t).Uid; uint64(got) != uid {
			t.Errorf("the server runs as user %d, want %d", got, uid)
		}
	}
}
