package webhook_test

import (
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"

	"github.com/pawl-fsm/pawl/internal/bounded"
)

// Large messages are read in parts. What a part leaves out is delivered later, and nothing is given up.
func TestLargeMessagesAreReadInParts(t *testing.T) {
	t.Parallel()
	pool, service := withService(t)
	var received atomic.Int64
	endpoint := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { received.Add(1) }))
	t.Cleanup(endpoint.Close)
	for range 2 {
		subscribe(t, service, endpoint.URL, everything)
	}
	bounded.Exec(t, pool, `select pawl.create_one('counter', jsonb_build_object('x', 0, 'text', repeat('x', 60000))) from generate_series(1, 200)`)
	webhooks(t, pool, quickly)
	bounded.UntilSQL(t, pool, allDelivered, 400)
	if n := received.Load(); n != 400 {
		t.Errorf("the endpoint got %d requests, want 400", n)
	}
}
