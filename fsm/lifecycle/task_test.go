package lifecycle_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/definition"
	"github.com/pawl-fsm/pawl/fsm/fsmtest"
	"github.com/pawl-fsm/pawl/fsm/lifecycle"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// What the reader makes of tasks is what the engine stores: their transitions, and a row for each task and compensation.
func TestTasksAreStored(t *testing.T) {
	t.Parallel()
	_, pool := fsmtest.New(t, fsm.Config{}, fsmtest.Trip)
	model, err := definition.Parse([]byte(fsmtest.Trip), "", definition.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	flat := model.Flat()
	for _, state := range slices.Sorted(maps.Keys(flat)) {
		for _, e := range flat[state].Events {
			for i, c := range e.Candidates {
				want = append(want, fmt.Sprintf("%s %s %d %s", state, e.Name, i+1, c.Target))
			}
		}
	}
	slices.Sort(want)
	// The engine also settles tasks anew for operators, and steps when something is undone.
	got := bounded.Value[[]string](t, pool, `select array_agg(format('%s %s %s %s', source, event, position, target))
		from pawl.workflow_transition where workflow = 'trip' and event !~ '@|^compensated:'`)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("the engine has %q\nwant %q", got, want)
	}
	tasks := bounded.Value[[]string](t, pool, `select array_agg(concat_ws(' ', t.state, t.name, t.connection, t.topic, t.deadline, 'undone by ' || u.name || ' of ' || coalesce(u.connection, u.topic)) order by t.position)
		from pawl.workflow_task t
		left join pawl.workflow_task u on u.workflow = t.workflow and u.workflow_version = t.workflow_version and u.position = t.compensation
		where t.workflow = 'trip' and t.state is not null`)
	if want := []string{"HOTEL hotel hotel 00:10:00 undone by hotel of hotel", "HOTEL letter letters 01:00:00"}; !slices.Equal(tasks, want) {
		t.Errorf("the engine has the tasks %q, want %q", tasks, want)
	}
}

// Paths in requests are checked by PostgreSQL, too.
func TestPathsOfTasksAreChecked(t *testing.T) {
	t.Parallel()
	s, _ := fsmtest.New(t, fsm.Config{})
	text := strings.NewReplacer(
		`"path": "/bookings"}`, `"path": "/{$.context.id}/{$.context.a[}", "query": {"a": "$.context.b["}}`,
		`"/bookings/{$.result.body.id}"`, `"/{$.result.body.id..b}"`,
	).Replace(fsmtest.Trip)
	_, err := s.Register(t.Context(), "", []byte(text), "tester", false)
	const hotel = "/states/HOTEL/invoke/hotel"
	want := []string{hotel + "/compensate/http/path", hotel + "/http/path", hotel + "/http/query/a"}
	if got := fsmtest.Pointers(fsmtest.Refusal(t, err, fsm.InvalidDefinition).Faults); !slices.Equal(got, want) {
		t.Errorf("faults at %q, want %q", got, want)
	}
}

func TestSimulateTasks(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, fsmtest.Trip)
	simulate := func(events ...lifecycle.SimulatedEvent) (lifecycle.Simulated, error) {
		return s.Simulate(t.Context(), lifecycle.Simulation{Workflow: "trip", Events: events})
	}
	r, err := simulate(
		lifecycle.SimulatedEvent{Event: "book"},
		lifecycle.SimulatedEvent{Event: "done:hotel", Payload: json.RawMessage(`{"body": {"full": false}}`)},
		lifecycle.SimulatedEvent{Event: "done:letter"},
		lifecycle.SimulatedEvent{Event: "booked"},
		lifecycle.SimulatedEvent{Event: "revoke"},
		lifecycle.SimulatedEvent{Event: "compensated:booked"},
		lifecycle.SimulatedEvent{Event: "error:compensate", Payload: json.RawMessage(`{"error": "no"}`)},
		lifecycle.SimulatedEvent{Event: "again"},
		lifecycle.SimulatedEvent{Event: "done:compensate"},
	)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, step := range r.Steps {
		text := fmt.Sprintf("%s %s: %s", step.Kind, step.Event, step.To)
		if step.Err != nil {
			text += ", " + step.Err.Kind.Error()
		}
		got = append(got, text)
	}
	want := []string{
		"transition book: HOTEL", "result done:hotel: FLIGHT", "result done:letter: FLIGHT, " + fsm.TransitionNotAllowed.Error(), "transition booked: DONE",
		"transition revoke: UNDOING", "compensated compensated:booked: UNDOING", "result error:compensate: STUCK", "transition again: ALL", "result done:compensate: CANCELLED",
	}
	if !slices.Equal(got, want) {
		t.Errorf("steps %q, want %q", got, want)
	}
	if n := bounded.Value[int](t, pool, "select count(*) from pawl.task"); n > 0 {
		t.Errorf("a simulation began %d tasks", n)
	}

	_, err = simulate(lifecycle.SimulatedEvent{Event: "book"}, lifecycle.SimulatedEvent{Event: "done:hotel", Payload: json.RawMessage(`{"full": true}`)})
	if got := fsmtest.Pointers(fsmtest.Refusal(t, err, fsm.Malformed).Faults); !slices.Equal(got, []string{"/events/1/payload/full"}) {
		t.Errorf("a member that no result has is refused at %q", got)
	}

	// A caller cannot fire what becomes of a task.
	i := fsmtest.Create(t, s, "trip", `{}`)
	fsmtest.Fire(t, s, i.ID, "book", `{}`)
	for _, event := range []string{"done:hotel", "compensated:hotel"} {
		if _, err := s.Fire(t.Context(), fsm.FireCommand{ID: i.ID, Event: event}); !errors.Is(err, fsm.UnknownEvent) {
			t.Errorf("a caller that fires %s gets %v", event, err)
		}
	}
}

// What became of tasks is replayed by back-tests.
func TestBacktestTasks(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, fsmtest.Trip)
	i := fsmtest.Create(t, s, "trip", `{}`)
	fsmtest.Fire(t, s, i.ID, "book", `{}`)
	bounded.Exec(t, pool, `select pawl.complete_work(p_id => c.id, p_lease => c.lease, p_result => '{}') from pawl.claim_work('letters', 'w') c`)
	fsmtest.Fire(t, s, i.ID, "full", `{}`)
	bounded.Exec(t, pool, "select pawl.task_sweep(100)")
	if got := fsmtest.Get(t, s, i.ID).State; got != "CANCELLED" {
		t.Fatalf("the instance is in %s", got)
	}
	for text, want := range map[string]struct {
		same  int
		event string
	}{
		fsmtest.Trip: {1, ""},
		strings.Replace(fsmtest.Trip, `"deadline": "1h", "done": "FLIGHT"`, `"deadline": "1h", "done": "UNDOING"`, 1): {0, "done:letter"},
		strings.Replace(fsmtest.Trip, `"compensate": {}, "done": "CANCELLED"`, `"compensate": {}, "done": "OVER"`, 1): {0, "done:compensate"},
	} {
		b, err := s.Backtest(t.Context(), lifecycle.BacktestCommand{Workflow: "trip", Definition: json.RawMessage(text)})
		if err != nil {
			t.Fatal(err)
		}
		if b.Instances != 1 || b.Same != want.same {
			t.Errorf("%d of %d instances go the same way, want %d of 1", b.Same, b.Instances, want.same)
		}
		for _, d := range b.Differences {
			if d.Event == nil || *d.Event != want.event {
				t.Errorf("the difference is %+v, want one at %s", d, want.event)
			}
		}
	}
}

// An instance whose task may have been sent stays on its version; one whose task was not sent begins the new version's.
func TestMigrateWithTasks(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, strings.Replace(fsmtest.Trip, `"hotel": {`, `"room": {`, 1))
	sent, pending := fsmtest.Create(t, s, "trip", `{}`).ID, fsmtest.Create(t, s, "trip", `{}`).ID
	fsmtest.Fire(t, s, sent, "book", `{}`)
	if n := bounded.Value[int](t, pool, "select count(*) from pawl.claim_work('letters', 'w')"); n != 1 {
		t.Fatalf("%d tasks are claimed, want 1", n)
	}
	fsmtest.Fire(t, s, pending, "book", `{}`)
	fsmtest.Register(t, s, fsmtest.Trip)
	m, err := s.Migrate(t.Context(), lifecycle.MigrateCommand{Workflow: "trip", From: 1, To: 2})
	if err != nil {
		t.Fatal(err)
	}
	if want := []lifecycle.LeftInstance{{ID: sent, State: "HOTEL", Reason: "task-open"}}; m.Migrated != 1 || !slices.Equal(m.Left, want) {
		t.Errorf("%d are migrated, and %v left, want %v", m.Migrated, m.Left, want)
	}
	tasks := bounded.Value[[]string](t, pool, "select array_agg(t.name || ' ' || t.status order by t.name, t.status) from pawl.task t where t.instance_id = $1", pending)
	if want := []string{"hotel pending", "letter cancelled", "letter pending", "room cancelled"}; !slices.Equal(tasks, want) {
		t.Errorf("the tasks are %q, want %q", tasks, want)
	}
}
