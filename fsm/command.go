package fsm

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"sync"
	"unicode/utf8"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/pawl-fsm/pawl/db/queries"
)

// A Reply is the outcome of one command of a batch: a result, or an error.
type Reply struct {
	Result
	Err error
}

// Create starts an instance.
//
// Kinds: Malformed, KeyInvalid, KeyReuse, WorkflowNotFound, InstanceExists, TooLarge,
// InvalidContext, CallbackSecretRequired, GuardError, Unavailable.
func (s *Service) Create(ctx context.Context, c CreateCommand) (Result, error) {
	r := s.Do(ctx, []Command{c})[0]
	return r.Result, r.Err
}

// Fire moves an instance along one transition.
//
// Kinds: Malformed, KeyInvalid, KeyReuse, InstanceNotFound, VersionMismatch,
// PreconditionRequired, TooLarge, UnknownEvent, TransitionNotAllowed, InvalidPayload,
// GuardRejected, GuardError, Unavailable.
func (s *Service) Fire(ctx context.Context, c FireCommand) (Result, error) {
	r := s.Do(ctx, []Command{c})[0]
	return r.Result, r.Err
}

// Do carries out commands and replies in their order. Each stands for itself: one that is
// refused undoes no other. Commands for one instance are carried out in order.
func (s *Service) Do(ctx context.Context, commands []Command) []Reply {
	if len(commands) == 1 {
		return s.do(ctx, commands)
	}
	replies := make([]Reply, 0, len(commands))
	for len(commands) > 0 {
		n := inAnyOrder(commands)
		replies = append(replies, s.do(ctx, commands[:n])...)
		commands = commands[n:]
	}
	return replies
}

// inAnyOrder counts the commands up to one whose key another kind of command has used
// before it. Creates and fires queue apart, so only one of them may be under way then.
func inAnyOrder(commands []Command) int {
	kinds := map[string]string{}
	for i, c := range commands {
		kind, tenant, key := c.identity()
		if key == "" {
			continue // No key is none in common.
		}
		if used, known := kinds[tenant+" "+key]; known && used != kind {
			return i
		}
		kinds[tenant+" "+key] = kind
	}
	return len(commands)
}

func (s *Service) do(ctx context.Context, commands []Command) []Reply {
	var (
		creates []*pending[CreateCommand]
		fires   []*pending[FireCommand]
		waits   = make([]func() (Result, error), len(commands))
		replies = make([]Reply, len(commands))
	)
	for i, command := range commands {
		switch c := command.(type) {
		case CreateCommand:
			c.Key = keyOr(c.Key)
			if replies[i].Err = cmp.Or(c.normalise(), s.checkCallback(ctx, &c)); replies[i].Err == nil {
				p := newPending(ctx, c, c.Tenant, "key "+c.Key)
				creates, waits[i] = append(creates, p), p.wait
			}
		case FireCommand:
			c.Key = keyOr(c.Key)
			if replies[i].Err = c.normalise(); replies[i].Err == nil {
				p := newPending(ctx, c, c.Tenant, "key "+c.Key, "instance "+c.ID.String())
				fires, waits[i] = append(fires, p), p.wait
			}
		}
	}
	submit(s.creates, creates)
	submit(s.fires, fires)
	for i, wait := range waits {
		if wait != nil {
			replies[i].Result, replies[i].Err = wait()
		}
	}
	return replies
}

func newPending[C any](ctx context.Context, c C, tenant string, exclusive ...string) *pending[C] {
	for i := range exclusive {
		exclusive[i] = tenant + " " + exclusive[i]
	}
	return &pending[C]{ctx: ctx, command: c, tenant: tenant, exclusive: exclusive, done: make(chan struct{})}
}

// keyOr returns a key that makes the service's own retries harmless, if there is none.
func keyOr(key string) string {
	if key == "" {
		return "auto:" + uuid.NewString()
	}
	return key
}

// submit queues commands, or settles all of them with what keeps them out.
func submit[C any](b *batcher[C], commands []*pending[C]) {
	if len(commands) == 0 {
		return
	}
	if err := b.submit(commands...); err != nil {
		for _, p := range commands {
			p.fail(err)
		}
	}
}

// FireTx moves an instance in the caller's own transaction, so that the step and the
// caller's rows commit together or not at all; it needs no key for that. A refusal leaves
// the transaction usable; a GuardError or a database error does not. The kinds are those
// of Fire.
func (s *Service) FireTx(ctx context.Context, tx pgx.Tx, c FireCommand) (Result, error) {
	return s.decide(&c, func(p *pending[FireCommand]) ([]queries.Outcome, error) {
		outcomes, err := fire(ctx, queries.New(tx), []*pending[FireCommand]{p})
		if err != nil {
			return nil, s.blame(p, err)
		}
		return outcomes, nil
	})
}

// Preview says what Fire would come to and writes nothing. A Result shows the instance
// as it would be, one version on. Keys play no part. The kinds are those of Fire.
func (s *Service) Preview(ctx context.Context, c FireCommand) (Result, error) {
	return s.decide(&c, func(p *pending[FireCommand]) ([]queries.Outcome, error) {
		outcomes, err := s.preview(ctx, p)
		switch {
		case isGuardFailure(err):
			return nil, s.guardError(p, err)
		case err != nil:
			return nil, fromDatabase(err)
		}
		return outcomes, nil
	})
}

// decide calls for one command that is not queued until its payload needs no check.
func (s *Service) decide(c *FireCommand, call func(*pending[FireCommand]) ([]queries.Outcome, error)) (Result, error) {
	if err := c.normalise(); err != nil {
		return Result{}, err
	}
	p := newPending(context.Background(), *c, c.Tenant)
	for range maxRounds {
		outcomes, err := call(p)
		if err != nil {
			return Result{}, err
		}
		if settled, err := s.settleFire(p, outcomes[0]); settled {
			return p.result, p.err
		} else if err != nil {
			return Result{}, err
		}
	}
	return Result{}, errSchemaKeepsChanging
}

func (s *Service) preview(ctx context.Context, p *pending[FireCommand]) (outcomes []queries.Outcome, err error) {
	_, err = s.attempt(ctx, func(ctx context.Context) error {
		return pgx.BeginTxFunc(ctx, s.pool, pgx.TxOptions{AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) (err error) {
			c := &p.command
			outcomes, err = queries.New(tx).Preview(ctx, queries.PreviewParams{
				Tenant: p.tenant, Ids: []uuid.UUID{c.ID}, Events: []string{c.Event}, Payloads: []rawJSON{rawJSON(c.Payload)},
				Expected: []string{c.Expect.literal}, Checked: []string{p.checked},
			})
			return err
		})
	})
	return outcomes, err
}

// maxRounds bounds how often a command is sent again because the schema that its
// document must be checked against has changed meanwhile.
const maxRounds = 4

var errSchemaKeepsChanging = &Error{Kind: Unavailable, Message: "the schema changed while the document was checked; try again"}

var emptyJSON = rawJSON(`{}`)

// IsVisible says whether a text is 1 to max visible ASCII characters.
func IsVisible(text string, max int) bool {
	for i := range len(text) {
		if text[i] < '!' || text[i] > '~' {
			return false
		}
	}
	return text != "" && len(text) <= max
}

// CheckKey returns a KeyInvalid error unless the key is 1 to 255 visible ASCII characters.
func CheckKey(key string) error {
	if IsVisible(key, 255) {
		return nil
	}
	return errorf(KeyInvalid, "an idempotency key must have 1 to 255 visible ASCII characters")
}

// normalise fills in defaults and refuses what the database must not see.
func (c *CreateCommand) normalise() error {
	if err := normalise(&c.Tenant, &c.Key, &c.Context, "/context", &c.Origin); err != nil {
		return err
	}
	if err := checkText("/business_key", c.BusinessKey, 255); err != nil {
		return err
	}
	if err := checkText("/correlation_id", c.CorrelationID, 255); err != nil {
		return err
	}
	if c.ExpiresIn < 0 || c.ExpiresIn > MaxDuration {
		return malformed("/expires_in", "must be positive and at most "+FormatDuration(MaxDuration))
	}
	return checkText("", c.Workflow, 255)
}

func (c *FireCommand) normalise() error {
	if err := normalise(&c.Tenant, &c.Key, &c.Payload, "/payload", &c.Origin); err != nil {
		return err
	}
	return checkText("", c.Event, 255)
}

func normalise(tenant, key *string, document *rawJSON, at string, o *Origin) error {
	if *key != "" {
		if err := CheckKey(*key); err != nil {
			return err
		}
	}
	if *document == nil {
		*document = emptyJSON
	} else if err := checkObject(*document); err != nil {
		if e, ok := errors.AsType[*Error](err); ok {
			e.Faults[0].Pointer = at + e.Faults[0].Pointer
		}
		return err
	}
	return o.normalise(tenant)
}

// normalise fills in whom a command acts for, and refuses what the database must not see.
func (o *Origin) normalise(tenant *string) error {
	*tenant, o.Actor = cmp.Or(*tenant, DefaultTenant), cmp.Or(o.Actor, "anonymous")
	return checkTexts(
		boundedText{"", *tenant, 63}, boundedText{"", o.Actor, 255}, boundedText{"/reason", o.Reason, 1000},
		boundedText{"", o.CorrelationID, 255}, boundedText{"", o.Traceparent, 255})
}

// boundedText is a text of at most max characters, and where it stands.
type boundedText struct {
	at, text string
	max      int
}

// checkTexts is checkText for several.
func checkTexts(texts ...boundedText) error {
	for _, t := range texts {
		if err := checkText(t.at, t.text, t.max); err != nil {
			return err
		}
	}
	return nil
}

// checkText refuses text that Postgres cannot hold, or that is too long.
func checkText(at, text string, maxCharacters int) error {
	if !utf8.ValidString(text) || containsNUL(text) {
		return malformed(at, "must be UTF-8 without NUL")
	}
	if utf8.RuneCountInString(text) > maxCharacters {
		return malformed(at, fmt.Sprintf("must have at most %d characters", maxCharacters))
	}
	return nil
}

// create and fire make the calls, one outcome per command in their order.

func create(ctx context.Context, q *queries.Queries, batch []*pending[CreateCommand]) ([]queries.Outcome, error) {
	p := queries.CreateParams{Tenant: batch[0].tenant}
	for _, c := range batch {
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
	if slices.ContainsFunc(batch, func(c *pending[CreateCommand]) bool { return c.command.CallbackURL != "" }) {
		for _, c := range batch {
			p.CallbackUrls = append(p.CallbackUrls, c.command.CallbackURL)
			p.CallbackSecrets = append(p.CallbackSecrets, c.command.CallbackSecret)
		}
	}
	return inOrder(len(batch))(q.Create(ctx, p))
}

func fire(ctx context.Context, q *queries.Queries, batch []*pending[FireCommand]) ([]queries.Outcome, error) {
	p := queries.FireParams{Tenant: batch[0].tenant}
	for _, c := range batch {
		p.Ids = append(p.Ids, c.command.ID)
		p.Events = append(p.Events, c.command.Event)
		p.Payloads = append(p.Payloads, c.command.Payload)
		p.Keys = append(p.Keys, c.command.Key)
		p.Expected = append(p.Expected, c.command.Expect.literal)
		p.Checked = append(p.Checked, c.checked)
		p.Actors = append(p.Actors, c.command.Actor)
		p.Reasons = append(p.Reasons, c.command.Reason)
		p.CorrelationIds = append(p.CorrelationIds, c.command.CorrelationID)
		p.Traceparents = append(p.Traceparents, c.command.Traceparent)
	}
	return inOrder(len(batch))(q.Fire(ctx, p))
}

// inOrder sorts the rows of a call by the command they belong to.
func inOrder(n int) func([]queries.Outcome, error) ([]queries.Outcome, error) {
	return func(rows []queries.Outcome, err error) ([]queries.Outcome, error) {
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
}

func (s *Service) flushCreates(batch []*pending[CreateCommand]) (away bool) {
	return flush(s, batch, create, s.settleCreate, s.blameCreate)
}

func (s *Service) flushFires(batch []*pending[FireCommand]) (away bool) {
	return flush(s, batch, fire, s.settleFire, s.blame)
}

// flush makes one call for a batch and settles its commands. If the call fails for
// another reason than the way there, its commands are called one by one, so that the
// one to blame harms no other. Commands whose document turns out to need a check
// against a schema are checked and called again, while no other command can overtake.
// It says whether the database is away.
func flush[C any](
	s *Service, batch []*pending[C],
	call func(context.Context, *queries.Queries, []*pending[C]) ([]queries.Outcome, error),
	settle func(*pending[C], queries.Outcome) (bool, error),
	blame func(*pending[C], error) error,
) (away bool) {
	defer failAll(batch)
	for range maxRounds {
		var outcomes []queries.Outcome
		unanswered, err := s.attempt(context.Background(), func(ctx context.Context) (err error) {
			outcomes, err = call(ctx, s.queries, batch)
			return err
		})
		if unanswered {
			for _, p := range batch {
				p.unanswered = true
			}
		}
		if err != nil {
			if len(batch) == 1 || isConnectionError(err) {
				for _, p := range batch {
					p.fail(blame(p, err))
				}
				return isConnectionError(err)
			}
			var singles sync.WaitGroup
			slots := make(chan struct{}, s.config.Flushers)
			for _, p := range batch {
				slots <- struct{}{}
				singles.Go(func() {
					defer func() { <-slots }()
					flush(s, []*pending[C]{p}, call, settle, blame)
				})
			}
			singles.Wait()
			return false
		}
		var again []*pending[C]
		var moved []uuid.UUID
		for i, p := range batch {
			// What an unanswered attempt of its own did is no replay.
			outcomes[i].Replayed = outcomes[i].Replayed && !p.unanswered
			if outcomes[i].Outcome == "applied" && !outcomes[i].Replayed {
				moved = append(moved, *outcomes[i].ID)
			}
			settled, err := settle(p, outcomes[i])
			switch {
			case settled:
				close(p.done)
			case err != nil:
				p.fail(err)
			default:
				again = append(again, p)
			}
		}
		s.moved.add(moved)
		if batch = again; len(batch) == 0 {
			return false
		}
	}
	for _, p := range batch {
		p.fail(errSchemaKeepsChanging)
	}
	return false
}

// failAll, deferred, settles commands whose call panicked.
func failAll[C any](batch []*pending[C]) {
	if cause := recover(); cause != nil {
		for _, p := range batch {
			p.fail(&Error{Kind: Internal, cause: fmt.Errorf("panic: %v\n%s", cause, debug.Stack())})
		}
	}
}

// blame says what a call for a single command failed for. One that ran into the statement
// timeout waited for something if the same decision is quick without writing; else a
// guard or an assign is slow.
func (s *Service) blame(p *pending[FireCommand], err error) error {
	if !isGuardFailure(err) {
		return fromDatabase(err)
	}
	if isCode(err, queryCanceled) {
		if _, previewErr := s.preview(context.Background(), p); !isGuardFailure(previewErr) {
			return fromDatabase(err)
		}
	}
	return s.guardError(p, err)
}

// blameCreate is blame for a creation, which assigns and is led on by what the definition
// says of the initial state.
func (s *Service) blameCreate(p *pending[CreateCommand], err error) error {
	if !isGuardFailure(err) {
		return fromDatabase(err)
	}
	if isCode(err, queryCanceled) {
		w, err := s.GetWorkflow(context.Background(), p.command.Workflow, 0)
		if err == nil {
			_, err = s.simulateCreate(context.Background(), w, p.command.Context)
		}
		if !errors.Is(err, GuardError) {
			return fromDatabase(err)
		}
	}
	return &Error{Kind: GuardError, Message: guardErrorMessage, cause: err}
}

const guardErrorMessage = "a guard or an assign of the definition fails or takes too long on this input; nothing was changed"

func (s *Service) guardError(p *pending[FireCommand], err error) *Error {
	e := &Error{
		Kind:    GuardError,
		Message: guardErrorMessage,
		Refusal: &Refusal{Event: p.command.Event},
		cause:   err,
	}
	if i, err := s.Get(context.Background(), p.tenant, p.command.ID); err == nil {
		e.Refusal.State, e.Refusal.Status, e.Refusal.Version, e.Refusal.AllowedEvents = i.State, i.Status, i.Version, i.Actions
	}
	return e
}

// settleCreate turns an outcome into the command's result or error. If the context must
// be checked first, it is; then the command is not settled, and the error, if any, is
// what the check failed with.
func (s *Service) settleCreate(p *pending[CreateCommand], o queries.Outcome) (settled bool, err error) {
	if o.Outcome == "context-unchecked" {
		return false, s.checkDocument(&p.checked, o.Schema, p.command.Context, "/context", InvalidContext)
	}
	p.result, p.err = resultOf(o, &Error{Replayed: o.Replayed})
	return true, nil
}

func (s *Service) settleFire(p *pending[FireCommand], o queries.Outcome) (settled bool, err error) {
	if o.Outcome == "payload-unchecked" {
		return false, s.checkDocument(&p.checked, o.Schema, p.command.Payload, "/payload", InvalidPayload)
	}
	e := &Error{Replayed: o.Replayed}
	if o.State != nil {
		e.Refusal = &Refusal{
			Event: p.command.Event, State: *o.State, Status: Status(*o.Status), Version: *o.Version,
			AllowedEvents: o.Actions, Guards: o.Guards, Expected: p.command.Expect.String(),
		}
	}
	p.result, p.err = resultOf(o, e)
	return true, nil
}

func (s *Service) checkDocument(checked *string, schema, document rawJSON, at string, kind Kind) error {
	sum, faults, err := s.schemas.check(schema, document, at)
	if err != nil {
		return &Error{Kind: Internal, cause: err}
	}
	if len(faults) > 0 {
		return &Error{Kind: kind, Message: "the document does not fit its schema", Faults: faults}
	}
	*checked = sum
	return nil
}

// resultOf is the one place where an outcome of the engine becomes a result or a Kind.
func resultOf(o queries.Outcome, e *Error) (Result, error) {
	switch o.Outcome {
	case "applied":
		return Result{
			Replayed: o.Replayed,
			Instance: Instance{
				ID: *o.ID, Workflow: *o.Workflow, WorkflowVersion: int(*o.WorkflowVersion), State: *o.State,
				Status: Status(*o.Status), Version: *o.Version, Context: o.Context, BusinessKey: o.BusinessKey,
				CorrelationID: o.CorrelationID, Actions: o.Actions, CreatedAt: *o.CreatedAt,
				StateChangedAt: *o.StateChangedAt, ExpiresAt: o.ExpiresAt, Error: o.Error,
			},
		}, nil
	case "workflow-not-found":
		e.Kind, e.Message = WorkflowNotFound, "there is no such workflow"
	case "instance-not-found":
		e.Kind, e.Message = InstanceNotFound, "there is no such instance"
	case "instance-exists":
		e.Kind, e.InstanceID = InstanceExists, *o.ID
		e.Message = fmt.Sprintf("instance %s already has this business key", *o.ID)
	case "lifetime-without-ttl":
		e.Kind, e.Message = Malformed, "the workflow has no ttl"
		e.Faults = []Fault{{Pointer: "/expires_in", Detail: "the workflow has no ttl whose target an expiry could lead to"}}
	case "context-too-large":
		e.Kind, e.Message = TooLarge, "the context is, or would become, larger than the limit"
	case "payload-too-large":
		e.Kind, e.Message = TooLarge, "the payload is larger than the limit"
	case "malformed-request":
		e.Kind, e.Message = Malformed, "context and payload must be JSON objects"
	case "idempotency-key-reuse":
		e.Kind, e.Message = KeyReuse, "this idempotency key was used for another request; take a new one"
		e.Replayed = false
	case "version-mismatch":
		e.Kind = VersionMismatch
		e.Message = fmt.Sprintf("the instance is at version %d; read it again and decide anew", e.Refusal.Version)
	case "precondition-required":
		e.Kind = PreconditionRequired
		e.Message = fmt.Sprintf(
			`this workflow wants every event to name the version it has seen: send it again with If-Match: "%d"`, e.Refusal.Version)
	case "unknown-event":
		e.Kind, e.Message = UnknownEvent, fmt.Sprintf("the workflow has no event %q", e.Refusal.Event)
	case "transition-not-allowed":
		e.Kind = TransitionNotAllowed
		e.Message = fmt.Sprintf("the state %s has no transition for %s", e.Refusal.State, e.Refusal.Event)
	case "guard-rejected":
		e.Kind = GuardRejected
		e.Message = fmt.Sprintf("no guard of %s in the state %s holds for this payload", e.Refusal.Event, e.Refusal.State)
	case "always-loop":
		e.Kind, e.Message = GuardError, "eventless transitions follow one another without coming to rest; nothing was changed"
	default:
		e.Kind, e.cause = Internal, fmt.Errorf("unknown outcome %q", o.Outcome)
	}
	return Result{}, e
}
