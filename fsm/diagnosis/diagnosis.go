package diagnosis

import (
	"encoding/json"
	"time"

	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/finding"
	"github.com/pawl-fsm/pawl/fsm/task"
)

// A Diagnosis is what is known of an instance, as it was at one moment.
type Diagnosis struct {
	// At is that moment, by the clock of the database.
	At         time.Time
	Instance   Instance
	Definition Definition
	// Events are those that the state accepts from callers, by name.
	Events []Event
	// Timers are the deadlines, the nearest first.
	Timers []Timer
	// Tasks are the open ones and then those that have ended, each with the newest first.
	Tasks []Task
	// Connections are those of the open tasks and of the tasks that the state declares, by name.
	Connections []Connection
	// Undoing is nil unless the instance is in a state that undoes steps.
	Undoing *Undoing
	// Compensations are the newest first.
	Compensations []task.Compensation
	// Deliveries are those that are pending, and then the dead ones. It is nil if they are not shown.
	Deliveries []Delivery
	// Refusals, Findings and Steps are the newest first.
	Refusals []Refusal
	Findings []finding.Finding
	Steps    []Step
	// Truncated names the parts that have more than is shown.
	Truncated []Part
}

// A Part is what has a limit of its own.
type Part string

// The parts of a diagnosis.
const (
	Events        Part = "actions"
	Transitions   Part = "transitions"
	Declarations  Part = "declared_tasks"
	Timers        Part = "timers"
	Tasks         Part = "tasks"
	Attempts      Part = "attempts"
	Compensations Part = "compensations"
	Deliveries    Part = "deliveries"
	Refusals      Part = "refusals"
	Findings      Part = "findings"
	Steps         Part = "steps"
)

// Instance is an instance without its context.
type Instance struct {
	ID              uuid.UUID
	Workflow        string
	WorkflowVersion int
	State           string
	Status          fsm.Status
	Version         int64
	// BusinessKey, CorrelationID, ExpiresAt and Error are nil if it has none.
	BusinessKey    *string
	CorrelationID  *string
	CreatedAt      time.Time
	StateChangedAt time.Time
	ExpiresAt      *time.Time
	Error          json.RawMessage
}

// Definition is the state of the instance in its version of the workflow, and what newer version there is.
type Definition struct {
	// LatestVersion is that of the workflow, and LatestHasState whether it declares the state.
	LatestVersion  int
	LatestHasState bool
	// Within are the compound states around the state, from the outside in.
	Within    []string
	Protected bool
	// StuckAfter is 0 if the state declares none.
	StuckAfter time.Duration
	// Undoing is what a state that undoes steps does when one cannot be undone; nil for other states.
	Undoing     *string
	Transitions []Transition
	// Tasks are those that the state starts, by name.
	Tasks []Declaration
}

// A Transition leads out of the state.
type Transition struct {
	// Event may be the engine's own, such as after:10m or :always.
	Event, Target string
	// Guard is the guard as the definition words it, or its beginning; empty if there is none.
	Guard string
	// Internal: it neither leaves nor enters a state.
	Internal bool
}

// A Declaration is a task that the state starts.
type Declaration struct {
	Name string
	// Topic is nil for a call, and Connection for work.
	Topic, Connection *string
	Deadline          time.Duration
}

// An Event is one that the state accepts from callers.
type Event struct {
	Name string
	// Targets are those of its transitions, in their order.
	Targets []string
	// GuardHolds is whether it would be taken now with an empty payload; nil if that is not known.
	GuardHolds *bool
}

// A Timer is a deadline of the instance.
type Timer struct {
	Event string
	DueAt time.Time
	// Refused: it has come, and its guards did not hold.
	Refused bool
	// LastError says of the next deadline why its step could not be made; empty if none was tried.
	LastError string
	// Slow: the next deadline waits in the lane of slow timers.
	Slow bool
}

// A Task is a task without what was sent and answered.
type Task struct {
	ID           uuid.UUID
	State, Name  string
	Compensation bool
	// Topic is nil for a call, and Connection for work.
	Topic, Connection *string
	Status            task.Status
	// Error says why the last attempt or the task failed; empty if nothing has. Worker is who has the lease; empty if
	// nobody has.
	Error, Worker string
	// Count is how many attempts there were, and Attempts are the last ones, the newest first.
	Count    int
	Attempts []Attempt
	// DueAt is when the next attempt is due; nil while one is under way and when the task has ended. LeaseExpiresAt is nil
	// if nobody has the lease.
	DueAt, LeaseExpiresAt *time.Time
	// DeadlineAt is when it ends at the latest.
	DeadlineAt time.Time
	// LeftAt is when the instance left the state while the task was open; nil if it has not.
	LeftAt    *time.Time
	CreatedAt time.Time
	// EndedAt is nil while the task is open.
	EndedAt *time.Time
}

// An Attempt is one of a task, or a question about one.
type Attempt struct {
	Number int
	// Reconciling: it asks what came of an earlier attempt.
	Reconciling bool
	// Worker is who claimed the work, or the process that sent the call; nil if that is not known.
	Worker    *string
	StartedAt time.Time
	// EndedAt and Result are nil while it is under way.
	EndedAt *time.Time
	Result  *string
	// Status is the HTTP status of the answer; nil if there was none. Error says why it failed; nil if it did not.
	Status *int
	Error  *string
}

// A Connection says whether calls by it are made.
type Connection struct {
	Name string
	// Missing: the tenant has no such connection.
	Missing bool
	// Failures counts the failed attempts since the last one that succeeded.
	Failures int
	// RestsUntil is until when nothing is sent; nil if there is no such time.
	RestsUntil *time.Time
	// SecretMissing: the secret cannot be had.
	SecretMissing bool
}

// Undoing says how far undoing is.
type Undoing struct {
	// DueAt is nil while a task is waited for.
	DueAt *time.Time
	// Tried is how often going on has failed, and Problem why it did last; nil if it never did.
	Tried   int
	Problem *string
}

// A Delivery is a message that is not delivered.
type Delivery struct {
	ID uuid.UUID
	// SubscriptionID is nil for the callback.
	SubscriptionID *uuid.UUID
	// Host is that of the endpoint, with its port if it is named; empty if there is no endpoint any more.
	Host string
	// Version is that of the step, and FindingID the finding, that the message tells of. The other one is nil.
	Version      *int64
	FindingID    *uuid.UUID
	Type, Status string
	Attempts     int
	// NextAttemptAt is nil of a dead one, and of one that waits for an earlier message of the instance.
	NextAttemptAt *time.Time
	// LastStatus is the HTTP status of the last attempt, and LastError why it failed; nil if there is none.
	LastStatus *int
	LastError  *string
	CreatedAt  time.Time
	// Disabled, Failures, RestsUntil and SecretMissing are of the subscription.
	Disabled      bool
	Failures      int
	RestsUntil    *time.Time
	SecretMissing bool
}

// A Refusal is a command with a key that the machine has refused.
type Refusal struct {
	Code string
	// Event is empty for an override to a state and for a cancel.
	Event   string
	Version int64
	At      time.Time
	// KeyDigest is the SHA-256 of the key, in hexadecimal digits.
	KeyDigest string
}

// A Step is a step without its payload and the context that it left.
type Step struct {
	Version         int64
	WorkflowVersion int
	Kind            string
	Event           *string
	From            *string
	To              string
	Status          fsm.Status
	Actor           string
	Reason          *string
	CorrelationID   *string
	// TraceID is that of the command; empty if it had none.
	TraceID string
	At      time.Time
}
