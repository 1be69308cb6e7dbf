package httpapi_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/httpapi"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// A streamed is a client's open stream, parsed according to WHATWG HTML, 9.2.6.
type streamed struct {
	t      testing.TB
	cancel context.CancelFunc
	res    *http.Response
	lines  *bufio.Scanner
	id     string // The last event id.
	beats  int
}

// An sse is one event of a stream.
type sse struct{ id, kind, data string }

// step returns the instance, the version and the new state of the step in an event.
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
	timer := time.AfterFunc(bounded.Limit, cancel)
	defer timer.Stop()
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
	timer := time.AfterFunc(bounded.Limit, s.cancel)
	defer timer.Stop()
	// bounded: the timer ends the stream
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

// want reads events and compares their kinds, versions and states.
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
	bounded.Exec(a.t, a.pool, `select pawl.fire_one($1, 'add', '{"by": 1}')`, id)
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
	// No further step can come.
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
	for _, bad := range []string{"6", "-1", "x", "05", "1.5", "99999999999999999999", ":1", id, id + ":", id + ":1@", id + ":1@1", id + ":1:1", id + "1"} {
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
	// From the beginning: first the existing steps, then the new ones.
	start := a.stream("/v1/events?from=start", "")
	start.want("created 1 ON", "created 1 QUOTED", "transition 2 ON", "transition 3 OFF")
	last := start.id
	two := a.create("counter", `{"context": {"sum": 0}}`)
	start.want("created 1 ON")
	a.stream("/v1/events", last).want("created 1 ON")
	// Filters. An id serves with any of them.
	for query, want := range map[string][]string{
		"workflow=counter":                   {"created 1 ON", "transition 2 ON", "transition 3 OFF", "created 1 ON"},
		"event=add,stop":                     {"transition 2 ON", "transition 3 OFF"},
		"state=OFF":                          {"transition 3 OFF"},
		"terminal_only=true":                 {"transition 3 OFF"},
		"workflow=counter,booking&event=add": {"transition 2 ON"},
	} {
		a.stream("/v1/events?from=start&"+query, "").want(want...)
		if want[0] == "created 1 ON" {
			want = want[1:]
		}
		a.stream("/v1/events?"+query, first).want(want...)
	}
	for _, bad := range []string{"x", "1", first + "x", first[1:]} {
		a.get("/v1/events", "Last-Event-ID", bad).want(http.StatusBadRequest, "malformed-request").wantAt("errors.0.parameter", "Last-Event-ID")
	}
	// A place of the log serves any tenant, and shows it its own steps alone.
	own := foreign.stream("/v1/events", first)
	a.get("/v1/events?status=active").want(http.StatusBadRequest, "malformed-request")
	// Another tenant sees only its own steps.
	foreign.create("counter", `{"context": {"sum": 0}}`)
	for _, s := range []*streamed{strange, own} {
		e, _ = s.next()
		if id, _, _ := e.step(t); id == one || id == two {
			t.Error("another tenant's steps are seen")
		}
	}
	foreign.get("/v1/instances/"+one+"/events").want(http.StatusNotFound, "instance-not-found")
}

// A stream requires the scope read.
func TestStreamScopes(t *testing.T) {
	t.Parallel()
	a := startLive(t, httpapi.Config{Tokens: []httpapi.Token{
		{SHA256: sum("reader"), Subject: "r", Scopes: []httpapi.Scope{httpapi.ScopeRead}},
		{SHA256: sum("writer"), Subject: "w", Scopes: []httpapi.Scope{httpapi.ScopeFire}},
	}})
	a.get("/v1/events").want(http.StatusUnauthorized, "unauthenticated")
	a.get("/v1/events", "Authorization", "Bearer writer").want(http.StatusForbidden, "forbidden")
	a.stream("/v1/events", "", "Authorization", "Bearer reader").close()
}
