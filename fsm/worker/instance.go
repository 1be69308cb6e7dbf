package worker

import (
	"context"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/db/session"
	"github.com/pawl-fsm/pawl/fsm/internal/final"
)

// InstancePurgerConfig tunes an InstancePurger. Its zero value works.
type InstancePurgerConfig struct {
	// Batch is how many instances are purged at once, or fewer if they have more than 20 steps each. A
	// batch takes the database some tens of milliseconds. Default 200.
	Batch int
	// Pause is the time between batches. Default 25 ms.
	Pause time.Duration
	// Interval is the time between passes. It varies by a quarter, so that replicas that were started
	// together do not look together. Default 1 min.
	Interval time.Duration
	// Logger gets a line when instances cannot be purged, and one when they can again. Default: none.
	Logger *slog.Logger
}

func (c InstancePurgerConfig) withDefaults() InstancePurgerConfig {
	if c.Batch <= 0 {
		c.Batch = 200
	}
	if c.Pause <= 0 {
		c.Pause = 25 * time.Millisecond
	}
	if c.Interval <= 0 {
		c.Interval = time.Minute
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

// InstancePurger purges final instances that are older than the retention of their workflow's latest
// version, each with its history and its expired keys. An instance that a key still replays stays until
// the key has expired. Any number of InstancePurgers may share a database: each skips what another
// transaction has locked.
type InstancePurger struct {
	pool    *pgxpool.Pool
	queries *queries.Queries
	config  InstancePurgerConfig
	pass    final.Pass
}

// NewInstancePurger returns an InstancePurger on a pool, of which it takes one connection at a time.
func NewInstancePurger(pool *pgxpool.Pool, config InstancePurgerConfig) *InstancePurger {
	return &InstancePurger{pool: pool, queries: queries.New(session.Pool(pool)), config: config.withDefaults()}
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
