package db_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

func count(t testing.TB, q queries.DBTX, table string) int {
	t.Helper()
	return bounded.Value[int](t, q, "select count(*) from pawl."+table)
}

// A replay is the first answer, though the instance has moved on and the expected version is stale.
func TestReplay(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	register(t, pool, flight)
	creation := creation{workflow: "flight-booking", context: `{"price": 10}`, key: "c", businessKey: "b", correlationID: "x", lifetime: time.Hour}
	created := create(t, pool, tenant, creation)[0]
	wantOutcome(t, created, "applied")
	id := *created.ID

	// Each of these is decided at another version; the refusals are decisions too.
	commands := []command{
		{id: id, event: "pay", key: "1", expected: "{1}"},
		{id: id, event: "reserve", payload: `{"price": 11}`, key: "2", expected: "{1}"},
		{id: id, event: "reserve", payload: `{"price": 10, "seat": "1A"}`, key: "3", expected: "{1}", reason: "r", correlationID: "y"},
		{id: id, event: "reserve", payload: `{"price": 10}`, key: "4", expected: "*"},
		{id: id, event: "pay", payload: `{"amount": 9}`, key: "5", expected: "{2}"},
		{id: id, event: "pay", payload: `{"amount": 9}`, key: "6"},
		{id: id, event: "cancel", key: "7", expected: "{3}"},
		{id: id, event: "cancel", key: "8"},
	}
	want := []string{
		"transition-not-allowed 1 QUOTED", "guard-rejected 1 QUOTED", "applied 2 RESERVED", "transition-not-allowed 2 RESERVED",
		"applied 3 MISMATCH", "transition-not-allowed 3 MISMATCH", "applied 4 CANCELLED", "transition-not-allowed 4 CANCELLED",
	}
	var got []string
	var first []queries.Outcome
	for _, c := range commands {
		o := fire(t, pool, tenant, c)[0]
		if o.Replayed {
			t.Errorf("the first answer to %s says that it is a replay", c.key)
		}
		got = append(got, fmt.Sprint(o.Code, " ", *o.Version, " ", *o.State))
		first = append(first, o)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatal(diff)
	}
	if guards := first[1].Guards; len(guards) != 1 {
		t.Errorf("guards = %v", guards)
	}
	steps := count(t, pool, "history")
	for range 2 {
		wantReplay(t, create(t, pool, tenant, creation)[0], created)
		for i, c := range commands {
			wantReplay(t, fire(t, pool, tenant, c)[0], first[i])
			// What belongs to the attempt is no part of the request.
			c.expected, c.reason, c.correlationID, c.checked = "{77}", "again", "again", "again"
			wantReplay(t, fire(t, pool, tenant, c)[0], first[i])
		}
	}
	if got := count(t, pool, "history"); got != steps {
		t.Errorf("replays made %d steps", got-steps)
	}
}

// The order of members and the spaces are no part of a request.
func TestReplayOfReformattedJSON(t *testing.T) {
	t.Parallel()
	pool, ids := withDoors(t, 1)
	c := command{id: ids[0], event: "open", payload: `{"a": 1, "b": {"c": "ü", "d": [1.0]}}`, key: "k"}
	first := fire(t, pool, tenant, c)[0]
	c.payload = "{\"b\":{\"d\":[1.0],\n\"c\":\"\\u00fc\"},\"a\":1}"
	wantReplay(t, fire(t, pool, tenant, c)[0], first)
}

func TestKeyReuse(t *testing.T) {
	t.Parallel()
	pool, ids := withDoors(t, 2)
	register(t, pool, lamp)
	base := creation{workflow: "door", context: `{"a": 1}`, key: "c", businessKey: "b", correlationID: "x"}
	create(t, pool, tenant, base)
	register(t, pool, flight)
	flightBase := creation{workflow: "flight-booking", key: "l", lifetime: time.Minute}
	create(t, pool, tenant, flightBase)
	fire(t, pool, tenant, command{id: ids[0], event: "open", key: "f"}, command{id: ids[1], event: "close", key: "refused"})

	vary := func(c creation, change func(*creation)) creation { change(&c); return c }
	steps, keys := count(t, pool, "history"), count(t, pool, "idempotency_key")
	before := bounded.Value[string](t, pool, "select jsonb_agg(k order by key)::text from pawl.idempotency_key k")
	for name, c := range map[string]creation{
		"workflow":       vary(base, func(c *creation) { c.workflow = "lamp" }),
		"context":        vary(base, func(c *creation) { c.context = `{"a": 2}` }),
		"business key":   vary(base, func(c *creation) { c.businessKey = "" }),
		"correlation id": vary(base, func(c *creation) { c.correlationID = "y" }),
		"lifetime":       vary(flightBase, func(c *creation) { c.lifetime = time.Hour }),
		"fire's":         vary(base, func(c *creation) { c.key = "f" }),
	} {
		o := create(t, pool, tenant, c)[0]
		if o.Code != "idempotency-key-reuse" || o.ID != nil || o.Context != nil {
			t.Errorf("another %s: %s, %s", name, o.Code, asJSON(t, o))
		}
	}
	for name, c := range map[string]command{
		"instance":  {id: ids[1], event: "open", key: "f"},
		"event":     {id: ids[0], event: "close", key: "f"},
		"payload":   {id: ids[0], event: "open", payload: `{"a": 1}`, key: "f"},
		"decision":  {id: ids[1], event: "open", key: "refused"},
		"create's":  {id: ids[0], event: "close", key: "c"},
		"not found": {id: uuid.New(), event: "open", key: "f"},
	} {
		if o := fire(t, pool, tenant, c)[0]; o.Code != "idempotency-key-reuse" || o.ID != nil || o.Context != nil {
			t.Errorf("another %s: %s", name, asJSON(t, o))
		}
	}
	if s, k := count(t, pool, "history"), count(t, pool, "idempotency_key"); s != steps || k != keys {
		t.Errorf("%d steps and %d keys, want %d and %d", s, k, steps, keys)
	}
	if after := bounded.Value[string](t, pool, "select jsonb_agg(k order by key)::text from pawl.idempotency_key k"); after != before {
		t.Errorf("the keys are\n%s, were\n%s", after, before)
	}
}

// What is refused before there is a decision leaves the key as new.
func TestNotRecorded(t *testing.T) {
	t.Parallel()
	pool, ids := withDoors(t, 1)
	register(t, pool, strict)
	bounded.Exec(t, pool, "update pawl.setting set context_limit = 100, payload_limit = 100")
	id := *create(t, pool, tenant, creation{workflow: "strict", businessKey: "b", context: `{"x": "` + long(70) + `"}`})[0].ID
	keys := count(t, pool, "idempotency_key")
	for want, c := range map[string]command{
		"version-mismatch":      {id: ids[0], event: "open", expected: "{2}"},
		"instance-not-found":    {id: uuid.New(), event: "open"},
		"unknown-event":         {id: ids[0], event: "break"},
		"payload-too-large":     {id: ids[0], event: "open", payload: `{"x": "` + long(100) + `"}`},
		"context-too-large":     {id: id, event: "fill", expected: "*", payload: `{"y": "` + long(70) + `"}`},
		"precondition-required": {id: id, event: "go"},
		"malformed-request":     {id: ids[0], event: "open", payload: "[]"},
	} {
		c.key = "k"
		for range 2 {
			o := fire(t, pool, tenant, c)[0]
			if o.Code != want || o.Replayed {
				t.Errorf("%s, replayed: %v; want %s", o.Code, o.Replayed, want)
			}
		}
	}
	for want, c := range map[string]creation{
		"workflow-not-found":   {workflow: "nothing"},
		"malformed-request":    {workflow: "door", context: "[]"},
		"context-too-large":    {workflow: "door", context: `{"x": "` + long(100) + `"}`},
		"instance-exists":      {workflow: "strict", businessKey: "b"},
		"lifetime-without-ttl": {workflow: "door", lifetime: time.Hour},
	} {
		c.key = "k"
		for range 2 {
			o := create(t, pool, tenant, c)[0]
			if o.Code != want || o.Replayed {
				t.Errorf("%s, replayed: %v; want %s", o.Code, o.Replayed, want)
			}
			if want == "instance-exists" && *o.ID != id {
				t.Errorf("the holder of the business key is %v, want %v", o.ID, id)
			}
		}
	}
	if got := count(t, pool, "idempotency_key"); got != keys {
		t.Errorf("%d keys, want %d", got, keys)
	}
	wantOutcome(t, fire(t, pool, tenant, command{id: ids[0], event: "open", key: "k"})[0], "applied")
}

func long(n int) string { return fmt.Sprintf("%0*d", n, 0) }

func TestTenantsShareNoKeys(t *testing.T) {
	t.Parallel()
	pool, _ := withDoors(t, 0)
	c := creation{workflow: "door", key: "k", businessKey: "b"}
	mine, yours := create(t, pool, "mine", c)[0], create(t, pool, "yours", c)[0]
	wantOutcome(t, mine, "applied")
	wantOutcome(t, yours, "applied")
	if *mine.ID == *yours.ID || yours.Replayed {
		t.Error("two tenants share an instance")
	}
	wantOutcome(t, fire(t, pool, "yours", command{id: *mine.ID, event: "open", key: "f"})[0], "instance-not-found")
	a := fire(t, pool, "mine", command{id: *mine.ID, event: "open", key: "f"})[0]
	b := fire(t, pool, "yours", command{id: *yours.ID, event: "open", key: "f"})[0]
	wantOutcome(t, a, "applied")
	wantOutcome(t, b, "applied")
	wantReplay(t, fire(t, pool, "mine", command{id: *mine.ID, event: "open", key: "f"})[0], a)
	wantReplay(t, fire(t, pool, "yours", command{id: *yours.ID, event: "open", key: "f"})[0], b)
	wantReplay(t, create(t, pool, "yours", c)[0], yours)
}

// A key past its time is new again.
func TestKeysExpire(t *testing.T) {
	t.Parallel()
	for _, slides := range []bool{false, true} {
		t.Run(fmt.Sprint("slides: ", slides), func(t *testing.T) {
			t.Parallel()
			pool, _ := withDoors(t, 0)
			bounded.Exec(t, pool, "update pawl.setting set idempotency_ttl = '10 hours', idempotency_ttl_slides = $1", slides)
			dbtest.SetClock(t, pool, noon)
			c := creation{workflow: "door", key: "c"}
			created := create(t, pool, tenant, c)[0]
			f := command{id: *created.ID, event: "open", key: "f"}
			fired := fire(t, pool, tenant, f)[0]
			fire(t, pool, tenant, command{id: *created.ID, event: "close", key: "other"})

			dbtest.Advance(t, pool, 10*time.Hour-time.Microsecond)
			wantReplay(t, create(t, pool, tenant, c)[0], created)
			wantReplay(t, fire(t, pool, tenant, f)[0], fired)
			dbtest.Advance(t, pool, time.Microsecond)
			if slides { // They were used a moment ago. What was not used is as new.
				dbtest.Advance(t, pool, 10*time.Hour-2*time.Microsecond)
				wantReplay(t, create(t, pool, tenant, c)[0], created)
				wantReplay(t, fire(t, pool, tenant, f)[0], fired)
				if o := fire(t, pool, tenant, command{id: *created.ID, event: "close", key: "other"})[0]; o.Replayed {
					t.Error("a key that was not used slid too")
				}
				dbtest.Advance(t, pool, 10*time.Hour)
			}
			again := create(t, pool, tenant, c)[0]
			wantOutcome(t, again, "applied")
			if again.Replayed || *again.ID == *created.ID {
				t.Error("an expired key was replayed")
			}
			fired = fire(t, pool, tenant, f)[0]
			wantOutcome(t, fired, "applied")
			if fired.Replayed || *fired.Version != 4 {
				t.Errorf("fired again: version %d, replayed: %v", *fired.Version, fired.Replayed)
			}
			// From here on it stands for the new request, which may be another.
			wantReplay(t, create(t, pool, tenant, c)[0], again)
			wantReplay(t, fire(t, pool, tenant, f)[0], fired)
			dbtest.Advance(t, pool, 11*time.Hour)
			wantOutcome(t, fire(t, pool, tenant, command{id: *again.ID, event: "open", key: "f"})[0], "applied")
		})
	}
}

// Two commands of one batch may have one key. It is claimed once.
func TestOneKeyTwiceInABatch(t *testing.T) {
	t.Parallel()
	pool, ids := withDoors(t, 2)
	before := count(t, pool, "history")
	f := fire(t, pool, tenant, command{id: ids[0], event: "open", key: "f"}, command{id: ids[1], event: "open", key: "f"})
	wantOutcome(t, f[0], "applied")
	wantOutcome(t, f[1], "idempotency-key-reuse")
	c := create(t, pool, tenant,
		creation{workflow: "door", key: "c"}, creation{workflow: "door", key: "c"}, creation{workflow: "door", key: "c", context: `{"a": 1}`},
		creation{workflow: "door", key: "d"})
	wantOutcome(t, c[0], "applied")
	wantReplay(t, c[1], c[0])
	wantOutcome(t, c[2], "idempotency-key-reuse")
	wantOutcome(t, c[3], "applied")
	if got := count(t, pool, "history") - before; got != 3 {
		t.Errorf("%d steps, want 3", got)
	}
	if got := bounded.Value[string](t, pool, "select string_agg(version::text, ' ' order by array_position($1, id)) from pawl.instance where id = any ($1)", ids); got != "2 1" {
		t.Errorf("versions = %s, want 2 1", got)
	}
	// The refusal of a command without a decision leaves the key to the next one.
	f = fire(t, pool, tenant, command{id: uuid.New(), event: "open", key: "g"}, command{id: ids[1], event: "open", key: "g"})
	wantOutcome(t, f[0], "instance-not-found")
	wantOutcome(t, f[1], "applied")
}

// A reusable business key names at most one active instance.
func TestReusableBusinessKeys(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	definition := func(key string) string {
		return `{"name": "visit", "initial": "IN", "business_key": "` + key + `", "states": {
			"IN": {"on": {"leave": [{"target": "OUT"}]}}, "OUT": {"type": "final"}}}`
	}
	register(t, pool, definition("unique"))
	kept := create(t, pool, tenant, creation{workflow: "visit", businessKey: "kept"})[0]
	register(t, pool, definition("reusable"))
	first := create(t, pool, tenant, creation{workflow: "visit", businessKey: "b", key: "1"})[0]
	wantOutcome(t, first, "applied")
	held := create(t, pool, tenant, creation{workflow: "visit", businessKey: "b", key: "2"})[0]
	wantOutcome(t, held, "instance-exists")
	if *held.ID != *first.ID {
		t.Errorf("the holder is %v, want %v", held.ID, first.ID)
	}
	for _, id := range []uuid.UUID{*first.ID, *kept.ID} {
		wantOutcome(t, fire(t, pool, tenant, command{id: id, event: "leave"})[0], "applied")
	}
	again := create(t, pool, tenant, creation{workflow: "visit", businessKey: "b", key: "2"},
		creation{workflow: "visit", businessKey: "b", key: "3"}, creation{workflow: "visit", businessKey: "kept"})
	wantOutcome(t, again[0], "applied")
	wantOutcome(t, again[1], "instance-exists")
	// The version that an instance was created with decides for its key.
	wantOutcome(t, again[2], "instance-exists")
	wantReplay(t, create(t, pool, tenant, creation{workflow: "visit", businessKey: "b", key: "1"})[0], first)
	// The database itself refuses a second active holder, whoever writes.
	_, err := pool.Exec(t.Context(), "update pawl.instance set state = 'IN', status = 'active', version = version + 1 where id = $1", first.ID)
	wantCode(t, err, "23505")
}

// A business key is one instance's, and losing it burns no idempotency key.
func TestOneBusinessKeyTwiceInABatch(t *testing.T) {
	t.Parallel()
	pool, _ := withDoors(t, 0)
	list := []creation{
		{workflow: "door", key: "1", businessKey: "b"},
		{workflow: "door", key: "2", businessKey: "b"},
		{workflow: "door", businessKey: "b"},
		{workflow: "door", key: "4", businessKey: "other"},
	}
	o := create(t, pool, tenant, list...)
	var winner *uuid.UUID
	outcomes := map[string]int{}
	for _, o := range o[:3] {
		outcomes[o.Code]++
		if o.Code == "applied" {
			winner = o.ID
		}
	}
	if diff := cmp.Diff(map[string]int{"applied": 1, "instance-exists": 2}, outcomes); diff != "" {
		t.Fatal(diff)
	}
	wantOutcome(t, o[3], "applied")
	for i, o := range o[:3] {
		if *o.ID != *winner {
			t.Errorf("command %d names %v as the holder, want %v", i+1, o.ID, winner)
		}
		if o.Code == "instance-exists" && list[i].key != "" {
			list[i].businessKey = "free"
			wantOutcome(t, create(t, pool, tenant, list[i])[0], "applied")
		}
	}
	if got := count(t, pool, "instance"); got != 3 {
		t.Errorf("%d instances, want 3", got)
	}
	if got := count(t, pool, "history"); got != 3 {
		t.Errorf("%d steps, want 3", got)
	}
}

// The same of two transactions at once: the second waits for the first, and sees what it did.
func TestKeysAtOnce(t *testing.T) {
	t.Parallel()
	createLater := func(t *testing.T, pool *pgxpool.Pool, c creation) *background[[]queries.Outcome] {
		t.Helper()
		return start(t, pool, func(q queries.DBTX) ([]queries.Outcome, error) { return tryCreate(context.Background(), q, tenant, c) })
	}
	t.Run("business key", func(t *testing.T) {
		t.Parallel()
		pool, _ := withDoors(t, 0)
		tx := begin(t, pool)
		first := create(t, tx, tenant, creation{workflow: "door", key: "1", businessKey: "b"})[0]
		c := creation{workflow: "door", key: "2", businessKey: "b"}
		b := createLater(t, pool, c)
		b.awaitBlocked(t, pool)
		commit(t, tx)
		o := b.wait(t)
		wantOneEach(t, o, 1)
		wantOutcome(t, o[0], "instance-exists")
		if *o[0].ID != *first.ID {
			t.Errorf("the holder is %v, want %v", o[0].ID, first.ID)
		}
		c.businessKey = "free"
		wantOutcome(t, create(t, pool, tenant, c)[0], "applied")
		if got := count(t, pool, "instance"); got != 2 {
			t.Errorf("%d instances, want 2", got)
		}
	})
	t.Run("key of a create", func(t *testing.T) {
		t.Parallel()
		pool, _ := withDoors(t, 0)
		c := creation{workflow: "door", key: "k", businessKey: "b", context: `{"a": 1.0}`}
		tx := begin(t, pool)
		first := create(t, tx, tenant, c)[0]
		b := createLater(t, pool, c)
		b.awaitBlocked(t, pool)
		commit(t, tx)
		o := b.wait(t)
		wantOneEach(t, o, 1)
		wantReplay(t, o[0], first)
		if got := count(t, pool, "instance"); got != 1 {
			t.Errorf("%d instances, want 1", got)
		}
	})
	t.Run("key of a create that is taken back", func(t *testing.T) {
		t.Parallel()
		pool, _ := withDoors(t, 0)
		c := creation{workflow: "door", key: "k", businessKey: "b"}
		tx := begin(t, pool)
		first := create(t, tx, tenant, c)[0]
		b := createLater(t, pool, c)
		b.awaitBlocked(t, pool)
		if err := tx.Rollback(t.Context()); err != nil {
			t.Fatal(err)
		}
		o := b.wait(t)
		wantOutcome(t, o[0], "applied")
		if o[0].Replayed || *o[0].ID == *first.ID {
			t.Error("it replayed what was taken back")
		}
	})
	t.Run("key of one instance", func(t *testing.T) {
		t.Parallel()
		pool, ids := withDoors(t, 1)
		c := command{id: ids[0], event: "open", key: "k", expected: "{1}"}
		tx := begin(t, pool)
		first := fire(t, tx, tenant, c)[0]
		b := fireLater(t, pool, c)
		b.awaitBlocked(t, pool)
		commit(t, tx)
		o := b.wait(t)
		wantOneEach(t, o, 1)
		wantReplay(t, o[0], first)
	})
	// Here no lock of an instance keeps the two apart: the key itself does.
	t.Run("key of two instances", func(t *testing.T) {
		t.Parallel()
		pool, ids := withDoors(t, 3)
		tx := begin(t, pool)
		fire(t, tx, tenant, command{id: ids[0], event: "open", key: "k"})
		b := fireLater(t, pool, command{id: ids[1], event: "open", key: "k"}, command{id: ids[2], event: "open", key: "l"})
		b.awaitBlocked(t, pool)
		commit(t, tx)
		o := b.wait(t)
		wantOneEach(t, o, 2)
		wantOutcome(t, o[0], "idempotency-key-reuse")
		wantOutcome(t, o[1], "applied")
		if got := bounded.Value[int](t, pool, "select version from pawl.instance where id = $1", ids[1]); got != 1 {
			t.Errorf("the loser was moved to version %d", got)
		}
	})
	// An expired key that two claim at once is one's.
	t.Run("expired key", func(t *testing.T) {
		t.Parallel()
		pool, ids := withDoors(t, 3)
		dbtest.SetClock(t, pool, noon)
		fire(t, pool, tenant, command{id: ids[0], event: "open", key: "k"})
		dbtest.Advance(t, pool, 48*time.Hour)
		tx := begin(t, pool)
		wantOutcome(t, fire(t, tx, tenant, command{id: ids[1], event: "open", key: "k"})[0], "applied")
		b := fireLater(t, pool, command{id: ids[2], event: "open", key: "k"})
		b.awaitBlocked(t, pool)
		commit(t, tx)
		wantOutcome(t, b.wait(t)[0], "idempotency-key-reuse")
	})
}

func fireLater(t *testing.T, pool *pgxpool.Pool, list ...command) *background[[]queries.Outcome] {
	t.Helper()
	return start(t, pool, func(q queries.DBTX) ([]queries.Outcome, error) {
		return tryFire(context.Background(), q, tenant, list...)
	})
}
