package fsm_test

import (
	"encoding/json"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/fsmtest"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

func TestSlowness(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &fsm.Slowness{}
		slow, other := fsm.SourceOf("t", "w", "go"), fsm.SourceOf("u", "w", "go")
		want := func(x fsm.Source, want string) {
			t.Helper()
			if got := s.Track(x); got != want {
				t.Errorf("the track is %s, want %s", got, want)
			}
		}
		want(slow, "shared")
		if s.Knows("t", "go") {
			t.Error("it knows what it has never seen")
		}
		// One command finds out whether a suspect is slow; the others share calls meanwhile.
		s.Suspect(slow)
		want(slow, "alone")
		want(slow, "shared")
		s.Acquit(slow)
		want(slow, "shared")
		// A single slow call may be one by chance.
		s.Convict(slow)
		want(slow, "alone")
		s.Convict(slow)
		want(slow, "slow")
		want(other, "shared")
		if !s.Knows("t", "go") || s.Knows("u", "go") || s.Knows("t", "come") {
			t.Error("it knows the wrong events")
		}
		// Each slow call doubles the number of fast ones that are needed.
		for _, n := range []int{8, 16, 32} {
			for range n {
				want(slow, "slow")
				s.Acquit(slow)
			}
			want(slow, "shared")
			s.Blame(slow)
		}
		time.Sleep(10*time.Minute + 1) // In the bubble, this moves the clock.
		want(slow, "shared")
		if s.Knows("t", "go") {
			t.Error("it knows what it has forgotten")
		}
		s.Blame(slow)
		for range 8 {
			s.Acquit(slow)
		}
		want(slow, "shared")

		// A call is slow compared with the recent ones, and with the number of its commands.
		for _, c := range []struct {
			took time.Duration
			n    int
			slow bool
		}{
			{time.Millisecond, 1, false},
			{100 * time.Millisecond, 1, false},
			{101 * time.Millisecond, 1, true},
			{200 * time.Millisecond, 256, false},
			{230 * time.Millisecond, 256, true},
		} {
			if got := s.IsSlow(c.took, c.n); got != c.slow {
				t.Errorf("a call of %d commands that took %v: slow %v", c.n, c.took, got)
			}
		}
		// Every commit takes 150 ms from now on, say because it waits for a standby.
		for range 3 {
			time.Sleep(6 * time.Second) // In the bubble, this moves the clock.
			s.IsSlow(150*time.Millisecond, 1)
		}
		if s.IsSlow(700*time.Millisecond, 1) {
			t.Error("a call is slow because all are")
		}
		if !s.IsSlow(800*time.Millisecond, 1) {
			t.Error("no call is slow because all are")
		}
	})
}

// sluggish has an event whose guard is slow, and sprightly one with an event of the same name.
const (
	sluggish = `{"name": "sluggish", "initial": "A", "states": {"A": {"on": {"go": {"target": "A", "guard":
		"exists($.payload.a[*] ? (exists($.payload.a[*] ? (@ > 5000000))))"}, "raise": {"target": "A", "guard": "$missing == 1"}, "end": "Z"}}, "Z": {"type": "final"}}}`
	sprightly = `{"name": "sprightly", "initial": "A", "states": {"A": {"on": {"go": "A", "raise": "A", "end": "Z"}}, "Z": {"type": "final"}}}`
)

// Once a guard is known to be slow, or to raise, commands for it share no call with others: neither with those of
// other tenants, nor with those for events of the same name of other workflows.
func TestSlowGuardsAreCalledApart(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	var mu sync.Mutex
	shared := map[uuid.UUID]int{} // How many calls each instance shared with others.
	s := fsmtest.On(t, fsmtest.Spied(t, pool, func(c *pgxpool.Config) {
		c.ConnConfig.RuntimeParams["statement_timeout"] = "1s"
		c.ConnConfig.Tracer = fsmtest.Spy{Started: func(sql string, args []any) {
			if strings.Contains(sql, "pawl.fire(") {
				mu.Lock()
				defer mu.Unlock()
				if ids := args[1].([]uuid.UUID); len(ids) > 1 {
					for _, id := range ids {
						shared[id]++
					}
				}
			}
		}}
	}), fsm.Config{CallTimeout: bounded.Limit}, sluggish, sprightly)
	slow, raising := fsmtest.Create(t, s, "sluggish", `{}`).ID, fsmtest.Create(t, s, "sluggish", `{}`).ID
	payload := json.RawMessage(`{"a":[` + strings.Repeat("1,", 9999) + `1]}`)
	fire := func(id uuid.UUID, event string) {
		_, err := s.Fire(t.Context(), fsm.FireCommand{ID: id, Event: event, Payload: payload})
		fsmtest.Refused(t, err, fsm.GuardError)
	}
	fire(slow, "go")
	fire(raising, "raise")

	enough := make(chan struct{})
	var others sync.WaitGroup
	var moved atomic.Int64
	var sprightlies []uuid.UUID
	for range 8 {
		sprightlies = append(sprightlies, fsmtest.Create(t, s, "sprightly", `{}`).ID)
	}
	for n, id := range sprightlies {
		others.Go(func() {
			for {
				select {
				case <-enough:
					return
				default:
				}
				if _, err := s.Fire(t.Context(), fsm.FireCommand{ID: id, Event: []string{"go", "raise"}[n%2]}); err != nil {
					t.Error(err)
					return
				}
				moved.Add(1)
			}
		})
	}
	for range 4 {
		before := moved.Load()
		fire(slow, "go")
		fire(raising, "raise")
		bounded.True(t, "the others to move", func() bool { return moved.Load() > before+8 })
	}
	close(enough)
	bounded.Wait(t, "the others", others.Wait)
	mu.Lock()
	defer mu.Unlock()
	if shared[slow]+shared[raising] != 0 {
		t.Errorf("the slow instance has shared %d calls, and the raising one %d", shared[slow], shared[raising])
	}
	if !slices.ContainsFunc(sprightlies, func(id uuid.UUID) bool { return shared[id] > 0 }) {
		t.Error("no commands have shared a call")
	}
}

// Commands for an instance that another transaction has locked share no call with others, until one is carried out.
func TestLockedInstancesAreCalledApart(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	var mu sync.Mutex
	var calls [][]uuid.UUID
	s := fsmtest.On(t, fsmtest.Spied(t, pool, func(c *pgxpool.Config) {
		c.ConnConfig.RuntimeParams["lock_timeout"] = "50ms"
		c.ConnConfig.Tracer = fsmtest.Spy{Started: func(sql string, args []any) {
			if strings.Contains(sql, "pawl.fire(") {
				mu.Lock()
				defer mu.Unlock()
				calls = append(calls, args[1].([]uuid.UUID))
			}
		}}
	}), fsm.Config{CallTimeout: bounded.Limit}, fsmtest.Counter)
	held, free := fsmtest.Create(t, s, "counter", `{"x":0}`).ID, fsmtest.Create(t, s, "counter", `{"x":0}`).ID
	release := fsmtest.Hold(t, pool, held)
	both := []fsm.Command{
		fsm.FireCommand{ID: held, Event: "add", Payload: json.RawMessage(`{"n":1}`)},
		fsm.FireCommand{ID: free, Event: "add", Payload: json.RawMessage(`{"n":1}`)},
	}
	do := func(want ...[]uuid.UUID) {
		t.Helper()
		// A fire behind one that has failed, and has not left its line yet, fails with it without a call.
		bounded.True(t, "earlier fires to have ended", s.FiresEnded)
		calls = nil
		replies := s.Do(t.Context(), both)
		if replies[1].Err != nil {
			t.Error(replies[1].Err)
		}
		mu.Lock()
		defer mu.Unlock()
		for _, w := range want {
			if !slices.ContainsFunc(calls, func(c []uuid.UUID) bool { return slices.Equal(c, w) }) {
				t.Errorf("no call of %v: %v; the locked instance's reply is %v", w, calls, replies[0].Err)
			}
		}
		if len(calls) != len(want) {
			t.Errorf("%d calls, want %d", len(calls), len(want))
		}
	}
	one, other, shared := []uuid.UUID{held}, []uuid.UUID{free}, []uuid.UUID{held, free}
	do(shared, one, other)
	do(one, other)
	release()
	for range 16 { // It was locked twice.
		do(one, other)
	}
	do(shared)
}
