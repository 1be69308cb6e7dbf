package telemetry

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

// A tracer measures the calls of a pool's connections.
type tracer struct {
	took           metric.Float64Histogram
	answer, failed metric.MeasurementOption
}

// Tracer returns what measures the calls of a pool, which the metrics show under a name.
func (t *Telemetry) Tracer(pool string) pgx.QueryTracer {
	of := func(result string) metric.MeasurementOption {
		return metric.WithAttributeSet(attribute.NewSet(attribute.String("pool", pool), attribute.String("result", result)))
	}
	return &tracer{took: t.database, answer: of("answer"), failed: of("error")}
}

type beganKey struct{}

// TraceQueryStart notes when a call begins.
func (t *tracer) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	return context.WithValue(ctx, beganKey{}, time.Now())
}

// TraceQueryEnd measures a call that has ended.
func (t *tracer) TraceQueryEnd(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryEndData) {
	began, ok := ctx.Value(beganKey{}).(time.Time)
	if !ok {
		return
	}
	result := t.answer
	if data.Err != nil {
		result = t.failed
	}
	t.took.Record(context.Background(), time.Since(began).Seconds(), result)
}

// Pools are pools of connections, by their names.
type Pools map[string]*pgxpool.Pool

// Show shows the connections of pools.
func (t *Telemetry) Show(pools Pools) error {
	connections, err := t.meter.Int64ObservableGauge("pawl.pool.connections", metric.WithDescription("Connections to the database, by pool and state; max is how many there may be."))
	if err != nil {
		return err
	}
	waits, err := t.meter.Float64ObservableCounter("pawl.pool.wait", metric.WithUnit("s"), metric.WithDescription("Time spent waiting for a connection."))
	if err != nil {
		return err
	}
	acquires, err := t.meter.Int64ObservableCounter("pawl.pool.acquires", metric.WithDescription("Connections that were taken from a pool, and of these the ones that had to be waited for."))
	if err != nil {
		return err
	}
	_, err = t.meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		for name, pool := range pools {
			s := pool.Stat()
			with := func(key, value string) metric.MeasurementOption {
				return metric.WithAttributes(attribute.String("pool", name), attribute.String(key, value))
			}
			o.ObserveInt64(connections, int64(s.AcquiredConns()), with("state", "used"))
			o.ObserveInt64(connections, int64(s.IdleConns()), with("state", "idle"))
			o.ObserveInt64(connections, int64(s.MaxConns()), with("state", "max"))
			o.ObserveInt64(acquires, s.AcquireCount()-s.EmptyAcquireCount(), with("waited", "no"))
			o.ObserveInt64(acquires, s.EmptyAcquireCount(), with("waited", "yes"))
			o.ObserveFloat64(waits, s.EmptyAcquireWaitTime().Seconds(), metric.WithAttributes(attribute.String("pool", name)))
		}
		return nil
	}, connections, waits, acquires)
	return err
}

// TraceBatchStart is TraceQueryStart for a batch, which calls behind a pooler are.
func (t *tracer) TraceBatchStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceBatchStartData) context.Context {
	return t.TraceQueryStart(ctx, nil, pgx.TraceQueryStartData{})
}

// TraceBatchQuery does nothing: the batch is measured as a whole.
func (t *tracer) TraceBatchQuery(context.Context, *pgx.Conn, pgx.TraceBatchQueryData) {}

// TraceBatchEnd is TraceQueryEnd for a batch.
func (t *tracer) TraceBatchEnd(ctx context.Context, _ *pgx.Conn, data pgx.TraceBatchEndData) {
	t.TraceQueryEnd(ctx, nil, pgx.TraceQueryEndData{Err: data.Err})
}
