package definition

import (
	"context"
	"errors"
	"time"
)

// A meter bounds a check of a document. Whoever does a part of the check first takes the steps that it costs. A
// step takes 0.1 to 1 µs. The library that checks cannot be told to stop, so the meter panics, and [compiled.run]
// recovers.
type meter struct {
	ctx   context.Context
	until time.Time // Zero: there is no limit of time.
	limit int
	steps int
	look  int // At how many steps to look at the clock and the context.
}

const stepsBetweenLooks = 512

// errSpent says that a check needs more steps, or more time, than its meter has.
var errSpent = errors.New("the check takes too many steps")

// stop is what a meter panics with.
type stop struct{ err error }

// take takes steps, and panics with a stop if the meter is spent or the context has ended.
func (m *meter) take(steps int) {
	m.steps += steps
	if m.steps > m.limit {
		panic(stop{errSpent})
	}
	if m.steps < m.look {
		return
	}
	m.look = m.steps + stepsBetweenLooks
	if err := m.ctx.Err(); err != nil {
		panic(stop{err})
	}
	if !m.until.IsZero() && time.Now().After(m.until) {
		panic(stop{errSpent})
	}
}
