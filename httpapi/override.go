package httpapi

import (
	"context"

	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/httpapi/api"
)

// OverrideInstance makes a step that the definition does not allow. A dry run decides it and writes nothing.
func (s *server) OverrideInstance(ctx context.Context, in OverrideInstanceRequestObject) (OverrideInstanceResponseObject, error) {
	id, err := s.instance(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	r := requestOf(ctx)
	body := value(in.Body)
	act := s.service.Override
	if value(in.Params.DryRun) {
		act = s.service.PreviewOverride
	}
	result, err := act(ctx, fsm.OverrideCommand{
		Tenant: r.principal.tenant, ID: id, To: value(body.To), ContextPatch: body.ContextPatch, Event: value(body.Event),
		Payload: body.Payload, Bypass: string(value(body.Bypass)), Target: value(body.Target), Key: r.key, Expect: r.ifMatch,
		Origin: r.origin(&body.Reason),
	})
	if err != nil {
		return nil, err
	}
	r.concerns(result.Instance.Workflow, result.Instance.ID)
	answer := r.acted(result, value(in.Params.DryRun))
	if answer.minimal {
		return OverrideInstance204Response{Headers: OverrideInstance204ResponseHeaders(answer.headers)}, nil
	}
	return OverrideInstance200JSONResponse{Body: api.InstanceOf(result.Instance), Headers: OverrideInstance200ResponseHeaders(answer.headers)}, nil
}

// CancelInstance moves an instance to the state that its definition names for cancels. A dry run writes nothing.
func (s *server) CancelInstance(ctx context.Context, in CancelInstanceRequestObject) (CancelInstanceResponseObject, error) {
	id, err := s.instance(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	r := requestOf(ctx)
	body := value(in.Body)
	act := s.service.Cancel
	if value(in.Params.DryRun) {
		act = s.service.PreviewCancel
	}
	result, err := act(ctx, fsm.CancelCommand{
		Tenant: r.principal.tenant, ID: id, Key: r.key, Expect: r.ifMatch, Origin: r.origin(&body.Reason),
	})
	if err != nil {
		return nil, err
	}
	r.concerns(result.Instance.Workflow, result.Instance.ID)
	answer := r.acted(result, value(in.Params.DryRun))
	if answer.minimal {
		return CancelInstance204Response{Headers: CancelInstance204ResponseHeaders(answer.headers)}, nil
	}
	return CancelInstance200JSONResponse{Body: api.InstanceOf(result.Instance), Headers: CancelInstance200ResponseHeaders(answer.headers)}, nil
}

// acted is how the answer to an override or a cancel is sent.
type acted struct {
	minimal bool
	headers FireEvent200ResponseHeaders
}

// acted returns the headers for a result. After a dry run the instance keeps its version, which a following If-Match needs.
func (r *request) acted(result fsm.Result, dryRun bool) acted {
	if dryRun {
		return acted{headers: FireEvent200ResponseHeaders{ETag: etag(result.Before)}}
	}
	return acted{minimal: r.minimal, headers: FireEvent200ResponseHeaders{
		ETag: etag(result.Instance.Version), IdempotentReplayed: optional(result.Replayed), PreferenceApplied: r.returnApplied(),
	}}
}
