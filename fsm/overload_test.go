package fsm_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"weak"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/db"
	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/fsmtest"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// patient is for tests that hold a row for as long as they need.
var patient = db.Config{LockTimeout: bounded.Limit, StatementTimeout: bounded.Limit}

// onceOrRefused fails the test unless each command has made exactly one step, or was
// refused and made none.
func onceOrRefused(t *testing.T, s *fsmtest.Service, ids []uuid.UUID, answers map[string]error) (applied int) {
	t.Helper()
	steps := map[string]int{}
	for _, id := range ids {
		for _, step := range fsmtest.History(t, s, id) {
			if step.Kind == "transition" {
				steps[*step.Key]++
			}
		}
	}
	for key, err := range answers {
		want := 1
		if err != nil {
			fsmtest.Refused(t, err, fsm.Unavailable)
			want = 0
		}
		if steps[key] != want {
			t.Errorf("%s was answered %v and made %d steps", key, err, steps[key])
		}
		applied += steps[key]
	}
	return applied
}

// Ten times as many commands as may wait come at once: those that have no room are told
// so before anything else happens, the others are applied, and nothing is left of it.
func TestBurst(t *testing.T) {
	t.Parallel()
	const burst, room = 2000, 200
	pool := dbtest.New(t)
	s := fsmtest.On(t, fsmtest.Open(t, dbtest.DSN(pool), patient), fsm.Config{MaxQueue: room, Flushers: 1, CallTimeout: 2 * time.Minute}, fsmtest.Counter)
	stuck := fsmtest.Create(t, s, "counter", `{"x":0}`)
	var ids []uuid.UUID
	for range 100 {
		ids = append(ids, fsmtest.Create(t, s, "counter", `{"x":0}`).ID)
	}
	for _, held := range []bool{true, false} {
		release := func() {}
		first := make(chan error, 1)
		if held { // Then the only flusher waits, and nobody else is served meanwhile.
			release = fsmtest.Hold(t, pool, stuck.ID)
			go func() { first <- second(s.Fire(t.Context(), fsm.FireCommand{ID: stuck.ID, Event: "stop"})) }()
			bounded.UntilSQL(t, pool, fsmtest.Waiting, 1)
		}
		answers, payloads, over := shower(t, s, ids, burst, fmt.Sprint("held-", held, "-"))
		if held {
			for range burst - room {
				a := bounded.Receive(t, "the answer to a command without room", over)
				fsmtest.Refused(t, a.err, fsm.Unavailable)
				answers[a.key] = a.err
			}
		}
		release()
		for range burst - len(answers) {
			a := bounded.Receive(t, "the answer to a command", over)
			answers[a.key] = a.err
		}
		applied := onceOrRefused(t, s, ids, answers)
		if held && applied != room {
			t.Errorf("%d were applied, and %d had room", applied, room)
		}
		if held {
			if err := bounded.Receive(t, "the answer to the first command", first); err != nil {
				t.Error(err)
			}
		}
		if applied == 0 {
			t.Error("none was applied")
		}
		// All that it needed is let go, and all works as before.
		for n := range 5 {
			for _, id := range ids[:10] {
				fsmtest.Fire(t, s, id, "add", fmt.Sprintf(`{"n":%d}`, n))
			}
		}
		runtime.GC()
		kept := 0
		for _, p := range payloads {
			if p.Value() != nil {
				kept++
			}
		}
		if kept > 0 {
			t.Errorf("%d payloads are kept", kept)
		}
	}
}

type keyedAnswer struct {
	key string
	err error
}

// shower fires many commands at once, each from a goroutine of its own with a payload of
// its own. The answers come through over, in the order in which they are given.
func shower(t *testing.T, s *fsmtest.Service, ids []uuid.UUID, n int, prefix string) (answers map[string]error, payloads []weak.Pointer[byte], over chan keyedAnswer) {
	t.Helper()
	over = make(chan keyedAnswer, n)
	begin := make(chan struct{})
	for i := range n {
		payload := json.RawMessage(fmt.Sprintf(`{"n":1,"text":"%s"}`, strings.Repeat("x", 1000)))
		payloads = append(payloads, weak.Make(&payload[0]))
		c := fsm.FireCommand{ID: ids[i%len(ids)], Event: "add", Payload: payload, Key: fmt.Sprint(prefix, i)}
		go func() {
			<-begin
			_, err := s.Fire(t.Context(), c)
			over <- keyedAnswer{c.Key, err}
		}()
	}
	close(begin)
	return map[string]error{}, payloads, over
}

// As many rows as there are flushers are held all the time, and commands for them keep
// coming: the others are served all the same, between waits of lock_timeout.
func TestStuckRowsHoldUpNobody(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	s := fsmtest.On(t, fsmtest.Open(t, dbtest.DSN(pool), db.Config{LockTimeout: 100 * time.Millisecond, StatementTimeout: bounded.Limit}),
		fsm.Config{Flushers: 2, CallTimeout: bounded.Limit}, fsmtest.Counter)
	enough := make(chan struct{})
	var insistent, others sync.WaitGroup
	for range 2 {
		i := fsmtest.Create(t, s, "counter", `{"x":0}`)
		fsmtest.Hold(t, pool, i.ID) // Until the test ends.
		for range 3 {
			insistent.Go(func() {
				for {
					select {
					case <-enough:
						return
					default:
					}
					if err := second(s.Fire(t.Context(), fsm.FireCommand{ID: i.ID, Event: "stop"})); !errors.Is(err, fsm.Unavailable) {
						t.Errorf("a held row: %v", err)
					}
				}
			})
		}
	}
	const clients, rounds = 50, 5
	for range clients {
		i := fsmtest.Create(t, s, "counter", `{"x":0}`)
		others.Go(func() {
			for range rounds {
				if err := second(s.Fire(t.Context(), fsm.FireCommand{ID: i.ID, Event: "add", Payload: json.RawMessage(`{"n":1}`)})); err != nil {
					t.Errorf("another row: %v", err)
				}
			}
			if v := fsmtest.Get(t, s, i.ID).Version; v != rounds+1 {
				t.Errorf("version %d after %d steps", v, rounds)
			}
		})
	}
	bounded.Wait(t, "the commands for other rows", others.Wait) // The rows are held still.
	close(enough)
	bounded.Wait(t, "the commands for the held rows", insistent.Wait)
}

// If another transaction holds an instance, the commands of its chain wait for it once, not one after
// the other.
func TestChainWaitsOnce(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	var calls atomic.Int64
	s := fsmtest.On(t, fsmtest.Spied(t, pool, func(c *pgxpool.Config) {
		c.ConnConfig.RuntimeParams["lock_timeout"] = "100ms"
		c.ConnConfig.Tracer = fsmtest.Spy{Ended: func(sql string, _ []any) {
			if strings.Contains(sql, "pawl.fire(") {
				calls.Add(1)
			}
		}}
	}), fsm.Config{CallTimeout: bounded.Limit}, fsmtest.Counter)
	i := fsmtest.Create(t, s, "counter", `{"x":0}`)
	fsmtest.Hold(t, pool, i.ID)
	commands := make([]fsm.Command, 10)
	for n := range commands {
		commands[n] = fsm.FireCommand{ID: i.ID, Event: "add", Payload: json.RawMessage(`{"n":1}`)}
	}
	for _, r := range s.Do(t.Context(), commands) {
		fsmtest.Refused(t, r.Err, fsm.Unavailable)
	}
	if n := calls.Load(); n != 2 {
		t.Errorf("%d calls were made, want 2: one for the chain, and one for its first command", n)
	}
}

// A chain of commands with a slow guard holds up neither the commands that shared its call, nor those after them.
func TestSlowChainHoldsUpNobody(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	s := fsmtest.On(t, fsmtest.Open(t, dbtest.DSN(pool), db.Config{StatementTimeout: time.Second}), fsm.Config{CallTimeout: bounded.Limit}, fsmtest.Counter)
	bad, good := fsmtest.Create(t, s, "counter", `{"x":0}`).ID, fsmtest.Create(t, s, "counter", `{"x":0}`).ID
	payload := json.RawMessage(`{"a":[` + strings.Repeat("1,", 1999) + `1]}`)
	commands := []fsm.Command{fsm.FireCommand{ID: good, Event: "add", Payload: json.RawMessage(`{"n":1}`)}}
	for range 5 {
		commands = append(commands, fsm.FireCommand{ID: bad, Event: "slow", Payload: payload})
	}
	replies := make(chan []fsm.Reply, 1)
	go func() { replies <- s.Do(t.Context(), commands) }()
	bounded.True(t, "the neighbour to move", func() bool { return fsmtest.Get(t, s, good).Version == 2 })
	fsmtest.Fire(t, s, good, "add", `{"n":1}`)
	select {
	case <-replies:
		t.Error("the neighbour's next command waited for the slow ones")
	default:
	}
	for n, r := range bounded.Receive(t, "the replies", replies) {
		if n > 0 {
			fsmtest.Refused(t, r.Err, fsm.GuardError)
		}
	}
}

// Callers that go away are answered at once, and what was not sent for them never is.
func TestManyCallersGiveUp(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	s := fsmtest.On(t, fsmtest.Open(t, dbtest.DSN(pool), patient), fsm.Config{Flushers: 1, CallTimeout: 2 * time.Minute}, fsmtest.Counter)
	stuck := fsmtest.Create(t, s, "counter", `{"x":0}`)
	release := fsmtest.Hold(t, pool, stuck.ID)
	sent := make(chan error, 1)
	go func() { sent <- second(s.Fire(t.Context(), fsm.FireCommand{ID: stuck.ID, Event: "stop"})) }()
	bounded.UntilSQL(t, pool, fsmtest.Waiting, 1)

	const callers = 300
	ctx, goAway := context.WithCancel(t.Context())
	var ids []uuid.UUID
	for range 10 {
		// Creates have a flusher of their own.
		ids = append(ids, fsmtest.Create(t, s, "counter", `{"x":0}`).ID)
	}
	left := make(chan error, callers)
	for n := range callers {
		go func() {
			left <- second(s.Fire(ctx, fsm.FireCommand{ID: ids[n%len(ids)], Event: "add", Payload: json.RawMessage(`{"n":1}`)}))
		}()
	}
	stays := make(chan error, 1)
	go func() { stays <- second(s.Fire(t.Context(), fsm.FireCommand{ID: ids[0], Event: "stop"})) }()
	goAway()
	for range callers { // The flusher is still waiting.
		err := bounded.Receive(t, "the answer to a caller who has gone", left)
		fsmtest.Refused(t, err, fsm.Unavailable)
		if !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
	}
	release()
	for _, c := range []chan error{sent, stays} {
		if err := bounded.Receive(t, "the answer to a caller who stays", c); err != nil {
			t.Error(err)
		}
	}
	s.Close()
	for n, id := range ids {
		want := int64(1)
		if n == 0 {
			want = 2 // The one who stayed.
		}
		if v := fsmtest.Get(t, s, id).Version; v != want {
			t.Errorf("instance %d is at version %d, want %d", n, v, want)
		}
	}
}

// A tenant that sends a single command is answered at once, while 10,000 commands of another one wait and as many
// calls with them are in flight as may be.
func TestTenantIsServedBesideAFlood(t *testing.T) {
	t.Parallel()
	const flood, flushers, batch = 10_000, 4, 256
	pool := dbtest.New(t)
	gate := bounded.NewGate(t, "the calls of the flood")
	var held atomic.Int64
	s := fsmtest.On(t, fsmtest.Spied(t, pool, func(c *pgxpool.Config) {
		c.ConnConfig.Tracer = fsmtest.Spy{Started: func(sql string, args []any) {
			if strings.Contains(sql, "pawl.create(") && !slices.Contains(args[0].([]string), "single") {
				held.Add(1)
				gate.Pass()
			}
		}}
	}), fsm.Config{Flushers: flushers, MaxBatch: batch, MaxQueue: flood, CallTimeout: bounded.Limit}, fsmtest.Counter)
	create := fsm.CreateCommand{Tenant: "flood", Workflow: "counter", Context: json.RawMessage(`{"x":0}`)}
	commands := slices.Repeat([]fsm.Command{create}, flood)
	flooded := make(chan []fsm.Reply, 1)
	go func() { flooded <- s.Do(t.Context(), commands) }()
	bounded.True(t, "calls of all flushers but one", func() bool { return held.Load() == flushers-1 })
	if n := s.CreatesWaiting("flood"); n != flood-(flushers-1)*batch {
		t.Errorf("%d commands wait", n)
	}
	create.Tenant = "single"
	for range 3 {
		if _, err := s.Create(t.Context(), create); err != nil {
			t.Error(err)
		}
	}
	// The calls of the single commands had room for some of the others.
	if n := bounded.Value[int](t, pool, "select count(*) from pawl.instance where tenant_id = 'flood'"); n > 3*fsm.SmallShare {
		t.Errorf("%d commands of the other tenant are carried out with three single ones", n)
	}
	gate.Open()
	for _, r := range bounded.Receive(t, "the answers to the flood", flooded) {
		if r.Err != nil {
			t.Fatal(r.Err)
		}
	}
}
