package bench

import (
	"context"
	_ "embed"
	"time"
)

//go:embed sql/grow.sql
var growTables string

// The size of a grown database. sql/grow.sql makes ten steps and five keys for each instance. On 2
// cores that takes between two and three minutes, and 8 GB of disk with the WAL.
const (
	grownInstances = 1_000_000
	growAtOnce     = 50_000
	grownWarmUp    = 20 * time.Second
	grownDuration  = 10 * time.Second
)

// measureGrown fills the tables and fires at instances from all over them. Both of its measurements
// follow a checkpoint. After a checkpoint the first change of each page writes the whole page to the
// WAL, so the warm-up is long enough for most pages to have been written once.
func (b *benchmark) measureGrown(ctx context.Context) error {
	if _, err := b.conn.Exec(ctx, "checkpoint"); err != nil {
		return err
	}
	if _, err := b.measureAfter(ctx, "before-grown", grownWarmUp, grownDuration, b.transitions(manyConnections)); err != nil {
		return err
	}
	var have int
	if err := b.conn.QueryRow(ctx, "select count(*) from pawl.instance").Scan(&have); err != nil {
		return err
	}
	for missing, n := grownInstances-have, 0; n < missing; n += growAtOnce {
		last := min(n+growAtOnce, missing)
		if _, err := b.conn.Exec(ctx, growTables, n+1, last, missing); err != nil {
			return err
		}
		b.Logger.Info("growing", "instances", have+last)
	}
	for _, sql := range []string{
		"vacuum (analyze) pawl.instance, pawl.history, pawl.idempotency_key", "checkpoint",
	} {
		if _, err := b.conn.Exec(ctx, sql); err != nil {
			return err
		}
	}
	var err error
	if b.ids, err = b.readIDs(ctx, "select id::text from pawl.instance order by random() limit $1", b.Instances); err != nil {
		return err
	}
	_, err = b.measureAfter(ctx, "grown", grownWarmUp, grownDuration, b.transitions(manyConnections))
	return err
}
