package worker_test

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/db"
	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/fsmtest"
	"github.com/pawl-fsm/pawl/fsm/worker"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

func TestTimeoutEndsOnce(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, fsmtest.FlightBooking)
	dbtest.SetClock(t, pool, fsmtest.Noon)
	i := fsmtest.Create(t, s, "flight-booking", `{"flight_id": "LH454", "price": 1}`)
	dbtest.Advance(t, pool, 10*time.Minute-time.Microsecond)
	fsmtest.WantFired(t, pool, 0)
	dbtest.Advance(t, pool, 3*time.Second)
	fsmtest.WantFired(t, pool, 1)
	step := fsmtest.Last(t, s, i.ID)
	fsmtest.WantStep(t, step, "timeout", "after:10m", "EXPIRED", 2)
	// History tells when it was due, and so how late it was.
	fsmtest.SameJSON(t, step.Payload, `{"due_at": "2030-02-03T12:10:00.000000+00:00"}`)
	if want := fsmtest.Noon.Add(10*time.Minute + 3*time.Second - time.Microsecond); !step.At.Equal(want) || step.Actor != "pawl" || *step.Key != "timer:1" {
		t.Errorf("it was at %v by %s with key %s, want %v by pawl with timer:1", step.At, step.Actor, *step.Key, want)
	}
	if now := fsmtest.Get(t, s, i.ID); now.Status != fsm.Expired || len(now.AcceptedEvents) != 0 {
		t.Errorf("it is %s and accepts %v", now.Status, now.AcceptedEvents)
	}
	dbtest.Advance(t, pool, 24*time.Hour)
	fsmtest.WantFired(t, pool, 0)
	if n := fsmtest.Timers(t, pool); n != 0 {
		t.Errorf("%d timers are left", n)
	}
}

// A timer never fires after its state was left, though its row is not rewritten then.
func TestTimeoutOfAStateThatWasLeft(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, fsmtest.FlightBooking)
	dbtest.SetClock(t, pool, fsmtest.Noon)
	i := fsmtest.Create(t, s, "flight-booking", `{"flight_id": "LH454", "price": 1}`)
	other := fsmtest.Create(t, s, "flight-booking", `{"flight_id": "LH454", "price": 1}`)
	dbtest.Advance(t, pool, 9*time.Minute)
	fsmtest.Fire(t, s, i.ID, "reserve", `{"price": 1}`)
	fsmtest.Fire(t, s, other.ID, "cancel", `{}`)
	dbtest.Advance(t, pool, 10*time.Minute)
	fsmtest.WantFired(t, pool, 0)
	dbtest.Advance(t, pool, 5*time.Minute)
	fsmtest.WantFired(t, pool, 1)
	fsmtest.WantStep(t, fsmtest.Last(t, s, i.ID), "timeout", "after:15m", "EXPIRED", 3)
	fsmtest.WantStep(t, fsmtest.Last(t, s, other.ID), "transition", "cancel", "CANCELLED", 2)
}

func TestLifetimeEnds(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, fsmtest.FlightBooking)
	dbtest.SetClock(t, pool, fsmtest.Noon)
	document := json.RawMessage(`{"flight_id": "LH454", "price": 1}`)
	i := fsmtest.Create(t, s, "flight-booking", string(document))
	short, err := s.Create(t.Context(), fsm.CreateCommand{Workflow: "flight-booking", Context: document, ExpiresIn: 5 * time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	fsmtest.Fire(t, s, i.ID, "reserve", `{"price": 1}`)
	fsmtest.Fire(t, s, i.ID, "pay", `{"amount": 2}`) // to a state without timeouts
	dbtest.Advance(t, pool, 5*time.Minute)
	fsmtest.WantFired(t, pool, 1)
	fsmtest.WantStep(t, fsmtest.Last(t, s, short.Instance.ID), "expired", "ttl", "EXPIRED", 2)
	dbtest.Advance(t, pool, 25*time.Minute)
	fsmtest.WantFired(t, pool, 1)
	fsmtest.WantStep(t, fsmtest.Last(t, s, i.ID), "expired", "ttl", "EXPIRED", 4)
	_, err = s.Fire(t.Context(), fsm.FireCommand{ID: i.ID, Event: "cancel"})
	fsmtest.Refused(t, err, fsm.TransitionNotAllowed)
}

func TestLifetimeSlides(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, `{"name": "session", "initial": "OPEN",
		"ttl": {"after": "10m", "target": "GONE", "sliding": true},
		"states": {"OPEN": {"on": {"touch": "OPEN", "close": "GONE"}}, "GONE": {"type": "final", "outcome": "expired"}}}`)
	dbtest.SetClock(t, pool, fsmtest.Noon)
	i := fsmtest.Create(t, s, "session", `{}`)
	for range 3 {
		dbtest.Advance(t, pool, 9*time.Minute)
		fsmtest.WantFired(t, pool, 0)
		i = fsmtest.Fire(t, s, i.ID, "touch", `{}`)
	}
	if want := fsmtest.Noon.Add(37 * time.Minute); i.ExpiresAt == nil || !i.ExpiresAt.Equal(want) {
		t.Errorf("it expires at %v, want %v", i.ExpiresAt, want)
	}
	dbtest.Advance(t, pool, 10*time.Minute)
	fsmtest.WantFired(t, pool, 1)
	fsmtest.WantStep(t, fsmtest.Last(t, s, i.ID), "expired", "ttl", "GONE", 5)
}

// ladder has several timeouts in a state, of which guards refuse some.
const ladder = `{"name": "ladder", "initial": "WAITING", "states": {
	"WAITING": {
		"on": {"again": "WAITING", "allow": {"target": "WAITING", "assign": {"allowed": true}}},
		"after": {
			"1m": {"target": "REMINDED", "guard": "$.context.allowed == true"},
			"2m": [{"target": "NEVER", "guard": "$.context.second == \"never\""}, {"target": "REMINDED", "guard": "$.context.second == true && exists($.payload.due_at)"}],
			"3m": {"target": "GIVEN_UP", "assign": {"since": "$.payload.due_at"}}}},
	"REMINDED": {"on": {"answer": "DONE"}, "after": {"1m": "GIVEN_UP"}},
	"NEVER": {"type": "final"}, "DONE": {"type": "final"}, "GIVEN_UP": {"type": "final", "outcome": "failed"}}}`

func TestSeveralTimeouts(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, ladder)
	dbtest.SetClock(t, pool, fsmtest.Noon)
	none, second := fsmtest.Create(t, s, "ladder", `{}`), fsmtest.Create(t, s, "ladder", `{"second": true}`)
	again, allowed := fsmtest.Create(t, s, "ladder", `{}`), fsmtest.Create(t, s, "ladder", `{"allowed": true}`)
	dbtest.Advance(t, pool, time.Minute)
	fsmtest.WantFired(t, pool, 1)
	fsmtest.WantStep(t, fsmtest.Last(t, s, allowed.ID), "timeout", "after:1m", "REMINDED", 2)
	dbtest.Advance(t, pool, 30*time.Second)
	fsmtest.Fire(t, s, again.ID, "again", `{}`) // enters the state again, and all its timeouts with it
	dbtest.Advance(t, pool, 30*time.Second)
	fsmtest.WantFired(t, pool, 2)
	fsmtest.WantStep(t, fsmtest.Last(t, s, second.ID), "timeout", "after:2m", "REMINDED", 2)
	fsmtest.WantStep(t, fsmtest.Last(t, s, allowed.ID), "timeout", "after:1m", "GIVEN_UP", 3)
	dbtest.Advance(t, pool, time.Minute)
	fsmtest.WantFired(t, pool, 2)
	fsmtest.WantStep(t, fsmtest.Last(t, s, none.ID), "timeout", "after:3m", "GIVEN_UP", 2)
	fsmtest.SameJSON(t, fsmtest.Get(t, s, none.ID).Context, `{"since": "2030-02-03T12:03:00.000000+00:00"}`)
	dbtest.Advance(t, pool, 90*time.Second)
	fsmtest.WantFired(t, pool, 1)
	fsmtest.WantStep(t, fsmtest.Last(t, s, again.ID), "timeout", "after:3m", "GIVEN_UP", 3)
	if n := fsmtest.Timers(t, pool); n != 0 {
		t.Errorf("%d timers are left", n)
	}
}

// Callers may not fire what is the engine's own.
func TestTimeoutsAreNotForCallers(t *testing.T) {
	t.Parallel()
	s, _ := fsmtest.New(t, fsm.Config{}, fsmtest.FlightBooking)
	i := fsmtest.Create(t, s, "flight-booking", `{"flight_id": "LH454", "price": 1}`)
	for _, event := range []string{"after:10m", "ttl"} {
		_, err := s.Fire(t.Context(), fsm.FireCommand{ID: i.ID, Event: event})
		fsmtest.Refused(t, err, fsm.UnknownEvent)
		_, err = s.Preview(t.Context(), fsm.FireCommand{ID: i.ID, Event: event})
		fsmtest.Refused(t, err, fsm.UnknownEvent)
	}
}

// failure returns the next deadline of an instance as text, with its error. It fails the test if the list of
// failing timers does not agree.
func failure(t testing.TB, s *fsmtest.Service, id uuid.UUID) string {
	t.Helper()
	next := fsmtest.Get(t, s, id).NextTimeout
	l, err := s.List(t.Context(), fsm.DefaultTenant, fsm.Filter{FailingTimer: true}, fsm.Page{})
	if err != nil {
		t.Fatal(err)
	}
	listed := slices.ContainsFunc(l.Items, func(i fsm.Instance) bool { return i.ID == id })
	if listed != (next != nil && next.LastError != nil) {
		t.Errorf("listed as failing: %v; it shows %+v", listed, next)
	}
	if next == nil {
		return "none"
	}
	text := fmt.Sprintf("%s at %s", next.Event, next.DueAt.UTC().Format(time.TimeOnly))
	if next.LastError != nil {
		text += ": " + *next.LastError
	}
	return text
}

// wantFailure fails the test unless failure returns the wanted text.
func wantFailure(t testing.TB, s *fsmtest.Service, id uuid.UUID, want string) {
	t.Helper()
	if got := failure(t, s, id); got != want {
		t.Errorf("it shows %s; want %s", got, want)
	}
}

func TestTimeoutThatRaisesFails(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, fsmtest.Bombs)
	dbtest.SetClock(t, pool, fsmtest.Noon)
	before, bad := fsmtest.Create(t, s, "bomb", `{}`), fsmtest.Create(t, s, "bomb", `{"raise": true}`)
	after := fsmtest.Create(t, s, "bomb", `{}`)
	wantFailure(t, s, bad.ID, "after:1m at 12:01:00")
	dbtest.Advance(t, pool, time.Minute)
	fsmtest.WantFired(t, pool, 2)
	for _, id := range []uuid.UUID{before.ID, after.ID} {
		fsmtest.WantStep(t, fsmtest.Last(t, s, id), "timeout", "after:1m", "BOOM", 2)
		wantFailure(t, s, id, "none")
	}
	fsmtest.WantFired(t, pool, 0)
	if due := bounded.Value[time.Time](t, pool, "select due_at from pawl.timer"); !due.Equal(fsmtest.Noon.Add(2 * time.Minute)) {
		t.Errorf("it is looked at again at %v", due)
	}
	const raises = `after:1m at 12:01:00: a guard or an assign raises: could not find jsonpath variable "nowhere"`
	wantFailure(t, s, bad.ID, raises)
	dbtest.Advance(t, pool, time.Minute)
	fsmtest.WantFired(t, pool, 0)
	wantFailure(t, s, bad.ID, raises)
	fsmtest.Fire(t, s, bad.ID, "defuse", `{}`)
	wantFailure(t, s, bad.ID, "none")
	if n := fsmtest.Timers(t, pool); n != 0 {
		t.Errorf("%d timers are left", n)
	}
}

// stuffed has a timeout whose step would make the context too large, then one that leads on.
const stuffed = `{"name": "stuffed", "initial": "WAITING", "ttl": {"after": "2h", "target": "EXPIRED"}, "states": {
	"WAITING": {
		"on": {"again": "WAITING", "shrink": {"target": "WAITING", "assign": {"x": 1}}, "rest": "RESTING"},
		"after": {"1m": {"target": "DOUBLED", "assign": {"y": "$.context.x"}}, "1h": {"target": "LATE", "guard": "$.context.late == true"}}},
	"RESTING": {"on": {"go": "WAITING"}},
	"DOUBLED": {"type": "final"}, "LATE": {"type": "final"}, "EXPIRED": {"type": "final", "outcome": "expired"}}}`

// If the step of a deadline cannot be made, the instance shows it, and the step is tried again until the
// instance moves or its next deadline is due. Later deadlines are not held up.
func TestTimeoutWhoseStepIsTooLarge(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, stuffed)
	dbtest.SetClock(t, pool, fsmtest.Noon)
	large := func(late bool) string { return fmt.Sprintf(`{"late": %v, "x": %q}`, late, strings.Repeat("x", 40<<10)) }
	again, rest, shrunk := fsmtest.Create(t, s, "stuffed", large(true)), fsmtest.Create(t, s, "stuffed", large(true)), fsmtest.Create(t, s, "stuffed", large(true))
	late, ended := fsmtest.Create(t, s, "stuffed", large(true)), fsmtest.Create(t, s, "stuffed", large(false))
	dbtest.Advance(t, pool, time.Minute)
	fsmtest.WantFired(t, pool, 0)
	const tooLarge = ": the context is, or would become, larger than the limit"
	for _, i := range []fsm.Instance{again, rest, shrunk, late, ended} {
		wantFailure(t, s, i.ID, "after:1m at 12:01:00"+tooLarge)
	}

	dbtest.Advance(t, pool, 30*time.Second)
	fsmtest.Fire(t, s, again.ID, "again", `{}`)
	wantFailure(t, s, again.ID, "after:1m at 12:02:30")
	fsmtest.Fire(t, s, rest.ID, "rest", `{}`)
	wantFailure(t, s, rest.ID, "ttl at 14:00:00")
	fsmtest.Fire(t, s, shrunk.ID, "shrink", `{}`)
	dbtest.Advance(t, pool, time.Minute)
	fsmtest.WantFired(t, pool, 1)
	fsmtest.WantStep(t, fsmtest.Last(t, s, shrunk.ID), "timeout", "after:1m", "DOUBLED", 3)
	wantFailure(t, s, again.ID, "after:1m at 12:02:30"+tooLarge)
	wantFailure(t, s, rest.ID, "ttl at 14:00:00")
	fsmtest.Fire(t, s, again.ID, "shrink", `{}`)

	dbtest.SetClock(t, pool, fsmtest.Noon.Add(59*time.Minute+30*time.Second))
	fsmtest.WantFired(t, pool, 1)
	fsmtest.WantStep(t, fsmtest.Last(t, s, again.ID), "timeout", "after:1m", "DOUBLED", 4)
	wantFailure(t, s, late.ID, "after:1m at 12:01:00"+tooLarge)
	dbtest.SetClock(t, pool, fsmtest.Noon.Add(time.Hour))
	fsmtest.WantFired(t, pool, 1)
	fsmtest.WantStep(t, fsmtest.Last(t, s, late.ID), "timeout", "after:1h", "LATE", 2)
	wantFailure(t, s, ended.ID, "ttl at 14:00:00") // No guard of its second timeout holds.
	dbtest.SetClock(t, pool, fsmtest.Noon.Add(2*time.Hour))
	fsmtest.WantFired(t, pool, 2)
	fsmtest.WantStep(t, fsmtest.Last(t, s, ended.ID), "expired", "ttl", "EXPIRED", 2)
	if n := fsmtest.Timers(t, pool); n != 0 {
		t.Errorf("%d timers are left", n)
	}
}

// If an error is not caused by the definition, only the log has its text.
func TestTimeoutThatTheDatabaseRefuses(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, stuffed)
	dbtest.SetClock(t, pool, fsmtest.Noon)
	i := fsmtest.Create(t, s, "stuffed", `{"x": 1}`)
	bounded.Exec(t, pool, "alter table pawl.history add constraint secret check (kind <> 'timeout')")
	dbtest.Advance(t, pool, time.Minute)
	if log := bounded.Value[string](t, pool, "select failures #>> '{0,cause}' from pawl.fire_timers(10)"); !strings.Contains(log, "secret") {
		t.Errorf("the cause is %q", log)
	}
	wantFailure(t, s, i.ID, "after:1m at 12:01:00: the step cannot be made (SQLSTATE 23514); the log of the service says why")
}

// A timer that fails is logged once, however often it is tried, and again when it fails for another reason.
func TestTimerThatFailsIsLoggedOnce(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, fsmtest.Bombs)
	dbtest.SetClock(t, pool, fsmtest.Noon)
	bad := fsmtest.Create(t, s, "bomb", `{"raise": true}`)
	var lines bounded.Lines
	stop := runTimers(t, pool, worker.TimerConfig{Poll: 5 * time.Millisecond, Logger: lines.Logger()})
	tried := func() {
		t.Helper()
		dbtest.Advance(t, pool, time.Minute)
		bounded.UntilSQL(t, pool, "select count(*) = 1 from pawl.timer where due_at > pawl.now()")
	}
	tried()
	tried()
	tried()
	bounded.Exec(t, pool, "alter table pawl.history add constraint secret check (kind <> 'timeout')")
	bounded.Exec(t, pool, "update pawl.instance set context = '{}'")
	tried()
	lines.Match(t, regexp.MustCompile("a timer fails.*23514"))
	stop()
	var failures []string
	for _, line := range lines.Rest() {
		if strings.Contains(line, "a timer fails") {
			failures = append(failures, line)
		}
	}
	if len(failures) != 2 {
		t.Fatalf("it was logged as %q", failures)
	}
	of := []string{"tenant=default", "workflow=bomb", "instance=" + bad.ID.String(), "event=after:1m"}
	for n, want := range [][]string{append(of, "a guard or an assign raises", "jsonpath"), append(of, "23514", "secret")} {
		for _, text := range want {
			if !strings.Contains(failures[n], text) {
				t.Errorf("%q is not in %q", text, failures[n])
			}
		}
	}
}

// runTimers lets timers fire in the background until the test, or stop, ends them.
func runTimers(t testing.TB, pool *pgxpool.Pool, config worker.TimerConfig) (stop func()) {
	t.Helper()
	return bounded.Run(t, "the timers", worker.NewTimers(pool, config).Run)
}

// A guard that takes too long holds up its neighbours for no longer than it takes to find it.
func TestTimeoutThatTakesTooLong(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	s := fsmtest.On(t, pool, fsm.Config{}, fsmtest.Bombs)
	slow := make([]int, 1500)
	document, err := json.Marshal(map[string]any{"a": slow})
	if err != nil {
		t.Fatal(err)
	}
	dbtest.SetClock(t, pool, fsmtest.Noon)
	fsmtest.Create(t, s, "bomb", `{}`)
	bad := fsmtest.Create(t, s, "bomb", string(document))
	fsmtest.Create(t, s, "bomb", `{}`)
	dbtest.Advance(t, pool, time.Minute)
	runTimers(t, fsmtest.Open(t, dbtest.DSN(pool), db.Config{StatementTimeout: 2 * time.Second}), worker.TimerConfig{Poll: 10 * time.Millisecond})
	bounded.UntilSQL(t, pool, "select count(*) = 2 from pawl.instance where state = 'BOOM'")
	bounded.UntilSQL(t, pool, "select count(*) = 1 from pawl.timer where due_at > pawl.now()")
	if got := fsmtest.Get(t, s, bad.ID); got.Version != 1 {
		t.Errorf("the slow one is at version %d", got.Version)
	}
	wantFailure(t, s, bad.ID, "after:1m at 12:01:00: the step takes longer than the statement timeout")
}

// An instance that somebody holds is passed by, and holds up nobody.
func TestTimeoutOfALockedInstance(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, fsmtest.FlightBooking)
	dbtest.SetClock(t, pool, fsmtest.Noon)
	held, free := fsmtest.Create(t, s, "flight-booking", `{"flight_id": "1", "price": 1}`), fsmtest.Create(t, s, "flight-booking", `{"flight_id": "2", "price": 1}`)
	dbtest.Advance(t, pool, time.Hour)
	release := fsmtest.Hold(t, pool, held.ID)
	fsmtest.WantFired(t, pool, 1)
	fsmtest.WantStep(t, fsmtest.Last(t, s, free.ID), "timeout", "after:10m", "EXPIRED", 2)
	release()
	fsmtest.WantFired(t, pool, 1)
	fsmtest.WantStep(t, fsmtest.Last(t, s, held.ID), "timeout", "after:10m", "EXPIRED", 2)
}

// Ten thousand timers that are due at once, in two tenants, fire once each, though three
// replicas are at it, one of which loses its connections and stops in the middle, while
// callers move some of the instances.
func TestManyTimersAtOnce(t *testing.T) {
	t.Parallel()
	const perTenant = 5000
	s, pool := fsmtest.New(t, fsm.Config{}, ladder)
	dbtest.SetClock(t, pool, fsmtest.Noon)
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

	const limit = 10 * time.Second // On a busy machine the timers are not to count as slow.
	runTimers(t, fsmtest.Open(t, dbtest.DSN(pool), db.Config{}), worker.TimerConfig{Poll: 5 * time.Millisecond, Limit: limit})
	runTimers(t, fsmtest.Open(t, dbtest.DSN(pool), db.Config{}), worker.TimerConfig{Poll: 5 * time.Millisecond, Batch: 77, Limit: limit})
	const doomed = "doomed"
	stop := runTimers(t, fsmtest.Open(t, dbtest.DSN(pool)+"&application_name="+doomed, db.Config{}), worker.TimerConfig{Poll: time.Millisecond, Limit: limit})
	var callers sync.WaitGroup
	callers.Go(func() {
		for n := 0; n < perTenant; n += 50 {
			// Too late, or in time: one of the two happens.
			_, _ = s.Fire(t.Context(), fsm.FireCommand{ID: ids[n], Event: "again", Expect: fsm.ExpectVersion(1)})
		}
	})
	bounded.UntilSQL(t, pool, "select count(*) >= 500 from pawl.history where kind = 'timeout'")
	bounded.Exec(t, pool, "select pg_terminate_backend(pid) from pg_stat_activity where application_name = $1", doomed)
	stop()
	bounded.Wait(t, "the callers", callers.Wait)
	bounded.UntilSQL(t, pool, "select count(*) = 0 from pawl.timer where due_at <= pawl.now()")

	moved := bounded.Value[int](t, pool, "select count(*) from pawl.history where kind = 'transition'")
	got := bounded.Value[string](t, pool, `
		select format('%s steps on %s instances, up to version %s', count(*), count(distinct instance_id), max(version))
		from pawl.history where kind = 'timeout'`)
	n := 2*perTenant - moved
	if want := fmt.Sprintf("%d steps on %d instances, up to version 2", n, n); got != want {
		t.Errorf("%s; want %s, since %d were moved in time", got, want, moved)
	}
	if n := bounded.Value[int](t, pool, "select count(*) from pawl.instance where state not in ('WAITING', 'REMINDED') or version > 2"); n != 0 {
		t.Errorf("%d instances are elsewhere", n)
	}
}
