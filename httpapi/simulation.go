package httpapi

import (
	"context"

	"github.com/pawl-fsm/pawl/fsm/lifecycle"
	"github.com/pawl-fsm/pawl/httpapi/api"
)

// SimulateWorkflow decides a sequence of events for an instance that does not exist, and
// writes nothing.
func (s *server) SimulateWorkflow(ctx context.Context, r SimulateWorkflowRequestObject) (SimulateWorkflowResponseObject, error) {
	if err := checkVersion(r.Name, r.Params.Version); err != nil {
		return nil, err
	}
	ctx, cancel := s.draining(ctx)
	defer cancel()
	body := value(r.Body)
	state, err := textAt("/state", body.State)
	if err != nil {
		return nil, err
	}
	simulated, err := s.workflows.Simulate(ctx, lifecycle.Simulation{
		Workflow: r.Name, Version: value(r.Params.Version), State: state, Context: body.Context,
		Events: each(body.Events, func(e api.SimulatedEvent) lifecycle.SimulatedEvent {
			return lifecycle.SimulatedEvent{Event: e.Event, Payload: e.Payload}
		}),
	})
	if err != nil {
		return nil, err
	}
	return SimulateWorkflow200JSONResponse{
		State: simulated.State, Context: simulated.Context,
		Steps: each(simulated.Steps, func(step lifecycle.SimulatedStep) api.SimulatedStep {
			out := api.SimulatedStep{
				Event: step.Event, Outcome: api.SimulatedStepOutcomeApplied, From: step.From, To: step.To, Context: step.Context,
			}
			if step.Err != nil {
				p, _ := problemOf(ctx, step.Err)
				out.Outcome, out.Problem = api.SimulatedStepOutcomeRefused, &p
			}
			return out
		}),
	}, nil
}
