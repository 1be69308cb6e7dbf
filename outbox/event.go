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

// An Event is a committed step of an instance, as the world is told of it.
type Event struct {
	Tenant string
	// Seq rises with each step of an instance. It is no order between instances.
	Seq int64
	// Step is what happened.
	Step fsm.Step
	// Instance is as the step left it.
	Instance fsm.Instance
}

func eventOf(e queries.Event) Event {
	out := Event{
		Tenant: e.TenantID, Seq: e.Seq,
		Step: fsm.Step{
			Version: e.Version, WorkflowVersion: int(e.WorkflowVersion), Kind: e.Kind, Event: e.Event, From: e.FromState,
			To: e.ToState, Status: fsm.Status(e.Status), Context: e.Context, Payload: e.Payload, Actor: e.Actor,
			Reason: e.Reason, Key: e.Key, CorrelationID: e.CorrelationID, Traceparent: e.Traceparent, At: e.At,
		},
		Instance: fsm.Instance{
			ID: e.InstanceID, Workflow: e.Workflow, WorkflowVersion: int(e.WorkflowVersion), State: e.ToState,
			Status: fsm.Status(e.Status), Version: e.Version, Context: e.Context, BusinessKey: e.BusinessKey,
			CorrelationID: e.InstanceCorrelationID, AcceptedEvents: e.Actions, CreatedAt: e.At, StateChangedAt: e.At,
			ExpiresAt: e.ExpiresAt, Error: e.Error,
		},
	}
	if e.CreatedAt != nil {
		out.Instance.CreatedAt = *e.CreatedAt
	}
	return out
}

// ID is the same however often the event is published: the instance and its version.
func (e Event) ID() string {
	return e.Instance.ID.String() + ":" + strconv.FormatInt(e.Step.Version, 10)
}

// types are the event types of CloudEvents by the kind of step.
var types = map[string]string{
	"created":    "pawl.instance.created",
	"transition": "pawl.instance.transitioned",
	"timeout":    "pawl.instance.timed-out",
	"expired":    "pawl.instance.expired",
	"forced":     "pawl.instance.forced",
	"migrated":   "pawl.instance.migrated",
}

// Type is that of the CloudEvent, such as pawl.instance.transitioned.
func (e Event) Type() string { return types[e.Step.Kind] }

// Source is that of the CloudEvent: the workflow, as the API's path, within the tenant.
func (e Event) Source() string {
	return "/tenants/" + url.PathEscape(e.Tenant) + "/workflows/" + url.PathEscape(e.Instance.Workflow)
}

// CloudEventType is the media type of a CloudEvent in structured mode.
const CloudEventType = "application/cloudevents+json"

// CloudEvent writes the event in the structured mode of CloudEvents 1.0
// (github.com/cloudevents/spec). The extension sequence is the instance's version, of which
// each is the one before plus one; correlationid and traceparent are the command's, if it had
// any. data is the item of history, as the API shows it, with the instance as it was then.
func (e Event) CloudEvent() ([]byte, error) {
	s, i := e.Step, e.Instance
	if i.AcceptedEvents == nil {
		i.AcceptedEvents = []string{}
	}
	out := cloudEvent{
		SpecVersion: "1.0", ID: e.ID(), Source: e.Source(), Type: e.Type(), Subject: i.ID.String(), Time: timestamp(s.At),
		DataContentType: "application/json", Sequence: strconv.FormatInt(s.Version, 10), TenantID: e.Tenant,
		Data: eventData{
			Version: s.Version, WorkflowVersion: s.WorkflowVersion, Kind: s.Kind, Event: s.Event, From: s.From, To: s.To,
			Status: s.Status, Context: s.Context, Payload: s.Payload, Actor: s.Actor, Reason: s.Reason, Key: s.Key,
			CorrelationID: s.CorrelationID, Traceparent: s.Traceparent, At: timestamp(s.At),
			Instance: eventInstance{
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
	return json.Marshal(out)
}

type cloudEvent struct {
	SpecVersion     string    `json:"specversion"`
	ID              string    `json:"id"`
	Source          string    `json:"source"`
	Type            string    `json:"type"`
	Subject         string    `json:"subject"`
	Time            timestamp `json:"time"`
	DataContentType string    `json:"datacontenttype"`
	Sequence        string    `json:"sequence,omitempty"` // Of a step.
	TenantID        string    `json:"tenantid"`
	CorrelationID   string    `json:"correlationid,omitempty"`
	Traceparent     string    `json:"traceparent,omitempty"`
	Data            any       `json:"data"`
}

// eventData has the members of the API's HistoryItem, and the instance.
type eventData struct {
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
	Instance        eventInstance   `json:"instance"`
}

// eventInstance has the members of the API's Instance.
type eventInstance struct {
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

// timestamp is a time as the API writes it.
type timestamp time.Time

// MarshalText writes it.
func (t timestamp) MarshalText() ([]byte, error) { return []byte(fsm.FormatTime(time.Time(t))), nil }
