package db_test

import (
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// routeAll routes until nothing is left. No call may make more deliveries than three times its limit.
func routeAll(t *testing.T, pool *pgxpool.Pool, limit int32) (calls int) {
	t.Helper()
	dbtest.Number(t, pool)
	turn := ""
	for more := true; more; calls++ {
		r, err := queries.New(pool).DeliveryRoute(t.Context(), queries.DeliveryRouteParams{Leader: "x", Term: 1, RowLimit: limit, Lease: anHour, Turn: turn})
		if err != nil {
			t.Fatal(err)
		}
		if r.Deliveries > 3*limit {
			t.Fatalf("one call made %d deliveries", r.Deliveries)
		}
		more, turn = r.More, r.Turn
	}
	return calls
}

func subscribeOften(t *testing.T, pool *pgxpool.Pool, tenant string, n int) {
	t.Helper()
	bounded.Column[uuid.UUID](t, pool, `
		select (pawl.subscription_create($1, 'https://example.com', '{}', '{}', '{}', false, 'whsec_', 'x')).id from generate_series(1, $2)`, tenant, n)
}

// A step of a tenant with many subscriptions is routed in pieces: each delivery is made once, an
// instance's in their order, and another tenant does not wait for the end.
func TestUnroutedSteps(t *testing.T) {
	t.Parallel()
	pool, _ := withDoors(t, 0)
	bounded.Exec(t, pool, "select pawl.consumer_create('webhooks', true); select pawl.consumer_lead('webhooks', 'x', '1 hour')")
	dbtest.Tenants(t, pool, "many", "also-many", "one")
	subscribeOften(t, pool, "many", 25)
	subscribeOften(t, pool, "also-many", 25)
	subscribeOften(t, pool, "one", 1)
	step := func(tenant string, n int) uuid.UUID {
		id := bounded.Value[uuid.UUID](t, pool, "select (pawl.create_one('door', p_tenant => $1)).id", tenant)
		for range n {
			bounded.Exec(t, pool, "select pawl.fire_one($1, 'open', p_tenant => $2), pawl.fire_one($1, 'close', p_tenant => $2)", id, tenant)
		}
		return id
	}
	instance := step("many", 4) // 9 steps, 225 deliveries
	step("also-many", 1)        // 3 steps, 75 deliveries
	step("one", 1)              // 3 steps
	const limit = 20
	if r := route(t, pool, 1, limit); r.Steps != 15 || !r.More {
		t.Fatalf("routed %+v", r)
	}
	count := func(tenant string) int {
		return bounded.Value[int](t, pool, "select count(*) from pawl.delivery where tenant_id = $1", tenant)
	}
	if n := count("one"); n != 3 {
		t.Errorf("the tenant with one subscription has %d deliveries, want 3", n)
	}
	if n := bounded.Value[int](t, pool, "select steps from pawl.consumer_status()"); n == 0 {
		t.Error("the status does not show the steps that were put off")
	}
	bounded.Exec(t, pool, "select pawl.fire_one($1, 'open', p_tenant => 'many'), pawl.fire_one($1, 'remove', p_tenant => 'many')", instance)
	route(t, pool, 1, limit)
	removed := func() bool {
		return bounded.Value[bool](t, pool, "select cardinality(pawl.purge_archived('many', array[$1::uuid], pawl.now())) = 1", instance)
	}
	bounded.Exec(t, pool, "update pawl.delivery set status = 'dead', next_attempt_at = null")
	if removed() {
		t.Fatal("an instance with unrouted steps was purged")
	}
	routeAll(t, pool, limit)
	for tenant, want := range map[string]int{"many": 275, "also-many": 75, "one": 3} {
		if n := count(tenant); n != want {
			t.Errorf("the tenant %s has %d deliveries, want %d", tenant, n, want)
		}
	}
	if n := bounded.Value[int](t, pool, `
		select count(*) from pawl.delivery a join pawl.delivery b using (tenant_id, subscription_id, instance_id)
		where a.version < b.version and (a.id > b.id or a.created_at > b.created_at)`); n > 0 {
		t.Errorf("%d pairs of deliveries are not in the order of the steps", n)
	}
	if n := bounded.Value[int](t, pool, "select steps from pawl.consumer_status()"); n != 0 {
		t.Errorf("%d steps are left", n)
	}
	bounded.Exec(t, pool, "update pawl.delivery set status = 'dead', next_attempt_at = null")
	if !removed() {
		t.Error("an instance whose steps are all routed stays")
	}
}

// Tenants with unrouted steps take turns: one with few is done long before one with many.
func TestUnroutedStepsByTurns(t *testing.T) {
	t.Parallel()
	pool, _ := withDoors(t, 0)
	bounded.Exec(t, pool, "select pawl.consumer_create('webhooks', true); select pawl.consumer_lead('webhooks', 'x', '1 hour')")
	dbtest.Tenants(t, pool, "a", "b", "c")
	for _, tenant := range []string{"a", "b", "c"} {
		subscribeOften(t, pool, tenant, 10)
	}
	// With 5 pairs a call, each step takes two turns and more.
	for _, tenant := range []string{"a", "b", "c"} {
		bounded.Exec(t, pool, "select pawl.create_one('door', p_tenant => $1) from generate_series(1, $2)", tenant, map[string]int{"a": 50}[tenant]+1)
	}
	dbtest.Number(t, pool)
	turn := ""
	for range 40 { // All deliveries take more than a hundred calls.
		r, err := queries.New(pool).DeliveryRoute(t.Context(), queries.DeliveryRouteParams{Leader: "x", Term: 1, RowLimit: 5, Lease: anHour, Turn: turn})
		if err != nil {
			t.Fatal(err)
		}
		turn = r.Turn
	}
	if n := bounded.Value[int](t, pool, "select count(*) from pawl.delivery where tenant_id <> 'a'"); n != 20 {
		t.Errorf("after 40 calls the tenants with one step have %d deliveries, want 20", n)
	}
	if left := bounded.Value[int](t, pool, "select count(*) from pawl.unrouted_step where tenant_id = 'a'"); left < 30 {
		t.Errorf("the tenant with many steps has %d left", left)
	}
	routeAll(t, pool, 5)
	if n := bounded.Value[int](t, pool, "select count(*) from pawl.delivery"); n != 530 {
		t.Errorf("there are %d deliveries, want 530", n)
	}
}

// The search for what can be sent looks at a bounded number of lanes, and goes on from there until it
// has looked at all.
func TestLanesArePassedInPieces(t *testing.T) {
	t.Parallel()
	pool, _ := withDoors(t, 0)
	bounded.Exec(t, pool, "select pawl.consumer_create('webhooks', true); select pawl.consumer_lead('webhooks', 'x', '1 hour')")
	dbtest.Tenants(t, pool, "a", "b", "c")
	for tenant, n := range map[string]int{"a": 25, "b": 3, "c": 10} {
		subscribeOften(t, pool, tenant, n)
		bounded.Exec(t, pool, "select pawl.create_one('door', p_tenant => $1)", tenant)
	}
	routeAll(t, pool, 100)
	// search returns how many lanes of each tenant were looked at, and the last subscription of each.
	search := func(p queries.DeliveryLanesParams) (string, map[string]uuid.UUID) {
		t.Helper()
		lanes, err := queries.New(pool).DeliveryLanes(t.Context(), p)
		if err != nil {
			t.Fatal(err)
		}
		text, last := "", map[string]uuid.UUID{}
		for _, l := range lanes {
			if !l.Ready || l.HalfOpen {
				t.Errorf("the lane %+v is not ready", l)
			}
			text, last[l.TenantID] = text+l.TenantID, l.SubscriptionID
		}
		return text, last
	}
	ten := func(tenant string) string { return strings.Repeat(tenant, 10) }
	got, last := search(queries.DeliveryLanesParams{Looks: 100, Each: 10})
	if want := ten("a") + "bbb" + ten("c"); got != want {
		t.Errorf("the first search looks at %s, want %s", got, want)
	}
	if got, _ := search(queries.DeliveryLanesParams{Looks: 11, Each: 10}); got != ten("a")+"bbb" {
		t.Errorf("a search of 11 lanes looks at %s", got)
	}
	if got, _ := search(queries.DeliveryLanesParams{After: "b", Looks: 11, Each: 10}); got != ten("c") {
		t.Errorf("the search that goes on looks at %s", got)
	}
	rest := queries.DeliveryLanesParams{Tenants: []string{"a", "c"}, Places: []uuid.UUID{last["a"], last["c"]}, Rest: true, Looks: 100, Each: 10}
	got, last = search(rest)
	if got != ten("a") {
		t.Errorf("the rest is %s", got)
	}
	rest = queries.DeliveryLanesParams{Tenants: []string{"a"}, Places: []uuid.UUID{last["a"]}, Rest: true, Looks: 100, Each: 10}
	got, last = search(rest)
	if got != "aaaaa" {
		t.Errorf("the rest of the rest is %s", got)
	}
	// A search of all begins anew with a tenant whose subscriptions were all looked at.
	if got, _ := search(queries.DeliveryLanesParams{Tenants: []string{"a"}, Places: []uuid.UUID{last["a"]}, Looks: 5, Each: 10}); got != "aaaaaaaaa" {
		t.Errorf("at its end the search looks at %s", got)
	}
}
