package db_test

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// ownStep is a step as own_steps has it.
type ownStep struct {
	Version             int64
	Kind, Event         string
	Traceparent, Parent string
}

// ownSteps returns the steps without a span behind a position, which it moves.
func ownSteps(t *testing.T, pool *pgxpool.Pool, after *int64) (steps []ownStep) {
	t.Helper()
	dbtest.Number(t, pool)
	row, err := queries.New(pool).OwnSteps(t.Context(), queries.OwnStepsParams{After: after, RowLimit: 1000})
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(row.Steps, &steps); err != nil {
		t.Fatal(err)
	}
	*after = row.Until
	return steps
}

// Each step that pawl makes by itself is a span: what a task brings in the trace of its cause, and what a timer does in a new
// one. It is sampled if its cause is.
func TestStepsThatPawlMakesAreTraced(t *testing.T) {
	t.Parallel()
	const id, parent = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
	definition := `{"name": "t", "initial": "CALLING", "states": {
		"CALLING": {"invoke": {"ask": {"http": {"connection": "psp", "method": "GET", "path": "/"}, "deadline": "1h",
			"done": [{"target": "WAITING"}], "error": [{"target": "DONE"}], "unknown": [{"target": "DONE"}], "late": {"event": "later"},
			"compensate": {"http": {"connection": "psp", "method": "DELETE", "path": "/"}, "deadline": "1h"}}},
			"on": {"skip": [{"target": "WAITING"}]}},
		"WAITING": {"after": {"1m": [{"target": "UNDOING"}]}, "on": {"later": [{"target": "WAITING"}], "undo": [{"target": "UNDOING"}]}},
		"UNDOING": {"compensate": {"what": "all", "on_failure": "stop"}, "done": [{"target": "DONE"}], "error": [{"target": "DONE"}]},
		"DONE": {"type": "final"}}}`
	for flags, sampled := range map[string]bool{"01": true, "00": false} {
		t.Run(flags, func(t *testing.T) {
			t.Parallel()
			b := startWith(t, definition)
			caller := "00-" + id + "-" + parent + "-" + flags
			traceparents := func() []string {
				return bounded.Column[string](t, b.pool, "select coalesce(traceparent, '') from pawl.history where instance_id = $1 order by version", b.id)
			}
			if diff := cmp.Diff([]string{""}, traceparents()); diff != "" {
				t.Errorf("a step without a cause in a trace has a span: %s", diff)
			}
			var at int64
			ownSteps(t, b.pool, &at)
			bounded.Exec(t, b.pool, "delete from pawl.task")
			// The span of a step of a SQL caller is not below any: history does not keep the caller's.
			b.id = bounded.Value[[16]byte](t, b.pool, "select (pawl.create_one('t', '{}', p_traceparent => $1)).id", caller)
			call := b.one()
			if want := traceparents()[0]; call["traceparent"] != want {
				t.Errorf("the call is after %v, want %s", call["traceparent"], want)
			}
			b.settle(call, answered)
			b.wantState("WAITING")
			b.advance(time.Minute)
			bounded.Exec(t, b.pool, "select pawl.fire_timers(100)")
			b.wantState("UNDOING")
			b.sweep()
			call = b.one()
			if want := traceparents()[2]; call["traceparent"] != want {
				t.Errorf("the compensation is after %v, want %s, of the step that undoes", call["traceparent"], want)
			}
			b.settle(call, answered)
			b.wantState("DONE")

			p := traceparents()
			seen := map[string]bool{parent: true}
			for version, text := range p {
				if len(text) != 55 || text[53:] != flags || seen[text[36:52]] || (text[3:35] == id) != (version < 2) || version > 2 && text[3:35] != p[2][3:35] {
					t.Errorf("the traceparent of version %d is %q", version+1, text)
				} else {
					seen[text[36:52]] = true
				}
			}
			want := []ownStep{
				{1, "created", "", p[0], ""},
				{2, "result", "done:ask", p[1], p[0]},
				{3, "timeout", "after:1m", p[2], ""},
				{4, "compensated", "compensated:ask", p[3], p[2]},
				{5, "result", "done:compensate", p[4], p[3]},
			}
			if !sampled {
				want = nil
			}
			got := ownSteps(t, b.pool, &at)
			if diff := cmp.Diff(want, got, cmp.Transformer("list", func(l []ownStep) []ownStep { return append([]ownStep{}, l...) })); diff != "" {
				t.Errorf("the steps without a span are (-want +got):\n%s", diff)
			}
			if again := ownSteps(t, b.pool, &at); len(again) > 0 {
				t.Errorf("they are told twice: %v", again)
			}
		})
	}
}

// The result of a task whose state was left is in the task's trace. Steps that a request makes are not told, and nor are the
// further steps of one command.
func TestOwnStepsAreThoseWithoutARequest(t *testing.T) {
	t.Parallel()
	b := startTasks(t)
	const caller = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	bounded.Exec(t, b.pool, "delete from pawl.task")
	b.id = bounded.Value[[16]byte](t, b.pool, `select (pawl.create_one('trip', '{"price": 5, "order": "o"}', p_traceparent => $1)).id`, caller)
	call := b.one()
	b.fire("skip")
	b.settle(call, answered)
	var zero int64
	steps := ownSteps(t, b.pool, &zero)
	if len(steps) != 2 || steps[0].Version != 1 || steps[1].Version != 3 || steps[1].Event != "refund" || steps[1].Parent != steps[0].Traceparent {
		t.Errorf("the steps are %+v", steps)
	}
	// A service gives the traceparent of a span that it exports itself.
	bounded.Exec(t, b.pool, `
		select from pawl.create(
			p_tenants => '{default}', p_workflows => '{trip}', p_contexts => array['{"price": 5, "order": "o"}'::jsonb], p_keys => '{""}', p_business_keys => '{""}',
			p_instance_correlation_ids => '{""}', p_lifetimes => '{null}', p_checked => '{*}', p_actors => '{test}', p_reasons => '{""}',
			p_correlation_ids => '{""}', p_traceparents => array[$1], p_verified => true)`, caller)
	// A caller may call itself as a task or the healer, and use keys as theirs.
	for actor, key := range map[string]string{"task:pay": "task:0195a2f0", "healer": "heal:0195a2f0"} {
		id := bounded.Value[uuid.UUID](t, b.pool, `select (pawl.create_one('trip', '{"price": 5, "order": "o"}')).id`)
		fired := bounded.Value[string](t, b.pool, `
			select f.code
			from pawl.fire(
				p_tenants => '{default}', p_ids => array[$1::uuid], p_events => '{skip}', p_payloads => array['{}'::jsonb], p_keys => array[$2],
				p_expected => '{*}', p_checked => '{*}', p_actors => array[$3], p_reasons => '{""}', p_correlation_ids => '{""}',
				p_traceparents => array[$4], p_verified => true) f`, id, key, actor, caller)
		if fired != "applied" {
			t.Fatalf("%s: %s", actor, fired)
		}
	}
	if steps := ownSteps(t, b.pool, &zero); len(steps) > 0 {
		t.Errorf("the step of a request is told: %+v", steps)
	}
}
