package worker

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
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
	// Limit bounds a call of the fast lane. Default 250 ms.
	Limit time.Duration
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
	if c.Limit <= 0 {
		c.Limit = 250 * time.Millisecond
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
// once, or never if its state was left before. Any number of Timers may share a database; one of them works
// in each lane at a time.
type Timers struct {
	pool    *pgxpool.Pool
	queries *queries.Queries
	config  TimerConfig
	// batch is how many timers the next call of the fast lane fires. It is halved after a call that did not
	// keep to the limit, and grows again up to config.Batch.
	batch int
	// suspects is how many timers are still to be fired kind by kind, after a batch that did not keep to the
	// limit.
	suspects int
	// unhurried lets the next call of the fast lane take as long as the pool lets it.
	unhurried bool
}

// NewTimers returns Timers on a pool, of which they take two connections at a time, one for each lane. The
// pool's statement_timeout bounds a call of the slow lane, and with it a guard.
func NewTimers(pool *pgxpool.Pool, config TimerConfig) *Timers {
	config = config.withDefaults()
	return &Timers{pool: pool, queries: queries.New(session.Pool(pool)), config: config, batch: config.Batch}
}

// Run fires what is due until the context ends, and then returns nil. Between calls it sleeps until the next
// timer is due, and no longer than Poll.
func (t *Timers) Run(ctx context.Context) error {
	var slow sync.WaitGroup
	defer slow.Wait()
	slow.Go(func() { _ = Repeat(ctx, t.config.Logger, "firing slow timers", t.stepSlow) })
	return Repeat(ctx, t.config.Logger, "firing timers", t.step)
}

const (
	// minWait is the wait after a call that fired all it could: what is still due is an instance that another
	// transaction has locked.
	minWait = 20 * time.Millisecond
	// suspectBatch is how many timers of a kind must keep to the limit together, or the kind counts as slow.
	// pawl_private.too_slow has the same number.
	suspectBatch = 20
)

// step makes a call of the fast lane.
func (t *Timers) step(ctx context.Context) (wait time.Duration, err error) {
	limit := fmt.Sprintf("%dms", t.config.Limit.Milliseconds())
	if t.unhurried {
		limit = ""
	}
	batch, byKind := t.batch, t.suspects > 0
	if byKind {
		batch = min(batch, suspectBatch)
	}
	var r queries.FireTimersRow
	err = database.Transact(ctx, t.pool, pgx.TxOptions{}, limit, func(q *queries.Queries) (err error) {
		r, err = q.FireTimers(ctx, queries.FireTimersParams{RowLimit: int32(batch), OneKind: byKind})
		return err
	})
	// If a call was cancelled before it came to a guard, reading takes longer than the limit, such as while a long
	// transaction keeps vacuum from an index.
	t.unhurried = database.IsCode(err, database.QueryCanceled) && !t.unhurried
	switch {
	case t.unhurried:
		return 0, nil
	case err != nil:
		return t.config.Poll, err
	case r.LookedAt < 0: // Another process fires.
		t.batch, t.suspects = t.config.Batch, 0
		return t.config.Poll, nil
	}
	if r.Fired > 0 {
		t.config.Fired()
	}
	if r.LookedAt > 0 {
		t.config.Logger.DebugContext(ctx, "timers", "looked_at", r.LookedAt, "fired", r.Fired, "late_seconds", r.LateSeconds)
	}
	if err := t.report(ctx, r.Failures); err != nil {
		return t.config.Poll, err
	}
	full := int(r.LookedAt) == batch
	switch {
	case byKind && r.LookedAt > 0:
		t.suspects -= int(r.LookedAt)
	case byKind:
		t.suspects = 0
	case r.TimedOut:
		t.suspects = batch
		t.batch = max(batch/2, min(suspectBatch, t.config.Batch))
	case full:
		t.batch = min(2*batch, t.config.Batch)
	default:
		t.batch = t.config.Batch
	}
	if full || r.TimedOut || byKind && r.LookedAt > 0 {
		return 0, nil
	}
	next := time.Duration(r.NextSeconds * float64(time.Second))
	return min(max(next, minWait), t.config.Poll), nil
}

// stepSlow makes a call of the slow lane.
func (t *Timers) stepSlow(ctx context.Context) (wait time.Duration, err error) {
	r, err := t.queries.FireSlowTimers(ctx)
	if err != nil {
		return t.config.Poll, err
	}
	if r.Fired > 0 {
		t.config.Fired()
	}
	if err := t.report(ctx, r.Failures); err != nil || r.LookedAt <= 0 {
		return t.config.Poll, err
	}
	return 0, nil
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
