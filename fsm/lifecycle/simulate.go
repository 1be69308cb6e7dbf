package lifecycle

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/definition"
)

// MaxSimulated is how many events a simulation may have.
const MaxSimulated = 1000

// A Simulation asks what an instance would go through that does not exist.
type Simulation struct {
	Workflow string
	// Version of the workflow; 0 for the latest.
	Version int
	// State to begin in. Empty: the initial one, as at a creation, for which the context must fit its
	// schema.
	State string
	// Context to begin with, a JSON object; nil for an empty one.
	Context json.RawMessage
	Events  []SimulatedEvent
}

// A SimulatedEvent is one event of a Simulation.
type SimulatedEvent struct {
	Event string
	// Payload is a JSON object; nil for an empty one.
	Payload json.RawMessage
}

// A SimulatedStep is what one event would do.
type SimulatedStep struct {
	Event    string
	From, To string
	Context  json.RawMessage
	// Err says why the event was refused, in which case state and context are as before.
	Err *fsm.Error
}

// Simulated is the result of a Simulation.
type Simulated struct {
	Steps []SimulatedStep
	// State and Context are those at the end.
	State   string
	Context json.RawMessage
}

// Simulate says what a sequence of events would do, one after the other. It decides as Fire does, and
// writes nothing. A refused event leaves the state, and the next event is tried.
//
// Kinds: Malformed, WorkflowNotFound, TooLarge, InvalidContext, Unavailable; GuardError if the creation
// fails in an assign. An event that Fire would refuse has the error in its step.
func (s *Service) Simulate(ctx context.Context, c Simulation) (Simulated, error) {
	if len(c.Events) > MaxSimulated {
		return Simulated{}, fsm.MalformedAt("/events", fmt.Sprintf("must have at most %d events", MaxSimulated))
	}
	at, err := s.begin(ctx, c)
	if err != nil {
		return Simulated{}, err
	}
	result := Simulated{Steps: []SimulatedStep{}}
	for _, e := range c.Events {
		step := SimulatedStep{Event: e.Event, From: at.State}
		next, err := s.fsm.PreviewFrom(ctx, at, e.Event, e.Payload)
		if err != nil {
			if step.Err = fsm.AsError(err); step.Err.Kind == fsm.Unavailable || step.Err.Kind == fsm.Internal {
				return Simulated{}, err
			}
		} else {
			at = next
		}
		step.To, step.Context = at.State, at.Context
		result.Steps = append(result.Steps, step)
	}
	result.State, result.Context = at.State, at.Context
	return result, nil
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
		return fsm.Position{}, within("/context", err)
	}
	if c.State != "" {
		if _, known := def.Flat()[c.State]; !known {
			return fsm.Position{}, fsm.MalformedAt("/state", "the workflow has no such state")
		}
		return fsm.Position{Workflow: w.Name, WorkflowVersion: w.Version, State: c.State, Version: 1, Context: document}, nil
	}
	if def.ContextSchema != nil {
		_, faults, err := s.schemas.Check(def.ContextSchema, document, "/context")
		switch {
		case err != nil:
			return fsm.Position{}, &fsm.Error{Kind: fsm.Internal, Cause: err}
		case len(faults) > 0:
			return fsm.Position{}, &fsm.Error{
				Kind: fsm.InvalidContext, Message: "the document does not fit its schema", Faults: fsm.Faults(faults),
			}
		}
	}
	return s.fsm.PreviewCreate(ctx, w.Name, w.Version, document)
}

// within returns the error of a document that is a part of the request, at the pointer.
func within(pointer string, err error) error {
	e := fsm.AsError(err)
	for i := range e.Faults {
		e.Faults[i].Pointer = pointer + e.Faults[i].Pointer
	}
	return e
}
