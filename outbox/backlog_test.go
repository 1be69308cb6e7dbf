package outbox_test

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/internal/bounded"
	"github.com/pawl-fsm/pawl/outbox"
	"github.com/pawl-fsm/pawl/outbox/outboxtest"
)

// manySteps inserts $1 steps, $2 for each instance.
const manySteps = `
	with i as (
		insert into pawl.instance (tenant_id, id, workflow, workflow_version, state, status, version, context, created_at, state_changed_at)
		select 'default', pawl_private.uuid_v7(now()), 'counter', 1, 'COUNTING', 'active', $2, '{}', now(), now() from generate_series(1, $1::integer / $2)
		returning id
	)
	insert into pawl.history (tenant_id, instance_id, version, workflow, workflow_version, kind, to_state, status, context, actor, at)
	select 'default', i.id, n, 'counter', 1, case when n = 1 then 'created' else 'transition' end, 'COUNTING', 'active',
		jsonb_build_object('text', repeat('x', 200)), 'tester', now()
	from i cross join generate_series(1, $2) n`

// A publisher is a sink that is a function.
type publisher func(ctx context.Context, messages []outbox.Message) error

func (p publisher) Publish(ctx context.Context, messages []outbox.Message) error {
	return p(ctx, messages)
}

func (publisher) Close() error { return nil }

// A backlog of a million steps is relayed page by page, in order within each instance, though the
// relay is stopped in the middle. A page costs no more for the backlog: no step is read much more
// than once, and no more steps are in memory than a page has. This is one test, since making the
// backlog takes longer than all that is looked at.
func TestBacklog(t *testing.T) {
	t.Parallel()
	pool := outboxtest.NewPool(t)
	const page, each = 2000, 10 // Messages of a page, steps of an instance.
	steps := 1_000_000
	if testing.Short() {
		steps = 100_000
	}
	const transactions = 10
	insert := func(q queries.DBTX) {
		t.Helper()
		bounded.Exec(t, q, manySteps, steps/transactions, each)
	}
	// The consumer begins while the first transaction is not committed. It is led again after the
	// last one, as after a failure of its sink.
	open, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	insert(open)
	bounded.Exec(t, pool, "select pawl.consumer_create('all')")
	bounded.Exec(t, pool, "select pawl.consumer_lead('all', 'x', '0')")
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
	sink := publisher(func(_ context.Context, messages []outbox.Message) error {
		if largest = max(largest, len(messages)); relayed%(100*page) < page {
			memory = max(memory, heap())
		}
		for _, e := range messages {
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
	config := outboxtest.Quick
	config.Page = page
	began := time.Now()
	stop := outboxtest.Relay(t, pool, "all", sink, config)
	wait := func(what string, c chan struct{}) {
		t.Helper()
		bounded.ReceiveWithin(t, 10*time.Minute, what, c)
	}
	wait("the first half of the backlog", half)
	stop()
	stop = outboxtest.Relay(t, pool, "all", sink, config)
	wait("the whole backlog", all)
	t.Logf("%.0f messages per second", float64(steps)/time.Since(began).Seconds())
	// New steps are found without reading the backlog again.
	outboxtest.Add(t, pool, outboxtest.Create(t, pool))
	wait("the steps after the backlog", more)
	stop()
	if largest > page || repeated > page {
		t.Errorf("the largest page is of %d, and %d steps came twice", largest, repeated)
	}
	// The whole backlog would take more than half a gigabyte.
	if grown := int64(memory) - int64(before); grown > 200<<20 {
		t.Errorf("it took %d MB", grown>>20)
	}
	bounded.Exec(t, pool, "select pg_stat_force_next_flush()")
	if n := bounded.Value[int](t, pool, "select idx_tup_read from pg_stat_user_indexes where indexrelname = 'log_pkey'"); n > steps*4 {
		t.Errorf("of the log %d entries were read", n)
	}
}

func heap() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// Rows of the log whose instances were purged are passed over, page by page.
func TestPagesPassPurgedSteps(t *testing.T) {
	t.Parallel()
	pool := outboxtest.NewPool(t)
	bounded.Exec(t, pool, "select pawl.consumer_create('all', true)")
	bounded.Exec(t, pool, "select pawl.create_one('counter') from generate_series(1, 50)")
	bounded.UntilSQL(t, pool, "select position = 50 from pawl.log_head")
	bounded.Exec(t, pool, "delete from pawl.history h using pawl.log l where l.instance_id = h.instance_id and l.position not in (3, 40)")
	sink := outboxtest.NewRecorder()
	config := outboxtest.Quick
	config.Page = 7
	outboxtest.Relay(t, pool, "all", sink, config)
	outboxtest.CaughtUp(t, pool, "all")
	want := bounded.Column[string](t, pool, "select instance_id || ':1' from pawl.log where position in (3, 40) order by position")
	if got := sink.Want(t, 2); !slices.Equal(got, want) {
		t.Errorf("it published %v, want %v", got, want)
	}
}

// A page that takes the sink longer than the lease is published in parts.
func TestSlowSinkGetsSmallerPages(t *testing.T) {
	t.Parallel()
	pool := outboxtest.NewPool(t)
	const steps = 300
	bounded.Exec(t, pool, "select pawl.create_one('counter') from generate_series(1, $1)", steps)
	sink := outboxtest.NewRecorder()
	sink.Before = func(ctx context.Context, messages []outbox.Message) error {
		if len(messages) > 100 {
			return bounded.Ended(ctx)
		}
		return nil
	}
	config := outboxtest.Quick
	config.Lease = 100 * time.Millisecond
	outboxtest.Relay(t, pool, "all", sink, config)
	// Under load a page that was taken may come again: the lease is as short as the test is.
	bounded.Until(t, "all messages", sink.List, func(list []string) bool {
		slices.Sort(list)
		return len(slices.Compact(list)) == steps
	})
}

// A page that takes longer than a statement may, for its large documents, comes in smaller parts.
func TestPagesThatTakeTooLong(t *testing.T) {
	t.Parallel()
	pool := outboxtest.NewPool(t)
	bounded.Exec(t, pool, "alter function pawl.consumer_read rename to consumer_read_really")
	bounded.Exec(t, pool, outboxtest.AtMost8+`
		create function pawl.consumer_read(p_consumer text, p_until bigint, p_bytes bigint) returns setof pawl.message
		language plpgsql as $$ begin
			perform pawl.at_most(p_until::integer - c.position::integer) from pawl.consumer c where c.name = p_consumer;
			return query select * from pawl.consumer_read_really(p_consumer, p_until, p_bytes);
		end $$`)
	const n = 40
	bounded.Exec(t, pool, "select pawl.create_one('counter') from generate_series(1, $1)", n)
	sink := outboxtest.NewRecorder()
	config := outboxtest.Quick
	config.Page = 16
	outboxtest.Relay(t, pool, "all", sink, config)
	sink.Want(t, n)
}
