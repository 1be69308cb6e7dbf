package main

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
)

// rawJSON is sent as it is.
type rawJSON = json.RawMessage

var (
	//go:embed bench/grow.sql
	growTables string
	//go:embed bench/check.sql
	countInconsistent string
)

const (
	manyClients  = 64 // Of the measurements that have no --connections.
	batchClients = 8
	perBatch     = 100
	// overloadFactor is how many clients an overload has for each that may wait.
	overloadFactor = 10
	// purgeFactor is how many times as long as others the purge is measured.
	purgeFactor = 6
	purgedAfter = "2 seconds"
	// disturbing is the share of the CPUs that others may take before it is said.
	disturbing = 0.1
	// replayedKeys is how many requests are sent again and again.
	replayedKeys = 10_000
)

// What --grown fills the tables to. bench/grow.sql gives each instance ten steps and five
// keys. On 2 cores it takes between two and three minutes, and 8 GB of disk with the WAL.
const (
	grownInstances = 1_000_000
	growAtOnce     = 50_000
	grownWarmUp    = 20 * time.Second
	grownDuration  = 10 * time.Second
)

// step is a part of a run that --only can name.
type step struct {
	name    string
	measure func() error // Nil for what is measured with another step.
}

func (b *bench) steps() []step {
	return []step{
		{"transitions", b.measureTransitions},
		{"references", nil},
		{"creates", b.measureCreates},
		{"batch", b.measureBatch},
		{"replays", b.measureReplays},
		{"reads", b.measureReads},
		{"hot", b.measureHot},
		{"mixed", b.measureMixed},
		{"purge", b.measurePurge},
		{"relay", b.measureRelay},
		{"longpoll", b.measureLongPolls},
		{"webhooks", b.measureWebhooks},
		{"overload", b.measureOverload},
	}
}

func (b *bench) names() []string {
	var names []string
	for _, s := range b.steps() {
		names = append(names, s.name)
	}
	return names
}

func (b *bench) wants(name string) bool { return len(b.Only) == 0 || slices.Contains(b.Only, name) }

// measureAll goes on after a fault that figures have, but not after one that leaves none.
func (b *bench) measureAll() error {
	var faults error
	for _, s := range b.steps() {
		if s.measure == nil || !b.wants(s.name) {
			continue
		}
		if err := s.measure(); err != nil {
			faults = errors.Join(faults, fmt.Errorf("%s: %w", s.name, err))
		}
		if b.c.Err() != nil {
			return faults
		}
	}
	if b.Grown {
		faults = errors.Join(faults, b.measureGrown())
	}
	return faults
}

// warmUp is a fifth of a measurement, but neither a moment nor long.
func (b *bench) warmUp(d time.Duration) time.Duration {
	return min(max(d/5, minBenchDuration), time.Second)
}

// measure runs a load, prints its figures, and keeps them for the report.
func (b *bench) measure(name string, d time.Duration, l *load) (*loadResult, error) {
	return b.measureAfter(name, b.warmUp(d), d, l)
}

// measureAfter is measure after another time to warm up.
func (b *bench) measureAfter(name string, warmUp, d time.Duration, l *load) (*loadResult, error) {
	resetPeakRSS(b.meter.service)
	var before, after reading
	result, err := l.run(b.c, b.address, b.ids, warmUp, d,
		func() { before = b.meter.read(b.c) }, func() { after = b.meter.read(b.c) })
	if err != nil {
		return nil, err
	}
	b.keep(name, l, result, before, after)
	return result, nil
}

// keep prints the figures of a load, and keeps them for the report.
func (b *bench) keep(name string, l *load, result *loadResult, before, after reading) *measurement {
	m := &measurement{
		Name: name, Connections: l.connections, Rate: result.rate(),
		P50: result.percentile(0.5), P95: result.percentile(0.95), P99: result.percentile(0.99), Max: result.percentile(1),
		Operations: result.operations, Errors: result.errors, Refused: result.refused, FirstError: result.firstError,
		usage: b.meter.since(before, after, result.operations),
	}
	b.report.compare(m)
	b.report.Measurements = append(b.report.Measurements, m)
	b.row(m)
	b.disturbed(m.label(), before, after)
	return m
}

// disturbed says so if others took much of the machine.
func (b *bench) disturbed(label string, before, after reading) {
	if share := others(before, after); share > disturbing {
		b.remark("%s: other processes kept %.0f %% of the CPUs busy meanwhile", label, share*100)
	}
}

// keys returns what the keys of a load begin with.
func (b *bench) keys() string {
	b.runs++
	return b.run + "-" + strconv.Itoa(b.runs)
}

// status makes one operation of every answer with a status.
func status(want int) func(*loadAnswer) int {
	return func(a *loadAnswer) int {
		if a.status != want {
			return 0
		}
		return 1
	}
}

const (
	instancesPath = "/v1/instances/"
	createPath    = "/v1/workflows/bench/instances"
	goPath        = "/actions/go"
	benchContext  = `{"context":{"n":1}}`
	benchPayload  = `{"payload":{"n":1}}`
)

// creation creates the instances of a run in batches.
func (b *bench) creation() *load {
	keys := b.keys()
	share := func(client int) int { return b.Instances*(client+1)/loadClients - b.Instances*client/loadClients }
	return &load{
		connections: loadClients,
		requests:    func(client int) int { return (share(client) + loadPerBatch - 1) / loadPerBatch },
		write: func(c *loadClient, i int) {
			first := i * loadPerBatch
			c.batch(first, min(first+loadPerBatch, share(c.number)), func(n int) {
				c.body = append(c.body, `{"op":"create","workflow":"bench","context":{"n":1},"key":"`...)
				c.body = append(c.key(c.body, keys, n), `"}`...)
			})
		},
		applied: func(a *loadAnswer) int { return bytes.Count(a.body, []byte(`"status":201`)) },
	}
}

// batch makes the request POST /v1/batch with the commands that command appends.
func (c *loadClient) batch(first, last int, command func(n int)) {
	c.body = append(c.body[:0], `{"commands":[`...)
	for n := first; n < last; n++ {
		if n > first {
			c.body = append(c.body, ',')
		}
		command(n)
	}
	c.body = append(c.body, "]}"...)
	c.post("/v1/batch", "", "", "", 0, c.body)
}

func (b *bench) transitions(connections int) *load {
	keys, body := b.keys(), []byte(benchPayload)
	return &load{
		connections: connections,
		write:       func(c *loadClient, i int) { c.post(instancesPath, c.id(i), goPath, keys, i, body) },
		applied:     status(http.StatusOK),
	}
}

func (b *bench) measureTransitions() error {
	for _, n := range b.Connections {
		if _, err := b.measure("transitions", b.Duration, b.transitions(n)); err != nil {
			return err
		}
		if b.pgbench == nil || !b.wants("references") {
			continue
		}
		if err := b.measureReferences(n); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) measureReferences(connections int) error {
	transitions := b.report.Measurements[len(b.report.Measurements)-1]
	for _, s := range references() {
		before := b.meter.read(b.c)
		r, err := b.pgbench.measure(b.c, s, connections, b.Duration, b.keys(), b.Instances/connections)
		if b.c.Err() != nil {
			return err
		}
		if err != nil {
			b.remark("There is no reference %s at %d: %v", s.name, connections, err)
			continue
		}
		after := b.meter.read(b.c)
		r.usage = b.meter.since(before, after, r.Operations)
		r.ServiceCPU, r.PeakRSS = nil, nil // It had no part.
		if r.Rate > 0 {
			r.Ratio = new(transitions.Rate / r.Rate)
		}
		b.report.References = append(b.report.References, r)
		b.referenceRow(r)
		b.disturbed(r.label(), before, after)
	}
	b.report.compare(transitions)
	return nil
}

func (b *bench) measureCreates() error {
	keys, body := b.keys(), []byte(benchContext)
	_, err := b.measure("creates", b.Duration, &load{
		connections: manyClients,
		write:       func(c *loadClient, i int) { c.post(createPath, "", "", keys, i, body) },
		applied:     status(http.StatusCreated),
	})
	return err
}

func (b *bench) measureBatch() error {
	keys := b.keys()
	_, err := b.measure("batch", b.Duration, &load{
		connections: batchClients,
		write: func(c *loadClient, i int) {
			c.batch(i*perBatch, (i+1)*perBatch, func(n int) {
				c.body = append(c.body, `{"op":"fire","event":"go","payload":{"n":1},"instance_id":"`...)
				c.body = append(append(c.body, c.id(n)...), `","key":"`...)
				c.body = append(c.key(c.body, keys, n), `"}`...)
			})
		},
		applied: func(a *loadAnswer) int {
			if n := bytes.Count(a.body, []byte(`"status":200`)); n == perBatch {
				return n
			}
			return 0
		},
	})
	return err
}

func (b *bench) measureReplays() error {
	l := b.transitions(manyClients)
	each := min(replayedKeys, b.Instances)/manyClients + 1
	l.requests = func(int) int { return each }
	first, err := l.run(b.c, b.address, b.ids, 0, b.Duration, nil, nil)
	if err != nil {
		return err
	}
	if first.errors+first.refused > 0 {
		b.remark("replays: %d of the first requests failed: %s", first.errors+first.refused, first.firstError)
	}
	write := l.write
	l.requests = nil
	l.write = func(c *loadClient, i int) { write(c, i%each) }
	l.applied = func(a *loadAnswer) int {
		if a.status != http.StatusOK || !a.replayed {
			return 0
		}
		return 1
	}
	_, err = b.measure("replays", b.Duration, l)
	return err
}

func (b *bench) measureReads() error {
	_, err := b.measure("reads", b.Duration, &load{
		connections: manyClients,
		write:       func(c *loadClient, i int) { c.get(instancesPath, c.id(i)) },
		applied:     status(http.StatusOK),
	})
	return err
}

func (b *bench) measureMixed() error {
	l := b.transitions(manyClients)
	fire := l.write
	l.write = func(c *loadClient, i int) {
		if (c.number+i)%5 == 0 {
			fire(c, i)
		} else {
			c.get(instancesPath, c.id(i))
		}
	}
	_, err := b.measure("mixed", b.Duration, l)
	return err
}

// measureHot has all clients fire at one new instance, which must then have made exactly
// the steps that were answered. One whose answer was lost may or may not be among them.
func (b *bench) measureHot() error {
	var hot struct{ ID string }
	client := clientFlags{Server: "http://" + b.address}
	_, err := client.do(b.c, call{method: http.MethodPost, path: createPath, body: rawJSON(benchContext)}, &hot)
	if err != nil {
		return err
	}
	keys, body := b.keys(), []byte(benchPayload)
	result, err := b.measure("hot", b.Duration, &load{
		connections: manyClients,
		write:       func(c *loadClient, i int) { c.post(instancesPath, hot.ID, goPath, keys, i, body) },
		applied:     status(http.StatusOK),
	})
	if err != nil {
		return err
	}
	var made, steps int
	err = b.conn.QueryRow(b.c, `
		select i.version - 1, (select count(*) - 1 from pawl.history h where h.tenant_id = i.tenant_id and h.instance_id = i.id)
		from pawl.instance i where i.tenant_id = 'default' and i.id = $1`, hot.ID).Scan(&made, &steps)
	if err != nil {
		return err
	}
	if made != steps || made < result.all || made > result.all+result.errors {
		return fmt.Errorf("the instance made %d steps and its history has %d, but %d were answered (%d errors)",
			made, steps, result.all, result.errors)
	}
	return nil
}

// measurePurge lets keys live for so short a time that as many expire as come, for so long
// that each is gone many times over. How much they take must level off.
func (b *bench) measurePurge() (err error) {
	before, err := b.measure("before-purge", b.Duration, b.transitions(manyClients))
	if err != nil {
		return err
	}
	var ttl string
	if err := b.conn.QueryRow(b.c, "select idempotency_ttl::text from pawl.setting").Scan(&ttl); err != nil {
		return err
	}
	set := func(ctx context.Context, ttl string) error {
		_, err := b.conn.Exec(ctx, "update pawl.setting set idempotency_ttl = $1::text::interval", ttl)
		return err
	}
	if err := set(b.c, purgedAfter); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, set(context.WithoutCancel(b.c), ttl)) }()
	// Autovacuum looks once a minute, which is often for keys that live for a day.
	if err := b.vacuumEvery(b.c, "1s"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.vacuumEvery(context.WithoutCancel(b.c), "")) }()

	const deleted = "select coalesce(sum(n_tup_del), 0)::bigint from pg_stat_user_tables where relid = 'pawl.idempotency_key'::regclass"
	var had, has int64
	if err := b.conn.QueryRow(b.c, deleted).Scan(&had); err != nil {
		return err
	}
	d := purgeFactor * b.Duration
	sampling, stop := context.WithCancel(b.c)
	sizes := make(chan []int64, 1)
	go func() { sizes <- b.sampleKeys(sampling, min(d/30, time.Second)) }()
	after, err := b.measure("purge", d, b.transitions(manyClients))
	stop()
	p := &purgeFigures{Sizes: <-sizes}
	if err != nil {
		return err
	}
	if err := b.conn.QueryRow(b.c, deleted).Scan(&has); err != nil {
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
	b.remark("purge: %d keys were purged; p99 is %.2f times that without; the keys and their indexes took at most %.1f MB in the first half, %.1f MB in the second",
		p.Purged, p.P99Ratio, float64(p.FirstHalf)/1e6, float64(p.SecondHalf)/1e6)
	return nil
}

// vacuumEvery sets how often autovacuum looks, or "" for the default, on a server of the
// run's own. Others are left as they are.
func (b *bench) vacuumEvery(ctx context.Context, naptime string) error {
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

// sampleKeys reads what keys and their indexes take, in bytes, until the context ends.
func (b *bench) sampleKeys(ctx context.Context, every time.Duration) []int64 {
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

// measureOverload bursts with many more clients than may wait, between looks at what the
// same process does with the usual number.
func (b *bench) measureOverload() error {
	room := max(manyClients, slices.Max(b.Connections))
	if err := b.restartService("PAWL_MAX_QUEUE=" + strconv.Itoa(room)); err != nil {
		return err
	}
	if _, err := b.measure("before-overload", b.Duration/2, b.transitions(manyClients)); err != nil {
		return err
	}
	if _, err := b.measure("overload", b.Duration, b.transitions(overloadFactor*room)); err != nil {
		return err
	}
	if _, err := b.measure("after-overload", b.Duration/2, b.transitions(manyClients)); err != nil {
		return err
	}
	return b.restartService()
}

// measureGrown fills the tables, and fires at instances from all over them. Both its looks
// come after a checkpoint, which makes every page that is touched first go to the WAL; the
// load runs until that is over before it is measured.
func (b *bench) measureGrown() error {
	if _, err := b.conn.Exec(b.c, "checkpoint"); err != nil {
		return err
	}
	if _, err := b.measureAfter("before-grown", grownWarmUp, grownDuration, b.transitions(manyClients)); err != nil {
		return err
	}
	var have int
	if err := b.conn.QueryRow(b.c, "select count(*) from pawl.instance").Scan(&have); err != nil {
		return err
	}
	for missing, n := grownInstances-have, 0; n < missing; n += growAtOnce {
		last := min(n+growAtOnce, missing)
		if _, err := b.conn.Exec(b.c, growTables, n+1, last, missing); err != nil {
			return err
		}
		b.c.log.Info("growing", "instances", have+last)
	}
	for _, sql := range []string{
		"vacuum (analyze) pawl.instance, pawl.history, pawl.idempotency_key", "checkpoint",
	} {
		if _, err := b.conn.Exec(b.c, sql); err != nil {
			return err
		}
	}
	var err error
	if b.ids, err = b.readIDs("select id::text from pawl.instance order by random() limit $1", b.Instances); err != nil {
		return err
	}
	_, err = b.measureAfter("grown", grownWarmUp, grownDuration, b.transitions(manyClients))
	return err
}

// check looks at every instance that anything here has moved.
func (b *bench) check() error {
	var inconsistent int
	if err := b.conn.QueryRow(b.c, countInconsistent).Scan(&inconsistent); err != nil {
		return err
	}
	if inconsistent > 0 {
		return fmt.Errorf("%d instances do not agree with their history", inconsistent)
	}
	return nil
}
