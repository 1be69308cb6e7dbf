package fsm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/fsm/definition"
)

// maxChecks is how often a document is checked because the engine asks for it. More than one check is
// needed only if the schema changes between a check and the next call.
const maxChecks = 4

var errSchemaKeepsChanging = &Error{Kind: Unavailable, Message: "the schema changed while the document was checked; try again"}

// answerCreate turns an outcome of the engine into the command's result or error. If answered is false, the
// command must be called again: the context is still to be checked, and the command has a check for that.
func (s *Service) answerCreate(p *pending[CreateCommand, Result], o queries.Outcome) (answered bool, result Result, err error) {
	if o.Code == "context-unchecked" {
		p.check = func() error {
			err := check(s, p, &p.checked, o.Schema, p.command.Context, "/context", InvalidContext)
			s.guesses.created(p.command.Workflow, p.checked)
			return err
		}
		return false, Result{}, nil
	}
	if o.Code == "applied" {
		s.guesses.moved(o)
	}
	e := &Error{Replayed: o.Replayed}
	if o.Code == "invariant-broken" {
		e.Refusal = &Refusal{Guards: o.Guards}
	}
	result, err = resultOf(o, e)
	result.Created = err == nil
	if errors.Is(err, WorkflowNotFound) {
		err = NoWorkflow(p.command.Workflow, 0)
	}
	return true, result, err
}

// answerFire is answerCreate for an event and its payload, and the context of the instance that it may start. The
// outcome may also be 'undecided': the payload
// of an earlier command for the instance must be checked first.
func (s *Service) answerFire(p *pending[FireCommand, Result], o queries.Outcome) (answered bool, result Result, err error) {
	switch o.Code {
	case "payload-unchecked":
		p.check = func() error {
			err := check(s, p, &p.checked, o.Schema, p.command.Payload, "/payload", InvalidPayload)
			s.guesses.fired(o, p.command.Event, p.checked)
			return err
		}
		return false, Result{}, nil
	case "context-unchecked":
		h := p.command.holder
		p.check = func() error {
			err := check(s, p, &h.checked, o.Schema, h.start.Context, "/start/context", InvalidContext)
			s.guesses.created(h.workflow, h.checked)
			return err
		}
		return false, Result{}, nil
	case "undecided":
		return false, Result{}, nil
	case "applied":
		s.guesses.moved(o)
	}
	e := &Error{Replayed: o.Replayed}
	if o.State != nil {
		e.Refusal = &Refusal{
			Event: p.command.Event, State: *o.State, Status: Status(*o.Status), Version: *o.Version,
			AcceptedEvents: o.Actions, Guards: o.Guards, Expected: p.command.Expect,
		}
	} else if o.Code == "version-mismatch" {
		e.Refusal = &Refusal{Event: p.command.Event, Expected: p.command.Expect}
	}
	result, err = resultOf(o, e)
	if h := p.command.holder; h != nil {
		result.Created = h.created
		err = h.explain(err)
	}
	return true, result, err
}

// explain words an error for a command that fires at a holder.
func (h *holder) explain(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, WorkflowNotFound):
		return NoWorkflow(h.workflow, 0)
	case errors.Is(err, InstanceNotFound):
		return NoHolder()
	}
	return Within("/start", err) // Only what is wrong with the start has a pointer.
}

// check checks a command's document against the schema that the engine asks for, and notes its checksum in checked; see
// CheckDocument.
func check[C any](s *Service, p *pending[C, Result], checked *string, schema, document json.RawMessage, pointer string, kind Kind) (err error) {
	if p.checks++; p.checks > maxChecks {
		return errSchemaKeepsChanging
	}
	*checked, err = CheckDocument(p.ctx, &s.schemas, schema, document, pointer, kind)
	return err
}

// guess checks a command's document against the schema that the engine will probably ask for, and gives up at the
// time until. If the document fits, it notes the checksum in checked. A document that does not fit is no error here: if the guess was right, the engine asks for the check.
func guess[C any](s *Service, p *pending[C, Result], checked *string, checksum string, document json.RawMessage, until time.Time) {
	if checksum == "" {
		return
	}
	ctx, cancel := context.WithDeadline(p.ctx, until)
	defer cancel()
	if s.schemas.Fits(ctx, checksum, document) {
		*checked = checksum
	}
}

// CheckDocument checks a document, which stands at a JSON Pointer in the request, against a JSON Schema. It
// returns the schema's checksum, also if the document does not fit; see [definition.Schemas.Check]. Then the error has
// the kind and the faults. Kinds: the given one; Unavailable if other checks take all the time that there is for
// them, or ctx ends; Internal if the schema cannot be read.
func CheckDocument(
	ctx context.Context, schemas *definition.Schemas, schema, document json.RawMessage, pointer string, kind Kind,
) (checksum string, err error) {
	checksum, faults, err := schemas.Check(ctx, schema, document, pointer)
	if err != nil {
		return "", AsError(err)
	}
	if len(faults) > 0 {
		return checksum, &Error{Kind: kind, Message: "the document does not fit its schema", Faults: Faults(faults)}
	}
	return checksum, nil
}

// RefusalFor returns the error of a refusal of the database that is about no event.
func RefusalFor(code string) error {
	_, err := resultOf(queries.Outcome{Code: code}, &Error{})
	return err
}

// resultOf is the one place where an outcome of the engine becomes a result or gets a Kind. e has what does
// not depend on the kind; a refusal is e with its kind and its message.
func resultOf(o queries.Outcome, e *Error) (Result, error) {
	switch o.Code {
	case "applied":
		return Result{
			Replayed: o.Replayed,
			Instance: Instance{
				ID: *o.ID, Workflow: *o.Workflow, WorkflowVersion: int(*o.WorkflowVersion), State: *o.State,
				Status: Status(*o.Status), Version: *o.Version, Context: o.Context, BusinessKey: o.BusinessKey,
				CorrelationID: o.CorrelationID, AcceptedEvents: o.Actions, CreatedAt: *o.CreatedAt,
				StateChangedAt: *o.StateChangedAt, ExpiresAt: o.ExpiresAt, Error: o.Error,
				NextTimeout: nextTimeout(o.TimeoutEvent, o.TimeoutDueAt, nil),
			},
		}, nil
	case "workflow-not-found":
		e.Kind, e.Message = WorkflowNotFound, "there is no such workflow"
	case "instance-not-found":
		e.Kind, e.Message = InstanceNotFound, "there is no such instance"
	case "instance-exists":
		e.Kind, e.InstanceID = InstanceExists, *o.ID
		e.Message = fmt.Sprintf("instance %s already has this business key", *o.ID)
	case "limit-reached":
		e.Kind, e.Limit = LimitReached, &ReachedLimit{}
		if err := json.Unmarshal(o.Schema, e.Limit); err != nil {
			e.Kind, e.Cause = Internal, fmt.Errorf("limit: %w", err)
		}
		e.Message = fmt.Sprintf("the tenant has %d %s, and may have %d", e.Limit.Used, e.Limit.Name, e.Limit.Limit)
	case "lifetime-without-ttl":
		e.Kind, e.Message = Malformed, "the workflow has no ttl"
		e.Faults = []Fault{{Pointer: "/expires_in", Detail: "the workflow has no ttl whose target an expiry could lead to"}}
	case "unknown-state":
		e.Kind, e.Message = Malformed, "the instance's version of the workflow has no such state"
		e.Faults = []Fault{{Pointer: "/to", Detail: "must be the path of a state of the instance's version of the workflow"}}
	case "context-too-large":
		e.Kind, e.Message = TooLarge, "the context is, or would become, larger than the limit"
	case "context-too-deep":
		e.Kind, e.Message = TooLarge, "the context would become nested deeper than 64"
	case "payload-too-large":
		e.Kind, e.Message = TooLarge, "the payload is larger than the limit"
	case "malformed-request":
		e.Kind, e.Message = Malformed, "context and payload must be JSON objects, nested at most 64 deep"
	case "idempotency-key-reuse":
		e.Kind, e.Message = KeyReuse, "this idempotency key was used for another request; take a new one"
		e.Replayed = false
	case "version-mismatch":
		e.Kind = VersionMismatch
		e.Message = fmt.Sprintf("the instance is at version %d; read it again and decide anew", e.Refusal.Version)
		if e.Refusal.Version == 0 {
			e.Message = "no instance holds this business key, so none is at the expected version"
		}
	case "precondition-required":
		e.Kind = PreconditionRequired
		e.Message = fmt.Sprintf(
			"this workflow wants every event to name the version it has seen; the instance is at version %d", e.Refusal.Version)
	case "override-unconditional":
		e.Kind = PreconditionRequired
		e.Message = fmt.Sprintf("an override must name the version it has seen; the instance is at version %d", e.Refusal.Version)
	case "unknown-event":
		e.Kind, e.Message = UnknownEvent, fmt.Sprintf("the workflow has no event %q", e.Refusal.Event)
	case "transition-not-allowed":
		e.Kind = TransitionNotAllowed
		e.Message = fmt.Sprintf("the state %s has no transition for %s", e.Refusal.State, e.Refusal.Event)
	case "instance-final":
		e.Kind, e.Message = TransitionNotAllowed, fmt.Sprintf("the state %s is final, and nothing leaves it", e.Refusal.State)
	case "state-protected":
		e.Kind = StateProtected
		e.Message = fmt.Sprintf(
			"a protected state is neither left nor entered by hand; the instance is in %s, whose events and timers go on", e.Refusal.State)
	case "not-cancellable":
		e.Kind, e.Message = NotCancellable, "the workflow names no state for instances that are cancelled"
	case "guard-rejected":
		e.Kind = GuardRejected
		e.Message = fmt.Sprintf("no guard of %s in the state %s holds for this payload", e.Refusal.Event, e.Refusal.State)
	case "task-not-found":
		e.Kind, e.Message = NotFound, "there is no such task"
	case "lease-superseded":
		e.Kind, e.Message = LeaseSuperseded, "the lease is not the newest of the task: it was given back, its attempt has failed, or somebody else has claimed the task since"
	case "task-ended":
		e.Kind, e.Message = TaskEnded, "the task has ended"
	case "task-open":
		e.Kind, e.Message = TaskEnded, "the task is under way; wait for its end"
	case "invariant-broken":
		e.Kind, e.Message = GuardRejected, "the step would break an invariant"
	case "timer-loop":
		e.Kind, e.Message = GuardError, "timers of the instance follow one another without time passing; nothing was changed"
	case "always-loop":
		e.Kind, e.Message = GuardError, "eventless transitions follow one another without coming to rest; nothing was changed"
	default:
		e.Kind, e.Cause = Internal, fmt.Errorf("unknown outcome %q", o.Code)
	}
	return Result{}, e
}
