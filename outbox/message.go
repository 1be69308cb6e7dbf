package outbox

import (
	"encoding/json"
	"net/url"
	"strconv"
	"time"

	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/access"
	"github.com/pawl-fsm/pawl/fsm/finding"
)

// A Message is a committed step of an instance, in the shape in which sinks and webhooks publish
// it. To those who ask for findings it may be a finding that was opened, and to a sink of the audit it is a row of the audit.
type Message struct {
	Tenant string
	// Epoch is that of the log to which the step belongs, or the finding, or the row. 1 is the first one.
	Epoch int64
	// Position is the position in the log. It rises with each step of an instance, and with each finding. It is 0 if the
	// step was not read from the log. Rows of the audit have positions of their own, which rise with each message.
	Position int64
	// Step is the step itself.
	Step fsm.Step
	// Instance is the instance as the step left it.
	Instance fsm.Instance
	// Finding is what was found, as it is when the message is read. Then Step and Instance are zero.
	Finding *finding.Finding
	// Audit is the row of the audit. Then Step and Instance are zero.
	Audit *access.AuditRow
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

// FindingMessageOf returns the message of a finding that was read from the outbox.
func FindingMessageOf(f queries.FindingMessage) Message {
	return Message{
		Tenant: f.TenantID, Epoch: f.Epoch, Position: f.Position,
		Finding: &finding.Finding{
			ID: f.ID, Kind: finding.Kind(f.Kind), InstanceID: f.InstanceID, Workflow: f.Workflow, State: f.State, Version: f.VisitVersion,
			Since: f.Since, OpenedAt: f.OpenedAt, ClosedAt: f.ClosedAt, Detail: f.Detail,
		},
	}
}

// auditMessageOf returns the message of a row of the audit.
func auditMessageOf(a queries.AuditMessage) Message {
	return Message{
		Tenant: a.TenantID, Epoch: a.Epoch, Position: a.Position,
		Audit: &access.AuditRow{
			Tenant: a.TenantID, Seq: a.Seq, At: a.At, Actor: a.Actor, Unauthenticated: a.Unauthenticated, TokenID: a.TokenID,
			Address: a.Address, RequestID: a.RequestID, Action: a.Action, Target: a.Target, Outcome: a.Outcome, Reason: a.Reason,
			Count: a.Count, Before: a.Before, After: a.After,
		},
	}
}

// ID is "<instance>:<version>", and that of a row of the audit "audit:<seq>". From the second epoch on, "@<epoch>"
// follows. That of a finding is "finding:<id>" in every epoch, since the ids of findings are never given twice. It is the
// same each time the message is published, and no other message has it, so a receiver can drop repeats by it.
func (m Message) ID() string {
	switch {
	case m.Finding != nil:
		return "finding:" + m.Finding.ID.String()
	case m.Audit == nil:
		return fsm.StepID(m.Instance.ID, m.Step.Version, m.Epoch)
	}
	id := "audit:" + strconv.FormatInt(m.Audit.Seq, 10)
	if m.Epoch > 1 {
		id += "@" + strconv.FormatInt(m.Epoch, 10)
	}
	return id
}

// Key is what the order of messages is kept by: the messages with one key are published one after the other. It is the
// id of the instance, also for the findings about it, and "audit" for all rows of the audit. A finding without an instance
// has a key of its own.
func (m Message) Key() string {
	switch {
	case m.Audit != nil:
		return "audit"
	case m.Finding == nil:
		return m.Instance.ID.String()
	case m.Finding.InstanceID == nil:
		return m.ID()
	}
	return m.Finding.InstanceID.String()
}

// At is when the step was made, the finding opened, or the row written.
func (m Message) At() time.Time {
	switch {
	case m.Audit != nil:
		return m.Audit.At
	case m.Finding != nil:
		return m.Finding.OpenedAt
	}
	return m.Step.At
}

// Workflow is that of the instance, or of the finding; empty for a row of the audit.
func (m Message) Workflow() string {
	if m.Finding != nil {
		return m.Finding.Workflow
	}
	return m.Instance.Workflow
}

// types are the types of CloudEvents by the kind of step. The database derives the same types for
// the log of deliveries, by pawl_private.message_type; a test compares them.
var types = map[string]string{
	"created":     "pawl.instance.created",
	"transition":  "pawl.instance.transitioned",
	"timeout":     "pawl.instance.timed-out",
	"expired":     "pawl.instance.expired",
	"forced":      "pawl.instance.forced",
	"cancelled":   "pawl.instance.cancelled",
	"migrated":    "pawl.instance.migrated",
	"result":      "pawl.instance.result",
	"compensated": "pawl.instance.compensated",
}

// Type is the type of the CloudEvent, such as pawl.instance.transitioned; pawl.finding.opened for a finding, and pawl.audit
// for a row of the audit.
func (m Message) Type() string {
	switch {
	case m.Audit != nil:
		return "pawl.audit"
	case m.Finding != nil:
		return "pawl.finding.opened"
	}
	return types[m.Step.Kind]
}

// Source is the source of the CloudEvent: /tenants/{tenant}/workflows/{workflow}, also for a finding, or
// /tenants/{tenant}/audit, each name percent-encoded.
func (m Message) Source() string {
	if m.Audit != nil {
		return "/tenants/" + url.PathEscape(m.Tenant) + "/audit"
	}
	return "/tenants/" + url.PathEscape(m.Tenant) + "/workflows/" + url.PathEscape(m.Workflow())
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
//
// Of a finding, the subject is the instance, and is missing without one. It has no sequence, since it is no step. The data is
// the finding as the API shows it.
//
// Of a row of the audit, the subject is its target, and is missing without one. The extension sequence is the position.
// The data is the row as the API shows it.
func (m Message) CloudEvent() ([]byte, error) {
	switch {
	case m.Audit != nil:
		return m.auditEvent()
	case m.Finding != nil:
		return m.findingEvent()
	}
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
			CorrelationID: s.CorrelationID, Traceparent: s.Traceparent, At: timestamp(s.At), Internal: s.Internal,
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

func (m Message) findingEvent() ([]byte, error) {
	f := m.Finding
	out := Envelope{
		ID: m.ID(), Source: m.Source(), Type: m.Type(), Time: f.OpenedAt, Epoch: m.Epoch, TenantID: m.Tenant,
		Data: findingData{
			ID: f.ID, Kind: string(f.Kind), InstanceID: f.InstanceID, Workflow: f.Workflow, State: f.State, Version: f.Version,
			Since: (*timestamp)(f.Since), OpenedAt: timestamp(f.OpenedAt), ClosedAt: (*timestamp)(f.ClosedAt), Detail: f.Detail,
		},
	}
	if f.InstanceID != nil {
		out.Subject = f.InstanceID.String()
	}
	return out.CloudEvent()
}

func (m Message) auditEvent() ([]byte, error) {
	a := m.Audit
	out := Envelope{
		ID: m.ID(), Source: m.Source(), Type: m.Type(), Time: a.At, Sequence: strconv.FormatInt(m.Position, 10), Epoch: m.Epoch,
		TenantID: m.Tenant,
		Data: auditData{
			Tenant: a.Tenant, Seq: a.Seq, At: timestamp(a.At), Actor: a.Actor, Unauthenticated: a.Unauthenticated, TokenID: a.TokenID,
			Address: a.Address, RequestID: a.RequestID, Action: a.Action, Target: a.Target, Outcome: a.Outcome, Reason: a.Reason,
			Count: a.Count, Before: a.Before, After: a.After,
		},
	}
	if a.Target != nil {
		out.Subject = *a.Target
	}
	return out.CloudEvent()
}

// An Envelope is what every CloudEvent of pawl has around its data.
type Envelope struct {
	ID, Source, Type string
	Time             time.Time
	TenantID         string
	// Subject, Sequence, CorrelationID and Traceparent are left out if they are empty, Epoch if it is 0.
	Subject, Sequence, CorrelationID, Traceparent string
	Epoch                                         int64
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
		Subject         string    `json:"subject,omitempty"`
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
	Internal        bool            `json:"internal,omitempty"`
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

// findingData has the members of the API's Finding, and leaves out the same ones if the finding is about no instance.
type findingData struct {
	ID         uuid.UUID       `json:"id"`
	Kind       string          `json:"kind"`
	InstanceID *uuid.UUID      `json:"instance_id,omitempty"`
	Workflow   string          `json:"workflow"`
	State      *string         `json:"state,omitempty"`
	Version    *int64          `json:"version,omitempty"`
	Since      *timestamp      `json:"since,omitempty"`
	OpenedAt   timestamp       `json:"opened_at"`
	ClosedAt   *timestamp      `json:"closed_at"`
	Detail     json.RawMessage `json:"detail"`
}

// auditData has the members of the API's AuditRow.
type auditData struct {
	Tenant          string          `json:"tenant"`
	Seq             int64           `json:"seq"`
	At              timestamp       `json:"at"`
	Actor           string          `json:"actor"`
	Unauthenticated bool            `json:"unauthenticated"`
	TokenID         *string         `json:"token_id"`
	Address         *string         `json:"address"`
	RequestID       *string         `json:"request_id"`
	Action          string          `json:"action"`
	Target          *string         `json:"target"`
	Outcome         string          `json:"outcome"`
	Reason          *string         `json:"reason"`
	Count           int64           `json:"count"`
	Before          json.RawMessage `json:"before"`
	After           json.RawMessage `json:"after"`
}

// timestamp is a time that is written as the API writes times.
type timestamp time.Time

// MarshalText writes it.
func (t timestamp) MarshalText() ([]byte, error) { return []byte(fsm.FormatTime(time.Time(t))), nil }
