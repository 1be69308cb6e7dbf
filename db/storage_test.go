package db_test

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// keys inserts n keys, the i-th of which expires i seconds from noon.
func keys(t *testing.T, pool *pgxpool.Pool, n int) {
	t.Helper()
	bounded.Exec(t, pool, `
		insert into pawl.idempotency_key (tenant_id, key, fingerprint, decision, instance_id, version, expires_at)
		select case n % 2 when 0 then 'default' else 'other' end, n, sha256(''), 'applied', gen_random_uuid(), 1,
			$2::timestamptz + n * interval '1 second'
		from generate_series(1, $1::integer) n
		order by hashint4(n)`, n, noon)
}

func purge(t *testing.T, q queries.DBTX, limit int32) int32 {
	t.Helper()
	n, err := queries.New(q).PurgeKeys(t.Context(), limit)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// left names the keys that are there, the oldest first.
func left(t *testing.T, pool *pgxpool.Pool) string {
	t.Helper()
	return bounded.Value[string](t, pool, "select coalesce(string_agg(key, ' ' order by expires_at), '') from pawl.idempotency_key")
}

func TestPurgeTakesTheOldestExpiredKeys(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	dbtest.SetClock(t, pool, noon)
	keys(t, pool, 8)
	if n := purge(t, pool, 100); n != 0 {
		t.Errorf("%d keys were purged before their time", n)
	}
	dbtest.Advance(t, pool, 6*time.Second-time.Microsecond)
	for _, limit := range []int32{0, -1} {
		if n := purge(t, pool, limit); n != 0 {
			t.Errorf("%d keys were purged, and the limit is %d", n, limit)
		}
	}
	if n := bounded.Value[int](t, pool, "select pawl.purge_keys(null)"); n != 0 {
		t.Errorf("%d keys were purged without a limit", n)
	}
	if n := purge(t, pool, 3); n != 3 || left(t, pool) != "4 5 6 7 8" {
		t.Errorf("%d keys were purged, and %s are left", n, left(t, pool))
	}
	if n := purge(t, pool, 3); n != 2 || left(t, pool) != "6 7 8" {
		t.Errorf("%d keys were purged, and %s are left", n, left(t, pool))
	}
	dbtest.Advance(t, pool, time.Microsecond) // A key has expired at its time, not only after it.
	if n := purge(t, pool, 3); n != 1 || left(t, pool) != "7 8" {
		t.Errorf("%d keys were purged, and %s are left", n, left(t, pool))
	}
}

// Purgers wait for nobody, and nobody's key is deleted twice or out of its hands.
func TestPurgePassesOverWhatIsHeld(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	dbtest.SetClock(t, pool, noon)
	keys(t, pool, 9)
	dbtest.Advance(t, pool, time.Hour)
	conn := connect(t, pool)
	// One that waited would fail.
	bounded.Exec(t, conn, "set lock_timeout = '1s'")

	command := begin(t, pool)
	bounded.Exec(t, command, "select from pawl.idempotency_key where key in ('1', '5') for update")
	first := begin(t, pool)
	bounded.Exec(t, first, "set local lock_timeout = '1s'")
	if n := purge(t, first, 3); n != 3 { // 2, 3, 4, but not yet.
		t.Errorf("the first purged %d keys", n)
	}
	if n := purge(t, conn, 3); n != 3 || left(t, pool) != "1 2 3 4 5 9" {
		t.Errorf("the second purged %d keys, and %s are left", n, left(t, pool))
	}
	if n := purge(t, conn, 3); n != 1 || left(t, pool) != "1 2 3 4 5" {
		t.Errorf("the second purged %d keys, and %s are left", n, left(t, pool))
	}
	commit(t, first)
	if n := purge(t, conn, 3); n != 0 || left(t, pool) != "1 5" {
		t.Errorf("%d keys were purged, and %s are left", n, left(t, pool))
	}
	// One of the two is extended: it lives on.
	bounded.Exec(t, command, "update pawl.idempotency_key set expires_at = pawl.now() + interval '1 hour' where key = '1'")
	commit(t, command)
	if n := purge(t, conn, 3); n != 1 || left(t, pool) != "1" {
		t.Errorf("%d keys were purged, and %s are left", n, left(t, pool))
	}
}

// A command that takes a key while it is purged waits for that moment, and takes it anew.
func TestCommandTakesAKeyThatIsPurged(t *testing.T) {
	t.Parallel()
	pool, ids := withDoors(t, 1)
	dbtest.SetClock(t, pool, noon)
	c := command{id: ids[0], event: "open", key: "k"}
	wantOutcome(t, fire(t, pool, tenant, c)[0], "applied")
	wantOutcome(t, fire(t, pool, tenant, command{id: ids[0], event: "close"})[0], "applied")
	dbtest.Advance(t, pool, 24*time.Hour)
	purger := begin(t, pool)
	if n := purge(t, purger, 10); n != 1 {
		t.Fatalf("%d keys were purged", n)
	}
	b := start(t, pool, func(q queries.DBTX) ([]queries.Outcome, error) {
		return tryFire(context.Background(), q, tenant, c)
	})
	b.awaitBlocked(t, pool)
	commit(t, purger)
	if o := b.wait(t)[0]; o.Code != "applied" || o.Replayed || *o.Version != 4 {
		t.Errorf("the command came to %s, replayed: %v, at version %d", o.Code, o.Replayed, *o.Version)
	}
	wantOutcome(t, fire(t, pool, tenant, c)[0], "applied")
	if n := purge(t, pool, 10); n != 0 {
		t.Errorf("%d keys were purged, of which each is new", n)
	}
}

// Plans stay for the session, and one made for an empty table must read no more than the
// keys it deletes when the table has grown, and was never analysed.
func TestPurgeReadsByTheTimeOfExpiry(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	bounded.Exec(t, pool, "alter table pawl.idempotency_key set (autovacuum_enabled = off)")
	dbtest.SetClock(t, pool, noon)
	early := connect(t, pool)
	for range 10 { // As often as makes a session keep a plan.
		purge(t, early, 10)
	}
	bounded.Exec(t, early, "select pg_stat_force_next_flush()")
	keys(t, pool, 50_000)
	dbtest.Advance(t, pool, 20*time.Minute)
	late := connect(t, pool)
	bounded.Exec(t, pool, "select pg_stat_reset()")
	for range 10 {
		for _, conn := range []queries.DBTX{early, late} {
			if n := purge(t, conn, 60); n != 60 {
				t.Errorf("%d keys were purged, want 60", n)
			}
		}
	}
	for _, conn := range []queries.DBTX{early, late} {
		bounded.Exec(t, conn, "select pg_stat_force_next_flush()")
	}
	got := bounded.Column[string](t, pool, `
		select format('%s: %s scans', indexrelname, idx_scan) from pg_stat_user_indexes
		where relid = 'pawl.idempotency_key'::regclass and idx_scan > 0
		union all
		select format('%s sequential scans', seq_scan) from pg_stat_user_tables
		where relid = 'pawl.idempotency_key'::regclass and seq_scan > 0`)
	if want := []string{"idempotency_key_expires_at_idx: 20 scans"}; !slices.Equal(got, want) {
		t.Errorf("the table was read by %v, want %v", got, want)
	}
	// What was deleted before may be passed once more, as long as nothing has cleaned up.
	if n := bounded.Value[int](t, pool, "select idx_tup_read from pg_stat_user_indexes where indexrelname = 'idempotency_key_expires_at_idx'"); n > 20*1200 {
		t.Errorf("%d entries were read to delete 1,200 keys", n)
	}
}

// Purging a key takes nothing of what it replays with it.
func TestPurgeDeletesKeysOnly(t *testing.T) {
	t.Parallel()
	pool, ids := withDoors(t, 3)
	dbtest.SetClock(t, pool, noon)
	for i, id := range ids {
		wantOutcome(t, fire(t, pool, tenant, command{id: id, event: "open", key: fmt.Sprint(i)})[0], "applied")
	}
	const others = `
		select concat_ws(' ', (select md5(string_agg(i::text, '' order by i.id)) from pawl.instance i),
			(select md5(string_agg(h::text, '' order by h.seq)) from pawl.history h), (select count(*) from pawl.timer))`
	before := bounded.Value[string](t, pool, others)
	dbtest.Advance(t, pool, 48*time.Hour)
	if n := purge(t, pool, 10); n != 3 {
		t.Errorf("%d keys were purged", n)
	}
	if after := bounded.Value[string](t, pool, others); after != before {
		t.Error("something else went too")
	}
}

// Lists read by status, by an index, and yet only the last transition of an instance
// writes to indexes: the others do not change it.
func TestOnlyTheLastTransitionWritesToIndexes(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	register(t, pool, door)
	conn := connect(t, pool)
	id := *create(t, conn, tenant, creation{workflow: "door", businessKey: "b", correlationID: "c"})[0].ID
	updates := func() string {
		t.Helper()
		bounded.Exec(t, conn, "select pg_stat_force_next_flush()")
		return bounded.Value[string](t, conn, "select n_tup_upd || ' ' || n_tup_hot_upd from pg_stat_user_tables where relid = 'pawl.instance'::regclass")
	}
	for i := range 19 { // The last one opens it.
		wantOutcome(t, fire(t, conn, tenant, command{id: id, event: []string{"open", "close"}[i%2]})[0], "applied")
	}
	if got := updates(); got != "19 19" {
		t.Errorf("updates, heap-only updates: %s; want 19 19", got)
	}
	wantOutcome(t, fire(t, conn, tenant, command{id: id, event: "remove"})[0], "applied")
	if got := updates(); got != "20 19" {
		t.Errorf("updates, heap-only updates: %s; want 20 19", got)
	}
}
