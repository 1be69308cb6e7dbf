package worker_test

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/db"
	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/fsmtest"
	"github.com/pawl-fsm/pawl/fsm/worker"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// expiredKeys inserts n keys that expired a second ago by pawl.now(), and one that has not.
func expiredKeys(t *testing.T, pool *pgxpool.Pool, n int) {
	t.Helper()
	bounded.Exec(t, pool, `
		insert into pawl.idempotency_key (tenant_id, key, fingerprint, decision, instance_id, version, expires_at)
		select 'default', n, sha256(''), 'applied', gen_random_uuid(), 1,
			pawl.now() + case n when 0 then interval '1 hour' else interval '-1 second' end
		from generate_series(0, $1::integer) n`, n)
}

// keysLeft is true when n keys are left.
const keysLeft = "select count(*) = $1 from pawl.idempotency_key"

func TestKeyPurgerDrains(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	dbtest.SetClock(t, pool, time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC))
	expiredKeys(t, pool, 10_000)
	// The look for more is an hour away: it goes on because its batches are full.
	stop := bounded.Run(t, "the purger of keys", worker.NewKeyPurger(pool, worker.BatchConfig{Interval: time.Hour, Pause: time.Millisecond}).Run)
	bounded.UntilSQL(t, pool, keysLeft, 1)
	if key := bounded.Value[string](t, pool, "select key from pawl.idempotency_key"); key != "0" {
		t.Errorf("key %s is left, which has expired", key)
	}
	stop()
}

// A purger looks again for what expires later.
func TestKeyPurgerLooksAgain(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, fsmtest.Counter)
	dbtest.SetClock(t, pool, time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC))
	i := fsmtest.Create(t, s, "counter", `{"x":0}`)
	c := fsm.FireCommand{ID: i.ID, Event: "add", Payload: json.RawMessage(`{"n":1}`), Key: "k"}
	first, err := s.Fire(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	calls := make(chan struct{}, 1000)
	watched := fsmtest.Spied(t, pool, func(config *pgxpool.Config) {
		config.ConnConfig.Tracer = fsmtest.Spy{Ended: func(sql string, _ []any) {
			if strings.Contains(sql, "purge_keys") {
				select {
				case calls <- struct{}{}:
				default:
				}
			}
		}}
	})
	bounded.Run(t, "the purger of keys", worker.NewKeyPurger(watched, worker.BatchConfig{Interval: time.Millisecond}).Run)
	dbtest.Advance(t, pool, 24*time.Hour-time.Microsecond)
	for range len(calls) {
		bounded.Receive(t, "an earlier look", calls)
	}
	for range 3 { // The first may have begun before the clock moved.
		bounded.Receive(t, "a look of the purger", calls)
	}
	if again, err := s.Fire(t.Context(), c); err != nil || !again.Replayed || again.Instance.Version != first.Instance.Version {
		t.Errorf("a microsecond before its time is over: %+v, %v", again, err)
	}
	dbtest.Advance(t, pool, time.Microsecond)
	bounded.UntilSQL(t, pool, "select not exists (select from pawl.idempotency_key where key = 'k')")
	// What it replayed is still there, and the key is new.
	if steps := fsmtest.History(t, s, i.ID); len(steps) != 2 || steps[1].Key == nil || *steps[1].Key != "k" {
		t.Errorf("history: %+v", steps)
	}
	if again, err := s.Fire(t.Context(), c); err != nil || again.Replayed || again.Instance.Version != 3 {
		t.Errorf("after its time: %+v, %v", again, err)
	}
}

// A key that goes while its outcome is read: the command counts as new, and is no error.
func TestReplayOfAKeyThatIsPurged(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, fsmtest.Counter)
	bounded.Exec(t, pool, "update pawl.setting set idempotency_ttl_slides = true") // Then a replay waits for who holds its key.
	dbtest.SetClock(t, pool, time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC))
	i := fsmtest.Create(t, s, "counter", `{"x":0}`)
	for _, purged := range []bool{false, true} {
		later := int64(0)
		if purged {
			later = 1
		}
		c := fsm.FireCommand{ID: i.ID, Event: "add", Payload: json.RawMessage(`{"n":1}`), Key: fmt.Sprint("purged-", purged)}
		first, err := s.Fire(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		tx, err := pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tx.Exec(t.Context(), "select from pawl.idempotency_key where key = $1 for update", c.Key); err != nil {
			t.Fatal(err)
		}
		answer := make(chan fsm.Reply, 1)
		go func() {
			r, err := s.Fire(t.Context(), c)
			answer <- fsm.Reply{Result: r, Err: err}
		}()
		bounded.UntilSQL(t, pool, fsmtest.Waiting, 1)
		if purged {
			dbtest.Advance(t, pool, 24*time.Hour)
			var n int
			if err := tx.QueryRow(t.Context(), "select pawl.purge_keys(100)").Scan(&n); err != nil || n == 0 {
				t.Fatalf("%d keys are purged, %v", n, err)
			}
		}
		if err := tx.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		if r := bounded.Receive(t, "the answer of the repeated command", answer); r.Err != nil || r.Replayed == purged || r.Instance.Version != first.Instance.Version+later {
			t.Errorf("purged %v: %+v", purged, r)
		}
	}
}

// Commands and purgers meet at keys that expire at once: each command is applied once for
// each life of its key.
func TestKeyPurgersUnderLoad(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{}, fsmtest.Counter)
	bounded.Exec(t, pool, "update pawl.setting set idempotency_ttl = interval '1 microsecond'")
	for range 2 {
		bounded.Run(t, "the purger of keys", worker.NewKeyPurger(pool, worker.BatchConfig{Interval: time.Microsecond, Batch: 7}).Run)
	}
	const clients, rounds = 16, 20
	firsts := make([]int64, clients)
	var all sync.WaitGroup
	for n := range clients {
		i := fsmtest.Create(t, s, "counter", `{"x":0}`)
		all.Go(func() {
			c := fsm.FireCommand{ID: i.ID, Event: "add", Payload: json.RawMessage(`{"n":1}`), Key: fmt.Sprint(n)}
			for range rounds {
				r, err := s.Fire(t.Context(), c)
				if err != nil {
					t.Errorf("got %v", err)
				} else if !r.Replayed {
					firsts[n]++
				}
			}
			if v := fsmtest.Get(t, s, i.ID).Version; v != 1+firsts[n] {
				t.Errorf("%d answers are no replay, and the version is %d", firsts[n], v)
			}
		})
	}
	bounded.Wait(t, "the commands", all.Wait)
	if slices.Max(firsts) < 2 {
		t.Error("no key expired in time")
	}
	bounded.UntilSQL(t, pool, keysLeft, 0)
}

// A database that is away is said once, and purging goes on when it is back.
func TestKeyPurgerWithoutADatabase(t *testing.T) {
	t.Parallel()
	server := dbtest.Private(t, nil)
	if err := db.Up(t.Context(), server.DSN()); err != nil {
		t.Fatal(err)
	}
	pool := fsmtest.Open(t, server.DSN(), db.Config{})
	var lines bounded.Lines
	stop := bounded.Run(t, "the purger of keys", worker.NewKeyPurger(pool, worker.BatchConfig{Interval: time.Millisecond, Logger: slog.New(slog.NewTextHandler(&lines, nil))}).Run)
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	if line := lines.Next(t); !strings.Contains(line, "purging idempotency keys fails") {
		t.Errorf("it says %s", line)
	}
	if err := server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if line := lines.Next(t); !strings.Contains(line, "purging idempotency keys works again") {
		t.Errorf("it says %s", line)
	}
	expiredKeys(t, pool, 10)
	bounded.UntilSQL(t, pool, keysLeft, 1)
	stop()
	if more := lines.Rest(); len(more) > 0 {
		t.Errorf("it also says %s", more)
	}
}
