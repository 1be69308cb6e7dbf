package httpapi

import (
	"cmp"
	"context"

	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/lifecycle"
	"github.com/pawl-fsm/pawl/httpapi/api"
)

// workflowOf converts a version of a workflow to the form of the contract. CreatedAt and
// CreatedBy stay nil for a version that a dry run did not write.
func workflowOf(w lifecycle.Workflow) api.Workflow {
	out := api.Workflow{Name: w.Name, Version: w.Version, Checksum: w.Checksum, Definition: w.Definition}
	if w.CreatedBy != "" {
		out.CreatedAt, out.CreatedBy = (*api.Timestamp)(&w.CreatedAt), &w.CreatedBy
	}
	return out
}

// RegisterWorkflow registers a definition as the next version of its workflow, or checks it
// in a dry run.
func (s *server) RegisterWorkflow(ctx context.Context, r RegisterWorkflowRequestObject) (RegisterWorkflowResponseObject, error) {
	if r.Body == nil {
		return nil, &problemError{code: api.ProblemCodeMalformedRequest, detail: "this operation needs a definition as its JSON body"}
	}
	if !requestOf(ctx).reaches(r.Name) {
		return nil, forbidden("your grants are not for this workflow")
	}
	registered, err := s.workflows.Register(ctx, r.Name, *r.Body, requestOf(ctx).principal.subject, value(r.Params.DryRun),
		lifecycle.Confirmation(value(r.Params.Confirm)))
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

// ListWorkflows answers with a page of workflows, each in its latest version.
func (s *server) ListWorkflows(ctx context.Context, r ListWorkflowsRequestObject) (ListWorkflowsResponseObject, error) {
	page, err := pageOf(r.Params.Limit, r.Params.Cursor)
	if err != nil {
		return nil, err
	}
	list, err := s.workflows.ListWorkflows(ctx, requestOf(ctx).within(), page)
	if err != nil {
		return nil, err
	}
	return ListWorkflows200JSONResponse{
		Body:    api.WorkflowList{Items: each(list.Items, workflowOf), NextCursor: optional(list.Next)},
		Headers: ListWorkflows200ResponseHeaders{Link: requestOf(ctx).nextLink(list.Next)},
	}, nil
}

// GetWorkflow answers with the latest version, and with the number of instances in each state
// of each version.
func (s *server) GetWorkflow(ctx context.Context, r GetWorkflowRequestObject) (GetWorkflowResponseObject, error) {
	if err := requestOf(ctx).checkWorkflow(r.Name, 0); err != nil {
		return nil, err
	}
	w, err := s.workflows.GetWorkflow(ctx, r.Name, 0)
	if err != nil {
		return nil, err
	}
	versions, err := s.workflows.Versions(ctx, requestOf(ctx).principal.tenant, r.Name)
	if err != nil {
		return nil, err
	}
	out := workflowOf(w)
	out.Versions = each(versions, func(v lifecycle.WorkflowVersion) api.WorkflowUse {
		return api.WorkflowUse{
			Version: v.Version, Checksum: v.Checksum, CreatedAt: api.Timestamp(v.CreatedAt), CreatedBy: v.CreatedBy, Instances: v.Instances,
		}
	})
	return GetWorkflow200JSONResponse(out), nil
}

// checkVersion refuses a version below 1. fsm takes 0 as the latest version.
func checkVersion(name string, asked *int) error {
	if asked != nil && *asked < 1 {
		return fsm.NoVersion(name, *asked)
	}
	return nil
}

// workflow reads the given version, or the latest for nil.
func (s *server) workflow(ctx context.Context, name string, version *int) (lifecycle.Workflow, error) {
	if err := cmp.Or(requestOf(ctx).checkWorkflow(name, value(version)), checkVersion(name, version)); err != nil {
		return lifecycle.Workflow{}, err
	}
	return s.workflows.GetWorkflow(ctx, name, value(version))
}

// GetWorkflowVersion answers with one version.
func (s *server) GetWorkflowVersion(ctx context.Context, r GetWorkflowVersionRequestObject) (GetWorkflowVersionResponseObject, error) {
	w, err := s.workflow(ctx, r.Name, &r.Version)
	if err != nil {
		return nil, err
	}
	return GetWorkflowVersion200JSONResponse(workflowOf(w)), nil
}

// RetireWorkflowVersion retires a version that no instance uses.
func (s *server) RetireWorkflowVersion(ctx context.Context, r RetireWorkflowVersionRequestObject) (RetireWorkflowVersionResponseObject, error) {
	if err := requestOf(ctx).checkWorkflow(r.Name, r.Version); err != nil {
		return nil, err
	}
	if err := s.workflows.Retire(ctx, r.Name, r.Version); err != nil {
		return nil, err
	}
	return RetireWorkflowVersion204Response{}, nil
}

// ReindexWorkflow indexes some more instances of a workflow.
func (s *server) ReindexWorkflow(ctx context.Context, r ReindexWorkflowRequestObject) (ReindexWorkflowResponseObject, error) {
	if err := requestOf(ctx).checkWorkflow(r.Name, 0); err != nil {
		return nil, err
	}
	i, err := s.workflows.Reindex(ctx, r.Name)
	if err != nil {
		return nil, err
	}
	return ReindexWorkflow200JSONResponse{Indexed: i.Indexed, Total: i.Total, Complete: i.Complete}, nil
}
