// Package gate lets a bounded number of callers in at a time, by turns of tenants. It is pure: it knows no database.
package gate

import (
	"context"
	"errors"
	"slices"
	"sync"
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
// calls ends. The part may be smaller beside others: see [Gate.Narrow].
//
// Twice room callers may wait. A tenant never has more waiting than there are places left to wait in. So one
// tenant alone can have room of them waiting, and fewer while others wait.
type Gate struct {
	size, most, room int
	beside           int     // How many of one tenant are let in while others of recent are active.
	recent           *Recent // Nil if it makes no difference.

	mu      sync.Mutex
	inside  int
	waiting int
	tenants map[string]*visitors // Only tenants with callers inside or waiting.
	turns   []*visitors          // Tenants with waiting callers that may enter, in the order of their turns.
}

// visitors are the callers of one tenant.
type visitors struct {
	tenant  string
	inside  int
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

// Narrow makes the gate let in no more than beside callers of a tenant while another tenant is among the recent ones. It
// must be called before the first Enter.
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
	leave = sync.OnceFunc(func() { g.leave(v) })
	if g.inside < g.size && len(v.waiting) == 0 && g.fits(v) {
		// Whoever waits now has as many callers inside as it may.
		g.admit(v)
		g.mu.Unlock()
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

func (g *Gate) leave(v *visitors) {
	g.mu.Lock()
	defer g.mu.Unlock()
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
			continue // Its next turn comes when one of its callers leaves.
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
	if v.inside >= g.beside && g.recent != nil && g.recent.others(v.tenant) {
		return false
	}
	return v.inside < g.most
}

// turn puts a tenant at the end of the turns, if it has a caller that may enter.
func (g *Gate) turn(v *visitors) {
	if !v.inTurns && len(v.waiting) > 0 && g.fits(v) {
		v.inTurns = true
		g.turns = append(g.turns, v)
	}
}

// forget drops a tenant without callers.
func (g *Gate) forget(v *visitors) {
	if v.inside == 0 && len(v.waiting) == 0 {
		delete(g.tenants, v.tenant)
	}
}
