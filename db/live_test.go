package db_test

import (
	"context"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// canResume reports whether a stream goes on behind a position, and that it is refused else because steps were purged.
func canResume(t testing.TB, q queries.DBTX, tenant string, position int64, workflows ...string) bool {
	t.Helper()
	_, err := queries.New(q).StreamLook(t.Context(), queries.StreamLookParams{
		Tenant: tenant, Workflows: workflows, Epoch: 1, Position: position, RowLimit: 1000,
	})
	if err != nil {
		wantCode(t, err, "PW410")
	}
	return err == nil
}

// end numbers the steps so far, and returns the last position.
func end(t testing.TB, pool *pgxpool.Pool) int64 {
	t.Helper()
	dbtest.Number(t, pool)
	return bounded.Value[int64](t, pool, "select position from pawl.log_head")
}

// sweep makes a pass over the log, a few rows at a time, and returns how many it deleted.
func sweep(t testing.TB, pool *pgxpool.Pool) (swept int64) {
	t.Helper()
	p := queries.LogSweepParams{Leader: "the test", Term: 1, RowLimit: 2}
	// bounded: each call goes on behind the last one
	for {
		s, err := queries.New(pool).LogSweep(t.Context(), p)
		if err != nil {
			t.Fatal(err)
		}
		swept += s.Swept
		if s.Last == nil {
			return swept
		}
		p.Since, p.After = &s.Since, *s.Last
	}
}

// A stream has lost what was purged of its tenant and its workflows if it had not read that, and nothing else is lost to
// it, before the log is swept and after.
func TestStreamsLoseWhatIsRemoved(t *testing.T) {
	t.Parallel()
	pool, _ := withDoors(t, 1)
	register(t, pool, flight)
	before := end(t, pool)
	ids := []uuid.UUID{gone(t, pool, tenant, creation{}), gone(t, pool, tenant, creation{})}
	read := end(t, pool)
	last := gone(t, pool, tenant, creation{})
	after := end(t, pool)
	long := age(t, pool)
	want := func(position int64, can bool, workflows ...string) {
		t.Helper()
		if got := canResume(t, pool, tenant, position, workflows...); got != can {
			t.Errorf("from %d with %v: %v, want %v", position, workflows, got, can)
		}
	}
	// What could be purged is not lost before.
	want(before, true)
	wantRemoved(t, pool, long, ids, ids...)
	for range 2 {
		want(before, false)
		want(before, false, "flight-booking", "door")
		want(before, true, "flight-booking")
		want(read, true)
		if !canResume(t, pool, "other", before) {
			t.Error("another tenant has lost steps")
		}
		sweep(t, pool)
	}
	if n := bounded.Value[int64](t, pool, "select count(*) from pawl_private.purged_instance"); n != 0 {
		t.Errorf("%d notes are left after a pass", n)
	}
	if n := bounded.Value[int64](t, pool, "select count(*) from pawl.log"); n != after-(read-before) {
		t.Errorf("the log has %d rows, want %d", n, after-(read-before))
	}
	if n := sweep(t, pool); n != 0 {
		t.Errorf("a pass without anything to sweep deleted %d rows", n)
	}
	// What a stream from the start would have shown does not count.
	if _, err := queries.New(pool).StreamLook(t.Context(), queries.StreamLookParams{Tenant: tenant, Floor: after, Epoch: 1, RowLimit: 9}); err != nil {
		t.Error(err)
	}
	wantRemoved(t, pool, long, []uuid.UUID{last}, last)
	want(read, false)
	want(after, true)
	// What is read asks too: it may be purged since the stream looked.
	_, err := queries.New(pool).StreamRead(t.Context(), queries.StreamReadParams{Tenant: tenant, After: read, Until: after, RowLimit: 10, Bytes: 1000})
	wantCode(t, err, "PW410")
}

// A pass keeps the note of an instance whose purge was not committed when the pass began.
func TestSweepKeepsLateNotes(t *testing.T) {
	t.Parallel()
	pool, _ := withDoors(t, 0)
	first, second := gone(t, pool, tenant, creation{}), gone(t, pool, tenant, creation{})
	end(t, pool)
	long := age(t, pool)
	wantRemoved(t, pool, long, []uuid.UUID{first}, first)
	open := begin(t, pool)
	wantRemoved(t, open, long, []uuid.UUID{second}, second)
	s, err := queries.New(pool).LogSweep(t.Context(), queries.LogSweepParams{Leader: "the test", Term: 1, RowLimit: 100})
	if err != nil {
		t.Fatal(err)
	}
	if err := open.Commit(context.Background()); err != nil {
		t.Fatal(err)
	}
	if s, err = queries.New(pool).LogSweep(t.Context(), queries.LogSweepParams{Leader: "the test", Term: 1, Since: &s.Since, After: *s.Last, RowLimit: 100}); err != nil || s.Last != nil {
		t.Fatalf("the pass goes on: %+v, %v", s, err)
	}
	if n := bounded.Value[int](t, pool, "select count(*) from pawl_private.purged_instance"); n != 1 {
		t.Errorf("%d notes are left, want the later one", n)
	}
	sweep(t, pool)
	if n := bounded.Value[int](t, pool, "select count(*) from pawl.log"); n != 0 {
		t.Errorf("the log has %d rows", n)
	}
}
