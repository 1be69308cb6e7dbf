package outbox_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/outbox"
)

const counter = `{"name": "counter", "initial": "COUNTING", "states": {
	"COUNTING": {"on": {"add": [{"target": "COUNTING"}], "stop": [{"target": "STOPPED"}]}}, "STOPPED": {"type": "final", "outcome": "completed"}}}`

func withCounter(t testing.TB) *pgxpool.Pool {
	t.Helper()
	pool := dbtest.New(t)
	exec(t, pool, "select pawl.register_workflow($1)", counter)
	return pool
}

type querier interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

func exec(t testing.TB, pool *pgxpool.Pool, sql string, args ...any) {
	t.Helper()
	if _, err := pool.Exec(t.Context(), sql, args...); err != nil {
		t.Fatal(err)
	}
}

func value[T any](t testing.TB, q querier, sql string, args ...any) (v T) {
	t.Helper()
	if err := q.QueryRow(t.Context(), sql, args...).Scan(&v); err != nil {
		t.Fatalf("%v: %s", err, sql)
	}
	return v
}

func create(t testing.TB, q querier) uuid.UUID {
	t.Helper()
	return value[uuid.UUID](t, q, "select (pawl.create_one('counter')).id")
}

func add(t testing.TB, q querier, id uuid.UUID) {
	t.Helper()
	value[uuid.UUID](t, q, "select (pawl.fire_one($1, 'add')).id", id)
}

// A recorder is a sink that keeps what it is given, as "<instance>:<version>".
type recorder struct {
	mu     sync.Mutex
	events []string
	// before, if set, may refuse a page, or take its time.
	before func(ctx context.Context, events []outbox.Event) error
	told   chan struct{}
}

func newRecorder() *recorder { return &recorder{told: make(chan struct{}, 1)} }

func (r *recorder) Publish(ctx context.Context, events []outbox.Event) error {
	if r.before != nil {
		if err := r.before(ctx, events); err != nil {
			return err
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range events {
		r.events = append(r.events, e.ID())
	}
	select {
	case r.told <- struct{}{}:
	default:
	}
	return nil
}

func (r *recorder) Close() error { return nil }

func (r *recorder) list() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.events)
}

// want waits until the recorder has so many events.
func (r *recorder) want(t testing.TB, n int) []string {
	t.Helper()
	for {
		if list := r.list(); len(list) >= n {
			return list
		}
		select {
		case <-r.told:
		case <-time.After(20 * time.Second):
			t.Fatalf("%d events came, want %d", len(r.list()), n)
		}
	}
}

var quick = outbox.RelayConfig{FromStart: true, Poll: 5 * time.Millisecond, Pause: time.Millisecond}

// relay runs a relay until the test ends, or stop is called.
func relay(t testing.TB, pool *pgxpool.Pool, consumer string, sink outbox.Sink, config outbox.RelayConfig) (stop func()) {
	t.Helper()
	return running(t, outbox.NewRelay(pool, consumer, sink, config).Run)
}

// running runs a worker until the test ends, or stop is called.
func running(t testing.TB, worker func(context.Context) error) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- worker(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("the worker ended with %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

func ids(id uuid.UUID, versions ...int) (list []string) {
	for _, v := range versions {
		list = append(list, fmt.Sprintf("%s:%d", id, v))
	}
	return list
}

// caughtUp waits until the consumer has nothing left to relay.
func caughtUp(t testing.TB, pool *pgxpool.Pool, consumer string) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); ; {
		if value[int](t, pool, "select coalesce(sum(steps), -1)::int from pawl.outbox_status() where name = $1 and term > 0", consumer) == 0 {
			return
		}
		if time.Now().After(end) {
			t.Fatal("it does not catch up")
		}
		runtime.Gosched()
	}
}

func TestRelay(t *testing.T) {
	t.Parallel()
	pool := withCounter(t)
	old := create(t, pool)
	sink, late := newRecorder(), newRecorder()
	stop := relay(t, pool, "all", sink, quick)
	if got := sink.want(t, 1); !slices.Equal(got, ids(old, 1)) {
		t.Errorf("from the start: %v", got)
	}
	relay(t, pool, "new", late, outbox.RelayConfig{Poll: 5 * time.Millisecond})
	caughtUp(t, pool, "new")
	add(t, pool, old)
	if got := late.want(t, 1); !slices.Equal(got, ids(old, 2)) {
		t.Errorf("from now on: %v", got)
	}
	sink.want(t, 2)
	stop()
	// Where it was left it goes on, in another process.
	add(t, pool, old)
	next := newRecorder()
	relay(t, pool, "all", next, quick)
	if got := next.want(t, 1); !slices.Equal(got, ids(old, 3)) {
		t.Errorf("afterwards: %v", got)
	}
	// What is rolled back never was.
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	add(t, tx, old)
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	add(t, pool, old)
	if got := next.want(t, 2); !slices.Equal(got, ids(old, 3, 4)) {
		t.Errorf("after a rollback: %v", got)
	}
}

// A transaction that began early and commits late has a smaller xid and smaller seqs than what
// was relayed meanwhile.
func TestLateCommitterIsNotSkipped(t *testing.T) {
	t.Parallel()
	pool := withCounter(t)
	sink := newRecorder()
	relay(t, pool, "all", sink, quick)
	a, b, c := create(t, pool), create(t, pool), create(t, pool)
	sink.want(t, 3)

	begin := func() pgx.Tx {
		tx, err := pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) })
		return tx
	}
	commit := func(tx pgx.Tx) {
		if err := tx.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	late, held := begin(), begin()
	add(t, held, c) // Stays open all the while.
	add(t, late, a)
	// Others flow on past them, more than once, so that the cursor moves behind them.
	for n := range 3 {
		add(t, pool, b)
		sink.want(t, 4+n)
	}
	caughtUp(t, pool, "all")
	commit(late)
	if got := sink.want(t, 7); got[6] != ids(a, 2)[0] {
		t.Errorf("the late one came as %v", got)
	}
	low, high := value[int64](t, pool, "select seq from pawl.history where instance_id = $1 and version = 2", a),
		value[int64](t, pool, "select seq from pawl.history where instance_id = $1 and version = 4", b)
	smaller := value[bool](t, pool, `select (select xid from pawl.history where instance_id = $1 and version = 2)
		< (select xid from pawl.history where instance_id = $2 and version = 4)`, a, b)
	if low >= high || !smaller {
		t.Errorf("seqs %d and %d, smaller xid %v: this shows nothing", low, high, smaller)
	}
	// Another that waits for the held one has the smaller xid, and comes after it.
	waits := begin()
	value[string](t, waits, "select pg_current_xact_id()::text")
	blocked := make(chan struct{})
	go func() {
		defer close(blocked)
		if _, err := waits.Exec(t.Context(), "select pawl.fire_one($1, 'add')", c); err != nil {
			t.Error(err)
		}
	}()
	add(t, held, a)
	commit(held)
	<-blocked
	commit(waits)
	got := sink.want(t, 10)
	var ofC []string
	for _, id := range got {
		if strings.HasPrefix(id, c.String()) {
			ofC = append(ofC, id)
		}
	}
	if !slices.Equal(ofC, ids(c, 1, 2, 3)) || len(got) != 10 {
		t.Errorf("in the end: %v", got)
	}
}

// Many writers whose transactions overlap at random, relays that die at random: nothing is
// lost, and an instance's steps come in order.
func TestRelayLosesNothing(t *testing.T) {
	t.Parallel()
	pool := withCounter(t)
	const writers, rounds, instances = 8, 40, 5
	var list []uuid.UUID
	for range instances {
		list = append(list, create(t, pool))
	}
	sink := newRecorder()
	flaky := 0
	sink.before = func(context.Context, []outbox.Event) error {
		if flaky++; flaky%5 == 0 {
			return errors.New("the broker is away")
		}
		return nil
	}
	config := quick
	config.Page = 7
	ctx, cancel := context.WithCancel(t.Context())
	var relays, all sync.WaitGroup
	relays.Go(func() {
		for ctx.Err() == nil {
			// A run is cut wherever it is.
			short, stop := context.WithTimeout(ctx, 50*time.Millisecond)
			if err := outbox.NewRelay(pool, "all", sink, config).Run(short); err != nil {
				t.Error(err)
			}
			stop()
		}
	})
	for w := range writers {
		all.Go(func() {
			for n := range rounds {
				err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
					for k := range 1 + n%3 {
						// In the order of ids, so that they do not deadlock.
						id := list[(k*2+(w+n)%2)%instances]
						if k > 0 && id.String() < list[((k-1)*2+(w+n)%2)%instances].String() {
							continue
						}
						if _, err := tx.Exec(t.Context(), "select pawl.fire_one($1, 'add')", id); err != nil {
							return err
						}
					}
					if n%4 == 3 {
						return errors.New("rolled back")
					}
					return nil
				})
				if err != nil && err.Error() != "rolled back" {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	caughtUp(t, pool, "all")
	cancel()
	relays.Wait()
	steps := value[int](t, pool, "select count(*) from pawl.history")
	seen := map[string]bool{}
	next := map[string]int{}
	for _, id := range sink.list() {
		instance, text, _ := strings.Cut(id, ":")
		var version int
		if _, err := fmt.Sscan(text, &version); err != nil {
			t.Fatal(err)
		}
		// A repeat goes back, and then on from there.
		if !seen[id] && version != next[instance]+1 {
			t.Errorf("%s comes after version %d", id, next[instance])
		}
		next[instance] = max(next[instance], version)
		seen[id] = true
	}
	if len(seen) != steps {
		t.Errorf("%d of %d steps came", len(seen), steps)
	}
}

// A leader that was paused for longer than its lease comes back, and is refused.
func TestDeposedLeaderIsRefused(t *testing.T) {
	t.Parallel()
	pool := withCounter(t)
	config := quick
	config.Lease = 2 * time.Second // Longer than what a busy machine pauses the other.
	paused, resume := make(chan struct{}), make(chan struct{})
	first, second := newRecorder(), newRecorder()
	var once sync.Once
	first.before = func(context.Context, []outbox.Event) error {
		once.Do(func() { close(paused); <-resume })
		return nil
	}
	id := create(t, pool)
	relay(t, pool, "all", first, config)
	<-paused
	relay(t, pool, "all", second, config)
	second.want(t, 1)
	add(t, pool, id)
	second.want(t, 2)
	caughtUp(t, pool, "all")
	const position = "select cursor::text || ' ' || batch_seq from pawl.consumer"
	term, cursor := value[int64](t, pool, "select term from pawl.consumer"), value[string](t, pool, position)
	if term < 2 {
		t.Fatalf("term %d", term)
	}
	if value[bool](t, pool, "select pawl.advance('all', 1, '1:1:', null, 1, '1 hour')") {
		t.Error("an old term moved the cursor")
	}
	close(resume)
	first.want(t, 1) // Its page, again; then it finds out.
	add(t, pool, id)
	second.want(t, 3)
	caughtUp(t, pool, "all")
	if now := value[int64](t, pool, "select term from pawl.consumer"); now != term {
		t.Errorf("term %d after %d", now, term)
	}
	if got := first.list(); len(got) != 1 {
		t.Errorf("the old leader went on: %v", got)
	}
	if value[string](t, pool, position) == cursor {
		t.Error("the cursor has not moved")
	}
}

// Killed between publishing and advancing: the page comes again, none is lost.
func TestKilledBetweenPublishAndAdvance(t *testing.T) {
	t.Parallel()
	pool := withCounter(t)
	id := create(t, pool)
	for range 4 {
		add(t, pool, id)
	}
	// The process that dies is a connection that is cut when the page is out.
	doomed, err := pgxpool.NewWithConfig(t.Context(), func() *pgxpool.Config { c := pool.Config().Copy(); c.MaxConns = 1; return c }())
	if err != nil {
		t.Fatal(err)
	}
	first := newRecorder()
	config := quick
	config.Page, config.Lease = 2, 300*time.Millisecond
	ctx, die := context.WithCancel(t.Context())
	pages := 0
	first.before = func(context.Context, []outbox.Event) error {
		if pages++; pages == 2 {
			exec(t, pool, `select pg_terminate_backend(pid) from pg_stat_activity
				where datname = current_database() and pid <> pg_backend_pid() and query like '%read_events%'`)
			doomed.Reset()
			die()
		}
		return nil
	}
	done := make(chan error, 1)
	go func() { done <- outbox.NewRelay(doomed, "all", first, config).Run(ctx) }()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	doomed.Close()
	second := newRecorder()
	relay(t, pool, "all", second, config)
	caughtUp(t, pool, "all")
	got := map[string]bool{}
	for _, id := range append(first.list(), second.list()...) {
		got[id] = true
	}
	if want := ids(id, 1, 2, 3, 4, 5); !slices.Equal(slices.Sorted(maps.Keys(got)), slices.Sorted(slices.Values(want))) {
		t.Errorf("got %v and %v", first.list(), second.list())
	}
}

// manySteps makes $1 steps, $2 of each instance.
const manySteps = `
	with i as (
		insert into pawl.instance (tenant_id, id, workflow, workflow_version, state, status, version, context, created_at, state_changed_at)
		select 'default', pawl.uuid_v7(now()), 'counter', 1, 'COUNTING', 'active', $2, '{}', now(), now() from generate_series(1, $1::integer / $2)
		returning id
	)
	insert into pawl.history (tenant_id, instance_id, version, workflow, workflow_version, kind, to_state, status, context, actor, at)
	select 'default', i.id, n, 'counter', 1, case when n = 1 then 'created' else 'transition' end, 'COUNTING', 'active',
		jsonb_build_object('text', repeat('x', 200)), 'tester', now()
	from i cross join generate_series(1, $2) n`

// A publisher is a sink that is a function.
type publisher func(ctx context.Context, events []outbox.Event) error

func (p publisher) Publish(ctx context.Context, events []outbox.Event) error { return p(ctx, events) }

func (publisher) Close() error { return nil }

// A million steps that came while nobody relayed are relayed page by page, each in its
// instance's order, though the relay is stopped in the middle. A page costs what a page costs:
// no step is read much more than once, and no more are in memory than a page has.
func TestBacklog(t *testing.T) {
	t.Parallel()
	pool := withCounter(t)
	const page, each = 2000, 10 // Events, steps of an instance.
	steps := 1_000_000
	if testing.Short() {
		steps = 100_000
	}
	const transactions = 10
	insert := func(q interface {
		Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
	},
	) {
		t.Helper()
		if _, err := q.Exec(t.Context(), manySteps, steps/transactions, each); err != nil {
			t.Fatal(err)
		}
	}
	// The consumer begins while the first of them is not committed, and is led again after
	// the last, as when its sink fails.
	open, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	insert(open)
	exec(t, pool, "select pawl.add_consumer('all')")
	exec(t, pool, "select pawl.lead('all', 'x', '0')")
	for range transactions - 1 {
		insert(pool)
	}
	if err := open.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	before := heap()
	var largest, relayed, repeated int
	var memory uint64
	last := make(map[uuid.UUID]int64, steps/each)
	half, all, more := make(chan struct{}), make(chan struct{}), make(chan struct{})
	sink := publisher(func(_ context.Context, events []outbox.Event) error {
		if largest = max(largest, len(events)); relayed%(100*page) < page {
			memory = max(memory, heap())
		}
		for _, e := range events {
			switch version := last[e.Instance.ID]; {
			case e.Step.Version == version+1:
				last[e.Instance.ID]++
				switch relayed++; relayed {
				case steps / 2:
					close(half)
				case steps:
					close(all)
				case steps + 2:
					close(more)
				}
			case e.Step.Version <= version:
				repeated++
			default:
				return fmt.Errorf("%s comes after version %d", e.ID(), version)
			}
		}
		return nil
	})
	config := quick
	config.Page = page
	began := time.Now()
	stop := relay(t, pool, "all", sink, config)
	wait := func(c chan struct{}) {
		t.Helper()
		select {
		case <-c:
		case <-time.After(3 * time.Minute):
			t.Fatalf("after 3 minutes %d events have come", value[int](t, pool, "select relayed::int from pawl.consumer"))
		}
	}
	wait(half)
	stop()
	stop = relay(t, pool, "all", sink, config)
	wait(all)
	t.Logf("%.0f events per second", float64(steps)/time.Since(began).Seconds())
	// What comes then is found without reading it all again.
	add(t, pool, create(t, pool))
	wait(more)
	stop()
	if largest > page || repeated > page {
		t.Errorf("the largest page is of %d, and %d steps came twice", largest, repeated)
	}
	// All of them would be more than half a gigabyte.
	if grown := int64(memory) - int64(before); grown > 200<<20 {
		t.Errorf("it took %d MB", grown>>20)
	}
	exec(t, pool, "select pg_stat_force_next_flush()")
	for _, index := range []string{"history_seq_idx", "history_xid_idx"} {
		if n := value[int](t, pool, "select idx_tup_read from pg_stat_user_indexes where indexrelname = $1", index); n > steps*5/4 {
			t.Errorf("of %s %d entries were read", index, n)
		}
	}
}

// What comes at once, and once, is not looked at again and again by a relay that is idle then.
func TestFloorFollows(t *testing.T) {
	t.Parallel()
	pool := withCounter(t)
	sink := newRecorder()
	relay(t, pool, "all", sink, quick)
	sink.want(t, 0)
	const steps = 60_000
	exec(t, pool, manySteps, steps, 10)
	for end := time.Now().Add(20 * time.Second); ; runtime.Gosched() {
		exec(t, pool, "select pg_current_xact_id()") // A reason to look.
		if value[bool](t, pool, "select relayed >= $1 and floor > $1 - 20000 from pawl.consumer", steps) {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("the consumer is %s", value[string](t, pool, "select c::text from pawl.consumer c"))
		}
	}
}

// A page reads no more than its share of what is no part of the batch.
func TestPagesAreBounded(t *testing.T) {
	t.Parallel()
	pool := withCounter(t)
	exec(t, pool, "alter table pawl.history set (autovacuum_enabled = off)")
	exec(t, pool, "select pawl.add_consumer('all', true)")
	exec(t, pool, "select pawl.lead('all', 'x', '1 hour')")
	open, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for range 10 {
		create(t, open)
	}
	const advance = "select pawl.advance('all', 1, pg_current_snapshot(), null, 0, '1 hour')"
	exec(t, pool, advance)
	exec(t, pool, manySteps, 50_000, 1)
	exec(t, pool, advance) // The floor is far below them, and the batch that follows begins there.
	create(t, pool)
	exec(t, pool, "select pawl.advance('all', 1, pg_current_snapshot(), 0, 0, '1 hour')")
	exec(t, pool, manySteps, 50_000, 1)
	if err := open.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	read := func(want int) {
		t.Helper()
		exec(t, pool, "select pg_stat_reset()")
		conn, err := pool.Acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Release()
		for range 8 {
			// The batch does not see those that were open, but what is read below is of the next.
			if n := value[int](t, conn, "select count(*) from pawl.consumer c cross join pawl.read_steps(c, pg_current_snapshot(), 1000)"); n != want {
				t.Errorf("%d steps, want %d", n, want)
			}
		}
		value[string](t, conn, "select pg_stat_force_next_flush()::text")
		value[int](t, conn, "select 1")
		if n := value[int](t, pool, "select sum(idx_tup_read) from pg_stat_user_indexes where indexrelname like 'history_%'"); n > 8*20_100 {
			t.Errorf("%d entries were read for 8 pages", n)
		}
	}
	exec(t, pool, "update pawl.consumer set batch = null, batch_end = null, floor = 10, batch_seq = 0")
	read(10)
	exec(t, pool, "analyze pawl.history") // Of few transactions, for the planner.
	read(10)
	exec(t, pool, "update pawl.consumer set floor = next_floor")
	read(1000)
}

// A cursor from another server hides all that comes, so nobody may lead with it before the
// owner has said that the database was restored.
func TestRestoredFromADump(t *testing.T) {
	t.Parallel()
	pool := withCounter(t)
	id, late := create(t, pool), create(t, pool)
	exec(t, pool, "select pawl.add_consumer('all', true)")
	exec(t, pool, "select pawl.lead('all', 'x', '0')")
	// As if these had been the transactions of another server, of which one was not relayed.
	exec(t, pool, "update pawl.history set xid = case when instance_id = $1 then '5000000000'::xid8 else '5000000002' end", id)
	exec(t, pool, "update pawl.consumer set cursor = '5000000001:5000000001:', next_floor_xid = '4999999999'")
	lines := make(chan string, 100)
	config := quick
	config.Lease = time.Second
	config.Logger = slog.New(slog.NewTextHandler(lineWriter(lines), nil))
	sink := newRecorder()
	relay(t, pool, "all", sink, config)
	for line := range lines {
		if strings.Contains(line, "restored from a dump") {
			break
		}
	}
	exec(t, pool, "select pawl.restored()")
	add(t, pool, id)
	if got := sink.want(t, 2); !slices.Equal(got, append(ids(late, 1), ids(id, 2)...)) {
		t.Errorf("relayed %v", got)
	}
}

// lineWriter sends each write, and drops it where nobody takes it.
type lineWriter chan<- string

func (w lineWriter) Write(p []byte) (int, error) {
	select {
	case w <- string(p):
	default:
	}
	return len(p), nil
}

func heap() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// A step is found wherever it is to the consumer's floor: its transaction may have begun last
// of all, and drawn its seq before others that the cursor sees.
func TestStepBelowTheFloor(t *testing.T) {
	t.Parallel()
	pool := withCounter(t)
	sink := newRecorder()
	relay(t, pool, "all", sink, quick)
	id, other := create(t, pool), create(t, pool)
	var want []string
	for n := range 20 {
		first, err := pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		second, err := pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		value[string](t, first, "select pg_current_xact_id()::text")
		add(t, second, id)
		add(t, first, other)
		if err := first.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		sink.want(t, 2*n+3) // Relayed with a cursor that second's xid is beyond, if nothing else runs.
		caughtUp(t, pool, "all")
		if err := second.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		want = sink.want(t, 2*n+4)
	}
	if n := len(want); n != 42 {
		t.Errorf("%d events", n)
	}
}

// The cursor costs some writes a second, however much goes through it, and none when idle.
func TestIdleRelayWritesNothing(t *testing.T) {
	t.Parallel()
	pool := withCounter(t)
	sink := newRecorder()
	config := quick
	config.Lease = time.Hour
	relay(t, pool, "all", sink, config)
	create(t, pool)
	sink.want(t, 1)
	caughtUp(t, pool, "all")
	before := value[string](t, pool, "select xmin::text || ctid::text from pawl.consumer")
	for range 50 {
		value[string](t, pool, "select pg_current_xact_id()::text") // What others do is nothing to it.
	}
	caughtUp(t, pool, "all")
	if after := value[string](t, pool, "select xmin::text || ctid::text from pawl.consumer"); after != before {
		t.Error("it wrote")
	}
}

// A page that takes the sink longer than a lease comes in parts.
func TestSlowSinkGetsSmallerPages(t *testing.T) {
	t.Parallel()
	pool := withCounter(t)
	const steps = 300
	exec(t, pool, "select pawl.create_one('counter') from generate_series(1, $1)", steps)
	sink := newRecorder()
	sink.before = func(ctx context.Context, events []outbox.Event) error {
		if len(events) > 100 {
			<-ctx.Done()
			return ctx.Err()
		}
		return nil
	}
	config := quick
	config.Lease = 100 * time.Millisecond
	relay(t, pool, "all", sink, config)
	if got := sink.want(t, steps); len(got) != steps {
		t.Errorf("%d events came, want %d", len(got), steps)
	}
}
