package fsm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/fsm/internal/database"
)

// A Simulator decides as Create, Fire and the timers do, for instances that do not exist. It writes nothing.
type Simulator struct {
	service *Service
	try     database.Trial
}

// Simulator returns one for the versions of workflows that are registered.
func (s *Service) Simulator() Simulator { return Simulator{s, s.db.Try} }

// Propose calls f with a Simulator that also knows a definition which is not registered, in canonical form, and with the
// number under which it knows it. The definition is stored in a transaction that is rolled back when f returns. Propose
// returns the error of f.
// Kinds: InvalidDefinition, Unavailable.
func (s *Service) Propose(ctx context.Context, canonical json.RawMessage, f func(m Simulator, version int) error) error {
	// Storing a large definition takes longer than a command.
	timeout := fmt.Sprintf("%dms", 4*s.db.Timeout().Milliseconds())
	err := s.db.Rehearse(ctx, timeout, func(try database.Trial) error {
		var version int32
		err := try(ctx, func(ctx context.Context, q *queries.Queries) (err error) {
			version, err = q.ProposeWorkflow(ctx, canonical)
			return err
		})
		if err != nil {
			return err
		}
		return f(Simulator{s, try}, int(version))
	})
	if err != nil {
		return AsError(err)
	}
	return nil
}

// A Position is where an instance could be. The instance need not exist.
type Position struct {
	Workflow        string
	WorkflowVersion int
	// State is empty before the creation.
	State  string
	Status Status
	// Version is that of the instance; 0 is 1.
	Version int64
	Context json.RawMessage
	// Now is the time at the position. Zero, before the start: the database's present one.
	Now time.Time
	// AcceptedEvents and NextTimeout are those of the state. AcceptedEvents is unknown for a state to start in.
	AcceptedEvents []string
	NextTimeout    *NextTimeout

	// clock has what the engine counts time by, and what it remembers; nil: the state has been entered now.
	clock *clock
	// tried is how many timeouts of the state were refused.
	tried int32
}

type clock struct {
	createdAt, stateChangedAt time.Time
	expiresAt                 *time.Time
	memory                    json.RawMessage
}

// clockOf returns the clock of an outcome that shows an instance.
func clockOf(o queries.Outcome) *clock {
	return &clock{createdAt: *o.CreatedAt, stateChangedAt: *o.StateChangedAt, expiresAt: o.ExpiresAt, memory: o.Memory}
}

// json is the position as pawl.simulate reads it.
func (at Position) json() (json.RawMessage, error) {
	type position struct {
		State          string          `json:"state,omitempty"`
		Version        int64           `json:"version"`
		Context        json.RawMessage `json:"context"`
		CreatedAt      *time.Time      `json:"created_at,omitempty"`
		StateChangedAt *time.Time      `json:"state_changed_at,omitempty"`
		ExpiresAt      *time.Time      `json:"expires_at,omitempty"`
		Memory         json.RawMessage `json:"memory,omitempty"`
		Tried          int32           `json:"tried,omitempty"`
	}
	p := position{State: at.State, Version: max(at.Version, 1), Context: at.Context, Tried: at.tried}
	if c := at.clock; c != nil {
		p.CreatedAt, p.StateChangedAt, p.ExpiresAt, p.Memory = &c.createdAt, &c.stateChangedAt, c.expiresAt, c.memory
	}
	return json.Marshal(p)
}

// Start returns the position that a simulation begins at, with the workflow, its version (0 is the latest) and the context
// of the given one. Without a state the instance is created there, by the actor; the context is not checked against the workflow's
// schema. Else it is in the state, as if it had just entered it. A nil context is an empty one, and an empty actor is
// "anonymous".
// Kinds: Malformed, WorkflowNotFound, GuardRejected by an invariant, TooLarge, GuardError, Unavailable.
func (m Simulator) Start(ctx context.Context, at Position, actor string) (Position, error) {
	c := CreateCommand{Workflow: at.Workflow, Context: at.Context, Origin: Origin{Actor: actor}}
	if err := c.normalise(); err != nil {
		return at, err
	}
	if at.WorkflowVersion == 0 {
		err := m.try(ctx, func(ctx context.Context, q *queries.Queries) error {
			w, err := q.GetWorkflow(ctx, at.Workflow)
			at.WorkflowVersion = int(w.Version)
			return err
		})
		if err != nil {
			return at, AsError(IfNoRows(err, WorkflowNotFound, NoWorkflow(at.Workflow, 0).Message))
		}
	}
	at.Context = c.Context
	o, err := m.decide(ctx, at, nil, &pending[FireCommand, Result]{command: FireCommand{Origin: c.Origin, Payload: emptyObject}})
	if err != nil {
		return at, err
	}
	r, err := resultOf(o, &Error{Refusal: &Refusal{Guards: o.Guards}})
	if err != nil {
		return at, err
	}
	next := at.after(r, o)
	if next.Now.IsZero() {
		next.Now = next.clock.createdAt
	}
	return next, nil
}

// Fire returns the position after an event. A nil payload is an empty one, and an empty actor is "anonymous".
// The kinds are those of [Service.Fire].
func (m Simulator) Fire(ctx context.Context, at Position, event string, payload json.RawMessage, actor string) (Position, error) {
	c := FireCommand{Event: event, Payload: payload, Origin: Origin{Actor: actor}, Expect: ExpectAny()}
	next := at
	_, err := m.service.decide(ctx, &c, func(p *pending[FireCommand, Result]) (queries.Outcome, error) {
		o, err := m.decide(ctx, at, &p.command.Event, p)
		if err == nil && o.Code == "applied" {
			r, _ := resultOf(o, &Error{})
			next = at.after(r, o)
		}
		return o, err
	})
	return next, err
}

// Pass lets time pass, up to the next step that a timer or the lifetime makes, but not beyond a time. It returns the
// position after the step, and its event. The event is empty if there is no such step: then the position is the same at
// that time. A timeout whose guards refuse it is passed over. If a step fails otherwise, the error comes with its event, and the
// position has the time of the failure.
// Kinds: those of [Service.Fire].
func (m Simulator) Pass(ctx context.Context, at Position, until time.Time) (next Position, event string, err error) {
	position, err := at.json()
	if err != nil {
		return at, "", AsError(err)
	}
	var row queries.SimulateTimeoutRow
	err = m.try(ctx, func(ctx context.Context, q *queries.Queries) (err error) {
		row, err = q.SimulateTimeout(ctx, queries.SimulateTimeoutParams{
			Workflow: at.Workflow, WorkflowVersion: int32(at.WorkflowVersion), Position: position, Now: at.Now, Until: until,
		})
		return err
	})
	refusal := &Refusal{State: at.State, Status: at.Status, Version: at.Version, AcceptedEvents: at.AcceptedEvents}
	switch {
	case database.IsGuardFailure(err):
		e := newGuardError(err)
		e.Refusal, event = refusal, "timeout"
		if n := at.NextTimeout; n != nil && at.tried == 0 {
			event = n.Event
			if n.DueAt.After(at.Now) {
				at.Now = n.DueAt
			}
		}
		refusal.Event = event
		return at, event, e
	case err != nil:
		return at, "", fromDatabase(err)
	case row.Code == "none":
		// A timer that repeats may have been passed over.
		at.Now, at.tried = until, row.Tried
		at.clock = clockOf(outcomeOf(row))
		at.NextTimeout = nextTimeout(row.TimeoutEvent, row.TimeoutDueAt, nil)
		return at, "", nil
	}
	o := outcomeOf(row)
	at.Now = row.At
	refusal.Event, refusal.Guards = row.Timer, o.Guards
	r, err := resultOf(o, &Error{Refusal: refusal})
	if err != nil {
		return at, row.Timer, err
	}
	next = at.after(r, o)
	next.tried = row.Tried
	return next, row.Timer, nil
}

// outcomeOf returns the outcome that a row has beside other columns.
func outcomeOf(r queries.SimulateTimeoutRow) queries.Outcome {
	return queries.Outcome{
		Ordinal: r.Ordinal, Code: r.Code, Replayed: r.Replayed, ID: r.ID, Workflow: r.Workflow, WorkflowVersion: r.WorkflowVersion,
		State: r.State, Status: r.Status, Version: r.Version, Context: r.Context, BusinessKey: r.BusinessKey,
		CorrelationID: r.CorrelationID, CreatedAt: r.CreatedAt, StateChangedAt: r.StateChangedAt, ExpiresAt: r.ExpiresAt,
		Error: r.Error, Actions: r.Actions, Guards: r.Guards, Schema: r.Schema, TimeoutEvent: r.TimeoutEvent,
		TimeoutDueAt: r.TimeoutDueAt, Memory: r.Memory,
	}
}

// after is the position to which the steps of a result lead an instance that is at this one.
func (at Position) after(r Result, o queries.Outcome) Position {
	i := r.Instance
	at.State, at.Status, at.Version, at.Context = i.State, i.Status, i.Version, i.Context
	at.AcceptedEvents, at.NextTimeout = i.AcceptedEvents, i.NextTimeout
	if at.clock == nil || !at.clock.stateChangedAt.Equal(i.StateChangedAt) {
		at.tried = 0
	}
	at.clock = clockOf(o)
	return at
}

// decide decides on an event at a position, or on the creation if event is nil.
func (m Simulator) decide(ctx context.Context, at Position, event *string, p *pending[FireCommand, Result]) (o queries.Outcome, err error) {
	position, err := at.json()
	if err != nil {
		return o, AsError(err)
	}
	params := queries.SimulateParams{
		Workflow: at.Workflow, WorkflowVersion: int32(at.WorkflowVersion), Position: position,
		Event: event, Payload: p.command.Payload, Checked: p.checked, Actor: p.command.Actor,
		Verified: !m.service.config.UnverifiedActors,
	}
	if !at.Now.IsZero() {
		params.Now = &at.Now
	}
	err = m.try(ctx, func(ctx context.Context, q *queries.Queries) (err error) {
		o, err = q.Simulate(ctx, params)
		return err
	})
	switch {
	case database.IsGuardFailure(err):
		e := newGuardError(err)
		if event != nil {
			e.Refusal = &Refusal{Event: *event, State: at.State, Version: at.Version}
		}
		return o, e
	case errors.Is(err, pgx.ErrNoRows):
		return o, NoWorkflow(at.Workflow, at.WorkflowVersion) // It was retired meanwhile.
	case err != nil:
		return o, fromDatabase(err)
	}
	return o, nil
}
