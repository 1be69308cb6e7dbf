package live_test

import (
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"
	"go.uber.org/goleak"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/fsmtest"
	"github.com/pawl-fsm/pawl/fsm/live"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, dbtest.IgnoreServer(), goleak.Cleanup(dbtest.Exit))
}

// on returns a service that reports its steps to the hub, and one for waiting and streams, whose
// waiters the hub wakes. Without a hub, the first one sends a notification of every step.
func on(t testing.TB, pool *pgxpool.Pool, hub *live.Hub, definitions ...string) (*fsmtest.Service, *live.Service) {
	t.Helper()
	notifier := live.NewNotifier(pool, hub)
	t.Cleanup(notifier.Close) // After the service's.
	s := fsmtest.On(t, pool, fsm.Config{Moved: notifier.Moved}, definitions...)
	return s, live.New(s.Service, hub)
}
