package db_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync/atomic"
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

// gone is a door's whole way to its end, each step under a key of its own.
func gone(t testing.TB, q queries.DBTX, tenant string, c creation) uuid.UUID {
	t.Helper()
	c.workflow = "door"
	o := create(t, q, tenant, c)[0]
	wantOutcome(t, o, "applied")
	for _, event := range []string{"open", "remove"} {
		wantOutcome(t, fire(t, q, tenant, command{id: *o.ID, event: event, key: fmt.Sprint(event, o.ID)})[0], "applied")
	}
	return *o.ID
}

func remove(ctx context.Context, q queries.DBTX, tenant string, before time.Time, ids ...uuid.UUID) ([]uuid.UUID, error) {
	return queries.New(q).PurgeArchived(ctx, queries.PurgeArchivedParams{Tenant: tenant, Ids: ids, Before: before})
}

func wantRemoved(t testing.TB, q queries.DBTX, before time.Time, ids []uuid.UUID, want ...uuid.UUID) {
	t.Helper()
	removed, err := remove(t.Context(), q, tenant, before, ids...)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(removed, want) {
		t.Errorf("removed are %v, want %v", removed, want)
	}
}

// rows counts what there is of an instance: itself, its steps, the keys that name it, its timer.
func rows(t testing.TB, q queries.DBTX, id uuid.UUID) string {
	t.Helper()
	return bounded.Value[string](t, q, `
		select concat_ws(' ', (select count(*) from pawl.instance where id = $1), (select count(*) from pawl.history where instance_id = $1),
			(select count(*) from pawl.idempotency_key where instance_id = $1), (select count(*) from pawl.timer where instance_id = $1))`, id)
}

// age lets a day and a second go by, in which keys expire, and returns the time a second ago.
func age(t testing.TB, pool *pgxpool.Pool) time.Time {
	t.Helper()
	dbtest.Advance(t, pool, 24*time.Hour+time.Second)
	return bounded.Value[time.Time](t, pool, "select pawl.now() - interval '1 second'")
}

func TestRemoveInstances(t *testing.T) {
	t.Parallel()
	pool, doors := withDoors(t, 1)
	dbtest.SetClock(t, pool, noon)
	old := gone(t, pool, tenant, creation{key: "create", businessKey: "b"})
	wantOutcome(t, fire(t, pool, tenant, command{id: old, event: "open", key: "refused"})[0], "transition-not-allowed")
	// Nothing has a timer once it is final, but nothing may be left of one either.
	bounded.Exec(t, pool, "insert into pawl.timer values ('default', $1, pawl.now() + interval '1 year', 1, 0)", old)
	foreign := gone(t, pool, "other", creation{})
	before := age(t, pool)
	young := gone(t, pool, tenant, creation{})
	dbtest.Advance(t, pool, 25*time.Hour)
	// A key that has been taken by another since names that one.
	wantOutcome(t, fire(t, pool, tenant, command{id: doors[0], event: "open", key: fmt.Sprint("open", old)})[0], "applied")

	all := []uuid.UUID{young, doors[0], foreign, old, uuid.New(), old}
	wantRemoved(t, pool, bounded.Value[time.Time](t, pool, "select state_changed_at - interval '1 microsecond' from pawl.instance where id = $1", old), all)
	if got := rows(t, pool, old); got != "1 3 3 1" {
		t.Errorf("of the instance there is %s, want 1 3 3 1", got)
	}
	wantRemoved(t, pool, before, all, old)
	for id, want := range map[uuid.UUID]string{old: "0 0 0 0", foreign: "1 3 2 0", young: "1 3 2 0", doors[0]: "1 2 1 0"} {
		if got := rows(t, pool, id); got != want {
			t.Errorf("of %v there is %s, want %s", id, got, want)
		}
	}
	wantRemoved(t, pool, before, all)
	wantRemoved(t, pool, before, nil)
	// Names are free again.
	wantOutcome(t, create(t, pool, tenant, creation{workflow: "door", key: "create", businessKey: "b"})[0], "applied")
	wantOutcome(t, fire(t, pool, tenant, command{id: old, event: "open", key: "refused"})[0], "instance-not-found")
}

// What a key replays stays until the key has expired, and its replay is the same until then.
func TestInstanceStaysWithItsKeys(t *testing.T) {
	t.Parallel()
	for _, slides := range []bool{false, true} {
		for _, of := range []string{"create", "step", "refusal"} {
			t.Run(fmt.Sprintf("%s, sliding %v", of, slides), func(t *testing.T) {
				t.Parallel()
				pool, _ := withDoors(t, 0)
				bounded.Exec(t, pool, "update pawl.setting set idempotency_ttl_slides = $1", slides)
				dbtest.SetClock(t, pool, noon)
				created := creation{workflow: "door", businessKey: "b", key: "create"}
				var o queries.Outcome
				var id uuid.UUID
				again := func() queries.Outcome {
					if of == "create" {
						return create(t, pool, tenant, created)[0]
					}
					return fire(t, pool, tenant, command{id: id, event: "remove", key: of})[0]
				}
				if of == "create" {
					o = again()
					id = *o.ID
					fire(t, pool, tenant, command{id: id, event: "open"})
				} else {
					created.key = ""
					id = *create(t, pool, tenant, created)[0].ID
					if of == "refusal" {
						o = again()
						wantOutcome(t, o, "transition-not-allowed")
					}
					fire(t, pool, tenant, command{id: id, event: "open"})
					if of == "step" {
						o = again()
					}
				}
				if of != "step" {
					fire(t, pool, tenant, command{id: id, event: "remove"})
				}
				before := noon
				dbtest.Advance(t, pool, 24*time.Hour-time.Microsecond)
				wantRemoved(t, pool, before, []uuid.UUID{id})
				wantReplay(t, again(), o)
				dbtest.Advance(t, pool, time.Microsecond)
				if slides {
					wantRemoved(t, pool, before, []uuid.UUID{id})
					wantReplay(t, again(), o)
					dbtest.Advance(t, pool, 24*time.Hour)
				}
				wantRemoved(t, pool, before, []uuid.UUID{id}, id)
				if got := count(t, pool, "idempotency_key"); got != 0 {
					t.Errorf("%d keys are left", got)
				}
				if of == "create" {
					if n := again(); n.Replayed || *n.ID == id {
						t.Errorf("the create is %s, and replayed: %v", n.Code, n.Replayed)
					}
				} else {
					wantOutcome(t, again(), "instance-not-found")
				}
			})
		}
	}
}

// Whoever removes waits for nobody, and what it may not know keeps the instance.
func TestRemovalPassesOverWhatIsHeld(t *testing.T) {
	t.Parallel()
	pool, _ := withDoors(t, 0)
	bounded.Exec(t, pool, "update pawl.setting set idempotency_ttl_slides = true")
	conn := connect(t, pool)
	bounded.Exec(t, conn, "set lock_timeout = '1s'") // One that waited would fail.
	dbtest.SetClock(t, pool, noon)
	key := func(id uuid.UUID) command { return command{id: id, event: "open", key: fmt.Sprint("open", id)} }
	held := func(hold func(q queries.DBTX, id uuid.UUID), stays bool) {
		t.Helper()
		id := gone(t, pool, tenant, creation{})
		dbtest.Advance(t, pool, 24*time.Hour)
		before := bounded.Value[time.Time](t, pool, "select pawl.now()")
		tx := begin(t, pool)
		hold(tx, id)
		wantRemoved(t, conn, before, []uuid.UUID{id})
		commit(t, tx)
		if stays {
			wantRemoved(t, conn, before, []uuid.UUID{id})
		} else {
			wantRemoved(t, conn, before, []uuid.UUID{id}, id)
		}
	}
	// A refusal is recorded under the instance's lock, and changes nothing of it.
	held(func(q queries.DBTX, id uuid.UUID) {
		wantOutcome(t, fire(t, q, tenant, command{id: id, event: "open", key: "new"})[0], "transition-not-allowed")
	}, true)
	// A replay that was in time extends the life of its key, and locks nothing else.
	held(func(q queries.DBTX, id uuid.UUID) {
		dbtest.Advance(t, pool, -time.Microsecond)
		if o := fire(t, q, tenant, key(id))[0]; !o.Replayed {
			t.Errorf("it is no replay: %+v", o)
		}
		dbtest.Advance(t, pool, time.Microsecond)
	}, true)
	// A key that another takes over.
	held(func(q queries.DBTX, id uuid.UUID) {
		other := *create(t, q, tenant, creation{workflow: "door"})[0].ID
		wantOutcome(t, fire(t, q, tenant, command{id: other, event: "open", key: key(id).key})[0], "applied")
	}, false)
	held(func(q queries.DBTX, id uuid.UUID) {
		wantOutcome(t, fire(t, q, tenant, command{id: id, event: "nonsense"})[0], "unknown-event")
	}, false)
	held(func(q queries.DBTX, _ uuid.UUID) {
		if n, err := queries.New(q).PurgeKeys(t.Context(), 100); err != nil || n == 0 {
			t.Errorf("%d keys were purged, %v", n, err)
		}
	}, false)

	// Two who remove the same.
	first, second := gone(t, pool, tenant, creation{}), gone(t, pool, tenant, creation{})
	before := age(t, pool)
	tx := begin(t, pool)
	wantRemoved(t, tx, before, []uuid.UUID{first}, first)
	wantRemoved(t, conn, before, []uuid.UUID{first, second}, second)
	commit(t, tx)
	wantRemoved(t, conn, before, []uuid.UUID{first, second})
}

// Commands that come while an instance is removed wait for that moment, and do not find it.
func TestCommandsMeetARemoval(t *testing.T) {
	t.Parallel()
	for _, done := range []bool{false, true} {
		t.Run(fmt.Sprintf("done %v", done), func(t *testing.T) {
			t.Parallel()
			pool, _ := withDoors(t, 0)
			dbtest.SetClock(t, pool, noon)
			id := gone(t, pool, tenant, creation{businessKey: "b"})
			before := age(t, pool)
			tx := begin(t, pool)
			wantRemoved(t, tx, before, []uuid.UUID{id}, id)
			fresh := fireLater(t, pool, command{id: id, event: "close", key: "new"})
			old := fireLater(t, pool, command{id: id, event: "open", key: fmt.Sprint("open", id)})
			fresh.awaitBlocked(t, pool)
			old.awaitBlocked(t, pool)
			c := creation{workflow: "door", businessKey: "b"}
			wantOutcome(t, create(t, pool, tenant, c)[0], "instance-exists")
			wantFire, wantCreate := "transition-not-allowed", "instance-exists"
			if done {
				commit(t, tx)
				wantFire, wantCreate = "instance-not-found", "applied"
			} else if err := tx.Rollback(t.Context()); err != nil {
				t.Fatal(err)
			}
			wantOutcome(t, fresh.wait(t)[0], wantFire)
			wantOutcome(t, old.wait(t)[0], wantFire)
			wantOutcome(t, create(t, pool, tenant, c)[0], wantCreate)
		})
	}
}

// A replay that began before its key expired, and comes to it when the instance goes.
func TestReplayMeetsARemoval(t *testing.T) {
	t.Parallel()
	for _, slides := range []bool{false, true} {
		t.Run(fmt.Sprintf("sliding %v", slides), func(t *testing.T) {
			t.Parallel()
			pool, ids := withDoors(t, 1)
			dbtest.SetClock(t, pool, noon)
			fire(t, pool, tenant, command{id: ids[0], event: "open"})
			c := command{id: ids[0], event: "remove", key: "k"}
			first := fire(t, pool, tenant, c)[0]
			dbtest.Advance(t, pool, 24*time.Hour)
			tx := begin(t, pool)
			wantRemoved(t, tx, noon, ids, ids[0])
			bounded.Exec(t, pool, "update pawl.setting set idempotency_ttl_slides = $1", slides)
			dbtest.Advance(t, pool, -time.Microsecond)
			replay := fireLater(t, pool, c)
			if !slides { // It locks nothing, and reads all that it needs in one statement.
				wantReplay(t, replay.wait(t)[0], first)
				commit(t, tx)
				return
			}
			replay.awaitBlocked(t, pool)
			commit(t, tx)
			replay.end(t)
			wantCode(t, replay.err, "40001")
			wantOutcome(t, fire(t, pool, tenant, c)[0], "instance-not-found")
		})
	}
}

// Whatever meets whatever: a key never replays what is gone, and what is left is whole.
func TestRemovalUnderLoad(t *testing.T) {
	t.Parallel()
	for _, slides := range []bool{false, true} {
		t.Run(fmt.Sprintf("sliding %v", slides), func(t *testing.T) {
			t.Parallel()
			pool, _ := withDoors(t, 0)
			bounded.Exec(t, pool, "update pawl.setting set idempotency_ttl = '2 milliseconds', idempotency_ttl_slides = $1", slides)
			ids := make([]uuid.UUID, 300)
			for i := range ids {
				ids[i] = gone(t, pool, tenant, creation{key: fmt.Sprint("create", i)})
			}
			var left atomic.Int64
			left.Store(int64(len(ids)))
			var group errgroup.Group
			for range 2 {
				group.Go(func() error {
					conn := connect(t, pool)
					for left.Load() > 0 {
						for page := range slices.Chunk(ids, 20) {
							removed, err := remove(t.Context(), conn, tenant, time.Now().Add(time.Hour), page...)
							if err != nil {
								return err
							}
							left.Add(-int64(len(removed)))
						}
					}
					return nil
				})
			}
			for i := range 4 {
				group.Go(func() error {
					conn := connect(t, pool)
					random := rand.New(rand.NewPCG(2, uint64(i)))
					for left.Load() > 0 {
						id := ids[random.IntN(len(ids))]
						for range 3 { // The second and third are replays, unless they come late.
							o, err := tryFire(t.Context(), conn, tenant, command{id: id, event: "open", key: fmt.Sprint("open", id)})
							if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok && pgErr.Code == "40001" {
								continue
							}
							if err != nil {
								return err
							}
							if o[0].Code != "instance-not-found" && (o[0].ID == nil || *o[0].ID != id || o[0].State == nil) {
								return fmt.Errorf("%s, replayed %v, of nothing", o[0].Code, o[0].Replayed)
							}
						}
					}
					return nil
				})
			}
			if err := bounded.Result(t, "the removals and the replays", group.Wait); err != nil {
				t.Fatal(err)
			}
			for _, table := range []string{"instance", "history", "idempotency_key", "timer"} {
				if n := count(t, pool, table); n != 0 {
					t.Errorf("%d rows of %s are left", n, table)
				}
			}
		})
	}
}

// What is called for each instance of a page keeps its plans: a function in language sql would be planned at each
// call, which takes longer than all else that is done for the instance.
func TestPagesOfInstancesKeepTheirPlans(t *testing.T) {
	t.Parallel()
	conn := dial(t, dbtest.NewDSN(t))
	const each = "p.proname like '%\\_retains' or p.proname = 'append_history'"
	if n := bounded.Value[int](t, conn, "select count(*) from pg_proc p where "+each); n < 4 {
		t.Fatalf("there are %d such functions", n)
	}
	planned := bounded.Column[string](t, conn, `
		select p.oid::regproc::text
		from pg_proc p
		join pg_language l on l.oid = p.prolang
		where (`+each+`) and l.lanname = 'sql'`)
	if len(planned) > 0 {
		t.Errorf("these are planned at each call: %v", planned)
	}
}
