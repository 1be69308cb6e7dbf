package db_test

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/pawl-fsm/pawl/db"
	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/db/schema"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// runGoose runs the goose command on the migrations of a folder. It skips the test if there is none.
func runGoose(t *testing.T, folder, table, dsn string, verb ...string) {
	t.Helper()
	goose := os.Getenv("PAWL_GOOSE")
	if goose == "" {
		// Only make test builds the command; go test alone does without.
		t.Skip("PAWL_GOOSE does not name the goose binary; make test builds it and sets it")
	}
	cmd := bounded.Command(t, goose, append([]string{"-dir", folder, "-table", table, "postgres", dsn}, verb...)...)
	cmd.Env = append(os.Environ(), "PAWL=*/ nonsense") // goose expands the variable to an empty text.
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("goose %v: %v\n%s", verb, err, out)
	}
}

// wantSchema fails the test unless the database has the schema that Up makes.
func wantSchema(t *testing.T, dsn string) {
	t.Helper()
	if got, want := dump(t, dsn), dump(t, dbtest.NewDSN(t)); got != want {
		t.Errorf("the schema is another than that of db.Up:\n%s", cmp.Diff(want, got))
	}
}

func TestMigrationsWithGooseAlone(t *testing.T) {
	t.Parallel()
	dsn := dbtest.Empty(t)
	conn := dial(t, dsn)
	bounded.Exec(t, conn, "create schema if not exists pawl")
	before := everything(t, conn)
	folder := t.TempDir()
	if _, err := db.PrintTo(folder); err != nil {
		t.Fatal(err)
	}
	runGoose(t, folder, db.VersionTable, dsn, "up")
	wantSchema(t, dsn)
	statusOf(t, dsn, true)
	register(t, conn, flight)
	bounded.Exec(t, conn, `select pawl.create_one('flight-booking')`)
	runGoose(t, folder, db.VersionTable, dsn, "down-to", "0")
	statusOf(t, dsn, false)
	if diff := cmp.Diff(before, everything(t, conn)); diff != "" {
		t.Errorf("goose down-to 0 left something behind:\n%s", diff)
	}
	runGoose(t, folder, db.VersionTable, dsn, "up")
	wantSchema(t, dsn)
	statusOf(t, dsn, true)
	// goose and Up may take turns.
	for range statusOf(t, dsn, true) {
		if err := db.Down(t.Context(), dsn); err != nil {
			t.Fatal(err)
		}
	}
	if bounded.Value[bool](t, conn, "select to_regnamespace('pawl') is not null") {
		t.Error("Down left the schema of the version table behind")
	}
}

// An application in the same database has goose migrations of its own, under the same numbers.
func TestMigrationsBesideAnApplication(t *testing.T) {
	t.Parallel()
	const table = "goose_db_version"
	application := t.TempDir()
	for n := range 3 {
		text := fmt.Sprintf("-- +goose Up\ncreate table booking%[1]d (id integer);\n\n-- +goose Down\ndrop table booking%[1]d;\n", n+1)
		if err := os.WriteFile(filepath.Join(application, fmt.Sprintf("%05d_booking.sql", n+1)), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	up := func(t *testing.T, dsn string) {
		t.Helper()
		if err := db.Up(t.Context(), dsn); err != nil {
			t.Fatal(err)
		}
	}
	gooseUp := func(t *testing.T, dsn string) {
		t.Helper()
		bounded.Exec(t, dial(t, dsn), "create schema if not exists pawl")
		runGoose(t, "migrations", db.VersionTable, dsn, "up")
	}
	applicationUp := func(t *testing.T, dsn string) {
		t.Helper()
		runGoose(t, application, table, dsn, "up")
	}
	for name, steps := range map[string][]func(*testing.T, string){
		"application, pawl":            {applicationUp, up},
		"pawl, application":            {up, applicationUp},
		"application, pawl with goose": {applicationUp, gooseUp},
		"pawl with goose, application": {gooseUp, applicationUp},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dsn := dbtest.Empty(t)
			conn := dial(t, dsn)
			for _, step := range steps {
				step(t, dsn)
			}
			const booked = "select count(*) from pg_tables where schemaname = 'public' and tablename like 'booking%'"
			if n := bounded.Value[int](t, conn, booked); n != 3 {
				t.Errorf("the application has %d of its 3 tables", n)
			}
			wantSchema(t, dsn)
			// Each set of migrations can be reverted without the other.
			for range statusOf(t, dsn, true) {
				if err := db.Down(t.Context(), dsn); err != nil {
					t.Fatal(err)
				}
			}
			if n := bounded.Value[int](t, conn, booked); n != 3 {
				t.Errorf("after Down the application has %d of its 3 tables", n)
			}
			up(t, dsn)
			runGoose(t, application, table, dsn, "down-to", "0")
			if n := bounded.Value[int](t, conn, booked); n != 0 {
				t.Errorf("after its own down the application has %d tables", n)
			}
			statusOf(t, dsn, true)
		})
	}
}

// psql runs what Print writes, and each file that PrintTo writes. To psql a Down section is a comment.
func TestPrintForPsql(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("psql"); err != nil {
		// A machine that has its server in Docker may lack the client.
		t.Skip("there is no psql")
	}
	var stream strings.Builder
	if err := db.Print(&stream); err != nil {
		t.Fatal(err)
	}
	folder := filepath.Join(t.TempDir(), "some", "folder")
	paths, err := db.PrintTo(folder)
	if err != nil {
		t.Fatal(err)
	}
	names, err := fs.Glob(db.Migrations(), "*.sql")
	if err != nil || len(names) != len(paths) {
		t.Fatalf("%d files were written, want %d (%v)", len(paths), len(names), err)
	}
	for i, name := range names {
		text, err := fs.ReadFile(db.Migrations(), name)
		if err != nil {
			t.Fatal(err)
		}
		written, err := os.ReadFile(paths[i])
		if err != nil || string(written) != string(text) || filepath.Base(paths[i]) != name {
			t.Errorf("%s is not %s (%v)", paths[i], name, err)
		}
		if !strings.Contains(stream.String(), "-- "+name+"\n"+string(text)) {
			t.Errorf("%s is not printed", name)
		}
	}
	whole := dbtest.Empty(t)
	psql(t, whole, stream.String())
	wantSchema(t, whole)
	single := dbtest.Empty(t)
	for _, path := range paths {
		psql(t, single, "", "-f", path)
	}
	wantSchema(t, single)
}

// psql runs a script in one transaction.
func psql(t *testing.T, dsn, script string, args ...string) {
	t.Helper()
	cmd := bounded.Command(t, "psql", append([]string{"-X", "-q", "-1", "-v", "ON_ERROR_STOP=1", "-d", dsn}, args...)...)
	cmd.Stdin = strings.NewReader(script)
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		t.Fatalf("psql: %v\n%s", err, out)
	}
}

// A schema whose version is noted elsewhere is not touched, and the error says what to do.
func TestSchemaOfAnotherTool(t *testing.T) {
	t.Parallel()
	for name, sql := range map[string]string{
		"goose without -table": "alter table pawl.goose_db_version set schema public",
		"psql":                 "drop table pawl.goose_db_version",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dsn := dbtest.NewDSN(t)
			conn := dial(t, dsn)
			bounded.Exec(t, conn, sql)
			before := dump(t, dsn)
			_, status := db.Status(t.Context(), dsn)
			for _, err := range []error{db.Up(t.Context(), dsn), db.Down(t.Context(), dsn), status} {
				wantLine(t, err, "the schema is at version", "pawl.goose_db_version", "run 'pawl migrate up --adopt'")
			}
			if got := dump(t, dsn); got != before {
				t.Errorf("the schema was changed: %s", cmp.Diff(before, got))
			}
			if err := db.Adopt(t.Context(), dsn); err != nil {
				t.Fatal(err)
			}
			statusOf(t, dsn, true)
			if err := db.Up(t.Context(), dsn); err != nil {
				t.Error(err)
			}
			wantLine(t, db.Adopt(t.Context(), dsn), "exists already")
			if err := db.Down(t.Context(), dsn); err != nil {
				t.Error(err)
			}
		})
	}
	wantLine(t, db.Adopt(t.Context(), dbtest.Empty(t)), "no schema")
}

// A development build from before the first release noted its version in public.goose_db_version, and its schema tells
// no version. What the error says to run makes the database usable again.
func TestSchemaOfADevelopmentBuild(t *testing.T) {
	t.Parallel()
	dsn := dbtest.NewDSN(t)
	conn := dial(t, dsn)
	bounded.Exec(t, conn, "alter table pawl.goose_db_version set schema public; drop function pawl.schema_version")
	err := db.Up(t.Context(), dsn)
	const advice = "drop schema pawl, pawl_private cascade"
	wantLine(t, err, "development build", "'"+advice+"'", "public.goose_db_version")
	wantLine(t, db.Adopt(t.Context(), dsn), "no schema that tells its version")
	bounded.Exec(t, conn, advice)
	if err := db.Up(t.Context(), dsn); err != nil {
		t.Fatal(err)
	}
	wantSchema(t, dsn)
}

// A schema of a later build is not touched.
func TestSchemaOfALaterBuild(t *testing.T) {
	t.Parallel()
	dsn := dbtest.NewDSN(t)
	bounded.Exec(t, dial(t, dsn), `
		create or replace function pawl.schema_version() returns integer language sql stable as 'select 99';
		insert into pawl.goose_db_version (version_id, is_applied) values (99, true)`)
	wantLine(t, db.Up(t.Context(), dsn), "version 99", "newer pawl")
	wantLine(t, db.Down(t.Context(), dsn), "version 99", "newer pawl")
}

// pawl.schema_version has to be raised with each migration.
func TestSchemaVersion(t *testing.T) {
	t.Parallel()
	status := statusOf(t, dbtest.NewDSN(t), true)
	latest := status[len(status)-1].Version
	if v := bounded.Value[int64](t, dbtest.New(t), "select pawl.schema_version()"); v != latest || int64(schema.Version()) != latest {
		t.Errorf("pawl.schema_version returns %d, and the source says %d; the latest migration is %d", v, schema.Version(), latest)
	}
}

// The owner's search_path does not matter, even if it is empty.
func TestMigrationsWithoutASearchPath(t *testing.T) {
	t.Parallel()
	dsn := dbtest.Empty(t)
	conn := dial(t, dsn)
	database := pgx.Identifier{conn.Config().Database}.Sanitize()
	bounded.Exec(t, conn, "alter database "+database+" set search_path = ''")
	for range 2 {
		files, err := db.Apply(t.Context(), dsn)
		if err != nil || len(files) != len(statusOf(t, dsn, true)) {
			t.Fatalf("applied are %v: %v", files, err)
		}
		wantSchema(t, dsn)
		if files, err := db.Apply(t.Context(), dsn); err != nil || len(files) > 0 {
			t.Errorf("applied again are %v: %v", files, err)
		}
		for range statusOf(t, dsn, true) {
			if err := db.Down(t.Context(), dsn); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// Only UTF8 has all characters of JSON. In another encoding no tool can make the schema, and Up leaves nothing
// behind.
func TestEncoding(t *testing.T) {
	t.Parallel()
	conn := dial(t, dbtest.Empty(t))
	name := conn.Config().Database + "_latin1"
	quoted := pgx.Identifier{name}.Sanitize()
	bounded.Exec(t, conn, "create database "+quoted+" template template0 encoding 'LATIN1' locale 'C'")
	t.Cleanup(func() { bounded.Exec(t, conn, "drop database "+quoted+" with (force)") })
	dsn := strings.Replace(conn.Config().ConnString(), conn.Config().Database, name, 1)
	latin := dial(t, dsn)
	before := everything(t, latin)
	wantLine(t, db.Up(t.Context(), dsn), "LATIN1", "UTF8")
	if diff := cmp.Diff(before, everything(t, latin)); diff != "" {
		t.Errorf("Up left something behind:\n%s", diff)
	}
	_, err := latin.Exec(t.Context(), schema.Source())
	wantCode(t, err, "23514")
	if !strings.Contains(err.Error(), "setting_is_in_a_database_in_utf8") {
		t.Error(err)
	}
}

// LossOfDown counts what Down would drop, and writes nothing.
func TestLossOfDown(t *testing.T) {
	t.Parallel()
	dsn := dbtest.NewDSN(t)
	conn := dial(t, dsn)
	register(t, conn, door)
	bounded.Exec(t, conn, "select pawl.fire_one((pawl.create_one('door')).id, 'open'); select pawl.create_one('door')")
	status := statusOf(t, dsn, true)
	want := db.Loss{Migration: status[len(status)-1].File, Everything: len(status) == 1, Workflows: 1, Instances: 2, Steps: 3}
	if got, err := db.LossOfDown(t.Context(), dsn); err != nil || got != want {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
	empty := dbtest.Empty(t)
	if got, err := db.LossOfDown(t.Context(), empty); err != nil || got != (db.Loss{}) {
		t.Errorf("an empty database would lose %+v, %v", got, err)
	}
	if slices.Contains(everything(t, dial(t, empty)), "schema pawl") {
		t.Error("looking at an empty database made the schema")
	}
}

// wantLine fails the test unless the error is one line with all the words.
func wantLine(t *testing.T, err error, words ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("there is no error, want one with %q", words)
		return
	}
	for _, word := range words {
		if !strings.Contains(err.Error(), word) || strings.Contains(err.Error(), "\n") {
			t.Errorf("got %q, want a line with %q", err, word)
		}
	}
}

// A migration that PostgreSQL ends because of a deadlock with a process that works meanwhile is run again.
func TestMigrationAfterADeadlock(t *testing.T) {
	t.Parallel()
	dsn := dbtest.NewDSN(t)
	worker, watcher := dial(t, dsn), dial(t, dsn)
	// Then it is the migration that finds the deadlock.
	bounded.Exec(t, worker, "set deadlock_timeout = '1min'")
	bounded.Exec(t, worker, "begin")
	bounded.Exec(t, worker, "lock table pawl.history in access share mode")
	reverted := make(chan error, 1)
	stop := bounded.Run(t, "the migration", func(ctx context.Context) error {
		reverted <- db.Down(ctx, dsn)
		return nil
	})
	bounded.UntilBlocked(t, watcher, 1)
	bounded.Exec(t, worker, "lock table pawl_private.purged_instance in access share mode")
	bounded.Exec(t, worker, "commit")
	if err := bounded.Receive(t, "the migration", reverted); err != nil {
		t.Error(err)
	}
	stop()
}
