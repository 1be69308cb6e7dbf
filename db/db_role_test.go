package db_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pawl-fsm/pawl/db"
	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// wantDenied fails the test unless the statement is refused to the role, with the words in the message or the hint.
func wantDenied(t *testing.T, conn queries.DBTX, words, sql string, args ...any) {
	t.Helper()
	_, err := conn.Exec(t.Context(), sql, args...)
	wantCode(t, err, denied)
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok && !strings.Contains(pg.Message+" "+pg.Hint, words) {
		t.Errorf("%s: %s (%s), want %q", sql, pg.Message, pg.Hint, words)
	}
}

const (
	createOne = `select pawl.create_one('door', p_tenant => $1)`
	fireByKey = `select pawl.fire_by_key('door', 'b', 'open', p_start => '{}', p_tenant => $1)`
	fireOne   = `select pawl.fire_one(gen_random_uuid(), 'open', p_tenant => $1)`
)

// A SQL caller acts for the tenant that its role is bound to.
func TestCallersAreBoundToTenants(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	register(t, pool, door)
	bounded.Exec(t, pool, "select pawl.tenant_put('acme'), pawl.tenant_put('other')")
	acme := loginAs(t, pool, db.Role{Name: "acme", Privilege: db.Caller, Tenant: "acme"})
	all := loginAs(t, pool, db.Role{Name: "all", Privilege: db.Operator, Tenant: "*"})
	bounded.Exec(t, acme, createOne, "acme")
	bounded.Exec(t, all, createOne, "other")
	for _, sql := range []string{createOne, fireByKey, fireOne} {
		for _, tenant := range []any{"other", "default", "*", nil} {
			if tenant == nil {
				_, err := acme.Exec(t.Context(), sql, tenant)
				wantCode(t, err, "PW400")
				continue
			}
			wantDenied(t, acme, "acme only", sql, tenant)
		}
		for _, role := range []queries.DBTX{all, pool} {
			_, err := role.Exec(t.Context(), sql, "nobody")
			wantCode(t, err, "PW40T")
		}
	}
	wantDenied(t, acme, "acme only", "select pawl.create_one('door')") // Without p_tenant it is the tenant "default".

	// A binding replaces the one before it, and a tenant that is disabled has no callers.
	role := db.Role{Name: acme.Config().User, Privilege: db.Caller, Tenant: "other"}
	if err := db.Grant(t.Context(), dbtest.DSN(pool), role); err != nil {
		t.Fatal(err)
	}
	wantDenied(t, acme, "other only", createOne, "acme")
	bounded.Exec(t, acme, createOne, "other")
	bounded.Exec(t, pool, "select pawl.tenant_put('other', p_disabled => true)")
	wantDenied(t, acme, "disabled", createOne, "other")

	// Who is bound to what is audited, and only the owner binds.
	if n := bounded.Value[int](t, pool, "select count(*) from pawl.audit where action = 'db_role.bind' and target = $1", role.Name); n != 2 {
		t.Errorf("%d bindings are audited, want 2", n)
	}
	for _, conn := range []queries.DBTX{acme, all} {
		_, err := conn.Exec(t.Context(), "select pawl_private.bind_role(session_user, '*', null)")
		wantCode(t, err, denied)
		_, err = conn.Exec(t.Context(), "update pawl.db_role set tenant_id = '*'")
		wantCode(t, err, denied)
	}
	role.Tenant = "nobody"
	wantCode(t, errors.Unwrap(db.Grant(t.Context(), dbtest.DSN(pool), role)), "PW40T")
	for _, role := range []db.Role{
		{Name: "x", Privilege: db.Caller},
		{Name: "x", Privilege: db.Operator, Subject: "s"},
		{Name: "x", Privilege: db.Service, Tenant: "acme"},
		{Name: "x", Privilege: db.Reader, Subject: "s"},
	} {
		if sql, err := db.Grants(role); err == nil {
			t.Errorf("%+v is granted: %s", role, sql)
		}
	}
}

// Without a binding of its own, a login may act for no tenant, however it came to the privilege.
func TestCallersWithoutABinding(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	register(t, pool, door)
	granted := loginAs(t, pool, db.Role{Name: "application", Privilege: db.Caller, Tenant: tenant})
	group := pgx.Identifier{granted.Config().User}.Sanitize()
	bounded.Exec(t, granted, createOne, tenant)

	// Membership, with and without SET ROLE. It is how a pooler's login becomes one of many.
	member := newLogin(t, pool, "member")
	bounded.Exec(t, pool, "grant "+group+" to "+pgx.Identifier{member}.Sanitize())
	conn := connectAs(t, pool, member)
	hint := fmt.Sprintf(`pawl migrate grants --role %s --privilege caller --tenant T [--subject S]`, pgx.Identifier{member}.Sanitize())
	for _, as := range []string{"reset role", "set role " + group} {
		bounded.Exec(t, conn, as)
		for _, sql := range []string{createOne, fireByKey, fireOne} {
			wantDenied(t, conn, hint, sql, tenant)
		}
	}
	// The binding of the login counts, also while it is another role.
	if err := db.Grant(t.Context(), dbtest.DSN(pool), db.Role{Name: member, Privilege: db.Caller, Tenant: tenant, Subject: "pooled"}); err != nil {
		t.Fatal(err)
	}
	for _, as := range []string{"reset role", "set role " + group} {
		bounded.Exec(t, conn, as)
		bounded.Exec(t, conn, "select pawl.create_one('door', p_actor => 'somebody else')")
	}
	if got := bounded.Value[string](t, pool, "select string_agg(distinct actor || ' by ' || database_user, ', ') from pawl.history where actor <> $1", granted.Config().User); got != "pooled by "+member {
		t.Errorf("history has %s", got)
	}
	// A function of another owner, as a trick to be somebody else, changes the current user only.
	bounded.Exec(t, pool, `
		create function public.trick() returns pawl.instance language sql security definer as $$ select pawl.create_one('door') $$;
		grant usage on schema public to public; grant execute on function public.trick to public`)
	stranger := connectAs(t, pool, newLogin(t, pool, "stranger"))
	wantDenied(t, stranger, "may act for no tenant", "select public.trick()")
}

// The actor is the role's subject; a role without one may name any actor of 255 characters. The session's user stands
// beside it, and is none that the service has authenticated.
func TestActorsOfCallers(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	register(t, pool, door)
	bound := loginAs(t, pool, db.Role{Name: "bound", Privilege: db.Caller, Tenant: tenant, Subject: "billing"})
	free := loginAs(t, pool, db.Role{Name: "free", Privilege: db.Caller, Tenant: tenant})
	call := func(conn *pgx.Conn, arguments string) string {
		t.Helper()
		id := bounded.Value[uuid.UUID](t, conn, "select (pawl.create_one('door'"+arguments+")).id")
		bounded.Exec(t, conn, "select pawl.fire_one($1, 'open'"+arguments+")", id)
		key := uuid.NewString()
		bounded.Exec(t, conn, "select pawl.fire_by_key('door', $1, 'open', p_start => '{}'"+arguments+")", key)
		return bounded.Value[string](t, pool, `
			select string_agg(distinct h.actor || ' by ' || h.database_user, ', ')
			from pawl.history h
			join pawl.instance i on i.tenant_id = h.tenant_id and i.id = h.instance_id
			where i.id = $1 or i.business_key = $2`, id, key)
	}
	for arguments, want := range map[string]string{
		"":                              "billing by " + bound.Config().User,
		", p_actor => 'ceo'":            "billing by " + bound.Config().User,
		", p_actor => repeat('x', 255)": "billing by " + bound.Config().User,
	} {
		if got := call(bound, arguments); got != want {
			t.Errorf("with (%s) history has %s, want %s", arguments, got, want)
		}
	}
	for arguments, want := range map[string]string{
		"":                              free.Config().User,
		", p_actor => 'ceo'":            "ceo",
		", p_actor => repeat('x', 255)": strings.Repeat("x", 255),
	} {
		if got, want := call(free, arguments), want+" by "+free.Config().User; got != want {
			t.Errorf("with (%s) history has %s, want %s", arguments, got, want)
		}
	}
	// What comes through the service has the authenticated actor alone.
	api := login(t, pool, "api", db.API)
	id := *create(t, api, tenant, creation{workflow: "door"})[0].ID
	if got := bounded.Value[*string](t, pool, "select database_user from pawl.history where instance_id = $1", id); got != nil {
		t.Errorf("the service's step has the user %s", *got)
	}
}

// No text of a SQL caller is larger than what it is for, and no table stores a larger actor, whoever writes it.
func TestTextsOfCallersAreBounded(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	register(t, pool, door)
	conn := loginAs(t, pool, db.Role{Name: "caller", Privilege: db.Caller, Tenant: tenant})
	const huge = "repeat('x', 20000000)"
	for _, c := range []struct{ of, arguments string }{
		{"create_one fire_one fire_by_key", "p_actor"},
		{"create_one fire_one fire_by_key", "p_key"},
		{"create_one fire_one fire_by_key", "p_correlation_id"},
		{"create_one", "p_business_key"},
	} {
		for f := range strings.FieldsSeq(c.of) {
			first := map[string]string{"create_one": "'door'", "fire_one": "gen_random_uuid(), 'open'", "fire_by_key": "'door', 'b', 'open', p_start => '{}'"}[f]
			_, err := conn.Exec(t.Context(), fmt.Sprintf("select pawl.%s(%s, %s => %s)", f, first, c.arguments, huge))
			wantCode(t, err, "PW400")
		}
	}
	_, err := conn.Exec(t.Context(), "select pawl.fire_by_key('door', "+huge+", 'open', p_start => '{}')")
	wantCode(t, err, "PW400")
	_, err = conn.Exec(t.Context(), "select pawl.create_one('door', p_tenant => "+huge+")")
	wantCode(t, err, "PW400")

	api := login(t, pool, "api", db.API)
	for _, sql := range []string{
		"select pawl.register_workflow('" + flight + "', p_actor => " + huge + ")",
		"select pawl.register_schema('s', '{}', p_actor => " + huge + ")",
		"select * from pawl.migrate_instances('default', 'door', 1, 2, '{}', null, 1, p_actor => " + huge + ")",
		"select * from pawl.migrate_instances('default', 'door', 1, 2, '{}', null, 1, p_reason => " + huge + ")",
		"select * from pawl.subscription_create('default', 'https://example.com', '{}', '{}', '{}', false, 'whsec_', " + huge + ")",
	} {
		_, err := api.Exec(t.Context(), sql)
		wantCode(t, err, "PW400")
	}
	_, err = api.Exec(t.Context(), `
		select pawl.create('{default}', '{door}', array['{}'::jsonb], '{""}', '{""}', '{""}', '{null}', '{*}', array[`+huge+`], '{""}', '{""}', '{""}')`)
	wantCode(t, err, "23514")
}

// Who may purge, purges what is past its retention. Only the operator, who has archived it, may purge what is final.
func TestPurgesKeepToTheRetention(t *testing.T) {
	t.Parallel()
	pool, _ := withDoors(t, 0)
	worker, api := login(t, pool, "worker", db.Worker), login(t, pool, "api", db.API)
	service := login(t, pool, "service", db.Service)
	operator := login(t, pool, "operator", db.Operator)
	dbtest.SetClock(t, pool, noon)
	id := gone(t, pool, tenant, creation{})
	dbtest.Number(t, pool)
	dbtest.Advance(t, pool, 25*time.Hour)
	const purge = "select cardinality(pawl.purge_instances('default', array[$1::uuid], $2))"
	future := bounded.Value[time.Time](t, pool, "select pawl.now() + interval '1 year'")
	purged := func(want int, why string) {
		t.Helper()
		for _, conn := range []*pgx.Conn{worker, service} {
			if n := bounded.Value[int](t, conn, purge, id, future); n != want {
				t.Errorf("%d instances are purged, want %d: %s", n, want, why)
			}
			want = 0
		}
	}
	purged(0, "the workflow has no retention")
	bounded.Exec(t, pool, "update pawl.workflow set retention = '30 hours'")
	purged(0, "it is not over")
	for _, sql := range []string{"select pawl.purge_instances('default', '{}', now())", "select pawl.purge_keys(1)", "select pawl.purge_archived('default', '{}', now())"} {
		wantDenied(t, api, "permission denied", sql)
	}
	for _, conn := range []*pgx.Conn{worker, service} {
		wantDenied(t, conn, "permission denied", "select pawl.purge_archived('default', '{}', now())")
	}
	wantDenied(t, operator, "default only", "select pawl.purge_archived('acme', '{}', now())")
	dbtest.Advance(t, pool, 6*time.Hour)
	purged(1, "it is over")

	fresh := gone(t, pool, tenant, creation{})
	dbtest.Number(t, pool)
	dbtest.Advance(t, pool, 25*time.Hour) // Its keys have expired.
	if n := bounded.Value[int](t, operator, "select cardinality(pawl.purge_archived('default', array[$1::uuid], $2))", fresh, future); n != 1 {
		t.Errorf("%d instances are purged, want 1", n)
	}
	if got := bounded.Value[string](t, pool, "select actor || ' ' || (before ->> 'instances') from pawl.audit where action = 'instance.purge'"); got != fmt.Sprintf(`%s ["%s"]`, operator.Config().User, fresh) {
		t.Errorf("the audit has %s", got)
	}
}

// A reader sees no secret, whatever it selects.
func TestReadersSeeNoSecrets(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	conn := login(t, pool, "reader", db.Reader)
	for _, column := range []string{
		"subscription.secret", "subscription.previous_secret", "subscription.url", "callback.secret", "callback.url", "token.sha256",
		"setting.cursor_secret",
	} {
		table, name, _ := strings.Cut(column, ".")
		wantDenied(t, conn, "permission denied", "select "+name+" from pawl."+table)
		wantDenied(t, conn, "permission denied", "select * from pawl."+table)
		wantDenied(t, conn, "permission denied", "select "+table+"::text from pawl."+table)
		wantDenied(t, conn, "permission denied", "select to_jsonb(x) from pawl."+table+" x")
	}
	wantDenied(t, conn, "permission denied", "select * from pawl.delivery_endpoints('{}', '{}')")
	bounded.Exec(t, conn, "select tenant_id, id, failures from pawl.subscription_row; select * from pawl.instance; select * from pawl.next_timeout")
}

// Whatever advisory locks a stranger holds, timers fire and steps get positions.
func TestAdvisoryLocksOfStrangersStopNothing(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	register(t, pool, lamp)
	dbtest.SetClock(t, pool, noon)
	create(t, pool, tenant, creation{workflow: "lamp"})
	dbtest.Advance(t, pool, time.Minute)
	stranger := connectAs(t, pool, newLogin(t, pool, "stranger"))
	for _, name := range []string{"fast", "slow", "pawl.fire_timers", "pawl.fire_slow_timers", "pawl.timer_lane", "pawl.log_tick", "pawl.log_head", "pawl.purge_keys"} {
		bounded.Exec(t, stranger, "select pg_advisory_lock(hashtextextended($1, 0)), pg_advisory_lock(hashtext($1)), pg_advisory_lock(0, hashtext($1))", name)
	}
	for n := range 200 {
		bounded.Exec(t, stranger, "select pg_advisory_lock($1)", n)
	}
	for _, table := range []string{"pawl_private.timer_lane", "pawl.log_head", "pawl.consumer", "pawl.timer"} {
		wantDenied(t, stranger, "permission denied", "begin; lock table "+table)
		bounded.Exec(t, stranger, "rollback")
	}
	worker := login(t, pool, "worker", db.Worker)
	if n := bounded.Value[int](t, worker, "select fired from pawl.fire_timers(10)"); n != 1 {
		t.Errorf("%d timers were fired, want 1", n)
	}
	dbtest.Number(t, pool)
	if n := bounded.Value[int](t, pool, "select position from pawl.log_head"); n != 2 {
		t.Errorf("%d steps have positions, want 2", n)
	}
}
