package fsm

import (
	"context"
	"encoding/json"
	"errors"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/fsm/internal/database"
)

// Preview is a dry run of Fire: it makes the same decision and writes nothing. The Result has the instance
// as it would be. The key is not looked at, so nothing is replayed. The kinds are those of Fire.
func (s *Service) Preview(ctx context.Context, c FireCommand) (Result, error) {
	return s.decide(ctx, &c, func(p *pending[FireCommand, Result]) (queries.Outcome, error) {
		o, err := previewOn(ctx, s.db.Try, p)
		switch {
		case database.IsGuardFailure(err):
			e, _ := s.guardError(p, err)
			return o, e
		case err != nil:
			return o, fromDatabase(err)
		}
		return o, nil
	})
}

// A trial runs a function in a transaction that cannot write, and returns the driver's error.
type trial func(context.Context, func(context.Context, *queries.Queries) error) error

// preview decides on a fire for a flusher, and writes nothing. It returns the driver's error.
func (s *Service) preview(ctx context.Context, p *pending[FireCommand, Result]) (queries.Outcome, error) {
	return previewOn(ctx, s.db.TryCommand, p)
}

func previewOn(ctx context.Context, try trial, p *pending[FireCommand, Result]) (o queries.Outcome, err error) {
	err = try(ctx, func(ctx context.Context, q *queries.Queries) error {
		c := &p.command
		rows, err := q.Preview(ctx, queries.PreviewParams{
			Tenant: p.tenant, Ids: []uuid.UUID{c.ID}, Events: []string{c.Event}, Payloads: []json.RawMessage{c.Payload},
			Expected: []string{c.Expect.parameter}, Checked: []string{p.checked},
		})
		outcomes, err := inOrder(1, rows, err)
		if err == nil {
			o = outcomes[0]
		}
		return err
	})
	return o, err
}

// A Position is where an instance could be. The instance need not exist. Its members are as those of an
// Instance.
type Position struct {
	Workflow        string
	WorkflowVersion int
	State           string
	Version         int64
	Context         json.RawMessage
}

// PreviewCreate is a dry run of Create for a version of a workflow; 0 means the latest one. It returns the
// position of the instance that would be created. A nil document is an empty context. It is not checked
// against the workflow's schema.
// Kinds: Malformed, WorkflowNotFound, TooLarge, GuardError, Unavailable.
func (s *Service) PreviewCreate(ctx context.Context, workflow string, version int, document json.RawMessage) (Position, error) {
	return previewCreate(ctx, s.db.Try, workflow, version, document)
}

func previewCreate(ctx context.Context, try trial, workflow string, version int, document json.RawMessage) (Position, error) {
	c := CreateCommand{Workflow: workflow, Context: document}
	if err := c.normalise(); err != nil {
		return Position{}, err
	}
	if version == 0 {
		err := try(ctx, func(ctx context.Context, q *queries.Queries) error {
			w, err := q.GetWorkflow(ctx, workflow)
			version = int(w.Version)
			if errors.Is(err, pgx.ErrNoRows) {
				return NoWorkflow(workflow, 0)
			}
			return err
		})
		if err != nil {
			return Position{}, AsError(err)
		}
	}
	at := Position{Workflow: workflow, WorkflowVersion: version, Version: 1, Context: c.Context}
	o, err := simulate(ctx, try, at, nil, &pending[FireCommand, Result]{command: FireCommand{Payload: emptyObject}})
	if err != nil {
		return Position{}, err
	}
	r, err := resultOf(o, &Error{})
	return at.after(r), err
}

// PreviewFrom is a dry run of Fire for an instance at a position, and returns the position after the
// event. A nil payload is an empty one. The kinds are those of Fire.
func (s *Service) PreviewFrom(ctx context.Context, at Position, event string, payload json.RawMessage) (Position, error) {
	c := FireCommand{Event: event, Payload: payload, Expect: ExpectAny()}
	r, err := s.decide(ctx, &c, func(p *pending[FireCommand, Result]) (queries.Outcome, error) {
		return simulate(ctx, s.db.Try, at, &p.command.Event, p)
	})
	return at.after(r), err
}

// after is the position to which the steps of a result lead an instance that is at this one.
func (at Position) after(r Result) Position {
	at.State, at.Version, at.Context = r.Instance.State, r.Instance.Version, r.Instance.Context
	return at
}

// simulate decides without writing on an event at a position, or on a create if event is nil.
func simulate(
	ctx context.Context, try trial, at Position, event *string, p *pending[FireCommand, Result],
) (o queries.Outcome, err error) {
	params := queries.SimulateParams{
		Workflow: at.Workflow, WorkflowVersion: int32(at.WorkflowVersion), Version: at.Version, Context: at.Context,
		Event: event, Payload: p.command.Payload, Checked: p.checked,
	}
	if event != nil {
		params.State = &at.State
	}
	err = try(ctx, func(ctx context.Context, q *queries.Queries) (err error) {
		o, err = q.Simulate(ctx, params)
		return err
	})
	switch {
	case database.IsGuardFailure(err):
		e := &Error{Kind: GuardError, Message: guardErrorMessage, Cause: err}
		if event != nil {
			e.Refusal = &Refusal{Event: *event, State: at.State, Version: at.Version}
		}
		return o, e
	case err != nil:
		return o, fromDatabase(err)
	}
	return o, nil
}
