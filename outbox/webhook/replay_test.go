package webhook_test

import (
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/subscription"
	"github.com/pawl-fsm/pawl/internal/address"
	"github.com/pawl-fsm/pawl/internal/bounded"
	"github.com/pawl-fsm/pawl/outbox/outboxtest"
	"github.com/pawl-fsm/pawl/outbox/webhook"
)

// A replay is one act in the audit, with the sum: one row, or one of its beginning and one of its end.
func TestReplayIsOneAct(t *testing.T) {
	t.Parallel()
	pool, service := withService(t)
	id := subscribe(t, service, "https://example.com", everything).ID
	insert := func(subscription uuid.UUID, n int) {
		t.Helper()
		bounded.Exec(t, pool, `
			insert into pawl.delivery (tenant_id, id, subscription_id, callback, type, status, attempts, created_at)
			select $1, pawl_private.uuid_v7(now()), $2, false, 'pawl.subscription.test', 'dead', 3, now() from generate_series(1, $3)`, tenant, subscription, n)
	}
	for _, c := range []struct {
		name       string
		dead, gone int
		want       []string
	}{
		{name: "no delivery"},
		{name: "one page", dead: 499, want: []string{`{"status": "dead", "replayed": 499}`}},
		{name: "a full page", dead: 500, want: []string{`{"more": true, "status": "dead", "replayed": 500}`, `{"status": "dead", "replayed": 500}`}},
		{name: "three pages", dead: 1200, want: []string{`{"more": true, "status": "dead", "replayed": 500}`, `{"status": "dead", "replayed": 1200}`}},
		{name: "a first page that is gone", gone: 500, dead: 3, want: []string{`{"status": "dead", "replayed": 3}`}},
		{name: "all gone", gone: 500},
	} {
		bounded.Exec(t, pool, "delete from pawl.delivery")
		last := bounded.Value[int64](t, pool, "select coalesce(max(seq), 0) from pawl.audit")
		insert(uuid.New(), c.gone)
		insert(id, c.dead)
		n, err := service.ReplayDeliveries(t.Context(), tenant, subscription.ReplayFilter{})
		if err != nil || n != (subscription.Replayed{Replayed: c.dead, Gone: c.gone}) {
			t.Errorf("%s: replayed %+v: %v", c.name, n, err)
		}
		if got := bounded.Column[string](t, pool, "select after::text from pawl.audit where action = 'delivery.replay' and seq > $1 order by seq", last); !slices.Equal(got, c.want) {
			t.Errorf("%s: the audit has %q, want %q", c.name, got, c.want)
		}
	}
}

func TestDeadLettersAndReplay(t *testing.T) {
	t.Parallel()
	pool, service := withService(t)
	var broken atomic.Bool
	broken.Store(true)
	r := newReceiver(t, func(w http.ResponseWriter, _ hook) {
		if broken.Load() {
			http.Error(w, strings.Repeat("x", 5000), http.StatusTeapot)
		}
	})
	subscribed := subscribe(t, service, r.url, everything)
	config := quickly
	config.MaxAttempts, config.Backoff, config.Open = 2, time.Millisecond, time.Millisecond
	webhooks(t, pool, config)
	id := outboxtest.Create(t, pool)
	outboxtest.Add(t, pool, id)
	bounded.UntilSQL(t, pool, "select count(*) = 2 and bool_and(status = 'dead') from pawl.delivery")
	wantWhats(t, r.list(), outboxtest.IDs(id, 1, 1, 2, 2)) // The next is sent when the one before it is dead.
	dead := deliveries(t, service, subscription.DeliveryFilter{Status: subscription.DeliveryDead, SubscriptionID: subscribed.ID})
	if len(dead) != 2 || dead[0].Attempts != 2 || *dead[0].LastStatus != http.StatusTeapot || len(*dead[0].LastResponse) != 1024 ||
		!strings.Contains(*dead[0].LastError, "418") {
		t.Fatalf("the dead letters are %+v", dead)
	}
	broken.Store(false)
	before := r.list()
	replayed, err := service.ReplayDelivery(t.Context(), tenant, dead[1].ID)
	if err != nil || replayed.ID != dead[1].ID {
		t.Fatalf("replayed %+v: %v", replayed, err)
	}
	bounded.UntilSQL(t, pool, "select status = 'delivered' and attempts = 1 from pawl.delivery where id = $1", dead[1].ID)
	if again := r.list()[len(before)]; again.id() != before[0].id() || string(again.body) != string(before[0].body) {
		t.Errorf("the replay has another id or body: %s", again.body)
	}
	// Replayed by filter, they are sent in the order of the steps.
	for _, status := range []subscription.DeliveryStatus{subscription.DeliveryDead, subscription.DeliveryDelivered} {
		before = r.list()
		n, err := service.ReplayDeliveries(t.Context(), tenant, subscription.ReplayFilter{SubscriptionID: subscribed.ID, Status: status})
		want := map[subscription.DeliveryStatus]int{subscription.DeliveryDead: 1, subscription.DeliveryDelivered: 2}[status]
		if err != nil || n.Replayed != want || n.Gone != 0 {
			t.Fatalf("replayed %+v %s: %v", n, status, err)
		}
		bounded.UntilSQL(t, pool, allDelivered, 2)
		wantWhats(t, r.list()[len(before):], outboxtest.IDs(id, 1, 2)[2-want:])
	}
	if n, err := service.ReplayDeliveries(t.Context(), tenant, subscription.ReplayFilter{Before: replayed.CreatedAt.Add(-time.Hour)}); err != nil || n != (subscription.Replayed{}) {
		t.Errorf("replayed %+v: %v", n, err)
	}
	if err := service.Unsubscribe(t.Context(), tenant, subscribed.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := service.ReplayDelivery(t.Context(), tenant, dead[0].ID); !isKind(err, fsm.DeliveryConflict) {
		t.Errorf("without its subscription: %v", err)
	}
}

func TestReplayOfPending(t *testing.T) {
	t.Parallel()
	pool, service := withService(t)
	subscribe(t, service, "http://127.0.0.1:1", everything)
	webhooks(t, pool, webhook.Config{Policy: address.Policy{AllowPrivate: true}, Poll: 5 * time.Millisecond, Backoff: time.Hour})
	outboxtest.Create(t, pool)
	bounded.UntilSQL(t, pool, "select count(*) = 1 and bool_and(attempts = 1) from pawl.delivery")
	d := deliveries(t, service, subscription.DeliveryFilter{})[0]
	if d.Status != subscription.DeliveryPending || d.LastStatus != nil || *d.LastError == "" || d.NextAttemptAt == nil {
		t.Errorf("after a refused connection: %+v", d)
	}
	if _, err := service.ReplayDelivery(t.Context(), tenant, d.ID); !isKind(err, fsm.DeliveryConflict) {
		t.Errorf("got %v", err)
	}
	if _, err := service.ReplayDelivery(t.Context(), tenant, uuid.New()); !isKind(err, fsm.NotFound) {
		t.Errorf("got %v", err)
	}
	if _, err := service.ReplayDelivery(t.Context(), "elsewhere", d.ID); !isKind(err, fsm.NotFound) {
		t.Errorf("of another tenant: %v", err)
	}
}

// A replay does not overtake an earlier delivery of its instance that waits for its next attempt.
func TestReplayKeepsTheOrder(t *testing.T) {
	t.Parallel()
	pool, service := withService(t)
	var broken atomic.Bool
	broken.Store(true)
	r := newReceiver(t, func(w http.ResponseWriter, _ hook) {
		if broken.Load() {
			w.WriteHeader(http.StatusInternalServerError)
		}
	})
	s := subscribe(t, service, r.url, everything)
	config := quickly
	config.MaxAttempts, config.Backoff, config.Open = 2, 300*time.Millisecond, time.Millisecond
	webhooks(t, pool, config)
	id := outboxtest.Create(t, pool)
	outboxtest.Add(t, pool, id)
	bounded.True(t, "both to be dead letters", func() bool {
		dbtest.Advance(t, pool, time.Second) // The next attempt is due.
		return bounded.Value[bool](t, pool, "select count(*) = 2 and bool_and(status = 'dead') from pawl.delivery")
	})
	dead := deliveries(t, service, subscription.DeliveryFilter{Status: subscription.DeliveryDead, SubscriptionID: s.ID})
	before := len(r.list())
	replay := func(d subscription.Delivery) {
		t.Helper()
		if _, err := service.ReplayDelivery(t.Context(), tenant, d.ID); err != nil {
			t.Fatal(err)
		}
	}
	replay(dead[1])
	// Its next attempt is not due before the clock is moved.
	bounded.UntilSQL(t, pool, "select attempts = 1 and status = 'pending' from pawl.delivery where version = 1")
	broken.Store(false)
	replay(dead[0])
	dbtest.Advance(t, pool, time.Second)
	bounded.UntilSQL(t, pool, allDelivered, 2)
	wantWhats(t, r.list()[before:], outboxtest.IDs(id, 1, 1, 2))
}

// A replay unmakes nothing that was known of a delivery: neither while it waits, nor when it fails, nor when it
// cannot be sent any more.
func TestReplayKeepsWhatWasKnown(t *testing.T) {
	t.Parallel()
	pool, service := withService(t)
	var broken atomic.Bool
	r := newReceiver(t, func(w http.ResponseWriter, _ hook) {
		if broken.Load() {
			w.WriteHeader(http.StatusTeapot)
		}
	})
	subscribe(t, service, r.url, everything)
	config := quickly
	config.MaxAttempts, config.Backoff, config.Open = 2, time.Millisecond, time.Millisecond
	stop := webhooks(t, pool, config)
	id := outboxtest.Create(t, pool)
	bounded.UntilSQL(t, pool, allDelivered, 1)
	first := deliveries(t, service, subscription.DeliveryFilter{})[0]

	broken.Store(true)
	stop()
	waiting, err := service.ReplayDelivery(t.Context(), tenant, first.ID)
	if err != nil || waiting.Status != subscription.DeliveryPending || waiting.Attempts != 1 || waiting.DeliveredAt == nil || *waiting.LastStatus != http.StatusOK {
		t.Errorf("while it waits: %+v, %v", waiting, err)
	}
	stop = webhooks(t, pool, config)
	bounded.UntilSQL(t, pool, "select bool_and(status = 'dead' and attempts = 2) from pawl.delivery")
	failed := deliveries(t, service, subscription.DeliveryFilter{})[0]
	if failed.DeliveredAt == nil || !failed.DeliveredAt.Equal(*first.DeliveredAt) || *failed.LastStatus != http.StatusTeapot {
		t.Errorf("after a replay that failed: %+v", failed)
	}
	broken.Store(false)
	if _, err := service.ReplayDelivery(t.Context(), tenant, first.ID); err != nil {
		t.Fatal(err)
	}
	bounded.UntilSQL(t, pool, allDelivered, 1)
	again := deliveries(t, service, subscription.DeliveryFilter{})[0]
	if again.Attempts != 1 || !again.DeliveredAt.After(*first.DeliveredAt) {
		t.Errorf("delivered again: %+v", again)
	}

	// Replayed, and then purged with its instance before the attempt.
	stop()
	if _, err := service.ReplayDelivery(t.Context(), tenant, first.ID); err != nil {
		t.Fatal(err)
	}
	bounded.Exec(t, pool, "delete from pawl.history where instance_id = $1", id)
	stop = webhooks(t, pool, config)
	bounded.UntilSQL(t, pool, "select status <> 'pending' from pawl.delivery")
	stop()
	gone := deliveries(t, service, subscription.DeliveryFilter{})[0]
	if gone.Status != subscription.DeliveryDelivered || gone.Attempts != 1 || !gone.DeliveredAt.Equal(*again.DeliveredAt) || *gone.LastStatus != http.StatusOK || gone.LastError == nil {
		t.Errorf("purged while it waited: %+v", gone)
	}
	// Replayed after that.
	if _, err := service.ReplayDelivery(t.Context(), tenant, first.ID); !isKind(err, fsm.DeliveryConflict) {
		t.Errorf("got %v", err)
	}
	n, err := service.ReplayDeliveries(t.Context(), tenant, subscription.ReplayFilter{Status: subscription.DeliveryDelivered})
	if err != nil || n != (subscription.Replayed{Gone: 1}) {
		t.Errorf("replayed %+v, %v", n, err)
	}
	if now := deliveries(t, service, subscription.DeliveryFilter{})[0]; now.Status != gone.Status || !now.DeliveredAt.Equal(*gone.DeliveredAt) {
		t.Errorf("it is %+v", now)
	}
}
