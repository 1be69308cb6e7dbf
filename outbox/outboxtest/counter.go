package outboxtest

import (
	"fmt"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/internal/bounded"
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

// NewPool returns a pool on a database of the test's own, with the workflow counter and a sequencer.
func NewPool(t testing.TB) *pgxpool.Pool {
	t.Helper()
	pool := dbtest.New(t)
	bounded.Exec(t, pool, "select pawl.register_workflow($1)", Counter)
	Number(t, pool)
	return pool
}

// Create creates a counter.
func Create(t testing.TB, q queries.DBTX) uuid.UUID {
	t.Helper()
	return bounded.Value[uuid.UUID](t, q, "select (pawl.create_one('counter')).id")
}

// Add fires add at a counter.
func Add(t testing.TB, q queries.DBTX, id uuid.UUID) {
	t.Helper()
	bounded.Value[uuid.UUID](t, q, "select (pawl.fire_one($1, 'add')).id", id)
}

// IDs returns the ids of the messages of an instance with the given versions.
func IDs(id uuid.UUID, versions ...int) (list []string) {
	for _, v := range versions {
		list = append(list, fmt.Sprintf("%s:%d", id, v))
	}
	return list
}

// Numbered waits until each step and each finding has a position.
func Numbered(t testing.TB, pool *pgxpool.Pool) {
	t.Helper()
	bounded.UntilSQL(t, pool, "select (select count(*) from pawl.log) = (select count(*) from pawl.history) + (select count(*) from pawl.finding)")
}

// CaughtUp waits until a consumer has no step left to relay.
func CaughtUp(t testing.TB, pool *pgxpool.Pool, consumer string) {
	t.Helper()
	bounded.UntilSQL(t, pool, "select coalesce(sum(steps), -1) = 0 from pawl.consumer_status() where name = $1 and term > 0", consumer)
}
