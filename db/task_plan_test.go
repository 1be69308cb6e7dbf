package db_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// courier has a call, work and what undoes them, of the connection psp and the topic pack. One with another name has them of
// its own.
const courier = `{"name": "courier", "initial": "CALLING", "states": {
	"CALLING": {"invoke": {"call": {"http": {"connection": "psp", "method": "POST", "path": "/calls"}, "deadline": "1h",
		"done": [{"target": "PACKING"}], "error": [{"target": "UNDOING"}], "unknown": [{"target": "UNDOING"}],
		"compensate": {"work": {"topic": "unpack"}, "deadline": "1h", "if_unknown": "run"}}}},
	"PACKING": {"invoke": {"pack": {"work": {"topic": "pack"}, "deadline": "1h",
		"done": [{"target": "DONE"}], "error": [{"target": "UNDOING"}], "unknown": [{"target": "UNDOING"}],
		"compensate": {"work": {"topic": "unpack"}, "deadline": "1h"}}}, "on": {"abort": [{"target": "UNDOING"}]}},
	"UNDOING": {"compensate": {"what": "all", "on_failure": "stop"}, "done": [{"target": "DONE"}], "error": [{"target": "STUCK"}]},
	"STUCK": {"on": {"again": [{"target": "UNDOING"}]}},
	"DONE": {"type": "final"}}}`

// millionTasks gives each instance an open task. Half of them are calls, and of those with a history all are due. Ten are
// being reconciled.
const millionTasks = `
	insert into pawl.task (
		tenant_id, id, instance_id, workflow, workflow_version, position, state, name, connection, topic, entered_version,
		status, tries, sent_at, due_at, look_at, deadline_at, created_at)
	select
		i.tenant_id, i.id, i.id, w.workflow, w.workflow_version, w.position, w.state, w.name, w.connection, w.topic, 1,
		case when i.n % 100000 = 7 then 'reconciling' when i.n % 10 = 3 then 'sent' else 'pending' end, 0, null,
		i.created_at + case when i.n > 50000 then interval '30 days' else interval '0' end, $1::timestamptz + interval '60 days',
		$1::timestamptz + interval '60 days', i.created_at
	from (select i.*, substr(i.business_key, 5)::integer as n from pawl.instance i where i.business_key ~ '^key ') i
	join pawl.workflow_task w on w.workflow = 'courier' and w.state = case i.n % 2 when 0 then 'CALLING' else 'PACKING' end
	order by i.id`

// tasksAtAMillion looks at what claims, sweeps, reports, undoing and lists read of a million open tasks.
func tasksAtAMillion(t *testing.T, pool *pgxpool.Pool, end time.Time) {
	register(t, pool, courier)
	register(t, pool, strings.NewReplacer("courier", "runner", "psp", "own", "pack\"", "own\"", "\"unown\"", "\"unown\"").Replace(courier))
	// An index of all is made in a fraction of the time that a million insertions take.
	indexes := bounded.Column[string](t, pool, "select indexdef from pg_indexes where schemaname = 'pawl' and tablename = 'task' and indexname <> 'task_pkey'")
	bounded.Exec(t, pool, `do $$ declare v_name text; begin
		for v_name in select indexname from pg_indexes where schemaname = 'pawl' and tablename = 'task' and indexname <> 'task_pkey' loop
			execute format('drop index pawl.%I', v_name);
		end loop;
	end $$`)
	bounded.Exec(t, pool, millionTasks, end)
	for _, index := range indexes {
		bounded.Exec(t, pool, index)
	}
	bounded.Exec(t, pool, `
		insert into pawl.compensation (tenant_id, instance_id, name, workflow, workflow_version, position, version, status)
		select i.tenant_id, i.id, 'call', 'courier', 1, 1, 1, 'registered' from pawl.instance i limit 100000`)
	bounded.Exec(t, pool, `
		insert into pawl.undoing (tenant_id, instance_id, due_at)
		select i.tenant_id, i.id, $1::timestamptz + interval '60 days' from pawl.instance i limit 50000`, end)
	bounded.Exec(t, pool, `
		insert into pawl.task_attempt (tenant_id, task_id, number, kind, key, lease, started_at)
		select i.tenant_id, i.id, 1, 'call', i.id, i.id, i.created_at from pawl.instance i limit 100000`)
	bounded.Exec(t, pool, "vacuum (analyze) pawl.task, pawl.task_attempt, pawl.compensation, pawl.undoing, pawl.workflow_task")
	bounded.Exec(t, pool, `insert into pawl.connection (tenant_id, name, version, base_url, auth, headers, concurrency, created_at, created_by, updated_at)
		select 'default', n, 1, 'http://localhost', '{"type": "none"}', '{}', 32, now(), 'tester', now() from unnest('{psp,own}'::text[]) n`)

	t.Run("lists", func(t *testing.T) { taskListsAtAMillion(t, pool) })
	t.Run("work", func(t *testing.T) { taskWorkAtAMillion(t, pool) })
}

func taskListsAtAMillion(t *testing.T, pool *pgxpool.Pool) {
	conn := connect(t, pool)
	const page = 51
	deep := bounded.Value[uuid.UUID](t, conn, "select id from pawl.instance where business_key = 'key 500000'")
	for name, c := range map[string]struct {
		queries.ListTasksParams
		rows int
	}{
		"all":              {queries.ListTasksParams{}, page},
		"far down":         {queries.ListTasksParams{BeforeID: &deep}, page},
		"pending":          {queries.ListTasksParams{Status: new("pending")}, page},
		"sent, far down":   {queries.ListTasksParams{Status: new("sent"), BeforeID: &deep}, page},
		"reconciling":      {queries.ListTasksParams{Status: new("reconciling")}, 10},
		"unknown":          {queries.ListTasksParams{Status: new("unknown")}, 0},
		"error":            {queries.ListTasksParams{Status: new("error")}, 0},
		"of an instance":   {queries.ListTasksParams{InstanceID: &deep}, 1},
		"of a topic":       {queries.ListTasksParams{Topic: new("pack")}, page},
		"of a workflow":    {queries.ListTasksParams{Workflow: new("courier"), Status: new("pending")}, page},
		"within workflows": {queries.ListTasksParams{Within: []string{"courier"}}, page},
	} {
		t.Run(name, func(t *testing.T) {
			c.TenantID, c.RowLimit = tenant, page
			p := &planned{Conn: conn, t: t, mode: "force_custom_plan"}
			rows, err := queries.New(p).ListTasks(t.Context(), c.ListTasksParams)
			if err != nil {
				t.Fatal(err)
			}
			if len(rows) != c.rows {
				t.Errorf("%d rows, want %d", len(rows), c.rows)
			}
			p.wantBounded(1500)
		})
	}
}

// taskWorkAtAMillion claims, reports, sweeps and undoes, and counts what that has read.
func taskWorkAtAMillion(t *testing.T, pool *pgxpool.Pool) {
	ids := make([]uuid.UUID, 3)
	for i := range ids {
		ids[i] = *create(t, pool, tenant, creation{workflow: "runner"})[0].ID
	}
	conn := connect(t, pool)
	pool.Reset()
	bounded.UntilSQL(t, conn, "select count(*) = 1 from pg_stat_activity where datname = current_database() and backend_type = 'client backend'")
	bounded.Exec(t, conn, "select pg_stat_force_next_flush()")
	bounded.Exec(t, pool, "select pg_stat_reset()")

	want := func(what string, n int, sql string, args ...any) {
		t.Helper()
		if got := bounded.Value[int](t, conn, sql, args...); got != n {
			t.Fatalf("%s: %d, want %d", what, got, n)
		}
	}
	// Arming looks for another task that waits.
	wantOutcome(t, create(t, conn, tenant, creation{workflow: "courier"})[0], "applied")
	want("ready lanes", 2, "select count(*) from pawl.task_lanes('', 100) l where l.ready")
	want("claimed calls", 10, "select count(*) from pawl.task_claim('{default}', '{psp}', '{10}', 'test')")
	want("claimed work", 10, "select count(*) from pawl.claim_work('pack', 'test', 10)")
	const keyed = `select count(*) from pawl.work_claims('[{"tenant": "default", "topic": "pack", "worker": "w", "max": 10, "key": "k"}]')`
	want("claimed with a key", 10, keyed)
	want("claimed with the same key", 10, keyed)
	// A call is lost, and two are answered, whose instances are then to undo them.
	want("claimed calls of its own", 3, "select count(*) from pawl.task_claim('{default}', '{own}', '{10}', 'test')")
	for _, id := range ids[:2] {
		want("settled", 1, `select count(*) from pawl.task t, pawl.task_settle('{default}', array[t.id], array[t.lease], '{"{\"result\": \"answered\", \"status\": 200}"}') s
			where t.tenant_id = 'default' and t.instance_id = $1 and s.code = 'settled'`, id)
		wantOutcome(t, fire(t, conn, tenant, command{id: id, event: "abort"})[0], "applied")
	}
	dbtest.Advance(t, pool, 2*time.Minute)
	want("swept", 33, "select looked from pawl.task_sweep(100)")
	want("undone", 3, `select count(*) from pawl.claim_work('unown', 'test', 10) w, pawl.complete_work(w.id, w.lease) i`)
	want("moments", 1, "select (count(*) > 3)::integer from pawl.timeline_page('default', $1, null, null, null, null, 0, 0, '00000000-0000-0000-0000-000000000000', 50)", ids[0])

	bounded.Exec(t, conn, "select pg_stat_force_next_flush()")
	bounded.UntilSQL(t, pool, "select idx_scan > 0 from pg_stat_user_indexes where indexrelname = 'task_look_at_idx'")
	tables := []string{"task", "task_attempt", "compensation", "undoing", "instance", "history"}
	for _, use := range bounded.Column[string](t, pool, `
		select format('%s was read whole: %s times', relname, seq_scan) from pg_stat_user_tables
		where schemaname = 'pawl' and seq_scan > 0 and relname = any ($1)
		union all
		select format('%s was used: %s times, %s entries read', indexrelname, idx_scan, idx_tup_read) from pg_stat_user_indexes
		where schemaname = 'pawl' and relname = any ($1) and idx_tup_read > 1000`, tables) {
		t.Error(use)
	}
	used := bounded.Column[string](t, pool, "select indexrelname from pg_stat_user_indexes where schemaname = 'pawl' and relname = any ($1) and idx_scan > 0", tables)
	for _, index := range []string{"task_connection_due_idx", "task_topic_due_idx", "task_look_at_idx", "task_claim_key_idx", "task_instance_idx", "undoing_due_at_idx"} {
		if !slices.Contains(used, index) {
			t.Errorf("%s was not used: %s", index, fmt.Sprint(used))
		}
	}
}
