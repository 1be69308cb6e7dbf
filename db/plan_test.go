package db_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// lamp arms a timer, replaces it, clears it, and begins again.
const lamp = `{"name": "lamp", "initial": "LOW", "states": {
	"LOW": {"on": {"go": [{"target": "HIGH", "assign": {"n": "$.payload.n"}}]}, "after": {"60s": [{"target": "OFF"}]}},
	"HIGH": {"on": {"go": [{"target": "OFF", "guard": "$.payload.n >= 0"}]}, "after": {"600s": [{"target": "OFF"}]}},
	"OFF": {"on": {"go": [{"target": "LOW"}], "never": [{"target": "GONE", "guard": "$.context.never == 1"}]}},
	"GONE": {"type": "final"}}}`

// Plans stay for the session, and one made while the tables are empty, or were never analysed, must look each
// row up by its full key still when they have grown: nothing that a call reads may grow with what its tenant has.
func TestFreshDatabaseIsReadByFullKey(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	bounded.Exec(t, pool, `
		do $$ declare t regclass; begin
			for t in select oid from pg_class where relnamespace = 'pawl'::regnamespace and relkind = 'r' loop
				execute format('alter table %s set (autovacuum_enabled = off)', t);
			end loop;
		end $$`)
	bounded.Exec(t, pool, "update pawl.setting set idempotency_ttl_slides = true")
	register(t, pool, lamp)

	const instances, rounds, batch = 2500, 20, 500
	all := func(outcomes []queries.Outcome, want string) {
		t.Helper()
		for _, o := range outcomes {
			wantOutcome(t, o, want)
		}
	}
	named := func(part int) (first, second, repeated []creation) {
		for i := range batch {
			name := fmt.Sprintf("lamp %d.%d", part, i)
			c := creation{workflow: "lamp", businessKey: name, key: "create " + name}
			first = append(first, c)
			c.key = "again " + name
			second = append(second, c)
		}
		for i := range 20 { // ten keys, twice each
			name := fmt.Sprintf("twice %d.%d", part, i/2)
			repeated = append(repeated, creation{workflow: "lamp", businessKey: name, key: fmt.Sprintf("%s.%d", name, i)})
		}
		return first, second, repeated
	}

	var conns []*pgx.Conn
	dial := func() *pgx.Conn {
		conns = append(conns, connect(t, pool))
		return conns[len(conns)-1]
	}
	early := dial()
	var ids []uuid.UUID
	held := map[uuid.UUID]string{}
	for part := range instances / batch {
		first, second, repeated := named(part)
		for _, o := range create(t, early, tenant, first...) {
			wantOutcome(t, o, "applied")
			ids, held[*o.ID] = append(ids, *o.ID), *o.BusinessKey
		}
		if part == 0 || part == instances/batch-1 {
			late := dial()
			for _, conn := range []*pgx.Conn{early, late} {
				all(create(t, conn, tenant, first...), "applied") // replays
				all(create(t, conn, tenant, second...), "instance-exists")
			}
			create(t, early, tenant, repeated...)
			_, _, repeated = named(-part - 1)
			create(t, late, tenant, repeated...)
		}
	}
	for round := range rounds {
		conn := early
		if round%5 == 4 {
			conn = dial()
		}
		for part := range slices.Chunk(ids, batch) {
			list := make([]command, batch)
			for i := range list {
				list[i] = command{id: part[i], event: "go", payload: `{"n": 1}`, key: fmt.Sprint(round, part[i])}
			}
			all(fire(t, conn, tenant, list...), "applied")
			if round >= rounds-2 { // the first session's plans, and a late one's
				all(fire(t, conn, tenant, list...), "applied") // replays
				for i := range list {
					list[i].event, list[i].key = "unknown", ""
				}
				all(fire(t, conn, tenant, list...), "unknown-event")
				byKeys := make([]keyed, batch)
				for i := range byKeys {
					byKeys[i] = keyed{workflow: "lamp", businessKey: held[part[i]], event: "go", payload: `{"n": 1}`, key: fmt.Sprint("by key ", round, part[i]), start: "{}"}
				}
				all(fireByKeys(t, conn, byKeys...), "applied")
				all(fireByKeys(t, conn, byKeys...), "applied") // replays
				for i := range byKeys[:20] {
					byKeys[i].businessKey = fmt.Sprint("new ", round, part[i])
					byKeys[i].key = byKeys[i].businessKey
				}
				all(fireByKeys(t, conn, byKeys[:20]...), "created")
				all(fireByKeys(t, conn, byKeys[:20]...), "created") // replays
			}
		}
	}

	for _, conn := range conns {
		bounded.Exec(t, conn, "select pg_stat_force_next_flush()")
	}
	fullKeys := []string{
		"workflow_pkey", "workflow_state_pkey", "workflow_transition_pkey", "instance_pkey", "instance_business_key_key",
		"idempotency_key_pkey", "history_pkey", "timer_pkey",
	}
	for _, index := range fullKeys {
		if bounded.Value[int](t, pool, "select idx_scan from pg_stat_user_indexes where schemaname = 'pawl' and indexrelname = $1", index) == 0 {
			t.Errorf("%s was not used", index)
		}
	}
	// Rows are counted that were found alive: dead entries stay where no vacuum comes. Entries that conditions on the
	// columns behind skip are not counted, so that an index that is not looked up by its full key must not be used at all.
	// Registering looks at what was migrated, and at the tasks of the version; no command does.
	for _, use := range bounded.Column[string](t, pool, `
		select format('%s was used: %s times, %s rows found', indexrelname, idx_scan, idx_tup_fetch)
		from pg_stat_user_indexes
		where schemaname = 'pawl' and relname not in ('instance_migration', 'workflow_task') and idx_scan > 0 and (indexrelname <> all ($1) or idx_tup_fetch > 2 * idx_scan)`, fullKeys) {
		t.Error(use)
	}
	for _, use := range bounded.Column[string](t, pool, `
		select format('%s was read whole: %s times', relname, seq_scan)
		from pg_stat_user_tables
		where schemaname = 'pawl' and seq_scan > 0 and relname in ('instance', 'idempotency_key', 'history', 'timer')`) {
		t.Error(use)
	}
}

// No index holds a column that a transition changes, so that it writes to none.
func TestTransitionsAreHeapOnlyUpdates(t *testing.T) {
	t.Parallel()
	pool, ids := withDoors(t, 1)
	conn := connect(t, pool)
	for i := range 20 { // as many versions as a page has room for
		wantOutcome(t, fire(t, conn, tenant, command{id: ids[0], event: []string{"open", "close"}[i%2]})[0], "applied")
	}
	bounded.Exec(t, conn, "select pg_stat_force_next_flush()")
	if got := bounded.Value[string](t, conn, "select n_tup_upd || ' ' || n_tup_hot_upd from pg_stat_user_tables where relid = 'pawl.instance'::regclass"); got != "20 20" {
		t.Errorf("updates, heap-only updates: %s; want 20 20", got)
	}
}

const decideCall = `
	select d.*
	from unnest($2::uuid[], $3::text[], $4::jsonb[], $5::text[], $6::text[], $7::text[], $8::text[])
		as c (id, event, payload, key, expected, checked, reason)
	left join lateral (select i.* from pawl.instance i where i.tenant_id = $1 and i.id = c.id limit 1) i on true
	cross join lateral pawl_private.decide($9::timestamptz, $10::pawl.setting, i::pawl.instance,
		($1::text, c.event, c.payload, c.key, c.expected, c.checked, c.reason, 'a', true, $11::boolean, false, null)::pawl_private.fire_command) d`

// The planner puts decide and choose in place, where it sees what they look up.
func TestDecideIsPutInPlace(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	conn := connect(t, pool)
	bounded.Exec(t, conn, "set plan_cache_mode = force_generic_plan")
	bounded.Exec(t, conn, "prepare decide as "+decideCall)
	plan := strings.Join(bounded.Column[string](t, conn, "explain (verbose) execute decide ('', '{}', '{}', '{}', '{}', '{}', '{}', '{}', now(), null, false)"), "\n")
	wantEnginePlan(t, plan)
}

// wantEnginePlan fails the test if a plan reads tables otherwise than by full key, or calls decide or choose.
func wantEnginePlan(t *testing.T, plan string) {
	t.Helper()
	for _, name := range []string{"decide", "choose"} {
		if strings.Contains(plan, "Function Scan on pawl_private."+name) || strings.Contains(plan, "Function Call: pawl_private."+name) || strings.Contains(plan, "Function Call: "+name) {
			t.Errorf("%s is called, not put in place:\n%s", name, plan)
		}
	}
	for _, line := range strings.Split(plan, "\n") {
		_, index, scan := strings.Cut(line, " using ")
		index, _, _ = strings.Cut(index, " ")
		if strings.Contains(line, "Seq Scan") && !strings.Contains(line, "setting") || scan && !strings.HasSuffix(index, "_pkey") && index != "instance_business_key_key" {
			t.Errorf("the plan has: %s", strings.TrimSpace(line))
		}
	}
	if !strings.Contains(plan, "((k.tenant_id)::text = ") || !strings.Contains(plan, "k.expires_at > $") || !strings.Contains(plan, "instance_pkey") && !strings.Contains(plan, "instance_business_key_key") {
		t.Errorf("the plan is not generic, or reads something else:\n%s", plan)
	}
}

// The engine's own statements have generic plans, which look rows up by full key.
func TestPlansOfTheEngine(t *testing.T) {
	t.Parallel()
	pool, ids := withDoors(t, 1)
	config, err := pgx.ParseConfig(dbtest.DSN(pool))
	if err != nil {
		t.Fatal(err)
	}
	var plans []string
	config.OnNotice = func(_ *pgconn.PgConn, n *pgconn.Notice) { plans = append(plans, n.Message) }
	conn, err := pgx.ConnectConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	if _, err := conn.Exec(t.Context(), "load 'auto_explain'"); err != nil {
		t.Skipf("this server has no auto_explain, a part of contrib: %v", err)
	}
	bounded.Exec(t, conn, `
		set auto_explain.log_min_duration = 0; set auto_explain.log_nested_statements = on;
		set auto_explain.log_verbose = on; set client_min_messages = log`)
	for name, f := range map[string]func(){
		"fire":   func() { fire(t, conn, tenant, command{id: ids[0], event: "open", key: "a"}) },
		"create": func() { create(t, conn, tenant, creation{workflow: "door", key: "b", businessKey: "c"}) },
	} {
		plans = nil
		f()
		var found bool
		for _, plan := range plans {
			if strings.Contains(plan, "with decided as") {
				found = true
				wantEnginePlan(t, plan)
			}
		}
		if !found {
			t.Errorf("no plan of %s among %d", name, len(plans))
		}
	}
}
