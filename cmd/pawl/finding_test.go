package main_test

import (
	"strings"
	"testing"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// What `pawl serve` finds is on the command line: an instance that nothing will ever move.
func TestFindingsOnTheCommandLine(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	bounded.Exec(t, pool, `select pawl.register_workflow('{"name": "lost", "initial": "LOST", "states": {
		"LOST": {"always": [{"guard": "$.context.never == 1", "target": "DONE"}]}, "DONE": {"type": "final", "outcome": "completed"}}}')`)
	id := bounded.Value[string](t, pool, "select (pawl.create_one('lost')).id::text")
	dbtest.Advance(t, pool, 0)
	p := start(t, []string{"DATABASE_URL=" + dbtest.DSN(pool)}, "serve")
	env := []string{"PAWL_SERVER=" + p.url}
	bounded.UntilSQL(t, pool, "select count(*) = 1 from pawl.residence")
	dbtest.Advance(t, pool, 20e9)
	bounded.UntilSQL(t, pool, "select count(*) = 1 from pawl.finding")
	out := mustPawl(t, env, "findings")
	if strings.Count(out, "\n") != 2 || !strings.Contains(out, "orphaned") || !strings.Contains(out, id) {
		t.Errorf("findings:\n%s", out)
	}
	if out := mustPawl(t, env, "findings", "--kind", "slow", "--json"); strings.TrimSpace(out) != "[]" {
		t.Errorf("slow findings: %s", out)
	}
	// One that is about no instance.
	bounded.Exec(t, pool, `insert into pawl.finding (tenant_id, id, kind, workflow, opened_at, closed_at, detail)
		values ('default', gen_random_uuid(), 'healing-paused', 'lost', pawl.now(), pawl.now(), '{"open": 100}')`)
	if out := mustPawl(t, env, "findings", "--kind", "healing-paused", "--all"); !strings.Contains(out, "healing-paused  -") || !strings.Contains(out, "open=100") {
		t.Errorf("healing-paused:\n%s", out)
	}
	bounded.Exec(t, pool, "select pawl.override($1, 'test', '*', p_to => 'DONE')", id)
	bounded.UntilSQL(t, pool, "select bool_and(closed_at is not null) from pawl.finding")
	if out := mustPawl(t, env, "findings", "--all", "--json"); !strings.Contains(out, `"closed_at": "`) {
		t.Errorf("all findings: %s", out)
	}
}
