package bench

import (
	"cmp"
	"context"
	"slices"
	"time"
)

// The loads of a pair are measured in slices that take turns, so that other work on the machine disturbs
// all of them alike.
const pairSlices = 4

// side is one of the loads of a pair. load returns the load of the next slice, with new idempotency
// keys.
type side struct {
	name string
	load func() *load
	ids  []string
}

// measurePair measures loads in turns, each for b.Duration in total.
func (b *benchmark) measurePair(ctx context.Context, sides ...side) error {
	d := b.Duration / pairSlices
	start := time.Now()
	sums, used := make([]loadResult, len(sides)), make([]reading, len(sides))
	loads := make([]*load, len(sides))
	for i := range used {
		used[i].at = start
	}
	process := b.meter.service
	defer func() { b.meter.service = process }()
	resetPeakRSS(process)
	for range pairSlices {
		for i, s := range sides {
			loads[i] = s.load()
			b.meter.service = cmp.Or(loads[i].process, process)
			r, before, after, err := b.observe(ctx, loads[i], s.ids, b.warmUp(d), d)
			if err != nil {
				return err
			}
			sums[i].add(r)
			sums[i].elapsed += r.elapsed
			used[i] = used[i].plus(before, after)
		}
	}
	for i, s := range sides {
		slices.Sort(sums[i].latencies)
		b.meter.service = cmp.Or(loads[i].process, process)
		b.add(s.name, loads[i], &sums[i], reading{at: start}, used[i])
	}
	return nil
}

// plus adds what was used between the readings before and after.
func (r reading) plus(before, after reading) reading {
	sum := func(r, before, after float64) float64 {
		if r < 0 || before < 0 || after < 0 {
			return -1
		}
		return r + after - before
	}
	return reading{
		service: sum(r.service, before.service, after.service), postgres: sum(r.postgres, before.postgres, after.postgres),
		load: sum(r.load, before.load, after.load), machine: sum(r.machine, before.machine, after.machine),
		at: r.at.Add(after.at.Sub(before.at)), wal: sum(r.wal, before.wal, after.wal),
		transactions: sum(r.transactions, before.transactions, after.transactions),
	}
}
