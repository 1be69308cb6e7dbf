package main_test

import (
	"bytes"
	"io/fs"
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
	mustPawl(t, env, "migrate", "up", "--idempotency-ttl", "48h")
	mustPawl(t, env, "migrate", "up")
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
	mode := bounded.Value[string](t, conn, "select array_to_string(proconfig, ',') from pg_proc where oid::regproc = 'pawl.fire'::regproc")
	if !strings.Contains(mode, "plan_cache_mode=auto") {
		t.Errorf("fire has %s", mode)
	}
	printed := mustPawl(t, nil, "migrate", "print")
	var want bytes.Buffer
	if err := db.Print(&want); err != nil || printed != want.String() || !strings.Contains(printed, "-- +goose Up") {
		t.Errorf("print (%v) has %d bytes, want %d", err, len(printed), want.Len())
	}
	grants := mustPawl(t, nil, "migrate", "grants", "--role", `odd "role"`)
	if !strings.Contains(grants, `to "odd ""role""";`) {
		t.Errorf("a role's name is not quoted: %s", grants)
	}
	for range migrations {
		mustPawl(t, env, "migrate", "down")
	}
	if out := mustPawl(t, env, "migrate", "status"); strings.Count(out, "pending") != len(migrations) {
		t.Errorf("status after all are reverted: %s", out)
	}
	if _, stderr, code := pawl(t, env, "migrate", "up", "--plan-cache-mode", "nonsense"); code != 2 || !strings.Contains(stderr, "plan-cache-mode") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
}
