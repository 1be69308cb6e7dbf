package httpapi_test

import (
	"log/slog"
	"net/http"
	"strings"
	"testing"

	"github.com/pawl-fsm/pawl/db/dbtest"
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
		"head":    "method=HEAD path=/v1/instances/" + id + " status=200",
		"unknown": "method=POST path=/v1/instances/" + id + "/actions/nonsense status=422",
		"nowhere": "method=GET path=/v1/nonsense status=404",
		"unready": "method=GET path=/readyz status=503",
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
