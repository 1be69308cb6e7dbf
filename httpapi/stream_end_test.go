package httpapi_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/httpapi"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

func TestHeartbeat(t *testing.T) {
	t.Parallel()
	a := startLive(t, httpapi.Config{Heartbeat: 20 * time.Millisecond})
	a.register(counter)
	id := a.create("counter", `{"context": {"sum": 0}}`)
	for _, path := range []string{"/v1/instances/" + id + "/events", "/v1/events"} {
		s := a.stream(path, "")
		timer := time.AfterFunc(bounded.Limit, s.cancel)
		// bounded: the timer ends the stream
		for beats := 0; beats < 3; {
			if !s.lines.Scan() {
				t.Fatal("the stream ends")
			}
			if strings.HasPrefix(s.lines.Text(), ":") {
				beats++
			}
		}
		timer.Stop()
	}
}

func TestStreamsEndAtShutdown(t *testing.T) {
	t.Parallel()
	draining, drain := context.WithCancel(context.Background())
	defer drain()
	a := startLive(t, httpapi.Config{Draining: draining})
	a.register(counter)
	id := a.create("counter", `{"context": {"sum": 0}}`)
	one, all := a.stream("/v1/instances/"+id+"/events", ""), a.stream("/v1/events?from=start", "")
	all.want("created 1 ON")
	drain()
	one.wantEnd()
	all.wantEnd()
}

// A stream from an id that is too old ends with an error event that clears the client's id.
func TestEventIDTooOld(t *testing.T) {
	t.Parallel()
	tooOld(t)
}

func tooOld(t *testing.T) answer {
	t.Helper()
	a := startLive(t, httpapi.Config{})
	a.register(strings.Replace(counter, `"states"`, `"retention": "1h", "states"`, 1))
	a.register(booking)
	id, gone := a.create("counter", `{"context": {"sum": 0}}`), a.create("counter", `{"context": {"sum": 0}}`)
	s, of := a.stream("/v1/events", ""), a.stream("/v1/events?workflow=booking", "")
	a.create("booking", `{"context": {"price": 1}}`)
	a.fire(gone, "stop", "").want(http.StatusOK)
	e, _ := s.next()
	other, _ := of.next()
	s.close()
	of.close()
	// The retention has passed, but nothing has been purged yet, so the stream can resume.
	dbtest.Advance(t, a.pool, 25*time.Hour)
	a.fire(id, "add", `{"payload": {"by": 1}}`).want(http.StatusOK)
	a.stream("/v1/events", e.id).want("transition 2 OFF", "transition 2 ON")
	bounded.Exec(a.t, a.pool, "select pawl.purge_archived('default', array[$1::uuid], pawl.now())", gone)
	a.create("booking", `{"context": {"price": 1}}`)
	a.stream("/v1/events?workflow=booking", other.id).want("created 1 QUOTED")
	r := a.stream("/v1/events", e.id).wantError(http.StatusGone, "event-id-too-old", "")
	// A step of the streamed instance is missing.
	bounded.Exec(a.t, a.pool, "delete from pawl.history where instance_id = $1 and version = 1", id)
	a.stream("/v1/instances/"+id+"/events", "0").wantError(http.StatusGone, "event-id-too-old", "")
	// So are ids that were given before the log had positions.
	a.stream("/v1/events", "AZJ0cXlqdGhpc2lzYW5vbGRpZG9mYW5vbGRzdHJlYW0").wantError(http.StatusGone, "event-id-too-old", "")
	return r
}

// wantError wants the stream to end with an error event that leaves the client at an id.
func (s *streamed) wantError(status int, code, id string) answer {
	s.t.Helper()
	e, _ := s.next()
	if e.kind != "error" || e.id != id {
		s.t.Fatalf("the event is %v, want an error with the id %q", e, id)
	}
	s.wantEnd()
	r := answer{t: s.t, request: "GET " + s.res.Request.URL.Path, status: status, header: s.res.Header, body: []byte(e.data)}
	return r.wantAt("code", code, "status", strconv.Itoa(status), "request_id", s.res.Header.Get("X-Request-ID"))
}

// A stream that has been where the log no longer is ends with an error event that takes the client back, and that it goes
// on behind. It is told although the database has no new step.
func TestStepsLost(t *testing.T) {
	t.Parallel()
	stepsLost(t)
}

func stepsLost(t *testing.T) answer {
	t.Helper()
	a := startLive(t, httpapi.Config{Heartbeat: 20 * time.Millisecond})
	a.register(counter)
	id := a.create("counter", `{"context": {"sum": 0}}`)
	path, add := "/v1/instances/"+id+"/events", `{"payload": {"by": 1}}`
	a.fire(id, "add", add).want(http.StatusOK)
	lose := dbtest.Fork(t, a.pool)
	of, one := a.stream("/v1/events?from=start", ""), a.stream(path+"?from=start", "")
	a.fire(id, "add", add).want(http.StatusOK)
	for _, s := range []*streamed{of, one} {
		s.want("created 1 ON", "transition 2 ON", "transition 3 ON")
	}
	beyond := of.id
	lose()
	r := of.wantError(http.StatusConflict, "steps-lost", "1.2").wantAt("last_common", "1.2")
	one.wantError(http.StatusConflict, "steps-lost", id+":2").wantAt("last_common", id+":2")
	a.stream("/v1/events", beyond).wantError(http.StatusConflict, "steps-lost", "1.2")
	a.stream(path, id+":3").wantError(http.StatusConflict, "steps-lost", id+":2")
	of, one = a.stream("/v1/events", of.id), a.stream(path, one.id)
	a.fire(id, "stop", "").want(http.StatusOK)
	for s, last := range map[*streamed]string{of: "2.3", one: id + ":3@2"} {
		if s.want("transition 3 OFF"); s.id != last {
			t.Errorf("the id is %s, want %s", s.id, last)
		}
	}
	// What the client has seen of the instance is another step than the one that ended it.
	a.stream(path, id+":3").wantError(http.StatusConflict, "steps-lost", id+":2")
	a.get(path, "Last-Event-ID", id+":3@2").want(http.StatusNoContent)
	return r
}

// A stream does not begin behind a place that the log has never been at.
func TestUnknownEventID(t *testing.T) {
	t.Parallel()
	unknownEventID(t)
}

func unknownEventID(t *testing.T) answer {
	t.Helper()
	a := startLive(t, httpapi.Config{})
	a.register(counter)
	id := a.create("counter", `{"context": {"sum": 0}}`)
	a.stream("/v1/events?from=start", "").want("created 1 ON")
	for _, last := range []string{id + ":2", id + ":1@2"} {
		a.stream("/v1/instances/"+id+"/events", last).wantError(http.StatusNotFound, "unknown-event-id", last)
	}
	a.stream("/v1/events", "2.1").wantError(http.StatusNotFound, "unknown-event-id", "2.1")
	return a.stream("/v1/events", "1.2").wantError(http.StatusNotFound, "unknown-event-id", "1.2")
}

// A client that does not read is disconnected, and delays no other client.
func TestSlowReader(t *testing.T) {
	t.Parallel()
	a := startLive(t, httpapi.Config{StreamPatience: 100 * time.Millisecond})
	a.register(counter)
	id := a.create("counter", `{"context": {"sum": 0, "text": "`+strings.Repeat("x", 60000)+`"}}`)
	conn, err := net.Dial("tcp", strings.TrimPrefix(a.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	_ = conn.(*net.TCPConn).SetReadBuffer(64 << 10)
	if _, err := io.WriteString(conn, "GET /v1/events?from=start HTTP/1.1\r\nHost: pawl.test\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	quick := a.stream("/v1/instances/"+id+"/events", "")
	for version := 2; version < 130; version++ {
		a.fire(id, "add", `{"payload": {"by": 1}}`, "Prefer", "return=minimal")
		quick.want(fmt.Sprintf("transition %d ON", version))
	}
	// The service has written more than the buffers hold, so it has ended the stream.
	_ = conn.SetReadDeadline(time.Now().Add(bounded.Limit))
	text, err := io.ReadAll(conn)
	if err != nil && !strings.Contains(err.Error(), "reset") {
		t.Errorf("the slow stream is not ended: %v", err)
	}
	if n := strings.Count(string(text), "\nevent: "); n >= 129 {
		t.Errorf("%d events were kept for it", n)
	}
}

// The stream of a final instance ends with an id that is answered with 204, whatever the
// filters choose. Otherwise a browser would reconnect for ever.
func TestFilteredStreamsEndForGood(t *testing.T) {
	t.Parallel()
	a := startLive(t, httpapi.Config{})
	a.register(counter)
	id := a.create("counter", `{"context": {"sum": 0}}`)
	path := "/v1/instances/" + id + "/events"
	running := a.stream(path+"?event=add", "1")
	a.fire(id, "add", `{"payload": {"by": 1}}`).want(http.StatusOK)
	running.want("transition 2 ON")
	a.fire(id, "stop", "").want(http.StatusOK)
	running.wantEnd()
	again := a.stream(path+"?event=add", "1")
	again.want("transition 2 ON")
	again.wantEnd()
	for _, s := range []*streamed{running, again} {
		a.get(path+"?event=add", "Last-Event-ID", s.id).want(http.StatusNoContent)
	}
	for query, last := range map[string]string{
		"event=add": "2", "state=NOWHERE": "1", "state=ON": "0", "state=OFF": "3", "terminal_only=true": "3",
	} {
		r := a.get(path+"?"+query, "Last-Event-ID", last)
		if want := query != "state=ON"; (r.status == http.StatusNoContent) != want {
			t.Errorf("?%s behind %s is answered with %d", query, last, r.status)
		}
	}
	a.get(path + "?from=start&event=never").want(http.StatusNoContent)
	// The filters choose no step in several pages of history.
	long := a.create("counter", `{"context": {"sum": 0}}`)
	bounded.Exec(a.t, a.pool, `do $$ begin for n in 1..120 loop perform pawl.fire_one('`+long+`', 'add', '{"by": 1}'); end loop; end $$`)
	a.fire(long, "stop", "").want(http.StatusOK)
	s := a.stream("/v1/instances/"+long+"/events?from=start&state=OFF", "")
	s.want("transition 122 OFF")
	s.wantEnd()
	a.get("/v1/instances/" + long + "/events?from=start&event=never").want(http.StatusNoContent)
}
