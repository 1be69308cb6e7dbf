package worker

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/db/session"
)

// WatcherConfig tunes a Watcher. Its zero value works.
type WatcherConfig struct {
	BatchConfig
	// Healed, if given, is called after a call that moved instances, or had their tasks go on. It does not say which ones.
	Healed func()
}

// Watcher looks for instances that are stuck, and for tasks and deliveries that ended badly, and opens and closes findings.
// Then it does what definitions say about instances that are stuck. It sees what the consumer "insight" has folded: without
// one it finds nothing. Any number of Watchers may share a database: one at a time looks or heals, and none so soon after
// another.
type Watcher struct {
	queries *queries.Queries
	config  WatcherConfig
}

// NewWatcher returns a Watcher on a pool, of which it takes one connection at a time. A batch is of 1000 rows by default,
// of each kind, and takes the database up to a tenth of a second; of instances to heal it is a tenth of that. The default
// Interval is 5 s.
func NewWatcher(pool *pgxpool.Pool, config WatcherConfig) *Watcher {
	config.BatchConfig = config.withDefaults(1000, 5*time.Second)
	if config.Healed == nil {
		config.Healed = func() {}
	}
	return &Watcher{queries: queries.New(session.Pool(pool)), config: config}
}

// Run looks until the context ends, and then returns nil. After a failure it tries again after Interval.
func (w *Watcher) Run(ctx context.Context) error {
	return Repeat(ctx, w.config.Logger, "looking for what is stuck", w.step)
}

func (w *Watcher) step(ctx context.Context) (wait time.Duration, err error) {
	// The intervals vary by a quarter.
	every := pgtype.Interval{Microseconds: (w.config.Interval / 2).Microseconds(), Valid: true}
	look, err := w.queries.FindingLook(ctx, queries.FindingLookParams{RowLimit: int32(w.config.Batch), Every: every})
	switch {
	case err != nil:
		return around(w.config.Interval), err
	case look.More:
		return w.config.Pause, nil
	}
	healed, err := w.queries.Heal(ctx, queries.HealParams{RowLimit: int32(max(w.config.Batch/10, 1)), Every: every})
	if healed.Applied > 0 {
		w.config.Healed()
	}
	if err != nil || !healed.More {
		return around(w.config.Interval), err
	}
	return w.config.Pause, nil
}
