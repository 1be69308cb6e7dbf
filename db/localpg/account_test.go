package localpg_test

import (
	"os"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/pawl-fsm/pawl/db/localpg"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

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
