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
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	mostTasks         = 10_000 // That work and invoke have at most.
	leastWork         = 1000   // Completes per second, of two replicas.
	workers           = 4
	workerConnections = 16   // Of each worker. Each connection has tasks of its own.
	perClaim          = 20   // Tasks.
	requestRate       = 100  // Steps per second while the delay of requests is measured.
	requestP50        = 30   // The target, in milliseconds.
	leastCalls        = 1500 // Per second.
	callsAtOnce       = 256
	requestConns      = 20
)

const workflowWithWork = `{"name": "bench-work", "initial": "PACKING", "states": {
	"PACKING": {"invoke": {"pack": {"work": {"topic": "bench", "input": {"n": "$.context.n"}}, "deadline": "1h",
		"done": "DONE", "error": "FAILED", "unknown": "FAILED"}}},
	"DONE": {"type": "final"}, "FAILED": {"type": "final", "outcome": "failed"}}}`

const workflowWithCalls = `{"name": "bench-invoke", "initial": "CHARGING", "states": {
	"CHARGING": {"invoke": {"charge": {
		"http": {"connection": "bench", "method": "POST", "path": "/charges", "body": {"n": "$.context.n"}},
		"idempotency": {"window": "24h"}, "deadline": "1h", "done": "DONE", "error": "FAILED", "unknown": "FAILED"}}},
	"DONE": {"type": "final"}, "FAILED": {"type": "final", "outcome": "failed"}}}`

// tasksOf registers a workflow and creates instances of it, each of which starts a task.
func (b *benchmark) tasksOf(ctx context.Context, workflow, definition string) (count int, err error) {
	if err := b.call(ctx, http.MethodPut, "/v1/workflows/"+workflow, json.RawMessage(definition), nil); err != nil {
		return 0, err
	}
	count = min(b.Instances, mostTasks)
	if err := b.create(ctx, creation{workflow: workflow, total: count, connections: creators}); err != nil {
		return 0, err
	}
	// Otherwise autovacuum would do so during the measurement.
	_, err = b.conn.Exec(ctx, "vacuum (analyze) pawl.task, pawl.task_attempt, pawl.instance, pawl.history")
	return count, err
}

// doneAtOnce wants each task of a workflow to be done by one attempt, and to have made one step.
func (b *benchmark) doneAtOnce(ctx context.Context, workflow string) error {
	var other int
	err := b.conn.QueryRow(ctx, `
		select count(*)
		from pawl.instance i
		left join pawl.task t on t.tenant_id = i.tenant_id and t.instance_id = i.id
		where i.workflow = $1
			and (i.state, i.version, t.status, t.attempts, t.result_version) is distinct from ('DONE', 2, 'done', 1, 2)`, workflow).Scan(&other)
	if err == nil && other > 0 {
		err = fmt.Errorf("%d tasks of %s were not done by one attempt", other, workflow)
	}
	return err
}

// measureWork lets four workers claim and complete tasks over two replicas.
func (b *benchmark) measureWork(ctx context.Context) (err error) {
	count, err := b.tasksOf(ctx, "bench-work", workflowWithWork)
	if err != nil {
		return err
	}
	second, stop, err := b.startAnother(ctx)
	defer func() { err = errors.Join(err, stop()) }()
	if err != nil {
		return err
	}
	bounded, cancel := context.WithTimeoutCause(ctx, drainWithin, fmt.Errorf("tasks are still open after %s", drainWithin))
	defer cancel()
	var left, claimedTwice atomic.Int64
	left.Store(int64(count))
	var seen sync.Map
	keys, sum := b.keys(), loadResult{}
	all := make([]*worker, workers*workerConnections)
	b.meter.another = second.process
	defer func() { b.meter.another = 0 }()
	before, began := b.meter.read(ctx), time.Now()
	var working sync.WaitGroup
	for n := range all {
		w := &worker{name: fmt.Sprintf("worker-%d", n%workers), keys: keys, left: &left}
		w.client = client{load: &load{write: w.write, applied: status(http.StatusOK)}, number: n, address: b.service.address}
		if n%2 == 1 {
			w.address = second.address
		}
		w.claimed = func(id string) {
			if _, twice := seen.LoadOrStore(id, true); twice {
				claimedTwice.Add(1)
			}
		}
		all[n] = w
		working.Go(func() { w.work(bounded) })
	}
	working.Wait()
	after := b.meter.read(ctx)
	var ended time.Time
	for _, w := range all {
		sum.add(&w.loadResult)
		sum.operations += len(w.latencies)
		if w.last.After(ended) {
			ended = w.last
		}
	}
	if bounded.Err() != nil {
		return context.Cause(bounded)
	}
	slices.Sort(sum.latencies)
	sum.elapsed = ended.Sub(began)
	b.add("work", &load{connections: len(all)}, &sum, before, after)
	if n := claimedTwice.Load(); n > 0 {
		err = fmt.Errorf("%d tasks were claimed twice", n)
	}
	return errors.Join(err, b.doneAtOnce(ctx, "bench-work"))
}

// A worker is one connection of a worker, which claims tasks and completes one after the other.
type worker struct {
	client
	name, keys string
	claimed    func(id string)
	left       *atomic.Int64 // The tasks that are not completed.
	task       *workerTask   // The one to complete; nil to claim.
	last       time.Time     // When its last complete was answered.
}

type workerTask struct{ ID, Lease string }

func (w *worker) write(c *client, i int) {
	if w.task == nil {
		c.body = fmt.Appendf(c.body[:0], `{"worker":"%s","max":%d,"wait":"1s"}`, w.name, perClaim)
		c.post("/v1/work/bench/claim", "", "", w.keys, i, c.body)
		return
	}
	c.body = fmt.Appendf(c.body[:0], `{"lease":"%s","result":{"parcel":1}}`, w.task.Lease)
	c.post("/v1/tasks/", w.task.ID, "/complete", "", 0, c.body)
}

// work works until no task is left.
func (w *worker) work(ctx context.Context) {
	defer w.hangUp()
	for i := 0; w.left.Load() > 0; i++ {
		if !w.ask(ctx, i) {
			return
		}
		var got struct{ Tasks []workerTask }
		if err := json.Unmarshal(w.answer.body, &got); err != nil {
			w.errors++
			w.firstError = err.Error()
			return
		}
		for t := range got.Tasks {
			w.claimed(got.Tasks[t].ID)
			w.task = &got.Tasks[t]
			began := time.Now()
			if !w.ask(ctx, 0) {
				return
			}
			w.last = time.Now()
			w.latencies = append(w.latencies, int32(w.last.Sub(began).Microseconds()))
			w.left.Add(-1)
		}
		w.task = nil
	}
}

// ask makes a request until it succeeds. It returns false if the context ends before.
func (w *worker) ask(ctx context.Context, i int) bool {
	for ctx.Err() == nil {
		if w.judge(w.exchange(ctx, i)) > 0 {
			return true
		}
		pause(ctx, refusedPause)
	}
	return false
}

// measureInvoke creates instances while the service has no workers, and so calls nobody. Then it starts a service that makes
// the calls of all of them to a provider in this process: their latency is from the claim to the settling. After that it measures how long a request comes after its step.
func (b *benchmark) measureInvoke(ctx context.Context) (err error) {
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	p := &provider{came: map[string]time.Time{}}
	server := &http.Server{Handler: p, ReadHeaderTimeout: time.Minute}
	go func() { _ = server.Serve(listener) }() // It returns when the server is closed.
	defer func() { err = errors.Join(err, server.Close()) }()
	const allow = "PAWL_WEBHOOK_ALLOW_PRIVATE=true"
	if err := b.restartService(ctx, allow, "PAWL_WORKERS=false"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.restartService(ctx)) }()
	body := json.RawMessage(`{"base_url": "http://` + listener.Addr().String() + `", "auth": {"type": "none"}, "concurrency": ` + strconv.Itoa(callsAtOnce) + `}`)
	if err := b.call(ctx, http.MethodPut, "/v1/connections/bench", body, nil); err != nil {
		return err
	}
	count, err := b.tasksOf(ctx, "bench-invoke", workflowWithCalls)
	if err != nil {
		return err
	}
	before := b.meter.read(ctx)
	if err := b.restartService(ctx, allow); err != nil {
		return err
	}
	before.service = 0 // Of the new process.
	if err := b.settled(ctx); err != nil {
		return err
	}
	after := b.meter.read(ctx)
	calls := loadResult{operations: count}
	if calls.elapsed, err = b.callsTook(ctx); err != nil {
		return err
	}
	if calls.latencies, err = b.microseconds(ctx, "select ended_at - started_at from pawl.task_attempt where kind = 'call'"); err != nil {
		return err
	}
	b.add("calls", &load{connections: callsAtOnce}, &calls, before, after)

	p.forget()
	keys, create := b.keys(), []byte(createBody)
	paced := &load{
		connections: requestConns, every: requestConns * time.Second / requestRate,
		write:   func(c *client, i int) { c.post("/v1/workflows/bench-invoke/instances", "", "", keys, i, create) },
		applied: status(http.StatusCreated),
	}
	if _, err := b.measure(ctx, "invoke", b.Duration, paced); err != nil {
		return err
	}
	if err := b.settled(ctx); err != nil {
		return err
	}
	delays, err := b.delays(ctx, p)
	if err != nil {
		return err
	}
	p50 := delays.percentile(0.5)
	b.report.RequestP50 = &p50
	b.remark("invoke: at %d steps per second, a request comes %.1f ms (p50) and %.1f ms (p99) after its step", requestRate, p50, delays.percentile(0.99))
	if n := p.repeats(); n > 0 {
		err = fmt.Errorf("%d keys came twice", n)
	}
	return errors.Join(err, b.doneAtOnce(ctx, "bench-invoke"))
}

// settled waits until no call is open.
func (b *benchmark) settled(ctx context.Context) (err error) {
	open := true
	waited := b.await(ctx, func() bool {
		pause(ctx, 20*time.Millisecond)
		err = b.conn.QueryRow(ctx, "select exists (select from pawl.task where status in ('pending', 'sent', 'reconciling') and connection is not null)").Scan(&open)
		return err != nil || !open
	})
	return errors.Join(err, waited)
}

// callsTook returns the time from the first claim of a call to the end of the last call.
func (b *benchmark) callsTook(ctx context.Context) (took time.Duration, err error) {
	err = b.conn.QueryRow(ctx, "select max(ended_at) - min(started_at) from pawl.task_attempt where kind = 'call'").Scan(&took)
	return took, err
}

// microseconds returns what a query selects, in order.
func (b *benchmark) microseconds(ctx context.Context, sql string) ([]int32, error) {
	rows, err := b.conn.Query(ctx, "select (extract(epoch from x) * 1000000)::integer from ("+sql+") as t (x) order by x")
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[int32])
}

// delays returns how long each request came after its step.
func (b *benchmark) delays(ctx context.Context, p *provider) (r loadResult, err error) {
	rows, err := b.conn.Query(ctx, "select id::text, created_at from pawl.task where workflow = 'bench-invoke'")
	if err != nil {
		return r, err
	}
	defer rows.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	for rows.Next() {
		var id string
		var at time.Time
		if err := rows.Scan(&id, &at); err != nil {
			return r, err
		}
		if came, there := p.came[id]; there {
			r.latencies = append(r.latencies, int32(came.Sub(at).Microseconds()))
		}
	}
	slices.Sort(r.latencies)
	return r, rows.Err()
}

// A provider answers each call, and notes when it came.
type provider struct {
	mu    sync.Mutex
	came  map[string]time.Time // By key.
	again int
}

// ServeHTTP charges.
func (p *provider) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	now := time.Now()
	_, _ = io.Copy(io.Discard, r.Body)
	key := r.Header.Get("Idempotency-Key")
	p.mu.Lock()
	if _, there := p.came[key]; there {
		p.again++
	}
	p.came[key] = now
	p.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	_, _ = io.WriteString(w, `{"id":"charge"}`)
}

func (p *provider) forget() {
	p.mu.Lock()
	defer p.mu.Unlock()
	clear(p.came)
}

// repeats is how many requests had a key that had come before.
func (p *provider) repeats() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.again
}

// measureUntasked fires events of a workflow without tasks, and the same ones of a workflow that has a task in another state.
func (b *benchmark) measureUntasked(ctx context.Context) error {
	const task = `"PACKING": {"invoke": {"pack": {"work": {"topic": "bench"}, "deadline": "1h", "done": "DONE", "error": "DONE", "unknown": "DONE"}}},`
	var sides []side
	for _, s := range []struct{ name, stop, states string }{{"plain", `"stop": "DONE"`, ""}, {"untasked", `"stop": "PACKING"`, task}} {
		definition := strings.NewReplacer(`"bench"`, `"bench-`+s.name+`"`, `"stop": "DONE"`, s.stop, `"DONE": {`, s.states+`"DONE": {`).Replace(string(workflow))
		ids, err := b.instancesOf(ctx, "bench-"+s.name, []byte(definition))
		if err != nil {
			return err
		}
		sides = append(sides, side{s.name, func() *load { return b.transitions(manyConnections) }, ids})
	}
	return b.measurePair(ctx, sides...)
}
