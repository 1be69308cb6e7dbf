package localpg_test

import (
	"bufio"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/pawl-fsm/pawl/db/localpg"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

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
		_ = bounded.Result(t, "the helper", cmd.Wait)
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
	_ = bounded.Result(t, "the helper", h.cmd.Wait) // "signal: killed"
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
	// Another package's tests may sweep the folder at the same time: then this sweep leaves it to them.
	bounded.True(t, "the temporary folder to be swept", func() bool {
		localpg.Sweep(t.Context())
		_, err := os.Stat(h.dir)
		return errors.Is(err, fs.ErrNotExist)
	})
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
