package httpapi_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/httpapi"
)

// A streamed is an open stream, read as the standard says (WHATWG HTML, 9.2.6).
type streamed struct {
	t      testing.TB
	cancel context.CancelFunc
	res    *http.Response
	lines  *bufio.Scanner
	id     string // The last event id.
	beats  int
}

// An sse is an event.
type sse struct{ id, kind, data string }

// step is what an event is about: the instance, its version and the state it is in.
func (e sse) step(t testing.TB) (instance string, version int, state string) {
	t.Helper()
	var d struct {
		InstanceID string `json:"instance_id"`
		Version    int
		To         string
	}
	if err := json.Unmarshal([]byte(e.data), &d); err != nil {
		t.Fatalf("%v: %s", err, e.data)
	}
	return d.InstanceID, d.Version, d.To
}

func (a *api) stream(target, lastID string, headers ...string) *streamed {
	a.t.Helper()
	ctx, cancel := context.WithCancel(a.t.Context())
	in, err := http.NewRequestWithContext(ctx, http.MethodGet, a.url+target, nil)
	if err != nil {
		a.t.Fatal(err)
	}
	in.Header.Set("Accept", "text/event-stream")
	for i := 0; i < len(headers); i += 2 {
		in.Header.Set(headers[i], headers[i+1])
	}
	if lastID != "" {
		in.Header.Set("Last-Event-ID", lastID)
	}
	res, err := a.client.Do(in)
	if err != nil {
		a.t.Fatal(err)
	}
	s := &streamed{t: a.t, cancel: cancel, res: res, lines: bufio.NewScanner(res.Body), id: lastID}
	s.lines.Buffer(nil, 1<<20)
	a.t.Cleanup(s.close)
	if res.StatusCode != http.StatusOK || res.Header.Get("Content-Type") != "text/event-stream" {
		body, _ := io.ReadAll(res.Body)
		a.t.Fatalf("%s: %d %s %s", target, res.StatusCode, res.Header.Get("Content-Type"), body)
	}
	if res.Header.Get("X-Request-ID") == "" {
		a.t.Errorf("%s: there is no X-Request-ID", target)
	}
	return s
}

func (s *streamed) close() {
	s.cancel()
	_ = s.res.Body.Close()
}

// next returns the next event, or false at the end of the stream.
func (s *streamed) next() (e sse, ok bool) {
	s.t.Helper()
	timer := time.AfterFunc(20*time.Second, s.cancel)
	defer timer.Stop()
	for s.lines.Scan() {
		name, value, _ := strings.Cut(s.lines.Text(), ":")
		value = strings.TrimPrefix(value, " ")
		switch name {
		case "":
			if s.lines.Text() != "" {
				s.beats++
				continue
			}
			if e.data != "" {
				e.id = s.id
				return e, true
			}
			e = sse{}
		case "id":
			s.id = value
		case "event":
			e.kind = value
		case "data":
			e.data += value
		case "retry":
		default:
			s.t.Errorf("the stream has the line %q", s.lines.Text())
		}
	}
	return sse{}, false
}

// want reads events and compares their versions and states.
func (s *streamed) want(steps ...string) {
	s.t.Helper()
	for _, want := range steps {
		e, ok := s.next()
		if !ok {
			s.t.Fatalf("the stream ends before %s: %v", want, s.lines.Err())
		}
		_, version, state := e.step(s.t)
		if got := fmt.Sprintf("%s %d %s", e.kind, version, state); got != want {
			s.t.Errorf("the stream has %s, want %s", got, want)
		}
	}
}

func (s *streamed) wantEnd() {
	s.t.Helper()
	if e, ok := s.next(); ok || s.lines.Err() != nil {
		s.t.Errorf("the stream does not end, but goes on with %v %v", e, s.lines.Err())
	}
}

func TestStreamInstance(t *testing.T) {
	t.Parallel()
	a := startLive(t, httpapi.Config{})
	a.register(counter)
	id := a.create("counter", `{"context": {"sum": 0}}`)
	path := "/v1/instances/" + id + "/events"
	now, all, zero := a.stream(path, ""), a.stream(path+"?from=start", ""), a.stream(path, "0")
	add := `{"payload": {"by": 1}}`
	a.fire(id, "add", add).want(http.StatusOK)
	now.want("transition 2 ON")
	all.want("created 1 ON", "transition 2 ON")
	a.another(setup{}).fire(id, "add", add).want(http.StatusOK)
	now.want("transition 3 ON")
	a.sql(`select pawl.fire_one($1, 'add', '{"by": 1}')`, id)
	now.want("transition 4 ON")
	resumed := a.stream(path, "2")
	filtered := a.stream(path+"?from=start&state=OFF&event=stop,add", "")
	final := a.stream(path+"?from=start&terminal_only=true", "")
	a.fire(id, "stop", "").want(http.StatusOK)
	now.want("transition 5 OFF")
	all.want("transition 3 ON", "transition 4 ON", "transition 5 OFF")
	zero.want("created 1 ON", "transition 2 ON", "transition 3 ON", "transition 4 ON", "transition 5 OFF")
	resumed.want("transition 3 ON", "transition 4 ON", "transition 5 OFF")
	filtered.want("transition 5 OFF")
	final.want("transition 5 OFF")
	for _, s := range []*streamed{now, all, zero, resumed, filtered, final} {
		s.wantEnd()
		if s.id != id+":5" {
			t.Errorf("the last id is %q", s.id)
		}
	}
	// Nothing is left to come.
	a.get(path, "Last-Event-ID", id+":5").want(http.StatusNoContent)
	a.get(path, "Last-Event-ID", "5").want(http.StatusNoContent)
	a.get(path).want(http.StatusNoContent)
	a.stream(path, id+":0").want("created 1 ON")
	again := a.stream(path, id+":4")
	e, _ := again.next()
	var item, step map[string]any
	_ = json.Unmarshal([]byte(e.data), &step)
	_ = json.Unmarshal([]byte(jsonText(t, a.get("/v1/instances/" + id + "/history").json().(map[string]any)["items"].([]any)[4])), &item)
	item["instance_id"], item["workflow"] = id, "counter"
	if got, want := jsonText(t, step), jsonText(t, item); got != want {
		t.Errorf("the data is %s, want %s", got, want)
	}
	for _, bad := range []string{"6", "-1", "x", "05", "1.5", "99999999999999999999", ":1", id, id + ":", id + ":6", id + ":1:1", id + "1"} {
		a.get(path, "Last-Event-ID", bad).want(http.StatusBadRequest, "malformed-request").wantAt("errors.0.parameter", "Last-Event-ID")
	}
	other := a.create("counter", `{"context": {"sum": 0}}`)
	a.get(path, "Last-Event-ID", other+":1").want(http.StatusBadRequest, "malformed-request").
		wantAt("errors.0.parameter", "Last-Event-ID", "errors.0.detail", "is an event's of another instance, "+other)
	a.get(path, "Last-Event-ID", "1", "Last-Event-ID", "2").want(http.StatusBadRequest, "malformed-request")
	a.get(path+"?from=end").want(http.StatusBadRequest, "malformed-request")
	a.get(path+"?workflow=counter").want(http.StatusBadRequest, "malformed-request")
	a.get(path, "Accept", "application/json").want(http.StatusNotAcceptable, "not-acceptable")
	a.get("/v1/instances/nobody/events").want(http.StatusNotFound, "instance-not-found")
}

// Whatever is filtered, a stream of what is final leaves its client with an id to which the
// answer is that nothing is left to come, or a browser would connect for ever.
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
	// It may take pages to see that nothing is left.
	long := a.create("counter", `{"context": {"sum": 0}}`)
	a.sql(`do $$ begin for n in 1..120 loop perform pawl.fire_one('` + long + `', 'add', '{"by": 1}'); end loop; end $$`)
	a.fire(long, "stop", "").want(http.StatusOK)
	a.get("/v1/instances/" + long + "/events?from=start&event=never").want(http.StatusNoContent)
	s := a.stream("/v1/instances/"+long+"/events?from=start&state=OFF", "")
	s.want("transition 122 OFF")
	s.wantEnd()
}

// Where nothing is chosen the id moves on nevertheless, long before the next heartbeat.
func TestIDMovesOnOverWhatIsFiltered(t *testing.T) {
	t.Parallel()
	a := startLive(t, httpapi.Config{Heartbeat: time.Hour})
	a.register(counter)
	id := a.create("counter", `{"context": {"sum": 0}}`)
	stop := make(chan struct{})
	var writing sync.WaitGroup
	writing.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				if _, err := a.pool.Exec(t.Context(), `select pawl.fire_one($1, 'add', '{"by": 1}')`, id); err != nil {
					t.Error(err)
					return
				}
			}
		}
	})
	for _, path := range []string{"/v1/instances/" + id + "/events?event=stop", "/v1/events?event=stop"} {
		s := a.stream(path, "")
		timer := time.AfterFunc(20*time.Second, s.cancel)
		ids := map[string]bool{}
		for len(ids) < 3 && s.lines.Scan() {
			if id, is := strings.CutPrefix(s.lines.Text(), "id: "); is {
				ids[id] = true
			}
		}
		if timer.Stop(); len(ids) < 3 {
			t.Errorf("%s has the ids %v", path, ids)
		}
	}
	close(stop)
	writing.Wait()
}

func TestStreamTenant(t *testing.T) {
	t.Parallel()
	a := startLive(t, httpapi.Config{})
	a.register(counter)
	a.register(booking)
	one := a.create("counter", `{"context": {"sum": 0}}`)
	now := a.stream("/v1/events", "")
	foreign := liveOn(t, dbtest.DSN(a.pool), httpapi.Config{Tenant: "another"})
	strange := foreign.stream("/v1/events?from=start", "")
	a.create("booking", `{"context": {"price": 1}}`)
	a.fire(one, "add", `{"payload": {"by": 1}}`).want(http.StatusOK)
	a.fire(one, "stop", "").want(http.StatusOK)
	e, _ := now.next()
	first := e.id
	if e.kind != "created" {
		t.Errorf("the first event is %v", e)
	}
	now.want("transition 2 ON", "transition 3 OFF")
	a.stream("/v1/events", first).want("transition 2 ON", "transition 3 OFF")
	// From the beginning: what is there comes by instance, and what happens afterwards behind it.
	start := a.stream("/v1/events?from=start", "")
	start.want("created 1 ON", "transition 2 ON", "transition 3 OFF")
	_, ok := start.next()
	last := start.id
	two := a.create("counter", `{"context": {"sum": 0}}`)
	start.want("created 1 ON")
	a.stream("/v1/events", last).want("created 1 ON")
	if !ok {
		t.Error("the booking is missing")
	}
	// The filters.
	for query, want := range map[string][]string{
		"workflow=counter":                   {"created 1 ON", "transition 2 ON", "transition 3 OFF", "created 1 ON"},
		"event=add,stop":                     {"transition 2 ON", "transition 3 OFF"},
		"state=OFF":                          {"transition 3 OFF"},
		"terminal_only=true":                 {"transition 3 OFF"},
		"workflow=counter,booking&event=add": {"transition 2 ON"},
	} {
		s := a.stream("/v1/events?from=start&"+query, "")
		s.want(want...)
		if r := a.get("/v1/events?"+query, "Last-Event-ID", first); r.status != http.StatusBadRequest {
			t.Errorf("an id of other filters gets %d", r.status)
		}
	}
	for _, bad := range []string{"x", "1", first + "x", first[1:]} {
		a.get("/v1/events", "Last-Event-ID", bad).want(http.StatusBadRequest, "malformed-request").wantAt("errors.0.parameter", "Last-Event-ID")
	}
	foreign.get("/v1/events", "Last-Event-ID", first).want(http.StatusBadRequest, "malformed-request")
	a.get("/v1/events?status=active").want(http.StatusBadRequest, "malformed-request")
	// Another tenant sees only its own.
	foreign.create("counter", `{"context": {"sum": 0}}`)
	e, _ = strange.next()
	if id, _, _ := e.step(t); id == one || id == two {
		t.Error("another tenant's steps are seen")
	}
	foreign.get("/v1/instances/"+one+"/events").want(http.StatusNotFound, "instance-not-found")
}

// Cut anywhere and resumed on either replica, streams lose and repeat nothing, though
// transactions commit in another order than they began, and one stays open for long.
func TestStreamsLoseAndRepeatNothing(t *testing.T) {
	t.Parallel()
	a := startLive(t, httpapi.Config{})
	b := liveOn(t, dbtest.DSN(a.pool), httpapi.Config{})
	a.register(counter)
	const instances, steps = 12, 20
	var ids []string
	begin := a.stream("/v1/events", "")
	for range instances {
		ids = append(ids, a.create("counter", `{"context": {"sum": 0}}`))
	}
	slow := a.create("counter", `{"context": {"sum": 0}}`)
	begin.want("created 1 ON")
	begin.close()
	want := map[string]int{}
	for _, id := range ids {
		want[id] = 1 + steps
	}
	want[slow] = 2

	var writing sync.WaitGroup
	// The smallest xid, and the last commit.
	held, err := a.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = held.Rollback(context.Background()) }()
	if _, err := held.Exec(t.Context(), `select pawl.fire_one($1, 'add', '{"by": 1}')`, slow); err != nil {
		t.Fatal(err)
	}
	for n, id := range ids {
		writing.Go(func() {
			for range steps {
				err := pgx.BeginFunc(t.Context(), a.pool, func(tx pgx.Tx) error {
					// Some take their xid long before they write.
					if n%3 == 0 {
						if _, err := tx.Exec(t.Context(), "select pg_current_xact_id(), pg_sleep(random() / 100)"); err != nil {
							return err
						}
					}
					_, err := tx.Exec(t.Context(), `select pawl.fire_one($1, 'add', '{"by": 1}')`, id)
					return err
				})
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	var reading sync.WaitGroup
	for reader := range 4 {
		at := begin.id
		query := "/v1/events"
		if reader == 3 {
			at, query = "", "/v1/events?from=start"
		}
		reading.Go(func() {
			random := rand.New(rand.NewPCG(1, uint64(reader)))
			got := map[string]int{}
			total, all := 0, instances*(1+steps)+2
			if reader != 3 {
				// The first event of the stream was read before.
				id := ids[0]
				got[id], total = 1, 1
			}
			for total < all {
				s := []*api{a, b}[random.IntN(2)].stream(query, at)
				for range 1 + random.IntN(30) {
					e, ok := s.next()
					if !ok {
						t.Errorf("reader %d: the stream ends after %d of %d: %v", reader, total, all, s.lines.Err())
						return
					}
					id, version, _ := e.step(t)
					if version != got[id]+1 {
						t.Errorf("reader %d: version %d of %s comes after %d", reader, version, id, got[id])
						return
					}
					got[id] = version
					if total++; total == all {
						break
					}
				}
				at = s.id
				s.close()
			}
			for id, version := range want {
				if got[id] != version {
					t.Errorf("reader %d: %s is at %d, want %d", reader, id, got[id], version)
				}
			}
		})
	}
	writing.Wait()
	if err := held.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	reading.Wait()
}

func TestHeartbeat(t *testing.T) {
	t.Parallel()
	a := startLive(t, httpapi.Config{Heartbeat: 20 * time.Millisecond})
	a.register(counter)
	id := a.create("counter", `{"context": {"sum": 0}}`)
	for _, path := range []string{"/v1/instances/" + id + "/events", "/v1/events"} {
		s := a.stream(path, "")
		for beats := 0; beats < 3; {
			if !s.lines.Scan() {
				t.Fatal("the stream ends")
			}
			if strings.HasPrefix(s.lines.Text(), ":") {
				beats++
			}
		}
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

// An id that is too old is said to be, and taken back.
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
	// A retention may have passed: only what is removed is lost, to whoever has not read it.
	dbtest.Advance(t, a.pool, 25*time.Hour)
	a.fire(id, "add", `{"payload": {"by": 1}}`).want(http.StatusOK)
	a.stream("/v1/events", e.id).want("transition 2 OFF", "transition 2 ON")
	a.sql("select pawl.remove_instances('default', array[$1::uuid], pawl.now())", gone)
	a.create("booking", `{"context": {"price": 1}}`)
	a.stream("/v1/events?workflow=booking", other.id).want("created 1 QUOTED")
	s = a.stream("/v1/events", e.id)
	failed, _ := s.next()
	if failed.kind != "error" || failed.id != "" {
		t.Fatalf("the event is %v", failed)
	}
	s.wantEnd()
	r := answer{t: t, request: "GET /v1/events", status: http.StatusGone, header: s.res.Header, body: []byte(failed.data)}
	r.wantAt("code", "event-id-too-old", "status", "410", "request_id", s.res.Header.Get("X-Request-ID"))
	// A step of the instance's own is missing.
	a.sql("delete from pawl.history where instance_id = $1 and version = 1", id)
	s = a.stream("/v1/instances/"+id+"/events", "0")
	if failed, _ := s.next(); failed.kind != "error" || !strings.Contains(failed.data, `"event-id-too-old"`) {
		t.Errorf("the event is %v", failed)
	}
	s.wantEnd()
	return r
}

// A client that does not read is left, and holds up nobody.
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
	// More than fits on the way has been written, or the stream was ended before.
	_ = conn.SetReadDeadline(time.Now().Add(20 * time.Second))
	text, err := io.ReadAll(conn)
	if err != nil && !strings.Contains(err.Error(), "reset") {
		t.Errorf("the slow stream is not ended: %v", err)
	}
	if n := strings.Count(string(text), "\nevent: "); n >= 129 {
		t.Errorf("%d events were kept for it", n)
	}
}

// A token sees the streams of its tenant if it may read.
func TestStreamScopes(t *testing.T) {
	t.Parallel()
	a := startLive(t, httpapi.Config{Tokens: []httpapi.Token{
		{SHA256: sum("reader"), Subject: "r", Scopes: []httpapi.Scope{httpapi.ScopeRead}},
		{SHA256: sum("writer"), Subject: "w", Scopes: []httpapi.Scope{httpapi.ScopeWrite}},
	}})
	a.get("/v1/events").want(http.StatusUnauthorized, "unauthenticated")
	a.get("/v1/events", "Authorization", "Bearer writer").want(http.StatusForbidden, "forbidden")
	a.stream("/v1/events", "", "Authorization", "Bearer reader").close()
}
