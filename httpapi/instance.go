package httpapi

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/definition"
	"github.com/pawl-fsm/pawl/httpapi/api"
)

// location returns the path of an instance, for the Location header.
func location(i fsm.Instance) string { return "/v1/instances/" + i.ID.String() }

// createCommand builds the command of a create, single or in a batch.
func (r *request) createCommand(workflow, key string, body api.CreateRequest) (fsm.CreateCommand, error) {
	if utf8.RuneCountInString(workflow) > maxName {
		return fsm.CreateCommand{}, fsm.NoWorkflow(workflow, 0)
	}
	businessKey, err := textAt("/business_key", body.BusinessKey)
	if err != nil {
		return fsm.CreateCommand{}, err
	}
	start, err := startAt("", api.Start{
		Context: body.Context, CorrelationID: body.CorrelationID, ExpiresIn: body.ExpiresIn, CallbackURL: body.CallbackURL,
		CallbackSecret: body.CallbackSecret,
	})
	if err != nil {
		return fsm.CreateCommand{}, err
	}
	return fsm.CreateCommand{
		Tenant: r.principal.tenant, Workflow: workflow, Context: start.Context, Key: key, BusinessKey: businessKey,
		CorrelationID: start.CorrelationID, ExpiresIn: start.ExpiresIn, CallbackURL: start.CallbackURL,
		CallbackSecret: start.CallbackSecret, Origin: r.origin(body.Reason),
	}, nil
}

// startAt converts the settings of a new instance, which stand at a JSON Pointer of the body.
func startAt(pointer string, body api.Start) (s fsm.Start, err error) {
	s.Context = body.Context
	if s.ExpiresIn, err = durationAt(pointer+"/expires_in", body.ExpiresIn); err != nil {
		return s, err
	}
	if s.CorrelationID, err = textAt(pointer+"/correlation_id", body.CorrelationID); err != nil {
		return s, err
	}
	if s.CallbackURL, err = textAt(pointer+"/callback_url", body.CallbackURL); err != nil {
		return s, err
	}
	s.CallbackSecret, err = textAt(pointer+"/callback_secret", body.CallbackSecret)
	return s, err
}

// CreateInstance creates an instance.
func (s *server) CreateInstance(ctx context.Context, in CreateInstanceRequestObject) (CreateInstanceResponseObject, error) {
	r := requestOf(ctx)
	if err := r.checkCreate(in.Name); err != nil {
		return nil, err
	}
	command, err := r.createCommand(in.Name, r.key, value(in.Body))
	if err != nil {
		return nil, err
	}
	result, err := s.service.Create(ctx, command)
	if err != nil {
		return nil, err
	}
	r.concerns(result.Instance.Workflow, result.Instance.ID)
	created := CreateInstance201JSONResponse{
		Body: api.InstanceOf(result.Instance),
		Headers: CreateInstance201ResponseHeaders{
			ETag: etag(result.Instance.Version), Location: location(result.Instance),
			IdempotentReplayed: optional(result.Replayed), PreferenceApplied: r.returnApplied(),
		},
	}
	if r.minimal {
		return createdMinimal(created.Headers), nil
	}
	return created, nil
}

// createdMinimal is a 201 without a body, for Prefer: return=minimal. The generated response
// always has one.
type createdMinimal CreateInstance201ResponseHeaders

// VisitCreateInstanceResponse writes the headers and the status.
func (c createdMinimal) VisitCreateInstanceResponse(w http.ResponseWriter) error {
	h := w.Header()
	h.Set("ETag", c.ETag)
	h.Set("Location", c.Location)
	h.Set("Preference-Applied", *c.PreferenceApplied)
	if c.IdempotentReplayed != nil {
		h.Set("Idempotent-Replayed", "true")
	}
	w.WriteHeader(http.StatusCreated)
	return nil
}

// VisitFireEventByKeyResponse writes the headers and the status.
func (c createdMinimal) VisitFireEventByKeyResponse(w http.ResponseWriter) error {
	return c.VisitCreateInstanceResponse(w)
}

// FireEvent fires an event at an instance. A dry run decides the event and writes nothing.
func (s *server) FireEvent(ctx context.Context, in FireEventRequestObject) (FireEventResponseObject, error) {
	id, err := instanceID(in.ID)
	if err != nil {
		return nil, err
	}
	if err := checkName("event", in.Event); err != nil {
		return nil, err
	}
	if err := s.checkFireAt(ctx, id, in.Event); err != nil {
		return nil, err
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
		r.concerns(result.Instance.Workflow, result.Instance.ID)
		// The instance keeps its version, so this is the tag that a following If-Match needs.
		return FireEvent200JSONResponse{
			Body:    api.InstanceOf(result.Instance),
			Headers: FireEvent200ResponseHeaders{ETag: etag(result.Before)},
		}, nil
	}
	result, err := s.service.Fire(ctx, command)
	if err != nil {
		return nil, err
	}
	r.concerns(result.Instance.Workflow, result.Instance.ID)
	if r.minimal {
		return FireEvent204Response{Headers: FireEvent204ResponseHeaders{
			ETag: etag(result.Instance.Version), IdempotentReplayed: optional(result.Replayed),
			PreferenceApplied: r.returnApplied(),
		}}, nil
	}
	return FireEvent200JSONResponse{
		Body: api.InstanceOf(result.Instance),
		Headers: FireEvent200ResponseHeaders{
			ETag: etag(result.Instance.Version), IdempotentReplayed: optional(result.Replayed),
			PreferenceApplied: r.returnApplied(),
		},
	}, nil
}

// fireCommand builds the command of a fire, single or in a batch.
func (r *request) fireCommand(id uuid.UUID, event, key string, payload json.RawMessage, reason *string) fsm.FireCommand {
	return fsm.FireCommand{
		Tenant: r.principal.tenant, ID: id, Event: event, Payload: payload, Key: key, Origin: r.origin(reason),
	}
}

// checkName refuses a path parameter that is too long for a name.
func checkName(parameter, name string) error {
	if utf8.RuneCountInString(name) > maxName {
		return malformed(parameter, fmt.Sprintf("must have at most %d characters", maxName))
	}
	return nil
}

// FireEventByKey fires an event at the instance that holds a business key, and creates that instance if the body says
// so and there is none.
func (s *server) FireEventByKey(ctx context.Context, in FireEventByKeyRequestObject) (FireEventByKeyResponseObject, error) {
	if err := cmp.Or(checkName("business_key", in.BusinessKey), checkName("event", in.Event)); err != nil {
		return nil, err
	}
	r := requestOf(ctx)
	if err := r.checkFireByKey(in.Name, in.Event, value(in.Body).Start != nil); err != nil {
		return nil, err
	}
	command, err := r.fireByKeyCommand(in.Name, in.BusinessKey, in.Event, r.key, value(in.Body))
	if err != nil {
		return nil, err
	}
	command.Expect = r.ifMatch
	if value(in.Params.DryRun) {
		result, err := s.service.PreviewByKey(ctx, command)
		if err != nil {
			return nil, err
		}
		r.concerns(result.Instance.Workflow, result.Instance.ID)
		preview := FireEventByKey200JSONResponse{Body: api.InstanceOf(result.Instance)}
		if !result.Created {
			preview.Headers.ETag = optional(etag(result.Before))
		}
		return preview, nil
	}
	result, err := s.service.FireByKey(ctx, command)
	if err != nil {
		return nil, err
	}
	r.concerns(result.Instance.Workflow, result.Instance.ID)
	tag, replayed, applied := etag(result.Instance.Version), optional(result.Replayed), r.returnApplied()
	switch {
	case result.Created:
		headers := FireEventByKey201ResponseHeaders{
			ETag: tag, Location: location(result.Instance), IdempotentReplayed: replayed, PreferenceApplied: applied,
		}
		if r.minimal {
			return createdMinimal(headers), nil
		}
		return FireEventByKey201JSONResponse{Body: api.InstanceOf(result.Instance), Headers: headers}, nil
	case r.minimal:
		return FireEventByKey204Response{Headers: FireEventByKey204ResponseHeaders{
			ETag: tag, IdempotentReplayed: replayed, PreferenceApplied: applied,
		}}, nil
	}
	return FireEventByKey200JSONResponse{
		Body:    api.InstanceOf(result.Instance),
		Headers: FireEventByKey200ResponseHeaders{ETag: &tag, IdempotentReplayed: replayed, PreferenceApplied: applied},
	}, nil
}

// fireByKeyCommand builds the command of a fire by business key, single or in a batch.
func (r *request) fireByKeyCommand(
	workflow, businessKey, event, key string, body api.FireByKeyRequest,
) (fsm.FireByKeyCommand, error) {
	if utf8.RuneCountInString(workflow) > maxName {
		return fsm.FireByKeyCommand{}, fsm.NoWorkflow(workflow, 0)
	}
	command := fsm.FireByKeyCommand{
		Tenant: r.principal.tenant, Workflow: workflow, BusinessKey: businessKey, Event: event, Payload: body.Payload, Key: key,
		Origin: r.origin(body.Reason),
	}
	if body.Start != nil {
		start, err := startAt("/start", *body.Start)
		if err != nil {
			return fsm.FireByKeyCommand{}, err
		}
		command.Start = &start
	}
	return command, nil
}

// GetInstance answers with an instance: the present one, a past one (at, version), or the one
// that a wait ends with (Prefer: wait, until).
func (s *server) GetInstance(ctx context.Context, in GetInstanceRequestObject) (GetInstanceResponseObject, error) {
	id, err := s.instance(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	r := requestOf(ctx)
	tenant := r.principal.tenant
	var i fsm.Instance
	var applied *string
	switch {
	case in.Params.At != nil && in.Params.Version != nil:
		return nil, malformed("version", "must not be combined with at")
	case in.Params.Until != nil && (in.Params.At != nil || in.Params.Version != nil):
		return nil, malformed("until", "must not be combined with at or version")
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
	r.concerns(i.Workflow, i.ID)
	tag := etag(i.Version)
	if in.Params.Until == nil && r.notModified(tag) {
		return GetInstance304Response{Headers: GetInstance304ResponseHeaders{ETag: tag, PreferenceApplied: applied}}, nil
	}
	return GetInstance200JSONResponse{
		Body: api.InstanceOf(i), Headers: GetInstance200ResponseHeaders{ETag: tag, PreferenceApplied: applied},
	}, nil
}

// ListInstances answers with a page of the tenant's instances.
func (s *server) ListInstances(ctx context.Context, in ListInstancesRequestObject) (ListInstancesResponseObject, error) {
	list, err := s.listInstances(ctx, in.Params)
	if err != nil {
		return nil, err
	}
	return ListInstances200JSONResponse{
		Body:    list.body(),
		Headers: ListInstances200ResponseHeaders{Link: requestOf(ctx).nextLink(list.Next)},
	}, nil
}

// ListWorkflowInstances answers with a page of the instances of one workflow, which must
// exist.
func (s *server) ListWorkflowInstances(ctx context.Context, in ListWorkflowInstancesRequestObject) (ListWorkflowInstancesResponseObject, error) {
	if err := requestOf(ctx).checkWorkflow(in.Name, 0); err != nil {
		return nil, err
	}
	if _, err := s.workflows.GetWorkflow(ctx, in.Name, 0); err != nil {
		return nil, err
	}
	p := in.Params
	list, err := s.listInstances(ctx, api.ListInstancesParams{
		Workflow: []string{in.Name}, State: p.State, Status: p.Status, BusinessKey: p.BusinessKey, CorrelationID: p.CorrelationID,
		CreatedAfter: p.CreatedAfter, CreatedBefore: p.CreatedBefore, StuckFor: p.StuckFor, Timer: p.Timer, Where: p.Where, Sort: p.Sort,
		Limit: p.Limit, Cursor: p.Cursor,
	})
	if err != nil {
		return nil, err
	}
	return ListWorkflowInstances200JSONResponse{
		Body:    list.body(),
		Headers: ListWorkflowInstances200ResponseHeaders{Link: requestOf(ctx).nextLink(list.Next)},
	}, nil
}

func listedInstance(i item[fsm.Instance]) api.Instance {
	out := api.InstanceOf(i.value)
	out.Tenant = i.tenant
	return out
}

// An instanceList is a page of instances of one tenant, or of several.
type instanceList struct {
	fsm.List[item[fsm.Instance]]
	asOf       time.Time
	incomplete bool
}

func (l instanceList) body() api.InstanceList {
	return api.InstanceList{Items: each(l.Items, listedInstance), NextCursor: optional(l.Next), AsOf: api.Timestamp(l.asOf), Incomplete: l.incomplete}
}

// listInstances reads the page that both lists of instances answer with.
func (s *server) listInstances(ctx context.Context, p api.ListInstancesParams) (out instanceList, err error) {
	page, err := pageOf(p.Limit, p.Cursor)
	if err != nil {
		return out, err
	}
	f := fsm.Filter{
		Workflows: p.Workflow, States: p.State, Where: p.Where, Within: requestOf(ctx).within(),
		Statuses:    each(p.Status, func(s api.InstanceStatus) fsm.Status { return fsm.Status(s) }),
		BusinessKey: value(p.BusinessKey), CorrelationID: value(p.CorrelationID),
		CreatedAfter: bound(p.CreatedAfter), CreatedBefore: bound(p.CreatedBefore),
		FailingTimer: p.Timer != nil, Sort: fsm.Sort(value(p.Sort)),
	}
	if p.StuckFor != nil {
		if f.StuckFor, err = definition.ParseDuration(*p.StuckFor); err != nil {
			return out, malformed("stuck_for", err.Error())
		}
	}
	out.List, err = listOf(ctx, s, page, false, func(tenant string, page fsm.Page) (fsm.List[fsm.Instance], error) {
		list, err := s.service.List(ctx, tenant, f, page)
		if out.asOf.IsZero() { // The first tenant of several was read first.
			out.asOf = list.AsOf
		}
		out.incomplete = out.incomplete || list.Incomplete
		return list.List, err
	})
	return out, err
}

// ListActions answers with the events that the state of an instance accepts.
func (s *server) ListActions(ctx context.Context, in ListActionsRequestObject) (ListActionsResponseObject, error) {
	id, err := s.instance(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	caller := &requestOf(ctx).principal
	actions, err := s.service.AcceptedEvents(ctx, caller.tenant, id, value(in.Params.Evaluate), caller.subject)
	if err != nil {
		return nil, err
	}
	permitted := func(string) bool { return true }
	if !caller.mayAll(ScopeFire) {
		workflow, err := s.workflowOf(ctx, id)
		if err != nil {
			return nil, err
		}
		permitted = func(event string) bool { return caller.may(ScopeFire, workflow, event) }
	}
	return ListActions200JSONResponse{Items: each(actions, func(a fsm.AcceptedEvent) api.Action {
		return api.Action{
			Event: a.Event, Description: optional(a.Description), PayloadSchema: a.PayloadSchema, GuardHolds: a.GuardHolds, Targets: a.Targets,
			Permitted: permitted(a.Event),
		}
	})}, nil
}
