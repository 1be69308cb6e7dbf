package db_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/internal/bounded"
)

// undone has two steps that can be undone, and lets a test say what refuses the end of undoing: the context's member refuse.
func undone(onFailure string) string {
	return strings.ReplaceAll(`{"name": "t", "initial": "A", "states": {
		"A": {"on": {"one": [{"target": "A", "compensate": {"work": {"topic": "one"}, "deadline": "1h", "retry": {"max": 2, "base": "1s", "cap": "1s"}}}],
			"two": [{"target": "A", "compensate": {"work": {"topic": "two"}, "deadline": "1h"}}], "abort": [{"target": "U"}],
			"refuse": [{"target": "A", "assign": {"refuse": "$.payload.what"}}]}},
		"U": {"compensate": {"what": "all", "on_failure": "ON"}, "done": [{"target": "D"}], "error": [{"target": "E"}],
			"on": {"leave": [{"target": "A"}], "accept": [{"assign": {"refuse": {"$literal": 0}}}]}},
		"D": {"invariant": "$.context.refuse < 1", "on": {"end": [{"target": "F"}]}},
		"E": {"invariant": "$.context.refuse < 2", "on": {"abort": [{"target": "U"}]}},
		"F": {"type": "final"}}}`, `"ON"`, `"`+onFailure+`"`)
}

func startUndoing(t *testing.T, onFailure string) *taskBench {
	t.Helper()
	b := startWith(t, undone(onFailure))
	b.fire("one")
	b.fire("two")
	b.fire("abort")
	b.sweep()
	return b
}

// do claims the one task of a topic and reports what came of it.
func (b *taskBench) do(topic, report string) {
	b.t.Helper()
	if code := b.settle(b.work(topic), report); code != "settled" {
		b.t.Fatal(code)
	}
}

const (
	completed = `{"result": "completed", "body": {}}`
	failed    = `{"result": "failed", "error": "no"}`
)

func TestUndoingGoesBackwards(t *testing.T) {
	t.Parallel()
	b := startUndoing(t, "stop")
	b.wantTasks("two pending")
	b.do("two", completed)
	b.wantTasks("two done, one pending")
	b.do("one", completed)
	b.wantState("D")
	if got := b.compensations(); got != "one undone, two undone" {
		t.Fatal(got)
	}
	steps := bounded.Value[string](t, b.pool, "select string_agg(h.event, ' ' order by h.version) from pawl.history h where h.instance_id = $1 and h.kind in ('compensated', 'result')", b.id)
	if steps != "compensated:two compensated:one done:compensate" {
		t.Fatal(steps)
	}
}

// A compensation begins after the step that it follows: a list of all that happened, by time, shows the step first.
func TestCompensationBeginsAfterItsStep(t *testing.T) {
	t.Parallel()
	b := startUndoing(t, "stop")
	b.do("two", completed)
	if !bounded.Value[bool](t, b.pool, `
		select t.created_at >= (select max(h.at) from pawl.history h where h.instance_id = $1)
		from pawl.task t where t.instance_id = $1 and t.name = 'one'`, b.id) {
		t.Error("the compensation of one begins before two was undone")
	}
}

func TestUndoingStopsOrContinues(t *testing.T) {
	t.Parallel()
	stop := startUndoing(t, "stop")
	stop.do("two", failed)
	stop.wantState("E")
	stop.wantTasks("two error")
	bounded.Exec(t, stop.pool, "select pawl.compensation_mark('default', $1, 'two', 'skip', 'it is no use')", stop.id)
	stop.fire("abort")
	stop.sweep()
	stop.wantTasks("two error, one pending")
	stop.do("one", completed)
	stop.wantState("D")

	on := startUndoing(t, "continue")
	on.do("two", failed)
	on.wantTasks("two error, one pending")
	on.do("one", completed)
	on.wantState("E")
	if got := on.compensations(); got != "one undone, two failed" {
		t.Fatal(got)
	}
}

// If the state after undoing refuses the instance, the state for what could not be undone takes it. If that refuses it, too,
// undoing keeps the problem and is tried again, and nobody else waits for it.
func TestUndoingWhoseEndIsRefused(t *testing.T) {
	t.Parallel()
	b := startWith(t, undone("stop"))
	bounded.Exec(t, b.pool, `select pawl.fire_one($1, 'refuse', '{"what": 1}')`, b.id)
	b.fire("abort")
	b.sweep()
	b.wantState("E")

	b = startWith(t, undone("stop"))
	bounded.Exec(t, b.pool, `select pawl.fire_one($1, 'refuse', '{"what": 2}')`, b.id)
	b.fire("abort")
	other := bounded.Value[uuid.UUID](t, b.pool, `select (pawl.create_one('t', '{"refuse": 0}')).id`)
	bounded.Exec(t, b.pool, "select pawl.fire_one($1, 'abort')", other)
	b.sweep()
	b.wantState("U")
	if got := bounded.Value[string](t, b.pool, "select u.problem from pawl.undoing u where u.instance_id = $1", b.id); got != "invariant-broken" {
		t.Fatal(got)
	}
	if got := bounded.Value[string](t, b.pool, "select state from pawl.instance where id = $1", other); got != "D" {
		t.Fatalf("the other is in %s", got)
	}
	if next := bounded.Value[float64](t, b.pool, "select extract(epoch from next_in)::float8 from pawl.task_sweep(10)"); next <= 0 {
		t.Fatalf("next in %vs", next)
	}
	b.fire("accept")
	b.advance(2 * time.Second)
	b.sweep()
	b.wantState("D")
}

// A compensation that was pending when its state was left begins again when the state is entered again. One that was sent
// goes on, and is waited for.
func TestUndoingIsLeftAndEnteredAgain(t *testing.T) {
	t.Parallel()
	b := startUndoing(t, "stop")
	b.fire("leave")
	b.wantTasks("two cancelled left")
	b.fire("abort")
	b.sweep()
	b.wantTasks("two cancelled left, two pending")
	work := b.work("two")
	b.fire("leave")
	b.fire("abort")
	b.sweep()
	b.wantTasks("two cancelled left, two sent left")
	b.settle(work, completed)
	b.wantTasks("two cancelled left, two done left, one pending")
	if got := bounded.Value[int](t, b.pool, "select count(*) from pawl.history where instance_id = $1 and kind = 'compensated'", b.id); got != 1 {
		t.Fatalf("%d steps say that a step was undone, want 1", got)
	}
	b.do("one", completed)
	b.wantState("D")
}

// A compensation that ran out of attempts is unknown, and its step counts as not undone.
func TestUnknownCompensation(t *testing.T) {
	t.Parallel()
	b := startUndoing(t, "stop")
	b.do("two", completed)
	for range 2 {
		b.work("one")
		b.advance(61 * time.Second)
		b.sweep()
	}
	b.wantState("E")
	if got := b.compensations(); got != "one failed, two undone" {
		t.Fatal(got)
	}
	bounded.Exec(t, b.pool, "select pawl.task_resolve('default', $1, 'done', null, 'it was undone by hand')", b.task("one", "id"))
	b.wantState("E")
	b.fire("abort")
	b.sweep()
	b.wantState("D")
}

// Once a step is undone, and once another task undoes it, nobody says that a compensation of it ended otherwise.
func TestResolvedCompensationIsTheLast(t *testing.T) {
	t.Parallel()
	refused := func(b *taskBench, id, outcome string) {
		t.Helper()
		_, err := b.pool.Exec(t.Context(), "select pawl.task_resolve('default', $1, $2, null, 'asked')", id, outcome)
		wantCode(t, err, "PW40D")
	}
	b := startUndoing(t, "stop")
	work := b.work("two")
	b.fire("leave")
	b.settle(work, completed)
	b.wantTasks("two done left")
	refused(b, b.task("two", "id"), "error")

	b = startUndoing(t, "stop")
	b.do("two", failed)
	first := b.task("two", "id")
	b.fire("abort")
	b.sweep()
	b.wantTasks("two error, two pending")
	refused(b, first, "done")
	b.do("two", completed)
	refused(b, first, "done")
	b.do("one", completed)
	b.wantState("D")
	if got := b.compensations(); got != "one undone, two undone" {
		t.Fatal(got)
	}
}

// What is done anew after it was undone, under a fresh key, is undone anew.
func TestRetriedTaskIsUndoneAgain(t *testing.T) {
	t.Parallel()
	b := startWith(t, `{"name": "t", "initial": "A", "states": {
		"A": {"invoke": {"x": {"http": {"connection": "psp", "method": "POST", "path": "/x"}, "idempotency": {"header": "K", "window": "24h"}, "deadline": "1h",
			"done": [{"target": "B"}], "error": [{"target": "B"}], "unknown": [{"target": "B"}],
			"compensate": {"http": {"connection": "psp", "method": "DELETE", "path": "/x"}, "deadline": "1h"}}}, "on": {"abort": [{"target": "U"}]}},
		"B": {"type": "final"},
		"U": {"compensate": {"what": "all", "on_failure": "stop"}, "done": [{"target": "C"}], "error": [{"target": "C"}]},
		"C": {"on": {"abort": [{"target": "U"}]}}}}`)
	call := b.one()
	b.fire("abort")
	b.settle(call, answered)
	b.settle(b.one(), answered)
	b.wantState("C")
	bounded.Exec(t, b.pool, "select pawl.task_retry('default', $1, 'it is needed after all')", call["task_id"])
	b.advance(time.Second)
	again := b.one()
	if again["key"] != call["key"].(string)+"-2" {
		t.Fatalf("key %v", again["key"])
	}
	b.settle(again, answered)
	b.wantState("C")
	if got := b.compensations(); got != "x registered" {
		t.Fatal(got)
	}
	b.fire("abort")
	b.sweep()
	b.settle(b.one(), answered)
	b.wantState("C")
	if got := b.compensations(); got != "x undone" {
		t.Fatal(got)
	}
}

// Whatever one task raises, the others are settled, and it is tried again later.
func TestSweepGoesPastWhatRaises(t *testing.T) {
	t.Parallel()
	b := startTasks(t)
	other := bounded.Value[uuid.UUID](t, b.pool, `select (pawl.create_one('trip', '{"price": 5, "order": "b"}')).id`)
	b.claim()
	bounded.Exec(t, b.pool, `
		create function public.stop() returns trigger language plpgsql as $$ begin raise exception 'no' using errcode = '23514'; end $$;
		create trigger stop before insert on pawl.history for each row when (new.instance_id = '`+b.id.String()+`') execute function public.stop()`)
	b.advance(16 * time.Minute)
	b.sweep()
	b.wantState("CHARGING")
	b.wantTasks("charge sent no")
	if got := bounded.Value[string](t, b.pool, "select state from pawl.instance where id = $1", other); got != "REVIEW" {
		t.Fatalf("the other is in %s", got)
	}
	if next := bounded.Value[float64](t, b.pool, "select extract(epoch from next_in)::float8 from pawl.task_sweep(10)"); next <= 0 {
		t.Fatalf("next in %vs", next)
	}
	bounded.Exec(t, b.pool, "drop trigger stop on pawl.history")
	b.advance(time.Minute)
	b.sweep()
	b.wantState("REVIEW")
	b.wantTasks("charge unknown")
}

// What another transaction holds, and what belongs to a disabled tenant, is left, without a call after the other.
func TestSweepLeavesWhatCannotBeSettledNow(t *testing.T) {
	t.Parallel()
	b := startTasks(t)
	b.claim()
	b.advance(16 * time.Minute)
	tx := begin(t, b.pool)
	bounded.Exec(t, tx, "select from pawl.instance where id = $1 for update", b.id)
	next := func() float64 {
		return bounded.Value[float64](t, b.pool, "select coalesce(extract(epoch from next_in), 86400)::float8 from pawl.task_sweep(10)")
	}
	if got := next(); got <= 0 {
		t.Fatalf("next in %vs", got)
	}
	commit(t, tx)
	bounded.Exec(t, b.pool, "update pawl.tenant set disabled_at = pawl.now() where id = 'default'")
	if got := next(); got <= 0 {
		t.Fatalf("next in %vs", got)
	}
	b.wantState("CHARGING")
	bounded.Exec(t, b.pool, "update pawl.tenant set disabled_at = null where id = 'default'")
	b.sweep()
	b.wantState("REVIEW")
}

// Two tasks of one state that end in one call: the first moves the instance, and the second is late.
func TestTasksThatEndInOneCall(t *testing.T) {
	t.Parallel()
	b := startWith(t, `{"name": "t", "initial": "A", "states": {
		"A": {"invoke": {
			"x": {"work": {"topic": "x"}, "deadline": "1h", "done": [{"target": "B"}], "error": [{"target": "B"}], "unknown": [{"target": "B"}]},
			"y": {"work": {"topic": "x"}, "deadline": "1h", "done": [{"target": "C"}], "error": [{"target": "C"}], "unknown": [{"target": "C"}],
				"late": {"event": "y"}}}},
		"B": {"on": {"y": [{"target": "D"}]}}, "C": {"type": "final"}, "D": {"type": "final"}}}`)
	bounded.Exec(t, b.pool, `
		with w as materialized (select * from pawl.claim_work('x', 'me', 2))
		select s.code
		from (
			select array_agg('default'::text) as tenants, array_agg(w.id order by w.name) as ids, array_agg(w.lease order by w.name) as leases,
				array_agg('{"result": "completed", "body": {}}'::jsonb) as reports
			from w
		) w
		cross join lateral pawl.task_settle(w.tenants, w.ids, w.leases, w.reports) s`)
	if x, y := b.task("x", "left_at"), b.task("y", "left_at"); x != "null" || y == "null" {
		t.Fatal(b.tasks())
	}
	b.wantState("D")
}

// A claim that is repeated with its key has the same answer for as long as it holds something. Then it claims anew.
func TestRepeatedClaim(t *testing.T) {
	t.Parallel()
	b := startUndoing(t, "stop")
	claim := func() string {
		return bounded.Value[string](t, b.pool, "select coalesce(string_agg(w.lease::text, ' '), '') from pawl_private.work_claim('default', 'two', 'me', 5, null, 'k') w")
	}
	first := claim()
	if again := claim(); again != first || first == "" {
		t.Fatalf("claimed %q, then %q", first, again)
	}
	bounded.Exec(t, b.pool, "select pawl.release_work($1, $2)", b.task("two", "id"), first)
	if again := claim(); again == "" || again == first {
		t.Fatalf("claimed %q, and after it was given back %q", first, again)
	}
}
