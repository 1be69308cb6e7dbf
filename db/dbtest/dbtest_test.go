package dbtest_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"iter"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/db"
	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/db/localpg"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// childEnv makes the test binary run only the child tests, which a real run skips.
const childEnv = "DBTEST_TEST_CHILD"

func TestMain(m *testing.M) { dbtest.Main(m) }

func query[T any](t testing.TB, dsn, sql string, args ...any) T {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	return bounded.Value[T](t, conn, sql, args...)
}

// admin leads to a database that outlives the tests.
func admin(t testing.TB) string {
	t.Helper()
	config, err := pgx.ParseConfig(dbtest.Empty(t))
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("host=%s port=%d user=%s password='%s' dbname=postgres",
		config.Host, config.Port, config.User, config.Password)
}

func TestNewHasTheSchemaAndNothingElse(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	if _, err := pool.Exec(t.Context(), "select pawl.now(); create table mine ()"); err != nil {
		t.Fatal(err)
	}
	other := dbtest.New(t)
	var there bool
	if err := other.QueryRow(t.Context(), "select to_regclass('mine') is not null").Scan(&there); err != nil {
		t.Fatal(err)
	}
	if there {
		t.Error("a table of one database is in another")
	}
	if got := query[string](t, dbtest.DSN(other), "select current_database()"); got != other.Config().ConnConfig.Database {
		t.Errorf("DSN leads to %s, the pool to %s", got, other.Config().ConnConfig.Database)
	}
}

// A statement that waits in vain ends, in whatever way a test came to its database.
func TestStatementsEnd(t *testing.T) {
	t.Parallel()
	for name, dsn := range map[string]string{
		"NewDSN": dbtest.NewDSN(t), "Empty": dbtest.Empty(t), "Private": dbtest.Private(t, nil).DSN(),
	} {
		if got := query[string](t, dsn, "show statement_timeout"); got != "3min" {
			t.Errorf("%s: statement_timeout = %s, want 3min", name, got)
		}
	}
	pool := dbtest.New(t)
	if got := bounded.Value[string](t, pool, "show statement_timeout"); got != "3min" {
		t.Errorf("New: statement_timeout = %s, want 3min", got)
	}
}

func TestManyAtOnce(t *testing.T) {
	t.Parallel()
	for i := range 12 {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			pool := dbtest.New(t)
			if _, err := pool.Exec(t.Context(), "create table mine ()"); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestEmptyHasNoSchema(t *testing.T) {
	t.Parallel()
	if query[bool](t, dbtest.Empty(t), "select to_regnamespace('pawl') is not null") {
		t.Error("an empty database has the schema")
	}
}

func TestDatabaseIsDropped(t *testing.T) {
	t.Parallel()
	dsn := admin(t)
	var name string
	t.Run("passes", func(t *testing.T) {
		pool := dbtest.New(t)
		name = pool.Config().ConnConfig.Database
		// A connection that somebody else holds does not save it.
		conn, err := pgx.Connect(t.Context(), dbtest.DSN(pool))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close(context.Background()) })
		if !query[bool](t, dsn, "select exists (select from pg_database where datname = $1)", name) {
			t.Errorf("there is no database %s", name)
		}
	})
	if query[bool](t, dsn, "select exists (select from pg_database where datname = $1)", name) {
		t.Errorf("the database %s is still there", name)
	}
}

func TestNoLeaks(t *testing.T) {
	dbtest.NoLeaks(t)
	pool := dbtest.New(t)
	if err := pool.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestPrivate(t *testing.T) {
	t.Parallel()
	s := dbtest.Private(t, map[string]string{"autovacuum": "off"})
	if got := query[string](t, s.DSN(), "show autovacuum"); got != "off" {
		t.Errorf("autovacuum = %s, want off", got)
	}
	if err := db.Up(t.Context(), s.DSN()); err != nil {
		t.Fatal(err)
	}
	if err := s.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := s.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if query[time.Time](t, s.DSN(), "select pawl.now()").IsZero() {
		t.Error("no time")
	}
}

// The tests from here on run this test binary again, with a server of their choice.

// child runs one of the tests whose names begin with Child, and returns its output.
func child(t *testing.T, name string, env ...string) (output string, passed bool) {
	t.Helper()
	cmd := childCommand(t, name, env...)
	out, err := cmd.CombinedOutput()
	if err != nil && cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return string(out), err == nil
}

func childCommand(t *testing.T, name string, env ...string) *exec.Cmd {
	t.Helper()
	cmd := bounded.Command(t, os.Args[0], "-test.v", "-test.run=^TestChild"+name+"$")
	// The children are about the other kinds of server.
	cmd.Env = append(os.Environ(), childEnv+"=1", "PAWL_TEST_DOCKER=off", "PAWL_TEST_DATABASE_URL=", "PAWL_TEST_KEEP=")
	cmd.Env = append(cmd.Env, env...)
	return cmd
}

func beChild(t *testing.T) {
	t.Helper()
	if os.Getenv(childEnv) == "" {
		t.Skip("a part of another test")
	}
}

func TestChildPasses(t *testing.T) {
	beChild(t)
	dbtest.New(t)
}

func TestChildFails(t *testing.T) {
	beChild(t)
	pool := dbtest.New(t)
	if _, err := pool.Exec(t.Context(), "create table evidence as select 42 as n"); err != nil {
		t.Fatal(err)
	}
	t.Error("as it is meant to")
}

// TestChildWaits says which database it has and waits to be killed.
func TestChildWaits(t *testing.T) {
	beChild(t)
	fmt.Println("waiting in", dbtest.New(t).Config().ConnConfig.Database)
	select {} // bounded: its parent kills it, at the latest after bounded.Limit
}

func find(t *testing.T, pattern, output string) string {
	t.Helper()
	match := regexp.MustCompile(pattern).FindStringSubmatch(output)
	if match == nil {
		t.Fatalf("the output does not have %q:\n%s", pattern, output)
	}
	return match[1]
}

func needLocal(t *testing.T) {
	t.Helper()
	if _, err := localpg.Find(); err != nil {
		t.Skip(err)
	}
}

func TestWithoutServerSaysHowToGetOne(t *testing.T) {
	t.Parallel()
	output, passed := child(t, "Passes", "PAWL_PG_BIN=/nonexistent")
	if passed {
		t.Error("a test without a server passed")
	}
	for _, part := range []string{"PAWL_TEST_DATABASE_URL", "Docker", "PAWL_PG_BIN"} {
		if !strings.Contains(output, part) {
			t.Errorf("the output does not say %q:\n%s", part, output)
		}
	}
}

func TestFailureOnPrivateServerHintsAtKeep(t *testing.T) {
	t.Parallel()
	needLocal(t)
	output, passed := child(t, "Fails")
	if passed {
		t.Error("the failing test passed")
	}
	dsn := find(t, `goes with the process; PAWL_TEST_KEEP=1 keeps it: (\S+)`, output)
	if conn, err := pgx.Connect(t.Context(), dsn); err == nil {
		_ = conn.Close(t.Context())
		t.Error("the server goes on running")
	}
}

func TestKeep(t *testing.T) {
	t.Parallel()
	needLocal(t)
	output, passed := child(t, "Fails", "PAWL_TEST_KEEP=1")
	if passed {
		t.Error("the failing test passed")
	}
	remove := find(t, `to remove it: (.*)\n`, output)
	t.Cleanup(func() {
		if out, err := bounded.Command(t, "sh", "-c", remove).CombinedOutput(); err != nil {
			t.Errorf("%s: %v: %s", remove, err, out)
		}
	})
	if got := query[int](t, find(t, `is kept: (\S+)`, output), "select n from evidence"); got != 42 {
		t.Errorf("n = %d, want 42", got)
	}
}

func TestKeepWithoutFailureKeepsNothing(t *testing.T) {
	t.Parallel()
	needLocal(t)
	output, passed := child(t, "Passes", "PAWL_TEST_KEEP=1")
	if !passed {
		t.Fatal(output)
	}
	dir := find(t, `using a private server: \S+host=(\S+)/run`, output)
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("%s is still there: %v", dir, err)
	}
}

// databases lists those that this package made.
func databases(t *testing.T, dsn string) string {
	t.Helper()
	return query[string](t, dsn,
		`select coalesce(string_agg(datname, ' ' order by datname), '') from pg_database where datname like 'pawl\_test\_%'`)
}

func TestSharedServerIsLeftClean(t *testing.T) {
	t.Parallel()
	s := dbtest.Private(t, nil)
	// Keywords instead of a URL: both are in use.
	keywords := strings.NewReplacer("postgres://postgres@/postgres?", "user=postgres dbname=postgres ", "&", " ").Replace(s.DSN())
	for _, dsn := range []string{s.DSN(), keywords} {
		if output, passed := child(t, "Passes", "PAWL_TEST_DATABASE_URL="+dsn); !passed {
			t.Fatal(output)
		}
		if left := databases(t, s.DSN()); left != "" {
			t.Errorf("left on the server: %s", left)
		}
	}
}

func TestSharedServerKeepsFailures(t *testing.T) {
	t.Parallel()
	s := dbtest.Private(t, nil)
	output, passed := child(t, "Fails", "PAWL_TEST_DATABASE_URL="+s.DSN())
	if passed {
		t.Error("the failing test passed")
	}
	kept := find(t, `is kept: (\S+)`, output)
	if output, passed := child(t, "Passes", "PAWL_TEST_DATABASE_URL="+s.DSN()); !passed {
		t.Fatal(output)
	}
	if got := query[int](t, kept, "select n from evidence"); got != 42 {
		t.Errorf("n = %d, want 42", got)
	}
}

// linesOf yields the lines of r.
func linesOf(t *testing.T, r io.Reader) iter.Seq[string] {
	t.Helper()
	return func(yield func(string) bool) {
		scanner := bufio.NewScanner(r)
		// bounded: the reader ends with the program that it reads from
		for scanner.Scan() && yield(scanner.Text()) {
		}
		if err := scanner.Err(); err != nil {
			t.Error(err)
		}
	}
}

func TestSharedServerSweepsDeadRunsOnly(t *testing.T) {
	t.Parallel()
	s := dbtest.Private(t, nil)
	cmd := childCommand(t, "Waits", "PAWL_TEST_DATABASE_URL="+s.DSN())
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = bounded.Result(t, "the child", cmd.Wait) }()
	var name string
	for line := range linesOf(t, stdout) {
		if after, ok := strings.CutPrefix(line, "waiting in "); ok {
			name = after
			break
		}
	}
	if name == "" {
		t.Fatal("the child did not come to its test")
	}

	if output, passed := child(t, "Passes", "PAWL_TEST_DATABASE_URL="+s.DSN()); !passed {
		t.Fatal(output)
	}
	if left := databases(t, s.DSN()); !strings.Contains(left, name) {
		t.Errorf("the database of a run that is alive was swept; there are: %s", left)
	}

	run := strings.Join(strings.Split(name, "_")[:3], "_")
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	// The server notices the death when it next reads from the connection; ask it to be done with it.
	query[int](t, s.DSN(), `select count(pg_terminate_backend(pid, 60000)) from pg_stat_activity where application_name = $1`, run)
	if output, passed := child(t, "Passes", "PAWL_TEST_DATABASE_URL="+s.DSN()); !passed {
		t.Fatal(output)
	}
	if left := databases(t, s.DSN()); left != "" {
		t.Errorf("left on the server: %s", left)
	}
}

// A role that may create databases and nothing else is enough.
func TestSharedServerWithOrdinaryRole(t *testing.T) {
	t.Parallel()
	s := dbtest.Private(t, nil)
	conn, err := pgx.Connect(t.Context(), s.DSN())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	if _, err := conn.Exec(t.Context(), "create role tester login createdb"); err != nil {
		t.Fatal(err)
	}
	dsn := strings.Replace(s.DSN(), "postgres@", "tester@", 1)
	if output, passed := child(t, "Passes", "PAWL_TEST_DATABASE_URL="+dsn); !passed {
		t.Fatal(output)
	}
	if left := databases(t, s.DSN()); left != "" {
		t.Errorf("left on the server: %s", left)
	}
}

// role makes a role without rights and returns a pool of its own on the same database.
func role(t *testing.T, pool *pgxpool.Pool) *pgxpool.Pool {
	t.Helper()
	// Roles belong to the server, so the name has to be this test's.
	name := "role_of_" + pool.Config().ConnConfig.Database
	for _, sql := range []string{
		"create role " + name,
		"grant usage on schema pawl to " + name,
		"grant execute on function pawl.now() to " + name,
	} {
		if _, err := pool.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		_, err := pool.Exec(context.Background(), "drop owned by "+name+"; drop role "+name)
		if err != nil {
			t.Error(err)
		}
	})
	config := pool.Config()
	config.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, "set role "+pgx.Identifier{name}.Sanitize())
		return err
	}
	restricted, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(restricted.Close)
	return restricted
}
