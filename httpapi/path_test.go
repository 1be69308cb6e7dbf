package httpapi_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
)

// Paths that differ slightly from a path of the contract are 404, and malformed ones are 400.
func TestPaths(t *testing.T) {
	t.Parallel()
	a := start(t)
	a.register(counter)
	id := a.create("counter", "")
	for target, want := range map[string]string{
		"/":                                 "404 not-found",
		"/v1":                               "404 not-found",
		"/v1/":                              "404 not-found",
		"/v1/nothing":                       "404 not-found",
		"/v2/workflows":                     "404 not-found",
		"/V1/workflows":                     "404 not-found",
		"/v1/workflows/":                    "404 not-found",
		"/v1/workflows/counter/":            "404 not-found",
		"/v1/workflows/counter/versions":    "404 not-found",
		"/v1/workflows/counter/versions/":   "404 not-found",
		"/v1/instances/":                    "404 not-found",
		"/v1/instances/" + id + "/":         "404 not-found",
		"/v1/instances/" + id + "/history/": "404 not-found",
		"/v1/instances/" + id + "/nothing":  "404 not-found",
		"/healthz/":                         "404 not-found",
		"/problems/":                        "404 not-found",
		"/problems/nonsense":                "404 not-found",
		"/v1//workflows":                    "404 not-found",
		"//v1/workflows":                    "404 not-found",
		"/v1/instances//history":            "404 not-found",
		"/v1/workflows/../workflows":        "404 not-found",
		"/v1/instances/nobody":              "404 instance-not-found",
		"/v1/instances/..":                  "404 instance-not-found",
		"/v1/instances/%2e%2e":              "404 instance-not-found",
		"/v1/instances/%25":                 "404 instance-not-found",
		"/v1/instances/%2500":               "404 instance-not-found",
		"/v1/instances/" + id + "%20":       "404 instance-not-found",
		"/v1/instances/urn:uuid:" + id:      "404 instance-not-found",
		"/v1/instances/{" + id[:34] + "}":   "404 instance-not-found",
		"/v1/instances/" + strings.ReplaceAll(id, "-", ""): "404 instance-not-found",
		"/v1/workflows/a%2Fb":                              "404 workflow-not-found",
		"/v1/workflows/" + strings.Repeat("x", 5000):       "404 workflow-not-found",
		"/v1/workflows/counter/versions/2":                 "404 workflow-not-found",
		"/v1/workflows/counter/versions/0":                 "404 workflow-not-found",
		"/v1/workflows/counter/versions/99999999999":       "404 workflow-not-found",
		"/v1/workflows/counter/versions/x":                 "400 malformed-request",
		"/v1/workflows/nobody/instances":                   "404 workflow-not-found",
		"/v1/instances/%00":                                "400 malformed-request",
		"/v1/workflows/a%00b":                              "400 malformed-request",
		"/v1/instances/%ff":                                "400 malformed-request",
		"/v1/instances/%C3%28/history":                     "400 malformed-request",
		"/problems/%00":                                    "400 malformed-request",
		"/healthz?%00":                                     "400 malformed-request",
		"/v1/workflows?%00=1":                              "400 malformed-request",
		"/v1/workflows?cursor=%00":                         "400 malformed-request",
		"/v1/workflows?cursor=%ff":                         "400 malformed-request",
		"/v1/workflows?%ff=x":                              "400 malformed-request",
		"/v1/workflows?limit=%zz":                          "400 malformed-request",
		"/v1/workflows?limit=1;cursor=x":                   "400 malformed-request",
	} {
		if r := a.get(target); r.status < 400 || fmt.Sprint(r.status, " ", r.at("code")) != want {
			t.Errorf("%s: got %d %s, want %s", target, r.status, r.body, want)
		}
	}
	a.get("/v1/instances/"+strings.ToUpper(id)).want(http.StatusOK).wantAt("id", id)
	a.post("/v1/instances/"+id+"/actions/%00", newKey(), "").want(http.StatusBadRequest, "malformed-request")
	a.post("/v1/instances/"+id+"/actions/after:1s", newKey(), "").want(http.StatusUnprocessableEntity, "unknown-event")
	a.post("/v1/instances/"+id+"/actions/a%2Fb", newKey(), "").want(http.StatusUnprocessableEntity, "unknown-event")
	a.post("/v1/workflows/nobody/instances", newKey(), "").want(http.StatusNotFound, "workflow-not-found")
	long := strings.Repeat("x", 256)
	a.post("/v1/workflows/"+long+"/instances", newKey(), "").want(http.StatusNotFound, "workflow-not-found")
	a.fire(id, long, "").want(http.StatusBadRequest, "malformed-request").wantAt("errors.0.parameter", "event")

	// net/http itself answers a malformed request line with 400.
	if status := a.raw("GET /v1/instances/%zz HTTP/1.1\r\nHost: pawl.test\r\n\r\n"); status != http.StatusBadRequest {
		t.Errorf("a bad escape gets %d", status)
	}
}

// raw sends text over a connection of its own and returns the status of the response.
func (a *api) raw(text string) int {
	a.t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(a.url, "http://"))
	if err != nil {
		a.t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if _, err := io.WriteString(conn, text); err != nil {
		a.t.Fatal(err)
	}
	r, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		a.t.Fatal(err)
	}
	return r.StatusCode
}

// Unknown, repeated and bad parameters are 400, and the faults name all of them.
func TestQueryParameters(t *testing.T) {
	t.Parallel()
	a := start(t)
	a.register(counter)
	id := a.create("counter", "")
	for target, parameters := range map[string]string{
		"/v1/workflows?limit=0":                                      "limit",
		"/v1/workflows?limit=-1":                                     "limit",
		"/v1/workflows?limit=x":                                      "limit",
		"/v1/workflows?limit=1.5":                                    "limit",
		"/v1/workflows?limit=":                                       "limit",
		"/v1/workflows?limit=1&limit=2":                              "limit",
		"/v1/workflows?Limit=1":                                      "Limit",
		"/v1/workflows?page=1&sort=x&limit=1":                        "page sort",
		"/v1/workflows/counter?version=1":                            "version",
		"/v1/workflows?cursor=":                                      "cursor",
		"/v1/workflows?cursor=nonsense":                              "cursor",
		"/v1/workflows?cursor=a&cursor=a":                            "cursor",
		"/v1/instances?state=":                                       "state",
		"/v1/instances?workflow=":                                    "workflow",
		"/v1/instances?state=ON&state=OFF&state=":                    "state",
		"/v1/instances?business_key=a&business_key=b":                "business_key",
		"/v1/instances?status=active&status=nonsense":                "status",
		"/v1/instances?workflow=nobody":                              "workflow",
		"/v1/instances?workflow=counter&state=NOWHERE":               "state",
		"/v1/instances?sort=id":                                      "sort",
		"/v1/instances?sort=created_at&sort=created_at":              "sort",
		"/v1/instances?timer=":                                       "timer",
		"/v1/instances?timer=late":                                   "timer",
		"/v1/workflows/counter/instances?state=QUOTED":               "state",
		"/v1/instances?x=" + strings.Repeat("&state=ON", 21):         "state x",
		"/v1/instances?status=nonsense":                              "status",
		"/v1/instances?business_key=":                                "business_key",
		"/v1/instances?correlation_id=":                              "correlation_id",
		"/v1/instances?created_after=yesterday":                      "created_after",
		"/v1/instances?created_before=2026-01-01":                    "created_before",
		"/v1/instances?stuck_for=1":                                  "stuck_for",
		"/v1/instances?stuck_for=0s":                                 "stuck_for",
		"/v1/instances?stuck_for=-1s":                                "stuck_for",
		"/v1/instances?stuck_for=99999d":                             "stuck_for",
		"/v1/instances?status=x&limit=x&nonsense=x":                  "limit nonsense status",
		"/v1/workflows/counter/instances?workflow=x":                 "workflow",
		"/v1/instances/" + id + "?at=now":                            "at",
		"/v1/instances/" + id + "?at=":                               "at",
		"/v1/instances/" + id + "?version=x":                         "version",
		"/v1/instances/" + id + "?version=":                          "version",
		"/v1/instances/" + id + "?state=ON":                          "state",
		"/v1/instances/" + id + "/actions?evaluate=":                 "evaluate",
		"/v1/instances/" + id + "/actions?evaluate=1":                "evaluate",
		"/v1/instances/" + id + "/history?limit=0":                   "limit",
		"/v1/instances/" + id + "/history?kind=x":                    "kind",
		"/v1/instances/" + id + "?version=1&at=2026-01-01T00:00:00Z": "version",
		"/v1/instances?state=" + strings.Repeat("x", 256):            "state",
		"/v1/instances?workflow=" + strings.Repeat("x", 256):         "workflow",
		"/v1/instances?business_key=" + strings.Repeat("x", 256):     "business_key",
	} {
		r := a.get(target)
		if r.status != http.StatusBadRequest || r.at("code") != "malformed-request" {
			t.Errorf("%s: got %d %s", target, r.status, r.body)
		} else if got := strings.Join(r.each("errors", "parameter"), " "); got != parameters {
			t.Errorf("%s: faults %s, want %s", target, got, parameters)
		}
	}
	a.do(http.MethodPut, "/v1/workflows/counter?dry_run=yes", counter).want(http.StatusBadRequest, "malformed-request")
	a.post("/v1/workflows/counter/instances?dry_run=true", newKey(), "").want(http.StatusBadRequest, "malformed-request")
	a.do(http.MethodPost, "/v1/batch?x=1", `{"commands": []}`).want(http.StatusBadRequest, "malformed-request")
	a.get("/v1/workflows?limit=201").want(http.StatusOK)
	a.get("/v1/workflows?limit=1000000000000").want(http.StatusOK)
	// A probe is answered whatever parameters and headers it has.
	a.get("/healthz?x=1", "Accept", "text/html", "If-None-Match", "x").want(http.StatusOK)
	a.get("/readyz?x=1", "Accept", "text/html").want(http.StatusOK)
}
