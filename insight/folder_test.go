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
// (note), eventless (through B.done), by a pattern, by a timer, and into each kind of end. Its version has a state more.
func walk(version int) string {
	return fmt.Sprintf(`{"name": "walk", "retention": "1h", "initial": "A", "cancel": "Off", "states": {
		"A": {"on": {
			"go": [{"target": "B"}], "again": [{"target": "A"}], "note": [{"assign": "*"}], "x.*": [{"target": "C"}]}},
		"B": {"initial": "one", "on": {"back": [{"target": "A"}]}, "done": [{"target": "C"}], "states": {
			"one": {"on": {"finish": [{"target": "B.end"}]}}, "end": {"type": "final"}}},
		"C": {"on": {"stop": [{"target": "Done"}], "fail": [{"target": "Lost"}]}, "after": {"1s": [{"target": "A"}]}},
		"D%d": {"on": {"go": [{"target": "A"}]}},
		"Done": {"type": "final", "outcome": "completed"}, "Lost": {"type": "final", "outcome": "failed"},
		"Off": {"type": "final", "outcome": "cancelled"}}}`, version)
}

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
)

// fold runs a Folder with small pages until the test ends, or stop is called.
func fold(t *testing.T, pool *pgxpool.Pool, page int) (stop func()) {
	t.Helper()
	return bounded.Run(t, "the folder", insight.NewFolder(pool, insight.FolderConfig{
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

// steps makes random steps of instances, each chosen among those that there are. Refusals are steps that are not made.
func steps(t *testing.T, pool *pgxpool.Pool, random *rand.Rand, n int) {
	t.Helper()
	for range n {
		bounded.Exec(t, pool, `do $$ declare
				v_id uuid := (select id from pawl.instance where status = 'active' order by random() limit 1);
				v_pick integer := `+strconv.Itoa(random.IntN(14))+`;
			begin
				case
					when v_pick < 2 or v_id is null then perform pawl.create_one('walk');
					when v_pick = 2 then perform pawl.override(v_id, 'test', '*', p_to => 'B');
					when v_pick = 3 then perform pawl.cancel(v_id, 'test');
					when v_pick = 4 then perform pawl.fire_timers(100);
					when v_pick = 5 then
						perform pawl.migrate_instances('default', 'walk', 1, 2, '{"D1": "D2"}', null, 5);
					else perform pawl.fire_one(v_id,
						(array['go', 'again', 'note', 'x.y', 'x.z', 'finish', 'back', 'stop', 'fail'])[1 + floor(random() * 9)]);
				end case;
			exception when others then
				if sqlstate not like 'PW4%' then raise; end if;
			end $$`)
	}
}

// The sums equal a recount, after random steps of all kinds, while the processes that fold are killed. A purge takes
// its instances out of what is there now, and leaves the sums of what happened.
func TestSumsEqualARecount(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	pool := dbtest.New(t)
	outboxtest.Number(t, pool)
	bounded.Exec(t, pool, "select pawl.register_workflow($1)", walk(1))
	bounded.Exec(t, pool, "select pawl.create_one('walk') from generate_series(1, 20)")
	bounded.Exec(t, pool, "select pawl.register_workflow($1)", walk(2))
	// With connections of their own, so that only theirs are killed.
	folders, err := pgxpool.New(t.Context(), dbtest.DSN(pool)+"&application_name=folder")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(folders.Close)
	fold(t, folders, 1000)
	for range 12 {
		stop := fold(t, folders, 1+random.IntN(20))
		steps(t, pool, random, 25)
		bounded.Exec(t, pool, `select pg_terminate_backend(pid) from pg_stat_activity
			where datname = current_database() and application_name = 'folder'`)
		stop()
	}
	bounded.Exec(t, pool, "select pawl.fire_one((pawl.create_one('walk')).id, 'x.y')")
	bounded.UntilSQL(t, pool, "select fired > 0 from pawl.fire_timers(100)")
	folded(t, pool)
	equal(t, pool, "residence", residences, instances)
	equal(t, pool, "instance_count", counts, instancesHave)
	equal(t, pool, "edge_count", edges, historyGoes)
	equal(t, pool, "dwell_count", dwells, historyStays)
	for _, kind := range []string{"created", "transition", "timeout", "forced", "cancelled", "migrated"} {
		if bounded.Value[int](t, pool, "select count(*) from pawl.history where kind = $1", kind) == 0 {
			t.Errorf("no step was %s: the test shows less than it says", kind)
		}
	}
	wantEdges, wantDwells := bounded.Column[string](t, pool, edges), bounded.Column[string](t, pool, dwells)
	purged := bounded.Value[int](t, pool, `select cardinality(pawl.purge_archived('default',
		(select array_agg(id) from pawl.instance where status <> 'active'), pawl.now()))`)
	if purged == 0 {
		t.Fatal("no instance was purged")
	}
	equal(t, pool, "residence after a purge", residences, instances)
	equal(t, pool, "instance_count after a purge", counts, instancesHave)
	if diff := cmp.Diff(wantEdges, bounded.Column[string](t, pool, edges)); diff != "" {
		t.Errorf("edge_count after a purge (-before +after):\n%s", diff)
	}
	if diff := cmp.Diff(wantDwells, bounded.Column[string](t, pool, dwells)); diff != "" {
		t.Errorf("dwell_count after a purge (-before +after):\n%s", diff)
	}
}
