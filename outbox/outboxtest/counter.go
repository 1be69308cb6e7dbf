package outboxtest

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/db/dbtest"
)

// Counter is the definition of a workflow that stays in COUNTING with each add, and ends with stop.
const Counter = `{"name": "counter", "initial": "COUNTING", "states": {
	"COUNTING": {"on": {"add": [{"target": "COUNTING"}], "stop": [{"target": "STOPPED"}]}}, "STOPPED": {"type": "final", "outcome": "completed"}}}`

// AtMost8 is SQL that creates pawl.at_most. It fails as a statement does that takes too long, if it
// is asked for more than eight rows.
const AtMost8 = `
		create function pawl.at_most(p_limit integer) returns void language plpgsql as $$ begin
			if p_limit > 8 then
				raise exception 'canceling statement due to statement timeout' using errcode = '57014';
			end if;
		end $$;`

// NewPool returns a pool on a database of the test's own, with the workflow counter.
func NewPool(t testing.TB) *pgxpool.Pool {
	t.Helper()
	pool := dbtest.New(t)
	Exec(t, pool, "select pawl.register_workflow($1)", Counter)
	return pool
}

// Exec executes SQL.
func Exec(t testing.TB, pool *pgxpool.Pool, sql string, args ...any) {
	t.Helper()
	if _, err := pool.Exec(t.Context(), sql, args...); err != nil {
		t.Fatal(err)
	}
}

// A Querier is a pool, a connection or a transaction.
type Querier interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// Value returns the value of a query for one.
func Value[T any](t testing.TB, q Querier, sql string, args ...any) (v T) {
	t.Helper()
	if err := q.QueryRow(t.Context(), sql, args...).Scan(&v); err != nil {
		t.Fatalf("%v: %s", err, sql)
	}
	return v
}

// Create creates a counter.
func Create(t testing.TB, q Querier) uuid.UUID {
	t.Helper()
	return Value[uuid.UUID](t, q, "select (pawl.create_one('counter')).id")
}

// Add fires add at a counter.
func Add(t testing.TB, q Querier, id uuid.UUID) {
	t.Helper()
	Value[uuid.UUID](t, q, "select (pawl.fire_one($1, 'add')).id", id)
}

// IDs returns the ids of the messages of an instance with the given versions.
func IDs(id uuid.UUID, versions ...int) (list []string) {
	for _, v := range versions {
		list = append(list, fmt.Sprintf("%s:%d", id, v))
	}
	return list
}

// Run runs a worker until the test ends, or stop is called.
func Run(t testing.TB, worker func(context.Context) error) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- worker(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("the worker ended with %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// CaughtUp waits until a consumer has no step left to relay.
func CaughtUp(t testing.TB, pool *pgxpool.Pool, consumer string) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); ; {
		if Value[int](t, pool, "select coalesce(sum(steps), -1)::int from pawl.consumer_status() where name = $1 and term > 0", consumer) == 0 {
			return
		}
		if time.Now().After(end) {
			t.Fatal("it does not catch up")
		}
		runtime.Gosched()
	}
}
