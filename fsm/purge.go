package fsm

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/db/queries"
)

// PurgerConfig tunes a Purger. Its zero value works.
type PurgerConfig struct {
	// Batch is how many keys are deleted at once. Default 1000: some milliseconds of the
	// database's time, behind which no command waits for long.
	Batch int
	// Pause is the time between batches while there is more to delete. Default 25 ms.
	Pause time.Duration
	// Interval is the time between looks when there is not, give or take a quarter, so
	// that replicas that were started together do not look together. Default 10 s.
	Interval time.Duration
	// Logger is told when keys cannot be purged, and when they can again. Default: nobody.
	Logger *slog.Logger
}

func (c PurgerConfig) withDefaults() PurgerConfig {
	if c.Batch <= 0 {
		c.Batch = 1000
	}
	if c.Pause <= 0 {
		c.Pause = 25 * time.Millisecond
	}
	if c.Interval <= 0 {
		c.Interval = 10 * time.Second
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

// Purger deletes idempotency keys whose time to live has passed. Any number of them may
// share a database: each passes over what another, or a command, holds. One alone deletes
// up to Batch keys per Pause, some 30,000 in a second.
type Purger struct {
	queries *queries.Queries
	config  PurgerConfig
}

// NewPurger returns a Purger on a pool, of which it takes one connection at a time. The
// pool's statement_timeout bounds a batch.
func NewPurger(pool *pgxpool.Pool, config PurgerConfig) *Purger {
	return &Purger{queries: queries.New(pool), config: config.withDefaults()}
}

// Run purges until the context ends, and returns nil then. A database that is away is
// asked again after Interval.
func (p *Purger) Run(ctx context.Context) error {
	return repeat(ctx, p.config.Logger, "purging idempotency keys", p.step)
}

func (p *Purger) step(ctx context.Context) (wait time.Duration, err error) {
	purged, err := p.queries.PurgeKeys(ctx, int32(p.config.Batch))
	if int(purged) == p.config.Batch {
		return p.config.Pause, err
	}
	return p.config.Interval*3/4 + rand.N(p.config.Interval/2+1), err
}
