package bench

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"net/http"
	"time"
)

var (
	//go:embed workflow.json
	workflow []byte
	//go:embed sql/number.sql
	numberInstances string
)

// How the instances are created.
const (
	creators       = 8 // Connections.
	createPerBatch = 500
	createWithin   = time.Hour
)

// describe prints the machine and its settings, and prepares pgbench.
func (b *benchmark) describe(ctx context.Context) (err error) {
	if b.report.Machine, err = readMachine(ctx, b.conn, b.Version); err != nil {
		return err
	}
	b.report.Run = parameters{b.Instances, b.Duration.Seconds(), b.warmUp(b.Duration).Seconds()}
	m := b.report.Machine
	b.printf("pawl %s, %s, PostgreSQL %s, %d CPUs (%s)\n", m.Pawl, m.Go, m.Postgres, m.CPUs, m.OS)
	b.printf("fsync %s, synchronous_commit %s, shared_buffers %s, max_wal_size %s\n",
		m.Settings["fsync"], m.Settings["synchronous_commit"], m.Settings["shared_buffers"], m.Settings["max_wal_size"])
	if b.pgbench == nil {
		b.remark("There is no pgbench on this machine, so there are no references.")
		return nil
	}
	if !b.wants("references") {
		return nil
	}
	if err := b.pgbench.initialise(ctx); err != nil {
		if ctx.Err() != nil {
			return err
		}
		b.remark("There are no references: %v", err)
		b.pgbench = nil
	}
	return nil
}

// createInstances registers the workflow, creates the instances through POST /v1/batch, and numbers
// them.
func (b *benchmark) createInstances(ctx context.Context) error {
	if err := b.call(ctx, http.MethodPut, "/v1/workflows/bench", workflow, nil); err != nil {
		return err
	}
	began := time.Now()
	if err := b.create(ctx, creation{workflow: "bench", total: b.Instances, connections: creators}); err != nil {
		return err
	}
	b.printf("%d instances created in %.1f s through POST /v1/batch\n\n", b.Instances, time.Since(began).Seconds())
	if _, err := b.conn.Exec(ctx, numberInstances); err != nil {
		return err
	}
	// Otherwise autovacuum would do so within a minute, during some measurement.
	if _, err := b.conn.Exec(ctx, "vacuum (analyze) pawl.instance, pawl.history, pawl.idempotency_key"); err != nil {
		return err
	}
	var err error
	b.ids, err = b.readIDs(ctx, "select id::text from pawl_bench.instance order by n")
	return err
}

// creation says which instances to create in batches.
type creation struct {
	workflow    string
	total       int
	connections int
	bearer      func(connection int) string // As that of a load.
}

// create creates the instances of w over HTTP, and fails if fewer are created.
func (b *benchmark) create(ctx context.Context, w creation) error {
	keys := b.keys()
	share := func(client int) int { return w.total*(client+1)/w.connections - w.total*client/w.connections }
	l := &load{
		connections: w.connections, bearer: w.bearer,
		requests: func(client int) int { return (share(client) + createPerBatch - 1) / createPerBatch },
		write: func(c *client, i int) {
			first := i * createPerBatch
			c.batch(first, min(first+createPerBatch, share(c.number)), func(n int) {
				c.body = append(c.body, `{"op":"create","workflow":"`...)
				c.body = append(append(c.body, w.workflow...), `","context":{"n":1},"key":"`...)
				c.body = append(c.key(c.body, keys, n), `"}`...)
			})
		},
		applied: func(a *answer) int { return bytes.Count(a.body, []byte(`"status":201`)) },
	}
	result, err := l.run(ctx, b.service.address, []string{""}, 0, createWithin, nil, nil)
	if err != nil {
		return err
	}
	if result.all != w.total {
		return fmt.Errorf("bench: %d of %d instances were created: %s", result.all, w.total, result.firstError)
	}
	return nil
}

// createOne creates one instance and returns its id; it is at version 1.
func (b *benchmark) createOne(ctx context.Context) (id string, err error) {
	var instance struct {
		ID string `json:"id"`
	}
	err = b.call(ctx, http.MethodPost, createPath, json.RawMessage(createBody), &instance)
	return instance.ID, err
}
