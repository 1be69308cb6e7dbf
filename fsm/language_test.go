package fsm_test

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/fsmtest"
)

// trail writes the steps of a history from a version on: kind, event, states, and "!" if the step was internal.
func trail(steps []fsm.Step, from int64) (list []string) {
	for _, s := range steps {
		if s.Version < from {
			continue
		}
		text := s.Kind
		if s.Event != nil {
			text += " " + *s.Event
		}
		if s.Internal {
			text += "!"
		}
		list = append(list, text+" "+s.To)
	}
	return list
}

func wantTrail(t *testing.T, s *fsmtest.Service, i fsm.Instance, from int64, want ...string) {
	t.Helper()
	if got := trail(fsmtest.History(t, s, i.ID), from); !slices.Equal(got, want) {
		t.Errorf("the steps from %d are %q, want %q", from, got, want)
	}
}

const cart = `{"name": "cart", "initial": "OPEN", "context_default": {"items": []}, "states": {
	"OPEN": {
		"on": {
			"add": {"assign": {"items": {"$append": ["$.context.items", "$.payload.item"]}}},
			"touch": {"rearm": true},
			"note": {},
			"pay": "PAID"
		},
		"after": {"30m": "ABANDONED"}
	},
	"PAID": {"type": "final"}, "ABANDONED": {"type": "final", "outcome": "expired"}}}`

// An internal transition assigns and stays: the timers and the time of the state are not touched.
func TestInternalTransitions(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, cart)
	dbtest.SetClock(t, pool, fsmtest.Noon)
	i := fsmtest.Create(t, s, "cart", `{}`)
	dbtest.Advance(t, pool, 20*time.Minute)
	command := fsm.FireCommand{ID: i.ID, Event: "add", Payload: json.RawMessage(`{"item": "book"}`), Key: "k"}
	r, err := s.Fire(t.Context(), command)
	if err != nil {
		t.Fatal(err)
	}
	fsmtest.SameJSON(t, r.Instance.Context, `{"items": ["book"]}`)
	if !r.Instance.StateChangedAt.Equal(fsmtest.Noon) || r.Instance.Version != 2 || !r.Instance.NextTimeout.DueAt.Equal(fsmtest.Noon.Add(30*time.Minute)) {
		t.Errorf("%+v, %+v", r.Instance, r.Instance.NextTimeout)
	}
	again, err := s.Fire(t.Context(), command)
	if diff := cmp.Diff(r.Instance, again.Instance); err != nil || !again.Replayed || diff != "" {
		t.Errorf("the replay differs: %v %s", err, diff)
	}
	got := fsmtest.Get(t, s, i.ID)
	if diff := cmp.Diff(r.Instance, got); diff != "" {
		t.Errorf("a read differs: %s", diff)
	}
	fsmtest.Fire(t, s, i.ID, "note", `{}`)
	wantTrail(t, s, i, 2, "transition add! OPEN", "transition note! OPEN")
	dbtest.Advance(t, pool, 10*time.Minute-time.Microsecond)
	fsmtest.WantFired(t, pool, 0)
	dbtest.Advance(t, pool, time.Microsecond)
	fsmtest.WantFired(t, pool, 1)
	wantTrail(t, s, i, 4, "timeout after:30m ABANDONED")
}

// The context of a creation is checked with the defaults under it, and null is no default.
func TestContextDefault(t *testing.T) {
	t.Parallel()
	s, _ := fsmtest.New(t, fsm.Config{}, `{"name": "w", "initial": "A", "context_default": {"n": 1, "list": []},
		"context_schema": {"type": "object", "required": ["n", "name"], "properties": {"n": {"type": "integer"}}},
		"states": {"A": {"on": {"end": "Z"}}, "Z": {"type": "final"}}}`)
	for range 2 { // The second time the schema is guessed before the call.
		fsmtest.SameJSON(t, fsmtest.Create(t, s, "w", `{"name": "x", "list": [1]}`).Context, `{"n": 1, "name": "x", "list": [1]}`)
		_, err := s.Create(t.Context(), fsm.CreateCommand{Workflow: "w", Context: json.RawMessage(`{"name": "x", "n": null}`)})
		fsmtest.Refused(t, err, fsm.InvalidContext)
	}
	_, err := s.Create(t.Context(), fsm.CreateCommand{Workflow: "w", Context: json.RawMessage(`{}`)})
	fsmtest.Refused(t, err, fsm.InvalidContext)
}

// rearm counts the timers of the state from now.
func TestRearm(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, cart)
	dbtest.SetClock(t, pool, fsmtest.Noon)
	i := fsmtest.Create(t, s, "cart", `{}`)
	dbtest.Advance(t, pool, 20*time.Minute)
	if i = fsmtest.Fire(t, s, i.ID, "touch", `{}`); !i.StateChangedAt.Equal(fsmtest.Noon) || !i.NextTimeout.DueAt.Equal(fsmtest.Noon.Add(50*time.Minute)) {
		t.Errorf("%+v, %+v", i, i.NextTimeout)
	}
	dbtest.Advance(t, pool, 30*time.Minute-time.Microsecond)
	fsmtest.WantFired(t, pool, 0)
	dbtest.Advance(t, pool, time.Microsecond)
	fsmtest.WantFired(t, pool, 1)
	wantTrail(t, s, i, 2, "transition touch! OPEN", "timeout after:30m ABANDONED")
}

// A timeout whose guards have refused is over, and stays so over internal steps.
func TestRefusedTimeoutsStayRefused(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, `{"name": "w", "initial": "A", "states": {
		"A": {"on": {"set": {"assign": {"x": "$.payload.x"}}},
			"after": {"1m": {"target": "Z", "guard": "$.context.x == 1"}, "3m": "LATE"}},
		"Z": {"type": "final"}, "LATE": {"type": "final"}}}`)
	dbtest.SetClock(t, pool, fsmtest.Noon)
	i := fsmtest.Create(t, s, "w", `{"x": 0}`)
	dbtest.Advance(t, pool, time.Minute)
	fsmtest.WantFired(t, pool, 0)
	if i = fsmtest.Fire(t, s, i.ID, "set", `{"x": 1}`); i.NextTimeout == nil || i.NextTimeout.Event != "after:3m" {
		t.Errorf("the next timeout is %+v", i.NextTimeout)
	}
	if got := fsmtest.Get(t, s, i.ID); !cmp.Equal(got.NextTimeout, i.NextTimeout) {
		t.Errorf("a read shows %+v", got.NextTimeout)
	}
	fsmtest.WantFired(t, pool, 0)
	dbtest.Advance(t, pool, 2*time.Minute)
	fsmtest.WantFired(t, pool, 1)
	wantTrail(t, s, i, 3, "timeout after:3m LATE")
}

// After rearm no timer is passed over for those that were refused before.
func TestRearmAfterRefusals(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, `{"name": "w", "initial": "C", "states": {
		"C": {"initial": "A", "after": {"20m": "LATE"}, "states": {
			"A": {"on": {"touch": {"rearm": true, "assign": {"x": 1}}},
				"after": {"10m": {"target": "Z", "guard": "$.context.x == 1"}}}}},
		"Z": {"type": "final"}, "LATE": {"type": "final"}}}`)
	dbtest.SetClock(t, pool, fsmtest.Noon)
	first, second := fsmtest.Create(t, s, "w", `{}`), fsmtest.Create(t, s, "w", `{}`)
	dbtest.Advance(t, pool, 10*time.Minute)
	fsmtest.WantFired(t, pool, 0)
	fsmtest.Fire(t, s, first.ID, "touch", `{}`)
	dbtest.Advance(t, pool, 5*time.Minute)
	fsmtest.Fire(t, s, second.ID, "touch", `{}`)
	dbtest.Advance(t, pool, 5*time.Minute)
	fsmtest.WantFired(t, pool, 2)
	wantTrail(t, s, first, 3, "timeout after:10m Z")
	wantTrail(t, s, second, 3, "timeout after:20m@C LATE")
}

const reminders = `{"name": "w", "initial": "WAITING", "states": {
	"WAITING": {
		"every": {"in": "1h", "guard": {"absent": "$.context.quiet"}, "assign": {"reminders": "$.context.reminders + 1", "missed": "$.payload.missed"}},
		"after": [{"in": "$.context.grace", "target": "GONE"}, {"at": "$.context.due_at", "target": "DUE"}, {"in": "90m", "assign": {"warned": true}}],
		"on": {"done": "OVER", "hush": {"assign": {"quiet": true}}, "over": "OVER"}},
	"OVER": {"type": "final"}, "GONE": {"type": "final"}, "DUE": {"type": "final"}}}`

// Timers may have values, repeat, and make a step without leaving the state.
func TestArmedTimers(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, strings.Replace(reminders, `"done": "OVER", `, "", 1))
	dbtest.SetClock(t, pool, fsmtest.Noon)
	i := fsmtest.Create(t, s, "w", `{"reminders": 0, "grace": "5h", "due_at": "2099-01-01T00:00:00Z"}`)
	if i.NextTimeout == nil || i.NextTimeout.Event != "every:1h" || !i.NextTimeout.DueAt.Equal(fsmtest.Noon.Add(time.Hour)) {
		t.Fatalf("the next timeout is %+v", i.NextTimeout)
	}
	dbtest.Advance(t, pool, time.Hour)
	fsmtest.WantFired(t, pool, 1)
	dbtest.Advance(t, pool, 2*time.Hour+30*time.Minute)
	// Of the two repeats that were missed one step is made, after the warning, which was due before them.
	fsmtest.WantFired(t, pool, 2)
	wantTrail(t, s, i, 2, "timeout every:1h! WAITING", "timeout after:1h30m! WAITING", "timeout every:1h! WAITING")
	got := fsmtest.Get(t, s, i.ID)
	fsmtest.SameJSON(t, got.Context, `{"reminders": 2, "missed": 1, "warned": true, "grace": "5h", "due_at": "2099-01-01T00:00:00Z"}`)
	// It stays on its grid.
	if !got.NextTimeout.DueAt.Equal(fsmtest.Noon.Add(4*time.Hour)) || got.NextTimeout.Event != "every:1h" {
		t.Errorf("the next timeout is %+v", got.NextTimeout)
	}
	fsmtest.Fire(t, s, i.ID, "hush", `{}`)
	dbtest.Advance(t, pool, 90*time.Minute)
	fsmtest.FireTimers(t, pool)
	fsmtest.FireTimers(t, pool)
	wantTrail(t, s, i, 5, "transition hush! WAITING", "timeout after:1 GONE")

	past := fsmtest.Create(t, s, "w", `{"due_at": "2001-01-01T00:00:00+02:00"}`)
	fsmtest.WantFired(t, pool, 1)
	wantTrail(t, s, past, 2, "timeout after:2 DUE")
	none := fsmtest.Create(t, s, "w", `{"due_at": null}`)
	if none.NextTimeout.Event != "every:1h" {
		t.Errorf("the next timeout is %+v", none.NextTimeout)
	}
	for _, context := range []string{
		`{"grace": "5"}`, `{"grace": true}`, `{"due_at": "2026-01-01"}`, `{"due_at": "2026-01-01T00:00:00"}`, `{"due_at": 5}`, `{"grace": "9999999999s"}`,
		`{"due_at": "9999-12-31T23:59:59-12:00"}`, `{"due_at": "0001-01-01T00:00:00+14:00"}`,
	} {
		_, err := s.Create(t.Context(), fsm.CreateCommand{Workflow: "w", Context: json.RawMessage(context)})
		e := fsmtest.Refusal(t, err, fsm.GuardError)
		if len(e.Faults) != 1 || !strings.HasPrefix(e.Faults[0].Pointer, "/states/WAITING/after/") {
			t.Errorf("%s: %+v", context, e)
		}
	}
}

// A timer that repeats goes on after its guards have refused, and after they raised.
func TestRepeatsGoOn(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, `{"name": "w", "initial": "A", "states": {
		"A": {"on": {"set": {"assign": {"x": "$.payload.x"}}, "end": "Z"}, "after": {"90m": {"assign": {"late": true}}},
			"every": {"in": "1h", "guard": {"equal": [{"$path": "$.context.x + 0"}, 1]}, "assign": {"n": {"$append": ["$.context.n", "$.payload.missed"]}}}},
		"Z": {"type": "final"}}}`)
	dbtest.SetClock(t, pool, fsmtest.Noon)
	i := fsmtest.Create(t, s, "w", `{"x": 0}`)
	dbtest.Advance(t, pool, time.Hour)
	fsmtest.WantFired(t, pool, 0)
	if got := fsmtest.Get(t, s, i.ID).NextTimeout; got == nil || got.Event != "after:1h30m" {
		t.Errorf("the next timeout is %+v", got)
	}
	fsmtest.Fire(t, s, i.ID, "set", `{"x": "none"}`)
	dbtest.Advance(t, pool, time.Hour)
	fsmtest.WantFired(t, pool, 1) // The repeat raises.
	fsmtest.Fire(t, s, i.ID, "set", `{"x": 1}`)
	fsmtest.WantFired(t, pool, 0)
	dbtest.Advance(t, pool, time.Hour)
	fsmtest.WantFired(t, pool, 1)
	fsmtest.SameJSON(t, fsmtest.Get(t, s, i.ID).Context, `{"x": 1, "late": true, "n": [0]}`)
}

// A guard that selects several items holds only if none of them is missing and one is true.
func TestGuardOfSeveralItems(t *testing.T) {
	t.Parallel()
	s, _ := fsmtest.New(t, fsm.Config{}, `{"name": "w", "initial": "A", "states": {
		"A": {"on": {"go": {"guard": "$.payload.a[*].ok", "target": "Z"}}}, "Z": {"type": "final"}}}`)
	i := fsmtest.Create(t, s, "w", `{}`)
	for _, payload := range []string{`{"a": [{"ok": true}, {}]}`, `{"a": [{"ok": 1}]}`, `{"a": []}`, `{"a": [{"ok": false}]}`} {
		_, err := s.Fire(t.Context(), fsm.FireCommand{ID: i.ID, Event: "go", Payload: json.RawMessage(payload)})
		fsmtest.Refused(t, err, fsm.GuardRejected)
	}
	fsmtest.Fire(t, s, i.ID, "go", `{"a": [{"ok": false}, {"ok": true}]}`)
}

const ticket = `{"name": "ticket", "initial": "ACTIVE", "states": {
	"ACTIVE": {
		"initial": "NEW",
		"after": {"4h": {"target": "BREACHED"}},
		"on": {"ask": "ASKED", "close": "CLOSED", "escalate": {"internal": true, "target": "ACTIVE.URGENT"}, "*": {"assign": {"other": "$.event"}}},
		"states": {
			"NEW": {"on": {"assign": "WORKED"}, "after": {"1h": "URGENT"}},
			"WORKED": {"on": {"solve": "SOLVED"}},
			"URGENT": {"on": {"solve": "SOLVED"}},
			"SOLVED": {"type": "final"}
		},
		"done": "CLOSED"
	},
	"ASKED": {"on": {"answer": {"target": "ACTIVE", "resume": "timers"}, "drop": {"target": "ACTIVE", "resume": true}}, "after": {"168h": "CLOSED"}},
	"CLOSED": {"type": "final"}, "BREACHED": {"type": "final", "outcome": "failed"}}}`

// An SLA pauses while the customer is asked: the compound state is resumed with the time that was left.
func TestResume(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, ticket)
	dbtest.SetClock(t, pool, fsmtest.Noon)
	i := fsmtest.Create(t, s, "ticket", `{}`)
	dbtest.Advance(t, pool, 30*time.Minute)
	fsmtest.Fire(t, s, i.ID, "ask", `{}`)
	dbtest.Advance(t, pool, 48*time.Hour)
	fsmtest.WantFired(t, pool, 0)
	i = fsmtest.Fire(t, s, i.ID, "answer", `{}`)
	if i.State != "ACTIVE.NEW" || i.NextTimeout.Event != "after:1h" || !i.NextTimeout.DueAt.Equal(i.StateChangedAt.Add(30*time.Minute)) {
		t.Errorf("%+v, %+v", i, i.NextTimeout)
	}
	dbtest.Advance(t, pool, 30*time.Minute)
	fsmtest.WantFired(t, pool, 1)
	i = fsmtest.Get(t, s, i.ID)
	if i.State != "ACTIVE.URGENT" || i.NextTimeout.Event != "after:4h@ACTIVE" || !i.NextTimeout.DueAt.Equal(i.StateChangedAt.Add(3*time.Hour)) {
		t.Errorf("%+v, %+v", i, i.NextTimeout)
	}
	fsmtest.Fire(t, s, i.ID, "ask", `{}`)
	// Without timers they begin anew.
	i = fsmtest.Fire(t, s, i.ID, "drop", `{}`)
	if i.State != "ACTIVE.URGENT" || !i.NextTimeout.DueAt.Equal(i.StateChangedAt.Add(4*time.Hour)) {
		t.Errorf("%+v, %+v", i, i.NextTimeout)
	}
	i = fsmtest.Fire(t, s, i.ID, "solve", `{}`)
	if i.State != "CLOSED" || i.Status != fsm.Completed {
		t.Errorf("%+v", i)
	}
	wantTrail(t, s, i, 2, "transition ask ASKED", "transition answer ACTIVE.NEW", "timeout after:1h ACTIVE.URGENT", "transition ask ASKED",
		"transition drop ACTIVE.URGENT", "transition solve ACTIVE.SOLVED", "transition done CLOSED")
	if n := fsmtest.Timers(t, pool); n != 0 {
		t.Errorf("%d timers are left", n)
	}
}

// A timer of a compound state counts from entering it, over steps within; and it can be left by such a step.
func TestCompoundTimers(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, ticket)
	dbtest.SetClock(t, pool, fsmtest.Noon)
	i := fsmtest.Create(t, s, "ticket", `{}`)
	dbtest.Advance(t, pool, 50*time.Minute)
	i = fsmtest.Fire(t, s, i.ID, "assign", `{}`)
	if i.NextTimeout.Event != "after:4h@ACTIVE" || !i.NextTimeout.DueAt.Equal(fsmtest.Noon.Add(4*time.Hour)) {
		t.Errorf("the next timeout is %+v", i.NextTimeout)
	}
	i = fsmtest.Fire(t, s, i.ID, "escalate", `{}`)
	if i.State != "ACTIVE.URGENT" || !i.NextTimeout.DueAt.Equal(fsmtest.Noon.Add(4*time.Hour)) || !i.StateChangedAt.Equal(fsmtest.Noon.Add(50*time.Minute)) {
		t.Errorf("%+v, %+v", i, i.NextTimeout)
	}
	i = fsmtest.Fire(t, s, i.ID, "whatever", `{}`)
	fsmtest.SameJSON(t, i.Context, `{"other": "whatever"}`)
	dbtest.Advance(t, pool, 3*time.Hour+10*time.Minute)
	fsmtest.WantFired(t, pool, 1)
	wantTrail(t, s, i, 2, "transition assign ACTIVE.WORKED", "transition escalate ACTIVE.URGENT", "transition whatever! ACTIVE.URGENT", "timeout after:4h@ACTIVE BREACHED")
}

// The exact name of an event goes before a pattern, though its guards refuse.
func TestPatterns(t *testing.T) {
	t.Parallel()
	s, _ := fsmtest.New(t, fsm.Config{}, `{"name": "w", "initial": "C", "states": {
		"C": {"initial": "A", "on": {"pay": {"target": "Z", "guard": "$.payload.ok == true"}, "payment.*": {"assign": {"by": "prefix"}}},
			"states": {"A": {"on": {"*": {"assign": {"by": "any"}}, "payment.card.*": {"assign": {"by": "longest"}}}}}},
		"Z": {"type": "final"}}}`)
	i := fsmtest.Create(t, s, "w", `{}`)
	if want := []string{"*", "pay", "payment.*", "payment.card.*"}; !slices.Equal(i.AcceptedEvents, want) {
		t.Errorf("it accepts %q", i.AcceptedEvents)
	}
	for event, want := range map[string]string{"x": "any", "payment": "any", "payment.a.b": "prefix", "payment.card.x": "longest"} {
		fsmtest.SameJSON(t, fsmtest.Fire(t, s, i.ID, event, `{}`).Context, `{"by": "`+want+`"}`)
	}
	_, err := s.Fire(t.Context(), fsm.FireCommand{ID: i.ID, Event: "pay", Key: "k"})
	e := fsmtest.Refusal(t, err, fsm.GuardRejected)
	if !slices.Equal(e.Refusal.Guards, []string{"$.payload.ok == true"}) {
		t.Errorf("%+v", e.Refusal)
	}
	for _, event := range []string{"*", "payment.*", "done", "after:1m"} {
		_, err := s.Fire(t.Context(), fsm.FireCommand{ID: i.ID, Event: event})
		fsmtest.Refused(t, err, fsm.UnknownEvent)
	}
}

// A step that would break an invariant is refused with its text, also on replay, and whoever makes it.
func TestInvariants(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, `{"name": "w", "initial": "A", "invariant": "$.context.n >= 0", "states": {
		"A": {"on": {"take": {"assign": {"n": "$.context.n - $.payload.n"}}, "go": "B", "chain": "D"}, "after": {"1h": "B"}},
		"B": {"invariant": {"present": "$.context.ok"}, "on": {"end": "Z"}},
		"D": {"always": {"target": "B"}},
		"Z": {"type": "final"}}}`)
	dbtest.SetClock(t, pool, fsmtest.Noon)
	_, err := s.Create(t.Context(), fsm.CreateCommand{Workflow: "w", Context: json.RawMessage(`{"n": -1}`), Key: "c"})
	if e := fsmtest.Refusal(t, err, fsm.GuardRejected); !slices.Equal(e.Refusal.Guards, []string{"$.context.n >= 0"}) {
		t.Errorf("%+v", e.Refusal)
	}
	_, err = s.Create(t.Context(), fsm.CreateCommand{Workflow: "w", Key: "c"}) // Unknown breaks it.
	fsmtest.Refused(t, err, fsm.GuardRejected)
	i := fsmtest.Create(t, s, "w", `{"n": 1}`)
	for range 2 {
		_, err = s.Fire(t.Context(), fsm.FireCommand{ID: i.ID, Event: "take", Payload: json.RawMessage(`{"n": 2}`), Key: "k"})
		if e := fsmtest.Refusal(t, err, fsm.GuardRejected); !slices.Equal(e.Refusal.Guards, []string{"$.context.n >= 0"}) || e.Refusal.Version != 1 {
			t.Errorf("%+v", e.Refusal)
		}
	}
	for _, event := range []string{"go", "chain"} {
		_, err = s.Fire(t.Context(), fsm.FireCommand{ID: i.ID, Event: event})
		if e := fsmtest.Refusal(t, err, fsm.GuardRejected); !slices.Equal(e.Refusal.Guards, []string{`{"present":"$.context.ok"}`}) {
			t.Errorf("%s: %+v", event, e.Refusal)
		}
	}
	dbtest.Advance(t, pool, time.Hour)
	fsmtest.WantFired(t, pool, 0)
	if got := fsmtest.Get(t, s, i.ID); got.Version != 1 || got.NextTimeout != nil {
		t.Errorf("%+v, %+v", got, got.NextTimeout)
	}
}

// Guards read who acts. A SQL caller is the user of its session, whatever it says.
func TestActor(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, `{"name": "w", "initial": "A", "states": {
		"A": {"on": {"approve": {"assign": {"by": {"$union": ["$.context.by", "$.actor.subject"]}, "actor": "$.actor", "event": "$.event"}}}, "after": {"1h": {"target": "Z", "assign": {"actor": "$.actor"}}}},
		"Z": {"type": "final"}}}`)
	dbtest.SetClock(t, pool, fsmtest.Noon)
	i := fsmtest.Create(t, s, "w", `{}`)
	for _, actor := range []string{"alice", "bob", "alice"} {
		r, err := s.Fire(t.Context(), fsm.FireCommand{ID: i.ID, Event: "approve", Origin: fsm.Origin{Actor: actor}})
		if err != nil {
			t.Fatal(err)
		}
		i = r.Instance
	}
	fsmtest.SameJSON(t, i.Context, `{"by": ["alice", "bob"], "actor": {"subject": "alice", "scopes": [], "roles": []}, "event": "approve"}`)
	var subject string
	if err := pool.QueryRow(t.Context(), "select (pawl.fire_one($1, 'approve', p_actor => 'alice')).context #>> '{actor,subject}'", i.ID).Scan(&subject); err != nil || subject == "alice" || subject == "" {
		t.Errorf("a SQL caller is %q, %v", subject, err)
	}
	dbtest.Advance(t, pool, time.Hour)
	fsmtest.WantFired(t, pool, 1)
	if !strings.Contains(string(fsmtest.Get(t, s, i.ID).Context), `"subject": "timer"`) {
		t.Errorf("%s", fsmtest.Get(t, s, i.ID).Context)
	}
	open := fsmtest.On(t, pool, fsm.Config{UnverifiedActors: true})
	i = fsmtest.Fire(t, open, fsmtest.Create(t, open, "w", `{}`).ID, "approve", `{}`)
	fsmtest.SameJSON(t, i.Context, `{"by": ["anonymous"], "actor": {"subject": "anonymous", "scopes": [], "roles": [], "verified": false}, "event": "approve"}`)
}

// Timers that are due at once in a circle end after a hundred steps, with a reason; a command begins anew.
func TestTimersInACircle(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, `{"name": "w", "initial": "A", "states": {
		"A": {"after": [{"at": "$.context.at", "target": "B"}], "on": {"end": "Z", "poke": {}}},
		"B": {"after": [{"at": "$.context.at", "target": "A"}]},
		"Z": {"type": "final"}}}`)
	dbtest.SetClock(t, pool, fsmtest.Noon)
	i := fsmtest.Create(t, s, "w", `{"at": "2001-01-01T00:00:00Z"}`)
	n := 0
	for range 150 {
		n += fsmtest.FireTimers(t, pool)
	}
	got := fsmtest.Get(t, s, i.ID)
	if n != 100 || got.Version != 101 || got.NextTimeout == nil || got.NextTimeout.LastError == nil || !strings.Contains(*got.NextTimeout.LastError, "without time passing") {
		t.Errorf("%d steps: %+v, %+v", n, got, got.NextTimeout)
	}
	dbtest.Advance(t, pool, time.Minute)
	fsmtest.WantFired(t, pool, 0)
	fsmtest.Fire(t, s, i.ID, "end", `{}`)
}

// A sliding lifetime begins anew with commands, and not with timers.
func TestSlidingLifetime(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, `{"name": "w", "initial": "A", "ttl": {"after": "3h", "target": "GONE", "sliding": true}, "states": {
		"A": {"every": {"in": "1h", "assign": {"n": "$.context.n + 1"}}, "on": {"poke": {}, "end": "GONE"}},
		"GONE": {"type": "final", "outcome": "expired"}}}`)
	dbtest.SetClock(t, pool, fsmtest.Noon)
	i := fsmtest.Create(t, s, "w", `{"n": 0}`)
	dbtest.Advance(t, pool, time.Hour)
	fsmtest.WantFired(t, pool, 1)
	dbtest.Advance(t, pool, 30*time.Minute)
	if i = fsmtest.Fire(t, s, i.ID, "poke", `{}`); !i.ExpiresAt.Equal(fsmtest.Noon.Add(4*time.Hour + 30*time.Minute)) {
		t.Errorf("it expires at %s", i.ExpiresAt)
	}
	for range 3 {
		dbtest.Advance(t, pool, time.Hour)
		fsmtest.FireTimers(t, pool)
	}
	if i = fsmtest.Get(t, s, i.ID); i.Status != fsm.Expired || i.Version != 7 {
		t.Errorf("%+v, %+v", i, trail(fsmtest.History(t, s, i.ID), 1))
	}
}

// present and absent read every item: the first that lacks the member does not hide those behind it.
func TestPresenceAmongItems(t *testing.T) {
	t.Parallel()
	s, _ := fsmtest.New(t, fsm.Config{}, `{"name": "w", "initial": "A", "states": {
		"A": {"on": {
			"plain": {"target": "Z", "guard": {"absent": "$.payload.checks[*].failed"}},
			"filter": {"target": "Z", "guard": {"absent": "$.payload.checks[*] ? (@.failed == 1)"}}}},
		"Z": {"type": "final"}}}`)
	fire := func(event, payload string) error {
		i := fsmtest.Create(t, s, "w", `{}`)
		_, err := s.Fire(t.Context(), fsm.FireCommand{ID: i.ID, Event: event, Payload: json.RawMessage(payload)})
		return err
	}
	fsmtest.Refused(t, fire("plain", `{"checks": [{}, {"failed": 1}]}`), fsm.GuardError)
	fsmtest.Refused(t, fire("plain", `{"checks": [{"failed": 1}]}`), fsm.GuardRejected)
	fsmtest.Refused(t, fire("filter", `{"checks": [{}, {"failed": 1}]}`), fsm.GuardRejected)
	for _, payload := range []string{`{}`, `{"checks": []}`} {
		for _, event := range []string{"plain", "filter"} {
			if err := fire(event, payload); err != nil {
				t.Errorf("%s %s: %v", event, payload, err)
			}
		}
	}
}

// A large constant is compiled and made in a time that grows with its length, not with the square of it.
func TestLargeConstants(t *testing.T) {
	t.Parallel()
	list := "[" + strings.Repeat("1,", 20000) + "1]"
	s, _ := fsmtest.New(t, fsm.Config{}, `{"name": "w", "initial": "A", "states": {
		"A": {"on": {"go": {"target": "Z", "assign": {"list": `+list+`}}}}, "Z": {"type": "final"}}}`)
	i := fsmtest.Fire(t, s, fsmtest.Create(t, s, "w", `{}`).ID, "go", `{}`)
	fsmtest.SameJSON(t, i.Context, `{"list": `+list+`}`)
}
