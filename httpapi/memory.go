package httpapi

import "sync"

// small is the size up to which bodies and answers are not counted: sockets hold as much.
const small = 64 << 10

// memory counts what requests hold: bodies that were read, and answers that their clients have not taken yet. A tenant
// never holds more than is left, so that one tenant alone can hold half of all, and less while others hold much.
type memory struct {
	most    int64
	mu      sync.Mutex
	held    int64
	tenants map[string]int64 // Only tenants that hold something.
}

func newMemory(most int64) *memory { return &memory{most: most, tenants: map[string]int64{}} }

// take adds n bytes to what a tenant holds, and returns false if it may not hold so much.
func (m *memory) take(tenant string, n int64) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.tenants[tenant]+n > m.most-m.held-n {
		return false
	}
	m.held += n
	m.tenants[tenant] += n
	return true
}

// give takes n bytes off again.
func (m *memory) give(tenant string, n int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.held -= n
	if m.tenants[tenant] -= n; m.tenants[tenant] == 0 {
		delete(m.tenants, tenant)
	}
}

// holdBody counts n further bytes of the body, except the first ones.
func (r *request) holdBody(n int64) bool {
	before := max(r.body, small)
	r.body += n
	return r.hold(max(r.body-before, 0))
}

// hold counts n bytes until the request ends, or until they are given back by a negative n. It returns false if the
// request must not hold so much.
func (r *request) hold(n int64) bool {
	switch {
	case r.memory == nil || n == 0:
	case n < 0:
		r.memory.give(r.holder, -n)
	default:
		if r.held == 0 {
			r.holder = r.principal.tenant
		}
		if !r.memory.take(r.holder, n) {
			return false
		}
	}
	r.held += n
	return true
}
