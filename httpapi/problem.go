package httpapi

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"

	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/live"
	"github.com/pawl-fsm/pawl/httpapi/api"
)

// A problemError is an error of the HTTP layer: of the request itself, its caller or its
// headers. An error of the domain is an *fsm.Error.
type problemError struct {
	code    api.ProblemCode
	detail  string
	faults  []api.Fault
	headers map[string]string
	cause   error // For the log; not sent to the client.
}

func (e *problemError) Error() string { return string(e.code) + ": " + e.detail }

func (e *problemError) Unwrap() error { return e.cause }

// malformed returns a malformed-request problem for one path, query or header parameter.
func malformed(parameter, detail string) *problemError {
	return &problemError{
		code: api.ProblemCodeMalformedRequest, detail: parameter + " " + detail,
		faults: []api.Fault{{Parameter: &parameter, Detail: detail}},
	}
}

// malformedAt returns a malformed-request problem for one place of the body, given as a JSON
// Pointer. The detail describes the problem, the fault that place.
func malformedAt(pointer, detail, fault string) *problemError {
	return &problemError{
		code: api.ProblemCodeMalformedRequest, detail: detail, faults: []api.Fault{{Pointer: &pointer, Detail: fault}},
	}
}

// A problemKind holds what all problems with one code share.
type problemKind struct {
	status      int
	title       string
	description string
}

// problemKinds has one entry for each code of the contract. /problems/{code} serves it.
var problemKinds = map[api.ProblemCode]problemKind{
	api.ProblemCodeMalformedRequest:       {400, "Malformed request", "The request violates the contract, whatever the state of the service: the JSON is not strict, a member is unknown or repeated, or a parameter is out of range. `errors` lists the faults. Correct the request; the same key may be used."},
	api.ProblemCodeIdempotencyKeyRequired: {400, "Idempotency key required", "This operation changes something, so the service must recognise a retry. Send an Idempotency-Key header: a new key for each new request, the same key for each retry of it."},
	api.ProblemCodeIdempotencyKeyInvalid:  {400, "Idempotency key invalid", "An Idempotency-Key must be 1 to 255 visible ASCII characters, bare or as a quoted string, and be sent once."},
	api.ProblemCodeUnauthenticated:        {401, "Unauthenticated", "This service requires a bearer token, and the request has none, more than one, or one that is unknown, revoked, expired or not valid."},
	api.ProblemCodeForbidden:              {403, "Forbidden", "The token is valid, but no grant of its bearer has a scope that this operation requires, for this workflow and event; or the tenant is another's. GET /v1/tokens/self shows what the bearer may do. Or a web page of another site sent the request from a browser, and the deployment does not name its origin with --cors-origin."},
	api.ProblemCodeUnknownTenant:          {403, "Unknown tenant", "The tenant does not exist. An operator makes it with `pawl tenant create`, or PUT /v1/tenants/{id}."},
	api.ProblemCodeTenantDisabled:         {403, "Tenant disabled", "The tenant is disabled. Nothing of it is lost; an operator can enable it."},
	api.ProblemCodeTenantRequired:         {400, "Tenant required", "The caller belongs to the deployment (tenant `*`). It must name the tenant that it acts for in the header X-Pawl-Tenant."},
	api.ProblemCodeTokenExists:            {409, "Token exists", "Another token has this id, or had it before it was revoked. Give another id, or none."},
	api.ProblemCodeNotFound:               {404, "Not found", "There is nothing at this path, there is no such schema, or the tenant has no subscription or delivery with this id."},
	api.ProblemCodeWorkflowNotFound:       {404, "Workflow not found", "There is no workflow with this name, or it has no such version."},
	api.ProblemCodeInstanceNotFound:       {404, "Instance not found", "The tenant has no instance with this id, or none that holds the business key, or the instance did not exist at that time or version."},
	api.ProblemCodeMethodNotAllowed:       {405, "Method not allowed", "This path does not support the method. The Allow header lists the methods that it supports."},
	api.ProblemCodeNotAcceptable:          {406, "Not acceptable", "The Accept header admits none of the media types that this operation answers with."},
	api.ProblemCodeTransitionNotAllowed:   {409, "Transition not allowed", "The state has no transition for this event, or is final. `state`, `instance_status`, `allowed_events` and `version` show what the instance accepts now. The refusal is recorded: a retry with the same key gets it again."},
	api.ProblemCodeStateProtected:         {409, "State protected", "The definition protects the state of the instance, or the state that it would get into: overrides, cancels and instance migrations neither leave nor enter it. The events that it accepts (`allowed_events`) and its timers do. The refusal is recorded: use a new key after the instance has moved."},
	api.ProblemCodeNotCancellable:         {409, "Not cancellable", "The definition of the instance's version names no state for cancels. Fire an event that ends the instance, or override it. The refusal is recorded."},
	api.ProblemCodeGuardRejected:          {409, "Guard rejected", "The state has transitions for this event, but none of their guards holds. `guards` lists the guards in the order in which they were tried. The refusal is recorded: decide again and use a new key."},
	api.ProblemCodeInstanceExists:         {409, "Instance exists", "Another instance of this workflow has the business key. The Location header names it."},
	api.ProblemCodeWorkflowConflict:       {409, "Workflow conflict", "The definition names a version that is not the next one, the version is in use, or another migration of the workflow is running. If you are registering, compare the definition with the latest version, then leave `version` out or name the next one."},
	api.ProblemCodeDeliveryConflict:       {409, "Delivery conflict", "The delivery to replay is already pending, or cannot be sent any more, since its subscription was deleted, its instance was purged or its callback was delivered; or the subscription to test is disabled. A pending delivery is sent without a replay; a disabled subscription can be enabled."},
	api.ProblemCodeBulkConflict:           {409, "Bulk conflict", "The bulk is done or was stopped. One that is done may be retried; instead of one that was stopped, submit another."},
	api.ProblemCodeLeaseSuperseded:        {409, "Lease superseded", "The lease is not the newest of the task: it ran out, and another worker has claimed the task, or the task was given back. Stop the work; what the other worker does counts."},
	api.ProblemCodeTaskEnded:              {409, "Task ended", "The task has ended, perhaps with another result, or is not in a state in which this can be done with it. `detail` says which. Read the task. A result that came too late is kept with it."},
	api.ProblemCodeInstanceFinal:          {409, "Instance final", "The instance has ended, so that there is nothing to forecast. Read the instance."},
	api.ProblemCodeTooFewSamples:          {409, "Too few samples", "Fewer than 30 visits of the state of the instance have ended in the last 90 days, among the tenant's instances of all versions. That is too few for a forecast. Ask again later."},
	api.ProblemCodeConfirmationRequired:   {409, "Confirmation required", "The filter of the bulk is empty or may choose more than 1,000 instances. If that is meant, send the same request with `confirm`: the workflow of the filter, or `*` if it does not name exactly one. A dry run needs none."},
	api.ProblemCodeLimitReached:           {409, "Limit reached", "The tenant has as much of something as it may have: open instances, storage or subscriptions. `used` and `limit` say how much; of open instances and storage, `used` is some seconds old. Waiting does not help: end or purge instances, delete subscriptions, or have the limit raised. The same key may be used then."},
	api.ProblemCodeVersionMismatch:        {412, "Version mismatch", "The instance or the connection no longer has a version that If-Match names. Read it and decide again; the same key may be used. A command that would create its instance can expect no version."},
	api.ProblemCodeEventIDTooOld:          {410, "Event id too old", "Some of the steps behind Last-Event-ID have been purged. This problem is the data of an event in a stream. Read the instances, and start again without an id or with from=start."},
	api.ProblemCodeUnknownEventID:         {404, "Unknown event id", "The service has never been at the place that Last-Event-ID names: the id is of another deployment, or of a server that is ahead of this one. This problem is the data of an event in a stream. Read the instances, and start again without an id or with from=start."},
	api.ProblemCodeStepsLost:              {409, "Steps lost", "The database has gone on from a copy that lacks the last steps before Last-Event-ID: an asynchronous standby was promoted, or a backup restored. This problem is the data of an event in a stream. last_common is the last id that the database still has, and what came after it has not happened. Undo what was done for it, and resume behind last_common, as browsers do by themselves."},
	api.ProblemCodeTooLarge:               {413, "Too large", "The body, the context or the payload exceeds its limit, the context would become nested too deep, or a simulation exceeds a limit."},
	api.ProblemCodeMisdirectedRequest:     {421, "Misdirected request", "The request names a host that this service does not answer for. Use a host of the deployment, which names them with --allowed-host; a proxy must pass on one of them as Host."},
	api.ProblemCodeUnsupportedMediaType:   {415, "Unsupported media type", "A body must be application/json in UTF-8, and the Content-Type header must say so."},
	api.ProblemCodeIdempotencyKeyReuse:    {422, "Idempotency key reused", "This key was used for another request. Nothing was changed. Use a new key for a new request."},
	api.ProblemCodeCallbackSecretRequired: {422, "Callback secret required", "There is no secret to sign the callback with. Send a `callback_secret` with the `callback_url`, or have the deployment set PAWL_WEBHOOK_SECRET."},
	api.ProblemCodeGuardError:             {422, "Guard error", "A guard or an assign of the definition fails for this input, or takes too long. Nothing was changed and nothing was recorded."},
	api.ProblemCodeInvalidDefinition:      {422, "Invalid definition", "The definition has faults. `errors` lists all of them, each with a JSON Pointer."},
	api.ProblemCodeInvalidContext:         {422, "Invalid context", "The context does not match the workflow's schema. `errors` lists its faults, at most 100 of them."},
	api.ProblemCodeInvalidPayload:         {422, "Invalid payload", "The payload does not match the event's schema. `errors` lists its faults, at most 100 of them."},
	api.ProblemCodeUnknownEvent:           {422, "Unknown event", "No state of the workflow has a transition for an event with this name."},
	api.ProblemCodePreconditionRequired:   {428, "Precondition required", "This workflow requires that every event names the version it was decided on, or the request is an override, which always must. Read the instance and send its ETag as If-Match; `If-Match: *` accepts any version."},
	api.ProblemCodeTooManyRequests:        {429, "Too many requests", "The subject or its tenant exceeds its request rate, or the tenant's own limit of waiting commands or open streams. Wait for the seconds that Retry-After gives; the same key may be used."},
	api.ProblemCodeInternal:               {500, "Internal error", "The service failed in a way that it does not handle. Its log has the cause under the request id. A retry with the same key is safe."},
	api.ProblemCodeUnavailable:            {503, "Unavailable", "The database is unavailable or busy, or too many commands are waiting. Retry with the same key after the seconds that Retry-After gives."},
}

// codes maps each kind of fsm to a code. A test proves that the map is complete.
var codes = map[fsm.Kind]api.ProblemCode{
	fsm.Internal:               api.ProblemCodeInternal,
	fsm.Malformed:              api.ProblemCodeMalformedRequest,
	fsm.KeyInvalid:             api.ProblemCodeIdempotencyKeyInvalid,
	fsm.KeyReuse:               api.ProblemCodeIdempotencyKeyReuse,
	fsm.WorkflowNotFound:       api.ProblemCodeWorkflowNotFound,
	fsm.InstanceNotFound:       api.ProblemCodeInstanceNotFound,
	fsm.TransitionNotAllowed:   api.ProblemCodeTransitionNotAllowed,
	fsm.StateProtected:         api.ProblemCodeStateProtected,
	fsm.NotCancellable:         api.ProblemCodeNotCancellable,
	fsm.GuardRejected:          api.ProblemCodeGuardRejected,
	fsm.GuardError:             api.ProblemCodeGuardError,
	fsm.InstanceExists:         api.ProblemCodeInstanceExists,
	fsm.WorkflowConflict:       api.ProblemCodeWorkflowConflict,
	fsm.VersionMismatch:        api.ProblemCodeVersionMismatch,
	fsm.PreconditionRequired:   api.ProblemCodePreconditionRequired,
	fsm.TooLarge:               api.ProblemCodeTooLarge,
	fsm.InvalidDefinition:      api.ProblemCodeInvalidDefinition,
	fsm.InvalidContext:         api.ProblemCodeInvalidContext,
	fsm.InvalidPayload:         api.ProblemCodeInvalidPayload,
	fsm.UnknownEvent:           api.ProblemCodeUnknownEvent,
	fsm.EventIDTooOld:          api.ProblemCodeEventIDTooOld,
	fsm.UnknownEventID:         api.ProblemCodeUnknownEventID,
	fsm.StepsLost:              api.ProblemCodeStepsLost,
	fsm.NotFound:               api.ProblemCodeNotFound,
	fsm.Forbidden:              api.ProblemCodeForbidden,
	fsm.UnknownTenant:          api.ProblemCodeUnknownTenant,
	fsm.TenantRequired:         api.ProblemCodeTenantRequired,
	fsm.TokenExists:            api.ProblemCodeTokenExists,
	fsm.DeliveryConflict:       api.ProblemCodeDeliveryConflict,
	fsm.BulkConflict:           api.ProblemCodeBulkConflict,
	fsm.LeaseSuperseded:        api.ProblemCodeLeaseSuperseded,
	fsm.TaskEnded:              api.ProblemCodeTaskEnded,
	fsm.InstanceFinal:          api.ProblemCodeInstanceFinal,
	fsm.TooFewSamples:          api.ProblemCodeTooFewSamples,
	fsm.ConfirmationRequired:   api.ProblemCodeConfirmationRequired,
	fsm.CallbackSecretRequired: api.ProblemCodeCallbackSecretRequired,
	fsm.LimitReached:           api.ProblemCodeLimitReached,
	fsm.TooManyRequests:        api.ProblemCodeTooManyRequests,
	fsm.Unavailable:            api.ProblemCodeUnavailable,
}

// problemOf converts an error to a problem and the headers that belong to it. An error of an
// unknown type becomes internal, and its text is not sent.
func problemOf(ctx context.Context, err error) (api.Problem, http.Header) {
	headers := http.Header{}
	p := api.Problem{RequestID: requestOf(ctx).id}
	if own, ok := errors.AsType[*problemError](err); ok {
		p.Code, p.Detail, p.Errors = own.code, own.detail, own.faults
		for name, value := range own.headers {
			headers.Set(name, value)
		}
	} else {
		e := fsm.AsError(err)
		p.Code, p.Detail = codes[e.Kind], e.Message
		for _, f := range e.Faults {
			fault := api.Fault{Detail: f.Detail}
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
	case api.ProblemCodeInternal:
		p.Detail = "the service failed; its log has the cause under the request id"
	case api.ProblemCodeUnavailable, api.ProblemCodeTooManyRequests:
		headers.Set("Retry-After", "1")
	case api.ProblemCodeUnauthenticated:
		headers.Set("WWW-Authenticate", `Bearer realm="pawl"`)
	}
	return p, headers
}

// refuse adds the members that the contract gives a refusal, so that a client can continue
// without reading the instance first.
func refuse(ctx context.Context, p *api.Problem, headers http.Header, e *fsm.Error) {
	if e.LastCommon != "" {
		p.LastCommon = &e.LastCommon
	}
	if e.Limit != nil {
		p.Limit, p.Used = &e.Limit.Limit, &e.Limit.Used
	}
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
	case fsm.TransitionNotAllowed, fsm.StateProtected, fsm.NotCancellable:
		status := api.InstanceStatus(r.Status)
		p.State, p.InstanceStatus, p.Event, p.Version = &r.State, &status, optional(r.Event), &r.Version
		p.AllowedEvents = r.AcceptedEvents
	case fsm.GuardRejected:
		if p.Guards = r.Guards; r.State == "" {
			return // It refuses a creation.
		}
		status := api.InstanceStatus(r.Status)
		p.State, p.InstanceStatus, p.Event, p.Version = &r.State, &status, optional(r.Event), &r.Version
		p.AllowedEvents = r.AcceptedEvents
	case fsm.VersionMismatch:
		expected := etags(r.Expected)
		if sent := requestOf(ctx).ifMatchText; sent != "" {
			expected = sent
		}
		p.Expected = &expected
		if r.Version > 0 { // 0 means that there is no instance.
			p.State, p.Version = optional(r.State), &r.Version
		}
	case fsm.PreconditionRequired:
		p.State, p.Event, p.Version = &r.State, optional(r.Event), &r.Version
		wish, _, _ := strings.Cut(e.Message, ";")
		p.Detail = wish + ": send it again with If-Match: " + etag(r.Version)
	case fsm.UnknownEvent:
		p.State, p.Event, p.Version, p.AllowedEvents = &r.State, &r.Event, &r.Version, r.AcceptedEvents
	case fsm.GuardError:
		p.Event = optional(r.Event)
		if r.State != "" {
			p.State = &r.State
		}
	case fsm.WorkflowConflict:
		if r.Version > 0 { // 0 means that the workflow has no version.
			p.Version = &r.Version
		}
	}
}

// writeProblem sends an error as a problem (RFC 9457) and returns it.
func writeProblem(ctx context.Context, w http.ResponseWriter, err error) api.Problem {
	p, headers := problemOf(ctx, err)
	body, marshalErr := json.Marshal(p)
	if marshalErr != nil {
		body = []byte(`{}`) // Unreachable: a problem has only strings and numbers.
	}
	h := w.Header()
	for name, values := range headers {
		h[name] = values
	}
	h.Set("Content-Type", "application/problem+json")
	h.Del("ETag")
	w.WriteHeader(p.Status)
	_, _ = w.Write(append(body, '\n')) // It fails only if the client is gone.
	return p
}

// GetProblem answers with the explanation of a code. The type of every problem leads here.
func (s *server) GetProblem(_ context.Context, r GetProblemRequestObject) (GetProblemResponseObject, error) {
	code := api.ProblemCode(r.Code)
	kind, known := problemKinds[code]
	if !known {
		return nil, &problemError{code: api.ProblemCodeNotFound, detail: "there is no problem with this code"}
	}
	return GetProblem200JSONResponse{
		Code: code, Title: kind.title, Status: kind.status, Description: kind.description,
	}, nil
}
