package worker

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/db/session"
	"github.com/pawl-fsm/pawl/fsm/internal/final"
)

// InstancePurger purges final instances that are older than the retention of their workflow's latest
// version, each with its history and its expired keys. An instance that a key still replays stays until
// the key has expired. Any number of InstancePurgers may share a database: each skips what another
// transaction has locked.
type InstancePurger struct {
	pool    *pgxpool.Pool
	queries *queries.Queries
	config  BatchConfig
	pass    final.Pass
}

// NewInstancePurger returns an InstancePurger on a pool, of which it takes one connection at a time. A batch is of 200
// instances by default, or fewer if they have more than 20 steps each, and takes the database some tens of milliseconds.
// The default Interval is 1 min.
func NewInstancePurger(pool *pgxpool.Pool, config BatchConfig) *InstancePurger {
	return &InstancePurger{pool: pool, queries: queries.New(session.Pool(pool)), config: config.withDefaults(200, time.Minute)}
}

// Run purges until the context ends, and then returns nil. If it cannot read which instances to purge, it
// tries again after Interval.
func (p *InstancePurger) Run(ctx context.Context) error {
	return Repeat(ctx, p.config.Logger, "purging final instances", p.step)
}

func (p *InstancePurger) step(ctx context.Context) (wait time.Duration, err error) {
	page, err := p.pass.Next(ctx, p.queries, p.config.Batch)
	if err != nil {
		return around(p.config.Interval), err
	}
	if len(page.IDs) > 0 {
		// After a failure the pass goes on: the instances behind these may be purged.
		purged, err := page.Purge(ctx, p.pool)
		if err != nil {
			return p.config.Pause, err
		}
		p.config.Logger.DebugContext(ctx, "instances", "looked_at", len(page.IDs), "purged", len(purged))
	}
	if page.Last {
		return around(p.config.Interval), nil
	}
	return p.config.Pause, nil
}
