package httpapi_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/pawl-fsm/pawl/db"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/httpapi"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// startHalfClosed starts a service, and returns a function that sends a request and closes the
// client's side of the connection. arrived is called before it is closed; the function returns
// when the service has seen it.
func startHalfClosed(t *testing.T, config httpapi.Config) (a *api, send func(request string, arrived func()) *bufio.Reader) {
	t.Helper()
	clients := make(chan context.Context, 16)
	a = startWith(t, setup{
		http: config,
		db:   db.Config{LockTimeout: 2 * bounded.Limit, StatementTimeout: 2 * bounded.Limit},
		fsm:  fsm.Config{CallTimeout: 2 * bounded.Limit},
		wrap: func(h http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, in *http.Request) {
				if in.Host == "half.test" {
					clients <- in.Context()
				}
				h.ServeHTTP(w, in)
			})
		},
	})
	return a, func(request string, arrived func()) *bufio.Reader {
		t.Helper()
		conn, err := net.Dial("tcp", strings.TrimPrefix(a.url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		_ = conn.SetReadDeadline(time.Now().Add(bounded.Limit))
		line, rest, _ := strings.Cut(request, "\n")
		text := line + " HTTP/1.1\r\nHost: half.test\r\n" + strings.ReplaceAll(rest, "\n", "\r\n")
		if _, err := io.WriteString(conn, text); err != nil {
			t.Fatal(err)
		}
		client := bounded.Receive(t, "the request", clients)
		arrived()
		if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		bounded.Receive(t, "the service to see the end of the client's side", client.Done())
		return bufio.NewReader(conn)
	}
}

// A client that closes its side of the connection after the request gets its answer.
func TestHalfClosedClient(t *testing.T) {
	t.Parallel()
	a, send := startHalfClosed(t, httpapi.Config{})
	a.register(counter)
	id := a.create("counter", `{"context": {"sum": 0}}`)
	path := "/v1/instances/" + id
	post := func(target, body string) string {
		return fmt.Sprintf("POST %s\nContent-Type: application/json\nIdempotency-Key: %s\nContent-Length: %d\n\n%s", target, newKey(), len(body), body)
	}
	for _, c := range []struct {
		request string
		status  int
	}{
		{post("/v1/workflows/counter/instances", `{"context": {"sum": 1}}`), http.StatusCreated},
		{post(path+"/actions/add", `{"payload": {"by": 1}}`), http.StatusOK},
		{post("/v1/batch", `{"commands": [{"op": "fire", "key": "`+newKey()+`", "instance_id": "`+id+`", "event": "add", "payload": {"by": 1}}]}`), http.StatusOK},
		{"GET " + path + "\n\n", http.StatusOK},
		{"GET /v1/instances\n\n", http.StatusOK},
	} {
		lock, err := a.pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		bounded.Exec(t, lock, "lock table pawl.instance in access exclusive mode")
		answer := send(c.request, func() { bounded.UntilBlocked(t, a.pool, 1) })
		if err := lock.Rollback(t.Context()); err != nil {
			t.Fatal(err)
		}
		res, err := http.ReadResponse(answer, nil)
		if err != nil {
			t.Fatalf("%s: %v", c.request, err)
		}
		body, err := io.ReadAll(res.Body)
		if err != nil || res.StatusCode != c.status {
			t.Errorf("%s: got %d %v, want %d\n%s", c.request, res.StatusCode, err, c.status, body)
		}
	}
	a.get(path).wantAt("version", "3", "context.sum", "2")
}

// A wait of such a client is answered at once with what is true, and a stream ends, since nothing
// tells whether there is still a client.
func TestHalfClosedClientWaitsNoLonger(t *testing.T) {
	t.Parallel()
	a, send := startHalfClosed(t, httpapi.Config{})
	a.register(counter)
	path := "/v1/instances/" + a.create("counter", "")
	answer, statuses := send("GET "+path+"?until=final\nPrefer: wait=60\n\n", func() {}), make(chan int, 1)
	go func() {
		res, err := http.ReadResponse(answer, nil)
		if err != nil {
			statuses <- 0
			return
		}
		statuses <- res.StatusCode
	}()
	if status := bounded.ReceiveWithin(t, 30*time.Second, "the wait to end", statuses); status != http.StatusOK {
		t.Errorf("the wait is answered with %d", status)
	}
	stream, err := io.ReadAll(send("GET "+path+"/events\n\n", func() {}))
	if err != nil || !strings.Contains(string(stream), "text/event-stream") {
		t.Errorf("the stream ends with %v after %q", err, stream)
	}
}

// The work on a request does not outlive its client for ever.
func TestWorkForAClientThatIsGoneEnds(t *testing.T) {
	t.Parallel()
	a, send := startHalfClosed(t, httpapi.Config{Outlive: time.Millisecond})
	lock, err := a.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	bounded.Exec(t, lock, "lock table pawl.instance in access exclusive mode")
	answer := send("GET /v1/instances\n\n", func() { bounded.UntilBlocked(t, a.pool, 1) })
	res, err := http.ReadResponse(answer, nil) // The lock is held for longer than this waits.
	if err != nil || res.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("got %v %v", res, err)
	}
	if err := lock.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
}
