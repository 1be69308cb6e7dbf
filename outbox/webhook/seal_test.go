package webhook_test

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/rotation"
	"github.com/pawl-fsm/pawl/fsm/subscription"
	"github.com/pawl-fsm/pawl/internal/bounded"
	"github.com/pawl-fsm/pawl/internal/seal"
	"github.com/pawl-fsm/pawl/outbox/outboxtest"
	"github.com/pawl-fsm/pawl/outbox/webhook"
)

const (
	keyA = "a:MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="
	keyB = "b:ZmVkY2JhOTg3NjU0MzIxMGZlZGNiYTk4NzY1NDMyMTA="
	own  = "whsec_b3duIHNlY3JldCBvZiB0aGUgY2FsbGVyLi4u"
)

func keysOf(t testing.TB, keys ...string) seal.Keys {
	t.Helper()
	k, err := seal.Parse(strings.Join(keys, ","))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// sealing returns services on one database, one for each list of keys.
func sealing(t testing.TB, lists ...seal.Keys) (pool *pgxpool.Pool, list []services) {
	t.Helper()
	pool = outboxtest.NewPool(t)
	for _, keys := range lists {
		s := newServices(pool, fsm.Config{Webhooks: fsm.WebhookPolicy{AllowPrivate: true}, Keys: keys})
		t.Cleanup(s.Close)
		list = append(list, s)
	}
	return pool, list
}

// with are the quick settings with keys.
func with(keys seal.Keys) webhook.Config {
	config := quickly
	config.Keys = keys
	return config
}

// stored are all secrets in the database, as they are stored.
func stored(t testing.TB, pool *pgxpool.Pool) []string {
	t.Helper()
	return bounded.Column[string](t, pool, `
		select v.secret
		from (
			select s.secret from pawl.subscription s
			union all select s.previous_secret from pawl.subscription s
			union all select b.secret from pawl.callback b
		) v
		where v.secret is not null`)
}

func wantSealed(t testing.TB, pool *pgxpool.Pool, n int, key string) {
	t.Helper()
	list := stored(t, pool)
	if len(list) != n || slices.ContainsFunc(list, func(s string) bool { return !strings.HasPrefix(s, "sealed:v1:"+key+":") }) {
		t.Errorf("stored are %q, want %d that are sealed with %s", list, n, key)
	}
}

// The signature of the Standard Webhooks test vector comes from a secret that was sealed.
func TestSealedSecretMakesTheVector(t *testing.T) {
	t.Parallel()
	keys, place := keysOf(t, keyA), seal.Subscription(tenant, uuid.New())
	secret, err := keys.Open(keys.Seal("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", place), place)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := standardwebhooks.NewWebhook(secret)
	if err != nil {
		t.Fatal(err)
	}
	got, err := signer.Sign("msg_p5jXN8AQM9LWM0D4loKWxJek", time.Unix(1614265330, 0), []byte(`{"test": 2432232314}`))
	if want := "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="; err != nil || got != want {
		t.Errorf("the signature is %s, want %s: %v", got, want, err)
	}
}

// Secrets are sealed before they are stored, and sign as they were given: those of subscriptions, replaced ones, and those of
// callbacks, of a create and of an event that starts an instance.
func TestSealedSecretsSign(t *testing.T) {
	t.Parallel()
	keys := keysOf(t, keyA)
	pool, list := sealing(t, keys)
	service := list[0]
	hooks, callbacks := newReceiver(t, nil), newReceiver(t, nil)
	old := subscribe(t, service, hooks.url, subscription.Filter{TerminalOnly: true})
	rotated, err := service.RotateSecret(t.Context(), tenant, old.ID, "")
	if err != nil || rotated.PreviousSecretUntil == nil {
		t.Fatalf("rotated to %+v: %v", rotated, err)
	}
	made, err := service.Create(t.Context(), fsm.CreateCommand{Workflow: "counter", CallbackURL: callbacks.url, CallbackSecret: own})
	if err != nil {
		t.Fatal(err)
	}
	started, err := service.FireByKey(t.Context(), fsm.FireByKeyCommand{
		Workflow: "counter", BusinessKey: "b", Event: "stop",
		Start: &fsm.Start{Context: json.RawMessage(`{}`), CallbackURL: callbacks.url, CallbackSecret: own},
	})
	if err != nil {
		t.Fatal(err)
	}
	wantSealed(t, pool, 4, "a")
	webhooks(t, pool, with(keysOf(t, keyB, keyA)))
	bounded.Exec(t, pool, "select pawl.fire_one($1, 'stop')", made.Instance.ID)
	for _, h := range hooks.want(t, 2) {
		if !verifies(t, h, old.Secret) || !verifies(t, h, rotated.Secret) || verifies(t, h, own) {
			t.Errorf("the signatures are %s", h.header.Get("webhook-signature"))
		}
	}
	for _, id := range []uuid.UUID{made.Instance.ID, started.Instance.ID} {
		for _, h := range deliveredOf(callbacks.want(t, 2), id) {
			if !verifies(t, h, own) || verifies(t, h, rotated.Secret) {
				t.Errorf("the callback of %s is signed with %s", id, h.header.Get("webhook-signature"))
			}
		}
	}
}

// A repeated request is the same one whichever keys a replica has, since the secret and not its sealed text counts.
func TestRepeatsAcrossKeys(t *testing.T) {
	t.Parallel()
	pool, list := sealing(t, seal.Keys{}, keysOf(t, keyA), keysOf(t, keyB, keyA))
	const url = "https://93.184.215.14/"
	create := func(s services, secret string) (fsm.Result, error) {
		return s.Create(t.Context(), fsm.CreateCommand{Workflow: "counter", Key: "c", CallbackURL: url, CallbackSecret: secret})
	}
	start := func(s services, secret string) (fsm.Result, error) {
		return s.FireByKey(t.Context(), fsm.FireByKeyCommand{
			Workflow: "counter", BusinessKey: "b", Event: "add", Key: "s",
			Start: &fsm.Start{Context: json.RawMessage(`{}`), CallbackURL: url, CallbackSecret: secret},
		})
	}
	for name, request := range map[string]func(services, string) (fsm.Result, error){"create": create, "start": start} {
		first, err := request(list[0], own)
		if err != nil || first.Replayed {
			t.Fatalf("%s: %+v, %v", name, first, err)
		}
		for _, s := range list {
			if again, err := request(s, own); err != nil || !again.Replayed || again.Instance.ID != first.Instance.ID {
				t.Errorf("%s again: %+v, %v", name, again, err)
			}
			if _, err := request(s, "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"); !isKind(err, fsm.KeyReuse) {
				t.Errorf("%s with another secret: %v", name, err)
			}
		}
	}
	if n := len(stored(t, pool)); n != 2 {
		t.Errorf("%d secrets are stored", n)
	}
}

// The subscription of a secret that cannot be opened rests with a finding, and its deliveries lose no attempt. Other
// subscriptions go on. It ends by itself when the secret can be opened again.
func TestSecretThatCannotBeOpened(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		// change spoils the row of the first subscription. The second one is $2.
		change, finding string
	}{
		"another row":    {"update pawl.subscription set secret = (select o.secret from pawl.subscription o where o.id = $2) where id = $1", "belongs to another row"},
		"another tenant": {"update pawl.subscription set secret = (select o.secret from pawl.subscription o where o.tenant_id = 'another' and $2::uuid is not null) where id = $1", "belongs to another row"},
		"another column": {"update pawl.subscription set previous_secret = secret, previous_secret_until = now() + interval '1 hour' where id = $1 and id <> $2", "belongs to another row"},
		"another table":  {"update pawl.subscription set secret = (select b.secret from pawl.callback b) where id = $1 and id <> $2", "belongs to another row"},
		"cut":            {"update pawl.subscription set secret = left(secret, -8) where id = $1 and id <> $2", "damaged"},
		"empty":          {"update pawl.subscription set secret = 'sealed:v1:a:' where id = $1 and id <> $2", "damaged"},
		"another key":    {"update pawl.subscription set secret = replace(secret, ':a:', ':b:') where id = $1 and id <> $2", "the id b"},
		"an unknown key": {"update pawl.subscription set secret = replace(secret, ':a:', ':c:') where id = $1 and id <> $2", "the key c, which is not in PAWL_SECRET_KEY"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			keys := keysOf(t, keyA, keyB)
			pool, list := sealing(t, keys)
			service := list[0]
			spoiled, fine := newReceiver(t, nil), newReceiver(t, nil)
			one, two := subscribe(t, service, spoiled.url, everything), subscribe(t, service, fine.url, everything)
			if _, err := service.Subscribe(t.Context(), "another", fine.url, everything, "", "tester"); err != nil {
				t.Fatal(err)
			}
			if _, err := service.Create(t.Context(), fsm.CreateCommand{Workflow: "counter", CallbackURL: fine.url, CallbackSecret: own}); err != nil {
				t.Fatal(err)
			}
			secret := bounded.Value[string](t, pool, "select secret from pawl.subscription where id = $1", one.ID)
			bounded.Exec(t, pool, test.change, one.ID, two.ID)
			var logged bounded.Lines
			config := with(keys)
			config.Logger = logged.Logger()
			webhooks(t, pool, config)
			id := outboxtest.Create(t, pool)
			outboxtest.Add(t, pool, id)
			found := func() subscription.Subscription {
				s, err := service.GetSubscription(t.Context(), tenant, one.ID)
				if err != nil {
					t.Fatal(err)
				}
				return s
			}
			resting := bounded.Until(t, "a finding", found, func(s subscription.Subscription) bool { return s.Finding != nil })
			if !strings.Contains(*resting.Finding, test.finding) || resting.CircuitOpenUntil == nil || resting.Failures != 0 || resting.DisabledAt != nil {
				t.Errorf("it rests with %+v: %s", resting, *resting.Finding)
			}
			logged.Find(t, one.ID.String())
			bounded.UntilSQL(t, pool, "select count(*) = 3 and bool_and(status = 'delivered') from pawl.delivery where subscription_id = $1", two.ID)
			if n := bounded.Value[int](t, pool, "select coalesce(sum(attempts), 0) from pawl.delivery where subscription_id = $1", one.ID); n != 0 || len(spoiled.list()) != 0 {
				t.Errorf("%d attempts are noted, and %d were made", n, len(spoiled.list()))
			}
			bounded.Exec(t, pool, "update pawl.subscription set secret = $2, previous_secret = null, previous_secret_until = null where id = $1", one.ID, secret)
			for _, h := range spoiled.want(t, 3) {
				if !verifies(t, h, one.Secret) {
					t.Errorf("the signature is %s", h.header.Get("webhook-signature"))
				}
			}
			bounded.UntilSQL(t, pool, "select finding is null and circuit_open_until is null from pawl.subscription where id = $1", one.ID)
			if log := logged.String(); strings.Count(log, "cannot be opened") != 1 || strings.Contains(log, one.Secret) || strings.Contains(log, "sealed:") {
				t.Errorf("the log is %s", log)
			}
		})
	}
}

// A callback whose secret cannot be opened is postponed, shows why, and is sent when the key is there. Replicas may differ
// meanwhile: what matters is which of them leads.
func TestReplicasThatDiffer(t *testing.T) {
	t.Parallel()
	pool, list := sealing(t, keysOf(t, keyB, keyA), keysOf(t, keyA))
	r := newReceiver(t, nil)
	newer, older := subscribe(t, list[0], r.url+"/newer", everything), subscribe(t, list[1], r.url+"/older", everything)
	made, err := list[0].Create(t.Context(), fsm.CreateCommand{Workflow: "counter", CallbackURL: r.url, CallbackSecret: own})
	if err != nil {
		t.Fatal(err)
	}
	bounded.Exec(t, pool, "select pawl.fire_one($1, 'stop')", made.Instance.ID)
	stop := webhooks(t, pool, with(keysOf(t, keyA)))
	bounded.UntilSQL(t, pool, "select count(*) = 1 and bool_and(attempts = 0 and status = 'pending' and last_error like '%the key b, which is not%') from pawl.delivery where callback")
	bounded.UntilSQL(t, pool, "select finding like '%the key b, which is not%' from pawl.subscription where id = $1", newer.ID)
	bounded.UntilSQL(t, pool, "select count(*) = 2 and bool_and(status = 'delivered') from pawl.delivery where subscription_id = $1", older.ID)
	stop()
	webhooks(t, pool, with(keysOf(t, keyB, keyA)))
	bounded.UntilSQL(t, pool, allDelivered, 5)
	bounded.UntilSQL(t, pool, "select bool_and(finding is null) from pawl.subscription")
	var signed int
	for _, h := range r.list() {
		for _, secret := range []string{newer.Secret, older.Secret, own} {
			if verifies(t, h, secret) {
				signed++
			}
		}
	}
	if signed != 5 || bounded.Value[int](t, pool, "select max(attempts) from pawl.delivery") != 1 {
		t.Errorf("%d of %d attempts were signed", signed, len(r.list()))
	}
}

// A secret that cannot be opened can be replaced. Then nothing but the new one signs.
func TestReplacingALostSecret(t *testing.T) {
	t.Parallel()
	pool, list := sealing(t, keysOf(t, keyA), keysOf(t, keyB))
	r := newReceiver(t, nil)
	lost := subscribe(t, list[0], r.url, everything)
	webhooks(t, pool, with(keysOf(t, keyB)))
	outboxtest.Create(t, pool)
	bounded.UntilSQL(t, pool, "select finding is not null from pawl.subscription")
	s, err := list[1].RotateSecret(t.Context(), tenant, lost.ID, "")
	if err != nil || s.PreviousSecretUntil != nil || s.Finding != nil || s.CircuitOpenUntil != nil {
		t.Fatalf("rotated to %+v: %v", s, err)
	}
	if h := r.want(t, 1)[0]; !verifies(t, h, s.Secret) || verifies(t, h, lost.Secret) {
		t.Errorf("the signature is %s", h.header.Get("webhook-signature"))
	}
}

// Secrets of before there were keys sign too, and are sealed by Reseal, which ends a rest.
func TestResealOfPlainSecrets(t *testing.T) {
	t.Parallel()
	keys := keysOf(t, keyA)
	pool, list := sealing(t, seal.Keys{}, keys)
	plain, service := list[0], list[1]
	r := newReceiver(t, nil)
	s := subscribe(t, plain, r.url, everything)
	if _, err := plain.Create(t.Context(), fsm.CreateCommand{Workflow: "counter", CallbackURL: r.url, CallbackSecret: own}); err != nil {
		t.Fatal(err)
	}
	if got := stored(t, pool); !slices.Contains(got, s.Secret) || !slices.Contains(got, own) {
		t.Fatalf("without keys %q are stored", got)
	}
	rotated, err := service.RotateSecret(t.Context(), tenant, s.ID, "")
	if err != nil {
		t.Fatal(err)
	}
	bounded.Exec(t, pool, "update pawl.subscription set finding = 'of before', circuit_open_until = now() + interval '1 hour'")
	for n, want := range []rotation.Resealed{{Sealed: 2}, {Kept: 2}} {
		if got, err := rotation.Reseal(t.Context(), pool, keys); err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("call %d did %+v: %v", n, got, err)
		}
		wantSealed(t, pool, 3, "a")
	}
	if got, err := rotation.Reseal(t.Context(), pool, keysOf(t, keyB, keyA)); err != nil || got.Sealed != 2 {
		t.Errorf("with another key it did %+v: %v", got, err)
	}
	wantSealed(t, pool, 3, "b")
	webhooks(t, pool, with(keysOf(t, keyB)))
	if h := r.want(t, 1)[0]; !verifies(t, h, s.Secret) || !verifies(t, h, rotated.Secret) {
		t.Errorf("the signature is %s", h.header.Get("webhook-signature"))
	}
	// Without the key of before nothing is lost: those rows stay as they are, and are named.
	got, err := rotation.Reseal(t.Context(), pool, keys)
	if err != nil || got.Sealed != 0 || got.UnopenedCount != 2 || len(got.Unopened) != 2 || got.Unopened[0].Row != s.ID.String() {
		t.Errorf("without the key of before it did %+v: %v", got, err)
	}
	wantSealed(t, pool, 3, "b")
}

// cancelAfter ends a context after a number of calls that replace secrets.
type cancelAfter struct {
	cancel context.CancelFunc
	calls  int
}

func (c *cancelAfter) TraceQueryStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	if strings.Contains(data.SQL, "secrets_replace") {
		c.calls--
	}
	return ctx
}

func (c *cancelAfter) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {
	if c.calls == 0 {
		c.cancel()
	}
}

// A Reseal that is ended leaves some rows as they were, all of which can be opened. Another call finishes it.
func TestResealThatIsEnded(t *testing.T) {
	t.Parallel()
	const rows = 1200
	pool, _ := sealing(t)
	bounded.Exec(t, pool, `
		select pawl.subscription_create('t' || n % 3, 'https://example.com', '{}', '{}', '{}', false, 'whsec_' || n, 'tester')
		from generate_series(1, $1::integer) n`, rows)
	ctx, cancel := context.WithCancel(t.Context())
	config := pool.Config()
	config.ConnConfig.Tracer = &cancelAfter{cancel, 1}
	cut, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cut.Close)
	keys := keysOf(t, keyA)
	if done, err := rotation.Reseal(ctx, cut, keys); err == nil || done.Sealed != 500 {
		t.Fatalf("it did %+v: %v", done, err)
	}
	if n := bounded.Value[int](t, pool, "select count(*) from pawl.subscription where secret like 'sealed:%'"); n != 500 {
		t.Errorf("%d rows are sealed", n)
	}
	if done, err := rotation.Reseal(t.Context(), pool, keys); err != nil || done.Sealed != rows-500 || done.Kept != 500 {
		t.Errorf("it went on with %+v: %v", done, err)
	}
	wantSealed(t, pool, rows, "a")
}

// Calls with different keys, replacements through the API, and a transaction that holds a row go on at once. No secret is
// lost, and each row can be opened.
func TestResealBesideOthers(t *testing.T) {
	t.Parallel()
	a, b := keysOf(t, keyA, keyB), keysOf(t, keyB, keyA)
	pool, list := sealing(t, a, b)
	var ids []uuid.UUID
	for range 20 {
		ids = append(ids, subscribe(t, list[0], "https://93.184.215.14/", everything).ID)
	}
	latest := make([]string, len(ids))
	var all sync.WaitGroup
	for _, keys := range []seal.Keys{a, b} {
		all.Go(func() {
			for range 5 {
				if done, err := rotation.Reseal(t.Context(), pool, keys); err != nil || done.UnopenedCount > 0 {
					t.Errorf("it did %+v: %v", done, err)
				}
			}
		})
	}
	for i, id := range ids {
		all.Go(func() {
			for round := range 3 {
				s, err := list[(i+round)%2].RotateSecret(t.Context(), tenant, id, "")
				if fsm.AsError(err) != nil && isKind(err, fsm.Unavailable) {
					continue
				}
				if err != nil {
					t.Error(err)
				}
				latest[i] = s.Secret
			}
		})
	}
	all.Wait() // bounded: each call of the database is
	held, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	bounded.Exec(t, held, "select from pawl.subscription where id = $1 for update", ids[0])
	done, err := rotation.Reseal(t.Context(), pool, keysOf(t, "c:MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZXg=", keyA, keyB))
	if err != nil || done.Sealed != len(ids)-1 || done.Busy != 1 {
		t.Errorf("with a row that is held it did %+v: %v", done, err)
	}
	if err := held.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if done, err = rotation.Reseal(t.Context(), pool, b); err != nil || done.UnopenedCount != len(ids)-1 || done.Busy != 0 {
		t.Errorf("without the key c it did %+v: %v", done, err)
	}
	keys := keysOf(t, "c:MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZXg=", keyA, keyB)
	for i, id := range ids {
		text := bounded.Value[string](t, pool, "select secret from pawl.subscription where id = $1", id)
		if got, err := keys.Open(text, seal.Subscription(tenant, id)); err != nil || got != latest[i] {
			t.Errorf("subscription %d has the secret %s, want %s: %v", i, got, latest[i], err)
		}
		previous := bounded.Value[string](t, pool, "select previous_secret from pawl.subscription where id = $1", id)
		if _, err := keys.Open(previous, seal.Previous(tenant, id)); err != nil {
			t.Error(err)
		}
	}
}
