package httpapi_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/pawl-fsm/pawl/db"
	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/live"
	"github.com/pawl-fsm/pawl/httpapi"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// startLive starts a service with a running hub. The hub polls so rarely that a test which depends
// on polling would take noticeably longer.
func startLive(t testing.TB, config httpapi.Config) *api {
	t.Helper()
	pool := dbtest.New(t)
	dbtest.Numbering(t, pool)
	a := liveOn(t, dbtest.DSN(pool), config)
	a.pool = pool
	return a
}

func liveOn(t testing.TB, dsn string, config httpapi.Config) *api {
	t.Helper()
	pool, err := db.Open(t.Context(), dsn, db.Config{})
	if err != nil {
		t.Fatal(err)
	}
	hub := live.NewHub(pool, live.HubConfig{Poll: 300 * time.Millisecond})
	notifier := live.NewNotifier(pool, hub)
	service := fsm.New(pool, fsm.Config{Moved: notifier.Moved})
	t.Cleanup(pool.Close)
	bounded.Run(t, "the hub", hub.Run)
	t.Cleanup(func() {
		service.Close()
		notifier.Close()
	})
	return serveHandler(t, httpapi.ServicesOf(service, hub), setup{http: config})
}

// later sends a waiting request and returns a channel for its answer.
func (a *api) later(target string, headers ...string) <-chan answer {
	got := make(chan answer, 1)
	go func() {
		r, err := a.try(http.MethodGet, target, "", headers...)
		if err != nil {
			a.t.Error(err)
		}
		got <- r
	}()
	return got
}

func TestLongPoll(t *testing.T) {
	t.Parallel()
	a := startLive(t, httpapi.Config{})
	a.register(counter)
	id := a.create("counter", `{"context": {"sum": 0}}`)
	path := "/v1/instances/" + id

	// The wait times out.
	start := time.Now()
	a.get(path, "Prefer", "wait=1", "If-None-Match", `"1"`).want(http.StatusNotModified).
		wantHeader("Preference-Applied", "wait=1").wantHeader("ETag", `"1"`)
	if took := time.Since(start); took < time.Second {
		t.Errorf("the answer comes after %v", took)
	}
	// The request names no condition.
	a.get(path, "Prefer", "wait=60").want(http.StatusOK).wantHeader("Preference-Applied", "")
	a.get(path, "Prefer", "wait=600", "If-None-Match", `"7"`).want(http.StatusOK).wantHeader("Preference-Applied", "wait=60")
	a.get(path, "Prefer", `respond-async, WAIT="0" ; x=y, wait=5, return=minimal`, "If-None-Match", `"1"`).
		want(http.StatusNotModified).wantHeader("Preference-Applied", "wait=0")
	for _, odd := range []string{"wait=x", "wait=-1", "wait", "wait=", "wait=1.5"} {
		a.get(path, "Prefer", odd, "If-None-Match", `"1"`).want(http.StatusNotModified).wantHeader("Preference-Applied", "")
	}
	a.get(path+"?version=1", "Prefer", "wait=60", "If-None-Match", `"1"`).want(http.StatusNotModified).wantHeader("Preference-Applied", "")
	a.get("/v1/instances/nobody", "Prefer", "wait=60", "If-None-Match", `"1"`).want(http.StatusNotFound, "instance-not-found")

	// The instance is moved by another replica, and through SQL.
	other := a.another(setup{})
	got := a.later(path, "Prefer", "wait=60", "If-None-Match", `"1"`)
	other.fire(id, "add", `{"payload": {"by": 1}}`).want(http.StatusOK)
	bounded.Receive(t, "the answer", got).want(http.StatusOK).wantHeader("ETag", `"2"`).wantHeader("Preference-Applied", "wait=60").wantAt("context.sum", "1")
	got = a.later(path, "Prefer", "wait=60", "If-None-Match", `W/"1", "2"`)
	bounded.Exec(a.t, a.pool, `select pawl.fire_one($1, 'add', '{"by": 1}')`, id)
	bounded.Receive(t, "the answer", got).want(http.StatusOK).wantHeader("ETag", `"3"`)
}

func TestUntil(t *testing.T) {
	t.Parallel()
	a := startLive(t, httpapi.Config{})
	a.register(counter)
	id := a.create("counter", `{"context": {"sum": 0}}`)
	path := "/v1/instances/" + id
	for _, bad := range []string{"?until=NOWHERE", "?until=ON,NOWHERE", "?until=", "?until=ON,", "?until=on", "?until=ON&version=1", "?until=ON&at=2026-01-01T00:00:00Z"} {
		a.get(path+bad).want(http.StatusBadRequest, "malformed-request").wantAt("errors.0.parameter", "until")
	}
	// Without Prefer, and where the condition already holds.
	a.get(path+"?until=final").want(http.StatusOK).wantHeader("Preference-Applied", "").wantAt("state", "ON")
	a.get(path+"?until=OFF,ON", "Prefer", "wait=60", "If-None-Match", `"1"`).want(http.StatusOK).wantHeader("Preference-Applied", "wait=60")
	a.get(path+"?until=final", "Prefer", "wait=1").want(http.StatusOK).wantAt("state", "ON")

	final := a.later(path+"?until=final", "Prefer", "wait=60")
	state := a.later(path+"?until=OFF", "Prefer", "wait=60")
	moved := a.later(path, "Prefer", "wait=60", "If-None-Match", `"1"`)
	a.fire(id, "add", `{"payload": {"by": 1}}`).want(http.StatusOK)
	// Another wait ends by this step, and these go on.
	bounded.Receive(t, "the answer", moved).want(http.StatusOK).wantAt("version", "2")
	select {
	case r := <-final:
		t.Errorf("the wait ends too early: %s", r.body)
	case r := <-state:
		t.Errorf("the wait ends too early: %s", r.body)
	default:
	}
	a.fire(id, "stop", "").want(http.StatusOK)
	bounded.Receive(t, "the answer", final).want(http.StatusOK).wantAt("state", "OFF", "version", "3")
	bounded.Receive(t, "the answer", state).want(http.StatusOK).wantAt("state", "OFF", "version", "3")
	// The instance is final, so it cannot reach another state.
	a.get(path+"?until=ON", "Prefer", "wait=60").want(http.StatusOK).wantAt("state", "OFF")
	a.get(path, "Prefer", "wait=60", "If-None-Match", `"3"`).want(http.StatusNotModified)
}

// When the service shuts down, waiting requests are answered with the present instance.
func TestWaitsEndAtShutdown(t *testing.T) {
	t.Parallel()
	draining, drain := context.WithCancel(context.Background())
	defer drain()
	a := startLive(t, httpapi.Config{Draining: draining})
	a.register(counter)
	id := a.create("counter", `{"context": {"sum": 0}}`)
	same := a.later("/v1/instances/"+id, "Prefer", "wait=60", "If-None-Match", `"1"`)
	final := a.later("/v1/instances/"+id+"?until=final", "Prefer", "wait=60")
	drain()
	bounded.Receive(t, "the answer", same).want(http.StatusNotModified)
	bounded.Receive(t, "the answer", final).want(http.StatusOK).wantAt("state", "ON")
}

// The read timeout of the HTTP server, which pawl serve sets, ends neither waits nor streams:
// net/http clears it once a request has been read.
func TestReadTimeoutCutsNoWait(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	dbtest.Numbering(t, pool)
	service := fsm.New(pool, fsm.Config{})
	t.Cleanup(service.Close)
	handler, err := httpapi.New(httpapi.ServicesOf(service, nil), httpapi.Config{})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(handler)
	server.Config.ReadTimeout = 300 * time.Millisecond
	server.Start()
	t.Cleanup(server.Close)
	a := &api{t: t, url: server.URL, client: server.Client(), pool: pool}
	a.register(counter)
	id := a.create("counter", `{"context": {"sum": 0}}`)
	stream := a.stream("/v1/events", "")
	start := time.Now()
	a.get("/v1/instances/"+id, "Prefer", "wait=1", "If-None-Match", `"1"`).want(http.StatusNotModified)
	if took := time.Since(start); took < time.Second {
		t.Errorf("the wait is cut after %v", took)
	}
	a.create("counter", `{"context": {"sum": 0}}`)
	stream.want("created 1 ON")
}
