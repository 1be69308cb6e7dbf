package httpapi

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/bulk"
	"github.com/pawl-fsm/pawl/fsm/definition"
	"github.com/pawl-fsm/pawl/httpapi/api"
)

// bulkScopes are the scopes that the actions need, beside ScopeOperate.
var bulkScopes = map[bulk.Action]Scope{
	bulk.Fire: ScopeFire, bulk.Migrate: ScopeDeploy, bulk.Replay: ScopeDeliver,
	bulk.Override: ScopeOperate, bulk.Cancel: ScopeOperate, bulk.Retry: ScopeOperate, bulk.Archive: ScopeOperate,
}

// bulkOf converts a bulk to the form of the contract.
func bulkOf(b bulk.Bulk) api.Bulk {
	return api.Bulk{
		ID: b.ID.String(), Action: api.BulkAction(b.Action), Filter: b.Filter, Params: b.Params, Reason: b.Reason, Rate: b.Rate,
		DryRun: b.DryRun, Status: api.BulkStatus(b.Status), Actor: b.Actor, CreatedAt: api.Timestamp(b.CreatedAt),
		StartedAt: (*api.Timestamp)(b.StartedAt), FinishedAt: (*api.Timestamp)(b.FinishedAt), EstimatedTotal: b.Estimate,
		Open: b.Open, Done: b.Applied + b.Refused + b.Skipped + b.Failed, Applied: b.Applied, Refused: b.Refused,
		Skipped: b.Skipped, Failed: b.Failed, PerSecond: b.PerSecond, Eta: (*api.Timestamp)(b.ETA),
	}
}

// reach returns the workflows whose instances a caller may carry out an action on, nil for all of them. It needs the
// scope of the action beside ScopeOperate, and the event is that of a fire.
func (p *principal) reach(action bulk.Action, event string) ([]string, error) {
	operated, all := p.workflows(ScopeOperate)
	scope, known := bulkScopes[action]
	if !known || scope == ScopeOperate {
		if all {
			return nil, nil
		}
		return operated, nil
	}
	var reached []string
	for _, g := range p.grants {
		switch {
		case !g.hasAny([]Scope{scope}) || scope == ScopeFire && !admits(g.events, event):
		case g.workflows == nil && all:
			return nil, nil
		case g.workflows == nil:
			reached = append(reached, operated...)
		default:
			for _, w := range g.workflows {
				if all || slices.Contains(operated, w) {
					reached = append(reached, w)
				}
			}
		}
	}
	if len(reached) == 0 {
		return nil, &problemError{
			code: api.ProblemCodeForbidden, detail: fmt.Sprintf(
				"a bulk with the action %q needs grants with the scopes %q and %q for the same workflow%s", action, ScopeOperate, scope,
				map[bool]string{true: ", and for its event"}[scope == ScopeFire]),
		}
	}
	slices.Sort(reached)
	return slices.Compact(reached), nil
}

// eventOf returns the event of a bulk's parameters, or "" if there is none.
func eventOf(params json.RawMessage) string {
	var p struct{ Event string }
	_ = json.Unmarshal(params, &p) // What is wrong with them is reported when they are checked.
	return p.Event
}

// views returns the workflows that the bulks which a caller may see are for; nil for all.
func (p *principal) views() []string {
	names, all := p.workflows(ScopeRead, ScopeOperate)
	if all {
		return nil
	}
	return append([]string{}, names...)
}

// bulkFilter converts the filter of a bulk.
func bulkFilter(f api.BulkFilter) (fsm.Filter, error) {
	out := fsm.Filter{
		Workflows: f.Workflow, States: f.State, CreatedAfter: bound(f.CreatedAfter), CreatedBefore: bound(f.CreatedBefore),
		FailingTimer: f.Timer != nil,
	}
	for pointer, names := range map[string]api.Names{"/filter/workflow": f.Workflow, "/filter/state": f.State, "/filter/status": f.Status} {
		if names != nil && len(names) == 0 || slices.Contains(names, "") {
			return out, malformedAt(pointer, "a name is missing", "must be a name, or an array of names")
		}
	}
	for _, status := range f.Status {
		if !api.InstanceStatus(status).Valid() {
			return out, malformedAt("/filter/status", fmt.Sprintf("there is no status %q", status), "must be active, completed, failed, cancelled or expired")
		}
		out.Statuses = append(out.Statuses, fsm.Status(status))
	}
	if f.Timer != nil && !f.Timer.Valid() {
		return out, malformedAt("/filter/timer", "the timer is unknown", "must be failing")
	}
	var err error
	if out.BusinessKey, err = textAt("/filter/business_key", f.BusinessKey); err != nil {
		return out, err
	}
	if out.CorrelationID, err = textAt("/filter/correlation_id", f.CorrelationID); err != nil {
		return out, err
	}
	if f.StuckFor != nil {
		if out.StuckFor, err = definition.ParseDuration(*f.StuckFor); err != nil {
			return out, malformedAt("/filter/stuck_for", err.Error(), err.Error())
		}
	}
	return out, nil
}

// CreateBulk submits a bulk.
func (s *server) CreateBulk(ctx context.Context, in CreateBulkRequestObject) (CreateBulkResponseObject, error) {
	if in.Body == nil {
		return nil, errNoBody
	}
	r, body := requestOf(ctx), in.Body
	c := bulk.Submission{
		Tenant: r.principal.tenant, Action: bulk.Action(body.Action), Params: body.Params, DryRun: value(body.DryRun),
		Key: r.key, Origin: r.origin(body.Reason),
	}
	var err error
	if c.Confirm, err = textAt("/confirm", body.Confirm); err != nil {
		return nil, err
	}
	if body.Rate != nil {
		if c.Rate = *body.Rate; c.Rate == 0 {
			c.Rate = -1 // Refused, since 0 would be no limit.
		}
	}
	if c.Within, err = r.principal.reach(c.Action, eventOf(body.Params)); err != nil {
		return nil, err
	}
	if body.Filter != nil {
		f, err := bulkFilter(*body.Filter)
		if err != nil {
			return nil, err
		}
		c.Filter = &f
		if c.Text, err = json.Marshal(body.Filter); err != nil {
			return nil, err
		}
	}
	if body.Ids != nil {
		c.IDs = make([]uuid.UUID, len(body.Ids))
		for i, text := range body.Ids {
			var ok bool
			if c.IDs[i], ok = parseUUID(text); !ok {
				return nil, malformedAt(fmt.Sprintf("/ids/%d", i), "an id is not a UUID", "must be a UUID")
			}
		}
	}
	b, err := s.bulks.Submit(ctx, c)
	if err != nil {
		return nil, err
	}
	return CreateBulk202JSONResponse{
		Body: bulkOf(b),
		Headers: CreateBulk202ResponseHeaders{
			Location: "/v1/bulk/" + b.ID.String(), IdempotentReplayed: optional(b.Replayed),
		},
	}, nil
}

// ListBulks answers with a page of the tenant's bulks, newest first.
func (s *server) ListBulks(ctx context.Context, in ListBulksRequestObject) (ListBulksResponseObject, error) {
	page, err := pageOf(in.Params.Limit, in.Params.Cursor)
	if err != nil {
		return nil, err
	}
	r := requestOf(ctx)
	list, err := s.bulks.List(ctx, r.principal.tenant, r.principal.views(), bulk.Status(value(in.Params.Status)), page)
	if err != nil {
		return nil, err
	}
	return ListBulks200JSONResponse{
		Body:    api.BulkList{Items: each(list.Items, bulkOf), NextCursor: optional(list.Next)},
		Headers: ListBulks200ResponseHeaders{Link: r.nextLink(list.Next)},
	}, nil
}

// bulk reads the bulk with an id, if the caller may see it. It makes a caller of the deployment act for the tenant that has
// it.
func (s *server) bulk(ctx context.Context, text string) (bulk.Bulk, error) {
	id, err := resourceID(text, "bulk")
	if err != nil {
		return bulk.Bulk{}, err
	}
	r := requestOf(ctx)
	if err := r.actForOwner(ctx, id, s.bulks.TenantOf); err != nil {
		return bulk.Bulk{}, err
	}
	return s.bulks.Get(ctx, r.principal.tenant, r.principal.views(), id)
}

// GetBulk answers with a bulk.
func (s *server) GetBulk(ctx context.Context, in GetBulkRequestObject) (GetBulkResponseObject, error) {
	b, err := s.bulk(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	return GetBulk200JSONResponse(bulkOf(b)), nil
}

// ListBulkItems answers with a page of the instances that a bulk has dealt with.
func (s *server) ListBulkItems(ctx context.Context, in ListBulkItemsRequestObject) (ListBulkItemsResponseObject, error) {
	page, err := pageOf(in.Params.Limit, in.Params.Cursor)
	if err != nil {
		return nil, err
	}
	b, err := s.bulk(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	r := requestOf(ctx)
	list, err := s.bulks.Items(ctx, r.principal.tenant, b.ID, bulk.Outcome(value(in.Params.Outcome)), page)
	if err != nil {
		return nil, err
	}
	return ListBulkItems200JSONResponse{
		Body: api.BulkItemList{
			Items: each(list.Items, func(i bulk.Item) api.BulkItem {
				return api.BulkItem{
					InstanceID: i.InstanceID.String(), Outcome: api.BulkOutcome(i.Outcome), Problem: i.Problem, At: api.Timestamp(i.At),
				}
			}),
			NextCursor: optional(list.Next),
		},
		Headers: ListBulkItems200ResponseHeaders{Link: r.nextLink(list.Next)},
	}, nil
}

// control changes the status of a bulk. What lets it do more needs the rights of a submission.
func (s *server) control(ctx context.Context, text string, control bulk.Control) (api.Bulk, error) {
	b, err := s.bulk(ctx, text)
	if err != nil {
		return api.Bulk{}, err
	}
	p := requestOf(ctx).principal
	if control == bulk.Resume || control == bulk.TryAgain {
		within, err := p.reach(b.Action, eventOf(b.Params))
		if err != nil {
			return api.Bulk{}, err
		}
		if err := bulk.CheckWithin(b.Workflows, within); err != nil {
			return api.Bulk{}, err
		}
	}
	b, err = s.bulks.Control(ctx, p.tenant, b.ID, control)
	return bulkOf(b), err
}

// PauseBulk pauses a bulk.
func (s *server) PauseBulk(ctx context.Context, in PauseBulkRequestObject) (PauseBulkResponseObject, error) {
	b, err := s.control(ctx, in.ID, bulk.Pause)
	if err != nil {
		return nil, err
	}
	return PauseBulk200JSONResponse(b), nil
}

// ResumeBulk lets a paused bulk go on.
func (s *server) ResumeBulk(ctx context.Context, in ResumeBulkRequestObject) (ResumeBulkResponseObject, error) {
	b, err := s.control(ctx, in.ID, bulk.Resume)
	if err != nil {
		return nil, err
	}
	return ResumeBulk200JSONResponse(b), nil
}

// StopBulk ends a bulk for good.
func (s *server) StopBulk(ctx context.Context, in StopBulkRequestObject) (StopBulkResponseObject, error) {
	b, err := s.control(ctx, in.ID, bulk.Stop)
	if err != nil {
		return nil, err
	}
	return StopBulk200JSONResponse(b), nil
}

// RetryBulk deals once more with what was refused or failed.
func (s *server) RetryBulk(ctx context.Context, in RetryBulkRequestObject) (RetryBulkResponseObject, error) {
	b, err := s.control(ctx, in.ID, bulk.TryAgain)
	if err != nil {
		return nil, err
	}
	return RetryBulk200JSONResponse(b), nil
}
