package fsm_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"weak"

	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/fsmtest"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// These tests run in a bubble: it knows when every goroutine waits, its clock stands
// still unless somebody waits for it, and it ends only when no goroutine is left.

// aCall is a call that is being made, until the test lets it return.
type aCall struct {
	commands []*fsm.Call
	finish   chan struct{}
	away     *bool // What the call says, when it is finished.
	failed   *bool
}

// again finishes a call that fails, so that its commands are called singly.
func (c aCall) again() {
	*c.failed = true
	close(c.finish)
}

func (c aCall) names() []string {
	names := []string{}
	for _, p := range c.commands {
		names = append(names, p.Command())
	}
	return names
}

// gated returns a batcher whose calls are made one step at a time.
func gated(config fsm.Config) (fsm.Batcher, chan aCall) {
	calls := make(chan aCall, 100)
	return fsm.NewBatcherAgain(config, func(commands []*fsm.Call) (away bool, again []*fsm.Call) {
		c := aCall{commands, make(chan struct{}), new(bool), new(bool)}
		calls <- c
		<-c.finish // bounded: in the bubble of a test
		if *c.failed {
			return false, commands
		}
		for _, p := range commands {
			if !p.HasCheck() {
				p.Fail(nil)
			}
		}
		return *c.away, nil
	}), calls
}

func submit(t *testing.T, b fsm.Batcher, calls ...*fsm.Call) {
	t.Helper()
	if err := b.Submit(calls...); err != nil {
		t.Fatal(err)
	}
}

// next returns the call that is being made, and fails if it is not of these commands.
func next(t *testing.T, calls chan aCall, want ...string) aCall {
	t.Helper()
	synctest.Wait()
	if len(calls) == 0 {
		time.Sleep(fsm.SlowCall) // bounded: in the bubble this moves the clock, and the calls in flight become slow
		synctest.Wait()
	}
	select {
	case c := <-calls:
		if !slices.Equal(c.names(), want) {
			t.Fatalf("a call of %q, want %q", c.names(), want)
		}
		return c
	default:
		t.Fatalf("no call is made, want one of %q", want)
		return aCall{}
	}
}

func none(t *testing.T, calls chan aCall) {
	t.Helper()
	synctest.Wait()
	select {
	case c := <-calls:
		t.Fatalf("a call of %q", c.names())
	default:
	}
}

func idle(t *testing.T, b fsm.Batcher) {
	t.Helper()
	synctest.Wait()
	if queued, inFlight, running := b.Held(); queued+inFlight+running != 0 {
		t.Errorf("an idle batcher has %d queued, %d names in flight and %d flushers", queued, inFlight, running)
	}
}

func call(name string, exclusive ...string) *fsm.Call {
	return fsm.NewCall(context.Background(), name, "t", exclusive...)
}

func TestBatcherCallsAtOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, calls := gated(fsm.Config{Flushers: 1})
		start := time.Now()
		first := call("1")
		submit(t, b, first)
		c := next(t, calls, "1")
		// What comes meanwhile makes up the next call, in order.
		for n := range 5 {
			submit(t, b, call(fmt.Sprint(n)))
		}
		none(t, calls)
		close(c.finish)
		if _, err := first.Wait(); err != nil {
			t.Error(err)
		}
		close(next(t, calls, "0", "1", "2", "3", "4").finish)
		idle(t, b)
		if waited := time.Since(start); waited != 0 {
			t.Errorf("somebody waited %v for a timer", waited)
		}
	})
}

// Another call is made beside those in flight only when all of them are slow.
func TestBatcherCallsBesideSlowCalls(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, calls := gated(fsm.Config{Flushers: 2})
		submit(t, b, call("1"))
		slow := next(t, calls, "1")
		submit(t, b, call("2"))
		time.Sleep(fsm.SlowCall - 1) // In the bubble, this moves the clock and waits for nothing.
		submit(t, b, call("3"))
		none(t, calls)
		time.Sleep(time.Nanosecond) // The call is slow now.
		synctest.Wait()
		if len(calls) != 1 {
			t.Fatal("no call is made beside a slow one")
		}
		c := next(t, calls, "2", "3")
		// While one call stays slow, others follow one another at once.
		submit(t, b, call("4"))
		start := time.Now()
		close(c.finish)
		c = next(t, calls, "4")
		if time.Since(start) != 0 {
			t.Error("a call has waited beside a slow one")
		}
		submit(t, b, call("5"))
		close(slow.finish)
		close(c.finish)
		close(next(t, calls, "5").finish)
		idle(t, b)
	})
}

func TestBatcherUsesItsFlushers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, calls := gated(fsm.Config{Flushers: 3, MaxBatch: 2})
		var commands []*fsm.Call
		for n := range 7 {
			commands = append(commands, call(fmt.Sprint(n)))
		}
		// One submission of many is carried by as many flushers as there are.
		submit(t, b, commands...)
		synctest.Wait()
		made := []aCall{<-calls, <-calls, <-calls}
		none(t, calls)
		seen := []string{}
		for _, c := range made {
			if len(c.commands) != 2 {
				t.Errorf("a call of %d, the cap is 2", len(c.commands))
			}
			seen = append(seen, c.names()...)
		}
		slices.Sort(seen)
		if !slices.Equal(seen, []string{"0", "1", "2", "3", "4", "5"}) {
			t.Errorf("got %q", seen)
		}
		close(made[1].finish)
		close(next(t, calls, "6").finish)
		close(made[0].finish)
		close(made[2].finish)
		idle(t, b)
	})
}

func TestBatcherKeepsExclusionAndOrder(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, calls := gated(fsm.Config{Flushers: 2})
		submit(t, b, call("a1", "a"), call("a2", "a"), call("b1", "b"), call("ab", "a", "b"), call("b2", "b"), call("c1", "c"))
		// b2 may not overtake ab, which waits for a; a2 excludes a1.
		first := next(t, calls, "a1", "b1", "c1")
		submit(t, b, call("c2", "c"), call("d1", "d"))
		other := next(t, calls, "d1")
		close(other.finish)
		none(t, calls)
		close(first.finish)
		second := next(t, calls, "a2", "c2")
		close(second.finish)
		close(next(t, calls, "ab").finish)
		close(next(t, calls, "b2").finish)
		idle(t, b)
	})
}

// Tenants take turns. A tenant with 10,000 waiting commands delays another's by no more than a call.
func TestBatcherIsFairToTenants(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, calls := gated(fsm.Config{Flushers: 1, MaxBatch: 4, MaxQueue: 10000})
		of := func(tenant, name string) *fsm.Call { return fsm.NewCall(t.Context(), name, tenant, "x"+name) }
		submit(t, b, of("t", "0"))
		c := next(t, calls, "0")
		for n := range 10000 {
			submit(t, b, of("t", fmt.Sprint("flood", n)))
		}
		submit(t, b, of("u", "u1"), of("u", "u2"))
		submit(t, b, of("v", "v1"))
		close(c.finish)
		c = next(t, calls, "flood0", "u1", "v1", "flood1")
		submit(t, b, of("w", "w1"))
		close(c.finish)
		close(next(t, calls, "u2", "flood2", "w1", "flood3").finish)
		for n := 4; n < 10000; n += 4 {
			close(next(t, calls, fmt.Sprint("flood", n), fmt.Sprint("flood", n+1), fmt.Sprint("flood", n+2), fmt.Sprint("flood", n+3)).finish)
		}
		idle(t, b)
	})
}

// The calls of a tenant with many commands leave a flusher for tenants with few. The calls of these have only a few
// commands of the first, and wait for none of its calls.
func TestBatcherKeepsCallsShort(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, calls := gated(fsm.Config{Flushers: 3, MaxBatch: 50})
		of := func(tenant, name string) *fsm.Call { return fsm.NewCall(t.Context(), name, tenant) }
		size := func(want int) aCall {
			t.Helper()
			synctest.Wait()
			if len(calls) == 0 {
				time.Sleep(fsm.SlowCall) // In the bubble, this moves the clock, and the calls in flight become slow.
				synctest.Wait()
			}
			if len(calls) == 0 {
				t.Fatal("no call is made")
			}
			c := <-calls
			if len(c.commands) != want {
				t.Fatalf("a call of %q, want %d commands", c.names(), want)
			}
			return c
		}
		var flood []*fsm.Call
		for n := range 300 {
			flood = append(flood, of("t", fmt.Sprint("t", n)))
		}
		submit(t, b, flood...)
		first, second := size(50), size(50)
		none(t, calls)
		start := time.Now()
		submit(t, b, of("u", "u1"))
		c := size(1 + fsm.SmallShare)
		if c.names()[1] != "u1" {
			t.Errorf("a call of %q", c.names())
		}
		submit(t, b, of("u", "u2")) // No flusher is left.
		none(t, calls)
		close(c.finish)
		c = size(1 + fsm.SmallShare)
		if time.Since(start) != 0 {
			t.Error("somebody waited for a timer")
		}
		close(c.finish)
		// While such tenants come, full calls use a quarter of the flushers, one at least, and have a quarter of the commands.
		close(first.finish)
		none(t, calls)
		close(second.finish)
		first = size(50 / 4)
		none(t, calls)
		time.Sleep(fsm.CutMemory) // In the bubble, this moves the clock.
		close(first.finish)
		first, second = size(50), size(50)
		none(t, calls)
		close(first.finish)
		first = size(50)
		close(second.finish)
		close(size(300 - 5*50 - 50/4 - 2*fsm.SmallShare).finish)
		close(first.finish)

		// A call that is short for the sake of one tenant does not hold up the other.
		submit(t, b, of("t", "t"))
		c = size(1)
		for n := range 20 {
			submit(t, b, of("t", fmt.Sprint(n)))
		}
		submit(t, b, of("u", "u"))
		close(c.finish)
		short, rest := size(1+fsm.SmallShare), size(20-fsm.SmallShare)
		close(short.finish)
		close(rest.finish)
		idle(t, b)
	})
}

// After a call with many commands of a tenant, the tenant rests for as long as the call took while there are tenants with few
// commands, whose commands are called meanwhile. When there are none, it does not rest.
func TestBatcherRests(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, calls := gated(fsm.Config{Flushers: 2, MaxBatch: 80})
		of := func(tenant, name string) *fsm.Call { return fsm.NewCall(t.Context(), name, tenant) }
		size := func(want int) aCall {
			t.Helper()
			synctest.Wait()
			if len(calls) == 0 {
				t.Fatalf("no call is made, want one of %d commands", want)
			}
			c := <-calls
			if len(c.commands) != want {
				t.Fatalf("a call of %q, want %d commands", c.names(), want)
			}
			return c
		}
		const took = 20 * time.Millisecond
		var flood []*fsm.Call
		for n := range 400 {
			flood = append(flood, of("t", fmt.Sprint("t", n)))
		}
		submit(t, b, flood...)
		c := size(80)
		time.Sleep(took) // In the bubble, this moves the clock, here and below.
		close(c.finish)
		c = size(80) // The tenant is alone.
		submit(t, b, of("u", "u1"))
		short := size(1 + fsm.SmallShare)
		close(short.finish)
		time.Sleep(took)
		close(c.finish)
		none(t, calls)
		// Another tenant's command is in the next call, at once, and this one is not long.
		submit(t, b, of("u", "u2"))
		short = size(1 + fsm.SmallShare)
		submit(t, b, of("u", "u3"))
		close(short.finish)
		close(size(1 + fsm.SmallShare).finish)
		// A tenant with many commands that has not had its turn is not held up either.
		var many []*fsm.Call
		for n := range 10 {
			many = append(many, of("v", fmt.Sprint("v", n)))
		}
		submit(t, b, many...)
		c = size(80 / 4)
		time.Sleep(took - time.Millisecond)
		none(t, calls)
		time.Sleep(time.Millisecond)
		close(c.finish)
		none(t, calls) // Both have had theirs.
		time.Sleep(took - time.Millisecond)
		none(t, calls)
		time.Sleep(time.Millisecond)
		c = size(80 / 4)
		time.Sleep(fsm.CutMemory)
		close(c.finish)
		close(size(80).finish)
		close(size(80).finish)
		close(size(400 - 4*80 - 10 - 80/4 - 3*fsm.SmallShare).finish)
		idle(t, b)
	})
}

// A tenant cannot fill the queue: there is room left for others.
func TestBatcherKeepsRoomForTenants(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, calls := gated(fsm.Config{Flushers: 1, MaxBatch: 100, MaxQueue: 8})
		of := func(tenant string) *fsm.Call { return fsm.NewCall(t.Context(), tenant, tenant) }
		submit(t, b, of("first"))
		c := next(t, calls, "first")
		for _, room := range []int{8, 4, 2, 1} {
			tenant := fmt.Sprint(room)
			for range room {
				submit(t, b, of(tenant))
			}
			fsmtest.Refused(t, b.Submit(of(tenant)), fsm.Unavailable)
		}
		close(c.finish)
		close(next(t, calls, "8", "4", "2", "1", "8", "4", "2", "8", "4", "8", "4", "8", "8", "8", "8").finish)
		idle(t, b)
	})
}

// Commands for one instance share a call, in their order, if the call has room.
func TestBatcherChains(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, calls := gated(fsm.Config{Flushers: 2, MaxBatch: 6})
		of := func(name, instance, key string) *fsm.Call {
			return fsm.NewChained(t.Context(), name, "t", "instance "+instance, "key "+key)
		}
		submit(t, b, of("a0", "a", "0"))
		c := next(t, calls, "a0")
		// While a call with a command for a is in flight, no other command for a is called.
		submit(t, b, of("a1", "a", "1"), of("b1", "b", "2"))
		other := next(t, calls, "b1")
		submit(t, b, of("a2", "a", "2"), of("a3", "a", "3"), of("b2", "b", "4"), of("b3", "b", "5"), of("c", "c", "3"))
		close(c.finish)
		// a2 has the key of b1, which is in flight. a3 is behind a2, and c behind a3.
		c = next(t, calls, "a1")
		close(other.finish)
		other = next(t, calls, "b2", "b3")
		close(c.finish)
		c = next(t, calls, "a2", "a3")
		close(other.finish)
		none(t, calls)
		close(c.finish)
		close(next(t, calls, "c").finish)
		idle(t, b)

		// A chain ends before a command whose caller has given up.
		submit(t, b, of("first", "x", "9"))
		c = next(t, calls, "first")
		submit(t, b, of("second", "y", "10"))
		other = next(t, calls, "second")
		gone, goAway := context.WithCancel(t.Context())
		abandoned := fsm.NewChained(gone, "y2", "t", "instance y", "key 30")
		for n := range 3 {
			submit(t, b, of(fmt.Sprint("x", n), "x", fmt.Sprint("x", n)))
		}
		submit(t, b, of("y0", "y", "31"), of("y1", "y", "32"), abandoned, of("y3", "y", "33"), of("z", "z", "34"))
		close(c.finish)
		c = next(t, calls, "x0", "z", "x1", "x2")
		close(other.finish)
		goAway()
		other = next(t, calls, "y0", "y1")
		close(c.finish)
		close(other.finish)
		close(next(t, calls, "y3").finish)
		idle(t, b)
	})
}

// A command that waits for nobody is not overtaken by those that come later for hot instances.
func TestBatcherKeepsTheOrderOfArrival(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, calls := gated(fsm.Config{Flushers: 1, MaxBatch: 2})
		again := func(name string) {
			time.Sleep(time.Nanosecond) // In the bubble, this moves the clock: no two arrive at the same time.
			submit(t, b, fsm.NewChained(t.Context(), name, "t", name))
		}
		for range 2 {
			again("hot1")
			again("hot2")
		}
		c := next(t, calls, "hot1")
		close(c.finish)
		c = next(t, calls, "hot2", "hot1")
		again("hot1")
		submit(t, b, call("cold"))
		again("hot2")
		again("hot1")
		close(c.finish)
		close(next(t, calls, "hot2", "hot1").finish)
		close(next(t, calls, "cold", "hot2").finish)
		close(next(t, calls, "hot1").finish)
		idle(t, b)
	})
}

// The commands of a call that failed get calls of their own, in their order, and hold up nobody.
func TestBatcherCallsSingly(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, calls := gated(fsm.Config{Flushers: 3})
		of := func(name, instance string) *fsm.Call { return fsm.NewChained(t.Context(), name, "t", instance) }
		submit(t, b, of("a1", "a"), of("b1", "b"), of("c1", "c"), of("a2", "a"), call("d"))
		next(t, calls, "a1", "b1", "c1", "d", "a2").again()
		// Two of the three flushers make such calls. The third is for the other commands.
		a1 := next(t, calls, "a1")
		submit(t, b, of("b2", "b"), call("e"))
		b1 := next(t, calls, "b1")
		e := next(t, calls, "e")
		close(b1.finish)
		c1 := next(t, calls, "c1")
		close(e.finish)
		b2 := next(t, calls, "b2")
		close(a1.finish)
		a2 := next(t, calls, "a2")
		close(b2.finish)
		close(c1.finish)
		close(next(t, calls, "d").finish)
		close(a2.finish)
		idle(t, b)
	})
}

// Commands that were slow before get calls of their own, few at a time and in turns of tenants. The other
// commands use the flushers meanwhile, and have the places.
func TestBatcherKeepsSlowCommandsApart(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, calls := gated(fsm.Config{Flushers: 1, SlowCalls: 2, MaxQueue: 64})
		slow := func(name, tenant string) *fsm.Call {
			return fsm.Slow(fsm.NewChained(t.Context(), name, tenant, "instance "+name))
		}
		submit(t, b, slow("t0", "t"))
		t0 := next(t, calls, "t0")
		submit(t, b, slow("t1", "t"))
		t1 := next(t, calls, "t1")
		for n := 2; n < 10; n++ {
			submit(t, b, slow(fmt.Sprint("t", n), "t"))
		}
		fsmtest.Refused(t, b.Submit(slow("t10", "t")), fsm.Unavailable)
		submit(t, b, slow("u0", "u"))
		for n := range 50 {
			name := fmt.Sprint("fast", n)
			submit(t, b, call(name))
			close(next(t, calls, name).finish)
		}
		// A command behind a slow one for the same instance waits for it, and for nobody else.
		submit(t, b, fsm.NewChained(t.Context(), "after", "t", "instance t0"))
		none(t, calls)
		close(t0.finish)
		synctest.Wait()
		var made []aCall
		for range 2 {
			made = append(made, <-calls)
		}
		slices.SortFunc(made, func(a, b aCall) int { return strings.Compare(a.names()[0], b.names()[0]) })
		if made[0].names()[0] != "after" || made[1].names()[0] != "t2" {
			t.Errorf("calls of %q and %q", made[0].names(), made[1].names())
		}
		close(made[0].finish)
		close(t1.finish)
		u0 := next(t, calls, "u0")
		close(made[1].finish)
		for n := 3; n < 10; n++ {
			close(next(t, calls, fmt.Sprint("t", n)).finish)
		}
		close(u0.finish)
		idle(t, b)
	})
}

// While a document is checked, its command keeps its place before later ones for the instance, and uses no
// flusher.
func TestBatcherChecksBesideCalls(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, calls := gated(fsm.Config{Flushers: 1})
		of := func(name, instance string) *fsm.Call { return fsm.NewChained(t.Context(), name, "t", instance) }
		good, bad := of("good", "a"), of("bad", "b")
		fits, faults := make(chan error), make(chan error)
		submit(t, b, good, bad, of("c", "c"))
		c := next(t, calls, "good", "bad", "c")
		good.Check(func() error { return <-fits })
		bad.Check(func() error { return <-faults })
		close(c.finish)
		submit(t, b, of("a2", "a"), of("b2", "b"), of("d", "d"))
		close(next(t, calls, "d").finish)
		none(t, calls)
		closed := make(chan struct{})
		go func() {
			b.Close()
			close(closed)
		}()
		synctest.Wait()
		select {
		case <-closed:
			t.Error("it is closed before the documents are checked")
		default:
		}
		fits <- nil
		close(next(t, calls, "good", "a2").finish)
		faults <- fsm.Errorf(fsm.InvalidPayload, "it does not fit")
		close(next(t, calls, "b2").finish)
		_, err := bad.Wait()
		fsmtest.Refused(t, err, fsm.InvalidPayload)
		<-closed
		idle(t, b)
	})
}

// The length of a chain is limited, since its rounds delay the other commands of the call.
func TestBatcherBoundsChains(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, calls := gated(fsm.Config{Flushers: 1})
		var names []string
		for n := range 40 {
			names = append(names, fmt.Sprint(n))
			submit(t, b, fsm.NewChained(t.Context(), names[n], "t", "hot", fmt.Sprint("key", n)))
		}
		synctest.Wait()
		taken := 0
		for taken < len(names) {
			c := <-calls
			n := len(c.commands)
			if n > fsm.MaxChain || !slices.Equal(c.names(), names[taken:taken+n]) {
				t.Fatalf("a call of %q", c.names())
			}
			taken += n
			close(c.finish)
			synctest.Wait()
		}
		idle(t, b)
	})
}

// A queue of commands that exclude one another leaves a flusher for the rest.
func TestBatcherPassesWhatIsExcluded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, calls := gated(fsm.Config{Flushers: 2})
		for n := range 10 {
			submit(t, b, call(fmt.Sprint("hot", n), "hot"))
		}
		c := next(t, calls, "hot0")
		submit(t, b, call("cold"))
		close(next(t, calls, "cold").finish)
		submit(t, b, fsm.NewCall(t.Context(), "other", "u"))
		close(next(t, calls, "other").finish)
		for n := 1; n < 10; n++ {
			close(c.finish)
			c = next(t, calls, fmt.Sprint("hot", n))
		}
		close(c.finish)
		idle(t, b)
	})
}

func TestBatcherBoundsItsQueue(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, calls := gated(fsm.Config{Flushers: 1, MaxQueue: 3})
		submit(t, b, call("1"))
		c := next(t, calls, "1") // In flight, and no more in the queue.
		submit(t, b, call("2"), call("3"))
		tooMany := []*fsm.Call{call("4"), call("5")}
		fsmtest.Refused(t, b.Submit(tooMany...), fsm.Unavailable)
		submit(t, b, call("6"))
		fsmtest.Refused(t, b.Submit(call("7")), fsm.Unavailable)
		close(c.finish)
		close(next(t, calls, "2", "3", "6").finish)
		submit(t, b, call("8"))
		close(next(t, calls, "8").finish)
		idle(t, b)
	})
}

func TestBatcherForgetsThoseThatGiveUp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, calls := gated(fsm.Config{Flushers: 1})
		ctx, cancel := context.WithCancel(t.Context())
		taken := fsm.NewCall(ctx, "1", "t", "a")
		submit(t, b, taken)
		c := next(t, calls, "1")
		waiting := fsm.NewCall(ctx, "2", "t", "a")
		submit(t, b, waiting, call("3", "a"))
		cancel()
		// Neither waits any longer, though nothing is settled yet.
		for _, p := range []*fsm.Call{taken, waiting} {
			_, err := p.Wait()
			fsmtest.Refused(t, err, fsm.Unavailable)
			if !errors.Is(err, context.Canceled) {
				t.Errorf("got %v", err)
			}
		}
		close(c.finish)
		close(next(t, calls, "3").finish)
		<-waiting.Done()
		idle(t, b)
	})
}

// When the database turns out to be away, those that have waited long hear so at once;
// what has only just come may try.
func TestBatcherShedsWhatWaitedLong(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, calls := gated(fsm.Config{Flushers: 1, CallTimeout: 4 * time.Second})
		submit(t, b, call("1", "a"))
		c := next(t, calls, "1")
		early := []*fsm.Call{call("2"), call("3", "a")}
		submit(t, b, early...)
		// In the bubble, this moves the clock and waits for nothing.
		time.Sleep(time.Second + 1)
		submit(t, b, call("4"), call("5", "a"))
		time.Sleep(time.Second)
		*c.away = true
		close(c.finish)
		for _, p := range early {
			_, err := p.Wait()
			fsmtest.Refused(t, err, fsm.Unavailable)
		}
		close(next(t, calls, "4", "5").finish)
		idle(t, b)

		// A call that was answered sheds nobody, however long it took.
		submit(t, b, call("6"))
		c = next(t, calls, "6")
		submit(t, b, call("7"))
		time.Sleep(time.Minute)
		close(c.finish)
		close(next(t, calls, "7").finish)
		idle(t, b)
	})
}

// So do those that wait for calls of their own.
func TestBatcherShedsSingleCalls(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, calls := gated(fsm.Config{Flushers: 1, CallTimeout: 4 * time.Second})
		first := call("first")
		submit(t, b, first)
		c := next(t, calls, "first")
		shared := []*fsm.Call{call("1"), fsm.NewChained(t.Context(), "2", "t", "a"), fsm.NewChained(t.Context(), "3", "t", "a")}
		submit(t, b, shared...)
		close(c.finish)
		next(t, calls, "1", "2", "3").again()
		c = next(t, calls, "1")
		// In the bubble, this moves the clock and waits for nothing.
		time.Sleep(2 * time.Second)
		*c.away = true
		close(c.finish)
		for _, p := range shared[1:] {
			_, err := p.Wait()
			fsmtest.Refused(t, err, fsm.Unavailable)
		}
		none(t, calls)
		idle(t, b)
	})
}

func TestBatcherCloses(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, calls := gated(fsm.Config{Flushers: 2})
		accepted := []*fsm.Call{call("1", "a"), call("2", "a"), call("3", "b")}
		submit(t, b, accepted...)
		c := next(t, calls, "1", "3")
		closed := make(chan struct{})
		go func() {
			b.Close()
			close(closed)
		}()
		synctest.Wait()
		fsmtest.Refused(t, b.Submit(call("4")), fsm.Unavailable)
		select {
		case <-closed:
			t.Error("it is closed before what it accepted is settled")
		default:
		}
		close(c.finish)
		close(next(t, calls, "2").finish)
		<-closed
		for _, p := range accepted {
			select {
			case <-p.Done():
			default:
				t.Errorf("%s is not settled", p.Command())
			}
		}
		b.Close() // Twice does no harm.
		idle(t, b)
	})
}

func TestBatcherLetsGoOfMemory(t *testing.T) {
	t.Parallel()
	b := fsm.NewBatcher(fsm.Config{Flushers: 1, MaxBatch: 3}, func(commands []*fsm.Call) bool {
		for _, p := range commands {
			p.Fail(nil)
		}
		return false
	})
	var held []weak.Pointer[fsm.Call]
	func() {
		for range 3 {
			var commands []*fsm.Call
			for n := range 50 {
				p := call(fmt.Sprint(n), fmt.Sprint(n%7))
				commands, held = append(commands, p), append(held, weak.Make(p))
			}
			submit(t, b, commands...)
		}
	}()
	b.Close()
	runtime.GC()
	for _, p := range held {
		if p.Value() != nil {
			t.Fatal("a settled command is still held")
		}
	}
	runtime.KeepAlive(b)
}

// Whatever comes, in whatever order: nothing is lost, nothing in flight excludes
// another, and what excludes one another keeps its order.
func TestBatcherUnderLoad(t *testing.T) {
	t.Parallel()
	var (
		mu       sync.Mutex
		inFlight = map[string]bool{}
		done     = map[string][]int{} // By name, in the order of the calls.
		executed = map[*fsm.Call]int{}
		number   = map[*fsm.Call]int{}
	)
	const limit = 8
	b := fsm.NewBatcher(fsm.Config{Flushers: 3, MaxBatch: limit, MaxQueue: 1 << 20}, func(commands []*fsm.Call) bool {
		mu.Lock()
		if len(commands) > limit {
			t.Errorf("a call of %d", len(commands))
		}
		for _, p := range commands {
			executed[p]++
			for _, x := range p.Exclusive() {
				if inFlight[x] {
					t.Errorf("%s twice in flight", x)
				}
				inFlight[x] = true
				done[x] = append(done[x], number[p])
			}
		}
		mu.Unlock()
		for range rand.IntN(50) {
			runtime.Gosched()
		}
		mu.Lock()
		for _, p := range commands {
			for _, x := range p.Exclusive() {
				delete(inFlight, x)
			}
		}
		mu.Unlock()
		for _, p := range commands {
			p.Fail(nil)
		}
		return false
	})
	var all []*fsm.Call
	var submitting sync.Mutex
	var writers sync.WaitGroup
	for range 8 {
		writers.Go(func() {
			for range 200 {
				tenant := fmt.Sprint(rand.IntN(3))
				commands := make([]*fsm.Call, 1+rand.IntN(4))
				submitting.Lock()
				for i := range commands {
					commands[i] = fsm.NewCall(context.Background(), "c", tenant, fmt.Sprint("k", rand.IntN(20)), fmt.Sprint("i", rand.IntN(5)))
					all = append(all, commands[i])
					mu.Lock()
					number[commands[i]] = len(all)
					mu.Unlock()
				}
				if err := b.Submit(commands...); err != nil {
					t.Error(err)
				}
				submitting.Unlock()
				if rand.IntN(3) == 0 {
					_, _ = commands[0].Wait()
				}
			}
		})
	}
	bounded.Wait(t, "the writers", writers.Wait)
	bounded.Wait(t, "the batcher to close", b.Close)
	for _, p := range all {
		if executed[p] != 1 {
			t.Fatalf("a command was in %d calls", executed[p])
		}
		// bounded: Close returns when every command is settled
		if _, err := p.Wait(); err != nil {
			t.Fatal(err)
		}
	}
	for name, order := range done {
		if !slices.IsSorted(order) {
			t.Errorf("%s: out of order: %v", name, order)
		}
	}
	if queued, names, running := b.Held(); queued+names+running != 0 {
		t.Errorf("left: %d queued, %d names, %d flushers", queued, names, running)
	}
}
