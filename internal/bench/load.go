package bench

import (
	"bufio"
	"context"
	"fmt"
	"math"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// refusedPause is how long a client waits after a refusal with a Retry-After. It is shorter
	// than the header asks for, which may be longer than the measurement.
	refusedPause = 100 * time.Millisecond
	// answerWithin bounds the wait for the last answers, beyond the time of the load.
	answerWithin = 30 * time.Second
)

// load is a closed loop of a number of clients: each sends its next request when the last one was
// answered.
type load struct {
	connections int
	// write puts the i-th request of a client into its buffer out.
	write func(c *client, i int)
	// applied returns the number of operations that an answer confirms; 0 makes it an error.
	applied func(a *answer) int
	// bearer, if set, returns the bearer token of a client.
	bearer func(client int) string
	// address is that of the service; empty for the one of the run.
	address string
	// process is that of the service at the address; 0 for the one of the run.
	process int
	// every is the least time between the requests of a client; 0 sends the next one as soon as
	// the last one was answered.
	every time.Duration
	// requests, if set, is the number of requests of a client. Then nothing is measured, and the
	// duration is the longest time that the load may take.
	requests func(client int) int
}

// loadResult is what the clients measured.
type loadResult struct {
	elapsed    time.Duration
	operations int
	latencies  []int32 // Of each request, in microseconds, sorted.

	// all, errors and refused count the whole load, with the warm-up and what was answered after
	// the measurement; all counts operations, the others requests.
	all, errors, refused int
	firstError           string
}

// percentile returns a latency in milliseconds, or 0 without any request; p is from 0 to 1.
func (r *loadResult) percentile(p float64) float64 {
	if len(r.latencies) == 0 {
		return 0
	}
	return float64(r.latencies[int(p*float64(len(r.latencies)-1))]) / 1000
}

func (r *loadResult) rate() float64 { return float64(r.operations) / max(r.elapsed.Seconds(), 1e-9) }

const (
	phaseWarmUp = iota
	phaseMeasure
	phaseOver
)

// client is one connection of a load.
type client struct {
	*load
	loadResult
	address string
	ids     []string // The instances that are this client's own.
	number  int
	token   string

	conn      net.Conn
	release   func() bool // Stops watching the context, whose end closes the connection.
	in        *bufio.Reader
	out, body []byte
	answer    answer
}

// id returns the instance of the i-th request.
func (c *client) id(i int) string { return c.ids[i%len(c.ids)] }

// run drives a load at an address: first for the warm-up, which is not measured, then for the
// duration, or longer until the first answer has come that is no refusal. begin and end are called right before and right
// after the time that is measured. Each client has a slice of the ids of its own.
func (l *load) run(ctx context.Context, address string, ids []string, warmUp, duration time.Duration, begin, end func()) (*loadResult, error) {
	var phase atomic.Int32
	var clients sync.WaitGroup
	answered := make(chan struct{}, 1)
	ctx, cancel := context.WithTimeout(ctx, warmUp+duration+answerWithin)
	defer cancel()
	all := make([]*client, l.connections)
	for n := range all {
		first, last := n*len(ids)/l.connections, (n+1)*len(ids)/l.connections
		c := &client{load: l, address: address, ids: ids[first:max(last, first+1)], number: n}
		if l.bearer != nil {
			c.token = l.bearer(n)
		}
		all[n] = c
		clients.Go(func() { c.drive(ctx, &phase, answered) })
	}
	var elapsed time.Duration
	if l.requests == nil {
		pause(ctx, warmUp)
		begin()
		began := time.Now()
		phase.Store(phaseMeasure)
		pause(ctx, duration)
		select {
		case <-answered:
		case <-ctx.Done():
		}
		phase.Store(phaseOver)
		elapsed = time.Since(began)
		end()
	}
	clients.Wait()
	sum := &loadResult{elapsed: elapsed}
	for _, c := range all {
		sum.add(&c.loadResult)
	}
	slices.Sort(sum.latencies)
	return sum, context.Cause(ctx)
}

// add adds the result of one client.
func (r *loadResult) add(o *loadResult) {
	r.operations += o.operations
	r.latencies = append(r.latencies, o.latencies...)
	r.all += o.all
	r.errors += o.errors
	r.refused += o.refused
	if r.firstError == "" {
		r.firstError = o.firstError
	}
}

// pause returns after a time, or when the context ends.
func pause(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// drive sends requests until the load is over or the context ends. It signals each answer that came
// during the measurement and is no refusal.
func (c *client) drive(ctx context.Context, phase *atomic.Int32, answered chan<- struct{}) {
	defer c.hangUp()
	last := math.MaxInt
	if c.requests != nil {
		last = c.requests(c.number)
	}
	for i := 0; i < last && ctx.Err() == nil && phase.Load() != phaseOver; i++ {
		began := time.Now()
		err := c.exchange(ctx, i)
		took := time.Since(began)
		if ctx.Err() != nil {
			return
		}
		if took < c.every {
			pause(ctx, c.every-took)
		}
		measured := phase.Load() == phaseMeasure
		switch n := c.judge(err); {
		case err != nil:
			pause(ctx, 10*time.Millisecond)
		case n == 0 && c.answer.retryAfter:
			pause(ctx, refusedPause)
			continue
		case n > 0 && measured:
			c.operations += n
			c.latencies = append(c.latencies, int32(min(took.Microseconds(), math.MaxInt32)))
		}
		if measured {
			select {
			case answered <- struct{}{}:
			default:
			}
		}
	}
}

// judge counts an answer or a failure, and returns the number of operations that it confirms.
func (c *client) judge(err error) (operations int) {
	fault := ""
	switch {
	case err != nil:
		fault = err.Error()
		c.hangUp()
	case c.answer.status == 503 && c.answer.retryAfter:
		c.refused++
	default:
		if operations = c.applied(&c.answer); operations == 0 {
			fault = fmt.Sprintf("status %d: %.300s", c.answer.status, c.answer.body)
		}
	}
	c.all += operations
	if fault != "" {
		c.errors++
		if c.firstError == "" {
			c.firstError = fault
		}
	}
	return operations
}

// exchange sends the i-th request and reads its answer. It connects if there is no connection.
func (c *client) exchange(ctx context.Context, i int) error {
	if c.conn == nil {
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", c.address)
		if err != nil {
			return err
		}
		c.conn = conn
		c.release = context.AfterFunc(ctx, func() { _ = conn.Close() })
		if c.in == nil {
			c.in = bufio.NewReader(nil)
		}
		c.in.Reset(conn)
	}
	c.write(c, i)
	if _, err := c.conn.Write(c.out); err != nil {
		return err
	}
	if err := c.answer.read(c.in); err != nil {
		return err
	}
	if c.answer.closing {
		c.hangUp()
	}
	return nil
}

// hangUp closes the connection, if there is one.
func (c *client) hangUp() {
	if c.conn != nil {
		c.release()
		_ = c.conn.Close()
		c.conn = nil
	}
}
