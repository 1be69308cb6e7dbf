package httpapi_test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pawl-fsm/pawl/httpapi"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// wide creates n instances with contexts of 60 kB.
func (a *api) wide(n int) {
	a.t.Helper()
	a.register(counter)
	bounded.Exec(a.t, a.pool, `select pawl.create_one('counter', jsonb_build_object('sum', 0, 'text', repeat('x', 60000))) from generate_series(1, $1)`, n)
}

// stall sends a request on a connection of its own, and takes nothing of the answer.
func (a *api) stall(request string) net.Conn {
	a.t.Helper()
	dialer := net.Dialer{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		if failed := c.Control(func(fd uintptr) { err = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 4096) }); failed != nil {
			return failed
		}
		return err
	}}
	conn, err := dialer.DialContext(bounded.Context(a.t), "tcp", strings.TrimPrefix(a.url, "http://"))
	if err != nil {
		a.t.Fatal(err)
	}
	a.t.Cleanup(func() { _ = conn.Close() })
	if _, err := io.WriteString(conn, request); err != nil {
		a.t.Fatal(err)
	}
	return conn
}

const wideList = "GET /v1/instances?limit=200 HTTP/1.1\r\nHost: pawl.test\r\n\r\n"

// An answer that its client does not take is given up, and so are the bytes that it holds. Until then the tenant gets
// no more large answers than it may hold, and all the small ones that it asks for.
func TestAnswersThatNobodyTakes(t *testing.T) {
	t.Parallel()
	a := startWith(t, setup{http: httpapi.Config{AnswerPatience: 10 * time.Second, MaxHeld: 5 << 19}}) // A list has 1 MiB.
	a.wide(70)
	conn := a.stall(strings.Repeat(wideList, 20)) // The buffers of the connection hold some.
	status := func() int {
		res, err := a.client.Get(a.url + "/v1/instances?limit=200")
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		if _, err := io.Copy(io.Discard, res.Body); err != nil {
			t.Fatal(err)
		}
		return res.StatusCode
	}
	bounded.Until(t, "the list to be refused", status, func(status int) bool { return status == http.StatusServiceUnavailable })
	a.get("/v1/instances?limit=200").want(http.StatusServiceUnavailable, "unavailable").wantHeader("Retry-After", "1").wantHeader("Link", "")
	a.get("/v1/workflows/counter").want(http.StatusOK)
	a.get("/v1/instances?limit=1").want(http.StatusOK)
	bounded.Until(t, "the list to be answered", status, func(status int) bool { return status == http.StatusOK })
	_ = conn.SetReadDeadline(time.Now().Add(bounded.Limit))
	if text, err := io.ReadAll(conn); len(text) > 15<<20 || err != nil && !strings.Contains(err.Error(), "reset") {
		t.Errorf("the stalled client got %d bytes, %v", len(text), err)
	}
}

// A connection that was idle for longer than AnswerPatience gives its next answer the whole time again.
func TestPatienceBeginsWithTheAnswer(t *testing.T) {
	t.Parallel()
	a := startWith(t, setup{http: httpapi.Config{AnswerPatience: time.Second, Heartbeat: time.Second}})
	a.register(counter)
	id := a.create("counter", `{"context": {"sum": 0}}`)
	tag := a.get("/v1/instances/" + id).header.Get("ETag")
	for range 2 { // Each is answered later than the deadline of the one before, and without a body.
		a.get("/v1/instances/"+id, "If-None-Match", tag, "Prefer", "wait=2").want(http.StatusNotModified)
	}
}

// Bodies that come slowly hold only what has come, and no more of them are read than a tenant may hold.
func TestBodiesThatComeSlowly(t *testing.T) {
	t.Parallel()
	a := startWith(t, setup{http: httpapi.Config{MaxHeld: 4 << 20}})
	a.register(counter)
	id := a.create("counter", `{"context": {"sum": 0}}`)
	const size = 1 << 20
	slow := fmt.Sprintf("POST /v1/batch HTTP/1.1\r\nHost: pawl.test\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n", size) +
		strings.Repeat(" ", size*7/10)
	large := `{"commands": [` + strings.Repeat(" ", 400_000) + `]}`
	var conns []net.Conn
	// While a large body is read, a slow one may be the one that is refused. So a further one takes its place.
	bounded.Until(t, "a large body to be refused", func() int {
		conns = append(conns, a.stall(slow))
		return a.do(http.MethodPost, "/v1/batch", large).status
	}, func(status int) bool { return status == http.StatusServiceUnavailable })
	a.fire(id, "add", `{"payload": {"by": 1}}`).want(http.StatusOK)
	for _, c := range conns {
		_ = c.Close()
	}
	bounded.Until(t, "a large body to be read", func() int { return a.do(http.MethodPost, "/v1/batch", large).status }, func(status int) bool {
		return status == http.StatusBadRequest // It has no command.
	})
}
