package fsm

import (
	"context"
	"log/slog"
	"time"
)

// repeat takes steps until the context ends, each after the time that the one before it
// asks for, and returns nil then. Nothing else ends it: that a step fails is said once to
// the logger, and so is that steps succeed again.
func repeat(ctx context.Context, logger *slog.Logger, work string, step func(context.Context) (wait time.Duration, err error)) error {
	failing := false
	for {
		wait, err := step(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && !failing:
			logger.WarnContext(ctx, work+" fails; trying on", "error", err)
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
