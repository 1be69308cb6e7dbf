package main_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// `pawl serve` folds what happens and counts what it answers; `pawl stats` and `pawl instance forecast` show it.
func TestStatsOnTheCommandLine(t *testing.T) {
	t.Parallel()
	dsn := dbtest.NewDSN(t)
	p := start(t, []string{"DATABASE_URL=" + dsn}, "serve")
	env := []string{"PAWL_SERVER=" + p.url}
	mustPawl(t, env, "workflow", "apply", parcel)
	var instance struct{ ID string }
	if err := json.Unmarshal([]byte(mustPawl(t, env, "instance", "create", "parcel", "--context", "{sku: A-17}", "--json")), &instance); err != nil {
		t.Fatal(err)
	}
	bounded.Until(t, "the instance to be counted", func() string { return mustPawl(t, env, "stats", "parcel", "--by", "version") },
		func(out string) bool {
			return strings.Contains(out, "PACKING, version 1  active  1          ████") && strings.Contains(out, "STATE               STATUS  INSTANCES")
		})
	bounded.Until(t, "the key to be counted", func() string { return mustPawl(t, env, "stats", "parcel") },
		func(out string) bool { return strings.Contains(out, "1 new, 0 replayed") })
	if out := mustPawl(t, env, "stats", "parcel", "--json"); !strings.Contains(out, `"state": "PACKING"`) {
		t.Error(out)
	}
	if out, stderr, code := pawl(t, env, "stats", "parcel", "--from", "soon"); code == 0 || !strings.Contains(out+stderr, "from") {
		t.Errorf("exit code %d: %s%s", code, out, stderr)
	}

	if out, stderr, code := pawl(t, env, "instance", "forecast", instance.ID); code == 0 || !strings.Contains(out+stderr, "too-few-samples") {
		t.Errorf("exit code %d: %s%s", code, out, stderr)
	}
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(bounded.Context(t)) })
	bounded.Exec(t, conn, `do $$ begin
		for i in 1..30 loop perform pawl.override((pawl.create_one('parcel', '{"sku": "B"}')).id, 'test', '*', p_to => 'PACKED'); end loop;
	end $$`)
	bounded.Until(t, "a forecast", func() string { out, _, _ := pawl(t, env, "instance", "forecast", instance.ID); return out },
		func(out string) bool {
			return strings.Contains(out, "30 visits of it have ended") && strings.Contains(out, "PACKED  100.0 %  ████") && strings.Contains(out, "completed")
		})
	if out := mustPawl(t, env, "instance", "forecast", instance.ID, "--json"); !strings.Contains(out, `"sample": 30`) {
		t.Error(out)
	}
}
