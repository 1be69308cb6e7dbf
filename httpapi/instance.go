package httpapi

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/definition"
)

// InstanceOf is an instance as the contract shows it.
func InstanceOf(i fsm.Instance) Instance {
	return Instance{
		ID: i.ID.String(), Workflow: i.Workflow, WorkflowVersion: i.WorkflowVersion, State: i.State,
		Status: InstanceStatus(i.Status), Version: i.Version, Context: i.Context, BusinessKey: i.BusinessKey,
		CorrelationID: i.CorrelationID, Actions: append([]string{}, i.AcceptedEvents...), CreatedAt: Timestamp(i.CreatedAt),
		StateChangedAt: Timestamp(i.StateChangedAt), ExpiresAt: timestampOf(i.ExpiresAt), Error: i.Error,
	}
}

// maxName is what fsm takes; the names of workflows and events are shorter.
const maxName = 255

func location(i fsm.Instance) string { return "/v1/instances/" + i.ID.String() }

// instanceID reads an id; what is no UUID names no instance.
func instanceID(text InstanceID) (uuid.UUID, error) {
	id, err := uuid.Parse(text)
	if err != nil || len(text) != len(uuid.Nil.String()) {
		return uuid.Nil, &fsm.Error{Kind: fsm.InstanceNotFound, Message: "there is no such instance"}
	}
	return id, nil
}

// durationOf reads a member that is a duration.
func durationOf(text *Duration, pointer string) (time.Duration, error) {
	if text == nil {
		return 0, nil
	}
	d, err := definition.ParseDuration(*text)
	if err != nil {
		return 0, malformedAt(pointer, err.Error(), err.Error())
	}
	return d, nil
}

// notEmpty refuses a member that is there and empty, which is not the same as absent.
func notEmpty(text *string, pointer string) (string, error) {
	if text == nil {
		return "", nil
	}
	if *text == "" {
		return "", malformedAt(pointer, pointer+" must not be empty", "must have at least 1 character; leave it out if there is none")
	}
	return *text, nil
}

// createCommand is what a create, alone or in a batch, asks for.
func (r *request) createCommand(workflow, key string, body CreateRequest) (fsm.CreateCommand, error) {
	if utf8.RuneCountInString(workflow) > maxName {
		return fsm.CreateCommand{}, &fsm.Error{Kind: fsm.WorkflowNotFound, Message: "there is no such workflow"}
	}
	expiresIn, err := durationOf(body.ExpiresIn, "/expires_in")
	if err != nil {
		return fsm.CreateCommand{}, err
	}
	businessKey, err := notEmpty(body.BusinessKey, "/business_key")
	if err != nil {
		return fsm.CreateCommand{}, err
	}
	correlationID, err := notEmpty(body.CorrelationID, "/correlation_id")
	if err != nil {
		return fsm.CreateCommand{}, err
	}
	callbackURL, err := notEmpty(body.CallbackURL, "/callback_url")
	if err != nil {
		return fsm.CreateCommand{}, err
	}
	callbackSecret, err := notEmpty(body.CallbackSecret, "/callback_secret")
	if err != nil {
		return fsm.CreateCommand{}, err
	}
	return fsm.CreateCommand{
		Tenant: r.principal.tenant, Workflow: workflow, Context: body.Context, Key: key, BusinessKey: businessKey,
		CorrelationID: correlationID, ExpiresIn: expiresIn, CallbackURL: callbackURL, CallbackSecret: callbackSecret,
		Origin: r.origin(body.Reason),
	}, nil
}

// CreateInstance starts an instance.
func (s *server) CreateInstance(ctx context.Context, in CreateInstanceRequestObject) (CreateInstanceResponseObject, error) {
	r := requestOf(ctx)
	command, err := r.createCommand(in.Name, r.key, value(in.Body))
	if err != nil {
		return nil, err
	}
	result, err := s.service.Create(ctx, command)
	if err != nil {
		return nil, err
	}
	created := CreateInstance201JSONResponse{
		Body: InstanceOf(result.Instance),
		Headers: CreateInstance201ResponseHeaders{
			ETag: etag(result.Instance.Version), Location: location(result.Instance),
			IdempotentReplayed: optional(result.Replayed), PreferenceApplied: r.applied(),
		},
	}
	if r.minimal {
		return createdMinimal(created), nil
	}
	return created, nil
}

// createdMinimal is a 201 with the headers alone.
type createdMinimal CreateInstance201JSONResponse

// VisitCreateInstanceResponse writes it.
func (c createdMinimal) VisitCreateInstanceResponse(w http.ResponseWriter) error {
	h := w.Header()
	h.Set("ETag", c.Headers.ETag)
	h.Set("Location", c.Headers.Location)
	h.Set("Preference-Applied", *c.Headers.PreferenceApplied)
	if c.Headers.IdempotentReplayed != nil {
		h.Set("Idempotent-Replayed", "true")
	}
	w.WriteHeader(http.StatusCreated)
	return nil
}

// FireEvent moves an instance, or says how it would move.
func (s *server) FireEvent(ctx context.Context, in FireEventRequestObject) (FireEventResponseObject, error) {
	id, err := instanceID(in.ID)
	if err != nil {
		return nil, err
	}
	if utf8.RuneCountInString(in.Event) > maxName {
		return nil, malformed("event", fmt.Sprintf("must have at most %d characters", maxName))
	}
	r := requestOf(ctx)
	body := value(in.Body)
	command := r.fireCommand(id, in.Event, r.key, body.Payload, body.Reason)
	command.Expect = r.ifMatch
	if value(in.Params.DryRun) {
		result, err := s.service.Preview(ctx, command)
		if err != nil {
			return nil, err
		}
		// The tag is that of the instance as it still is, fit for If-Match.
		return FireEvent200JSONResponse{
			Body:    InstanceOf(result.Instance),
			Headers: FireEvent200ResponseHeaders{ETag: etag(result.Instance.Version - 1)},
		}, nil
	}
	result, err := s.service.Fire(ctx, command)
	if err != nil {
		return nil, err
	}
	if r.minimal {
		return FireEvent204Response{Headers: FireEvent204ResponseHeaders{
			ETag: etag(result.Instance.Version), IdempotentReplayed: optional(result.Replayed),
			PreferenceApplied: r.applied(),
		}}, nil
	}
	return FireEvent200JSONResponse{
		Body: InstanceOf(result.Instance),
		Headers: FireEvent200ResponseHeaders{
			ETag: etag(result.Instance.Version), IdempotentReplayed: optional(result.Replayed),
			PreferenceApplied: r.applied(),
		},
	}, nil
}

// fireCommand is what a fire, alone or in a batch, asks for.
func (r *request) fireCommand(id uuid.UUID, event, key string, payload json.RawMessage, reason *string) fsm.FireCommand {
	return fsm.FireCommand{
		Tenant: r.principal.tenant, ID: id, Event: event, Payload: payload, Key: key, Origin: r.origin(reason),
	}
}

// GetInstance reads an instance as it is, as it was, or as it becomes.
func (s *server) GetInstance(ctx context.Context, in GetInstanceRequestObject) (GetInstanceResponseObject, error) {
	id, err := instanceID(in.ID)
	if err != nil {
		return nil, err
	}
	r := requestOf(ctx)
	tenant := r.principal.tenant
	var i fsm.Instance
	var applied *string
	switch {
	case in.Params.At != nil && in.Params.Version != nil:
		return nil, malformed("version", "cannot go together with at")
	case in.Params.Until != nil && (in.Params.At != nil || in.Params.Version != nil):
		return nil, malformed("until", "cannot go together with at or version")
	case in.Params.At != nil:
		i, err = s.service.GetAt(ctx, tenant, id, time.Time(*in.Params.At))
	case in.Params.Version != nil:
		i, err = s.service.GetVersion(ctx, tenant, id, *in.Params.Version)
	default:
		i, err = s.awaitInstance(ctx, id, in.Params.Until)
		applied = r.waitApplied()
	}
	if err != nil {
		return nil, err
	}
	tag := etag(i.Version)
	if in.Params.Until == nil && r.notModified(tag) {
		return GetInstance304Response{Headers: GetInstance304ResponseHeaders{ETag: tag, PreferenceApplied: applied}}, nil
	}
	return GetInstance200JSONResponse{
		Body: InstanceOf(i), Headers: GetInstance200ResponseHeaders{ETag: tag, PreferenceApplied: applied},
	}, nil
}

// ListInstances lists the tenant's instances, the newest first.
func (s *server) ListInstances(ctx context.Context, in ListInstancesRequestObject) (ListInstancesResponseObject, error) {
	list, err := s.listInstances(ctx, in.Params)
	if err != nil {
		return nil, err
	}
	return ListInstances200JSONResponse{
		Body:    InstanceList{Items: each(list.Items, InstanceOf), NextCursor: optional(list.Next)},
		Headers: ListInstances200ResponseHeaders{Link: requestOf(ctx).nextLink(list.Next)},
	}, nil
}

// ListWorkflowInstances lists those of one workflow, which must exist.
func (s *server) ListWorkflowInstances(ctx context.Context, in ListWorkflowInstancesRequestObject) (ListWorkflowInstancesResponseObject, error) {
	if _, err := s.workflows.GetWorkflow(ctx, in.Name, 0); err != nil {
		return nil, err
	}
	p := in.Params
	list, err := s.listInstances(ctx, ListInstancesParams{
		Workflow: &in.Name, State: p.State, Status: p.Status, BusinessKey: p.BusinessKey, CorrelationID: p.CorrelationID,
		CreatedAfter: p.CreatedAfter, CreatedBefore: p.CreatedBefore, StuckFor: p.StuckFor, Limit: p.Limit, Cursor: p.Cursor,
	})
	if err != nil {
		return nil, err
	}
	return ListWorkflowInstances200JSONResponse{
		Body:    InstanceList{Items: each(list.Items, InstanceOf), NextCursor: optional(list.Next)},
		Headers: ListWorkflowInstances200ResponseHeaders{Link: requestOf(ctx).nextLink(list.Next)},
	}, nil
}

func (s *server) listInstances(ctx context.Context, p ListInstancesParams) (fsm.List[fsm.Instance], error) {
	page, err := pageOf(p.Limit, p.Cursor)
	if err != nil {
		return fsm.List[fsm.Instance]{}, err
	}
	f := fsm.Filter{
		Workflow: value(p.Workflow), State: value(p.State), Status: fsm.Status(value(p.Status)),
		BusinessKey: value(p.BusinessKey), CorrelationID: value(p.CorrelationID),
		CreatedAfter: bound(p.CreatedAfter), CreatedBefore: bound(p.CreatedBefore),
	}
	if p.StuckFor != nil {
		if f.StuckFor, err = definition.ParseDuration(*p.StuckFor); err != nil {
			return fsm.List[fsm.Instance]{}, malformed("stuck_for", err.Error())
		}
	}
	return s.service.List(ctx, requestOf(ctx).principal.tenant, f, page)
}

// bound is a zero time for nil, which bounds nothing. The year 1 does, so it is moved by
// what no instance tells apart.
func bound(t *Timestamp) time.Time {
	if t != nil && time.Time(*t).IsZero() {
		return time.Time{}.Add(time.Microsecond)
	}
	return time.Time(value(t))
}

// value is a zero value for nil.
func value[T any](p *T) T {
	if p == nil {
		var zero T
		return zero
	}
	return *p
}

// optional is nil for a zero value.
func optional[T comparable](v T) *T {
	var zero T
	if v == zero {
		return nil
	}
	return &v
}

// ListActions lists the events that an instance accepts now.
func (s *server) ListActions(ctx context.Context, in ListActionsRequestObject) (ListActionsResponseObject, error) {
	id, err := instanceID(in.ID)
	if err != nil {
		return nil, err
	}
	actions, err := s.service.AcceptedEvents(ctx, requestOf(ctx).principal.tenant, id, value(in.Params.Evaluate))
	if err != nil {
		return nil, err
	}
	return ListActions200JSONResponse{Items: each(actions, func(a fsm.AcceptedEvent) Action {
		return Action{Event: a.Event, PayloadSchema: a.PayloadSchema, GuardHolds: a.GuardHolds, Targets: a.Targets}
	})}, nil
}

// HistoryItemOf is a step as the contract shows it.
func HistoryItemOf(s fsm.Step) HistoryItem {
	return HistoryItem{
		Version: s.Version, WorkflowVersion: s.WorkflowVersion, Kind: HistoryKind(s.Kind), Event: s.Event,
		From: s.From, To: s.To, Status: InstanceStatus(s.Status), Context: s.Context, Payload: s.Payload,
		Actor: s.Actor, Reason: s.Reason, Key: s.Key, CorrelationID: s.CorrelationID,
		Traceparent: s.Traceparent, At: Timestamp(s.At),
	}
}

// ListHistory lists the steps of an instance, the oldest first.
func (s *server) ListHistory(ctx context.Context, in ListHistoryRequestObject) (ListHistoryResponseObject, error) {
	id, err := instanceID(in.ID)
	if err != nil {
		return nil, err
	}
	page, err := pageOf(in.Params.Limit, in.Params.Cursor)
	if err != nil {
		return nil, err
	}
	r := requestOf(ctx)
	list, err := s.service.History(ctx, r.principal.tenant, id, page)
	if err != nil {
		return nil, err
	}
	return ListHistory200JSONResponse{
		Body: HistoryList{
			Items:      each(list.Items, HistoryItemOf),
			NextCursor: optional(list.Next),
		},
		Headers: ListHistory200ResponseHeaders{Link: r.nextLink(list.Next)},
	}, nil
}
