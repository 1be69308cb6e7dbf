package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pawl-fsm/pawl/db/localpg"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// program is bin/pawl, built once.
var program string

func TestMain(m *testing.M) {
	if _, err := localpg.Find(); err != nil {
		fmt.Println("skipped:", err)
		return
	}
	programs, remove := bounded.Build("../../cmd/pawl")
	program = programs[0]
	code := m.Run()
	remove()
	os.Exit(code)
}

// tortured runs the tool, and returns what it writes.
func tortured(t *testing.T, args ...string) (string, error) {
	t.Helper()
	dir, err := os.MkdirTemp("", "pawl-torture-test-") // The server's user could not enter t.TempDir.
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the folders of the runs are in %s", dir)
			return
		}
		_ = os.RemoveAll(dir)
	})
	var out bytes.Buffer
	// Each of its own waits is bounded; together they may take longer than one wait of a test.
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	err = torture(ctx, append([]string{"--pawl", program, "--dir", dir, "--short"}, args...), &out)
	return out.String(), err
}

// wantStandbys skips a test of a standby where PostgreSQL's programs lack the one that copies a server.
func wantStandbys(t *testing.T) {
	t.Helper()
	b, err := localpg.Find()
	if err == nil {
		_, err = os.Stat(filepath.Join(b.Dir, "pg_basebackup"))
	}
	if err != nil {
		t.Skipf("this scenario needs a standby: %v", err)
	}
}

func TestShortTorture(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"kill-replica", "kill-postgres", "promote-async", "tasks-undo"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if name == "promote-async" {
				wantStandbys(t)
			}
			out, err := tortured(t, "--only", name)
			if err != nil {
				t.Errorf("%v:\n%s", err, out)
			}
			if !strings.Contains(out, "\n"+name+" ") {
				t.Errorf("the report has no row of the run:\n%s", out)
			}
		})
	}
}

// The tool says what it has found, how to replay it, and where its record is.
func TestFailedRunIsReported(t *testing.T) {
	t.Parallel()
	out, err := tortured(t, "--seed", "7", "--only", "cut", "--plant", "skipped-step")
	if err == nil || !strings.Contains(err.Error(), "1 of 1 runs failed") {
		t.Errorf("torture = %v, want it to fail:\n%s", err, out)
	}
	for _, part := range []string{"delivered: ", `replay: make torture ARGS="--seed 7 --only cut --short --plant skipped-step"`, "folder: "} {
		if !strings.Contains(out, part) {
			t.Errorf("the output has no %q:\n%s", part, out)
		}
	}
	_, folder, _ := strings.Cut(out, "folder: ")
	folder, _, _ = strings.Cut(folder, "\n")
	for _, file := range []string{"record.jsonl", "violations.json", "replica-1.log"} {
		if info, err := os.Stat(filepath.Join(folder, file)); err != nil || info.Size() == 0 {
			t.Errorf("%s is not kept: %v", file, err)
		}
	}
}

func TestCommandLine(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"--only", "kill-replica,kill-cat"}, `no scenario "kill-cat"`},
		{[]string{"quiet"}, "quiet is not an option"},
		{[]string{"--pawl", "/nowhere"}, "run make build"},
		{[]string{"--plant", "weeds"}, `no fault "weeds" to plant`},
	} {
		if err := torture(bounded.Context(t), c.args, &bytes.Buffer{}); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("torture %q = %v, want %q", c.args, err, c.want)
		}
	}
	var out bytes.Buffer
	err := torture(bounded.Context(t), []string{"--list", "--only", "pitr,all"}, &out)
	listed, planted, _ := strings.Cut(out.String(), "\n\n")
	if err != nil || strings.Count(listed, "\n") != 1 || !strings.Contains(planted, "skipped-step           delivered\n") {
		t.Errorf("--list prints %q, %v", out.String(), err)
	}
}

// The same seed draws the same commands and the same transactions.
func TestSeedDecidesTheCommands(t *testing.T) {
	t.Parallel()
	commands := func(seed uint64) string {
		w := &world{seed: seed}
		w.accounts.hot = make([]account, 3)
		c, tx := w.newCaller(1), w.newTransactor(2, false)
		var all strings.Builder
		for range 200 {
			fmt.Fprintf(&all, "%+v %v %+v\n", c.choose(), w.think(c.rng), tx.choose())
		}
		return all.String()
	}
	first := commands(1)
	if again := commands(1); again != first {
		t.Error("one seed makes different commands")
	}
	if commands(2) == first {
		t.Error("two seeds make the same commands")
	}
}
