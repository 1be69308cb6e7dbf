package live_test

import (
	"context"
	"encoding/json"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/db"
	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/db/session"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/fsmtest"
	"github.com/pawl-fsm/pawl/fsm/live"
	"github.com/pawl-fsm/pawl/fsm/worker"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// never is longer than any test, where what should come does not come from looking.
const never = time.Hour

// runHub runs a hub for the length of the test and returns when it listens.
func runHub(t testing.TB, pool *pgxpool.Pool, poll time.Duration) *live.Hub {
	t.Helper()
	hub := live.NewHub(pool, live.HubConfig{Poll: poll})
	bounded.Run(t, "the hub", hub.Run)
	bounded.True(t, "the hub to listen", hub.Listens)
	return hub
}

// awaited starts to wait for a version, and returns when the waiter has subscribed.
func awaited(t testing.TB, watched *live.Service, id uuid.UUID, version int64) <-chan fsm.Instance {
	t.Helper()
	hub := watched.Hub()
	waiters := hub.Waiters()
	got := make(chan fsm.Instance, 1)
	ctx := t.Context()
	var waiting sync.WaitGroup
	waiting.Go(func() {
		i, err := watched.Await(ctx, fsm.DefaultTenant, id, func(i fsm.Instance) bool { return i.Version >= version })
		if err != nil && ctx.Err() == nil {
			t.Error(err)
		}
		got <- i
	})
	t.Cleanup(func() { bounded.Wait(t, "the waiter to give up", waiting.Wait) })
	bounded.True(t, "the waiter to subscribe", func() bool { return hub.Waiters() > waiters })
	return got
}

func wantVersion(t testing.TB, got <-chan fsm.Instance, version int64) {
	t.Helper()
	if i := bounded.Receive(t, "the end of the wait", got); i.Version != version {
		t.Errorf("the wait ends with version %d, want %d", i.Version, version)
	}
}

// A wait ends by what another replica does, at once: nothing is looked for here.
func TestWaitEndsByAnotherReplica(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	other, _ := on(t, pool, nil, fsmtest.Counter)
	hub := runHub(t, pool, never)
	s, watched := on(t, pool, hub)
	id := fsmtest.Create(t, s, "counter", `{"x": 0}`).ID
	var waits []<-chan fsm.Instance
	for range 100 {
		waits = append(waits, awaited(t, watched, id, 2))
	}
	fsmtest.Fire(t, other, id, "add", `{"n": 1}`)
	for _, w := range waits {
		wantVersion(t, w, 2)
	}
	if n := hub.Waiters(); n != 0 {
		t.Errorf("%d waiters are left", n)
	}
}

// What SQL callers and timers do is found too.
func TestWaitEndsBySQLAndByTimers(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	_, _ = on(t, pool, nil, fsmtest.FlightBooking)
	dbtest.Numbering(t, pool)
	hub := runHub(t, pool, 100*time.Millisecond)
	s, watched := on(t, pool, hub)
	id := fsmtest.Create(t, s, "flight-booking", `{"flight_id": "LH454", "price": 1}`).ID
	w := awaited(t, watched, id, 2)
	bounded.Exec(t, pool, `select pawl.fire_one($1, 'reserve', '{"price": 1}')`, id)
	wantVersion(t, w, 2)

	timed := fsmtest.Create(t, s, "flight-booking", `{"flight_id": "LH454", "price": 1}`).ID
	deaf := runHub(t, pool, never)
	_, watched = on(t, pool, deaf)
	// The first look wakes all.
	w = awaited(t, watched, timed, 2)
	notifier := live.NewNotifier(pool, nil)
	t.Cleanup(notifier.Close)
	timers := worker.NewTimers(pool, worker.TimerConfig{Poll: time.Millisecond, Fired: notifier.MovedAny})
	bounded.Run(t, "the timers", timers.Run)
	dbtest.Advance(t, pool, time.Hour)
	wantVersion(t, w, 2)
}

// A hub that loses its connection wakes by looking, and listens again.
func TestHubLosesItsConnection(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	other, _ := on(t, pool, nil, fsmtest.Counter)
	hub := runHub(t, pool, 200*time.Millisecond)
	s, watched := on(t, pool, hub)
	id := fsmtest.Create(t, s, "counter", `{"x": 0}`).ID
	const listeners = "from pg_stat_activity where datname = current_database() and application_name = 'pawl listen'"
	for version := range int64(5) {
		w := awaited(t, watched, id, version+2)
		lost := bounded.Value[int](t, pool, "select pid "+listeners)
		bounded.Exec(t, pool, "select pg_terminate_backend($1)", lost)
		fsmtest.Fire(t, other, id, "add", `{"n": 1}`)
		wantVersion(t, w, version+2)
		bounded.UntilSQL(t, pool, "select count(*) = 1 and bool_and(pid <> $1 and state = 'idle') "+listeners, lost)
		bounded.True(t, "the hub to listen again", hub.Listens)
	}
}

// A wait ends when its context does, with the instance as it is, and for a final instance.
func TestWaitEnds(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	_, _ = on(t, pool, nil, fsmtest.Counter)
	hub := runHub(t, pool, never)
	s, watched := on(t, pool, hub)
	id := fsmtest.Create(t, s, "counter", `{"x": 0}`).ID
	ctx, cancel := context.WithCancel(t.Context())
	w := make(chan fsm.Instance, 1)
	go func() {
		i, err := watched.Await(ctx, fsm.DefaultTenant, id, func(fsm.Instance) bool { return false })
		if err != nil {
			t.Error(err)
		}
		w <- i
	}()
	bounded.True(t, "the waiter to subscribe", func() bool { return hub.Waiters() > 0 })
	cancel()
	wantVersion(t, w, 1)
	w2 := awaited(t, watched, id, 99)
	fsmtest.Fire(t, s, id, "stop", `{}`)
	wantVersion(t, w2, 2)
	_, err := watched.Await(t.Context(), fsm.DefaultTenant, uuid.New(), func(fsm.Instance) bool { return false })
	fsmtest.Refused(t, err, fsm.InstanceNotFound)
	_, err = watched.Await(t.Context(), "another", id, func(fsm.Instance) bool { return false })
	fsmtest.Refused(t, err, fsm.InstanceNotFound)
}

// Without a hub that runs, those who wait look for themselves.
func TestWaitWithoutHub(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	other, _ := on(t, pool, nil, fsmtest.Counter)
	hub := live.NewHub(pool, live.HubConfig{Poll: 20 * time.Millisecond})
	s, watched := on(t, pool, hub)
	id := fsmtest.Create(t, s, "counter", `{"x": 0}`).ID
	w := awaited(t, watched, id, 2)
	fsmtest.Fire(t, other, id, "add", `{"n": 1}`)
	wantVersion(t, w, 2)
}

// A process sends few notifications, each with all that moved since the one before.
func TestNotificationsAreShared(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	s, _ := on(t, pool, nil, fsmtest.Counter)
	conn, err := pgx.Connect(t.Context(), dbtest.DSN(pool))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(bounded.Context(t)) }()
	if _, err := conn.Exec(t.Context(), "listen pawl_step"); err != nil {
		t.Fatal(err)
	}
	const n = 1000
	var commands []fsm.Command
	for range n {
		commands = append(commands, fsm.CreateCommand{Workflow: "counter", Context: json.RawMessage(`{"x": 0}`)})
	}
	start := time.Now()
	want := map[string]bool{}
	for _, r := range s.Do(t.Context(), commands) {
		if r.Err != nil {
			t.Fatal(r.Err)
		}
		want[r.Instance.ID.String()] = true
	}
	s.Close()
	took := time.Since(start)
	sent := 0
	ctx := bounded.Context(t)
	// bounded: by the deadline of the context
	for len(want) > 0 {
		note, err := conn.WaitForNotification(ctx)
		if err != nil {
			t.Fatalf("%d instances were not named: %v", len(want), err)
		}
		sent++
		payload := opened(t, pool, note)
		if payload == "- *" {
			clear(want)
			continue
		}
		for id := range strings.FieldsSeq(payload) {
			delete(want, id)
		}
	}
	if most := 2 + int(took/(10*time.Millisecond)); sent > most {
		t.Errorf("%d notifications in %v, want at most %d", sent, took, most)
	}
}

// A process sends notifications only while somebody waits in another process. Its own waiters need none.
func TestNotificationsThatSomebodyWaitsFor(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	hub, elsewhere := runHub(t, pool, never), runHub(t, pool, never)
	s, watched := on(t, pool, hub, fsmtest.Counter)
	_, watchedElsewhere := on(t, pool, elsewhere)
	hub.Forget()
	id := fsmtest.Create(t, s, "counter", `{"x": 0}`).ID
	conn, err := pgx.Connect(t.Context(), dbtest.DSN(pool))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(bounded.Context(t)) }()
	bounded.Exec(t, conn, "listen pawl_step")
	sent := func() string {
		t.Helper()
		note, err := conn.WaitForNotification(bounded.Context(t))
		if err != nil {
			t.Fatal(err)
		}
		return opened(t, pool, note)
	}

	w := awaited(t, watched, id, 2)
	fsmtest.Fire(t, s, id, "add", `{"n": 1}`)
	wantVersion(t, w, 2)
	bounded.Exec(t, pool, "select pg_notify('pawl_step', 'marker')")
	if got := sent(); got != "not sealed: marker" {
		t.Errorf("nobody waits elsewhere, and %q is sent", got)
	}

	w = awaited(t, watchedElsewhere, id, 3)
	bounded.True(t, "the announcement to be heard", hub.WaitedElsewhere)
	fsmtest.Fire(t, s, id, "add", `{"n": 1}`)
	wantVersion(t, w, 3)
	if got := sent(); !strings.HasSuffix(got, " "+id.String()) {
		t.Errorf("%q is sent, want the id of the instance", got)
	}

	// A hub that begins to listen asks who waits, and is answered.
	bounded.Exec(t, conn, "unlisten pawl_step; listen pawl_wait")
	w = awaited(t, watchedElsewhere, id, 4)
	runHub(t, pool, never)
	asker, answers := "", 0
	// bounded: by sent
	for answers == 0 {
		switch sender, payload, _ := strings.Cut(sent(), " "); {
		case payload == "?":
			asker = sender
		case asker != "" && sender != asker:
			answers++
		}
	}
	fsmtest.Fire(t, s, id, "add", `{"n": 1}`)
	wantVersion(t, w, 4)
}

// opened is what a notification says to a hub.
func opened(t *testing.T, pool *pgxpool.Pool, note *pgconn.Notification) string {
	t.Helper()
	payload, ok := live.Opened(t.Context(), pool, note.Channel, note.Payload)
	if !ok {
		return "not sealed: " + note.Payload
	}
	return payload
}

// Any login may listen and notify. It learns nothing, and what it sends makes hubs look, at most.
func TestStrangersListenAndNotify(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	s, _ := on(t, pool, nil, fsmtest.Counter)
	role := pgx.Identifier{"stranger of " + pool.Config().ConnConfig.Database}.Sanitize()
	bounded.Exec(t, pool, "create role "+role+" login password 'secret'")
	t.Cleanup(func() {
		if _, err := pool.Exec(context.Background(), "drop role "+role); err != nil {
			t.Error(err)
		}
	})
	config := pool.Config().ConnConfig.Copy()
	config.User, config.Password = strings.Trim(role, `"`), "secret"
	stranger, err := pgx.ConnectConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = stranger.Close(bounded.Context(t)) }()
	bounded.Exec(t, stranger, "listen pawl_step; listen pawl_log; listen pawl_wait")
	id := fsmtest.Create(t, s, "counter", `{"x": 0}`).ID
	dbtest.Number(t, pool)
	hub := runHub(t, pool, never)
	other := uuid.New()
	waiter, another := hub.Instance(id), hub.Instance(other)
	defer waiter.Close()
	defer another.Close()
	heard := map[string]bool{}
	// bounded: by the deadline of the context
	for ctx := bounded.Context(t); !heard["pawl_step"] || !heard["pawl_wait"]; {
		note, err := stranger.WaitForNotification(ctx)
		if err != nil {
			t.Fatal(err)
		}
		heard[note.Channel] = true
		payload := opened(t, pool, note)
		sender, _, _ := strings.Cut(payload, " ")
		for _, word := range []string{id.String(), sender} {
			if len(word) > 1 && strings.Contains(note.Payload, word) {
				t.Errorf("on %s everybody hears %q", note.Channel, note.Payload)
			}
		}
	}

	bounded.Receive(t, "the first look to wake all who wait", waiter.C())
	bounded.Receive(t, "the first look to wake all who wait", another.C())
	hub.Forget()
	for _, channel := range []string{"pawl_step", "pawl_wait", "pawl_log"} {
		for _, payload := range []string{"x " + id.String(), "*", "x *", "x ?", "x"} {
			bounded.Exec(t, stranger, "select pg_notify($1, $2)", channel, payload)
		}
	}
	// What is sent afterwards is heard afterwards.
	notifier := live.NewNotifier(pool, nil)
	t.Cleanup(notifier.Close)
	notifier.Moved([]uuid.UUID{other})
	bounded.Receive(t, "the other waiter to be woken", another.C())
	select {
	case <-waiter.C():
		t.Error("a stranger has woken a waiter")
	default:
	}
	if hub.WaitedElsewhere() {
		t.Error("the hub believes a stranger that somebody waits")
	}
}

// Waiters come and go in any order, while steps are made.
func TestWaitersUnderLoad(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	other, _ := on(t, pool, nil, fsmtest.Counter)
	hub := runHub(t, pool, 50*time.Millisecond)
	s, watched := on(t, pool, hub)
	dbtest.Numbering(t, pool)
	tenant, foreign := hub.Tenant(fsm.DefaultTenant), hub.Tenant("another")
	steps, stopSteps := hub.WakeSteps()
	numbers, stopNumbers := hub.WakeLog()
	var group sync.WaitGroup
	for n := range 8 {
		id := fsmtest.Create(t, s, "counter", `{"x": 0}`).ID
		for v := range int64(20) {
			group.Go(func() {
				i, err := watched.Await(t.Context(), fsm.DefaultTenant, id, func(i fsm.Instance) bool { return i.Version >= v+2 })
				if err != nil || i.Version < v+2 {
					t.Errorf("instance %d: version %d, want %d: %v", n, i.Version, v+2, err)
				}
			})
		}
		group.Go(func() {
			for range 20 {
				if _, err := other.Fire(t.Context(), fsm.FireCommand{ID: id, Event: "add", Payload: json.RawMessage(`{"n": 1}`)}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	bounded.Wait(t, "the waiters and the steps", group.Wait)
	bounded.Receive(t, "the waiter for steps to be woken", steps)
	bounded.Receive(t, "the waiter for positions to be woken", numbers)
	bounded.Receive(t, "the waiter for a tenant to be woken", tenant.C())
	tenant.Close()
	tenant.Close()
	foreign.Close()
	stopNumbers()
	if n := hub.Waiters(); n != 1 {
		t.Errorf("%d waiters are left, want 1", n)
	}
	stopSteps()
}

// Behind a pooler a hub does not listen but polls. With HubConfig.ListenURL it listens without the pooler.
func TestHubBehindAPooler(t *testing.T) {
	t.Parallel()
	owner := dbtest.New(t)
	other, _ := on(t, owner, nil, fsmtest.Counter)
	through := dbtest.Pooler(t, dbtest.DSN(owner), "transaction")
	pool := fsmtest.Open(t, through, db.Config{})

	log := &bounded.Lines{}
	looking := live.NewHub(pool, live.HubConfig{Poll: 100 * time.Millisecond, Logger: log.Logger()})
	bounded.Run(t, "the hub that looks", looking.Run)
	log.Find(t, "a pooler is on the way")
	s, watched := on(t, pool, looking)
	id := fsmtest.Create(t, s, "counter", `{"x": 0}`).ID
	w := awaited(t, watched, id, 2)
	fsmtest.Fire(t, other, id, "add", `{"n": 1}`)
	wantVersion(t, w, 2)
	if looking.Listens() || len(bounded.Column[string](t, session.Pool(pool), "select pg_listening_channels()")) > 0 {
		t.Error("the hub listens through the pooler")
	}

	listening := live.NewHub(pool, live.HubConfig{Poll: never, ListenURL: dbtest.DSN(owner)})
	bounded.Run(t, "the hub that listens", listening.Run)
	bounded.True(t, "the hub to listen", listening.Listens)
	s, watched = on(t, pool, listening)
	w = awaited(t, watched, id, 3)
	w2 := awaited(t, watched, id, 4)
	fsmtest.Fire(t, other, id, "add", `{"n": 1}`)
	wantVersion(t, w, 3)
	fsmtest.Fire(t, s, id, "add", `{"n": 1}`) // Its notification goes through the pooler.
	wantVersion(t, w2, 4)
}

// Whoever reads the log is told of positions: in the process that gives them, and in others if somebody waits there.
func TestPositionsAreTold(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	dbtest.Number(t, pool)
	hub, elsewhere := runHub(t, pool, never), runHub(t, pool, never)
	notifier := live.NewNotifier(pool, hub)
	t.Cleanup(notifier.Close)
	here, stopHere := hub.WakeLog()
	defer stopHere()
	there, stopThere := elsewhere.WakeLog()
	defer stopThere()
	bounded.Receive(t, "the first look to wake who reads here", here)
	bounded.Receive(t, "the first look to wake who reads elsewhere", there)
	bounded.True(t, "the announcement to be heard", hub.WaitedElsewhere)
	notifier.Numbered()
	bounded.Receive(t, "the one who reads here to be woken", here)
	bounded.Receive(t, "the one who reads elsewhere to be woken", there)
}

// The sequencer hurries while somebody is to be told, which it itself is not.
func TestSequencerIsWanted(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	hub := runHub(t, pool, never)
	wanted := func(want bool, why string) {
		t.Helper()
		hub.Forget()
		if hub.Wanted() != want {
			t.Errorf("wanted: %v, although %s", !want, why)
		}
	}
	wanted(false, "nobody waits")
	_, stop := hub.WakeSteps()
	defer stop()
	wanted(false, "only the sequencer waits")
	waiter := hub.Tenant(fsm.DefaultTenant)
	wanted(true, "a stream waits")
	waiter.Close()
	wanted(false, "the stream has ended")
	elsewhere := runHub(t, pool, never)
	defer elsewhere.Instance(uuid.New()).Close()
	bounded.True(t, "the announcement to be heard", hub.WaitedElsewhere)
	if !hub.Wanted() {
		t.Error("not wanted, although somebody waits elsewhere")
	}
}

// While there is no sequencer, nobody knows what has moved: everyone who waits is woken by each poll.
func TestWaitEndsWithoutSequencer(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	_, _ = on(t, pool, nil, fsmtest.Counter)
	s, watched := on(t, pool, runHub(t, pool, 100*time.Millisecond))
	id := fsmtest.Create(t, s, "counter", `{"x": 0}`).ID
	for version := range int64(3) {
		w := awaited(t, watched, id, version+2)
		bounded.Exec(t, pool, `select pawl.fire_one($1, 'add', '{"n": 1}')`, id)
		wantVersion(t, w, version+2)
	}
}

// A notification of the engine wakes those who wait for the tasks that it names, and nobody else. Who waits for tasks
// makes the hub neither look for steps nor announce anything.
func TestTasksWake(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	hub := runHub(t, pool, never)
	pack, stopPack := hub.WakeTasks("work:default/pack")
	defer stopPack()
	http, stopHTTP := hub.WakeTasks("http")
	defer stopHTTP()
	if hub.Wanted() {
		// A hub that begins to listen assumes for a moment that somebody waits elsewhere.
		bounded.True(t, "nobody to want steps", func() bool { return !hub.Wanted() })
	}
	bounded.Exec(t, pool, "select pg_notify('pawl_task', 'work:default/ship'), pg_notify('pawl_task', 'work:default/pack')")
	bounded.Receive(t, "the signal for pack", pack)
	select {
	case <-http:
		t.Error("who waits for http was woken by work")
	default:
	}
	bounded.Exec(t, pool, "select pg_notify('pawl_task', 'http')")
	bounded.Receive(t, "the signal for http", http)
}
