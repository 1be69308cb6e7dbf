package db_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/internal/bounded"
)

const lost = `{"result": "lost", "error": "timeout"}`

// task reads a column of the instance's task with the name.
func (b *taskBench) task(name, column string) string {
	b.t.Helper()
	return bounded.Value[string](b.t, b.pool, fmt.Sprintf(
		"select coalesce((t.%s)::text, 'null') from pawl.task t where t.instance_id = $1 and t.name = $2 order by t.id desc limit 1", column), b.id, name)
}

// compensations lists the steps that can be undone with their status.
func (b *taskBench) compensations() string {
	b.t.Helper()
	return bounded.Value[string](b.t, b.pool,
		"select coalesce(string_agg(c.name || ' ' || c.status, ', ' order by c.number), '') from pawl.compensation c where c.instance_id = $1", b.id)
}

// An attempt that surely had no effect is counted out once, however often it is reported. Else an earlier attempt, which may
// have had one, would be forgotten.
func TestTaskRefusedTwiceIsStillSent(t *testing.T) {
	t.Parallel()
	b := startTasks(t)
	b.settle(b.one(), lost)
	b.advance(2 * time.Second)
	call := b.one()
	const refused = `{"result": "refused", "error": "connection refused"}`
	if code := b.settle(call, refused); code != "settled" {
		t.Fatal(code)
	}
	if code := b.settle(call, refused); code != "repeated" {
		t.Fatal(code)
	}
	b.wantTasks("charge sent")
	b.fire("skip")
	b.wantTasks("charge sent left")
}

// A lease that was given back does not settle any more.
func TestReleasedLeaseIsOver(t *testing.T) {
	t.Parallel()
	b := startTasks(t)
	b.settle(b.one(), answered)
	work := b.work("pack")
	if code := b.settle(work, `{"result": "released"}`); code != "settled" {
		t.Fatal(code)
	}
	b.wantTasks("charge done, pack pending")
	if code := b.settle(work, `{"result": "completed", "body": {}}`); code != "lease-superseded" {
		t.Fatal(code)
	}
	b.wantState("PACKING")
}

// Nobody settles a task that nobody has claimed.
func TestUnclaimedTaskIsNotSettled(t *testing.T) {
	t.Parallel()
	b := startTasks(t)
	b.settle(b.one(), answered)
	id := b.task("pack", "id")
	_, err := b.pool.Exec(bounded.Context(t), "select pawl.complete_work($1, null)", id)
	wantCode(t, err, "PW40S")
	b.wantState("PACKING")
}

// A call whose answer comes after its lease ran out is no answer to the question what became of the call.
func TestLateAnswerOfACallIsNotReconciled(t *testing.T) {
	t.Parallel()
	b := startTasks(t)
	b.settle(b.one(), lost)
	b.advance(2 * time.Second)
	call := b.one()
	b.advance(26 * time.Second)
	b.sweep()
	b.wantTasks("charge reconciling")
	if code := b.settle(call, `{"result": "answered", "status": 201, "body": {"id": "c1"}}`); code != "settled" {
		t.Fatal(code)
	}
	b.wantState("PACKING")
	if got := bounded.Value[string](t, b.pool, "select context ->> 'charge' from pawl.instance where id = $1", b.id); got != "c1" {
		t.Fatalf("charge = %s", got)
	}
}

// After its window, the service may have forgotten a key, and would carry out a second call.
func TestKeyIsNotSentAfterItsWindow(t *testing.T) {
	t.Parallel()
	b := startWith(t, `{"name": "t", "initial": "A", "states": {
		"A": {"invoke": {"x": {"http": {"connection": "psp", "method": "POST", "path": "/x"},
			"idempotency": {"header": "Idempotency-Key", "window": "1h"}, "deadline": "24h", "retry": {"max": 5, "base": "1s", "cap": "1m"},
			"done": [{"target": "B"}], "error": [{"target": "B"}], "unknown": [{"target": "C"}]}}},
		"B": {"type": "final"}, "C": {}}}`)
	b.settle(b.one(), lost)
	b.advance(59*time.Minute + 50*time.Second)
	if calls := b.claim(); len(calls) != 0 {
		t.Fatalf("claimed %v", calls)
	}
	b.sweep()
	b.wantState("C")
	b.wantTasks("x unknown")
}

// What was done is undone, also if the step that should have recorded it was refused.
func TestDoneTaskWhoseStepIsRefusedIsUndone(t *testing.T) {
	t.Parallel()
	b := startWith(t, `{"name": "t", "initial": "A", "states": {
		"A": {"invoke": {"x": {"http": {"connection": "psp", "method": "POST", "path": "/x"}, "deadline": "1h",
			"done": [{"target": "B", "assign": {"n": "$.payload.body.id"}}], "error": [{"target": "B"}], "unknown": [{"target": "C"}],
			"compensate": {"http": {"connection": "psp", "method": "DELETE", "path": "/x/{$.result.body.id}"}, "deadline": "1h"}}}},
		"B": {"invariant": "$.context.n == 0"},
		"C": {"on": {"abort": [{"target": "U"}]}},
		"U": {"compensate": {"what": "all", "on_failure": "stop"}, "done": [{"target": "D"}], "error": [{"target": "C"}]},
		"D": {"type": "final"}}}`)
	b.settle(b.one(), answered)
	b.wantState("C")
	b.wantTasks("x done invariant-broken")
	b.fire("abort")
	b.sweep()
	if got := fmt.Sprint(b.one()["path"]); got != "[/x/ [c1]]" {
		t.Fatalf("path %s", got)
	}
}

// A person who says that a task was done, which was never sent or had failed before, leaves something to undo.
func TestResolvedTaskIsUndone(t *testing.T) {
	t.Parallel()
	b := startTasks(t)
	id := b.task("charge", "id")
	bounded.Exec(t, b.pool, `select pawl.task_resolve('default', $1, 'done', '{"id": "c7"}', 'it was done by hand')`, id)
	b.wantState("PACKING")
	if got := b.compensations(); got != "charge registered" {
		t.Fatal(got)
	}
}

// A body that is nested deeper than a payload may be is left out. Else the task would have no outcome that can be made.
func TestDeepBodyIsLeftOut(t *testing.T) {
	t.Parallel()
	b := startTasks(t)
	deep := strings.Repeat("[", 90) + strings.Repeat("]", 90)
	b.settle(b.one(), fmt.Sprintf(`{"result": "answered", "status": 200, "body": %s}`, deep))
	b.wantState("PACKING")
	if got := b.task("charge", "result ->> 'error'"); got != "too-deep" {
		t.Fatal(got)
	}
}

// Times that are asked for have bounds.
func TestHugeWaitIsBounded(t *testing.T) {
	t.Parallel()
	b := startTasks(t)
	if code := b.settle(b.one(), `{"result": "answered", "status": 503, "retry_after": 1e300}`); code != "settled" {
		t.Fatal(code)
	}
	b.wantTasks("charge pending")
}

// A late error had no effect that somebody must be told of.
func TestLateErrorFiresNothing(t *testing.T) {
	t.Parallel()
	b := startTasks(t)
	call := b.one()
	b.fire("skip")
	version := bounded.Value[int64](t, b.pool, "select version from pawl.instance where id = $1", b.id)
	b.settle(call, `{"result": "answered", "status": 402, "body": null}`)
	b.wantTasks("charge error left")
	if got := bounded.Value[int64](t, b.pool, "select version from pawl.instance where id = $1", b.id); got != version {
		t.Fatal("it moved the instance")
	}
}

// A claim in the transaction of its worker holds the instance, so that a step of it waits, and neither waits for the other.
func TestClaimAndStepDoNotDeadlock(t *testing.T) {
	t.Parallel()
	b := startTasks(t)
	b.settle(b.one(), answered)
	tx := begin(t, b.pool)
	leases := bounded.Column[uuid.UUID](t, tx, "select unnest(array[w.id, w.lease]) from pawl.claim_work('pack') w")
	fired := fireLater(t, b.pool, command{id: b.id, event: "pay"})
	fired.awaitBlocked(t, b.pool)
	bounded.Exec(t, tx, "select pawl.complete_work($1, $2)", leases[0], leases[1])
	commit(t, tx)
	wantOutcome(t, fired.wait(t)[0], "applied")
	b.wantState("PAID")
}

// A step that arms a task notifies, unless those who would take it have been told of another one that they have not taken yet:
// of the same topic, or of the same connection. Else all steps that arm tasks would commit one after another.
func TestArmingTellsOfTheFirstTaskThatWaits(t *testing.T) {
	t.Parallel()
	const definition = `{"name": "NAME", "initial": "A", "states": {"A": {
		"invoke": {"a": {TASK, "deadline": "1h", "done": [{"target": "B"}], "error": [{"target": "B"}], "unknown": [{"target": "B"}]}},
		"on": {"leave": [{"target": "B"}]}}, "B": {"type": "final"}}}`
	for name, c := range map[string]struct{ task, told, take string }{
		"work": {`"work": {"topic": "pack"}`, "work:default/pack", "select count(*) from pawl.claim_work('pack', 'test', 100)"},
		"call": {`"http": {"connection": "psp", "method": "POST", "path": "/a"}`, "http", "select count(*) from pawl.task_claim('{default}', '{psp}', '{100}', 'test')"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := startOf(t, "t", strings.NewReplacer("NAME", "t", "TASK", c.task).Replace(definition), "{}")
			listener := connect(t, b.pool)
			bounded.Exec(t, listener, "listen pawl_task")
			// told returns what was told until now.
			told := func() (payloads []string) {
				t.Helper()
				bounded.Exec(t, b.pool, "select pg_notify('pawl_task', 'end')")
				// bounded: each wait has a deadline, and the last one is for what was just sent
				for {
					n, err := listener.WaitForNotification(bounded.Context(t))
					if err != nil {
						t.Fatal(err)
					}
					if n.Payload == "end" {
						return payloads
					}
					payloads = append(payloads, n.Payload)
				}
			}
			arm := func() { bounded.Exec(t, b.pool, "select pawl.create_one('t', '{}')") }
			arm()
			if got := told(); len(got) > 0 {
				t.Errorf("the first task waits, and the second one told %q", got)
			}
			if n := bounded.Value[int](t, b.pool, c.take); n != 2 {
				t.Fatalf("%d tasks were claimed, want 2", n)
			}
			arm()
			if got := told(); len(got) != 1 || got[0] != c.told {
				t.Errorf("none waits, and the next task told %q, want %q", got, c.told)
			}
			// Who has told, and is not committed, is seen by nobody.
			if n := bounded.Value[int](t, b.pool, c.take); n != 1 {
				t.Fatalf("%d tasks were claimed, want 1", n)
			}
			tx := begin(t, b.pool)
			bounded.Exec(t, tx, "select pawl.create_one('t', '{}')")
			arm()
			if got := told(); len(got) != 1 {
				t.Errorf("a task waits that is not committed, and the next one told %q", got)
			}
			if err := tx.Rollback(bounded.Context(t)); err != nil {
				t.Fatal(err)
			}
		})
	}
}
