package check

import (
	"encoding/json"
	"time"

	"github.com/google/uuid"
)

// A Run is what was seen of one run: by the clients, by the receivers, and in the database when the run was over.
// All its times are of one machine.
type Run struct {
	// Model is the workflow of all instances. It is not part of the record.
	Model Model `json:"-"`
	// Begin is before the first command. End is when the database was read, after all had healed and was delivered.
	Begin, End time.Time
	// Ops are in no order.
	Ops []Op
	// Steps are the history of all instances at End, those of an instance in the order of its versions.
	Steps []Step
	// Received are in the order of their arrival at each receiver.
	Received []Received
	// Receivers had to get every step that was committed since they began. A receiver that is missing here may miss
	// steps, but what it got is checked too.
	Receivers []Receiver
	// Timers and Keys are all rows of pawl.timer and pawl.idempotency_key at End.
	Timers []Timer
	Keys   []Key
	// Epochs are the rows of pawl.log_epoch at End; none while the database does not have them.
	Epochs []Epoch
	// Orders are what was seen of tasks; empty in most scenarios.
	Orders Orders `json:",omitzero"`
	// Trips are what was seen of the undoing of steps; empty in most scenarios.
	Trips Trips `json:",omitzero"`
	// Losses are when faults could lose steps that were acknowledged, in their order. Without one, none may be lost.
	Losses []Loss
	// Faults are the times in which the service was not bound to work.
	Faults []Span
	// Grace is how late a timer may be, besides the time of faults. 0: 90 s, since a timer whose call failed, as in a
	// fault, is put off for a minute.
	Grace time.Duration
	// Healings are what had to work again after the faults, each within HealWithin. 0: 60 s. A run with Faults has some.
	Healings   []Healing
	HealWithin time.Duration
	// Patience is how long the search for a linearization of one instance may take. 0: 20 s.
	Patience time.Duration `json:",omitzero"`
}

// An Op is one command of a client, as the client saw it. Each attempt with a key is an Op.
type Op struct {
	Client int
	// Key is that of a create or a fire; all have one, which no other command has.
	Key string
	// Kind is "create", "fire" or "get".
	Kind string
	// Instance is nil for a create without an answer.
	Instance uuid.UUID
	Event    string
	// Payload is the payload of a fire, and the context of a create.
	Payload json.RawMessage
	// IfMatch is 0 if there was none.
	IfMatch int64
	// End is zero while there is no answer.
	Begin, End time.Time
	// Status is that of HTTP, or what it would be for a caller of SQL. 0: no answer. After 0 and 5xx nobody knows
	// whether the command had its effect.
	Status int
	// Code is the problem code, if any.
	Code string
	// Version, State and Context are those of the instance in the answer. The problems transition-not-allowed,
	// guard-rejected and version-mismatch have Version and State.
	Version int64
	State   string
	Context json.RawMessage
	// Retry: an earlier Op has the same key.
	Retry bool
	// Async: committed with synchronous_commit off, so that a crash may lose it.
	Async bool
}

// A Step is one row of pawl.history.
type Step struct {
	Instance uuid.UUID
	Version  int64
	// Kind is "created", "transition" or "timeout".
	Kind, Event, From, To, Status string
	Key                           string
	Context, Payload              json.RawMessage
	At                            time.Time
	// Epoch and Position are its place in pawl.log; 0 while the database does not have them.
	Epoch, Position int64
}

// A Received is one message as a receiver got it, or the error event "steps-lost" in its place.
type Received struct {
	// Receiver names one subscription, sink or stream: "webhook", "sink", "stream", "stream-resumed", …
	Receiver string
	Instance uuid.UUID
	Version  int64
	// Epoch is 0 if the message has none.
	Epoch int64
	// ID is the id of the CloudEvent or, of a stream, of the event.
	ID string
	// WebhookID is empty for all but webhooks.
	WebhookID string
	At        time.Time
	// Data is the data of the CloudEvent or of the event: an item of history, with instance.
	Data json.RawMessage
	// Lost: the error event steps-lost came here, with LastCommon.
	Lost       bool
	LastCommon string
}

// A Receiver is where messages arrive.
type Receiver struct {
	Name string
	// Since is when it began: it need not get steps of before. Zero: it gets all.
	Since time.Time
}

// A Timer is a row of pawl.timer.
type Timer struct {
	Instance     uuid.UUID
	DueAt        time.Time
	ArmedVersion int64
}

// A Key is a row of pawl.idempotency_key.
type Key struct {
	Key, Decision string
	Instance      uuid.UUID
	Version       int64
}

// An Epoch is a row of pawl.log_epoch.
type Epoch struct {
	Epoch int64
	// FirstPosition is the last position that it has in common with the epoch before.
	FirstPosition int64
	BeganAt       time.Time
}

// A Span is a time with a beginning and an end.
type Span struct{ Begin, End time.Time }

// A Loss is a time in which steps may have been lost: what the database goes on with after it may lack the last steps
// of before. Begin is noted when the old server has ended, before the new one takes writes, and End when it may take
// some. What one loss has spared is not lost by a later one.
type Loss struct {
	Begin, End time.Time
	// AsyncOnly: it may lose only what was committed with synchronous_commit off, as a crash of the server does.
	AsyncOnly bool
}

// A Healing says how long something took to work again, from the end of the last fault.
type Healing struct {
	// What is a replica, "delivery", …
	What  string
	After time.Duration
	// Never: it did not.
	Never bool
}

// A Violation is a guarantee that did not hold. Detail is one line.
type Violation struct{ Check, Detail string }

// A Model is what a workflow does, in Go. Its functions are pure.
type Model struct {
	// Create returns an instance as it is after its creation with a context.
	Create func(context json.RawMessage) Situation
	// Fire returns the instance after an event. refusal is "", or the problem code.
	Fire func(s Situation, event string, payload json.RawMessage) (next Situation, refusal string)
	// Timeouts has the states with a timeout. Its event in history is Event.
	Timeouts map[string]Timeout
}

// A Timeout is how an instance leaves a state by itself.
type Timeout struct {
	After time.Duration
	// Event is as history names it, such as "after:1s". Fire takes it too.
	Event string
}

// A Situation is an instance without its version. Context is as [Canonical] writes it.
type Situation struct{ State, Status, Context string }
