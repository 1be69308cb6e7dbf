package fsm_test

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/fsmtest"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// position is what a dry run, a simulation and firing must agree on.
type position struct {
	State   string
	Status  fsm.Status
	Version int64
	Context string
	Events  []string
	Next    string
}

func positionOf(t *testing.T, state string, status fsm.Status, version int64, context json.RawMessage, events []string, next *fsm.NextTimeout) position {
	t.Helper()
	text, err := json.Marshal(fsmtest.Decoded(t, string(context)))
	if err != nil {
		t.Fatal(err)
	}
	p := position{state, status, version, string(text), events, "none"}
	if next != nil {
		p.Next = next.Event + " at " + next.DueAt.UTC().Format(time.RFC3339Nano)
	}
	return p
}

func simulatedPosition(t *testing.T, at fsm.Position) position {
	t.Helper()
	return positionOf(t, at.State, at.Status, at.Version, at.Context, at.AcceptedEvents, at.NextTimeout)
}

func instancePosition(t *testing.T, i fsm.Instance) position {
	t.Helper()
	return positionOf(t, i.State, i.Status, i.Version, i.Context, i.AcceptedEvents, i.NextTimeout)
}

// A dry run, a simulation and firing come to the same, for events and for timers, also if they are late.
func TestSimulationAgreesWithFiring(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{})
	m := s.Simulator()
	machines := 50
	if testing.Short() {
		machines = 20
	}
	seen := map[string]int{}
	for n := range machines {
		c := charts(true).Example(n)
		name := fmt.Sprint("timed-", n)
		bounded.Exec(t, pool, "select pawl.register_workflow($1)", c.json(name))
		bounded.Exec(t, pool, "delete from pawl.timer") // Those of the charts before are not waited for.
		now := fsmtest.Noon
		dbtest.SetClock(t, pool, now)
		start := json.RawMessage(`{"n":1,"x":0}`)
		at, simulatedErr := m.Start(t.Context(), fsm.Position{Workflow: name, Context: start, Now: now}, "")
		created, err := s.Create(t.Context(), fsm.CreateCommand{Workflow: name, Context: start})
		wantAgreement := func(what string, fired fsm.Instance) {
			t.Helper()
			if diff := cmp.Diff(simulatedPosition(t, at), instancePosition(t, fired)); diff != "" {
				t.Fatalf("chart %d: %s at %s (-simulated +fired):\n%s\n%s", n, what, now, diff, c.json(name))
			}
		}
		if kindOf(simulatedErr) != kindOf(err) {
			t.Fatalf("chart %d: a simulation is created with %v, an instance with %v\n%s", n, simulatedErr, err, c.json(name))
		}
		if err != nil {
			continue
		}
		wantAgreement("the creation", created.Instance)
		id := created.Instance.ID
		// fireTimers fires what is due now, after the simulation has made steps steps at this time.
		fireTimers := func(what string, steps int) {
			t.Helper()
			dbtest.SetClock(t, pool, now)
			fired := fsmtest.FireTimers(t, pool)
			timers := fsmtest.Get(t, s, id)
			got, want := instancePosition(t, timers), simulatedPosition(t, at)
			past := func(n *fsm.NextTimeout) bool { return n != nil && !n.DueAt.After(now) }
			if past(at.NextTimeout) || past(timers.NextTimeout) {
				got.Next, want.Next = "", "" // It was refused, or fails. Only the instance shows what comes of that.
			}
			if diff := cmp.Diff(want, got); diff != "" || fired != steps {
				t.Fatalf("chart %d: %s at %s: %d steps by timers, %d simulated (-simulated +fired):\n%s\n%s", n, what, now, fired, steps, diff, c.json(name))
			}
		}
	actions:
		for k := range 16 {
			if at.Status != fsm.Active {
				break
			}
			seed := k*31 + n*7
			passes := []time.Duration{0, 20 * time.Second, 2 * time.Minute, 5 * time.Minute}[seed%4]
			until := now.Add(passes)
			if k%3 == 2 {
				// The timers are late for the event that follows.
				now, at.Now = until, until
				dbtest.SetClock(t, pool, now)
				seen["late"]++
			} else {
				// bounded: time goes on with each round, or a hundred steps end it
				for {
					next, event, err := m.Pass(t.Context(), at, until)
					if err != nil {
						seen["failure of a timer"]++
						now = next.Now
						fireTimers("failing "+event, 0)
						break actions
					}
					if event == "" {
						at, now = next, until
						fireTimers("nothing", 0)
						break
					}
					now = next.Now
					steps, last := 0, ""
					// bounded: a hundred steps at one time end it
					for event != "" && err == nil {
						at, last = next, event
						steps++
						seen[event[:min(5, len(event))]]++
						next, event, err = m.Pass(t.Context(), at, now)
					}
					fireTimers(last, steps)
					if err != nil || at.Status != fsm.Active {
						break actions
					}
					at = next
				}
			}
			payload := map[string]any{"x": seed % 3}
			payload["in"] = []any{nil, "30s", 20, "PT2M", 0, -5, "1h", 45.5}[seed%8]
			payload["at"] = []any{nil, fsmtest.Noon.Add(3 * time.Minute), fsmtest.Noon.Add(time.Hour), now.Add(time.Minute), now}[seed%5]
			if seed%5 == 0 {
				delete(payload, "in")
			}
			text, err := json.Marshal(payload)
			if err != nil {
				t.Fatal(err)
			}
			event := chartEvents[(k*7+n)%len(chartEvents)]
			command := fsm.FireCommand{ID: id, Event: event, Payload: text}
			next, simulatedErr := m.Fire(t.Context(), at, event, text, "")
			dry, dryErr := s.Preview(t.Context(), command)
			fired, err := s.Fire(t.Context(), command)
			if kindOf(simulatedErr) != kindOf(err) || kindOf(dryErr) != kindOf(err) {
				t.Fatalf("chart %d: %s at %s: firing comes to %v, a dry run to %v, and a simulation to %v\n%s", n, event, now, err, dryErr, simulatedErr, c.json(name))
			}
			if err != nil {
				seen["refusal"]++
				continue
			}
			seen["step"]++
			at = next
			wantAgreement(event, fired.Instance)
			if diff := cmp.Diff(dry, fired, cmpopts.IgnoreFields(fsm.Result{}, "Before")); diff != "" {
				t.Fatalf("chart %d: %s at %s (-dry run +fired):\n%s\n%s", n, event, now, diff, c.json(name))
			}
		}
	}
	for _, what := range []string{"late", "after", "every", "ttl", "refusal", "step"} {
		if seen[what] == 0 {
			t.Errorf("%s: never, so this shows little", what)
		}
	}
}

// kindOf is the kind of an error of the service; none if there is no error.
func kindOf(err error) fsm.Kind {
	if err == nil {
		return 0
	}
	return fsm.AsError(err).Kind
}
