package worker_test

import (
	"testing"
	"time"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/fsmtest"
	"github.com/pawl-fsm/pawl/fsm/worker"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// What tenants use is counted by the worker, only for those with a limit, and again later.
func TestUsageIsCounted(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, quick)
	dbtest.SetClock(t, pool, fsmtest.Noon)
	createMany(t, s, fsm.DefaultTenant, "quick", `{}`, 5)
	createMany(t, s, "other", "quick", `{}`, 5)
	bounded.Exec(t, pool, `select pawl.tenant_put('default', '{"open_instances": 100}')`)
	counter := worker.NewUsageCounter(pool, worker.BatchConfig{Batch: 2, Pause: time.Millisecond, Interval: time.Millisecond})
	bounded.Run(t, "the counter", counter.Run)
	const counted = "select array_agg(format('%s %s', tenant_id, open_instances)) = array[$1] from pawl_private.tenant_usage"
	bounded.UntilSQL(t, pool, counted, "default 5")
	createMany(t, s, fsm.DefaultTenant, "quick", `{}`, 2)
	dbtest.Advance(t, pool, 5*time.Second)
	bounded.UntilSQL(t, pool, counted, "default 7")
}

// The timers of a disabled tenant wait, in both lanes, and hold up nobody else's, however many are due. They fire when
// the tenant is enabled.
func TestTimersOfDisabledTenantsWait(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, quick)
	dbtest.SetClock(t, pool, fsmtest.Noon)
	createMany(t, s, "asleep", "quick", `{}`, 250)
	dbtest.Advance(t, pool, time.Minute)
	disable := func(disabled bool) {
		bounded.Exec(t, pool, "select pawl.tenant_put('asleep', p_disabled => $1)", disabled)
	}
	disable(true)
	const due = "select count(*) from pawl.timer where tenant_id = 'asleep' and due_at <= pawl.now()"
	fire := func(sql string) (lookedAt int) {
		t.Helper()
		return bounded.Value[int](t, pool, "select looked_at from "+sql)
	}
	for range 3 {
		if n := fire("pawl.fire_timers(10)"); n != 0 {
			t.Errorf("%d timers were looked at", n)
		}
	}
	if next := bounded.Value[bool](t, pool, "select next_in is null from pawl.fire_timers(10)"); !next {
		t.Error("the worker is told to come back for timers that wait")
	}
	// Another tenant's becomes due behind them.
	other := fsmtest.Create(t, s, "quick", `{}`)
	dbtest.Advance(t, pool, time.Minute)
	fire("pawl.fire_timers(10)")
	fsmtest.WantStep(t, fsmtest.Last(t, s, other.ID), "timeout", "after:1m", "DONE", 2)

	inSlowLane(t, pool)
	if n := fire("pawl.fire_slow_timers()"); n != 0 {
		t.Errorf("in the slow lane %d timers were looked at", n)
	}
	if n := bounded.Value[int](t, pool, due); n != 250 {
		t.Errorf("%d timers are still due, want all 250", n)
	}
	disable(false)
	bounded.True(t, "all timers of the enabled tenant to fire", func() bool {
		if fire("pawl.fire_slow_timers()")+fire("pawl.fire_timers(100)") == 0 {
			t.Fatal("timers of the enabled tenant are due, and none is looked at")
		}
		return bounded.Value[int](t, pool, due) == 0
	})
}
