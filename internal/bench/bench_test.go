package bench_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/db/localpg"
	"github.com/pawl-fsm/pawl/internal/bench"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// program is the command line, which runs the service. It is built once.
var program string

func TestMain(m *testing.M) {
	programs, remove := bounded.Build("../../cmd/pawl")
	program = programs[0]
	code := m.Run()
	remove()
	dbtest.Exit(code)
}

// figures has the members of a run's figures that a test can check.
type figures struct {
	Machine struct {
		Pawl, Postgres string
		Settings       map[string]string
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
	Found []struct {
		Name        string
		Calls, Rows int
		P99         float64 `json:"p99_ms"`
	}
	References []struct {
		Name        string
		Connections int
		Rate, Ratio float64
	}
	Remarks []string
}

// TestRun makes every measurement for a moment. The figures are complete, and the database is left
// empty. The timings are not checked.
func TestRun(t *testing.T) {
	t.Parallel()
	dsn := dbtest.Empty(t)
	var output, written bytes.Buffer
	err := bench.Run(t.Context(), bench.Config{
		Instances: 200, Duration: 100 * time.Millisecond, Connections: []int{1, 4}, Workflows: 3, Find: 2000,
		DatabaseURL: dsn, Program: program, Version: "v1.2.3", Output: &output, Figures: &written, Logger: slog.New(slog.DiscardHandler),
	})
	out := output.String()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	var figures figures
	if err := json.Unmarshal(written.Bytes(), &figures); err != nil {
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
		"transitions@1", "transitions@4", "creates@64", "batch@8", "replays@64", "reads@64", "hot@64", "one-tenant@64", "tenants@64",
		"open@64", "tokens@64", "unchecked@64", "checked@64", "paths@64", "values@64", "mixed@64",
		"before-purge@64", "purge@64", "unrelayed@4", "relayed@4", "paced@50", "held@4", "untold@4",
		"work@64", "calls@256", "invoke@20", "plain@64", "untasked@64", "unfolded@64", "folded@64", "spanless@64", "spans@64",
		"alone@4", "slow-guards@4", "alone@4", "slow-timers@4", "alone@4", "schemas@4", "alone@4", "stalled-readers@4",
		"alone@4", "batches@4", "alone@4", "lists@4", "alone@4", "streams@4", "alone@4", "webhooks@4", "alone@4", "timers@4",
		"alone@4", "registrations@4", "before-overload@64", "overload@640", "after-overload@64",
		"one-workflow@1", "one-workflow@8", "one-workflow@64", "workflows@1", "workflows@8", "workflows@64",
	}
	if !slices.Equal(names, want) {
		t.Errorf("measured are %v, want %v", names, want)
	}
	rows := map[string]int{}
	for _, f := range figures.Found {
		rows[f.Name] = f.Rows
		if f.Calls == 0 || f.P99 <= 0 {
			t.Errorf("%+v", f)
		}
	}
	// Of 2,000 instances, 840 are the first tenant's of the first workflow. Its 1,400 are drawn: about 9 in 100 are slow.
	for name, want := range map[string]int{
		"list: a common state": 100, "list: an empty state": 0, "list: where an attribute is unique": 1, "list: where both never hold": 0,
		"findings: of no such kind": 0, "findings: of a common kind": 20, "findings: counts of all tenants": 5,
	} {
		if got, measured := rows[name]; !measured || got < want || want <= 1 && got > want {
			t.Errorf("%s: %d rows, want %d of %v", name, got, want, rows)
		}
	}
	if rows["stats: 28 days"] == 0 || rows["forecast: in PACKED"] == 0 || rows["look: 1000 of each kind, findings"] < 100 || rows["reindex: 1000 instances"] == 0 {
		t.Errorf("the rows are %v", rows)
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
	if figures.Machine.Pawl != "v1.2.3" || figures.Machine.Postgres == "" || figures.Machine.Settings["synchronous_commit"] == "" {
		t.Errorf("the machine is %+v", figures.Machine)
	}
	if !strings.Contains(out, "tenants@64 ÷ one-tenant@64") || !strings.Contains(out, "workflows@8 ÷ one-workflow@8") || !strings.Contains(out, "step to sink p99") || !strings.Contains(out, "step to long-poll p50") || !strings.Contains(out, "webhooks per second") || !strings.Contains(out, "instances per second by a bulk") ||
		!strings.Contains(out, "tasks completed per second by workers") || !strings.Contains(out, "calls of services per second") || !strings.Contains(out, "untasked@64 ÷ plain@64") {
		t.Errorf("no targets in: %s", out)
	}
	if left := leftovers(t, dsn); left != "" {
		t.Errorf("the database still has %s", left)
	}
}

func hasPgbench() bool {
	bin, _ := localpg.Find() // PATH may have pgbench without a server.
	_, err := bin.Path("pgbench")
	return err == nil
}

// leftovers lists the schemas and tables that an empty database does not have.
func leftovers(t *testing.T, dsn string) string {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(bounded.Context(t)) }()
	return bounded.Value[string](t, conn, `
		select concat_ws(', ',
			(select string_agg(nspname, ', ') from pg_namespace where nspname ~ 'pawl'),
			(select string_agg(relname, ', ') from pg_class where relnamespace = 'public'::regnamespace))`)
}

// TestRunInterrupted ends a run in the middle. It returns the cause, and leaves the database empty.
func TestRunInterrupted(t *testing.T) {
	t.Parallel()
	dsn := dbtest.Empty(t)
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(bounded.Context(t)) }()
	enough := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	ended := make(chan error, 1)
	go func() {
		ended <- bench.Run(ctx, bench.Config{
			Instances: 100, Connections: []int{2}, Duration: 5 * time.Minute, Only: []string{"transitions"},
			DatabaseURL: dsn, Program: program, Logger: slog.New(slog.DiscardHandler),
		})
	}()
	bounded.True(t, "an instance to move", func() (moved bool) {
		select {
		case err := <-ended:
			t.Fatalf("the run ended: %v", err)
		default:
		}
		// The table may not be there yet.
		_ = conn.QueryRow(t.Context(), "select exists (select from pawl.instance where version > 1)").Scan(&moved)
		return moved
	})
	cancel(enough)
	if err := bounded.Receive(t, "the run to end", ended); !errors.Is(err, enough) {
		t.Errorf("the run ended with %v", err)
	}
	if left := leftovers(t, dsn); left != "" {
		t.Errorf("the database still has %s", left)
	}
}

// TestServiceEnds ends a run whose service cannot stay up.
func TestServiceEnds(t *testing.T) {
	t.Parallel()
	dsn := dbtest.Empty(t)
	program := filepath.Join(t.TempDir(), "pawl")
	if err := os.WriteFile(program, []byte("#!/bin/sh\necho no room >&2\nexit 3\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	err := bench.Run(t.Context(), bench.Config{
		Instances: 1, Connections: []int{1}, Duration: time.Second, DatabaseURL: dsn, Program: program, Logger: slog.New(slog.DiscardHandler),
	})
	if want := "bench: the service ended: exit status 3: no room"; err == nil || err.Error() != want {
		t.Errorf("the run ended with %v, want %s", err, want)
	}
	if left := leftovers(t, dsn); left != "" {
		t.Errorf("the database still has %s", left)
	}
}

// TestRunRefuses shows the configurations and the database that no run starts with.
func TestRunRefuses(t *testing.T) {
	t.Parallel()
	for want, change := range map[string]func(*bench.Config){
		"instances must be from 1":         func(c *bench.Config) { c.Instances = 0 },
		"instances must not be less than":  func(c *bench.Config) { c.Instances = 7 },
		"duration must be from 100ms":      func(c *bench.Config) { c.Duration = time.Hour },
		"connections must have from 1":     func(c *bench.Config) { c.Connections = nil },
		"connections must be from 1 to":    func(c *bench.Config) { c.Connections = []int{1, 1001} },
		"connections has 8 twice":          func(c *bench.Config) { c.Connections = []int{8, 8} },
		`there is no "nonsense"; want som`: func(c *bench.Config) { c.Only = []string{"reads", "nonsense"} },
	} {
		config := bench.Config{Instances: 1000, Duration: time.Second, Connections: []int{8}}
		change(&config)
		if err := bench.Run(t.Context(), config); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("the run ended with %v, want %s", err, want)
		}
	}
	dsn := dbtest.NewDSN(t)
	err := bench.Run(t.Context(), bench.Config{Instances: 10, Duration: time.Second, Connections: []int{1}, DatabaseURL: dsn, Program: program})
	if err == nil || !strings.Contains(err.Error(), "has a schema pawl") {
		t.Errorf("the run ended with %v", err)
	}
	if left := leftovers(t, dsn); !strings.Contains(left, "pawl") {
		t.Error("the run has changed a database that it refused")
	}
}
