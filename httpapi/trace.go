package httpapi

import (
	"context"
	"encoding/json"
	"net/http"

	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/task"
	"github.com/pawl-fsm/pawl/httpapi/api"
)

// maxTraced is how many items of a timeline a trace has at most.
const maxTraced = 5000

// GetInstanceTrace answers with the life of an instance as a trace.
func (s *server) GetInstanceTrace(ctx context.Context, in GetInstanceTraceRequestObject) (GetInstanceTraceResponseObject, error) {
	id, err := s.instance(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	tenant := requestOf(ctx).principal.tenant
	t := api.TracedInstance{Tenant: tenant}
	// The items come first: they are older than the instance that is read then, and none of them is behind it.
	page := fsm.Page{Limit: fsm.MaxLimit}
	for more := true; more; more = page.Cursor != "" && !t.Truncated {
		list, err := s.tasks.Timeline(ctx, tenant, id, page)
		if err != nil {
			return nil, err
		}
		t.Items = append(t.Items, each(list.Items, timelineItem)...)
		page.Cursor = list.Next
		t.Truncated = len(t.Items) >= maxTraced && list.Next != ""
	}
	if t.Traceparents, err = s.service.Traceparents(ctx, tenant, id, maxTraced); err != nil {
		return nil, err
	}
	if t.Instance, err = s.service.Get(ctx, tenant, id); err != nil {
		return nil, err
	}
	// A step that was made meanwhile has no span, and the instance is shown as it was before that.
	if seen := lastStep(t.Items); seen > 0 && seen < t.Instance.Version && !t.Truncated {
		if t.Instance, err = s.service.GetVersion(ctx, tenant, id, seen); err != nil {
			return nil, err
		}
	}
	requestOf(ctx).concerns(t.Instance.Workflow, id)
	return traceAnswer(api.TraceOf(t)), nil
}

// lastStep returns the version of the last step of a timeline; 0 for none.
func lastStep(items []api.TimelineItem) (version int64) {
	for _, item := range items {
		if item.Kind == "step" {
			version = max(version, value(item.Version))
		}
	}
	return version
}

// traceAnswer is an answer whose spans have the types of OTLP, which the contract does not repeat.
type traceAnswer api.TraceDocument

// VisitGetInstanceTraceResponse writes the answer.
func (t traceAnswer) VisitGetInstanceTraceResponse(w http.ResponseWriter) error {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusOK)
	return json.NewEncoder(w).Encode(t)
}

// timelineItem returns an item as the API shows it.
func timelineItem(t task.Moment) api.TimelineItem {
	return api.TimelineItem{
		At: api.Timestamp(t.At), Kind: api.TimelineKind(t.Kind), Summary: t.Summary(), Version: t.Version,
		Step: (*api.HistoryKind)(t.Step), Event: t.Event, From: t.From, To: t.To, Actor: t.Actor, Reason: t.Reason, Name: t.Name,
		TaskID: textOf(t.TaskID), Compensation: optional(t.Compensates), Attempt: t.Attempt,
		Reconciling: optional(t.Reconciling), Status: t.Status, HTTPStatus: t.HTTPStatus, Failure: t.Failure, Worker: t.Worker,
		EndedAt: (*api.Timestamp)(t.EndedAt), DeliveryID: textOf(t.DeliveryID), SubscriptionID: textOf(t.SubscriptionID),
	}
}
