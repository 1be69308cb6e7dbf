package db_test

import (
	"context"
	"testing"

	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

func canResume(t testing.TB, q queries.DBTX, tenant, cursor string, workflows ...string) bool {
	t.Helper()
	now, err := queries.New(q).StreamCanResume(t.Context(), queries.StreamCanResumeParams{
		Tenant: tenant, Workflows: workflows, Cursor: cursor,
	})
	if err != nil {
		t.Fatal(err)
	}
	return now.Can
}

// A stream has lost what was removed of its tenant and its workflows if it had not read that,
// and nothing else is lost to it.
func TestStreamsLoseWhatIsRemoved(t *testing.T) {
	t.Parallel()
	pool, _ := withDoors(t, 1)
	register(t, pool, flight)
	// Not the present snapshot: transactions of other databases may be in progress in it.
	snapshot := func() string {
		return bounded.Value[string](t, pool, "select format('%1$s:%1$s:', pg_snapshot_xmax(pg_current_snapshot()))")
	}
	before := snapshot()
	ids := []uuid.UUID{gone(t, pool, tenant, creation{}), gone(t, pool, tenant, creation{})}
	read := snapshot()
	last := gone(t, pool, tenant, creation{})
	after := snapshot()
	long := age(t, pool)
	want := func(cursor string, can bool, workflows ...string) {
		t.Helper()
		if got := canResume(t, pool, tenant, cursor, workflows...); got != can {
			t.Errorf("from %s with %v: %v, want %v", cursor, workflows, got, can)
		}
	}
	// What could be removed is not lost before.
	want(before, true)
	wantRemoved(t, pool, long, ids, ids...)
	want(before, false)
	want(before, false, "flight-booking", "door")
	want(before, true, "flight-booking")
	want(read, true)
	if !canResume(t, pool, "other", before) {
		t.Error("another tenant has lost steps")
	}
	wantRemoved(t, pool, long, []uuid.UUID{last}, last)
	want(read, false)
	want(after, true)
	if n := bounded.Value[int](t, pool, "select count(*) from pawl_private.purged_history"); n != 1 {
		t.Errorf("there are %d rows of purged history, want 1", n)
	}
	// What is read asks too: it may be removed since the stream asked.
	_, err := queries.New(pool).StreamRead(t.Context(), queries.StreamReadParams{
		Tenant: tenant, Cursor: read, Batch: after, RowLimit: 10, Bytes: 1000,
	})
	wantCode(t, err, "PW410")
	_, err = queries.New(pool).StreamReadPast(t.Context(), queries.StreamReadPastParams{
		Tenant: tenant, Cursor: "1:1:", Batch: after, AfterInstance: last, AfterVersion: 1, RowLimit: 10, Bytes: 1000,
	})
	wantCode(t, err, "PW410")
}

// The steps of a long transaction are of long before it commits, whatever their time; while it
// is open, nothing of it is lost.
func TestStreamsLoseStepsOfLongTransactions(t *testing.T) {
	t.Parallel()
	pool, ids := withDoors(t, 2)
	open, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = open.Rollback(context.Background()) }()
	for _, event := range []string{"open", "remove"} {
		wantOutcome(t, fire(t, open, tenant, command{id: ids[0], event: event})[0], "applied")
		wantOutcome(t, fire(t, pool, tenant, command{id: ids[1], event: event})[0], "applied")
	}
	during := bounded.Value[string](t, open, "select format('%s:%s:%1$s', pg_current_xact_id(), pg_snapshot_xmax(pg_current_snapshot()))")
	before := age(t, pool)
	wantRemoved(t, pool, before, ids, ids[1])
	if !canResume(t, pool, tenant, during) {
		t.Error("what has been read is lost")
	}
	if err := open.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantRemoved(t, pool, before, ids, ids[0])
	if canResume(t, pool, tenant, during) {
		t.Error("nothing is lost, although a transaction that was open has been removed")
	}
	if !canResume(t, pool, tenant, bounded.Value[string](t, pool, "select format('%1$s:%1$s:', pg_snapshot_xmax(pg_current_snapshot()))")) {
		t.Error("what was removed before is lost")
	}
}
