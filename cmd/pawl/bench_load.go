package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// refusedPause is how long a client that was refused with a Retry-After waits: not as
	// long as it is asked to, since there may be less time than that.
	refusedPause = 100 * time.Millisecond
	// answerWithin bounds what a connection waits for, beyond the time of its load.
	answerWithin = 30 * time.Second
)

// load is what a number of clients do in a closed loop: each sends its next request when
// the last is answered.
type load struct {
	connections int
	// write puts the i-th request of a client into its out.
	write func(c *loadClient, i int)
	// applied says how many operations an answer stands for; 0 makes it an error.
	applied func(a *loadAnswer) int
	// every is the time between the requests of a client, if it is to take longer than their
	// answers; 0 sends the next at once.
	every time.Duration
	// requests ends a client after so many, rather than when the time is up. Then nothing
	// is measured, and the duration is what it may take.
	requests func(client int) int
}

// loadResult is what the clients saw while they were measured; all, errors and refused
// are of the warm-up and the end too.
type loadResult struct {
	elapsed    time.Duration
	operations int
	latencies  []int32 // Of each request, in microseconds, sorted.

	all, errors, refused int
	firstError           string
}

// percentile returns a latency in milliseconds, 0 if there is none.
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

// loadClient is one connection. It speaks HTTP/1.1 by itself, since the generator shares
// its cores with the service: net/http's client would take more of them than the service.
type loadClient struct {
	*load
	loadResult
	address string
	ids     []string // The instances that are this client's own.
	number  int

	conn      net.Conn
	cut       func() bool // Keeps the connection from being closed when the context ends.
	in        *bufio.Reader
	out, body []byte
	answer    loadAnswer
}

func (c *loadClient) id(i int) string { return c.ids[i%len(c.ids)] }

// loadAnswer is what the generator looks at of an answer.
type loadAnswer struct {
	status               int
	replayed, retryAfter bool
	closing, chunked     bool
	length               int
	body                 []byte
}

// run drives a load at an address: first for the warm-up, which is not measured, then for
// the duration, or until there is an answer to measure. begin and end are called around
// what is measured.
func (l *load) run(ctx context.Context, address string, ids []string, warmUp, duration time.Duration, begin, end func()) (*loadResult, error) {
	var phase atomic.Int32
	var clients sync.WaitGroup
	answered := make(chan struct{}, 1)
	ctx, cancel := context.WithTimeout(ctx, warmUp+duration+answerWithin)
	defer cancel()
	all := make([]*loadClient, l.connections)
	for n := range all {
		first, last := n*len(ids)/l.connections, (n+1)*len(ids)/l.connections
		c := &loadClient{load: l, address: address, ids: ids[first:max(last, first+1)], number: n}
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

// pause returns after a while, or when the context ends.
func pause(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

func (c *loadClient) drive(ctx context.Context, phase *atomic.Int32, answered chan<- struct{}) {
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

// judge counts an answer and returns how many operations it stands for.
func (c *loadClient) judge(err error) (operations int) {
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

// exchange sends the i-th request and reads its answer, on a new connection if need be.
func (c *loadClient) exchange(ctx context.Context, i int) error {
	if c.conn == nil {
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", c.address)
		if err != nil {
			return err
		}
		c.conn = conn
		c.cut = context.AfterFunc(ctx, func() { _ = conn.Close() })
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

func (c *loadClient) hangUp() {
	if c.conn != nil {
		c.cut()
		_ = c.conn.Close()
		c.conn = nil
	}
}

// get makes the request GET path+id.
func (c *loadClient) get(path, id string) {
	c.out = append(c.out[:0], "GET "...)
	c.out = append(append(c.out, path...), id...)
	c.out = append(c.out, " HTTP/1.1\r\nHost: pawl\r\n\r\n"...)
}

// post makes the request POST before+id+after with a body of JSON, and with a key unless
// its prefix is empty.
func (c *loadClient) post(before, id, after, prefix string, i int, body []byte) {
	c.out = append(c.out[:0], "POST "...)
	c.out = append(append(append(c.out, before...), id...), after...)
	c.out = append(c.out, " HTTP/1.1\r\nHost: pawl\r\nContent-Type: application/json\r\n"...)
	if prefix != "" {
		c.out = append(c.out, "Idempotency-Key: "...)
		c.out = c.key(c.out, prefix, i)
		c.out = append(c.out, "\r\n"...)
	}
	c.out = append(c.out, "Content-Length: "...)
	c.out = strconv.AppendInt(c.out, int64(len(body)), 10)
	c.out = append(append(c.out, "\r\n\r\n"...), body...)
}

// key appends a key that no other client has, nor this one at another i.
func (c *loadClient) key(to []byte, prefix string, i int) []byte {
	to = append(append(to, prefix...), '-')
	to = append(strconv.AppendInt(to, int64(c.number), 10), '-')
	return strconv.AppendInt(to, int64(i), 10)
}

var errNotHTTP = errors.New("the answer is not HTTP/1.1")

// read reads an answer: its status, the headers that matter, and its body (RFC 9112).
func (a *loadAnswer) read(in *bufio.Reader) error {
	*a = loadAnswer{body: a.body[:0]}
	line, err := readLine(in)
	if err != nil {
		return err
	}
	if len(line) < len("HTTP/1.1 200") || !bytes.HasPrefix(line, []byte("HTTP/1.1 ")) {
		return errNotHTTP
	}
	if a.status, err = strconv.Atoi(string(line[9:12])); err != nil {
		return errNotHTTP
	}
	for {
		if line, err = readLine(in); err != nil {
			return err
		}
		if len(line) == 0 {
			break
		}
		if err := a.header(line); err != nil {
			return err
		}
	}
	if a.chunked {
		return a.readChunks(in)
	}
	return a.readBody(in, a.length)
}

func (a *loadAnswer) header(line []byte) (err error) {
	name, value, _ := bytes.Cut(line, []byte(":"))
	value = bytes.TrimSpace(value)
	switch {
	case bytes.EqualFold(name, []byte("content-length")):
		a.length, err = strconv.Atoi(string(value))
	case bytes.EqualFold(name, []byte("transfer-encoding")):
		a.chunked = true
	case bytes.EqualFold(name, []byte("connection")):
		a.closing = bytes.EqualFold(value, []byte("close"))
	case bytes.EqualFold(name, []byte("retry-after")):
		a.retryAfter = true
	case bytes.EqualFold(name, []byte("idempotent-replayed")):
		a.replayed = string(value) == "true"
	}
	return err
}

func (a *loadAnswer) readChunks(in *bufio.Reader) error {
	for {
		line, err := readLine(in)
		if err != nil {
			return err
		}
		size, err := strconv.ParseInt(string(line), 16, 32)
		if err != nil {
			return errNotHTTP
		}
		if err := a.readBody(in, int(size)); err != nil {
			return err
		}
		// What ends a chunk also ends the trailers, of which the service sends none.
		if _, err := readLine(in); err != nil || size == 0 {
			return err
		}
	}
}

func (a *loadAnswer) readBody(in *bufio.Reader, n int) error {
	old := len(a.body)
	a.body = slices.Grow(a.body, n)[:old+n]
	_, err := io.ReadFull(in, a.body[old:])
	return err
}

// readLine returns a line without its end; it is valid until the next read.
func readLine(in *bufio.Reader) ([]byte, error) {
	line, err := in.ReadSlice('\n')
	return bytes.TrimRight(line, "\r\n"), err
}
