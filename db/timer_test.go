package db_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/db"
	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

var noon = time.Date(2030, 2, 3, 12, 0, 0, 123456000, time.UTC)

// An instance has one timer at most, not later than the nearer of its state's timeout and its own end.
func TestTimers(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	register(t, pool, flight)
	register(t, pool, door)
	dbtest.SetClock(t, pool, noon)
	want := func(id uuid.UUID, event string, after time.Duration, version int) {
		t.Helper()
		got := bounded.Column[string](t, pool, `
			select format('%s in %s, version %s%s%s', d.event, extract(epoch from d.due_at - $2::timestamptz)::float8, i.version,
				case when t.due_at > d.due_at then ', armed too late' end,
				case when n.event = d.event and n.due_at = d.due_at and n.last_error is null then '' else ', shown as ' || n::text end)
			from pawl.timer t join pawl.instance i on i.id = t.instance_id cross join lateral pawl_private.next_deadline(i, 0) d
			left join pawl.next_timeout n on n.instance_id = i.id
			where t.instance_id = $1`, id, noon)
		if want := fmt.Sprintf("%s in %v, version %d", event, after.Seconds(), version); len(got) != 1 || got[0] != want {
			t.Errorf("timers = %v, want %s", got, want)
		}
	}
	none := func(id uuid.UUID) {
		t.Helper()
		if got := bounded.Column[string](t, pool, `
			select t::text from pawl.timer t where instance_id = $1
			union all select n::text from pawl.next_timeout n where instance_id = $1`, id); len(got) != 0 {
			t.Errorf("timers = %v, want none", got)
		}
	}
	book := func(lifetime time.Duration) uuid.UUID {
		t.Helper()
		o := create(t, pool, tenant, creation{workflow: "flight-booking", context: `{"price": 1}`, lifetime: lifetime})[0]
		wantOutcome(t, o, "applied")
		return *o.ID
	}
	move := func(id uuid.UUID, event, payload string) {
		t.Helper()
		wantOutcome(t, fire(t, pool, tenant, command{id: id, event: event, payload: payload})[0], "applied")
	}

	id := book(0)
	want(id, "after:600s", 600*time.Second, 1)
	dbtest.Advance(t, pool, 100*time.Second)
	move(id, "reserve", `{"price": 1}`)
	want(id, "after:900s", 1000*time.Second, 2) // its nearest; from the step on
	wantOutcome(t, fire(t, pool, tenant, command{id: id, event: "reserve"})[0], "transition-not-allowed")
	want(id, "after:900s", 1000*time.Second, 2)
	move(id, "pay", `{"amount": 2}`)
	want(id, "ttl", 1800*time.Second, 3) // a state without a timeout has the instance's end still
	move(id, "cancel", "{}")
	none(id)

	dbtest.SetClock(t, pool, noon)
	id = book(500 * time.Second)
	want(id, "ttl", 500*time.Second, 1)
	id = book(600 * time.Second) // both at once: the state's own comes first
	want(id, "after:600s", 600*time.Second, 1)
	dbtest.Advance(t, pool, 590*time.Second)
	move(id, "reserve", `{"price": 1}`)
	want(id, "ttl", 600*time.Second, 2)
	move(id, "pay", `{"amount": 1}`)
	none(id)

	id = doors(t, pool, 1)[0]
	none(id)
	move(id, "open", "{}")
	none(id)

	// Armed and cleared, though the instance lives for ever.
	register(t, pool, lamp)
	dbtest.SetClock(t, pool, noon)
	id = *create(t, pool, tenant, creation{workflow: "lamp"})[0].ID
	want(id, "after:60s", 60*time.Second, 1)
	move(id, "go", `{"n": 1}`)
	want(id, "after:600s", 600*time.Second, 2)
	move(id, "go", `{"n": 1}`)
	none(id)
	move(id, "go", `{"n": 1}`)
	want(id, "after:60s", 60*time.Second, 4)

	wantOutcome(t, create(t, pool, tenant, creation{workflow: "door", lifetime: time.Second})[0], "lifetime-without-ttl")
}

// A refused or replayed command leaves the timer as it is, and so does one that was taken back.
func TestTimersOfCommandsWithoutEffect(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	register(t, pool, lamp)
	id := *create(t, pool, tenant, creation{workflow: "lamp", key: "c"})[0].ID
	c := command{id: id, event: "go", payload: `{"n": 1}`, key: "a"}
	fire(t, pool, tenant, c)
	const armed = "select row(t.*)::text from pawl.timer t"
	before := bounded.Value[string](t, pool, armed)
	fire(t, pool, tenant, c)
	fire(t, pool, tenant, command{id: id, event: "go", payload: `{"n": -1}`})
	create(t, pool, tenant, creation{workflow: "lamp", key: "c"})
	tx := begin(t, pool)
	fire(t, tx, tenant, command{id: id, event: "go", payload: `{"n": 1}`})
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if after := bounded.Value[string](t, pool, armed); after != before {
		t.Errorf("the timer is %s, want %s", after, before)
	}
}

// put_off_timer puts off one timer, whatever plan the planner has for it: that of a table which had one row when it
// was analysed.
func TestPutOffOneTimer(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	register(t, pool, lamp)
	dbtest.SetClock(t, pool, noon)
	create(t, pool, tenant, creation{workflow: "lamp"})
	bounded.Exec(t, pool, "vacuum analyze pawl.timer")
	for range 16 {
		create(t, pool, tenant, creation{workflow: "lamp"})
	}
	dbtest.Advance(t, pool, time.Minute)
	if reported := bounded.Value[int](t, pool, "select jsonb_array_length(pawl.put_off_timer())"); reported != 1 {
		t.Errorf("it says that %d timers fail", reported)
	}
	if n := bounded.Value[int](t, pool, "select count(*) from pawl.timer where due_at > pawl.now()"); n != 1 {
		t.Errorf("%d timers were put off, want 1", n)
	}
}

// Each lane has one worker at a time. Nobody else can take its place: the owner's functions alone can lock its row.
func TestLanesOfTimersAreTheOwners(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	register(t, pool, lamp)
	dbtest.SetClock(t, pool, noon)
	create(t, pool, tenant, creation{workflow: "lamp"})
	dbtest.Advance(t, pool, time.Minute)
	conn := login(t, pool, "service", db.Service)
	_, err := conn.Exec(t.Context(), "select from pawl_private.timer_lane for update")
	wantCode(t, err, "42501")
	// Advisory locks, which any login may take, play no part.
	bounded.Exec(t, conn, "select pg_advisory_lock(hashtextextended('pawl.fire_timers', 0))")

	tx := begin(t, pool)
	const call = "select looked_at from pawl.fire_timers(10)"
	if n := bounded.Value[int](t, tx, call); n != 1 {
		t.Errorf("it looked at %d timers, want 1", n)
	}
	if n := bounded.Value[int](t, pool, call); n != -1 {
		t.Errorf("another looks at %d timers meanwhile", n)
	}
	if n := bounded.Value[int](t, pool, "select looked_at from pawl.fire_slow_timers()"); n != 0 {
		t.Errorf("in the slow lane %d timers were looked at, want 0", n)
	}
	commit(t, tx)
	if n := bounded.Value[int](t, pool, call); n != 0 {
		t.Errorf("then another looks at %d timers, want 0", n)
	}
}

// While more timers are due than a call fires, tenants take turns: whoever has few timers waits for two calls at most,
// however many of another tenant's are due before them. With as many tenants as a call fires timers, each has one.
func TestTenantsTakeTurnsInTheFastLane(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	register(t, pool, lamp)
	dbtest.SetClock(t, pool, noon)
	lamps := func(tenant string, n int) {
		t.Helper()
		for range n {
			create(t, pool, tenant, creation{workflow: "lamp"})
		}
		dbtest.Advance(t, pool, time.Millisecond)
	}
	fired := func(limit int) map[string]int {
		t.Helper()
		before := bounded.Value[int](t, pool, "select count(*) from pawl.history where kind = 'timeout'")
		bounded.Exec(t, pool, fmt.Sprintf("select pawl.fire_timers(%d)", limit))
		counts := map[string]int{}
		for _, tenant := range bounded.Column[string](t, pool, `
			select tenant_id from pawl.history where kind = 'timeout' order by seq offset $1`, before) {
			counts[tenant]++
		}
		return counts
	}
	// One that begins with the turns, one in the middle and one at the end: wherever the flood is, the others get through.
	for _, flood := range []string{"a", "m", "z"} {
		lamps(flood, 100)
	}
	lamps("b", 1)
	lamps("n", 1)
	lamps("zz", 1)
	dbtest.Advance(t, pool, time.Minute)
	total := map[string]int{}
	for range 2 {
		for tenant, n := range fired(10) {
			total[tenant] += n
		}
	}
	for _, quiet := range []string{"b", "n", "zz"} {
		if total[quiet] != 1 {
			t.Errorf("after two calls the timer of %q is not fired: %v", quiet, total)
		}
	}
	if fewest, most := min(total["a"], total["m"], total["z"]), max(total["a"], total["m"], total["z"]); most > fewest+1 {
		t.Errorf("the shares differ: %v", total)
	}
	seen := map[string]int{}
	for range 6 {
		for tenant, n := range fired(1) {
			seen[tenant] += n
		}
	}
	if seen["a"] != 2 || seen["m"] != 2 || seen["z"] != 2 {
		t.Errorf("six calls for one timer each gave %v", seen)
	}
	bounded.True(t, "all timers to fire", func() bool {
		bounded.Exec(t, pool, "select pawl.fire_timers(50)")
		return bounded.Value[int](t, pool, "select count(*) from pawl.timer where due_at <= pawl.now()") == 0
	})
}
