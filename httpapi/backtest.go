package httpapi

import (
	"cmp"
	"context"

	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/lifecycle"
	"github.com/pawl-fsm/pawl/httpapi/api"
)

// BacktestWorkflow re-runs recorded histories under another definition or version, and writes
// nothing.
func (s *server) BacktestWorkflow(ctx context.Context, r BacktestWorkflowRequestObject) (BacktestWorkflowResponseObject, error) {
	if r.Body == nil {
		return nil, errNoBody
	}
	if err := cmp.Or(requestOf(ctx).checkWorkflow(r.Name, value(r.Body.Version)), checkVersion(r.Name, r.Body.Version)); err != nil {
		return nil, err
	}
	if r.Body.Sample != nil && *r.Body.Sample < 1 {
		return nil, malformedAt("/sample", "sample must be at least 1", "must be at least 1")
	}
	ctx, cancel := s.draining(ctx)
	defer cancel()
	done, err := s.workflows.Backtest(ctx, lifecycle.BacktestCommand{
		Tenant: requestOf(ctx).principal.tenant, Workflow: r.Name, Version: value(r.Body.Version),
		Definition: value(r.Body.Definition), Sample: value(r.Body.Sample),
	})
	if err != nil {
		return nil, err
	}
	return BacktestWorkflow200JSONResponse{
		Version: optional(done.Version), Instances: done.Instances, Same: done.Same, Different: done.Different,
		Incomplete: done.Incomplete, Unfinished: optional(done.Unfinished),
		Summary: each(done.Summary, func(g lifecycle.DifferenceGroup) api.BacktestGroup {
			return api.BacktestGroup{
				Event: g.Event, From: g.From, To: g.To, Outcome: api.BacktestOutcome(g.Outcome), WouldBe: g.WouldBe, Count: g.Count,
				Examples: each(g.Examples, uuid.UUID.String),
			}
		}),
		Differences: each(done.Differences, func(d lifecycle.Difference) api.BacktestDifference {
			return api.BacktestDifference{
				InstanceID: d.InstanceID.String(), WorkflowVersion: d.WorkflowVersion, Version: d.Version, Event: d.Event,
				From: d.From, To: d.To, Outcome: api.BacktestOutcome(d.Outcome), WouldBe: d.WouldBe, Guards: d.Guards,
				Errors: each(d.Faults, func(f fsm.Fault) api.Fault { return api.Fault{Pointer: &f.Pointer, Detail: f.Detail} }),
				Detail: d.Detail,
			}
		}),
	}, nil
}
