package httpapi

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/definition"
	"github.com/pawl-fsm/pawl/httpapi/api"
)

// maxPath is the number of steps of an instance that a diagram shows. It bounds the work:
// each step is read with its context.
const maxPath = 1000

// diagramTypes are the media types of the contract for the formats.
var diagramTypes = map[definition.DiagramFormat]string{definition.Mermaid: "text/vnd.mermaid", definition.DOT: "text/vnd.graphviz"}

// GetWorkflowDiagram answers with the diagram of a version of a workflow. With the parameter
// instance it draws the version of that instance and marks the steps it has made.
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
			return nil, malformed("version", fmt.Sprintf("is %d, but the instance has version %d of the workflow; leave the parameter out", version, i.WorkflowVersion))
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

// diagramFormat returns the format of the parameter, which Accept must admit, or without the
// parameter the format that Accept prefers.
func (r *request) diagramFormat(asked *api.GetWorkflowDiagramParamsFormat) (definition.DiagramFormat, error) {
	formats := []definition.DiagramFormat{definition.Mermaid, definition.DOT}
	if asked != nil {
		formats = []definition.DiagramFormat{definition.DiagramFormat(*asked)}
	}
	types := each(formats, func(f definition.DiagramFormat) string { return diagramTypes[f] })
	best := preferredOf(r.header, types)
	if best == "" {
		return "", notAcceptable(types)
	}
	return formats[slices.Index(types, best)], nil
}

// instanceOf reads an instance, which must belong to the workflow.
func (s *server) instanceOf(ctx context.Context, workflow string, text api.InstanceID) (fsm.Instance, error) {
	id, err := s.instance(ctx, text)
	if err != nil {
		return fsm.Instance{}, err
	}
	i, err := s.service.Get(ctx, requestOf(ctx).principal.tenant, id)
	if err == nil && i.Workflow != workflow {
		err = &fsm.Error{Kind: fsm.InstanceNotFound, Message: "this workflow has no such instance"}
	}
	return i, err
}

// pathOf reads the first maxPath steps of an instance. If there are more, it appends a step to
// the present state, so that the diagram still marks that state.
func (s *server) pathOf(ctx context.Context, i fsm.Instance) ([]fsm.Step, error) {
	var path []fsm.Step
	page := fsm.Page{Limit: fsm.MaxLimit}
	for len(path) < maxPath {
		list, err := s.service.History(ctx, requestOf(ctx).principal.tenant, i.ID, page)
		if err != nil {
			return nil, err
		}
		for _, step := range list.Items {
			step.Context, step.Payload = nil, nil // A diagram does not need them, and they may be large.
			path = append(path, step)
		}
		if page.Cursor = list.Next; page.Cursor == "" {
			return path, nil
		}
	}
	return append(path, fsm.Step{To: i.State}), nil
}
