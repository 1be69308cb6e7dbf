package fsm

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/pawl-fsm/pawl/db/queries"
)

// MaxSimulated is how many events a simulation may have.
const MaxSimulated = 1000

// A Simulation asks what an instance would go through that is never made.
type Simulation struct {
	// Workflow and its version, 0 for the latest.
	Workflow string
	Version  int
	// State to begin in; empty for the initial one, which the context must then fit as it
	// must at creation.
	State string
	// Context to begin with, an object; nil for {}.
	Context json.RawMessage
	Events  []SimulatedEvent
}

// A SimulatedEvent is one event of a Simulation.
type SimulatedEvent struct {
	Event string
	// Payload is an object; nil for {}.
	Payload json.RawMessage
}

// A SimulatedStep is what one event came to.
type SimulatedStep struct {
	Event    string
	From, To string
	Context  json.RawMessage
	// Err is why the event was refused; state and context are as before then.
	Err *Error
}

// Simulated is the outcome of a Simulation.
type Simulated struct {
	Steps []SimulatedStep
	// State and Context are those at the end.
	State   string
	Context json.RawMessage
}

// Simulate says what a sequence of events would come to, one after the other, by the same
// decision as Fire's, and writes nothing. A refused event leaves the state, and the next one
// is tried.
//
// Kinds: Malformed, WorkflowNotFound, TooLarge, InvalidContext, Unavailable. What Fire
// would refuse an event with is the step's.
func (s *Service) Simulate(ctx context.Context, c Simulation) (Simulated, error) {
	if len(c.Events) > MaxSimulated {
		return Simulated{}, malformed("/events", fmt.Sprintf("must have at most %d events", MaxSimulated))
	}
	w, err := s.GetWorkflow(ctx, c.Workflow, c.Version)
	if err != nil {
		return Simulated{}, err
	}
	definition, err := w.Model()
	if err != nil {
		return Simulated{}, err
	}
	create := CreateCommand{Context: c.Context}
	if err := create.normalise(); err != nil {
		return Simulated{}, err
	}
	now := Simulated{Steps: []SimulatedStep{}, State: c.State, Context: create.Context}
	if c.State == "" {
		now.State = definition.Initial
		if definition.ContextSchema != nil {
			var checked string
			if err := s.checkDocument(&checked, definition.ContextSchema, create.Context, "/context", InvalidContext); err != nil {
				return Simulated{}, err
			}
		}
	} else if _, known := definition.States[c.State]; !known {
		return Simulated{}, malformed("/state", "the workflow has no such state")
	}
	version := int64(1)
	for _, e := range c.Events {
		step := SimulatedStep{Event: e.Event, From: now.State}
		fire := FireCommand{Event: e.Event, Payload: e.Payload, Expect: ExpectAny()}
		r, err := s.decide(&fire, func(p *pending[FireCommand]) ([]queries.Outcome, error) {
			return s.simulate(ctx, w, now, version, p)
		})
		if err != nil {
			if step.Err = AsError(err); step.Err.Kind == Unavailable || step.Err.Kind == Internal {
				return Simulated{}, err
			}
		} else {
			now.State, now.Context, version = r.Instance.State, r.Instance.Context, r.Instance.Version
		}
		step.To, step.Context = now.State, now.Context
		now.Steps = append(now.Steps, step)
	}
	return now, nil
}

// simulate decides on one event, in a read-only transaction.
func (s *Service) simulate(
	ctx context.Context, w Workflow, now Simulated, version int64, p *pending[FireCommand],
) ([]queries.Outcome, error) {
	var o queries.Outcome
	_, err := s.attempt(ctx, func(ctx context.Context) error {
		return pgx.BeginTxFunc(ctx, s.pool, pgx.TxOptions{AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) (err error) {
			o, err = queries.New(tx).Simulate(ctx, queries.SimulateParams{
				Workflow: w.Name, WorkflowVersion: int32(w.Version), State: &now.State, Version: version, Context: now.Context,
				Event: p.command.Event, Payload: p.command.Payload, Checked: p.checked,
			})
			return err
		})
	})
	switch {
	case isGuardFailure(err):
		return nil, &Error{
			Kind: GuardError, Message: guardErrorMessage, cause: err,
			Refusal: &Refusal{Event: p.command.Event, State: now.State, Version: version},
		}
	case err != nil:
		return nil, fromDatabase(err)
	}
	return []queries.Outcome{o}, nil
}
