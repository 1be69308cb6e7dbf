package worker_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/db"
	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/fsmtest"
	"github.com/pawl-fsm/pawl/fsm/worker"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// quick has a timeout of a minute. A second one follows after an hour.
const quick = `{"name": "quick", "initial": "WAITING", "states": {
	"WAITING": {"on": {"go": "LATER", "end": "DONE"}, "after": {"1m": "DONE"}},
	"LATER": {"on": {"end": "DONE"}, "after": {"1h": "DONE"}}, "DONE": {"type": "final"}}}`

// bombs is a context for fsmtest.Bombs whose guard takes minutes.
func bombs(t testing.TB) string {
	t.Helper()
	document, err := json.Marshal(map[string]any{"a": make([]int, 1500)})
	if err != nil {
		t.Fatal(err)
	}
	return string(document)
}

// createMany creates instances of a workflow in a tenant.
func createMany(t testing.TB, s *fsmtest.Service, tenant, workflow, document string, n int) {
	t.Helper()
	commands := make([]fsm.Command, n)
	for i := range commands {
		commands[i] = fsm.CreateCommand{Tenant: tenant, Workflow: workflow, Context: json.RawMessage(document)}
	}
	for _, r := range s.Do(t.Context(), commands) {
		if r.Err != nil {
			t.Fatal(r.Err)
		}
	}
}

// Slow timers, of a workflow with a slow guard, cost another's timers no more time than it takes to find that they
// are slow, however many there are. They have their turn, and fail.
func TestSlowTimersHoldUpNobody(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	s := fsmtest.On(t, pool, fsm.Config{}, fsmtest.Bombs, quick)
	dbtest.SetClock(t, pool, fsmtest.Noon)
	const slow = 40
	createMany(t, s, fsm.DefaultTenant, "bomb", bombs(t), slow)
	dbtest.Advance(t, pool, time.Millisecond)
	other := fsmtest.Create(t, s, "quick", `{}`)
	dbtest.Advance(t, pool, time.Minute)
	limited := fsmtest.Open(t, dbtest.DSN(pool), db.Config{StatementTimeout: 2 * time.Second})
	runTimers(t, limited, worker.TimerConfig{Poll: 10 * time.Millisecond})
	bounded.UntilSQL(t, pool, "select status = 'completed' from pawl.instance where id = $1", other.ID)
	if n := bounded.Value[int](t, pool, "select count(*) from pawl.timer where last_error is not null"); n > slow/2 {
		t.Errorf("%d of %d slow timers were tried for two seconds each before the other's", n, slow)
	}
	bounded.UntilSQL(t, pool, "select count(*) >= 2 from pawl.next_timeout where last_error = 'the step takes longer than the statement timeout'")

	// What was learned holds for timers that become due later.
	createMany(t, s, fsm.DefaultTenant, "bomb", bombs(t), 1)
	dbtest.Advance(t, pool, 30*time.Second)
	bounded.Exec(t, pool, "update pawl.timer set due_at = pawl.now() where queue is null and last_error is null")
	bounded.UntilSQL(t, pool, "select not exists (select from pawl.timer where due_at <= pawl.now() and queue is null)")
	if times := bounded.Value[int](t, pool, "select times from pawl_private.slow_queue"); times != 1 {
		t.Errorf("the fast lane tried such timers %d times", times)
	}
}

// inSlowLane moves all timers that are due to the slow lane, as if they had been found slow.
func inSlowLane(t testing.TB, pool *pgxpool.Pool) {
	t.Helper()
	bounded.Exec(t, pool, `
		with due as materialized (
			select distinct on (i.tenant_id, i.workflow, n.event) i, n.event
			from pawl.timer t
			join pawl.instance i on i.id = t.instance_id
			join pawl.next_timeout n on n.instance_id = i.id
			where t.due_at <= pawl.now() and t.queued_version is distinct from t.armed_version
		)
		select pawl_private.note_slow(d.i, d.event, pawl.now()) from due d`)
	bounded.Exec(t, pool, `
		update pawl.timer t
		set queue = q.id, queued_version = t.armed_version
		from pawl.instance i
		join pawl_private.slow_queue q on q.tenant_id = i.tenant_id and q.workflow = i.workflow
		where i.id = t.instance_id and t.due_at <= pawl.now()`)
}

// The slow lane takes tenants by turns, and of a tenant its workflows.
func TestTurnsOfTheSlowLane(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, quick, strings.Replace(quick, "quick", "second", 1))
	dbtest.SetClock(t, pool, fsmtest.Noon)
	createMany(t, s, "a", "quick", `{}`, 500)
	createMany(t, s, "a", "second", `{}`, 500)
	createMany(t, s, "b", "quick", `{}`, 500)
	dbtest.Advance(t, pool, time.Minute)
	inSlowLane(t, pool)
	var turns []string
	for range 8 {
		bounded.Exec(t, pool, "select from pawl.fire_slow_timers()")
		turns = append(turns, bounded.Value[string](t, pool, "select tenant_id || ' ' || workflow from pawl_private.slow_queue order by turn_at desc limit 1"))
		dbtest.Advance(t, pool, time.Millisecond)
	}
	for i, turn := range turns[4:] {
		before := turns[i : i+4]
		if turn != before[0] || strings.Count(fmt.Sprint(before), "b quick") != 2 || before[0][0] == before[1][0] || before[0] == before[2] && before[1] == before[3] {
			t.Fatalf("the turns are %q", turns)
		}
	}
}

// Timers in the slow lane cost the fast lane no reads.
func TestFastLaneReadsNoSlowTimer(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, quick)
	dbtest.SetClock(t, pool, fsmtest.Noon)
	const slow = 10000
	for range slow / 1000 {
		createMany(t, s, "a", "quick", `{}`, 1000)
	}
	dbtest.Advance(t, pool, time.Minute)
	inSlowLane(t, pool)
	bounded.Exec(t, pool, "vacuum pawl.timer") // Takes away the index's entries of the rows as they were.
	createMany(t, s, "b", "quick", `{}`, 5)
	dbtest.Advance(t, pool, time.Minute)
	conn, err := pgx.Connect(t.Context(), dbtest.DSN(pool))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(bounded.Context(t)) })
	const read = `
		select pg_stat_force_next_flush(), pg_stat_clear_snapshot(), t.seq_tup_read + coalesce(t.idx_tup_fetch, 0) as read
		from pg_stat_user_tables t where t.relid = 'pawl.timer'::regclass`
	bounded.Exec(t, pool, "select pg_stat_force_next_flush()")
	before := bounded.Value[int](t, conn, "select read from ("+read+") r")
	if fired := bounded.Value[int](t, conn, "select fired from pawl.fire_timers(200)"); fired != 5 {
		t.Errorf("%d timers were fired, want 5", fired)
	}
	bounded.Exec(t, conn, "select pg_stat_force_next_flush()")
	if n := bounded.Value[int](t, conn, "select read from ("+read+") r") - before; n < 5 || n > 100 {
		t.Errorf("%d rows of timers were read to fire 5 beside %d slow ones", n, slow)
	}
}

// An instance that leaves the state leaves the slow lane: its next timeout is the fast lane's.
func TestStepsLeaveTheSlowLane(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, quick)
	dbtest.SetClock(t, pool, fsmtest.Noon)
	gone, later, stays := fsmtest.Create(t, s, "quick", `{}`), fsmtest.Create(t, s, "quick", `{}`), fsmtest.Create(t, s, "quick", `{}`)
	dbtest.Advance(t, pool, time.Minute)
	inSlowLane(t, pool)
	fsmtest.WantFired(t, pool, 0)
	fsmtest.Fire(t, s, gone.ID, "end", `{}`)
	fsmtest.Fire(t, s, later.ID, "go", `{}`)
	wantFailure(t, s, later.ID, "after:1h at 13:01:00")
	dbtest.Advance(t, pool, time.Hour)
	fsmtest.WantFired(t, pool, 1)
	fsmtest.WantStep(t, fsmtest.Last(t, s, later.ID), "timeout", "after:1h", "DONE", 3)
	if fired := bounded.Value[int](t, pool, "select fired from pawl.fire_slow_timers()"); fired != 1 {
		t.Errorf("the slow lane fired %d timers, want 1", fired)
	}
	fsmtest.WantStep(t, fsmtest.Last(t, s, stays.ID), "timeout", "after:1m", "DONE", 2)
	fsmtest.WantStep(t, fsmtest.Last(t, s, gone.ID), "transition", "end", "DONE", 2)
	if n := fsmtest.Timers(t, pool); n != 0 {
		t.Errorf("%d timers are left", n)
	}
}

// A database that was slow for a while is forgotten after a minute. A kind that is slow again and again is tried
// less and less often, and forgotten a day after the last time.
func TestSlowKindsAreForgotten(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, quick)
	dbtest.SetClock(t, pool, fsmtest.Noon)
	for _, want := range []time.Duration{1, 2, 4, 8, 16, 32, 60, 60} {
		fsmtest.Create(t, s, "quick", `{}`)
		dbtest.Advance(t, pool, time.Minute)
		inSlowLane(t, pool)
		if got := bounded.Value[float64](t, pool, "select extract(epoch from slow_until - pawl.now())::float8 from pawl_private.slow_queue"); got != (want * time.Minute).Seconds() {
			t.Errorf("the kind counts as slow for %v seconds, want %v", got, want*time.Minute)
		}
		bounded.Exec(t, pool, "select from pawl.fire_slow_timers()")
		dbtest.Advance(t, pool, want*time.Minute)
	}
	fsmtest.Create(t, s, "quick", `{}`)
	dbtest.Advance(t, pool, time.Minute)
	fsmtest.WantFired(t, pool, 1)
	bounded.Exec(t, pool, "select from pawl.fire_slow_timers()")
	if n := bounded.Value[int](t, pool, "select count(*) from pawl_private.slow_queue"); n != 1 {
		t.Errorf("%d kinds are remembered, want 1", n)
	}
	dbtest.Advance(t, pool, 24*time.Hour)
	bounded.Exec(t, pool, "select from pawl.fire_slow_timers()")
	if n := bounded.Value[int](t, pool, "select count(*) from pawl_private.slow_queue"); n != 0 {
		t.Errorf("%d kinds are remembered after a day", n)
	}
}

// A call that somebody cancels is an error. It does not make a kind slow.
func TestCancelledTimersAreNotSlow(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	s := fsmtest.On(t, pool, fsm.Config{}, fsmtest.Bombs)
	dbtest.SetClock(t, pool, fsmtest.Noon)
	fsmtest.Create(t, s, "bomb", bombs(t))
	dbtest.Advance(t, pool, time.Minute)
	ended := make(chan error, 1)
	go func() {
		_, err := pool.Exec(t.Context(), "select from pawl.fire_timers(20, true)")
		ended <- err
	}()
	const running = "from pg_stat_activity where datname = current_database() and state = 'active' and query like '%fire_timers(20, true)%' and pid <> pg_backend_pid()"
	bounded.UntilSQL(t, pool, "select exists (select "+running+")")
	bounded.UntilSQL(t, pool, "select exists (select from pg_locks where relation = 'pawl_private.timer_lane'::regclass)")
	bounded.Exec(t, pool, "select pg_cancel_backend(pid) "+running)
	if err := bounded.Receive(t, "the cancelled call", ended); err == nil || !strings.Contains(err.Error(), "57014") {
		t.Errorf("it ended with %v", err)
	}
	if n := bounded.Value[int](t, pool, "select count(*) from pawl_private.slow_queue"); n != 0 {
		t.Errorf("%d kinds are slow", n)
	}
}

// If reading what is due takes longer than the fast lane's limit, timers fire still.
func TestTimersThatAreReadSlowly(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, quick)
	dbtest.SetClock(t, pool, fsmtest.Noon)
	i := fsmtest.Create(t, s, "quick", `{}`)
	dbtest.Advance(t, pool, time.Minute)
	bounded.Exec(t, pool, `
		alter function pawl_private.due_timers rename to read_timers;
		create function pawl_private.due_timers(p_now timestamptz, p_limit integer, p_queue integer, p_tenants text[])
		returns table (instance pawl.instance, queued_version bigint, tried integer, due_at timestamptz, event text, next_tried integer, queue integer)
		language plpgsql as $$
		begin
			perform pg_sleep(0.4);
			return query select * from pawl_private.read_timers(p_now, p_limit, p_queue, p_tenants);
		end $$`)
	runTimers(t, pool, worker.TimerConfig{Poll: 10 * time.Millisecond, Limit: 100 * time.Millisecond})
	bounded.UntilSQL(t, pool, "select status = 'completed' from pawl.instance where id = $1", i.ID)
}

// However many instances a transaction holds, timers of others that are due later fire.
func TestTimersBehindLockedInstances(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, quick)
	dbtest.SetClock(t, pool, fsmtest.Noon)
	createMany(t, s, "a", "quick", `{}`, 300)
	dbtest.Advance(t, pool, time.Millisecond)
	free := fsmtest.Create(t, s, "quick", `{}`)
	dbtest.Advance(t, pool, time.Minute)
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), "select from pawl.instance where tenant_id = 'a' for update"); err != nil {
		t.Fatal(err)
	}
	fsmtest.WantFired(t, pool, 1)
	fsmtest.WantStep(t, fsmtest.Last(t, s, free.ID), "timeout", "after:1m", "DONE", 2)
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	fsmtest.WantFired(t, pool, 300)
}
