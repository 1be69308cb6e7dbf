package bench

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
)

const (
	batchConnections = 8
	perBatch         = 100
	replayedKeys     = 10_000 // At most.
)

// measureTransitions fires transitions at each number of connections, each followed by its
// references.
func (b *benchmark) measureTransitions(ctx context.Context) error {
	for _, n := range b.Connections {
		if _, err := b.measure(ctx, "transitions", b.Duration, b.transitions(n)); err != nil {
			return err
		}
		if b.pgbench == nil || !b.wants("references") {
			continue
		}
		if err := b.measureReferences(ctx, n); err != nil {
			return err
		}
	}
	return nil
}

// measureReferences runs pgbench with as many connections as the transitions just had. A reference
// that fails is left out with a remark.
func (b *benchmark) measureReferences(ctx context.Context, connections int) error {
	transitions := b.report.Measurements[len(b.report.Measurements)-1]
	for _, s := range references() {
		before := b.meter.read(ctx)
		r, err := b.pgbench.measure(ctx, s, connections, b.Duration, b.keys(), b.Instances/connections)
		if ctx.Err() != nil {
			return err
		}
		if err != nil {
			b.remark("There is no reference %s at %d: %v", s.name, connections, err)
			continue
		}
		after := b.meter.read(ctx)
		r.usage = b.meter.since(before, after, r.Operations)
		r.ServiceCPU, r.PeakRSS = nil, nil // The service was idle.
		if r.Rate > 0 {
			r.Ratio = new(transitions.Rate / r.Rate)
		}
		b.report.References = append(b.report.References, r)
		b.referenceRow(r)
		b.remarkDisturbance(r.label(), before, after)
	}
	b.report.compare(transitions)
	return nil
}

// measureCreates creates an instance with each request.
func (b *benchmark) measureCreates(ctx context.Context) error {
	keys, body := b.keys(), []byte(createBody)
	_, err := b.measure(ctx, "creates", b.Duration, &load{
		connections: manyConnections,
		write:       func(c *client, i int) { c.post(createPath, "", "", keys, i, body) },
		applied:     status(http.StatusCreated),
	})
	return err
}

// measureBatch fires transitions through POST /v1/batch.
func (b *benchmark) measureBatch(ctx context.Context) error {
	keys := b.keys()
	_, err := b.measure(ctx, "batch", b.Duration, &load{
		connections: batchConnections,
		write: func(c *client, i int) {
			c.batch(i*perBatch, (i+1)*perBatch, func(n int) {
				c.body = append(c.body, `{"op":"fire","event":"go","payload":{"n":1},"instance_id":"`...)
				c.body = append(append(c.body, c.id(n)...), `","key":"`...)
				c.body = append(c.key(c.body, keys, n), `"}`...)
			})
		},
		applied: func(a *answer) int {
			if n := bytes.Count(a.body, []byte(`"status":200`)); n == perBatch {
				return n
			}
			return 0
		},
	})
	return err
}

// measureReplays fires a number of transitions, and then sends the same requests with the same keys
// again and again. Only an answer that is marked as a replay counts.
func (b *benchmark) measureReplays(ctx context.Context) error {
	l := b.transitions(manyConnections)
	each := min(replayedKeys, b.Instances)/manyConnections + 1
	l.requests = func(int) int { return each }
	first, err := l.run(ctx, b.service.address, b.ids, 0, b.Duration, nil, nil)
	if err != nil {
		return err
	}
	if first.errors+first.refused > 0 {
		b.remark("replays: %d of the first requests failed: %s", first.errors+first.refused, first.firstError)
	}
	write := l.write
	l.requests = nil
	l.write = func(c *client, i int) { write(c, i%each) }
	l.applied = func(a *answer) int {
		if a.status != http.StatusOK || !a.replayed {
			return 0
		}
		return 1
	}
	_, err = b.measure(ctx, "replays", b.Duration, l)
	return err
}

// measureReads reads instances by their ids.
func (b *benchmark) measureReads(ctx context.Context) error {
	_, err := b.measure(ctx, "reads", b.Duration, &load{
		connections: manyConnections,
		write:       func(c *client, i int) { c.get(instancesPath, c.id(i)) },
		applied:     status(http.StatusOK),
	})
	return err
}

// measureMixed has one transition among five requests; the others are reads.
func (b *benchmark) measureMixed(ctx context.Context) error {
	l := b.transitions(manyConnections)
	fire := l.write
	l.write = func(c *client, i int) {
		if (c.number+i)%5 == 0 {
			fire(c, i)
		} else {
			c.get(instancesPath, c.id(i))
		}
	}
	_, err := b.measure(ctx, "mixed", b.Duration, l)
	return err
}

// measureHot has all clients fire at one new instance. Afterwards the instance must have made a step
// for each answer, and no other. A request that failed may or may not have made one.
func (b *benchmark) measureHot(ctx context.Context) error {
	hot, err := b.createOne(ctx)
	if err != nil {
		return err
	}
	keys, body := b.keys(), []byte(fireBody)
	result, err := b.measure(ctx, "hot", b.Duration, &load{
		connections: manyConnections,
		write:       func(c *client, i int) { c.post(instancesPath, hot, firePath, keys, i, body) },
		applied:     status(http.StatusOK),
	})
	if err != nil {
		return err
	}
	var made, steps int
	err = b.conn.QueryRow(ctx, `
		select i.version - 1, (select count(*) - 1 from pawl.history h where h.tenant_id = i.tenant_id and h.instance_id = i.id)
		from pawl.instance i where i.tenant_id = 'default' and i.id = $1`, hot).Scan(&made, &steps)
	if err != nil {
		return err
	}
	if made != steps || made < result.all || made > result.all+result.errors {
		return fmt.Errorf("the instance made %d steps and its history has %d, but %d were answered (%d errors)",
			made, steps, result.all, result.errors)
	}
	return nil
}
