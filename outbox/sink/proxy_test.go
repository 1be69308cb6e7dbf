package sink_test

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"testing"

	"github.com/pawl-fsm/pawl/outbox"
)

// A proxy stands between a sink and its broker. It can fail once, after a number of bytes.
type proxy struct {
	addr string
	// reached is signalled when it fails.
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

// fail makes the proxy cut the next connection that has sent so many bytes, or stop reading it.
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
				// Nothing more is forwarded or answered until the client hangs up.
				_, _ = io.Copy(io.Discard, client)
			}
			return
		}
	}
}

// publishCut publishes a page whose connection is cut in the middle, and publishes it again.
func publishCut(t *testing.T, sink outbox.Sink, p *proxy, messages []outbox.Message) {
	t.Helper()
	p.fail(300<<10, false)
	if err := sink.Publish(bounded(t), messages); err == nil {
		t.Fatal("nobody noticed that the connection was cut")
	}
	<-p.reached
	publish(t, sink, messages)
}

// publishStalled publishes to a broker that stops reading after so many bytes, and cancels.
func publishStalled(t *testing.T, sink outbox.Sink, p *proxy, messages []outbox.Message, after int) {
	t.Helper()
	p.fail(after, true)
	ctx, cancel := context.WithCancel(bounded(t))
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- sink.Publish(ctx, messages) }()
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
