package httpapi_test

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/httpapi"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// Each request is one line at info, with the code of the problem if it was refused. A probe that succeeds is
// logged at debug, so that probes do not fill the log.
func TestRequestsAreLogged(t *testing.T) {
	t.Parallel()
	var log bounded.Lines
	a := serve(t, dbtest.NewDSN(t), setup{http: httpapi.Config{Logger: slog.New(slog.NewTextHandler(&log, nil))}})
	a.get("/healthz", "X-Request-ID", "alive").want(http.StatusOK)
	a.get("/readyz", "X-Request-ID", "ready").want(http.StatusOK)
	a.register(counter)
	id := a.create("counter", `{"context": {"sum": 0}}`)
	a.do(http.MethodHead, "/v1/instances/"+id, "", "X-Request-ID", "head").want(http.StatusOK)
	a.post("/v1/instances/"+id+"/actions/nonsense", newKey(), "", "X-Request-ID", "unknown").want(http.StatusUnprocessableEntity)
	a.get("/v1/nonsense", "X-Request-ID", "nowhere").want(http.StatusNotFound)
	gone := serve(t, "postgres://nobody@127.0.0.1:1/nothing", setup{http: httpapi.Config{Logger: slog.New(slog.NewTextHandler(&log, nil))}})
	gone.get("/readyz", "X-Request-ID", "unready").want(http.StatusServiceUnavailable)
	for request, want := range map[string]string{
		"head":    "method=HEAD route=/v1/instances/{id} status=200",
		"unknown": "method=POST route=/v1/instances/{id}/actions/{event} status=422",
		"nowhere": "method=GET route=_other status=404",
		"unready": "method=GET route=/readyz status=503",
	} {
		code := map[string]string{"unknown": "unknown-event", "nowhere": "not-found", "unready": "unavailable"}[request]
		var lines []string
		// A line is written after the answer.
		bounded.True(t, "the line of "+request, func() bool {
			lines = nil
			for line := range strings.Lines(log.String()) {
				if strings.Contains(line, "msg=request request_id="+request+" ") {
					lines = append(lines, line)
				}
			}
			return len(lines) > 0
		})
		if len(lines) != 1 || !strings.Contains(lines[0], "level=INFO") || !strings.Contains(lines[0], want) ||
			strings.Contains(lines[0], "code=") != (code != "") || !strings.Contains(lines[0]+"code=", "code="+code) {
			t.Errorf("the lines of %s are %q, want one with %q and the code %q", request, lines, want, code)
		}
	}
	if text := log.String(); strings.Contains(text, "request_id=alive") || strings.Contains(text, "request_id=ready ") {
		t.Errorf("a probe that succeeds is logged:\n%s", text)
	}
}

// logged is what the log says about a request.
type logged struct {
	Level, Msg, Method, Route, Code, Tenant, Workflow, Instance string
	RequestID                                                   string `json:"request_id"`
	TraceID                                                     string `json:"trace_id"`
	Status                                                      int
	Duration                                                    *float64
}

// lineOf returns the line of a request, which is written after the answer.
func lineOf(t testing.TB, log *bounded.Lines, request string) (line logged) {
	t.Helper()
	bounded.True(t, "the line of "+request, func() bool {
		for text := range strings.Lines(log.String()) {
			line = logged{}
			if err := json.Unmarshal([]byte(text), &line); err != nil {
				t.Fatalf("%v: %s", err, text)
			}
			if line.RequestID == request && line.Msg == "request" {
				return true
			}
		}
		return false
	})
	return line
}

// startLogged starts a service whose log is kept as JSON, from level debug on.
func startLogged(t *testing.T, config httpapi.Config) (*api, *bounded.Lines) {
	t.Helper()
	var log bounded.Lines
	config.Logger = slog.New(slog.NewJSONHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	return startWith(t, setup{http: config}), &log
}

// The line of a request names the instance and the workflow that it was about, and its trace.
func TestLinesNameWhatRequestsAreAbout(t *testing.T) {
	t.Parallel()
	a, log := startLogged(t, httpapi.Config{})
	a.register(counter)
	trace := "4bf92f3577b34da6a3ce929d0e0e4736"
	parent := "00-" + trace + "-00f067aa0ba902b7-01"
	id := a.create("counter", `{"context": {"sum": 0}}`, "X-Request-ID", "create", "traceparent", parent)
	action := "/v1/instances/" + id + "/actions/"
	a.fire(id, "add", `{"payload": {"by": 1}}`, "X-Request-ID", "fire", "Prefer", "return=minimal")
	a.post(action+"nonsense", newKey(), "", "X-Request-ID", "refused")
	a.get("/v1/instances/"+id+"/history", "X-Request-ID", "history").want(http.StatusOK)
	a.post(action+"add", newKey(), `{"payload": {"by": 1}}`, "X-Request-ID", "stale", "If-Match", `"7"`).want(http.StatusPreconditionFailed)
	a.get("/v1/instances/"+id+"/forecast", "X-Request-ID", "forecast").want(http.StatusConflict)
	a.create("counter", `{"context": {"sum": 0}, "business_key": "held"}`)
	a.post("/v1/workflows/counter/instances", newKey(), `{"context": {"sum": 0}, "business_key": "held"}`, "X-Request-ID", "held").want(http.StatusConflict)
	a.post("/v1/workflows/counter/keys/held/actions/add", newKey(), `{"payload": {"by": 1}}`, "X-Request-ID", "key", "If-Match", `"7"`).
		want(http.StatusPreconditionFailed)
	a.get("/v1/workflows/c%6Funter", "X-Request-ID", "workflow").want(http.StatusOK)
	a.get("/v1/instances", "X-Request-ID", "list").want(http.StatusOK)
	for request, want := range map[string]logged{
		"create":   {Method: "POST", Route: "/v1/workflows/{name}/instances", Status: 201, Workflow: "counter", Instance: id, TraceID: trace},
		"fire":     {Method: "POST", Route: "/v1/instances/{id}/actions/{event}", Status: 204, Workflow: "counter", Instance: id},
		"refused":  {Method: "POST", Route: "/v1/instances/{id}/actions/{event}", Status: 422, Code: "unknown-event", Instance: id},
		"stale":    {Method: "POST", Route: "/v1/instances/{id}/actions/{event}", Status: 412, Code: "version-mismatch", Instance: id},
		"forecast": {Method: "GET", Route: "/v1/instances/{id}/forecast", Status: 409, Code: "too-few-samples", Instance: id},
		"held":     {Method: "POST", Route: "/v1/workflows/{name}/instances", Status: 409, Code: "instance-exists", Workflow: "counter"},
		"key": {
			Method: "POST", Route: "/v1/workflows/{name}/keys/{business_key}/actions/{event}", Status: 412, Code: "version-mismatch", Workflow: "counter",
		},
		"history":  {Method: "GET", Route: "/v1/instances/{id}/history", Status: 200, Instance: id},
		"workflow": {Method: "GET", Route: "/v1/workflows/{name}", Status: 200, Workflow: "counter"},
		"list":     {Method: "GET", Route: "/v1/instances", Status: 200},
	} {
		got := lineOf(t, log, request)
		if want.TraceID == "" && len(got.TraceID) == 32 {
			got.TraceID = "" // It began a trace of its own.
		}
		if got.Duration == nil || *got.Duration <= 0 {
			t.Errorf("%s took %v", request, got.Duration)
		}
		want.Level, want.Msg, want.RequestID, want.Tenant, want.Duration = "INFO", "request", request, "default", got.Duration
		if got != want {
			t.Errorf("the line of %s is\n%+v, want\n%+v", request, got, want)
		}
	}
}

// A request counts for the tenant of its caller, and not for another one that it names.
func TestRefusedTenantsAreNotLogged(t *testing.T) {
	t.Parallel()
	var observed sync.Map
	a, log := startLogged(t, httpapi.Config{
		Tokens: []httpapi.Token{{SHA256: sum("token"), Subject: "tess"}, {SHA256: sum("other"), Subject: "olga", Tenant: "other"}},
		Observe: func(_, _, tenant string, status int, _ time.Duration) {
			if status == http.StatusForbidden {
				observed.Store(tenant, true)
			}
		},
	})
	for i, tenant := range []string{"other", fsm.Deployment, "nobody's"} {
		request := fmt.Sprint("r", i)
		a.get("/v1/instances", "Authorization", "Bearer token", "X-Pawl-Tenant", tenant, "X-Request-ID", request).want(http.StatusForbidden)
		if got := lineOf(t, log, request).Tenant; got != fsm.DefaultTenant {
			t.Errorf("the line of a request that names %s has the tenant %s", tenant, got)
		}
	}
	observed.Range(func(tenant, _ any) bool {
		if tenant != fsm.DefaultTenant {
			t.Errorf("requests are counted for %v", tenant)
		}
		return true
	})
}

// Whatever a caller puts into a request, the log does not have it: not in a path, where keys stand, nor anywhere else.
func TestSecretsAreNotLogged(t *testing.T) {
	t.Parallel()
	const secret = "hunter2"
	a, log := startLogged(t, httpapi.Config{Tokens: []httpapi.Token{{SHA256: sum("token"), Subject: "tess"}, {SHA256: sum("deploy"), Subject: "dora", Tenant: fsm.Deployment, Scopes: []httpapi.Scope{httpapi.ScopeDeploy}}}})
	a.do(http.MethodPut, "/v1/workflows/counter", counter, "Authorization", "Bearer deploy").want(http.StatusCreated)
	body := `{"context": {"sum": 0}, "business_key": "` + secret + `"}`
	a.post("/v1/workflows/counter/instances", newKey(), body, "Authorization", "Bearer token").want(http.StatusCreated)
	sent := 0
	for _, caller := range [][]string{{"token"}, {secret}, {"token", "X-Pawl-Tenant", secret}, {"deploy", "X-Pawl-Tenant", secret}} {
		for _, c := range []struct{ method, target, body string }{
			{http.MethodGet, "/" + secret, ""},
			{secret, "/v1/instances", ""},
			{http.MethodGet, "/v1/" + secret + "/x", ""},
			{http.MethodGet, "/v1/instances/" + secret, ""},
			{http.MethodGet, "/v1/instances/" + secret + "/history", ""},
			{http.MethodGet, "/v1/workflows/" + secret, ""},
			{http.MethodGet, "/v1/workflows/" + secret + "/diagram", ""},
			{http.MethodGet, "/v1/instances?business_key=" + secret, ""},
			{http.MethodGet, "/v1/instances?" + secret + "=1", ""},
			{http.MethodGet, "/v1/instances?%zz" + secret, ""},
			{http.MethodGet, "/v1/instances/%00" + secret, ""},
			{http.MethodPut, "/v1/workflows/" + secret, `{"` + secret + `": 1}`},
			{http.MethodPost, "/v1/workflows/" + secret + "/instances", `{"context": {}}`},
			{http.MethodPost, "/v1/workflows/counter/instances", `{"context": {"` + secret + `": "` + secret + `"}}`},
			{http.MethodPost, "/v1/workflows/counter/keys/" + secret + "/actions/add", `{"payload": {"n": 1}}`},
			{http.MethodPost, "/v1/workflows/counter/keys/" + secret + "/actions/" + secret, `{"payload": {"n": "` + secret + `"}}`},
			{http.MethodPost, "/v1/workflows/" + secret + "/keys/" + secret + "/actions/add", `{"payload": {"n": 1}, "reason": "` + secret + `"}`},
			{http.MethodOptions, "/v1/workflows/" + secret, ""},
			{http.MethodHead, "/v1/workflows/" + secret, ""},
		} {
			if c.method == secret {
				// The contract check of the client knows no such method.
				in, err := http.NewRequestWithContext(bounded.Context(t), c.method, a.url+c.target, nil)
				if err != nil {
					t.Fatal(err)
				}
				out, err := a.client.Do(in)
				if err != nil {
					t.Fatal(err)
				}
				_, _ = io.Copy(io.Discard, out.Body)
				_ = out.Body.Close()
			} else {
				a.do(c.method, c.target, c.body, append([]string{
					"Authorization", "Bearer " + caller[0], "Idempotency-Key", secret + newKey(), "X-Correlation-ID", secret,
					"User-Agent", secret, "Referer", "http://" + secret, "Cookie", secret, "traceparent", secret, "tracestate", "x=" + secret,
				}, caller[1:]...)...)
			}
			sent++
		}
	}
	var lines []string
	bounded.True(t, "the lines of all requests", func() bool {
		lines = slices.Collect(strings.Lines(log.String()))
		return len(lines) >= sent+2
	})
	for _, line := range lines {
		if strings.Contains(line, secret) {
			t.Errorf("the log has a secret: %s", line)
		}
	}
}

// A stream is logged when it ends, with the time that it was open for.
func TestStreamsAreLoggedWhenTheyEnd(t *testing.T) {
	t.Parallel()
	a, log := startLogged(t, httpapi.Config{})
	a.register(counter)
	id := a.create("counter", `{"context": {"sum": 0}}`)
	s := a.stream("/v1/instances/"+id+"/events?from=start", "", "X-Request-ID", "stream")
	if strings.Contains(log.String(), `"stream"`) {
		t.Error("the stream is logged while it is open")
	}
	s.close()
	if got := lineOf(t, log, "stream"); got.Route != "/v1/instances/{id}/events" || got.Status != http.StatusOK || got.Instance != id {
		t.Errorf("the line of the stream is %+v", got)
	}
}
