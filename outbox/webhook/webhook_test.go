package webhook_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cloudevents/sdk-go/v2/event"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/subscription"
	"github.com/pawl-fsm/pawl/internal/address"
	"github.com/pawl-fsm/pawl/internal/bounded"
	"github.com/pawl-fsm/pawl/outbox/outboxtest"
	"github.com/pawl-fsm/pawl/outbox/webhook"
)

const tenant = fsm.DefaultTenant

var quickly = webhook.Config{
	Policy: address.Policy{AllowPrivate: true}, Poll: 5 * time.Millisecond, Backoff: 20 * time.Millisecond, Open: 50 * time.Millisecond,
	Timeout: time.Minute,
}

// webhooks runs the worker until the test ends, or stop is called.
func webhooks(t testing.TB, pool *pgxpool.Pool, config webhook.Config) (stop func()) {
	t.Helper()
	return bounded.Run(t, "the sender of webhooks", webhook.New(pool, config).Run)
}

// services are what a client of the API uses.
type services struct {
	*fsm.Service
	*subscriptions
}

type subscriptions = subscription.Service

func newServices(pool *pgxpool.Pool, config fsm.Config) services {
	service := fsm.New(pool, config)
	return services{service, subscription.New(service)}
}

// withService returns a database and a service that allows endpoints on this machine.
func withService(t testing.TB) (*pgxpool.Pool, services) {
	t.Helper()
	pool := outboxtest.NewPool(t)
	service := newServices(pool, fsm.Config{Webhooks: fsm.WebhookPolicy{AllowPrivate: true}})
	t.Cleanup(service.Close)
	return pool, service
}

func subscribe(t testing.TB, s services, url string, filter subscription.Filter) subscription.Subscription {
	t.Helper()
	out, err := s.Subscribe(t.Context(), tenant, url, filter, "", "tester")
	if err != nil {
		t.Fatal(err)
	}
	return out
}

var everything subscription.Filter

const allDelivered = "select count(*) = $1 and bool_and(status = 'delivered') from pawl.delivery"

func deliveries(t testing.TB, s services, f subscription.DeliveryFilter) []subscription.Delivery {
	t.Helper()
	l, err := s.Deliveries(t.Context(), tenant, f, fsm.Page{Limit: fsm.MaxLimit})
	if err != nil {
		t.Fatal(err)
	}
	return l.Items
}

func isKind(err error, kind fsm.Kind) bool { return err != nil && fsm.AsError(err).Kind == kind }

func TestWebhook(t *testing.T) {
	t.Parallel()
	pool, service := withService(t)
	r := newReceiver(t, nil)
	old := outboxtest.Create(t, pool)
	subscribed := subscribe(t, service, r.url, everything)
	webhooks(t, pool, quickly)
	created, err := service.Create(t.Context(), fsm.CreateCommand{
		Workflow: "counter", Context: json.RawMessage(`{"price": 12345678901234567890.5}`), CorrelationID: "order-7",
		Origin: fsm.Origin{Traceparent: "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"},
	})
	if err != nil {
		t.Fatal(err)
	}
	id := created.Instance.ID
	outboxtest.Add(t, pool, old)
	h := r.want(t, 2)[slices.IndexFunc(r.want(t, 2), func(h hook) bool { return h.what() == outboxtest.IDs(id, 1)[0] })]
	webhook, err := standardwebhooks.NewWebhook(subscribed.Secret)
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range r.list() {
		if err := webhook.Verify(h.body, h.header); err != nil {
			t.Error(err)
		}
	}
	if err := webhook.Verify(append(h.body, ' '), h.header); err == nil {
		t.Error("another body verifies too")
	}
	for name, want := range map[string]string{
		"X-Correlation-Id": "order-7", "Traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
		"User-Agent": "pawl-webhooks/1",
	} {
		if got := h.header.Get(name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	if !strings.Contains(string(h.body), "12345678901234567890.5") {
		t.Errorf("the number lost digits: %s", h.body)
	}
	bounded.UntilSQL(t, pool, allDelivered, 2)
	log := deliveries(t, service, subscription.DeliveryFilter{InstanceID: id})
	if len(log) != 1 || log[0].ID.String() != h.id() || log[0].Type != h.event.Type() || *log[0].SubscriptionID != subscribed.ID ||
		log[0].Attempts != 1 || *log[0].LastStatus != 204 || log[0].DeliveredAt == nil || log[0].NextAttemptAt != nil {
		t.Errorf("the log has %+v", log)
	}
	// A step from before the subscription is not delivered.
	wantWhats(t, deliveredOf(r.list(), old), outboxtest.IDs(old, 2))
}

func TestFilters(t *testing.T) {
	t.Parallel()
	pool, service := withService(t)
	bounded.Exec(t, pool, "select pawl.register_workflow($1)", strings.Replace(outboxtest.Counter, `"counter"`, `"other"`, 1))
	receivers := map[string]*receiver{}
	for name, filter := range map[string]subscription.Filter{
		"all": {}, "workflow": {Workflows: []string{"counter"}}, "event": {Events: []string{"add"}},
		"state": {States: []string{"STOPPED"}}, "final": {TerminalOnly: true},
		"both": {Workflows: []string{"other"}, Events: []string{"stop", "add"}, States: []string{"COUNTING"}},
	} {
		receivers[name] = newReceiver(t, nil)
		subscribe(t, service, receivers[name].url, filter)
	}
	// A subscription of another tenant, which gets nothing.
	stranger := newReceiver(t, nil)
	if _, err := service.Subscribe(t.Context(), "elsewhere", stranger.url, everything, "", "tester"); err != nil {
		t.Fatal(err)
	}
	id := outboxtest.Create(t, pool)
	other := bounded.Value[uuid.UUID](t, pool, "select (pawl.create_one('other')).id")
	for _, i := range []uuid.UUID{id, other} {
		outboxtest.Add(t, pool, i)
		bounded.Value[uuid.UUID](t, pool, "select (pawl.fire_one($1, 'stop')).id", i)
	}
	webhooks(t, pool, quickly)
	bounded.UntilSQL(t, pool, allDelivered, 6+3+2+2+2+1)
	both := func(versions ...int) []string {
		return append(outboxtest.IDs(id, versions...), outboxtest.IDs(other, versions...)...)
	}
	for name, want := range map[string][]string{
		"all": both(1, 2, 3), "workflow": outboxtest.IDs(id, 1, 2, 3), "event": both(2), "state": both(3), "final": both(3), "both": outboxtest.IDs(other, 2),
	} {
		got := whats(receivers[name].list())
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("%s got %v, want %v", name, got, want)
		}
	}
	if n := len(stranger.list()); n > 0 {
		t.Errorf("another tenant got %d messages", n)
	}
}

// A hundred subscriptions get every step, each in the order of its instance.
func TestHundredSubscribers(t *testing.T) {
	t.Parallel()
	pool, service := withService(t)
	const subscribers, instances, steps = 100, 10, 4
	var mu sync.Mutex
	got := map[string][]string{} // The ids of messages, by endpoint and instance.
	count, done := 0, make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		var e event.Event
		if err := json.Unmarshal(body, &e); err != nil {
			t.Error(err)
		}
		mu.Lock()
		defer mu.Unlock()
		got[r.URL.Path+" "+e.Subject()] = append(got[r.URL.Path+" "+e.Subject()], e.ID())
		if count++; count == subscribers*instances*steps {
			close(done)
		}
	}))
	t.Cleanup(server.Close)
	for n := range subscribers {
		subscribe(t, service, fmt.Sprintf("%s/%d", server.URL, n), subscription.Filter{Workflows: []string{"counter"}})
	}
	var list []uuid.UUID
	for range instances {
		id := outboxtest.Create(t, pool)
		for range steps - 1 {
			outboxtest.Add(t, pool, id)
		}
		list = append(list, id)
	}
	webhooks(t, pool, quickly)
	bounded.Receive(t, "all messages", done)
	bounded.UntilSQL(t, pool, allDelivered, subscribers*instances*steps)
	mu.Lock()
	defer mu.Unlock()
	for n := range subscribers {
		for _, id := range list {
			if list := got[fmt.Sprintf("/%d %s", n, id)]; !slices.Equal(list, outboxtest.IDs(id, 1, 2, 3, 4)) {
				t.Errorf("subscriber %d got %v", n, list)
			}
		}
	}
}

func BenchmarkWebhooks(b *testing.B) {
	pool, service := withService(b)
	const instances = 2000
	var got atomic.Int64
	done := make(chan struct{})
	total := int64(0)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, in *http.Request) {
		_, _ = io.Copy(io.Discard, in.Body)
		w.WriteHeader(http.StatusNoContent)
		if got.Add(1) == total {
			close(done)
		}
	}))
	b.Cleanup(server.Close)
	subscribe(b, service, server.URL, everything)
	bounded.Exec(b, pool, fmt.Sprintf("select pawl.create_one('counter') from generate_series(1, %d)", instances))
	steps := max(b.N/instances, 5)
	for range steps - 1 {
		bounded.Exec(b, pool, "select pawl.fire_one(i.id, 'add') from pawl.instance i")
	}
	total = int64(instances * steps)
	bounded.Exec(b, pool, "analyze")
	b.ResetTimer()
	webhooks(b, pool, webhook.Config{Policy: address.Policy{AllowPrivate: true}})
	bounded.ReceiveWithin(b, 10*time.Minute, "all deliveries", done)
	b.ReportMetric(float64(total)/b.Elapsed().Seconds(), "deliveries/s")
}
