package httpapi

import (
	"sync"

	"golang.org/x/time/rate"

	"github.com/pawl-fsm/pawl/fsm"
)

// limits holds token buckets. They apply to this process alone: with n replicas a subject or a tenant gets up to n
// times the rate.
type limits struct {
	perSecond         float64 // Of each subject; 0 means no limit.
	mu                sync.Mutex
	subjects, tenants map[string]*rate.Limiter // Only those with a limit.
}

func newLimits(perSecond float64) *limits {
	return &limits{perSecond: perSecond, subjects: map[string]*rate.Limiter{}, tenants: map[string]*rate.Limiter{}}
}

// allow takes one token from the bucket of the principal's tenant and one from that of its subject. If one is empty, it
// says so.
func (l *limits) allow(p principal) (exceeded string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if most := p.limits.RequestsPerSecond; most != nil && !take(l.tenants, p.tenant, float64(*most)) {
		return "the request rate of this tenant is exceeded"
	}
	who := p.home + "\x00" + p.subject // Neither has a NUL; both may have spaces.
	if p.open {
		who = "" // Without authentication a caller may name any subject, so all share one bucket.
	}
	if l.perSecond > 0 && !take(l.subjects, who, l.perSecond) {
		return "the request rate of this subject is exceeded"
	}
	return ""
}

// maxBuckets is how many buckets are kept. Beyond that all are thrown away, and begin as full ones.
const maxBuckets = 10_000

// take takes one token from a bucket, which is filled at the rate.
func take(buckets map[string]*rate.Limiter, name string, perSecond float64) bool {
	if perSecond == 0 {
		return false
	}
	bucket := buckets[name]
	if bucket == nil || bucket.Limit() != rate.Limit(perSecond) { // The first request, or the limit was changed.
		if len(buckets) >= maxBuckets {
			clear(buckets)
		}
		bucket = rate.NewLimiter(rate.Limit(perSecond), max(1, int(perSecond)))
		buckets[name] = bucket
	}
	return bucket.Allow()
}

// streams counts the open streams of each tenant in this process.
type streams struct {
	mu   sync.Mutex
	open map[string]int64 // Only tenants that have some.
}

func newStreams() *streams { return &streams{open: map[string]int64{}} }

// begin counts a stream, and returns the function that counts it no more. It refuses the stream if its tenant has as
// many as its limit allows; nil means no limit.
func (s *streams) begin(tenant string, most *int64) (end func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if most != nil && s.open[tenant] >= *most {
		return nil, fsm.Errorf(fsm.TooManyRequests, "%d streams of the tenant are open in this process, and no more may be; try again when one has ended", *most)
	}
	s.open[tenant]++
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.open[tenant]--; s.open[tenant] == 0 {
			delete(s.open, tenant)
		}
	}, nil
}
