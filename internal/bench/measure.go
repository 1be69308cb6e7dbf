package bench

import (
	"cmp"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"time"
)

//go:embed sql/check.sql
var countInconsistent string

const (
	// manyConnections is the number of connections of the measurements that are not made with
	// Config.Connections.
	manyConnections = 64
	// disturbing is the share of the CPUs above which the work of other processes is reported.
	disturbing = 0.1
)

// The requests of the loads.
const (
	instancesPath = "/v1/instances/"
	createPath    = "/v1/workflows/bench/instances"
	createBody    = `{"context":{"n":1}}`
	firePath      = "/actions/go"
	fireBody      = `{"payload":{"n":1}}`
)

// part is a part of a run that Config.Only can name.
type part struct {
	name    string
	measure func(*benchmark, context.Context) error // Nil if it is measured elsewhere.
}

// parts are the parts of a run in their order.
func parts() []part {
	return []part{
		{"transitions", (*benchmark).measureTransitions},
		{"references", nil}, // Measured right after the transitions that they belong to.
		{"creates", (*benchmark).measureCreates},
		{"batch", (*benchmark).measureBatch},
		{"replays", (*benchmark).measureReplays},
		{"reads", (*benchmark).measureReads},
		{"hot", (*benchmark).measureHot},
		{"tenants", (*benchmark).measureTenants},
		{"tokens", (*benchmark).measureTokens},
		{"schemas", (*benchmark).measureSchemas},
		{"values", (*benchmark).measureValues},
		{"first-call", (*benchmark).measureFirstCalls},
		{"mixed", (*benchmark).measureMixed},
		{"purge", (*benchmark).measurePurge},
		{"relay", (*benchmark).measureRelay},
		{"longpoll", (*benchmark).measureLongPolls},
		{"webhooks", (*benchmark).measureWebhooks},
		{"work", (*benchmark).measureWork},
		{"invoke", (*benchmark).measureInvoke},
		{"untasked", (*benchmark).measureUntasked},
		{"insight", (*benchmark).measureInsight},
		{"spans", (*benchmark).measureSpans},
		{"neighbours", (*benchmark).measureNeighbours},
		{"bulk", (*benchmark).measureBulk},
		{"fairness", (*benchmark).measureFairness},
		{"overload", (*benchmark).measureOverload},
		{"find", nil}, // Measured last, since it makes the tables large and stops the service.
	}
}

// Names returns the names that Config.Only takes, in the order in which they are measured.
func Names() []string {
	var names []string
	for _, p := range parts() {
		names = append(names, p.name)
	}
	return names
}

// wants reports whether a part is to be measured.
func (b *benchmark) wants(name string) bool { return len(b.Only) == 0 || slices.Contains(b.Only, name) }

// measureAll makes the measurements. It goes on after a fault of one of them, but not after the context
// has ended.
func (b *benchmark) measureAll(ctx context.Context) error {
	var faults error
	for _, p := range parts() {
		if p.measure == nil || !b.wants(p.name) {
			continue
		}
		if err := p.measure(b, ctx); err != nil {
			faults = errors.Join(faults, fmt.Errorf("%s: %w", p.name, err))
		}
		if ctx.Err() != nil {
			return faults
		}
	}
	if b.Workflows > 0 {
		if err := b.measureWorkflows(ctx); err != nil {
			faults = errors.Join(faults, fmt.Errorf("workflows: %w", err))
		}
	}
	if b.Grown {
		faults = errors.Join(faults, b.measureGrown(ctx))
	}
	if b.wants("find") && ctx.Err() == nil {
		if err := b.measureFind(ctx); err != nil {
			faults = errors.Join(faults, fmt.Errorf("find: %w", err))
		}
	}
	return faults
}

// warmUp is a fifth of a measurement, at least 100 ms and at most a second.
func (b *benchmark) warmUp(d time.Duration) time.Duration {
	return min(max(d/5, minDuration), time.Second)
}

// measure runs a load after a warm-up, prints its figures, and adds them to the report.
func (b *benchmark) measure(ctx context.Context, name string, d time.Duration, l *load) (*loadResult, error) {
	return b.measureAfter(ctx, name, b.warmUp(d), d, l)
}

// measureAfter is measure with a warm-up of another length.
func (b *benchmark) measureAfter(ctx context.Context, name string, warmUp, d time.Duration, l *load) (*loadResult, error) {
	resetPeakRSS(b.meter.service)
	result, before, after, err := b.observe(ctx, l, b.ids, warmUp, d)
	if err != nil {
		return nil, err
	}
	b.add(name, l, result, before, after)
	return result, nil
}

// observe runs a load after a warm-up, and reads the meter before and after the time that is measured.
func (b *benchmark) observe(
	ctx context.Context, l *load, ids []string, warmUp, d time.Duration,
) (result *loadResult, before, after reading, err error) {
	result, err = l.run(ctx, cmp.Or(l.address, b.service.address), ids, warmUp, d,
		func() { before = b.meter.read(ctx) }, func() { after = b.meter.read(ctx) })
	return result, before, after, err
}

// add prints the figures of a load, and adds them to the report.
func (b *benchmark) add(name string, l *load, result *loadResult, before, after reading) *measurement {
	m := &measurement{
		Name: name, Connections: l.connections, Rate: result.rate(),
		P50: result.percentile(0.5), P95: result.percentile(0.95), P99: result.percentile(0.99), Max: result.percentile(1),
		Operations: result.operations, Errors: result.errors, Refused: result.refused, FirstError: result.firstError,
		usage: b.meter.since(before, after, result.operations),
	}
	b.report.compare(m)
	b.report.Measurements = append(b.report.Measurements, m)
	b.row(m)
	b.remarkDisturbance(m.label(), before, after)
	return m
}

// remarkDisturbance adds a remark if other processes used much of the machine.
func (b *benchmark) remarkDisturbance(label string, before, after reading) {
	if share := others(before, after); share > disturbing {
		b.remark("%s: other processes used %.0f %% of the CPUs during the measurement", label, share*100)
	}
}

// keys returns a prefix of idempotency keys that no other load has.
func (b *benchmark) keys() string {
	b.runs++
	return b.run + "-" + strconv.Itoa(b.runs)
}

// status makes every answer with a status one operation.
func status(want int) func(*answer) int {
	return func(a *answer) int {
		if a.status != want {
			return 0
		}
		return 1
	}
}

// transitions is the load that fires one event after the other, each with a new key.
func (b *benchmark) transitions(connections int) *load {
	keys, body := b.keys(), []byte(fireBody)
	return &load{
		connections: connections,
		write:       func(c *client, i int) { c.post(instancesPath, c.id(i), firePath, keys, i, body) },
		applied:     status(http.StatusOK),
	}
}

// check compares every instance with its history.
func (b *benchmark) check(ctx context.Context) error {
	var inconsistent int
	if err := b.conn.QueryRow(ctx, countInconsistent).Scan(&inconsistent); err != nil {
		return err
	}
	if inconsistent > 0 {
		return fmt.Errorf("%d instances do not agree with their history", inconsistent)
	}
	return nil
}
