package main_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// hostile has texts that could end a quote or a comment, or that goose or psql could take for theirs.
const hostile = `
name: hostile
initial: A
description: "$json$ $pawl$ $json1$ */ /* ${PAWL:0:0} $PATH :VERSION \\q\n-- +goose Down\n-- */ 'quoted' <b> ü"
states:
  A: { on: { go: { target: B, guard: '$.payload.a like_regex "^a/*b*/$"' } } }
  B: { type: final }
`

// psql runs a migration any number of times.
func TestWorkflowMigrationWithPsql(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("psql"); err != nil {
		t.Skip("there is no psql")
	}
	dsn := dbtest.NewDSN(t)
	conn := dialDSN(t, dsn)
	for _, file := range []string{flight, writeFile(t, "hostile.yaml", hostile)} {
		sql := mustPawl(t, nil, "workflow", "migration", file)
		for _, word := range []string{"registered", "unchanged"} {
			if out := psql(t, dsn, sql); strings.Count(out, "NOTICE") != 1 || !strings.Contains(out, "version 1, "+word) {
				t.Errorf("psql says %s", out)
			}
		}
	}
	wantRegistered(t, conn, "flight-booking 1 migration", "hostile 1 migration")

	// The workflow is usable, and the service finds its definition unchanged.
	bounded.Exec(t, conn, `select pawl.create_one('flight-booking', '{"flight_id": "LH454", "price": 420}')`)
	p := start(t, []string{"DATABASE_URL=" + dsn}, "serve")
	env := []string{"PAWL_SERVER=" + p.url}
	for _, file := range []string{flight, writeFile(t, "hostile.yaml", hostile)} {
		if out := mustPawl(t, env, "workflow", "apply", file); !strings.Contains(out, "version 1, unchanged") {
			t.Error(out)
		}
	}

	// Another definition is the next version. A definition that names another version is refused.
	psql(t, dsn, mustPawl(t, nil, "workflow", "migration", edited(t, "30m", "40m", "initial:", "version: 2\ninitial:")))
	wantRegistered(t, conn, "flight-booking 1 migration", "flight-booking 2 migration", "hostile 1 migration")
	conflict := mustPawl(t, nil, "workflow", "migration", edited(t, "30m", "50m", "initial:", "version: 2\ninitial:"))
	cmd := bounded.Command(t, "psql", "-X", "-v", "ON_ERROR_STOP=1", dsn)
	cmd.Stdin = strings.NewReader(conflict)
	if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "version 3 is next, not 2") {
		t.Errorf("%v: %s", err, out)
	}
}

// A migration waits for another registration, and for nobody who works on instances.
func TestWorkflowMigrationWaits(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("psql"); err != nil {
		t.Skip("there is no psql")
	}
	dsn := dbtest.NewDSN(t)
	look, holder := dialDSN(t, dsn), dialDSN(t, dsn)
	tx, err := holder.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	bounded.Exec(t, tx, "lock table pawl.workflow in share mode; lock table pawl.instance in access exclusive mode")
	sql := mustPawl(t, nil, "workflow", "migration", flight)
	done := make(chan string, 1)
	go func() {
		cmd := bounded.Command(t, "psql", "-X", "-v", "ON_ERROR_STOP=1", dsn)
		cmd.Stdin = strings.NewReader(sql)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Error(err)
		}
		done <- string(out)
	}()
	bounded.UntilBlocked(t, look, 1)
	if waits := bounded.Value[string](t, look, `select string_agg(distinct l.relation::regclass::text, ' ') from pg_locks l
		where not l.granted and l.database = (select oid from pg_database where datname = current_database())`); waits != "pawl.workflow" {
		t.Errorf("it waits for %s", waits)
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if out := bounded.Receive(t, "psql to end", done); !strings.Contains(out, "version 1, registered") {
		t.Errorf("psql says %s", out)
	}
}

// goose runs a migration up and down.
func TestWorkflowMigrationWithGoose(t *testing.T) {
	t.Parallel()
	goose := os.Getenv("PAWL_GOOSE")
	if goose == "" {
		t.Skip("PAWL_GOOSE does not name the goose binary; make test builds it and sets it")
	}
	dsn := dbtest.NewDSN(t)
	conn := dialDSN(t, dsn)
	dir := t.TempDir()
	for i, file := range []string{flight, writeFile(t, "hostile.yaml", hostile), edited(t, "30m", "40m")} {
		sql := mustPawl(t, nil, "workflow", "migration", file)
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("%05d_workflow.sql", i+1)), []byte(sql), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	run := func(verb ...string) (string, error) {
		cmd := bounded.Command(t, goose, append([]string{"-dir", dir, "-table", "workflow_file", "postgres", dsn}, verb...)...)
		cmd.Env = append(os.Environ(), "PAWL=*/ nonsense") // Goose expands the variable to an empty text.
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	must := func(verb ...string) {
		t.Helper()
		if out, err := run(verb...); err != nil {
			t.Fatalf("goose %v: %v\n%s", verb, err, out)
		}
	}
	all := []string{"flight-booking 1 migration", "flight-booking 2 migration", "hostile 1 migration"}
	must("up")
	wantRegistered(t, conn, all...)
	must("down")
	wantRegistered(t, conn, "flight-booking 1 migration", "hostile 1 migration")
	must("down-to", "0")
	wantRegistered(t, conn)
	must("up")
	must("redo")
	wantRegistered(t, conn, all...)

	// A version in use stays, and so does a version that no migration registered.
	bounded.Exec(t, conn, `select pawl.create_one('flight-booking', '{"flight_id": "LH454", "price": 420}')`)
	if out, err := run("down"); err == nil || !strings.Contains(out, "version 2 is used by 1 instances") {
		t.Errorf("%v: %s", err, out)
	}
	bounded.Exec(t, conn, "update pawl.workflow set created_by = 'alice'")
	must("down-to", "0")
	wantRegistered(t, conn, "flight-booking 1 alice", "flight-booking 2 alice", "hostile 1 alice")
}

// With --against, a migration of a definition that the database has already does nothing.
func TestWorkflowMigrationAgainst(t *testing.T) {
	t.Parallel()
	dsn := dbtest.NewDSN(t)
	conn := dialDSN(t, dsn)
	against := func(file string) string {
		t.Helper()
		return mustPawl(t, nil, "workflow", "migration", file, "--against", dsn)
	}
	first := against(flight)
	if first != mustPawl(t, nil, "workflow", "migration", flight) {
		t.Errorf("against an empty database it is another migration: %s", first)
	}
	p := start(t, []string{"DATABASE_URL=" + dsn}, "serve")
	mustPawl(t, []string{"PAWL_SERVER=" + p.url}, "workflow", "apply", flight)
	same := against(edited(t, "cancel: CANCELLED # shorthand", "cancel: [{ target: CANCELLED }] #", "after: { 10m", "after: { 600s"))
	if !strings.Contains(same, "flight-booking: version 1 is this definition already") || strings.Contains(same, "register_workflow") {
		t.Errorf("against the same it is %s", same)
	}
	if other := against(edited(t, "30m", "40m")); !strings.Contains(other, "register_workflow") {
		t.Errorf("against another it is %s", other)
	}
	wantRegistered(t, conn, "flight-booking 1 anonymous") // Nothing was written.

	faulty := writeFile(t, "faulty.yaml", "name: faulty\n")
	if out, stderr, code := pawl(t, nil, "workflow", "migration", faulty); code != 1 || out != "" || !strings.Contains(stderr, "/states") {
		t.Errorf("exit code %d: %s%s", code, out, stderr)
	}
	if out, stderr, code := pawl(t, nil, "workflow", "migration", flight, "--against", "postgres://127.0.0.1:1/x"); code != 1 || out != "" || stderr == "" {
		t.Errorf("exit code %d without a database: %s%s", code, out, stderr)
	}
}

// A shorter retention is registered by whoever says that it is meant, from the command line and by a migration.
func TestConfirmShorterRetention(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("psql"); err != nil {
		t.Skip("there is no psql")
	}
	dsn := dbtest.NewDSN(t)
	p := start(t, []string{"DATABASE_URL=" + dsn}, "serve")
	env := []string{"PAWL_SERVER=" + p.url}
	kept := func(retention string) string {
		return writeFile(t, "kept.yaml", "name: kept\ninitial: A\nretention: "+retention+"\nstates: { A: { on: { go: B } }, B: { type: final } }\n")
	}
	mustPawl(t, env, "workflow", "apply", kept("72h"))
	const confirm, meant = "--confirm", "shorten-retention"
	if _, stderr, code := pawl(t, env, "workflow", "apply", kept("48h")); code != 1 || !strings.Contains(stderr, confirm+" "+meant) {
		t.Errorf("exit code %d: %s", code, stderr)
	}
	if out := mustPawl(t, env, "workflow", "apply", confirm, meant, kept("48h")); !strings.Contains(out, "version 2 registered") {
		t.Error(out)
	}
	if _, stderr, code := pawl(t, env, "workflow", "apply", confirm, meant, kept("90m")); code != 1 || !strings.Contains(stderr, "at least 24h") {
		t.Errorf("exit code %d: %s", code, stderr)
	}

	cmd := bounded.Command(t, "psql", "-X", "-v", "ON_ERROR_STOP=1", dsn)
	cmd.Stdin = strings.NewReader(mustPawl(t, nil, "workflow", "migration", kept("47h")))
	if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), meant) {
		t.Errorf("%v: %s", err, out)
	}
	if out := psql(t, dsn, mustPawl(t, nil, "workflow", "migration", confirm, meant, kept("47h"))); !strings.Contains(out, "version 3, registered") {
		t.Errorf("psql says %s", out)
	}
	if _, stderr, code := pawl(t, env, "workflow", "apply", confirm, "anything", kept("46h")); code == 0 || !strings.Contains(stderr, meant) {
		t.Errorf("exit code %d: %s", code, stderr)
	}
}

// psql runs a script with psql, and returns its output.
func psql(t testing.TB, dsn, script string) string {
	t.Helper()
	cmd := bounded.Command(t, "psql", "-X", "-v", "ON_ERROR_STOP=1", dsn)
	cmd.Stdin = strings.NewReader(script)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("psql: %v\n%s", err, out)
	}
	return string(out)
}

// wantRegistered compares the registered versions.
func wantRegistered(t testing.TB, conn *pgx.Conn, want ...string) {
	t.Helper()
	got := bounded.Column[string](t, conn, "select name || ' ' || version || ' ' || created_by from pawl.workflow order by name, version")
	if !slices.Equal(want, got) {
		t.Errorf("registered are %q, want %q", got, want)
	}
}
