package dispatch

import "time"

const (
	// openAfter is the number of failures in a row that opens a circuit.
	openAfter = 5
	// MaxOpen is the longest time for which a circuit stays open.
	MaxOpen = 10 * time.Minute
)

// OpenFor returns how long a circuit stays open after so many failures in a row, the first time for
// first: 0 for fewer than five failures, then first, doubling with each further failure up to
// MaxOpen.
func OpenFor(failures int, first time.Duration) time.Duration {
	if failures < openAfter {
		return 0
	}
	return min(min(first, MaxOpen)<<min(failures-openAfter, 20), MaxOpen)
}

// A circuit is closed while openUntil is zero, open until then, and half-open afterwards.
type circuit struct {
	// failures counts those in a row.
	failures  int
	openUntil time.Time
}

// failed counts a failure, and opens the circuit if there were too many.
func (c *circuit) failed(first time.Duration) {
	if time.Now().Before(c.openUntil) {
		return // The attempt began before the circuit opened, and says nothing new.
	}
	c.failures++
	if open := OpenFor(c.failures, first); open > 0 {
		c.openUntil = time.Now().Add(open)
	}
}

// succeeded ends a row of failures.
func (c *circuit) succeeded() { c.failures = 0 }
