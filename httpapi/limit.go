package httpapi

import (
	"sync"

	"golang.org/x/time/rate"
)

// limits holds a token bucket per principal. It protects this process; it decides
// nothing about instances.
type limits struct {
	perSecond float64 // 0 for no limit.
	mu        sync.Mutex
	buckets   map[string]*rate.Limiter
}

// allow takes a token. There are as many principals as there are tokens, so the map
// stays small.
func (l *limits) allow(p principal) bool {
	if l.perSecond == 0 {
		return true
	}
	who := p.tenant + " " + p.subject
	if p.scopes == nil {
		who = "" // Without tokens a subject is what the caller says it is.
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
