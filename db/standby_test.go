package db_test

import (
	"context"
	"encoding/json"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/db"
	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/db/localpg"
	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// acknowledging are the calls that write nothing, and whose answer says that something is committed.
func acknowledging(id uuid.UUID) map[string]func(context.Context, queries.DBTX) (string, error) {
	codes := func(outcomes []queries.Outcome, err error) (codes string, _ error) {
		for _, o := range outcomes {
			codes += o.Code + " "
		}
		return codes, err
	}
	one := func(sql string, args ...any) func(context.Context, queries.DBTX) (string, error) {
		return func(ctx context.Context, q queries.DBTX) (state string, err error) {
			err = q.QueryRow(ctx, sql, args...).Scan(&state)
			return state, err
		}
	}
	return map[string]func(context.Context, queries.DBTX) (string, error){
		"fire": func(ctx context.Context, q queries.DBTX) (string, error) {
			return codes(tryFire(ctx, q, tenant, command{id: id, event: "open", key: "opened"}))
		},
		"refused": func(ctx context.Context, q queries.DBTX) (string, error) {
			return codes(tryFire(ctx, q, tenant, command{id: id, event: "open", key: "refused"}))
		},
		"batch": func(ctx context.Context, q queries.DBTX) (string, error) {
			return codes(tryFire(ctx, q, tenant, command{id: uuid.New(), event: "open", key: "new"}, command{id: id, event: "open", key: "opened"}))
		},
		"create": func(ctx context.Context, q queries.DBTX) (string, error) {
			return codes(tryCreate(ctx, q, tenant, creation{workflow: "door", key: "created", businessKey: "front"}))
		},
		"exists": func(ctx context.Context, q queries.DBTX) (string, error) {
			return codes(tryCreate(ctx, q, tenant, creation{workflow: "door", key: "another", businessKey: "front"}))
		},
		"by key": func(ctx context.Context, q queries.DBTX) (string, error) {
			return codes(tryFireByKeys(ctx, q, keyed{workflow: "door", businessKey: "back", event: "open", key: "started", start: "{}"}))
		},
		"fire_one":   one("select (pawl.fire_one($1, 'open', p_key => 'opened')).state", id),
		"create_one": one("select (pawl.create_one('door', p_key => 'created one')).state"),
		"register": func(ctx context.Context, q queries.DBTX) (string, error) {
			row, err := queries.New(q).RegisterWorkflow(ctx, queries.RegisterWorkflowParams{Definition: json.RawMessage(door), Actor: "tester"})
			if row.Created {
				return "created", err
			}
			return "known", err
		},
	}
}

var acknowledged = map[string]string{
	"fire": "applied ", "refused": "transition-not-allowed ", "batch": "instance-not-found applied ", "by key": "created ", "create": "applied ",
	"exists": "instance-exists ", "fire_one": "OPEN", "create_one": "CLOSED", "register": "known",
}

// decided makes the decisions that acknowledging repeats.
func decided(t *testing.T, pool *pgxpool.Pool) uuid.UUID {
	t.Helper()
	register(t, pool, door)
	id := *create(t, pool, tenant, creation{workflow: "door", key: "created", businessKey: "front"})[0].ID
	wantOutcome(t, fire(t, pool, tenant, command{id: id, event: "open", key: "opened"})[0], "applied")
	wantOutcome(t, fire(t, pool, tenant, command{id: id, event: "open", key: "refused"})[0], "transition-not-allowed")
	bounded.Exec(t, pool, "select pawl.create_one('door', p_key => 'created one')")
	wantOutcome(t, fireByKeys(t, pool, keyed{workflow: "door", businessKey: "back", event: "open", key: "started", start: "{}"})[0], "created")
	return id
}

// While a synchronous standby is away, what acknowledges an earlier commit waits, as that commit had to.
func TestAcknowledgementsWaitForTheStandby(t *testing.T) {
	t.Parallel()
	primary, pool := private(t)
	calls := acknowledging(decided(t, pool))
	dbtest.Synchronous(t, primary, "away")

	waiting := map[string]*background[string]{}
	for name, call := range calls {
		ctx := bounded.Context(t)
		waiting[name] = start(t, pool, func(q queries.DBTX) (string, error) { return call(ctx, q) })
	}
	for name, b := range waiting {
		bounded.True(t, name+" to wait for the standby", func() bool {
			select {
			case <-b.done:
				t.Fatalf("%s was answered %q, %v", name, b.v, b.err)
			default:
			}
			return bounded.Value[bool](t, pool, "select wait_event is not distinct from 'SyncRep' from pg_stat_activity where pid = $1", int32(b.pid))
		})
	}
	// Who does not wait for standbys when he commits does not wait here.
	for _, level := range []string{"off", "local"} {
		conn := connect(t, pool)
		bounded.Exec(t, conn, "set synchronous_commit = "+level)
		for name, call := range calls {
			if name == "register" {
				continue // The waiting call has locked its table.
			}
			if got, err := call(bounded.Context(t), conn); err != nil || got != acknowledged[name] {
				t.Errorf("synchronous_commit = %s: %s was answered %q, %v", level, name, got, err)
			}
		}
	}
	dbtest.Synchronous(t, primary, "")
	for name, b := range waiting {
		if got := b.wait(t); got != acknowledged[name] {
			t.Errorf("%s was answered %q, want %q", name, got, acknowledged[name])
		}
	}
}

// private returns a server of the test's own, with the schema, and a pool on it.
func private(t *testing.T) (*localpg.Server, *pgxpool.Pool) {
	t.Helper()
	server := dbtest.Private(t, nil)
	if err := db.Up(t.Context(), server.DSN()); err != nil {
		t.Fatal(err)
	}
	pool, err := pgxpool.New(t.Context(), server.DSN())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return server, pool
}

// A standby does not answer repeated commands, since it does not know what its primary has acknowledged.
func TestStandbysAcknowledgeNothing(t *testing.T) {
	t.Parallel()
	primary, pool := private(t)
	standby := dbtest.Standby(t, primary, "second", nil)
	calls := acknowledging(decided(t, pool))
	second := dial(t, standby.DSN())
	bounded.UntilSQL(t, second, "select count(*) = 1 from pawl.idempotency_key where key = 'created one'")
	for name, call := range calls {
		if name == "register" {
			continue // Its lock is refused before, with another code.
		}
		_, err := call(bounded.Context(t), second)
		wantCode(t, err, "25006")
	}
	dbtest.Promote(t, standby)
	for name, call := range calls {
		if got, err := call(bounded.Context(t), second); err != nil || got != acknowledged[name] {
			t.Errorf("the new primary answered %s with %q, %v", name, got, err)
		}
	}
}

// Without synchronous standbys a repeated command writes nothing, and needs no transaction id.
func TestAcknowledgementsWithoutStandbys(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	for name, call := range acknowledging(decided(t, pool)) {
		tx := begin(t, pool)
		if got, err := call(bounded.Context(t), tx); err != nil || got != acknowledged[name] {
			t.Errorf("%s was answered %q, %v", name, got, err)
		}
		if !bounded.Value[bool](t, tx, "select pg_current_xact_id_if_assigned() is null") {
			t.Errorf("%s has taken a transaction id", name)
		}
		commit(t, tx)
	}
}
