package main_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/pawl-fsm/pawl/db"
	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// TestStandbyIsAway runs a service on a primary with a synchronous standby, which goes away, comes back and is promoted.
// While it is away nothing is acknowledged, neither a first request nor a retry. What was acknowledged outlives the primary.
func TestStandbyIsAway(t *testing.T) {
	t.Parallel()
	primary := dbtest.Private(t, nil)
	if err := db.Up(t.Context(), primary.DSN()); err != nil {
		t.Fatal(err)
	}
	standby := dbtest.Standby(t, primary, "second", nil)
	dbtest.Synchronous(t, primary, "second")
	p := start(t, []string{
		"DATABASE_URL=" + dbtest.AnyOf(t, primary, standby) + "&target_session_attrs=read-write",
		"PAWL_GUARD_TIMEOUT=300ms", "PAWL_LOCK_TIMEOUT=200ms",
	}, "serve")
	mustPawl(t, nil, "workflow", "apply", "--server", p.url, flight)
	mustSend(t, http.StatusCreated, http.MethodPut, p.url+"/v1/workflows/door", strings.Replace(door, "{", `{"description": "the first", `, 1))
	mustSend(t, http.StatusCreated, http.MethodPut, p.url+"/v1/workflows/door", door)
	const keyed = `{"context": {"flight_id": "LH454", "price": 420}, "business_key": "LH454"}`
	booking := mustSend(t, http.StatusCreated, http.MethodPost, p.url+create, keyed, "Idempotency-Key", "quote").header.Get("Location")
	cancel := p.url + booking + "/actions/cancel"

	if err := standby.Kill(); err != nil {
		t.Fatal(err)
	}
	requests := []struct{ name, method, url, body, key string }{
		{"a command", http.MethodPost, cancel, "{}", "cancel"},
		{"its retry", http.MethodPost, cancel, "{}", "cancel"},
		{"another retry", http.MethodPost, cancel, "{}", "cancel"},
		{"a retry of what the standby has", http.MethodPost, p.url + create, keyed, "quote"},
		{"a taken business key", http.MethodPost, p.url + create, keyed, "quote-again"},
		{"a known definition", http.MethodPut, p.url + "/v1/workflows/door", door, ""},
		{"an instance migration", http.MethodPost, p.url + "/v1/workflows/door/migrate", `{"from": 1, "to": 2}`, ""},
		{"a subscription", http.MethodPost, p.url + "/v1/subscriptions", `{"url": "https://receiver.test/"}`, ""},
	}
	for _, r := range requests {
		a := mustSend(t, http.StatusServiceUnavailable, r.method, r.url, r.body, "Idempotency-Key", r.key)
		if a.header.Get("Retry-After") == "" {
			t.Errorf("%s: no Retry-After", r.name)
		}
	}
	batch := `{"commands": [{"op": "fire", "key": "cancel", "instance_id": "` + strings.TrimPrefix(booking, "/v1/instances/") + `", "event": "cancel"}]}`
	if a := mustSend(t, http.StatusOK, http.MethodPost, p.url+"/v1/batch", batch); !strings.Contains(a.body, `"status":503`) {
		t.Errorf("a retry in a batch was answered %s", a.body)
	}
	// Reads are no acknowledgements: they go on, and show what the primary has.
	if a := mustSend(t, http.StatusOK, http.MethodGet, p.url+booking, ""); !strings.Contains(a.body, "CANCELLED") {
		t.Errorf("the instance is %s", a.body)
	}
	mustSend(t, http.StatusOK, http.MethodGet, p.url+"/readyz", "")

	// Somebody cancels each wait, for which the server answers success.
	observer := dialDSN(t, primary.DSN())
	answers := make(chan answer, 1)
	ctx := bounded.Context(t)
	go func() {
		a, err := send(ctx, http.MethodPost, cancel, "{}", "Idempotency-Key", "cancel")
		if err != nil {
			t.Error(err)
		}
		answers <- a
	}()
	cancelled := 0
	bounded.True(t, "the retry to be answered", func() bool {
		cancelled += bounded.Value[int](t, observer, "select count(*) filter (where pg_cancel_backend(pid)) from pg_stat_activity where wait_event = 'SyncRep'")
		return len(answers) > 0
	})
	if a := bounded.Receive(t, "the answer", answers); a.status != http.StatusServiceUnavailable || cancelled == 0 {
		t.Errorf("after %d cancelled waits, the retry was answered %d: %s", cancelled, a.status, a.body)
	}

	if err := standby.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	acknowledged := func() (status int) {
		a, err := send(bounded.Context(t), http.MethodPost, cancel, "{}", "Idempotency-Key", "cancel")
		if err != nil {
			t.Fatal(err)
		}
		if a.status != http.StatusOK && a.status != http.StatusServiceUnavailable {
			t.Fatalf("status %d: %s", a.status, a.body)
		}
		return a.status
	}
	bounded.Until(t, "the retry to be acknowledged", acknowledged, func(status int) bool { return status == http.StatusOK })

	if err := primary.Kill(); err != nil {
		t.Fatal(err)
	}
	dbtest.Promote(t, standby)
	bounded.Until(t, "the new primary to answer", acknowledged, func(status int) bool { return status == http.StatusOK })
	steps := bounded.Value[int](t, dialDSN(t, standby.DSN()), "select count(*) from pawl.history where key = 'cancel'")
	if steps != 1 {
		t.Errorf("the new primary has the step %d times", steps)
	}
}
