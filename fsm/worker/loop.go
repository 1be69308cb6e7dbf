package worker

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"time"
)

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
