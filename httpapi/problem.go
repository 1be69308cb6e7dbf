package httpapi

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"

	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/live"
)

// A problemError is an error that is this package's own to word. What comes from fsm is
// an *fsm.Error.
type problemError struct {
	code    ProblemCode
	detail  string
	faults  []Fault
	headers map[string]string
	cause   error
}

func (e *problemError) Error() string { return string(e.code) + ": " + e.detail }

func (e *problemError) Unwrap() error { return e.cause }

// malformed is a 400 about one parameter.
func malformed(parameter, detail string) *problemError {
	return &problemError{
		code: ProblemCodeMalformedRequest, detail: parameter + " " + detail,
		faults: []Fault{{Parameter: &parameter, Detail: detail}},
	}
}

// malformedAt is a 400 about one place of the body.
func malformedAt(pointer, detail, fault string) *problemError {
	return &problemError{
		code: ProblemCodeMalformedRequest, detail: detail, faults: []Fault{{Pointer: &pointer, Detail: fault}},
	}
}

// A problemKind is what all problems of a code have in common.
type problemKind struct {
	status      int
	title       string
	description string
}

// problemKinds is the vocabulary of the wire. /problems/{code} serves it.
var problemKinds = map[ProblemCode]problemKind{
	ProblemCodeMalformedRequest: {400, "Malformed request", "The request makes no sense, whatever the state of the service: JSON that is not strict, an unknown or repeated member, a parameter out of its range. `errors` lists the faults. Mend the request; the same key may be used."},

	ProblemCodeIdempotencyKeyRequired: {400, "Idempotency key required", "This operation changes something, so a retry must be recognisable. Send an Idempotency-Key header: a new one for each new request, the same one for each retry of it."},
	ProblemCodeIdempotencyKeyInvalid:  {400, "Idempotency key invalid", "An Idempotency-Key must be 1 to 255 visible ASCII characters, bare or as a quoted string, and be sent once."},
	ProblemCodeUnauthenticated:        {401, "Unauthenticated", "This service wants a bearer token that it knows."},
	ProblemCodeForbidden:              {403, "Forbidden", "The token is known, but does not allow this operation."},
	ProblemCodeNotFound:               {404, "Not found", "There is nothing at this path, or the tenant has no subscription or delivery of this id."},
	ProblemCodeWorkflowNotFound:       {404, "Workflow not found", "There is no workflow of this name, or no such version of it."},
	ProblemCodeInstanceNotFound:       {404, "Instance not found", "The tenant has no instance of this id, or it did not exist at that time or version."},
	ProblemCodeMethodNotAllowed:       {405, "Method not allowed", "This path does not know the method. The Allow header lists those that it knows."},
	ProblemCodeNotAcceptable:          {406, "Not acceptable", "The Accept header leaves no media type that this path can answer with."},
	ProblemCodeTransitionNotAllowed:   {409, "Transition not allowed", "The state has no transition for this event, or is final. `state`, `instance_status`, `allowed_events` and `version` say what the instance accepts now. The refusal is recorded: a retry with the same key gets it again."},
	ProblemCodeGuardRejected:          {409, "Guard rejected", "There are transitions for this event, but no guard of theirs holds. `guards` lists them in the order they were tried. The refusal is recorded: decide anew and use a new key."},
	ProblemCodeInstanceExists:         {409, "Instance exists", "Another instance of this workflow has the business key; the Location header leads to it."},
	ProblemCodeWorkflowConflict:       {409, "Workflow conflict", "The definition names a version that is not the next one. Compare it with the latest version, then leave `version` out or name the next."},
	ProblemCodeDeliveryConflict:       {409, "Delivery conflict", "The delivery is pending already, or its subscription is disabled or gone. A pending delivery is sent without being replayed; a disabled subscription can be enabled."},
	ProblemCodeVersionMismatch:        {412, "Version mismatch", "The instance is no longer at the version that If-Match names. Read it again and decide anew; the same key may be used."},
	ProblemCodeEventIDTooOld:          {410, "Event id too old", "What follows the event that Last-Event-ID names is no longer all there, or more has happened since than a stream catches up with. It comes as an event of a stream. Read the instances, and begin anew without an id, or with from=start."},
	ProblemCodeTooLarge:               {413, "Too large", "The body, the context or the payload is over its limit."},
	ProblemCodeUnsupportedMediaType:   {415, "Unsupported media type", "A body must be application/json in UTF-8."},
	ProblemCodeIdempotencyKeyReuse:    {422, "Idempotency key reused", "This key was used for another request. Nothing was changed. Use a new key for a new request."},
	ProblemCodeCallbackSecretRequired: {422, "Callback secret required", "There is nothing to sign the callback with. Send a `callback_secret` along with the `callback_url`, or have the deployment set PAWL_WEBHOOK_SECRET."},
	ProblemCodeGuardError:             {422, "Guard error", "A guard or an assign of the definition fails on this input, or takes too long. Nothing was changed and nothing recorded."},
	ProblemCodeInvalidDefinition:      {422, "Invalid definition", "The definition has faults; `errors` lists all of them, each with a JSON Pointer."},
	ProblemCodeInvalidContext:         {422, "Invalid context", "The context does not fit the workflow's schema; `errors` lists all faults."},
	ProblemCodeInvalidPayload:         {422, "Invalid payload", "The payload does not fit the event's schema; `errors` lists all faults."},
	ProblemCodeUnknownEvent:           {422, "Unknown event", "No state of the workflow has an event of this name."},
	ProblemCodePreconditionRequired:   {428, "Precondition required", "This workflow wants every event to name the version it has seen. Read the instance, then send its ETag as If-Match; `If-Match: *` accepts any version."},
	ProblemCodeTooManyRequests:        {429, "Too many requests", "The caller is over its rate. Wait as long as Retry-After says."},
	ProblemCodeInternal:               {500, "Internal error", "Something went wrong that nobody foresaw. The request id finds it in the logs. A retry with the same key is safe."},
	ProblemCodeUnavailable:            {503, "Unavailable", "The database is away or busy, or too much is waiting. Retry with the same key after as long as Retry-After says."},
}

// codes maps each kind of fsm to the wire. A test proves that it is total.
var codes = map[fsm.Kind]ProblemCode{
	fsm.Internal:               ProblemCodeInternal,
	fsm.Malformed:              ProblemCodeMalformedRequest,
	fsm.KeyInvalid:             ProblemCodeIdempotencyKeyInvalid,
	fsm.KeyReuse:               ProblemCodeIdempotencyKeyReuse,
	fsm.WorkflowNotFound:       ProblemCodeWorkflowNotFound,
	fsm.InstanceNotFound:       ProblemCodeInstanceNotFound,
	fsm.TransitionNotAllowed:   ProblemCodeTransitionNotAllowed,
	fsm.GuardRejected:          ProblemCodeGuardRejected,
	fsm.GuardError:             ProblemCodeGuardError,
	fsm.InstanceExists:         ProblemCodeInstanceExists,
	fsm.WorkflowConflict:       ProblemCodeWorkflowConflict,
	fsm.VersionMismatch:        ProblemCodeVersionMismatch,
	fsm.PreconditionRequired:   ProblemCodePreconditionRequired,
	fsm.TooLarge:               ProblemCodeTooLarge,
	fsm.InvalidDefinition:      ProblemCodeInvalidDefinition,
	fsm.InvalidContext:         ProblemCodeInvalidContext,
	fsm.InvalidPayload:         ProblemCodeInvalidPayload,
	fsm.UnknownEvent:           ProblemCodeUnknownEvent,
	fsm.EventIDTooOld:          ProblemCodeEventIDTooOld,
	fsm.NotFound:               ProblemCodeNotFound,
	fsm.DeliveryConflict:       ProblemCodeDeliveryConflict,
	fsm.CallbackSecretRequired: ProblemCodeCallbackSecretRequired,
	fsm.Unavailable:            ProblemCodeUnavailable,
}

// problemOf writes an error as a problem, with the headers that belong to it.
func problemOf(ctx context.Context, err error) (Problem, http.Header) {
	headers := http.Header{}
	p := Problem{RequestID: requestOf(ctx).id}
	if own, ok := errors.AsType[*problemError](err); ok {
		p.Code, p.Detail, p.Errors = own.code, own.detail, own.faults
		for name, value := range own.headers {
			headers.Set(name, value)
		}
	} else {
		e := fsm.AsError(err)
		p.Code, p.Detail = codes[e.Kind], e.Message
		for _, f := range e.Faults {
			fault := Fault{Detail: f.Detail}
			if f.Parameter == live.LastID {
				f.Parameter = "Last-Event-ID" // The header that it is read from.
			}
			if f.Parameter != "" {
				fault.Parameter = &f.Parameter
			} else {
				fault.Pointer = &f.Pointer
			}
			p.Errors = append(p.Errors, fault)
		}
		refuse(ctx, &p, headers, e)
	}
	kind := problemKinds[p.Code]
	p.Type, p.Title, p.Status = "/problems/"+string(p.Code), kind.title, kind.status
	switch p.Code {
	case ProblemCodeInternal:
		p.Detail = "something went wrong; the request id finds it in the logs"
	case ProblemCodeUnavailable, ProblemCodeTooManyRequests:
		headers.Set("Retry-After", "1")
	case ProblemCodeUnauthenticated:
		headers.Set("WWW-Authenticate", `Bearer realm="pawl"`)
	}
	return p, headers
}

// refuse adds what a client needs to go on after an instance refused.
func refuse(ctx context.Context, p *Problem, headers http.Header, e *fsm.Error) {
	if e.Replayed {
		headers.Set("Idempotent-Replayed", "true")
	}
	if e.Kind == fsm.InstanceExists {
		id := e.InstanceID.String()
		p.InstanceID = &id
		headers.Set("Location", "/v1/instances/"+id)
	}
	r := e.Refusal
	if r == nil {
		return
	}
	switch e.Kind {
	case fsm.TransitionNotAllowed:
		status := InstanceStatus(r.Status)
		p.State, p.InstanceStatus, p.Event, p.Version = &r.State, &status, &r.Event, &r.Version
		p.AllowedEvents = r.AcceptedEvents
	case fsm.GuardRejected:
		status := InstanceStatus(r.Status)
		p.State, p.InstanceStatus, p.Event, p.Version = &r.State, &status, &r.Event, &r.Version
		p.AllowedEvents, p.Guards = r.AcceptedEvents, r.Guards
	case fsm.VersionMismatch:
		expected := etags(r.Expected)
		if sent := requestOf(ctx).ifMatchText; sent != "" {
			expected = sent
		}
		p.State, p.Version, p.Expected = &r.State, &r.Version, &expected
	case fsm.PreconditionRequired:
		p.State, p.Event, p.Version = &r.State, &r.Event, &r.Version
		p.Detail = "this workflow wants every event to name the version it has seen: send it again with If-Match: " + etag(r.Version)
	case fsm.UnknownEvent:
		p.State, p.Event, p.Version, p.AllowedEvents = &r.State, &r.Event, &r.Version, r.AcceptedEvents
	case fsm.GuardError:
		p.Event = &r.Event
		if r.State != "" {
			p.State = &r.State
		}
	case fsm.WorkflowConflict:
		if r.Version > 0 { // There is a latest version.
			p.Version = &r.Version
		}
	}
}

// writeProblem answers with a problem.
func writeProblem(ctx context.Context, w http.ResponseWriter, err error) Problem {
	p, headers := problemOf(ctx, err)
	body, marshalErr := json.Marshal(p)
	if marshalErr != nil {
		body = []byte(`{}`) // Strings and numbers only: it cannot happen.
	}
	h := w.Header()
	for name, values := range headers {
		h[name] = values
	}
	h.Set("Content-Type", "application/problem+json")
	h.Del("ETag")
	w.WriteHeader(p.Status)
	_, _ = w.Write(append(body, '\n')) // The client is gone if it fails.
	return p
}
