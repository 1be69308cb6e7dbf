package worker

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/db/session"
)

// KeyPurger purges idempotency keys whose time to live has passed. Any number of KeyPurgers may share a
// database: each skips what another transaction has locked. One alone purges about 30,000 keys a second at
// most: a Batch after each Pause.
type KeyPurger struct {
	queries *queries.Queries
	config  BatchConfig
}

// NewKeyPurger returns a KeyPurger on a pool, of which it takes one connection at a time. The pool's
// statement_timeout bounds a batch, which is of 1000 keys by default and takes the database some milliseconds. The
// default Interval is 10 s.
func NewKeyPurger(pool *pgxpool.Pool, config BatchConfig) *KeyPurger {
	return &KeyPurger{queries: queries.New(session.Pool(pool)), config: config.withDefaults(1000, 10*time.Second)}
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
