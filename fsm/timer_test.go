package fsm_test

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/db"
	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/fsm"
)

var noon = time.Date(2030, 2, 3, 12, 0, 0, 0, time.UTC)

// fireTimers fires all that is due by the test's clock, and says how many steps that made.
func fireTimers(t testing.TB, pool *pgxpool.Pool) (fired int) {
	t.Helper()
	for {
		var looked, now int
		if err := pool.QueryRow(t.Context(), "select looked_at, fired from pawl.fire_timers(100)").Scan(&looked, &now); err != nil {
			t.Fatalf("fire_timers: %v", err)
		}
		if fired += now; looked == 0 {
			return fired
		}
	}
}

func wantFired(t testing.TB, pool *pgxpool.Pool, want int) {
	t.Helper()
	if got := fireTimers(t, pool); got != want {
		t.Errorf("%d timers were fired, want %d", got, want)
	}
}

// last returns the last step of an instance.
func last(t testing.TB, s *fsm.Service, id uuid.UUID) fsm.Step {
	t.Helper()
	steps := history(t, s, id)
	return steps[len(steps)-1]
}

func wantStep(t testing.TB, got fsm.Step, kind, event, to string, version int64) {
	t.Helper()
	name := "none"
	if got.Event != nil {
		name = *got.Event
	}
	if got.Kind != kind || name != event || got.To != to || got.Version != version {
		t.Errorf("the step is %s by %s to %s, version %d; want %s by %s to %s, version %d",
			got.Kind, name, got.To, got.Version, kind, event, to, version)
	}
}

// timers counts the rows of the table, which a final state leaves empty.
func timers(t testing.TB, pool *pgxpool.Pool) int {
	t.Helper()
	return scan[int](t, pool, "select count(*) from pawl.timer")
}

func TestTimeoutEndsOnce(t *testing.T) {
	t.Parallel()
	s, pool := newService(t, fsm.Config{}, flightBooking)
	dbtest.SetClock(t, pool, noon)
	i := create(t, s, "flight-booking", `{"flight_id": "LH454", "price": 1}`)
	dbtest.Advance(t, pool, 10*time.Minute-time.Microsecond)
	wantFired(t, pool, 0)
	dbtest.Advance(t, pool, 3*time.Second)
	wantFired(t, pool, 1)
	step := last(t, s, i.ID)
	wantStep(t, step, "timeout", "after:10m", "EXPIRED", 2)
	// History tells when it was due, and so how late it was.
	sameJSON(t, step.Payload, `{"due_at": "2030-02-03T12:10:00.000000+00:00"}`)
	if want := noon.Add(10*time.Minute + 3*time.Second - time.Microsecond); !step.At.Equal(want) || step.Actor != "pawl" || *step.Key != "timer:1" {
		t.Errorf("it was at %v by %s with key %s, want %v by pawl with timer:1", step.At, step.Actor, *step.Key, want)
	}
	if now := get(t, s, i.ID); now.Status != fsm.Expired || len(now.Actions) != 0 {
		t.Errorf("it is %s and accepts %v", now.Status, now.Actions)
	}
	dbtest.Advance(t, pool, 24*time.Hour)
	wantFired(t, pool, 0)
	if n := timers(t, pool); n != 0 {
		t.Errorf("%d timers are left", n)
	}
}

// A timer never fires after its state was left, though its row is not rewritten then.
func TestTimeoutOfAStateThatWasLeft(t *testing.T) {
	t.Parallel()
	s, pool := newService(t, fsm.Config{}, flightBooking)
	dbtest.SetClock(t, pool, noon)
	i := create(t, s, "flight-booking", `{"flight_id": "LH454", "price": 1}`)
	other := create(t, s, "flight-booking", `{"flight_id": "LH454", "price": 1}`)
	dbtest.Advance(t, pool, 9*time.Minute)
	fire(t, s, i.ID, "reserve", `{"price": 1}`)
	fire(t, s, other.ID, "cancel", `{}`)
	dbtest.Advance(t, pool, 10*time.Minute)
	wantFired(t, pool, 0)
	dbtest.Advance(t, pool, 5*time.Minute)
	wantFired(t, pool, 1)
	wantStep(t, last(t, s, i.ID), "timeout", "after:15m", "EXPIRED", 3)
	wantStep(t, last(t, s, other.ID), "transition", "cancel", "CANCELLED", 2)
}

func TestLifetimeEnds(t *testing.T) {
	t.Parallel()
	s, pool := newService(t, fsm.Config{}, flightBooking)
	dbtest.SetClock(t, pool, noon)
	document := json.RawMessage(`{"flight_id": "LH454", "price": 1}`)
	i := create(t, s, "flight-booking", string(document))
	short, err := s.Create(t.Context(), fsm.CreateCommand{Workflow: "flight-booking", Context: document, ExpiresIn: 5 * time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	fire(t, s, i.ID, "reserve", `{"price": 1}`)
	fire(t, s, i.ID, "pay", `{"amount": 2}`) // to a state without timeouts
	dbtest.Advance(t, pool, 5*time.Minute)
	wantFired(t, pool, 1)
	wantStep(t, last(t, s, short.Instance.ID), "expired", "ttl", "EXPIRED", 2)
	dbtest.Advance(t, pool, 25*time.Minute)
	wantFired(t, pool, 1)
	wantStep(t, last(t, s, i.ID), "expired", "ttl", "EXPIRED", 4)
	_, err = s.Fire(t.Context(), fsm.FireCommand{ID: i.ID, Event: "cancel"})
	refused(t, err, fsm.TransitionNotAllowed)
}

func TestLifetimeSlides(t *testing.T) {
	t.Parallel()
	s, pool := newService(t, fsm.Config{}, `{"name": "session", "initial": "OPEN",
		"ttl": {"after": "10m", "target": "GONE", "sliding": true},
		"states": {"OPEN": {"on": {"touch": "OPEN", "close": "GONE"}}, "GONE": {"type": "final", "outcome": "expired"}}}`)
	dbtest.SetClock(t, pool, noon)
	i := create(t, s, "session", `{}`)
	for range 3 {
		dbtest.Advance(t, pool, 9*time.Minute)
		wantFired(t, pool, 0)
		i = fire(t, s, i.ID, "touch", `{}`)
	}
	if want := noon.Add(37 * time.Minute); i.ExpiresAt == nil || !i.ExpiresAt.Equal(want) {
		t.Errorf("it expires at %v, want %v", i.ExpiresAt, want)
	}
	dbtest.Advance(t, pool, 10*time.Minute)
	wantFired(t, pool, 1)
	wantStep(t, last(t, s, i.ID), "expired", "ttl", "GONE", 5)
}

// ladder has several timeouts in a state, of which guards refuse some.
const ladder = `{"name": "ladder", "initial": "WAITING", "states": {
	"WAITING": {
		"on": {"again": "WAITING", "allow": {"target": "WAITING", "assign": {"allowed": "true == true"}}},
		"after": {
			"1m": {"target": "REMINDED", "guard": "$.context.allowed == true"},
			"2m": [{"target": "NEVER", "guard": "1 == 2"}, {"target": "REMINDED", "guard": "$.context.second == true && exists($.payload.due_at)"}],
			"3m": {"target": "GIVEN_UP", "assign": {"since": "$.payload.due_at"}}}},
	"REMINDED": {"on": {"answer": "DONE"}, "after": {"1m": "GIVEN_UP"}},
	"NEVER": {"type": "final"}, "DONE": {"type": "final"}, "GIVEN_UP": {"type": "final", "outcome": "failed"}}}`

func TestSeveralTimeouts(t *testing.T) {
	t.Parallel()
	s, pool := newService(t, fsm.Config{}, ladder)
	dbtest.SetClock(t, pool, noon)
	none, second := create(t, s, "ladder", `{}`), create(t, s, "ladder", `{"second": true}`)
	again, allowed := create(t, s, "ladder", `{}`), create(t, s, "ladder", `{"allowed": true}`)
	dbtest.Advance(t, pool, time.Minute)
	wantFired(t, pool, 1)
	wantStep(t, last(t, s, allowed.ID), "timeout", "after:1m", "REMINDED", 2)
	dbtest.Advance(t, pool, 30*time.Second)
	fire(t, s, again.ID, "again", `{}`) // enters the state again, and all its timeouts with it
	dbtest.Advance(t, pool, 30*time.Second)
	wantFired(t, pool, 2)
	wantStep(t, last(t, s, second.ID), "timeout", "after:2m", "REMINDED", 2)
	wantStep(t, last(t, s, allowed.ID), "timeout", "after:1m", "GIVEN_UP", 3)
	dbtest.Advance(t, pool, time.Minute)
	wantFired(t, pool, 2)
	wantStep(t, last(t, s, none.ID), "timeout", "after:3m", "GIVEN_UP", 2)
	sameJSON(t, get(t, s, none.ID).Context, `{"since": "2030-02-03T12:03:00.000000+00:00"}`)
	dbtest.Advance(t, pool, 90*time.Second)
	wantFired(t, pool, 1)
	wantStep(t, last(t, s, again.ID), "timeout", "after:3m", "GIVEN_UP", 3)
	if n := timers(t, pool); n != 0 {
		t.Errorf("%d timers are left", n)
	}
}

// Callers may not fire what is the engine's own.
func TestTimeoutsAreNotForCallers(t *testing.T) {
	t.Parallel()
	s, _ := newService(t, fsm.Config{}, flightBooking)
	i := create(t, s, "flight-booking", `{"flight_id": "LH454", "price": 1}`)
	for _, event := range []string{"after:10m", "ttl"} {
		_, err := s.Fire(t.Context(), fsm.FireCommand{ID: i.ID, Event: event})
		refused(t, err, fsm.UnknownEvent)
		_, err = s.Preview(t.Context(), fsm.FireCommand{ID: i.ID, Event: event})
		refused(t, err, fsm.UnknownEvent)
	}
}

// bombs have a timeout that raises, one that takes long, and one that does neither.
const bombs = `{"name": "bomb", "initial": "TICKING", "states": {
	"TICKING": {"on": {"defuse": "SAFE"}, "after": {
		"1m": [
			{"target": "SAFE", "guard": "$.context.raise == true && $nowhere == 1"},
			{"target": "SAFE", "guard": "exists($.context.a[*] ? (exists($.context.a[*] ? (exists($.context.a[*] ? (@ < 0))))))"},
			{"target": "BOOM"}]}},
	"SAFE": {"type": "final"}, "BOOM": {"type": "final"}}}`

func TestTimeoutThatRaisesIsPutOff(t *testing.T) {
	t.Parallel()
	s, pool := newService(t, fsm.Config{}, bombs)
	dbtest.SetClock(t, pool, noon)
	before, bad := create(t, s, "bomb", `{}`), create(t, s, "bomb", `{"raise": true}`)
	after := create(t, s, "bomb", `{}`)
	dbtest.Advance(t, pool, time.Minute)
	wantFired(t, pool, 2)
	for _, id := range []uuid.UUID{before.ID, after.ID} {
		wantStep(t, last(t, s, id), "timeout", "after:1m", "BOOM", 2)
	}
	wantFired(t, pool, 0)
	if due := scan[time.Time](t, pool, "select due_at from pawl.timer"); !due.Equal(noon.Add(2 * time.Minute)) {
		t.Errorf("it is looked at again at %v", due)
	}
	dbtest.Advance(t, pool, time.Minute)
	wantFired(t, pool, 0)
	fire(t, s, bad.ID, "defuse", `{}`)
	if n := timers(t, pool); n != 0 {
		t.Errorf("%d timers are left", n)
	}
}

// runTimers lets timers fire in the background until the test, or stop, ends them.
func runTimers(t testing.TB, pool *pgxpool.Pool, config fsm.TimerConfig) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var running sync.WaitGroup
	running.Go(func() {
		if err := fsm.NewTimers(pool, config).Run(ctx); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	stop = func() {
		cancel()
		running.Wait()
	}
	t.Cleanup(stop)
	return stop
}

// A guard that takes too long holds up its neighbours for no longer than it takes to find it.
func TestTimeoutThatTakesTooLong(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	s := serviceOn(t, pool, fsm.Config{}, bombs)
	slow := make([]int, 1500)
	document, err := json.Marshal(map[string]any{"a": slow})
	if err != nil {
		t.Fatal(err)
	}
	dbtest.SetClock(t, pool, noon)
	create(t, s, "bomb", `{}`)
	bad := create(t, s, "bomb", string(document))
	create(t, s, "bomb", `{}`)
	dbtest.Advance(t, pool, time.Minute)
	runTimers(t, open(t, dbtest.DSN(pool), db.Config{StatementTimeout: 200 * time.Millisecond}), fsm.TimerConfig{Poll: 10 * time.Millisecond})
	until(t, pool, "select count(*) = 2 from pawl.instance where state = 'BOOM'")
	until(t, pool, "select count(*) = 1 from pawl.timer where due_at > pawl.now()")
	if got := get(t, s, bad.ID); got.Version != 1 {
		t.Errorf("the slow one is at version %d", got.Version)
	}
}

// An instance that somebody holds is passed by, and holds up nobody.
func TestTimeoutOfALockedInstance(t *testing.T) {
	t.Parallel()
	s, pool := newService(t, fsm.Config{}, flightBooking)
	dbtest.SetClock(t, pool, noon)
	held, free := create(t, s, "flight-booking", `{"flight_id": "1", "price": 1}`), create(t, s, "flight-booking", `{"flight_id": "2", "price": 1}`)
	dbtest.Advance(t, pool, time.Hour)
	release := hold(t, pool, held.ID)
	wantFired(t, pool, 1)
	wantStep(t, last(t, s, free.ID), "timeout", "after:10m", "EXPIRED", 2)
	release()
	wantFired(t, pool, 1)
	wantStep(t, last(t, s, held.ID), "timeout", "after:10m", "EXPIRED", 2)
}

// Ten thousand timers that are due at once, in two tenants, fire once each, though three
// replicas are at it, one of which loses its connections and stops in the middle, while
// callers move some of the instances.
func TestManyTimersAtOnce(t *testing.T) {
	t.Parallel()
	const perTenant = 5000
	s, pool := newService(t, fsm.Config{}, ladder)
	dbtest.SetClock(t, pool, noon)
	var ids []uuid.UUID
	for _, tenant := range []string{fsm.DefaultTenant, "other"} {
		commands := make([]fsm.Command, perTenant)
		for n := range commands {
			commands[n] = fsm.CreateCommand{Tenant: tenant, Workflow: "ladder", Context: json.RawMessage(`{"allowed": true}`)}
		}
		for _, r := range s.Do(t.Context(), commands) {
			if r.Err != nil {
				t.Fatal(r.Err)
			}
			if tenant == fsm.DefaultTenant {
				ids = append(ids, r.Instance.ID)
			}
		}
	}
	dbtest.Advance(t, pool, time.Minute)

	runTimers(t, open(t, dbtest.DSN(pool), db.Config{}), fsm.TimerConfig{Poll: 5 * time.Millisecond})
	runTimers(t, open(t, dbtest.DSN(pool), db.Config{}), fsm.TimerConfig{Poll: 5 * time.Millisecond, Batch: 77})
	const doomed = "doomed"
	stop := runTimers(t, open(t, dbtest.DSN(pool)+"&application_name="+doomed, db.Config{}), fsm.TimerConfig{Poll: time.Millisecond})
	var callers sync.WaitGroup
	callers.Go(func() {
		for n := 0; n < perTenant; n += 50 {
			// Too late, or in time: one of the two happens.
			_, _ = s.Fire(t.Context(), fsm.FireCommand{ID: ids[n], Event: "again", Expect: fsm.ExpectVersion(1)})
		}
	})
	until(t, pool, "select count(*) >= 500 from pawl.history where kind = 'timeout'")
	exec(t, pool, "select pg_terminate_backend(pid) from pg_stat_activity where application_name = $1", doomed)
	stop()
	callers.Wait()
	until(t, pool, "select count(*) = 0 from pawl.timer where due_at <= pawl.now()")

	moved := scan[int](t, pool, "select count(*) from pawl.history where kind = 'transition'")
	got := scan[string](t, pool, `
		select format('%s steps on %s instances, up to version %s', count(*), count(distinct instance_id), max(version))
		from pawl.history where kind = 'timeout'`)
	n := 2*perTenant - moved
	if want := fmt.Sprintf("%d steps on %d instances, up to version 2", n, n); got != want {
		t.Errorf("%s; want %s, since %d were moved in time", got, want, moved)
	}
	if n := scan[int](t, pool, "select count(*) from pawl.instance where state not in ('WAITING', 'REMINDED') or version > 2"); n != 0 {
		t.Errorf("%d instances are elsewhere", n)
	}
}
