package lifecycle_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"go.yaml.in/yaml/v4"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/definition"
	"github.com/pawl-fsm/pawl/fsm/fsmtest"
	"github.com/pawl-fsm/pawl/fsm/lifecycle"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

type subject struct{ Subject string }

// example is what a file of examples/ has beside its definition.
type example struct {
	Name  string
	Tests []struct {
		Name    string
		Context json.RawMessage
		Now     time.Time
		Actor   subject
		Refused string
		Steps   []struct {
			Event, After string
			Payload      json.RawMessage
			Actor        subject
		}
	}
}

// What a simulation says of the examples' scenarios happens to instances: events at their times, and each timer when
// it is due, with the same contexts.
func TestScenariosAgreeWithTheEngine(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("../../examples/*/workflow.yaml")
	if err != nil || len(files) == 0 {
		t.Fatal("there are no examples", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(filepath.Dir(file)), func(t *testing.T) {
			t.Parallel()
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var document map[string]any
			var e example
			if err := yaml.Unmarshal(text, &document); err != nil {
				t.Fatal(err)
			}
			if text, err = json.Marshal(document); err != nil {
				t.Fatal(err)
			}
			if err := json.Unmarshal(text, &e); err != nil {
				t.Fatal(err)
			}
			s, pool := fsmtest.New(t, fsm.Config{}, string(text))
			for _, scenario := range e.Tests {
				if scenario.Refused != "" {
					continue
				}
				c := lifecycle.Simulation{Workflow: e.Name, Context: scenario.Context, Now: scenario.Now, Actor: scenario.Actor.Subject}
				if c.Now.IsZero() {
					c.Now = fsmtest.Noon
				}
				for _, step := range scenario.Steps {
					event := lifecycle.SimulatedEvent{Event: step.Event, Payload: step.Payload, Actor: step.Actor.Subject}
					if step.After != "" {
						if event.After, err = definition.ParseCalendarDuration(step.After); err != nil {
							t.Fatal(err)
						}
					}
					c.Events = append(c.Events, event)
				}
				t.Log(scenario.Name)
				bounded.Exec(t, pool, "truncate pawl.timer") // Of the scenarios before.
				carryOut(t, s, pool, c, func(at time.Time) {
					dbtest.SetClock(t, pool, at)
					fsmtest.FireTimers(t, pool)
				})
			}
		})
	}
}

// carryOut simulates, does the same to an instance, and compares. reach moves the clock to a time, and fires what is due.
func carryOut(t *testing.T, s *fsmtest.Service, pool *pgxpool.Pool, c lifecycle.Simulation, reach func(time.Time)) {
	t.Helper()
	simulated, err := s.Simulate(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	reach(c.Now)
	r, err := s.Create(t.Context(), fsm.CreateCommand{Workflow: c.Workflow, Context: c.Context, Origin: fsm.Origin{Actor: c.Actor}})
	if err != nil {
		t.Fatal(err)
	}
	id := r.Instance.ID
	same := func(what string, want lifecycle.SimulatedInstance) {
		t.Helper()
		i := fsmtest.Get(t, s, id)
		if i.State != want.State || i.Status != want.Status || i.Version != want.Version {
			t.Fatalf("%s: the instance is in %s (%s), version %d; simulated in %s (%s), version %d",
				what, i.State, i.Status, i.Version, want.State, want.Status, want.Version)
		}
		fsmtest.SameJSON(t, i.Context, string(want.Context))
	}
	same("the creation", simulated.Start)
	for n, step := range simulated.Steps {
		reach(step.At)
		switch {
		case step.Kind == "result" || step.Kind == "compensated":
			// What became of a task, as its settling fires it.
			code := bounded.Value[string](t, pool, `
				select o.code
				from pawl.fire(
					p_tenants => '{default}', p_ids => array[$1::uuid], p_events => array[$2], p_payloads => array[coalesce($3::jsonb, '{}')],
					p_keys => '{""}', p_expected => '{*}', p_checked => '{*}', p_actors => '{task:test}', p_reasons => '{""}',
					p_correlation_ids => '{""}', p_traceparents => '{""}', p_verified => true, p_kind => $4) o`,
				id, step.Event, c.Events[step.Index].Payload, step.Kind)
			if (code == "applied") != (step.Err == nil) {
				t.Fatalf("%s: %s, simulated: %v", step.Event, code, step.Err)
			}
		case step.Kind == "transition":
			event := c.Events[step.Index]
			if event.Actor == "" {
				event.Actor = c.Actor
			}
			_, err := s.Fire(t.Context(), fsm.FireCommand{
				ID: id, Event: event.Event, Payload: event.Payload, Expect: fsm.ExpectAny(), Origin: fsm.Origin{Actor: event.Actor},
			})
			var want error
			if step.Err != nil {
				want = step.Err
			}
			if kindOf(err) != kindOf(want) {
				t.Fatalf("%s: %v, simulated: %v", step.Event, err, want)
			}
		case n+1 < len(simulated.Steps) && simulated.Steps[n+1].At.Equal(step.At) && simulated.Steps[n+1].Kind != "transition":
			continue // Both timers were fired.
		}
		same(step.Event, lifecycle.SimulatedInstance{State: step.To, Status: step.Status, Version: step.Version, Context: step.Context})
	}
}
