package outbox_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/cloudevents/sdk-go/v2/event"
	"github.com/google/uuid"
	"github.com/pawl-fsm/pawl/fsm/subscription"
)

// A hundred subscribers are told of every step, each in the order of the instances.
func TestHundredSubscribers(t *testing.T) {
	t.Parallel()
	pool, service := withService(t)
	const subscribers, instances, steps = 100, 10, 4
	var mu sync.Mutex
	got := map[string][]string{} // The webhook's sequences, by endpoint and instance.
	count, done := 0, make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		var e event.Event
		if err := json.Unmarshal(body, &e); err != nil {
			t.Error(err)
		}
		mu.Lock()
		defer mu.Unlock()
		got[r.URL.Path+" "+e.Subject()] = append(got[r.URL.Path+" "+e.Subject()], e.ID())
		if count++; count == subscribers*instances*steps {
			close(done)
		}
	}))
	t.Cleanup(server.Close)
	for n := range subscribers {
		subscribe(t, service, fmt.Sprintf("%s/%d", server.URL, n), subscription.Filter{Workflows: []string{"counter"}})
	}
	var list []uuid.UUID
	for range instances {
		id := create(t, pool)
		for range steps - 1 {
			add(t, pool, id)
		}
		list = append(list, id)
	}
	webhooks(t, pool, quickly)
	select {
	case <-done:
	case <-time.After(60 * time.Second):
		t.Fatal("not all were told")
	}
	until(t, pool, allDelivered, subscribers*instances*steps)
	mu.Lock()
	defer mu.Unlock()
	for n := range subscribers {
		for _, id := range list {
			if told := got[fmt.Sprintf("/%d %s", n, id)]; !slices.Equal(told, ids(id, 1, 2, 3, 4)) {
				t.Errorf("subscriber %d was told of %v", n, told)
			}
		}
	}
}
