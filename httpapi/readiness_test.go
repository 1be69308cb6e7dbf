package httpapi_test

import (
	"context"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pawl-fsm/pawl/db"
	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// A process is ready although nobody numbers the log, and says so.
func TestReadinessWarnsOfASilentLog(t *testing.T) {
	t.Parallel()
	a := start(t)
	if body := string(a.get("/readyz").want(http.StatusOK).body); !strings.Contains(body, "no process runs the workers") {
		t.Errorf("without a sequencer it answers %s", body)
	}
	dbtest.Number(t, a.pool)
	if body := string(a.get("/readyz").want(http.StatusOK).body); strings.Contains(body, "warnings") {
		t.Errorf("with a sequencer it answers %s", body)
	}
}

// Whoever reaches the service may send probes. However many wait for the database, commands have connections.
func TestProbesLeaveConnections(t *testing.T) {
	t.Parallel()
	var arrived atomic.Int32
	a := startWith(t, setup{
		db:  db.Config{MaxConns: 4, StatementTimeout: time.Minute, LockTimeout: time.Minute},
		fsm: fsm.Config{CallTimeout: time.Minute},
		wrap: func(h http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, in *http.Request) {
				if in.URL.Path == "/readyz" {
					arrived.Add(1)
				}
				h.ServeHTTP(w, in)
			})
		},
	})
	a.register(counter)
	// No command reads the sequencer's place.
	tx, err := a.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.Background())
	bounded.Exec(t, tx, "lock table pawl.log_head")
	const probes = 20
	answers := make(chan answer, probes)
	for range probes {
		go func() {
			r, err := a.try(http.MethodGet, "/readyz", "")
			if err != nil {
				t.Error(err)
			}
			answers <- r
		}()
	}
	bounded.True(t, "the probes", func() bool { return arrived.Load() == probes })
	bounded.UntilSQL(t, a.pool, "select count(*) > 0 from pg_locks l where l.relation = 'pawl.log_head'::regclass and not l.granted")
	a.create("counter", `{"context": {"sum": 0}}`)
	if err := tx.Rollback(bounded.Context(t)); err != nil {
		t.Fatal(err)
	}
	for range probes {
		bounded.Receive(t, "an answer to a probe", answers).want(http.StatusOK)
	}
}
