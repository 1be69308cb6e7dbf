package httpapi

import (
	"context"

	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/finding"
	"github.com/pawl-fsm/pawl/httpapi/api"
)

// findingOf converts a finding to the form of the contract.
func findingOf(f finding.Finding) api.Finding {
	out := api.Finding{
		ID: f.ID.String(), Kind: api.FindingKind(f.Kind), Workflow: f.Workflow, State: f.State, Version: f.Version,
		Since: (*api.Timestamp)(f.Since), OpenedAt: api.Timestamp(f.OpenedAt), ClosedAt: (*api.Timestamp)(f.ClosedAt), Detail: f.Detail,
	}
	if f.InstanceID != nil {
		id := f.InstanceID.String()
		out.InstanceID = &id
	}
	return out
}

func listedFinding(i item[finding.Finding]) api.Finding {
	out := findingOf(i.value)
	out.Tenant = i.tenant
	return out
}

// ListFindings answers with a page of findings, newest first.
func (s *server) ListFindings(ctx context.Context, in ListFindingsRequestObject) (ListFindingsResponseObject, error) {
	page, err := pageOf(in.Params.Limit, in.Params.Cursor)
	if err != nil {
		return nil, err
	}
	r := requestOf(ctx)
	filter := finding.Filter{
		Kind: finding.Kind(value(in.Params.Kind)), Workflow: value(in.Params.Workflow), State: value(in.Params.State),
		Open: in.Params.Open, Within: r.within(),
	}
	var ok bool
	if filter.InstanceID, ok = filterID(in.Params.InstanceID); !ok {
		return nil, malformed("instance_id", "must be a UUID")
	}
	list, err := listOf(ctx, s, page, false, func(tenant string, page fsm.Page) (fsm.List[finding.Finding], error) {
		return s.findings.List(ctx, tenant, filter, page)
	})
	if err != nil {
		return nil, err
	}
	return ListFindings200JSONResponse{
		Body:    api.FindingList{Items: each(list.Items, listedFinding), NextCursor: optional(list.Next)},
		Headers: ListFindings200ResponseHeaders{Link: r.nextLink(list.Next)},
	}, nil
}
