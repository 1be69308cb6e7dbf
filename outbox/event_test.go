package outbox_test

import (
	"encoding/json"
	"slices"
	"testing"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2/event"
	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/outbox"
)

// kinds are those that pawl.kind allows.
var kinds = []string{"created", "transition", "timeout", "expired", "forced", "migrated"}

// step is an event with everything set that may be.
func step(tenant string, id uuid.UUID, version int64, kind string) outbox.Event {
	at := time.Date(2026, 3, 1, 9, 30, 0, 123456789, time.FixedZone("", 3600))
	text := func(s string) *string { return &s }
	trace := text("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
	return outbox.Event{
		Tenant: tenant, Seq: version,
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

// bare takes away what an event may do without.
func bare(e outbox.Event) outbox.Event {
	s, i := &e.Step, &e.Instance
	s.Event, s.From, s.Reason, s.Key, s.CorrelationID, s.Traceparent, s.Payload = nil, nil, nil, nil, nil, nil, nil
	i.BusinessKey, i.CorrelationID, i.AcceptedEvents, i.ExpiresAt, i.Error = nil, nil, nil, nil, nil
	return e
}

// oddTenants are names that some broker would take for something else.
var oddTenants = []string{
	"default", "a.b", "a b", "*", ">", "#", "$SYS", "%2E", "a/b?c=d", "Žofie", "\r\nNats-Msg-Id: x", "ü\t\"'\\", ".", "-",
	// 63 characters, each of four bytes.
	"𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞",
	"𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞𝄞a",
}

// Whoever reads CloudEvents by their own SDK accepts every event, and finds in it what the
// step was.
func TestEventsAreCloudEvents(t *testing.T) {
	t.Parallel()
	seen := make(map[string]string)
	for _, kind := range kinds {
		for _, tenant := range oddTenants {
			full := step(tenant, uuid.New(), 7, kind)
			for _, e := range []outbox.Event{full, bare(full)} {
				body, err := e.CloudEvent()
				if err != nil {
					t.Fatal(err)
				}
				var ce cloudevents.Event
				if err := json.Unmarshal(body, &ce); err != nil {
					t.Fatalf("kind %s, tenant %q: %v: %s", kind, tenant, err, body)
				}
				if err := ce.Validate(); err != nil {
					t.Errorf("kind %s, tenant %q: %v", kind, tenant, err)
				}
				if ce.ID() != e.ID() || ce.Source() != e.Source() || ce.Type() != e.Type() || ce.Subject() != e.Instance.ID.String() ||
					!ce.Time().Equal(e.Step.At.Truncate(time.Microsecond)) || ce.Extensions()["sequence"] != "7" {
					t.Errorf("the event is %s", body)
				}
				if ce.Extensions()["tenantid"] != tenant {
					t.Errorf("tenantid is %q, want %q", ce.Extensions()["tenantid"], tenant)
				}
				var data struct {
					Kind    string          `json:"kind"`
					Payload json.RawMessage `json:"payload"`
				}
				if err := ce.DataAs(&data); err != nil || data.Kind != kind {
					t.Errorf("its data is %s: %v", ce.Data(), err)
				}
				if want := full.Step.Payload; e.Step.Payload != nil && !slices.Equal(data.Payload, compact(t, want)) {
					t.Errorf("its payload is %s, want %s", data.Payload, want)
				}
			}
			if other, ok := seen[full.Type()]; ok && other != kind || full.Type() == "" {
				t.Errorf("kinds %s and %s have the type %q", kind, other, full.Type())
			}
			seen[full.Type()] = kind
		}
	}
}

func unmarshal(t *testing.T, raw []byte, to any) {
	t.Helper()
	if err := json.Unmarshal(raw, to); err != nil {
		t.Fatalf("%v: %s", err, raw)
	}
}

func compact(t *testing.T, raw json.RawMessage) []byte {
	t.Helper()
	out, err := json.Marshal(raw)
	if err != nil {
		t.Fatal(err)
	}
	return out
}
