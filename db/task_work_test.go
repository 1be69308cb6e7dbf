package db_test

import (
	"strings"
	"testing"
	"time"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// Progress is kept as it was said: members that are null, too.
func TestProgressIsKeptAsItIs(t *testing.T) {
	t.Parallel()
	b := startTasks(t)
	b.settle(b.one(), answered)
	work := b.work("pack")
	for _, c := range []struct{ said, kept any }{
		{`{"step": null, "of": [{"done": null}]}`, `{"of": [{"done": null}], "step": null}`},
		{nil, `{"of": [{"done": null}], "step": null}`},
		{`null`, `null`},
	} {
		bounded.Exec(t, b.pool, "select pawl.heartbeat_work($1, $2, $3)", work["id"], work["lease"], c.said)
		if got := b.task("pack", "progress"); got != c.kept {
			t.Errorf("%v was kept as %s", c.said, got)
		}
	}
}

// The input of work may be what a path selects. It is an object: anything else ends the task before a worker has it.
func TestInputIsAnObject(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ input, want string }{
		{`"$.context"`, `{"a": {"b": 1}, "n": 7, "l": []}`},
		{`"$.context.a"`, `{"b": 1}`},
		{`{"$path": "$.context.a"}`, `{"b": 1}`},
		{`"$.context.missing"`, `{}`},
		{`"$.context.n"`, ""},
		{`{"$path": "$.context.l"}`, ""},
	} {
		b := startOf(t, "t", `{"name": "t", "initial": "A", "states": {
			"A": {"invoke": {"x": {"work": {"topic": "x", "input": `+c.input+`}, "deadline": "1h",
				"done": [{"target": "B"}], "error": [{"target": "FAILED"}], "unknown": [{"target": "B"}]}}},
			"B": {"type": "final"}, "FAILED": {"type": "final", "outcome": "failed"}}}`, `{"a": {"b": 1}, "n": 7, "l": []}`)
		inputs := bounded.Value[string](t, b.pool, "select coalesce(string_agg(w.input::text, ' '), '') from pawl.claim_work('x', p_max => 10) w")
		if want := strings.ReplaceAll(c.want, `{"a": {"b": 1}, "n": 7, "l": []}`, `{"a": {"b": 1}, "l": [], "n": 7}`); inputs != want {
			t.Errorf("%s: the input is %s, want %s", c.input, inputs, want)
		}
		if c.want != "" {
			continue
		}
		b.sweep()
		b.wantState("FAILED")
		if got := b.task("x", "problem"); got != "null" && !strings.Contains(got, "object") {
			t.Errorf("%s: the problem is %s", c.input, got)
		}
		if got := b.task("x", "result ->> 'error'"); !strings.Contains(got, "object") {
			t.Errorf("%s: the error is %s", c.input, got)
		}
	}
}

// A part of a path that is no text and no number, or that would lead elsewhere, ends the task, and says so.
func TestPartOfAPathThatWillNotDo(t *testing.T) {
	t.Parallel()
	for value, want := range map[string]string{
		`".."`: "leads elsewhere", `"."`: "leads elsewhere", `""`: "is empty", `{}`: "no text and no number", `null`: "no text and no number",
	} {
		b := startOf(t, "trip", taskWorkflow, `{"price": 5, "order": `+value+`}`)
		if calls := b.claim(); len(calls) > 0 {
			t.Errorf("%s is called: %v", value, calls)
		}
		if got := b.task("charge", "problem"); !strings.Contains(got, want) {
			t.Errorf("%s: the problem is %s, want %q", value, got, want)
		}
	}
}

// A call that was never made until its deadline says what it has waited for.
func TestDeadlineOfACallThatWaits(t *testing.T) {
	t.Parallel()
	const connect = `select pawl.connection_put(p_tenant => 'default', p_name => 'psp', p_base_url => 'https://psp.example', p_auth => '{"type": "none"}',
		p_secret => null, p_headers => '{}', p_timeout => null, p_concurrency => 32, p_tls_ca => null)`
	for want, waits := range map[string][]string{
		"deadline; there is no connection psp":        {},
		"deadline":                                    {connect},
		"deadline; the connection psp cannot be used": {connect, "select pawl.connection_finding('{default}', '{psp}', '{it has no secret}', '1 day')"},
		"deadline; the connection psp rests":          {connect, "select pawl.connection_report('{default}', '{psp}', '{false}', '1 day') from generate_series(1, 5)"},
	} {
		b := startTasks(t)
		for _, sql := range waits {
			bounded.Exec(t, b.pool, sql)
		}
		b.advance(time.Minute)
		if strings.HasSuffix(want, "rests") {
			bounded.Exec(t, b.pool, "update pawl.connection set circuit_open_until = pawl.now() + interval '1 day'")
		}
		b.advance(15 * time.Minute)
		b.sweep()
		if got := b.task("charge", "status") + ": " + b.task("charge", "result ->> 'error'"); got != "error: "+want {
			t.Errorf("the task ended as %s, want %s", got, want)
		}
		if got := bounded.Value[string](t, b.pool, "select error from pawl.task_row where instance_id = $1", b.id); got != want {
			t.Errorf("the task says %s, want %s", got, want)
		}
	}
}

// A process that dies in a call does not keep the task beyond its deadline: those who would still report have two seconds.
func TestDeadlineOfACallOfTheDead(t *testing.T) {
	t.Parallel()
	b := startTasks(t)
	deadline := bounded.Value[time.Time](t, b.pool, "select deadline_at from pawl.task where instance_id = $1", b.id)
	dbtest.SetClock(t, b.pool, deadline.Add(-time.Second))
	if got := b.one()["timeout_seconds"].(float64); got != 1 {
		t.Errorf("the call may take %v s, and the deadline leaves 1 s", got)
	}
	dbtest.SetClock(t, b.pool, deadline.Add(time.Second))
	b.sweep()
	b.wantTasks("charge sent")
	dbtest.SetClock(t, b.pool, deadline.Add(2*time.Second))
	b.sweep()
	b.wantState("REVIEW")
	b.wantTasks("charge unknown")
}

// A task whose outcome was refused moves the instance while that stays where the task was started, and not when it has come
// back: then it has a task of its own.
func TestOutcomeOfAnotherStay(t *testing.T) {
	t.Parallel()
	b := startWith(t, `{"name": "t", "initial": "A", "states": {
		"A": {"invoke": {"x": {"work": {"topic": "x"}, "deadline": "1h",
			"done": [{"target": "B", "assign": {"ok": "$.payload.body"}}], "error": [{"target": "B"}], "unknown": [{"target": "B"}]}},
			"on": {"leave": [{"target": "C"}], "note": [{"assign": {"noted": true}}]}},
		"B": {"invariant": "$.context.ok == true", "on": {"leave": [{"target": "C"}]}},
		"C": {"on": {"back": [{"target": "A"}], "end": [{"target": "D"}]}}, "D": {"type": "final"}}}`)
	work := b.work("x")
	bounded.Exec(t, b.pool, "select pawl.complete_work($1, $2, 'false')", work["id"], work["lease"])
	b.wantTasks("x done invariant-broken")
	b.wantState("A")
	const resolve = "select pawl.task_resolve('default', $1, 'done', 'true', 'it was found')"
	b.fire("leave")
	b.fire("back")
	b.wantTasks("x done invariant-broken, x pending")
	if bounded.Value[bool](t, b.pool, resolve, work["id"]) {
		t.Error("an outcome of a stay that is over has moved the instance")
	}
	b.wantState("A")
	b.wantTasks("x done, x pending")

	// What only notes something does not end the stay.
	work = b.work("x")
	bounded.Exec(t, b.pool, "select pawl.complete_work($1, $2, 'false')", work["id"], work["lease"])
	b.fire("note")
	if !bounded.Value[bool](t, b.pool, resolve, work["id"]) {
		t.Error("the outcome has not moved the instance")
	}
	b.wantState("B")
}
