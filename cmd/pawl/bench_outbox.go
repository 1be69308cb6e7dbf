package main

import (
	"context"
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
	pacedRate    = 1000 // Transitions per second whose way to the sink is timed.
	pacedClients = 50
	longPolls    = 200
	longPollWait = "wait=20"
	// What is wanted of them, in milliseconds.
	sinkP50, sinkP99, pollP50 = 30, 150, 30
	leastWebhooks             = 2000 // Per second.
	// drainWithin bounds the wait for what is to come.
	drainWithin = 10 * time.Minute
)

// relayFigures tell of a relay to a sink that keeps nothing.
type relayFigures struct {
	// Rate is of the events that the sink got while the transitions were measured.
	Rate float64 `json:"rate"`
	// P50 and P99 are from the step's own time, before it is committed, to the sink.
	P50 float64 `json:"p50_ms"`
	P99 float64 `json:"p99_ms"`
	// Backlog is the rate of a relay that begins with the first step of all.
	Backlog float64 `json:"backlog_rate"`
	// Dead counts the dead tuples that came while a transaction was held open, by table, of those
	// that the relay touches.
	Dead map[string]int64 `json:"dead_tuples"`
}

// nowhere is a sink that counts, and times the way from the step to itself. The service's
// clock is the database's here.
type nowhere struct {
	mu        sync.Mutex
	count     int
	latencies []int32 // Microseconds.
}

func (n *nowhere) Publish(_ context.Context, events []outbox.Event) error {
	now := time.Now()
	n.mu.Lock()
	defer n.mu.Unlock()
	n.count += len(events)
	for _, e := range events {
		n.latencies = append(n.latencies, int32(now.Sub(e.Step.At).Microseconds()))
	}
	return nil
}

func (n *nowhere) Close() error { return nil }

func (n *nowhere) came() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.count
}

// take returns what came since the last call.
func (n *nowhere) take() loadResult {
	n.mu.Lock()
	defer n.mu.Unlock()
	r := loadResult{operations: n.count, latencies: n.latencies}
	n.count, n.latencies = 0, nil
	slices.Sort(r.latencies)
	return r
}

// measureRelay has transitions at the most connections, without a relay and with one, then
// paced ones, whose way to the sink is timed, and then some behind a transaction that is held.
func (b *bench) measureRelay() (err error) {
	most := slices.Max(b.Connections)
	if _, err := b.measure("unrelayed", b.Duration, b.transitions(most)); err != nil {
		return err
	}
	sink := &nowhere{}
	stop, err := b.relay("bench", sink, false)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop()) }()
	l := b.transitions(most)
	var began, ended time.Time
	var relayed loadResult
	var before, after reading
	result, err := l.run(b.c, b.address, b.ids, b.warmUp(b.Duration), b.Duration,
		func() { before = b.meter.read(b.c); sink.take(); began = time.Now() },
		func() { relayed = sink.take(); ended = time.Now(); after = b.meter.read(b.c) })
	if err != nil {
		return err
	}
	m := b.keep("relayed", l, result, before, after)
	figures := &relayFigures{Rate: float64(relayed.operations) / ended.Sub(began).Seconds()}
	m.Relay = figures

	pause(b.c, b.warmUp(b.Duration)) // What is left of it.
	sink.take()
	paced := b.transitions(min(pacedClients, b.Instances))
	paced.every = time.Duration(paced.connections) * time.Second / pacedRate
	if _, err := b.measure("paced", b.Duration, paced); err != nil {
		return err
	}
	came := sink.take()
	figures.P50, figures.P99 = came.percentile(0.5), came.percentile(0.99)
	if figures.Dead, err = b.measureHeld(most); err != nil {
		return err
	}
	if figures.Backlog, err = b.measureBacklog(); err != nil {
		return err
	}
	b.remark("relayed: %.0f events per second came to the sink; at %d per second, p50 %.1f ms and p99 %.1f ms after their step; "+
		"with a transaction held open, dead tuples: history %d, consumer %d; from the first step on, %.0f per second",
		figures.Rate, pacedRate, figures.P50, figures.P99, figures.Dead["history"], figures.Dead["consumer"], figures.Backlog)
	return nil
}

// measureHeld has transitions while a transaction is open, behind which vacuum removes nothing,
// and counts the dead tuples that the relay leaves. The instances' own slow the transitions.
func (b *bench) measureHeld(connections int) (map[string]int64, error) {
	held, err := pgx.Connect(b.c, b.dsn)
	if err != nil {
		return nil, err
	}
	defer func() { _ = held.Close(context.WithoutCancel(b.c)) }()
	if _, err := held.Exec(b.c, "begin isolation level repeatable read; select pg_current_xact_id()"); err != nil {
		return nil, err
	}
	before, err := b.deadTuples("history", "consumer")
	if err != nil {
		return nil, err
	}
	if _, err := b.measure("held", b.Duration, b.transitions(connections)); err != nil {
		return nil, err
	}
	dead, err := b.deadTuples("history", "consumer")
	for table, n := range before {
		dead[table] = max(dead[table]-n, 0)
	}
	return dead, err
}

// measureBacklog relays all that there is.
func (b *bench) measureBacklog() (rate float64, err error) {
	var steps int
	if err := b.conn.QueryRow(b.c, "select count(*) from pawl.history").Scan(&steps); err != nil {
		return 0, err
	}
	sink := &nowhere{}
	began := time.Now()
	stop, err := b.relay("bench-backlog", sink, true)
	if err != nil {
		return 0, err
	}
	err = b.await(func() bool { return sink.came() >= steps })
	rate = float64(steps) / time.Since(began).Seconds()
	return rate, errors.Join(err, stop())
}

// await waits until something is so.
func (b *bench) await(so func() bool) error {
	for end := time.Now().Add(drainWithin); !so(); pause(b.c, 5*time.Millisecond) {
		if b.c.Err() != nil {
			return context.Cause(b.c)
		}
		if time.Now().After(end) {
			return fmt.Errorf("not all has come after %s", drainWithin)
		}
	}
	return nil
}

// relay runs a relay of this process, from now on or from the first step on.
func (b *bench) relay(consumer string, sink outbox.Sink, fromStart bool) (stop func() error, err error) {
	pool, err := pgxpool.New(b.c, b.dsn)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(b.c)
	hub := live.NewHub(pool, live.HubConfig{})
	wake := hub.All()
	relay := outbox.NewRelay(pool, consumer, sink, outbox.RelayConfig{FromStart: fromStart, Wake: wake.C(), Logger: b.c.log})
	var running sync.WaitGroup
	var failed [2]error
	running.Go(func() { failed[0] = hub.Run(ctx) })
	running.Go(func() { failed[1] = relay.Run(ctx) })
	return func() error {
		cancel()
		running.Wait()
		wake.Close()
		defer pool.Close()
		_, err := pool.Exec(context.WithoutCancel(b.c), "delete from pawl.consumer where name = $1", consumer)
		return errors.Join(failed[0], failed[1], err)
	}, nil
}

// deadTuples counts those of tables, as the statistics have it.
func (b *bench) deadTuples(tables ...string) (map[string]int64, error) {
	dead := map[string]int64{}
	for _, table := range tables {
		var n int64
		err := b.conn.QueryRow(b.c, "select pg_stat_get_dead_tuples(('pawl.' || $1::text)::regclass)", table).Scan(&n)
		if err != nil {
			return nil, err
		}
		dead[table] = n
	}
	return dead, nil
}

// measureLongPolls times how long after a step was answered one who waits for it is.
func (b *bench) measureLongPolls() error {
	var i struct {
		ID      string
		Version int64
	}
	client := clientFlags{Server: "http://" + b.address}
	if _, err := client.do(b.c, call{method: http.MethodPost, path: createPath, body: rawJSON(benchContext)}, &i); err != nil {
		return err
	}
	took := loadResult{}
	for n := range longPolls {
		answered := make(chan error, 1)
		var at time.Time
		go func() {
			answered <- b.longPoll(i.ID, i.Version+int64(n))
			at = time.Now()
			answered <- nil
		}()
		pause(b.c, 5*time.Millisecond) // So that it waits.
		if _, err := client.do(b.c, call{method: http.MethodPost, path: instancesPath + i.ID + goPath, body: rawJSON(benchPayload)}, nil); err != nil {
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
	b.remark("longpoll: one who waits is answered %.1f ms (p50) and %.1f ms (p99) after the step was", p50, took.percentile(0.99))
	return nil
}

// longPoll waits until an instance is at another version.
func (b *bench) longPoll(id string, version int64) error {
	r, err := http.NewRequestWithContext(b.c, http.MethodGet, "http://"+b.address+instancesPath+id, nil)
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
		return fmt.Errorf("a long-poll was answered with %s", response.Status)
	}
	return nil
}

// receiver counts webhooks, and notes when the first and the last came.
type receiver struct {
	mu          sync.Mutex
	count       int
	first, last time.Time
}

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

func (r *receiver) came() (n int, took time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.count, r.last.Sub(r.first)
}

// measureWebhooks has transitions while nobody sends webhooks, and then a service send those of
// all of them to a receiver in this process.
func (b *bench) measureWebhooks() (err error) {
	listener, err := new(net.ListenConfig).Listen(b.c, "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	got := &receiver{}
	server := &http.Server{Handler: got, ReadHeaderTimeout: time.Minute}
	go func() { _ = server.Serve(listener) }() // It ends when it is closed.
	defer func() { err = errors.Join(err, server.Close()) }()
	const allow = "PAWL_WEBHOOK_ALLOW_PRIVATE=true"
	if err := b.restartService(allow, "PAWL_WORKERS=false"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.restartService()) }()
	client := clientFlags{Server: "http://" + b.address}
	var subscription subscriptionAnswer
	create := call{method: http.MethodPost, path: "/v1/subscriptions", body: map[string]any{"url": "http://" + listener.Addr().String(), "filter": map[string]any{}}}
	if _, err := client.do(b.c, create, &subscription); err != nil {
		return err
	}
	if _, err := b.measure("untold", b.Duration, b.transitions(slices.Max(b.Connections))); err != nil {
		return err
	}
	var steps int
	err = b.conn.QueryRow(b.c, `
		select count(*)
		from pawl.subscription s
		join pawl.history h on not pg_visible_in_snapshot(h.xid, s.since)
		where s.id = $1`, subscription.ID).Scan(&steps)
	if err != nil {
		return err
	}
	if err := b.restartService(allow); err != nil {
		return err
	}
	err = b.await(func() bool {
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
	client.Server = "http://" + b.address
	_, err = client.do(b.c, call{method: http.MethodDelete, path: "/v1/subscriptions/" + subscription.ID}, nil)
	return err
}
