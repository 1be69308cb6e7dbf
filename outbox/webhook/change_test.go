package webhook_test

import (
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/fsm/fsmtest"
	"github.com/pawl-fsm/pawl/fsm/subscription"
	"github.com/pawl-fsm/pawl/internal/bounded"
	"github.com/pawl-fsm/pawl/outbox/outboxtest"
	"github.com/pawl-fsm/pawl/outbox/webhook"
)

// refreshes returns a pool for a sender of webhooks, and a function that waits until the sender has read subscriptions
// again after it was called, and has done what follows from them. The sender reads them in each round that is late
// enough after the last reading; so it has when such a round is followed by another.
func refreshes(t *testing.T, pool *pgxpool.Pool) (watched *pgxpool.Pool, refreshed func()) {
	t.Helper()
	var mu sync.Mutex
	var rounds []time.Time // when each began
	watched = fsmtest.Spied(t, pool, func(config *pgxpool.Config) {
		config.ConnConfig.Tracer = fsmtest.Spy{Started: func(sql string, _ []any) {
			if strings.Contains(sql, "DeliveryRoute") {
				mu.Lock()
				defer mu.Unlock()
				rounds = append(rounds, time.Now())
			}
		}}
	})
	return watched, func() {
		t.Helper()
		late := time.Now().Add(webhook.RefreshEvery)
		bounded.Until(t, "two rounds of the sender", func() (n int) {
			mu.Lock()
			defer mu.Unlock()
			for _, begun := range rounds {
				if begun.After(late) {
					n++
				}
			}
			return n
		}, func(n int) bool { return n >= 2 })
	}
}

// Deliveries that wait in memory behind an attempt follow a change of their subscription.
func TestChangeWhileSending(t *testing.T) {
	t.Parallel()
	type world struct {
		t       *testing.T
		service services
		s       subscription.Subscription
		other   *receiver
		rotated subscription.Subscription
	}
	change := func(c subscription.Change) func(*world) error {
		return func(w *world) error {
			_, err := w.service.UpdateSubscription(w.t.Context(), tenant, w.s.ID, c)
			return err
		}
	}
	for name, test := range map[string]struct {
		change func(*world) error
		// settled holds of the deliveries in the end. attempts is how many the first endpoint got.
		settled  string
		attempts int
	}{
		"deleted": {
			func(w *world) error { return w.service.Unsubscribe(w.t.Context(), tenant, w.s.ID) },
			"select count(*) = 3 and count(*) filter (where status = 'dead' and last_error like '%deleted%') = 2 from pawl.delivery", 1,
		},
		"disabled": {
			change(subscription.Change{Disabled: new(true)}),
			"select count(*) = 3 and count(*) filter (where status = 'pending' and attempts = 0) = 2 from pawl.delivery where next_attempt_at is not null or status <> 'pending'", 1,
		},
		"another URL": {
			func(w *world) error { return change(subscription.Change{URL: &w.other.url})(w) },
			"select count(*) = 3 and bool_and(status = 'delivered') from pawl.delivery", 1,
		},
		"another secret": {
			func(w *world) (err error) {
				w.rotated, err = w.service.RotateSecret(w.t.Context(), tenant, w.s.ID, "")
				return err
			},
			"select count(*) = 3 and bool_and(status = 'delivered') from pawl.delivery", 3,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool, service := withService(t)
			gate := bounded.NewGate(t, "the attempts")
			r := newReceiver(t, func(http.ResponseWriter, hook) { gate.Pass() })
			w := &world{t: t, service: service, s: subscribe(t, service, r.url, everything), other: newReceiver(t, nil)}
			id := outboxtest.Create(t, pool)
			outboxtest.Add(t, pool, id)
			outboxtest.Add(t, pool, id)
			watched, refreshed := refreshes(t, pool)
			webhooks(t, watched, quickly)
			r.want(t, 1)
			// A transaction anywhere in the cluster can hold back the positions of the later two.
			bounded.UntilSQL(t, pool, "select count(*) = 3 from pawl.delivery")
			if err := test.change(w); err != nil {
				t.Fatal(err)
			}
			refreshed()
			gate.Open()
			bounded.UntilSQL(t, pool, test.settled)
			// What comes next is delivered, and nothing more of what came before it.
			probe := newReceiver(t, nil)
			subscribe(t, service, probe.url, everything)
			outboxtest.Create(t, pool)
			probe.want(t, 1)
			hooks := deliveredOf(r.list(), id)
			if len(hooks) != test.attempts {
				t.Errorf("the attempts were for %v", whats(hooks))
			}
			if name == "another URL" {
				wantWhats(t, deliveredOf(w.other.list(), id), outboxtest.IDs(id, 2, 3))
			}
			if name == "another secret" {
				webhook, err := standardwebhooks.NewWebhook(w.rotated.Secret)
				if err != nil {
					t.Fatal(err)
				}
				for _, h := range hooks[1:] {
					if err := webhook.Verify(h.body, h.header); err != nil {
						t.Errorf("by the new secret: %v", err)
					}
				}
			}
		})
	}
}

// A step that was committed before a subscription was changed is routed as the subscription was.
func TestStepsBeforeAChange(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]subscription.Change{
		"disabled": {Disabled: new(true)},
		"narrowed": {Filter: &subscription.Filter{TerminalOnly: true}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool, service := withService(t)
			r := newReceiver(t, nil)
			s := subscribe(t, service, r.url, everything)
			stop := webhooks(t, pool, quickly)
			outboxtest.Create(t, pool)
			r.want(t, 1)
			stop()
			before := outboxtest.Create(t, pool)
			if _, err := service.UpdateSubscription(t.Context(), tenant, s.ID, change); err != nil {
				t.Fatal(err)
			}
			outboxtest.Create(t, pool) // It is not routed.
			if _, err := service.UpdateSubscription(t.Context(), tenant, s.ID, subscription.Change{Disabled: new(false)}); err != nil {
				t.Fatal(err)
			}
			webhooks(t, pool, quickly)
			outboxtest.CaughtUp(t, pool, "webhooks")
			bounded.UntilSQL(t, pool, allDelivered, 2)
			wantWhats(t, r.list()[1:], outboxtest.IDs(before, 1))
		})
	}
}

// A delivery that waits for its next attempt, however long, is abandoned when the subscription is
// deleted, and sent when the subscription is enabled.
func TestChangeWhileWaiting(t *testing.T) {
	t.Parallel()
	waiting := func(t *testing.T) (service services, s subscription.Subscription, well func(), settled func(status string)) {
		pool, service := withService(t)
		var ill atomic.Bool
		ill.Store(true)
		r := newReceiver(t, func(w http.ResponseWriter, _ hook) {
			if ill.Load() {
				w.Header().Set("Retry-After", "3600")
				w.WriteHeader(http.StatusServiceUnavailable)
			}
		})
		s = subscribe(t, service, r.url, everything)
		webhooks(t, pool, quickly)
		id := outboxtest.Create(t, pool)
		outboxtest.Add(t, pool, id)
		bounded.UntilSQL(t, pool, "select count(*) = 2 and bool_or(attempts = 1 and next_attempt_at > now() + interval '50 minutes') from pawl.delivery")
		return service, s, func() { ill.Store(false) }, func(status string) {
			t.Helper()
			bounded.UntilSQL(t, pool, "select count(*) = 2 and bool_and(status = $1) from pawl.delivery", status)
		}
	}
	t.Run("deleted", func(t *testing.T) {
		t.Parallel()
		service, s, _, settled := waiting(t)
		if err := service.Unsubscribe(t.Context(), tenant, s.ID); err != nil {
			t.Fatal(err)
		}
		settled("dead")
	})
	t.Run("enabled", func(t *testing.T) {
		t.Parallel()
		service, s, well, settled := waiting(t)
		well()
		if _, err := service.UpdateSubscription(t.Context(), tenant, s.ID, subscription.Change{Disabled: new(false)}); err != nil {
			t.Fatal(err)
		}
		settled("delivered")
	})
}

// A pending delivery whose subscription was deleted, or whose step was purged, is abandoned.
func TestNothingLeftToSend(t *testing.T) {
	t.Parallel()
	pool, service := withService(t)
	r := newReceiver(t, func(w http.ResponseWriter, _ hook) { w.WriteHeader(http.StatusBadGateway) })
	kept, deleted := subscribe(t, service, r.url, everything), subscribe(t, service, r.url, everything)
	id := outboxtest.Create(t, pool)
	outboxtest.Add(t, pool, id)
	outboxtest.Numbered(t, pool)
	bounded.Exec(t, pool, "select pawl.consumer_create('webhooks', true); select pawl.consumer_lead('webhooks', 'x', '0'); select pawl.delivery_route('x', 1, 100, '0', '')")
	bounded.Exec(t, pool, "delete from pawl.history where version = 1")
	if err := service.Unsubscribe(t.Context(), tenant, deleted.ID); err != nil {
		t.Fatal(err)
	}
	webhooks(t, pool, quickly)
	bounded.UntilSQL(t, pool, "select count(*) = 3 from pawl.delivery where status = 'dead' and attempts = 0")
	bounded.UntilSQL(t, pool, "select attempts > 0 from pawl.delivery where subscription_id = $1 and version = 2", kept.ID)
	if n := bounded.Value[int](t, pool, "select count(*) from pawl.delivery where last_error = 'the subscription was deleted'"); n != 2 {
		t.Errorf("%d were abandoned for the deletion", n)
	}
}

// Deliveries of a disabled tenant wait: those in memory, of subscriptions and of callbacks, and those that are made
// meanwhile. Another tenant's are sent. When the tenant is enabled, all are sent.
func TestDisabledTenant(t *testing.T) {
	t.Parallel()
	pool, service := withService(t)
	watched, refreshed := refreshes(t, pool)
	gate := bounded.NewGate(t, "the attempts")
	r := newReceiver(t, func(http.ResponseWriter, hook) { gate.Pass() })
	subscribe(t, service, r.url, everything)
	disable := func(disabled bool) {
		bounded.Exec(t, pool, "select pawl.tenant_put($1, p_disabled => $2)", tenant, disabled)
	}
	// The later steps of an instance wait in memory behind the first.
	id := outboxtest.Create(t, pool)
	outboxtest.Add(t, pool, id)
	outboxtest.Add(t, pool, id)
	webhooks(t, watched, quickly)
	r.want(t, 1)
	// A step that was made before is committed after.
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	outboxtest.Create(t, tx)
	disable(true)
	refreshed()
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	gate.Open()
	bounded.UntilSQL(t, pool, "select count(*) = 4 and count(*) filter (where status = 'delivered') = 1 from pawl.delivery")
	// Another tenant's deliveries show that the sender has looked for more, and found none of these.
	other := newReceiver(t, nil)
	dbtest.Tenants(t, pool, "other")
	if _, err := service.Subscribe(t.Context(), "other", other.url, everything, "", ""); err != nil {
		t.Fatal(err)
	}
	bounded.Exec(t, pool, "select pawl.create_one('counter', p_tenant => 'other')")
	other.want(t, 1)
	if n := len(r.list()); n != 1 {
		t.Errorf("%d attempts for the disabled tenant, want 1", n)
	}
	disable(false)
	r.want(t, 4)
	bounded.UntilSQL(t, pool, "select count(*) = 5 and bool_and(status = 'delivered') from pawl.delivery")
}

// A tenant's limit of attempts under way holds from the first one on, and is read again.
func TestLimitOfAttempts(t *testing.T) {
	t.Parallel()
	pool, service := withService(t)
	watched, refreshed := refreshes(t, pool)
	gate := bounded.NewGate(t, "the attempts")
	r := newReceiver(t, func(http.ResponseWriter, hook) { gate.Pass() })
	for range 5 {
		subscribe(t, service, r.url, everything)
	}
	limit := func(limits string) { bounded.Exec(t, pool, "select pawl.tenant_put($1, $2::jsonb)", tenant, limits) }
	limit(`{"webhook_attempts": 2}`)
	outboxtest.Create(t, pool)
	webhooks(t, watched, quickly)
	r.want(t, 2)
	refreshed()
	if n := len(r.list()); n != 2 {
		t.Errorf("%d attempts are under way, want 2", n)
	}
	limit(`{"webhook_attempts": 4}`)
	r.want(t, 4)
	refreshed()
	if n := len(r.list()); n != 4 {
		t.Errorf("%d attempts are under way, want 4", n)
	}
	gate.Open()
	r.want(t, 5)
}
