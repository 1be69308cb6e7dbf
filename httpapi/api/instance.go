package api

import "github.com/pawl-fsm/pawl/fsm"

// InstanceOf converts an instance to the form of the contract. Actions is never nil.
func InstanceOf(i fsm.Instance) Instance {
	out := Instance{
		ID: i.ID.String(), Workflow: i.Workflow, WorkflowVersion: i.WorkflowVersion, State: i.State,
		Status: InstanceStatus(i.Status), Version: i.Version, Context: i.Context, BusinessKey: i.BusinessKey,
		CorrelationID: i.CorrelationID, Actions: append([]string{}, i.AcceptedEvents...), CreatedAt: Timestamp(i.CreatedAt),
		StateChangedAt: Timestamp(i.StateChangedAt), ExpiresAt: (*Timestamp)(i.ExpiresAt), Error: i.Error,
	}
	if n := i.NextTimeout; n != nil {
		out.NextTimeout = &NextTimeout{Event: n.Event, DueAt: Timestamp(n.DueAt), LastError: n.LastError}
	}
	return out
}

// HistoryItemOf converts a step to the form of the contract.
func HistoryItemOf(s fsm.Step) HistoryItem {
	var internal *bool
	if s.Internal {
		internal = &s.Internal
	}
	return HistoryItem{
		Version: s.Version, WorkflowVersion: s.WorkflowVersion, Kind: HistoryKind(s.Kind), Event: s.Event,
		From: s.From, To: s.To, Status: InstanceStatus(s.Status), Context: s.Context, Payload: s.Payload,
		Actor: s.Actor, DatabaseUser: s.DatabaseUser, Reason: s.Reason, Key: s.Key, CorrelationID: s.CorrelationID,
		Traceparent: s.Traceparent, At: Timestamp(s.At), Internal: internal,
	}
}
