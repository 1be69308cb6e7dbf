package bench

import (
	"context"
	"slices"
	"strconv"
)

// overloadFactor is the number of connections of an overload for each place in the queue.
const overloadFactor = 10

// measureOverload fires from ten times as many connections as the service's queue has places. Before
// and after, it measures the same process with the usual number of connections.
func (b *benchmark) measureOverload(ctx context.Context) error {
	places := max(manyConnections, slices.Max(b.Connections))
	if err := b.restartService(ctx, "PAWL_MAX_QUEUE="+strconv.Itoa(places)); err != nil {
		return err
	}
	if _, err := b.measure(ctx, "before-overload", b.Duration/2, b.transitions(manyConnections)); err != nil {
		return err
	}
	if _, err := b.measure(ctx, "overload", b.Duration, b.transitions(overloadFactor*places)); err != nil {
		return err
	}
	if _, err := b.measure(ctx, "after-overload", b.Duration/2, b.transitions(manyConnections)); err != nil {
		return err
	}
	return b.restartService(ctx)
}
