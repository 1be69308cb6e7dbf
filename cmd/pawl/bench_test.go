package main_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/db/localpg"
)

// benchFigures is what a run writes, as far as a test can know it.
type benchFigures struct {
	Machine struct {
		Postgres string
		Settings map[string]string
	}
	Measurements []struct {
		Name         string
		Connections  int
		Rate         float64
		P50          float64 `json:"p50_ms"`
		Max          float64 `json:"max_ms"`
		Errors       int
		FirstError   string   `json:"first_error"`
		Transactions *float64 `json:"transactions_per_op"`
		Purge        *struct {
			Sizes []int64
			Max   int64 `json:"second_half_max"`
		}
	}
	References []struct {
		Name        string
		Connections int
		Rate, Ratio float64
	}
	Remarks []string
}

// TestBench measures everything for a moment, and leaves nothing behind. Timings are not
// looked at.
func TestBench(t *testing.T) {
	t.Parallel()
	dsn := dbtest.Empty(t)
	file := filepath.Join(t.TempDir(), "figures.json")
	out := mustPawl(t, []string{"DATABASE_URL=" + dsn}, "bench",
		"--instances", "200", "--duration", "200ms", "--connections", "1,4", "--json", file)
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var figures benchFigures
	if err := json.Unmarshal(text, &figures); err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, m := range figures.Measurements {
		names = append(names, fmt.Sprintf("%s@%d", m.Name, m.Connections))
		if m.Errors > 0 || m.Rate <= 0 || m.P50 <= 0 || m.Max < m.P50 || m.Transactions == nil {
			t.Errorf("%+v", m)
		}
		if p := m.Purge; (m.Name == "purge") != (p != nil && len(p.Sizes) > 1 && p.Max > 0) {
			t.Errorf("%s has %+v of purging", m.Name, p)
		}
	}
	want := []string{
		"transitions@1", "transitions@4", "creates@64", "batch@8", "replays@64", "reads@64", "hot@64", "mixed@64",
		"before-purge@64", "purge@64", "unrelayed@4", "relayed@4", "paced@50", "held@4", "untold@4", "before-overload@64", "overload@640", "after-overload@64",
	}
	if !slices.Equal(names, want) {
		t.Errorf("measured are %v, want %v", names, want)
	}
	names = nil
	for _, r := range figures.References {
		names = append(names, fmt.Sprintf("%s@%d", r.Name, r.Connections))
		if r.Rate <= 0 || r.Ratio <= 0 {
			t.Errorf("%+v", r)
		}
	}
	want = []string{"simple-update@1", "writes@1", "fire@1", "simple-update@4", "writes@4", "fire@4"}
	if !hasPgbench() {
		want = nil
	}
	if !slices.Equal(names, want) {
		t.Errorf("references are %v, want %v; remarks: %q", names, want, figures.Remarks)
	}
	if figures.Machine.Postgres == "" || figures.Machine.Settings["synchronous_commit"] == "" {
		t.Errorf("the machine is %+v", figures.Machine)
	}
	if !strings.Contains(out, "hot@64 per second") || !strings.Contains(out, "step to sink p99") || !strings.Contains(out, "step to long-poll p50") || !strings.Contains(out, "webhooks per second") {
		t.Errorf("no targets in: %s", out)
	}
	if left := leftovers(t, dsn); left != "" {
		t.Errorf("the database still has %s", left)
	}
}

func hasPgbench() bool {
	bin, _ := localpg.Find() // PATH may have it without a server.
	_, err := bin.Path("pgbench")
	return err == nil
}

// leftovers lists what is not part of a fresh database.
func leftovers(t *testing.T, dsn string) (names string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(t.Context())) }()
	err = conn.QueryRow(t.Context(), `
		select concat_ws(', ',
			(select string_agg(nspname, ', ') from pg_namespace where nspname ~ 'pawl'),
			(select string_agg(relname, ', ') from pg_class where relnamespace = 'public'::regnamespace))`).Scan(&names)
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// TestBenchInterrupted ends a run in the middle: its processes end, and the database is
// as empty as before.
func TestBenchInterrupted(t *testing.T) {
	t.Parallel()
	dsn := dbtest.Empty(t)
	ended := make(chan struct{})
	cmd := exec.Command(program, "bench", "--instances", "100", "--connections", "2", "--duration", "1m", "--only", "transitions")
	cmd.Env = append(os.Environ(), "DATABASE_URL="+dsn)
	var log lockedBuffer
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = cmd.Wait()
		close(ended)
	}()
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(t.Context())) }()
	for moved := false; !moved; {
		select {
		case <-ended:
			t.Fatalf("bench ended: %s", log.String())
		default:
		}
		// There may be no such table yet.
		_ = conn.QueryRow(t.Context(), "select exists (select from pawl.instance where version > 1)").Scan(&moved)
	}
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	<-ended
	if code := cmd.ProcessState.ExitCode(); code != 1 || !strings.Contains(log.String(), "interrupt") {
		t.Errorf("exit code %d: %s", code, log.String())
	}
	if left := leftovers(t, dsn); left != "" {
		t.Errorf("the database still has %s", left)
	}
}

// TestBenchRefuses shows what it does not start on.
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
	if left := leftovers(t, dsn); !strings.Contains(left, "pawl") {
		t.Error("a database that was refused is not as it was")
	}
}
