package lifecycle_test

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/pawl-fsm/pawl/db"
	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/definition"
	"github.com/pawl-fsm/pawl/fsm/fsmtest"
	"github.com/pawl-fsm/pawl/fsm/lifecycle"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// drawDefinition makes up a definition: states of which each may lead to any, by events
// with a few candidates, whose guards and assigns read all that there is to read.
func drawDefinition(t *rapid.T) string {
	states := rapid.IntRange(1, 4).Draw(t, "states")
	guards := []string{
		"", "exists($.payload.n)", "$.payload.n > $.context.x", "$.context.flag == true", "$.instance.version < 3",
		`$.instance.state == "S1" && $.now > "2000"`, "$.context.never == 1", "$.payload.n.type()", "$nowhere == 1",
	}
	assigns := []any{
		nil,
		map[string]any{"*": true, "trusted": true},
		map[string]string{"x": "$.payload.n"},
		map[string]string{"x": "$.context.x + 1", "flag": "$.payload.flag"},
		map[string]string{"seen": "$.instance.version"},
	}
	schemas := []any{nil, nil, nil, json.RawMessage(`{"type": "object", "required": ["n"]}`)}
	target := rapid.Custom(func(t *rapid.T) string {
		if n := rapid.IntRange(0, states).Draw(t, "target"); n < states {
			return fmt.Sprint("S", n)
		}
		return "END"
	})
	all := map[string]any{
		"END": map[string]string{"type": "final", "outcome": rapid.SampledFrom([]string{"completed", "failed"}).Draw(t, "outcome")},
	}
	for n := range states {
		on := map[string]any{"out": target.Draw(t, "out")}
		if n+1 == states {
			on["out"] = "END"
		} else {
			on["next"] = fmt.Sprint("S", n+1) // All are reachable.
		}
		for _, event := range rapid.SliceOfDistinct(rapid.SampledFrom([]string{"a", "b"}), rapid.ID).Draw(t, "events") {
			schema := rapid.SampledFrom(schemas).Draw(t, "schema")
			var candidates []any
			for range rapid.IntRange(1, 3).Draw(t, "candidates") {
				c := map[string]any{"target": target.Draw(t, "target")}
				if g := rapid.SampledFrom(guards).Draw(t, "guard"); g != "" {
					c["guard"] = g
				}
				if a := rapid.SampledFrom(assigns).Draw(t, "assign"); a != nil {
					c["assign"] = a
				}
				if schema != nil {
					c["payload_schema"] = schema
				}
				if candidates = append(candidates, c); c["guard"] == nil {
					break // None behind it would ever be taken.
				}
			}
			on[event] = candidates
		}
		if n+1 == states && states == 1 || on["out"] == fmt.Sprint("S", n) {
			on["out"] = "END" // A way out.
		}
		all[fmt.Sprint("S", n)] = map[string]any{"on": on}
	}
	text, err := json.Marshal(map[string]any{"name": "drawn", "initial": "S0", "states": all})
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func nameOf(k fsm.Kind) string { return k.Error() }

// kindOf names what became of an event.
func kindOf(err error) string {
	if err == nil {
		return "applied"
	}
	return nameOf(fsm.AsError(err).Kind)
}

// Whatever the definition and the events: the simulation, the dry run, what evaluates, and
// the firing come to the same.
func TestWhatIfAgreesWithFiring(t *testing.T) {
	t.Parallel()
	// Each registration makes every connection plan its calls anew.
	s := fsmtest.On(t, fsmtest.Open(t, dbtest.DSN(dbtest.New(t)), db.Config{MaxConns: 1}), fsm.Config{})
	rapid.Check(t, func(rt *rapid.T) {
		text := drawDefinition(rt)
		if _, err := s.Register(t.Context(), "", []byte(text), "tester", false); err != nil {
			rt.Fatalf("register: %v\n%s", err, text)
		}
		document := rapid.SampledFrom([]string{`{}`, `{"x": 1}`, `{"x": 1, "flag": true}`}).Draw(rt, "context")
		events := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) lifecycle.SimulatedEvent {
			return lifecycle.SimulatedEvent{
				Event:   rapid.SampledFrom([]string{"a", "a", "b", "b", "next", "out", "never"}).Draw(t, "event"),
				Payload: json.RawMessage(rapid.SampledFrom([]string{`{}`, `{"n": 2}`, `{"n": 1, "flag": true}`, `{"n": "text"}`}).Draw(t, "payload")),
			}
		}), 1, 6).Draw(rt, "list")
		simulated, err := s.Simulate(t.Context(), lifecycle.Simulation{Workflow: "drawn", Context: json.RawMessage(document), Events: events})
		if err != nil {
			rt.Fatalf("simulate: %v", err)
		}
		proposed, err := s.Simulate(t.Context(), lifecycle.Simulation{Definition: json.RawMessage(text), Context: json.RawMessage(document), Events: events})
		if err != nil {
			rt.Fatalf("simulate the definition: %v", err)
		}
		if got, want := outline(proposed), outline(simulated); !slices.Equal(got, want) {
			rt.Fatalf("the definition: %v, the workflow: %v\n%s", got, want, text)
		}
		made, err := s.Create(t.Context(), fsm.CreateCommand{Workflow: "drawn", Context: json.RawMessage(document)})
		if err != nil {
			rt.Fatal(err)
		}
		i := made.Instance
		for n, e := range events {
			holds := map[string]string{}
			actions, err := s.AcceptedEvents(t.Context(), fsm.DefaultTenant, i.ID, true, "")
			if err != nil {
				rt.Fatal(err)
			}
			for _, a := range actions {
				holds[a.Event] = "raises"
				if a.GuardHolds != nil {
					holds[a.Event] = fmt.Sprint(*a.GuardHolds)
				}
			}
			c := fsm.FireCommand{ID: i.ID, Event: e.Event, Payload: e.Payload}
			dry, dryErr := s.Preview(t.Context(), c)
			fired, err := s.Fire(t.Context(), c)
			step := simulated.Steps[n]
			var stepErr error
			if step.Err != nil {
				stepErr = step.Err
			}
			got := []string{kindOf(stepErr), kindOf(dryErr)}
			if want := kindOf(err); got[0] != want || got[1] != want {
				rt.Fatalf("%s with %s in %s: simulated and previewed: %v, fired: %s\n%s", e.Event, e.Payload, i.State, got, want, text)
			}
			if string(e.Payload) == `{}` && kindOf(err) != nameOf(fsm.InvalidPayload) {
				want := map[string]string{
					"applied": "true", nameOf(fsm.GuardRejected): "false", nameOf(fsm.GuardError): "raises",
					nameOf(fsm.TransitionNotAllowed): "", nameOf(fsm.UnknownEvent): "",
				}[kindOf(err)]
				if holds[e.Event] != want {
					rt.Fatalf("%s in %s: it evaluates to %q, but fires as %s\n%s", e.Event, i.State, holds[e.Event], kindOf(err), text)
				}
			}
			if err == nil {
				if dry.Instance.State != fired.Instance.State || dry.Instance.Version != fired.Instance.Version ||
					!cmp.Equal(fsmtest.Decoded(t, string(dry.Instance.Context)), fsmtest.Decoded(t, string(fired.Instance.Context))) {
					rt.Fatalf("previewed: %+v, fired: %+v", dry.Instance, fired.Instance)
				}
				i = fired.Instance
			}
			if step.To != i.State || !cmp.Equal(fsmtest.Decoded(t, string(step.Context)), fsmtest.Decoded(t, string(i.Context))) {
				rt.Fatalf("simulated to %s with %s, fired to %s with %s", step.To, step.Context, i.State, i.Context)
			}
		}
		if simulated.State != i.State || len(simulated.Steps) != len(events) {
			rt.Fatalf("%d steps to %s, want %d to %s", len(simulated.Steps), simulated.State, len(events), i.State)
		}
	})
}

// outline has a line for each step of a simulation: what made it, where it leads to, and when, after the time zero.
func outline(r lifecycle.Simulated) (lines []string) {
	for _, step := range r.Steps {
		var err error
		if step.Err != nil {
			err = step.Err
		}
		lines = append(lines, fmt.Sprintf("%d %s %s: %s, %s to %s, %s %d %s", step.Index, step.Kind, step.Event, kindOf(err), step.From, step.To, step.Status, step.Version, step.Context))
	}
	return lines
}

// zero is when the simulations of these tests begin.
var zero = time.Date(2026, 1, 31, 9, 0, 0, 0, time.UTC)

// times has the time of each step after zero.
func times(r lifecycle.Simulated) (after []string) {
	for _, step := range r.Steps {
		after = append(after, step.Event+" "+step.At.Sub(zero).String())
	}
	return after
}

// A definition that is not registered is simulated as if it was, and leaves nothing behind. An event that fails in the
// database does not end the simulation.
func TestSimulateADefinition(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{})
	before := fsmtest.Counts(t, pool)
	c := lifecycle.Simulation{
		Definition: json.RawMessage(`{"name": "sum", "initial": "OPEN", "context_default": {"n": 1},
			"context_schema": {"type": "object", "required": ["n"]},
			"states": {"OPEN": {"on": {
				"add": {"assign": {"n": {"$path": "$.context.n + $.payload.n"}, "by": "$.actor.subject"}},
				"end": {"guard": {"equal": ["$.actor.subject", "judge"]}, "target": "ENDED"}}},
			"ENDED": {"type": "final", "outcome": "completed"}}}`),
		Actor: "clerk",
		Events: []lifecycle.SimulatedEvent{
			{Event: "add", Payload: json.RawMessage(`{"n": 2}`)},
			{Event: "add", Payload: json.RawMessage(`{"n": "two"}`)},
			{Event: "end"},
			{Event: "end", Actor: "judge"},
		},
	}
	r, err := s.Simulate(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		`0 transition add: applied, OPEN to OPEN, active 2 {"n": 3, "by": "clerk"}`,
		`1 transition add: guard error, OPEN to OPEN, active 2 {"n": 3, "by": "clerk"}`,
		`2 transition end: guard rejected, OPEN to OPEN, active 2 {"n": 3, "by": "clerk"}`,
		`3 transition end: applied, OPEN to ENDED, completed 3 {"n": 3, "by": "clerk"}`,
	}
	if got := outline(r); !slices.Equal(got, want) {
		t.Errorf("steps:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if after := fsmtest.Counts(t, pool); after != before {
		t.Errorf("rows: %s, before: %s", after, before)
	}

	c.Definition = json.RawMessage(`{"name": "sum", "initial": "OPEN", "states": {"OPEN": {"on": {"end": {"guard": "$.payload..", "target": "ENDED"}}}, "ENDED": {"type": "final"}}}`)
	_, err = s.Simulate(t.Context(), c)
	if e := fsmtest.Refusal(t, err, fsm.InvalidDefinition); len(e.Faults) != 1 || e.Faults[0].Pointer != "/definition/states/OPEN/on/end/guard" {
		t.Error(e)
	}
}

const clockwork = `{"name": "clockwork", "initial": "WORK.RUN", "ttl": {"after": "2h", "target": "GONE"}, "states": {
	"WORK": {"initial": "RUN", "after": [{"in": "90m", "guard": {"present": "$.context.late"}, "target": "LATE"}],
		"on": {"hold": "HOLD"},
		"states": {"RUN": {
			"every": {"in": "20m", "assign": {"rings": {"$path": "$.context.rings + 1"}}},
			"after": {"15m": {"guard": "$.context.early == true", "target": "LATE"}},
			"on": {"tick": {}}}}},
	"HOLD": {"on": {"go": {"target": "WORK", "resume": "timers"}}, "after": {"1mo": "LATE"}},
	"LATE": {"type": "final", "outcome": "failed"}, "GONE": {"type": "final", "outcome": "expired"}}}`

// Time passes as it does for an instance: each timer comes when it is due, a refused one gives way, and the lifetime ends it.
func TestSimulateTime(t *testing.T) {
	t.Parallel()
	s, _ := fsmtest.New(t, fsm.Config{}, clockwork)
	pass := func(text string) lifecycle.SimulatedEvent {
		d, err := definition.ParseCalendarDuration(text)
		if err != nil {
			t.Fatal(err)
		}
		return lifecycle.SimulatedEvent{After: d}
	}
	c := lifecycle.Simulation{
		Workflow: "clockwork", Now: zero, Context: json.RawMessage(`{"rings": 0}`),
		Events: []lifecycle.SimulatedEvent{pass("10m"), pass("35m"), {Event: "tick"}, pass("1d")},
	}
	r, err := s.Simulate(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"every:20m 20m0s", "every:20m 40m0s", "tick 45m0s", "every:20m 1h0m0s", "every:20m 1h20m0s", "every:20m 1h40m0s", "every:20m 2h0m0s", "ttl 2h0m0s",
	}
	if got := times(r); !slices.Equal(got, want) {
		t.Errorf("steps %q, want %q", got, want)
	}
	if last := r.Steps[len(r.Steps)-1]; last.Kind != "expired" || last.Index != 3 || r.State != "GONE" || r.Status != fsm.Expired {
		t.Errorf("it ends with %+v, in %s", last, r.State)
	}

	// From a state on, time counts from its entry; a month ends with February.
	c.State, c.Events = "HOLD", []lifecycle.SimulatedEvent{pass("1mo"), pass("1h")}
	if r, err = s.Simulate(t.Context(), c); err != nil || len(r.Steps) != 1 || r.Steps[0].Event != "ttl" {
		t.Errorf("%+v, %v", r, err)
	}
	endless := strings.NewReplacer(`"ttl": {"after": "2h", "target": "GONE"}, `, "", `, "GONE": {"type": "final", "outcome": "expired"}`, "")
	c.Definition, c.Workflow = json.RawMessage(endless.Replace(clockwork)), ""
	if r, err = s.Simulate(t.Context(), c); err != nil || !slices.Equal(times(r), []string{"after:1mo 672h0m0s"}) {
		t.Errorf("%q, %v", times(r), err)
	}

	// What resumes goes on with what was left of its timers.
	c.State, c.Context = "", json.RawMessage(`{"rings": 0, "late": true}`)
	c.Events = []lifecycle.SimulatedEvent{pass("50m"), {Event: "hold"}, pass("5d"), {Event: "go"}, pass("40m")}
	want = []string{"every:20m 20m0s", "every:20m 40m0s", "hold 50m0s", "go 120h50m0s", "every:20m 121h0m0s", "every:20m 121h20m0s", "after:1h30m@WORK 121h30m0s"}
	if r, err = s.Simulate(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if got := times(r); !slices.Equal(got, want) {
		t.Errorf("steps %q, want %q", got, want)
	}
}

// A timer that fails makes a refused step, and time goes on.
func TestSimulateAFailingTimer(t *testing.T) {
	t.Parallel()
	s, _ := fsmtest.New(t, fsm.Config{})
	r, err := s.Simulate(t.Context(), lifecycle.Simulation{
		Definition: json.RawMessage(`{"name": "broken", "initial": "A", "states": {
			"A": {"after": {"1m": {"target": "B", "assign": {"x": {"$path": "$.context.none + 1"}}}}, "on": {"go": "B"}},
			"B": {"type": "final"}}}`),
		Events: []lifecycle.SimulatedEvent{{After: definition.Duration{Exact: time.Hour}}, {Event: "go"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"0 timeout after:1m: guard error, A to A, active 1 {}", "1 transition go: applied, A to B, completed 2 {}"}
	if got := outline(r); !slices.Equal(got, want) {
		t.Errorf("steps %q, want %q", got, want)
	}
	if d := r.Steps[1].At.Sub(r.Steps[0].At); d != 59*time.Minute {
		t.Errorf("the second step is %s after the first", d)
	}
}

func TestSimulateTooManyTimers(t *testing.T) {
	t.Parallel()
	s, _ := fsmtest.New(t, fsm.Config{})
	s.LimitTimes(bounded.Limit, bounded.Limit)
	c := lifecycle.Simulation{
		Definition: json.RawMessage(`{"name": "often", "initial": "A", "states": {
			"A": {"every": {"in": "1s"}, "on": {"end": "B"}}, "B": {"type": "final"}}}`),
		Events: []lifecycle.SimulatedEvent{{Event: "none"}, {After: definition.Duration{Exact: time.Hour}}},
	}
	_, err := s.Simulate(t.Context(), c)
	if e := fsmtest.Refusal(t, err, fsm.TooLarge); !strings.Contains(e.Message, "by event 2 of 2") {
		t.Error(e.Message)
	}
}

// The creation is refused if it breaks an invariant, and an event that would break it is refused as a step.
func TestSimulateInvariant(t *testing.T) {
	t.Parallel()
	s, _ := fsmtest.New(t, fsm.Config{})
	c := lifecycle.Simulation{
		Definition: json.RawMessage(`{"name": "account", "initial": "OPEN", "invariant": "$.context.balance >= 0", "states": {
			"OPEN": {"on": {"draw": {"assign": {"balance": {"$path": "$.context.balance - $.payload.amount"}}}, "close": "CLOSED"}},
			"CLOSED": {"type": "final"}}}`),
		Context: json.RawMessage(`{"balance": -1}`),
		Events:  []lifecycle.SimulatedEvent{{Event: "draw", Payload: json.RawMessage(`{"amount": 6}`)}},
	}
	_, err := s.Simulate(t.Context(), c)
	if e := fsmtest.Refusal(t, err, fsm.GuardRejected); !slices.Equal(e.Refusal.Guards, []string{"$.context.balance >= 0"}) {
		t.Errorf("%+v", e.Refusal)
	}
	c.Context = json.RawMessage(`{"balance": 5}`)
	r, err := s.Simulate(t.Context(), c)
	if err != nil || r.Steps[0].Err == nil || r.Steps[0].Err.Kind != fsm.GuardRejected || r.Version != 1 {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestSimulateFromAState(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, fsmtest.FlightBooking)
	before := fsmtest.Counts(t, pool)
	r, err := s.Simulate(t.Context(), lifecycle.Simulation{
		Workflow: "flight-booking", State: "RESERVED", Context: json.RawMessage(`{"price": 5}`),
		Events: []lifecycle.SimulatedEvent{
			{Event: "reserve"},
			{Event: "pay", Payload: json.RawMessage(`{"amount": 4}`)},
			{Event: "fly"},
			{Event: "pay", Payload: json.RawMessage(`{"amount": 5, "payment_ref": "p"}`)},
			{Event: "cancel"},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, step := range r.Steps {
		var err error
		if step.Err != nil {
			err = step.Err
		}
		got = append(got, fmt.Sprintf("%s: %s to %s: %s", step.Event, step.From, step.To, kindOf(err)))
	}
	want := []string{
		"reserve: RESERVED to RESERVED: " + nameOf(fsm.TransitionNotAllowed), "pay: RESERVED to PAYMENT_MISMATCH: applied",
		"fly: PAYMENT_MISMATCH to PAYMENT_MISMATCH: " + nameOf(fsm.UnknownEvent), "pay: PAYMENT_MISMATCH to PAID: applied",
		"cancel: PAID to PAID: " + nameOf(fsm.TransitionNotAllowed),
	}
	if !slices.Equal(got, want) {
		t.Errorf("steps:\n%v\nwant:\n%v", got, want)
	}
	fsmtest.SameJSON(t, r.Context, `{"price": 5, "offered": 4, "payment_ref": "p"}`)
	if r.State != "PAID" {
		t.Errorf("it ends in %s", r.State)
	}
	if after := fsmtest.Counts(t, pool); after != before {
		t.Errorf("rows: %s, before: %s", after, before)
	}
}

// The members of a state and the kinds of steps are good names for events, too.
func TestEventsNamedAsMembers(t *testing.T) {
	t.Parallel()
	names := []string{
		"after", "always", "compensate", "compensated", "created", "entry", "error", "every", "exit", "forced", "initial", "invoke", "migrated", "result",
		"resume", "states", "timeout", "transition", "unknown",
	}
	var events []string
	simulation := lifecycle.Simulation{Workflow: "named"}
	for _, name := range names {
		events = append(events, fmt.Sprintf(`%q: {"assign": {"last": "$.event", "n": "$.payload.n"}}`, name))
		simulation.Events = append(simulation.Events, lifecycle.SimulatedEvent{Event: name, Payload: json.RawMessage(`{"n": 1}`)})
	}
	s, _ := fsmtest.New(t, fsm.Config{}, `{"name": "named", "initial": "A", "states": {
		"A": {"on": {"end": "END", `+strings.Join(events, ", ")+`}}, "END": {"type": "final"}}}`)
	i := fsmtest.Create(t, s, "named", "{}")
	simulated, err := s.Simulate(t.Context(), simulation)
	if err != nil || len(simulated.Steps) != len(names) {
		t.Fatalf("%+v, %v", simulated, err)
	}
	for n, step := range simulated.Steps {
		want := fmt.Sprintf(`{"last": %q, "n": 1}`, names[n])
		if step.Err != nil || step.Kind != "transition" {
			t.Errorf("%s makes %+v", names[n], step)
			continue
		}
		fsmtest.SameJSON(t, step.Context, want)
		fsmtest.SameJSON(t, fsmtest.Fire(t, s, i.ID, names[n], `{"n": 1}`).Context, want)
	}
}

func TestSimulateRefuses(t *testing.T) {
	t.Parallel()
	s, _ := fsmtest.New(t, fsm.Config{}, fsmtest.FlightBooking)
	valid := lifecycle.Simulation{Workflow: "flight-booking", Context: json.RawMessage(`{"flight_id": "x", "price": 1}`)}
	for name, c := range map[string]struct {
		change func(*lifecycle.Simulation)
		kind   fsm.Kind
	}{
		"workflow":                    {func(s *lifecycle.Simulation) { s.Workflow = "none" }, fsm.WorkflowNotFound},
		"version":                     {func(s *lifecycle.Simulation) { s.Version = 2 }, fsm.WorkflowNotFound},
		"state":                       {func(s *lifecycle.Simulation) { s.State = "NOWHERE" }, fsm.Malformed},
		"context":                     {func(s *lifecycle.Simulation) { s.Context = json.RawMessage(`{"price": 1}`) }, fsm.InvalidContext},
		"no object":                   {func(s *lifecycle.Simulation) { s.Context = json.RawMessage(`[]`) }, fsm.Malformed},
		"a definition and a workflow": {func(s *lifecycle.Simulation) { s.Definition = json.RawMessage(clockwork) }, fsm.Malformed},
		"neither":                     {func(s *lifecycle.Simulation) { s.Workflow = "" }, fsm.Malformed},
		"an event and time": {func(s *lifecycle.Simulation) {
			s.Events = []lifecycle.SimulatedEvent{{Event: "reserve", After: definition.Duration{Months: 1}}}
		}, fsm.Malformed},
		"time with a payload": {func(s *lifecycle.Simulation) {
			s.Events = []lifecycle.SimulatedEvent{{Payload: json.RawMessage(`{}`), After: definition.Duration{Months: 1}}}
		}, fsm.Malformed},
		"before the year 1": {func(s *lifecycle.Simulation) { s.Now = time.Date(0, 12, 31, 23, 0, 0, 0, time.UTC) }, fsm.Malformed},
		"after the year 9999": {func(s *lifecycle.Simulation) {
			s.Now = time.Date(9999, 12, 31, 23, 30, 0, 0, time.FixedZone("", -3600))
		}, fsm.Malformed},
		"time beyond the year 9999": {func(s *lifecycle.Simulation) {
			s.Now = time.Date(9999, 12, 31, 23, 0, 0, 0, time.UTC)
			s.Events = []lifecycle.SimulatedEvent{{After: definition.Duration{Exact: time.Hour}}}
		}, fsm.Malformed},
		"events": {func(s *lifecycle.Simulation) { s.Events = make([]lifecycle.SimulatedEvent, lifecycle.MaxSimulated+1) }, fsm.Malformed},
	} {
		simulation := valid
		c.change(&simulation)
		if _, err := s.Simulate(t.Context(), simulation); kindOf(err) != nameOf(c.kind) {
			t.Errorf("%s: %v, want %s", name, err, c.kind)
		}
	}
}

// growing keeps all that it is given.
const growing = `{"name": "growing", "initial": "OPEN", "states": {
	"OPEN": {"on": {"grow": {"target": "OPEN", "assign": {"*": true, "trusted": true}}, "end": {"target": "ENDED"}}},
	"ENDED": {"type": "final", "outcome": "completed"}}}`

// Small events after a large one have the whole context each. The result is refused before it is large.
func TestSimulationIsBoundedInBytes(t *testing.T) {
	t.Parallel()
	s, _ := fsmtest.New(t, fsm.Config{}, growing)
	c := lifecycle.Simulation{Workflow: "growing"}
	for range 1000 {
		c.Events = append(c.Events, lifecycle.SimulatedEvent{Event: "grow"})
	}
	c.Events[0].Payload = json.RawMessage(`{"text": "` + strings.Repeat("x", 60_000) + `"}`)
	_, err := s.Simulate(t.Context(), c)
	e := fsmtest.Refusal(t, err, fsm.TooLarge)
	if !strings.Contains(e.Message, "at event 70 of 1000") {
		t.Error(e.Message)
	}
	c.Events = c.Events[:60]
	if r, err := s.Simulate(t.Context(), c); err != nil || len(r.Steps) != 60 {
		t.Errorf("%d steps, %v", len(r.Steps), err)
	}
}

// A simulation ends when its time is up, and when its caller leaves, and its statement with it.
func TestSimulationIsBoundedInTime(t *testing.T) {
	t.Parallel()
	_, pool := fsmtest.New(t, fsm.Config{}, fsmtest.Counter)
	bounded.Exec(t, pool, `create or replace function pawl_private.knows_event(p_workflow text, p_workflow_version integer, p_event text) returns boolean
		language plpgsql stable as 'begin perform pg_sleep(600); return false; end'`)
	const asleep = "select count(*) = $1 from pg_stat_activity where datname = current_database() and wait_event = 'PgSleep'"
	c := lifecycle.Simulation{Workflow: "counter", Context: json.RawMessage(`{"x": 0}`), Events: []lifecycle.SimulatedEvent{{Event: "nothing"}, {Event: "more"}}}
	slow := fsmtest.On(t, pool, fsm.Config{CallTimeout: bounded.Limit})
	slow.LimitTimes(bounded.Limit, 500*time.Millisecond)
	_, err := slow.Simulate(t.Context(), c)
	if e := fsmtest.Refusal(t, err, fsm.Unavailable); !strings.Contains(e.Message, "event 1 of 2") {
		t.Error(e.Message)
	}
	bounded.UntilSQL(t, pool, asleep, 0)

	slow.LimitTimes(bounded.Limit, bounded.Limit)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		_, err := slow.Simulate(ctx, c)
		ended <- err
	}()
	bounded.UntilSQL(t, pool, asleep, 1)
	cancel()
	fsmtest.Refused(t, bounded.Receive(t, "the simulation", ended), fsm.Unavailable)
	bounded.UntilSQL(t, pool, asleep, 0)
}
