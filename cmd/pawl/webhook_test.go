package main_test

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/internal/bounded"
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
	next := func(what string) {
		t.Helper()
		h := bounded.Receive(t, what, hooks)
		if err := webhook.Verify(h.body, h.header); err != nil {
			t.Error(err)
		}
		if !strings.Contains(string(h.body), what) {
			t.Errorf("got %s, want %s", h.body, what)
		}
	}
	mustPawl(t, nil, "subscription", "test", "--server", one.url, subscription.ID)
	next("pawl.subscription.test")
	id := mustSend(t, http.StatusCreated, http.MethodPost, one.url+create, quote, "Idempotency-Key", "quote-1").member("id").(string)
	next(`"id":"` + id + `:1"`)

	two := start(t, env, "serve")
	one.Kill(t)
	mustPawl(t, nil, "instance", "fire", "--server", two.url, id, "cancel")
	bounded.True(t, "the second step", func() bool { // A delivery that was not settled is sent again.
		h := bounded.Receive(t, "a webhook", hooks)
		if strings.Contains(string(h.body), `"id":"`+id+`:2"`) {
			return true
		}
		if !strings.Contains(string(h.body), `"id":"`+id+`:1"`) && !strings.Contains(string(h.body), "pawl.subscription.test") {
			t.Fatalf("got %s", h.body)
		}
		return false
	})
	bounded.Until(t, "three deliveries in the log", func() string {
		return mustPawl(t, nil, "outbox", "deliveries", "--server", two.url, "--subscription", subscription.ID)
	}, func(log string) bool { return strings.Count(log, " delivered ") == 3 })
	if out := mustPawl(t, nil, "outbox", "replay", "--server", two.url); out != "0 deliveries are pending again\n" {
		t.Errorf("replayed: %s", out)
	}
	mustPawl(t, nil, "outbox", "replay", "--server", two.url, "--status", "delivered", "--subscription", subscription.ID)
	for range 3 {
		bounded.Receive(t, "a delivery that is replayed", hooks)
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

// --webhook-allow-private allows the private networks, or those that it names, and nothing that it cannot read.
func TestAllowPrivateFlag(t *testing.T) {
	t.Parallel()
	dsn := "DATABASE_URL=" + dbtest.NewDSN(t)
	for _, c := range []struct {
		flags             []string
		env               string
		loopback, private int
	}{
		{nil, "", http.StatusBadRequest, http.StatusBadRequest},
		{nil, "false", http.StatusBadRequest, http.StatusBadRequest},
		{nil, "true", http.StatusCreated, http.StatusCreated},
		{nil, "10.2.0.0/16,fd12::/16", http.StatusBadRequest, http.StatusCreated},
		{[]string{"--webhook-allow-private"}, "", http.StatusCreated, http.StatusCreated},
		{[]string{"--webhook-allow-private=false"}, "true", http.StatusBadRequest, http.StatusBadRequest},
		{[]string{"--webhook-allow-private", "10.2.0.0/16"}, "", http.StatusBadRequest, http.StatusCreated},
		{[]string{"--webhook-allow-private=127.0.0.0/8"}, "", http.StatusCreated, http.StatusBadRequest},
	} {
		p := start(t, []string{dsn, "PAWL_WEBHOOK_ALLOW_PRIVATE=" + c.env}, append([]string{"serve"}, c.flags...)...)
		for url, want := range map[string]int{"http://127.0.0.1:1/": c.loopback, "http://10.2.3.4/": c.private, "http://169.254.169.254/": http.StatusBadRequest} {
			a, err := send(bounded.Context(t), http.MethodPost, p.url+"/v1/subscriptions", `{"url": "`+url+`"}`)
			if err != nil || a.status != want {
				t.Errorf("%v %s: %s gets %d, want %d: %s, %v", c.flags, c.env, url, a.status, want, a.body, err)
			}
		}
	}
	for _, bad := range []string{"10.2.0.0", "10.2.0.0/16,", "private"} {
		wantLine(t, []string{dsn}, 2, []string{"--webhook-allow-private", "must be true, false or networks"}, "serve", "--webhook-allow-private="+bad)
	}
}
