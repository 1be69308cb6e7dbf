package worker

import (
	"context"
	"log/slog"
	"time"
)

// Repeat does work until the context ends, and returns nil then. Each step returns how long to wait
// before the next one. Nothing but the context ends the loop. The logger gets a line when the steps
// begin to fail and one when they succeed again; work names it, as in "firing timers".
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
