package dispatch

import (
	"math/rand/v2"
	"time"
)

// MaxWait is the longest wait between two attempts, whether by backoff or by Retry-After.
const MaxWait = time.Hour

// Retry says when an attempt that failed is repeated. Its zero value works.
type Retry struct {
	// MaxAttempts is the number of attempts after which a job is given up. Default 12: with the
	// default Backoff about three hours on average, if the endpoint's circuit stays closed.
	MaxAttempts int
	// Backoff is the longest wait after the first failure. It doubles with each further failure,
	// up to MaxWait. Default 5 s.
	Backoff time.Duration
}

func (r Retry) withDefaults() Retry {
	if r.MaxAttempts <= 0 {
		r.MaxAttempts = 12
	}
	if r.Backoff <= 0 {
		r.Backoff = 5 * time.Second
	}
	return r
}

// Next returns how long to wait before the next attempt, given how many attempts have been made
// and the last answer, or false if there is none. The wait is what the endpoint asked for by
// Retry-After, else a random time up to the backoff (full jitter), so that jobs that failed
// together do not come back together.
func (r Retry) Next(attempts int, a Answer) (wait time.Duration, again bool) {
	r = r.withDefaults()
	switch {
	case attempts >= r.MaxAttempts:
		return 0, false
	case a.RetryAfter > 0:
		return a.RetryAfter, true
	}
	most := MaxWait
	if n := attempts - 1; n < 30 && r.Backoff<<n > 0 {
		most = min(r.Backoff<<n, MaxWait)
	}
	return rand.N(most) + 1, true
}
