package db_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/db"
	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// inOrderOfPosition lists the steps of the log as version numbers, in the order of their positions.
func inOrderOfPosition(t testing.TB, pool *pgxpool.Pool, id uuid.UUID) []int64 {
	t.Helper()
	return bounded.Column[int64](t, pool, "select version from pawl.log where instance_id = $1 order by position", id)
}

// wantWhole checks that each step has one position, and that those of an instance rise.
func wantWhole(t testing.TB, pool *pgxpool.Pool) {
	t.Helper()
	if n := bounded.Value[int](t, pool, `
		select count(*) from pawl.history h
		where (select count(*) from pawl.log l where (l.tenant_id, l.instance_id, l.version) = (h.tenant_id, h.instance_id, h.version)) <> 1`); n != 0 {
		t.Errorf("%d steps have not one position", n)
	}
	if n := bounded.Value[int](t, pool, `
		select count(*) from (select version, lag(version) over (partition by instance_id order by position) as before from pawl.log) l
		where l.version <> coalesce(l.before, 0) + 1`); n != 0 {
		t.Errorf("%d steps are not in their instance's order", n)
	}
	if !bounded.Value[bool](t, pool, `
		select count(*) = max(l.position) and max(l.position) = max(h.position) from pawl.log l, pawl.log_head h`) {
		t.Error("the positions have gaps, or are not those of the head")
	}
}

// Writers of every kind, and ticks all the time: a transaction may draw its id long before it makes a step, use
// subtransactions, wait for others, or commit asynchronously.
func TestLogIsWhole(t *testing.T) {
	t.Parallel()
	pool, ids := withDoors(t, 5)
	slices.SortFunc(ids, func(a, b uuid.UUID) int { return slices.Compare(a[:], b[:]) })
	write := func(n int, conn *pgx.Conn, random *rand.Rand) error {
		tx, err := conn.Begin(t.Context())
		if err != nil {
			return err
		}
		defer func() { _ = tx.Rollback(context.Background()) }()
		if n%3 == 0 {
			if _, err := tx.Exec(t.Context(), "select pg_current_xact_id()"); err != nil {
				return err
			}
		}
		if n%2 == 0 {
			if _, err := tx.Exec(t.Context(), "set local synchronous_commit = off"); err != nil {
				return err
			}
		}
		for _, id := range ids { // In the order of the ids, so that no two wait for each other.
			if random.IntN(3) > 0 {
				continue
			}
			part, err := tx.Begin(t.Context())
			if err != nil {
				return err
			}
			for _, event := range []string{"open", "close"} {
				if _, err := tryFire(t.Context(), part, tenant, command{id: id, event: event}); err != nil {
					return err
				}
			}
			if random.IntN(4) == 0 {
				err = part.Rollback(t.Context())
			} else {
				err = part.Commit(t.Context())
			}
			if err != nil {
				return err
			}
		}
		return tx.Commit(t.Context())
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var writers, ticker sync.WaitGroup
	ticker.Go(func() {
		for ctx.Err() == nil {
			dbtest.Number(t, pool)
		}
	})
	for n := range 6 {
		conn, random := connect(t, pool), rand.New(rand.NewPCG(7, uint64(n)))
		writers.Go(func() {
			for range 40 {
				if err := write(n, conn, random); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	bounded.Wait(t, "the writers", writers.Wait)
	stop()
	bounded.Wait(t, "the ticker", ticker.Wait)
	dbtest.Number(t, pool)
	wantWhole(t, pool)
}

// A step gets its position when it is committed, and no later one waits for it.
func TestLateCommitterIsNumberedLater(t *testing.T) {
	t.Parallel()
	pool, ids := withDoors(t, 3)
	dbtest.Number(t, pool)
	open := begin(t, pool)
	wantOutcome(t, fire(t, open, tenant, command{id: ids[0], event: "open"})[0], "applied")
	wantOutcome(t, fire(t, pool, tenant, command{id: ids[1], event: "open"})[0], "applied")
	dbtest.Number(t, pool)
	if got := inOrderOfPosition(t, pool, ids[0]); !slices.Equal(got, []int64{1}) {
		t.Errorf("before the commit the versions %v have positions", got)
	}
	last := bounded.Value[int64](t, pool, "select position from pawl.log where instance_id = $1 and version = 2", ids[1])
	commit(t, open)
	dbtest.Number(t, pool)
	if at := bounded.Value[int64](t, pool, "select position from pawl.log where instance_id = $1 and version = 2", ids[0]); at != last+1 {
		t.Errorf("the late step has the position %d, want %d", at, last+1)
	}
	wantWhole(t, pool)
}

// A transaction may have a smaller id than the one that it waited for. Its step comes later all the same, in one tick
// and in two.
func TestNumberingFollowsTheLocks(t *testing.T) {
	t.Parallel()
	pool, ids := withDoors(t, 2)
	for _, between := range []bool{false, true} {
		id := ids[map[bool]int{true: 1}[between]]
		early := connect(t, pool)
		tx, err := early.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		bounded.Value[string](t, tx, "select pg_current_xact_id()::text")
		late := begin(t, pool)
		wantOutcome(t, fire(t, late, tenant, command{id: id, event: "open"})[0], "applied")
		done := make(chan error, 1)
		go func() {
			_, err := tryFire(t.Context(), tx, tenant, command{id: id, event: "close"})
			done <- err
		}()
		bounded.UntilBlocked(t, pool, 1)
		commit(t, late)
		if between {
			dbtest.Number(t, pool)
		}
		if err := bounded.Receive(t, "the step that waited", done); err != nil {
			t.Fatal(err)
		}
		commit(t, tx)
		dbtest.Number(t, pool)
		if !bounded.Value[bool](t, pool, `
			select (select xid from pawl.history where instance_id = $1 and version = 3) < (select xid from pawl.history where instance_id = $1 and version = 2)`, id) {
			t.Error("the transaction that waited has the larger id")
		}
		if got := inOrderOfPosition(t, pool, id); !slices.Equal(got, []int64{1, 2, 3}) {
			t.Errorf("the versions have positions in the order %v", got)
		}
	}
}

// A tick's own transaction id is larger than all that its snapshot takes for past. So none of these is given out again
// after a crash.
func TestTickTakesItsSnapshotBeforeItsID(t *testing.T) {
	t.Parallel()
	pool, ids := withDoors(t, 1)
	for n := range 20 {
		open := begin(t, pool) // Its id is in the snapshot's list.
		bounded.Value[string](t, open, "select pg_current_xact_id()::text")
		bounded.Value[string](t, pool, "select pg_current_xact_id()::text")
		wantOutcome(t, fire(t, pool, tenant, command{id: ids[0], event: []string{"open", "close"}[n%2]})[0], "applied")
		dbtest.Number(t, pool)
		if !bounded.Value[bool](t, pool, "select h.xmin::text::bigint >= pg_snapshot_xmax(h.snapshot)::text::bigint from pawl.log_head h") {
			t.Fatal("the transaction of the tick has a smaller id than the end of its snapshot")
		}
		commit(t, open)
	}
}

// A position is durable when it is seen, although the database's default is otherwise.
func TestTicksAreSynchronous(t *testing.T) {
	t.Parallel()
	pool, ids := withDoors(t, 1)
	for _, setting := range []string{"off", "local"} {
		bounded.Exec(t, pool, fmt.Sprintf("do $$ begin execute format('alter database %%I set synchronous_commit = %s', current_database()); end $$", setting))
		conn := connect(t, pool)
		for n := range 20 {
			wantOutcome(t, fire(t, conn, tenant, command{id: ids[0], event: []string{"open", "close"}[n%2]})[0], "applied")
			end := bounded.Value[string](t, conn, "select pg_current_wal_insert_lsn()::text")
			dbtest.Number(t, conn)
			if !bounded.Value[bool](t, conn, "select pg_current_wal_flush_lsn() >= $1::pg_lsn", end) {
				t.Fatalf("with synchronous_commit = %s a tick returned before it was flushed", setting)
			}
		}
	}
}

// Who has lost the lease changes nothing, even in the term that the next leader has, too.
func TestFormerLeadersAreRefused(t *testing.T) {
	t.Parallel()
	pool, _ := withDoors(t, 3)
	dbtest.Number(t, pool)
	doors(t, pool, 1)
	q := queries.New(pool)
	term := bounded.Value[int64](t, pool, "select term from pawl.log_head")
	for name, as := range map[string]queries.LogTickParams{"another term": {Leader: "the test", Term: term + 1}, "another leader": {Leader: "x", Term: term}} {
		as.Lease = anHour
		if tick, err := q.LogTick(t.Context(), as); err != nil || tick.Leads || tick.Steps != 0 {
			t.Errorf("%s: %+v, %v", name, tick, err)
		}
	}
	if _, err := q.LogBegin(t.Context(), queries.LogBeginParams{Leader: "x", Term: term}); err != nil {
		t.Error(err) // Nothing is to be begun.
	}
	bounded.Exec(t, pool, "select pawl.consumer_create('c', true); select pawl.consumer_lead('c', 'a', '1 hour')")
	for name, as := range map[string]queries.ConsumerAdvanceParams{
		"another term":     {Leader: "a", Term: 2, Epoch: 1, Position: 1},
		"another leader":   {Leader: "b", Term: 1, Epoch: 1, Position: 1},
		"another epoch":    {Leader: "a", Term: 1, Epoch: 2, Position: 1},
		"beyond the end":   {Leader: "a", Term: 1, Epoch: 1, Position: 1000},
		"a former epoch's": {Leader: "a", Term: 1, Epoch: 0, Position: 1},
	} {
		as.Consumer, as.Lease = "c", anHour
		if leads, err := q.ConsumerAdvance(t.Context(), as); err != nil || leads {
			t.Errorf("%s: %v, %v", name, leads, err)
		}
	}
	if at := bounded.Value[int64](t, pool, "select position from pawl.consumer"); at != 0 {
		t.Errorf("the consumer was moved to %d", at)
	}
}

// place finds a place in the log, as "state epoch.position".
func place(t testing.TB, pool *pgxpool.Pool, epoch, position int64) string {
	t.Helper()
	return bounded.Value[string](t, pool, "select p.state || ' ' || p.epoch || '.' || p.place from pawl.log_place($1, $2) p", epoch, position)
}

func wantPlaces(t testing.TB, pool *pgxpool.Pool, want map[[2]int64]string) {
	t.Helper()
	for at, want := range want {
		if got := place(t, pool, at[0], at[1]); got != want {
			t.Errorf("the place %d.%d is %s, want %s", at[0], at[1], got, want)
		}
	}
}

// An asynchronous standby is promoted that lacks the end of the log.
func TestPromotionBeginsAnEpoch(t *testing.T) {
	t.Parallel()
	primary := dbtest.Private(t, nil)
	if err := db.Up(t.Context(), primary.DSN()); err != nil {
		t.Fatal(err)
	}
	former := openPool(t, primary.DSN())
	register(t, former, door)
	kept := doors(t, former, 3)
	note(t, former, "kept")
	dbtest.Number(t, former)
	standby := dbtest.Standby(t, primary, "standby", nil)
	at := bounded.Value[string](t, former, "select pg_current_wal_insert_lsn()::text")
	on := openPool(t, standby.DSN())
	bounded.UntilSQL(t, on, "select pg_last_wal_replay_lsn() >= $1::pg_lsn", at)
	// What is lost: a step of an instance, and a new instance.
	bounded.Exec(t, on, "alter system set primary_conninfo = ''")
	bounded.Exec(t, on, "select pg_reload_conf()")
	bounded.UntilSQL(t, on, "select not exists (select from pg_stat_wal_receiver)")
	wantOutcome(t, fire(t, former, tenant, command{id: kept[0], event: "open"})[0], "applied")
	doors(t, former, 1)
	note(t, former, "lost")
	dbtest.Number(t, former)
	wantPlaces(t, former, map[[2]int64]string{{1, 5}: "known 1.5", {1, 6}: "unknown 1.6"})
	dbtest.Promote(t, standby)

	pool := openPool(t, standby.DSN())
	wantPlaces(t, pool, map[[2]int64]string{{1, 3}: "known 1.3", {1, 5}: "unready 1.5", {2, 1}: "unready 1.1"})
	// Two other steps take the positions.
	for _, event := range []string{"open", "close"} {
		wantOutcome(t, fire(t, pool, tenant, command{id: kept[1], event: event})[0], "applied")
	}
	note(t, pool, "other")
	dbtest.Number(t, pool)
	wantWhole(t, pool)
	wantWholeAudit(t, pool)
	// The row of the audit that takes the position of the lost one is told from it by its epoch.
	before, after := auditInOrder(t, former), auditInOrder(t, pool)
	if !slices.Equal(before, []string{"kept 2 1", "lost 3 1"}) || !slices.Equal(after, []string{"kept 2 1", "other 3 2"}) {
		t.Errorf("the audit was %v, and is %v", before, after)
	}
	if got := bounded.Value[string](t, pool, "select concat_ws(' ', epoch, timeline, first_position, first_seq) from pawl.log_epoch order by epoch desc limit 1"); got != "2 2 3 0" {
		t.Errorf("the epoch is %s", got)
	}
	wantPlaces(t, pool, map[[2]int64]string{
		{1, 3}: "known 2.3", {1, 5}: "lost 2.3", {2, 5}: "known 2.5", {2, 6}: "unknown 2.6", {3, 1}: "unknown 2.1", {0, 1}: "unknown 2.0",
	})
	if got := bounded.Column[int64](t, pool, "select epoch from pawl.stream_instance('default', $1, 0, 0, 10, 1000000) order by version", kept[1]); !slices.Equal(got, []int64{1, 2, 2}) {
		t.Errorf("the steps are of the epochs %v", got)
	}
	// The next start begins none.
	dbtest.Number(t, pool)
	if n := bounded.Value[int](t, pool, "select count(*) from pawl.log_epoch"); n != 2 {
		t.Errorf("there are %d epochs", n)
	}
}

func openPool(t testing.TB, dsn string) *pgxpool.Pool {
	t.Helper()
	pool, err := pgxpool.New(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

// A dump is restored on a server whose transaction counter is far behind the dump's, or near: nobody says so, and no step
// is skipped or numbered twice, neither those that had no position in the dump nor those that come later.
func TestRestoredLog(t *testing.T) {
	t.Parallel()
	for name, ahead := range map[string]int64{"far": 1 << 40, "near": 300, "behind": -200} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool, ids := withDoors(t, 2)
			dbtest.Number(t, pool)
			wantOutcome(t, fire(t, pool, tenant, command{id: ids[0], event: "open"})[0], "applied")
			dbtest.Number(t, pool)
			subscribeAll(t, pool)
			before := bounded.Value[int64](t, pool, "select position from pawl.log_head")
			fresh := doors(t, pool, 1)
			// As the rows are after a restore: their transaction ids, the head and subscriptions have those of another server.
			bounded.Exec(t, pool, "update pawl.history set xid = (xid::text::bigint + $1)::text::xid8", ahead)
			shift := func(column, table string) {
				bounded.Exec(t, pool, fmt.Sprintf(`update %[2]s set %[1]s = format('%%s:%%s:', pg_snapshot_xmin(%[1]s)::text::bigint + $1, pg_snapshot_xmax(%[1]s)::text::bigint + $1)::pg_snapshot`, column, table), ahead)
			}
			shift("snapshot", "pawl.log_head")
			shift("since", "pawl.subscription")
			bounded.Exec(t, pool, "update pawl.log_epoch set system_identifier = 7")
			// Steps of this server, before and after the sequencer begins, and one in progress.
			wantOutcome(t, fire(t, pool, tenant, command{id: ids[1], event: "open"})[0], "applied")
			open := begin(t, pool)
			wantOutcome(t, fire(t, open, tenant, command{id: ids[1], event: "close"})[0], "applied")
			_, err := queries.New(pool).LogBegin(t.Context(), queries.LogBeginParams{Leader: "the test", Term: 1})
			wantCode(t, err, "55P03") // It cannot know which steps are in progress.
			commit(t, open)
			dbtest.Number(t, pool)
			wantWhole(t, pool)
			for n := range 20 {
				wantOutcome(t, fire(t, pool, tenant, command{id: ids[0], event: []string{"close", "open"}[n%2]})[0], "applied")
				for range 30 {
					bounded.Value[string](t, pool, "select pg_current_xact_id()::text")
				}
				dbtest.Number(t, pool)
			}
			wantWhole(t, pool)
			if got := bounded.Value[string](t, pool, "select concat_ws(' ', epoch, first_position) from pawl.log_epoch order by epoch desc limit 1"); got != fmt.Sprint("2 ", before) {
				t.Errorf("the epoch is %s, want 2 %d", got, before)
			}
			wantPlaces(t, pool, map[[2]int64]string{{1, before}: fmt.Sprintf("known 2.%d", before), {1, before + 1}: fmt.Sprintf("lost 2.%d", before)})
			// A step belongs to the epoch in which it got its position.
			if got := bounded.Column[int64](t, pool, "select distinct epoch from pawl.stream_instance('default', $1, 0, 0, 10, 1000000)", fresh[0]); !slices.Equal(got, []int64{2}) {
				t.Errorf("the restored step is of the epochs %v", got)
			}
			if got := bounded.Column[int64](t, pool, "select epoch from pawl.stream_instance('default', $1, 0, 0, 10, 1000000) order by version", ids[1]); !slices.Equal(got, []int64{1, 2, 2}) {
				t.Errorf("the steps are of the epochs %v", got)
			}
			// The subscription gets what was committed after it, on either server: 1 and 22.
			routeAll(t, pool, 1000)
			if n := bounded.Value[int](t, pool, "select count(*) from pawl.delivery"); n != 23 {
				t.Errorf("there are %d deliveries, want 23", n)
			}
		})
	}
}

// What a consumer has not read stays, and what it has read may go, while it is behind, too.
func TestRetentionFollowsConsumers(t *testing.T) {
	t.Parallel()
	pool, _ := withDoors(t, 0)
	bounded.Exec(t, pool, "select pawl.consumer_create('c', true); select pawl.consumer_lead('c', 'a', '1 hour')")
	advance := func(position int64) {
		t.Helper()
		leads, err := queries.New(pool).ConsumerAdvance(t.Context(), queries.ConsumerAdvanceParams{
			Consumer: "c", Leader: "a", Term: 1, Epoch: 1, Position: position, Lease: anHour,
		})
		if err != nil || !leads {
			t.Fatalf("%v, %v", leads, err)
		}
	}
	early := gone(t, pool, tenant, creation{})
	read := end(t, pool) // The first steps make a mark.
	dbtest.Advance(t, pool, 2*time.Minute)
	late := gone(t, pool, tenant, creation{})
	last := end(t, pool)
	unnumbered := gone(t, pool, tenant, creation{})
	all := []uuid.UUID{early, late, unnumbered}
	long := age(t, pool)
	wantRemoved(t, pool, long, all)
	advance(read)
	wantRemoved(t, pool, long, all, early)
	advance(last)
	wantRemoved(t, pool, long, all, late)
	advance(end(t, pool))
	wantRemoved(t, pool, long, all, unnumbered)
}

// A large transaction that is in progress is looked at once, and not by each tick.
func TestTicksPassLargeTransactions(t *testing.T) {
	t.Parallel()
	pool, ids := withDoors(t, 1)
	dbtest.Number(t, pool)
	open := begin(t, pool)
	bounded.Exec(t, open, `
		insert into pawl.history (tenant_id, instance_id, version, workflow, workflow_version, kind, to_state, status, context, actor, at)
		select 'default', $1, n, 'door', 1, 'transition', 'OPEN', 'active', '{}', 'x', now() from generate_series(2, 100000) n`, ids[0])
	conn := connect(t, pool)
	dbtest.Number(t, conn)
	read := func() int {
		bounded.Value[string](t, conn, "select pg_stat_force_next_flush()::text")
		return bounded.Value[int](t, conn, "select idx_tup_read from pg_stat_user_indexes where indexrelname = 'history_xid_idx'")
	}
	before := read()
	for range 10 {
		dbtest.Number(t, conn)
	}
	if n := read() - before; n > 1000 {
		t.Errorf("ten ticks read %d steps that are not committed", n)
	}
	commit(t, open)
	dbtest.Number(t, pool)
	if n := bounded.Value[int](t, pool, "select count(*) from pawl.log"); n != 100_000 {
		t.Errorf("the log has %d rows", n)
	}
}

// A database that comes to a third server: what was committed on the second one is read and delivered all the same.
func TestRestoredTwice(t *testing.T) {
	t.Parallel()
	pool, _ := withDoors(t, 1)
	dbtest.Number(t, pool)
	subscribeAll(t, pool)
	bounded.Exec(t, pool, "select pawl.consumer_create('sink')")
	// Their snapshots are of a server that has counted more transactions.
	for _, table := range []string{"pawl.subscription", "pawl.consumer"} {
		bounded.Exec(t, pool, "update "+table+" set since = '5000000000:5000000000:' where since::text <> '1:1:'")
	}
	bounded.Exec(t, pool, "update pawl.log_epoch set system_identifier = 7")
	dbtest.Number(t, pool)
	second := doors(t, pool, 2)
	dbtest.Number(t, pool)
	bounded.Exec(t, pool, "update pawl.log_epoch set system_identifier = 8 where epoch = 2")
	dbtest.Number(t, pool)
	doors(t, pool, 1)
	end := end(t, pool)
	if n := bounded.Value[int](t, pool, "select count(*) from pawl.consumer_read('sink', $1, 1000000)", end); n != 3 {
		t.Errorf("the sink reads %d steps, want 3", n)
	}
	routeAll(t, pool, 1000)
	if n := bounded.Value[int](t, pool, "select count(*) from pawl.delivery"); n != 3 {
		t.Errorf("there are %d deliveries, want 3", n)
	}
	if got := bounded.Value[int64](t, pool, "select epoch from pawl.stream_instance('default', $1, 0, 0, 1, 1000)", second[0]); got != 2 {
		t.Errorf("the step of the second server is of epoch %d", got)
	}
}

// A connection through a pooler may lead to another server from one tick to the next. Nothing is numbered or swept there
// before the epoch has begun.
func TestTicksOnAnotherServerAreRefused(t *testing.T) {
	t.Parallel()
	pool, _ := withDoors(t, 1)
	dbtest.Number(t, pool)
	doors(t, pool, 1)
	bounded.Exec(t, pool, "update pawl.log_epoch set timeline = 7")
	tick, err := queries.New(pool).LogTick(t.Context(), queries.LogTickParams{Leader: "the test", Term: 1, Lease: anHour})
	if err != nil || tick.Leads {
		t.Errorf("%+v, %v", tick, err)
	}
	swept, err := queries.New(pool).LogSweep(t.Context(), queries.LogSweepParams{Leader: "the test", Term: 1, RowLimit: 9})
	if err != nil || swept.Last != nil {
		t.Errorf("%+v, %v", swept, err)
	}
	if n := bounded.Value[int](t, pool, "select count(*) from pawl.log"); n != 1 {
		t.Errorf("%d steps have positions", n)
	}
	dbtest.Number(t, pool)
	wantWhole(t, pool)
}

// A copy may lack the numbers that the sequence has given out, as one by logical replication does.
func TestCopyWithoutItsSequence(t *testing.T) {
	t.Parallel()
	pool, ids := withDoors(t, 3)
	dbtest.Number(t, pool)
	bounded.Exec(t, pool, "update pawl.history set xid = (xid::text::bigint + 100)::text::xid8")
	bounded.Exec(t, pool, "alter sequence pawl.history_seq_seq restart")
	bounded.Exec(t, pool, "update pawl.log_epoch set system_identifier = 7")
	for n := range 10 {
		dbtest.Number(t, pool)
		for range 30 {
			bounded.Value[string](t, pool, "select pg_current_xact_id()::text")
		}
		wantOutcome(t, fire(t, pool, tenant, command{id: ids[0], event: []string{"open", "close"}[n%2]})[0], "applied")
	}
	dbtest.Number(t, pool)
	wantWhole(t, pool)
}
