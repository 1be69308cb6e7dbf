package localpg_test

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pawl-fsm/pawl/db/localpg"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

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
		_ = bounded.Result(t, "the other program", other.Wait)
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
