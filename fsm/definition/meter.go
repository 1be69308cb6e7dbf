package definition

import (
	"context"
	"errors"
	"runtime"
	"time"
)

// A meter bounds a check of a document. Whoever does a part of the check first takes the steps that it costs. A
// step takes 0.1 to 1 µs. The library that checks cannot be told to stop, so the meter panics, and [compiled.run]
// recovers.
type meter struct {
	limits
	ctx      context.Context
	begun    time.Time
	taken    int // Steps.
	matched  int // Products.
	look     int // At how many steps to look at the clock and the context.
	fraction int // Products that no step was taken for yet.
}

// limits are those of a meter.
type limits struct {
	steps int
	// products are those of the texts and the patterns that they are matched with; see pattern. 0: no limit.
	products int
	time     time.Duration // 0: no limit.
}

const (
	stepsBetweenLooks = 512
	// A match takes at most 40 ns for each character of the text and each instruction of the pattern, and as a
	// rule much less. So a step stands for many of these products.
	productsPerStep = 256
)

// errSpent says that a check needs more steps, or more time, than its meter has.
var errSpent = errors.New("the check takes too many steps")

// stop is what a meter panics with.
type stop struct{ err error }

// take takes steps, and panics with a stop if the meter is spent or the context has ended.
func (m *meter) take(steps int) {
	m.taken += steps
	if m.taken > m.steps {
		panic(stop{errSpent})
	}
	if m.taken < m.look {
		return
	}
	m.look = m.taken + stepsBetweenLooks
	runtime.Gosched() // Whoever waits for the processor need not wait for a time slice.
	if err := m.ctx.Err(); err != nil {
		panic(stop{err})
	}
	if m.time > 0 && time.Since(m.begun) > m.time {
		panic(stop{errSpent})
	}
}

// match takes the steps of a match, or of a part of it.
func (m *meter) match(products int) {
	if m.matched += products; m.products > 0 && m.matched > m.products {
		panic(stop{errSpent})
	}
	m.fraction += products
	m.take(m.fraction / productsPerStep)
	m.fraction %= productsPerStep
}
