package fsm_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/db"
	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/fsmtest"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

func TestRetryableErrors(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, fsmtest.Counter)
	i := fsmtest.Create(t, s, "counter", `{"x":0}`)
	version := int64(1)
	// The last one is an error of nobody's: the commands are then called one by one.
	for _, code := range []string{"40001", "40p01", "57p01", "53100", "xx000"} {
		s := fsmtest.On(t, pool, fsm.Config{}) // It knows no command that was slow.
		other := fsmtest.Create(t, s, "counter", `{"x":0}`)
		fsmtest.RaiseOnce(t, pool, code)
		replies := s.Do(t.Context(), []fsm.Command{
			fsm.FireCommand{ID: i.ID, Event: "add", Payload: json.RawMessage(`{"n":1}`), Key: code},
			fsm.FireCommand{ID: other.ID, Event: "stop"},
		})
		version++
		if r := replies[0]; r.Err != nil || r.Replayed || r.Instance.Version != version {
			t.Errorf("%s: %+v", code, r)
		}
		if r := replies[1]; r.Err != nil || r.Instance.State != "STOPPED" {
			t.Errorf("%s, its neighbour: %+v", code, r)
		}
	}
	if n := len(fsmtest.History(t, s, i.ID)); int64(n) != version {
		t.Errorf("%d steps at version %d", n, version)
	}
}

// batchSizes notes how many commands each call of pawl.fire has.
func batchSizes(into chan<- int) pgx.QueryTracer {
	return fsmtest.Spy{Started: func(sql string, args []any) {
		if strings.Contains(sql, "pawl.fire(") {
			into <- len(args[1].([]uuid.UUID))
		}
	}}
}

// A batch is one call until one of its commands spoils it; that one alone suffers.
func TestOneSpoilsNoOther(t *testing.T) {
	t.Parallel()
	plain := dbtest.New(t)
	sizes := make(chan int, 100)
	pool := fsmtest.Spied(t, fsmtest.Open(t, dbtest.DSN(plain), db.Config{StatementTimeout: time.Second, LockTimeout: 50 * time.Millisecond}),
		func(c *pgxpool.Config) { c.ConnConfig.Tracer = batchSizes(sizes) })
	last := fsmtest.On(t, pool, fsm.Config{}, fsmtest.Counter)
	var numbers []string
	for range 600 {
		numbers = append(numbers, "1")
	}
	slow := fmt.Sprintf(`{"a":[%s]}`, strings.Join(numbers, ","))

	for name, c := range map[string]struct {
		event, payload string
		held           bool
		kind           fsm.Kind
	}{
		"a guard raises":  {"raise", `{}`, false, fsm.GuardError},
		"a guard is slow": {"slow", slow, false, fsm.GuardError},
		"a row is locked": {"stop", `{}`, true, fsm.Unavailable},
	} {
		s := fsmtest.On(t, pool, fsm.Config{}) // It does not remember the other cases.
		var ids []uuid.UUID
		var commands []fsm.Command
		for n := range 5 {
			ids = append(ids, fsmtest.Create(t, s, "counter", `{"x":0}`).ID)
			f := fsm.FireCommand{ID: ids[n], Event: "add", Payload: json.RawMessage(`{"n":1}`), Key: uuid.NewString()}
			if n == 2 {
				f.Event, f.Payload = c.event, json.RawMessage(c.payload)
			}
			commands = append(commands, f)
		}
		release := func() {}
		if c.held {
			release = fsmtest.Hold(t, plain, ids[2])
		}
		before := len(sizes)
		replies := s.Do(t.Context(), commands)
		release()
		if size := bounded.Receive(t, "the size of the first call", sizes); before != 0 || size != 5 {
			t.Errorf("%s: the first call has %d commands", name, size)
		}
		for range len(sizes) {
			if size := bounded.Receive(t, "the size of a later call", sizes); size != 1 {
				t.Errorf("%s: a later call has %d commands", name, size)
			}
		}
		for n, r := range replies {
			if n != 2 {
				if r.Err != nil || r.Replayed || r.Instance.Version != 2 {
					t.Errorf("%s: its neighbour: %+v", name, r)
				}
				continue
			}
			e := fsmtest.Refusal(t, r.Err, c.kind)
			if c.kind == fsm.GuardError && (e.Refusal.Event != c.event || e.Refusal.State != "COUNTING") {
				t.Errorf("%s: %+v", name, e.Refusal)
			}
			// It is not recorded: the same key may be used again.
			if got := fsmtest.Get(t, s, ids[2]); got.Version != 1 {
				t.Errorf("%s: %+v", name, got)
			}
		}
		again := commands[2].(fsm.FireCommand)
		again.Event, again.Payload = "stop", nil
		if r, err := s.Fire(t.Context(), again); err != nil || r.Replayed {
			t.Errorf("%s, the key again: %+v, %v", name, r, err)
		}
		for range len(sizes) {
			bounded.Receive(t, "the size of another call", sizes)
		}
	}

	i := fsmtest.Create(t, last, "counter", `{"x":0}`)
	_, err := last.Preview(t.Context(), fsm.FireCommand{ID: i.ID, Event: "slow", Payload: json.RawMessage(slow)})
	fsmtest.Refused(t, err, fsm.GuardError)
	// The same timeout, spent waiting, is not a guard's fault.
	waitsLong := fsmtest.On(t, fsmtest.Open(t, dbtest.DSN(plain), db.Config{StatementTimeout: 500 * time.Millisecond, LockTimeout: time.Minute}), fsm.Config{})
	release := fsmtest.Hold(t, plain, i.ID)
	_, err = waitsLong.Fire(t.Context(), fsm.FireCommand{ID: i.ID, Event: "stop"})
	fsmtest.Refused(t, err, fsm.Unavailable)
	release()
}

// A key that another transaction is about to take is waited for, and then replayed.
func TestKeyIsTakenMeanwhile(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, fsmtest.Counter)
	i := fsmtest.Create(t, s, "counter", `{"x":0}`)
	for _, commit := range []bool{true, false} {
		c := fsm.FireCommand{ID: i.ID, Event: "add", Payload: json.RawMessage(`{"n":1}`), Key: fmt.Sprint("commit-", commit)}
		tx, err := pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		first, err := s.FireTx(t.Context(), tx, c)
		if err != nil {
			t.Fatal(err)
		}
		answer := make(chan fsm.Reply, 1)
		go func() {
			r, err := s.Fire(t.Context(), c)
			answer <- fsm.Reply{Result: r, Err: err}
		}()
		bounded.UntilSQL(t, pool, fsmtest.Waiting, 1)
		if commit {
			err = tx.Commit(t.Context())
		} else {
			err = tx.Rollback(t.Context())
		}
		if err != nil {
			t.Fatal(err)
		}
		if r := bounded.Receive(t, "the answer of the repeated command", answer); r.Err != nil || r.Replayed != commit || r.Instance.Version != first.Instance.Version {
			t.Errorf("commit %v: %+v", commit, r)
		}
	}
}

func TestServerDiesAndReturns(t *testing.T) {
	t.Parallel()
	server := dbtest.Private(t, nil)
	ctx := t.Context()
	if err := db.Up(ctx, server.DSN()); err != nil {
		t.Fatal(err)
	}
	pool := fsmtest.Open(t, server.DSN(), db.Config{})
	s := fsmtest.On(t, pool, fsm.Config{}, fsmtest.Counter)
	i := fsmtest.Create(t, s, "counter", `{"x":0}`)
	c := fsm.FireCommand{ID: i.ID, Event: "add", Payload: json.RawMessage(`{"n":1}`), Key: "k"}
	if _, err := s.Fire(ctx, c); err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for range 8 { // So that the pool has connections that will die.
		all.Go(func() { _ = second(s.Get(ctx, fsm.DefaultTenant, i.ID)) })
	}
	bounded.Wait(t, "eight reads", all.Wait)

	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	within := bounded.Context(t)
	for name, call := range map[string]func() error{
		"fire":     func() error { return second(s.Fire(within, c)) },
		"create":   func() error { return second(s.Create(within, fsm.CreateCommand{Workflow: "counter"})) },
		"preview":  func() error { return second(s.Preview(within, c)) },
		"get":      func() error { return second(s.Get(within, fsm.DefaultTenant, i.ID)) },
		"actions":  func() error { return second(s.AcceptedEvents(within, fsm.DefaultTenant, i.ID, true, "")) },
		"list":     func() error { return second(s.List(within, fsm.DefaultTenant, fsm.Filter{}, fsm.Page{})) },
		"register": func() error { return second(s.Register(within, "", []byte(fsmtest.Counter), "", false)) },
		"ping":     func() error { return s.Ping(within) },
	} {
		all.Go(func() {
			// The contract gives two seconds; the database that refuses connections takes none. A machine that is
			// busy with something else is given another try.
			bounded.Until(t, name+" to end within two seconds", func() time.Duration {
				began := time.Now()
				err := call()
				if e, ok := errors.AsType[*fsm.Error](err); !ok || e.Kind != fsm.Unavailable || errors.Is(err, within.Err()) {
					t.Errorf("%s: %v", name, err)
				}
				return time.Since(began)
			}, func(took time.Duration) bool { return took < 2*time.Second })
		})
	}
	bounded.Wait(t, "calls without a database", all.Wait)

	if err := server.Restart(ctx); err != nil {
		t.Fatal(err)
	}
	r, err := s.Fire(ctx, c)
	if err != nil || !r.Replayed || r.Instance.Version != 2 {
		t.Errorf("after the return: %+v, %v", r, err)
	}
	c.Key = "l"
	if r, err = s.Fire(ctx, c); err != nil || r.Replayed || r.Instance.Version != 3 {
		t.Errorf("after the return: %+v, %v", r, err)
	}
	// An orderly restart, with connections open, is not even noticed.
	if err := server.Restart(ctx); err != nil {
		t.Fatal(err)
	}
	for name, call := range map[string]func() error{
		"get":     func() error { return second(s.Get(ctx, fsm.DefaultTenant, i.ID)) },
		"preview": func() error { return second(s.Preview(ctx, fsm.FireCommand{ID: i.ID, Event: "stop"})) },
	} {
		if err := call(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestTooManyConnections(t *testing.T) {
	t.Parallel()
	server := dbtest.Private(t, map[string]string{"max_connections": "10", "superuser_reserved_connections": "0", "autovacuum": "off"})
	ctx := t.Context()
	if err := db.Up(ctx, server.DSN()); err != nil {
		t.Fatal(err)
	}
	s := fsmtest.On(t, fsmtest.Open(t, server.DSN(), db.Config{}), fsm.Config{}, fsmtest.Counter)
	i := fsmtest.Create(t, s, "counter", `{"x":0}`)
	var taken []*pgx.Conn
	bounded.True(t, "the server to refuse one connection more", func() bool {
		conn, err := pgx.Connect(ctx, server.DSN())
		if err == nil {
			taken = append(taken, conn)
		}
		return err != nil
	})
	// The pool holds what it has, and more than that is to be had later.
	var all sync.WaitGroup
	ends := make(chan error, 32)
	for range cap(ends) {
		all.Go(func() { ends <- second(s.Get(ctx, fsm.DefaultTenant, i.ID)) })
	}
	bounded.Wait(t, "reads by more than there are connections for", all.Wait)
	for range len(ends) {
		if err := bounded.Receive(t, "what a read came to", ends); err != nil {
			fsmtest.Refused(t, err, fsm.Unavailable)
		}
	}
	for _, conn := range taken {
		if err := conn.Close(ctx); err != nil {
			t.Error(err)
		}
	}
	fsmtest.Fire(t, s, i.ID, "stop", `{}`)
}

func TestCloseSettlesWhatWasAccepted(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{MaxBatch: 2}, fsmtest.Counter)
	var ids []uuid.UUID
	for range 10 {
		ids = append(ids, fsmtest.Create(t, s, "counter", `{"x":0}`).ID)
	}
	release := fsmtest.Hold(t, pool, ids[0])
	answers := make(chan []fsm.Reply, 1)
	go func() {
		var commands []fsm.Command
		for _, id := range ids {
			commands = append(commands, fsm.FireCommand{ID: id, Event: "stop"})
		}
		answers <- s.Do(t.Context(), commands)
	}()
	bounded.UntilSQL(t, pool, fsmtest.Waiting, 1)
	closed := make(chan struct{})
	go func() {
		s.Close()
		close(closed)
	}()
	release()
	bounded.Receive(t, "the service to close", closed)
	if n := bounded.Value[int](t, pool, "select count(*) from pawl.instance where state = 'STOPPED'"); n != 10 {
		t.Errorf("%d of 10 are settled", n)
	}
	if replies := bounded.Receive(t, "the answers to what was accepted", answers); slices.ContainsFunc(replies, func(r fsm.Reply) bool { return r.Err != nil }) {
		t.Errorf("got %+v", replies)
	}
	_, err := s.Fire(t.Context(), fsm.FireCommand{ID: ids[0], Event: "add"})
	fsmtest.Refused(t, err, fsm.Unavailable)
	fsmtest.Get(t, s, ids[0]) // Reads go on.
}
