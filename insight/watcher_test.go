package insight_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/fsm/fsmtest"
	"github.com/pawl-fsm/pawl/fsm/worker"
	"github.com/pawl-fsm/pawl/internal/bounded"
	"github.com/pawl-fsm/pawl/outbox/outboxtest"
)

// watched returns a database whose clock stands still, with workflows, a sequencer and a folder.
func watched(t *testing.T, definitions ...string) *pgxpool.Pool {
	t.Helper()
	pool := dbtest.New(t)
	dbtest.SetClock(t, pool, fsmtest.Noon)
	for _, definition := range definitions {
		bounded.Exec(t, pool, "select pawl.register_workflow($1::jsonb)", definition)
	}
	outboxtest.Number(t, pool)
	fold(t, pool, 100)
	folded(t, pool)
	return pool
}

// made creates instances of a workflow, and waits until they are folded.
func made(t *testing.T, pool *pgxpool.Pool, workflow string, n int, members ...string) []uuid.UUID {
	t.Helper()
	tenant := "default"
	if len(members) > 0 {
		tenant = members[0]
	}
	ids := bounded.Column[uuid.UUID](t, pool, "select (pawl.create_one($1, p_tenant => $3)).id from generate_series(1, $2)", workflow, n, tenant)
	folded(t, pool)
	return ids
}

// looked looks until nothing more is due, in batches of a size, and returns how often that took.
func looked(t *testing.T, pool *pgxpool.Pool, batch int) (looks int) {
	t.Helper()
	for more := true; more; looks++ {
		if looks > 100 {
			t.Fatal("the looks come to no end")
		}
		more = bounded.Value[bool](t, pool, "select more from pawl.finding_look($1, '0 s')", batch)
	}
	return looks
}

// wantOpen checks the open findings, each as its kind and the state, sorted.
func wantOpen(t *testing.T, pool *pgxpool.Pool, want ...string) {
	t.Helper()
	looked(t, pool, 100)
	slices.Sort(want)
	got := bounded.Column[string](t, pool, `select concat_ws(' ', kind, state) from pawl.finding where closed_at is null order by concat_ws(' ', kind, state) collate "C"`)
	if !slices.Equal(got, want) {
		t.Errorf("open findings: %q, want %q", got, want)
	}
}

// stranding has a state that nothing leaves (LOST), one whose event has a guard that never holds (BARRED), and others that
// a timer or a caller leaves.
const stranding = `{"name": "stranding", "initial": "START", "states": {
	"START": {"on": {"lose": [{"target": "LOST"}], "bar": [{"target": "BARRED"}], "time": [{"target": "TIMED"}], "end": [{"target": "DONE"}]}},
	"LOST": {"stuck_after": "1h", "always": [{"guard": "$.context.never == 1", "target": "DONE"}]},
	"BARRED": {"on": {"go": [{"guard": "1 == 2", "target": "DONE"}]}},
	"TIMED": {"after": {"5d": [{"target": "DONE"}]}},
	"DONE": {"type": "final", "outcome": "completed"}}}`

// An instance is orphaned 10 s after it came into a state that nothing leaves. A guard that never holds makes none. The
// finding hides that the instance is slow, and the next step closes it.
func TestOrphanedIsStructural(t *testing.T) {
	t.Parallel()
	pool := watched(t, stranding)
	ids := made(t, pool, "stranding", 4)
	for i, event := range []string{"lose", "bar", "time"} {
		bounded.Exec(t, pool, "select pawl.fire_one($1, $2)", ids[i], event)
	}
	folded(t, pool)
	dbtest.Advance(t, pool, 9*time.Second)
	wantOpen(t, pool)
	dbtest.Advance(t, pool, time.Second)
	wantOpen(t, pool, "orphaned LOST")
	dbtest.Advance(t, pool, 2*time.Hour)
	wantOpen(t, pool, "orphaned LOST")
	if got := bounded.Value[uuid.UUID](t, pool, "select instance_id from pawl.finding where visit_version = 2"); got != ids[0] {
		t.Errorf("the finding is about %s, want %s", got, ids[0])
	}
	bounded.Exec(t, pool, "select pawl.override($1, 'test', '*', p_to => 'START')", ids[0])
	folded(t, pool)
	wantOpen(t, pool)
}

// waiting has a state in which instances of a version may be for so long.
func waiting(after string) string {
	return fmt.Sprintf(`{"name": "waiting", "initial": "WAIT", "states": {
		"WAIT": {%s "on": {"go": [{"target": "WORK"}], "again": [{"target": "WAIT"}]}}, "WORK": {"on": {"end": [{"target": "DONE"}]}},
		"DONE": {"type": "final", "outcome": "completed"}}}`, after)
}

// An instance is slow when it has been in its state for the stuck_after of the latest version. A longer one closes what is no
// longer due, and it is opened again when it is. A batch may be smaller than what is due.
func TestSlowByStuckAfter(t *testing.T) {
	t.Parallel()
	pool := watched(t, waiting(`"stuck_after": "1h",`))
	ids := made(t, pool, "waiting", 5)
	dbtest.Advance(t, pool, time.Hour-time.Second)
	wantOpen(t, pool)
	dbtest.Advance(t, pool, time.Second)
	if looks := looked(t, pool, 10); looks < 2 {
		t.Errorf("%d looks of ten rows at most found five instances at a place", looks)
	}
	slow := func(n int) []string { return slices.Repeat([]string{"slow WAIT"}, n) }
	wantOpen(t, pool, slow(5)...)
	// The next visit counts anew.
	bounded.Exec(t, pool, "select pawl.fire_one($1, 'again')", ids[0])
	bounded.Exec(t, pool, "select pawl.fire_one($1, 'go')", ids[1])
	folded(t, pool)
	wantOpen(t, pool, slow(3)...)
	bounded.Exec(t, pool, "select pawl.register_workflow($1::jsonb)", waiting(`"stuck_after": "2h",`))
	dbtest.Advance(t, pool, time.Minute)
	wantOpen(t, pool)
	dbtest.Advance(t, pool, 58*time.Minute)
	wantOpen(t, pool)
	dbtest.Advance(t, pool, time.Minute)
	wantOpen(t, pool, slow(3)...)
	dbtest.Advance(t, pool, time.Hour)
	wantOpen(t, pool, slow(4)...)
	// Without one, nothing is slow: there are too few visits.
	bounded.Exec(t, pool, "select pawl.register_workflow($1::jsonb)", waiting(""))
	dbtest.Advance(t, pool, time.Minute)
	wantOpen(t, pool)
}

// Without stuck_after an instance is slow after three times what 99 of 100 visits of its tenant took, if there are 30. Other
// tenants' visits do not count.
func TestSlowByDwell(t *testing.T) {
	t.Parallel()
	pool := watched(t, waiting(""))
	dbtest.Tenants(t, pool, "other")
	left := made(t, pool, "waiting", 29)
	dbtest.Advance(t, pool, time.Minute)
	bounded.Exec(t, pool, "select pawl.fire_one(id, 'go') from unnest($1::uuid[]) id", left)
	folded(t, pool)
	made(t, pool, "waiting", 1, "other")
	made(t, pool, "waiting", 2)
	dbtest.Advance(t, pool, 10*time.Minute)
	wantOpen(t, pool) // 29 visits are too few.
	one := made(t, pool, "waiting", 1)
	dbtest.Advance(t, pool, time.Minute)
	bounded.Exec(t, pool, "select pawl.fire_one($1, 'go')", one[0])
	folded(t, pool)
	dbtest.Advance(t, pool, 10*time.Minute)
	wantOpen(t, pool, "slow WAIT", "slow WAIT")
	if got := bounded.Value[string](t, pool, "select string_agg(distinct tenant_id || ' ' || (detail ->> 'threshold'), ',') from pawl.finding"); got != "default dwell" {
		t.Errorf("found: %s", got)
	}
	if got := bounded.Value[float64](t, pool, "select min((detail ->> 'threshold_seconds')::float8) from pawl.finding"); got < 170 || got > 190 {
		t.Errorf("the threshold is %v s, want about 180", got)
	}
}

// An instance migration keeps when the state was entered. What it brings behind the place up to which the last look came is
// found all the same.
func TestLookFindsWhatComesLate(t *testing.T) {
	t.Parallel()
	pool := watched(t, waiting(`"stuck_after": "1h",`))
	made(t, pool, "waiting", 1)
	bounded.Exec(t, pool, "select pawl.register_workflow($1::jsonb)", waiting(`"stuck_after": "1h", "description": "v2",`))
	dbtest.Advance(t, pool, 2*time.Hour)
	wantOpen(t, pool, "slow WAIT")
	bounded.Exec(t, pool, "select pawl.migrate_instances('default', 'waiting', 1, 2, '{}', null, 5)")
	folded(t, pool)
	if n := bounded.Value[int](t, pool, "select count(*) from pawl.finding where closed_at is null"); n != 0 {
		t.Errorf("%d findings are open after the migration, want none before the next look", n)
	}
	wantOpen(t, pool, "slow WAIT")
	if n := bounded.Value[int](t, pool, "select count(*) from pawl.finding"); n != 2 {
		t.Errorf("%d findings, want one for each visit", n)
	}
}

// tasked has a task whose outcomes all lead to a state whose invariant does not hold.
const tasked = `{"name": "tasked", "initial": "PACKING", "states": {
	"PACKING": {"invoke": {"pack": {"work": {"topic": "pack"}, "deadline": "1h",
			"done": [{"target": "DONE"}], "error": [{"target": "DONE"}], "unknown": [{"target": "DONE"}]}},
		"on": {"leave": [{"target": "LEFT"}]}},
	"LEFT": {"on": {"end": [{"target": "DONE"}]}},
	"DONE": {"type": "final", "outcome": "completed", "invariant": "$.context.fine == 1"}}}`

// A task that ended and made no step is found while the instance is where it was, and one that was done after its state was
// left. What an operator makes of it closes the finding.
func TestTasksThatEndedBadly(t *testing.T) {
	t.Parallel()
	orphaning := strings.Replace(strings.Replace(tasked, `"name": "tasked"`, `"name": "orphaning"`, 1),
		`,
		"on": {"leave": [{"target": "LEFT"}]}}`, "}", 1)
	orphaning = strings.Replace(orphaning, `"topic": "pack"`, `"topic": "lose"`, 1)
	pool := watched(t, tasked, orphaning)
	made(t, pool, "tasked", 1)
	bounded.Exec(t, pool, `select pawl.create_one('tasked', '{"leaves": 1}')`)
	made(t, pool, "orphaning", 1)
	dbtest.Advance(t, pool, time.Minute)
	wantOpen(t, pool) // The tasks are open.
	claim := func(topic string) (id, lease uuid.UUID, instance uuid.UUID) {
		t.Helper()
		parts := strings.Split(bounded.Value[string](t, pool, "select concat_ws(' ', id, lease, instance_id) from pawl.claim_work($1, 'w', 1)", topic), " ")
		return uuid.MustParse(parts[0]), uuid.MustParse(parts[1]), uuid.MustParse(parts[2])
	}
	for range 2 {
		id, lease, instance := claim("pack")
		if bounded.Value[bool](t, pool, "select context ? 'leaves' from pawl.instance where id = $1", instance) {
			bounded.Exec(t, pool, "select pawl.fire_one($1, 'leave')", instance)
		}
		bounded.Exec(t, pool, "select pawl.complete_work($1, $2, '{}')", id, lease)
	}
	id, lease, _ := claim("lose")
	bounded.Exec(t, pool, "select pawl.complete_work($1, $2, '{}')", id, lease)
	folded(t, pool)
	wantOpen(t, pool, "task-dead PACKING", "task-late LEFT", "task-dead PACKING", "orphaned PACKING")
	if got := bounded.Value[bool](t, pool, "select bool_and(detail ->> 'task_id' = cause_id::text) from pawl.finding where cause_id is not null"); !got {
		t.Error("the findings do not name their tasks")
	}
	bounded.Exec(t, pool, "select pawl.override(instance_id, 'test', '*', p_to => 'LEFT') from pawl.finding where kind = 'orphaned'")
	bounded.Exec(t, pool, "select pawl.override(instance_id, 'test', '*', p_to => 'LEFT') from pawl.finding where kind = 'task-dead' and workflow = 'tasked'")
	folded(t, pool)
	wantOpen(t, pool, "task-late LEFT")
	bounded.Exec(t, pool, "select pawl.override(instance_id, 'test', '*', p_to => 'PACKING') from pawl.finding where kind = 'task-late'")
	folded(t, pool)
	wantOpen(t, pool)
}

// A dead letter is found, its replay closes the finding, and so does a purge of the instance.
func TestDeadLettersAreFound(t *testing.T) {
	t.Parallel()
	pool := watched(t, strings.Replace(waiting(""), `"initial"`, `"retention": "1h", "initial"`, 1))
	ids := made(t, pool, "waiting", 2)
	subscription := bounded.Value[string](t, pool, "select (pawl.subscription_create('default', 'https://example.com', '{}', '{}', '{}', false, 'whsec_x', 'tester')).id::text")
	bounded.Exec(t, pool, `insert into pawl.delivery (tenant_id, id, subscription_id, callback, instance_id, version, type, status, attempts, last_status, created_at)
		select 'default', gen_random_uuid(), $1, false, id, 1, 'pawl.instance.created', 'dead', 9, 500, pawl.now() from unnest($2::uuid[]) id`, subscription, ids)
	wantOpen(t, pool, "delivery-dead WAIT", "delivery-dead WAIT")
	bounded.Exec(t, pool, "select pawl.fire_one($1, 'go'), pawl.fire_one($1, 'end')", ids[0])
	folded(t, pool)
	wantOpen(t, pool, "delivery-dead WAIT", "delivery-dead WAIT")
	bounded.Exec(t, pool, "update pawl.delivery set status = 'pending', next_attempt_at = pawl.now() where instance_id = $1", ids[1])
	wantOpen(t, pool, "delivery-dead WAIT")
	bounded.UntilSQL(t, pool, "select cardinality(pawl.purge_archived('default', array[$1::uuid], pawl.now())) = 1", ids[0])
	wantOpen(t, pool)
}

// A Watcher looks by itself, and one whose database is away goes on later. Two of them open nothing twice.
func TestWatcher(t *testing.T) {
	t.Parallel()
	pool := watched(t, stranding)
	ids := made(t, pool, "stranding", 3)
	bounded.Exec(t, pool, "select pawl.fire_one(id, 'lose') from unnest($1::uuid[]) id", ids)
	folded(t, pool)
	for range 2 {
		bounded.Run(t, "the watcher", worker.NewWatcher(pool, worker.WatcherConfig{BatchConfig: worker.BatchConfig{Interval: time.Millisecond}}).Run)
	}
	dbtest.Advance(t, pool, 10*time.Second)
	bounded.UntilSQL(t, pool, "select count(*) = 3 from pawl.finding")
	dbtest.Advance(t, pool, time.Hour)
	bounded.UntilSQL(t, pool, "select looked_at = pawl.now() from pawl_private.watch")
	if n := bounded.Value[int](t, pool, "select count(*) from pawl.finding"); n != 3 {
		t.Errorf("%d findings, want 3", n)
	}
}

// A look reads the instances that have become due, however many are at a place.
func TestLookReadsWhatIsDue(t *testing.T) {
	t.Parallel()
	pool := watched(t, waiting(`"stuck_after": "1h",`))
	made(t, pool, "waiting", 1)
	dbtest.Advance(t, pool, 2*time.Hour)
	bounded.Exec(t, pool, `
		insert into pawl.residence (tenant_id, instance_id, workflow, workflow_version, state, status, since, visit_version, visit_at)
		select 'default', pawl_private.uuid_v7(pawl.now()), 'waiting', 1, 'WAIT', 'active', s.at, 1, s.at
		from generate_series(1, 50000) n, lateral (select pawl.now() - n * interval '1 millisecond' as at) s`)
	bounded.Exec(t, pool, "analyze pawl.residence")
	wantOpen(t, pool, "slow WAIT")
	dbtest.Advance(t, pool, time.Minute)
	// Rows and entries of indexes.
	rows := bounded.Value[int](t, pool, `
		with before as materialized (select coalesce(sum(pg_stat_get_xact_tuples_returned(c.oid) + pg_stat_get_xact_tuples_fetched(c.oid)), 0) as n
			from pg_class c where c.relname like 'residence%'),
		looked as materialized (select l.more, b.n from before b cross join lateral pawl.finding_look(100, '0 s') l)
		select (select sum(pg_stat_get_xact_tuples_returned(c.oid) + pg_stat_get_xact_tuples_fetched(c.oid)) from pg_class c where c.relname like 'residence%')
			- l.n from looked l`)
	if rows < 1 || rows > 100 {
		t.Errorf("a look for which nothing is due reads %d rows of residence", rows)
	}
}
