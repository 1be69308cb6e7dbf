package main_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/pawl-fsm/pawl/db/dbtest"
)

// writeFile makes a file of the test's own.
func writeFile(t testing.TB, name, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// edited is the flight booking with some of its text replaced.
func edited(t testing.TB, pairs ...string) string {
	t.Helper()
	text, err := os.ReadFile(flight)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(pairs); i += 2 {
		if !strings.Contains(string(text), pairs[i]) {
			t.Fatalf("there is no %q in %s", pairs[i], flight)
		}
	}
	return writeFile(t, "edited.yaml", strings.NewReplacer(pairs...).Replace(string(text)))
}

func TestWorkflowValidate(t *testing.T) {
	t.Parallel()
	faulty := writeFile(t, "faulty.yaml", `name: faulty
initial: A
states:
  A:
    on:
      go: [{ target: A }, { target: NOWHERE }]
      back: &back
        target: NOWHERE
        guard: '$.a'
      again: *back
    colour: red
  B: { type: final }
`)
	noYAML := writeFile(t, "no,yaml: %.yaml", "name: x\n  initial: [\n")
	twice := writeFile(t, "twice.json", "{\"name\": \"twice\",\n\"initial\": \"A\",\n\"initial\": \"B\"}")
	const valid = "but for its guards"
	flight, err := filepath.Abs(flight)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string][]string{
		faulty: {
			"6 /states/A/on/go/1", "6 /states/A/on/go/1/target", "8 /states/A/on/back/target", "8 /states/A/on/again/target",
			"11 /states/A/colour", "12 /states/B",
		},
		twice: {"3 /initial"},
	}

	stdout, stderr, code := pawl(t, nil, "workflow", "validate", faulty, flight, noYAML, twice)
	if code != 1 || strings.Count(stdout, "\n") != 1 || !strings.Contains(stdout, flight+": valid, "+valid) {
		t.Errorf("exit code %d: %s", code, stdout)
	}
	for file, faults := range want {
		for _, fault := range faults {
			line, pointer, _ := strings.Cut(fault, " ")
			if !strings.Contains(stderr, file+":"+line+": "+pointer+": ") {
				t.Errorf("there is no %s of line %s in\n%s", pointer, line, stderr)
			}
		}
	}

	stdout, stderr, code = pawl(t, nil, "workflow", "validate", "--format", "github", faulty, flight, noYAML, twice)
	if code != 1 || stderr != "" || !strings.Contains(stdout, valid) {
		t.Errorf("exit code %d: %s%s", code, stdout, stderr)
	}
	for _, line := range []string{
		"::error file=" + faulty + ",line=11,col=5::/states/A/colour: is not a member here",
		"::error file=" + strings.NewReplacer("%", "%25", ":", "%3A", ",", "%2C").Replace(noYAML) + ",line=",
		"::error file=" + twice + ",line=3,col=1::/initial: is a member twice",
	} {
		if !strings.Contains(stdout, line) {
			t.Errorf("there is no %s in\n%s", line, stdout)
		}
	}
	if got := strings.Count(stdout, "::error"); got != len(want[faulty])+2 {
		t.Errorf("there are %d annotations in\n%s", got, stdout)
	}

	var checked []struct {
		File         string
		Valid        bool
		PathsChecked bool `json:"paths_checked"`
		Faults       []struct {
			Pointer, Detail string
			Line            int
		}
	}
	stdout, _, code = pawl(t, nil, "workflow", "validate", "--format", "json", faulty, flight, noYAML, twice)
	if err := json.Unmarshal([]byte(stdout), &checked); err != nil || code != 1 || len(checked) != 4 {
		t.Fatalf("exit code %d (%v): %s", code, err, stdout)
	}
	for i, valid := range []bool{false, true, false, false} {
		if c := checked[i]; c.Valid != valid || (len(c.Faults) == 0) != valid || c.PathsChecked {
			t.Errorf("of %s it says %+v", c.File, c)
		}
	}
	got := []string{}
	for _, f := range checked[3].Faults {
		got = append(got, fmt.Sprintf("%d %s", f.Line, f.Pointer))
	}
	if diff := cmp.Diff(want[twice], got); diff != "" {
		t.Error(diff)
	}
	mustPawl(t, nil, "workflow", "validate", "--format", "github", flight)

	// Annotations take paths from the root of the repository.
	cmd := exec.CommandContext(t.Context(), program, "workflow", "validate", "--format", "github", filepath.Base(faulty))
	cmd.Dir = filepath.Dir(faulty)
	if out, err := cmd.Output(); err == nil || !strings.HasPrefix(string(out), "::error file=faulty.yaml,line=") {
		t.Errorf("%v: %s", err, out)
	}

	// The service's faults have their lines too.
	p := start(t, []string{"DATABASE_URL=" + dbtest.NewDSN(t)}, "serve")
	guard := edited(t, "'$.payload.price == $.context.price'", "'$.payload.price =='")
	stdout, _, code = pawl(t, []string{"PAWL_SERVER=" + p.url}, "workflow", "validate", "--format", "github", guard, flight)
	if code != 1 || !strings.Contains(stdout, ",line=18,col=9::/states/QUOTED/on/reserve/guard: is no SQL/JSON path") ||
		!strings.Contains(stdout, flight+": valid\n") {
		t.Errorf("exit code %d: %s", code, stdout)
	}
}

func TestWorkflowDiagramAndDiff(t *testing.T) {
	t.Parallel()
	p := start(t, []string{"DATABASE_URL=" + dbtest.NewDSN(t)}, "serve")
	env := []string{"PAWL_SERVER=" + p.url}
	away := []string{"PAWL_SERVER=http://127.0.0.1:1"}
	mustPawl(t, env, "workflow", "apply", flight)
	booking := strings.TrimPrefix(
		mustSend(t, http.StatusCreated, http.MethodPost, p.url+create, quote, "Idempotency-Key", "quote-1").header.Get("Location"), "/v1/instances/")
	safer := edited(t, "after: { 10m: EXPIRED }", "after: { 20m: EXPIRED }")
	riskier := edited(t, "after: { 10m: EXPIRED }", "after: { 5m: EXPIRED }", "      cancel: CANCELLED # shorthand", "      drop: CANCELLED # shorthand")
	mustPawl(t, env, "workflow", "apply", safer)

	for _, format := range []string{"mermaid", "dot"} {
		offline := mustPawl(t, away, "workflow", "diagram", flight, "--format", format)
		if diff := cmp.Diff(offline, mustPawl(t, env, "workflow", "diagram", "flight-booking", "--workflow-version", "1", "--format", format)); diff != "" {
			t.Errorf("the service draws it otherwise: %s", diff)
		}
		if marked := mustPawl(t, env, "workflow", "diagram", "flight-booking", "--instance", booking, "--format", format); strings.Count(marked, "✓") != 1 {
			t.Error(marked)
		}
	}
	if out := mustPawl(t, env, "workflow", "diagram", "flight-booking"); !strings.Contains(out, "after 20m") {
		t.Error(out)
	}
	for _, args := range [][]string{{flight, "--instance", booking}, {flight, "--workflow-version", "1"}, {"nobody"}, {"no/file.yaml"}} {
		if out, stderr, code := pawl(t, env, append([]string{"workflow", "diagram"}, args...)...); code != 1 || stderr == "" || out != "" {
			t.Errorf("diagram %v: exit code %d: %s", args, code, stderr)
		}
	}

	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{flight, flight}, 0, "no differences\n"},
		{[]string{flight, "flight-booking@1"}, 0, "no differences\n"},
		{[]string{safer, "flight-booking"}, 0, "no differences\n"},
		{[]string{"flight-booking@1", "flight-booking"}, 1, "changed  /states/QUOTED/after/20m: the timeout of QUOTED comes after 20m, no longer after 10m\n1 changed, 0 of it unsafe"},
		{[]string{flight, safer, "--fail-on", "unsafe"}, 0, "1 changed, 0 of it unsafe"},
		{[]string{flight, riskier, "--fail-on", "none"}, 0, "removed  /states/QUOTED/on/cancel: QUOTED no longer accepts cancel\n         unsafe: callers"},
		{[]string{"flight-booking", riskier, "--fail-on", "unsafe"}, 1, "3 changed, 2 of it unsafe"},
		{[]string{flight, riskier, "--format", "json"}, 1, `"unsafe": true`},
		{[]string{flight, flight, "--format", "json"}, 0, "[]\n"},
		{[]string{flight, "flight-booking@3"}, 2, ""},
		{[]string{"flight-booking@latest", flight}, 2, ""},
		{[]string{flight, "no.yaml"}, 2, ""},
	} {
		out, stderr, code := pawl(t, env, append([]string{"workflow", "diff"}, c.args...)...)
		if code != c.code || !strings.Contains(out, c.want) || (code == 2) != (stderr != "") {
			t.Errorf("diff %v: exit code %d, want %d\n%s%s", c.args, code, c.code, out, stderr)
		}
	}
}

// What must not end a quote or a comment, nor be read by goose or psql as theirs.
const hostile = `
name: hostile
initial: A
description: "$json$ $pawl$ $json1$ */ /* ${PAWL:0:0} $PATH :VERSION \\q\n-- +goose Down\n-- */ 'quoted' <b> ü"
states:
  A: { on: { go: { target: B, guard: '$.payload.a like_regex "^a/*b*/$"' } } }
  B: { type: final }
`

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

	// It is usable, and the same as through the service.
	if _, err := conn.Exec(t.Context(), `select pawl.create_one('flight-booking', '{"flight_id": "LH454", "price": 420}')`); err != nil {
		t.Error(err)
	}
	p := start(t, []string{"DATABASE_URL=" + dsn}, "serve")
	env := []string{"PAWL_SERVER=" + p.url}
	for _, file := range []string{flight, writeFile(t, "hostile.yaml", hostile)} {
		if out := mustPawl(t, env, "workflow", "apply", file); !strings.Contains(out, "version 1, unchanged") {
			t.Error(out)
		}
	}

	// Another definition is the next version, which one that names its version insists on.
	psql(t, dsn, mustPawl(t, nil, "workflow", "migration", edited(t, "30m", "40m", "initial:", "version: 2\ninitial:")))
	wantRegistered(t, conn, "flight-booking 1 migration", "flight-booking 2 migration", "hostile 1 migration")
	conflict := mustPawl(t, nil, "workflow", "migration", edited(t, "30m", "50m", "initial:", "version: 2\ninitial:"))
	cmd := exec.CommandContext(t.Context(), "psql", "-X", "-v", "ON_ERROR_STOP=1", dsn)
	cmd.Stdin = strings.NewReader(conflict)
	if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "version 3 is next, not 2") {
		t.Errorf("%v: %s", err, out)
	}
}

// A migration waits its turn without keeping others waiting.
func TestWorkflowMigrationTriesAgain(t *testing.T) {
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
	if _, err := tx.Exec(t.Context(), "lock table pawl.instance in row share mode"); err != nil {
		t.Fatal(err)
	}
	sql := mustPawl(t, nil, "workflow", "migration", flight)
	done := make(chan string, 1)
	go func() {
		cmd := exec.CommandContext(t.Context(), "psql", "-X", "-v", "ON_ERROR_STOP=1", dsn)
		cmd.Stdin = strings.NewReader(sql)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Error(err)
		}
		done <- string(out)
	}()
	awaitBlocked(t, look)
	for event := ""; event != "PgSleep"; { // The first try is over.
		err := look.QueryRow(t.Context(), `
			select coalesce(max(wait_event), '') from pg_stat_activity
			where datname = current_database() and application_name = 'psql' and wait_event = 'PgSleep'`).Scan(&event)
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if out := <-done; !strings.Contains(out, "version 1, registered") {
		t.Errorf("psql says %s", out)
	}
}

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
		cmd := exec.CommandContext(t.Context(), goose, append([]string{"-dir", dir, "-table", "workflow_file", "postgres", dsn}, verb...)...)
		cmd.Env = append(os.Environ(), "PAWL=*/ nonsense") // What goose replaces means nothing.
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

	// A version that is used stays, and so does one that no migration made.
	if _, err := conn.Exec(t.Context(), `select pawl.create_one('flight-booking', '{"flight_id": "LH454", "price": 420}')`); err != nil {
		t.Fatal(err)
	}
	if out, err := run("down"); err == nil || !strings.Contains(out, "version 2 is used by 1 instances") {
		t.Errorf("%v: %s", err, out)
	}
	if _, err := conn.Exec(t.Context(), "update pawl.workflow set created_by = 'alice'"); err != nil {
		t.Fatal(err)
	}
	must("down-to", "0")
	wantRegistered(t, conn, "flight-booking 1 alice", "flight-booking 2 alice", "hostile 1 alice")
}

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

func dialDSN(t testing.TB, dsn string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.WithoutCancel(t.Context())) })
	return conn
}

// psql runs a script the way a shell does, and returns what it says.
func psql(t testing.TB, dsn, script string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "psql", "-X", "-v", "ON_ERROR_STOP=1", dsn)
	cmd.Stdin = strings.NewReader(script)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("psql: %v\n%s", err, out)
	}
	return string(out)
}

// wantRegistered compares the versions that are there, and looks at their CHECKs.
func wantRegistered(t testing.TB, conn *pgx.Conn, want ...string) {
	t.Helper()
	rows, err := conn.Query(t.Context(), "select name || ' ' || version || ' ' || created_by from pawl.workflow order by name, version")
	if err != nil {
		t.Fatal(err)
	}
	got, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(want, got) {
		t.Errorf("registered are %q, want %q", got, want)
	}
	var unchecked int
	err = conn.QueryRow(t.Context(), `
		select count(*) from pawl.workflow w
		where not exists (
			select from pg_constraint c
			where c.conrelid = 'pawl.instance'::regclass and c.conname = pawl.state_check_name(w.name) and c.convalidated
		)`).Scan(&unchecked)
	if err != nil || unchecked > 0 {
		t.Errorf("%d versions have no valid CHECK (%v)", unchecked, err)
	}
}
