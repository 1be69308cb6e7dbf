package httpapi

import (
	"context"
	"net/http"
	"time"

	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/access"
	"github.com/pawl-fsm/pawl/httpapi/api"
)

// auditRowOf converts a row of the audit to the form of the contract.
func auditRowOf(a access.AuditRow) api.AuditRow {
	return api.AuditRow{
		Tenant: a.Tenant, Seq: a.Seq, At: api.Timestamp(a.At), Actor: a.Actor, Unauthenticated: a.Unauthenticated, TokenID: a.TokenID,
		Address: a.Address, RequestID: a.RequestID, Action: a.Action, Target: a.Target, Outcome: a.Outcome, Reason: a.Reason,
		Count: a.Count, Before: a.Before, After: a.After,
	}
}

// ListAudit answers with a page of the tenant's audit. The first page of a read is noted in it.
func (s *server) ListAudit(ctx context.Context, in ListAuditRequestObject) (ListAuditResponseObject, error) {
	page, err := pageOf(in.Params.Limit, in.Params.Cursor)
	if err != nil {
		return nil, err
	}
	after := value(in.Params.After)
	if after < 0 {
		return nil, malformed("after", "must be at least 0")
	}
	r := requestOf(ctx)
	filter := access.AuditFilter{
		After: after, Target: value(in.Params.Target), Actor: value(in.Params.Actor), Action: value(in.Params.Action),
		Outcome: value(in.Params.Outcome), From: (*time.Time)(in.Params.From), To: (*time.Time)(in.Params.To),
	}
	if names, all := r.principal.workflows(ScopeAudit); !all {
		filter.Workflows = names
	}
	tenant := r.principal.tenant
	if r.principal.open && r.header.Get(tenantHeader) == "" {
		tenant = fsm.Deployment // Its callers may do what concerns the deployment, and see it.
	}
	list, err := s.access.Audit(ctx, tenant, filter, page)
	if err != nil {
		return nil, err
	}
	if s.config.Auditor != nil && page.Cursor == "" {
		s.config.Auditor.Note(access.Note{Tenant: r.principal.tenant, Caller: r.caller(), Action: "audit.read", Outcome: "done"})
	}
	return ListAudit200JSONResponse{
		Body:    api.AuditList{Items: each(list.Items, auditRowOf), NextCursor: optional(list.Next)},
		Headers: ListAudit200ResponseHeaders{Link: r.nextLink(list.Next)},
	}, nil
}

// noteRefusal notes an answer with 401 or 403 for the audit of the caller's tenant. A caller who is unknown, or names a
// tenant that is not there, has none.
func (s *server) noteRefusal(r *request, p api.Problem) {
	if s.config.Auditor == nil || r.op == nil || p.Status != http.StatusUnauthorized && p.Status != http.StatusForbidden {
		return
	}
	n := access.Note{Tenant: r.principal.home, Caller: r.caller(), Action: r.op.id, Outcome: string(p.Code), Reason: p.Detail}
	switch {
	case p.Status == http.StatusUnauthorized:
		n.Tenant, n.Caller.Actor = fsm.Deployment, "unknown"
	case p.Code == api.ProblemCodeUnknownTenant || n.Tenant == "":
		n.Tenant = fsm.Deployment
	case n.Tenant == fsm.Deployment:
		n.Tenant = r.principal.tenant // The one that it acts for.
	}
	if n.Caller.Actor == "" {
		n.Caller.Actor = "unknown"
	}
	s.config.Auditor.Note(n)
}
