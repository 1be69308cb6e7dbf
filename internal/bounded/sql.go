package bounded

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pawl-fsm/pawl/db/queries"
)

// Exec runs a statement, or fails the test. Without arguments it may be several statements.
func Exec(t testing.TB, q queries.DBTX, sql string, args ...any) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Limit)
	defer cancel()
	if _, err := q.Exec(ctx, sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// Value returns the only column of the first row, or fails the test. Null needs a pointer.
func Value[T any](t testing.TB, q queries.DBTX, sql string, args ...any) (v T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Limit)
	defer cancel()
	if err := q.QueryRow(ctx, sql, args...).Scan(&v); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return v
}

// Column returns the only column of all rows, or fails the test.
func Column[T any](t testing.TB, q queries.DBTX, sql string, args ...any) []T {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Limit)
	defer cancel()
	rows, err := q.Query(ctx, sql, args...)
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	list, err := pgx.CollectRows(rows, pgx.RowTo[T])
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return list
}

// activity describes the other sessions of this database, one in a line.
const activity = `
	select coalesce(string_agg(format(E'\n%s: %s, %s: %s', a.pid, a.state, coalesce(a.wait_event, 'no wait'),
		left(regexp_replace(a.query, '\s+', ' ', 'g'), 200)), '' order by a.pid), ' none')
	from pg_stat_activity a where a.datname = current_database() and a.pid <> pg_backend_pid()`

// A look is an answer to UntilSQL's query, which asks for the sessions only if they are to be printed.
type look struct {
	holds    bool
	sessions func() string
}

func (l look) String() string { return fmt.Sprintf("%v; other sessions:%s", l.holds, l.sessions()) }

// UntilSQL waits until a query whose only column is a boolean returns true, or fails the test and lists the sessions of
// the database. Null and no row count as false.
func UntilSQL(t testing.TB, q queries.DBTX, sql string, args ...any) {
	t.Helper()
	what := strings.TrimSpace(sql)
	if len(args) > 0 {
		what += fmt.Sprintf(" with %v", args)
	}
	sessions := func() string { return Value[string](t, q, activity) }
	Until(t, what, func() look {
		return look{Value[bool](t, q, "select coalesce(("+sql+"), false)", args...), sessions}
	}, func(l look) bool { return l.holds })
}

// UntilBlocked waits until at least n sessions of the database wait for a lock, or fails the test and lists them.
func UntilBlocked(t testing.TB, q queries.DBTX, n int) {
	t.Helper()
	UntilSQL(t, q, `select count(*) >= $1 from pg_stat_activity
		where datname = current_database() and wait_event_type = 'Lock'`, n)
}
