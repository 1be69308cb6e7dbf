package main_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// charging is a workflow that calls a service.
const charging = `{
  "name": "order", "initial": "CHARGING",
  "states": {
    "CHARGING": {"invoke": {"charge": {
      "http": {"connection": "psp", "method": "POST", "path": "/charges", "body": {"amount": "$.context.price"}},
      "idempotency": {}, "deadline": "1h", "timeout": "1m",
      "done": {"target": "PAID", "assign": {"charge": "$.payload.body.id"}}, "error": "DECLINED", "unknown": "REVIEW"}}},
    "PAID": {"type": "final"}, "DECLINED": {"type": "final", "outcome": "failed"}, "REVIEW": {"type": "final", "outcome": "failed"}
  }
}`

// A replica is killed after it has sent a call, or before the answer is settled. Another one calls again under the same key,
// and the service that knows the key has one effect.
func TestInvoke(t *testing.T) {
	t.Parallel()
	dsn := dbtest.NewDSN(t)
	database := dialDSN(t, dsn)
	for _, charged := range []bool{false, true} {
		t.Run(fmt.Sprint("charged ", charged), func(t *testing.T) {
			gate := bounded.NewGate(t, "the call")
			var mu sync.Mutex
			effects := map[string]int{}
			calls := 0
			service := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				mu.Lock()
				calls++
				first := calls == 1
				if !first || charged {
					effects[r.Header.Get("Idempotency-Key")]++
				}
				if got := r.Header.Get("Authorization"); got != "Bearer s3cret" {
					t.Errorf("it is called with %q", got)
				}
				mu.Unlock()
				if first {
					gate.Pass()
				}
				w.Header().Set("Content-Type", "application/json")
				_, _ = fmt.Fprint(w, `{"id": "c1"}`)
			}))
			t.Cleanup(service.Close)
			env := []string{"DATABASE_URL=" + serviceRole(t, dsn), "PAWL_WEBHOOK_ALLOW_PRIVATE=true"}
			one := start(t, env, "serve")
			file := filepath.Join(t.TempDir(), "order.json")
			if err := os.WriteFile(file, []byte(charging), 0o600); err != nil {
				t.Fatal(err)
			}
			mustPawl(t, nil, "workflow", "apply", "--server", one.url, file)
			mustPawl(t, []string{"PAWL_CONNECTION_SECRET=s3cret"}, "connection", "put", "--server", one.url, "psp", "--base-url", service.URL, "--auth", "bearer")
			id := mustSend(t, http.StatusCreated, http.MethodPost, one.url+"/v1/workflows/order/instances", `{"context": {"price": 5}}`,
				"Idempotency-Key", fmt.Sprint("order-", charged)).member("id").(string)
			gate.Reached()
			one.Kill(t)
			gate.Open()
			bounded.Exec(t, database, "update pawl.task set look_at = pawl.now() where instance_id = $1", id) // As if its lease had run out.
			two := start(t, env, "serve")
			bounded.UntilSQL(t, database, "select state = 'PAID' and context ->> 'charge' = 'c1' from pawl.instance where id = $1", id)
			mu.Lock()
			defer mu.Unlock()
			if calls != 2 || len(effects) != 1 {
				t.Errorf("%d calls, with effects %v", calls, effects)
			}
			two.Kill(t)
		})
	}
}

// A number of calls with which nothing could be called is refused.
func TestInvokeFlags(t *testing.T) {
	t.Parallel()
	if _, stderr, code := pawl(t, []string{"DATABASE_URL=postgres://nowhere"}, "serve", "--invoke-concurrency", "0"); code != 2 {
		t.Errorf("exit code %d: %s", code, stderr)
	}
}
