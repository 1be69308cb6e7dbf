package bounded

import (
	"context"
	"sync"
	"testing"
	"time"
)

// Run runs a worker, a Run(ctx) error that blocks until its context ends, until stop is called or the test ends. stop
// returns when the worker has; called again it does nothing. A worker that returns an error, before or after stop,
// fails the test, and so does one that stop waits for in vain.
//
// A worker is stopped before the cleanups that were registered before it: before the pool that it uses is closed, if
// the pool is older.
func Run(t testing.TB, what string, worker func(context.Context) error) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	// After the test nothing may be logged to it.
	var reports sync.Mutex
	given := false
	go func() {
		defer close(ended)
		err := worker(ctx)
		reports.Lock()
		defer reports.Unlock()
		if err != nil && !given {
			t.Errorf("%s ended with: %v", what, err)
		}
	}()
	stop = sync.OnceFunc(func() {
		t.Helper()
		cancel()
		select {
		case <-ended:
		case <-time.After(Limit):
			reports.Lock()
			defer reports.Unlock()
			given = true
			t.Errorf("waited %v for %s to stop; the goroutines of this module:\n%s", Limit, what, stacks())
		}
	})
	t.Cleanup(stop)
	return stop
}

// A Gate holds up the goroutines that come to it until it is opened, which the end of the test's body does at the
// latest: before any cleanup, so that a cleanup may wait for those goroutines.
type Gate struct {
	t             testing.TB
	what          string
	arrived, left chan struct{}
	arrive, leave func()
}

// NewGate returns a gate that is closed. The words say who comes to it.
func NewGate(t testing.TB, what string) *Gate {
	t.Helper()
	g := &Gate{t: t, what: what, arrived: make(chan struct{}), left: make(chan struct{})}
	g.arrive = sync.OnceFunc(func() { close(g.arrived) })
	g.leave = sync.OnceFunc(func() { close(g.left) })
	context.AfterFunc(t.Context(), g.leave)
	return g
}

// Pass blocks until the gate is open. It may be called in any goroutine. After Limit it fails the test and returns.
func (g *Gate) Pass() {
	g.arrive()
	select {
	case <-g.left:
	case <-time.After(Limit):
		g.t.Errorf("waited %v for the test to let %s go on", Limit, g.what)
	}
}

// Reached returns when the first has come to the gate, or fails the test.
func (g *Gate) Reached() {
	g.t.Helper()
	Receive(g.t, g.what, g.arrived)
}

// Open opens the gate for good.
func (g *Gate) Open() { g.leave() }
