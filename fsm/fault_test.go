package fsm_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/db"
	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/fsm"
)

// A fault strikes the connections of a pool when they send a certain text.
type fault int

const (
	// loseAnswer lets the server do what it is told, and loses its answer.
	loseAnswer fault = iota
	// loseCall cuts the connection before the server hears of the call.
	loseCall
	// loseBoth swallows the call and leaves the connection open: nobody answers.
	loseBoth
)

// strikes decide, for all connections of a pool, which call is struck.
type strikes struct {
	mu    sync.Mutex
	text  string
	fault fault
	left  int
}

// next makes the next n calls with the text fail.
func (s *strikes) next(n int, f fault, text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.text, s.fault, s.left = text, f, n
}

func (s *strikes) hits(sent []byte) (fault, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.left == 0 || !bytes.Contains(sent, []byte(s.text)) {
		return 0, false
	}
	s.left--
	return s.fault, true
}

// poolWith returns a pool on the same database whose connections the strikes hit.
func (s *strikes) pool(t *testing.T, pool *pgxpool.Pool) *pgxpool.Pool {
	return spied(t, pool, func(c *pgxpool.Config) {
		c.ConnConfig.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
			if err != nil {
				return nil, err
			}
			return &faultyConn{Conn: conn, strikes: s}, nil
		}
	})
}

type faultyConn struct {
	net.Conn
	strikes *strikes
	silent  atomic.Bool
}

func (c *faultyConn) Write(b []byte) (int, error) {
	f, hit := c.strikes.hits(b)
	switch {
	case !hit:
		return c.Conn.Write(b)
	case f == loseCall:
		_ = c.Close()
		return 0, &net.OpError{Op: "write", Err: syscall.EPIPE}
	case f == loseBoth:
		return len(b), nil
	default:
		c.silent.Store(true)
		return c.Conn.Write(b)
	}
}

// readyForQuery begins what the server sends last, when it has committed, if there is
// anything to commit, and waits; a byte follows.
var readyForQuery = []byte{'Z', 0, 0, 0, 5}

func (c *faultyConn) Read(b []byte) (int, error) {
	if !c.silent.Load() {
		return c.Conn.Read(b)
	}
	var answer []byte
	for len(answer) < 6 || !bytes.HasPrefix(answer[len(answer)-6:], readyForQuery) {
		n, err := c.Conn.Read(b)
		if err != nil {
			return 0, err
		}
		answer = append(answer, b[:n]...)
	}
	_ = c.Close()
	return 0, io.ErrUnexpectedEOF
}

func TestAnswerIsLost(t *testing.T) {
	t.Parallel()
	var s strikes
	plain := dbtest.New(t)
	service := serviceOn(t, s.pool(t, plain), fsm.Config{}, counter)
	ctx := t.Context()
	i := create(t, service, "counter", `{"x":0}`)

	// The command was applied by its own first attempt: to its caller it is no replay.
	for n, f := range []fault{loseAnswer, loseCall} {
		key := fmt.Sprintf("struck-%d", n)
		c := fsm.FireCommand{ID: i.ID, Event: "add", Payload: json.RawMessage(`{"n":1}`), Key: key}
		s.next(1, f, key)
		r, err := service.Fire(ctx, c)
		if err != nil || r.Replayed || r.Instance.Version != int64(n+2) {
			t.Fatalf("%d: %+v, %v", f, r, err)
		}
		if r, err = service.Fire(ctx, c); err != nil || !r.Replayed || r.Instance.Version != int64(n+2) {
			t.Errorf("%d: the retry: %+v, %v", f, r, err)
		}
		// A replay whose call never arrived is still a replay.
		s.next(1, loseCall, key)
		if r, err = service.Fire(ctx, c); err != nil || !r.Replayed || r.Instance.Version != int64(n+2) {
			t.Errorf("%d: another retry: %+v, %v", f, r, err)
		}
	}
	s.next(1, loseAnswer, "struck-create")
	r, err := service.Create(ctx, fsm.CreateCommand{Workflow: "counter", Key: "struck-create", BusinessKey: "b"})
	if err != nil || r.Replayed || r.Instance.Version != 1 {
		t.Errorf("create: %+v, %v", r, err)
	}
	// So is a recorded refusal.
	s.next(1, loseAnswer, "struck-refusal")
	_, err = service.Fire(ctx, fsm.FireCommand{ID: i.ID, Event: "add", Payload: json.RawMessage(`{"n":-1}`), Key: "struck-refusal"})
	if e := refusal(t, err, fsm.GuardRejected); e.Replayed {
		t.Error("the first refusal says that it is a replay")
	}
	// Neighbours of the lost call are settled too, each once.
	s.next(2, loseAnswer, "shared-2")
	var commands []fsm.Command
	for n := range 4 {
		one := create(t, service, "counter", `{"x":0}`)
		commands = append(commands, fsm.FireCommand{ID: one.ID, Event: "add", Payload: json.RawMessage(`{"n":1}`), Key: fmt.Sprint("shared-", n)})
	}
	for _, r := range service.Do(ctx, commands) {
		if r.Err != nil || r.Replayed || r.Instance.Version != 2 {
			t.Errorf("a neighbour: %+v", r)
		}
	}
	if n := len(history(t, service, i.ID)); n != 3 {
		t.Errorf("%d steps, want 3", n)
	}
}

// Reads and previews are made again too.
func TestReadIsLost(t *testing.T) {
	t.Parallel()
	var s strikes
	plain := dbtest.New(t)
	service := serviceOn(t, s.pool(t, plain), fsm.Config{}, counter)
	ctx := t.Context()
	r, err := service.Create(ctx, fsm.CreateCommand{Workflow: "counter", Context: json.RawMessage(`{"x":0}`), Tenant: "marked"})
	if err != nil {
		t.Fatal(err)
	}
	i := r.Instance
	for name, read := range map[string]func() error{
		"get":     func() error { return second(service.Get(ctx, "marked", i.ID)) },
		"history": func() error { return second(service.History(ctx, "marked", i.ID, fsm.Page{})) },
		"list":    func() error { return second(service.List(ctx, "marked", fsm.Filter{}, fsm.Page{})) },
		"actions": func() error { return second(service.Actions(ctx, "marked", i.ID, false)) },
		"preview": func() error {
			return second(service.Preview(ctx, fsm.FireCommand{Tenant: "marked", ID: i.ID, Event: "stop"}))
		},
	} {
		for _, f := range []fault{loseAnswer, loseCall} {
			s.next(2, f, "marked")
			if err := read(); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			s.next(0, 0, "")
		}
	}
}

func TestNobodyAnswers(t *testing.T) {
	t.Parallel()
	var s strikes
	plain := dbtest.New(t)
	patient := serviceOn(t, plain, fsm.Config{}, counter)
	service := serviceOn(t, s.pool(t, plain), fsm.Config{CallTimeout: 100 * time.Millisecond})
	ctx := t.Context()
	i := create(t, patient, "counter", `{"x":0}`)
	s.next(1, loseBoth, "unheard")
	c := fsm.FireCommand{ID: i.ID, Event: "stop", Key: "unheard"}
	_, err := service.Fire(ctx, c)
	refused(t, err, fsm.Unavailable)
	if r, err := patient.Fire(ctx, c); err != nil || r.Replayed || r.Instance.Version != 2 {
		t.Errorf("the retry: %+v, %v", r, err)
	}
	s.next(1, loseBoth, "unread")
	_, err = service.Get(ctx, "unread", i.ID)
	refused(t, err, fsm.Unavailable)
}

// A caller that gives up hears so at once; what was sent counts all the same.
func TestCallerGivesUp(t *testing.T) {
	t.Parallel()
	s, pool := newService(t, fsm.Config{Flushers: 1}, counter)
	i, other := create(t, s, "counter", `{"x":0}`), create(t, s, "counter", `{"x":0}`)
	release := hold(t, pool, i.ID)
	ctx, cancel := context.WithCancel(t.Context())
	answers := make(chan error, 2)
	fire := func(id uuid.UUID, key string) {
		_, err := s.Fire(ctx, fsm.FireCommand{ID: id, Event: "add", Payload: json.RawMessage(`{"n":1}`), Key: key})
		answers <- err
	}
	go fire(i.ID, "sent")
	until(t, pool, waiting, 1)
	// The only flusher waits for the row, so this one is queued, or has not come yet.
	go fire(other.ID, "queued")
	cancel()
	for range 2 {
		refused(t, <-answers, fsm.Unavailable)
	}
	release()
	s.Close() // Waits for what was sent.
	if v := get(t, s, i.ID).Version; v != 2 {
		t.Errorf("what was sent came to version %d", v)
	}
	if v := get(t, s, other.ID).Version; v != 1 {
		t.Errorf("what was not sent came to version %d", v)
	}
}

func TestBackendIsKilled(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	own := open(t, dbtest.DSN(pool), db.Config{LockTimeout: 20 * time.Second, StatementTimeout: 20 * time.Second})
	s := serviceOn(t, own, fsm.Config{CallTimeout: 20 * time.Second}, counter)
	i := create(t, s, "counter", `{"x":0}`)
	release := hold(t, pool, i.ID)
	answer := make(chan fsm.Reply)
	go func() {
		r, err := s.Fire(t.Context(), fsm.FireCommand{ID: i.ID, Event: "add", Payload: json.RawMessage(`{"n":1}`), Key: "k"})
		answer <- fsm.Reply{Result: r, Err: err}
	}()
	for range 2 {
		until(t, pool, waiting, 1)
		exec(t, pool, `select pg_terminate_backend(pid, 10000) from pg_stat_activity
			where datname = current_database() and wait_event_type = 'Lock' and query like '%pawl.fire%'`)
	}
	until(t, pool, waiting, 1)
	release()
	r := <-answer
	if r.Err != nil || r.Replayed || r.Instance.Version != 2 || len(history(t, s, i.ID)) != 2 {
		t.Errorf("got %+v", r)
	}

	// Connections that died while they were idle, however many there are, are no error, and
	// make no replay a first.
	var idle []*pgxpool.Conn
	for range own.Config().MaxConns {
		conn, err := own.Acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		idle = append(idle, conn)
	}
	for _, conn := range idle {
		conn.Release()
	}
	const ofPool = "from pg_stat_activity where datname = current_database() and application_name = 'pawl'"
	exec(t, pool, "select pg_terminate_backend(pid) "+ofPool)
	until(t, pool, "select count(*) = 0 "+ofPool)
	again, err := s.Fire(t.Context(), fsm.FireCommand{ID: i.ID, Event: "add", Payload: json.RawMessage(`{"n":1}`), Key: "k"})
	if err != nil || !again.Replayed || again.Instance.Version != 2 {
		t.Errorf("got %+v, %v", again, err)
	}
}

// raiseOnce makes the first write of history raise, once: what a sequence counts is not
// rolled back.
func raiseOnce(t *testing.T, pool *pgxpool.Pool, code string) {
	t.Helper()
	exec(t, pool, `create sequence public.raised_`+code)
	exec(t, pool, fmt.Sprintf(`create function public.raise_%[1]s() returns trigger language plpgsql security definer as $$
		begin
			if nextval('public.raised_%[1]s') = 1 then raise exception 'once' using errcode = '%[2]s'; end if;
			return new;
		end $$`, code, strings.ToUpper(code)))
	exec(t, pool, fmt.Sprintf(`create trigger raise_%[1]s before insert on pawl.history for each row execute function public.raise_%[1]s()`, code))
}

func TestRetryableErrors(t *testing.T) {
	t.Parallel()
	s, pool := newService(t, fsm.Config{}, counter)
	i := create(t, s, "counter", `{"x":0}`)
	version := int64(1)
	// The last one is an error of nobody's: the commands are then called one by one.
	for _, code := range []string{"40001", "40p01", "57p01", "53100", "xx000"} {
		other := create(t, s, "counter", `{"x":0}`)
		raiseOnce(t, pool, code)
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
	if n := len(history(t, s, i.ID)); int64(n) != version {
		t.Errorf("%d steps at version %d", n, version)
	}
}

// A batch is one call until one of its commands spoils it; that one alone suffers.
func TestOneSpoilsNoOther(t *testing.T) {
	t.Parallel()
	plain := dbtest.New(t)
	sizes := make(chan int, 100)
	pool := spied(t, open(t, dbtest.DSN(plain), db.Config{StatementTimeout: 150 * time.Millisecond, LockTimeout: 50 * time.Millisecond}),
		func(c *pgxpool.Config) { c.ConnConfig.Tracer = batchSizes(sizes) })
	s := serviceOn(t, pool, fsm.Config{}, counter)
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
		var ids []uuid.UUID
		var commands []fsm.Command
		for n := range 5 {
			ids = append(ids, create(t, s, "counter", `{"x":0}`).ID)
			f := fsm.FireCommand{ID: ids[n], Event: "add", Payload: json.RawMessage(`{"n":1}`), Key: uuid.NewString()}
			if n == 2 {
				f.Event, f.Payload = c.event, json.RawMessage(c.payload)
			}
			commands = append(commands, f)
		}
		release := func() {}
		if c.held {
			release = hold(t, plain, ids[2])
		}
		before := len(sizes)
		replies := s.Do(t.Context(), commands)
		release()
		if size := <-sizes; before != 0 || size != 5 {
			t.Errorf("%s: the first call has %d commands", name, size)
		}
		for range len(sizes) {
			if size := <-sizes; size != 1 {
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
			e := refusal(t, r.Err, c.kind)
			if c.kind == fsm.GuardError && (e.Refusal.Event != c.event || e.Refusal.State != "COUNTING") {
				t.Errorf("%s: %+v", name, e.Refusal)
			}
			// It is not recorded: the same key may be used again.
			if got := get(t, s, ids[2]); got.Version != 1 {
				t.Errorf("%s: %+v", name, got)
			}
		}
		again := commands[2].(fsm.FireCommand)
		again.Event, again.Payload = "stop", nil
		if r, err := s.Fire(t.Context(), again); err != nil || r.Replayed {
			t.Errorf("%s, the key again: %+v, %v", name, r, err)
		}
		for range len(sizes) {
			<-sizes
		}
	}

	i := create(t, s, "counter", `{"x":0}`)
	_, err := s.Preview(t.Context(), fsm.FireCommand{ID: i.ID, Event: "slow", Payload: json.RawMessage(slow)})
	refused(t, err, fsm.GuardError)
	// The same timeout, spent waiting, is not a guard's fault.
	waitsLong := serviceOn(t, open(t, dbtest.DSN(plain), db.Config{StatementTimeout: 50 * time.Millisecond, LockTimeout: time.Minute}), fsm.Config{})
	release := hold(t, plain, i.ID)
	_, err = waitsLong.Fire(t.Context(), fsm.FireCommand{ID: i.ID, Event: "stop"})
	refused(t, err, fsm.Unavailable)
	release()
}

// A key that another transaction is about to take is waited for, and then replayed.
func TestKeyIsTakenMeanwhile(t *testing.T) {
	t.Parallel()
	s, pool := newService(t, fsm.Config{}, counter)
	i := create(t, s, "counter", `{"x":0}`)
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
		answer := make(chan fsm.Reply)
		go func() {
			r, err := s.Fire(t.Context(), c)
			answer <- fsm.Reply{Result: r, Err: err}
		}()
		until(t, pool, waiting, 1)
		if commit {
			err = tx.Commit(t.Context())
		} else {
			err = tx.Rollback(t.Context())
		}
		if err != nil {
			t.Fatal(err)
		}
		if r := <-answer; r.Err != nil || r.Replayed != commit || r.Instance.Version != first.Instance.Version {
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
	pool := open(t, server.DSN(), db.Config{})
	s := serviceOn(t, pool, fsm.Config{}, counter)
	i := create(t, s, "counter", `{"x":0}`)
	c := fsm.FireCommand{ID: i.ID, Event: "add", Payload: json.RawMessage(`{"n":1}`), Key: "k"}
	if _, err := s.Fire(ctx, c); err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for range 8 { // So that the pool has connections that will die.
		all.Go(func() { _ = second(s.Get(ctx, fsm.DefaultTenant, i.ID)) })
	}
	all.Wait()

	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	// The contract gives two seconds; the database that refuses connections takes none.
	within, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	for name, call := range map[string]func() error{
		"fire":     func() error { return second(s.Fire(within, c)) },
		"create":   func() error { return second(s.Create(within, fsm.CreateCommand{Workflow: "counter"})) },
		"preview":  func() error { return second(s.Preview(within, c)) },
		"get":      func() error { return second(s.Get(within, fsm.DefaultTenant, i.ID)) },
		"actions":  func() error { return second(s.Actions(within, fsm.DefaultTenant, i.ID, true)) },
		"list":     func() error { return second(s.List(within, fsm.DefaultTenant, fsm.Filter{}, fsm.Page{})) },
		"register": func() error { return second(s.Register(within, "", []byte(counter), "", false)) },
		"ping":     func() error { return s.Ping(within) },
	} {
		all.Go(func() {
			err := call()
			if e, ok := errors.AsType[*fsm.Error](err); !ok || e.Kind != fsm.Unavailable || errors.Is(err, within.Err()) {
				t.Errorf("%s: %v", name, err)
			}
		})
	}
	all.Wait()
	if err := within.Err(); err != nil {
		t.Errorf("it took too long: %v", err)
	}

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
	s := serviceOn(t, open(t, server.DSN(), db.Config{}), fsm.Config{}, counter)
	i := create(t, s, "counter", `{"x":0}`)
	var taken []*pgx.Conn
	for {
		conn, err := pgx.Connect(ctx, server.DSN())
		if err != nil {
			break
		}
		taken = append(taken, conn)
	}
	// The pool holds what it has, and more than that is to be had later.
	var all sync.WaitGroup
	replies := make(chan error, 32)
	for range cap(replies) {
		all.Go(func() { replies <- second(s.Get(ctx, fsm.DefaultTenant, i.ID)) })
	}
	all.Wait()
	close(replies)
	for err := range replies {
		if err != nil {
			refused(t, err, fsm.Unavailable)
		}
	}
	for _, conn := range taken {
		if err := conn.Close(ctx); err != nil {
			t.Error(err)
		}
	}
	fire(t, s, i.ID, "stop", `{}`)
}

func TestCloseSettlesWhatWasAccepted(t *testing.T) {
	t.Parallel()
	s, pool := newService(t, fsm.Config{MaxBatch: 2}, counter)
	var ids []uuid.UUID
	for range 10 {
		ids = append(ids, create(t, s, "counter", `{"x":0}`).ID)
	}
	release := hold(t, pool, ids[0])
	answers := make(chan []fsm.Reply)
	go func() {
		var commands []fsm.Command
		for _, id := range ids {
			commands = append(commands, fsm.FireCommand{ID: id, Event: "stop"})
		}
		answers <- s.Do(t.Context(), commands)
	}()
	until(t, pool, waiting, 1)
	closed := make(chan struct{})
	go func() {
		s.Close()
		close(closed)
	}()
	release()
	<-closed
	if n := scan[int](t, pool, "select count(*) from pawl.instance where state = 'STOPPED'"); n != 10 {
		t.Errorf("%d of 10 are settled", n)
	}
	if replies := <-answers; slices.ContainsFunc(replies, func(r fsm.Reply) bool { return r.Err != nil }) {
		t.Errorf("got %+v", replies)
	}
	_, err := s.Fire(t.Context(), fsm.FireCommand{ID: ids[0], Event: "add"})
	refused(t, err, fsm.Unavailable)
	get(t, s, ids[0]) // Reads go on.
}
