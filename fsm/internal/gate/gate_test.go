package gate

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pawl-fsm/pawl/internal/bounded"
)

var errAway = errors.New("the database is away")

// enter lets a caller of a tenant in, which must not have to wait.
func enter(t *testing.T, g *Gate, tenant string) (leave func()) {
	t.Helper()
	leave, err := g.Enter(WithTenant(bounded.Context(t), tenant))
	if err != nil {
		t.Fatal(err)
	}
	return leave
}

// queue makes a caller of a tenant wait. The channel gets its leave when it is let in.
func queue(t *testing.T, g *Gate, tenant string) <-chan func() {
	t.Helper()
	before := g.Waiting()
	entered := make(chan func(), 1)
	go func() {
		leave, err := g.Enter(WithTenant(bounded.Context(t), tenant))
		if err != nil {
			t.Error(err)
			leave = func() {}
		}
		entered <- leave
	}()
	bounded.True(t, "the caller waits", func() bool { return g.Waiting() == before+1 })
	return entered
}

// Waiting is how many callers wait.
func (g *Gate) Waiting() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.waiting
}

// empty fails unless the gate has forgotten all tenants.
func empty(t *testing.T, g *Gate) {
	t.Helper()
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.inside != 0 || g.waiting != 0 || len(g.tenants) != 0 || len(g.turns) != 0 {
		t.Errorf("%d inside, %d waiting, %d tenants, %d turns", g.inside, g.waiting, len(g.tenants), len(g.turns))
	}
}

// A tenant that fills its part leaves room for the first call of another.
func TestGateKeepsRoomForNewcomers(t *testing.T) {
	g := New(4, 2, 100)
	first, second := enter(t, g, "busy"), enter(t, g, "busy")
	third := queue(t, g, "busy")
	leave := enter(t, g, "newcomer")
	select {
	case <-third:
		t.Error("a third call of the busy tenant was let in")
	default:
	}
	first()
	first() // It may be called twice.
	bounded.Receive(t, "the third call", third)()
	second()
	leave()
	empty(t, g)
}

// However many calls of a tenant wait, the next place is another's turn.
func TestGateTakesTurns(t *testing.T) {
	g := New(2, 1, 100)
	busy, other := enter(t, g, "busy"), enter(t, g, "other")
	var waiting []<-chan func()
	for range 10 {
		waiting = append(waiting, queue(t, g, "busy"))
	}
	newcomer := queue(t, g, "newcomer")
	other()
	leave := bounded.Receive(t, "the newcomer", newcomer)
	busy()
	for _, w := range waiting { // In the order of their arrival.
		bounded.Receive(t, "a call of the busy tenant", w)()
	}
	leave()
	empty(t, g)
}

// One tenant cannot fill the places to wait in.
func TestGateBoundsWhoWaits(t *testing.T) {
	g := New(1, 1, 3)
	leave := enter(t, g, "busy")
	waiting := []<-chan func(){queue(t, g, "busy"), queue(t, g, "busy"), queue(t, g, "busy")}
	if _, err := g.Enter(WithTenant(t.Context(), "busy")); !errors.Is(err, ErrCrowded) {
		t.Errorf("a fourth waits: %v", err)
	}
	newcomer := queue(t, g, "newcomer")
	leave()
	bounded.Receive(t, "the newcomer", newcomer)()
	for _, w := range waiting {
		bounded.Receive(t, "a call", w)()
	}
	empty(t, g)
}

// Who gives up is forgotten, whether it was let in meanwhile or not.
func TestGateForgetsWhoGivesUp(t *testing.T) {
	g := New(2, 1, 100)
	leave := enter(t, g, "a")
	ctx, cancel := context.WithCancel(WithTenant(t.Context(), "a"))
	gone := make(chan error, 1)
	go func() {
		_, err := g.Enter(ctx)
		gone <- err
	}()
	bounded.True(t, "the caller waits", func() bool { return g.Waiting() == 1 })
	cancel()
	if err := bounded.Receive(t, "the caller", gone); !errors.Is(err, context.Canceled) {
		t.Errorf("it ends with %v", err)
	}
	if _, err := g.Enter(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("a context that has ended: %v", err)
	}
	leave()
	empty(t, g)
}

// All who wait are sent away, and those who come later are not.
func TestGateSendsAway(t *testing.T) {
	g := New(2, 1, 100)
	first, other := enter(t, g, "a"), enter(t, g, "b")
	errs := make(chan error, 3)
	for _, tenant := range []string{"a", "b", "c"} {
		go func() {
			_, err := g.Enter(WithTenant(bounded.Context(t), tenant))
			errs <- err
		}()
	}
	bounded.True(t, "they wait", func() bool { return g.Waiting() == 3 })
	g.SendAway(errAway)
	for range 3 {
		if err := bounded.Receive(t, "a caller", errs); !errors.Is(err, errAway) {
			t.Errorf("it got %v", err)
		}
	}
	next := queue(t, g, "c")
	other()
	bounded.Receive(t, "the next caller", next)()
	first()
	empty(t, g)
}

// A thousand tenants at once each come in, never more than the size at a time, and give up now and then.
func TestGateOfAThousandTenants(t *testing.T) {
	g := New(4, 2, 5000)
	var (
		mu     sync.Mutex
		inside = map[string]int{}
		total  int
		calls  sync.WaitGroup
	)
	note := func(tenant string, n int) {
		mu.Lock()
		defer mu.Unlock()
		inside[tenant] += n
		total += n
		if total > 4 || inside[tenant] > 2 {
			t.Errorf("%d are inside, %d of one tenant", total, inside[tenant])
		}
	}
	for i := range 1000 {
		tenant := fmt.Sprint(i)
		for n := range 3 {
			calls.Go(func() {
				ctx, cancel := context.WithCancel(WithTenant(bounded.Context(t), tenant))
				defer cancel()
				if (i+n)%7 == 0 {
					go cancel()
				}
				leave, err := g.Enter(ctx)
				if err != nil {
					if !errors.Is(err, context.Canceled) {
						t.Error(err)
					}
					return
				}
				note(tenant, 1)
				note(tenant, -1)
				leave()
			})
		}
	}
	bounded.Wait(t, "all calls", calls.Wait)
	empty(t, g)
}

// While another tenant is active, a tenant has a smaller part. Afterwards those who wait have the larger one, and come
// before those who arrive.
func TestGateNarrows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var recent Recent
		g := New(4, 2, 100)
		g.Narrow(1, &recent)
		active := func(tenant string) { recent.Note(WithTenant(t.Context(), tenant)) }
		entered := make(chan string, 10)
		leaves := make(chan func(), 10)
		come := func(tenant, name string) {
			go func() {
				leave, err := g.Enter(WithTenant(t.Context(), tenant))
				if err != nil {
					t.Error(err)
					return
				}
				entered <- name
				leaves <- leave
			}()
			synctest.Wait()
		}
		want := func(names ...string) {
			t.Helper()
			synctest.Wait()
			var got []string
			for len(entered) > 0 {
				got = append(got, <-entered)
			}
			if !slices.Equal(got, names) {
				t.Errorf("%q were let in, want %q", got, names)
			}
		}
		active("busy")
		come("busy", "1")
		come("busy", "2")
		want("1", "2") // Its own activity is none of another's.
		come("busy", "3")
		come("busy", "4")
		come("busy", "5")
		active("other")
		(<-leaves)() // 2 is inside, which is as many as may be.
		want()
		come("other", "a")
		come("other", "b")
		want("a") // The busy tenant is active too.
		(<-leaves)()
		want("3")
		time.Sleep(memory) // In the bubble, this moves the clock.
		come("busy", "6")
		want("4")
		for range 6 {
			(<-leaves)()
			synctest.Wait()
		}
		want("b", "5", "6")
		empty(t, g)
	})
}

// Beside another tenant, a place rests for as long as it was in use. Other tenants may use it meanwhile.
func TestGateRests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var recent Recent
		g := New(2, 2, 100)
		g.Narrow(1, &recent)
		start := time.Now()
		// use has a caller of a tenant use a place for some time, and checks when it got it.
		use := func(tenant string, d, at time.Duration) {
			t.Helper()
			leave, err := g.Enter(WithTenant(t.Context(), tenant))
			if err != nil {
				t.Fatal(err)
			}
			if got := time.Since(start); got != at {
				t.Errorf("%s was let in after %s, want %s", tenant, got, at)
			}
			time.Sleep(d) // In the bubble, this moves the clock.
			leave()
		}
		const ms = time.Millisecond
		recent.Note(WithTenant(t.Context(), "busy"))
		use("busy", 10*ms, 0) // Nobody else is active.
		use("busy", 10*ms, 10*ms)
		recent.Note(WithTenant(t.Context(), "other"))
		use("busy", 10*ms, 20*ms)
		use("other", 5*ms, 30*ms)
		use("busy", 500*ms, 40*ms)
		use("busy", 10*ms, 540*ms+MaxRest)
		time.Sleep(memory)
		use("busy", 10*ms, 550*ms+MaxRest+memory)
		use("busy", 10*ms, 560*ms+MaxRest+memory)
		time.Sleep(MaxRest)
		empty(t, g)
	})
}

// Each tenant learns of the others, whichever of many was active last.
func TestRecentTenants(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var recent Recent
		check := func(tenant string, want bool) {
			t.Helper()
			if got := recent.Others(tenant); got != want {
				t.Errorf("%s is beside others: %v", tenant, got)
			}
		}
		note := func(tenants ...string) {
			for _, tenant := range tenants {
				recent.Note(WithTenant(t.Context(), tenant))
			}
		}
		check("a", false)
		note("a", "a")
		check("a", false)
		check("b", true)
		note("b", "b")
		check("a", true)
		check("b", true)
		note("a", "c", "c")
		for _, tenant := range []string{"a", "b", "c", "d"} {
			check(tenant, true)
		}
		time.Sleep(memory / 2) // In the bubble, this moves the clock.
		note("c")
		time.Sleep(memory / 2)
		check("c", false)
		check("a", true)
		time.Sleep(memory / 2)
		check("a", false)
	})
}
