package worker

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"time"
)

// BatchConfig tunes a worker that works in batches. Its zero value works.
type BatchConfig struct {
	// Batch is how many rows are worked on at once. The constructor of a worker has its default.
	Batch int
	// Pause is the time between batches while there may be more to do. Default 25 ms.
	Pause time.Duration
	// Interval is the time between looks for something to do. It varies by a quarter, so that replicas that were started
	// together do not look together. The constructor of a worker has its default.
	Interval time.Duration
	// Logger gets a line when the work fails, and one when it succeeds again. Default: none.
	Logger *slog.Logger
}

func (c BatchConfig) withDefaults(batch int, interval time.Duration) BatchConfig {
	if c.Batch <= 0 {
		c.Batch = batch
	}
	if c.Pause <= 0 {
		c.Pause = 25 * time.Millisecond
	}
	if c.Interval <= 0 {
		c.Interval = interval
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

// Repeat calls step until the context ends, and then returns nil. Each step returns how long to wait before
// the next one. Nothing but the context ends the loop. The logger gets a line when the steps begin to fail,
// and one when they succeed again. work is the subject of these lines, such as "firing timers".
func Repeat(ctx context.Context, logger *slog.Logger, work string, step func(context.Context) (wait time.Duration, err error)) error {
	failing := false
	for {
		wait, err := step(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && !failing:
			logger.WarnContext(ctx, work+" fails; it is tried again", "error", err)
		case err == nil && failing:
			logger.InfoContext(ctx, work+" works again")
		}
		failing = err != nil
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil
		}
	}
}

// around returns a duration that differs from d by up to a quarter.
func around(d time.Duration) time.Duration { return d*3/4 + rand.N(d/2+1) }
