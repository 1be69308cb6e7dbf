package dbtest_test

import (
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

var noon = time.Date(2030, 2, 3, 12, 0, 0, 123456000, time.UTC)

// wrappers use pawl.now() in the ways that cache a plan with it.
const wrappers = `
create function public.in_sql() returns timestamptz language sql volatile as 'select pawl.now()';
create function public.in_expression() returns timestamptz language plpgsql as 'begin return pawl.now(); end';
create function public.in_query() returns timestamptz language plpgsql
set plan_cache_mode = force_generic_plan
as 'declare v timestamptz; begin select pawl.now() into v from generate_series(1, 1); return v; end';`

func TestClockMovesForCachedPlans(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	if _, err := pool.Exec(t.Context(), wrappers); err != nil {
		t.Fatal(err)
	}
	conn, err := pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()

	uses := []string{
		"select pawl.now()",
		"select public.in_sql()",
		"select public.in_expression()",
		"select public.in_query()",
	}
	now := func(sql string) (at time.Time) {
		t.Helper()
		if err := conn.QueryRow(t.Context(), sql).Scan(&at); err != nil {
			t.Fatal(err)
		}
		return at
	}
	expect := func(want time.Time) {
		t.Helper()
		for _, sql := range uses {
			if got := now(sql); !got.Equal(want) {
				t.Errorf("%s = %v, want %v", sql, got, want)
			}
		}
	}

	for _, sql := range uses {
		for range 7 { // beyond the five plans that PostgreSQL makes before it keeps one
			now(sql)
		}
	}
	dbtest.SetClock(t, pool, noon)
	expect(noon)
	dbtest.Advance(t, pool, 90*time.Minute)
	expect(noon.Add(90 * time.Minute))
	dbtest.SetClock(t, pool, noon.Add(-time.Hour))
	expect(noon.Add(-time.Hour))
}

// A transaction that began before sees the move in its next statement, as it would see a real clock.
func TestClockMovesInsideATransaction(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	dbtest.SetClock(t, pool, noon)
	err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
		for _, want := range []time.Time{noon, noon.Add(time.Second)} {
			var got time.Time
			if err := tx.QueryRow(t.Context(), "select pawl.now()").Scan(&got); err != nil {
				return err
			}
			if !got.Equal(want) {
				t.Errorf("pawl.now() = %v, want %v", got, want)
			}
			dbtest.Advance(t, pool, time.Second)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestAdvanceStopsARunningClock(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	read := func(sql string) (at time.Time) {
		t.Helper()
		if err := pool.QueryRow(t.Context(), sql).Scan(&at); err != nil {
			t.Fatal(err)
		}
		return at
	}
	before := read("select clock_timestamp()")
	dbtest.Advance(t, pool, time.Hour)
	after := read("select clock_timestamp()")
	first, second := read("select pawl.now()"), read("select pawl.now()")
	if first.Before(before.Add(time.Hour)) || first.After(after.Add(time.Hour)) {
		t.Errorf("pawl.now() = %v, want an hour after %v to %v", first, before, after)
	}
	if !first.Equal(second) {
		t.Errorf("the clock goes on, from %v to %v", first, second)
	}
}

func TestClockMovesForOtherRoles(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	restricted := role(t, pool)
	dbtest.SetClock(t, pool, noon)
	var got time.Time
	if err := restricted.QueryRow(t.Context(), "select pawl.now()").Scan(&got); err != nil {
		t.Fatal(err)
	}
	if !got.Equal(noon) {
		t.Errorf("pawl.now() = %v, want %v", got, noon)
	}
	if _, err := restricted.Exec(t.Context(), "update dbtest.clock set now = now"); err == nil {
		t.Error("a role without rights moved the clock")
	}
}

func TestClockSetByManyAtOnce(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	var group errgroup.Group
	for range 8 {
		group.Go(func() error {
			dbtest.SetClock(t, pool, noon)
			return nil
		})
	}
	if err := bounded.Result(t, "those that set the clock", group.Wait); err != nil {
		t.Fatal(err)
	}
}
