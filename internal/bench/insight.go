package bench

import (
	"context"
	"errors"
	"strings"
	"time"
)

// measureInsight fires events while the service folds the log into sums, and while it does not. Between the slices it
// folds what was not folded meanwhile.
func (b *benchmark) measureInsight(ctx context.Context) error {
	ids, err := b.instancesOf(ctx, "bench-insight", []byte(strings.Replace(string(workflow), `"bench"`, `"bench-insight"`, 1)))
	if err != nil {
		return err
	}
	var faults error
	sideOf := func(name string, before func(context.Context) error) side {
		return side{name, func() *load {
			faults = errors.Join(faults, before(ctx))
			return b.transitions(manyConnections)
		}, ids}
	}
	err = b.measurePair(ctx, sideOf("unfolded", b.stopFolding), sideOf("folded", b.resumeFolding))
	return errors.Join(err, faults)
}

// stopFolding waits until everything is folded, and takes the lease of the folder.
func (b *benchmark) stopFolding(ctx context.Context) error {
	if err := b.awaitFolding(ctx); err != nil {
		return err
	}
	_, err := b.conn.Exec(ctx, `
		update pawl.consumer set leader = 'bench', term = term + 1, lease_until = pawl.now() + interval '1 hour' where name = 'insight'`)
	return err
}

// resumeFolding gives the lease back, and waits until everything is folded.
func (b *benchmark) resumeFolding(ctx context.Context) error {
	if _, err := b.conn.Exec(ctx, "update pawl.consumer set lease_until = 'epoch' where name = 'insight' and leader = 'bench'"); err != nil {
		return err
	}
	return b.awaitFolding(ctx)
}

func (b *benchmark) awaitFolding(ctx context.Context) error {
	return b.awaitFoldingWithin(ctx, drainWithin)
}

func (b *benchmark) awaitFoldingWithin(ctx context.Context, most time.Duration) error {
	ctx, cancel := context.WithTimeoutCause(ctx, most, errors.New("the log is not folded in time"))
	defer cancel()
	for {
		var folded bool
		err := b.conn.QueryRow(ctx, `
			select coalesce(bool_and(c.position = h.position and c.leader <> 'bench'), false)
				and not exists (select from pawl.log_head h, pawl_private.steps_between(h.snapshot, pg_current_snapshot(), h.first_seq))
			from pawl.consumer c, pawl.log_head h where c.name = 'insight'`).Scan(&folded)
		if err != nil {
			return errors.Join(err, context.Cause(ctx))
		}
		if folded {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(10 * time.Millisecond):
		}
	}
}
