package db_test

import (
	"context"
	"encoding/json"
	"errors"
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

// login makes a role with a privilege and connects as it. If it acts for a tenant, that is the tests'.
func login(t *testing.T, pool *pgxpool.Pool, name string, p db.Privilege) *pgx.Conn {
	t.Helper()
	role := db.Role{Name: name, Privilege: p}
	if p == db.Caller || p == db.Operator {
		role.Tenant = tenant
	}
	return loginAs(t, pool, role)
}

// loginAs makes the role and connects as it.
func loginAs(t *testing.T, pool *pgxpool.Pool, role db.Role) *pgx.Conn {
	t.Helper()
	role.Name = newLogin(t, pool, role.Name)
	if err := db.Grant(t.Context(), dbtest.DSN(pool), role); err != nil {
		t.Fatal(err)
	}
	return connectAs(t, pool, role.Name)
}

// newLogin makes a role without privileges, and returns its name.
func newLogin(t *testing.T, pool *pgxpool.Pool, name string) string {
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
	return name
}

func connectAs(t *testing.T, pool *pgxpool.Pool, name string) *pgx.Conn {
	t.Helper()
	config := pool.Config().ConnConfig.Copy()
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
	conn := login(t, pool, "the api", db.API)
	worker := login(t, pool, "the worker", db.Worker)
	q, w := queries.New(conn), queries.New(worker)
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
	must(q.SchemaState(t.Context(), queries.SchemaStateParams{}))
	must(w.GetSetting(t.Context()))
	must(w.SchemaVersion(t.Context()))

	id := doors(t, conn, 1)[0]
	wantOutcome(t, fire(t, conn, tenant, command{id: id, event: "open", key: "a"})[0], "applied")
	wantOutcome(t, fire(t, conn, tenant, command{id: id, event: "open", key: "a"})[0], "applied")
	wantOutcome(t, fireByKeys(t, conn, keyed{workflow: "door", businessKey: "b", event: "open", start: "{}"})[0], "created")
	wantOutcome(t, preview(t, conn, command{id: id, event: "close"}), "applied")
	must(q.GetInstances(t.Context(), queries.GetInstancesParams{Tenants: []string{tenant}, Ids: []uuid.UUID{id}}))
	must(q.GetHolder(t.Context(), queries.GetHolderParams{TenantID: tenant, Workflow: "door", BusinessKey: "b"}))
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
	must(q.ListPlace(t.Context(), 1))
	bounded.Exec(t, pool, "select pawl.consumer_create('insight', true); update pawl.log_head set epoch = 1")
	must(q.InstancesInStates(t.Context(), queries.InstancesInStatesParams{
		TenantID: tenant, Workflows: []string{"door"}, States: []string{"OPEN"}, Statuses: []string{"active"}, RowLimit: 1, Most: 99, Few: 9, Probes: 9,
	}))
	bounded.Exec(t, pool, "delete from pawl.consumer; update pawl.log_head set epoch = 0")
	must(q.ListHistory(t.Context(), queries.ListHistoryParams{TenantID: tenant, InstanceID: id, RowLimit: 9}))
	must(q.ListActions(t.Context(), queries.ListActionsParams{Workflow: "door", WorkflowVersion: 1, State: "OPEN"}))
	must(q.GuardHolds(t.Context(), queries.GuardHoldsParams{
		Events: []string{"open"}, Payload: []byte("{}"), TenantID: tenant, ID: id,
	}))
	must(q.DiagnosedInstance(t.Context(), queries.DiagnosedInstanceParams{TenantID: tenant, ID: id}))
	must(q.DiagnosedEvents(t.Context(), queries.DiagnosedEventsParams{Workflow: "door", WorkflowVersion: 1, State: "OPEN", RowLimit: 1}))
	must(q.DiagnosedTransitions(t.Context(), queries.DiagnosedTransitionsParams{Workflow: "door", WorkflowVersion: 1, State: "OPEN", RowLimit: 1}))
	must(q.DiagnosedDeclarations(t.Context(), queries.DiagnosedDeclarationsParams{Workflow: "door", WorkflowVersion: 1, State: "OPEN", RowLimit: 1}))
	must(q.DiagnosedDeadlines(t.Context(), queries.DiagnosedDeadlinesParams{TenantID: tenant, ID: id, RowLimit: 1}))
	must(q.DiagnosedTasks(t.Context(), queries.DiagnosedTasksParams{TenantID: tenant, InstanceID: id, Looks: 1, RowLimit: 1}))
	must(q.DiagnosedAttempts(t.Context(), queries.DiagnosedAttemptsParams{TenantID: tenant, Tasks: []uuid.UUID{id}, RowLimit: 1}))
	must(q.DiagnosedConnections(t.Context(), queries.DiagnosedConnectionsParams{TenantID: tenant, Names: []string{"psp"}}))
	if _, err := q.DiagnosedUndoing(t.Context(), queries.DiagnosedUndoingParams{TenantID: tenant, InstanceID: id}); !errors.Is(err, pgx.ErrNoRows) {
		t.Error(err)
	}
	must(q.DiagnosedCompensations(t.Context(), queries.DiagnosedCompensationsParams{TenantID: tenant, InstanceID: id, RowLimit: 1}))
	must(q.DiagnosedDeliveries(t.Context(), queries.DiagnosedDeliveriesParams{TenantID: tenant, InstanceID: &id, RowLimit: 1}))
	must(q.CallbackHost(t.Context(), queries.CallbackHostParams{Tenant: tenant, Instance: id}))
	must(q.DiagnosedRefusals(t.Context(), queries.DiagnosedRefusalsParams{TenantID: tenant, InstanceID: id, RowLimit: 1}))
	must(q.DiagnosedFindings(t.Context(), queries.DiagnosedFindingsParams{TenantID: tenant, InstanceID: id, Kinds: []string{"slow"}, RowLimit: 1, OpenLimit: 1}))
	must(q.DiagnosedSteps(t.Context(), queries.DiagnosedStepsParams{TenantID: tenant, InstanceID: id, RowLimit: 1}))
	must(w.CountFindings(t.Context(), queries.CountFindingsParams{Kinds: []string{"slow"}, Most: 1}))
	must(q.NewestInstances(t.Context(), queries.NewestInstancesParams{Tenants: []string{tenant}, Workflow: "door", RowLimit: 1}))
	must(q.ListDocuments(t.Context(), queries.ListDocumentsParams{TenantID: tenant, InstanceID: id, Versions: []int64{1}}))
	must(q.Backtest(t.Context(), queries.BacktestParams{Workflow: "door", Ids: []uuid.UUID{id}, Definition: raw(door)[0], Tenant: tenant}))
	submitted, err := q.BulkCreate(t.Context(), queries.BulkCreateParams{
		Tenant: tenant, ID: uuid.New(), Action: "fire", Ids: []uuid.UUID{id}, Params: raw(`{"event": "open"}`)[0], Key: "b", Actor: "tester",
	})
	must(submitted, err)
	must(w.BulkStep(t.Context(), 1))
	must(q.BulkControl(t.Context(), queries.BulkControlParams{Tenant: tenant, ID: submitted.ID, Control: "retry"}))
	must(nil, w.BulkCheck(t.Context(), queries.BulkCheckParams{Tenant: tenant, ID: submitted.ID, Checks: []byte("{}")}))
	must(w.BulkPurge(t.Context(), queries.BulkPurgeParams{Age: pgtype.Interval{Days: 1, Valid: true}, RowLimit: 1}))
	must(q.GetBulk(t.Context(), queries.GetBulkParams{TenantID: tenant, ID: submitted.ID}))
	must(q.ListBulks(t.Context(), queries.ListBulksParams{TenantID: tenant, RowLimit: 1}))
	must(q.ListBulkItems(t.Context(), queries.ListBulkItemsParams{TenantID: tenant, BulkID: submitted.ID, RowLimit: 1}))
	must(q.ListEvents(t.Context(), queries.ListEventsParams{Workflows: []string{}, RowLimit: 1}))
	must(q.LogHead(t.Context()))
	must(w.Backlog(t.Context()))
	must(w.LogLead(t.Context(), queries.LogLeadParams{Leader: "x", Lease: pgtype.Interval{Days: 1, Valid: true}}))
	must(w.LogBegin(t.Context(), queries.LogBeginParams{Leader: "x", Term: 1}))
	must(w.LogTick(t.Context(), queries.LogTickParams{Leader: "x", Term: 1, Lease: pgtype.Interval{Days: 1, Valid: true}}))
	must(w.LogSweep(t.Context(), queries.LogSweepParams{RowLimit: 1}))
	must(nil, w.LogResign(t.Context(), queries.LogResignParams{Leader: "x", Term: 1}))
	for _, q := range []*queries.Queries{q, w} {
		must(q.LogMoved(t.Context(), queries.LogMovedParams{After: new(int64(0)), StepLimit: 1}))
		must(nil, q.Notify(t.Context(), queries.NotifyParams{Channel: "pawl_wait", Payload: "*"}))
	}
	must(q.LogSettled(t.Context(), queries.LogSettledParams{Tenant: tenant}))
	must(q.StreamLook(t.Context(), queries.StreamLookParams{Tenant: tenant, Epoch: 1, RowLimit: 1}))
	must(q.StreamPlace(t.Context(), queries.StreamPlaceParams{Tenant: tenant, InstanceID: id, Version: 1}))
	must(q.StreamRead(t.Context(), queries.StreamReadParams{Tenant: tenant, Until: 9, RowLimit: 1, Bytes: 1}))
	must(q.StreamInstance(t.Context(), queries.StreamInstanceParams{Tenant: tenant, InstanceID: id, RowLimit: 1, Bytes: 1}))
	must(q.ListStates(t.Context(), queries.ListStatesParams{Workflow: "door", WorkflowVersion: 1}))
	subscription, err := q.SubscriptionCreate(t.Context(), queries.SubscriptionCreateParams{
		Tenant: tenant, Url: "https://example.com", Workflows: []string{}, Events: []string{}, States: []string{}, Types: []string{}, Secret: "whsec_", Actor: "tester",
		Seed: uuid.New(),
	})
	must(subscription, err)
	must(q.SubscriptionUpdate(t.Context(), queries.SubscriptionUpdateParams{Tenant: tenant, ID: subscription.ID}))
	must(q.SubscriptionSealedSecret(t.Context(), queries.SubscriptionSealedSecretParams{Tenant: tenant, ID: subscription.ID}))
	must(w.SubscriptionRest(t.Context(), queries.SubscriptionRestParams{}))
	must(q.SubscriptionRotateSecret(t.Context(), queries.SubscriptionRotateSecretParams{
		Tenant: tenant, ID: subscription.ID, Secret: "whsec_", Overlap: pgtype.Interval{Days: 1, Valid: true},
	}))
	must(q.SubscriptionTest(t.Context(), queries.SubscriptionTestParams{Tenant: tenant, ID: subscription.ID}))
	must(q.GetSubscription(t.Context(), queries.GetSubscriptionParams{TenantID: tenant, ID: subscription.ID}))
	must(q.ListSubscriptions(t.Context(), queries.ListSubscriptionsParams{TenantID: tenant, RowLimit: 1}))
	must(q.UnknownNames(t.Context(), queries.UnknownNamesParams{Workflows: []string{"x"}, Events: []string{"x"}, States: []string{"x"}}))
	must(w.DeliveryRoute(t.Context(), queries.DeliveryRouteParams{Term: 1, RowLimit: 1}))
	must(w.DeliveryLanes(t.Context(), queries.DeliveryLanesParams{Looks: 9, Each: 9}))
	must(w.DeliveryDue(t.Context(), queries.DeliveryDueParams{Flying: []string{}}))
	must(w.DeliveryEndpoints(t.Context(), queries.DeliveryEndpointsParams{Tenants: []string{tenant}, Ids: []uuid.UUID{id}}))
	must(w.DeliveryMessages(t.Context(), queries.DeliveryMessagesParams{Tenants: []string{tenant}, Instances: []uuid.UUID{id}, Versions: []int64{1}}))
	must(w.DeliverySettle(t.Context(), queries.DeliverySettleParams{}))
	must(q.ListDeliveries(t.Context(), queries.ListDeliveriesParams{TenantID: tenant, RowLimit: 1}))
	must(q.DeliveryReplay(t.Context(), queries.DeliveryReplayParams{Tenant: tenant, Status: "dead", RowLimit: 1}))
	must(w.DeliveryPurge(t.Context(), queries.DeliveryPurgeParams{RowLimit: 1}))
	must(q.SubscriptionDelete(t.Context(), queries.SubscriptionDeleteParams{Tenant: tenant, ID: subscription.ID}))
	must(q.ConnectionPut(t.Context(), queries.ConnectionPutParams{
		Tenant: tenant, Name: "psp", BaseUrl: "https://example.com", Auth: raw(`{"type": "none"}`)[0], Headers: raw("{}")[0], Concurrency: 1,
	}))
	must(q.GetConnection(t.Context(), queries.GetConnectionParams{TenantID: tenant, Name: "psp"}))
	must(q.ListConnections(t.Context(), queries.ListConnectionsParams{TenantID: tenant, RowLimit: 1}))
	must(w.ConnectionEndpoints(t.Context(), queries.ConnectionEndpointsParams{Tenants: []string{tenant}, Names: []string{"psp"}}))
	must(nil, w.ConnectionReport(t.Context(), queries.ConnectionReportParams{}))
	must(nil, w.ConnectionFinding(t.Context(), queries.ConnectionFindingParams{}))
	must(q.ConnectionDelete(t.Context(), queries.ConnectionDeleteParams{Tenant: tenant, Name: "psp"}))
	must(nil, w.ConsumerCreate(t.Context(), queries.ConsumerCreateParams{Consumer: "x"}))
	must(w.ConsumerLead(t.Context(), queries.ConsumerLeadParams{Consumer: "x", Leader: "x", Lease: pgtype.Interval{Days: 1, Valid: true}}))
	must(w.ConsumerNext(t.Context(), queries.ConsumerNextParams{Consumer: "x", RowLimit: 1}))
	must(w.ConsumerRead(t.Context(), queries.ConsumerReadParams{Consumer: "x"}))
	must(w.ConsumerReadAudit(t.Context(), queries.ConsumerReadAuditParams{Consumer: "x"}))
	must(w.ConsumerStatus(t.Context()))
	must(w.FireTimers(t.Context(), queries.FireTimersParams{RowLimit: 1}))
	must(w.FireSlowTimers(t.Context()))
	must(w.PurgeKeys(t.Context(), 1))
	must(w.FinalInstances(t.Context(), queries.FinalInstancesParams{RowLimit: 1}))
	must(w.PurgeInstances(t.Context(), queries.PurgeInstancesParams{Tenant: tenant, Ids: []uuid.UUID{id}}))
}

// The owner alone reads a secret from a table. Functions show none but to the
// sender, and sealed ones to the service.
func TestNobodyReadsStoredSecrets(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	for _, p := range []db.Privilege{db.Caller, db.Service} {
		conn := login(t, pool, string(p), p)
		// The secret of cursors signs no message, and each replica needs it.
		for _, column := range bounded.Column[string](t, conn, `
			select a.attrelid::regclass || '.' || a.attname
			from pg_attribute a
			join pg_class c on c.oid = a.attrelid and c.relnamespace = 'pawl'::regnamespace and c.relkind in ('r', 'p', 'v')
			where a.attnum > 0 and a.attname ~ 'secret$' and has_column_privilege(c.oid, a.attnum, 'select')
				and a.attrelid::regclass::text not in ('pawl.setting', 'pawl.endpoint', 'pawl.connection_endpoint', 'pawl.stored_secret')`) {
			t.Errorf("%s may read %s", p, column)
		}
		for _, table := range []string{"pawl.subscription", "pawl.callback", "pawl.connection"} {
			_, err := conn.Exec(t.Context(), "select * from "+table)
			wantCode(t, err, denied)
		}
	}
	returns := bounded.Column[string](t, pool, `
		select p.proname::text
		from pg_proc p
		join pawl_private.privilege v on v.function = 'pawl.' || p.proname
		where p.prorettype in (
			'pawl.subscription'::regtype, 'pawl.callback'::regtype, 'pawl.endpoint'::regtype, 'pawl.connection'::regtype,
			'pawl.connection_endpoint'::regtype, 'pawl.stored_secret'::regtype)
		order by 1`)
	if !slices.Equal(returns, []string{"connection_endpoints", "delivery_endpoints"}) {
		t.Errorf("these show secrets: %v", returns)
	}
	conn := login(t, pool, "the service", db.Service)
	id := bounded.Value[string](t, conn, "select (pawl.subscription_create('default', 'https://example.com', '{}', '{}', '{}', false, 'whsec_x', 'tester')).id::text")
	if got := bounded.Value[string](t, conn, "select pawl.subscription_sealed_secret('default', $1)", id); got != "" {
		t.Errorf("the service is shown %s", got)
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

// tables are the schema's, without its views: nothing can be written through these.
func tables(t *testing.T, pool *pgxpool.Pool) []string {
	t.Helper()
	list := bounded.Column[string](t, pool, `
		select oid::regclass::text from pg_class where relnamespace = 'pawl'::regnamespace and relkind in ('r', 'p') order by 1`)
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

	if bounded.Value[bool](t, conn, "select has_schema_privilege('pawl_private', 'usage')") {
		t.Error("it may look into schema pawl_private")
	}
}

// Schema pawl is the SQL API and nothing else: a function is there because somebody may call it.
func TestFunctionsOfThePublicSchemaAreGranted(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	// The owner alone deletes a consumer's backlog or rows of the audit, rewrites history after a restore, puts off a timer, or
	// seals secrets anew.
	owners := []string{
		"pawl.audit_purge", "pawl.consumer_delete", "pawl.log_restored", "pawl.put_off_timer", "pawl.secrets_page", "pawl.secrets_replace",
	}
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
	for privilege, p := range schema.Grants() {
		for _, f := range p.Functions {
			printed = append(printed, privilege+" "+f)
		}
		for _, r := range p.Relations {
			printed = append(printed, strings.TrimSpace(privilege+" "+r.Name+" "+strings.Join(r.Columns, ",")))
		}
	}
	slices.Sort(printed)
	if diff := cmp.Diff(printed, bounded.Column[string](t, pool, `
		select g.granted from (
			select p.privilege || ' ' || p.function as granted from pawl_private.privilege p
			union all
			select concat_ws(' ', r.privilege, r.relation, array_to_string(r.columns, ',')) from pawl_private.readable r
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
	if _, err := db.Grants(db.Role{Name: "x", Privilege: "everything"}); err == nil {
		t.Error("an unknown privilege was granted")
	}
}

// granted is what a role may execute and read. A relation of which it may read some columns has them in parentheses.
func granted(t *testing.T, conn *pgx.Conn) (functions, relations []string) {
	t.Helper()
	functions = bounded.Column[string](t, conn, `
		select p.proname::text from pg_proc p
		where p.pronamespace in (select oid from pg_namespace where nspname in ('pawl', 'pawl_private')) and has_function_privilege(p.oid, 'execute')
		order by p.proname collate "C"`)
	relations = bounded.Column[string](t, conn, `
		select case when bool_and(c.readable) then c.relname else format('%s(%s)', c.relname, string_agg(c.attname, ' ' order by c.attnum) filter (where c.readable)) end
		from (
			select c.relname, a.attname, a.attnum, has_column_privilege(c.oid, a.attnum, 'select') as readable
			from pg_class c
			join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
			where c.relnamespace in (select oid from pg_namespace where nspname in ('pawl', 'pawl_private')) and c.relkind in ('r', 'p', 'v')
		) c
		group by c.relname
		having bool_or(c.readable)
		order by c.relname collate "C"`)
	return functions, relations
}

const (
	apiFunctions = "audit_note audit_page backtest bulk_control bulk_create callback_host cancel chosen_states compensation_mark connection_delete connection_put " +
		"count_commands create delivery_replay fire fire_by_keys guard_holds history_page insight_as_of instance_timeout instances instances_in_states " +
		"instances_page instances_where jsonpath_error list_place " +
		"log_moved log_place log_settled migrate_instances now outcome_rows override past_timeout preview principals propose_workflow " +
		"register_schema register_workflow reindex_workflow retire_workflow role_delete role_put schema_version schemas_for schemas_page simulate " +
		"simulate_timeout state_names stream_instance stream_look stream_place stream_read subscription_create subscription_delete " +
		"subscription_rotate_secret subscription_sealed_secret subscription_test subscription_update task_resolve task_retry task_settle " +
		"tenant_of_bulk tenant_of_instance tenant_of_subscription tenant_of_task tenant_put timeline_page token_create token_revoke " +
		"token_used uuid_v7_floor work_claims workflow_names workflows_page"
	workerFunctions = "backlog bulk_check bulk_purge bulk_step connection_endpoints connection_finding connection_report consumer_advance consumer_create " +
		"consumer_lead consumer_next consumer_read consumer_read_audit consumer_read_findings consumer_renew consumer_resign consumer_status count_usage " +
		"delivery_due delivery_endpoints delivery_findings delivery_lanes delivery_messages delivery_purge delivery_route delivery_settle delivery_tenants " +
		"final_instances finding_look fire_slow_timers fire_timers heal insight_fold log_begin log_lead log_moved log_resign log_sweep log_tick now own_steps purge_instances " +
		"purge_keys schema_version score_forecasts subscription_rest task_claim task_lanes task_settle task_sweep uuid_v7_floor"
	readerFunctions = "consumer_status final_instances history_page insight_as_of instance_timeout instances now schema_version uuid_v7_floor"
	apiRelations    = "attribute bulk_item bulk_report command_count compensation connection_row delivery dwell_count dwell_hour edge_count finding forecast_score history " +
		"idempotency_key(tenant_id key decision instance_id version expires_at refusal) instance instance_at instance_count log_head next_timeout residence role schema setting " +
		"subscription_row task task_attempt task_row tenant timer token undoing workflow workflow_state " +
		"workflow_task(workflow workflow_version position state name connection topic deadline) workflow_transition"
	workerRelations = "finding instance setting workflow"
	readerRelations = "attribute audit audit_log bulk_item bulk_report callback(tenant_id instance_id created_at) command_count compensation " +
		"connection_row(tenant_id name version timeout concurrency failures circuit_open_until finding created_at created_by updated_at) " +
		"consumer db_role delivery dwell_count dwell_hour edge_count finding forecast_score history idempotency_key instance instance_at instance_count instance_migration log log_epoch log_head next_timeout residence role " +
		"schema setting(only_row idempotency_ttl idempotency_ttl_slides context_limit payload_limit definition_limit state_limit) " +
		"subscription_row(tenant_id id workflows events states terminal_only types previous_secret_until disabled_at disabled_reason failures circuit_open_until finding created_at created_by) " +
		"task task_attempt task_row tenant timer " +
		"token(tenant_id id name subject scopes roles workflows created_at created_by expires_at revoked_at last_used_at) undoing " +
		"unrouted_step workflow workflow_state workflow_transition"
)

// Each privilege is what is listed here, and nothing else.
func TestPrivilegesAreExact(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	for p, want := range map[db.Privilege][2]string{
		db.API:      {apiFunctions, apiRelations},
		db.Worker:   {workerFunctions, workerRelations},
		db.Reader:   {readerFunctions, readerRelations},
		db.Caller:   {"claim_work complete_work create_one fail_work fire_by_key fire_one heartbeat_work release_work", ""},
		db.Operator: {"cancel claim_work compensation_mark complete_work create_one fail_work fire_by_key fire_one heartbeat_work override purge_archived release_work task_resolve task_retry", ""},
	} {
		functions, relations := granted(t, login(t, pool, string(p), p))
		if got := strings.Join(functions, " "); got != want[0] {
			t.Errorf("%s may call\n%s\nwant\n%s", p, got, want[0])
		}
		if got := strings.Join(relations, " "); got != want[1] {
			t.Errorf("%s may read\n%s\nwant\n%s", p, got, want[1])
		}
	}
	functions, _ := granted(t, login(t, pool, "service", db.Service))
	want := slices.Concat(strings.Fields(apiFunctions), strings.Fields(workerFunctions), strings.Fields(readerFunctions))
	slices.Sort(want)
	if diff := cmp.Diff(slices.Compact(want), functions); diff != "" {
		t.Errorf("the service may call other functions than its parts:\n%s", diff)
	}
}

// A caller chooses what its session resolves names to; the engine's functions must not care.
func TestSearchPathOfTheCallerDoesNotMatter(t *testing.T) {
	t.Parallel()
	pool, doorIDs := withDoors(t, 1)
	for i, p := range []db.Privilege{db.Caller, db.Operator, db.API} {
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
		if p != db.API {
			bounded.Exec(t, conn, `select pawl.create_one('door', p_key => gen.k::pg_catalog.text, p_business_key => gen.k::pg_catalog.text)
				from pg_catalog.generate_series(1, 2) gen (k)`)
			bounded.Exec(t, conn, `select pawl.fire_one($1, $2, p_key => $3, p_expected_version => $4)`,
				doorIDs[0], []string{"open", "close"}[i], fmt.Sprint("fire ", i), i+1)
			_, err := conn.Exec(t.Context(), `select pawl.fire_one($1, 'remove', p_expected_version => 9)`, doorIDs[0])
			wantCode(t, err, "PW412")
		}
		if p == db.API {
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
	if err := db.Grant(t.Context(), dsn, db.Role{Name: "nobody", Privilege: db.Reader}); err == nil {
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
