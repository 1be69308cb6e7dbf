package webhook_test

import (
	"fmt"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/internal/bounded"
	"github.com/pawl-fsm/pawl/outbox/outboxtest"
)

// A leader that has sent a delivery and not settled it is followed by one that sends it again.
func TestCrashBetweenSendAndSettle(t *testing.T) {
	t.Parallel()
	pool, service := withService(t)
	first := make(chan struct{})
	var depose sync.Once
	r := newReceiver(t, func(http.ResponseWriter, hook) {
		depose.Do(func() {
			bounded.Exec(t, pool, "update pawl.consumer set term = term + 1")
			close(first)
		})
	})
	subscribe(t, service, r.url, everything)
	id := outboxtest.Create(t, pool)
	outboxtest.Add(t, pool, id)
	config := quickly
	config.Lease = 300 * time.Millisecond
	webhooks(t, pool, config)
	bounded.Receive(t, "the first attempt", first)
	bounded.UntilSQL(t, pool, allDelivered, 2)
	hooks := r.list()
	// The old leader may send the next step before it settles and is refused.
	before := 1
	if len(hooks) == 4 {
		before = 2
	}
	wantWhats(t, hooks, append(outboxtest.IDs(id, 1, 2)[:before:before], outboxtest.IDs(id, 1, 2)...))
	for n, h := range hooks[:before] {
		if again := hooks[before+n]; h.id() != again.id() {
			t.Errorf("the ids are %s and %s", h.id(), again.id())
		}
	}
	if n := bounded.Value[int](t, pool, "select max(attempts) from pawl.delivery"); n != 1 {
		t.Errorf("%d attempts were noted", n)
	}
}

// One of several senders leads, and each delivery is sent once. A leader that stops is succeeded.
func TestSeveralWorkers(t *testing.T) {
	t.Parallel()
	pool, service := withService(t)
	r := newReceiver(t, nil)
	subscribe(t, service, r.url, everything)
	config := quickly
	config.Lease = 300 * time.Millisecond
	var stops []func()
	for range 3 {
		stops = append(stops, webhooks(t, pool, config))
	}
	const instances, steps = 20, 5
	list := make([]uuid.UUID, instances)
	for i := range list {
		list[i] = outboxtest.Create(t, pool)
	}
	for i := range steps {
		for _, id := range list {
			outboxtest.Add(t, pool, id)
		}
		if i < 2 {
			stops[i]()
		}
	}
	bounded.UntilSQL(t, pool, allDelivered, instances*(steps+1))
	if n := len(r.list()); n != instances*(steps+1) {
		t.Errorf("%d attempts for %d deliveries", n, instances*(steps+1))
	}
	for _, id := range list {
		wantWhats(t, deliveredOf(r.list(), id), outboxtest.IDs(id, 1, 2, 3, 4, 5, 6))
	}
}

// A transaction that stays open delays no other. Its steps are delivered when it is committed, and
// never if it is rolled back.
func TestHeldTransactionIsDelivered(t *testing.T) {
	t.Parallel()
	pool, service := withService(t)
	r := newReceiver(t, nil)
	held, undone := outboxtest.Create(t, pool), outboxtest.Create(t, pool)
	begin := func(id uuid.UUID) func(commit bool) {
		tx, err := pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		outboxtest.Add(t, tx, id)
		return func(commit bool) {
			end := tx.Rollback
			if commit {
				end = tx.Commit
			}
			if err := end(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	// The transaction begins before the subscription is made, and is committed after it.
	end, undo := begin(held), begin(undone)
	subscribe(t, service, r.url, everything)
	webhooks(t, pool, quickly)
	other := outboxtest.Create(t, pool)
	r.want(t, 1)
	outboxtest.Add(t, pool, other)
	r.want(t, 2)
	undo(false)
	end(true)
	wantWhats(t, r.want(t, 3), append(outboxtest.IDs(other, 1, 2), outboxtest.IDs(held, 2)...))
	bounded.UntilSQL(t, pool, allDelivered, 3)
}

// A page of steps to route, or of due deliveries, that takes longer than a statement may (for its
// many subscriptions, or its large documents) comes in smaller parts.
func TestPagesThatTakeTooLong(t *testing.T) {
	t.Parallel()
	pool, service := withService(t)
	for _, name := range []string{"delivery_route", "delivery_due"} {
		bounded.Exec(t, pool, fmt.Sprintf("alter function pawl.%s rename to %[1]s_really", name))
	}
	bounded.Exec(t, pool, outboxtest.AtMost8+`
		create function pawl.delivery_route(
			p_leader text, p_term bigint, p_limit integer, p_lease interval, p_turn text,
			out leads boolean, out steps integer, out deliveries integer, out more boolean, out wanted boolean, out turn text
		) language plpgsql as $$ begin
			perform pawl.at_most(p_limit);
			select * into leads, steps, deliveries, more, wanted, turn from pawl.delivery_route_really(p_leader, p_term, p_limit, p_lease, p_turn);
		end $$;
		create function pawl.delivery_due(
			p_tenants text[], p_subscriptions uuid[], p_limits integer[], p_flying uuid[]
		) returns setof pawl.delivery language plpgsql as $$ begin
			perform pawl.at_most((select sum(n) from unnest(p_limits) n)::integer);
			return query select * from pawl.delivery_due_really(p_tenants, p_subscriptions, p_limits, p_flying);
		end $$`)
	const n = 40
	r := newReceiver(t, nil)
	subscribe(t, service, r.url, everything)
	bounded.Exec(t, pool, "select pawl.create_one('counter') from generate_series(1, $1)", n)
	config := quickly
	config.Page, config.Concurrency = 16, 4
	webhooks(t, pool, config)
	r.want(t, n)
}
