package outbox_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/pawl-fsm/pawl/internal/bounded"
	"github.com/pawl-fsm/pawl/outbox"
	"github.com/pawl-fsm/pawl/outbox/outboxtest"
)

func TestRelay(t *testing.T) {
	t.Parallel()
	pool := outboxtest.NewPool(t)
	old := outboxtest.Create(t, pool)
	sink, late := outboxtest.NewRecorder(), outboxtest.NewRecorder()
	stop := outboxtest.Relay(t, pool, "all", sink, outboxtest.Quick)
	if got := sink.Want(t, 1); !slices.Equal(got, outboxtest.IDs(old, 1)) {
		t.Errorf("from the start: %v", got)
	}
	outboxtest.Relay(t, pool, "new", late, outbox.RelayConfig{Poll: 5 * time.Millisecond})
	outboxtest.CaughtUp(t, pool, "new")
	outboxtest.Add(t, pool, old)
	if got := late.Want(t, 1); !slices.Equal(got, outboxtest.IDs(old, 2)) {
		t.Errorf("from now on: %v", got)
	}
	sink.Want(t, 2)
	stop()
	// Another process goes on where this one stopped.
	outboxtest.Add(t, pool, old)
	next := outboxtest.NewRecorder()
	outboxtest.Relay(t, pool, "all", next, outboxtest.Quick)
	if got := next.Want(t, 1); !slices.Equal(got, outboxtest.IDs(old, 3)) {
		t.Errorf("afterwards: %v", got)
	}
	// A step that is rolled back is not relayed.
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	outboxtest.Add(t, tx, old)
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	outboxtest.Add(t, pool, old)
	if got := next.Want(t, 2); !slices.Equal(got, outboxtest.IDs(old, 3, 4)) {
		t.Errorf("after a rollback: %v", got)
	}
}

// Large messages are published in parts, in order, and none is left out.
func TestRelayOfLargeMessages(t *testing.T) {
	t.Parallel()
	pool := outboxtest.NewPool(t)
	bounded.Exec(t, pool, `select pawl.create_one('counter', jsonb_build_object('x', 0, 'text', repeat('x', 60000))) from generate_series(1, 150)`)
	sink := outboxtest.NewRecorder()
	sink.Before = func(_ context.Context, messages []outbox.Message) error {
		if len(messages) > 71 {
			t.Errorf("a part has %d messages of 60 kB", len(messages))
		}
		return nil
	}
	outboxtest.Relay(t, pool, "all", sink, outboxtest.Quick)
	want := bounded.Column[string](t, pool, "select instance_id || ':1' from pawl.history order by seq")
	if got := sink.Want(t, 150); !slices.Equal(got, want) {
		t.Errorf("it published %v, want %v", got, want)
	}
}

// A transaction that begins early and commits late has a smaller xid and smaller seqs than steps
// that were relayed meanwhile. Its steps are relayed all the same.
func TestLateCommitterIsNotSkipped(t *testing.T) {
	t.Parallel()
	pool := outboxtest.NewPool(t)
	sink := outboxtest.NewRecorder()
	outboxtest.Relay(t, pool, "all", sink, outboxtest.Quick)
	a, b, c := outboxtest.Create(t, pool), outboxtest.Create(t, pool), outboxtest.Create(t, pool)
	sink.Want(t, 3)

	begin := func() pgx.Tx {
		tx, err := pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = tx.Rollback(bounded.Context(t)) })
		return tx
	}
	commit := func(tx pgx.Tx) {
		if err := tx.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	late, held := begin(), begin()
	outboxtest.Add(t, held, c) // It stays open.
	outboxtest.Add(t, late, a)
	// Other steps are relayed meanwhile, more than once, so that the position moves beyond the open ones.
	for n := range 3 {
		outboxtest.Add(t, pool, b)
		sink.Want(t, 4+n)
	}
	outboxtest.CaughtUp(t, pool, "all")
	commit(late)
	if got := sink.Want(t, 7); got[6] != outboxtest.IDs(a, 2)[0] {
		t.Errorf("the late one came as %v", got)
	}
	low, high := bounded.Value[int64](t, pool, "select seq from pawl.history where instance_id = $1 and version = 2", a),
		bounded.Value[int64](t, pool, "select seq from pawl.history where instance_id = $1 and version = 4", b)
	smaller := bounded.Value[bool](t, pool, `select (select xid from pawl.history where instance_id = $1 and version = 2)
		< (select xid from pawl.history where instance_id = $2 and version = 4)`, a, b)
	if low >= high || !smaller {
		t.Errorf("seqs %d and %d, smaller xid %v: this shows nothing", low, high, smaller)
	}
	// A transaction that waits for the held one has the smaller xid and commits after it.
	waits := begin()
	bounded.Value[string](t, waits, "select pg_current_xact_id()::text")
	blocked := make(chan struct{})
	go func() {
		defer close(blocked)
		if _, err := waits.Exec(t.Context(), "select pawl.fire_one($1, 'add')", c); err != nil {
			t.Error(err)
		}
	}()
	outboxtest.Add(t, held, a)
	commit(held)
	bounded.Receive(t, "the transaction that waits for the held one", blocked)
	commit(waits)
	got := sink.Want(t, 10)
	var ofC []string
	for _, id := range got {
		if strings.HasPrefix(id, c.String()) {
			ofC = append(ofC, id)
		}
	}
	if !slices.Equal(ofC, outboxtest.IDs(c, 1, 2, 3)) || len(got) != 10 {
		t.Errorf("in the end: %v", got)
	}
}

// Transactions of many writers overlap at random, and relays die at random. No step is lost, and
// the steps of an instance come in order.
func TestRelayLosesNothing(t *testing.T) {
	t.Parallel()
	pool := outboxtest.NewPool(t)
	const writers, rounds, instances = 8, 40, 5
	var list []uuid.UUID
	for range instances {
		list = append(list, outboxtest.Create(t, pool))
	}
	sink := outboxtest.NewRecorder()
	flaky := 0
	sink.Before = func(context.Context, []outbox.Message) error {
		if flaky++; flaky%5 == 0 {
			return errors.New("the broker is away")
		}
		return nil
	}
	config := outboxtest.Quick
	config.Page = 7
	ctx, cancel := context.WithCancel(t.Context())
	var relays, all sync.WaitGroup
	relays.Go(func() {
		for ctx.Err() == nil {
			// The relay is stopped wherever it is.
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
	bounded.Wait(t, "the writers", all.Wait)
	outboxtest.CaughtUp(t, pool, "all")
	cancel()
	bounded.Wait(t, "the relays", relays.Wait)
	steps := bounded.Value[int](t, pool, "select count(*) from pawl.history")
	seen := map[string]bool{}
	next := map[string]int{}
	for _, id := range sink.List() {
		instance, text, _ := strings.Cut(id, ":")
		var version int
		if _, err := fmt.Sscan(text, &version); err != nil {
			t.Fatal(err)
		}
		// A repeat may begin with an earlier version, and goes on from there.
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

// A step is found whose transaction got its xid after others that are committed, and its seq before them.
func TestStepsInAnyOrderOfCommit(t *testing.T) {
	t.Parallel()
	pool := outboxtest.NewPool(t)
	sink := outboxtest.NewRecorder()
	outboxtest.Relay(t, pool, "all", sink, outboxtest.Quick)
	id, other := outboxtest.Create(t, pool), outboxtest.Create(t, pool)
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
		bounded.Value[string](t, first, "select pg_current_xact_id()::text")
		outboxtest.Add(t, second, id)
		outboxtest.Add(t, first, other)
		if err := first.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		sink.Want(t, 2*n+3) // The log's snapshot does not see second's xid then, if nothing else runs.
		outboxtest.CaughtUp(t, pool, "all")
		if err := second.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		want = sink.Want(t, 2*n+4)
	}
	if n := len(want); n != 42 {
		t.Errorf("%d messages", n)
	}
}

// An idle relay writes nothing while its lease is fresh.
func TestIdleRelayWritesNothing(t *testing.T) {
	t.Parallel()
	pool := outboxtest.NewPool(t)
	sink := outboxtest.NewRecorder()
	config := outboxtest.Quick
	config.Lease = time.Hour
	outboxtest.Relay(t, pool, "all", sink, config)
	outboxtest.Create(t, pool)
	sink.Want(t, 1)
	outboxtest.CaughtUp(t, pool, "all")
	before := bounded.Value[string](t, pool, "select xmin::text || ctid::text from pawl.consumer")
	for range 50 {
		bounded.Value[string](t, pool, "select pg_current_xact_id()::text") // Transactions that make no step.
	}
	outboxtest.CaughtUp(t, pool, "all")
	if after := bounded.Value[string](t, pool, "select xmin::text || ctid::text from pawl.consumer"); after != before {
		t.Error("it wrote")
	}
}
