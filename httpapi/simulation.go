package httpapi

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"github.com/pawl-fsm/pawl/fsm/definition"
	"github.com/pawl-fsm/pawl/fsm/lifecycle"
	"github.com/pawl-fsm/pawl/httpapi/api"
)

// SimulateWorkflow decides a sequence of events for an instance that does not exist, and
// writes nothing.
func (s *server) SimulateWorkflow(ctx context.Context, r SimulateWorkflowRequestObject) (SimulateWorkflowResponseObject, error) {
	if err := cmp.Or(requestOf(ctx).checkWorkflow(r.Name, value(r.Params.Version)), checkVersion(r.Name, r.Params.Version)); err != nil {
		return nil, err
	}
	simulated, err := s.simulate(ctx, value(r.Body), lifecycle.Simulation{Workflow: r.Name, Version: value(r.Params.Version)})
	return SimulateWorkflow200JSONResponse(simulated), err
}

// SimulateDefinition is SimulateWorkflow for a definition that need not be registered.
func (s *server) SimulateDefinition(ctx context.Context, r SimulateDefinitionRequestObject) (SimulateDefinitionResponseObject, error) {
	if r.Body == nil {
		return nil, errNoBody
	}
	b := r.Body
	simulated, err := s.simulate(
		ctx, api.Simulation{State: b.State, Context: b.Context, Now: b.Now, Actor: b.Actor, Events: b.Events},
		lifecycle.Simulation{Definition: b.Definition})
	return SimulateDefinition200JSONResponse(simulated), err
}

// simulate simulates what a body says, of the workflow that c names.
func (s *server) simulate(ctx context.Context, body api.Simulation, c lifecycle.Simulation) (out api.Simulated, err error) {
	ctx, cancel := s.draining(ctx)
	defer cancel()
	if c.State, err = textAt("/state", body.State); err != nil {
		return out, err
	}
	c.Context, c.Now = body.Context, time.Time(value(body.Now))
	if c.Actor, err = simulatedActor("/actor", body.Actor); err != nil {
		return out, err
	}
	if c.Actor == "" {
		c.Actor = requestOf(ctx).principal.subject
	}
	for n, e := range body.Events {
		event, err := simulatedEvent(fmt.Sprintf("/events/%d", n), e)
		if err != nil {
			return out, err
		}
		c.Events = append(c.Events, event)
	}
	simulated, err := s.workflows.Simulate(ctx, c)
	if err != nil {
		return out, err
	}
	return api.Simulated{
		Start: simulatedInstance(simulated.Start),
		State: simulated.State, Status: api.InstanceStatus(simulated.Status), Version: simulated.Version, Context: simulated.Context,
		Steps: each(simulated.Steps, func(step lifecycle.SimulatedStep) api.SimulatedStep {
			out := api.SimulatedStep{
				Index: step.Index, Kind: api.SimulatedStepKind(step.Kind), Event: step.Event, Outcome: api.SimulatedStepOutcomeApplied,
				From: step.From, To: step.To, Status: api.InstanceStatus(step.Status), Version: step.Version, Context: step.Context,
				At: api.Timestamp(step.At),
			}
			if step.Err != nil {
				p, _ := problemOf(ctx, step.Err)
				out.Outcome, out.Problem = api.SimulatedStepOutcomeRefused, &p
			}
			return out
		}),
	}, nil
}

func simulatedInstance(i lifecycle.SimulatedInstance) api.SimulatedInstance {
	return api.SimulatedInstance{State: i.State, Status: api.InstanceStatus(i.Status), Version: i.Version, Context: i.Context}
}

// simulatedEvent reads the event at a JSON Pointer of the body.
func simulatedEvent(pointer string, e api.SimulatedEvent) (out lifecycle.SimulatedEvent, err error) {
	out.Payload = e.Payload
	if out.Event, err = textAt(pointer+"/event", e.Event); err != nil {
		return out, err
	}
	if out.Actor, err = simulatedActor(pointer+"/actor", e.Actor); err != nil {
		return out, err
	}
	if e.After != nil {
		if out.After, err = definition.ParseCalendarDuration(*e.After); err != nil {
			return out, malformedAt(pointer+"/after", err.Error(), err.Error())
		}
	}
	return out, nil
}

// simulatedActor reads the subject of the actor at a JSON Pointer of the body; empty if there is none.
func simulatedActor(pointer string, a *api.SimulatedActor) (string, error) {
	if a == nil {
		return "", nil
	}
	return textAt(pointer+"/subject", &a.Subject)
}
