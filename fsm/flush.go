package fsm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/fsm/internal/database"
	"github.com/pawl-fsm/pawl/internal/seal"
)

// create calls the engine, and returns one outcome for each command, in their order.
func (s *Service) create(ctx context.Context, q *queries.Queries, batch []*pending[CreateCommand, Result]) ([]queries.Outcome, error) {
	p := queries.CreateParams{Verified: !s.config.UnverifiedActors, Access: accessOf(batch)}
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
			seed, sealed := s.sealCallback(c.tenant, c.command.CallbackSecret)
			p.CallbackUrls = append(p.CallbackUrls, c.command.CallbackURL)
			p.Seeds, p.CallbackSecrets = append(p.Seeds, seed), append(p.CallbackSecrets, sealed)
			p.CallbackDigests = append(p.CallbackDigests, seal.Digest(c.command.CallbackSecret))
		}
	}
	rows, err := q.Create(ctx, p)
	return inOrder(len(batch), rows, err)
}

// fire calls the engine, and returns one outcome for each command, in their order.
func (s *Service) fire(ctx context.Context, q *queries.Queries, batch []*pending[FireCommand, Result]) ([]queries.Outcome, error) {
	p := queries.FireParams{Verified: !s.config.UnverifiedActors, Access: accessOf(batch)}
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

// fireByKeys is fire for the instances that hold business keys.
func (s *Service) fireByKeys(ctx context.Context, q *queries.Queries, batch []*pending[FireCommand, Result]) ([]queries.Outcome, error) {
	p := queries.FireByKeysParams{Verified: !s.config.UnverifiedActors, Access: accessOf(batch)}
	for _, c := range batch {
		h := c.command.holder
		start, err := h.document()
		if err != nil {
			return nil, err
		}
		p.Tenants = append(p.Tenants, c.tenant)
		p.Workflows = append(p.Workflows, h.workflow)
		p.BusinessKeys = append(p.BusinessKeys, h.businessKey)
		p.Events = append(p.Events, c.command.Event)
		p.Payloads = append(p.Payloads, c.command.Payload)
		p.Keys = append(p.Keys, c.command.Key)
		p.Expected = append(p.Expected, c.command.Expect.parameter)
		p.Checked = append(p.Checked, c.checked)
		p.Starts = append(p.Starts, start)
		p.StartsChecked = append(p.StartsChecked, h.checked)
		p.Actors = append(p.Actors, c.command.Actor)
		p.Reasons = append(p.Reasons, c.command.Reason)
		p.CorrelationIds = append(p.CorrelationIds, c.command.CorrelationID)
		p.Traceparents = append(p.Traceparents, c.command.Traceparent)
	}
	if slices.ContainsFunc(batch, startsCallback) {
		for _, c := range batch {
			secret := ""
			if startsCallback(c) {
				secret = c.command.holder.start.CallbackSecret
			}
			seed, sealed := s.sealCallback(c.tenant, secret)
			p.Seeds, p.CallbackSecrets = append(p.Seeds, seed), append(p.CallbackSecrets, sealed)
		}
	}
	rows, err := q.FireByKeys(ctx, p)
	outcomes, err := inOrder(len(batch), rows, err)
	for i := range outcomes {
		created := outcomes[i].Code == "created"
		if created {
			outcomes[i].Code = "applied"
		}
		batch[i].command.holder.created = created
	}
	return outcomes, err
}

// startsCallback reports whether what a command would start has a callback.
func startsCallback(p *pending[FireCommand, Result]) bool {
	start := p.command.holder.start
	return start != nil && start.CallbackURL != ""
}

// sealCallback seals the secret of the callback of an instance that is to be made. The seed becomes the last 62 bits of the
// instance's id, by which the secret is bound to it.
func (s *Service) sealCallback(tenant, secret string) (seed uuid.UUID, sealed string) {
	seed = uuid.New()
	return seed, s.config.Keys.Seal(secret, seal.Callback(tenant, seed))
}

// document is what the command would start, as pawl.fire_by_keys takes it; nil for nothing. Instead of the callback's secret
// it has the secret's digest, since it is part of the fingerprint.
func (h *holder) document() (json.RawMessage, error) {
	if h.start == nil {
		return nil, nil
	}
	start := struct {
		Context        json.RawMessage `json:"context"`
		CorrelationID  string          `json:"correlation_id,omitempty"`
		ExpiresIn      string          `json:"expires_in,omitempty"`
		CallbackURL    string          `json:"callback_url,omitempty"`
		CallbackSecret string          `json:"callback_secret,omitempty"`
	}{
		Context: h.start.Context, CorrelationID: h.start.CorrelationID,
		CallbackURL: h.start.CallbackURL, CallbackSecret: seal.Digest(h.start.CallbackSecret),
	}
	if h.start.ExpiresIn > 0 {
		start.ExpiresIn = fmt.Sprintf("%d microseconds", h.start.ExpiresIn.Microseconds())
	}
	return json.Marshal(start)
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
	return flush(s, batch, handling[CreateCommand]{s.create, s.answerCreate, sourceOfCreate, s.blameCreate})
}

func (s *Service) flushFires(batch []*pending[FireCommand, Result]) flushed[FireCommand, Result] {
	return flush(s, batch, handling[FireCommand]{s.fire, s.answerFire, sourceOfFire, s.blameFire})
}

func (s *Service) flushFiresByKey(batch []*pending[FireCommand, Result]) flushed[FireCommand, Result] {
	return flush(s, batch, handling[FireCommand]{s.fireByKeys, s.answerFire, sourceOfFire, s.blameFire})
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
// it has been checked, before any later command for the instance. If principals have changed, the commands that were let in
// by what is remembered fail, and the others are called again.
func flush[C any](s *Service, batch []*pending[C, Result], h handling[C]) (left flushed[C, Result]) {
	defer failAll(batch, &left)
	batch, left.again = oneAccess(batch)
	access := accessOf(batch)
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
	if database.IsCode(err, principalChanged) {
		s.recollection.forget(*access)
		for _, p := range batch {
			if admissionOf(p.ctx) == nil {
				left.again = append(left.again, p)
				continue
			}
			p.fail(ErrPrincipalChanged)
		}
		return left
	}
	if err != nil {
		left.away = database.IsConnectionError(err)
		if len(batch) > 1 && !left.away {
			left.alone = batch
			return left
		}
		for _, p := range batch {
			err := h.blame(p, err)
			if errors.Is(err, GuardError) {
				confirm(p)
			}
			p.fail(err)
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
		confirm(p)
		p.find(outcomes[i])
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
		if p.blamed.isLock() {
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
	if h := p.command.holder; h != nil {
		return source{tenant: p.tenant, holder: nameOfHolder(h.workflow, h.businessKey)}
	}
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
	if h := p.command.holder; h != nil {
		setTrack(s, p, source{tenant: p.tenant, workflow: h.workflow, event: p.command.Event})
		return
	}
	ctx, cancel := context.WithDeadline(p.ctx, until)
	defer cancel()
	if i, err := s.get(ctx, p.tenant, p.command.ID); err == nil {
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
		// Nothing has locked an instance that does not exist.
		if _, err2 := s.preview(context.Background(), p); !database.IsGuardFailure(err2) && !errors.Is(err2, errNoHolder) {
			s.slowness.blame(locked(p))
			return fromDatabase(err)
		}
	}
	e, workflow := s.guardError(p, err)
	if workflow != "" {
		p.finding.workflow = workflow
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
		again := Position{Workflow: p.command.Workflow, Context: p.command.Context}
		if _, previewErr := (Simulator{s, s.db.TryCommand}).Start(context.Background(), again, p.command.Actor); !errors.Is(previewErr, GuardError) {
			return fromDatabase(err)
		}
	}
	x, _ := sourceOfCreate(p, queries.Outcome{})
	s.slowness.blame(x)
	p.finding.declared = !database.IsCode(err, database.QueryCanceled) // Else it is not certain that a guard was evaluated.
	return newGuardError(err)
}

// newGuardError is the GuardError of a call that failed in a guard or a value. Its fault, if there is one, says which and
// why: the engine raises it with the JSON Pointer of the guard or value in the definition.
func newGuardError(err error) *Error {
	e := &Error{
		Kind:    GuardError,
		Message: "a guard or an assign of the definition fails or takes too long on this input; nothing was changed",
		Cause:   err,
	}
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok && strings.HasPrefix(pg.ColumnName, "/") {
		e.Faults = []Fault{{Pointer: pg.ColumnName, Detail: strings.TrimPrefix(pg.Message, pg.ColumnName+": ")}}
	}
	return e
}

// find reads the instance that a fire is for.
func (s *Service) find(ctx context.Context, p *pending[FireCommand, Result]) (i Instance, err error) {
	id := p.command.ID
	if p.command.holder != nil {
		err = s.db.Read(ctx, func(ctx context.Context, q *queries.Queries) (err error) {
			id, err = holderID(ctx, q, p)
			return err
		})
		if err != nil {
			return Instance{}, err
		}
	}
	return s.get(ctx, p.tenant, id)
}

// guardError is the GuardError of a fire, with the instance as it is. workflow is the instance's; empty if it
// is not known.
func (s *Service) guardError(p *pending[FireCommand, Result], err error) (e *Error, workflow string) {
	e = newGuardError(err)
	e.Refusal = &Refusal{Event: p.command.Event}
	if h := p.command.holder; h != nil {
		workflow = h.workflow
	}
	if i, err := s.find(context.Background(), p); err == nil {
		e.Refusal.State, e.Refusal.Status, e.Refusal.Version, e.Refusal.AcceptedEvents = i.State, i.Status, i.Version, i.AcceptedEvents
		workflow = i.Workflow
	}
	return e, workflow
}
