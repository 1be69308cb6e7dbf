package outbox_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
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

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/subscription"
	"github.com/pawl-fsm/pawl/outbox"
)

const tenant = fsm.DefaultTenant

// A hook is an attempt as a receiver sees it.
type hook struct {
	header http.Header
	body   []byte
	event  event.Event
}

// what is "<instance>:<version>", or the type of a test.
func (h hook) what() string {
	if h.event.Type() == subscription.TestDeliveryType {
		return h.event.Type()
	}
	return h.event.ID()
}

func (h hook) id() string { return h.header.Get("webhook-id") }

// A receiver is an endpoint. Each attempt must be a valid CloudEvent.
type receiver struct {
	t   testing.TB
	url string
	// answer, if set, answers; otherwise it is a 204.
	answer func(w http.ResponseWriter, h hook)
	mu     sync.Mutex
	hooks  []hook
	told   chan struct{}
}

func newReceiver(t testing.TB, answer func(w http.ResponseWriter, h hook)) *receiver {
	t.Helper()
	r := &receiver{t: t, answer: answer, told: make(chan struct{}, 1)}
	server := httptest.NewServer(r)
	t.Cleanup(server.Close)
	r.url = server.URL
	return r
}

func (r *receiver) ServeHTTP(w http.ResponseWriter, in *http.Request) {
	body, err := io.ReadAll(in.Body)
	if err != nil {
		return // It was cut off.
	}
	h := hook{header: in.Header, body: body}
	if err := json.Unmarshal(body, &h.event); err != nil {
		r.t.Errorf("not a CloudEvent: %v in %s", err, body)
	} else if err := h.event.Validate(); err != nil {
		r.t.Errorf("not a valid CloudEvent: %v in %s", err, body)
	}
	if got := in.Header.Get("Content-Type"); got != outbox.CloudEventType || in.Method != http.MethodPost {
		r.t.Errorf("%s of %s", in.Method, got)
	}
	r.mu.Lock()
	r.hooks = append(r.hooks, h)
	r.mu.Unlock()
	select {
	case r.told <- struct{}{}:
	default:
	}
	if r.answer == nil {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	r.answer(w, h)
}

func (r *receiver) list() []hook {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.hooks)
}

// want waits until there were so many attempts.
func (r *receiver) want(t testing.TB, n int) []hook {
	t.Helper()
	for end := time.After(20 * time.Second); ; {
		if list := r.list(); len(list) >= n {
			return list
		}
		select {
		case <-r.told:
		case <-end:
			t.Fatalf("%d attempts came, want %d: %v", len(r.list()), n, whats(r.list()))
		}
	}
}

func whats(hooks []hook) (list []string) {
	for _, h := range hooks {
		list = append(list, h.what())
	}
	return list
}

func wantWhats(t testing.TB, hooks []hook, want []string) {
	t.Helper()
	if got := whats(hooks); !slices.Equal(got, want) {
		t.Errorf("it was told of %v, want %v", got, want)
	}
}

var quickly = outbox.WebhookConfig{
	AllowPrivate: true, Poll: 5 * time.Millisecond, Backoff: 20 * time.Millisecond, Rest: 50 * time.Millisecond,
	Timeout: 5 * time.Second,
}

// webhooks runs the worker until the test ends, or stop is called.
func webhooks(t testing.TB, pool *pgxpool.Pool, config outbox.WebhookConfig) (stop func()) {
	t.Helper()
	return running(t, outbox.NewWebhooks(pool, config).Run)
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

// withService is withCounter with the façade, which lets endpoints be here.
func withService(t testing.TB) (*pgxpool.Pool, services) {
	t.Helper()
	pool := withCounter(t)
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

// until polls the database until a condition holds.
func until(t testing.TB, pool *pgxpool.Pool, sql string, args ...any) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !value[bool](t, pool, "select coalesce(("+sql+"), false)", args...); {
		if time.Now().After(end) {
			rows := value[string](t, pool, "select coalesce(json_agg(d), '[]')::text from (select * from pawl.delivery limit 5) d")
			t.Fatalf("never true: %s\n%s", sql, rows)
		}
	}
}

const allDelivered = "select count(*) = $1 and bool_and(status = 'delivered') from pawl.delivery"

func deliveries(t testing.TB, s services, f subscription.DeliveryFilter) []subscription.Delivery {
	t.Helper()
	l, err := s.Deliveries(t.Context(), tenant, f, fsm.Page{Limit: fsm.MaxLimit})
	if err != nil {
		t.Fatal(err)
	}
	return l.Items
}

func TestWebhook(t *testing.T) {
	t.Parallel()
	pool, service := withService(t)
	r := newReceiver(t, nil)
	old := create(t, pool)
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
	add(t, pool, old)
	h := r.want(t, 2)[slices.IndexFunc(r.want(t, 2), func(h hook) bool { return h.what() == ids(id, 1)[0] })]
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
	until(t, pool, allDelivered, 2)
	log := deliveries(t, service, subscription.DeliveryFilter{InstanceID: id})
	if len(log) != 1 || log[0].ID.String() != h.id() || log[0].Type != h.event.Type() || *log[0].SubscriptionID != subscribed.ID ||
		log[0].Attempts != 1 || *log[0].LastStatus != 204 || log[0].DeliveredAt == nil || log[0].NextAttemptAt != nil {
		t.Errorf("the log has %+v", log)
	}
	// What was before the subscription it is not told of.
	wantWhats(t, deliveredOf(r.list(), old), ids(old, 2))
}

// deliveredOf are the attempts of one instance.
func deliveredOf(hooks []hook, id uuid.UUID) (list []hook) {
	for _, h := range hooks {
		if h.event.Subject() == id.String() {
			list = append(list, h)
		}
	}
	return list
}

func TestFilters(t *testing.T) {
	t.Parallel()
	pool, service := withService(t)
	exec(t, pool, "select pawl.register_workflow($1)", strings.Replace(counter, `"counter"`, `"other"`, 1))
	receivers := map[string]*receiver{}
	for name, filter := range map[string]subscription.Filter{
		"all": {}, "workflow": {Workflows: []string{"counter"}}, "event": {Events: []string{"add"}},
		"state": {States: []string{"STOPPED"}}, "final": {TerminalOnly: true},
		"both": {Workflows: []string{"other"}, Events: []string{"stop", "add"}, States: []string{"COUNTING"}},
	} {
		receivers[name] = newReceiver(t, nil)
		subscribe(t, service, receivers[name].url, filter)
	}
	// Another tenant's, which is told of nothing.
	stranger := newReceiver(t, nil)
	if _, err := service.Subscribe(t.Context(), "elsewhere", stranger.url, everything, "", "tester"); err != nil {
		t.Fatal(err)
	}
	id := create(t, pool)
	other := value[uuid.UUID](t, pool, "select (pawl.create_one('other')).id")
	for _, i := range []uuid.UUID{id, other} {
		add(t, pool, i)
		value[uuid.UUID](t, pool, "select (pawl.fire_one($1, 'stop')).id", i)
	}
	webhooks(t, pool, quickly)
	until(t, pool, allDelivered, 6+3+2+2+2+1)
	both := func(versions ...int) []string { return append(ids(id, versions...), ids(other, versions...)...) }
	for name, want := range map[string][]string{
		"all": both(1, 2, 3), "workflow": ids(id, 1, 2, 3), "event": both(2), "state": both(3), "final": both(3), "both": ids(other, 2),
	} {
		got := whats(receivers[name].list())
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("%s was told of %v, want %v", name, got, want)
		}
	}
	if n := len(stranger.list()); n > 0 {
		t.Errorf("another tenant was told of %d steps", n)
	}
}

// A failing instance holds up its own later steps alone, and they come in their order.
func TestOrderThroughFailures(t *testing.T) {
	t.Parallel()
	pool, service := withService(t)
	bad := create(t, pool)
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
		add(t, pool, bad)
		good = append(good, create(t, pool))
	}
	for _, id := range good {
		add(t, pool, id)
	}
	until(t, pool, allDelivered, 15)
	for _, id := range good {
		wantWhats(t, deliveredOf(r.list(), id), ids(id, 1, 2))
	}
	attempts := deliveredOf(r.list(), bad)
	wantWhats(t, attempts, ids(bad, 2, 2, 2, 2, 2, 3, 4, 5, 6))
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
	config.MaxAttempts, config.Backoff, config.Rest = 2, time.Millisecond, time.Millisecond
	webhooks(t, pool, config)
	id := create(t, pool)
	add(t, pool, id)
	until(t, pool, "select count(*) = 2 and bool_and(status = 'dead') from pawl.delivery")
	wantWhats(t, r.list(), ids(id, 1, 1, 2, 2)) // The next comes when the one before it is given up.
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
	until(t, pool, "select status = 'delivered' and attempts = 1 from pawl.delivery where id = $1", dead[1].ID)
	if again := r.list()[len(before)]; again.id() != before[0].id() || string(again.body) != string(before[0].body) {
		t.Errorf("the replay has another id or body: %s", again.body)
	}
	// By filter, in the order of the steps.
	for _, status := range []subscription.DeliveryStatus{subscription.DeliveryDead, subscription.DeliveryDelivered} {
		before = r.list()
		n, err := service.ReplayDeliveries(t.Context(), tenant, subscription.ReplayFilter{SubscriptionID: subscribed.ID, Status: status})
		want := map[subscription.DeliveryStatus]int{subscription.DeliveryDead: 1, subscription.DeliveryDelivered: 2}[status]
		if err != nil || n != want {
			t.Fatalf("replayed %d %s: %v", n, status, err)
		}
		until(t, pool, allDelivered, 2)
		wantWhats(t, r.list()[len(before):], ids(id, 1, 2)[2-want:])
	}
	if n, err := service.ReplayDeliveries(t.Context(), tenant, subscription.ReplayFilter{Before: replayed.CreatedAt.Add(-time.Hour)}); err != nil || n != 0 {
		t.Errorf("replayed %d: %v", n, err)
	}
	if err := service.Unsubscribe(t.Context(), tenant, subscribed.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := service.ReplayDelivery(t.Context(), tenant, dead[0].ID); !isKind(err, fsm.DeliveryConflict) {
		t.Errorf("without its subscription: %v", err)
	}
}

func isKind(err error, kind fsm.Kind) bool { return err != nil && fsm.AsError(err).Kind == kind }

func TestReplayOfPending(t *testing.T) {
	t.Parallel()
	pool, service := withService(t)
	subscribe(t, service, "http://127.0.0.1:1", everything)
	webhooks(t, pool, outbox.WebhookConfig{AllowPrivate: true, Poll: 5 * time.Millisecond, Backoff: time.Hour})
	create(t, pool)
	until(t, pool, "select count(*) = 1 and bool_and(attempts = 1) from pawl.delivery")
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

// An endpoint that hangs, sends without end, resets, or is slow harms nobody else.
func TestBadEndpointsHarmNobody(t *testing.T) {
	t.Parallel()
	pool, service := withService(t)
	good := newReceiver(t, nil)
	hang := make(chan struct{})
	hanging := newReceiver(t, func(http.ResponseWriter, hook) { <-hang })
	flooding := newReceiver(t, func(w http.ResponseWriter, _ hook) {
		for range 160 { // 10 MB
			if _, err := w.Write(make([]byte, 64<<10)); err != nil {
				return
			}
		}
	})
	resetting := newReceiver(t, func(w http.ResponseWriter, _ hook) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err == nil {
			_ = conn.(*net.TCPConn).SetLinger(0)
			_ = conn.Close()
		}
	})
	trickling := newReceiver(t, func(w http.ResponseWriter, _ hook) {
		w.WriteHeader(http.StatusOK)
		_ = http.NewResponseController(w).Flush()
		<-hang
	})
	t.Cleanup(func() { close(hang) })
	garbage, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = garbage.Close() })
	go func() {
		for {
			conn, err := garbage.Accept()
			if err != nil {
				return
			}
			_, _ = bufio.NewReader(conn).ReadString('\n')
			_, _ = io.WriteString(conn, "SSH-2.0-OpenSSH\r\n")
			_ = conn.Close()
		}
	}()
	urls := map[string]string{
		"good": good.url, "hanging": hanging.url, "flooding": flooding.url, "resetting": resetting.url, "trickling": trickling.url,
		"garbage": "http://" + garbage.Addr().String(),
	}
	subscriptions := map[string]subscription.Subscription{}
	for name, url := range urls {
		subscriptions[name] = subscribe(t, service, url, everything)
	}
	config := quickly
	config.Timeout, config.PerEndpoint, config.Concurrency = 3*time.Second, 4, 24
	webhooks(t, pool, config)
	const n = 50
	start := time.Now()
	for range n {
		create(t, pool)
	}
	good.want(t, n)
	if took := time.Since(start); took > 2500*time.Millisecond {
		t.Errorf("with bad neighbours it took %s", took)
	}
	status := func(name, want string) {
		until(t, pool, "select bool_or(status = $2 and attempts > 0) from pawl.delivery where subscription_id = $1", subscriptions[name].ID, want)
	}
	status("flooding", "delivered")
	status("trickling", "delivered") // The status counts.
	for _, name := range []string{"hanging", "resetting", "garbage"} {
		status(name, "pending")
	}
	if len := value[int](t, pool, "select max(octet_length(last_response)) from pawl.delivery"); len > 1024 || len < 1000 {
		t.Errorf("%d bytes of an answer were kept", len)
	}
	words := value[string](t, pool, "select max(last_error) from pawl.delivery where subscription_id = $1", subscriptions["hanging"].ID)
	if words != "no answer within 3s" {
		t.Errorf("the hanging endpoint's error is %q", words)
	}
}

// After failures in a row an endpoint rests, and is probed with one delivery at a time.
func TestEndpointRests(t *testing.T) {
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
	config.Backoff, config.Rest, config.PerEndpoint = time.Millisecond, 200*time.Millisecond, 4
	webhooks(t, pool, config)
	for range 200 {
		create(t, pool)
	}
	until(t, pool, "select failures >= 7 and rests_until is not null from pawl.subscription")
	// Five, with those that were under way, and then one by one.
	if n := len(r.list()); n > 8+3 {
		t.Errorf("it was asked %d times", n)
	}
	got, err := service.GetSubscription(t.Context(), tenant, subscribed.ID)
	if err != nil || got.RestsUntil == nil || got.Failures < 7 {
		t.Errorf("its health is %+v: %v", got, err)
	}
	broken.Store(false)
	until(t, pool, allDelivered, 200)
	until(t, pool, "select failures = 0 and rests_until is null from pawl.subscription")
	if most.Load() > 4 {
		t.Errorf("%d attempts were made at once", most.Load())
	}
	if n := value[int](t, pool, "select max(attempts) from pawl.delivery"); n > 8 {
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
	id := create(t, pool)
	until(t, pool, "select disabled_at is not null from pawl.subscription")
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
	add(t, pool, id) // It is never told of this.
	until(t, pool, "select batch is null and relayed >= 1 from pawl.consumer")
	gone.Store(false)
	enabled := false
	if _, err := service.UpdateSubscription(t.Context(), tenant, subscribed.ID, subscription.Change{Disabled: &enabled}); err != nil {
		t.Fatal(err)
	}
	add(t, pool, id)
	wantWhats(t, r.want(t, 2), ids(id, 1, 3))
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
	create(t, pool)
	until(t, pool, "select bool_or(status = 'dead' and last_status = 307 and last_error like '%redirects%') from pawl.delivery")
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
				times = append(times, time.Now()) // One at a time.
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
			for range 3 { // The others wait as well: it is the endpoint that asks for it.
				create(t, pool)
			}
			until(t, pool, allDelivered, 3)
			if waited := times[1].Sub(times[0]); waited < 900*time.Millisecond || waited > 10*time.Second {
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
		subscribe(t, service, "http://"+host+port, everything)
	}
	config := quickly
	config.AllowPrivate, config.MaxAttempts = false, 1
	webhooks(t, pool, config)
	create(t, pool)
	until(t, pool, `select count(*) = $1 and bool_and(status = 'dead' and last_error = 'the host has an address that webhooks must not be sent to')
		from pawl.delivery`, len(hosts))
	if len(r.list()) > 0 {
		t.Error("it was told all the same")
	}
}

func TestUnknownHost(t *testing.T) {
	t.Parallel()
	pool, service := withService(t)
	subscribe(t, service, "http://nowhere.invalid/", everything)
	config := quickly
	config.Timeout = time.Minute // Longer than a look-up may take.
	webhooks(t, pool, config)
	create(t, pool)
	until(t, pool, "select bool_or(last_error = 'the host''s name does not resolve') from pawl.delivery")
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
	create(t, pool)
	verifies := func(h hook, secret string) bool {
		t.Helper()
		webhook, err := standardwebhooks.NewWebhook(secret)
		if err != nil {
			t.Fatal(err)
		}
		return webhook.Verify(h.body, h.header) == nil
	}
	if h := r.want(t, 1)[0]; !verifies(h, old.Secret) || !verifies(h, rotated.Secret) {
		t.Errorf("the signatures are %s", h.header.Get("webhook-signature"))
	}
	until(t, pool, allDelivered, 1)
	stop()
	dbtest.Advance(t, pool, 24*time.Hour+time.Second)
	webhooks(t, pool, quickly)
	create(t, pool)
	if h := r.want(t, 2)[1]; verifies(h, old.Secret) || !verifies(h, rotated.Secret) {
		t.Errorf("a day later the signatures are %s", h.header.Get("webhook-signature"))
	}
}

func TestTestDelivery(t *testing.T) {
	t.Parallel()
	pool, service := withService(t)
	r := newReceiver(t, nil)
	subscribed := subscribe(t, service, r.url, subscription.Filter{TerminalOnly: true})
	exec(t, pool, "update pawl.subscription set failures = 9, rests_until = pawl.now() + interval '1 hour'")
	d, err := service.TestSubscription(t.Context(), tenant, subscribed.ID)
	if err != nil || d.InstanceID != nil || d.Type != subscription.TestDeliveryType {
		t.Fatalf("got %+v: %v", d, err)
	}
	webhooks(t, pool, quickly)
	if h := r.want(t, 1)[0]; h.id() != d.ID.String() || h.event.Type() != subscription.TestDeliveryType {
		t.Errorf("the test has %v and %s", h.header, h.body)
	}
	until(t, pool, "select failures = 0 from pawl.subscription")
}

// A leader that has sent and not noted it is followed by one that sends the same again.
func TestCrashBetweenSendAndSettle(t *testing.T) {
	t.Parallel()
	pool, service := withService(t)
	first := make(chan struct{})
	var depose sync.Once
	r := newReceiver(t, func(http.ResponseWriter, hook) {
		depose.Do(func() {
			exec(t, pool, "update pawl.consumer set term = term + 1")
			close(first)
		})
	})
	subscribe(t, service, r.url, everything)
	id := create(t, pool)
	add(t, pool, id)
	config := quickly
	config.Lease = 300 * time.Millisecond
	webhooks(t, pool, config)
	<-first
	until(t, pool, allDelivered, 2)
	hooks := r.list()
	// The old leader may send the next step before it finds out.
	before := 1
	if len(hooks) == 4 {
		before = 2
	}
	wantWhats(t, hooks, append(ids(id, 1, 2)[:before:before], ids(id, 1, 2)...))
	for n, h := range hooks[:before] {
		if again := hooks[before+n]; h.id() != again.id() {
			t.Errorf("the ids are %s and %s", h.id(), again.id())
		}
	}
	if n := value[int](t, pool, "select max(attempts) from pawl.delivery"); n != 1 {
		t.Errorf("%d attempts were noted", n)
	}
}

// Of several workers one leads, and each delivery is made once. One that ends hands over.
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
		list[i] = create(t, pool)
	}
	for i := range steps {
		for _, id := range list {
			add(t, pool, id)
		}
		if i < 2 {
			stops[i]()
		}
	}
	until(t, pool, allDelivered, instances*(steps+1))
	if n := len(r.list()); n != instances*(steps+1) {
		t.Errorf("%d attempts for %d deliveries", n, instances*(steps+1))
	}
	for _, id := range list {
		wantWhats(t, deliveredOf(r.list(), id), ids(id, 1, 2, 3, 4, 5, 6))
	}
}

// A transaction that stays open holds up nobody, and is told of when it is committed; one that
// is rolled back never.
func TestHeldTransactionIsDelivered(t *testing.T) {
	t.Parallel()
	pool, service := withService(t)
	r := newReceiver(t, nil)
	held, undone := create(t, pool), create(t, pool)
	begin := func(id uuid.UUID) func(commit bool) {
		tx, err := pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		add(t, tx, id)
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
	// It began before the subscription was made, and is committed after it.
	end, undo := begin(held), begin(undone)
	subscribe(t, service, r.url, everything)
	webhooks(t, pool, quickly)
	other := create(t, pool)
	r.want(t, 1)
	add(t, pool, other)
	r.want(t, 2)
	undo(false)
	end(true)
	wantWhats(t, r.want(t, 3), append(ids(other, 1, 2), ids(held, 2)...))
	until(t, pool, allDelivered, 3)
}

// What is pending when a subscription, or an instance, goes is given up without an attempt.
func TestNothingLeftToTell(t *testing.T) {
	t.Parallel()
	pool, service := withService(t)
	r := newReceiver(t, func(w http.ResponseWriter, _ hook) { w.WriteHeader(http.StatusBadGateway) })
	kept, deleted := subscribe(t, service, r.url, everything), subscribe(t, service, r.url, everything)
	id := create(t, pool)
	add(t, pool, id)
	exec(t, pool, "select pawl.add_consumer('webhooks', true); select pawl.lead('webhooks', 'x', '0'); select pawl.route(1, 100, '0')")
	exec(t, pool, "delete from pawl.history where version = 1")
	if err := service.Unsubscribe(t.Context(), tenant, deleted.ID); err != nil {
		t.Fatal(err)
	}
	webhooks(t, pool, quickly)
	until(t, pool, "select count(*) = 3 from pawl.delivery where status = 'dead' and attempts = 0")
	until(t, pool, "select attempts > 0 from pawl.delivery where subscription_id = $1 and version = 2", kept.ID)
	if n := value[int](t, pool, "select count(*) from pawl.delivery where last_error = 'the subscription was deleted'"); n != 2 {
		t.Errorf("%d were given up for the deletion", n)
	}
}

// A callback is sent once, when the instance is final, signed with its own secret or the
// deployment's.
func TestCallback(t *testing.T) {
	t.Parallel()
	const own, shared = "whsec_b3duIHNlY3JldCBvZiB0aGUgY2FsbGVyLi4u", "whsec_c2hhcmVkIHNlY3JldCBvZiBhbGwgb2YgdXMu"
	pool := withCounter(t)
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
	if n := value[int](t, pool, "select count(*) from pawl.callback"); n != 2 {
		t.Fatalf("there are %d callbacks", n)
	}
	config := quickly
	config.Secret, config.MaxAttempts = shared, 3
	webhooks(t, pool, config)
	ids, secrets := []uuid.UUID{list[0], list[2]}, []string{own, shared}
	for _, id := range ids {
		add(t, pool, id)
		value[uuid.UUID](t, pool, "select (pawl.fire_one($1, 'stop')).id", id)
	}
	until(t, pool, "select count(*) = 2 and bool_and(status = 'dead' and attempts = 3) from pawl.delivery")
	broken.Store(false)
	before := len(r.list())
	if n, err := service.ReplayDeliveries(t.Context(), tenant, subscription.ReplayFilter{}); err != nil || n != 2 {
		t.Fatalf("replayed %d: %v", n, err)
	}
	until(t, pool, allDelivered, 2)
	for i, id := range ids {
		hooks := deliveredOf(r.list()[before:], id)
		if len(hooks) != 1 || hooks[0].what() != fmt.Sprintf("%s:3", id) {
			t.Fatalf("it was told of %v", whats(hooks))
		}
		webhook, err := standardwebhooks.NewWebhook(secrets[i])
		if err != nil {
			t.Fatal(err)
		}
		if err := webhook.Verify(hooks[0].body, hooks[0].header); err != nil {
			t.Error(err)
		}
	}
	if n := value[int](t, pool, "select count(*) from pawl.callback"); n != 0 {
		t.Errorf("%d callbacks are left", n)
	}
	if log := deliveries(t, service, subscription.DeliveryFilter{InstanceID: ids[0]}); len(log) != 1 || log[0].SubscriptionID != nil {
		t.Errorf("the log has %+v", log)
	}
}

// Callbacks to a host that keeps failing are put off, and lose no attempt by it.
func TestCallbacksToAHostThatFails(t *testing.T) {
	t.Parallel()
	pool := withCounter(t)
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
		value[uuid.UUID](t, pool, "select (pawl.fire_one($1, 'stop')).id", made.Instance.ID)
	}
	config := quickly
	config.Secret, config.PerEndpoint, config.Rest = "whsec_c2hhcmVkIHNlY3JldCBvZiBhbGwgb2YgdXMu", 2, 500*time.Millisecond
	webhooks(t, pool, config)
	until(t, pool, "select count(*) = $1 and bool_and(next_attempt_at > created_at) from pawl.delivery", n)
	if attempts := len(r.list()); attempts > n/2 {
		t.Errorf("the host was asked %d times", attempts)
	}
	broken.Store(false)
	until(t, pool, allDelivered, n)
	if most := value[int](t, pool, "select max(attempts) from pawl.delivery"); most > 6 {
		t.Errorf("a delivery took %d attempts", most)
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
	exec(b, pool, fmt.Sprintf("select pawl.create_one('counter') from generate_series(1, %d)", instances))
	steps := max(b.N/instances, 5)
	for range steps - 1 {
		exec(b, pool, "select pawl.fire_one(i.id, 'add') from pawl.instance i")
	}
	total = int64(instances * steps)
	exec(b, pool, "analyze")
	b.ResetTimer()
	webhooks(b, pool, outbox.WebhookConfig{AllowPrivate: true})
	<-done
	b.ReportMetric(float64(total)/b.Elapsed().Seconds(), "deliveries/s")
}
