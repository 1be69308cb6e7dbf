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
	"time"
)

// What is measured of a tenant while another one is a burden.
const (
	quietConnections = 4
	// quietEvery is the time between the commands of a connection: the latency is measured, not the rate.
	quietEvery = 20 * time.Millisecond
	// neighbourTurns is how often the commands are measured alone and beside the neighbour, for half of Config.Duration
	// each. The ratios vary from one turn to the next, so the median of them is told.
	neighbourTurns = 3
	// mostNeighbour is the target of both ratios beside what is slow or stalled, and mostFlood beside a flood;
	// mostNeighbourRSS that of the memory in bytes, and mostStop that of the time that SIGTERM takes, in seconds: the
	// default of --shutdown-timeout.
	mostNeighbour, mostFlood, mostNeighbourRSS, mostStop = 3, 2, 300e6, 10
)

// neighbour has the figures of one tenant's single commands beside a burden that another tenant is.
type neighbour struct {
	Name string `json:"name"`
	// P50Ratio and P99Ratio divide the latency beside the neighbour by the one alone: medians of the turns.
	P50Ratio float64 `json:"p50_ratio"`
	P99Ratio float64 `json:"p99_ratio"`
	// P99 and P99Alone are those latencies in all turns together, in milliseconds. Most is the target of the ratios.
	P99      float64 `json:"p99_ms"`
	P99Alone float64 `json:"p99_alone_ms"`
	Most     float64 `json:"most_ratio"`
	// PeakRSS is the service's in bytes beside the neighbour; nil if it is unknown.
	PeakRSS *int64 `json:"peak_rss_bytes"`
	// Stop is how long the service took to end after SIGTERM beside the neighbour, in seconds.
	Stop float64 `json:"stop_s"`
}

// A burden is a tenant that asks for too much. run asks until its context ends. lift, if not nil, is called
// afterwards, so that nothing is left to do for the service.
type burden struct {
	name string
	run  func(ctx context.Context)
	lift func(ctx context.Context) error
}

// The workflows of the burdens. A guard of slowGuard takes longer than a statement may for the array of
// longArray, and some tenths of a second for a third of it.
const (
	slowGuard = `"exists($.%s.a[*] ? (exists($.%[1]s.a[*] ? (@ > 5000000))))"`
	longArray = 9000

	recursiveSchema = `{"$ref": "#/$defs/section", "$defs": {
		"base": {"type": "object", "properties": {"title": {"type": "string"}, "child": {"$ref": "#/$defs/section"}}},
		"section": {"allOf": [{"$ref": "#/$defs/base"}, {"properties": {"child": {"$ref": "#/$defs/section"}}}]}}}`
	// recursiveDepth makes the check of a document take 2^recursiveDepth steps.
	recursiveDepth = 22
)

// burdenWorkflows returns the definitions of the workflows that the burdens use, by name.
func burdenWorkflows() map[string]string {
	const states = `{"initial": "A", %s"states": {"A": {"on": {"go": {"target": "A"%s}, "end": "Z"}%s}, "Z": {"type": "final"}}}`
	return map[string]string{
		"bench-slow":             fmt.Sprintf(states, "", `, "guard": `+fmt.Sprintf(slowGuard, "payload"), ""),
		"bench-timer":            fmt.Sprintf(states, "", "", `, "after": {"100ms": {"target": "Z", "guard": `+fmt.Sprintf(slowGuard, "context")+"}}"),
		"bench-tick":             fmt.Sprintf(states, "", "", `, "after": {"1s": "Z"}`),
		"bench-schema-recursive": fmt.Sprintf(states, `"context_schema": `+recursiveSchema+", ", "", ""),
	}
}

// array returns a JSON object with an array of n numbers.
func array(n int) string { return `{"a":[` + strings.Repeat("1,", n-1) + "1]}" }

// nested returns a JSON object with n objects within.
func nested(n int) string { return strings.Repeat(`{"child":`, n) + "{}" + strings.Repeat("}", n) }

// measureNeighbours measures one tenant's single commands alone and beside another tenant that is a burden by what is
// slow, large or stalled.
func (b *benchmark) measureNeighbours(ctx context.Context) error {
	return b.measureBeside(ctx, mostNeighbour, "slow-guards", "slow-timers", "schemas", "stalled-readers")
}

// measureFairness measures one tenant's single commands alone and beside another tenant that floods the service.
func (b *benchmark) measureFairness(ctx context.Context) error {
	return b.measureBeside(ctx, mostFlood, "batches", "lists", "streams", "webhooks", "timers", "registrations")
}

// measureBeside measures one tenant's single commands alone and beside each of the burdens, which another tenant is. most
// is the target of the ratios.
func (b *benchmark) measureBeside(ctx context.Context, most float64, chosen ...string) (err error) {
	for name, text := range burdenWorkflows() {
		if err := b.call(ctx, http.MethodPut, "/v1/workflows/"+name, json.RawMessage(text), nil); err != nil {
			return err
		}
	}
	names, restart, undo, err := b.tenants(ctx, 2, "read", "create", "fire", "deliver")
	if err != nil {
		return err
	}
	defer func() {
		b.token = ""
		err = errors.Join(err, undo(), b.restartService(ctx))
	}()
	quiet := func(int) string { return names[0] }
	count := min(b.Instances, tenants*instancesPerTenant)
	if err := b.create(ctx, creation{workflow: "bench", total: count, connections: 1, bearer: quiet}); err != nil {
		return err
	}
	ids, err := b.readIDs(ctx, "select id::text from pawl.instance where tenant_id = $1", names[0])
	if err != nil {
		return err
	}
	b.token = names[1]
	burdens, closeBurdens, err := b.burdens(ctx, count)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeBurdens()) }()
	for _, name := range chosen {
		burden := burdens[slices.IndexFunc(burdens, func(b burden) bool { return b.name == name })]
		n, err := b.measureNeighbour(ctx, burden, ids, quiet)
		if err != nil {
			return fmt.Errorf("%s: %w", burden.name, err)
		}
		n.Most = most
		b.report.Neighbours = append(b.report.Neighbours, n)
		if err := restart(); err != nil {
			return err
		}
	}
	return nil
}

// measureNeighbour measures single commands alone and beside a burden, in turns. At the end it stops the service
// while the burden goes on.
func (b *benchmark) measureNeighbour(ctx context.Context, burden burden, ids []string, bearer func(int) string) (n neighbour, err error) {
	commands := func() *load {
		l := b.transitions(min(quietConnections, len(ids)))
		l.bearer, l.every = bearer, quietEvery
		return l
	}
	d := b.Duration / 2
	start := time.Now()
	var sums [2]loadResult
	var used [2]reading
	used[0].at, used[1].at = start, start
	var last *load
	var p50s, p99s []float64
	n.Name = burden.name
	for turn := range neighbourTurns {
		var results [2]*loadResult
		for i := range sums {
			stop := func() {}
			if i == 1 {
				stop = background(ctx, burden.run)
				pause(ctx, b.warmUp(d)) // For the burden to be one.
				resetPeakRSS(b.meter.service)
			}
			last = commands()
			r, before, after, err := b.observe(ctx, last, ids, b.warmUp(d), d)
			if i == 1 && turn == neighbourTurns-1 && err == nil {
				n.PeakRSS = larger(n.PeakRSS, peakRSS(b.meter.service))
				began := time.Now()
				err = b.service.stop(ctx)
				n.Stop = time.Since(began).Seconds()
			} else if i == 1 {
				n.PeakRSS = larger(n.PeakRSS, peakRSS(b.meter.service))
			}
			stop()
			if i == 1 && burden.lift != nil {
				err = errors.Join(err, burden.lift(ctx))
			}
			if err != nil {
				return n, err
			}
			results[i] = r
			sums[i].add(r)
			sums[i].elapsed += r.elapsed
			used[i] = used[i].plus(before, after)
			if i == 1 && turn < neighbourTurns-1 {
				pause(ctx, b.warmUp(d)) // For the last calls of the burden to end.
			}
		}
		ratio := func(p float64) float64 { return results[1].percentile(p) / max(results[0].percentile(p), 0.001) }
		p50s, p99s = append(p50s, ratio(0.5)), append(p99s, ratio(0.99))
	}
	for i, name := range []string{"alone", burden.name} {
		slices.Sort(sums[i].latencies)
		b.add(name, last, &sums[i], reading{at: start}, used[i])
	}
	n.P99Alone, n.P99 = sums[0].percentile(0.99), sums[1].percentile(0.99)
	n.P50Ratio, n.P99Ratio = median(p50s), median(p99s)
	b.remark("beside %s: p50 %.2f and p99 %.2f of alone (%.1f in the turns), which is %.1f ms, peak RSS %s MB, SIGTERM %.1f s", n.Name, n.P50Ratio, n.P99Ratio, p99s, n.P99Alone, megabytes(n.PeakRSS), n.Stop)
	return n, nil
}

// median returns the middle one of an odd number of values, which it sorts.
func median(values []float64) float64 {
	slices.Sort(values)
	return values[len(values)/2]
}

// larger returns the larger of two numbers, of which nil is unknown.
func larger(a, b *int64) *int64 {
	if a == nil || b != nil && *b > *a {
		return b
	}
	return a
}

// background runs a function until stop is called, which returns when the function has.
func background(ctx context.Context, run func(context.Context)) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		run(ctx)
		close(done)
	}()
	return func() {
		cancel()
		<-done
	}
}

// burdens prepares the burdens, which are all of the tenant of b.token. count is how many instances they may have.
func (b *benchmark) burdens(ctx context.Context, count int) (list []burden, closed func() error, err error) {
	bearer := func(int) string { return b.token }
	for workflow, n := range map[string]int{"bench": count, "bench-slow": quietConnections} {
		if err := b.create(ctx, creation{workflow: workflow, total: n, connections: 1, bearer: bearer}); err != nil {
			return nil, nil, err
		}
	}
	slow, err := b.readIDs(ctx, "select id::text from pawl.instance where tenant_id = $1 and workflow = 'bench-slow'", b.token)
	if err != nil {
		return nil, nil, err
	}
	own, err := b.readIDs(ctx, "select id::text from pawl.instance where tenant_id = $1 and workflow = 'bench'", b.token)
	if err != nil {
		return nil, nil, err
	}
	// The contexts of these make a page of a list as large as it can be.
	large := json.RawMessage(`{"context":` + array(longArray*2) + "}")
	for range min(count, 200) {
		if err := b.call(ctx, http.MethodPost, "/v1/workflows/bench-slow/instances", large, nil); err != nil {
			return nil, nil, err
		}
	}
	creates := func(workflow, document string) func(*client, int) {
		keys, body := b.keys(), []byte(`{"context":`+document+"}")
		return func(c *client, i int) { c.post("/v1/workflows/"+workflow+"/instances", "", "", keys, i, body) }
	}
	slowBodies := [][]byte{[]byte(`{"payload":` + array(longArray) + "}"), []byte(`{"payload":` + array(longArray/3) + "}")}
	slowKeys, batchKeys := b.keys(), b.keys()
	hung, err := serveHanging(ctx)
	if err != nil {
		return nil, nil, err
	}
	fan := b.fanOut(hung.url, own, min(count, 300))
	return []burden{
		{"slow-guards", b.insist(bearer, quietConnections, 0, slow, func(c *client, i int) {
			c.post(instancesPath, c.id(i), firePath, slowKeys, i, slowBodies[c.number%len(slowBodies)])
		}), nil},
		{"slow-timers", b.insist(bearer, 1, 100*time.Millisecond, slow, creates("bench-timer", array(longArray))), b.endTimers},
		{"schemas", b.insist(bearer, quietConnections, 0, slow, creates("bench-schema-recursive", nested(recursiveDepth))), nil},
		{"batches", b.insist(bearer, batchConnections, 0, own, func(c *client, i int) {
			c.batch(i*fullBatch, (i+1)*fullBatch, func(n int) {
				// Half of the clients fire at few instances, so that most of their commands wait for others.
				id := c.id(n)
				if c.number%2 == 0 {
					id = c.id(n % 4)
				}
				c.body = append(c.body, `{"op":"fire","event":"go","payload":{"n":1},"instance_id":"`...)
				c.body = append(append(c.body, id...), `","key":"`...)
				c.body = append(c.key(c.body, batchKeys, n), `"}`...)
			})
		}), nil},
		{"lists", b.insist(bearer, 32, 0, slow, func(c *client, i int) {
			c.get("/v1/instances?limit=200&", []string{"stuck_for=1ms", "workflow=bench-slow", "sort=-state_changed_at"}[i%3])
		}), nil},
		{"stalled-readers", b.stall, nil},
		{"webhooks", fan, func(ctx context.Context) error {
			_, err := b.conn.Exec(ctx, "delete from pawl.subscription where tenant_id = $1", b.token)
			return err
		}},
		{"streams", b.readStreams(own), nil},
		{"timers", b.insist(bearer, 1, 100*time.Millisecond, own, func(c *client, i int) {
			c.batch(i*tickBatch, (i+1)*tickBatch, func(n int) {
				c.body = append(c.body, `{"op":"create","workflow":"bench-tick","key":"`...)
				c.body = append(c.key(c.body, batchKeys, n), `"}`...)
			})
		}), nil},
		{"registrations", b.register, nil},
	}, hung.close, nil
}

// fullBatch is how many commands a request may have.
const fullBatch = 1000

// tickBatch is how many timers a request arms that are due a second later.
const tickBatch = 200

// eventStreams is how many streams a tenant reads at once.
const eventStreams = 200

// readStreams returns a burden of streams of all steps from the first one on, while steps are made.
func (b *benchmark) readStreams(ids []string) func(context.Context) {
	keys := b.keys()
	fire := b.insist(func(int) string { return b.token }, 2, 10*time.Millisecond, ids, func(c *client, i int) {
		c.post(instancesPath, c.id(i), firePath, keys, i, []byte(fireBody))
	})
	return func(ctx context.Context) {
		var all sync.WaitGroup
		for range eventStreams {
			all.Go(func() {
				for ctx.Err() == nil {
					b.readStream(ctx)
				}
			})
		}
		fire(ctx)
		all.Wait()
	}
}

// readStream reads one stream until it or the context ends.
func (b *benchmark) readStream(ctx context.Context) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+b.service.address+"/v1/events?from=start", nil)
	if err != nil {
		return
	}
	request.Header.Set("Authorization", "Bearer "+b.token)
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		pause(ctx, callPause)
		return
	}
	defer func() { _ = response.Body.Close() }()
	_, _ = io.Copy(io.Discard, response.Body) // It ends with the context.
}

// register registers one version of a workflow after the other. Tenants may not, so a caller of the deployment does.
func (b *benchmark) register(ctx context.Context) {
	var all sync.WaitGroup
	for client := range quietConnections {
		all.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				definition := fmt.Sprintf(`{"initial": "A", "states": {"A": {"on": {"go": "S%d"}}, "S%[1]d": {"type": "final"}}}`, n)
				// A refusal is one more request of the burden.
				_, _ = b.callOnce(ctx, b.deployer, "", http.MethodPut, fmt.Sprintf("/v1/workflows/bench-registered-%d", client), json.RawMessage(definition), nil)
			}
		})
	}
	all.Wait()
}

// insist returns a burden of a number of clients. They send one request after the other, whatever the answers; but
// a burden that may not do what it does is none, and ends the run.
func (b *benchmark) insist(bearer func(int) string, connections int, every time.Duration, ids []string, write func(*client, int)) func(context.Context) {
	return func(ctx context.Context) {
		l := &load{connections: min(connections, len(ids)), bearer: bearer, every: every, write: write, applied: func(a *answer) int {
			if a.status == http.StatusUnauthorized || a.status == http.StatusForbidden {
				b.end(fmt.Errorf("a burden is refused with status %d", a.status))
			}
			return 1
		}}
		// The context ends it.
		_, _ = l.run(ctx, b.service.address, ids, 0, maxDuration, func() {}, func() {})
	}
}

// stall has clients ask for streams from the first step on, and for large pages, and read no answer.
func (b *benchmark) stall(ctx context.Context) {
	var all sync.WaitGroup
	for n := range 80 {
		path := []string{"/v1/events?from=start", "/v1/instances?workflow=bench-slow&limit=200"}[n%2]
		all.Go(func() {
			b.stallOnce(ctx, path)
		})
	}
	all.Wait()
}

// stallOnce sends a request, and keeps the connection without reading the answer until the context ends.
func (b *benchmark) stallOnce(ctx context.Context, path string) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", b.service.address)
	if err != nil {
		return
	}
	defer func() { _ = conn.Close() }()
	_ = conn.(*net.TCPConn).SetReadBuffer(4 << 10)
	request := "GET " + path + " HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer " + b.token + "\r\n\r\n"
	if _, err := io.WriteString(conn, request); err != nil {
		return
	}
	<-ctx.Done()
}

// fanOut returns a burden of steps that are each told to a number of subscriptions, whose endpoint hangs.
func (b *benchmark) fanOut(url string, ids []string, count int) func(context.Context) {
	return func(ctx context.Context) {
		body := json.RawMessage(`{"url": ` + strconv.Quote(url) + `, "filter": {}}`)
		for range count {
			if err := b.call(ctx, http.MethodPost, "/v1/subscriptions", body, nil); err != nil {
				return
			}
		}
		keys := b.keys()
		l := &load{
			connections: 1, bearer: func(int) string { return b.token }, requests: func(int) int { return count },
			write:   func(c *client, i int) { c.post(instancesPath, c.id(i), firePath, keys, i, []byte(fireBody)) },
			applied: func(*answer) int { return 1 },
		}
		_, _ = l.run(ctx, b.service.address, ids, 0, maxDuration, nil, nil)
		<-ctx.Done()
	}
}

// endTimers ends the instances whose timers are slow.
func (b *benchmark) endTimers(ctx context.Context) error {
	_, err := b.conn.Exec(ctx, `
		select count(pawl.fire_one(i.id, 'end', p_tenant => i.tenant_id))
		from pawl.instance i
		where i.tenant_id = $1 and i.workflow = 'bench-timer' and i.status = 'active'`, b.token)
	return err
}

// hanging is an endpoint that answers no request.
type hanging struct {
	url   string
	close func() error
}

func serveHanging(ctx context.Context) (hanging, error) {
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return hanging{}, err
	}
	server := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
	})}
	go func() { _ = server.Serve(listener) }() // It returns when the server is closed.
	return hanging{"http://" + listener.Addr().String(), server.Close}, nil
}
