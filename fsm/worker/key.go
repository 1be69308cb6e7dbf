package worker

import (
	"context"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/db/session"
)

// KeyPurgerConfig tunes a KeyPurger. Its zero value works.
type KeyPurgerConfig struct {
	// Batch is how many keys are purged at once. A batch takes the database some milliseconds. Default
	// 1000.
	Batch int
	// Pause is the time between batches while there may be more to purge. Default 25 ms.
	Pause time.Duration
	// Interval is the time between batches otherwise. It varies by a quarter, so that replicas that were
	// started together do not look together. Default 10 s.
	Interval time.Duration
	// Logger gets a line when keys cannot be purged, and one when they can again. Default: none.
	Logger *slog.Logger
}

func (c KeyPurgerConfig) withDefaults() KeyPurgerConfig {
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

// KeyPurger purges idempotency keys whose time to live has passed. Any number of KeyPurgers may share a
// database: each skips what another transaction has locked. One alone purges about 30,000 keys a second at
// most: a Batch after each Pause.
type KeyPurger struct {
	queries *queries.Queries
	config  KeyPurgerConfig
}

// NewKeyPurger returns a KeyPurger on a pool, of which it takes one connection at a time. The pool's
// statement_timeout bounds a batch.
func NewKeyPurger(pool *pgxpool.Pool, config KeyPurgerConfig) *KeyPurger {
	return &KeyPurger{queries: queries.New(session.Pool(pool)), config: config.withDefaults()}
}

// Run purges until the context ends, and then returns nil. After a failure it tries again after Interval.
func (p *KeyPurger) Run(ctx context.Context) error {
	return Repeat(ctx, p.config.Logger, "purging idempotency keys", p.step)
}

func (p *KeyPurger) step(ctx context.Context) (wait time.Duration, err error) {
	purged, err := p.queries.PurgeKeys(ctx, int32(p.config.Batch))
	if int(purged) == p.config.Batch {
		return p.config.Pause, err
	}
	return around(p.config.Interval), err
}
