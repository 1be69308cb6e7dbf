package httpapi

import (
	"context"

	"github.com/pawl-fsm/pawl/fsm"
)

func workflowOf(w fsm.Workflow) Workflow {
	out := Workflow{Name: w.Name, Version: w.Version, Checksum: w.Checksum, Definition: w.Definition}
	if w.CreatedBy != "" {
		out.CreatedAt, out.CreatedBy = timestampOf(&w.CreatedAt), &w.CreatedBy
	}
	return out
}

// RegisterWorkflow makes a definition the next version of its workflow.
func (s *server) RegisterWorkflow(ctx context.Context, r RegisterWorkflowRequestObject) (RegisterWorkflowResponseObject, error) {
	if r.Body == nil {
		return nil, &problemError{code: ProblemCodeMalformedRequest, detail: "this operation needs a definition as its body"}
	}
	registered, err := s.service.Register(ctx, r.Name, *r.Body, requestOf(ctx).principal.subject, value(r.Params.DryRun))
	if err != nil {
		return nil, err
	}
	if !registered.Created {
		return RegisterWorkflow200JSONResponse(workflowOf(registered.Workflow)), nil
	}
	return RegisterWorkflow201JSONResponse{
		Body:    workflowOf(registered.Workflow),
		Headers: RegisterWorkflow201ResponseHeaders{Location: "/v1/workflows/" + registered.Name},
	}, nil
}

// ListWorkflows lists the latest versions.
func (s *server) ListWorkflows(ctx context.Context, r ListWorkflowsRequestObject) (ListWorkflowsResponseObject, error) {
	page, err := pageOf(r.Params.Limit, r.Params.Cursor)
	if err != nil {
		return nil, err
	}
	list, err := s.service.ListWorkflows(ctx, page)
	if err != nil {
		return nil, err
	}
	return ListWorkflows200JSONResponse{
		Body:    WorkflowList{Items: each(list.Items, workflowOf), NextCursor: optional(list.Next)},
		Headers: ListWorkflows200ResponseHeaders{Link: requestOf(ctx).nextLink(list.Next)},
	}, nil
}

// GetWorkflow reads the latest version.
func (s *server) GetWorkflow(ctx context.Context, r GetWorkflowRequestObject) (GetWorkflowResponseObject, error) {
	w, err := s.service.GetWorkflow(ctx, r.Name, 0)
	if err != nil {
		return nil, err
	}
	return GetWorkflow200JSONResponse(workflowOf(w)), nil
}

// GetWorkflowVersion reads one version.
func (s *server) GetWorkflowVersion(ctx context.Context, r GetWorkflowVersionRequestObject) (GetWorkflowVersionResponseObject, error) {
	if r.Version < 1 {
		return nil, &fsm.Error{Kind: fsm.WorkflowNotFound, Message: "versions start at 1"}
	}
	w, err := s.service.GetWorkflow(ctx, r.Name, r.Version)
	if err != nil {
		return nil, err
	}
	return GetWorkflowVersion200JSONResponse(workflowOf(w)), nil
}

// pageOf reads the parameters that all lists share.
func pageOf(limit *Limit, cursor *Cursor) (fsm.Page, error) {
	var page fsm.Page
	if limit != nil {
		if *limit < 1 {
			return page, malformed("limit", "must be at least 1")
		}
		page.Limit = int(*limit)
	}
	page.Cursor = value(cursor)
	return page, nil
}

// each maps a list to one that is never nil.
func each[A, B any](list []A, f func(A) B) []B {
	out := make([]B, len(list))
	for i, a := range list {
		out[i] = f(a)
	}
	return out
}
