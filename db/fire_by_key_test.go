package db_test

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// visit has business keys that are free again when their instance has ended.
const visit = `{"name": "visit", "initial": "IN", "business_key": "reusable", "states": {
	"IN": {"on": {"stay": [{"target": "IN"}], "leave": [{"target": "OUT"}]}}, "OUT": {"type": "final"}}}`

// keyed is an entry of pawl.fire_by_keys. Its workflow is visit, and its payload an empty object, unless given.
type keyed struct {
	workflow, businessKey, event, payload, key, expected, checked, start, startChecked string
}

func tryFireByKeys(ctx context.Context, q queries.DBTX, list ...keyed) ([]queries.Outcome, error) {
	var p queries.FireByKeysParams
	for _, c := range list {
		p.Tenants = append(p.Tenants, tenant)
		p.Workflows = append(p.Workflows, cmp.Or(c.workflow, "visit"))
		p.BusinessKeys = append(p.BusinessKeys, c.businessKey)
		p.Events = append(p.Events, c.event)
		p.Payloads = append(p.Payloads, json.RawMessage(cmp.Or(c.payload, "{}")))
		p.Keys = append(p.Keys, c.key)
		p.Expected = append(p.Expected, c.expected)
		p.Checked = append(p.Checked, c.checked)
		var start json.RawMessage
		if c.start != "" {
			start = json.RawMessage(c.start)
		}
		p.Starts = append(p.Starts, start)
		p.StartsChecked = append(p.StartsChecked, c.startChecked)
		p.Actors = append(p.Actors, "tester")
		p.Reasons = append(p.Reasons, "")
		p.CorrelationIds = append(p.CorrelationIds, "")
		p.Traceparents = append(p.Traceparents, "")
	}
	return inOrder(queries.New(q).FireByKeys(ctx, p))
}

func fireByKeys(t testing.TB, q queries.DBTX, list ...keyed) []queries.Outcome {
	t.Helper()
	outcomes, err := tryFireByKeys(t.Context(), q, list...)
	if err != nil {
		t.Fatal(err)
	}
	wantOneEach(t, outcomes, len(list))
	return outcomes
}

func fireByKeysLater(t *testing.T, pool *pgxpool.Pool, list ...keyed) *background[[]queries.Outcome] {
	t.Helper()
	return start(t, pool, func(q queries.DBTX) ([]queries.Outcome, error) {
		return tryFireByKeys(context.Background(), q, list...)
	})
}

// withVisits gives a database with the workflow visit, and an instance for each business key.
func withVisits(t testing.TB, businessKeys ...string) (*pgxpool.Pool, []uuid.UUID) {
	t.Helper()
	pool := dbtest.New(t)
	register(t, pool, visit)
	var ids []uuid.UUID
	for _, k := range businessKeys {
		o := create(t, pool, tenant, creation{workflow: "visit", businessKey: k})[0]
		wantOutcome(t, o, "applied")
		ids = append(ids, *o.ID)
	}
	return pool, ids
}

// wantInstance fails the test unless an outcome shows an instance at a version.
func wantInstance(t testing.TB, o queries.Outcome, id uuid.UUID, version int64) {
	t.Helper()
	if o.ID == nil || *o.ID != id || *o.Version != version {
		t.Errorf("it shows %v at %v, want %v at %d", o.ID, o.Version, id, version)
	}
}

// An event goes to the instance that holds the key, and a key that nobody holds is no instance's.
func TestFireByKey(t *testing.T) {
	t.Parallel()
	pool, ids := withVisits(t, "a", "b", "c")
	wantOutcome(t, fire(t, pool, tenant, command{id: ids[2], event: "leave"})[0], "applied")
	register(t, pool, door)
	gone := create(t, pool, tenant, creation{workflow: "door", businessKey: "a"})[0]
	fire(t, pool, tenant, command{id: *gone.ID, event: "open"}, command{id: *gone.ID, event: "remove"})
	list := []keyed{
		{businessKey: "b", event: "stay", key: "1", expected: "{1}"},
		{businessKey: "a", event: "stay", expected: "{2}"},
		{businessKey: "a", event: "leave", key: "3"},
		{businessKey: "a", event: "never", key: "4"},
		{businessKey: "c", event: "stay", key: "5"},
		{businessKey: "d", event: "stay", key: "6"},
		{workflow: "door", businessKey: "a", event: "close", key: "7"},
		{workflow: "door", businessKey: "a", event: "close", start: "{}"},
	}
	o := fireByKeys(t, pool, list...)
	for i, want := range []string{
		"applied", "version-mismatch", "applied", "transition-not-allowed", "instance-not-found", "instance-not-found",
		"transition-not-allowed", "transition-not-allowed",
	} {
		if i == 3 {
			want = "unknown-event" // The workflow has none of this name.
		}
		wantOutcome(t, o[i], want)
	}
	wantInstance(t, o[0], ids[1], 2)
	wantInstance(t, o[2], ids[0], 2)
	wantInstance(t, o[6], *gone.ID, 3)
	again := fireByKeys(t, pool, list[0], list[2], list[6])
	wantReplay(t, again[0], o[0])
	wantReplay(t, again[1], o[2])
	wantReplay(t, again[2], o[6])
	// What was not decided is decided anew.
	create(t, pool, tenant, creation{workflow: "visit", businessKey: "d"})
	wantOutcome(t, fireByKeys(t, pool, list[5])[0], "applied")
}

// One idempotency key is one request: the same business key, event, payload and start, and not the same instance's id.
func TestFireByKeyIsARequestOfItsOwn(t *testing.T) {
	t.Parallel()
	pool, ids := withVisits(t, "a", "b")
	c := keyed{businessKey: "a", event: "stay", payload: `{"n": 1}`, key: "k", start: `{"context": {"x": 1}}`}
	first := fireByKeys(t, pool, c)[0]
	wantOutcome(t, first, "applied")
	other := []keyed{c, c, c, c, c}
	other[0].businessKey = "b"
	other[1].event = "leave"
	other[2].payload = `{"n": 2}`
	other[3].start = `{"context": {"x": 2}}`
	other[4].start = ""
	for _, o := range other {
		wantOutcome(t, fireByKeys(t, pool, o)[0], "idempotency-key-reuse")
	}
	wantOutcome(t, fire(t, pool, tenant, command{id: ids[0], event: "stay", payload: `{"n": 1}`, key: "k"})[0], "idempotency-key-reuse")
	wantOutcome(t, create(t, pool, tenant, creation{workflow: "visit", businessKey: "z", key: "k"})[0], "idempotency-key-reuse")
	c.payload, c.start, c.expected = `{"n":1}`, `{"context":{"x":1}}`, "{9}"
	wantReplay(t, fireByKeys(t, pool, c)[0], first)
}

// A command that may start an instance creates it and fires the event at it if nobody holds the key, once.
func TestStart(t *testing.T) {
	t.Parallel()
	pool, ids := withVisits(t, "held")
	list := []keyed{
		{businessKey: "held", event: "stay", key: "1", start: `{"context": {"x": 1}}`},
		{businessKey: "new", event: "stay", key: "2", start: `{"context": {"x": 1}, "correlation_id": "c"}`},
		{businessKey: "brief", event: "leave", key: "3", start: "{}"},
		{businessKey: "new", event: "leave", key: "4", start: "{}"},
		{businessKey: "brief", event: "stay", start: "{}"}, // Its key is free again.
	}
	o := fireByKeys(t, pool, list...)
	for i, want := range []string{"applied", "created", "created", "applied", "created"} {
		wantOutcome(t, o[i], want)
	}
	wantInstance(t, o[0], ids[0], 2)
	wantInstance(t, o[1], *o[1].ID, 2)
	wantInstance(t, o[3], *o[1].ID, 3)
	if *o[2].ID == *o[4].ID || *o[2].Status != "completed" || *o[4].Status != "active" {
		t.Errorf("the instances of one key are %v (%s) and %v (%s)", o[2].ID, *o[2].Status, o[4].ID, *o[4].Status)
	}
	if *o[1].CorrelationID != "c" || string(o[1].Context) != `{"x": 1}` {
		t.Errorf("it was created with %s, %s", *o[1].CorrelationID, o[1].Context)
	}
	for i, again := range fireByKeys(t, pool, list[:4]...) {
		wantReplay(t, again, o[i])
	}
	steps := bounded.Column[string](t, pool, `
		select concat_ws(' ', version, kind, event, key, correlation_id) from pawl.history where instance_id = $1 order by version`, o[1].ID)
	if want := []string{"1 created c", "2 transition stay 2 c", "3 transition leave 4 c"}; !slices.Equal(steps, want) {
		t.Errorf("the steps are %q, want %q", steps, want)
	}
	if got := count(t, pool, "instance"); got != 4 {
		t.Errorf("%d instances, want 4", got)
	}
}

// A replay says whether the command created the instance, whatever steps the creation made, and whatever the key was used
// for before.
func TestReplayOfAStart(t *testing.T) {
	t.Parallel()
	pool, _ := withVisits(t)
	register(t, pool, `{"name": "nested", "initial": "A", "states": {
		"A": {"initial": "F", "done": [{"target": "B"}], "states": {"F": {"type": "final"}}},
		"B": {"always": [{"target": "C"}]},
		"C": {"on": {"go": [{"target": "D"}]}}, "D": {"always": [{"target": "E"}]}, "E": {"type": "final"}}}`)
	c := keyed{workflow: "nested", businessKey: "b", event: "go", key: "k", start: "{}"}
	first := fireByKeys(t, pool, c)[0]
	wantOutcome(t, first, "created")
	wantInstance(t, first, *first.ID, 5)
	wantReplay(t, fireByKeys(t, pool, c)[0], first)

	dbtest.SetClock(t, pool, noon)
	wantOutcome(t, create(t, pool, tenant, creation{workflow: "visit", businessKey: "old", key: "used"})[0], "applied")
	dbtest.Advance(t, pool, 48*time.Hour)
	c = keyed{businessKey: "old", event: "stay", key: "used", start: "{}"}
	again := fireByKeys(t, pool, c)[0]
	wantOutcome(t, again, "applied")
	wantReplay(t, fireByKeys(t, pool, c)[0], again)
}

// What refuses the event, or the creation, leaves no instance and no decision.
func TestRefusedStartLeavesNothing(t *testing.T) {
	t.Parallel()
	pool, _ := withVisits(t)
	register(t, pool, `{"name": "strict", "initial": "A", "require_if_match": true,
		"context_schema": {"type": "object", "required": ["x"]}, "states": {
		"A": {"on": {
			"go": [{"target": "B", "payload_schema": {"type": "object", "required": ["y"]}}],
			"mind": [{"target": "B", "guard": "$.payload.n == 1"}],
			"loop": [{"target": "L"}]}},
		"L": {"always": [{"target": "M"}]}, "M": {"always": [{"target": "L"}]},
		"B": {"on": {"late": [{"target": "Z"}]}}, "Z": {"type": "final"}}}`)
	start := `{"context": {"x": 1}, "callback_url": "https://example.com"}`
	list := []struct {
		command keyed
		want    string
	}{
		{keyed{event: "late"}, "transition-not-allowed"},
		{keyed{event: "never"}, "unknown-event"},
		{keyed{event: "mind"}, "guard-rejected"},
		{keyed{event: "go"}, "payload-unchecked"},
		{keyed{event: "loop"}, "always-loop"},
		{keyed{event: "mind", startChecked: "no"}, "context-unchecked"},
		{keyed{event: "mind", expected: "{1}"}, "version-mismatch"},
		{keyed{event: "mind", expected: "*"}, "version-mismatch"},
		{keyed{event: "mind", workflow: "nothing"}, "workflow-not-found"},
		{keyed{event: "mind", workflow: "nothing", expected: "*"}, "workflow-not-found"},
		{keyed{event: "mind", start: `{"context": {"x": 1}, "expires_in": "1 hour"}`}, "lifetime-without-ttl"},
		{keyed{event: "mind", start: `{"context": 1}`}, "malformed-request"},
	}
	var commands []keyed
	for i := range list {
		c := &list[i].command
		c.workflow, c.start, c.startChecked = cmp.Or(c.workflow, "strict"), cmp.Or(c.start, start), cmp.Or(c.startChecked, "*")
		c.businessKey, c.key = fmt.Sprint("b", i), fmt.Sprint("k", i)
		commands = append(commands, *c)
	}
	for i, o := range fireByKeys(t, pool, commands...) {
		wantOutcome(t, o, list[i].want)
		if o.ID != nil {
			t.Errorf("%s shows the id %v of no instance", o.Code, o.ID)
		}
		if strings.HasSuffix(o.Code, "-unchecked") != (o.Schema != nil) {
			t.Errorf("%s comes with the schema %s", o.Code, o.Schema)
		}
	}
	for _, table := range []string{"instance", "history", "idempotency_key", "timer", "callback"} {
		if got := count(t, pool, table); got != 0 {
			t.Errorf("%d rows of %s", got, table)
		}
	}
	// The keys are not used up. Who starts an instance need not expect a version of it.
	c := commands[2]
	c.payload = `{"n": 1}`
	wantOutcome(t, fireByKeys(t, pool, c)[0], "created")
	if got := count(t, pool, "callback"); got != 1 {
		t.Errorf("%d callbacks, want 1", got)
	}
	wantOutcome(t, fireByKeys(t, pool, keyed{workflow: "strict", businessKey: c.businessKey, event: "late", start: "{}"})[0], "precondition-required")
}

// Whatever happens to the holder of a key between its look-up and its lock, the event goes to who holds the key then.
func TestRacesForABusinessKey(t *testing.T) {
	t.Parallel()
	stay := keyed{businessKey: "b", event: "stay", key: "k", start: "{}"}
	wantSteps := func(t *testing.T, pool *pgxpool.Pool, id *uuid.UUID, want int) {
		t.Helper()
		if got := bounded.Value[int](t, pool, "select count(*) from pawl.history where instance_id = $1", id); got != want {
			t.Errorf("%d steps, want %d", got, want)
		}
	}
	t.Run("two starts", func(t *testing.T) {
		t.Parallel()
		pool, _ := withVisits(t)
		tx := begin(t, pool)
		first := fireByKeys(t, tx, stay)[0]
		second := stay
		second.key = "l"
		b := fireByKeysLater(t, pool, second)
		b.awaitBlocked(t, pool)
		commit(t, tx)
		o := b.wait(t)[0]
		wantOutcome(t, first, "created")
		wantOutcome(t, o, "applied")
		wantInstance(t, o, *first.ID, 3)
		again := fireByKeys(t, pool, stay, second)
		wantReplay(t, again[0], first)
		wantReplay(t, again[1], o)
	})
	t.Run("one start, twice", func(t *testing.T) {
		t.Parallel()
		pool, _ := withVisits(t)
		tx := begin(t, pool)
		first := fireByKeys(t, tx, stay)[0]
		b := fireByKeysLater(t, pool, stay)
		b.awaitBlocked(t, pool)
		commit(t, tx)
		wantReplay(t, b.wait(t)[0], first)
		wantSteps(t, pool, first.ID, 2)
	})
	t.Run("one start, twice, that ends its instance", func(t *testing.T) {
		t.Parallel()
		pool, _ := withVisits(t)
		leave := keyed{businessKey: "b", event: "leave", key: "k", start: "{}"}
		tx := begin(t, pool)
		first := fireByKeys(t, tx, leave)[0]
		b := fireByKeysLater(t, pool, leave)
		b.awaitBlocked(t, pool)
		commit(t, tx)
		wantReplay(t, b.wait(t)[0], first)
		if got := count(t, pool, "instance"); got != 1 {
			t.Errorf("%d instances, want 1", got)
		}
	})
	t.Run("a start that is taken back", func(t *testing.T) {
		t.Parallel()
		pool, _ := withVisits(t)
		tx := begin(t, pool)
		first := fireByKeys(t, tx, stay)[0]
		b := fireByKeysLater(t, pool, stay)
		b.awaitBlocked(t, pool)
		if err := tx.Rollback(t.Context()); err != nil {
			t.Fatal(err)
		}
		o := b.wait(t)[0]
		wantOutcome(t, o, "created")
		if o.Replayed || *o.ID == *first.ID {
			t.Error("it replayed what was taken back")
		}
	})
	t.Run("a create and a start", func(t *testing.T) {
		t.Parallel()
		pool, _ := withVisits(t)
		tx := begin(t, pool)
		created := create(t, tx, tenant, creation{workflow: "visit", businessKey: "b"})[0]
		b := fireByKeysLater(t, pool, stay)
		b.awaitBlocked(t, pool)
		commit(t, tx)
		o := b.wait(t)[0]
		wantOutcome(t, o, "applied")
		wantInstance(t, o, *created.ID, 2)
	})
	t.Run("a start and a create", func(t *testing.T) {
		t.Parallel()
		pool, _ := withVisits(t)
		tx := begin(t, pool)
		first := fireByKeys(t, tx, stay)[0]
		b := start(t, pool, func(q queries.DBTX) ([]queries.Outcome, error) {
			return tryCreate(context.Background(), q, tenant, creation{workflow: "visit", businessKey: "b", key: "c"})
		})
		b.awaitBlocked(t, pool)
		commit(t, tx)
		o := b.wait(t)[0]
		wantOutcome(t, o, "instance-exists")
		if *o.ID != *first.ID {
			t.Errorf("the holder is %v, want %v", o.ID, first.ID)
		}
	})
	t.Run("the holder ends", func(t *testing.T) {
		t.Parallel()
		pool, ids := withVisits(t, "b")
		tx := begin(t, pool)
		fire(t, tx, tenant, command{id: ids[0], event: "leave"})
		b := fireByKeysLater(t, pool, stay, keyed{businessKey: "c", event: "stay", start: "{}"})
		b.awaitBlocked(t, pool)
		commit(t, tx)
		o := b.wait(t)
		wantOutcome(t, o[0], "created")
		wantOutcome(t, o[1], "created")
		wantSteps(t, pool, &ids[0], 2)
	})
	t.Run("the holder ends, and nothing may be started", func(t *testing.T) {
		t.Parallel()
		pool, ids := withVisits(t, "b")
		tx := begin(t, pool)
		fire(t, tx, tenant, command{id: ids[0], event: "leave"})
		b := fireByKeysLater(t, pool, keyed{businessKey: "b", event: "stay", key: "k"})
		b.awaitBlocked(t, pool)
		commit(t, tx)
		wantOutcome(t, b.wait(t)[0], "instance-not-found")
		if got := count(t, pool, "idempotency_key"); got != 0 {
			t.Errorf("%d decisions were recorded", got)
		}
	})
	t.Run("the holder ends, and another takes its key", func(t *testing.T) {
		t.Parallel()
		pool, ids := withVisits(t, "b")
		tx := begin(t, pool)
		fire(t, tx, tenant, command{id: ids[0], event: "leave"})
		next := create(t, tx, tenant, creation{workflow: "visit", businessKey: "b"})[0]
		b := fireByKeysLater(t, pool, keyed{businessKey: "b", event: "stay"})
		b.awaitBlocked(t, pool)
		commit(t, tx)
		o := b.wait(t)[0]
		wantOutcome(t, o, "applied")
		wantInstance(t, o, *next.ID, 2)
	})
	t.Run("the holder is purged", func(t *testing.T) {
		t.Parallel()
		pool, ids := withVisits(t, "b")
		tx := begin(t, pool)
		bounded.Exec(t, tx, "delete from pawl.history where instance_id = $1", ids[0])
		bounded.Exec(t, tx, "delete from pawl.instance where id = $1", ids[0])
		b := fireByKeysLater(t, pool, stay)
		b.awaitBlocked(t, pool)
		commit(t, tx)
		o := b.wait(t)[0]
		wantOutcome(t, o, "created")
		if *o.ID == ids[0] {
			t.Error("it is the instance that was purged")
		}
	})
	// The instances are two, so that the idempotency key alone keeps the requests apart.
	t.Run("another request takes the idempotency key", func(t *testing.T) {
		t.Parallel()
		pool, ids := withVisits(t, "other")
		tx := begin(t, pool)
		fire(t, tx, tenant, command{id: ids[0], event: "stay", key: "k"})
		b := fireByKeysLater(t, pool, stay)
		b.awaitBlocked(t, pool)
		commit(t, tx)
		wantOutcome(t, b.wait(t)[0], "idempotency-key-reuse")
		if got := count(t, pool, "instance"); got != 1 {
			t.Errorf("%d instances, want 1", got)
		}
	})
}

// Of many commands at once that may start instances of few keys, one of each key does. All take effect once.
func TestManyStarts(t *testing.T) {
	t.Parallel()
	pool, _ := withVisits(t)
	const callers, businessKeys, tries = 8, 10, 20
	var g errgroup.Group
	created := make([]int, callers)
	for i := range callers {
		conn := connect(t, pool)
		g.Go(func() error {
			for n := range tries {
				var list []keyed
				for k := range businessKeys {
					// Each command is sent by two callers at once.
					list = append(list, keyed{businessKey: fmt.Sprint(k), event: "stay", key: fmt.Sprint(i/2, " ", n, " ", k), start: "{}"})
				}
				if i%2 == 1 {
					slices.Reverse(list)
				}
				outcomes, err := tryFireByKeys(context.Background(), conn, list...)
				for err != nil {
					// Two calls may wait for each other. The service repeats them too.
					if e, ok := errors.AsType[*pgconn.PgError](err); !ok || e.Code != "40P01" {
						return err
					}
					outcomes, err = tryFireByKeys(context.Background(), conn, list...)
				}
				for _, o := range outcomes {
					if o.Code == "created" && !o.Replayed {
						created[i]++
					} else if o.Code != "applied" && o.Code != "created" {
						return fmt.Errorf("a command came to %s", o.Code)
					}
				}
			}
			return nil
		})
	}
	if err := bounded.Result(t, "the callers", g.Wait); err != nil {
		t.Fatal(err)
	}
	total := 0
	for _, n := range created {
		total += n
	}
	if got := count(t, pool, "instance"); got != businessKeys || total != businessKeys {
		t.Errorf("%d instances, and %d commands were told that they created one; want %d", got, total, businessKeys)
	}
	if got := bounded.Column[int](t, pool, "select version from pawl.instance"); slices.ContainsFunc(got, func(v int) bool { return v != 1+tries*callers/2 }) {
		t.Errorf("the versions are %v, want %d each", got, 1+tries*callers/2)
	}
}
