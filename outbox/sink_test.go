package outbox_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/outbox"
)

// page has the steps of so many instances, one step of each after the other.
func page(tenant string, instances, steps int) (events []outbox.Event) {
	ids := make([]uuid.UUID, instances)
	for i := range ids {
		ids[i] = uuid.New()
	}
	for s := range steps {
		kind := "transition"
		if s == 0 {
			kind = "created"
		}
		for _, id := range ids {
			events = append(events, step(tenant, id, int64(s+1), kind))
		}
	}
	return events
}

// A delivery is what a subscriber got.
type delivery struct {
	id, subject, key, contentType string
	body                          []byte
}

// checkOrder wants every event to be there, and none before the one that precedes it in its
// instance. Repeats are the way of the world.
func checkOrder(t *testing.T, events []outbox.Event, got []delivery) {
	t.Helper()
	reached := make(map[string]int64)
	for _, d := range got {
		instance, version, _ := strings.Cut(d.id, ":")
		v, err := strconv.ParseInt(version, 10, 64)
		if err != nil || v > reached[instance]+1 {
			t.Fatalf("%s came when its instance was at %d", d.id, reached[instance])
		}
		reached[instance] = max(v, reached[instance])
	}
	for _, e := range events {
		if id := e.Instance.ID.String(); reached[id] < e.Step.Version {
			t.Fatalf("of %s only %d steps came", id, reached[id])
		}
	}
}

// checkBodies wants the deliveries to be the events.
func checkBodies(t *testing.T, events []outbox.Event, got []delivery) {
	t.Helper()
	bodies := make(map[string][]byte)
	for _, e := range events {
		body, err := e.CloudEvent()
		if err != nil {
			t.Fatal(err)
		}
		bodies[e.ID()] = body
	}
	for _, d := range got {
		if d.contentType != outbox.CloudEventType || !bytes.Equal(d.body, bodies[d.id]) {
			t.Fatalf("%s is %s %s, want %s", d.id, d.contentType, d.body, bodies[d.id])
		}
	}
}

func openSink(t *testing.T, raw string) outbox.Sink {
	t.Helper()
	sink, err := outbox.OpenSink(raw, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for range 2 {
			if err := sink.Close(); err != nil {
				t.Errorf("close: %v", err)
			}
		}
		if err := sink.Publish(context.WithoutCancel(t.Context()), page("default", 1, 1)); err == nil {
			t.Error("a closed sink publishes")
		}
	})
	return sink
}

// bounded is the context of a call that ought to take no time.
func bounded(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func publish(t *testing.T, sink outbox.Sink, events []outbox.Event) {
	t.Helper()
	if err := sink.Publish(bounded(t), events); err != nil {
		t.Fatal(err)
	}
}

// refuses wants an error of one line that holds the parts.
func refuses(t *testing.T, err error, parts ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("there is no error, want %q", parts)
	}
	for _, part := range parts {
		if !strings.Contains(err.Error(), part) || strings.Contains(err.Error(), "\n") {
			t.Errorf("the error is %q, want %q in one line", err, part)
		}
	}
}

// A proxy is between a sink and its broker, and fails once, after so many bytes.
type proxy struct {
	addr string
	// reached is told when it fails.
	reached chan struct{}

	mu    sync.Mutex
	armed bool
	left  int
	stall bool
	conns []net.Conn
	done  bool
}

func newProxy(t *testing.T, target string) *proxy {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{addr: listener.Addr().String(), reached: make(chan struct{}, 1)}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", target)
			if err != nil {
				_ = client.Close()
				continue
			}
			p.mu.Lock()
			p.conns = append(p.conns, client, server)
			if p.done {
				_, _ = client.Close(), server.Close()
			}
			p.mu.Unlock()
			all.Go(func() {
				_, _ = io.Copy(client, server)
				_, _ = client.Close(), server.Close()
			})
			all.Go(func() {
				p.forward(server, client)
				_, _ = client.Close(), server.Close()
			})
		}
	})
	t.Cleanup(func() {
		_ = listener.Close()
		p.mu.Lock()
		p.done = true
		for _, c := range p.conns {
			_ = c.Close()
		}
		p.mu.Unlock()
		all.Wait()
	})
	return p
}

// fail cuts the next connection that sends so many bytes, or takes no more from it.
func (p *proxy) fail(after int, stall bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.armed, p.left, p.stall = true, after, stall
}

func (p *proxy) forward(server, client net.Conn) {
	buffer := make([]byte, 16<<10)
	for {
		n, err := client.Read(buffer)
		if err != nil {
			return
		}
		p.mu.Lock()
		failing := p.armed && n >= p.left
		stall := p.stall
		switch {
		case failing:
			n, p.armed = p.left, false
		case p.armed:
			p.left -= n
		}
		p.mu.Unlock()
		if _, err := server.Write(buffer[:n]); err != nil {
			return
		}
		if failing {
			p.reached <- struct{}{}
			if stall {
				// It reads nothing more, and says nothing, until the client has had enough.
				_, _ = io.Copy(io.Discard, client)
			}
			return
		}
	}
}

// publishCut publishes a page whose connection is cut in the middle, and publishes it again.
func publishCut(t *testing.T, sink outbox.Sink, p *proxy, events []outbox.Event) {
	t.Helper()
	p.fail(300<<10, false)
	if err := sink.Publish(bounded(t), events); err == nil {
		t.Fatal("nobody noticed that the connection was cut")
	}
	<-p.reached
	publish(t, sink, events)
}

// publishStalled gives up on a broker that takes no more after so many bytes.
func publishStalled(t *testing.T, sink outbox.Sink, p *proxy, events []outbox.Event, after int) {
	t.Helper()
	p.fail(after, true)
	ctx, cancel := context.WithCancel(bounded(t))
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- sink.Publish(ctx, events) }()
	select {
	case <-p.reached:
	case err := <-done:
		t.Fatalf("the page came through: %v", err)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Fatalf("the error is %v, want that of the context", err)
	}
}

func TestSinkURLs(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 251)
	for _, c := range []struct{ raw, want string }{
		{"stdout:", "sink stdout:"},
		{"stdout://", "sink stdout:"},
		{"stdout:?from=start&consumer=lines", "sink lines"},
		{"nats://bob:hunter2@host:4222/STEPS?subject=a.b&create=true", "sink nats://host/STEPS"},
		{"nats://bob:hunter2@one,two:4333/STEPS", "sink nats://one,two:4333/STEPS"},
		{"tls://host/STEPS?token=hunter2", "sink tls://host/STEPS"},
		{"kafka://bob:hunter2@[::1]:9092,two:9093/steps?sasl=plain", "sink kafka://[::1],two:9093/steps"},
		{"amqps://bob:h%40%2Funter2@host/%2Fv?exchange=x", "sink amqps://host/%2Fv"},
		{"AMQP://host?exchange=x", "sink amqp://host/"},
	} {
		u, err := outbox.ParseSinkURL(c.raw)
		if err != nil || u.Consumer != c.want || u.FromStart != strings.Contains(c.raw, "from=start") {
			t.Errorf("%s is the consumer %q, want %q: %v", c.raw, u.Consumer, c.want, err)
		}
	}
	for _, c := range []struct{ raw, want string }{
		{"", "write stdout:, nats://"},
		{"nats", "write stdout:, nats://"},
		{"redis://bob:hunter2@host", "unknown scheme"},
		{"hunter2", "unknown scheme"},
		{"stdout:hunter2", "write stdout:"},
		{"stdout:?subject=a", "its query has consumer, from, each once"},
		{"nats:host/STEPS", "// is missing"},
		{"nats://bob:hunter2@host", "the name of a stream"},
		{"nats://bob:hunter2@host/a.b", "the name of a stream"},
		{"nats://bob:hunter2@/STEPS", "a host is missing"},
		{"nats://bob:hunter2@host:99999/STEPS", "a host or its port is wrong"},
		{"nats://bob:hunter2@one:1:2/STEPS", "more than one port"},
		{"nats://bob:hun/ter2@host/STEPS", "cannot be read"},
		{"nats://bob:1/hunter2@host/STEPS", "cannot be read"},
		{"nats://bob:hun%zzter2@host/STEPS", "percent-encoded"},
		{"nats://bob:hunter2@host/STEPS#a", "cannot be read"},
		{"nats://host/STEPS?token=hunter2&x%zz", "its query cannot be read"},
		{"nats://host/STEPS?token=hunter2&hunter2=1", "its query has consumer, from, subject"},
		{"nats://host/STEPS?from=hunter2", "from is start"},
		{"nats://host/STEPS?create=hunter2", "create is true or false"},
		{"nats://host/STEPS?subject=a..b", "subject is words"},
		{"nats://host/STEPS?subject=" + long, "subject is words"},
		{"nats://host/STEPS?consumer=" + long, "consumer=NAME"},
		{"kafka://bob:hunter2@host", "the name of a topic"},
		{"kafka://bob:hunter2@host/t?sasl=none", "sasl is plain"},
		{"kafka://host/t?sasl=plain", "sasl is for a user"},
		{"kafka://host/t?cacertfile=/nowhere", "cacertfile"},
		{"amqp://bob:hunter2@host/v", "the name of an exchange"},
		{"amqp://host/v?exchange=x&key=a*", "key is words"},
		{"amqp://host/v?exchange=x&certfile=y", "amqps://"},
	} {
		_, err := outbox.OpenSink(c.raw, io.Discard)
		refuses(t, err, c.want)
		if err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s is refused with its password: %v", c.raw, err)
		}
	}
}

// gate is a writer that waits, and may fail in the middle.
type gate struct {
	bytes.Buffer
	open     chan struct{}
	entered  chan struct{}
	failWith error
}

func (g *gate) Write(p []byte) (int, error) {
	g.entered <- struct{}{}
	<-g.open
	if g.failWith != nil {
		n, _ := g.Buffer.Write(p[:len(p)/2])
		return n, g.failWith
	}
	return g.Buffer.Write(p)
}

func lines(t *testing.T, r io.Reader) (got []delivery) {
	t.Helper()
	scanner := bufio.NewScanner(r)
	for scanner.Scan() {
		var e struct {
			ID string `json:"id"`
		}
		if json.Unmarshal(scanner.Bytes(), &e) == nil {
			got = append(got, delivery{id: e.ID, contentType: outbox.CloudEventType, body: bytes.Clone(scanner.Bytes())})
		}
	}
	return got
}

func TestStdout(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	sink, err := outbox.OpenSink("stdout:", &out)
	if err != nil {
		t.Fatal(err)
	}
	var events []outbox.Event
	for _, tenant := range oddTenants {
		events = append(events, page(tenant, 2, 40)...)
	}
	publish(t, sink, events)
	publish(t, sink, nil)
	if n := strings.Count(out.String(), "\n"); n != len(events) {
		t.Errorf("there are %d lines, want %d", n, len(events))
	}
	got := lines(t, &out)
	checkOrder(t, events, got)
	checkBodies(t, events, got)
	for range 2 {
		if err := sink.Close(); err != nil {
			t.Error(err)
		}
	}
	refuses(t, sink.Publish(t.Context(), events), "stdout: the sink is closed")
}

// A reader that holds up the stream holds up nobody who has given up; and after a write that
// failed within a line, lines are whole again.
func TestStdoutThatStalls(t *testing.T) {
	t.Parallel()
	out := &gate{open: make(chan struct{}), entered: make(chan struct{}, 3)}
	sink := outbox.NewWriterSink(out)
	events := page("default", 1, 3)

	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- sink.Publish(ctx, events) }()
	<-out.entered
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Fatalf("the error is %v", err)
	}
	// The write goes on; another does not come between.
	ctx, cancel = context.WithCancel(t.Context())
	go func() { done <- sink.Publish(ctx, events) }()
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Fatalf("the error is %v", err)
	}
	select {
	case <-out.entered:
		t.Fatal("two writes at once")
	default:
	}
	out.failWith = errors.New("the disk is full")
	close(out.open)
	refuses(t, sink.Publish(t.Context(), events), "stdout: the disk is full")
	<-out.entered
	out.failWith = nil
	publish(t, sink, events)
	got := lines(t, &out.Buffer)
	last := got[len(got)-len(events):]
	checkOrder(t, events, last)
	checkBodies(t, events, last)
}

// From the database to the lines, once each.
func TestRelayToStdout(t *testing.T) {
	t.Parallel()
	pool := withCounter(t)
	reader, writer := io.Pipe()
	defer func() { _ = reader.Close() }()
	stop := relay(t, pool, "sink stdout:", outbox.NewWriterSink(writer), quick)
	var want []string
	for range 3 {
		id := create(t, pool)
		add(t, pool, id)
		want = append(want, ids(id, 1, 2)...)
	}
	scanner := bufio.NewScanner(reader)
	var got []string
	for len(got) < len(want) && scanner.Scan() {
		var e struct {
			ID string `json:"id"`
		}
		if err := json.Unmarshal(scanner.Bytes(), &e); err != nil {
			t.Fatal(err)
		}
		got = append(got, e.ID)
	}
	stop()
	if !slices.Equal(got, want) {
		t.Errorf("the lines are of %s, want %s", fmt.Sprint(got), fmt.Sprint(want))
	}
}
