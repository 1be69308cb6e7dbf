package worker_test

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/fsmtest"
	"github.com/pawl-fsm/pawl/fsm/lifecycle"
	"github.com/pawl-fsm/pawl/fsm/worker"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// passing is counter with a retention of an hour.
var passing = strings.Replace(fsmtest.Counter, `"states"`, `"retention": "1h", "states"`, 1)

// passes tells of each pass that an instance purger on the pool that it returns has ended.
func passes(t *testing.T, pool *pgxpool.Pool) (watched *pgxpool.Pool, pass func()) {
	t.Helper()
	begun := make(chan struct{}, 1000)
	watched = fsmtest.Spied(t, pool, func(config *pgxpool.Config) {
		config.ConnConfig.Tracer = fsmtest.Spy{Started: func(sql string, args []any) {
			if strings.Contains(sql, "final_instances") && args[4] == "" {
				select {
				case begun <- struct{}{}:
				default:
				}
			}
		}}
	})
	return watched, func() {
		for range len(begun) {
			bounded.Receive(t, "an earlier pass", begun)
		}
		for range 3 { // The first may have begun before; the third says that the second has ended.
			bounded.Receive(t, "a pass of the purger", begun)
		}
	}
}

func TestInstancePurger(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, passing, strings.Replace(fsmtest.Counter, `"counter"`, `"kept"`, 1))
	fsmtest.ShortKeys(t, pool)
	var old []uuid.UUID
	for _, tenant := range []string{"a", "default", "z"} {
		old = append(old, fsmtest.Stopped(t, s, tenant, 45)...)
	}
	active := fsmtest.Create(t, s, "counter", `{"x":0}`).ID
	kept := fsmtest.Create(t, s, "kept", `{"x":0}`).ID
	fsmtest.Fire(t, s, kept, "stop", `{}`)
	late := fsmtest.Create(t, s, "counter", `{"x":0}`).ID
	dbtest.Advance(t, pool, time.Hour-time.Microsecond)
	fsmtest.Fire(t, s, late, "stop", `{}`)
	young := fsmtest.Stopped(t, s, "default", 1)[0]

	watched, pass := passes(t, pool)
	stop := bounded.Run(t, "the purger of instances", worker.NewInstancePurger(watched, worker.BatchConfig{Batch: 10, Pause: time.Microsecond, Interval: time.Microsecond}).Run)
	pass()
	if n := bounded.Value[int](t, pool, "select count(*) from pawl.instance"); n != len(old)+4 {
		t.Errorf("%d instances are left a microsecond before their time, want %d", n, len(old)+4)
	}
	dbtest.Advance(t, pool, time.Microsecond)
	bounded.UntilSQL(t, pool, "select count(*) = 4 from pawl.instance")
	pass()
	for _, id := range []uuid.UUID{active, kept, late, young} {
		if i := fsmtest.Get(t, s, id); len(fsmtest.History(t, s, id)) != int(i.Version) {
			t.Errorf("%v is at version %d and has %d steps", id, i.Version, len(fsmtest.History(t, s, id)))
		}
	}
	for _, table := range []string{"history", "idempotency_key", "timer"} {
		if n := bounded.Value[int](t, pool, "select count(*) from pawl."+table+" where instance_id = any ($1)", old); n != 0 {
			t.Errorf("%d rows of %s are left", n, table)
		}
	}
	_, err := s.Get(t.Context(), "a", old[0])
	fsmtest.Refused(t, err, fsm.InstanceNotFound)

	// The latest version has no policy any more: nothing goes, of whichever version.
	fsmtest.Register(t, s, fsmtest.Counter)
	dbtest.Advance(t, pool, 24*time.Hour)
	pass()
	if n := bounded.Value[int](t, pool, "select count(*) from pawl.instance"); n != 4 {
		t.Errorf("%d instances are left, want 4", n)
	}
	// It has one again, and it holds for the older version's.
	again := strings.Replace(passing, "1h", "2h", 1)
	if _, err := s.Register(t.Context(), "", []byte(again), "tester", false, lifecycle.ShortenRetention); err != nil {
		t.Fatal(err)
	}
	bounded.UntilSQL(t, pool, "select count(*) = 2 from pawl.instance")
	fsmtest.Get(t, s, active)
	fsmtest.Get(t, s, kept)
	stop()
}

// What a key replays stays as long as the key, which is then a new one's.
func TestInstancePurgerWaitsForKeys(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, passing)
	dbtest.SetClock(t, pool, time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC))
	creates := fsm.CreateCommand{Workflow: "counter", Context: []byte(`{"x":1}`), Key: "create", BusinessKey: "b"}
	first, err := s.Create(t.Context(), creates)
	if err != nil {
		t.Fatal(err)
	}
	dbtest.Advance(t, pool, time.Hour)
	stops := fsm.FireCommand{ID: first.Instance.ID, Event: "stop", Key: "stop"}
	second, err := s.Fire(t.Context(), stops)
	if err != nil {
		t.Fatal(err)
	}
	dbtest.Advance(t, pool, 24*time.Hour-time.Microsecond)

	watched, pass := passes(t, pool)
	bounded.Run(t, "the purger of instances", worker.NewInstancePurger(watched, worker.BatchConfig{Interval: time.Microsecond}).Run)
	bounded.Run(t, "the purger of keys", worker.NewKeyPurger(pool, worker.BatchConfig{Interval: time.Microsecond}).Run)
	pass()
	for range 2 {
		again, err := s.Fire(t.Context(), stops)
		if err != nil || !again.Replayed {
			t.Errorf("it is no replay: %v", err)
		}
		if diff := cmp.Diff(second.Instance, again.Instance); diff != "" {
			t.Errorf("the replay differs (-first +again):\n%s", diff)
		}
	}
	dbtest.Advance(t, pool, time.Microsecond)
	bounded.UntilSQL(t, pool, "select not exists (select from pawl.instance) and not exists (select from pawl.history)")
	_, err = s.Fire(t.Context(), stops)
	fsmtest.Refused(t, err, fsm.InstanceNotFound)
	if again, err := s.Create(t.Context(), creates); err != nil || again.Replayed || again.Instance.ID == first.Instance.ID {
		t.Errorf("the key makes %+v, %v", again, err)
	}
}

// Several removers, commands and replays at once.
func TestInstancePurgersUnderLoad(t *testing.T) {
	t.Parallel()
	brief := strings.Replace(passing, "1h", "1ms", 1)
	s, pool := fsmtest.New(t, fsm.Config{}, brief)
	bounded.Exec(t, pool, "update pawl.setting set idempotency_ttl = '5 milliseconds'")
	for range 2 {
		bounded.Run(t, "the purger of instances", worker.NewInstancePurger(pool, worker.BatchConfig{Batch: 7, Pause: time.Microsecond, Interval: time.Microsecond}).Run)
	}
	var all sync.WaitGroup
	for n := range 8 {
		all.Go(func() {
			for range 30 {
				i, err := s.Create(t.Context(), fsm.CreateCommand{Workflow: "counter", Context: []byte(`{"x":0}`), BusinessKey: fmt.Sprint(n)})
				if errors.Is(err, fsm.InstanceExists) {
					continue // The last one's keys live still.
				}
				if err != nil {
					t.Errorf("create: %v", err)
					return
				}
				c := fsm.FireCommand{ID: i.Instance.ID, Event: "stop", Key: fmt.Sprint("stop-", i.Instance.ID)}
				for range 10 {
					r, err := s.Fire(t.Context(), c)
					switch {
					case errors.Is(err, fsm.InstanceNotFound), errors.Is(err, fsm.TransitionNotAllowed):
					case err != nil:
						t.Errorf("fire: %v", err)
						return
					case r.Instance.State != "STOPPED" || r.Instance.Version != 2:
						t.Errorf("got %+v", r)
					}
				}
			}
		})
	}
	bounded.Wait(t, "the commands", all.Wait)
	bounded.UntilSQL(t, pool, `select not exists (select from pawl.instance) and not exists (select from pawl.history)
		and not exists (select from pawl.idempotency_key where decision <> 'applied')`)
}

// An instance that cannot be removed holds up no other.
func TestInstancePurgerPassesWhatFails(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, passing)
	fsmtest.ShortKeys(t, pool)
	ids := fsmtest.Stopped(t, s, "default", 3)
	slices.SortFunc(ids, func(a, b uuid.UUID) int { return slices.Compare(a[:], b[:]) })
	bounded.Exec(t, pool, `
		create function fail() returns trigger language plpgsql as $$ begin raise 'not this one'; end $$;
		create trigger fail before delete on pawl.instance for each row when (old.id = '`+ids[1].String()+`') execute function fail()`)
	dbtest.Advance(t, pool, time.Hour)
	var lines bounded.Lines
	bounded.Run(t, "the purger of instances", worker.NewInstancePurger(pool, worker.BatchConfig{
		Batch: 1, Pause: time.Microsecond, Logger: slog.New(slog.NewTextHandler(&lines, nil)),
	}).Run)
	if line := lines.Next(t); !strings.Contains(line, "purging final instances fails") || !strings.Contains(line, "not this one") {
		t.Errorf("it says %s", line)
	}
	bounded.UntilSQL(t, pool, "select count(*) = 1 from pawl.instance")
	if n := len(fsmtest.History(t, s, ids[1])); n != 2 {
		t.Errorf("%d steps are left of what could not be removed", n)
	}
}
