package db_test

import (
	"context"
	"encoding/json"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/pawl-fsm/pawl/db"
	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// vault has a protected state, and a state for cancels.
const vault = `{"name": "vault", "initial": "OPEN", "cancel": "GONE", "require_if_match": true, "states": {
	"OPEN": {"on": {"lock": [{"target": "LOCKED", "guard": "$.payload.code == 7"}], "shut": [{"target": "SHUT", "guard": "$.payload.code == 7"}]}},
	"SHUT": {"on": {"open": [{"target": "OPEN"}]}},
	"LOCKED": {"protected": true, "on": {"unlock": [{"target": "OPEN"}]}},
	"GONE": {"type": "final"}}}`

// operator is a role that may override and cancel, and nothing else.
const operator = db.Privilege("operator")

// An operator with a session of the database has the two functions, which refuse by raising.
func TestOperatorMayOverrideAndCancelOnly(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	register(t, pool, vault)
	conn := login(t, pool, "operator", operator)
	id := bounded.Value[uuid.UUID](t, pool, "select (pawl.create_one('vault')).id")
	if got := bounded.Value[string](t, conn, `
		select concat_ws(' ', code, replayed, (instance).state, (instance).version, actions)
		from pawl.override($1, 'by hand', '{1}', p_to => 'SHUT', p_context_patch => '{"a": 1}', p_key => 'k')`, id); got != "applied f SHUT 2 {open}" {
		t.Errorf("the override answers %s", got)
	}
	if got := bounded.Value[string](t, conn, `
		select concat_ws(' ', code, replayed, (instance).version) from pawl.override($1, 'again', '{1}', p_to => 'SHUT', p_context_patch => '{"a": 1}', p_key => 'k')`, id); got != "applied t 2" {
		t.Errorf("the replay answers %s", got)
	}
	bounded.Exec(t, conn, `select pawl.override($1, 'by hand', '*', p_to => 'OPEN')`, id)
	bounded.Exec(t, conn, `select pawl.override($1, 'by hand', '{3}', p_event => 'shut', p_bypass => 'guard')`, id)
	me := bounded.Value[string](t, conn, "select session_user")
	if got := bounded.Value[string](t, pool, `
		select string_agg(concat_ws(' ', action, outcome, reason, after ->> 'state'), ', ' order by seq) from pawl.audit where actor = $1 and target = $2`, me, id.String()); got !=
		"instance.override done by hand SHUT, instance.override replayed again SHUT, instance.override done by hand OPEN, instance.override done by hand SHUT" {
		t.Errorf("the audit has %s", got)
	}
	if got := bounded.Value[string](t, pool, "select string_agg(distinct actor, ' ') from pawl.history where kind = 'forced'"); got != me {
		t.Errorf("the actor is %s, want %s", got, me)
	}

	locked := bounded.Value[uuid.UUID](t, pool, `select (pawl.fire_one((pawl.create_one('vault')).id, 'lock', '{"code": 7}', p_expected_version => 1)).id`)
	register(t, pool, door)
	bare := bounded.Value[uuid.UUID](t, pool, "select (pawl.create_one('door')).id")
	for _, c := range []struct {
		sql  string
		id   uuid.UUID
		code string
	}{
		{"select pawl.override($1, 'why', '', p_to => 'OPEN')", id, "PW428"},
		{"select pawl.override($1, 'why', null, p_to => 'OPEN')", id, "PW428"},
		{"select pawl.override($1, 'why', '{1}', p_to => 'OPEN')", id, "PW412"},
		{"select pawl.override($1, 'why', '*', p_to => 'OPEN')", uuid.New(), "PW404"},
		{"select pawl.override($1, 'why', '*', p_to => 'OPEN', p_tenant => 'other')", id, denied},
		{"select pawl.override($1, 'why', '*', p_to => 'LOCKED')", id, "PW40P"},
		{"select pawl.override($1, 'why', '*', p_to => 'OPEN')", locked, "PW40P"},
		{"select pawl.override($1, 'why', '*', p_event => 'unlock', p_bypass => 'guard')", locked, "PW40P"},
		{"select pawl.cancel($1, 'why')", locked, "PW40P"},
		{"select pawl.cancel($1, 'why')", bare, "PW40C"},
		{"select pawl.cancel($1, 'why', '{9}')", id, "PW412"},
		{"select pawl.override($1, 'why', '*', p_event => 'lock', p_bypass => 'guard')", id, "PW409"},
		{"select pawl.override($1, 'why', '*', p_event => 'nothing', p_bypass => 'guard')", id, "PW422"},
		{"select pawl.override($1, 'why', '*', p_to => 'OPEN', p_key => 'k')", id, "PW42K"},
		{"select pawl.override($1, 'why', '*', p_to => 'NOWHERE')", id, "PW400"},
		{"select pawl.override($1, 'why', '*', p_event => 'open')", id, "PW400"},
		{"select pawl.override($1, 'why', '*', p_event => 'open', p_bypass => 'guard', p_to => 'OPEN')", id, "PW400"},
		{"select pawl.override($1, 'why', '*')", id, "PW400"},
		{"select pawl.override($1, 'why', '*', p_to => 'OPEN', p_context_patch => '[]')", id, "PW400"},
		{"select pawl.override($1, 'why', '*', p_to => 'OPEN', p_payload => '{}')", id, "PW400"},
		{"select pawl.override($1, 'why', '*', p_event => 'open', p_bypass => 'guard', p_context_patch => '{}')", id, "PW400"},
		{"select pawl.override($1, 'why', 'x', p_to => 'OPEN')", id, "PW400"},
		{"select pawl.override($1, null, '*', p_to => 'OPEN')", id, "PW400"},
		{"select pawl.override($1, E' \\t\\n', '*', p_to => 'OPEN')", id, "PW400"},
		{"select pawl.override($1, U&'\\200B\\3000\\2060\\FEFF\\202E', '*', p_to => 'OPEN')", id, "PW400"},
		{"select pawl.override($1, repeat('x', 1001), '*', p_to => 'OPEN')", id, "PW400"},
		{"select pawl.cancel($1, '')", id, "PW400"},
		{"update pawl.instance set state = 'OPEN' where id = $1", id, denied},
		{"select from pawl.instance where id = $1", id, denied},
		{"select pawl_private.forced_step(null, null, i, null, null, null, null) from pawl.instance i where id = $1", id, denied},
	} {
		_, err := conn.Exec(t.Context(), c.sql, c.id)
		if err == nil {
			t.Errorf("%s is allowed", c.sql)
			continue
		}
		wantCode(t, err, c.code)
	}
	if got := bounded.Value[int64](t, pool, "select version from pawl.instance where id = $1", id); got != 4 {
		t.Errorf("the instance is at version %d", got)
	}
	if got := bounded.Value[string](t, conn, "select (pawl.cancel($1, 'the end')).instance.state", id); got != "GONE" {
		t.Errorf("the cancel leads to %s", got)
	}
	_, err := conn.Exec(t.Context(), "select pawl.cancel($1, 'the end')", id)
	wantCode(t, err, "PW409")
	_, err = conn.Exec(t.Context(), "select pawl.override($1, 'the end', '*', p_to => 'OPEN')", id)
	wantCode(t, err, "PW409")
}

// What an operator with a session of the database does, is done by it, whomever it names: in the audit and beside the actor
// in history. Only the service acts for others.
func TestOperatorsActForThemselves(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	register(t, pool, vault)
	ann := loginAs(t, pool, db.Role{Name: "operator", Privilege: db.Operator, Tenant: tenant, Subject: "ann"})
	const forged = `{"actor": "boss", "token": "t1", "address": "192.0.2.1", "request_id": "r1", "unauthenticated": true}`
	id := bounded.Value[uuid.UUID](t, pool, "select (pawl.create_one('vault')).id")
	for _, sql := range []string{
		"select pawl.override($1, 'why', '*', p_to => 'SHUT', p_key => 'k', p_verified => true, p_actor => 'boss', p_caller => $2)",
		"select pawl.override($1, 'why', '*', p_to => 'SHUT', p_key => 'k', p_verified => true, p_actor => 'boss', p_caller => $2)", // A replay.
		"select pawl.override($1, 'why', '*', p_event => 'open', p_bypass => 'guard', p_verified => false, p_caller => $2)",
		"select pawl.cancel($1, 'why', p_verified => true, p_caller => $2)",
	} {
		bounded.Exec(t, ann, sql, id, forged)
	}
	bare := bounded.Value[uuid.UUID](t, pool, "select ((pawl.cancel((pawl.create_one('vault')).id, 'why')).instance).id")
	dbtest.Number(t, pool)
	bounded.Exec(t, ann, "select pawl.purge_archived('default', array[$1::uuid], now() + interval '1 year', $2)", bare, forged)
	me := ann.Config().User
	if got := bounded.Value[string](t, pool, `
		select string_agg(distinct concat_ws(' ', action, actor, token_id, address, request_id, unauthenticated), ', ') from pawl.audit
		where action like 'instance.%' and target is distinct from $1`, bare.String()); got != "instance.cancel ann f, instance.override ann f, instance.purge "+me+" f" {
		t.Errorf("the audit has %s", got)
	}
	moved := bounded.Value[uuid.UUID](t, pool, "select (pawl.create_one('vault')).id")
	bounded.Exec(t, ann, "select pawl.override($1, 'why', '*', p_to => 'SHUT', p_verified => true, p_caller => $2)", moved, forged)
	bounded.Exec(t, ann, "select pawl.cancel($1, 'why', p_verified => true, p_caller => $2)", moved, forged)
	if got := bounded.Value[string](t, pool, `
		select string_agg(concat_ws(' ', kind, actor, database_user), ', ' order by version) from pawl.history where instance_id = $1 and version > 1`, moved); got !=
		"forced ann "+me+", cancelled ann "+me {
		t.Errorf("history has %s", got)
	}

	api := login(t, pool, "api", db.API)
	served := bounded.Value[uuid.UUID](t, pool, "select (pawl.create_one('vault')).id")
	bounded.Exec(t, api, "select pawl.override($1, 'why', '*', p_to => 'SHUT', p_verified => true, p_actor => 'boss', p_caller => $2)", served, forged)
	if got := bounded.Value[string](t, pool, `
		select concat_ws(' ', a.actor, a.token_id, a.address, a.request_id, a.unauthenticated, h.actor, h.database_user)
		from pawl.audit a join pawl.history h on h.instance_id::text = a.target and h.version = 2 where a.target = $1`, served.String()); got !=
		"boss t1 192.0.2.1 r1 t boss" {
		t.Errorf("of the service the audit has %s", got)
	}
}

// What is done through SQL is in the audit with the address of the connection, whoever acts.
func TestAuditOfSessionsHasTheirAddress(t *testing.T) {
	t.Parallel()
	port := bounded.Port(t)
	server := dbtest.Private(t, map[string]string{"listen_addresses": "127.0.0.1", "port": port})
	if err := db.Up(t.Context(), server.DSN()); err != nil {
		t.Fatal(err)
	}
	owner, err := pgx.Connect(t.Context(), server.DSN())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = owner.Close(context.Background()) })
	bounded.Exec(t, owner, "create role ann login password 'secret'; create role deployer login superuser password 'secret'")
	if err := db.Grant(t.Context(), server.DSN(), db.Role{Name: "ann", Privilege: db.Operator, Tenant: tenant, Subject: "Ann"}); err != nil {
		t.Fatal(err)
	}
	over := func(user string) *pgx.Conn {
		config := owner.Config().Copy()
		config.Host, config.User, config.Password = "127.0.0.1", user, "secret"
		conn, err := pgx.ConnectConfig(t.Context(), config)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close(context.Background()) })
		return conn
	}
	deployer, ann := over("deployer"), over("ann")
	bounded.Exec(t, deployer, "select pawl.register_workflow($1)", vault)
	bounded.Exec(t, deployer, `select pawl.register_schema('address', '{"type": "object"}')`)
	id := bounded.Value[uuid.UUID](t, owner, "select (pawl.create_one('vault')).id")
	bounded.Exec(t, ann, "select pawl.override($1, 'why', '*', p_to => 'SHUT')", id)
	bounded.Exec(t, ann, "select pawl.cancel($1, 'why')", id)
	if got := bounded.Value[string](t, owner, `
		select string_agg(concat_ws(' ', action, actor, address), ', ' order by seq) from pawl.audit where action !~ 'db_role'`); got !=
		"workflow.register deployer 127.0.0.1, schema.register deployer 127.0.0.1, instance.override Ann 127.0.0.1, instance.cancel Ann 127.0.0.1" {
		t.Errorf("the audit has %s", got)
	}
}

// An override is part of its caller's transaction.
func TestOverrideRollsBack(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	register(t, pool, vault)
	id := bounded.Value[uuid.UUID](t, pool, "select (pawl.create_one('vault')).id")
	err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
		bounded.Exec(t, tx, "select pawl.override($1, 'why', '*', p_to => 'SHUT', p_key => 'k')", id)
		return pgx.ErrTxClosed
	})
	if err == nil {
		t.Fatal("it was committed")
	}
	if got := bounded.Value[string](t, pool, `select concat_ws(' ', (select state from pawl.instance where id = $1),
		(select count(*) from pawl.history where kind = 'forced'), (select count(*) from pawl.idempotency_key where key = 'k'),
		(select count(*) from pawl.audit where action = 'instance.override'))`, id); got != "OPEN 0 0 0" {
		t.Errorf("it left %s", got)
	}
}

// Who registers over SQL hears of a state that is not there, too.
func TestDefinitionOfCancelAndProtected(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	for _, definition := range []string{
		`{"name": "w", "initial": "A", "cancel": "B", "states": {"A": {"on": {"end": [{"target": "Z"}]}}, "Z": {"type": "final"}}}`,
		`{"name": "w", "initial": "A", "cancel": null, "states": {"A": {"on": {"end": [{"target": "Z"}]}}, "Z": {"type": "final"}}}`,
		`{"name": "w", "initial": "A", "states": {"A": {"protected": "yes", "on": {"end": [{"target": "Z"}]}}, "Z": {"type": "final"}}}`,
	} {
		_, err := pool.Exec(t.Context(), "select pawl.register_workflow($1)", json.RawMessage(definition))
		if err == nil {
			t.Errorf("it was registered: %s", definition)
			continue
		}
		wantCode(t, err, "PW42D")
	}
}

// merged is the merge patch of RFC 7396, whose examples these are.
func TestMergePatch(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	for _, c := range [][3]string{
		{`{"a":"b"}`, `{"a":"c"}`, `{"a": "c"}`},
		{`{"a":"b"}`, `{"b":"c"}`, `{"a": "b", "b": "c"}`},
		{`{"a":"b"}`, `{"a":null}`, `{}`},
		{`{"a":"b","b":"c"}`, `{"a":null}`, `{"b": "c"}`},
		{`{"a":["b"]}`, `{"a":"c"}`, `{"a": "c"}`},
		{`{"a":"c"}`, `{"a":["b"]}`, `{"a": ["b"]}`},
		{`{"a":{"b":"c"}}`, `{"a":{"b":"d","c":null}}`, `{"a": {"b": "d"}}`},
		{`{"a":[{"b":"c"}]}`, `{"a":[1]}`, `{"a": [1]}`},
		{`["a","b"]`, `["c","d"]`, `["c", "d"]`},
		{`{"a":"b"}`, `["c"]`, `["c"]`},
		{`{"a":"foo"}`, `null`, `null`},
		{`{"a":"foo"}`, `"bar"`, `"bar"`},
		{`{"e":null}`, `{"a":1}`, `{"a": 1, "e": null}`},
		{`[1,2]`, `{"a":"b","c":null}`, `{"a": "b"}`},
		{`{}`, `{"a":{"bb":{"ccc":null}}}`, `{"a": {"bb": {}}}`},
	} {
		if got := bounded.Value[string](t, pool, "select pawl_private.merged($1::jsonb, $2::jsonb)::text", c[0], c[1]); got != c[2] {
			t.Errorf("%s with %s is %s, want %s", c[0], c[1], got, c[2])
		}
	}
}
