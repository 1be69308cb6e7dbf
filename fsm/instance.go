package fsm

import (
	"encoding/json"
	"strconv"
	"time"

	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/fsm/definition"
)

// DefaultTenant is the tenant of a command that names none.
const DefaultTenant = "default"

// Status says whether an instance is active, or how the final state that it reached has ended it.
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
	// ID is a UUID of version 7 (RFC 9562).
	ID uuid.UUID
	// Workflow and WorkflowVersion are those that the instance is pinned to.
	Workflow        string
	WorkflowVersion int
	// State is the path of an atomic or a final state.
	State  string
	Status Status
	// Version is 1 at creation and rises by exactly 1 with each step.
	Version int64
	// Context is a JSON object.
	Context json.RawMessage
	// BusinessKey and CorrelationID are nil if the instance has none.
	BusinessKey, CorrelationID *string
	// AcceptedEvents are the events that the state has a transition for, sorted.
	AcceptedEvents []string
	// CreatedAt is the time of the first step, and StateChangedAt that of the last one. An instance
	// migration that keeps the state keeps StateChangedAt too.
	CreatedAt, StateChangedAt time.Time
	// ExpiresAt is when the lifetime ends, or nil if it does not.
	ExpiresAt *time.Time
	// Error is a JSON object that says why the instance failed, or nil.
	Error json.RawMessage
	// NextTimeout is the next deadline, or nil if there is none. In the answer to a command, or to a read of
	// the past, it is the next deadline as it was right after the step.
	NextTimeout *NextTimeout
}

// NextTimeout is the next deadline of an instance: of a timeout of its state, or of its lifetime.
type NextTimeout struct {
	// Event is "after:" and the time of a timeout, or "ttl".
	Event string
	// DueAt is the deadline. It is past while the timer is late, and while it fails.
	DueAt time.Time
	// LastError says why the step could not be made when the deadline came; nil if it has not come, or if no
	// attempt failed. The step is tried again every minute.
	LastError *string
}

// nextTimeout returns the deadline of a row, whose columns are nil if there is none.
func nextTimeout(event *string, dueAt *time.Time, lastError *string) *NextTimeout {
	if event == nil {
		return nil
	}
	return &NextTimeout{Event: *event, DueAt: *dueAt, LastError: lastError}
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

// InstanceOfRow is InstanceOf for a row of queries.GetInstances, which has the next deadline too.
func InstanceOfRow(r queries.GetInstancesRow) Instance {
	i := InstanceOf(queries.Instance{
		TenantID: r.TenantID, ID: r.ID, Workflow: r.Workflow, WorkflowVersion: r.WorkflowVersion, State: r.State,
		Status: r.Status, Version: r.Version, Context: r.Context, BusinessKey: r.BusinessKey,
		CorrelationID: r.CorrelationID, CreatedAt: r.CreatedAt, StateChangedAt: r.StateChangedAt,
		ExpiresAt: r.ExpiresAt, Error: r.Error,
	}, r.Actions)
	i.NextTimeout = nextTimeout(r.TimeoutEvent, r.TimeoutDueAt, r.TimeoutError)
	return i
}

// Step is one change of an instance: a row of its history, with the context that it left.
type Step struct {
	// Version is the one that the instance reached by the step.
	Version int64
	// WorkflowVersion is the version of the workflow that the instance was on after the step.
	WorkflowVersion int
	// Kind is "created", "transition", "timeout", "expired", "forced", "cancelled", "migrated", "result" (of a task) or
	// "compensated".
	Kind string
	// Event is nil for a creation, an instance migration, a cancel, an override to a state and an eventless step. That of a timer is
	// "after:" or "every:" and its time, that of a lifetime "ttl", and that of a compound state that has ended "done". From is
	// nil for a creation.
	Event, From *string
	// Internal is set if the step has neither left nor entered a state. Then From and To are the same.
	Internal bool
	// To, Status and Context are those of the instance after the step.
	To      string
	Status  Status
	Context json.RawMessage
	// Payload is nil if there was none.
	Payload json.RawMessage
	// Actor is who gave the command, or "pawl" for a timeout and a lifetime.
	Actor string
	// DatabaseUser is the session's user if the command came by SQL; nil if not, and of a row of the log.
	DatabaseUser *string
	// Reason, Key, CorrelationID and Traceparent are those of the command; nil if it had none. Without a
	// correlation id of its own it has the instance's.
	Reason, Key, CorrelationID, Traceparent *string
	// At is when the step was made, by the database's clock.
	At time.Time
}

// StepOf returns the step of a row of history.
func StepOf(h queries.History) Step {
	return Step{
		Version: h.Version, WorkflowVersion: int(h.WorkflowVersion), Kind: h.Kind, Event: h.Event, From: h.FromState,
		To: h.ToState, Status: Status(h.Status), Context: h.Context, Payload: h.Payload, Actor: h.Actor, DatabaseUser: h.DatabaseUser,
		Reason: h.Reason, Key: h.Key, CorrelationID: h.CorrelationID, Traceparent: h.Traceparent, At: h.At,
		Internal: h.Internal != nil,
	}
}

// StepOfMessage returns the step of a row of the log.
func StepOfMessage(m queries.Message) Step {
	return Step{
		Version: m.Version, WorkflowVersion: int(m.WorkflowVersion), Kind: m.Kind, Event: m.Event, From: m.FromState,
		To: m.ToState, Status: Status(m.Status), Context: m.Context, Payload: m.Payload, Actor: m.Actor,
		Reason: m.Reason, Key: m.Key, CorrelationID: m.CorrelationID, Traceparent: m.Traceparent, At: m.At,
		Internal: m.Internal != nil,
	}
}

// StepID is the id by which the world knows a step: "<instance>:<version>", from the second epoch of the log on
// "<instance>:<version>@<epoch>".
func StepID(instance uuid.UUID, version, epoch int64) string {
	id := instance.String() + ":" + strconv.FormatInt(version, 10)
	if epoch > 1 {
		id += "@" + strconv.FormatInt(epoch, 10)
	}
	return id
}

// Visit returns the step as a diagram of a definition marks it.
func (s Step) Visit() definition.Visit {
	return definition.Visit{Version: s.Version, Kind: s.Kind, Event: s.Event, From: s.From, To: s.To}
}

// AcceptedEvent is an event that the state of an instance has a transition for.
type AcceptedEvent struct {
	// Event is its name.
	Event string
	// PayloadSchema is a JSON Schema, or nil if any object will do.
	PayloadSchema json.RawMessage
	// Targets are the paths of the states that the candidates lead to, in their order.
	Targets []string
	// Description is what the definition says of the candidates, in their order, on a line each, and of each at most 1,000
	// characters. It may be empty.
	Description string
	// GuardHolds says whether the event would be taken now with an empty payload. It is nil if that was
	// not asked for, or if a guard raises.
	GuardHolds *bool
}

// FormatTime writes a time as the API and the messages do: RFC 3339 in UTC with six decimals, also
// where they are zero.
func FormatTime(t time.Time) string {
	return t.UTC().Format("2006-01-02T15:04:05.000000Z07:00")
}
