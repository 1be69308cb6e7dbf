package webhook_test

import (
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/subscription"
	"github.com/pawl-fsm/pawl/internal/bounded"
	"github.com/pawl-fsm/pawl/outbox/outboxtest"
)

// A delivery that fails holds up the later ones of its instance and no others. They come in order.
func TestOrderThroughFailures(t *testing.T) {
	t.Parallel()
	pool, service := withService(t)
	bad := outboxtest.Create(t, pool)
	var failures atomic.Int32
	r := newReceiver(t, func(w http.ResponseWriter, h hook) {
		if h.event.Subject() == bad.String() && failures.Add(1) <= 4 {
			w.WriteHeader(http.StatusInternalServerError)
			_, _ = io.WriteString(w, "not today\x00\xff")
		}
	})
	subscribed := subscribe(t, service, r.url, everything)
	webhooks(t, pool, quickly)
	var good []uuid.UUID
	for range 5 {
		outboxtest.Add(t, pool, bad)
		good = append(good, outboxtest.Create(t, pool))
	}
	for _, id := range good {
		outboxtest.Add(t, pool, id)
	}
	bounded.UntilSQL(t, pool, allDelivered, 15)
	for _, id := range good {
		wantWhats(t, deliveredOf(r.list(), id), outboxtest.IDs(id, 1, 2))
	}
	attempts := deliveredOf(r.list(), bad)
	wantWhats(t, attempts, outboxtest.IDs(bad, 2, 2, 2, 2, 2, 3, 4, 5, 6))
	webhook, err := standardwebhooks.NewWebhook(subscribed.Secret)
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range attempts[:5] {
		if h.id() != attempts[0].id() || string(h.body) != string(attempts[0].body) {
			t.Errorf("an attempt has the id %s and the body %s, the first %s and %s", h.id(), h.body, attempts[0].id(), attempts[0].body)
		}
		if err := webhook.Verify(h.body, h.header); err != nil {
			t.Error(err)
		}
	}
	if attempts[5].id() == attempts[0].id() {
		t.Error("two deliveries have one id")
	}
	log := deliveries(t, service, subscription.DeliveryFilter{InstanceID: bad})
	if first := log[len(log)-1]; first.Attempts != 5 {
		t.Errorf("it was delivered after %d attempts", first.Attempts)
	}
}

// After failures in a row the circuit opens, and one delivery at a time probes the endpoint.
func TestCircuitOfASubscription(t *testing.T) {
	t.Parallel()
	pool, service := withService(t)
	var broken atomic.Bool
	var under, most atomic.Int32
	broken.Store(true)
	r := newReceiver(t, func(w http.ResponseWriter, _ hook) {
		now := under.Add(1)
		defer under.Add(-1)
		for old := most.Load(); now > old && !most.CompareAndSwap(old, now); old = most.Load() {
		}
		if broken.Load() {
			w.WriteHeader(http.StatusBadGateway)
		}
	})
	subscribed := subscribe(t, service, r.url, everything)
	config := quickly
	config.Backoff, config.Open, config.PerEndpoint = time.Millisecond, 200*time.Millisecond, 4
	webhooks(t, pool, config)
	for range 200 {
		outboxtest.Create(t, pool)
	}
	bounded.UntilSQL(t, pool, "select failures >= 7 and circuit_open_until is not null from pawl.subscription")
	// Five, those that were under way with them, and then one by one.
	if n := len(r.list()); n > 8+3 {
		t.Errorf("it was asked %d times", n)
	}
	got, err := service.GetSubscription(t.Context(), tenant, subscribed.ID)
	if err != nil || got.CircuitOpenUntil == nil || got.Failures < 7 {
		t.Errorf("its circuit is %+v: %v", got, err)
	}
	broken.Store(false)
	bounded.UntilSQL(t, pool, allDelivered, 200)
	bounded.UntilSQL(t, pool, "select failures = 0 and circuit_open_until is null from pawl.subscription")
	if most.Load() > 4 {
		t.Errorf("%d attempts were made at once", most.Load())
	}
	if n := bounded.Value[int](t, pool, "select max(attempts) from pawl.delivery"); n > 8 {
		t.Errorf("a delivery lost %d attempts", n)
	}
}

func TestGone(t *testing.T) {
	t.Parallel()
	pool, service := withService(t)
	var gone atomic.Bool
	gone.Store(true)
	r := newReceiver(t, func(w http.ResponseWriter, _ hook) {
		if gone.Load() {
			w.WriteHeader(http.StatusGone)
		}
	})
	subscribed := subscribe(t, service, r.url, everything)
	webhooks(t, pool, quickly)
	id := outboxtest.Create(t, pool)
	bounded.UntilSQL(t, pool, "select disabled_at is not null from pawl.subscription")
	got, err := service.GetSubscription(t.Context(), tenant, subscribed.ID)
	if err != nil || got.DisabledAt == nil || *got.DisabledReason != "the endpoint answered 410 Gone" {
		t.Errorf("got %+v: %v", got, err)
	}
	if d := deliveries(t, service, subscription.DeliveryFilter{})[0]; d.Status != subscription.DeliveryDead || d.Attempts != 1 {
		t.Errorf("the delivery is %+v", d)
	}
	if _, err := service.TestSubscription(t.Context(), tenant, subscribed.ID); !isKind(err, fsm.DeliveryConflict) {
		t.Errorf("a test of what is disabled: %v", err)
	}
	outboxtest.Add(t, pool, id) // This step is not delivered.
	bounded.UntilSQL(t, pool, "select c.position = h.position and h.position = 2 from pawl.consumer c, pawl.log_head h")
	gone.Store(false)
	enabled := false
	if _, err := service.UpdateSubscription(t.Context(), tenant, subscribed.ID, subscription.Change{Disabled: &enabled}); err != nil {
		t.Fatal(err)
	}
	outboxtest.Add(t, pool, id)
	wantWhats(t, r.want(t, 2), outboxtest.IDs(id, 1, 3))
}

func TestRedirectsAreRefused(t *testing.T) {
	t.Parallel()
	pool, service := withService(t)
	inner := newReceiver(t, nil)
	r := newReceiver(t, func(w http.ResponseWriter, _ hook) {
		w.Header().Set("Location", inner.url)
		w.WriteHeader(http.StatusTemporaryRedirect)
	})
	subscribe(t, service, r.url, everything)
	config := quickly
	config.MaxAttempts = 1
	webhooks(t, pool, config)
	outboxtest.Create(t, pool)
	bounded.UntilSQL(t, pool, "select bool_or(status = 'dead' and last_status = 307 and last_error like '%redirects%') from pawl.delivery")
	if len(inner.list()) > 0 {
		t.Error("the redirect was followed")
	}
}

func TestRetryAfter(t *testing.T) {
	t.Parallel()
	for _, header := range []string{"1", "date"} {
		t.Run(header, func(t *testing.T) {
			t.Parallel()
			pool, service := withService(t)
			var times []time.Time
			r := newReceiver(t, nil)
			r.answer = func(w http.ResponseWriter, _ hook) {
				times = append(times, time.Now()) // PerEndpoint is 1.
				if len(times) == 1 {
					value := header
					if header == "date" {
						value = time.Now().Add(2 * time.Second).UTC().Format(http.TimeFormat)
					}
					w.Header().Set("Retry-After", value)
					w.WriteHeader(http.StatusTooManyRequests)
				}
			}
			subscribe(t, service, r.url, everything)
			config := quickly
			config.Backoff, config.PerEndpoint = time.Millisecond, 1
			webhooks(t, pool, config)
			for range 3 { // All of them wait, since Retry-After is about the endpoint.
				outboxtest.Create(t, pool)
			}
			bounded.UntilSQL(t, pool, allDelivered, 3)
			if waited := times[1].Sub(times[0]); waited < 900*time.Millisecond || waited > time.Minute {
				t.Errorf("it waited %s", waited)
			}
		})
	}
}

func TestPrivateAddressesAreRefused(t *testing.T) {
	t.Parallel()
	pool, service := withService(t)
	r := newReceiver(t, nil)
	port := r.url[strings.LastIndex(r.url, ":"):]
	hosts := []string{"127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0", "169.254.169.254", "168.63.129.16", "10.0.0.1", "[fe80::1]", "[64:ff9b::7f00:1]"}
	for _, host := range hosts {
		// As for a name that leads elsewhere now, the URL was acceptable when it was registered.
		id := subscribe(t, service, "http://receiver.test", everything).ID
		bounded.Exec(t, pool, "update pawl.subscription set url = $1 where id = $2", "http://"+host+port, id)
	}
	config := quickly
	config.Policy.AllowPrivate, config.MaxAttempts = false, 1
	webhooks(t, pool, config)
	outboxtest.Create(t, pool)
	bounded.UntilSQL(t, pool, `select count(*) = $1 and bool_and(status = 'dead' and last_error = 'the host has an address that webhooks must not be sent to')
		from pawl.delivery`, len(hosts))
	if len(r.list()) > 0 {
		t.Error("a private address was asked")
	}
}

func TestUnknownHost(t *testing.T) {
	t.Parallel()
	pool, service := withService(t)
	subscribe(t, service, "http://nowhere.invalid/", everything)
	config := quickly
	config.Timeout = time.Minute // Longer than a look-up takes.
	webhooks(t, pool, config)
	outboxtest.Create(t, pool)
	bounded.UntilSQL(t, pool, "select bool_or(last_error = 'the host''s name does not resolve') from pawl.delivery")
}
