package httpapi

import (
	"context"
	"slices"
	"time"

	"github.com/pawl-fsm/pawl/fsm/definition"
	"github.com/pawl-fsm/pawl/fsm/diagnosis"
	"github.com/pawl-fsm/pawl/httpapi/api"
)

// GetDiagnostics answers with what is known of an instance, as far as the caller may see it.
func (s *server) GetDiagnostics(ctx context.Context, in GetDiagnosticsRequestObject) (GetDiagnosticsResponseObject, error) {
	id, err := s.instance(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	r := requestOf(ctx)
	caller := &r.principal
	d, err := s.diagnoses.Diagnose(ctx, caller.tenant, id, diagnosis.Viewer{
		Actor: caller.subject,
		Deliveries: func(workflow string) (shown bool, within []string) {
			names, all := caller.workflows(ScopeDeliver)
			if all {
				return true, nil
			}
			return slices.Contains(names, workflow), names
		},
	})
	if err != nil {
		return nil, err
	}
	r.concerns(d.Instance.Workflow, id)
	out := diagnosticsOf(d)
	for i, e := range out.Actions {
		out.Actions[i].Permitted = caller.may(ScopeFire, d.Instance.Workflow, e.Event)
	}
	return GetDiagnostics200JSONResponse(out), nil
}

// diagnosticsOf converts a diagnosis to the form of the contract. Nothing in it is permitted yet.
func diagnosticsOf(d diagnosis.Diagnosis) api.Diagnostics {
	i := d.Instance
	out := api.Diagnostics{
		AsOf: api.Timestamp(d.At),
		Instance: api.DiagnosedInstance{
			ID: i.ID.String(), Workflow: i.Workflow, WorkflowVersion: i.WorkflowVersion, State: i.State, Status: api.InstanceStatus(i.Status),
			Version: i.Version, BusinessKey: i.BusinessKey, CorrelationID: i.CorrelationID, CreatedAt: api.Timestamp(i.CreatedAt),
			StateChangedAt: api.Timestamp(i.StateChangedAt), ExpiresAt: (*api.Timestamp)(i.ExpiresAt), Error: i.Error,
		},
		Definition: diagnosedDefinition(d.Definition),
		Actions: each(d.Events, func(e diagnosis.Event) api.DiagnosedAction {
			return api.DiagnosedAction{Event: e.Name, Targets: e.Targets, GuardHolds: e.GuardHolds}
		}),
		Timers: each(d.Timers, func(t diagnosis.Timer) api.DiagnosedTimer {
			return api.DiagnosedTimer{Event: t.Event, DueAt: api.Timestamp(t.DueAt), Refused: t.Refused, LastError: optional(t.LastError), Slow: t.Slow}
		}),
		Tasks: each(d.Tasks, diagnosedTask),
		Connections: each(d.Connections, func(c diagnosis.Connection) api.DiagnosedConnection {
			return api.DiagnosedConnection{
				Name: c.Name, Missing: c.Missing, Failures: c.Failures, RestsUntil: (*api.Timestamp)(c.RestsUntil), SecretMissing: c.SecretMissing,
			}
		}),
		Compensations: each(d.Compensations, compensationOf),
		Refusals: each(d.Refusals, func(f diagnosis.Refusal) api.DiagnosedRefusal {
			return api.DiagnosedRefusal{Code: f.Code, Event: optional(f.Event), Version: f.Version, At: api.Timestamp(f.At), KeyDigest: f.KeyDigest}
		}),
		Findings: each(d.Findings, findingOf),
		Steps: each(d.Steps, func(s diagnosis.Step) api.DiagnosedStep {
			return api.DiagnosedStep{
				Version: s.Version, WorkflowVersion: s.WorkflowVersion, Kind: api.HistoryKind(s.Kind), Event: s.Event, From: s.From, To: s.To,
				Status: api.InstanceStatus(s.Status), Actor: s.Actor, Reason: s.Reason, CorrelationID: s.CorrelationID,
				TraceID: optional(s.TraceID), At: api.Timestamp(s.At),
			}
		}),
		TraceIds: []string{}, Truncated: each(d.Truncated, as[string, diagnosis.Part]), Withheld: []string{},
	}
	if u := d.Undoing; u != nil {
		out.Undoing = &api.DiagnosedUndoing{DueAt: (*api.Timestamp)(u.DueAt), Tried: u.Tried, Problem: u.Problem}
	}
	if d.Deliveries == nil {
		out.Withheld = append(out.Withheld, string(diagnosis.Deliveries))
	} else {
		out.Deliveries = each(d.Deliveries, diagnosedDelivery)
	}
	for _, s := range d.Steps {
		if s.TraceID != "" && !slices.Contains(out.TraceIds, s.TraceID) {
			out.TraceIds = append(out.TraceIds, s.TraceID)
		}
	}
	return out
}

func diagnosedDefinition(d diagnosis.Definition) api.DiagnosedDefinition {
	return api.DiagnosedDefinition{
		LatestVersion: d.LatestVersion, LatestHasState: d.LatestHasState, Within: each(d.Within, as[string, string]), Protected: d.Protected,
		StuckAfter: durationText(d.StuckAfter), Undoing: d.Undoing,
		Transitions: each(d.Transitions, func(t diagnosis.Transition) api.DiagnosedTransition {
			return api.DiagnosedTransition{Event: t.Event, Target: t.Target, Guard: optional(t.Guard), Internal: t.Internal}
		}),
		Tasks: each(d.Tasks, func(t diagnosis.Declaration) api.DiagnosedDeclaration {
			return api.DiagnosedDeclaration{Name: t.Name, Topic: t.Topic, Connection: t.Connection, Deadline: definition.FormatDuration(t.Deadline)}
		}),
	}
}

// durationText writes a duration that may be missing, which is 0.
func durationText(d time.Duration) *string {
	if d == 0 {
		return nil
	}
	text := definition.FormatDuration(d)
	return &text
}

func diagnosedTask(t diagnosis.Task) api.DiagnosedTask {
	return api.DiagnosedTask{
		ID: t.ID.String(), Name: t.Name, State: t.State, Compensation: t.Compensation, Topic: t.Topic, Connection: t.Connection,
		Status: api.TaskStatus(t.Status), Error: optional(t.Error), Worker: optional(t.Worker), Attempt: t.Count,
		Attempts: each(t.Attempts, func(a diagnosis.Attempt) api.DiagnosedAttempt {
			return api.DiagnosedAttempt{
				Attempt: a.Number, Reconciling: a.Reconciling, Worker: a.Worker, StartedAt: api.Timestamp(a.StartedAt),
				EndedAt: (*api.Timestamp)(a.EndedAt), Result: a.Result, Status: a.Status, Error: a.Error,
			}
		}),
		DueAt: (*api.Timestamp)(t.DueAt), LeaseExpiresAt: (*api.Timestamp)(t.LeaseExpiresAt), DeadlineAt: api.Timestamp(t.DeadlineAt),
		LeftAt: (*api.Timestamp)(t.LeftAt), CreatedAt: api.Timestamp(t.CreatedAt), EndedAt: (*api.Timestamp)(t.EndedAt),
	}
}

func diagnosedDelivery(d diagnosis.Delivery) api.DiagnosedDelivery {
	return api.DiagnosedDelivery{
		ID: d.ID.String(), SubscriptionID: textOf(d.SubscriptionID), Host: optional(d.Host), Version: d.Version,
		FindingID: textOf(d.FindingID), Type: d.Type,
		Status: api.DeliveryStatus(d.Status), Attempts: d.Attempts, NextAttemptAt: (*api.Timestamp)(d.NextAttemptAt), LastStatus: d.LastStatus,
		LastError: d.LastError, CreatedAt: api.Timestamp(d.CreatedAt), Disabled: d.Disabled, Failures: d.Failures,
		RestsUntil: (*api.Timestamp)(d.RestsUntil), SecretMissing: d.SecretMissing,
	}
}
