package sink_test

import (
	"bytes"
	"encoding/json"
	"io"
	"strconv"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/internal/bounded"
	"github.com/pawl-fsm/pawl/outbox"
	"github.com/pawl-fsm/pawl/outbox/outboxtest"
	"github.com/pawl-fsm/pawl/outbox/sink"
)

// page returns messages of so many instances: the first step of each, then the second of each …
func page(tenant string, instances, steps int) (messages []outbox.Message) {
	ids := make([]uuid.UUID, instances)
	for i := range ids {
		ids[i] = uuid.New()
	}
	for s := range steps {
		kind := "transition"
		if s == 0 {
			kind = "created"
		}
		for _, id := range ids {
			messages = append(messages, outboxtest.Message(tenant, id, int64(s+1), kind))
		}
	}
	return messages
}

// A received is a message as a consumer got it.
type received struct {
	id, subject, key, contentType string
	body                          []byte
}

// checkOrder checks that every message came, and none before the one before it with its key.
// Repeats are allowed.
func checkOrder(t *testing.T, messages []outbox.Message, got []received) {
	t.Helper()
	place := func(id string) (key string, place int64) {
		key, number, _ := strings.Cut(id, ":")
		place, err := strconv.ParseInt(number, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return key, place
	}
	reached := make(map[string]int64)
	for _, d := range got {
		key, v := place(d.id)
		if v > reached[key]+1 {
			t.Fatalf("%s came when %s was at %d", d.id, key, reached[key])
		}
		reached[key] = max(v, reached[key])
	}
	for _, e := range messages {
		if key, v := place(e.ID()); reached[key] < v {
			t.Fatalf("of %s only %d messages came", key, reached[key])
		}
	}
}

// audit returns the messages of so many rows of the audit, of the tenants in turn.
func audit(rows int, tenants ...string) (messages []outbox.Message) {
	for n := range rows {
		messages = append(messages, outboxtest.Audit(tenants[n%len(tenants)], int64(n+1)))
	}
	return messages
}

// checkBodies checks that what came are the messages, as CloudEvents.
func checkBodies(t *testing.T, messages []outbox.Message, got []received) {
	t.Helper()
	bodies := make(map[string][]byte)
	for _, e := range messages {
		body, err := e.CloudEvent()
		if err != nil {
			t.Fatal(err)
		}
		bodies[e.ID()] = body
	}
	for _, d := range got {
		if d.contentType != outbox.CloudEventType || !bytes.Equal(d.body, bodies[d.id]) {
			t.Fatalf("%s is %s %s, want %s", d.id, d.contentType, d.body, bodies[d.id])
		}
	}
}

func openSink(t *testing.T, raw string) outbox.Sink {
	t.Helper()
	sink, err := sink.Open(raw, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for range 2 {
			if err := sink.Close(); err != nil {
				t.Errorf("close: %v", err)
			}
		}
		if err := sink.Publish(bounded.Context(t), page("default", 1, 1)); err == nil {
			t.Error("a closed sink publishes")
		}
	})
	return sink
}

func publish(t *testing.T, sink outbox.Sink, messages []outbox.Message) {
	t.Helper()
	if err := sink.Publish(bounded.Context(t), messages); err != nil {
		t.Fatal(err)
	}
}

// refuses checks that there is an error of one line that contains the parts.
func refuses(t *testing.T, err error, parts ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("there is no error, want %q", parts)
	}
	for _, part := range parts {
		if !strings.Contains(err.Error(), part) || strings.Contains(err.Error(), "\n") {
			t.Errorf("the error is %q, want %q in one line", err, part)
		}
	}
}

func unmarshal(t *testing.T, raw []byte, to any) {
	t.Helper()
	if err := json.Unmarshal(raw, to); err != nil {
		t.Fatalf("%v: %s", err, raw)
	}
}
