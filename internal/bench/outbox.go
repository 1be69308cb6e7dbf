package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/fsm/live"
	"github.com/pawl-fsm/pawl/outbox"
)

const (
	pacedRate        = 1000 // Transitions per second while the delay of messages is measured.
	pacedConnections = 50
	longPolls        = 200
	longPollWait     = "wait=20"
	// The targets of delays, in milliseconds, and of webhooks, per second.
	sinkP50, sinkP99, pollP50 = 30, 150, 30
	leastWebhooks             = 2000
	// drainWithin bounds the wait for messages that are still to come.
	drainWithin = 10 * time.Minute
)

// relayFigures are those of a relay to a sink that keeps nothing.
type relayFigures struct {
	// Rate is the number of messages per second that the sink got during the measurement.
	Rate float64 `json:"rate"`
	// P50 and P99 are the delays from the step's own time, before its commit, to the sink.
	P50 float64 `json:"p50_ms"`
	P99 float64 `json:"p99_ms"`
	// Backlog is the number of messages per second of a relay that begins with the first step.
	Backlog float64 `json:"backlog_rate"`
	// Dead is the number of dead tuples that appeared while a transaction was held open, by table
	// that the relay uses.
	Dead map[string]int64 `json:"dead_tuples"`
}

// counter is a sink that keeps nothing. It counts the messages and the delay of each since its step.
// This process and the database read the same clock.
type counter struct {
	mu        sync.Mutex
	count     int
	latencies []int32 // Microseconds.
}

// Publish counts messages; see [outbox.Sink].
func (c *counter) Publish(_ context.Context, messages []outbox.Message) error {
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.count += len(messages)
	for _, m := range messages {
		c.latencies = append(c.latencies, int32(now.Sub(m.Step.At).Microseconds()))
	}
	return nil
}

// Close does nothing.
func (c *counter) Close() error { return nil }

// came returns the number of messages since the last take.
func (c *counter) came() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.count
}

// take returns the number and the delays of the messages since the last take.
func (c *counter) take() loadResult {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := loadResult{operations: c.count, latencies: c.latencies}
	c.count, c.latencies = 0, nil
	slices.Sort(r.latencies)
	return r
}

// measureRelay measures transitions at the largest number of connections without a relay and with
// one. Then it measures the delay of messages at a fixed rate of transitions, the dead tuples that a
// relay leaves while a transaction is held open, and the rate of a relay with a backlog.
func (b *benchmark) measureRelay(ctx context.Context) (err error) {
	most := slices.Max(b.Connections)
	if _, err := b.measure(ctx, "unrelayed", b.Duration, b.transitions(most)); err != nil {
		return err
	}
	sink := &counter{}
	stop, err := b.relay(ctx, "bench", sink, false)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop()) }()
	l := b.transitions(most)
	var began, ended time.Time
	var relayed loadResult
	var before, after reading
	result, err := l.run(ctx, b.service.address, b.ids, b.warmUp(b.Duration), b.Duration,
		func() { before = b.meter.read(ctx); sink.take(); began = time.Now() },
		func() { relayed = sink.take(); ended = time.Now(); after = b.meter.read(ctx) })
	if err != nil {
		return err
	}
	m := b.add("relayed", l, result, before, after)
	figures := &relayFigures{Rate: float64(relayed.operations) / ended.Sub(began).Seconds()}
	m.Relay = figures

	pause(ctx, b.warmUp(b.Duration)) // For the messages that are still on their way.
	sink.take()
	paced := b.transitions(min(pacedConnections, b.Instances))
	paced.every = time.Duration(paced.connections) * time.Second / pacedRate
	if _, err := b.measure(ctx, "paced", b.Duration, paced); err != nil {
		return err
	}
	came := sink.take()
	figures.P50, figures.P99 = came.percentile(0.5), came.percentile(0.99)
	if figures.Dead, err = b.measureHeld(ctx, most); err != nil {
		return err
	}
	if figures.Backlog, err = b.measureBacklog(ctx); err != nil {
		return err
	}
	b.remark("relayed: the sink got %.0f messages per second; at %d per second, p50 %.1f ms and p99 %.1f ms after their step; "+
		"with a transaction held open, dead tuples: history %d, consumer %d; from the first step on, %.0f per second",
		figures.Rate, pacedRate, figures.P50, figures.P99, figures.Dead["history"], figures.Dead["consumer"], figures.Backlog)
	return nil
}

// measureHeld measures transitions while a transaction is held open, so that vacuum cannot remove
// dead tuples, and returns the number of dead tuples that the relay left by table. The transitions
// are slowed by the dead tuples of the instances themselves.
func (b *benchmark) measureHeld(ctx context.Context, connections int) (map[string]int64, error) {
	held, err := pgx.Connect(ctx, b.dsn)
	if err != nil {
		return nil, err
	}
	defer func() { _ = held.Close(context.WithoutCancel(ctx)) }()
	if _, err := held.Exec(ctx, "begin isolation level repeatable read; select pg_current_xact_id()"); err != nil {
		return nil, err
	}
	before, err := b.deadTuples(ctx, "history", "consumer")
	if err != nil {
		return nil, err
	}
	if _, err := b.measure(ctx, "held", b.Duration, b.transitions(connections)); err != nil {
		return nil, err
	}
	dead, err := b.deadTuples(ctx, "history", "consumer")
	for table, n := range before {
		dead[table] = max(dead[table]-n, 0)
	}
	return dead, err
}

// measureBacklog relays the whole history, and returns the messages per second.
func (b *benchmark) measureBacklog(ctx context.Context) (rate float64, err error) {
	var steps int
	if err := b.conn.QueryRow(ctx, "select count(*) from pawl.history").Scan(&steps); err != nil {
		return 0, err
	}
	sink := &counter{}
	began := time.Now()
	stop, err := b.relay(ctx, "bench-backlog", sink, true)
	if err != nil {
		return 0, err
	}
	err = b.await(ctx, func() bool { return sink.came() >= steps })
	rate = float64(steps) / time.Since(began).Seconds()
	return rate, errors.Join(err, stop())
}

// await waits until a condition holds.
func (b *benchmark) await(ctx context.Context, holds func() bool) error {
	for end := time.Now().Add(drainWithin); !holds(); pause(ctx, 5*time.Millisecond) {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if time.Now().After(end) {
			return fmt.Errorf("messages or calls are still missing after %s", drainWithin)
		}
	}
	return nil
}

// relay runs a relay in this process, from now on or from the first step on. stop ends it and
// deletes its consumer.
func (b *benchmark) relay(ctx context.Context, consumer string, sink outbox.Sink, fromStart bool) (stop func() error, err error) {
	pool, err := pgxpool.New(ctx, b.dsn)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	hub := live.NewHub(pool, live.HubConfig{})
	relay := outbox.NewRelay(pool, consumer, sink, outbox.RelayConfig{FromStart: fromStart, Wake: hub.WakeLog, Logger: b.Logger})
	var running sync.WaitGroup
	var failed [2]error
	running.Go(func() { failed[0] = hub.Run(ctx) })
	running.Go(func() { failed[1] = relay.Run(ctx) })
	return func() error {
		cancel()
		running.Wait()
		defer pool.Close()
		_, err := outbox.DeleteConsumer(context.WithoutCancel(ctx), pool, consumer)
		return errors.Join(failed[0], failed[1], err)
	}, nil
}

// deadTuples returns the number of dead tuples of tables, as the statistics have it.
func (b *benchmark) deadTuples(ctx context.Context, tables ...string) (map[string]int64, error) {
	dead := map[string]int64{}
	for _, table := range tables {
		var n int64
		err := b.conn.QueryRow(ctx, "select pg_stat_get_dead_tuples(('pawl.' || $1::text)::regclass)", table).Scan(&n)
		if err != nil {
			return nil, err
		}
		dead[table] = n
	}
	return dead, nil
}

// measureLongPolls measures the delay of a read that waits for a step: from the answer to the request
// that made the step to the answer to the read.
func (b *benchmark) measureLongPolls(ctx context.Context) error {
	id, err := b.createOne(ctx)
	if err != nil {
		return err
	}
	took := loadResult{}
	for version := range int64(longPolls) { // The instance is at version 1 before the first one.
		answered := make(chan error, 1)
		var at time.Time
		go func() {
			answered <- b.longPoll(ctx, id, version+1)
			at = time.Now()
			answered <- nil
		}()
		pause(ctx, 5*time.Millisecond) // So that the read waits before the step is made.
		if err := b.call(ctx, http.MethodPost, instancesPath+id+firePath, json.RawMessage(fireBody), nil); err != nil {
			return err
		}
		fired := time.Now()
		if err := errors.Join(<-answered, <-answered); err != nil {
			return err
		}
		took.latencies = append(took.latencies, int32(max(at.Sub(fired), 0).Microseconds()))
	}
	slices.Sort(took.latencies)
	p50 := took.percentile(0.5)
	b.report.LongPollP50 = &p50
	b.remark("longpoll: a waiting read is answered %.1f ms (p50) and %.1f ms (p99) after the request that made the step", p50, took.percentile(0.99))
	return nil
}

// longPoll reads an instance once it is at another version.
func (b *benchmark) longPoll(ctx context.Context, id string, version int64) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+b.service.address+instancesPath+id, nil)
	if err != nil {
		return err
	}
	r.Header.Set("Prefer", longPollWait)
	r.Header.Set("If-None-Match", strconv.Quote(strconv.FormatInt(version, 10)))
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("a waiting read was answered with %s", response.Status)
	}
	return nil
}

// receiver is an endpoint that counts webhooks, with the times of the first and the last.
type receiver struct {
	mu          sync.Mutex
	count       int
	first, last time.Time
}

// ServeHTTP accepts a webhook.
func (r *receiver) ServeHTTP(w http.ResponseWriter, in *http.Request) {
	_, _ = io.Copy(io.Discard, in.Body)
	w.WriteHeader(http.StatusNoContent)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.count++; r.count == 1 {
		r.first = time.Now()
	}
	r.last = time.Now()
}

// came returns the number of webhooks, and the time from the first one to the last.
func (r *receiver) came() (n int, took time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.count, r.last.Sub(r.first)
}

// measureWebhooks makes transitions while the service has no workers, and so sends no webhooks. Then
// it starts a service that sends the webhooks of all of them to a receiver in this process.
func (b *benchmark) measureWebhooks(ctx context.Context) (err error) {
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	got := &receiver{}
	server := &http.Server{Handler: got, ReadHeaderTimeout: time.Minute}
	go func() { _ = server.Serve(listener) }() // It returns when the server is closed.
	defer func() { err = errors.Join(err, server.Close()) }()
	const allow = "PAWL_WEBHOOK_ALLOW_PRIVATE=true"
	if err := b.restartService(ctx, allow, "PAWL_WORKERS=false"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.restartService(ctx)) }()
	var subscription struct {
		ID string `json:"id"`
	}
	body := json.RawMessage(`{"url": "http://` + listener.Addr().String() + `", "filter": {}}`)
	if err := b.call(ctx, http.MethodPost, "/v1/subscriptions", body, &subscription); err != nil {
		return err
	}
	if _, err := b.measure(ctx, "untold", b.Duration, b.transitions(slices.Max(b.Connections))); err != nil {
		return err
	}
	var steps int
	err = b.conn.QueryRow(ctx, `
		select count(*)
		from pawl.subscription s
		join pawl.history h on not pg_visible_in_snapshot(h.xid, s.since)
		where s.id = $1`, subscription.ID).Scan(&steps)
	if err != nil {
		return err
	}
	if err := b.restartService(ctx, allow); err != nil {
		return err
	}
	err = b.await(ctx, func() bool {
		n, _ := got.came()
		return n >= steps
	})
	if err != nil {
		return err
	}
	n, took := got.came()
	rate := float64(n) / took.Seconds()
	b.report.Webhooks = &rate
	b.remark("webhooks: %d, %.0f per second, to a receiver on this machine", n, rate)
	return b.call(ctx, http.MethodDelete, "/v1/subscriptions/"+subscription.ID, nil, nil)
}
