package httpapi

import (
	"sync"

	"golang.org/x/time/rate"
)

// limits holds one token bucket for each principal. The limit applies to this process
// alone: with n replicas a principal gets up to n times the rate.
type limits struct {
	perSecond float64 // 0 means no limit.
	mu        sync.Mutex
	buckets   map[string]*rate.Limiter
}

// allow takes one token from the principal's bucket and returns false if it is empty. The
// map has at most one bucket for each configured Token, so it needs no eviction.
func (l *limits) allow(p principal) bool {
	if l.perSecond == 0 {
		return true
	}
	who := p.tenant + " " + p.subject
	if p.scopes == nil {
		who = "" // Without authentication a caller may name any subject, so all share one bucket.
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	bucket, known := l.buckets[who]
	if !known {
		bucket = rate.NewLimiter(rate.Limit(l.perSecond), max(1, int(l.perSecond)))
		l.buckets[who] = bucket
	}
	return bucket.Allow()
}

func newLimits(perSecond float64) *limits {
	return &limits{perSecond: perSecond, buckets: map[string]*rate.Limiter{}}
}
