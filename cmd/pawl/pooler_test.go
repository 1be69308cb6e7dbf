package main_test

import (
	"net/http"
	"regexp"
	"strings"
	"testing"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// slowDefinition has a guard that takes long for a context with a long array.
const slowDefinition = `{"initial": "A", "states": {
	"A": {"on": {
		"go": {"target": "Z", "guard": "exists($.context.a[*] ? (exists($.context.a[*] ? (exists($.context.a[*] ? (@ < 0))))))"},
		"stay": "A"}},
	"Z": {"type": "final"}}}`

// The service works behind a pooler of either kind, with its timeouts in force: requests, lists, waits, timers
// and the consumer of the webhooks.
func TestBehindAPooler(t *testing.T) {
	t.Parallel()
	for name, settings := range map[string][]string{
		"session":     nil,
		"transaction": {"default_pool_size = 4"},
		// PgBouncer drops the startup parameters that it is told to ignore.
		"session, ignoring": {"ignore_startup_parameters = statement_timeout,lock_timeout,jit,idle_in_transaction_session_timeout"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dsn := dbtest.NewDSN(t)
			role := serviceRole(t, dsn)
			mode, _, _ := strings.Cut(name, ",")
			env := []string{"DATABASE_URL=" + dbtest.Pooler(t, role, mode, settings...)}
			if mode == "transaction" {
				env = append(env, "PAWL_LISTEN_DATABASE_URL="+role)
			}
			p := start(t, append(env, "PAWL_GUARD_TIMEOUT=2s", "PAWL_LOCK_TIMEOUT=200ms"), "serve")
			other := start(t, []string{"DATABASE_URL=" + role}, "serve", "--no-workers")
			mustSend(t, http.StatusOK, http.MethodGet, p.url+"/readyz", "")
			mustPawl(t, nil, "workflow", "apply", "--server", p.url, flight)
			mustSend(t, http.StatusCreated, http.MethodPut, p.url+"/v1/workflows/slow", slowDefinition)

			booking := mustSend(t, http.StatusCreated, http.MethodPost, p.url+create, quote, "Idempotency-Key", "quote-1").header.Get("Location")
			mustSend(t, http.StatusCreated, http.MethodPost, p.url+create, quote, "Idempotency-Key", "quote-2")
			replay := mustSend(t, http.StatusCreated, http.MethodPost, p.url+create, quote, "Idempotency-Key", "quote-1")
			if replay.header.Get("Location") != booking || replay.header.Get("Idempotent-Replayed") != "true" {
				t.Errorf("the replay is %v", replay.header)
			}
			mustSend(t, http.StatusOK, http.MethodPost, p.url+booking+"/actions/reserve", accept, "Idempotency-Key", "reserve-1")
			page := mustSend(t, http.StatusOK, http.MethodGet, p.url+"/v1/instances?workflow=flight-booking&limit=1", "")
			next, _ := page.member("next_cursor").(string)
			page = mustSend(t, http.StatusOK, http.MethodGet, other.url+"/v1/instances?workflow=flight-booking&limit=1&cursor="+next, "")
			if items := page.member("items").([]any); len(items) != 1 {
				t.Errorf("the second page has %d instances", len(items))
			}
			mustSend(t, http.StatusOK, http.MethodGet, p.url+booking+"/history", "")
			mustSend(t, http.StatusOK, http.MethodGet, p.url+"/v1/workflows/flight-booking", "")

			slow := mustSend(t, http.StatusCreated, http.MethodPost, p.url+"/v1/workflows/slow/instances",
				`{"context": {"a": [`+strings.Repeat("1,", 2999)+`1]}}`, "Idempotency-Key", "slow-1").header.Get("Location")
			refused := mustSend(t, http.StatusUnprocessableEntity, http.MethodPost, p.url+slow+"/actions/go", "{}", "Idempotency-Key", "slow-2")
			if refused.member("code") != "guard-error" {
				t.Errorf("a slow guard is %s", refused.body)
			}
			look, release := hold(t, dsn)
			busy := mustSend(t, http.StatusServiceUnavailable, http.MethodPost, p.url+slow+"/actions/stay", "{}", "Idempotency-Key", "slow-3")
			if busy.header.Get("Retry-After") == "" {
				t.Errorf("a locked instance is %s", busy.body)
			}
			release()

			// A step by another process ends a wait.
			waited := make(chan answer, 1)
			go func() {
				a, err := send(t.Context(), http.MethodGet, p.url+booking+"?until=CANCELLED", "", "Prefer", "wait=60")
				if err != nil {
					t.Error(err)
				}
				waited <- a
			}()
			mustSend(t, http.StatusOK, http.MethodPost, other.url+booking+"/actions/cancel", "{}", "Idempotency-Key", "cancel-1")
			if a := bounded.Receive(t, "the end of the wait", waited); a.member("state") != "CANCELLED" {
				t.Errorf("the wait ends with %s", a.body)
			}

			// The workers do their work.
			bounded.Exec(t, look, "update pawl.timer set due_at = pawl.now()")
			bounded.UntilSQL(t, look, "select not exists (select from pawl.timer where due_at <= pawl.now())")
			bounded.UntilSQL(t, look, "select count(*) = 1 from pawl.consumer where name = 'webhooks' and lease_until > pawl.now()")
			for _, line := range regexp.MustCompile(`level=(WARN|ERROR).*`).FindAllString(p.Output.String(), -1) {
				if strings.Contains(line, "whoever reaches this address") || strings.Contains(line, "secrets of webhooks") {
					continue // It runs without authentication, and without a key.
				}
				if !strings.Contains(line, "requests are refused") && (mode == "transaction" || !strings.Contains(line, "a pooler is on the way")) {
					t.Errorf("it says %q", line)
				}
			}
		})
	}
}

// A process that starts leaves nothing in the session that it shares with the next one.
func TestStartBehindAPooler(t *testing.T) {
	t.Parallel()
	role := serviceRole(t, dbtest.NewDSN(t))
	env := []string{"DATABASE_URL=" + dbtest.Pooler(t, role, "transaction"), "PAWL_LISTEN_DATABASE_URL=" + role}
	for range 2 {
		p := start(t, env, "serve", "--no-workers")
		mustSend(t, http.StatusOK, http.MethodGet, p.url+"/readyz", "")
	}
}
