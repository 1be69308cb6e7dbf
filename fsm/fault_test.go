package fsm_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/fsmtest"
	"github.com/pawl-fsm/pawl/internal/bounded"
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
	return fsmtest.Spied(t, pool, func(c *pgxpool.Config) {
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
	// bounded: a connection that the server has closed has no more to read
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
	service := fsmtest.On(t, s.pool(t, plain), fsm.Config{}, fsmtest.Counter)
	ctx := t.Context()
	i := fsmtest.Create(t, service, "counter", `{"x":0}`)

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
	if e := fsmtest.Refusal(t, err, fsm.GuardRejected); e.Replayed {
		t.Error("the first refusal says that it is a replay")
	}
	// Neighbours of the lost call are settled too, each once.
	s.next(2, loseAnswer, "shared-2")
	var commands []fsm.Command
	for n := range 4 {
		one := fsmtest.Create(t, service, "counter", `{"x":0}`)
		commands = append(commands, fsm.FireCommand{ID: one.ID, Event: "add", Payload: json.RawMessage(`{"n":1}`), Key: fmt.Sprint("shared-", n)})
	}
	for _, r := range service.Do(ctx, commands) {
		if r.Err != nil || r.Replayed || r.Instance.Version != 2 {
			t.Errorf("a neighbour: %+v", r)
		}
	}
	if n := len(fsmtest.History(t, service, i.ID)); n != 3 {
		t.Errorf("%d steps, want 3", n)
	}
}

// Reads and previews are made again too.
func TestReadIsLost(t *testing.T) {
	t.Parallel()
	var s strikes
	plain := dbtest.New(t)
	service := fsmtest.On(t, s.pool(t, plain), fsm.Config{}, fsmtest.Counter)
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
		"actions": func() error { return second(service.AcceptedEvents(ctx, "marked", i.ID, false, "")) },
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
	patient := fsmtest.On(t, plain, fsm.Config{}, fsmtest.Counter)
	service := fsmtest.On(t, s.pool(t, plain), fsm.Config{CallTimeout: 100 * time.Millisecond})
	ctx := t.Context()
	i := fsmtest.Create(t, patient, "counter", `{"x":0}`)
	s.next(1, loseBoth, "unheard")
	c := fsm.FireCommand{ID: i.ID, Event: "stop", Key: "unheard"}
	_, err := service.Fire(ctx, c)
	fsmtest.Refused(t, err, fsm.Unavailable)
	if r, err := patient.Fire(ctx, c); err != nil || r.Replayed || r.Instance.Version != 2 {
		t.Errorf("the retry: %+v, %v", r, err)
	}
	s.next(1, loseBoth, "unread")
	_, err = service.Get(ctx, "unread", i.ID)
	fsmtest.Refused(t, err, fsm.Unavailable)
}

// A caller that gives up hears so at once; what was sent counts all the same.
func TestCallerGivesUp(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{Flushers: 1}, fsmtest.Counter)
	i, other := fsmtest.Create(t, s, "counter", `{"x":0}`), fsmtest.Create(t, s, "counter", `{"x":0}`)
	release := fsmtest.Hold(t, pool, i.ID)
	ctx, cancel := context.WithCancel(t.Context())
	answers := make(chan error, 2)
	fire := func(id uuid.UUID, key string) {
		_, err := s.Fire(ctx, fsm.FireCommand{ID: id, Event: "add", Payload: json.RawMessage(`{"n":1}`), Key: key})
		answers <- err
	}
	go fire(i.ID, "sent")
	bounded.UntilSQL(t, pool, fsmtest.Waiting, 1)
	// The only flusher waits for the row, so this one is queued, or has not come yet.
	go fire(other.ID, "queued")
	cancel()
	for range 2 {
		fsmtest.Refused(t, bounded.Receive(t, "the answer to a caller who has gone", answers), fsm.Unavailable)
	}
	release()
	s.Close() // Waits for what was sent.
	if v := fsmtest.Get(t, s, i.ID).Version; v != 2 {
		t.Errorf("what was sent came to version %d", v)
	}
	if v := fsmtest.Get(t, s, other.ID).Version; v != 1 {
		t.Errorf("what was not sent came to version %d", v)
	}
}

func TestBackendIsKilled(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	own := fsmtest.Open(t, dbtest.DSN(pool), patient)
	s := fsmtest.On(t, own, fsm.Config{CallTimeout: bounded.Limit}, fsmtest.Counter)
	i := fsmtest.Create(t, s, "counter", `{"x":0}`)
	release := fsmtest.Hold(t, pool, i.ID)
	answer := make(chan fsm.Reply, 1)
	go func() {
		r, err := s.Fire(t.Context(), fsm.FireCommand{ID: i.ID, Event: "add", Payload: json.RawMessage(`{"n":1}`), Key: "k"})
		answer <- fsm.Reply{Result: r, Err: err}
	}()
	for range 2 {
		bounded.UntilSQL(t, pool, fsmtest.Waiting, 1)
		bounded.Exec(t, pool, `select pg_terminate_backend(pid, 10000) from pg_stat_activity
			where datname = current_database() and wait_event_type = 'Lock' and query like '%pawl.fire%'`)
	}
	bounded.UntilSQL(t, pool, fsmtest.Waiting, 1)
	release()
	r := bounded.Receive(t, "the answer of the command whose backends were killed", answer)
	if r.Err != nil || r.Replayed || r.Instance.Version != 2 || len(fsmtest.History(t, s, i.ID)) != 2 {
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
	bounded.Exec(t, pool, "select pg_terminate_backend(pid) "+ofPool)
	bounded.UntilSQL(t, pool, "select count(*) = 0 "+ofPool)
	again, err := s.Fire(t.Context(), fsm.FireCommand{ID: i.ID, Event: "add", Payload: json.RawMessage(`{"n":1}`), Key: "k"})
	if err != nil || !again.Replayed || again.Instance.Version != 2 {
		t.Errorf("got %+v, %v", again, err)
	}
}
