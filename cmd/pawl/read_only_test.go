package main_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// A server that takes no writes, such as a standby, counts as one that is away. The failure is logged once. When
// the server takes writes again, the service works again without a restart.
func TestReadOnlyServer(t *testing.T) {
	t.Parallel()
	dsn := dbtest.NewDSN(t)
	p := start(t, []string{"DATABASE_URL=" + serviceRole(t, dsn)}, "serve")
	mustPawl(t, nil, "workflow", "apply", "--server", p.url, flight)
	booking := mustSend(t, http.StatusCreated, http.MethodPost, p.url+create, quote, "Idempotency-Key", "quote-1").header.Get("Location")
	owner := dialDSN(t, dsn)
	bounded.Exec(t, owner, `do $$ begin execute format('alter database %I set default_transaction_read_only = on', current_database()); end $$`)
	bounded.Value[int](t, owner, "select count(pg_terminate_backend(pid)) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()")
	for path, body := range map[string]string{booking + "/actions/cancel": "{}", create: quote} {
		refused := mustSend(t, http.StatusServiceUnavailable, http.MethodPost, p.url+path, body, "Idempotency-Key", "refused-"+path)
		if refused.member("code") != "unavailable" || refused.header.Get("Retry-After") == "" {
			t.Errorf("%s: %v %s", path, refused.header, refused.body)
		}
	}
	ready := mustSend(t, http.StatusServiceUnavailable, http.MethodGet, p.url+"/readyz", "")
	if !strings.Contains(ready.body, "takes no writes") {
		t.Errorf("/readyz: %s", ready.body)
	}
	mustSend(t, http.StatusOK, http.MethodGet, p.url+booking, "") // Reads go on.
	for range 3 {
		mustSend(t, http.StatusServiceUnavailable, http.MethodGet, p.url+"/readyz", "")
	}
	if n := strings.Count(p.Output.String(), "firing timers fails"); n > 1 {
		t.Errorf("the timers' failure is logged %d times", n)
	}
	bounded.Exec(t, owner, `do $$ begin execute format('alter database %I reset default_transaction_read_only', current_database()); end $$`)
	bounded.True(t, "the service to be ready", func() bool {
		a, err := send(bounded.Context(t), http.MethodGet, p.url+"/readyz", "")
		return err == nil && a.status == http.StatusOK
	})
	mustSend(t, http.StatusOK, http.MethodPost, p.url+booking+"/actions/cancel", "{}", "Idempotency-Key", "refused-"+booking+"/actions/cancel")
	bounded.UntilSQL(t, owner, "select count(*) = 1 from pawl.consumer where name = 'webhooks' and lease_until > pawl.now()")
}
