package webhook_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"

	"github.com/cloudevents/sdk-go/v2/event"
	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/fsm/subscription"
	"github.com/pawl-fsm/pawl/internal/bounded"
	"github.com/pawl-fsm/pawl/outbox"
)

// A hook is an attempt as a receiver sees it.
type hook struct {
	header http.Header
	body   []byte
	event  event.Event
}

// what is the id of the message, or the type of a test delivery.
func (h hook) what() string {
	if h.event.Type() == subscription.TestDeliveryType {
		return h.event.Type()
	}
	return h.event.ID()
}

func (h hook) id() string { return h.header.Get("webhook-id") }

// A receiver is an endpoint that keeps the attempts. Each must be a valid CloudEvent.
type receiver struct {
	t   testing.TB
	url string
	// answer writes the answer. If it is nil the answer is 204.
	answer func(w http.ResponseWriter, h hook)
	mu     sync.Mutex
	hooks  []hook
}

func newReceiver(t testing.TB, answer func(w http.ResponseWriter, h hook)) *receiver {
	t.Helper()
	r := &receiver{t: t, answer: answer}
	server := httptest.NewServer(r)
	t.Cleanup(server.Close)
	r.url = server.URL
	return r
}

func (r *receiver) ServeHTTP(w http.ResponseWriter, in *http.Request) {
	body, err := io.ReadAll(in.Body)
	if err != nil {
		return // The attempt was cut.
	}
	h := hook{header: in.Header, body: body}
	if err := json.Unmarshal(body, &h.event); err != nil {
		r.t.Errorf("not a CloudEvent: %v in %s", err, body)
	} else if err := h.event.Validate(); err != nil {
		r.t.Errorf("not a valid CloudEvent: %v in %s", err, body)
	}
	if got := in.Header.Get("Content-Type"); got != outbox.CloudEventType || in.Method != http.MethodPost {
		r.t.Errorf("%s of %s", in.Method, got)
	}
	r.mu.Lock()
	r.hooks = append(r.hooks, h)
	r.mu.Unlock()
	if r.answer == nil {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	r.answer(w, h)
}

func (r *receiver) list() []hook {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.hooks)
}

// want waits until there have been so many attempts, and returns them.
func (r *receiver) want(t testing.TB, n int) []hook {
	t.Helper()
	return bounded.Until(t, fmt.Sprintf("%d attempts", n), r.list, func(list []hook) bool { return len(list) >= n })
}

func whats(hooks []hook) (list []string) {
	for _, h := range hooks {
		list = append(list, h.what())
	}
	return list
}

func wantWhats(t testing.TB, hooks []hook, want []string) {
	t.Helper()
	if got := whats(hooks); !slices.Equal(got, want) {
		t.Errorf("the attempts were for %v, want %v", got, want)
	}
}

// deliveredOf are the attempts of one instance.
func deliveredOf(hooks []hook, id uuid.UUID) (list []hook) {
	for _, h := range hooks {
		if h.event.Subject() == id.String() {
			list = append(list, h)
		}
	}
	return list
}
