package sink_test

import (
	"context"
	"errors"
	"sync"
	"testing"

	"github.com/pawl-fsm/pawl/internal/bounded"
	"github.com/pawl-fsm/pawl/outbox"
)

// A proxy stands between a sink and its broker. It can fail once, after a number of bytes.
type proxy struct {
	*bounded.Proxy
	// reached is signalled when it fails.
	reached chan struct{}

	mu      sync.Mutex
	armed   bool
	left    int
	stall   bool
	stalled int // the connection that is read no more, or 0
}

func newProxy(t *testing.T, target string) *proxy {
	t.Helper()
	p := &proxy{reached: make(chan struct{}, 1)}
	p.Proxy = bounded.NewProxy(t, "tcp", target, p.hook)
	return p
}

// fail makes the proxy cut the next connection that has sent so many bytes, or forward nothing more of it.
func (p *proxy) fail(after int, stall bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.armed, p.left, p.stall = true, after, stall
}

func (p *proxy) hook(c bounded.Chunk) (pass []byte, keep bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case c.FromServer:
		return c.Data, true
	case c.Conn == p.stalled:
		return nil, true // until the client hangs up
	case !p.armed:
		return c.Data, true
	case len(c.Data) < p.left:
		p.left -= len(c.Data)
		return c.Data, true
	}
	p.armed = false
	p.reached <- struct{}{}
	if p.stall {
		p.stalled = c.Conn
	}
	return c.Data[:p.left], p.stall
}

// publishCut publishes a page whose connection is cut in the middle, and publishes it again.
func publishCut(t *testing.T, sink outbox.Sink, p *proxy, messages []outbox.Message) {
	t.Helper()
	p.fail(300<<10, false)
	if err := sink.Publish(bounded.Context(t), messages); err == nil {
		t.Fatal("nobody noticed that the connection was cut")
	}
	bounded.Receive(t, "the connection to be cut", p.reached)
	publish(t, sink, messages)
}

// publishStalled publishes to a broker that stops reading after so many bytes, and cancels.
func publishStalled(t *testing.T, sink outbox.Sink, p *proxy, messages []outbox.Message, after int) {
	t.Helper()
	p.fail(after, true)
	ctx, cancel := context.WithCancel(bounded.Context(t))
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- sink.Publish(ctx, messages) }()
	select {
	case <-p.reached:
	case err := <-done:
		t.Fatalf("the page came through: %v", err)
	case <-ctx.Done():
		t.Fatal("the broker reads, and the page does not come through")
	}
	cancel()
	if err := bounded.Receive(t, "the page that is given up", done); !errors.Is(err, context.Canceled) {
		t.Fatalf("the error is %v, want that of the context", err)
	}
}
