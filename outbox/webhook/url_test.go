package webhook_test

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/internal/bounded"
	"github.com/pawl-fsm/pawl/outbox/outboxtest"
)

// The target of a request is what the API shows. It has neither spaces nor letters beyond ASCII,
// though a client or a SQL caller wrote some.
func TestURLOnTheWire(t *testing.T) {
	t.Parallel()
	pool, service := withService(t)
	targets := make(chan string, 16)
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, in *http.Request) { targets <- in.RequestURI }))
	t.Cleanup(server.Close)
	const raw, sent = "/a b/ü%2F?q=ö x", "/a%20b/%C3%BC%2F?q=%C3%B6%20x"
	made := subscribe(t, service, server.URL+raw, everything)
	if made.URL != server.URL+sent {
		t.Errorf("the subscription has the URL %s", made.URL)
	}
	webhooks(t, pool, quickly)
	outboxtest.Create(t, pool)
	want := func(what string) {
		t.Helper()
		if got := bounded.Receive(t, "the request to "+what, targets); got != sent {
			t.Errorf("the request to %s is for %s, want %s", what, got, sent)
		}
	}
	want("the subscription")
	if err := service.Unsubscribe(t.Context(), tenant, made.ID); err != nil {
		t.Fatal(err)
	}
	create := func(url string) fsm.Result {
		t.Helper()
		made, err := service.Create(t.Context(), fsm.CreateCommand{
			Workflow: "counter", Key: "once", CallbackURL: url, CallbackSecret: "whsec_b3duIHNlY3JldCBvZiB0aGUgY2FsbGVyLi4u",
		})
		if err != nil {
			t.Fatal(err)
		}
		return made
	}
	first, second := create(server.URL+raw), create(server.URL+sent)
	if first.Instance.ID != second.Instance.ID || !second.Replayed {
		t.Error("the same callback, written in another way, is another request")
	}
	bounded.Value[uuid.UUID](t, pool, "select (pawl.fire_one($1, 'stop')).id", first.Instance.ID)
	want("the callback")

	id := outboxtest.Create(t, pool)
	bounded.Exec(t, pool, `insert into pawl.callback (tenant_id, instance_id, url, secret, created_at) values ($1, $2, $3, $4, pawl.now())`,
		tenant, id, server.URL+raw, "whsec_b3duIHNlY3JldCBvZiB0aGUgY2FsbGVyLi4u")
	bounded.Value[uuid.UUID](t, pool, "select (pawl.fire_one($1, 'stop')).id", id)
	want("a callback that SQL made")
}
