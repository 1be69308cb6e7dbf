package fsm

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode"

	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/fsm/definition"
	"github.com/pawl-fsm/pawl/fsm/internal/database"
)

// OverrideCommand asks for a step that the instance's definition does not allow now: either along a transition of Event
// whose guard is passed over, or to the state To.
type OverrideCommand struct {
	// Tenant whose instance it is; up to 63 characters. Default DefaultTenant.
	Tenant string
	// ID is that of the instance.
	ID uuid.UUID
	// To is the path of a state of the instance's version of its workflow. With a compound state the instance gets into
	// its initial state.
	To string
	// ContextPatch, with To, is a JSON Merge Patch (RFC 7396) of the context; nil changes nothing. If the context fitted
	// the workflow's schema before it, it must fit after it.
	ContextPatch json.RawMessage
	// Event is fired as a FireCommand does, but for its guards.
	Event string
	// Payload, with Event, is a JSON object; nil means an empty one.
	Payload json.RawMessage
	// Bypass, with Event, must be "guard".
	Bypass string
	// Target, with Event, is the path of a state: the transition must lead there, or to a state within. Empty: the first
	// transition of the event is taken.
	Target string
	// Key is the idempotency key, as in a FireCommand.
	Key string
	// Expect must name versions, or any.
	Expect Expect
	// Origin has a Reason, which is not blank.
	Origin
}

// CancelCommand asks for a step to the state that the definition names for cancels.
type CancelCommand struct {
	// Tenant whose instance it is; up to 63 characters. Default DefaultTenant.
	Tenant string
	// ID is that of the instance.
	ID uuid.UUID
	// Key is the idempotency key, as in a FireCommand.
	Key string
	// Expect is optional, whatever the workflow requires of events.
	Expect Expect
	// Origin has a Reason, which is not blank.
	Origin
}

// Override makes a step in the name of an operator, and the eventless steps that follow. A final instance does not move,
// and a protected state is neither left nor entered. The audit tells of it.
//
// Kinds: Malformed, KeyInvalid, KeyReuse, InstanceNotFound, VersionMismatch, PreconditionRequired, TooLarge,
// UnknownEvent, TransitionNotAllowed, StateProtected, InvalidPayload, InvalidContext, GuardRejected (of an invariant),
// GuardError, Unavailable.
func (s *Service) Override(ctx context.Context, c OverrideCommand) (Result, error) {
	return s.override(ctx, c, false)
}

// PreviewOverride is a dry run of Override, as Preview is one of Fire.
func (s *Service) PreviewOverride(ctx context.Context, c OverrideCommand) (Result, error) {
	return s.override(ctx, c, true)
}

// Cancel moves an instance to the state that its definition names for cancels, as Override would.
//
// Kinds: Malformed, KeyInvalid, KeyReuse, InstanceNotFound, VersionMismatch, TooLarge, TransitionNotAllowed,
// NotCancellable, StateProtected, GuardRejected (of an invariant), GuardError, Unavailable.
func (s *Service) Cancel(ctx context.Context, c CancelCommand) (Result, error) {
	return s.cancel(ctx, c, false)
}

// PreviewCancel is a dry run of Cancel, as Preview is one of Fire.
func (s *Service) PreviewCancel(ctx context.Context, c CancelCommand) (Result, error) {
	return s.cancel(ctx, c, true)
}

func (s *Service) override(ctx context.Context, c OverrideCommand, dryRun bool) (Result, error) {
	f := force{tenant: c.Tenant, id: c.ID, event: c.Event, target: c.Target, payload: c.Payload, key: c.Key, expect: c.Expect, origin: c.Origin}
	if err := cmp.Or(c.Check(), f.normalise()); err != nil {
		return Result{}, err
	}
	end := s.beginForce("override", &f, dryRun)
	p := queries.OverrideParams{
		Tenant: f.tenant, ID: f.id, Key: f.key, Expected: f.expect.parameter, Actor: f.origin.Actor, Reason: f.origin.Reason,
		CorrelationID: f.origin.CorrelationID, Traceparent: f.origin.Traceparent, Verified: !s.config.UnverifiedActors,
		Caller: CallerJSON(ctx),
	}
	if c.Event == "" {
		p.ToState, p.ContextPatch = &c.To, c.ContextPatch
	} else {
		p.Event, p.Payload, p.Bypass, p.Target = &c.Event, f.payload, &c.Bypass, database.Optional(c.Target)
	}
	f.call = func(ctx context.Context, q *queries.Queries, dryRun bool) (queries.Outcome, error) {
		p.DryRun, p.Checked, p.PatchChecked = dryRun, f.checked, f.patchChecked
		return q.Override(ctx, p)
	}
	result, err := s.force(ctx, &f, dryRun)
	end(result, err)
	return result, err
}

func (s *Service) cancel(ctx context.Context, c CancelCommand, dryRun bool) (Result, error) {
	f := force{tenant: c.Tenant, id: c.ID, key: c.Key, expect: c.Expect, origin: c.Origin}
	if err := f.normalise(); err != nil {
		return Result{}, err
	}
	end := s.beginForce("cancel", &f, dryRun)
	p := queries.CancelParams{
		Tenant: f.tenant, ID: f.id, Key: f.key, Expected: f.expect.parameter, Actor: f.origin.Actor, Reason: f.origin.Reason,
		CorrelationID: f.origin.CorrelationID, Traceparent: f.origin.Traceparent, Verified: !s.config.UnverifiedActors,
		Caller: CallerJSON(ctx),
	}
	f.call = func(ctx context.Context, q *queries.Queries, dryRun bool) (queries.Outcome, error) {
		p.DryRun = dryRun
		return q.Cancel(ctx, p)
	}
	result, err := s.force(ctx, &f, dryRun)
	end(result, err)
	return result, err
}

// beginForce begins the span of an override or a cancel, unless it is a dry run. Overrides are counted as the events
// _override and _cancel.
func (s *Service) beginForce(operation string, f *force, dryRun bool) (end func(Result, error)) {
	if dryRun {
		return func(Result, error) {}
	}
	ended := s.begin(operation, &f.origin)
	return func(r Result, err error) {
		found := finding{workflow: f.workflow, declared: f.workflow != "", decided: err == nil}
		s.answered(f.tenant, "", "_"+operation, f.key, found, ended, Reply{Result: r, Err: err})
	}
}

// Check returns a Malformed error unless To, ContextPatch, Event, Payload, Bypass and Target go together.
func (c *OverrideCommand) Check() error {
	switch {
	case (c.Event == "") == (c.To == ""):
		return MalformedAt("", "must have either event, with bypass, or to")
	case c.To != "" && c.Bypass != "":
		return MalformedAt("/bypass", "goes with event")
	case c.To != "" && c.Target != "":
		return MalformedAt("/target", "goes with event")
	case c.To != "" && c.Payload != nil:
		return MalformedAt("/payload", "goes with event")
	case c.Event != "" && c.Bypass != "guard":
		return MalformedAt("/bypass", "must be guard: an override by an event passes over its guards. If they are to count, fire the event")
	case c.Event != "" && c.ContextPatch != nil:
		return MalformedAt("/context_patch", "goes with to")
	}
	if err := CheckTexts(Text{"/to", c.To, 255}, Text{"/event", c.Event, 255}, Text{"/target", c.Target, 255}); err != nil {
		return err
	}
	if c.ContextPatch == nil {
		return nil
	}
	if err := definition.CheckObject(c.ContextPatch); err != nil {
		return Within("/context_patch", err)
	}
	return nil
}

// force is an override or a cancel on its way.
type force struct {
	tenant         string
	id             uuid.UUID
	workflow       string // Of the instance; empty if the engine has found none.
	event, target  string // Empty if none is fired, and if any target will do.
	payload        json.RawMessage
	key            string
	expect         Expect
	origin         Origin
	call           func(ctx context.Context, q *queries.Queries, dryRun bool) (queries.Outcome, error)
	checked        string // The checksum of the schema that the payload was checked against.
	patchChecked   string // The version of the instance for which the patched context was checked.
	checks         int
	unacknowledged bool  // An attempt may have had its effect.
	before         int64 // In a dry run: see Result.
}

// CheckReason returns a Malformed error if a reason that an operator must give is blank.
func CheckReason(reason string) error {
	if !strings.ContainsFunc(reason, func(r rune) bool { return unicode.IsGraphic(r) && !unicode.IsSpace(r) }) {
		return MalformedAt("/reason", "must have 1 to 1,000 characters, and some that can be seen")
	}
	return nil
}

// normalise fills in defaults, and refuses what the database could not store.
func (f *force) normalise() error {
	f.key = keyOr(f.key)
	if err := CheckReason(f.origin.Reason); err != nil {
		return err
	}
	return normalise(&f.tenant, f.key, &f.payload, "/payload", &f.origin)
}

// force makes calls until nothing remains to be checked.
func (s *Service) force(ctx context.Context, f *force, dryRun bool) (Result, error) {
	for {
		o, err := s.callForce(ctx, f, dryRun)
		if err != nil {
			return Result{}, s.blameForce(ctx, f, dryRun, err)
		}
		if o.Workflow != nil {
			f.workflow = *o.Workflow
		}
		switch o.Code {
		case "payload-unchecked", "context-unchecked":
			if f.checks++; f.checks > maxChecks {
				return Result{}, errSchemaKeepsChanging
			}
			if err := s.checkForce(ctx, f, o); err != nil {
				return Result{}, err
			}
			continue
		}
		o.Replayed = o.Replayed && !f.unacknowledged
		if o.Code == "applied" && !o.Replayed && !dryRun {
			s.guesses.moved(o)
			s.config.Moved([]uuid.UUID{f.id})
		}
		e := &Error{Replayed: o.Replayed}
		if o.State != nil {
			e.Refusal = &Refusal{
				Event: f.event, State: *o.State, Status: Status(*o.Status), Version: *o.Version,
				AcceptedEvents: o.Actions, Guards: o.Guards, Expected: f.expect,
			}
		}
		r, err := resultOf(o, e)
		if o.Code == "transition-not-allowed" && f.target != "" {
			e.Message += fmt.Sprintf(" that leads to %s, or to a state within", f.target)
		}
		r.Before = f.before
		return r, err
	}
}

// callForce calls the engine once. It returns the driver's error.
func (s *Service) callForce(ctx context.Context, f *force, dryRun bool) (o queries.Outcome, err error) {
	call := func(ctx context.Context, q *queries.Queries) (err error) {
		o, err = f.call(ctx, q, dryRun)
		return err
	}
	if dryRun {
		return o, s.db.Try(ctx, func(ctx context.Context, q *queries.Queries) error {
			if f.before, err = versionOf(ctx, q, f.tenant, f.id); err != nil {
				return err
			}
			return call(ctx, q)
		})
	}
	unanswered, err := s.db.Command(ctx, call)
	f.unacknowledged = f.unacknowledged || unanswered
	return o, err
}

// checkForce checks what the engine has asked to check.
func (s *Service) checkForce(ctx context.Context, f *force, o queries.Outcome) (err error) {
	if o.Code == "payload-unchecked" {
		f.checked, err = CheckDocument(ctx, &s.schemas, o.Schema, f.payload, "/payload", InvalidPayload)
		return err
	}
	var patched struct{ Schema, Before, After json.RawMessage }
	if err := json.Unmarshal(o.Schema, &patched); err != nil {
		return &Error{Kind: Internal, Cause: err}
	}
	_, err = CheckDocument(ctx, &s.schemas, patched.Schema, patched.After, "/context_patch", InvalidContext)
	if errors.Is(err, InvalidContext) {
		after := AsError(err)
		after.Message = "the context fits the workflow's schema, and would not with the patch"
		_, err = CheckDocument(ctx, &s.schemas, patched.Schema, patched.Before, "", InvalidContext)
		switch {
		case err == nil:
			return after
		case errors.Is(err, InvalidContext):
			err = nil // It has not fitted before either.
		}
	}
	f.patchChecked = strconv.FormatInt(*o.Version, 10)
	return err
}

// blameForce says why a call failed. If it ran into the statement timeout, a dry run shows whether a guard or an assign
// is slow, or another transaction held the instance.
func (s *Service) blameForce(ctx context.Context, f *force, dryRun bool, err error) error {
	if !database.IsGuardFailure(err) {
		return fromDatabase(err)
	}
	if database.IsCode(err, database.QueryCanceled) && !dryRun {
		if _, again := s.callForce(ctx, f, true); !database.IsGuardFailure(again) {
			return fromDatabase(err)
		}
	}
	e := newGuardError(err)
	e.Refusal = &Refusal{Event: f.event}
	if i, err := s.Get(ctx, f.tenant, f.id); err == nil {
		e.Refusal.State, e.Refusal.Status, e.Refusal.Version, e.Refusal.AcceptedEvents = i.State, i.Status, i.Version, i.AcceptedEvents
	}
	return e
}
