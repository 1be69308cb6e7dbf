package fsm

import (
	"encoding/json"
	"time"

	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/fsm/definition"
)

// DefaultTenant is the tenant of those who name none.
const DefaultTenant = "default"

// Status of an instance: active, or how a final state ended it.
type Status string

// The statuses.
const (
	Active    Status = "active"
	Completed Status = "completed"
	Failed    Status = "failed"
	Cancelled Status = "cancelled"
	Expired   Status = "expired"
)

// Instance is one running process, as it is now or as it was at one of its versions.
type Instance struct {
	ID              uuid.UUID
	Workflow        string
	WorkflowVersion int
	State           string
	Status          Status
	// Version is 1 at creation and rises by exactly 1 with each step.
	Version int64
	// Context is a JSON object.
	Context json.RawMessage
	// BusinessKey and CorrelationID are nil if the instance has none.
	BusinessKey, CorrelationID *string
	// AcceptedEvents are those that the state has a transition for, sorted.
	AcceptedEvents            []string
	CreatedAt, StateChangedAt time.Time
	// ExpiresAt is when the lifetime ends, or nil if it does not.
	ExpiresAt *time.Time
	// Error is a JSON object that says why the instance failed, or nil.
	Error json.RawMessage
}

// InstanceOf returns the instance of a row, with the events that its state accepts.
func InstanceOf(i queries.Instance, accepted []string) Instance {
	return Instance{
		ID: i.ID, Workflow: i.Workflow, WorkflowVersion: int(i.WorkflowVersion), State: i.State,
		Status: Status(i.Status), Version: i.Version, Context: i.Context, BusinessKey: i.BusinessKey,
		CorrelationID: i.CorrelationID, AcceptedEvents: accepted, CreatedAt: i.CreatedAt, StateChangedAt: i.StateChangedAt,
		ExpiresAt: i.ExpiresAt, Error: i.Error,
	}
}

// Step is one change of an instance: a row of its history, with the context that it left.
type Step struct {
	// Version that the instance reached by the step.
	Version         int64
	WorkflowVersion int
	// Kind is "created", "transition", "timeout", "expired", "forced" or "migrated".
	Kind string
	// Event and From are nil for a creation.
	Event, From *string
	To          string
	Status      Status
	Context     json.RawMessage
	// Payload is nil if there was none.
	Payload json.RawMessage
	Actor   string
	// Reason, Key, CorrelationID and Traceparent are those of the command, nil if it had none.
	Reason, Key, CorrelationID, Traceparent *string
	At                                      time.Time
}

// StepOf returns the step of a row of history.
func StepOf(h queries.History) Step {
	return Step{
		Version: h.Version, WorkflowVersion: int(h.WorkflowVersion), Kind: h.Kind, Event: h.Event, From: h.FromState,
		To: h.ToState, Status: Status(h.Status), Context: h.Context, Payload: h.Payload, Actor: h.Actor,
		Reason: h.Reason, Key: h.Key, CorrelationID: h.CorrelationID, Traceparent: h.Traceparent, At: h.At,
	}
}

// Visit returns the step as a diagram of a definition marks it.
func (s Step) Visit() definition.Visit {
	return definition.Visit{Version: s.Version, Kind: s.Kind, Event: s.Event, From: s.From, To: s.To}
}

// AcceptedEvent is an event that the state of an instance has a transition for.
type AcceptedEvent struct {
	Event string
	// PayloadSchema is a JSON Schema, or nil if any object will do.
	PayloadSchema json.RawMessage
	// Targets are those of the candidates, in order.
	Targets []string
	// GuardHolds says whether the event would be taken now with an empty payload. Nil if that was not
	// asked for, or if a guard raises.
	GuardHolds *bool
}

// FormatTime writes a time as the API and the messages do: RFC 3339 in UTC with six decimals, also
// where they are zero.
func FormatTime(t time.Time) string {
	return t.UTC().Format("2006-01-02T15:04:05.000000Z07:00")
}
