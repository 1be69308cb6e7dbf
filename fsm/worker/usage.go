package worker

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/db/session"
)

// UsageCounter counts the open instances and the storage of tenants that have a limit on them. Each tenant is counted
// again five seconds after its last count. Any number of UsageCounters may share a database: each skips the tenant that
// another one counts.
type UsageCounter struct {
	queries *queries.Queries
	config  BatchConfig
}

// NewUsageCounter returns a UsageCounter on a pool, of which it takes one connection at a time. A batch is of 5000 rows
// by default, and takes the database some milliseconds. The default Interval is 1 s.
func NewUsageCounter(pool *pgxpool.Pool, config BatchConfig) *UsageCounter {
	return &UsageCounter{queries: queries.New(session.Pool(pool)), config: config.withDefaults(5000, time.Second)}
}

// Run counts until the context ends, and then returns nil. After a failure it tries again after Interval.
func (u *UsageCounter) Run(ctx context.Context) error {
	return Repeat(ctx, u.config.Logger, "counting what tenants use", u.step)
}

func (u *UsageCounter) step(ctx context.Context) (wait time.Duration, err error) {
	if more, err := u.queries.CountUsage(ctx, int32(u.config.Batch)); err != nil || !more {
		return around(u.config.Interval), err
	}
	return u.config.Pause, nil
}
