package worker

import (
	"context"
	"encoding/json"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/db/session"
	"github.com/pawl-fsm/pawl/fsm/internal/database"
)

// TimerConfig tunes Timers. Its zero value works.
type TimerConfig struct {
	// Batch is how many timers are fired in one call. Commands that wait for the same instances get their
	// turn between calls. Default 200.
	Batch int
	// Poll is the longest time between two calls. A timer may be late by that much, if it was set since
	// the last call and is due before all others. Default 250 ms.
	Poll time.Duration
	// Fired, if given, is called after a call that fired timers. It does not say which instances moved.
	Fired func()
	// Logger gets a line when timers cannot be fired, one when they can again, and one for each timer that
	// begins to fail or fails for another reason. If it fails again for the same reason, nothing is logged.
	// Default: none.
	Logger *slog.Logger
}

func (c TimerConfig) withDefaults() TimerConfig {
	if c.Batch <= 0 {
		c.Batch = 200
	}
	if c.Poll <= 0 {
		c.Poll = 250 * time.Millisecond
	}
	if c.Fired == nil {
		c.Fired = func() {}
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

// Timers fires timers: it ends the timeouts of states and the lifetimes of instances. A timeout is ended
// once, or never if its state was left before. Any number of Timers may share a database; one of them fires
// at a time.
type Timers struct {
	queries *queries.Queries
	config  TimerConfig
	// batch is config.Batch, or 1 while a timer that takes too long is looked for.
	batch int
}

// NewTimers returns Timers on a pool, of which they take one connection at a time. The pool's
// statement_timeout bounds a call, and with it a guard.
func NewTimers(pool *pgxpool.Pool, config TimerConfig) *Timers {
	config = config.withDefaults()
	return &Timers{queries: queries.New(session.Pool(pool)), config: config, batch: config.Batch}
}

// Run fires what is due until the context ends, and then returns nil. Between calls it sleeps until the next
// timer is due, and no longer than Poll.
func (t *Timers) Run(ctx context.Context) error {
	return Repeat(ctx, t.config.Logger, "firing timers", t.step)
}

// minWait is the wait after a call that fired all it could: what is still due is an instance that another
// transaction has locked.
const minWait = 20 * time.Millisecond

func (t *Timers) step(ctx context.Context) (wait time.Duration, err error) {
	r, err := t.queries.FireTimers(ctx, int32(t.batch))
	switch {
	case database.IsCode(err, database.QueryCanceled) && t.batch > 1:
		// One of the timers takes too long. Fired singly, the others are fired, and it is found.
		t.batch = 1
		return 0, nil
	case database.IsCode(err, database.QueryCanceled):
		t.batch = t.config.Batch
		failures, err := t.queries.PutOffTimer(ctx)
		if err != nil {
			return t.config.Poll, err
		}
		return 0, t.report(ctx, failures)
	case err != nil:
		return t.config.Poll, err
	case r.LookedAt > 0:
		if r.Fired > 0 {
			t.config.Fired()
		}
		if err := t.report(ctx, r.Failures); err != nil {
			return t.config.Poll, err
		}
		t.config.Logger.DebugContext(ctx, "timers", "looked_at", r.LookedAt, "fired", r.Fired, "late_seconds", r.LateSeconds)
		if int(r.LookedAt) == t.batch {
			return 0, nil
		}
	case r.LookedAt < 0:
		return t.config.Poll, nil // Another process fires.
	}
	t.batch = t.config.Batch
	next := time.Duration(r.NextSeconds * float64(time.Second))
	return min(max(next, minWait), t.config.Poll), nil
}

// report logs the timers that have begun to fail, or that fail for another reason. pawl.fire_timers
// describes the members.
func (t *Timers) report(ctx context.Context, failures json.RawMessage) error {
	var list []struct {
		Tenant, Workflow, Instance, Event, Reason, Cause string
	}
	if err := json.Unmarshal(failures, &list); err != nil {
		return err
	}
	for _, f := range list {
		attributes := []any{
			"tenant", f.Tenant, "workflow", f.Workflow, "instance", f.Instance, "event", f.Event, "reason", f.Reason,
		}
		if f.Cause != "" {
			attributes = append(attributes, "cause", f.Cause)
		}
		t.config.Logger.ErrorContext(ctx, "a timer fails; it is tried again every minute", attributes...)
	}
	return nil
}
