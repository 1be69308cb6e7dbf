package db_test

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

func TestMain(m *testing.M) { dbtest.Main(m) }

const tenant = "default"

// door has two states that lead to one another, and a way out.
const door = `{"name": "door", "initial": "CLOSED", "states": {
	"CLOSED": {"on": {"open": [{"target": "OPEN"}]}},
	"OPEN": {"on": {"close": [{"target": "CLOSED"}], "remove": [{"target": "GONE"}]}},
	"GONE": {"type": "final"}}}`

// flight has guards, assigns, timeouts and a lifetime.
const flight = `{"name": "flight-booking", "initial": "QUOTED", "ttl": {"after": "1800s", "target": "EXPIRED"}, "states": {
	"QUOTED": {
		"on": {
			"reserve": [{"target": "RESERVED", "guard": "$.payload.price == $.context.price", "assign": {"seat": "$.payload.seat"}}],
			"cancel": [{"target": "CANCELLED"}]},
		"after": {"600s": [{"target": "EXPIRED"}]}},
	"RESERVED": {
		"on": {
			"pay": [
				{"target": "PAID", "guard": "$.payload.amount == $.context.price", "assign": {"paid_at": "$.now"}},
				{"target": "MISMATCH", "assign": {"offered": "$.payload.amount"}}],
			"cancel": [{"target": "CANCELLED"}]},
		"after": {"900s": [{"target": "EXPIRED"}], "86400s": [{"target": "CANCELLED"}]}},
	"MISMATCH": {"on": {"cancel": [{"target": "CANCELLED"}]}},
	"PAID": {"type": "final"},
	"CANCELLED": {"type": "final", "outcome": "cancelled"},
	"EXPIRED": {"type": "final", "outcome": "expired"}}}`

// wantCode fails the test unless err is the database's and has the SQLSTATE.
func wantCode(t testing.TB, err error, code string) pgconn.PgError {
	t.Helper()
	pgErr, ok := errors.AsType[*pgconn.PgError](err)
	if !ok || pgErr.Code != code {
		t.Fatalf("error = %v, want SQLSTATE %s", err, code)
	}
	return *pgErr
}

func connect(t testing.TB, pool *pgxpool.Pool) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dbtest.DSN(pool))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

func begin(t testing.TB, pool *pgxpool.Pool) pgx.Tx {
	t.Helper()
	tx, err := connect(t, pool).Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return tx
}

func commit(t testing.TB, tx pgx.Tx) {
	t.Helper()
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// background is work on a connection of its own, which another transaction may block.
type background[T any] struct {
	pid  uint32
	done chan struct{}
	v    T
	err  error
}

func start[T any](t testing.TB, pool *pgxpool.Pool, f func(queries.DBTX) (T, error)) *background[T] {
	t.Helper()
	conn := connect(t, pool)
	b := &background[T]{pid: conn.PgConn().PID(), done: make(chan struct{})}
	go func() {
		defer close(b.done)
		b.v, b.err = f(conn)
	}()
	return b
}

// awaitBlocked returns when the work waits for another transaction.
func (b *background[T]) awaitBlocked(t testing.TB, pool *pgxpool.Pool) {
	t.Helper()
	bounded.True(t, "work to be blocked by another transaction", func() bool {
		blocked := bounded.Value[bool](t, pool, "select cardinality(pg_blocking_pids($1)) > 0", int32(b.pid))
		if !blocked {
			select {
			case <-b.done:
				t.Fatalf("it was not blocked, and ended with %+v, %v", b.v, b.err)
			default:
			}
		}
		return blocked
	})
}

// end waits for the end of the work, whatever it ends with.
func (b *background[T]) end(t testing.TB) {
	t.Helper()
	bounded.Receive(t, "the end of work in the background", b.done)
}

func (b *background[T]) wait(t testing.TB) T {
	t.Helper()
	b.end(t)
	if b.err != nil {
		t.Fatal(b.err)
	}
	return b.v
}

func register(t testing.TB, q queries.DBTX, definition string) (version int32, created bool) {
	t.Helper()
	row, err := queries.New(q).RegisterWorkflow(t.Context(), queries.RegisterWorkflowParams{
		Definition: json.RawMessage(definition), Actor: "tester",
	})
	if err != nil {
		t.Fatal(err)
	}
	return row.Version, row.Created
}

// withDoors gives a database with the door workflow and n closed doors.
func withDoors(t testing.TB, n int) (*pgxpool.Pool, []uuid.UUID) {
	t.Helper()
	pool := dbtest.New(t)
	register(t, pool, door)
	return pool, doors(t, pool, n)
}

func doors(t testing.TB, q queries.DBTX, n int) []uuid.UUID {
	t.Helper()
	ids := make([]uuid.UUID, n)
	for i, o := range create(t, q, tenant, slices.Repeat([]creation{{workflow: "door"}}, n)...) {
		wantOutcome(t, o, "applied")
		ids[i] = *o.ID
	}
	return ids
}

// creation is an entry of pawl.create. Its context is an empty object unless given.
type creation struct {
	workflow, context, key, businessKey, correlationID string
	lifetime                                           time.Duration
}

func tryCreate(ctx context.Context, q queries.DBTX, tenant string, list ...creation) ([]queries.Outcome, error) {
	var p queries.CreateParams
	for _, c := range list {
		p.Tenants = append(p.Tenants, tenant)
		p.Workflows = append(p.Workflows, c.workflow)
		p.Contexts = append(p.Contexts, json.RawMessage(cmp.Or(c.context, "{}")))
		p.Keys = append(p.Keys, c.key)
		p.BusinessKeys = append(p.BusinessKeys, c.businessKey)
		p.InstanceCorrelationIds = append(p.InstanceCorrelationIds, c.correlationID)
		p.Lifetimes = append(p.Lifetimes, pgtype.Interval{Microseconds: c.lifetime.Microseconds(), Valid: c.lifetime != 0})
		p.Checked = append(p.Checked, "")
		p.Actors = append(p.Actors, "tester")
		p.Reasons = append(p.Reasons, "")
		p.CorrelationIds = append(p.CorrelationIds, "")
		p.Traceparents = append(p.Traceparents, "")
	}
	return inOrder(queries.New(q).Create(ctx, p))
}

func create(t testing.TB, q queries.DBTX, tenant string, list ...creation) []queries.Outcome {
	t.Helper()
	outcomes, err := tryCreate(t.Context(), q, tenant, list...)
	if err != nil {
		t.Fatal(err)
	}
	wantOneEach(t, outcomes, len(list))
	return outcomes
}

// command is an entry of pawl.fire. Its payload is an empty object unless given.
type command struct {
	id                                                                    uuid.UUID
	event, payload, key, expected, checked, reason, correlationID, tenant string
}

func tryFire(ctx context.Context, q queries.DBTX, tenant string, list ...command) ([]queries.Outcome, error) {
	var p queries.FireParams
	for _, c := range list {
		p.Tenants = append(p.Tenants, cmp.Or(c.tenant, tenant))
		p.Ids = append(p.Ids, c.id)
		p.Events = append(p.Events, c.event)
		p.Payloads = append(p.Payloads, json.RawMessage(cmp.Or(c.payload, "{}")))
		p.Keys = append(p.Keys, c.key)
		p.Expected = append(p.Expected, c.expected)
		p.Checked = append(p.Checked, c.checked)
		p.Actors = append(p.Actors, "tester")
		p.Reasons = append(p.Reasons, c.reason)
		p.CorrelationIds = append(p.CorrelationIds, c.correlationID)
		p.Traceparents = append(p.Traceparents, "")
	}
	return inOrder(queries.New(q).Fire(ctx, p))
}

func fire(t testing.TB, q queries.DBTX, tenant string, list ...command) []queries.Outcome {
	t.Helper()
	outcomes, err := tryFire(t.Context(), q, tenant, list...)
	if err != nil {
		t.Fatal(err)
	}
	wantOneEach(t, outcomes, len(list))
	return outcomes
}

func inOrder(outcomes []queries.Outcome, err error) ([]queries.Outcome, error) {
	slices.SortFunc(outcomes, func(a, b queries.Outcome) int { return cmp.Compare(a.Ordinal, b.Ordinal) })
	return outcomes, err
}

func wantOneEach(t testing.TB, outcomes []queries.Outcome, n int) {
	t.Helper()
	for i, o := range outcomes {
		if int(o.Ordinal) != i+1 {
			t.Fatalf("row %d answers command %d", i+1, o.Ordinal)
		}
	}
	if len(outcomes) != n {
		t.Fatalf("%d rows for %d commands", len(outcomes), n)
	}
}

func wantOutcome(t testing.TB, o queries.Outcome, want string) {
	t.Helper()
	if o.Code != want {
		t.Fatalf("command %d came to %s, want %s", o.Ordinal, o.Code, want)
	}
}

// wantReplay compares a replay with the first answer, whole.
func wantReplay(t testing.TB, got, first queries.Outcome) {
	t.Helper()
	if !got.Replayed {
		t.Error("the replay does not say that it is one")
	}
	got.Replayed, got.Ordinal = first.Replayed, first.Ordinal
	g, w := asJSON(t, got), asJSON(t, first)
	if g != w {
		t.Errorf("the replay differs:\n got %s\nwant %s", g, w)
	}
}

func asJSON(t testing.TB, v any) string {
	t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func raw(documents ...string) []json.RawMessage {
	list := make([]json.RawMessage, len(documents))
	for i, d := range documents {
		list[i] = json.RawMessage(d)
	}
	return list
}
