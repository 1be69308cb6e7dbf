package fsm

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/fsm/internal/database"
)

// create calls the engine, and returns one outcome for each command, in their order.
func create(ctx context.Context, q *queries.Queries, batch []*pending[CreateCommand, Result]) ([]queries.Outcome, error) {
	var p queries.CreateParams
	for _, c := range batch {
		p.Tenants = append(p.Tenants, c.tenant)
		p.Workflows = append(p.Workflows, c.command.Workflow)
		p.Contexts = append(p.Contexts, c.command.Context)
		p.Keys = append(p.Keys, c.command.Key)
		p.BusinessKeys = append(p.BusinessKeys, c.command.BusinessKey)
		p.InstanceCorrelationIds = append(p.InstanceCorrelationIds, c.command.CorrelationID)
		p.Lifetimes = append(p.Lifetimes, pgtype.Interval{
			Microseconds: c.command.ExpiresIn.Microseconds(), Valid: c.command.ExpiresIn > 0,
		})
		p.Checked = append(p.Checked, c.checked)
		p.Actors = append(p.Actors, c.command.Actor)
		p.Reasons = append(p.Reasons, c.command.Reason)
		p.CorrelationIds = append(p.CorrelationIds, c.command.Origin.CorrelationID)
		p.Traceparents = append(p.Traceparents, c.command.Traceparent)
	}
	if slices.ContainsFunc(batch, func(c *pending[CreateCommand, Result]) bool { return c.command.CallbackURL != "" }) {
		for _, c := range batch {
			p.CallbackUrls = append(p.CallbackUrls, c.command.CallbackURL)
			p.CallbackSecrets = append(p.CallbackSecrets, c.command.CallbackSecret)
		}
	}
	rows, err := q.Create(ctx, p)
	return inOrder(len(batch), rows, err)
}

// fire calls the engine, and returns one outcome for each command, in their order.
func fire(ctx context.Context, q *queries.Queries, batch []*pending[FireCommand, Result]) ([]queries.Outcome, error) {
	var p queries.FireParams
	for _, c := range batch {
		p.Tenants = append(p.Tenants, c.tenant)
		p.Ids = append(p.Ids, c.command.ID)
		p.Events = append(p.Events, c.command.Event)
		p.Payloads = append(p.Payloads, c.command.Payload)
		p.Keys = append(p.Keys, c.command.Key)
		p.Expected = append(p.Expected, c.command.Expect.parameter)
		p.Checked = append(p.Checked, c.checked)
		p.Actors = append(p.Actors, c.command.Actor)
		p.Reasons = append(p.Reasons, c.command.Reason)
		p.CorrelationIds = append(p.CorrelationIds, c.command.CorrelationID)
		p.Traceparents = append(p.Traceparents, c.command.Traceparent)
	}
	rows, err := q.Fire(ctx, p)
	return inOrder(len(batch), rows, err)
}

// inOrder sorts the outcomes of a call by the commands that they belong to.
func inOrder(n int, rows []queries.Outcome, err error) ([]queries.Outcome, error) {
	if err != nil {
		return nil, err
	}
	if len(rows) != n {
		return nil, fmt.Errorf("the engine answered %d of %d commands", len(rows), n)
	}
	outcomes := make([]queries.Outcome, n)
	for _, r := range rows {
		outcomes[r.Ordinal-1] = r
	}
	return outcomes, nil
}

func (s *Service) flushCreates(batch []*pending[CreateCommand, Result]) (away bool, single []*pending[CreateCommand, Result]) {
	return flush(s, batch, handling[CreateCommand]{create, s.answerCreate, s.blameCreate})
}

func (s *Service) flushFires(batch []*pending[FireCommand, Result]) (away bool, single []*pending[FireCommand, Result]) {
	return flush(s, batch, handling[FireCommand]{fire, s.answerFire, s.blame})
}

// A handling is how the commands of one kind are called and answered.
type handling[C any] struct {
	// call calls the engine, and returns one outcome for each command.
	call func(context.Context, *queries.Queries, []*pending[C, Result]) ([]queries.Outcome, error)
	// answer turns an outcome into a result or an error, or says that the command must be called again.
	answer func(*pending[C, Result], queries.Outcome) (answered bool, result Result, err error)
	// blame says why a call for a single command failed.
	blame func(*pending[C, Result], error) error
}

// flush makes one call for a batch, and completes or fails its commands. It returns whether the database
// is away.
//
// If the call fails although there is a connection, it returns the commands, to be called one by one. Then
// the one to blame harms no other. If a document must still be checked against a schema, it is checked, and its
// command is called again before any later command for the instance is decided.
func flush[C any](s *Service, batch []*pending[C, Result], h handling[C]) (away bool, single []*pending[C, Result]) {
	defer failAll(batch)
	for len(batch) > 0 {
		var outcomes []queries.Outcome
		unanswered, err := s.db.Attempt(context.Background(), func(ctx context.Context) (err error) {
			outcomes, err = h.call(ctx, s.db.Queries(), batch)
			return err
		})
		if unanswered {
			for _, p := range batch {
				p.unanswered = true
			}
		}
		if err != nil {
			if len(batch) == 1 || database.IsConnectionError(err) {
				for _, p := range batch {
					p.fail(h.blame(p, err))
				}
				return database.IsConnectionError(err), nil
			}
			return false, batch
		}
		var again []*pending[C, Result]
		var moved []uuid.UUID
		for i, p := range batch {
			// The effect may be that of an unanswered attempt of this very command. To its caller that is
			// no replay.
			outcomes[i].Replayed = outcomes[i].Replayed && !p.unanswered
			if outcomes[i].Code == "applied" && !outcomes[i].Replayed {
				moved = append(moved, *outcomes[i].ID)
			}
			answered, result, err := h.answer(p, outcomes[i])
			switch {
			case err != nil:
				p.fail(err)
			case answered:
				p.complete(result)
			default:
				again = append(again, p)
			}
		}
		if len(moved) > 0 {
			s.config.Moved(moved)
		}
		batch = again
	}
	return false, nil
}

// blame says why a call for a single fire failed. If the call ran into the statement timeout, the same
// decision is made again without writing. If that succeeds, the call had waited for a lock; if not, a guard
// or an assign is slow.
func (s *Service) blame(p *pending[FireCommand, Result], err error) error {
	if !database.IsGuardFailure(err) {
		return fromDatabase(err)
	}
	if database.IsCode(err, database.QueryCanceled) {
		if _, previewErr := s.preview(context.Background(), p); !database.IsGuardFailure(previewErr) {
			return fromDatabase(err)
		}
	}
	return s.guardError(p, err)
}

// blameCreate is blame for a create, in which entry assigns and eventless transitions may fail.
func (s *Service) blameCreate(p *pending[CreateCommand, Result], err error) error {
	if !database.IsGuardFailure(err) {
		return fromDatabase(err)
	}
	if database.IsCode(err, database.QueryCanceled) {
		if _, previewErr := previewCreate(context.Background(), s.db.TryCommand, p.command.Workflow, 0, p.command.Context); !errors.Is(previewErr, GuardError) {
			return fromDatabase(err)
		}
	}
	return &Error{Kind: GuardError, Message: guardErrorMessage, Cause: err}
}

const guardErrorMessage = "a guard or an assign of the definition fails or takes too long on this input; nothing was changed"

// guardError is the GuardError of a fire, with the instance as it is.
func (s *Service) guardError(p *pending[FireCommand, Result], err error) *Error {
	e := &Error{
		Kind:    GuardError,
		Message: guardErrorMessage,
		Refusal: &Refusal{Event: p.command.Event},
		Cause:   err,
	}
	if i, err := s.Get(context.Background(), p.tenant, p.command.ID); err == nil {
		e.Refusal.State, e.Refusal.Status, e.Refusal.Version, e.Refusal.AcceptedEvents = i.State, i.Status, i.Version, i.AcceptedEvents
	}
	return e
}
