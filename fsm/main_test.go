package fsm_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.uber.org/goleak"

	"github.com/pawl-fsm/pawl/db"
	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/fsm"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, dbtest.IgnoreServer(), goleak.Cleanup(dbtest.Exit))
}

// running runs a worker until stop, which returns what it did.
func running(t *testing.T, worker func(context.Context) error) (stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- worker(ctx) }()
	stop = sync.OnceValue(func() error {
		cancel()
		return <-ended
	})
	t.Cleanup(func() { _ = stop() })
	return stop
}

// flightBooking is the example of the design.
const flightBooking = `{
	"name": "flight-booking",
	"initial": "QUOTED",
	"ttl": {"after": "30m", "target": "EXPIRED"},
	"require_if_match": false,
	"context_schema": {"type": "object", "required": ["flight_id", "price"], "properties": {"price": {"type": "integer", "minimum": 0}}},
	"states": {
		"QUOTED": {
			"on": {
				"reserve": {
					"target": "RESERVED",
					"guard": "$.payload.price == $.context.price",
					"assign": {"seat": "$.payload.seat", "reserved_at": "$.now"}
				},
				"cancel": "CANCELLED"
			},
			"after": {"10m": "EXPIRED"}
		},
		"RESERVED": {
			"on": {
				"pay": [
					{"guard": "$.payload.amount == $.context.price", "target": "PAID", "assign": {"payment_ref": "$.payload.payment_ref", "paid_at": "$.now"}},
					{"target": "PAYMENT_MISMATCH", "assign": {"offered": "$.payload.amount"}}
				],
				"cancel": "CANCELLED"
			},
			"after": {"15m": "EXPIRED"}
		},
		"PAYMENT_MISMATCH": {"on": {"pay": {"guard": "$.payload.amount == $.context.price", "target": "PAID", "assign": {"payment_ref": "$.payload.payment_ref"}}, "cancel": "CANCELLED"}},
		"PAID": {"type": "final", "outcome": "completed"},
		"CANCELLED": {"type": "final", "outcome": "cancelled"},
		"EXPIRED": {"type": "final", "outcome": "expired"}
	}
}`

// counter counts for ever: each step adds the payload's n to the context's x, if n is not
// negative.
const counter = `{
	"name": "counter",
	"initial": "COUNTING",
	"states": {
		"COUNTING": {"on": {
			"add": {"target": "COUNTING", "guard": "$.payload.n >= 0", "assign": {"x": "$.context.x + $.payload.n"}},
			"stop": "STOPPED",
			"slow": {"target": "STOPPED", "guard": "exists($.payload.a[*] ? (exists($.payload.a[*] ? (exists($.payload.a[*] ? (@ < 0))))))"},
			"raise": {"target": "STOPPED", "guard": "$nowhere == 1"}
		}},
		"STOPPED": {"type": "final"}
	}
}`

// newService returns a Service on a database of its own, and a pool for looking at it.
func newService(t testing.TB, config fsm.Config, definitions ...string) (*fsm.Service, *pgxpool.Pool) {
	t.Helper()
	pool := dbtest.New(t)
	return serviceOn(t, pool, config, definitions...), pool
}

func serviceOn(t testing.TB, pool *pgxpool.Pool, config fsm.Config, definitions ...string) *fsm.Service {
	t.Helper()
	s := fsm.New(pool, config)
	t.Cleanup(s.Close)
	for _, d := range definitions {
		register(t, s, d)
	}
	return s
}

// open returns a pool with the limits that the service has in production.
func open(t testing.TB, dsn string, config db.Config) *pgxpool.Pool {
	t.Helper()
	pool, err := db.Open(t.Context(), dsn, config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

func register(t testing.TB, s *fsm.Service, definition string) fsm.Registration {
	t.Helper()
	r, err := s.Register(t.Context(), "", []byte(definition), "tester", false)
	if err != nil {
		t.Fatalf("register: %v", err)
	}
	return r
}

func create(t testing.TB, s *fsm.Service, workflow, document string) fsm.Instance {
	t.Helper()
	r, err := s.Create(t.Context(), fsm.CreateCommand{Workflow: workflow, Context: json.RawMessage(document)})
	if err != nil {
		t.Fatalf("create: %v", err)
	}
	return r.Instance
}

func fire(t testing.TB, s *fsm.Service, id uuid.UUID, event, payload string) fsm.Instance {
	t.Helper()
	r, err := s.Fire(t.Context(), fsm.FireCommand{ID: id, Event: event, Payload: json.RawMessage(payload)})
	if err != nil {
		t.Fatalf("fire %s: %v", event, err)
	}
	return r.Instance
}

func get(t testing.TB, s *fsm.Service, id uuid.UUID) fsm.Instance {
	t.Helper()
	i, err := s.Get(t.Context(), fsm.DefaultTenant, id)
	if err != nil {
		t.Fatalf("get: %v", err)
	}
	return i
}

// history returns all steps of an instance.
func history(t testing.TB, s *fsm.Service, id uuid.UUID) []fsm.Step {
	t.Helper()
	var steps []fsm.Step
	for page := (fsm.Page{Limit: fsm.MaxLimit}); ; {
		l, err := s.History(t.Context(), fsm.DefaultTenant, id, page)
		if err != nil {
			t.Fatalf("history: %v", err)
		}
		steps = append(steps, l.Items...)
		if page.Cursor = l.Next; page.Cursor == "" {
			return steps
		}
	}
}

// refusal fails the test unless err is an *fsm.Error of the kind.
func refusal(t testing.TB, err error, kind fsm.Kind) *fsm.Error {
	t.Helper()
	e, ok := errors.AsType[*fsm.Error](err)
	if !ok || !errors.Is(err, kind) {
		t.Fatalf("got %v, want: %v", err, kind)
	}
	return e
}

// refused is refusal where the kind is all that matters.
func refused(t testing.TB, err error, kind fsm.Kind) {
	t.Helper()
	_ = refusal(t, err, kind)
}

// sameJSON compares documents, not their text.
func sameJSON(t testing.TB, got json.RawMessage, want string) {
	t.Helper()
	if diff := cmp.Diff(decoded(t, want), decoded(t, string(got))); diff != "" {
		t.Errorf("JSON (-want +got):\n%s", diff)
	}
}

func decoded(t testing.TB, text string) any {
	t.Helper()
	d := json.NewDecoder(strings.NewReader(text))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	return v
}

// scan reads one value from the database.
func scan[T any](t testing.TB, pool *pgxpool.Pool, sql string, args ...any) T {
	t.Helper()
	var v T
	if err := pool.QueryRow(t.Context(), sql, args...).Scan(&v); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return v
}

func exec(t testing.TB, pool *pgxpool.Pool, sql string, args ...any) {
	t.Helper()
	if _, err := pool.Exec(t.Context(), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// counts are the rows of every table that a command may write.
func counts(t testing.TB, pool *pgxpool.Pool) string {
	t.Helper()
	return scan[string](t, pool, `select concat_ws(' ',
		(select count(*) from pawl.instance), (select count(*) from pawl.history),
		(select count(*) from pawl.idempotency_key), (select count(*) from pawl.timer),
		(select sum(version) from pawl.instance), (select count(*) from pawl.workflow))`)
}

// until polls the database, which takes its time to answer, until a condition holds.
func until(t testing.TB, pool *pgxpool.Pool, sql string, args ...any) {
	t.Helper()
	for !scan[bool](t, pool, sql, args...) {
		if t.Context().Err() != nil {
			t.Fatalf("never true: %s", sql)
		}
	}
}

// hold locks an instance in a transaction that goes on until release.
func hold(t testing.TB, pool *pgxpool.Pool, id uuid.UUID) (release func()) {
	t.Helper()
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), "select from pawl.instance where id = $1 for update", id); err != nil {
		t.Fatal(err)
	}
	var done atomic.Bool
	release = func() {
		if !done.Swap(true) {
			if err := tx.Rollback(context.WithoutCancel(t.Context())); err != nil && !errors.Is(err, pgx.ErrTxClosed) {
				t.Error(err)
			}
		}
	}
	t.Cleanup(release)
	return release
}

// waiting is true when n backends wait for a lock.
const waiting = `select count(*) = $1 from pg_stat_activity
	where datname = current_database() and wait_event_type = 'Lock' and query like '%pawl.fire%'`

// A spy is told of each call of the engine.
type spy struct {
	started, ended func(sql string, args []any)
}

type spyKey struct{}

func (s spy) TraceQueryStart(ctx context.Context, _ *pgx.Conn, q pgx.TraceQueryStartData) context.Context {
	if s.started != nil {
		s.started(q.SQL, q.Args)
	}
	return context.WithValue(ctx, spyKey{}, q)
}

func (s spy) TraceQueryEnd(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryEndData) {
	if q, ok := ctx.Value(spyKey{}).(pgx.TraceQueryStartData); ok && s.ended != nil {
		s.ended(q.SQL, q.Args)
	}
}

// spied returns another pool on the same database, with changes to its configuration.
func spied(t testing.TB, pool *pgxpool.Pool, change func(*pgxpool.Config)) *pgxpool.Pool {
	t.Helper()
	config := pool.Config()
	if change != nil {
		change(config)
	}
	other, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(other.Close)
	return other
}

// readOnlyPool returns a pool whose connections cannot write.
func readOnlyPool(t testing.TB, pool *pgxpool.Pool) *pgxpool.Pool {
	return spied(t, pool, func(c *pgxpool.Config) {
		c.ConnConfig.RuntimeParams["default_transaction_read_only"] = "on"
	})
}

// batchSizes notes how many commands each call of pawl.fire has.
func batchSizes(into chan<- int) pgx.QueryTracer {
	return spy{started: func(sql string, args []any) {
		if strings.Contains(sql, "pawl.fire(") {
			into <- len(args[1].([]uuid.UUID))
		}
	}}
}

func pointers(faults []fsm.Fault) []string {
	list := []string{}
	for _, f := range faults {
		list = append(list, f.Pointer)
	}
	return list
}

func describe(faults []fsm.Fault) string {
	var b strings.Builder
	for _, f := range faults {
		fmt.Fprintf(&b, "%s: %s\n", f.Pointer, f.Detail)
	}
	return b.String()
}
