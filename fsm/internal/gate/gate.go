// Package gate lets a bounded number of callers in at a time, by turns of tenants. It is pure: it knows no database.
package gate

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"
)

// ErrCrowded says that a [Gate] has as many callers waiting as it may have.
var ErrCrowded = errors.New("too many calls are waiting")

type tenantKey struct{}

// WithTenant returns a context whose calls take the turns of a tenant at each [Gate].
func WithTenant(ctx context.Context, tenant string) context.Context {
	return context.WithValue(ctx, tenantKey{}, tenant)
}

// tenantOf returns the tenant of a context. Callers without one take turns as one tenant.
func tenantOf(ctx context.Context) string {
	tenant, _ := ctx.Value(tenantKey{}).(string)
	return tenant
}

// A Gate lets a bounded number of callers in at a time. Tenants with waiting callers take turns, and the callers of
// one tenant come in the order of their arrival. A tenant never has more than a part of the places, even if no
// other tenant asks. So a newcomer waits only while other tenants have all places, and until the first of their
// calls ends. The part may be smaller beside others, and its places rest: see [Gate.Narrow].
//
// Twice room callers may wait. A tenant never has more waiting than there are places left to wait in. So one
// tenant alone can have room of them waiting, and fewer while others wait.
type Gate struct {
	size, most, room int
	beside           int     // How many of one tenant are let in while others of recent are active; also of those that rest.
	recent           *Recent // Nil if it makes no difference.

	mu      sync.Mutex
	inside  int
	waiting int
	tenants map[string]*visitors // Only tenants with callers inside or waiting, or with places that rest.
	turns   []*visitors          // Tenants with waiting callers that may enter, in the order of their turns.
}

// MaxRest is how long a tenant rests at most after a call, while another one sends commands.
const MaxRest = 100 * time.Millisecond

// visitors are the callers of one tenant.
type visitors struct {
	tenant  string
	inside  int
	resting int // Places that rest.
	waiting []*visitor
	inTurns bool
}

// A visitor is a caller that waits.
type visitor struct {
	err  error         // Why it was sent away; nil if it was let in.
	done chan struct{} // Closed when it was let in or sent away.
}

// New returns a Gate that lets size callers in at a time, and most of one tenant. room bounds how many may wait.
func New(size, most, room int) *Gate {
	return &Gate{size: size, most: most, room: room, tenants: map[string]*visitors{}}
}

// Narrow makes the gate let in no more than beside callers of a tenant while another tenant is among the recent ones. Then
// a place that the tenant leaves also rests for as long as it was in use, but not longer than MaxRest: for that time the
// tenant cannot use it again. So the tenant's calls, one after the other, take no more than half of the time of a processor
// for each place, and the other tenants find processors free. Narrow must be called before the first Enter.
func (g *Gate) Narrow(beside int, recent *Recent) { g.beside, g.recent = beside, recent }

// Enter waits until the context's tenant may enter, and returns the function with which the caller leaves. It
// returns ErrCrowded at once if too many are waiting, and the context's error if the context ends first.
func (g *Gate) Enter(ctx context.Context) (leave func(), err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	tenant := tenantOf(ctx)
	g.mu.Lock()
	v := g.tenants[tenant]
	if v == nil {
		v = &visitors{tenant: tenant}
		g.tenants[tenant] = v
	}
	var entered time.Time
	leave = sync.OnceFunc(func() { g.leave(v, time.Since(entered)) })
	if g.inside < g.size && len(v.waiting) == 0 && g.fits(v) {
		// Whoever waits now has as many callers inside as it may.
		g.admit(v)
		g.mu.Unlock()
		entered = time.Now()
		return leave, nil
	}
	if len(v.waiting)+1 > 2*g.room-g.waiting-1 {
		g.forget(v)
		g.mu.Unlock()
		return nil, ErrCrowded
	}
	w := &visitor{done: make(chan struct{})}
	v.waiting = append(v.waiting, w)
	g.waiting++
	g.turn(v)
	g.advance()
	g.mu.Unlock()

	select {
	case <-w.done:
		if w.err != nil {
			return nil, w.err
		}
		entered = time.Now()
		return leave, nil
	case <-ctx.Done():
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if at := slices.Index(v.waiting, w); at >= 0 {
		v.waiting = slices.Delete(v.waiting, at, at+1)
		g.waiting--
		g.turns = slices.DeleteFunc(g.turns, func(other *visitors) bool { return other == v && len(v.waiting) == 0 })
		v.inTurns = v.inTurns && len(v.waiting) > 0
		g.forget(v)
	} else if w.err == nil {
		g.release(v)
	}
	return nil, ctx.Err()
}

// SendAway makes Enter return an error to all callers that wait.
func (g *Gate) SendAway(err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, v := range g.tenants {
		for _, w := range v.waiting {
			w.err = err
			close(w.done)
		}
		v.waiting, v.inTurns = nil, false
		g.forget(v)
	}
	g.waiting, g.turns = 0, nil
}

// leave lets a caller go that was inside for the time that it took.
func (g *Gate) leave(v *visitors, took time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.isBeside(v) {
		v.resting++
		time.AfterFunc(min(took, MaxRest), func() {
			g.mu.Lock()
			defer g.mu.Unlock()
			v.resting--
			g.moveOn(v)
		})
	}
	g.release(v)
}

// admit notes that a caller is inside. The lock is held, here and below.
func (g *Gate) admit(v *visitors) {
	g.inside++
	v.inside++
}

// release notes that a caller is gone, and lets the next one in.
func (g *Gate) release(v *visitors) {
	g.inside--
	v.inside--
	g.moveOn(v)
}

// moveOn lets in those who wait, after a place of a tenant has become free.
func (g *Gate) moveOn(v *visitors) {
	g.turn(v)
	g.advance()
	g.forget(v)
}

// advance lets in those who wait, by turns.
func (g *Gate) advance() {
	for g.inside < g.size && len(g.turns) > 0 {
		next := g.turns[0]
		g.turns, next.inTurns = slices.Delete(g.turns, 0, 1), false
		if !g.fits(next) {
			continue // Its next turn comes when one of its callers leaves, or one of its places has rested.
		}
		g.admit(next)
		close(next.waiting[0].done)
		next.waiting = slices.Delete(next.waiting, 0, 1)
		g.waiting--
		g.turn(next)
	}
}

// fits reports whether one more caller of a tenant may be inside, as far as it is up to the tenant.
func (g *Gate) fits(v *visitors) bool {
	if v.inside+v.resting >= g.beside && g.isBeside(v) {
		return false
	}
	return v.inside < g.most
}

// isBeside reports whether a tenant other than this one is among the recent ones.
func (g *Gate) isBeside(v *visitors) bool { return g.recent != nil && g.recent.Others(v.tenant) }

// turn puts a tenant at the end of the turns, if it has a caller that may enter.
func (g *Gate) turn(v *visitors) {
	if !v.inTurns && len(v.waiting) > 0 && g.fits(v) {
		v.inTurns = true
		g.turns = append(g.turns, v)
	}
}

// forget drops a tenant without callers.
func (g *Gate) forget(v *visitors) {
	if v.inside+v.resting == 0 && len(v.waiting) == 0 {
		delete(g.tenants, v.tenant)
	}
}
