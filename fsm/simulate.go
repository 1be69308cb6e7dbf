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
// Kinds: Malformed, WorkflowNotFound, TooLarge, InvalidContext, Unavailable; GuardError if the
// creation raises. What Fire would refuse an event with is the step's.
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
	version := int64(1)
	if c.State == "" {
		if definition.ContextSchema != nil {
			var checked string
			if err := s.checkDocument(&checked, definition.ContextSchema, create.Context, "/context", InvalidContext); err != nil {
				return Simulated{}, err
			}
		}
		created, err := s.simulateCreate(ctx, w, create.Context)
		if err != nil {
			return Simulated{}, err
		}
		now.State, now.Context, version = created.State, created.Context, created.Version
	} else if _, known := definition.flat()[c.State]; !known {
		return Simulated{}, malformed("/state", "the workflow has no such state")
	}
	for _, e := range c.Events {
		step := SimulatedStep{Event: e.Event, From: now.State}
		fire := FireCommand{Event: e.Event, Payload: e.Payload, Expect: ExpectAny()}
		r, err := s.decide(&fire, func(p *pending[FireCommand]) ([]queries.Outcome, error) {
			o, err := s.simulate(ctx, w, &now.State, version, now.Context, &p.command.Event, p)
			return []queries.Outcome{o}, err
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

// simulateCreate says what a creation with a context would come to.
func (s *Service) simulateCreate(ctx context.Context, w Workflow, document rawJSON) (Instance, error) {
	o, err := s.simulate(ctx, w, nil, 1, document, nil, &pending[FireCommand]{command: FireCommand{Payload: emptyJSON}})
	if err != nil {
		return Instance{}, err
	}
	r, err := resultOf(o, &Error{})
	return r.Instance, err
}

// simulate decides on one event, or on a creation if there is no state, in a read-only
// transaction.
func (s *Service) simulate(
	ctx context.Context, w Workflow, state *string, version int64, document rawJSON, event *string, p *pending[FireCommand],
) (o queries.Outcome, err error) {
	_, err = s.attempt(ctx, func(ctx context.Context) error {
		return pgx.BeginTxFunc(ctx, s.pool, pgx.TxOptions{AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) (err error) {
			o, err = queries.New(tx).Simulate(ctx, queries.SimulateParams{
				Workflow: w.Name, WorkflowVersion: int32(w.Version), State: state, Version: version, Context: document,
				Event: event, Payload: p.command.Payload, Checked: p.checked,
			})
			return err
		})
	})
	switch {
	case isGuardFailure(err):
		e := &Error{Kind: GuardError, Message: guardErrorMessage, cause: err}
		if state != nil {
			e.Refusal = &Refusal{Event: p.command.Event, State: *state, Version: version}
		}
		return o, e
	case err != nil:
		return o, fromDatabase(err)
	}
	return o, nil
}
