package lifecycle

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/definition"
)

// Bounds of a simulation.
const (
	// MaxSimulated is how many events a simulation may have.
	MaxSimulated = 1000
	// MaxSimulatedTimeouts is how many steps timers and the lifetime may make in a simulation.
	MaxSimulatedTimeouts = 1000
	// MaxSimulatedBytes bounds the texts of a Simulated: the contexts after its events, and why events were refused.
	MaxSimulatedBytes = 4 << 20
	// SimulationTime is how long a simulation may take.
	SimulationTime = 10 * time.Second

	maxYear = 9999 // RFC 3339 writes no later one.
)

// A Simulation asks what events and time would do to an instance. No such instance has to exist.
type Simulation struct {
	// Workflow is the name of one that is registered, and Definition, in JSON, one that need not be. One of them must be given,
	// and not both.
	Workflow   string
	Definition json.RawMessage
	// Version is that of the registered workflow. Default: the latest one.
	Version int
	// State is the path of the state to begin in, as if it was just entered. If it is empty, the simulation begins with
	// a creation, for which the context must fit its schema.
	State string
	// Context is a JSON object, the context to begin with; nil means an empty one.
	Context json.RawMessage
	// Now is when the simulation begins. Default: the present time.
	Now time.Time
	// Actor creates the instance and fires the events that name nobody else. Default "anonymous".
	Actor string
	// Events are decided in their order, at most MaxSimulated.
	Events []SimulatedEvent
}

// A SimulatedEvent is one event of a Simulation, or time that passes.
type SimulatedEvent struct {
	// Event is the name of the event. If it is empty, time passes. It may be what becomes of a task or of undoing, such as
	// "done:charge": a simulation carries no task out.
	Event string
	// Payload is a JSON object; nil means an empty one. That of a task's result may leave members out.
	Payload json.RawMessage
	// Actor fires the event. Default: the Simulation's.
	Actor string
	// After is how much time passes.
	After definition.Duration
}

// A SimulatedStep is what one event, timer or lifetime would do.
type SimulatedStep struct {
	// Index is the place in Events, from 0, of the event, or of the time in which the timer came due.
	Index int
	// Kind is "transition", "timeout", "expired", "result" or "compensated", and Event that of the step.
	Kind  string
	Event string
	// From is the state before, and To to Context are those after it.
	From, To string
	Status   fsm.Status
	Version  int64
	Context  json.RawMessage
	// At is when it would happen.
	At time.Time
	// Err says why the step was refused; nil if it was not. A refusal changes neither the state nor the context.
	Err *fsm.Error
}

// A SimulatedInstance is an instance as it would be.
type SimulatedInstance struct {
	State   string
	Status  fsm.Status
	Version int64
	Context json.RawMessage
}

// Simulated is the result of a Simulation.
type Simulated struct {
	// Start is the instance before the first event.
	Start SimulatedInstance
	// Steps has one for each event, and one for each timeout that time led to, in their order.
	Steps []SimulatedStep
	// SimulatedInstance is the instance at the end.
	SimulatedInstance
}

// Simulate says what a sequence of events and times would do, one after the other. It decides as Fire and the timers do, and
// writes nothing. After a refused event it goes on with the next one. Until time passes, all happens at one time.
//
// A timeout that its guards refuse makes no step, as ever. One that fails otherwise makes a refused step, and no other comes until
// the time has passed: its instance would be stuck.
//
// Kinds: Malformed, WorkflowNotFound, InvalidDefinition, InvalidContext; TooLarge if the context is, or if the result would have
// more than MaxSimulatedBytes or MaxSimulatedTimeouts; GuardRejected if the creation breaks an invariant, and GuardError if it
// fails in a guard or a value; Unavailable, also if it takes longer than SimulationTime. For an event that Fire would refuse, the
// error is in its step.
func (s *Service) Simulate(ctx context.Context, c Simulation) (Simulated, error) {
	switch {
	case len(c.Events) > MaxSimulated:
		return Simulated{}, fsm.MalformedAt("/events", fmt.Sprintf("must have at most %d events", MaxSimulated))
	case (c.Workflow == "") == (c.Definition == nil):
		return Simulated{}, fsm.MalformedAt("/definition", "either a definition or the name of a workflow must be given, and not both")
	}
	if year := c.Now.UTC().Year(); year < 1 || year > maxYear {
		return Simulated{}, fsm.MalformedAt("/now", fmt.Sprintf("must be within the years 1 to %d", maxYear))
	}
	c.Events = slices.Clone(c.Events)
	for n, e := range c.Events {
		payload, err := resultPayload(e)
		if err != nil {
			return Simulated{}, fsm.Within(fmt.Sprintf("/events/%d/payload", n), err)
		}
		c.Events[n].Payload = payload
		if passes := (e.After != definition.Duration{}); passes == (e.Event != "") || passes && (e.Payload != nil || e.Actor != "") {
			return Simulated{}, fsm.MalformedAt(fmt.Sprintf("/events/%d", n), "must have either event, with payload and actor, or after alone")
		}
	}
	leave, err := s.simulations.Enter(ctx)
	if err != nil {
		return Simulated{}, fsm.AsError(err)
	}
	defer leave()
	bounded, cancel := context.WithTimeout(ctx, s.simulationTime)
	defer cancel()
	r := simulation{service: s, Simulation: c}
	if err := r.run(bounded); err != nil {
		if e := fsm.AsError(err); bounded.Err() != nil && ctx.Err() == nil && (e.Kind == fsm.Unavailable || e.Kind == fsm.Internal) {
			err = fsm.Errorf(fsm.Unavailable, "the simulation takes longer than %s; in that time it came to %s: send fewer events, or try again",
				s.simulationTime, r.place())
		}
		return Simulated{}, err
	}
	return r.result, nil
}

// A simulation is a Simulation under way.
type simulation struct {
	Simulation
	service  *Service
	model    *definition.Definition
	at       fsm.Position
	index    int // Of the event that it has come to.
	timeouts int
	bytes    int
	result   Simulated
}

// place names the event that the simulation has come to.
func (r *simulation) place() string {
	if len(r.Events) == 0 {
		return "no event"
	}
	return fmt.Sprintf("event %d of %d", r.index+1, len(r.Events))
}

// run reads the definition, and goes through the events.
func (r *simulation) run(ctx context.Context) error {
	if r.Definition != nil {
		model, canonical, err := readDefinition(ctx, r.service.db.Try, "", r.Definition)
		if err != nil {
			return fsm.Within("/definition", err)
		}
		r.model = model
		return r.service.fsm.Propose(ctx, canonical, func(m fsm.Simulator, version int) error {
			return r.events(ctx, m, fsm.Position{Workflow: model.Name, WorkflowVersion: version})
		})
	}
	w, err := r.service.GetWorkflow(ctx, r.Workflow, r.Version)
	if err != nil {
		return err
	}
	if r.model, err = w.Model(); err != nil {
		return err
	}
	return r.events(ctx, r.service.fsm.Simulator(), fsm.Position{Workflow: w.Name, WorkflowVersion: w.Version})
}

// events goes through the events of a workflow.
func (r *simulation) events(ctx context.Context, m fsm.Simulator, of fsm.Position) (err error) {
	if err := r.check(ctx); err != nil {
		return err
	}
	of.State, of.Context, of.Now = r.State, r.Context, r.Now
	if r.at, err = m.Start(ctx, of, r.Actor); err != nil {
		return err
	}
	r.result = Simulated{Start: instanceAt(r.at), Steps: []SimulatedStep{}}
	for n, e := range r.Events {
		r.index = n
		if e.Event == "" {
			err = r.pass(ctx, m, e.After)
		} else {
			err = r.fire(ctx, m, e)
		}
		if err != nil {
			return err
		}
	}
	r.result.SimulatedInstance = instanceAt(r.at)
	return nil
}

func instanceAt(at fsm.Position) SimulatedInstance {
	return SimulatedInstance{State: at.State, Status: at.Status, Version: at.Version, Context: at.Context}
}

// check refuses a state or a context to begin with that no instance could have.
func (r *simulation) check(ctx context.Context) error {
	if r.Context == nil {
		r.Context = json.RawMessage(`{}`)
	}
	if err := definition.CheckObject(r.Context); err != nil {
		return fsm.Within("/context", err)
	}
	if r.State != "" {
		switch state, known := r.model.Flat()[r.State]; {
		case !known:
			return fsm.MalformedAt("/state", "the workflow has no such state")
		case state.Final && state.Outcome == "":
			return fsm.MalformedAt("/state", "no instance stays in this state, which the done of the state around it leaves at once")
		}
		return nil
	}
	schema, err := r.model.CheckedSchema()
	if err != nil {
		return fsm.AsError(err)
	}
	if schema == nil {
		return nil
	}
	_, err = fsm.CheckDocument(ctx, r.service.schemas, r.model.Bundled(schema), r.Context, "/context", fsm.InvalidContext)
	return err
}

// fire decides on an event.
func (r *simulation) fire(ctx context.Context, m fsm.Simulator, e SimulatedEvent) error {
	next, err := m.Fire(ctx, r.at, e.Event, e.Payload, cmp.Or(e.Actor, r.Actor))
	return r.add(e.kind(), e.Event, next, err)
}

// kind is that of the event's step, as in history.
func (e SimulatedEvent) kind() string {
	before, _, engine := strings.Cut(e.Event, ":")
	switch {
	case !engine: // A caller's event may have any of these names.
	case before == "done" || before == "error" || before == "unknown":
		return "result"
	case before == "compensated":
		return before
	}
	return "transition"
}

// resultPayload returns the payload of an event. That of what becomes of a task, or of undoing, has all of its members.
func resultPayload(e SimulatedEvent) (json.RawMessage, error) {
	if e.kind() == "transition" {
		return e.Payload, nil
	}
	_, name, _ := strings.Cut(e.Event, ":")
	payload := map[string]any{"task": nil, "name": name, "attempt": 1, "status": nil, "headers": map[string]any{}, "body": nil, "error": nil}
	if name == "compensate" {
		payload = map[string]any{"task": nil, "name": name, "error": nil, "steps": []any{}}
	}
	given := map[string]json.RawMessage{}
	if e.Payload != nil {
		if err := definition.CheckObject(e.Payload); err != nil {
			return nil, err
		}
		if err := json.Unmarshal(e.Payload, &given); err != nil {
			return nil, fsm.MalformedAt("", err.Error())
		}
	}
	for member, value := range given {
		if _, known := payload[member]; !known {
			return nil, fsm.MalformedAt(definition.Pointer(member), fmt.Sprintf(
				"the payload of %s has no such member; it has %s", e.Event, strings.Join(slices.Sorted(maps.Keys(payload)), ", ")))
		}
		payload[member] = value
	}
	return json.Marshal(payload)
}

// pass lets time pass.
func (r *simulation) pass(ctx context.Context, m fsm.Simulator, after definition.Duration) error {
	until := later(r.at.Now, after, r.model.Timezone)
	if until.Year() > maxYear {
		return fsm.MalformedAt(fmt.Sprintf("/events/%d/after", r.index), fmt.Sprintf("leads beyond the year %d", maxYear))
	}
	for {
		next, event, err := m.Pass(ctx, r.at, until)
		if event == "" && err == nil {
			r.at = next
			return nil
		}
		kind := "timeout"
		if event == "ttl" {
			kind = "expired"
		}
		if r.timeouts++; r.timeouts > MaxSimulatedTimeouts {
			return fsm.Errorf(fsm.TooLarge, "timers make more than %d steps by %s: let less time pass", MaxSimulatedTimeouts, r.place())
		}
		if failed := r.add(kind, event, next, err); failed != nil {
			return failed
		}
		if err != nil {
			r.at.Now = until
			return nil
		}
	}
}

// later returns the time that comes a duration after another, in a time zone, as the database counts it: a month after
// January 31 ends with February.
func later(t time.Time, d definition.Duration, zone string) time.Time {
	if d.Months > 0 {
		location, err := time.LoadLocation(zone)
		if err != nil {
			location = time.UTC
		}
		t = t.In(location)
		months := t.AddDate(0, 0, 1-t.Day()).AddDate(0, d.Months, 0)
		t = months.AddDate(0, 0, min(t.Day(), months.AddDate(0, 1, -1).Day())-1)
	}
	return t.Add(d.Exact).UTC()
}

// add adds a step that leads to a position, or is refused with an error. It returns the error if the simulation cannot
// go on.
func (r *simulation) add(kind, event string, next fsm.Position, err error) error {
	step := SimulatedStep{Index: r.index, Kind: kind, Event: event, From: r.at.State, At: next.Now}
	if err != nil {
		if step.Err = fsm.AsError(err); step.Err.Kind == fsm.Unavailable || step.Err.Kind == fsm.Internal {
			return err
		}
		r.bytes += sizeOf(step.Err)
	} else {
		r.at = next
	}
	step.To, step.Status, step.Version, step.Context = r.at.State, r.at.Status, r.at.Version, r.at.Context
	if r.bytes += len(step.Context) + len(step.Event) + len(step.From) + len(step.To); r.bytes > MaxSimulatedBytes {
		return fsm.Errorf(fsm.TooLarge, "the result exceeds %d bytes at %s, since each step has the whole context: simulate fewer events at "+
			"once, and go on from the state and the context after them", MaxSimulatedBytes, r.place())
	}
	r.result.Steps = append(r.result.Steps, step)
	return nil
}

// sizeOf is about how many bytes the texts of an error have.
func sizeOf(e *fsm.Error) int {
	n := len(e.Message)
	for _, f := range e.Faults {
		n += len(f.Pointer) + len(f.Detail)
	}
	if r := e.Refusal; r != nil {
		for _, text := range slices.Concat(r.Guards, r.AcceptedEvents) {
			n += len(text)
		}
	}
	return n
}
