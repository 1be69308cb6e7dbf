package insight_test

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/insight"
	"github.com/pawl-fsm/pawl/internal/bounded"
	"github.com/pawl-fsm/pawl/outbox/outboxtest"
)

// walk is a workflow with every kind of step that the fold tells apart: out of a state and back into it, within it
// (note), eventless (through B.done), by a pattern, by a timer, and into each kind of end. Two of its states strand
// instances or make them slow; in the others none is slow, however long it takes. Its version has a state more.
func walk(version int, search string) string {
	return fmt.Sprintf(`{"name": "walk", "retention": "1h", "initial": "A", "cancel": "Off", "search": {%s}, "states": {
		"A": {"stuck_after": "1ms", "on": {
			"go": [{"target": "B", "assign": "*"}], "again": [{"target": "A"}], "note": [{"assign": "*"}], "x.*": [{"target": "C", "assign": "*"}]}},
		"B": {"initial": "one", "on": {"back": [{"target": "A"}]}, "done": [{"target": "C"}], "states": {
			"one": {"stuck_after": "10000h", "on": {"finish": [{"target": "B.end"}]}}, "end": {"type": "final"}}},
		"C": {"stuck_after": "10000h", "on": {"stop": [{"target": "Done"}], "fail": [{"target": "Lost"}]}, "after": {"1s": [{"target": "A"}]}},
		"D%d": {"stuck_after": "10000h", "on": {"go": [{"target": "A"}]}},
		"Hole": {"always": [{"guard": "$.context.never == 1", "target": "A"}]},
		"Done": {"type": "final", "outcome": "completed"}, "Lost": {"type": "final", "outcome": "failed"},
		"Off": {"type": "final", "outcome": "cancelled"}}}`, search, version)
}

// What the versions of walk are searched by. The last one counts for all instances.
const (
	searchN     = `"n": "$.context.n", "s": "$.context.o.s"`
	searchTyped = `"n": {"path": "$.context.n", "type": "text"}, "s": "$.context.o.s", "b": "$.context.b"`
)

// The sums, and what history says. Each row is a text, so that rows of the same shape can be compared.
const (
	residences = `select format('%s %s %s %s %s', instance_id, workflow_version, state, status, since) from pawl.residence order by 1`
	instances  = `select format('%s %s %s %s %s', id, workflow_version, state, status, state_changed_at) from pawl.instance order by 1`

	counts        = `select format('%s %s %s %s', workflow_version, state, status, instances) from pawl.instance_count where instances > 0 order by 1`
	instancesHave = `select format('%s %s %s %s', workflow_version, state, status, count(*)) from pawl.instance
		group by workflow_version, state, status order by 1`

	edges       = `select format('%s %s %s %s>%s %s %s', day, workflow_version, event, from_state, to_state, status, steps) from pawl.edge_count order by 1`
	historyGoes = `select format('%s %s %s %s>%s %s %s', (h.at at time zone 'UTC')::date, h.workflow_version,
			case when h.kind in ('forced', 'cancelled', 'migrated') then h.kind when h.event like 'x.%' then 'x.*' else h.event end,
			h.from_state, h.to_state, h.status, count(*))
		from pawl.history h where h.internal is null
		group by (h.at at time zone 'UTC')::date, h.workflow_version,
			case when h.kind in ('forced', 'cancelled', 'migrated') then h.kind when h.event like 'x.%' then 'x.*' else h.event end,
			h.from_state, h.to_state, h.status
		order by 1`

	dwells       = `select format('%s %s %s %s %s', day, workflow_version, state, sum(visits), sum(milliseconds)) from pawl.dwell_count group by day, workflow_version, state order by 1`
	historyStays = `select format('%s %s %s %s %s', (n.at at time zone 'UTC')::date, v.workflow_version, v.to_state, count(*),
			sum((extract(epoch from n.at - v.at) * 1000)::bigint))
		from pawl.history v
		cross join lateral (
			select n.at from pawl.history n
			where n.tenant_id = v.tenant_id and n.instance_id = v.instance_id and n.version > v.version and n.internal is null
			order by n.version limit 1
		) n
		where v.internal is null
		group by (n.at at time zone 'UTC')::date, v.workflow_version, v.to_state order by 1`

	attributes  = `select format('%s %s %L %s %s %s', instance_id, name, text_value, number_value, time_value, boolean_value) from pawl.attribute order by 1`
	contextsSay = `select format('%s %s %L %s %s %s', i.id, v.name,
			case when k.kind = 'string' or v.name = 'n' then k.said end, case when k.kind = 'number' and v.name <> 'n' then k.said end,
			case when k.kind = 'string' and v.name <> 'n' and k.said like '2026-%' then k.said::timestamptz end,
			case when k.kind = 'boolean' and v.name <> 'n' then k.said::boolean end)
		from pawl.instance i
		cross join lateral (values ('n', i.context -> 'n'), ('s', i.context #> '{o,s}'), ('b', i.context -> 'b')) v (name, value)
		cross join lateral (select jsonb_typeof(v.value), v.value #>> '{}') k (kind, said)
		where k.kind in ('string', 'number', 'boolean') order by 1`

	openFindings = `select format('%s %s %s %s', kind, instance_id, state, since) from pawl.finding where closed_at is null order by 1`
	stuck        = `select format('%s %s %s %s', case state when 'A' then 'slow' else 'orphaned' end, id, state, state_changed_at)
		from pawl.instance where state in ('A', 'Hole') order by 1`
)

// fold runs a Folder, on sessions of its own, with small pages until the test ends, or stop is called.
func fold(t *testing.T, pool *pgxpool.Pool, page int) (stop func()) {
	t.Helper()
	config := pool.Config()
	config.ConnConfig.RuntimeParams["application_name"] = "folder"
	own, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(own.Close)
	return bounded.Run(t, "the folder", insight.NewFolder(own, insight.FolderConfig{
		Page: page, Poll: time.Millisecond, Lease: time.Second, ScoreEvery: time.Millisecond,
	}).Run)
}

// folded waits until everything that was committed is folded.
func folded(t *testing.T, pool *pgxpool.Pool) {
	t.Helper()
	outboxtest.Numbered(t, pool)
	outboxtest.CaughtUp(t, pool, insight.Consumer)
}

// equal compares what two statements return.
func equal(t *testing.T, pool *pgxpool.Pool, what, got, want string) {
	t.Helper()
	if diff := cmp.Diff(bounded.Column[string](t, pool, want), bounded.Column[string](t, pool, got)); diff != "" {
		t.Errorf("%s (-recount +sum):\n%s", what, diff)
	}
}

// steps makes random steps of instances, each chosen among those that there are. Refusals are steps that are not made. In
// between, instances are indexed anew, and looked at.
func steps(t *testing.T, pool *pgxpool.Pool, random *rand.Rand, n int) {
	t.Helper()
	for range n {
		bounded.Exec(t, pool, `do $$ declare
				v_id uuid := (select id from pawl.instance where status = 'active' order by random() limit 1);
				v_pick integer := `+strconv.Itoa(random.IntN(18))+`;
				v_values jsonb[] := array['1', '"1"', '1.50', 'true', 'null', '{"s": 1}', '[1]', '"x"', '"2026-03-01T10:00:00Z"', '""'];
				v_payload jsonb := jsonb_build_object('n', v_values[1 + floor(random() * 10)], 'b', v_values[1 + floor(random() * 10)],
					'o', case when random() < 0.7 then jsonb_build_object('s', v_values[1 + floor(random() * 10)]) else '1' end);
			begin
				case
					when v_pick < 2 or v_id is null then perform pawl.create_one('walk', v_payload);
					when v_pick = 2 then perform pawl.override(v_id, 'test', '*', p_to => (array['B', 'Hole'])[1 + floor(random() * 2)]);
					when v_pick = 3 then perform pawl.cancel(v_id, 'test');
					when v_pick = 4 then perform pawl.fire_timers(100);
					when v_pick = 5 then
						perform pawl.migrate_instances('default', 'walk', 1, 2, '{"D1": "D2"}', null, 5);
					when v_pick = 6 then perform pawl.reindex_workflow('walk', 5);
					when v_pick in (7, 8) then
						perform from pawl_private.watch for update;
						perform from pawl.consumer where name = 'insight' for update;
						update pawl_private.stuck_place set next_at = '-infinity';
						perform pawl.finding_look(20, '0 s');
					else perform pawl.fire_one(v_id,
						(array['go', 'again', 'note', 'x.y', 'x.z', 'finish', 'back', 'stop', 'fail'])[1 + floor(random() * 9)], v_payload);
				end case;
			exception when others then
				if sqlstate not like 'PW4%' then raise; end if;
			end $$`)
	}
}

// The sums, the index and the findings equal a recount, after random steps of all kinds, and versions with other search
// attributes, while the processes that fold are killed. A purge takes its instances out of what is there now, and leaves
// the sums of what happened.
func TestSumsEqualARecount(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	pool := dbtest.New(t)
	outboxtest.Number(t, pool)
	bounded.Exec(t, pool, "select pawl.register_workflow($1)", walk(1, searchN))
	bounded.Exec(t, pool, `select pawl.create_one('walk', '{"n": 1, "o": {"s": "x"}}') from generate_series(1, 20)`)
	bounded.Exec(t, pool, "select pawl.register_workflow($1)", walk(2, searchTyped))
	// With connections of their own, so that only theirs are killed.
	folders, err := pgxpool.New(t.Context(), dbtest.DSN(pool)+"&application_name=folder")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(folders.Close)
	fold(t, folders, 1000)
	for round := range 12 {
		switch round {
		case 4:
			bounded.Exec(t, pool, "select pawl.register_workflow($1)", walk(3, searchN))
		case 8:
			bounded.Exec(t, pool, "select pawl.register_workflow($1)", walk(4, searchTyped))
		}
		stop := fold(t, folders, 1+random.IntN(20))
		steps(t, pool, random, 30)
		bounded.Exec(t, pool, `select pg_terminate_backend(pid) from pg_stat_activity
			where datname = current_database() and application_name = 'folder'`)
		stop()
	}
	bounded.Exec(t, pool, "select pawl.fire_one((pawl.create_one('walk')).id, 'x.y')")
	bounded.Exec(t, pool, "select pawl.override((pawl.create_one('walk')).id, 'test', '*', p_to => 'Hole')")
	bounded.UntilSQL(t, pool, "select fired > 0 from pawl.fire_timers(100)")
	folded(t, pool)
	bounded.UntilSQL(t, pool, "select complete from pawl.reindex_workflow('walk', 7)")
	// Some is found meanwhile, the rest now, at a time at which all is due.
	early := bounded.Value[int](t, pool, "select count(*) from pawl.finding")
	dbtest.Advance(t, pool, time.Hour)
	looked(t, pool, 20)
	equal(t, pool, "residence", residences, instances)
	equal(t, pool, "instance_count", counts, instancesHave)
	equal(t, pool, "edge_count", edges, historyGoes)
	equal(t, pool, "dwell_count", dwells, historyStays)
	equal(t, pool, "attribute", attributes, contextsSay)
	equal(t, pool, "open findings", openFindings, stuck)
	for what, sql := range map[string]string{
		"visits with two findings of a kind": "select count(*) from (select from pawl.finding group by instance_id, kind, visit_version having count(*) > 1) f",
		"closed findings of present visits": `select count(*) from pawl.finding f join pawl.residence r using (tenant_id, instance_id)
			where f.closed_at is not null and f.visit_version = r.visit_version`,
	} {
		if n := bounded.Value[int](t, pool, sql); n != 0 {
			t.Errorf("there are %d %s", n, what)
		}
	}
	for _, kind := range []string{"created", "transition", "timeout", "forced", "cancelled", "migrated"} {
		if bounded.Value[int](t, pool, "select count(*) from pawl.history where kind = $1", kind) == 0 {
			t.Errorf("no step was %s: the test shows less than it says", kind)
		}
	}
	if early == 0 || bounded.Value[int](t, pool, "select count(*) from pawl.finding where closed_at is not null") == 0 {
		t.Error("no finding was closed by a step: the test shows less than it says")
	}
	wantEdges, wantDwells := bounded.Column[string](t, pool, edges), bounded.Column[string](t, pool, dwells)
	folded(t, pool) // Findings are in the log, too, and nothing is purged that a consumer may still have to read.
	purged := bounded.Value[int](t, pool, `select cardinality(pawl.purge_archived('default',
		(select array_agg(id) from pawl.instance where status <> 'active'), pawl.now()))`)
	if purged == 0 {
		t.Fatal("no instance was purged")
	}
	equal(t, pool, "residence after a purge", residences, instances)
	equal(t, pool, "instance_count after a purge", counts, instancesHave)
	equal(t, pool, "attribute after a purge", attributes, contextsSay)
	equal(t, pool, "open findings after a purge", openFindings, stuck)
	if diff := cmp.Diff(wantEdges, bounded.Column[string](t, pool, edges)); diff != "" {
		t.Errorf("edge_count after a purge (-before +after):\n%s", diff)
	}
	if diff := cmp.Diff(wantDwells, bounded.Column[string](t, pool, dwells)); diff != "" {
		t.Errorf("dwell_count after a purge (-before +after):\n%s", diff)
	}
}
