package httpapi

import (
	"context"
	"fmt"

	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/fsm/lifecycle"
	"github.com/pawl-fsm/pawl/httpapi/api"
)

// MigrateWorkflow migrates active instances to another version of their workflow.
func (s *server) MigrateWorkflow(ctx context.Context, r MigrateWorkflowRequestObject) (MigrateWorkflowResponseObject, error) {
	if r.Body == nil {
		return nil, errNoBody
	}
	if err := requestOf(ctx).checkWorkflow(r.Name, 0); err != nil {
		return nil, err
	}
	for pointer, version := range map[string]int{"/from": r.Body.From, "/to": r.Body.To} {
		if version < 1 {
			return nil, malformedAt(pointer, "a version is missing", "must be the number of a version: from is the present one, to the new one")
		}
	}
	filter := value(r.Body.Filter)
	var ids []uuid.UUID
	for i, text := range filter.Ids {
		id, err := instanceID(text)
		if err != nil {
			return nil, malformedAt(fmt.Sprintf("/filter/ids/%d", i), "an id is not a UUID", "must be a UUID")
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
		Total: int64(done.Total), Migrated: int64(done.Migrated),
		Moves: each(done.Moves, func(m lifecycle.Move) api.WorkflowMove {
			return api.WorkflowMove{From: m.From, To: m.To, Count: int64(m.Count)}
		}),
		Left: each(done.Left, func(i lifecycle.LeftInstance) api.InstanceLeft {
			return api.InstanceLeft{ID: i.ID.String(), State: i.State, Reason: api.InstanceLeftReason(i.Reason)}
		}),
	}, nil
}
