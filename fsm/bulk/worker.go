package bulk

import (
	"context"
	"encoding/json"
	"log/slog"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/db/session"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/definition"
	"github.com/pawl-fsm/pawl/fsm/worker"
)

// WorkerConfig tunes a Worker. Its zero value works.
type WorkerConfig struct {
	// Batch is the largest number of instances in a call. Commands for these instances wait for it, so a call that
	// takes long is followed by one with fewer. Default 250.
	Batch int
	// Poll is the longest time between two calls while nothing is to be done. Default 250 ms.
	Poll time.Duration
	// Keep is how long a bulk that has ended is kept with its items. Default 30 days.
	Keep time.Duration
	// Moved, if given, is called with the instances that a call has moved or removed.
	Moved func(ids []uuid.UUID)
	// Logger gets a line when the work fails, and one when it succeeds again. Default: none.
	Logger *slog.Logger
}

func (c WorkerConfig) withDefaults() WorkerConfig {
	if c.Batch <= 0 {
		c.Batch = 250
	}
	if c.Poll <= 0 {
		c.Poll = 250 * time.Millisecond
	}
	if c.Keep <= 0 {
		c.Keep = 30 * 24 * time.Hour
	}
	if c.Moved == nil {
		c.Moved = func([]uuid.UUID) {}
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

// A Worker carries bulks out. Any number of Workers may share a database: each has another bulk at a time.
type Worker struct {
	queries *queries.Queries
	schemas *definition.Schemas
	config  WorkerConfig
}

// NewWorker returns a Worker on a pool, of which it takes one connection at a time. The pool's statement_timeout bounds
// a call. The checks of payloads share the limits of the service.
func NewWorker(pool *pgxpool.Pool, service *fsm.Service, config WorkerConfig) *Worker {
	return &Worker{queries: queries.New(session.Pool(pool)), schemas: service.Schemas(), config: config.withDefaults()}
}

// Run works until the context ends, and then returns nil.
func (w *Worker) Run(ctx context.Context) error {
	var purging sync.WaitGroup
	defer purging.Wait()
	purging.Go(func() { _ = worker.Repeat(ctx, w.config.Logger, "purging bulks", w.purge) })
	return worker.Repeat(ctx, w.config.Logger, "working on bulks", w.step)
}

// step makes one call, and checks what the call asks to check.
func (w *Worker) step(ctx context.Context) (wait time.Duration, err error) {
	r, err := w.queries.BulkStep(ctx, int32(w.config.Batch))
	if err != nil {
		return w.config.Poll, err
	}
	if r.LookedAt < 0 {
		return min(max(time.Duration(r.NextSeconds*float64(time.Second)), time.Millisecond), w.config.Poll), nil
	}
	if r.Unchecked != nil {
		return 0, w.check(ctx, r)
	}
	if len(r.Moved) > 0 {
		w.config.Moved(r.Moved)
	}
	return 0, nil
}

// unchecked is a payload to check, or a context after a patch, which must fit if the context before it does.
type unchecked struct{ Schema, Payload, Before, After json.RawMessage }

// check checks payloads and contexts, and records their faults.
func (w *Worker) check(ctx context.Context, r queries.BulkStepRow) error {
	var documents map[string]unchecked
	if err := json.Unmarshal(r.Unchecked, &documents); err != nil {
		return err
	}
	checks := make(map[string][]fault, len(documents))
	for checksum, d := range documents {
		faults, err := w.faults(ctx, d)
		if err != nil {
			return err
		}
		checks[checksum] = faults
	}
	text, err := json.Marshal(checks)
	if err != nil {
		return err
	}
	return w.queries.BulkCheck(ctx, queries.BulkCheckParams{Tenant: r.Tenant, ID: r.Bulk, Checks: text})
}

// fault is a part of a document that does not fit its schema.
type fault struct {
	Pointer string `json:"pointer"`
	Detail  string `json:"detail"`
}

// faults returns the faults of a document, nil if it may be as it is.
func (w *Worker) faults(ctx context.Context, d unchecked) ([]fault, error) {
	document, pointer := d.Payload, "/payload"
	if d.After != nil {
		document, pointer = d.After, "/context_patch"
	}
	_, faults, err := w.schemas.Check(ctx, d.Schema, document, pointer)
	if err == nil && len(faults) > 0 && d.Before != nil {
		var before []definition.Fault
		if _, before, err = w.schemas.Check(ctx, d.Schema, d.Before, pointer); len(before) > 0 {
			faults = nil // It has not fitted before either.
		}
	}
	if err != nil || len(faults) == 0 {
		return nil, err
	}
	list := make([]fault, len(faults))
	for i, f := range faults {
		list[i] = fault{f.Pointer, f.Detail}
	}
	return list, nil
}

// purge deletes bulks that ended long ago, some items at a time.
func (w *Worker) purge(ctx context.Context) (wait time.Duration, err error) {
	const limit = 1000
	n, err := w.queries.BulkPurge(ctx, queries.BulkPurgeParams{
		Age: pgtype.Interval{Microseconds: w.config.Keep.Microseconds(), Valid: true}, RowLimit: limit,
	})
	if err != nil || n == 0 {
		return time.Hour, err
	}
	return 0, nil
}
