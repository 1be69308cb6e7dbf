package main_test

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pawl-fsm/pawl/db"
	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// TestMigrate applies, lists, prints and reverts the migrations, and changes settings.
func TestMigrate(t *testing.T) {
	t.Parallel()
	env := []string{"DATABASE_URL=" + dbtest.Empty(t)}
	migrations, err := fs.Glob(db.Migrations(), "*.sql")
	if err != nil {
		t.Fatal(err)
	}
	if out := mustPawl(t, env, "migrate", "status"); strings.Count(out, "pending") != len(migrations) {
		t.Errorf("status before: %s", out)
	}
	if out := mustPawl(t, env, "migrate", "up", "--idempotency-ttl", "48h"); out != "applied "+strings.Join(migrations, "\napplied ")+"\n" {
		t.Errorf("up says %s", out)
	}
	if out := mustPawl(t, env, "migrate", "up"); out != fmt.Sprintf("nothing to apply: the schema is at version %d\n", len(migrations)) {
		t.Errorf("a second up says %s", out)
	}
	if out := mustPawl(t, env, "migrate", "status"); strings.Contains(out, "pending") {
		t.Errorf("status after: %s", out)
	}
	conn, err := pgx.Connect(t.Context(), strings.TrimPrefix(env[0], "DATABASE_URL="))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(bounded.Context(t)) }()
	if ttl := bounded.Value[time.Duration](t, conn, "select idempotency_ttl from pawl.setting"); ttl != 48*time.Hour {
		t.Errorf("idempotency_ttl is %s, want 48h", ttl)
	}
	mustPawl(t, env, "migrate", "set", "--plan-cache-mode", "auto", "--context-limit", "100")
	if _, stderr, code := pawl(t, env, "migrate", "set", "--payload-limit", "3000000"); code == 0 || !strings.Contains(stderr, "at most 1032192") {
		t.Errorf("a limit that no request can reach: %d, %s", code, stderr)
	}
	mode := bounded.Value[string](t, conn, "select array_to_string(proconfig, ',') from pg_proc where oid::regproc = 'pawl.fire'::regproc")
	if !strings.Contains(mode, "plan_cache_mode=auto") {
		t.Errorf("fire has %s", mode)
	}
	printed := mustPawl(t, nil, "migrate", "print")
	var want bytes.Buffer
	if err := db.Print(&want); err != nil || printed != want.String() || !strings.Contains(printed, "-- +goose Up") {
		t.Errorf("print (%v) has %d bytes, want %d", err, len(printed), want.Len())
	}
	dir := filepath.Join(t.TempDir(), "migrations")
	files := strings.Fields(mustPawl(t, nil, "migrate", "print", "--dir", dir))
	if written, err := filepath.Glob(dir + "/*.sql"); err != nil || !slices.Equal(files, written) || len(files) != len(migrations) {
		t.Errorf("print --dir says %s, and wrote %s", files, written)
	}
	grants := mustPawl(t, nil, "migrate", "grants", "--role", `odd "role"`)
	if !strings.Contains(grants, `to "odd ""role""";`) {
		t.Errorf("a role's name is not quoted: %s", grants)
	}
	for i := range migrations {
		if out := mustPawl(t, env, "migrate", "down", "--yes"); !strings.Contains(out, "with 0 workflows, ") || !strings.HasSuffix(out, "\nreverted "+migrations[len(migrations)-1-i]+"\n") {
			t.Errorf("down says %s", out)
		}
	}
	wantLine(t, env, 1, []string{"nothing to revert"}, "migrate", "down", "--yes")
	if out := mustPawl(t, env, "migrate", "status"); strings.Count(out, "pending") != len(migrations) {
		t.Errorf("status after all are reverted: %s", out)
	}
	if _, stderr, code := pawl(t, env, "migrate", "up", "--plan-cache-mode", "nonsense"); code != 2 || !strings.Contains(stderr, "plan-cache-mode") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
}

// Down says what would be lost, and asks. Without a terminal it needs --yes.
func TestMigrateDownAsks(t *testing.T) {
	t.Parallel()
	dsn := dbtest.NewDSN(t)
	conn := dialDSN(t, dsn)
	bounded.Exec(t, conn, `
		select pawl.register_workflow('{"name": "visit", "initial": "IN", "states": {
			"IN": {"on": {"leave": [{"target": "OUT"}]}}, "OUT": {"type": "final"}}}');
		select pawl.fire_one((pawl.create_one('visit')).id, 'leave');
		select pawl.create_one('visit')`)
	const held = "1 workflows, 2 instances and 3 rows of history"
	made := func() bool { return bounded.Value[bool](t, conn, "select to_regclass('pawl.instance') is not null") }
	wantLine(t, []string{"DATABASE_URL=" + dsn}, 1, []string{held, "--yes"}, "migrate", "down")
	if !made() {
		t.Fatal("down reverted the schema without asking")
	}
	if _, err := exec.LookPath("script"); err != nil || runtime.GOOS != "linux" {
		// The command asks on a terminal only. The script of other systems takes other arguments.
		t.Skip("there is no script command to make a terminal with")
	}
	ask := func(answer string) string {
		t.Helper()
		cmd := bounded.Command(t, "script", "--quiet", "--return", "--command", program+" migrate down", "/dev/null")
		cmd.Env, cmd.Stdin = append(os.Environ(), "DATABASE_URL="+dsn), strings.NewReader(answer+"\n")
		out, err := cmd.CombinedOutput()
		if (err == nil) != (answer == "yes") {
			t.Errorf("after %q: %v: %s", answer, err, out)
		}
		return string(out)
	}
	if out := ask("y"); !strings.Contains(out, held) || !strings.Contains(out, "nothing was reverted") || !made() {
		t.Errorf("after y: %s", out)
	}
	if out := ask("yes"); !strings.Contains(out, held) || !strings.Contains(out, "reverted 0") || made() {
		t.Errorf("after yes: %s", out)
	}
}

// If another tool has applied the migrations, each command fails with one line, until up --adopt has
// made the version table.
func TestMigrateAdopts(t *testing.T) {
	t.Parallel()
	dsn := dbtest.NewDSN(t)
	env := []string{"DATABASE_URL=" + dsn}
	bounded.Exec(t, dialDSN(t, dsn), "alter table pawl.goose_db_version set schema public")
	for _, command := range []string{"up", "down", "status"} {
		wantLine(t, env, 1, []string{"pawl.goose_db_version", "run 'pawl migrate up --adopt'"}, "migrate", command)
	}
	if out := mustPawl(t, env, "migrate", "up", "--adopt"); !strings.HasPrefix(out, "adopted the schema\nnothing to apply") {
		t.Errorf("up --adopt says %s", out)
	}
	wantLine(t, env, 1, []string{"exists already", "--adopt"}, "migrate", "up", "--adopt")
	if out := mustPawl(t, env, "migrate", "status"); strings.Contains(out, "pending") {
		t.Errorf("status says %s", out)
	}
}
