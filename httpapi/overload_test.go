package httpapi_test

import (
	"net/http"
	"testing"

	"github.com/pawl-fsm/pawl/db"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// While the queue is full, further commands are refused immediately with Retry-After, and
// reads are answered. The queued commands are answered when the queue moves.
func TestRequestsBeyondTheQueue(t *testing.T) {
	t.Parallel()
	const requests, room = 20, 3
	a := startWith(t, setup{
		db:  db.Config{LockTimeout: bounded.Limit, StatementTimeout: bounded.Limit},
		fsm: fsm.Config{MaxQueue: room, Flushers: 1, CallTimeout: bounded.Limit},
	})
	a.register(counter)
	stuck := a.create("counter", `{"context": {"sum": 0}}`)
	ids := make([]string, requests)
	for i := range ids {
		ids[i] = a.create("counter", `{"context": {"sum": 0}}`)
	}
	tx, err := a.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	bounded.Exec(t, tx, "select from pawl.instance where id = $1 for update", stuck)
	type reply struct {
		i int
		answer
	}
	replies := make(chan reply, requests+1)
	fire := func(i int, id string) {
		r, err := a.try(http.MethodPost, "/v1/instances/"+id+"/actions/add", `{"payload": {"by": 1}}`, "Idempotency-Key", newKey())
		if err != nil {
			t.Error(err)
		}
		replies <- reply{i, r}
	}
	go fire(-1, stuck)
	bounded.UntilBlocked(t, a.pool, 1)
	for i, id := range ids {
		go fire(i, id)
	}
	for range requests - room {
		r := bounded.Receive(t, "a command without room", replies)
		r.want(http.StatusServiceUnavailable, "unavailable").wantHeader("Retry-After", "1")
		a.get("/v1/instances/"+ids[r.i]).wantAt("version", "1")
	}
	a.get("/v1/instances?status=active").want(http.StatusOK)
	a.create("counter", "")
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	for range room + 1 {
		bounded.Receive(t, "a command that was queued", replies).want(http.StatusOK).wantAt("version", "2")
	}
	a.fire(ids[0], "add", `{"payload": {"by": 1}}`).want(http.StatusOK)
}
