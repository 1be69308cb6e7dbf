package webhook_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/pawl-fsm/pawl/fsm/subscription"
	"github.com/pawl-fsm/pawl/internal/bounded"
	"github.com/pawl-fsm/pawl/outbox/outboxtest"
)

// An endpoint that hangs, floods, resets or trickles does not delay another endpoint.
func TestBadEndpointsHarmNobody(t *testing.T) {
	t.Parallel()
	pool, service := withService(t)
	good := newReceiver(t, nil)
	hang := bounded.NewGate(t, "the attempts that hang")
	hanging := newReceiver(t, func(http.ResponseWriter, hook) { hang.Pass() })
	flooding := newReceiver(t, func(w http.ResponseWriter, _ hook) {
		for range 160 { // 10 MB
			if _, err := w.Write(make([]byte, 64<<10)); err != nil {
				return
			}
		}
	})
	resetting := newReceiver(t, func(w http.ResponseWriter, _ hook) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err == nil {
			_ = conn.(*net.TCPConn).SetLinger(0)
			_ = conn.Close()
		}
	})
	trickling := newReceiver(t, func(w http.ResponseWriter, _ hook) {
		w.WriteHeader(http.StatusOK)
		_ = http.NewResponseController(w).Flush()
		hang.Pass()
	})
	garbage, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = garbage.Close() })
	go func() {
		for {
			conn, err := garbage.Accept()
			if err != nil {
				return
			}
			_, _ = bufio.NewReader(conn).ReadString('\n')
			_, _ = io.WriteString(conn, "SSH-2.0-OpenSSH\r\n")
			_ = conn.Close()
		}
	}()
	urls := map[string]string{
		"good": good.url, "hanging": hanging.url, "flooding": flooding.url, "resetting": resetting.url, "trickling": trickling.url,
		"garbage": "http://" + garbage.Addr().String(),
	}
	subscriptions := map[string]subscription.Subscription{}
	for name, url := range urls {
		subscriptions[name] = subscribe(t, service, url, everything)
	}
	config := quickly
	config.Timeout, config.PerEndpoint, config.Concurrency = 2*bounded.Limit, 4, 24
	stop := webhooks(t, pool, config)
	const n = 50
	for range n {
		outboxtest.Create(t, pool)
	}
	good.want(t, n) // The hanging attempts hang for longer than this waits.
	stop()
	config.Timeout = 3 * time.Second
	webhooks(t, pool, config)
	status := func(name, want string) {
		bounded.UntilSQL(t, pool, "select bool_or(status = $2 and attempts > 0) from pawl.delivery where subscription_id = $1", subscriptions[name].ID, want)
	}
	status("flooding", "delivered")
	status("trickling", "delivered") // The status counts, though the body never ends.
	for _, name := range []string{"hanging", "resetting", "garbage"} {
		status(name, "pending")
	}
	if len := bounded.Value[int](t, pool, "select max(octet_length(last_response)) from pawl.delivery"); len > 1024 || len < 1000 {
		t.Errorf("%d bytes of an answer were kept", len)
	}
	words := bounded.Value[string](t, pool, "select max(last_error) from pawl.delivery where subscription_id = $1", subscriptions["hanging"].ID)
	if words != "no answer within 3s" {
		t.Errorf("the hanging endpoint's error is %q", words)
	}
}

// Endpoints that hang take no place from other endpoints, not even on the same host.
func TestHangingNeighbours(t *testing.T) {
	t.Parallel()
	pool, service := withService(t)
	good := newReceiver(t, nil)
	hang := bounded.NewGate(t, "the attempts that hang")
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, in *http.Request) {
		if in.URL.Path == "/good" {
			good.ServeHTTP(w, in)
			return
		}
		_, _ = io.Copy(io.Discard, in.Body)
		hang.Pass()
	}))
	t.Cleanup(server.Close)
	for n := range 40 {
		subscribe(t, service, fmt.Sprintf("%s/hanging/%d", server.URL, n), everything)
	}
	subscribe(t, service, server.URL+"/good", everything)
	config := quickly
	config.Timeout = time.Minute
	webhooks(t, pool, config)
	const n = 50
	for range n {
		outboxtest.Create(t, pool)
	}
	good.want(t, n)
}

// An endpoint that switches protocols cannot keep an attempt from ending.
func TestSwitchingProtocols(t *testing.T) {
	t.Parallel()
	pool, service := withService(t)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var conns sync.WaitGroup
	over := bounded.NewGate(t, "the connections")
	conns.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			conns.Go(func() {
				_, _ = conn.Read(make([]byte, 1<<16))
				_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
				over.Pass()
				_ = conn.Close()
			})
		}
	})
	t.Cleanup(func() {
		_ = listener.Close()
		bounded.Wait(t, "the connections to be closed", conns.Wait)
	})
	subscribe(t, service, "http://"+listener.Addr().String(), everything)
	stop := webhooks(t, pool, quickly)
	outboxtest.Create(t, pool)
	bounded.UntilSQL(t, pool, "select bool_or(last_status = 101 and last_error = 'the endpoint answered 101') from pawl.delivery")
	stop()
}
