package fsm

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

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

func (s *Service) flushCreates(batch []*pending[CreateCommand, Result]) flushed[CreateCommand, Result] {
	return flush(s, batch, handling[CreateCommand]{create, s.answerCreate, sourceOfCreate, s.blameCreate})
}

func (s *Service) flushFires(batch []*pending[FireCommand, Result]) flushed[FireCommand, Result] {
	return flush(s, batch, handling[FireCommand]{fire, s.answerFire, sourceOfFire, s.blameFire})
}

// A handling is how the commands of one kind are called and answered.
type handling[C any] struct {
	// call calls the engine, and returns one outcome for each command.
	call func(context.Context, *queries.Queries, []*pending[C, Result]) ([]queries.Outcome, error)
	// answer turns an outcome into a result or an error, or says that the command must be called again.
	answer func(*pending[C, Result], queries.Outcome) (answered bool, result Result, err error)
	// source says whose guards were called. It is not known if there is no such instance.
	source func(*pending[C, Result], queries.Outcome) (x source, known bool)
	// blame says why a call for a single command failed, and notes what was slow.
	blame func(*pending[C, Result], error) error
}

// flush makes one call for a batch, and completes or fails its commands.
//
// If the call fails although there is a connection, each command is called again by itself. Then the one to
// blame harms no other. If a document must still be checked against a schema, its command is called again when
// it has been checked, before any later command for the instance.
func flush[C any](s *Service, batch []*pending[C, Result], h handling[C]) (left flushed[C, Result]) {
	defer failAll(batch, &left)
	var outcomes []queries.Outcome
	began := time.Now()
	unanswered, err := s.db.Attempt(context.Background(), func(ctx context.Context) (err error) {
		outcomes, err = h.call(ctx, s.db.Queries(), batch)
		return err
	})
	took := time.Since(began)
	if unanswered {
		for _, p := range batch {
			p.unanswered = true
		}
	}
	if err != nil {
		left.away = database.IsConnectionError(err)
		if len(batch) > 1 && !left.away {
			left.alone = batch
			return left
		}
		for _, p := range batch {
			p.fail(h.blame(p, err))
		}
		return left
	}
	if !unanswered {
		observe(s, batch, outcomes, took, h)
	}
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
			left.again = append(left.again, p)
		}
	}
	if len(moved) > 0 {
		s.config.Moved(moved)
	}
	return left
}

// observe notes whether a call was slow, for later commands of the same sources.
func observe[C any](s *Service, batch []*pending[C, Result], outcomes []queries.Outcome, took time.Duration, h handling[C]) {
	slow := s.slowness.isSlow(took, len(batch))
	if len(batch) > 1 && !slow {
		return
	}
	for i, p := range batch {
		if p.blamed.instance != uuid.Nil {
			s.slowness.acquit(p.blamed) // No lock held up the call for long.
		}
		x, known := h.source(p, outcomes[i])
		switch {
		case !known:
		case len(batch) > 1:
			s.slowness.suspect(x)
		case slow:
			s.slowness.convict(x)
		case outcomes[i].Code == "applied" && !outcomes[i].Replayed || outcomes[i].Code == "guard-rejected":
			s.slowness.acquit(x) // Its guards were called.
		}
	}
}

// sourceOfCreate is the source of a create.
func sourceOfCreate(p *pending[CreateCommand, Result], _ queries.Outcome) (x source, known bool) {
	return source{tenant: p.tenant, workflow: p.command.Workflow}, true
}

// sourceOfFire is the source of an event.
func sourceOfFire(p *pending[FireCommand, Result], o queries.Outcome) (x source, known bool) {
	if o.Workflow == nil {
		return source{}, false
	}
	return source{tenant: p.tenant, workflow: *o.Workflow, event: p.command.Event}, true
}

// locked is the source of an instance that another transaction has locked.
func locked(p *pending[FireCommand, Result]) source {
	return source{tenant: p.tenant, instance: p.command.ID}
}

// trackOfCreate says with which others a create may be called.
func (s *Service) trackOfCreate(p *pending[CreateCommand, Result]) {
	x, _ := sourceOfCreate(p, queries.Outcome{})
	setTrack(s, p, x)
}

// setTrack sets the track of a command that has a source.
func setTrack[C any](s *Service, p *pending[C, Result], x source) {
	if p.track = s.slowness.track(x); p.track == trackSlow {
		p.blamed = x
	}
}

// trackOfFire says with which others a fire may be called. It reads the instance if it must know its workflow, and
// gives up at the time until.
func (s *Service) trackOfFire(p *pending[FireCommand, Result], until time.Time) {
	if setTrack(s, p, locked(p)); p.track == trackSlow || !s.slowness.knows(p.tenant, p.command.Event) {
		return
	}
	ctx, cancel := context.WithDeadline(p.ctx, until)
	defer cancel()
	if i, err := s.Get(ctx, p.tenant, p.command.ID); err == nil {
		setTrack(s, p, source{tenant: p.tenant, workflow: i.Workflow, event: p.command.Event})
	}
}

// blameFire says why a call for a single fire failed. If the call ran into the statement timeout, the same
// decision is made again without writing. If that succeeds, the call had waited for a lock; if not, a guard
// or an assign is slow. If such guards were slow before, the decision is not made again.
func (s *Service) blameFire(p *pending[FireCommand, Result], err error) error {
	if !database.IsGuardFailure(err) {
		if database.IsCode(err, database.LockNotAvailable) {
			s.slowness.blame(locked(p))
		}
		return fromDatabase(err)
	}
	if database.IsCode(err, database.QueryCanceled) && p.blamed.workflow == "" {
		if _, previewErr := s.preview(context.Background(), p); !database.IsGuardFailure(previewErr) {
			s.slowness.blame(locked(p))
			return fromDatabase(err)
		}
	}
	e, workflow := s.guardError(p, err)
	if workflow != "" {
		s.slowness.blame(source{tenant: p.tenant, workflow: workflow, event: p.command.Event})
	}
	return e
}

// blameCreate is blameFire for a create, in which entry assigns and eventless transitions may fail.
func (s *Service) blameCreate(p *pending[CreateCommand, Result], err error) error {
	if !database.IsGuardFailure(err) {
		return fromDatabase(err)
	}
	if database.IsCode(err, database.QueryCanceled) && p.blamed.workflow == "" {
		if _, previewErr := previewCreate(context.Background(), s.db.TryCommand, p.command.Workflow, 0, p.command.Context); !errors.Is(previewErr, GuardError) {
			return fromDatabase(err)
		}
	}
	x, _ := sourceOfCreate(p, queries.Outcome{})
	s.slowness.blame(x)
	return &Error{Kind: GuardError, Message: guardErrorMessage, Cause: err}
}

const guardErrorMessage = "a guard or an assign of the definition fails or takes too long on this input; nothing was changed"

// guardError is the GuardError of a fire, with the instance as it is. workflow is the instance's; empty if it
// cannot be read.
func (s *Service) guardError(p *pending[FireCommand, Result], err error) (e *Error, workflow string) {
	e = &Error{
		Kind:    GuardError,
		Message: guardErrorMessage,
		Refusal: &Refusal{Event: p.command.Event},
		Cause:   err,
	}
	if i, err := s.Get(context.Background(), p.tenant, p.command.ID); err == nil {
		e.Refusal.State, e.Refusal.Status, e.Refusal.Version, e.Refusal.AcceptedEvents = i.State, i.Status, i.Version, i.AcceptedEvents
		workflow = i.Workflow
	}
	return e, workflow
}
