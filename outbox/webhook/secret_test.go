package webhook_test

import (
	"testing"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/fsm/subscription"
	"github.com/pawl-fsm/pawl/internal/bounded"
	"github.com/pawl-fsm/pawl/outbox/outboxtest"
)

// verifies reports whether a secret has signed an attempt.
func verifies(t *testing.T, h hook, secret string) bool {
	t.Helper()
	webhook, err := standardwebhooks.NewWebhook(secret)
	if err != nil {
		t.Fatal(err)
	}
	return webhook.Verify(h.body, h.header) == nil
}

func TestSecretRotation(t *testing.T) {
	t.Parallel()
	pool, service := withService(t)
	r := newReceiver(t, nil)
	old := subscribe(t, service, r.url, everything)
	rotated, err := service.RotateSecret(t.Context(), tenant, old.ID, "")
	if err != nil || rotated.Secret == old.Secret || rotated.PreviousSecretUntil == nil {
		t.Fatalf("rotated to %+v: %v", rotated, err)
	}
	stop := webhooks(t, pool, quickly)
	outboxtest.Create(t, pool)
	if h := r.want(t, 1)[0]; !verifies(t, h, old.Secret) || !verifies(t, h, rotated.Secret) {
		t.Errorf("the signatures are %s", h.header.Get("webhook-signature"))
	}
	bounded.UntilSQL(t, pool, allDelivered, 1)
	stop()
	dbtest.Advance(t, pool, 24*time.Hour+time.Second)
	webhooks(t, pool, quickly)
	outboxtest.Create(t, pool)
	if h := r.want(t, 2)[1]; verifies(t, h, old.Secret) || !verifies(t, h, rotated.Secret) {
		t.Errorf("a day later the signatures are %s", h.header.Get("webhook-signature"))
	}
}

func TestTestDelivery(t *testing.T) {
	t.Parallel()
	pool, service := withService(t)
	r := newReceiver(t, nil)
	subscribed := subscribe(t, service, r.url, subscription.Filter{TerminalOnly: true})
	bounded.Exec(t, pool, "update pawl.subscription set failures = 9, circuit_open_until = pawl.now() + interval '1 hour'")
	d, err := service.TestSubscription(t.Context(), tenant, subscribed.ID)
	if err != nil || d.InstanceID != nil || d.Type != subscription.TestDeliveryType {
		t.Fatalf("got %+v: %v", d, err)
	}
	webhooks(t, pool, quickly)
	if h := r.want(t, 1)[0]; h.id() != d.ID.String() || h.event.Type() != subscription.TestDeliveryType {
		t.Errorf("the test has %v and %s", h.header, h.body)
	}
	bounded.UntilSQL(t, pool, "select failures = 0 from pawl.subscription")
}
