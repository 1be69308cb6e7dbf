package bench

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	// purgeFactor is the length of the measurement, in multiples of Config.Duration.
	purgeFactor = 6
	// purgedAfter is the life of a key while the purge is measured.
	purgedAfter = "2 seconds"
)

// measurePurge lets idempotency keys expire after two seconds, so that as many keys are purged as are
// made. It measures transitions for long enough to see whether the size of the table levels off.
func (b *benchmark) measurePurge(ctx context.Context) (err error) {
	before, err := b.measure(ctx, "before-purge", b.Duration, b.transitions(manyConnections))
	if err != nil {
		return err
	}
	var ttl string
	if err := b.conn.QueryRow(ctx, "select idempotency_ttl::text from pawl.setting").Scan(&ttl); err != nil {
		return err
	}
	set := func(ctx context.Context, ttl string) error {
		_, err := b.conn.Exec(ctx, "update pawl.setting set idempotency_ttl = $1::text::interval", ttl)
		return err
	}
	if err := set(ctx, purgedAfter); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, set(context.WithoutCancel(ctx), ttl)) }()
	// Autovacuum wakes once a minute by default, which is too seldom for such short-lived keys.
	if err := b.vacuumEvery(ctx, "1s"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.vacuumEvery(context.WithoutCancel(ctx), "")) }()

	const deleted = "select coalesce(sum(n_tup_del), 0)::bigint from pg_stat_user_tables where relid = 'pawl.idempotency_key'::regclass"
	var had, has int64
	if err := b.conn.QueryRow(ctx, deleted).Scan(&had); err != nil {
		return err
	}
	d := purgeFactor * b.Duration
	sampling, stop := context.WithCancel(ctx)
	sizes := make(chan []int64, 1)
	go func() { sizes <- b.sampleKeys(sampling, min(d/30, time.Second)) }()
	after, err := b.measure(ctx, "purge", d, b.transitions(manyConnections))
	stop()
	p := &purgeFigures{Sizes: <-sizes}
	if err != nil {
		return err
	}
	if err := b.conn.QueryRow(ctx, deleted).Scan(&has); err != nil {
		return err
	}
	if p99 := before.percentile(0.99); p99 > 0 {
		p.P99Ratio = after.percentile(0.99) / p99
	}
	p.Purged = has - had
	half := len(p.Sizes) / 2
	for i, size := range p.Sizes {
		if i < half {
			p.FirstHalf = max(p.FirstHalf, size)
		} else {
			p.SecondHalf = max(p.SecondHalf, size)
		}
	}
	b.report.Measurements[len(b.report.Measurements)-1].Purge = p
	b.remark("purge: %d keys were purged; p99 is %.2f times the p99 without a purge; the keys with their indexes took at most %.1f MB in the first half, %.1f MB in the second",
		p.Purged, p.P99Ratio, float64(p.FirstHalf)/1e6, float64(p.SecondHalf)/1e6)
	return nil
}

// vacuumEvery sets how often autovacuum wakes on the private server; "" resets it to the default. On
// a server that is given it does nothing.
func (b *benchmark) vacuumEvery(ctx context.Context, naptime string) error {
	if b.DatabaseURL != "" {
		return nil
	}
	sql := "alter system reset autovacuum_naptime"
	if naptime != "" {
		sql = "alter system set autovacuum_naptime = '" + naptime + "'"
	}
	if _, err := b.conn.Exec(ctx, sql); err != nil {
		return err
	}
	_, err := b.conn.Exec(ctx, "select pg_reload_conf()")
	return err
}

// sampleKeys returns the sizes of the keys with their indexes in bytes, read at intervals until the
// context ends.
func (b *benchmark) sampleKeys(ctx context.Context, every time.Duration) []int64 {
	sizes := []int64{}
	conn, err := pgx.Connect(ctx, b.dsn)
	if err != nil {
		return sizes
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	for {
		pause(ctx, every)
		var size int64
		if err := conn.QueryRow(ctx, "select pg_total_relation_size('pawl.idempotency_key')").Scan(&size); err != nil {
			return sizes
		}
		sizes = append(sizes, size)
	}
}
