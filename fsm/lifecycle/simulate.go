package lifecycle

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/definition"
)

// MaxSimulated is how many events a simulation may have.
const MaxSimulated = 1000

// MaxSimulatedBytes bounds the texts of a Simulated: the contexts after its events, and why events were refused.
const MaxSimulatedBytes = 4 << 20

// SimulationTime is how long a simulation may take.
const SimulationTime = 10 * time.Second

// A Simulation asks what events would do to an instance. No such instance has to exist.
type Simulation struct {
	Workflow string
	// Version is that of the workflow. Default: the latest one.
	Version int
	// State is the path of the state to begin in. If it is empty, the simulation begins with a creation,
	// for which the context must fit its schema.
	State string
	// Context is a JSON object, the context to begin with; nil means an empty one.
	Context json.RawMessage
	// Events are decided in their order, at most MaxSimulated.
	Events []SimulatedEvent
}

// A SimulatedEvent is one event of a Simulation.
type SimulatedEvent struct {
	// Event is its name.
	Event string
	// Payload is a JSON object; nil means an empty one.
	Payload json.RawMessage
}

// A SimulatedStep is what one event would do.
type SimulatedStep struct {
	Event string
	// From and To are the states before and after the event, and Context is the one after it.
	From, To string
	Context  json.RawMessage
	// Err says why the event was refused; nil if it was not. A refused event changes neither the state nor
	// the context.
	Err *fsm.Error
}

// Simulated is the result of a Simulation.
type Simulated struct {
	// Steps has one for each event, in their order.
	Steps []SimulatedStep
	// State and Context are those after the last event.
	State   string
	Context json.RawMessage
}

// Simulate says what a sequence of events would do, one after the other. It decides as Fire does, and
// writes nothing. After a refused event it goes on with the next one.
//
// Kinds: Malformed, WorkflowNotFound, InvalidContext; TooLarge if the context is, or if the result would have more than
// MaxSimulatedBytes; GuardError if the creation fails in a guard or an assign; Unavailable, also if it takes longer than
// SimulationTime. For an event that Fire would refuse, the error is in its step.
func (s *Service) Simulate(ctx context.Context, c Simulation) (Simulated, error) {
	if len(c.Events) > MaxSimulated {
		return Simulated{}, fsm.MalformedAt("/events", fmt.Sprintf("must have at most %d events", MaxSimulated))
	}
	leave, err := s.simulations.Enter(ctx)
	if err != nil {
		return Simulated{}, fsm.AsError(err)
	}
	defer leave()
	asked := ctx
	ctx, cancel := context.WithTimeout(ctx, s.simulationTime)
	defer cancel()
	at, err := s.begin(ctx, c)
	if err != nil {
		return Simulated{}, err
	}
	result := Simulated{Steps: []SimulatedStep{}}
	bytes := 0
	for n, e := range c.Events {
		step := SimulatedStep{Event: e.Event, From: at.State}
		next, err := s.fsm.PreviewFrom(ctx, at, e.Event, e.Payload)
		if err != nil {
			if step.Err = fsm.AsError(err); step.Err.Kind == fsm.Unavailable || step.Err.Kind == fsm.Internal {
				if ctx.Err() != nil && asked.Err() == nil {
					err = fsm.Errorf(fsm.Unavailable, "the simulation takes longer than %s; in that time it came to event %d of %d: send "+
						"fewer events, or try again", s.simulationTime, n+1, len(c.Events))
				}
				return Simulated{}, err
			}
			bytes += sizeOf(step.Err)
		} else {
			at = next
		}
		step.To, step.Context = at.State, at.Context
		if bytes += len(step.Context) + len(step.Event) + len(step.From) + len(step.To); bytes > MaxSimulatedBytes {
			return Simulated{}, fsm.Errorf(fsm.TooLarge, "the result exceeds %d bytes at event %d of %d, since each step has the whole "+
				"context: simulate fewer events at once, and go on from the state and the context after them",
				MaxSimulatedBytes, n+1, len(c.Events))
		}
		result.Steps = append(result.Steps, step)
	}
	result.State, result.Context = at.State, at.Context
	return result, nil
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

// begin returns the position before the first event.
func (s *Service) begin(ctx context.Context, c Simulation) (fsm.Position, error) {
	w, err := s.GetWorkflow(ctx, c.Workflow, c.Version)
	if err != nil {
		return fsm.Position{}, err
	}
	def, err := w.Model()
	if err != nil {
		return fsm.Position{}, err
	}
	document := c.Context
	if document == nil {
		document = json.RawMessage(`{}`)
	}
	if err := definition.CheckObject(document); err != nil {
		return fsm.Position{}, fsm.Within("/context", err)
	}
	if c.State != "" {
		if _, known := def.Flat()[c.State]; !known {
			return fsm.Position{}, fsm.MalformedAt("/state", "the workflow has no such state")
		}
		return fsm.Position{Workflow: w.Name, WorkflowVersion: w.Version, State: c.State, Version: 1, Context: document}, nil
	}
	if def.ContextSchema != nil {
		if _, err := fsm.CheckDocument(ctx, s.schemas, def.ContextSchema, document, "/context", fsm.InvalidContext); err != nil {
			return fsm.Position{}, err
		}
	}
	return s.fsm.PreviewCreate(ctx, w.Name, w.Version, document)
}
