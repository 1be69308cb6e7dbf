package httpapi

import (
	"context"
	"fmt"
	"strings"

	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/definition"
	"github.com/pawl-fsm/pawl/fsm/lifecycle"
)

func workflowOf(w lifecycle.Workflow) Workflow {
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
	registered, err := s.workflows.Register(ctx, r.Name, *r.Body, requestOf(ctx).principal.subject, value(r.Params.DryRun))
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
	list, err := s.workflows.ListWorkflows(ctx, page)
	if err != nil {
		return nil, err
	}
	return ListWorkflows200JSONResponse{
		Body:    WorkflowList{Items: each(list.Items, workflowOf), NextCursor: optional(list.Next)},
		Headers: ListWorkflows200ResponseHeaders{Link: requestOf(ctx).nextLink(list.Next)},
	}, nil
}

// GetWorkflow reads the latest version, and what all of them are used for.
func (s *server) GetWorkflow(ctx context.Context, r GetWorkflowRequestObject) (GetWorkflowResponseObject, error) {
	w, err := s.workflows.GetWorkflow(ctx, r.Name, 0)
	if err != nil {
		return nil, err
	}
	versions, err := s.workflows.Versions(ctx, requestOf(ctx).principal.tenant, r.Name)
	if err != nil {
		return nil, err
	}
	out := workflowOf(w)
	out.Versions = each(versions, func(v lifecycle.WorkflowVersion) WorkflowUse {
		return WorkflowUse{
			Version: v.Version, Checksum: v.Checksum, CreatedAt: Timestamp(v.CreatedAt), CreatedBy: v.CreatedBy, Instances: v.Instances,
		}
	})
	return GetWorkflow200JSONResponse(out), nil
}

// checkVersion refuses a version that none can be; 0 would be the latest.
func checkVersion(asked *int) error {
	if asked != nil && *asked < 1 {
		return &fsm.Error{Kind: fsm.WorkflowNotFound, Message: "versions start at 1"}
	}
	return nil
}

// workflow reads the version asked for, or the latest.
func (s *server) workflow(ctx context.Context, name string, version *int) (lifecycle.Workflow, error) {
	if err := checkVersion(version); err != nil {
		return lifecycle.Workflow{}, err
	}
	return s.workflows.GetWorkflow(ctx, name, value(version))
}

// GetWorkflowVersion reads one version.
func (s *server) GetWorkflowVersion(ctx context.Context, r GetWorkflowVersionRequestObject) (GetWorkflowVersionResponseObject, error) {
	w, err := s.workflow(ctx, r.Name, &r.Version)
	if err != nil {
		return nil, err
	}
	return GetWorkflowVersion200JSONResponse(workflowOf(w)), nil
}

// RetireWorkflowVersion removes a version that no instance is on.
func (s *server) RetireWorkflowVersion(ctx context.Context, r RetireWorkflowVersionRequestObject) (RetireWorkflowVersionResponseObject, error) {
	if err := s.workflows.Retire(ctx, r.Name, r.Version); err != nil {
		return nil, err
	}
	return RetireWorkflowVersion204Response{}, nil
}

// MigrateWorkflow moves live instances to another version.
func (s *server) MigrateWorkflow(ctx context.Context, r MigrateWorkflowRequestObject) (MigrateWorkflowResponseObject, error) {
	if r.Body == nil {
		return nil, &problemError{code: ProblemCodeMalformedRequest, detail: "this operation needs a body"}
	}
	filter := value(r.Body.Filter)
	var ids []uuid.UUID
	for i, text := range filter.Ids {
		id, err := instanceID(text)
		if err != nil {
			return nil, malformedAt(fmt.Sprintf("/filter/ids/%d", i), "an id is not well formed", "must be a UUID")
		}
		ids = append(ids, id)
	}
	request := requestOf(ctx)
	done, err := s.workflows.Migrate(ctx, lifecycle.MigrateCommand{
		Tenant: request.principal.tenant, Workflow: r.Name, From: r.Body.From, To: r.Body.To, StateMap: r.Body.StateMap,
		States: filter.States, IDs: ids, DryRun: value(r.Body.DryRun), Origin: request.origin(r.Body.Reason),
	})
	if err != nil {
		return nil, err
	}
	return MigrateWorkflow200JSONResponse{
		Total: done.Total, Migrated: done.Migrated,
		Moves: each(done.Moves, func(m lifecycle.Move) WorkflowMove { return WorkflowMove{From: m.From, To: m.To, Count: m.Count} }),
		Left: each(done.Left, func(i lifecycle.LeftInstance) InstanceLeft {
			return InstanceLeft{ID: i.ID.String(), State: i.State, Reason: InstanceLeftReason(i.Reason)}
		}),
	}, nil
}

// SimulateWorkflow says what events would come to, and writes nothing.
func (s *server) SimulateWorkflow(ctx context.Context, r SimulateWorkflowRequestObject) (SimulateWorkflowResponseObject, error) {
	if err := checkVersion(r.Params.Version); err != nil {
		return nil, err
	}
	body := value(r.Body)
	state, err := notEmpty(body.State, "/state")
	if err != nil {
		return nil, err
	}
	simulated, err := s.workflows.Simulate(ctx, lifecycle.Simulation{
		Workflow: r.Name, Version: value(r.Params.Version), State: state, Context: body.Context,
		Events: each(body.Events, func(e SimulatedEvent) lifecycle.SimulatedEvent {
			return lifecycle.SimulatedEvent{Event: e.Event, Payload: e.Payload}
		}),
	})
	if err != nil {
		return nil, err
	}
	return SimulateWorkflow200JSONResponse{
		State: simulated.State, Context: simulated.Context,
		Steps: each(simulated.Steps, func(step lifecycle.SimulatedStep) SimulatedStep {
			out := SimulatedStep{
				Event: step.Event, Outcome: SimulatedStepOutcomeApplied, From: step.From, To: step.To, Context: step.Context,
			}
			if step.Err != nil {
				p, _ := problemOf(ctx, step.Err)
				out.Outcome, out.Problem = SimulatedStepOutcomeRefused, &p
			}
			return out
		}),
	}, nil
}

// BacktestWorkflow replays recorded histories against another definition, and writes nothing.
func (s *server) BacktestWorkflow(ctx context.Context, r BacktestWorkflowRequestObject) (BacktestWorkflowResponseObject, error) {
	if r.Body == nil {
		return nil, &problemError{code: ProblemCodeMalformedRequest, detail: "this operation needs a body"}
	}
	if err := checkVersion(r.Body.Version); err != nil {
		return nil, err
	}
	if r.Body.Sample != nil && *r.Body.Sample < 1 {
		return nil, malformedAt("/sample", "the sample is too small", "must be at least 1")
	}
	done, err := s.workflows.Backtest(ctx, lifecycle.BacktestCommand{
		Tenant: requestOf(ctx).principal.tenant, Workflow: r.Name, Version: value(r.Body.Version),
		Definition: value(r.Body.Definition), Sample: value(r.Body.Sample),
	})
	if err != nil {
		return nil, err
	}
	return BacktestWorkflow200JSONResponse{
		Version: optional(done.Version), Instances: done.Instances, Same: done.Same, Different: done.Different,
		Incomplete: done.Incomplete,
		Summary: each(done.Summary, func(g lifecycle.DifferenceGroup) BacktestGroup {
			return BacktestGroup{
				Event: g.Event, From: g.From, To: g.To, Outcome: BacktestOutcome(g.Outcome), WouldBe: g.WouldBe, Count: g.Count,
				Examples: each(g.Examples, uuid.UUID.String),
			}
		}),
		Differences: each(done.Differences, func(d lifecycle.Difference) BacktestDifference {
			return BacktestDifference{
				InstanceID: d.InstanceID.String(), WorkflowVersion: d.WorkflowVersion, Version: d.Version, Event: d.Event,
				From: d.From, To: d.To, Outcome: BacktestOutcome(d.Outcome), WouldBe: d.WouldBe, Guards: d.Guards,
				Errors: each(d.Faults, func(f fsm.Fault) Fault { return Fault{Pointer: &f.Pointer, Detail: f.Detail} }),
				Detail: d.Detail,
			}
		}),
	}, nil
}

// maxPath is how many steps of an instance a diagram shows. Each comes with its context.
const maxPath = 1000

// The media types of diagrams, as the contract has them.
var diagramTypes = map[definition.DiagramFormat]string{definition.Mermaid: "text/vnd.mermaid", definition.DOT: "text/vnd.graphviz"}

// GetWorkflowDiagram draws a version of a workflow, with the path of an instance if one is
// asked for.
func (s *server) GetWorkflowDiagram(ctx context.Context, r GetWorkflowDiagramRequestObject) (GetWorkflowDiagramResponseObject, error) {
	format, err := requestOf(ctx).diagramFormat(r.Params.Format)
	if err != nil {
		return nil, err
	}
	version := value(r.Params.Version)
	w, err := s.workflow(ctx, r.Name, r.Params.Version)
	if err != nil {
		return nil, err
	}
	var path []fsm.Step
	if r.Params.Instance != nil {
		i, err := s.instanceOf(ctx, w.Name, *r.Params.Instance)
		if err != nil {
			return nil, err
		}
		switch {
		case version == 0 && w.Version != i.WorkflowVersion:
			if w, err = s.workflows.GetWorkflow(ctx, w.Name, i.WorkflowVersion); err != nil {
				return nil, err
			}
		case w.Version != i.WorkflowVersion:
			return nil, malformed("version", fmt.Sprintf("is %d, but the instance is on version %d: leave it out", version, i.WorkflowVersion))
		}
		if path, err = s.pathOf(ctx, i); err != nil {
			return nil, err
		}
	}
	model, err := w.Model()
	if err != nil {
		return nil, err
	}
	if !format.Known() {
		return nil, &fsm.Error{Kind: fsm.Malformed, Message: "there is no such format of diagrams", Faults: []fsm.Fault{{
			Parameter: "format", Detail: "must be mermaid or dot",
		}}}
	}
	text, err := model.Diagram(format, each(path, fsm.Step.Visit))
	if err != nil {
		return nil, err
	}
	body, length := strings.NewReader(text), int64(len(text))
	if format == definition.DOT {
		return GetWorkflowDiagram200TextVndGraphvizResponse{Body: body, ContentLength: length}, nil
	}
	return GetWorkflowDiagram200TextVndMermaidResponse{Body: body, ContentLength: length}, nil
}

// diagramFormat is the one asked for, or the first that the Accept header admits. One that
// is asked for must be admitted too.
func (r *request) diagramFormat(asked *GetWorkflowDiagramParamsFormat) (definition.DiagramFormat, error) {
	formats := []definition.DiagramFormat{definition.Mermaid, definition.DOT}
	if asked != nil {
		formats = []definition.DiagramFormat{definition.DiagramFormat(*asked)}
	}
	for _, f := range formats {
		if accepts(r.header, []string{diagramTypes[f]}) {
			return f, nil
		}
	}
	return "", &problemError{
		code: ProblemCodeNotAcceptable, detail: fmt.Sprintf("this format is %s, which Accept does not admit", diagramTypes[formats[0]]),
	}
}

// instanceOf reads an instance that must be one of the workflow.
func (s *server) instanceOf(ctx context.Context, workflow string, text InstanceID) (fsm.Instance, error) {
	id, err := instanceID(text)
	if err != nil {
		return fsm.Instance{}, err
	}
	i, err := s.service.Get(ctx, requestOf(ctx).principal.tenant, id)
	if err == nil && i.Workflow != workflow {
		err = &fsm.Error{Kind: fsm.InstanceNotFound, Message: "this workflow has no such instance"}
	}
	return i, err
}

// pathOf reads the first steps of an instance, and sees to it that the last one ends where
// the instance is.
func (s *server) pathOf(ctx context.Context, i fsm.Instance) ([]fsm.Step, error) {
	var path []fsm.Step
	page := fsm.Page{Limit: fsm.MaxLimit}
	for len(path) < maxPath {
		list, err := s.service.History(ctx, requestOf(ctx).principal.tenant, i.ID, page)
		if err != nil {
			return nil, err
		}
		for _, step := range list.Items {
			step.Context, step.Payload = nil, nil // A thousand of them would be much to hold.
			path = append(path, step)
		}
		if page.Cursor = list.Next; page.Cursor == "" {
			return path, nil
		}
	}
	return append(path, fsm.Step{To: i.State}), nil
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
