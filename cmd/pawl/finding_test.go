package main_test

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

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

// A sink with findings=true gets a finding as GET /v1/findings shows it, and one without does not. A subscription asks by
// its types.
func TestServeFindingsToASink(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	bounded.Exec(t, pool, `select pawl.register_workflow('{"name": "lost", "initial": "LOST", "states": {
		"LOST": {"always": [{"guard": "$.context.never == 1", "target": "DONE"}]}, "DONE": {"type": "final", "outcome": "completed"}}}')`)
	id := bounded.Value[string](t, pool, "select (pawl.create_one('lost')).id::text")
	dbtest.Advance(t, pool, 0)
	env := func(consumer string) []string {
		return []string{"DATABASE_URL=" + dbtest.DSN(pool), "PAWL_SINKS=stdout:?from=start&consumer=" + consumer}
	}
	asks, other := start(t, env("asks&findings=true"), "serve"), start(t, env("other"), "serve")
	out := mustPawl(t, []string{"PAWL_SERVER=" + asks.url}, "subscription", "create", "https://example.com/", "--type", "pawl.finding.opened")
	if !strings.Contains(out, "types pawl.finding.opened\n") {
		t.Errorf("the subscription is\n%s", out)
	}
	bounded.UntilSQL(t, pool, "select count(*) = 1 from pawl.residence")
	dbtest.Advance(t, pool, 20e9)
	told := func() (data any) {
		for line := range strings.Lines(asks.Output.String()) {
			var e struct {
				ID, Type, Subject string
				Data              map[string]any
			}
			if json.Unmarshal([]byte(line), &e) == nil && e.Type == "pawl.finding.opened" && e.Subject == id {
				return e.Data
			}
		}
		return nil
	}
	data := bounded.Until(t, "the finding to be printed", told, func(data any) bool { return data != nil })
	shown := mustSend(t, http.StatusOK, http.MethodGet, asks.url+"/v1/findings", "").member("items").([]any)[0]
	if diff := cmp.Diff(shown, data); diff != "" {
		t.Errorf("what is told differs from what is shown: %s", diff)
	}
	bounded.UntilSQL(t, pool, "select steps = 0 from pawl.consumer_status() where name = 'sink other'")
	if printed := other.Output.String(); strings.Contains(printed, "pawl.finding.opened") || !strings.Contains(printed, `"id":"`+id+`:1"`) {
		t.Errorf("the other sink got\n%s", printed)
	}
}
