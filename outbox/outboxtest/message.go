package outboxtest

import (
	"encoding/json"
	"time"

	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/access"
	"github.com/pawl-fsm/pawl/outbox"
)

// Message returns a message of a step in which everything is set that can be.
func Message(tenant string, id uuid.UUID, version int64, kind string) outbox.Message {
	at := time.Date(2026, 3, 1, 9, 30, 0, 123456789, time.FixedZone("", 3600))
	text := func(s string) *string { return &s }
	trace := text("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
	return outbox.Message{
		Tenant: tenant, Epoch: 1, Position: version,
		Step: fsm.Step{
			Version: version, WorkflowVersion: 1, Kind: kind, Event: text("reserve"), From: text("QUOTED"), To: "RESERVED",
			Status: fsm.Active, Context: json.RawMessage(`{"price": 420.00, "who": "Žofie \u2028"}`),
			Payload: json.RawMessage(`{"price": 12345678901234567890.5}`), Actor: "anonymous", Reason: text("why\nnot"),
			Key: text("key-1"), CorrelationID: text("order 7"), Traceparent: trace, At: at,
		},
		Instance: fsm.Instance{
			ID: id, Workflow: "flight-booking", WorkflowVersion: 1, State: "RESERVED", Status: fsm.Active,
			Version: version, Context: json.RawMessage(`{"price": 420.00}`), BusinessKey: text("order-7"),
			CorrelationID: text("order 7"), AcceptedEvents: []string{"pay"}, CreatedAt: at, StateChangedAt: at, ExpiresAt: &at,
			Error: json.RawMessage(`{"code": "x"}`),
		},
	}
}

// Audit returns a message of a row of the audit in which everything is set that can be.
func Audit(tenant string, seq int64) outbox.Message {
	at := time.Date(2026, 3, 1, 9, 30, 0, 123456789, time.FixedZone("", 3600))
	text := func(s string) *string { return &s }
	return outbox.Message{
		Tenant: tenant, Epoch: 1, Position: seq,
		Audit: &access.AuditRow{
			Tenant: tenant, Seq: seq, At: at, Actor: "anna", TokenID: text("t1"), Address: text("::1"), RequestID: text("r1"),
			Action: "workflow.register", Target: text("door 1"), Outcome: "done", Reason: text("why\nnot"), Count: 1,
			Before: json.RawMessage(`{"x": 1.0}`), After: json.RawMessage(`{"x": "Žofie \u2028"}`),
		},
	}
}

// Bare returns the message without anything that may be missing.
func Bare(m outbox.Message) outbox.Message {
	s, i := &m.Step, &m.Instance
	s.Event, s.From, s.Reason, s.Key, s.CorrelationID, s.Traceparent, s.Payload = nil, nil, nil, nil, nil, nil, nil
	i.BusinessKey, i.CorrelationID, i.AcceptedEvents, i.ExpiresAt, i.Error = nil, nil, nil, nil, nil
	return m
}

// OddTenants are names of tenants that some broker would take for something else.
var OddTenants = []string{
	"default", "a.b", "a b", "*", ">", "#", "$SYS", "%2E", "a/b?c=d", "Žofie", "\r\nNats-Msg-Id: x", "ü\t\"'\\", ".", "-",
	// 63 characters, each of four bytes.
	"𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞",
	"𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞a",
}
