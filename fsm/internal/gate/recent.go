package gate

import (
	"context"
	"sync"
	"time"
)

// memory is how long a tenant counts as a recent one.
const memory = time.Second

// Recent knows which tenants were active within the last second. Its zero value knows none.
type Recent struct {
	mu sync.Mutex
	// The tenant that was noted last, and the last one before it that is another. So no third is needed to tell whether
	// a tenant is alone.
	last, other noted
}

type noted struct {
	tenant string
	at     time.Time
}

// Note notes that the context's tenant is active.
func (r *Recent) Note(ctx context.Context) {
	now := noted{tenantOf(ctx), time.Now()}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.last.tenant != now.tenant {
		r.other = r.last
	}
	r.last = now
}

// Others reports whether a tenant other than this one was active.
func (r *Recent) Others(tenant string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := r.last
	if n.tenant == tenant {
		n = r.other
	}
	return time.Since(n.at) < memory
}
