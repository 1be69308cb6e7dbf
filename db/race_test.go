package db_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"golang.org/x/sync/errgroup"

	"github.com/pawl-fsm/pawl/db"
	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// The commands of one call for one instance are carried out in their order.
func TestSeveralCommandsForOneInstance(t *testing.T) {
	t.Parallel()
	pool, ids := withDoors(t, 2)
	used := fire(t, pool, tenant, command{id: ids[1], event: "open", key: "used"})[0]
	commands := []command{
		{id: ids[0], event: "open", key: "a"},
		{id: ids[1], event: "close"},
		{id: ids[0], event: "open", key: "b"}, // It is open.
		{id: ids[0], event: "close", key: "c", expected: "{2}"},
		{id: ids[0], event: "open", key: "a"}, // The first command's key again.
		{id: ids[0], event: "open", key: "used"},
		{id: ids[1], event: "open", key: "used"},
		{id: ids[0], event: "open", expected: "{2}"},
		{id: ids[0], event: "open"},
		{id: ids[0], event: "open", tenant: "other"},
	}
	outcomes := fire(t, pool, tenant, commands...)
	for i, want := range []struct {
		code    string
		version int64
	}{
		{"applied", 2},
		{"applied", 3},
		{"transition-not-allowed", 2},
		{"applied", 3},
		{"applied", 2},
		{"idempotency-key-reuse", 0},
		{"applied", 2},
		{"version-mismatch", 3},
		{"applied", 4},
		{"instance-not-found", 0},
	} {
		wantOutcome(t, outcomes[i], want.code)
		if want.version > 0 && *outcomes[i].Version != want.version {
			t.Errorf("command %d came to version %d, want %d", i+1, *outcomes[i].Version, want.version)
		}
	}
	wantReplay(t, outcomes[4], outcomes[0])
	wantReplay(t, outcomes[6], used)
	steps := bounded.Column[string](t, pool, "select version || ' ' || coalesce(event, '') from pawl.history where instance_id = $1 order by version", ids[0])
	if want := []string{"1 ", "2 open", "3 close", "4 open"}; !slices.Equal(steps, want) {
		t.Errorf("the steps are %q, want %q", steps, want)
	}
	// A repetition of the call replays every decision that has a key.
	again := fire(t, pool, tenant, commands[:4]...)
	for _, i := range []int{0, 2, 3} {
		wantReplay(t, again[i], outcomes[i])
	}
}

// A call may have commands of several tenants. Tenants may use the same key.
func TestSeveralTenantsInOneCall(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	register(t, pool, door)
	p := queries.CreateParams{}
	for _, tenant := range []string{"a", "b", "a"} {
		p.Tenants = append(p.Tenants, tenant)
		p.Workflows, p.Contexts = append(p.Workflows, "door"), append(p.Contexts, []byte("{}"))
		p.Keys, p.BusinessKeys = append(p.Keys, "k"), append(p.BusinessKeys, "")
		p.InstanceCorrelationIds, p.Checked = append(p.InstanceCorrelationIds, ""), append(p.Checked, "")
		p.Lifetimes = append(p.Lifetimes, pgtype.Interval{})
		p.Actors, p.Reasons = append(p.Actors, "tester"), append(p.Reasons, "")
		p.CorrelationIds, p.Traceparents = append(p.CorrelationIds, ""), append(p.Traceparents, "")
	}
	created, err := inOrder(queries.New(pool).Create(t.Context(), p))
	if err != nil {
		t.Fatal(err)
	}
	wantReplay(t, created[2], created[0])
	a, b := *created[0].ID, *created[1].ID
	if a == b {
		t.Fatal("two tenants have one instance")
	}
	outcomes := fire(t, pool, "a",
		command{id: a, event: "open", key: "o"}, command{id: b, event: "open", key: "o", tenant: "b"},
		command{id: b, event: "open"}, command{id: a, event: "close", tenant: "b"}, command{id: a, event: "close"})
	for i, want := range []string{"applied", "applied", "instance-not-found", "instance-not-found", "applied"} {
		wantOutcome(t, outcomes[i], want)
	}
	if got := bounded.Column[string](t, pool, "select tenant_id || ' ' || count(*) from pawl.history group by tenant_id order by tenant_id"); !slices.Equal(got, []string{"a 3", "b 2"}) {
		t.Errorf("steps by tenant: %q", got)
	}
}

// A command that waited for an instance decides on what the one before it left.
func TestWaitingCommandSeesTheNewState(t *testing.T) {
	t.Parallel()
	pool, ids := withDoors(t, 2)
	tx := begin(t, pool)
	fire(t, tx, tenant, command{id: ids[0], event: "open"})
	close := fireLater(t, pool, command{id: ids[0], event: "close"}, command{id: ids[1], event: "open"})
	close.awaitBlocked(t, pool)
	between := bounded.Value[time.Time](t, pool, "select clock_timestamp()")
	commit(t, tx)
	o := close.wait(t)
	wantOneEach(t, o, 2)
	wantOutcome(t, o[0], "applied") // from OPEN, which it could not see when it began
	if *o[0].Version != 3 || *o[0].State != "CLOSED" {
		t.Errorf("version %d, state %s", *o[0].Version, *o[0].State)
	}
	// Time is read after the wait, so that it rises with the version.
	if o[0].StateChangedAt.Before(between) {
		t.Errorf("the step is of %v, before the wait was over at %v", o[0].StateChangedAt, between)
	}

	tx = begin(t, pool)
	fire(t, tx, tenant, command{id: ids[0], event: "open"})
	again := fireLater(t, pool, command{id: ids[0], event: "open", expected: "{3}"})
	refused := fireLater(t, pool, command{id: ids[0], event: "open"})
	again.awaitBlocked(t, pool)
	refused.awaitBlocked(t, pool)
	commit(t, tx)
	o = again.wait(t)
	wantOutcome(t, o[0], "version-mismatch")
	if *o[0].Version != 4 {
		t.Errorf("it is said to be at version %d, want 4", *o[0].Version)
	}
	wantOutcome(t, refused.wait(t)[0], "transition-not-allowed")

	// What was taken back was never there.
	tx = begin(t, pool)
	fire(t, tx, tenant, command{id: ids[0], event: "remove"})
	close = fireLater(t, pool, command{id: ids[0], event: "close"})
	close.awaitBlocked(t, pool)
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantOutcome(t, close.wait(t)[0], "applied")
}

// The time of a step is not that of its transaction, which may have begun before the step it follows.
func TestTimeIsNotTheTransactions(t *testing.T) {
	t.Parallel()
	pool, ids := withDoors(t, 1)
	tx := begin(t, pool)
	bounded.Exec(t, tx, "select now()")
	first := fire(t, pool, tenant, command{id: ids[0], event: "open"})[0]
	between := bounded.Value[time.Time](t, pool, "select clock_timestamp()")
	second := fire(t, tx, tenant, command{id: ids[0], event: "close"})[0]
	if second.StateChangedAt.Before(between) || !second.StateChangedAt.After(*first.StateChangedAt) {
		t.Errorf("the second step is of %v, the first of %v", second.StateChangedAt, first.StateChangedAt)
	}
	commit(t, tx)
}

// A clock that is set back does not take history back.
func TestHistoryDoesNotGoBack(t *testing.T) {
	t.Parallel()
	pool, ids := withDoors(t, 1)
	dbtest.SetClock(t, pool, noon)
	first := fire(t, pool, tenant, command{id: ids[0], event: "open"})[0]
	dbtest.SetClock(t, pool, noon.Add(-time.Hour))
	second := fire(t, pool, tenant, command{id: ids[0], event: "close"})[0]
	if second.StateChangedAt.Before(*first.StateChangedAt) {
		t.Errorf("the second step is of %v, the first of %v", second.StateChangedAt, first.StateChangedAt)
	}
}

// Calls that name the same rows in opposite orders wait for each other in one order.
func TestOppositeOrdersDoNotDeadlock(t *testing.T) {
	t.Parallel()
	const rounds, batch, callers = 60, 40, 4
	reversed := func(i int, list []command) []command {
		list = slices.Clone(list)
		if i%2 == 1 {
			slices.Reverse(list)
		}
		return list
	}
	t.Run("instances", func(t *testing.T) {
		t.Parallel()
		pool, ids := withDoors(t, batch)
		var group errgroup.Group
		for i := range callers {
			group.Go(func() error {
				for range rounds {
					var list []command
					for _, id := range ids {
						list = append(list, command{id: id, event: []string{"open", "close"}[i/2]})
					}
					if _, err := tryFire(t.Context(), pool, tenant, reversed(i, list)...); err != nil {
						return err
					}
				}
				return nil
			})
		}
		if err := bounded.Result(t, "the callers", group.Wait); err != nil {
			t.Error(err)
		}
	})
	t.Run("keys of fires", func(t *testing.T) {
		t.Parallel()
		pool, ids := withDoors(t, callers*batch)
		for round := range rounds {
			var group errgroup.Group
			for i := range callers {
				group.Go(func() error {
					list := make([]command, batch)
					for n := range list {
						key := n
						if i%2 == 1 { // of instances in the one order, keys in the other
							key = batch - n
						}
						list[n] = command{id: ids[i*batch+n], event: []string{"open", "close"}[round%2], key: fmt.Sprintf("%d.%03d", round, key)}
					}
					_, err := tryFire(t.Context(), pool, tenant, list...)
					return err
				})
			}
			if err := bounded.Result(t, "the callers", group.Wait); err != nil {
				t.Fatal(err)
			}
		}
	})
	t.Run("keys and business keys of creates", func(t *testing.T) {
		t.Parallel()
		pool, _ := withDoors(t, 0)
		// Replays slide, so that they lock their keys too.
		bounded.Exec(t, pool, "update pawl.setting set idempotency_ttl_slides = true")
		for round := range rounds {
			var group errgroup.Group
			for i := range callers {
				group.Go(func() error {
					list := make([]creation, batch)
					for n := range list {
						name := fmt.Sprintf("%d.%03d", round/2, n) // every other round replays
						list[n] = creation{workflow: "door", key: name, businessKey: "b" + name}
						if i/2 == 1 {
							list[n].key += "x"
						}
					}
					if i%2 == 1 {
						slices.Reverse(list)
					}
					_, err := tryCreate(t.Context(), pool, tenant, list...)
					return err
				})
			}
			if err := bounded.Result(t, "the callers", group.Wait); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// Whatever comes at once, each instance's history is gapless, legal step by step, and in the order of time.
func TestHistoryIsSerial(t *testing.T) {
	t.Parallel()
	const instances, callers, calls = 4, 8, 150
	pool, ids := withDoors(t, instances)
	events := []string{"open", "open", "close", "close", "remove"}
	legal := map[string]string{"CLOSED open": "OPEN", "OPEN close": "CLOSED", "OPEN remove": "GONE"}

	applied := make([]map[uuid.UUID][]int64, callers)
	var group errgroup.Group
	for i := range callers {
		applied[i] = map[uuid.UUID][]int64{}
		group.Go(func() error {
			random := rand.New(rand.NewPCG(1, uint64(i)))
			for n := range calls {
				chosen := slices.Clone(ids)
				random.Shuffle(len(chosen), func(a, b int) { chosen[a], chosen[b] = chosen[b], chosen[a] })
				var list []command
				for _, id := range chosen[:1+random.IntN(instances)] {
					event := events[random.IntN(len(events))]
					if n < calls-5 && event == "remove" { // they should live for most of the test
						event = "close"
					}
					list = append(list, command{id: id, event: event, key: fmt.Sprint(i, " ", n, " ", id)})
				}
				outcomes, err := tryFire(t.Context(), pool, tenant, list...)
				if err != nil {
					return err
				}
				for o, c := range list {
					if outcomes[o].Code == "applied" {
						applied[i][c.id] = append(applied[i][c.id], *outcomes[o].Version)
					}
				}
			}
			return nil
		})
	}
	if err := bounded.Result(t, "the callers", group.Wait); err != nil {
		t.Fatal(err)
	}

	for _, id := range ids {
		history, err := queries.New(pool).ListHistory(t.Context(), queries.ListHistoryParams{TenantID: tenant, InstanceID: id, RowLimit: 1 << 30, Bytes: 1 << 40})
		if err != nil {
			t.Fatal(err)
		}
		state := "CLOSED"
		for i, h := range history {
			if h.Version != int64(i+1) {
				t.Fatalf("step %d of %v has version %d", i+1, id, h.Version)
			}
			if i == 0 {
				continue
			}
			if *h.FromState != state || legal[state+" "+*h.Event] != h.ToState {
				t.Errorf("version %d of %v: %s from %s to %s, after %s", h.Version, id, *h.Event, *h.FromState, h.ToState, state)
			}
			if h.At.Before(history[i-1].At) || h.Seq <= history[i-1].Seq {
				t.Errorf("version %d of %v is before version %d: at %v, seq %d; after %v, %d", h.Version, id, h.Version-1,
					h.At, h.Seq, history[i-1].At, history[i-1].Seq)
			}
			state = h.ToState
		}
		// Each step was one command's, which was told so.
		var told []int64
		for i := range callers {
			told = append(told, applied[i][id]...)
		}
		slices.Sort(told)
		if len(told) != len(history)-1 || len(slices.Compact(told)) != len(history)-1 {
			t.Errorf("%d commands were told that they moved %v, which made %d steps", len(told), id, len(history)-1)
		}
		if got := bounded.Value[string](t, pool, "select state || ' ' || version from pawl.instance where id = $1", id); got != fmt.Sprint(state, " ", len(history)) {
			t.Errorf("%v is %s, its history ends with %s %d", id, got, state, len(history))
		}
		if len(history) < 20 {
			t.Errorf("%v made only %d steps; the test tests nothing", id, len(history))
		}
	}
}

// A transaction that notifies takes a lock at its commit that all others wait for. It could not be prepared, either.
func TestEngineDoesNotNotify(t *testing.T) {
	t.Parallel()
	s := dbtest.Private(t, map[string]string{"max_prepared_transactions": "2"})
	if err := db.Up(t.Context(), s.DSN()); err != nil {
		t.Fatal(err)
	}
	conn := dial(t, s.DSN())
	register(t, conn, lamp)
	prepare := func(name string, work func(pgx.Tx)) error {
		t.Helper()
		tx, err := conn.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		work(tx)
		_, err = tx.Exec(t.Context(), "prepare transaction '"+name+"'")
		_ = tx.Rollback(t.Context())
		return err
	}
	err := prepare("notifies", func(tx pgx.Tx) { bounded.Exec(t, tx, "notify something") })
	wantCode(t, err, "0A000")
	err = prepare("commands", func(tx pgx.Tx) {
		id := *create(t, tx, tenant, creation{workflow: "lamp", key: "c", businessKey: "b"})[0].ID
		for n := range 3 {
			fire(t, tx, tenant, command{id: id, event: "go", payload: `{"n": 1}`, key: fmt.Sprint(n)})
			fire(t, tx, tenant, command{id: id, event: "go", payload: `{"n": 1}`, key: fmt.Sprint(n)})
		}
		fire(t, tx, tenant, command{id: id, event: "never", key: "refused"})
	})
	if err != nil {
		t.Fatal(err)
	}
	bounded.Exec(t, conn, "commit prepared 'commands'")
	if got := count(t, conn, "history"); got != 4 {
		t.Errorf("%d steps, want 4", got)
	}
}

// A foreign key would lock a shared parent's row at each write, and a trigger would run at each.
func TestHotTablesHaveNoForeignKeysAndTriggers(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	const hot = "('pawl.instance'::regclass, 'pawl.history'::regclass, 'pawl.idempotency_key'::regclass, 'pawl.timer'::regclass)"
	found := append(
		bounded.Column[string](t, pool, "select conname::text from pg_constraint where contype = 'f' and (conrelid in "+hot+" or confrelid in "+hot+")"),
		bounded.Column[string](t, pool, "select tgname::text from pg_trigger where tgrelid in "+hot)...)
	if len(found) > 0 {
		t.Errorf("the hot tables have %s", strings.Join(found, ", "))
	}
}
