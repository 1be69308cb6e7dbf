package main_test

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/pawl-fsm/pawl/db/dbtest"
)

// A webhook end to end, with the privileges of the service: a subscription gets a test message, the
// messages of steps from one replica, and from the other one after the first was killed.
func TestWebhooks(t *testing.T) {
	t.Parallel()
	type hook struct {
		header http.Header
		body   []byte
	}
	hooks := make(chan hook, 100)
	receiver := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, in *http.Request) {
		if body, err := io.ReadAll(in.Body); err == nil {
			hooks <- hook{in.Header, body}
		}
	}))
	t.Cleanup(receiver.Close)
	env := []string{"DATABASE_URL=" + serviceRole(t, dbtest.NewDSN(t)), "PAWL_WEBHOOK_ALLOW_PRIVATE=true"}
	one := start(t, env, "serve")
	mustPawl(t, nil, "workflow", "apply", "--server", one.url, flight)
	var subscription struct{ ID, Secret string }
	created := mustPawl(t, nil, "subscription", "create", "--server", one.url, "--json", "--workflow", "flight-booking", receiver.URL)
	if err := json.Unmarshal([]byte(created), &subscription); err != nil {
		t.Fatal(err)
	}
	webhook, err := standardwebhooks.NewWebhook(subscription.Secret)
	if err != nil {
		t.Fatal(err)
	}
	next := func(what string, within time.Duration) {
		t.Helper()
		select {
		case h := <-hooks:
			if err := webhook.Verify(h.body, h.header); err != nil {
				t.Error(err)
			}
			if !strings.Contains(string(h.body), what) {
				t.Errorf("got %s, want %s", h.body, what)
			}
		case <-time.After(within):
			t.Fatalf("nothing was sent of %s", what)
		}
	}
	mustPawl(t, nil, "subscription", "test", "--server", one.url, subscription.ID)
	next("pawl.subscription.test", 30*time.Second)
	id := mustSend(t, http.StatusCreated, http.MethodPost, one.url+create, quote, "Idempotency-Key", "quote-1").member("id").(string)
	next(`"id":"`+id+`:1"`, 30*time.Second)

	two := start(t, env, "serve")
	if err := one.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	mustPawl(t, nil, "instance", "fire", "--server", two.url, id, "cancel")
	for { // A delivery that was not settled is sent again.
		h := <-hooks
		if strings.Contains(string(h.body), `"id":"`+id+`:2"`) {
			break
		}
		if !strings.Contains(string(h.body), `"id":"`+id+`:1"`) && !strings.Contains(string(h.body), "pawl.subscription.test") {
			t.Fatalf("got %s", h.body)
		}
	}
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		log := mustPawl(t, nil, "outbox", "deliveries", "--server", two.url, "--subscription", subscription.ID)
		if strings.Count(log, " delivered ") == 3 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("the log is\n%s", log)
		}
	}
	if out := mustPawl(t, nil, "outbox", "replay", "--server", two.url); out != "0 deliveries are pending again\n" {
		t.Errorf("replayed: %s", out)
	}
	mustPawl(t, nil, "outbox", "replay", "--server", two.url, "--status", "delivered", "--subscription", subscription.ID)
	for range 3 {
		<-hooks
	}
	mustPawl(t, nil, "subscription", "rotate-secret", "--server", two.url, subscription.ID)
	if out := mustPawl(t, nil, "subscription", "get", "--server", two.url, subscription.ID); !strings.Contains(out, "health  circuit closed") || strings.Contains(out, "whsec_") {
		t.Errorf("it is %s", out)
	}
	if out := mustPawl(t, nil, "subscription", "list", "--server", two.url); !strings.Contains(out, "workflows flight-booking") {
		t.Errorf("the list is %s", out)
	}
	mustPawl(t, nil, "subscription", "enable", "--server", two.url, subscription.ID)
	mustPawl(t, nil, "subscription", "delete", "--server", two.url, subscription.ID)
	if _, stderr, code := pawl(t, nil, "subscription", "get", "--server", two.url, subscription.ID); code != 1 || !strings.Contains(stderr, "404 not-found") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
}

// Values with which no webhook could be sent are refused, and a secret is not printed.
func TestWebhookFlags(t *testing.T) {
	t.Parallel()
	for _, bad := range []string{"PAWL_WEBHOOK_SECRET=hunter2", "PAWL_WEBHOOK_MAX_ATTEMPTS=0", "PAWL_WEBHOOK_BACKOFF_BASE=-1s"} {
		_, stderr, code := pawl(t, []string{"DATABASE_URL=postgres://nowhere", bad}, "serve")
		if code != 2 || strings.Contains(stderr, "hunter2") {
			t.Errorf("%s: exit code %d: %s", bad, code, stderr)
		}
	}
}
