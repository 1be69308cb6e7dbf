package db_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

var anHour = pgtype.Interval{Microseconds: 3600e6, Valid: true}

// subscribeAll makes a subscription to everything, and the test the leader, in term 1.
func subscribeAll(t testing.TB, pool *pgxpool.Pool) uuid.UUID {
	t.Helper()
	bounded.Exec(t, pool, "select pawl.consumer_create('webhooks', true); select pawl.consumer_lead('webhooks', 'x', '1 hour')")
	return bounded.Value[uuid.UUID](t, pool, `select id from pawl.subscription_create('default', 'https://example.com', '{}', '{}', '{}', false, 'whsec_', 'x')`)
}

// route routes the next page. Steps are numbered before, unless a transaction is open.
func route(t testing.TB, q queries.DBTX, term int64, limit int32) queries.DeliveryRouteRow {
	t.Helper()
	if _, open := q.(pgx.Tx); !open {
		dbtest.Number(t, q)
	}
	row, err := queries.New(q).DeliveryRoute(t.Context(), queries.DeliveryRouteParams{Leader: "x", Term: term, RowLimit: limit, Lease: anHour})
	if err != nil {
		t.Fatal(err)
	}
	return row
}

// due lists what is due, lane by lane: of a half-open circuit one delivery.
func due(t testing.TB, q queries.DBTX) []queries.Delivery {
	t.Helper()
	lanes, err := queries.New(q).DeliveryLanes(t.Context(), queries.DeliveryLanesParams{Looks: 1000, Each: 1000})
	if err != nil {
		t.Fatal(err)
	}
	p := queries.DeliveryDueParams{Flying: []string{}}
	for _, l := range lanes {
		limit := map[bool]int32{false: 1000, true: 1}[l.HalfOpen]
		if l.Ready {
			p.Tenants, p.Subscriptions, p.Limits = append(p.Tenants, l.TenantID), append(p.Subscriptions, l.SubscriptionID), append(p.Limits, limit)
		}
	}
	list, err := queries.New(q).DeliveryDue(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func versions(list []queries.Delivery) (out []int64) {
	for _, d := range list {
		out = append(out, *d.Version)
	}
	return out
}

func settle(t testing.TB, q queries.DBTX, term int64, outcome string, list ...queries.Delivery) bool {
	t.Helper()
	p := queries.DeliverySettleParams{Leader: "x", Term: term, Rest: anHour}
	for _, d := range list {
		p.Tenants, p.Ids, p.Results = append(p.Tenants, d.TenantID), append(p.Ids, d.ID), append(p.Results, outcome)
		p.Delays, p.Pauses = append(p.Delays, anHour), append(p.Pauses, pgtype.Interval{})
		p.Statuses, p.Errors, p.Responses = append(p.Statuses, 500), append(p.Errors, "e"), append(p.Responses, "r")
	}
	leads, err := queries.New(q).DeliverySettle(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	return leads
}

// A result that nobody knows would settle a delivery without a trace of why.
func TestUnknownResultIsRefused(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	_, err := queries.New(pool).DeliverySettle(t.Context(), queries.DeliverySettleParams{Results: []string{"delivered", "lost"}})
	wantCode(t, err, "22023")
}

// A router that dies between reading and advancing has done nothing; one that was deposed
// neither; and what was routed is not routed again.
func TestRoutingIsExactlyOnce(t *testing.T) {
	t.Parallel()
	pool, ids := withDoors(t, 3)
	subscribeAll(t, pool)
	for _, id := range ids {
		fire(t, pool, tenant, command{id: id, event: "open"})
	}
	fire(t, pool, tenant, command{id: ids[0], event: "close"})
	steps := bounded.Value[int](t, pool, "select count(*) from pawl.history h, pawl.subscription s where not pg_visible_in_snapshot(h.xid, s.since)")

	dbtest.Number(t, pool)
	crashed := begin(t, pool)
	if r := route(t, crashed, 1, 100); !r.Leads || int(r.Deliveries) != steps {
		t.Errorf("routed %+v, want %d deliveries", r, steps)
	}
	if err := crashed.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if r := route(t, pool, 2, 100); r.Leads {
		t.Error("a term that never was leads")
	}
	if n := bounded.Value[int](t, pool, "select count(*) from pawl.delivery"); n != 0 {
		t.Errorf("%d deliveries were made", n)
	}
	// Page by page.
	made, pages := 0, 0
	for more := true; more; pages++ {
		r := route(t, pool, 1, 2)
		made, more = made+int(r.Deliveries), r.More
	}
	if r := route(t, pool, 1, 100); r.Steps != 0 || made != steps || pages < 2 {
		t.Errorf("%d deliveries were made in %d pages, and then %+v", made, pages, r)
	}
	// Somebody puts the position back: what there is stays.
	bounded.Exec(t, pool, "update pawl.consumer set position = 0")
	if r := route(t, pool, 1, 100); r.Deliveries != 0 || int(r.Steps) <= steps {
		t.Errorf("routed again: %+v", r)
	}
	if settle(t, pool, 2, "delivered", due(t, pool)...) {
		t.Error("a term that never was settles")
	}
	if n := bounded.Value[int](t, pool, "select count(*) from pawl.delivery where status <> 'pending'"); n != 0 {
		t.Errorf("%d deliveries were settled", n)
	}
}

// Without subscriptions nothing is written but the position, and that only when there is something behind it.
func TestRoutingForNobody(t *testing.T) {
	t.Parallel()
	pool, _ := withDoors(t, 5)
	bounded.Exec(t, pool, "select pawl.consumer_create('webhooks', true); select pawl.consumer_lead('webhooks', 'x', '1 hour')")
	if r := route(t, pool, 1, 100); !r.Leads || r.Steps != 0 || r.Deliveries != 0 {
		t.Errorf("routed %+v", r)
	}
	if bounded.Value[bool](t, pool, "select position = 0 from pawl.consumer") || bounded.Value[int](t, pool, "select count(*) from pawl.delivery") != 0 {
		t.Error("the position stayed, or there is a delivery")
	}
	before := bounded.Value[string](t, pool, "select c::text from pawl.consumer c")
	bounded.Exec(t, pool, "update pawl.setting set only_row = true") // Transactions, but no steps.
	route(t, pool, 1, 100)
	if after := bounded.Value[string](t, pool, "select c::text from pawl.consumer c"); after != before {
		t.Errorf("an idle router wrote %s, it was %s", after, before)
	}
	// Who comes later is told of what is later.
	subscribeAll(t, pool)
	bounded.Exec(t, pool, "update pawl.consumer set term = 1")
	if r := route(t, pool, 1, 100); r.Deliveries != 0 {
		t.Errorf("routed %+v", r)
	}
	doors(t, pool, 2)
	if r := route(t, pool, 1, 100); r.Deliveries != 2 {
		t.Errorf("routed %+v", r)
	}
}

// What follows one that is to be tried again waits for it, also what comes later, and goes on when it is given up.
func TestWhatWaitsForARetry(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	register(t, pool, door)
	subscribeAll(t, pool)
	id := doors(t, pool, 1)[0]
	step := func(event string) { wantOutcome(t, fire(t, pool, tenant, command{id: id, event: event})[0], "applied") }
	want := func(want ...int64) []queries.Delivery {
		t.Helper()
		list := due(t, pool)
		if got := versions(list); !slices.Equal(got, want) {
			t.Fatalf("due are %v, want %v", got, want)
		}
		return list
	}
	step("open")
	step("close")
	route(t, pool, 1, 100)
	settle(t, pool, 1, "retry", want(1, 2, 3)[0])
	step("open")
	route(t, pool, 1, 100)
	want()
	first := bounded.Value[uuid.UUID](t, pool, "select id from pawl.delivery where version = 1")
	settle(t, pool, 1, "dead", queries.Delivery{TenantID: tenant, ID: first})
	list := want(2, 3, 4)
	settle(t, pool, 1, "delivered", list[0], list[1])
	// One that is replayed goes before those that wait.
	replayed, err := queries.New(pool).DeliveryReplay(t.Context(), queries.DeliveryReplayParams{Tenant: tenant, Ids: []uuid.UUID{first}, RowLimit: 1})
	if err != nil || replayed.Replayed != 1 {
		t.Fatalf("replayed %+v: %v", replayed, err)
	}
	settle(t, pool, 1, "retry", want(1, 4)[0])
	want()
	if n := bounded.Value[int](t, pool, "select failures from pawl.subscription"); n != 1 { // One has got there since the others.
		t.Errorf("%d failures were counted", n)
	}
}

// An endpoint that has failed five times in a row rests, and gets one at a time afterwards; a test goes first.
func TestRests(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	register(t, pool, door)
	id := subscribeAll(t, pool)
	doors(t, pool, 10)
	route(t, pool, 1, 100)
	list := due(t, pool)
	for i := range 4 {
		settle(t, pool, 1, "retry", list[i])
	}
	if got := len(due(t, pool)); got != 6 {
		t.Errorf("after four failures %d are due", got)
	}
	settle(t, pool, 1, "retry", list[4], list[5], list[6])
	if got := due(t, pool); len(got) != 0 || bounded.Value[int](t, pool, "select failures from pawl.subscription") != 5 {
		t.Errorf("while it rests %d are due", len(got))
	}
	if _, err := queries.New(pool).SubscriptionTest(t.Context(), queries.SubscriptionTestParams{Tenant: tenant, ID: id}); err != nil {
		t.Fatal(err)
	}
	probe := due(t, pool)
	if len(probe) != 1 || probe[0].Version != nil {
		t.Fatalf("the probe is %+v", probe)
	}
	settle(t, pool, 1, "retry", probe...)
	if bounded.Value[bool](t, pool, "select circuit_open_until < pawl.now() + interval '9 minutes' from pawl.subscription") {
		t.Error("the second rest is no longer than the first")
	}
	bounded.Exec(t, pool, "update pawl.subscription set circuit_open_until = pawl.now()")
	probe = due(t, pool)
	if len(probe) != 1 {
		t.Fatalf("%d are sent as a probe", len(probe))
	}
	settle(t, pool, 1, "delivered", probe...)
	if got := len(due(t, pool)); got != 2 {
		t.Errorf("when it is well %d are due", got)
	}
}

func TestPurgeDeliveries(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	register(t, pool, door)
	subscribeAll(t, pool)
	doors(t, pool, 6)
	route(t, pool, 1, 100)
	list := due(t, pool)
	settle(t, pool, 1, "delivered", list[:2]...)
	settle(t, pool, 1, "dead", list[2:4]...)
	purge := func(limit int32) int32 {
		n, err := queries.New(pool).DeliveryPurge(t.Context(), queries.DeliveryPurgeParams{
			RowLimit: limit, Delivered: pgtype.Interval{Days: 7, Valid: true}, Dead: pgtype.Interval{Days: 30, Valid: true},
		})
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	for _, c := range []struct {
		days int
		want []int32
	}{{6, []int32{0}}, {2, []int32{1, 1, 0}}, {30, []int32{1, 1, 0}}} {
		dbtest.Advance(t, pool, 24*time.Hour*time.Duration(c.days))
		for _, want := range c.want {
			if n := purge(1); n != want {
				t.Errorf("%d were purged, want %d", n, want)
			}
		}
	}
	if n := bounded.Value[int](t, pool, "select count(*) from pawl.delivery where status = 'pending'"); n != 2 {
		t.Errorf("%d are left pending", n)
	}
}

// Plans made while the tables are empty stay good.
func TestFreshWebhooksAreReadByFullKey(t *testing.T) {
	// Alone: what the transactions of other tests hold, an index does not drop of its dead entries.
	pool := dbtest.New(t)
	bounded.Exec(t, pool, `
		do $$ declare t regclass; begin
			for t in select oid from pg_class where relnamespace = 'pawl'::regnamespace and relkind = 'r' loop
				execute format('alter table %s set (autovacuum_enabled = off)', t);
			end loop;
		end $$`)
	register(t, pool, door)
	subscribeAll(t, pool)
	conn := connect(t, pool)
	const rounds, batch = 12, 250
	var n int
	for range rounds {
		doors(t, conn, batch)
		if r := route(t, conn, 1, 1000); r.Deliveries != batch || r.Steps != batch {
			t.Fatalf("routed %+v", r)
		}
		list := due(t, conn)
		p := queries.DeliveryMessagesParams{Bytes: 4 << 20}
		for _, d := range list {
			p.Tenants, p.Instances, p.Versions = append(p.Tenants, d.TenantID), append(p.Instances, *d.InstanceID), append(p.Versions, *d.Version)
		}
		if events, err := queries.New(conn).DeliveryMessages(t.Context(), p); err != nil || len(events) != batch {
			t.Fatalf("%d events: %v", len(events), err)
		}
		settle(t, conn, 1, "delivered", list[1:]...)
		settle(t, conn, 1, "dead", list[0])
		n += batch
	}
	bounded.Exec(t, conn, "select pg_stat_force_next_flush()")
	bounded.Exec(t, conn, "select 1")
	for _, index := range bounded.Column[string](t, pool, `
		select format('%s was read for %s entries, in %s scans', indexrelname, idx_tup_read, idx_scan)
		from pg_stat_user_indexes
		where schemaname = 'pawl' and (relname = 'delivery' or indexrelname in ('history_pkey', 'history_xid_idx')) and idx_tup_read > 6 * $1`, n) {
		t.Error(index)
	}
	if scans := bounded.Value[int](t, pool, "select seq_scan from pg_stat_user_tables where relid = 'pawl.delivery'::regclass"); scans > 0 {
		t.Errorf("the deliveries were read whole %d times", scans)
	}
}

// What an endpoint is to be told of is not removed before it has been, or never will be.
func TestRetentionWaitsForWebhooks(t *testing.T) {
	t.Parallel()
	for name, ends := range map[string]func(pool *pgxpool.Pool, subscription uuid.UUID){
		"delivered": func(pool *pgxpool.Pool, _ uuid.UUID) { settle(t, pool, 1, "delivered", due(t, pool)...) },
		"dead":      func(pool *pgxpool.Pool, _ uuid.UUID) { settle(t, pool, 1, "dead", due(t, pool)...) },
		"disabled": func(pool *pgxpool.Pool, _ uuid.UUID) {
			bounded.Exec(t, pool, "update pawl.subscription set disabled_at = now(), disabled_reason = 'by the test'")
		},
		"deleted": func(pool *pgxpool.Pool, s uuid.UUID) {
			bounded.Exec(t, pool, "select pawl.subscription_delete('default', $1)", s)
			settle(t, pool, 1, "dead", due(t, pool)...)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := dbtest.New(t)
			register(t, pool, door)
			subscription := subscribeAll(t, pool)
			id := doors(t, pool, 1)[0]
			bounded.Exec(t, pool, "select pawl.fire_one($1, 'open'), pawl.fire_one($1, 'remove')", id)
			removed := func() bool {
				t.Helper()
				return bounded.Value[bool](t, pool, "select cardinality(pawl.purge_archived('default', array[$1::uuid], pawl.now())) = 1", id)
			}
			if removed() {
				t.Fatal("it went before it was routed")
			}
			if r := route(t, pool, 1, 100); r.Deliveries != 3 {
				t.Fatalf("routed %+v", r)
			}
			if removed() {
				t.Fatal("it went before it was delivered")
			}
			if ends(pool, subscription); !removed() {
				t.Error("it stays")
			}
		})
	}
}

// A callback that nobody has routed goes with its instance.
func TestRetentionTakesCallbacks(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	register(t, pool, door)
	id := doors(t, pool, 1)[0]
	bounded.Exec(t, pool, "insert into pawl.callback (tenant_id, instance_id, url, created_at) values ('default', $1, 'https://example.com', now())", id)
	bounded.Exec(t, pool, "select pawl.fire_one($1, 'open'), pawl.fire_one($1, 'remove')", id)
	if n := bounded.Value[int](t, pool, "select cardinality(pawl.purge_archived('default', array[$1::uuid], pawl.now()))", id); n != 1 {
		t.Fatalf("%d instances were removed", n)
	}
	if n := bounded.Value[int](t, pool, "select count(*) from pawl.callback"); n != 0 {
		t.Errorf("%d callbacks are left", n)
	}
}

// Each change of a subscription and each replay is in the audit, in its own transaction, by who made it. Neither a secret nor
// what a URL may have of one is.
func TestChangesOfSubscriptionsAreInTheAudit(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	const caller = `{"actor": "ann", "token": "k1", "address": "203.0.113.7", "request_id": "r1"}`
	id := bounded.Value[string](t, pool, `
		select (pawl.subscription_create(
			'default', 'https://u:hunter2@example.com/a?key=hunter2', '{}', '{}', '{}', false, 'whsec_hunter2', 'ann', p_caller => $1)).id::text`, caller)
	bounded.Exec(t, pool, `select pawl.subscription_update('default', $1, null, null, null, null, true, null, p_caller => $2)`, id, caller)
	bounded.Exec(t, pool, `select pawl.subscription_rotate_secret('default', $1, 'whsec_hunter2', '1 hour', p_caller => $2)`, id, caller)
	bounded.Exec(t, pool, `
		select pawl.secrets_replace('subscription', '{default}', array[$1::text], '{whsec_hunter2}', '{sealed:v1:a:x}', '{whsec_hunter2}', '{sealed:v1:a:y}')`, id)
	bounded.Exec(t, pool, `select pawl.subscription_test('default', $1, p_caller => $2)`, id, caller)
	bounded.Exec(t, pool, `update pawl.delivery set status = 'dead', next_attempt_at = null`)
	bounded.Exec(t, pool, `select pawl.delivery_replay('default', null, $1, 'dead', null, null, null, 10, p_caller => $2)`, id, caller)
	bounded.Exec(t, pool, `select pawl.subscription_delete('default', $1, p_caller => $2)`, id, caller)
	// What changes nothing is no act.
	bounded.Exec(t, pool, `
		select pawl.subscription_update('default', $1, null, null, null, null, true, null), pawl.subscription_delete('default', $1),
			pawl.subscription_rotate_secret('default', $1, 'whsec_x', '1 hour'), pawl.delivery_replay('default', null, $1, 'dead', null, null, null, 10)`, id)
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	bounded.Exec(t, tx, "select pawl.subscription_create('default', 'https://example.com', '{}', '{}', '{}', false, 'whsec_x', 'ann')")
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	got := bounded.Column[string](t, pool, `
		select concat_ws(' ', a.tenant_id, a.actor = case when a.tenant_id = '*' then session_user else 'ann' end, a.token_id, a.action,
			replace(a.target, $1, 'it'), a.before, a.after)
		from pawl.audit a order by a.seq`, id)
	const before = `{"url": "https://example.com/a", "events": [], "states": [], "disabled": false, "workflows": [], "terminal_only": false}`
	after := strings.Replace(before, `"terminal_only": false`, `"terminal_only": true`, 1)
	if diff := cmp.Diff(got, []string{
		"default t k1 subscription.create it " + before, "default t k1 subscription.update it " + before + " " + after,
		"default t k1 secret.rotate it", `* t secret.rotate subscription {"rows": 1}`, "default t k1 subscription.test it",
		`default t k1 delivery.replay it {"status": "dead", "replayed": 1}`, "default t k1 subscription.delete it " + after,
	}); diff != "" {
		t.Error(diff)
	}
}
