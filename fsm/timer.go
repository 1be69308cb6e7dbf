package fsm

import (
	"context"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/db/queries"
)

// TimerConfig tunes Timers. Its zero value works.
type TimerConfig struct {
	// Batch is how many timers are fired at once. Default 200: requests get their turn
	// between batches.
	Batch int
	// Poll is the longest time between looks, and so how late a timer may be that another
	// process armed to end sooner than all others. Default 250 ms.
	Poll time.Duration
	// Logger is told when timers cannot be fired. Default: nobody.
	Logger *slog.Logger
}

func (c TimerConfig) withDefaults() TimerConfig {
	if c.Batch <= 0 {
		c.Batch = 200
	}
	if c.Poll <= 0 {
		c.Poll = 250 * time.Millisecond
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

// Timers ends the timeouts of states and the lifetimes of instances. Any number of them
// may share a database: one at a time fires, whichever comes first, and each timeout ends
// once, or never if its state was left. The database's clock alone decides what is due.
type Timers struct {
	queries *queries.Queries
	config  TimerConfig
	// batch is config.Batch, or 1 while a timer is looked for that takes too long.
	batch int
}

// NewTimers returns Timers on a pool, of which they take one connection at a time. The
// pool's statement_timeout bounds a batch, and with it a guard.
func NewTimers(pool *pgxpool.Pool, config TimerConfig) *Timers {
	config = config.withDefaults()
	return &Timers{queries: queries.New(pool), config: config, batch: config.Batch}
}

// Run fires what is due until the context ends, and returns nil then. In between it sleeps
// until the next deadline, or for Poll.
func (t *Timers) Run(ctx context.Context) error {
	return repeat(ctx, t.config.Logger, "firing timers", t.step)
}

// minWait is how long to leave an instance alone that somebody holds.
const minWait = 20 * time.Millisecond

func (t *Timers) step(ctx context.Context) (wait time.Duration, err error) {
	r, err := t.queries.FireTimers(ctx, int32(t.batch))
	switch {
	case isCode(err, queryCanceled) && t.batch > 1:
		// One of them takes too long: look for it.
		t.batch = 1
		return 0, nil
	case isCode(err, queryCanceled):
		t.batch = t.config.Batch
		id, err := t.queries.PutOffTimer(ctx)
		if err != nil {
			return t.config.Poll, err
		}
		t.config.Logger.ErrorContext(ctx, "a timeout takes too long and is put off by a minute", "instance", id)
		return 0, nil
	case err != nil:
		return t.config.Poll, err
	case r.LookedAt > 0:
		if r.Fired > 0 {
			// A hint: whoever waits looks anyway.
			_ = t.queries.Notify(ctx, anything)
		}
		t.config.Logger.DebugContext(ctx, "timers", "looked_at", r.LookedAt, "fired", r.Fired, "late_seconds", r.LateSeconds)
		if int(r.LookedAt) == t.batch {
			return 0, nil
		}
	case r.LookedAt < 0:
		return t.config.Poll, nil // Another process is at it.
	}
	t.batch = t.config.Batch
	next := time.Duration(r.NextSeconds * float64(time.Second))
	return min(max(next, minWait), t.config.Poll), nil
}
