package outbox_test

import (
	"encoding/json"
	"slices"
	"testing"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2/event"
	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/outbox"
	"github.com/pawl-fsm/pawl/outbox/outboxtest"
)

// Whoever reads CloudEvents with an SDK accepts every message, and finds in it what the
// step was.
func TestMessagesAreCloudEvents(t *testing.T) {
	t.Parallel()
	seen := make(map[string]string)
	for kind := range outbox.Types {
		for _, tenant := range outboxtest.OddTenants {
			full := outboxtest.Message(tenant, uuid.New(), 7, kind)
			for _, e := range []outbox.Message{full, outboxtest.Bare(full)} {
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
					t.Errorf("the CloudEvent is %s", body)
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

func compact(t *testing.T, raw json.RawMessage) []byte {
	t.Helper()
	out, err := json.Marshal(raw)
	if err != nil {
		t.Fatal(err)
	}
	return out
}
