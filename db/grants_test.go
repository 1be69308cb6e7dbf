package db_test

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/db"
	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/db/schema"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// login makes a role with a privilege and connects as it.
func login(t *testing.T, pool *pgxpool.Pool, name string, p db.Privilege) *pgx.Conn {
	t.Helper()
	// Roles belong to the server, so the name has to be this test's. It needs quotes.
	name += " of " + pool.Config().ConnConfig.Database
	quoted := pgx.Identifier{name}.Sanitize()
	bounded.Exec(t, pool, "create role "+quoted+" login password 'secret'")
	t.Cleanup(func() {
		if _, err := pool.Exec(context.Background(), "drop owned by "+quoted+" cascade; drop role "+quoted); err != nil {
			t.Error(err)
		}
	})
	if err := db.Grant(t.Context(), dbtest.DSN(pool), name, p); err != nil {
		t.Fatal(err)
	}
	config := pool.Config().ConnConfig
	config.User, config.Password = name, "secret"
	conn, err := pgx.ConnectConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	if got := bounded.Value[string](t, conn, "select session_user"); got != name {
		t.Fatalf("connected as %s, want %s", got, name)
	}
	return conn
}

func TestServiceMayDoWhatItDoes(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	conn := login(t, pool, "the service", db.Service)
	q := queries.New(conn)
	must := func(_ any, err error) {
		t.Helper()
		if err != nil {
			t.Error(err)
		}
	}

	register(t, conn, door)
	must(q.JSONPathErrors(t.Context(), []string{"$.a", "$."}))
	must(q.GetWorkflow(t.Context(), "door"))
	must(q.GetWorkflowVersion(t.Context(), queries.GetWorkflowVersionParams{Name: "door", Version: 1}))
	must(q.ListWorkflows(t.Context(), queries.ListWorkflowsParams{RowLimit: 1}))
	must(q.GetSetting(t.Context()))
	must(q.SchemaVersion(t.Context()))
	must(q.SchemaState(t.Context(), []string{}))

	id := doors(t, conn, 1)[0]
	wantOutcome(t, fire(t, conn, tenant, command{id: id, event: "open", key: "a"})[0], "applied")
	wantOutcome(t, fire(t, conn, tenant, command{id: id, event: "open", key: "a"})[0], "applied")
	wantOutcome(t, preview(t, conn, command{id: id, event: "close"}), "applied")
	bounded.Exec(t, conn, "select pawl.fire_one((pawl.create_one('door', p_key => 'b')).id, 'open', p_key => 'c')")
	must(q.GetInstances(t.Context(), queries.GetInstancesParams{Tenants: []string{tenant}, Ids: []uuid.UUID{id}}))
	must(q.GetInstanceVersion(t.Context(), queries.GetInstanceVersionParams{TenantID: tenant, ID: id, Version: 1}))
	now := bounded.Value[any](t, conn, "select pawl.now()")
	must(now, nil)
	must(q.GetInstanceVersionAt(t.Context(), queries.GetInstanceVersionAtParams{
		TenantID: tenant, ID: id, At: *preview(t, conn, command{id: id, event: "close"}).StateChangedAt,
	}))
	at := *preview(t, conn, command{id: id, event: "close"}).CreatedAt
	must(q.ListInstances(t.Context(), queries.ListInstancesParams{
		TenantID: tenant, RowLimit: 1, CreatedAfter: &at, CreatedBefore: &at,
	}))
	must(q.ListHistory(t.Context(), queries.ListHistoryParams{TenantID: tenant, InstanceID: id, RowLimit: 9}))
	must(q.ListActions(t.Context(), queries.ListActionsParams{Workflow: "door", WorkflowVersion: 1, State: "OPEN"}))
	must(q.GuardHolds(t.Context(), queries.GuardHoldsParams{
		Events: []string{"open"}, Payload: []byte("{}"), TenantID: tenant, ID: id,
	}))
	must(q.NewestInstances(t.Context(), queries.NewestInstancesParams{TenantID: tenant, Workflow: "door", RowLimit: 1}))
	must(q.ListDocuments(t.Context(), queries.ListDocumentsParams{TenantID: tenant, InstanceID: id, Versions: []int64{1}}))
	must(q.Backtest(t.Context(), queries.BacktestParams{Workflow: "door", Ids: []uuid.UUID{id}, Definition: raw(door)[0], Tenant: tenant}))
	must(nil, q.Notify(t.Context(), queries.NotifyParams{Channel: "pawl_wait", Payload: "*"}))
	must(q.LogHead(t.Context()))
	must(q.LogLead(t.Context(), queries.LogLeadParams{Leader: "x", Lease: pgtype.Interval{Days: 1, Valid: true}}))
	must(q.LogBegin(t.Context(), queries.LogBeginParams{Leader: "x", Term: 1}))
	must(q.LogTick(t.Context(), queries.LogTickParams{Leader: "x", Term: 1, Lease: pgtype.Interval{Days: 1, Valid: true}}))
	must(q.LogSweep(t.Context(), queries.LogSweepParams{RowLimit: 1}))
	must(nil, q.LogResign(t.Context(), queries.LogResignParams{Leader: "x", Term: 1}))
	must(q.LogMoved(t.Context(), queries.LogMovedParams{After: new(int64(0)), StepLimit: 1}))
	must(q.LogSettled(t.Context(), queries.LogSettledParams{Tenant: tenant}))
	must(q.StreamLook(t.Context(), queries.StreamLookParams{Tenant: tenant, Epoch: 1, RowLimit: 1}))
	must(q.StreamPlace(t.Context(), queries.StreamPlaceParams{Tenant: tenant, InstanceID: id, Version: 1}))
	must(q.StreamRead(t.Context(), queries.StreamReadParams{Tenant: tenant, Until: 9, RowLimit: 1, Bytes: 1}))
	must(q.StreamInstance(t.Context(), queries.StreamInstanceParams{Tenant: tenant, InstanceID: id, RowLimit: 1, Bytes: 1}))
	must(q.ListStates(t.Context(), queries.ListStatesParams{Workflow: "door", WorkflowVersion: 1}))
	subscription, err := q.SubscriptionCreate(t.Context(), queries.SubscriptionCreateParams{
		Tenant: tenant, Url: "https://example.com", Workflows: []string{}, Events: []string{}, States: []string{}, Secret: "whsec_", Actor: "tester",
	})
	must(subscription, err)
	must(q.SubscriptionUpdate(t.Context(), queries.SubscriptionUpdateParams{Tenant: tenant, ID: subscription.ID}))
	must(q.SubscriptionRotateSecret(t.Context(), queries.SubscriptionRotateSecretParams{
		Tenant: tenant, ID: subscription.ID, Secret: "whsec_", Overlap: pgtype.Interval{Days: 1, Valid: true},
	}))
	must(q.SubscriptionTest(t.Context(), queries.SubscriptionTestParams{Tenant: tenant, ID: subscription.ID}))
	must(q.GetSubscription(t.Context(), queries.GetSubscriptionParams{TenantID: tenant, ID: subscription.ID}))
	must(q.ListSubscriptions(t.Context(), queries.ListSubscriptionsParams{TenantID: tenant, RowLimit: 1}))
	must(q.UnknownNames(t.Context(), queries.UnknownNamesParams{Workflows: []string{"x"}, Events: []string{"x"}, States: []string{"x"}}))
	must(q.DeliveryRoute(t.Context(), queries.DeliveryRouteParams{Term: 1, RowLimit: 1}))
	must(q.DeliveryLanes(t.Context(), queries.DeliveryLanesParams{Looks: 9, Each: 9}))
	must(q.DeliveryDue(t.Context(), queries.DeliveryDueParams{Flying: []string{}}))
	must(q.DeliveryEndpoints(t.Context(), queries.DeliveryEndpointsParams{Tenants: []string{tenant}, Ids: []uuid.UUID{id}}))
	must(q.DeliveryMessages(t.Context(), queries.DeliveryMessagesParams{Tenants: []string{tenant}, Instances: []uuid.UUID{id}, Versions: []int64{1}}))
	must(q.DeliverySettle(t.Context(), queries.DeliverySettleParams{}))
	must(q.ListDeliveries(t.Context(), queries.ListDeliveriesParams{TenantID: tenant, RowLimit: 1}))
	must(q.DeliveryReplay(t.Context(), queries.DeliveryReplayParams{Tenant: tenant, Status: "dead", RowLimit: 1}))
	must(q.DeliveryPurge(t.Context(), queries.DeliveryPurgeParams{RowLimit: 1}))
	must(q.SubscriptionDelete(t.Context(), queries.SubscriptionDeleteParams{Tenant: tenant, ID: subscription.ID}))
	for _, table := range tables(t, pool) {
		bounded.Exec(t, conn, "select * from "+table)
	}
}

func preview(t *testing.T, q queries.DBTX, c command) queries.Outcome {
	t.Helper()
	outcomes, err := queries.New(q).Preview(t.Context(), queries.PreviewParams{
		Tenant: tenant, Ids: []uuid.UUID{c.id}, Events: []string{c.event}, Payloads: raw("{}"), Expected: []string{c.expected},
		Checked: []string{c.checked},
	})
	if err != nil {
		t.Fatal(err)
	}
	wantOneEach(t, outcomes, 1)
	return outcomes[0]
}

// tables are the schema's, with its views.
func tables(t *testing.T, pool *pgxpool.Pool) []string {
	t.Helper()
	list := bounded.Column[string](t, pool, `
		select oid::regclass::text from pg_class where relnamespace = 'pawl'::regnamespace and relkind in ('r', 'p', 'v') order by 1`)
	if len(list) < 9 {
		t.Fatalf("tables = %v", list)
	}
	return list
}

const denied = "42501" // insufficient_privilege

func TestServiceMayNotWrite(t *testing.T) {
	t.Parallel()
	pool, ids := withDoors(t, 1)
	conn := login(t, pool, "service", db.Service)
	refused := func(sql string, args ...any) {
		t.Helper()
		tx, err := conn.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = tx.Rollback(context.Background()) }()
		if _, err = tx.Exec(t.Context(), sql, args...); err == nil {
			t.Errorf("allowed: %s", sql)
			return
		}
		wantCode(t, err, denied)
	}
	for _, table := range tables(t, pool) {
		if table == "pawl.outcome_row" || table == "pawl.timeout_row" || table == "pawl.instance_at" || table == "pawl.message" || table == "pawl.endpoint" || table == "pawl.delivery_lane" || table == "pawl.next_timeout" {
			continue // Views: without INSTEAD rules nothing can be written through them.
		}
		first := bounded.Value[string](t, pool, "select quote_ident(attname) from pg_attribute where attrelid = $1::text::regclass and attnum = 1", table)
		refused("insert into " + table + " default values")
		refused("update " + table + " set " + first + " = default")
		refused("delete from " + table)
		refused("truncate " + table)
		refused("lock table " + table + " in access exclusive mode")
		refused("alter table " + table + " add column mine text")
		refused("drop table " + table)
	}
	refused("update pawl.instance set state = 'OPEN' where id = $1", ids[0])
	refused("create table pawl.mine ()")
	refused("create view pawl.mine as select 1")
	refused("create function pawl.mine() returns void language sql as ''")
	refused("create or replace function pawl.now() returns timestamptz language sql as 'select null::timestamptz'")
	refused("create schema mine")
	refused("alter table pawl.instance drop constraint instance_state_is_declared")

	// What it may call is what is listed; the rest would let it decide as it likes.
	may := bounded.Column[string](t, conn, `
		select p.proname::text from pg_proc p
		where p.pronamespace in ('pawl'::regnamespace, 'pawl_private'::regnamespace) and has_function_privilege(p.oid, 'execute')
		order by p.proname collate "C"`)
	want := "backtest chosen_states consumer_advance consumer_create consumer_lead consumer_next consumer_read consumer_renew " +
		"consumer_resign consumer_status create create_one delivery_due delivery_endpoints delivery_lanes delivery_messages " +
		"delivery_purge delivery_replay delivery_route delivery_settle final_instances fire fire_one fire_slow_timers fire_timers " +
		"guard_holds history_page instance_timeout instances instances_page jsonpath_error log_begin log_lead log_moved log_place " +
		"log_resign log_settled log_sweep log_tick migrate_instances now outcome_rows past_timeout preview purge_instances " +
		"purge_keys register_workflow retire_workflow schema_version simulate state_names stream_instance stream_look " +
		"stream_place stream_read subscription_create subscription_delete subscription_rotate_secret subscription_test " +
		"subscription_update uuid_v7_floor workflow_names workflows_page"
	if got := strings.Join(may, " "); got != want {
		t.Errorf("it may call %s, want %s", got, want)
	}
	if bounded.Value[bool](t, conn, "select has_schema_privilege('pawl_private', 'usage')") {
		t.Error("it may look into schema pawl_private")
	}
}

// Schema pawl is the SQL API and nothing else: a function is there because somebody may call it.
func TestFunctionsOfThePublicSchemaAreGranted(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	// The owner alone deletes a consumer's backlog, rewrites history after a restore, or puts off a timer.
	owners := []string{"pawl.consumer_delete", "pawl.log_restored", "pawl.put_off_timer"}
	for _, f := range bounded.Column[string](t, pool, `
		select format('%s.%s', p.pronamespace::regnamespace, p.proname) from pg_proc p
		where p.pronamespace = 'pawl'::regnamespace
		except
		select p.function from pawl_private.privilege p`) {
		if !slices.Contains(owners, f) {
			t.Errorf("nobody is granted %s: it belongs in schema pawl_private", f)
		}
	}
	for _, f := range bounded.Column[string](t, pool, `
		select p.function from pawl_private.privilege p where to_regproc(p.function) is null`) {
		t.Errorf("there is no function %s, which grants.sql names", f)
	}
	var printed []string
	for privilege, functions := range schema.Grants() {
		for _, f := range functions {
			printed = append(printed, privilege+" "+f)
		}
	}
	slices.Sort(printed)
	if diff := cmp.Diff(printed, bounded.Column[string](t, pool, `
		select g.granted from (
			select p.privilege || ' ' || p.function as granted from pawl_private.privilege p
		) g order by g.granted collate "C"`)); diff != "" {
		t.Errorf("`migrate grants` prints other grants than the database lists:\n%s", diff)
	}
}

func TestNobodyElseMayAnything(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	for _, f := range bounded.Column[string](t, pool, `
		select p.oid::regprocedure::text from pg_proc p
		cross join aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) x
		where p.pronamespace in ('pawl'::regnamespace, 'pawl_private'::regnamespace) and x.grantee = 0`) {
		t.Errorf("everybody may call %s", f)
	}
	for _, f := range bounded.Column[string](t, pool, `
		select p.oid::regprocedure::text from pg_proc p
		where p.pronamespace in ('pawl'::regnamespace, 'pawl_private'::regnamespace) and p.prosecdef
			and not coalesce('search_path=pg_catalog, pg_temp' = any (p.proconfig), false)`) {
		t.Errorf("%s runs as its owner with its caller's search path", f)
	}
	if _, err := db.Grants("x", "everything"); err == nil {
		t.Error("an unknown privilege was granted")
	}
}

func TestCallerMayCreateAndFireOnly(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	register(t, pool, door)
	conn := login(t, pool, "caller", db.Caller)
	bounded.Exec(t, conn, `select pawl.fire_one((pawl.create_one('door')).id, 'open')`)
	if got := bounded.Value[string](t, pool, "select string_agg(distinct actor, ' ') from pawl.history"); got != bounded.Value[string](t, conn, "select session_user") {
		t.Errorf("the actor is %s, want who called", got)
	}
	may := bounded.Column[string](t, conn, `
		select p.proname::text from pg_proc p
		where p.pronamespace in ('pawl'::regnamespace, 'pawl_private'::regnamespace) and has_function_privilege(p.oid, 'execute') order by 1`)
	if got := strings.Join(may, " "); got != "create_one fire_one" {
		t.Errorf("it may call %s", got)
	}
	for _, table := range tables(t, pool) {
		_, err := conn.Exec(t.Context(), "select * from "+table)
		wantCode(t, err, denied)
	}
}

// A caller chooses what its session resolves names to; the engine's functions must not care.
func TestSearchPathOfTheCallerDoesNotMatter(t *testing.T) {
	t.Parallel()
	pool, doorIDs := withDoors(t, 1)
	for i, p := range []db.Privilege{db.Caller, db.Service} {
		conn := login(t, pool, fmt.Sprint("attacker ", i), p)
		bounded.Exec(t, pool, fmt.Sprintf(`create schema evil%d authorization %s`, i, pgx.Identifier{conn.Config().User}.Sanitize()))
		// Each of them would be a better match than the one that is meant, and says so when it is called.
		bounded.Exec(t, conn, strings.ReplaceAll(`
			create function evil.trap() returns boolean language plpgsql as $$ begin raise 'trapped as %', current_user; end $$;
			create function evil.trap(anyelement) returns anyelement language plpgsql as $$ begin raise 'trapped as %', current_user; end $$;
			create function evil.trap(text, text) returns boolean language plpgsql as $$ begin raise 'trapped as %', current_user; end $$;
			create function evil.trap(integer, integer) returns boolean language plpgsql as $$ begin raise 'trapped as %', current_user; end $$;
			create function evil.trap(uuid, uuid) returns boolean language plpgsql as $$ begin raise 'trapped as %', current_user; end $$;
			create function evil.trap(jsonb, text) returns jsonb language plpgsql as $$ begin raise 'trapped as %', current_user; end $$;
			create operator evil.= (leftarg = text, rightarg = text, function = evil.trap);
			create operator evil.<> (leftarg = text, rightarg = text, function = evil.trap);
			create operator evil.= (leftarg = integer, rightarg = integer, function = evil.trap);
			create operator evil.> (leftarg = integer, rightarg = integer, function = evil.trap);
			create operator evil.= (leftarg = uuid, rightarg = uuid, function = evil.trap);
			create operator evil.-> (leftarg = jsonb, rightarg = text, function = evil.trap);
			create operator evil.? (leftarg = jsonb, rightarg = text, function = evil.trap);
			create function evil.cardinality(anyarray) returns integer language plpgsql as $$ begin raise 'trapped as %', current_user; end $$;
			create function evil.jsonb_typeof(jsonb) returns text language plpgsql as $$ begin raise 'trapped as %', current_user; end $$;
			create function evil.octet_length(text) returns integer language plpgsql as $$ begin raise 'trapped as %', current_user; end $$;
			create function evil.format(text, variadic text[]) returns text language plpgsql as $$ begin raise 'trapped as %', current_user; end $$;
			create function evil.clock_timestamp() returns timestamptz language plpgsql as $$ begin raise 'trapped as %', current_user; end $$;
			create function evil.sha256(bytea) returns bytea language plpgsql as $$ begin raise 'trapped as %', current_user; end $$;
			create function evil.gen_random_uuid() returns uuid language plpgsql as $$ begin raise 'trapped as %', current_user; end $$;
			create function evil.to_char(timestamp, text) returns text language plpgsql as $$ begin raise 'trapped as %', current_user; end $$;
			create function evil.quote_literal(text) returns text language plpgsql as $$ begin raise 'trapped as %', current_user; end $$;
			create domain evil.jsonpath as text check (false);
			create domain evil.timestamptz as pg_catalog.timestamptz check (false);
			create temporary table instance (id uuid);
			create temporary table setting (id uuid);
			set search_path = evil, pg_temp, pg_catalog`, "evil", fmt.Sprint("evil", i)))
		// The trap is set: what is not pinned falls into it.
		if _, err := conn.Exec(t.Context(), "select sha256(''::bytea)"); err == nil || !strings.Contains(err.Error(), "trapped") {
			t.Fatalf("the attack does not work: %v", err)
		}
		bounded.Exec(t, conn, `select pawl.create_one('door', p_key => gen.k::pg_catalog.text, p_business_key => gen.k::pg_catalog.text)
			from pg_catalog.generate_series(1, 2) gen (k)`)
		bounded.Exec(t, conn, `select pawl.fire_one($1, $2, p_key => $3, p_expected_version => $4)`,
			doorIDs[0], []string{"open", "close"}[i], fmt.Sprint("fire ", i), i+1)
		_, err := conn.Exec(t.Context(), `select pawl.fire_one($1, 'remove', p_expected_version => 9)`, doorIDs[0])
		wantCode(t, err, "PW412")
		if p == db.Service {
			register(t, conn, flight)
			create(t, conn, tenant, creation{workflow: "flight-booking", context: `{"price": 1}`, key: "f"})
			wantOutcome(t, preview(t, conn, command{id: doorIDs[0], event: "open"}), "applied")
			bounded.Exec(t, conn, `select pawl.jsonpath_error('$.a')`)
			bounded.Exec(t, conn, `select pawl.backtest('door', $1, p_definition => $2)`, doorIDs, json.RawMessage(door))
			bounded.Exec(t, conn, `select h.* from pawl.instance i cross join lateral pawl.guard_holds(i, '{cancel}', '{}') h`)
		}
		bounded.Exec(t, conn, "reset search_path")
	}
}

func TestGrantReportsWhatFails(t *testing.T) {
	t.Parallel()
	dsn := dbtest.Empty(t)
	if err := db.Grant(t.Context(), dsn, "nobody", db.Caller); err == nil {
		t.Error("a role that is not there was granted a schema that is not there")
	}
}

// Any role that can connect may take any advisory lock, and hold up whoever wants it. So no function takes one: rows
// that the owner alone can lock do as well.
func TestNoFunctionTakesAnAdvisoryLock(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	for _, f := range bounded.Column[string](t, pool, `
		select p.oid::regprocedure::text from pg_proc p
		where p.pronamespace in ('pawl'::regnamespace, 'pawl_private'::regnamespace)
			and pg_get_functiondef(p.oid) ~ 'pg_(try_)?advisory'`) {
		t.Errorf("%s takes an advisory lock", f)
	}
}
