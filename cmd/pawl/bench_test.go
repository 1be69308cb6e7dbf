package main_test

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// TestBench runs one measurement with this program as the service. Package bench tests the others.
func TestBench(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "figures.json")
	out := mustPawl(t, []string{"DATABASE_URL=" + dbtest.Empty(t)}, "bench",
		"--instances", "20", "--duration", "100ms", "--connections", "2", "--only", "transitions", "--json", file)
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var figures struct {
		Measurements []struct {
			Name        string
			Connections int
			Operations  int
			Errors      int
		}
	}
	if err := json.Unmarshal(text, &figures); err != nil {
		t.Fatal(err)
	}
	if m := figures.Measurements; len(m) != 1 || m[0].Name != "transitions" || m[0].Connections != 2 || m[0].Operations == 0 || m[0].Errors > 0 {
		t.Errorf("the figures are %s", text)
	}
	if !strings.Contains(out, "transitions") {
		t.Errorf("the output is %s", out)
	}
}

// TestBenchInterrupted interrupts a run in the middle. Its processes end, and the database is as empty
// as before.
func TestBenchInterrupted(t *testing.T) {
	t.Parallel()
	dsn := dbtest.Empty(t)
	p := bounded.Start(t, bounded.Program{
		Path: program, Env: []string{"DATABASE_URL=" + dsn},
		Args: []string{"bench", "--instances", "100", "--connections", "2", "--duration", "5m", "--only", "transitions"},
	})
	conn := dialDSN(t, dsn)
	bounded.True(t, "an instance to move", func() (moved bool) {
		if p.Ended() {
			t.Fatalf("bench ended: %s", p.Output)
		}
		// The table may not be there yet.
		_ = conn.QueryRow(t.Context(), "select exists (select from pawl.instance where version > 1)").Scan(&moved)
		return moved
	})
	p.Signal(t, os.Interrupt)
	var exit *exec.ExitError
	if err := p.Wait(t); !errors.As(err, &exit) || exit.ExitCode() != 1 || !strings.Contains(p.Output.String(), "interrupt") {
		t.Errorf("it ended with %v: %s", err, p.Output)
	}
	left := bounded.Value[string](t, conn, `
		select concat_ws(', ',
			(select string_agg(nspname, ', ') from pg_namespace where nspname ~ 'pawl'),
			(select string_agg(relname, ', ') from pg_class where relnamespace = 'public'::regnamespace))`)
	if left != "" {
		t.Errorf("the database still has %s", left)
	}
}

// TestBenchRefuses shows the flags and the database that no run starts with.
func TestBenchRefuses(t *testing.T) {
	t.Parallel()
	for want, args := range map[string][]string{
		"--instances must be from 1":         {"--instances", "0"},
		"--instances must not be less than":  {"--instances", "10"},
		"--duration must be from 100ms":      {"--duration", "1h"},
		"--connections must be from 1 to":    {"--connections", "1,1001"},
		"--connections has 8 twice":          {"--connections", "8,8"},
		`there is no "nonsense"; want some`:  {"--only", "reads,nonsense"},
		"no-such-folder/figures.json: no su": {"--json", "no-such-folder/figures.json"},
	} {
		if _, stderr, code := pawl(t, []string{"DATABASE_URL="}, append([]string{"bench"}, args...)...); code == 0 || !strings.Contains(stderr, want) {
			t.Errorf("bench %v: exit code %d, no %q in %s", args, code, want, stderr)
		}
	}
	dsn := dbtest.NewDSN(t)
	if _, stderr, code := pawl(t, []string{"DATABASE_URL=" + dsn}, "bench"); code != 1 || !strings.Contains(stderr, "has a schema pawl") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
}
