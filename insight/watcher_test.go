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
	pool, _ := watchedUntil(t, definitions...)
	return pool
}

// watchedUntil is watched with a folder that can be stopped.
func watchedUntil(t *testing.T, definitions ...string) (pool *pgxpool.Pool, stop func()) {
	t.Helper()
	pool = dbtest.New(t)
	dbtest.SetClock(t, pool, fsmtest.Noon)
	for _, definition := range definitions {
		bounded.Exec(t, pool, "select pawl.register_workflow($1::jsonb)", definition)
	}
	outboxtest.Number(t, pool)
	stop = fold(t, pool, 100)
	folded(t, pool)
	return pool, stop
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

// The threshold of a state is measured within a minute after there are 30 visits, though it was looked at before.
func TestSlowByTheFirstVisits(t *testing.T) {
	t.Parallel()
	pool := watched(t, waiting(""))
	made(t, pool, "waiting", 1)
	wantOpen(t, pool)
	left := made(t, pool, "waiting", 30)
	dbtest.Advance(t, pool, 10*time.Second)
	bounded.Exec(t, pool, "select pawl.fire_one(id, 'go') from unnest($1::uuid[]) id", left)
	folded(t, pool)
	wantOpen(t, pool)
	dbtest.Advance(t, pool, time.Minute)
	wantOpen(t, pool, "slow WAIT")
}

// An instance is found in time also if it comes into a state whose instances have all been found, so that no look at them is due.
func TestLookIsInTimeForWhoComesLater(t *testing.T) {
	t.Parallel()
	pool := watched(t, stranding, waiting(`"stuck_after": "5s",`))
	lose := func() {
		t.Helper()
		bounded.Exec(t, pool, "select pawl.fire_one($1, 'lose')", made(t, pool, "stranding", 1)[0])
		folded(t, pool)
	}
	waits := made(t, pool, "waiting", 1)
	lose()
	dbtest.Advance(t, pool, 10*time.Second)
	wantOpen(t, pool, "orphaned LOST", "slow WAIT")
	dbtest.Advance(t, pool, time.Second)
	bounded.Exec(t, pool, "select pawl.fire_one($1, 'again')", waits[0])
	lose()
	wantOpen(t, pool, "orphaned LOST")
	dbtest.Advance(t, pool, 4*time.Second)
	wantOpen(t, pool, "orphaned LOST")
	dbtest.Advance(t, pool, time.Second)
	wantOpen(t, pool, "orphaned LOST", "slow WAIT")
	dbtest.Advance(t, pool, 5*time.Second)
	wantOpen(t, pool, "orphaned LOST", "orphaned LOST", "slow WAIT")
}

// An instance migration keeps when the state was entered. What it brings behind the place up to which the last look came is
// found all the same.
func TestLookFindsWhatComesLate(t *testing.T) {
	t.Parallel()
	pool := watched(t, waiting(`"stuck_after": "1h",`))
	made(t, pool, "waiting", 1)
	bounded.Exec(t, pool, "select pawl.register_workflow($1::jsonb)", waiting(`"stuck_after": "1h", "description": "v2",`))
	dbtest.Advance(t, pool, time.Minute)
	made(t, pool, "waiting", 1) // Of version 2: it is not migrated.
	dbtest.Advance(t, pool, 2*time.Hour)
	wantOpen(t, pool, "slow WAIT", "slow WAIT")
	bounded.Exec(t, pool, "select pawl.migrate_instances('default', 'waiting', 1, 2, '{}', null, 5)")
	folded(t, pool)
	if n := bounded.Value[int](t, pool, "select count(*) from pawl.finding where closed_at is null"); n != 1 {
		t.Errorf("%d findings are open after the migration, want one before the next look", n)
	}
	wantOpen(t, pool, "slow WAIT", "slow WAIT")
	if n := bounded.Value[int](t, pool, "select count(*) from pawl.finding"); n != 3 {
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
	dead(t, pool, ids...)
	wantOpen(t, pool, "delivery-dead WAIT", "delivery-dead WAIT")
	bounded.Exec(t, pool, "select pawl.fire_one($1, 'go'), pawl.fire_one($1, 'end')", ids[0])
	folded(t, pool)
	wantOpen(t, pool, "delivery-dead WAIT", "delivery-dead WAIT")
	bounded.Exec(t, pool, "update pawl.delivery set status = 'pending', next_attempt_at = pawl.now() where instance_id = $1", ids[1])
	wantOpen(t, pool, "delivery-dead WAIT")
	bounded.UntilSQL(t, pool, "select cardinality(pawl.purge_archived('default', array[$1::uuid], pawl.now())) = 1", ids[0])
	wantOpen(t, pool)
}

// A dead letter that tells of a finding is not found: its endpoint may be told of findings.
func TestDeadLettersOfFindingsAreNotFound(t *testing.T) {
	t.Parallel()
	pool := watched(t, waiting(`"stuck_after": "1h",`))
	ids := made(t, pool, "waiting", 1)
	subscription := bounded.Value[string](t, pool, `
		select (pawl.subscription_create('default', 'https://example.com', '{}', '{}', '{}', false, 'whsec_x', 'tester', p_types => '{pawl.finding.opened}')).id::text`)
	dbtest.Advance(t, pool, time.Hour)
	wantOpen(t, pool, "slow WAIT")
	dead := func(finding, version, kind string) {
		t.Helper()
		bounded.Exec(t, pool, fmt.Sprintf(`
			insert into pawl.delivery (tenant_id, id, subscription_id, callback, instance_id, version, finding_id, type, status, attempts, last_status, created_at)
			select tenant_id, gen_random_uuid(), $1, false, instance_id, %s, %s, $2, 'dead', 9, 500, pawl.now() from pawl.finding where instance_id = $3`, version, finding),
			subscription, kind, ids[0])
	}
	dead("id", "null", "pawl.finding.opened")
	wantOpen(t, pool, "slow WAIT")
	dead("null", "1", "pawl.instance.created")
	wantOpen(t, pool, "slow WAIT", "delivery-dead WAIT")
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

// What is short is slow after 10 s at the earliest. Of 100 visits 99 count, and only those that ended in the last four weeks.
func TestDwellThatMakesSlow(t *testing.T) {
	t.Parallel()
	left := func(t *testing.T, pool *pgxpool.Pool, n int, after time.Duration) {
		t.Helper()
		ids := made(t, pool, "waiting", n)
		dbtest.Advance(t, pool, after)
		bounded.Exec(t, pool, "select pawl.fire_one(id, 'go') from unnest($1::uuid[]) id", ids)
		folded(t, pool)
	}
	t.Run("short visits", func(t *testing.T) {
		t.Parallel()
		pool := watched(t, waiting(""))
		left(t, pool, 30, 100*time.Millisecond)
		made(t, pool, "waiting", 1)
		dbtest.Advance(t, pool, 9*time.Second)
		wantOpen(t, pool)
		dbtest.Advance(t, pool, time.Second)
		wantOpen(t, pool, "slow WAIT")
	})
	t.Run("two of a hundred are long", func(t *testing.T) {
		t.Parallel()
		pool := watched(t, waiting(""))
		left(t, pool, 98, 10*time.Second)
		left(t, pool, 2, 10*time.Minute)
		made(t, pool, "waiting", 1)
		dbtest.Advance(t, pool, 25*time.Minute)
		wantOpen(t, pool)
		dbtest.Advance(t, pool, 10*time.Minute)
		wantOpen(t, pool, "slow WAIT")
	})
	t.Run("visits of other days", func(t *testing.T) {
		t.Parallel()
		const day = 24 * time.Hour
		pool := watched(t, waiting(""))
		left(t, pool, 30, time.Minute)
		dbtest.Advance(t, pool, 27*day)
		ids := made(t, pool, "waiting", 1)
		dbtest.Advance(t, pool, 10*time.Minute)
		wantOpen(t, pool, "slow WAIT")
		bounded.Exec(t, pool, "select pawl.fire_one($1, 'go')", ids[0])
		folded(t, pool)
		dbtest.Advance(t, pool, day)
		made(t, pool, "waiting", 1)
		dbtest.Advance(t, pool, time.Hour)
		wantOpen(t, pool) // One visit is left.
	})
}

// lasting has a state that strands instances of version 1 alone.
func lasting(event string) string {
	return fmt.Sprintf(`{"name": "lasting", "initial": "START", "states": {
		"START": {"stuck_after": "10m", "on": {"lose": [{"target": "LOST"}]}},
		"LOST": {"stuck_after": "1m"%s}, "DONE": {"type": "final"}}}`, event)
}

// lasts is what takes instances out of the state.
const lasts = `, "on": {"end": [{"target": "DONE"}]}`

// Whether an instance is orphaned is what its own version says. One that an instance migration strands is found although
// it came into the state before others that were looked at.
func TestOrphanedByVersion(t *testing.T) {
	t.Parallel()
	pool := watched(t, lasting(lasts))
	early := made(t, pool, "lasting", 1)
	bounded.Exec(t, pool, "select pawl.fire_one($1, 'lose')", early[0])
	folded(t, pool)
	bounded.Exec(t, pool, "select pawl.register_workflow($1::jsonb)", lasting(", \"always\": [{\"guard\": \"$.context.never == 1\", \"target\": \"DONE\"}]"))
	dbtest.Advance(t, pool, time.Second)
	late := made(t, pool, "lasting", 1)
	bounded.Exec(t, pool, "select pawl.fire_one($1, 'lose')", late[0])
	folded(t, pool)
	dbtest.Advance(t, pool, 30*time.Second)
	wantOpen(t, pool, "orphaned LOST")
	if got := bounded.Value[uuid.UUID](t, pool, "select instance_id from pawl.finding"); got != late[0] {
		t.Errorf("the finding is about %s, want %s", got, late[0])
	}
	bounded.Exec(t, pool, "select pawl.migrate_instances('default', 'lasting', 1, 2, '{}', null, 5)")
	folded(t, pool)
	wantOpen(t, pool, "orphaned LOST", "orphaned LOST")
	// A version after it in which nothing strands changes nothing for them.
	bounded.Exec(t, pool, "select pawl.register_workflow($1::jsonb)", strings.Replace(lasting(lasts), `"name"`, `"description": "v3", "name"`, 1))
	made(t, pool, "lasting", 1)
	bounded.Exec(t, pool, "select pawl.override($1, 'test', '*', p_to => 'START')", late[0])
	folded(t, pool)
	wantOpen(t, pool, "orphaned LOST")
	bounded.Exec(t, pool, "select pawl.fire_one($1, 'lose')", late[0])
	folded(t, pool)
	dbtest.Advance(t, pool, time.Minute)
	wantOpen(t, pool, "orphaned LOST", "orphaned LOST")
	// That an instance was orphaned does not hide that it is slow elsewhere.
	bounded.Exec(t, pool, "select pawl.override($1, 'test', '*', p_to => 'START')", late[0])
	folded(t, pool)
	dbtest.Advance(t, pool, 10*time.Minute)
	wantOpen(t, pool, "orphaned LOST", "slow START", "slow START")
}

// A look finds nothing of an instance that has moved since the last fold, also if it is back in the same state.
func TestLookLeavesOutWhatHasMoved(t *testing.T) {
	t.Parallel()
	pool, stop := watchedUntil(t, stranding, waiting(`"stuck_after": "1h",`), tasked)
	lost, slow, packed := made(t, pool, "stranding", 1)[0], made(t, pool, "waiting", 1)[0], made(t, pool, "tasked", 1)[0]
	bounded.Exec(t, pool, "select pawl.fire_one($1, 'lose')", lost)
	folded(t, pool)
	stop()
	dbtest.Advance(t, pool, 2*time.Hour)
	bounded.Exec(t, pool, "select pawl.override($1, 'test', '*', p_to => 'START'), pawl.fire_one($2, 'again')", lost, slow)
	bounded.Exec(t, pool, "select pawl.fire_one($1, 'leave')", packed)
	bounded.Exec(t, pool, "select pawl.override($1, 'test', '*', p_to => 'PACKING')", packed)
	bounded.Exec(t, pool, "select pawl.complete_work(w.id, w.lease, '{}') from pawl.claim_work('pack', 'w', 10) w")
	wantOpen(t, pool)
	fold(t, pool, 100)
	folded(t, pool)
	wantOpen(t, pool, "task-dead PACKING")
	if n := bounded.Value[int](t, pool, "select visit_version from pawl.finding"); n != 3 {
		t.Errorf("the finding is of the visit that step %d began, want 3", n)
	}
}

// A state that everybody has left is looked at again when somebody comes.
func TestStateThatWasLeft(t *testing.T) {
	t.Parallel()
	pool := watched(t, waiting(`"stuck_after": "1h",`))
	for range 2 {
		ids := made(t, pool, "waiting", 1)
		dbtest.Advance(t, pool, time.Hour)
		wantOpen(t, pool, "slow WAIT")
		bounded.Exec(t, pool, "select pawl.fire_one($1, 'go')", ids[0])
		folded(t, pool)
		dbtest.Advance(t, pool, time.Minute)
		wantOpen(t, pool)
	}
	if next := bounded.Value[string](t, pool, "select next_at::text from pawl_private.stuck_place where state = 'WAIT'"); next != "infinity" {
		t.Errorf("the next look at a state that nobody is in is due at %s", next)
	}
}

// What ends several findings at once ends all of them, however few rows a look may read. Findings of other instances stay.
func TestLooksInSmallBatches(t *testing.T) {
	t.Parallel()
	pool := watched(t, waiting(`"stuck_after": "1h",`), tasked)
	made(t, pool, "waiting", 5)
	dbtest.Advance(t, pool, time.Hour)
	looked(t, pool, 1)
	wantOpen(t, pool, slices.Repeat([]string{"slow WAIT"}, 5)...)
	bounded.Exec(t, pool, "select pawl.register_workflow($1::jsonb)", waiting(`"stuck_after": "2h",`))
	dbtest.Advance(t, pool, time.Minute)
	looked(t, pool, 2)
	if n := bounded.Value[int](t, pool, "select count(*) from pawl.finding where closed_at is null"); n != 0 {
		t.Errorf("%d findings are open after looks in batches, want none", n)
	}

	// Tasks and dead letters have walks of their own, and do not make more looks due.
	packed := made(t, pool, "tasked", 3)
	bounded.Exec(t, pool, "select pawl.complete_work(w.id, w.lease, '{}') from pawl.claim_work('pack', 'w', 10) w")
	dead(t, pool, packed...)
	folded(t, pool)
	for range 6 {
		looked(t, pool, 1)
	}
	want := []string{"delivery-dead PACKING", "delivery-dead PACKING", "delivery-dead PACKING", "task-dead PACKING", "task-dead PACKING", "task-dead PACKING"}
	open := func() []string {
		return bounded.Column[string](t, pool, "select concat_ws(' ', kind, state) from pawl.finding where closed_at is null order by 1")
	}
	if got := open(); !slices.Equal(got, want) {
		t.Errorf("after looks in batches %q are open, want %q", got, want)
	}
	bounded.Exec(t, pool, "update pawl.delivery set status = 'pending', next_attempt_at = pawl.now()")
	for range 8 {
		looked(t, pool, 1)
	}
	if got := open(); !slices.Equal(got, want[3:]) {
		t.Errorf("after replays %q are open, want %q", got, want[3:])
	}
	// A walk begins anew behind its end: what is found later, with a smaller id, is found as well.
	bounded.Exec(t, pool, "update pawl.delivery set status = 'dead', next_attempt_at = null")
	for range 6 {
		looked(t, pool, 1)
	}
	if got := open(); !slices.Equal(got, want) {
		t.Errorf("after they are dead again %q are open, want %q", got, want)
	}
}

// A deadline whose step cannot be made is found, and closed when the reason is gone or the instance moves.
func TestFailingTimersAreFound(t *testing.T) {
	t.Parallel()
	pool := watched(t, `{"name": "failing", "initial": "TICKING", "states": {
		"TICKING": {"on": {"leave": [{"target": "LEFT"}]}, "after": {"1m": [{"target": "DONE", "guard": "$.context.x == 1 && $nowhere == 1"}]}},
		"LEFT": {"on": {"end": [{"target": "DONE"}]}}, "DONE": {"type": "final", "outcome": "completed"}}}`)
	bounded.Exec(t, pool, `select pawl.create_one('failing', '{"x": 2}')`)
	ids := bounded.Column[uuid.UUID](t, pool, `select (pawl.create_one('failing', '{"x": 1}')).id from generate_series(1, 2)`)
	folded(t, pool)
	wantOpen(t, pool)
	dbtest.Advance(t, pool, time.Minute)
	bounded.Exec(t, pool, "select pawl.fire_timers(10)")
	folded(t, pool)
	wantOpen(t, pool, "timer-failing TICKING", "timer-failing TICKING")
	if got := bounded.Column[string](t, pool, "select distinct detail ->> 'event' || ': ' || (detail ->> 'error') from pawl.finding"); len(got) != 1 || !strings.HasPrefix(got[0], "after:1m: ") {
		t.Errorf("the findings say %q", got)
	}
	bounded.Exec(t, pool, "select pawl.fire_one($1, 'leave')", ids[0])
	folded(t, pool)
	wantOpen(t, pool, "timer-failing TICKING")
	bounded.Exec(t, pool, "update pawl.timer set failed_version = null, last_error = null")
	wantOpen(t, pool)
}

// A task that waits for a connection which its tenant has not is found after 10 s, until the connection is there or the task
// has ended.
func TestMissingConnectionsAreFound(t *testing.T) {
	t.Parallel()
	pool := watched(t, `{"name": "calling", "initial": "CALLING", "states": {
		"CALLING": {"invoke": {"charge": {"http": {"connection": "psp", "method": "POST", "path": "/charges"}, "idempotency": {"header": "K", "window": "24h"},
			"deadline": "1h", "done": [{"target": "DONE"}], "error": [{"target": "DONE"}], "unknown": [{"target": "DONE"}]}},
			"on": {"leave": [{"target": "DONE"}]}},
		"DONE": {"type": "final", "outcome": "completed"}}}`)
	connect := func(tenant string) {
		t.Helper()
		bounded.Exec(t, pool, `select pawl.connection_put(p_tenant => $1, p_name => 'psp', p_base_url => 'https://psp.example',
			p_auth => '{"type": "none"}', p_secret => null, p_headers => '{}', p_timeout => '1 s', p_concurrency => 1, p_tls_ca => null)`, tenant)
	}
	bounded.Exec(t, pool, "select pawl.tenant_put('other')")
	connect("other")
	made(t, pool, "calling", 1, "other")
	ids := made(t, pool, "calling", 2)
	dbtest.Advance(t, pool, 9*time.Second)
	wantOpen(t, pool)
	dbtest.Advance(t, pool, time.Second)
	wantOpen(t, pool, "connection-missing CALLING", "connection-missing CALLING")
	if got := bounded.Column[string](t, pool, `
		select distinct concat_ws(' ', f.detail ->> 'task', f.detail ->> 'connection', f.tenant_id, f.cause_id = t.id)
		from pawl.finding f join pawl.task t on t.instance_id = f.instance_id`); !slices.Equal(got, []string{"charge psp default t"}) {
		t.Errorf("the findings say %q", got)
	}
	bounded.Exec(t, pool, "select pawl.fire_one($1, 'leave')", ids[0])
	folded(t, pool)
	wantOpen(t, pool, "connection-missing CALLING")
	connect("default")
	wantOpen(t, pool)
	bounded.Exec(t, pool, "select pawl.connection_delete('default', 'psp')")
	wantOpen(t, pool, "connection-missing CALLING")
	dbtest.Advance(t, pool, time.Hour)
	bounded.Exec(t, pool, "select pawl.task_sweep(10)")
	folded(t, pool)
	wantOpen(t, pool)
}

// A tenant that has many dead letters does not hold up the finding of another's, whose id comes after theirs.
func TestLooksAreFair(t *testing.T) {
	t.Parallel()
	pool := watched(t, waiting(""))
	bounded.Exec(t, pool, "select pawl.tenant_put('a'), pawl.tenant_put('b')")
	bounded.Exec(t, pool, `
		insert into pawl.delivery (tenant_id, id, subscription_id, callback, instance_id, version, type, status, attempts, last_status, created_at)
		select tenant, gen_random_uuid(), id, true, id, 1, 'pawl.instance.created', 'dead', 9, 500, pawl.now()
		from unnest('{a,b}'::text[]) tenant, generate_series(1, 500) n, lateral (select md5(tenant || n)::uuid as id) i`)
	dead(t, pool, made(t, pool, "waiting", 1)...)
	bounded.Exec(t, pool, "select pawl.finding_look(100, '0 s')")
	if n := bounded.Value[int](t, pool, "select count(*) from pawl.finding where kind = 'delivery-dead' and tenant_id = 'default'"); n != 1 {
		t.Errorf("the first look finds %d dead letters of the third tenant, want 1", n)
	}
	// A look reads 33 letters of each. Those of the others that are left are read in fifteen, and each once.
	if got := bounded.Value[string](t, pool, `
		with looks as materialized (
			select w.ids from generate_series(1, 15) n cross join lateral pawl_private.walk_on('delivery', case when n > 0 then '' end, 100) w
		)
		select count(*) || ' ' || count(distinct id) from looks cross join unnest(looks.ids) id`); got != "949 935" {
		t.Errorf("walks: %s", got)
	}
}

// dead has a dead letter of the first step of each instance.
func dead(t *testing.T, pool *pgxpool.Pool, ids ...uuid.UUID) {
	t.Helper()
	subscription := bounded.Value[string](t, pool, "select (pawl.subscription_create('default', 'https://example.com', '{}', '{}', '{}', false, 'whsec_x', 'tester')).id::text")
	bounded.Exec(t, pool, `insert into pawl.delivery (tenant_id, id, subscription_id, callback, instance_id, version, type, status, attempts, last_status, created_at)
		select 'default', gen_random_uuid(), $1, false, id, 1, 'pawl.instance.created', 'dead', 9, 500, pawl.now() from unnest($2::uuid[]) id`, subscription, ids)
}

// A task that ended badly orphans its instance if nothing else moves it, and that hides that it is slow. What an operator
// makes of the task closes its finding, and a retry that ends badly opens another.
func TestOperatorsActOnTasks(t *testing.T) {
	t.Parallel()
	alone := strings.Replace(tasked, `,
		"on": {"leave": [{"target": "LEFT"}]}}`, "}", 1)
	pool := watched(t, strings.NewReplacer(`"invoke"`, `"stuck_after": "2h", "invoke"`, `"1h"`, `"30d"`).Replace(alone))
	failed := func() {
		t.Helper()
		bounded.Exec(t, pool, "select pawl.fail_work(w.id, w.lease, 'no paper') from pawl.claim_work('pack', 'w', 10) w")
		folded(t, pool)
	}
	made(t, pool, "tasked", 1)
	failed()
	dbtest.Advance(t, pool, 9*time.Second)
	wantOpen(t, pool, "task-dead PACKING") // For 10 s nothing is orphaned.
	dbtest.Advance(t, pool, time.Second)
	wantOpen(t, pool, "task-dead PACKING", "orphaned PACKING")

	instance := made(t, pool, "tasked", 1)[0]
	dbtest.Advance(t, pool, 3*time.Hour)
	wantOpen(t, pool, "task-dead PACKING", "orphaned PACKING", "slow PACKING")
	failed()
	wantOpen(t, pool, "task-dead PACKING", "orphaned PACKING", "task-dead PACKING", "orphaned PACKING")
	bounded.Exec(t, pool, "select pawl.task_retry('default', id, 'again') from pawl.task where instance_id = $1", instance)
	wantOpen(t, pool, "task-dead PACKING", "orphaned PACKING", "orphaned PACKING") // The next step ends that it is orphaned.
	failed()
	wantOpen(t, pool, "task-dead PACKING", "orphaned PACKING", "task-dead PACKING", "orphaned PACKING")
	if n := bounded.Value[int](t, pool, "select count(*) from pawl.finding where instance_id = $1 and kind = 'task-dead'", instance); n != 2 {
		t.Errorf("the task that was tried again has %d findings, want 2", n)
	}
}

// Of tasks that ended after their state was left, those are found that may have had an effect; once for each end.
func TestLateTasks(t *testing.T) {
	t.Parallel()
	pool := watched(t, tasked)
	ids := made(t, pool, "tasked", 3)
	bounded.Exec(t, pool, `
		create table claimed as select w.id, w.lease, w.instance_id from pawl.claim_work('pack', 'w', 10) w;
		select pawl.fire_one(instance_id, 'leave') from claimed`)
	end := func(i int, how string) {
		t.Helper()
		bounded.Exec(t, pool, "select pawl."+how+" from claimed where instance_id = $1", ids[i])
		folded(t, pool)
	}
	end(0, "fail_work(id, lease, 'no paper', p_outcome => 'error')")
	wantOpen(t, pool)
	end(1, "fail_work(id, lease, 'no answer', p_outcome => 'unknown')")
	wantOpen(t, pool, "task-late LEFT")
	end(2, "complete_work(id, lease, '{}')")
	wantOpen(t, pool, "task-late LEFT", "task-late LEFT")
	dbtest.Advance(t, pool, time.Minute)
	bounded.Exec(t, pool, "select pawl.task_retry('default', id, 'again') from claimed where instance_id = $1", ids[1])
	wantOpen(t, pool, "task-late LEFT")
	bounded.Exec(t, pool, "select pawl.complete_work(w.id, w.lease, '{}') from pawl.claim_work('pack', 'w', 10) w")
	folded(t, pool)
	wantOpen(t, pool, "task-late LEFT", "task-late LEFT")
	// An operator who says that it had no effect closes it.
	bounded.Exec(t, pool, "select pawl.task_resolve('default', id, 'error', null, 'asked') from claimed where instance_id = $1", ids[1])
	wantOpen(t, pool, "task-late LEFT")
	bounded.Exec(t, pool, "select pawl.override($1, 'test', '*', p_to => 'PACKING')", ids[2])
	folded(t, pool)
	wantOpen(t, pool)
}

// An instance whose task an operator has tried again is not orphaned, also in the state that the task led to before.
func TestRetriedTaskMoves(t *testing.T) {
	t.Parallel()
	pool := watched(t, `{"name": "limbo", "initial": "PACKING", "states": {
		"PACKING": {"invoke": {"pack": {"work": {"topic": "pack"}, "deadline": "1h",
			"done": [{"target": "DONE"}], "error": [{"target": "DONE"}], "unknown": [{"target": "LIMBO"}]}}},
		"LIMBO": {"always": [{"guard": "$.context.never == 1", "target": "DONE"}]},
		"DONE": {"type": "final", "outcome": "completed"}}}`)
	made(t, pool, "limbo", 2)
	bounded.Exec(t, pool, "select pawl.fail_work(w.id, w.lease, 'no answer', p_outcome => 'unknown') from pawl.claim_work('pack', 'w', 10) w")
	folded(t, pool)
	tried := bounded.Value[uuid.UUID](t, pool, "select instance_id from pawl.task order by id limit 1")
	if !bounded.Value[bool](t, pool, "select pawl.task_retry('default', id, 'again') from pawl.task where instance_id = $1", tried) {
		t.Fatal("the retry will not move the instance")
	}
	dbtest.Advance(t, pool, time.Minute)
	wantOpen(t, pool, "orphaned LIMBO")
	if bounded.Value[uuid.UUID](t, pool, "select instance_id from pawl.finding") == tried {
		t.Error("an instance is orphaned that an open task will move")
	}
}

// Closed findings are kept for 30 days.
func TestClosedFindingsAreKept(t *testing.T) {
	t.Parallel()
	pool := watched(t, waiting(`"stuck_after": "1h",`))
	ids := made(t, pool, "waiting", 2)
	dbtest.Advance(t, pool, 2*time.Hour)
	wantOpen(t, pool, "slow WAIT", "slow WAIT")
	bounded.Exec(t, pool, "select pawl.fire_one($1, 'go')", ids[0])
	folded(t, pool)
	kept := func(want int) {
		t.Helper()
		looked(t, pool, 100)
		if n := bounded.Value[int](t, pool, "select count(*) from pawl.finding"); n != want {
			t.Errorf("%d findings are kept, want %d", n, want)
		}
	}
	dbtest.Advance(t, pool, 30*24*time.Hour-time.Second)
	kept(2)
	dbtest.Advance(t, pool, time.Second)
	kept(1) // The open one.
}

// A clock that goes back stops neither the looks nor the fold, and no finding ends before it began.
func TestClockGoesBack(t *testing.T) {
	t.Parallel()
	pool := watched(t, waiting(`"stuck_after": "1h",`))
	ids := made(t, pool, "waiting", 1)
	dbtest.Advance(t, pool, 2*time.Hour)
	wantOpen(t, pool, "slow WAIT")
	dbtest.Advance(t, pool, -30*time.Minute)
	bounded.Exec(t, pool, "select pawl.fire_one($1, 'go')", ids[0])
	folded(t, pool)
	if !bounded.Value[bool](t, pool, "select closed_at = opened_at from pawl.finding") {
		t.Error("the finding is not closed when it was opened")
	}
	bounded.Exec(t, pool, "select pawl.finding_look(100, '1 day')")
	if !bounded.Value[bool](t, pool, "select looked_at = pawl.now() from pawl_private.watch") {
		t.Error("a look waits for the time of the last one")
	}
}

// One look in an interval is enough, unless it was not complete, and without the consumer there is none.
func TestLooksAreRare(t *testing.T) {
	t.Parallel()
	pool, stop := watchedUntil(t, waiting(`"stuck_after": "1h",`), stranding)
	looked(t, pool, 100)
	made(t, pool, "waiting", 5)
	ids := made(t, pool, "stranding", 5)
	bounded.Exec(t, pool, "select pawl.fire_one(id, 'lose') from unnest($1::uuid[]) id", ids)
	folded(t, pool)
	look := func(batch, want int) (opened int) {
		t.Helper()
		opened = bounded.Value[int](t, pool, "select opened from pawl.finding_look($1, '20 s')", batch)
		if want >= 0 && opened != want {
			t.Errorf("a look opens %d findings, want %d", opened, want)
		}
		return opened
	}
	dbtest.Advance(t, pool, 19*time.Second)
	look(100, 0)
	dbtest.Advance(t, pool, time.Second)
	look(100, 5) // All that are orphaned.
	dbtest.Advance(t, pool, 2*time.Hour)
	look(100, 5-look(1, -1))
	made(t, pool, "waiting", 1)
	dbtest.Advance(t, pool, time.Hour)
	stop()
	bounded.Exec(t, pool, "update pawl.consumer set name = 'another' where name = 'insight'")
	look(100, 0)
	bounded.Exec(t, pool, "update pawl.consumer set name = 'insight' where name = 'another'")
	look(100, 1)
}
