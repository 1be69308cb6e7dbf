package webhook_test

import (
	"fmt"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/subscription"
	"github.com/pawl-fsm/pawl/internal/bounded"
	"github.com/pawl-fsm/pawl/outbox/outboxtest"
)

// A callback is sent once, when the instance is final, signed with its own secret or the one that is derived from the
// deployment's for the tenant.
func TestCallback(t *testing.T) {
	t.Parallel()
	const own, shared = "whsec_b3duIHNlY3JldCBvZiB0aGUgY2FsbGVyLi4u", "whsec_c2hhcmVkIHNlY3JldCBvZiBhbGwgb2YgdXMu"
	pool := outboxtest.NewPool(t)
	service := newServices(pool, fsm.Config{Webhooks: fsm.WebhookPolicy{AllowPrivate: true, Secret: shared}})
	t.Cleanup(service.Close)
	var broken atomic.Bool
	broken.Store(true)
	r := newReceiver(t, func(w http.ResponseWriter, _ hook) {
		if broken.Load() {
			w.WriteHeader(http.StatusInternalServerError)
		}
	})
	make := func(key, secret string) (fsm.Result, error) {
		return service.Create(t.Context(), fsm.CreateCommand{Workflow: "counter", Key: key, CallbackURL: r.url, CallbackSecret: secret})
	}
	var list []uuid.UUID
	for i, secret := range []string{own, ""} {
		for range 2 { // The second is a replay.
			made, err := make(fmt.Sprint(i), secret)
			if err != nil {
				t.Fatal(err)
			}
			list = append(list, made.Instance.ID)
		}
	}
	if list[0] != list[1] || list[2] != list[3] {
		t.Fatalf("the instances are %v", list)
	}
	if _, err := make("0", ""); !isKind(err, fsm.KeyReuse) {
		t.Errorf("another callback under the key: %v", err)
	}
	if n := bounded.Value[int](t, pool, "select count(*) from pawl.callback"); n != 2 {
		t.Fatalf("there are %d callbacks", n)
	}
	config := quickly
	config.Policy.Secret, config.MaxAttempts = shared, 3
	webhooks(t, pool, config)
	derived, err := config.Policy.CallbackSecret(tenant)
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := config.Policy.CallbackSecret("another")
	if err != nil {
		t.Fatal(err)
	}
	ids, secrets := []uuid.UUID{list[0], list[2]}, []string{own, derived}
	for _, id := range ids {
		outboxtest.Add(t, pool, id)
		bounded.Value[uuid.UUID](t, pool, "select (pawl.fire_one($1, 'stop')).id", id)
	}
	bounded.UntilSQL(t, pool, "select count(*) = 2 and bool_and(status = 'dead' and attempts = 3) from pawl.delivery")
	broken.Store(false)
	before := len(r.list())
	if n, err := service.ReplayDeliveries(t.Context(), tenant, subscription.ReplayFilter{}); err != nil || n.Replayed != 2 {
		t.Fatalf("replayed %+v: %v", n, err)
	}
	bounded.UntilSQL(t, pool, allDelivered, 2)
	for i, id := range ids {
		hooks := deliveredOf(r.list()[before:], id)
		if len(hooks) != 1 || hooks[0].what() != fmt.Sprintf("%s:3", id) {
			t.Fatalf("the attempts were for %v", whats(hooks))
		}
		for _, secret := range []string{own, derived, shared, foreign} {
			if got := verifies(t, hooks[0], secret); got != (secret == secrets[i]) {
				t.Errorf("callback %d is signed with %s: %v", i, secret, got)
			}
		}
	}
	if n := bounded.Value[int](t, pool, "select count(*) from pawl.callback"); n != 0 {
		t.Errorf("%d callbacks are left", n)
	}
	if log := deliveries(t, service, subscription.DeliveryFilter{InstanceID: ids[0]}); len(log) != 1 || log[0].SubscriptionID != nil {
		t.Errorf("the log has %+v", log)
	}
}

// Callbacks to a host that keeps failing are postponed, and lose no attempt by it.
func TestCallbacksToAHostThatFails(t *testing.T) {
	t.Parallel()
	pool := outboxtest.NewPool(t)
	service := newServices(pool, fsm.Config{Webhooks: fsm.WebhookPolicy{AllowPrivate: true, Secret: "whsec_c2hhcmVkIHNlY3JldCBvZiBhbGwgb2YgdXMu"}})
	t.Cleanup(service.Close)
	var broken atomic.Bool
	broken.Store(true)
	r := newReceiver(t, func(w http.ResponseWriter, _ hook) {
		if broken.Load() {
			w.WriteHeader(http.StatusInternalServerError)
		}
	})
	const n = 60
	for range n {
		made, err := service.Create(t.Context(), fsm.CreateCommand{Workflow: "counter", CallbackURL: r.url})
		if err != nil {
			t.Fatal(err)
		}
		bounded.Value[uuid.UUID](t, pool, "select (pawl.fire_one($1, 'stop')).id", made.Instance.ID)
	}
	config := quickly
	config.Policy.Secret, config.PerEndpoint, config.Open = "whsec_c2hhcmVkIHNlY3JldCBvZiBhbGwgb2YgdXMu", 2, 500*time.Millisecond
	webhooks(t, pool, config)
	bounded.UntilSQL(t, pool, "select count(*) = $1 and bool_and(next_attempt_at > created_at) from pawl.delivery", n)
	if attempts := len(r.list()); attempts > n/2 {
		t.Errorf("the host was asked %d times", attempts)
	}
	broken.Store(false)
	bounded.UntilSQL(t, pool, allDelivered, n)
	if most := bounded.Value[int](t, pool, "select max(attempts) from pawl.delivery"); most > 6 {
		t.Errorf("a delivery took %d attempts", most)
	}
}
