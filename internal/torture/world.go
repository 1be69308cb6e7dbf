package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/pawl-fsm/pawl/internal/torture/check"
)

// A size says how much a run does.
type size struct {
	replicas, callers, transactors int
	warmUp                         time.Duration
	// most bounds how often a scenario repeats its fault.
	most int
}

var (
	fullSize  = size{replicas: 3, callers: 6, transactors: 3, warmUp: 2 * time.Second, most: 100}
	shortSize = size{replicas: 2, callers: 4, transactors: 2, warmUp: 500 * time.Millisecond, most: 2}
	quietSize = size{replicas: 2, callers: 1, transactors: 0, warmUp: 5 * time.Second, most: 100}
)

const (
	// giveUp is how long clients go on with the command that they have begun when they are told to stop.
	giveUp = 30 * time.Second
	// healWithin bounds how long each replica may take to answer again.
	healWithin = 90 * time.Second
	// silence ends the wait for deliveries, if no message came for so long.
	silence = 20 * time.Second
	// deliverWithin bounds that wait.
	deliverWithin = 3 * time.Minute
	// packers is how many workers there are in a scenario with tasks.
	packers = 3
)

// A world is one run of a scenario: the cluster, the replicas, and what is seen of them.
type world struct {
	scenario scenario
	seed     uint64
	size     size
	program  string // bin/pawl.
	dir      string
	cluster  *cluster
	replicas []*replica
	record   *record
	accounts accounts
	provider *provider  // Nil in a scenario without tasks.
	faults   *rand.Rand // What the scenario draws from.

	stalled sync.Mutex  // While it is held, nobody reads the sink.
	hushed  atomic.Bool // While it is set, clients send nothing.
	undo    []func()
}

// random returns a source of its own for each of those who draw, so that none depends on when another one does.
func (w *world) random(of uint64) *rand.Rand { return rand.New(rand.NewPCG(w.seed, of)) }

// Who draws, beside the clients, whose numbers begin at 1.
const (
	ofFaults = 1000 + iota
	ofWebhook
	ofStream
	ofResumed
	ofProbe
	ofProvider
	ofOrders
	ofTrips
	ofOperator
	ofRefunds
	ofWorkers
)

// think is the time between two commands of a client.
func (w *world) think(rng *rand.Rand) time.Duration {
	if w.scenario.quiet {
		return time.Duration(500+rng.IntN(2000)) * time.Millisecond
	}
	d := time.Duration(2+rng.IntN(20)) * time.Millisecond
	if w.hushed.Load() {
		d += 300 * time.Millisecond
	}
	return d
}

// run runs a scenario once. Its result has what was found; an error says why there is none.
func run(ctx context.Context, s scenario, seed uint64, size size, program, dir, plant string) (_ result, err error) {
	began := time.Now()
	w := &world{scenario: s, seed: seed, size: size, program: program, dir: dir}
	if s.quiet {
		w.size = quietSize
		w.size.most = size.most
	}
	w.faults = w.random(ofFaults)
	defer func() {
		for i := len(w.undo) - 1; i >= 0; i-- {
			w.undo[i]()
		}
	}()
	if err := w.build(ctx); err != nil {
		return result{}, fmt.Errorf("build the cluster: %w", err)
	}
	if err := w.live(ctx); err != nil {
		return result{}, err
	}
	if err := w.read(ctx); err != nil {
		return result{}, fmt.Errorf("read what the database has: %w", err)
	}
	if plant != "" && !check.Plant(plant, &w.record.run) {
		return result{}, fmt.Errorf("%q cannot be planted in this run", plant)
	}
	violations := append(w.record.found, check.All(w.record.run)...)
	return resultOf(w, violations, time.Since(began)), nil
}

// atEnd keeps what must be undone at the end of the run.
func (w *world) atEnd(f func()) { w.undo = append(w.undo, f) }

// build starts the database, the receivers and the replicas.
func (w *world) build(ctx context.Context) (err error) {
	if w.record, err = newRecord(filepath.Join(w.dir, "record.jsonl")); err != nil {
		return err
	}
	w.atEnd(func() { _ = w.record.file.Close() })
	folder := filepath.Join(w.dir, "cluster")
	if w.scenario.tmpfs != "" {
		if err := mountTmpfs(folder, w.scenario.tmpfs); err != nil {
			return err
		}
		w.atEnd(func() { unmount(folder) })
	}
	if w.cluster, err = newCluster(ctx, folder, w.scenario.cluster); err != nil {
		return err
	}
	w.atEnd(func() { w.cluster.stop(context.WithoutCancel(ctx)) })
	for _, args := range [][]string{
		{"migrate", "up"},
		{"migrate", "grants", "--role", "pawl", "--privilege", "service", "--apply"},
		{"migrate", "grants", "--role", "app", "--privilege", "caller", "--tenant", "default", "--apply"},
	} {
		if err := w.pawl(ctx, args...); err != nil {
			return err
		}
	}
	var upstreams []upstream
	for _, s := range w.cluster.servers {
		upstreams = append(upstreams, upstream{s.name, s.port})
	}
	var env []string
	if mode := w.scenario.pooler; mode != "" {
		port, stop, err := startPooler(ctx, w.cluster, mode)
		if err != nil {
			return err
		}
		w.atEnd(stop)
		upstreams = []upstream{{"pooler", port}}
		env = append(env, "PAWL_LISTEN_DATABASE_URL="+w.cluster.url("pawl", nil))
	}
	for i := range w.size.replicas {
		url := func(at func(int) string) string { return w.cluster.url("pawl", at) }
		r, err := newReplica(fmt.Sprintf("replica-%d", i+1), w.program, w.dir, upstreams, url, func(line []byte) {
			w.stalled.Lock()
			w.stalled.Unlock() //nolint:staticcheck // SA2001: whoever holds it stalls the sink.
			w.sunk(line)
		})
		if err != nil {
			return err
		}
		w.atEnd(r.close)
		r.env = append(r.env, env...)
		w.replicas = append(w.replicas, r)
		if err := r.start(); err != nil {
			return err
		}
	}
	for _, r := range w.replicas {
		if err := r.ready(ctx, time.Minute); err != nil {
			return err
		}
	}
	return nil
}

// pawl runs a command of pawl on the cluster, as its superuser.
func (w *world) pawl(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, w.program, args...)
	cmd.Env = append(os.Environ(), "DATABASE_URL="+w.cluster.writer().DSN())
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("pawl %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return nil
}

// live lets clients and receivers work, injects the scenario's faults, and waits until all has healed.
func (w *world) live(ctx context.Context) error {
	receiving, stopReceiving := context.WithCancel(ctx)
	var receivers, clients sync.WaitGroup
	defer func() {
		stopReceiving()
		receivers.Wait()
	}()
	prober := w.newCaller(ofProbe)
	if err := w.begin(ctx, prober); err != nil {
		return err
	}
	for _, s := range []*streamer{
		{name: "stream", world: w, rng: w.random(ofStream)},
		{name: "stream-resumed", world: w, rng: w.random(ofResumed), restless: true},
	} {
		receivers.Go(func() { s.run(receiving) })
	}
	w.record.run.Receivers = []check.Receiver{{Name: "sink"}, {Name: "webhook"}, {Name: "stream"}, {Name: "stream-resumed"}}

	if w.scenario.tasks {
		if err := w.beginOrders(ctx, prober); err != nil {
			return err
		}
		for n := range uint64(packers) {
			receivers.Go(func() { w.newCaller(int(ofWorkers+n)).work(receiving, "pack") })
		}
		if w.scenario.undoes {
			receivers.Go(func() { w.newCaller(ofRefunds).work(receiving, "refund") })
		}
	}
	stopping, stop := context.WithCancel(ctx)
	acting, giveUpNow := context.WithCancel(ctx)
	defer giveUpNow()
	for i := range w.size.callers {
		c := w.newCaller(1 + i)
		clients.Go(func() { c.run(acting, stopping) })
	}
	for i := range w.size.transactors {
		t := w.newTransactor(1+w.size.callers+i, i%3 == 0)
		clients.Go(func() { t.run(acting, stopping) })
	}
	if w.scenario.tasks {
		clients.Go(func() { w.newCaller(ofOrders).order(acting, stopping) })
	}
	if w.scenario.undoes {
		clients.Go(func() { w.newCaller(ofTrips).trip(acting, stopping) })
		clients.Go(func() { w.newCaller(ofOperator).operate(acting, stopping) })
	}
	if !w.scenario.quiet {
		clients.Go(func() { w.churn(stopping) })
	}
	sleep(ctx, w.size.warmUp)

	begin := time.Now()
	injected := w.scenario.inject(ctx, w)
	end := time.Now()
	w.record.run.Faults = append(w.record.run.Faults, check.Span{Begin: begin, End: end})
	if injected == nil {
		w.probe(ctx, prober, end)
		sleep(ctx, w.size.warmUp) // Some commands after the faults.
	}
	stop()
	time.AfterFunc(giveUp, giveUpNow)
	clients.Wait()
	if injected != nil {
		return fmt.Errorf("inject the faults: %w", injected)
	}
	if err := w.deliver(ctx, end); err != nil {
		return err
	}
	return ctx.Err()
}

// begin registers the workflow and the subscription, and creates the hot accounts.
func (w *world) begin(ctx context.Context, c *caller) error {
	if err := c.prepare(ctx, "PUT", "/v1/workflows/account", check.AccountDefinition, new(any)); err != nil {
		return err
	}
	hook, err := newWebhookReceiver(w.record, w.random(ofWebhook))
	if err != nil {
		return err
	}
	w.atEnd(func() { _ = hook.close() })
	var subscription struct{ Secret string }
	if err := c.prepare(ctx, "POST", "/v1/subscriptions", fmt.Sprintf(`{"url": %q, "filter": {}}`, hook.url), &subscription); err != nil {
		return err
	}
	if err := hook.secret(subscription.Secret); err != nil {
		return err
	}
	for i := range 12 {
		op := c.insist(ctx, -1, check.Op{Client: c.number, Key: fmt.Sprintf("%d-hot-%d", w.seed, i), Kind: "create", Payload: []byte(startContext)})
		if op.Status != 201 && op.Status != 200 {
			return fmt.Errorf("create an account: %d %s", op.Status, op.Code)
		}
		w.accounts.add(op.Instance, op.Version, true)
	}
	return ctx.Err()
}

// probe creates an account through each replica until that succeeds.
func (w *world) probe(ctx context.Context, c *caller, since time.Time) {
	for i, r := range w.replicas {
		bounded, cancel := context.WithDeadline(ctx, since.Add(healWithin))
		op := c.insist(bounded, i, check.Op{Client: c.number, Key: fmt.Sprintf("%d-probe-%d", w.seed, i), Kind: "create", Payload: []byte(startContext)})
		cancel()
		w.record.run.Healings = append(w.record.run.Healings, check.Healing{What: r.name, After: time.Since(since), Never: op.Status != 201})
	}
	w.record.run.HealWithin = healWithin
}

// deliver waits until every receiver has every step that the database has, and every account is at rest.
func (w *world) deliver(ctx context.Context, since time.Time) error {
	receivers := w.record.run.Receivers
	complete := map[string]time.Time{} // Since when a receiver has all.
	var last time.Time
	looked := false
	begin := time.Now()
	err := until(ctx, deliverWithin, "the deliveries", func(ctx context.Context) (bool, error) {
		steps, atRest, err := w.steps(ctx)
		if err != nil {
			return false, err
		}
		looked = true
		var missing map[string]int
		missing, last = w.record.missing(receivers, steps)
		for _, r := range receivers {
			if missing[r.Name] > 0 {
				delete(complete, r.Name)
			} else if complete[r.Name].IsZero() {
				complete[r.Name] = time.Now()
			}
		}
		if len(complete) == len(receivers) && atRest {
			return true, nil
		}
		sleep(ctx, 200*time.Millisecond) // The look is expensive.
		// A task may be silent until its deadline.
		return time.Since(last) > silence && time.Since(begin) > silence && (atRest || !w.scenario.tasks), nil
	})
	if err != nil && !looked {
		return err
	}
	for _, r := range receivers {
		at, has := complete[r.Name]
		if !has {
			at = last // A message that is missing for good is a violation of its own, and no matter of time.
		}
		w.record.run.Healings = append(w.record.run.Healings, check.Healing{
			What: "delivery to " + r.Name, After: at.Sub(since), Never: err != nil && !has,
		})
	}
	return ctx.Err()
}

// steps returns the steps that the database has, and whether no timer is to fire.
func (w *world) steps(ctx context.Context) (steps []stepID, atRest bool, err error) {
	conn, err := pgx.Connect(ctx, w.cluster.writer().DSN())
	if err != nil {
		return nil, false, err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	if err := conn.QueryRow(ctx, "select not exists (select from pawl.timer)").Scan(&atRest); err != nil {
		return nil, false, err
	}
	if w.scenario.tasks && atRest {
		const rests = "select not exists (select from pawl.task where ended_at is null) and not exists (select from pawl.undoing)"
		if err := conn.QueryRow(ctx, rests).Scan(&atRest); err != nil {
			return nil, false, err
		}
	}
	rows, err := conn.Query(ctx, "select instance_id, version, at from pawl.history")
	if err != nil {
		return nil, false, err
	}
	steps, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (s stepID, err error) {
		var at time.Time
		err = row.Scan(&s.instance, &s.version, &at)
		s.at = at.UnixMicro()
		return s, err
	})
	return steps, atRest, err
}

// read takes what the database has into the record.
func (w *world) read(ctx context.Context) error {
	conn, err := pgx.Connect(ctx, w.cluster.writer().DSN())
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	var hasLog bool
	if err := conn.QueryRow(ctx, "select to_regclass('pawl.log') is not null").Scan(&hasLog); err != nil {
		return err
	}
	place := "0::bigint, 0::bigint"
	if hasLog {
		place = `coalesce((select l.position from pawl.log l
				where l.tenant_id = h.tenant_id and l.instance_id = h.instance_id and l.version = h.version), 0),
			coalesce((select max(e.epoch) from pawl.log l join pawl.log_epoch e on e.first_position < l.position
				where l.tenant_id = h.tenant_id and l.instance_id = h.instance_id and l.version = h.version), 0)`
	}
	run := &w.record.run
	rows, err := conn.Query(ctx, `
		select h.instance_id, h.version, h.kind, coalesce(h.event, ''), coalesce(h.from_state, ''), h.to_state, h.status,
			coalesce(h.key, ''), h.context, h.payload, h.at, `+place+`
		from pawl.history h
		join pawl.instance i on i.tenant_id = h.tenant_id and i.id = h.instance_id
		where i.workflow = 'account'
		order by h.instance_id, h.version`)
	if err != nil {
		return err
	}
	run.Steps, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (s check.Step, err error) {
		err = row.Scan(&s.Instance, &s.Version, &s.Kind, &s.Event, &s.From, &s.To, &s.Status, &s.Key, &s.Context, &s.Payload, &s.At, &s.Position, &s.Epoch)
		return s, err
	})
	if err != nil {
		return err
	}
	if rows, err = conn.Query(ctx, "select instance_id, due_at, armed_version from pawl.timer"); err != nil {
		return err
	}
	if run.Timers, err = pgx.CollectRows(rows, pgx.RowToStructByPos[check.Timer]); err != nil {
		return err
	}
	if rows, err = conn.Query(ctx, `
		select k.key::text, k.decision::text, k.instance_id, k.version
		from pawl.idempotency_key k
		where not exists (select from pawl.instance i where i.tenant_id = k.tenant_id and i.id = k.instance_id and i.workflow <> 'account')`); err != nil {
		return err
	}
	if run.Keys, err = pgx.CollectRows(rows, pgx.RowToStructByPos[check.Key]); err != nil {
		return err
	}
	if hasLog {
		if rows, err = conn.Query(ctx, "select epoch, first_position, began_at from pawl.log_epoch order by epoch"); err != nil {
			return err
		}
		if run.Epochs, err = pgx.CollectRows(rows, pgx.RowToStructByPos[check.Epoch]); err != nil {
			return err
		}
	}
	if w.scenario.tasks {
		if err := w.readOrders(ctx, conn); err != nil {
			return err
		}
		w.record.forgetOrders()
	}
	run.End = time.Now()
	w.record.line("run", map[string]any{
		"begin": run.Begin, "end": run.End, "steps": run.Steps, "timers": run.Timers, "keys": run.Keys, "epochs": run.Epochs, "orders": run.Orders, "trips": run.Trips,
		"faults": run.Faults, "losses": run.Losses, "healings": run.Healings,
	})
	return w.saysRestored()
}

// saysRestored wants a replica to have said so in its log if the scenario restores a copy.
func (w *world) saysRestored() error {
	if !w.scenario.restores {
		return nil
	}
	for _, r := range w.replicas {
		log, err := os.ReadFile(r.log.Name())
		if err != nil {
			return err
		}
		if strings.Contains(string(log), "restored") {
			return nil
		}
	}
	w.record.violation("restored", "want a replica to log that the database was restored, got no such line")
	return nil
}

// resultOf counts what a run has done.
func resultOf(w *world, violations []check.Violation, took time.Duration) result {
	run := w.record.run
	r := result{scenario: w.scenario.name, seed: w.seed, attempts: len(run.Ops), violations: violations, took: took, internal: w.record.internal}
	kept := map[string]bool{}
	for _, s := range run.Steps {
		if s.Key != "" {
			kept[s.Key] = true
		}
	}
	acknowledged := map[string]check.Op{}
	for _, op := range run.Ops {
		switch {
		case op.Status == 0 || op.Status >= 500:
			r.unknown++
		case op.Status < 300 && op.Key != "":
			acknowledged[op.Key] = op
		}
	}
	r.acknowledged = len(acknowledged)
	for key, op := range acknowledged {
		if kept[key] {
			continue
		}
		if op.Async {
			r.lostAsync++
		} else {
			r.lost++
		}
	}
	for _, h := range run.Healings {
		if h.After > r.healed {
			r.healed, r.slowest = h.After, h.What
		}
		r.never = r.never || h.Never
	}
	type message struct {
		receiver string
		id       uuid.UUID
		version  int64
		epoch    int64
	}
	seen := map[message]bool{}
	for _, m := range run.Received {
		if m.Lost {
			continue
		}
		key := message{m.Receiver, m.Instance, m.Version, m.Epoch}
		if seen[key] {
			r.repeats++
		}
		seen[key] = true
	}
	return r
}

var errSkip = errors.New("skipped")
