package main_test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// balancer stands before the replicas, as a load balancer does that knows nothing of HTTP: it asks each replica every
// 100 ms whether it is ready, and leads a new connection to one that is.
type balancer struct {
	url string

	mu    sync.Mutex
	ready map[string]bool // By the URL of a replica.
}

func newBalancer(t *testing.T) *balancer {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b := &balancer{url: "http://" + listener.Addr().String(), ready: map[string]bool{}}
	var group sync.WaitGroup
	ended := make(chan struct{})
	t.Cleanup(func() {
		close(ended)
		_ = listener.Close()
		bounded.Wait(t, "the balancer", group.Wait)
	})
	group.Go(func() {
		for conn, err := listener.Accept(); err == nil; conn, err = listener.Accept() {
			group.Go(func() { b.lead(conn) })
		}
	})
	group.Go(func() { b.watch(ended) })
	return b
}

// watch asks the replicas until the test has ended.
func (b *balancer) watch(ended <-chan struct{}) {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: bounded.Limit}
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for { // bounded: the test's cleanup ends it
		select {
		case <-ended:
			return
		case <-tick.C:
		}
		for _, replica := range b.replicas(false) {
			res, err := client.Get(replica + "/readyz")
			if err == nil {
				_ = res.Body.Close()
			}
			b.set(replica, err == nil && res.StatusCode == http.StatusOK)
		}
	}
}

// lead passes a connection on to a ready replica until one of the two closes it.
func (b *balancer) lead(client net.Conn) {
	defer func() { _ = client.Close() }()
	ready := b.replicas(true)
	if len(ready) == 0 {
		return
	}
	port := client.RemoteAddr().(*net.TCPAddr).Port
	replica, err := net.Dial("tcp", strings.TrimPrefix(ready[port/2%len(ready)], "http://"))
	if err != nil {
		return
	}
	ended := make(chan struct{}, 2)
	for _, way := range [][2]net.Conn{{client, replica}, {replica, client}} {
		go func() {
			_, _ = io.Copy(way[0], way[1])
			ended <- struct{}{}
		}()
	}
	<-ended // bounded: the replica and the client end with the test
	_ = replica.Close()
}

// replicas returns those that are known or ready.
func (b *balancer) replicas(ready bool) (urls []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for url, is := range b.ready {
		if is || !ready {
			urls = append(urls, url)
		}
	}
	return urls
}

// set notes whether a replica is ready, unless it has been removed.
func (b *balancer) set(replica string, ready bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, known := b.ready[replica]; known {
		b.ready[replica] = ready
	}
}

// add returns when the balancer has seen that a new replica is ready.
func (b *balancer) add(t *testing.T, replica string) {
	t.Helper()
	b.mu.Lock()
	b.ready[replica] = false
	b.mu.Unlock()
	b.await(t, replica, true)
}

func (b *balancer) remove(replica string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.ready, replica)
}

// await returns when the balancer has seen whether a replica is ready.
func (b *balancer) await(t *testing.T, replica string, ready bool) {
	t.Helper()
	bounded.True(t, fmt.Sprintf("the balancer to see that the replica is ready: %v", ready), func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return b.ready[replica] == ready
	})
}

// A caller sends requests to the balancer, one after the other, over connections that it keeps.
type caller struct {
	client http.Client
	sent   atomic.Int64
}

// call sends a request, which must succeed.
func (c *caller) call(t *testing.T, method, url, body, key string) (location string) {
	req, err := http.NewRequestWithContext(bounded.Context(t), method, url, strings.NewReader(body))
	if err != nil {
		t.Error(err)
		return ""
	}
	req.GetBody = nil // Go's client does not repeat the request by itself.
	req.Header.Set("Idempotency-Key", key)
	req.Header.Set("Content-Type", "application/json")
	res, err := c.client.Do(req)
	c.sent.Add(1)
	if err != nil {
		t.Error(err)
		return ""
	}
	defer func() { _ = res.Body.Close() }()
	if text, err := io.ReadAll(res.Body); err != nil || res.StatusCode >= 300 {
		t.Errorf("%s %s: status %d, %v: %s", method, url, res.StatusCode, err, text)
	}
	return res.Header.Get("Location")
}

// TestRollingRestarts restarts two replicas by turns, ten times, while clients send requests through a load balancer. A
// replica is stopped when the balancer has seen that it is not ready, and each client has had time to be sent away from
// it. No request fails.
func TestRollingRestarts(t *testing.T) {
	t.Parallel()
	env := []string{"DATABASE_URL=" + dbtest.NewDSN(t), "PAWL_SHUTDOWN_DELAY=10m"}
	b := newBalancer(t)
	replicas := [2]*process{start(t, env, "serve"), start(t, env, "serve")}
	for _, r := range replicas {
		b.add(t, r.url)
	}
	mustPawl(t, nil, "workflow", "apply", "--server", b.url, flight)

	var group sync.WaitGroup
	var stop atomic.Bool
	callers := make([]*caller, 8)
	for n := range callers {
		callers[n] = &caller{client: http.Client{Transport: &http.Transport{}}}
		group.Go(func() {
			for i := 0; !stop.Load() && !t.Failed(); i++ {
				booking := callers[n].call(t, http.MethodPost, b.url+create, quote, fmt.Sprint("quote-", n, "-", i))
				callers[n].call(t, http.MethodPost, b.url+booking+"/actions/cancel", "{}", fmt.Sprint("cancel-", n, "-", i))
			}
			callers[n].client.CloseIdleConnections()
		})
	}
	defer bounded.Wait(t, "the clients", group.Wait)
	defer stop.Store(true)
	for turn := range 10 {
		leaving := replicas[turn%2]
		leaving.Signal(t, syscall.SIGTERM)
		b.await(t, leaving.url, false)
		for _, c := range callers {
			// The answer to the first may have been on its way, that to the second closes the connection, and the third
			// has another one.
			before := c.sent.Load()
			bounded.True(t, "three more requests", func() bool { return c.sent.Load() >= before+3 || t.Failed() })
		}
		leaving.Signal(t, syscall.SIGTERM)
		if err := leaving.Wait(t); err != nil {
			t.Errorf("the replica ended with %v", err)
		}
		b.remove(leaving.url)
		replicas[turn%2] = start(t, env, "serve")
		b.add(t, replicas[turn%2].url)
	}
}

// TestShutdownDelay shows that a process that was told to stop is not ready, and serves until the delay is over.
func TestShutdownDelay(t *testing.T) {
	t.Parallel()
	for _, command := range []string{"serve", "dev"} {
		t.Run(command, func(t *testing.T) {
			t.Parallel()
			dsn := "DATABASE_URL=" + dbtest.NewDSN(t)
			p := start(t, []string{dsn, "PAWL_SHUTDOWN_DELAY=10m"}, command)
			mustSend(t, http.StatusOK, http.MethodGet, p.url+"/readyz", "")
			p.Signal(t, syscall.SIGTERM)
			var last answer
			bounded.True(t, "the process not to be ready", func() (unready bool) {
				var err error
				if last, err = send(bounded.Context(t), http.MethodGet, p.url+"/readyz", ""); err != nil {
					t.Fatal(err)
				}
				return last.status == http.StatusServiceUnavailable
			})
			if !strings.Contains(last.body, "the process is shutting down") {
				t.Errorf("/readyz says %s", last.body)
			}
			for range 2 {
				req, err := http.NewRequestWithContext(bounded.Context(t), http.MethodGet, p.url+"/v1/workflows", nil)
				if err != nil {
					t.Fatal(err)
				}
				res, err := http.DefaultClient.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				_ = res.Body.Close()
				if res.StatusCode != http.StatusOK || !res.Close {
					t.Errorf("during the delay: status %d, the connection is closed: %v", res.StatusCode, res.Close)
				}
			}
			p.Signal(t, syscall.SIGTERM)
			if err := p.Wait(t); err != nil {
				t.Errorf("a second SIGTERM: %v", err)
			}

			p = start(t, []string{dsn, "PAWL_SHUTDOWN_DELAY=100ms"}, command)
			p.Signal(t, syscall.SIGTERM)
			if err := p.Wait(t); err != nil {
				t.Errorf("the end of the delay: %v", err)
			}
		})
	}
	if _, stderr, code := pawl(t, []string{"DATABASE_URL=postgres:///x"}, "serve", "--shutdown-delay=-1s"); code != 2 || !strings.Contains(stderr, "--shutdown-delay") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
}
