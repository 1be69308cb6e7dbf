package webhook_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/fsmtest"
	"github.com/pawl-fsm/pawl/fsm/subscription"
	"github.com/pawl-fsm/pawl/internal/bounded"
	"github.com/pawl-fsm/pawl/outbox/outboxtest"
)

const flooder = "a-flooder" // Before the other tenants in every order.

// hangingEndpoints returns a server whose endpoints hang until the test ends.
func hangingEndpoints(t *testing.T) (url string, hang *bounded.Gate) {
	t.Helper()
	hang = bounded.NewGate(t, "the attempts that hang")
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, in *http.Request) {
		_, _ = io.Copy(io.Discard, in.Body)
		hang.Pass()
	}))
	t.Cleanup(server.Close)
	return server.URL, hang
}

func createFor(t *testing.T, pool *pgxpool.Pool, tenant string, n int) []uuid.UUID {
	t.Helper()
	dbtest.Tenants(t, pool, tenant)
	return bounded.Column[uuid.UUID](t, pool, "select (pawl.create_one('counter', p_tenant => $1)).id from generate_series(1, $2)", tenant, n)
}

// A tenant with a hundred endpoints that hang, and a hundred steps for each, takes neither the
// attempts under way nor the memory nor the router from another tenant.
func TestFloodOfOneTenant(t *testing.T) {
	t.Parallel()
	pool, service := withService(t)
	url, hang := hangingEndpoints(t)
	const endpoints, steps = 100, 100
	for n := range endpoints {
		if _, err := service.Subscribe(t.Context(), flooder, fmt.Sprintf("%s/%d", url, n), everything, "", "tester"); err != nil {
			t.Fatal(err)
		}
	}
	good := newReceiver(t, nil)
	subscribe(t, service, good.url, everything)
	createFor(t, pool, flooder, steps)
	first := createFor(t, pool, tenant, 10)
	config := quickly
	// The attempts hang for longer than this test waits. All of the flood's would take ten times more
	// than these attempts, and than the deliveries in memory.
	config.Timeout, config.Concurrency, config.Page = 2*bounded.Limit, 16, 20
	webhooks(t, pool, config)
	good.want(t, len(first))
	hang.Reached()
	// While the flood goes on, each further step arrives.
	for n := range 10 {
		id := createFor(t, pool, tenant, 1)[0]
		outboxtest.Add(t, pool, id)
		good.want(t, len(first)+2*(n+1))
		wantWhats(t, deliveredOf(good.list(), id), outboxtest.IDs(id, 1, 2))
	}
	if n := bounded.Value[int](t, pool, "select count(*) from pawl.delivery where tenant_id = $1 and status <> 'pending'", flooder); n > 0 {
		t.Errorf("%d deliveries of the flood are settled: it was over", n)
	}
}

// While another tenant sends commands, the router rests after each piece of a tenant's steps, for at least as long as the
// database took for the piece.
func TestRouterRests(t *testing.T) {
	t.Parallel()
	pool, service := withService(t)
	url, _ := hangingEndpoints(t)
	const endpoints, steps, piece = 20, 10, 10
	for n := range endpoints {
		if _, err := service.Subscribe(t.Context(), flooder, fmt.Sprintf("%s/%d", url, n), everything, "", "tester"); err != nil {
			t.Fatal(err)
		}
	}
	createFor(t, pool, flooder, steps)
	var mu sync.Mutex
	var began, ended time.Time // The last piece.
	asked, rests := 0, false   // Whether the router is to rest after it.
	watch := func(f func()) func(string, []any) {
		return func(sql string, _ []any) {
			if strings.Contains(sql, "DeliveryRoute") {
				mu.Lock()
				defer mu.Unlock()
				f()
			}
		}
	}
	watched := fsmtest.Spied(t, pool, func(config *pgxpool.Config) {
		config.ConnConfig.Tracer = fsmtest.Spy{
			Started: watch(func() {
				if rested := time.Since(ended); rests && rested < min(ended.Sub(began), fsm.MaxRest) {
					t.Errorf("the router rested for %s after a piece that took %s", rested, ended.Sub(began))
				}
				began, rests = time.Now(), false
			}),
			Ended: watch(func() { ended = time.Now() }),
		}
	})
	config := quickly
	config.Page = piece
	config.Beside = func(tenant string) bool {
		if tenant != flooder {
			t.Errorf("the router asks who is beside %q, want the tenant of the steps", tenant)
		}
		mu.Lock()
		defer mu.Unlock()
		asked, rests = asked+1, true
		return true
	}
	webhooks(t, watched, config)
	bounded.UntilSQL(t, pool, "select count(*) = $1 from pawl.delivery", endpoints*steps)
	mu.Lock()
	defer mu.Unlock()
	if most := endpoints * steps / piece; asked < most/2 {
		t.Errorf("the router asked %d times after %d pieces", asked, most)
	}
}

// The same holds for callbacks: to as many hosts as there are instances, and to one.
func TestFloodOfCallbacks(t *testing.T) {
	t.Parallel()
	for name, path := range map[string]string{"many URLs": "/%d", "one URL": "/%.0d"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool, _ := withService(t)
			url, hang := hangingEndpoints(t)
			good := newReceiver(t, nil)
			end := func(tenant, url string) {
				t.Helper()
				id := createFor(t, pool, tenant, 1)[0]
				bounded.Exec(t, pool, `insert into pawl.callback (tenant_id, instance_id, url, secret, created_at)
					values ($1, $2, $3, 'whsec_b3duIHNlY3JldCBvZiB0aGUgY2FsbGVyLi4u', pawl.now())`, tenant, id, url)
				bounded.Value[uuid.UUID](t, pool, "select (pawl.fire_one($1, 'stop', p_tenant => $2)).id", id, tenant)
			}
			for n := range 200 {
				end(flooder, url+fmt.Sprintf(path, n))
			}
			config := quickly
			config.Timeout, config.Concurrency, config.PerEndpoint = 2*bounded.Limit, 16, 16
			webhooks(t, pool, config)
			hang.Reached()
			for n := range 5 {
				end(tenant, good.url)
				good.want(t, n+1)
			}
		})
	}
}

// Steps that were put off arrive in the order of their instance, also at a subscription whose filter
// was changed meanwhile.
func TestOrderOfUnroutedSteps(t *testing.T) {
	t.Parallel()
	pool, service := withService(t)
	receivers := make([]*receiver, 9)
	for n := range receivers {
		receivers[n] = newReceiver(t, nil)
		subscribe(t, service, receivers[n].url, everything)
	}
	changed := newReceiver(t, nil)
	last := subscribe(t, service, changed.url, everything)
	id := outboxtest.Create(t, pool)
	versions := []int{1}
	for n := range 60 {
		outboxtest.Add(t, pool, id)
		versions = append(versions, n+2)
	}
	outboxtest.Numbered(t, pool)
	bounded.Exec(t, pool, "select pawl.consumer_create('webhooks', true); select pawl.consumer_lead('webhooks', 'x', '0'); select pawl.delivery_route('x', 1, 100, '0', '')")
	if n := bounded.Value[int](t, pool, "select count(*) from pawl.unrouted_step"); n == 0 {
		t.Fatal("no step was put off")
	}
	none := subscription.Change{Filter: &subscription.Filter{TerminalOnly: true}}
	if _, err := service.UpdateSubscription(t.Context(), tenant, last.ID, none); err != nil {
		t.Fatal(err)
	}
	config := quickly
	config.Page = 7
	webhooks(t, pool, config)
	outboxtest.CaughtUp(t, pool, "webhooks")
	for _, r := range append(receivers, changed) {
		wantWhats(t, r.want(t, len(versions)), outboxtest.IDs(id, versions...))
	}
}

// A tenant has more subscriptions than one search looks at, and each gets its deliveries.
func TestMoreSubscriptionsThanASearchLooksAt(t *testing.T) {
	t.Parallel()
	pool, service := withService(t)
	var mu sync.Mutex
	got := map[string]int{}
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, in *http.Request) {
		_, _ = io.Copy(io.Discard, in.Body)
		mu.Lock()
		defer mu.Unlock()
		got[in.URL.Path]++
	}))
	t.Cleanup(server.Close)
	const subscriptions, steps = 230, 2
	for n := range subscriptions {
		subscribe(t, service, fmt.Sprintf("%s/%d", server.URL, n), everything)
	}
	createFor(t, pool, tenant, steps)
	webhooks(t, pool, quickly)
	bounded.UntilSQL(t, pool, allDelivered, subscriptions*steps)
	mu.Lock()
	defer mu.Unlock()
	if len(got) != subscriptions {
		t.Errorf("%d endpoints were called, want %d", len(got), subscriptions)
	}
}
