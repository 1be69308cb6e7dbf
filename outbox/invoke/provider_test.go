package invoke_test

import (
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
)

// A provider is a service that fails to order. It remembers what it was asked for, and what it did for which key.
type provider struct {
	*httptest.Server
	t testing.TB

	mu       sync.Mutex
	handle   http.HandlerFunc
	requests []asked
	// effects counts the charges of each key.
	effects map[string]int
}

// asked is a request.
type asked struct {
	method, uri, key, body string
	header                 http.Header
}

// newProvider starts a provider that answers each request by a handler.
func newProvider(t testing.TB, handle http.HandlerFunc) *provider {
	t.Helper()
	p := unstartedProvider(t, handle)
	p.Start()
	return p
}

func unstartedProvider(t testing.TB, handle http.HandlerFunc) *provider {
	t.Helper()
	p := &provider{t: t, handle: handle, effects: map[string]int{}}
	p.Server = httptest.NewUnstartedServer(http.HandlerFunc(p.serve))
	p.Config.ErrorLog = log.New(io.Discard, "", 0)
	t.Cleanup(p.Close)
	return p
}

func (p *provider) serve(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		p.t.Errorf("the request cannot be read: %v", err)
	}
	p.mu.Lock()
	p.requests = append(p.requests, asked{r.Method, r.RequestURI, r.Header.Get("Idempotency-Key"), string(body), r.Header})
	handle := p.handle
	p.mu.Unlock()
	handle(w, r)
}

// answer makes the provider answer by another handler from now on.
func (p *provider) answer(handle http.HandlerFunc) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.handle = handle
}

// asked returns the requests so far.
func (p *provider) asked() []asked {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]asked(nil), p.requests...)
}

// charge has an effect, once for each key.
func (p *provider) charge(r *http.Request) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.effects[r.Header.Get("Idempotency-Key")]++
}

// charges returns the keys that had an effect, and how many effects there were: those of a key count once.
func (p *provider) charges() (n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.effects)
}

// charged reports whether a key had an effect.
func (p *provider) charged(key string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.effects[key] > 0
}

// inTurn answers the first request by the first handler, and so on, and all further ones by the last.
func inTurn(handlers ...http.HandlerFunc) http.HandlerFunc {
	var mu sync.Mutex
	n := 0
	return func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		h := handlers[min(n, len(handlers)-1)]
		n++
		mu.Unlock()
		h(w, r)
	}
}

// with answers with a status and a body of JSON.
func with(status int, body string, headers ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		for i := 0; i < len(headers); i += 2 {
			w.Header().Set(headers[i], headers[i+1])
		}
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}
}

var ok = with(http.StatusOK, `{"id": "c1"}`)

// reset ends the connection without an answer.
func reset(w http.ResponseWriter, _ *http.Request) { raw(w, "") }

// raw answers with a text instead of HTTP, and resets the connection.
func raw(w http.ResponseWriter, text string) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(err)
	}
	_, _ = io.WriteString(conn, text)
	if text == "" {
		_ = conn.(*net.TCPConn).SetLinger(0)
	}
	_ = conn.Close()
}

func rawly(text string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { raw(w, text) }
}

// resetListener resets the first connections before it reads anything of them.
type resetListener struct {
	net.Listener
	left chan struct{}
}

func newResetListener(t *testing.T, n int) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	left := make(chan struct{}, n)
	for range n {
		left <- struct{}{}
	}
	return resetListener{l, left}
}

func (l resetListener) Accept() (net.Conn, error) {
	// bounded: it ends with the listener, and with the first connections
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, fmt.Errorf("accept: %w", err)
		}
		select {
		case <-l.left:
			_, _ = conn.Read(make([]byte, 1))
			_ = conn.(*net.TCPConn).SetLinger(0)
			_ = conn.Close()
			continue
		default:
			return conn, nil
		}
	}
}
