package outbox

import (
	"encoding/json"
	"net/url"
	"strconv"
	"time"

	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/fsm"
)

// A Message is a committed step of an instance, in the shape in which sinks and webhooks publish
// it.
type Message struct {
	Tenant string
	// Epoch is that of the log to which the step belongs. 1 is the first one.
	Epoch int64
	// Position is the step's position in the log. It rises with each step of an instance. It is 0 if the step was not
	// read from the log.
	Position int64
	// Step is the step itself.
	Step fsm.Step
	// Instance is the instance as the step left it.
	Instance fsm.Instance
}

// MessageOf returns the message of a step that was read from the outbox.
func MessageOf(e queries.Message) Message {
	out := Message{
		Tenant: e.TenantID, Epoch: e.Epoch, Step: fsm.StepOfMessage(e),
		Instance: fsm.Instance{
			ID: e.InstanceID, Workflow: e.Workflow, WorkflowVersion: int(e.WorkflowVersion), State: e.ToState,
			Status: fsm.Status(e.Status), Version: e.Version, Context: e.Context, BusinessKey: e.BusinessKey,
			CorrelationID: e.InstanceCorrelationID, AcceptedEvents: e.Actions, CreatedAt: e.At, StateChangedAt: e.At,
			ExpiresAt: e.ExpiresAt, Error: e.Error,
		},
	}
	if e.Position != nil {
		out.Position = *e.Position
	}
	if e.CreatedAt != nil {
		out.Instance.CreatedAt = *e.CreatedAt
	}
	return out
}

// ID is "<instance>:<version>", from the second epoch on "<instance>:<version>@<epoch>". It is the same each time the
// message is published, and no other step has it, so a receiver can drop repeats by it.
func (m Message) ID() string { return fsm.StepID(m.Instance.ID, m.Step.Version, m.Epoch) }

// types are the types of CloudEvents by the kind of step. The database derives the same types for
// the log of deliveries, by pawl_private.message_type; a test compares them.
var types = map[string]string{
	"created":    "pawl.instance.created",
	"transition": "pawl.instance.transitioned",
	"timeout":    "pawl.instance.timed-out",
	"expired":    "pawl.instance.expired",
	"forced":     "pawl.instance.forced",
	"migrated":   "pawl.instance.migrated",
}

// Type is the type of the CloudEvent, such as pawl.instance.transitioned.
func (m Message) Type() string { return types[m.Step.Kind] }

// Source is the source of the CloudEvent: /tenants/{tenant}/workflows/{workflow}, each name
// percent-encoded.
func (m Message) Source() string {
	return "/tenants/" + url.PathEscape(m.Tenant) + "/workflows/" + url.PathEscape(m.Instance.Workflow)
}

// CloudEventType is the media type of a CloudEvent in structured mode.
const CloudEventType = "application/cloudevents+json"

// CloudEvent returns the message as JSON, in the structured mode of CloudEvents 1.0
// (github.com/cloudevents/spec). The subject is the instance. The extension sequence is the
// instance's version, which rises by one with each message of the instance. The extension epoch is
// that of the log to which the step belongs. The extensions
// correlationid and traceparent are those of the command, if it had any. The data is an item of
// the instance's history as the API shows it, with one more member, instance: the instance after
// that step.
func (m Message) CloudEvent() ([]byte, error) {
	s, i := m.Step, m.Instance
	if i.AcceptedEvents == nil {
		i.AcceptedEvents = []string{}
	}
	out := Envelope{
		ID: m.ID(), Source: m.Source(), Type: m.Type(), Subject: i.ID.String(), Time: s.At,
		Sequence: strconv.FormatInt(s.Version, 10), Epoch: m.Epoch, TenantID: m.Tenant,
		Data: messageData{
			Version: s.Version, WorkflowVersion: s.WorkflowVersion, Kind: s.Kind, Event: s.Event, From: s.From, To: s.To,
			Status: s.Status, Context: s.Context, Payload: s.Payload, Actor: s.Actor, Reason: s.Reason, Key: s.Key,
			CorrelationID: s.CorrelationID, Traceparent: s.Traceparent, At: timestamp(s.At),
			Instance: messageInstance{
				ID: i.ID, Workflow: i.Workflow, WorkflowVersion: i.WorkflowVersion, State: i.State, Status: i.Status,
				Version: i.Version, Context: i.Context, BusinessKey: i.BusinessKey, CorrelationID: i.CorrelationID,
				Actions: i.AcceptedEvents, CreatedAt: timestamp(i.CreatedAt), StateChangedAt: timestamp(i.StateChangedAt),
				ExpiresAt: (*timestamp)(i.ExpiresAt), Error: i.Error,
			},
		},
	}
	if s.CorrelationID != nil {
		out.CorrelationID = *s.CorrelationID
	}
	if s.Traceparent != nil {
		out.Traceparent = *s.Traceparent
	}
	return out.CloudEvent()
}

// An Envelope is what every CloudEvent of pawl has around its data.
type Envelope struct {
	ID, Source, Type, Subject string
	Time                      time.Time
	TenantID                  string
	// Sequence, CorrelationID and Traceparent are left out if they are empty, Epoch if it is 0.
	Sequence, CorrelationID, Traceparent string
	Epoch                                int64
	// Data is written as JSON.
	Data any
}

// CloudEvent returns the CloudEvent as JSON, in the structured mode of CloudEvents 1.0.
func (e Envelope) CloudEvent() ([]byte, error) {
	return json.Marshal(struct {
		SpecVersion     string    `json:"specversion"`
		ID              string    `json:"id"`
		Source          string    `json:"source"`
		Type            string    `json:"type"`
		Subject         string    `json:"subject"`
		Time            timestamp `json:"time"`
		DataContentType string    `json:"datacontenttype"`
		Sequence        string    `json:"sequence,omitempty"`
		Epoch           int64     `json:"epoch,omitempty"`
		TenantID        string    `json:"tenantid"`
		CorrelationID   string    `json:"correlationid,omitempty"`
		Traceparent     string    `json:"traceparent,omitempty"`
		Data            any       `json:"data"`
	}{
		"1.0", e.ID, e.Source, e.Type, e.Subject, timestamp(e.Time), "application/json", e.Sequence, e.Epoch, e.TenantID,
		e.CorrelationID, e.Traceparent, e.Data,
	})
}

// messageData has the members of the API's HistoryItem, and the instance.
type messageData struct {
	Version         int64           `json:"version"`
	WorkflowVersion int             `json:"workflow_version"`
	Kind            string          `json:"kind"`
	Event           *string         `json:"event"`
	From            *string         `json:"from"`
	To              string          `json:"to"`
	Status          fsm.Status      `json:"status"`
	Context         json.RawMessage `json:"context"`
	Payload         json.RawMessage `json:"payload"`
	Actor           string          `json:"actor"`
	Reason          *string         `json:"reason"`
	Key             *string         `json:"key"`
	CorrelationID   *string         `json:"correlation_id"`
	Traceparent     *string         `json:"traceparent"`
	At              timestamp       `json:"at"`
	Instance        messageInstance `json:"instance"`
}

// messageInstance has the members of the API's Instance.
type messageInstance struct {
	ID              uuid.UUID       `json:"id"`
	Workflow        string          `json:"workflow"`
	WorkflowVersion int             `json:"workflow_version"`
	State           string          `json:"state"`
	Status          fsm.Status      `json:"status"`
	Version         int64           `json:"version"`
	Context         json.RawMessage `json:"context"`
	BusinessKey     *string         `json:"business_key"`
	CorrelationID   *string         `json:"correlation_id"`
	Actions         []string        `json:"actions"`
	CreatedAt       timestamp       `json:"created_at"`
	StateChangedAt  timestamp       `json:"state_changed_at"`
	ExpiresAt       *timestamp      `json:"expires_at"`
	Error           json.RawMessage `json:"error"`
}

// timestamp is a time that is written as the API writes times.
type timestamp time.Time

// MarshalText writes it.
func (t timestamp) MarshalText() ([]byte, error) { return []byte(fsm.FormatTime(time.Time(t))), nil }
