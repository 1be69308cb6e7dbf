package db_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// find opens a finding about a visit of an instance that no other is about, with a name in its detail.
func find(t testing.TB, q queries.DBTX, instance uuid.UUID, name string) uuid.UUID {
	t.Helper()
	return bounded.Value[uuid.UUID](t, q, `
		insert into pawl.finding (tenant_id, id, kind, instance_id, workflow, state, visit_version, since, cause_id, opened_at, detail)
		select i.tenant_id, pawl_private.uuid_v7(pawl.now()), 'delivery-dead', i.id, i.workflow, i.state,
			(extract(epoch from clock_timestamp()) * 1000000)::bigint, i.state_changed_at, gen_random_uuid(), pawl.now(),
			jsonb_build_object('name', $2::text)
		from pawl.instance i
		where i.id = $1
		returning id`, instance, name)
}

// findingsInOrder are the names of the findings that have positions, in their order, with epoch and position.
func findingsInOrder(t testing.TB, pool *pgxpool.Pool) []string {
	t.Helper()
	return bounded.Column[string](t, pool, `
		select concat_ws(' ', f.detail ->> 'name', pawl_private.epoch_at(l.position), l.position)
		from pawl.log l
		left join pawl.finding f on f.tenant_id = l.tenant_id and f.id = l.finding_id
		where l.finding_id is not null
		order by l.position`)
}

// Findings have positions among those of the steps, in the order in which they were made. One of a transaction that commits
// late gets its position then, and one that was rolled back none.
func TestFindingsHavePositions(t *testing.T) {
	t.Parallel()
	pool, ids := withDoors(t, 2)
	open, undone := begin(t, pool), begin(t, pool)
	find(t, open, ids[0], "late")
	find(t, undone, ids[1], "undone")
	find(t, pool, ids[0], "a")
	doors(t, pool, 1)
	find(t, pool, ids[1], "b")
	dbtest.Number(t, pool)
	if err := undone.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	commit(t, open)
	dbtest.Number(t, pool)
	if got := findingsInOrder(t, pool); !slices.Equal(got, []string{"a 1 3", "b 1 5", "late 1 6"}) {
		t.Errorf("the findings have the positions %v", got)
	}
}

// A finding whose position a failover has lost gets another one, in the new epoch.
func TestFindingsOfALaterEpoch(t *testing.T) {
	t.Parallel()
	pool, ids := withDoors(t, 1)
	find(t, pool, ids[0], "a")
	lose := dbtest.Fork(t, pool)
	find(t, pool, ids[0], "b")
	doors(t, pool, 1)
	dbtest.Number(t, pool)
	lose()
	doors(t, pool, 2)
	dbtest.Number(t, pool)
	if got := findingsInOrder(t, pool); !slices.Equal(got, []string{"a 1 2", "b 2 3"}) {
		t.Errorf("the findings have the positions %v", got)
	}
	if got := bounded.Column[string](t, pool, "select detail ->> 'name' || ' ' || epoch || ' ' || position from pawl.delivery_findings(array['default', 'default'], array(select id from pawl.finding order by seq desc))"); !slices.Equal(got, []string{"b 2 3", "a 1 2"}) {
		t.Errorf("their messages are %v", got)
	}
}

// A dump is restored on another server, whose transaction ids are near, far, or behind. Each finding has one position, as
// its ids pass those of the rows, too. Those that had one keep it, and a subscription gets those that it would have got.
func TestRestoredFindings(t *testing.T) {
	t.Parallel()
	for name, ahead := range map[string]int64{"far": 1 << 40, "near": 300, "behind": -200} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool, ids := withDoors(t, 1)
			find(t, pool, ids[0], "a")
			dbtest.Number(t, pool)
			subscribeAll(t, pool)
			bounded.Exec(t, pool, "update pawl.subscription set types = '{pawl.finding.opened}'")
			find(t, pool, ids[0], "b")
			dbtest.Number(t, pool)
			find(t, pool, ids[0], "restored")
			for _, table := range []string{"pawl.history", "pawl.finding"} {
				bounded.Exec(t, pool, fmt.Sprintf("update %s set xid = (xid::text::bigint + $1)::text::xid8", table), ahead)
			}
			for table, column := range map[string]string{"pawl.log_head": "snapshot", "pawl.subscription": "since"} {
				bounded.Exec(t, pool, fmt.Sprintf(`update %[2]s set %[1]s = format('%%s:%%s:', pg_snapshot_xmin(%[1]s)::text::bigint + $1, pg_snapshot_xmax(%[1]s)::text::bigint + $1)::pg_snapshot`, column, table), ahead)
			}
			bounded.Exec(t, pool, "update pawl.log_epoch set system_identifier = 7")
			find(t, pool, ids[0], "before")
			open := begin(t, pool)
			find(t, open, ids[0], "open")
			_, err := queries.New(pool).LogBegin(t.Context(), queries.LogBeginParams{Leader: "the test", Term: 1})
			wantCode(t, err, "55P03") // It cannot know which findings are in progress.
			commit(t, open)
			dbtest.Number(t, pool)
			for range 20 {
				for range 30 {
					bounded.Value[string](t, pool, "select pg_current_xact_id()::text")
				}
				dbtest.Number(t, pool)
			}
			find(t, pool, ids[0], "last")
			dbtest.Number(t, pool)
			if got := findingsInOrder(t, pool); !slices.Equal(got, []string{"a 1 2", "b 1 3", "restored 2 4", "before 2 5", "open 2 6", "last 2 7"}) {
				t.Errorf("the findings have the positions %v", got)
			}
			routeAll(t, pool, 1000)
			if got := bounded.Column[string](t, pool, "select f.detail ->> 'name' from pawl.delivery d join pawl.finding f on f.id = d.finding_id order by d.seq"); !slices.Equal(got, []string{"b", "restored", "before", "open", "last"}) {
				t.Errorf("%v are delivered", got)
			}
		})
	}
}

// The healer writes findings, and then steps. An epoch that begins on another server waits for it, and holds nothing meanwhile
// that the healer needs.
func TestEpochWaitsForTheHealer(t *testing.T) {
	t.Parallel()
	pool, ids := withDoors(t, 1)
	dbtest.Number(t, pool)
	bounded.Exec(t, pool, "update pawl.log_epoch set system_identifier = 7")
	healer := begin(t, pool)
	bounded.Exec(t, healer, "select from pawl_private.watch for update skip locked")
	find(t, healer, ids[0], "a")
	began := make(chan error, 1)
	go func() {
		_, err := queries.New(pool).LogBegin(t.Context(), queries.LogBeginParams{Leader: "the test", Term: 1})
		began <- err
	}()
	bounded.UntilBlocked(t, pool, 1)
	doors(t, healer, 1)
	commit(t, healer)
	if err := bounded.Receive(t, "the epoch", began); err != nil {
		wantCode(t, err, "55P03") // It may have waited for too long.
	}
}

// An idle tick reads no finding, however many have positions.
func TestIdleTickReadsNoFinding(t *testing.T) {
	t.Parallel()
	pool, ids := withDoors(t, 1)
	bounded.Exec(t, pool, `
		insert into pawl.finding (tenant_id, id, kind, instance_id, workflow, state, visit_version, since, opened_at, detail)
		select 'default', gen_random_uuid(), 'slow', $1, 'door', 'CLOSED', n, now(), now(), '{}' from generate_series(1, 5000) n`, ids[0])
	dbtest.Number(t, pool)
	bounded.Exec(t, pool, "vacuum analyze pawl.finding, pawl.log")
	conn := connect(t, pool)
	read := func() int {
		bounded.Exec(t, conn, "select pg_stat_force_next_flush()")
		return bounded.Value[int](t, conn, `
			select sum(seq_tup_read + idx_tup_fetch + n_tup_ins) from pg_stat_user_tables where relid in ('pawl.finding'::regclass, 'pawl.log'::regclass)`)
	}
	before := read()
	for range 20 {
		dbtest.Number(t, conn)
	}
	if n := read() - before; n > 0 {
		t.Errorf("20 ticks read %d rows", n)
	}
	find(t, conn, ids[0], "next")
	before = read()
	dbtest.Number(t, conn)
	if n := read() - before; n == 0 || n > 20 {
		t.Errorf("a tick that numbers one finding has read and written %d", n)
	}
}

// A finding that was closed 30 days ago stays until every consumer has read it, and while a delivery tells of it. Then it
// is purged, and its row in the log with it. What stays holds up no other.
func TestFindingsArePurgedWhenTheyAreTold(t *testing.T) {
	t.Parallel()
	pool, ids := withDoors(t, 1)
	dbtest.SetClock(t, pool, noon)
	bounded.Exec(t, pool, "select pawl.consumer_create('insight', true); select pawl.consumer_create('slow', true); select pawl.consumer_lead('slow', 'x', '1 year')")
	subscribeAll(t, pool)
	bounded.Exec(t, pool, "update pawl.subscription set types = '{pawl.finding.opened}'")
	advance := func(consumer string, position int64) {
		t.Helper()
		bounded.Exec(t, pool, "update pawl.consumer set position = $2 where name = $1", consumer, position)
	}
	find(t, pool, ids[0], "pending")
	routeAll(t, pool, 1000)
	find(t, pool, ids[0], "a")
	first := end(t, pool)
	find(t, pool, ids[0], "b")
	find(t, pool, ids[0], "open")
	bounded.Exec(t, pool, "update pawl.finding set closed_at = pawl.now() where detail ->> 'name' <> 'open'")
	last := end(t, pool)
	advance("webhooks", last)
	advance("insight", last)
	look := func(want ...string) {
		t.Helper()
		for range 10 { // One finding at a time, and one look that comes to the end.
			bounded.Exec(t, pool, "select pawl.finding_look(1, '0 s')")
		}
		got := bounded.Column[string](t, pool, "select detail ->> 'name' from pawl.finding order by seq")
		if !slices.Equal(got, want) {
			t.Errorf("%v are left, want %v", got, want)
		}
		if n := bounded.Value[int](t, pool, "select count(*) from pawl.log where finding_id is not null"); n != len(want) {
			t.Errorf("the log has %d findings, want %d", n, len(want))
		}
	}
	// The finding that is open would be closed, since there is no such dead letter.
	bounded.Exec(t, pool, "update pawl.finding set kind = 'slow', cause_id = null")
	dbtest.Advance(t, pool, 29*24*time.Hour)
	advance("slow", last)
	look("pending", "a", "b", "open")
	advance("slow", 0)
	dbtest.Advance(t, pool, 25*time.Hour)
	look("pending", "a", "b", "open")
	advance("slow", first)
	look("pending", "b", "open")
	advance("slow", last)
	look("pending", "open")
	bounded.Exec(t, pool, "update pawl.subscription set disabled_at = pawl.now(), disabled_reason = 'x'")
	look("open")
}

// Streams, and what wakes them, pass over findings. So does the fold.
func TestStreamsPassFindings(t *testing.T) {
	t.Parallel()
	pool, ids := withDoors(t, 1)
	bounded.Exec(t, pool, "select pawl.consumer_create('insight', true); select pawl.consumer_lead('insight', 'x', '1 hour')")
	before := end(t, pool)
	find(t, pool, ids[0], "a")
	after := end(t, pool)
	if after != before+1 {
		t.Fatalf("the log went from %d to %d", before, after)
	}
	look, err := queries.New(pool).StreamLook(t.Context(), queries.StreamLookParams{Tenant: tenant, Epoch: 1, Position: before, RowLimit: 1000})
	if err != nil || look.Until == nil || *look.Until != after || look.Steps != 0 {
		t.Errorf("a look at the finding found %+v: %v", look, err)
	}
	if n := bounded.Value[int](t, pool, "select count(*) from pawl.stream_read('default', '{}', 0, $1, $2, 10, 1000000)", before, after); n != 0 {
		t.Errorf("a stream reads %d messages", n)
	}
	moved := bounded.Value[string](t, pool, "select (m.last, m.instances, m.tenants)::text from pawl.log_moved($1, 10) m", before)
	if want := fmt.Sprintf("(%d,{},{})", after); moved != want {
		t.Errorf("what moved is %s, want %s", moved, want)
	}
	if steps := bounded.Value[int64](t, pool, "select steps from pawl.insight_fold('x', 1, 10, '1 hour')"); steps != after {
		t.Errorf("the fold has passed %d positions, want %d", steps, after)
	}
	if n := bounded.Value[int](t, pool, "select count(*) from pawl.residence"); n != 1 {
		t.Errorf("%d visits, want 1", n)
	}
	// The age of what a consumer has yet to read is that of the finding.
	bounded.Exec(t, pool, "select pawl.consumer_create('behind', true)")
	bounded.Exec(t, pool, "update pawl.consumer set position = $1 where name = 'behind'", before)
	if got := bounded.Value[string](t, pool, "select steps || ' ' || (behind is not null) from pawl.consumer_status() where name = 'behind'"); got != "1 true" {
		t.Errorf("the consumer behind the finding: %s", got)
	}
	if got := bounded.Value[int](t, pool, "select count(*) from pawl.backlog() where measure = 'consumer_steps' and label = 'behind' and value = 1"); got != 1 {
		t.Error("its backlog is not one row")
	}
}
