package fsm_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/fsmtest"
	turns "github.com/pawl-fsm/pawl/fsm/internal/gate"
	"github.com/pawl-fsm/pawl/fsm/subscription"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// waitingLists is a condition: $1 backends wait for the table of deliveries.
const waitingLists = `select count(*) = $1 from pg_locks where not granted and relation = 'pawl.delivery'::regclass
	and database = (select oid from pg_database where datname = current_database())`

// While the lists of a tenant hold all connections that they can get, and more of them wait, commands, reads of
// instances, changes and the lists of another tenant go on.
func TestListsHoldUpNobody(t *testing.T) {
	t.Parallel()
	first, pool := fsmtest.New(t, fsm.Config{}, fsmtest.Counter)
	id := fsmtest.Create(t, first, "counter", `{"x": 0}`).ID
	sized := func(n int32) *pgxpool.Pool {
		return fsmtest.Spied(t, pool, func(c *pgxpool.Config) { c.MaxConns = n })
	}
	s := fsmtest.On(t, sized(4), fsm.Config{Reads: sized(6)})
	records := subscription.New(s.Service)

	lock, err := pool.Begin(bounded.Context(t))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = lock.Rollback(bounded.Context(t)) }()
	bounded.Exec(t, lock, "lock table pawl.delivery in access exclusive mode")
	var lists sync.WaitGroup
	for range 20 {
		lists.Go(func() {
			if _, err := records.Deliveries(fsm.ForTenant(bounded.Context(t), "busy"), "busy", subscription.DeliveryFilter{}, fsm.Page{}); err != nil {
				t.Error(err)
			}
		})
	}
	bounded.UntilSQL(t, pool, waitingLists, 2)

	fsmtest.Create(t, s, "counter", `{"x": 0}`)
	fsmtest.Fire(t, s, id, "add", `{"n": 1}`)
	fsmtest.Get(t, s, id)
	fsmtest.Register(t, s, fsmtest.FlightBooking)
	if l, err := s.List(fsm.ForTenant(bounded.Context(t), "other"), fsm.DefaultTenant, fsm.Filter{}, fsm.Page{}); err != nil || len(l.Items) != 2 {
		t.Errorf("the list has %d instances, %v", len(l.Items), err)
	}
	if !bounded.Value[bool](t, pool, waitingLists, 2) {
		t.Error("not exactly two of the busy tenant's lists have a connection")
	}
	if err := lock.Rollback(bounded.Context(t)); err != nil {
		t.Fatal(err)
	}
	bounded.Wait(t, "the lists", lists.Wait)
}

// asked is a context that tells when somebody waits for its end.
type asked struct {
	context.Context
	once *sync.Once
	when chan struct{}
}

func (a asked) Done() <-chan struct{} {
	a.once.Do(func() { close(a.when) })
	return a.Context.Done()
}

// Beside another tenant that sends commands or reads instances, a tenant has a quarter of the connections for reads.
func TestReadsAreFewerBesideCommands(t *testing.T) {
	t.Parallel()
	first, pool := fsmtest.New(t, fsm.Config{}, fsmtest.Counter)
	id := fsmtest.Create(t, first, "counter", `{"x": 0}`).ID
	sized := func(n int32) *pgxpool.Pool {
		return fsmtest.Spied(t, pool, func(c *pgxpool.Config) { c.MaxConns = n })
	}
	for name, act := range map[string]func(*fsmtest.Service){
		"get":  func(s *fsmtest.Service) { fsmtest.Get(t, s, id) },
		"fire": func(s *fsmtest.Service) { fsmtest.Fire(t, s, id, "add", `{"n": 1}`) },
	} {
		t.Run(name, func(t *testing.T) {
			s := fsmtest.On(t, sized(4), fsm.Config{Reads: sized(6)}) // 4 for reads.
			var reads sync.WaitGroup
			defer bounded.Wait(t, "the reads", reads.Wait)
			read := func(ctx context.Context, f func()) {
				reads.Go(func() {
					if err := s.Database().Read(ctx, func(context.Context, *queries.Queries) error { f(); return nil }); err != nil {
						t.Error(err)
					}
				})
			}
			busy := fsm.ForTenant(bounded.Context(t), "busy")
			inside, leave := make(chan struct{}), make(chan struct{})
			read(busy, func() { close(inside); bounded.Receive(t, "the end of the first read", leave) })
			bounded.Receive(t, "the first read", inside)
			act(s)
			var second atomic.Bool
			waits := asked{busy, new(sync.Once), make(chan struct{})}
			read(waits, func() { second.Store(true) })
			bounded.Receive(t, "the second read waits", waits.when)
			for range 20 { // Others do not wait.
				if _, err := s.List(fsm.ForTenant(bounded.Context(t), "other"), fsm.DefaultTenant, fsm.Filter{}, fsm.Page{}); err != nil {
					t.Error(err)
				}
			}
			if second.Load() {
				t.Error("two reads of the busy tenant are made at once")
			}
			close(leave)
			bounded.True(t, "the second read is made", second.Load)
		})
	}
}

// A list whose caller leaves gives its connection back, and its statement ends.
func TestListsEndWithTheirCallers(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, fsmtest.Counter)
	records := subscription.New(s.Service)
	lock, err := pool.Begin(bounded.Context(t))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = lock.Rollback(bounded.Context(t)) }()
	bounded.Exec(t, lock, "lock table pawl.delivery in access exclusive mode")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		_, err := records.Deliveries(ctx, fsm.DefaultTenant, subscription.DeliveryFilter{}, fsm.Page{})
		ended <- err
	}()
	bounded.UntilSQL(t, pool, waitingLists, 1)
	cancel()
	fsmtest.Refused(t, bounded.Receive(t, "the list", ended), fsm.Unavailable)
	bounded.UntilSQL(t, pool, waitingLists, 0)
}

func TestTooManyWaitingReads(t *testing.T) {
	if err := fsm.AsError(turns.ErrCrowded); !errors.Is(err, fsm.Unavailable) {
		t.Errorf("it is %v", err)
	}
}
