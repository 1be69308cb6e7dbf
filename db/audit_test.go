package db_test

import (
	"strings"
	"testing"

	"github.com/pawl-fsm/pawl/db"
	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// Functions insert rows. No role that has a privilege may insert, update or delete any.
func TestAuditIsInsertOnly(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	for _, p := range []db.Privilege{db.Service, db.API, db.Worker, db.Reader, db.Caller, db.Operator} {
		conn := login(t, pool, "audited "+string(p), p)
		for _, sql := range []string{
			"insert into pawl.audit (tenant_id, at, actor, action, outcome) values ('default', now(), 'x', 'x.y', 'done')",
			"update pawl.audit set actor = 'x'",
			"delete from pawl.audit",
			"truncate pawl.audit",
			"select pawl.audit_purge(now(), 1)",
			"select pawl_private.audit(p_tenant => 'default', p_caller => null, p_action => 'x.y', p_target => null)",
		} {
			_, err := conn.Exec(t.Context(), sql)
			wantCode(t, err, denied)
		}
		if p == db.API {
			// It may write refusals and reads, but no act that was not done.
			bounded.Exec(t, conn, "select pawl.audit_note('default', '{\"actor\": \"x\"}', 'getInstance', 'forbidden', 'why', 3)")
			_, err := conn.Exec(t.Context(), "select pawl.audit_note('default', '{\"actor\": \"x\"}', 'token.create', 'done')")
			wantCode(t, err, "PW400")
		}
	}
	if got := bounded.Value[string](t, pool, "select string_agg(concat_ws(' ', actor, action, outcome, count), ',') from pawl.audit where action <> 'db_role.bind'"); got != "x getInstance forbidden 3" {
		t.Errorf("the audit has %s", got)
	}
}

// A row is written in the transaction of its act: both are committed, or neither is.
func TestAuditIsWrittenWithTheAct(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	register(t, tx, door)
	bounded.Exec(t, tx, "select pawl.role_put('default', 'r', '{read}', '{}', '{}')")
	if n := bounded.Value[int](t, tx, "select count(*) from pawl.audit"); n != 2 {
		t.Errorf("%d rows in the transaction, want 2", n)
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	_, err = pool.Exec(t.Context(), `select pawl.register_workflow('{"name": "w", "initial": "NOWHERE", "states": {"A": {}}}')`)
	wantCode(t, err, "PW42D")
	if n := bounded.Value[int](t, pool, "select count(*) from pawl.audit"); n != 0 {
		t.Errorf("%d rows of what was rolled back or refused", n)
	}
	register(t, pool, door)
	if got := bounded.Value[string](t, pool, "select string_agg(concat_ws(' ', tenant_id, action, target, actor, outcome), ',') from pawl.audit"); got !=
		"* workflow.register door 1 tester done" {
		t.Errorf("the audit has %s", got)
	}
}

func TestAuditPurge(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	bounded.Exec(t, pool, `
		insert into pawl.audit (tenant_id, at, actor, action, outcome)
		select 'default', '2026-01-01'::timestamptz + n * interval '1 hour', 'x', 'x.y', 'done' from generate_series(1, 10) n`)
	for _, future := range []string{"now() + interval '1 hour'", "null"} {
		_, err := pool.Exec(t.Context(), "select pawl.audit_purge("+future+", 100)")
		wantCode(t, err, "PW400")
	}
	var purged []string
	for range 3 {
		purged = append(purged, bounded.Value[string](t, pool, "select pawl.audit_purge('2026-01-01 06:00+00', 3)::text"))
	}
	// Those of 01:00 to 05:00, the oldest first; the last call has nothing to do and writes nothing.
	if got := strings.Join(purged, " "); got != "(3,0) (2,0) (0,0)" {
		t.Errorf("purged %s", got)
	}
	if got, want := bounded.Value[string](t, pool, `
		select string_agg(concat_ws(' ', action, tenant_id, case when action = 'x.y' then extract(hour from at at time zone 'UTC')::text end,
			after ->> 'purged'), ',' order by seq)
		from pawl.audit`),
		"x.y default 6,x.y default 7,x.y default 8,x.y default 9,x.y default 10,audit.purge * 3,audit.purge * 2"; got != want {
		t.Errorf("the audit has %s, want %s", got, want)
	}
}

// A page looks at no more than 5,000 rows, by an index, whatever the filters and however many rows there are.
func TestAuditPageLooksAtFewRows(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	bounded.Exec(t, pool, `
		insert into pawl.audit (tenant_id, at, actor, action, target, outcome)
		select case n % 3 when 0 then 'acme' else 'default' end, '2026-01-01'::timestamptz + n * interval '1 minute', 'actor ' || n % 7,
			'action.' || n % 5, n::text, 'done'
		from generate_series(1, 30000) n`)
	bounded.Exec(t, pool, "analyze pawl.audit")
	for name, c := range map[string]struct {
		args        string
		found, most int64
	}{
		"nothing of all":         {"null, null, null, null, null, 'none', null, null, 0, 51", 1, 5100},
		"nothing of a tenant":    {"'acme', null, null, null, null, 'none', null, null, 0, 51", 1, 5100},
		"nothing of an actor":    {"'default', null, null, 'actor 1', null, 'none', null, null, 0, 51", 0, 5100},
		"a page of all":          {"null, null, null, null, null, null, null, null, 20000, 51", 51, 110},
		"a page of a tenant":     {"'acme', null, null, null, null, null, null, null, 20000, 51", 51, 110},
		"a target":               {"'default', null, '20000', null, null, null, null, null, 0, 51", 1, 110},
		"an actor":               {"'default', null, null, 'actor 1', null, null, null, null, 20000, 51", 51, 110},
		"nobody":                 {"'default', null, null, 'nobody', null, null, null, null, 0, 51", 0, 110},
		"an action":              {"'default', null, null, null, 'action.1', null, null, null, 20000, 51", 51, 110},
		"an hour, far behind":    {"'default', null, null, null, null, null, '2026-01-20 00:00+00', '2026-01-20 01:00+00', 0, 51", 40, 110},
		"nobody's hour of a day": {"'default', null, null, 'nobody', null, null, '2026-01-20 00:00+00', '2026-01-20 01:00+00', 0, 51", 0, 110},
	} {
		tx, err := pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		looks := func() int64 {
			return bounded.Value[int64](t, tx, `
				select (seq_tup_read + coalesce(idx_tup_fetch, 0))::bigint from pg_stat_xact_all_tables where relid = 'pawl.audit'::regclass`)
		}
		before := looks()
		found := bounded.Value[int64](t, tx, "select count(*) from pawl.audit_page("+c.args+", 1000000)")
		looked := looks() - before
		if err := tx.Rollback(t.Context()); err != nil {
			t.Fatal(err)
		}
		if found != c.found || looked > c.most || looked < found-1 {
			t.Errorf("%s: found %d, want %d; looked at %d, want at most %d", name, found, c.found, looked, c.most)
		}
	}
}
