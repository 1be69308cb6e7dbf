package httpapi_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/pawl-fsm/pawl/db"
	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/httpapi"
)

// Claim 11: HEAD, OPTIONS and 405, on every path of the contract.
func TestMethods(t *testing.T) {
	t.Parallel()
	a := start(t)
	a.register(booking)
	id := a.create("booking", `{"context": {"price": 1}}`)
	subscription := a.do(http.MethodPost, subscriptions, `{"url": "`+endpoint+`"}`).want(http.StatusCreated).at("id")
	for path, item := range contract().Paths.Map() {
		target := strings.NewReplacer("subscriptions/{id}", "subscriptions/"+subscription, "{name}", "booking", "{version}", "1", "{id}", id, "{event}", "cancel",
			"{code}", "internal").Replace(path)
		allow := []string{}
		for _, method := range []string{"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"} {
			served := item.GetOperation(method) != nil || method == "OPTIONS" || method == "HEAD" && item.Get != nil
			if served {
				allow = append(allow, method)
			}
		}
		t.Run(path, func(t *testing.T) {
			a := a.on(t)
			a.do(http.MethodOptions, target, "").want(http.StatusNoContent).wantHeader("Allow", strings.Join(allow, ", "))
			for _, method := range []string{"DELETE", "GET", "PATCH", "POST", "PUT", "TRACE", "BREW"} {
				if item.GetOperation(method) == nil {
					a.do(method, target, "").want(http.StatusMethodNotAllowed, "method-not-allowed").
						wantHeader("Allow", strings.Join(allow, ", "))
				}
			}
			if item.Get == nil {
				r := a.do(http.MethodHead, target, "")
				if r.status != http.StatusMethodNotAllowed {
					t.Errorf("HEAD gets %d", r.status)
				}
				return
			}
			if strings.HasSuffix(path, "/events") {
				// A GET would never end.
				a.do(http.MethodHead, target, "").want(http.StatusOK).wantHeader("Content-Type", "text/event-stream")
				return
			}
			get, head := a.get(target), a.do(http.MethodHead, target, "")
			get.want(http.StatusOK)
			for _, name := range []string{"Content-Type", "Content-Length", "ETag", "Link"} {
				head.wantHeader(name, get.header.Get(name))
			}
			if head.status != get.status {
				t.Errorf("HEAD gets %d, GET %d", head.status, get.status)
			}
		})
	}
	head := a.do(http.MethodHead, "/v1/instances/nobody", "")
	if head.status != http.StatusNotFound {
		t.Errorf("HEAD of nothing gets %d", head.status)
	}
	a.do(http.MethodOptions, "/v1/nothing", "").want(http.StatusNotFound, "not-found")
}

// Claim 11: paths that are only nearly one of ours.
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

	// A request that is no HTTP never gets as far as the handler, and is 400 all the same.
	if status := a.raw("GET /v1/instances/%zz HTTP/1.1\r\nHost: pawl.test\r\n\r\n"); status != http.StatusBadRequest {
		t.Errorf("a bad escape gets %d", status)
	}
}

// raw sends bytes and returns the status.
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

// Claim 11: parameters.
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
		"/v1/instances?state=ON&state=OFF":                           "state",
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
	// A probe is answered, whatever it sends along.
	a.get("/healthz?x=1", "Accept", "text/html", "If-None-Match", "x").want(http.StatusOK)
	a.get("/readyz?x=1", "Accept", "text/html").want(http.StatusOK)
}

// Claim 11: what was, or was not yet.
func TestPast(t *testing.T) {
	t.Parallel()
	a := start(t)
	a.register(counter)
	dbtest.SetClock(t, a.pool, at("2026-03-01T09:00:00Z"))
	id := a.create("counter", `{"context": {"sum": 1}}`)
	for range 2 {
		dbtest.Advance(t, a.pool, hour)
		a.fire(id, "add", `{"payload": {"by": 1}}`).want(http.StatusOK)
	}
	dbtest.Advance(t, a.pool, hour)
	a.fire(id, "stop", "").want(http.StatusOK)
	path := "/v1/instances/" + id
	for _, past := range []struct{ query, version, state, sum string }{
		{"?version=1", "1", "ON", "1"},
		{"?version=2", "2", "ON", "2"},
		{"?version=4", "4", "OFF", "3"},
		{"?at=2026-03-01T09:00:00Z", "1", "ON", "1"},
		{"?at=2026-03-01T09:59:59.999999Z", "1", "ON", "1"},
		{"?at=2026-03-01T10:00:00Z", "2", "ON", "2"},
		{"?at=2026-03-01T12:00:00%2B01:00", "3", "ON", "3"},
		{"?at=9999-12-31T23:59:59Z", "4", "OFF", "3"},
		{"", "4", "OFF", "3"},
	} {
		a.get(path+past.query).want(http.StatusOK).wantHeader("ETag", `"`+past.version+`"`).
			wantAt("version", past.version, "state", past.state, "context.sum", past.sum, "created_at", "2026-03-01T09:00:00.000000Z")
	}
	a.get(path+"?version=1").wantAt("actions", `["add","set","stop"]`, "status", "active")
	for _, never := range []string{
		"?version=5", "?version=0", "?version=-1", "?version=9223372036854775807",
		"?at=2026-03-01T08:59:59.999999Z", "?at=0001-01-01T00:00:00Z", "?at=0000-01-01T00:00:00Z",
	} {
		a.get(path+never).want(http.StatusNotFound, "instance-not-found")
	}
	// A version of the past never changes, so its tag holds for it.
	a.get(path+"?version=2", "If-None-Match", `"2"`).want(http.StatusNotModified)
	a.get(path+"?version=2", "If-None-Match", `"4"`).want(http.StatusOK)
}

// Claim 12.
func TestNotModified(t *testing.T) {
	t.Parallel()
	a := start(t)
	a.register(counter)
	id := a.create("counter", `{"context": {"sum": 1}}`)
	a.fire(id, "add", `{"payload": {"by": 1}}`).want(http.StatusOK)
	path := "/v1/instances/" + id
	for _, same := range []string{`"2"`, `W/"2"`, `*`, `"1", "2"`, `"x",W/"2"`, ` "2" `} {
		a.get(path, "If-None-Match", same).want(http.StatusNotModified).wantHeader("ETag", `"2"`).wantHeader("Content-Type", "")
		if r := a.do(http.MethodHead, path, "", "If-None-Match", same); r.status != http.StatusNotModified {
			t.Errorf("HEAD with If-None-Match: %s gets %d", same, r.status)
		}
	}
	a.get(path, "If-None-Match", `"1"`, "If-None-Match", `"2"`).want(http.StatusNotModified)
	for _, other := range []string{`"1"`, `W/"1"`, `"02"`, `"*"`, `""`, `"1", "3"`} {
		a.get(path, "If-None-Match", other).want(http.StatusOK).wantHeader("ETag", `"2"`)
	}
	for _, bad := range []string{`2`, ``, `"2`, `w/"2"`, `*, "2"`} {
		r := a.get(path, "If-None-Match", bad).want(http.StatusBadRequest, "malformed-request")
		r.wantAt("errors.0.parameter", "If-None-Match")
	}
	a.get("/v1/instances/nobody", "If-None-Match", `*`).want(http.StatusNotFound, "instance-not-found")
}

// Claim 11: JSON that is not strict.
func TestStrictJSON(t *testing.T) {
	t.Parallel()
	a := start(t)
	a.register(counter)
	id := a.create("counter", `{"context": {"sum": 0}}`)
	deep := func(n int) string { return strings.Repeat(`{"a":`, n-1) + `{}` + strings.Repeat(`}`, n-1) }
	bodies := map[string]string{
		`null`:                           "",
		`[]`:                             "",
		`"x"`:                            "",
		`1`:                              "",
		` `:                              "",
		`{`:                              "",
		`{"DOC": {}`:                     "",
		`{"DOC": {}} {}`:                 "",
		`{"DOC": {}}x`:                   "",
		`{"DOC": {},}`:                   "",
		`{'DOC': {}}`:                    "",
		`{"DOC": {"a": 01}}`:             "/DOC",
		`{"DOC": {"a": NaN}}`:            "/DOC/a",
		`{"DOC": {"a": .5}}`:             "/DOC/a",
		`{"DOC": {} /* no */}`:           "",
		"\ufeff{}":                       "",
		`{"DOC": null}`:                  "/DOC",
		`{"DOC": []}`:                    "/DOC",
		`{"DOC": "x"}`:                   "/DOC",
		`{"DOC": 1}`:                     "/DOC",
		`{"DOC": {}, "DOC": {}}`:         "/DOC",
		`{"DOC": {"a": 1, "a": 1}}`:      "/DOC/a",
		`{"DOC": {"a": 1, "\u0061": 1}}`: "/DOC/a",
		`{"Doc": {}}`:                    "/Doc",
		`{"nonsense": 1}`:                "/nonsense",
		`{"reason": null}`:               "/reason",
		`{"reason": 1}`:                  "/reason",
		`{"reason": "` + strings.Repeat("x", 1001) + `"}`: "/reason",
		`{"DOC": {"a": "\u0000"}}`:                        "/DOC/a",
		`{"DOC": {"a\u0000": 1}}`:                         "/DOC/a\x00",
		`{"reason": "a\u0000"}`:                           "/reason",
		"{\"DOC\": {\"a\": \"\x00\"}}":                    "/DOC/a",
		`{"DOC": {"a": "\ud800"}}`:                        "/DOC/a",
		`{"DOC": {"a": "\udc00\ud800"}}`:                  "/DOC/a",
		`{"DOC": {"a": "\ud800x"}}`:                       "/DOC/a",
		"{\"DOC\": {\"a\": \"\xff\"}}":                    "/DOC/a",
		"{\"DOC\": {\"a\": \"\xed\xa0\x80\"}}":            "/DOC/a",
		`{"DOC": ` + deep(64) + `}`:                       "*",
		`{"DOC": {"a": ` + strings.Repeat("[", 63) + strings.Repeat("]", 63) + `}}`: "*",
		`{"DOC": {"a": 1e400000}}`:              "/DOC/a",
		`{"DOC": {"a": -1e-400000}}`:            "/DOC/a",
		`{"DOC": {"a": 1e9999999999999999999}}`: "/DOC/a",
	}
	for body, pointer := range bodies {
		for target, document := range map[string]string{
			"/v1/workflows/counter/instances": "context", "/v1/instances/" + id + "/actions/set": "payload",
		} {
			text := strings.ReplaceAll(body, "DOC", document)
			r := a.post(target, newKey(), text)
			if r.status != http.StatusBadRequest || r.at("code") != "malformed-request" {
				t.Errorf("%.100q: got %d %s", text, r.status, r.body)
				continue
			}
			want := strings.ReplaceAll(pointer, "DOC", document)
			if got := r.at("errors.0.pointer"); want != "*" && !strings.HasPrefix(got, want) {
				t.Errorf("%.100q: the fault is at %q, want %q: %s", text, got, want, r.body)
			}
		}
	}
	for _, fine := range []string{
		`{}`, ` {"payload":{}} `, `{"payload": ` + deep(63) + `}`, `{"payload": {"a": "\u00e9 \ud83d\ude00 \\u0000"}}`,
		`{"reason": "` + strings.Repeat("é", 1000) + `"}`, `{"payload": {"": 1}}`,
	} {
		if r := a.post("/v1/instances/"+id+"/actions/set", newKey(), fine); r.status != http.StatusOK {
			t.Errorf("%.100q: got %d %s", fine, r.status, r.body)
		}
	}
	for body, pointer := range map[string]string{
		`{"business_key": ""}`:                                   "/business_key",
		`{"business_key": null}`:                                 "/business_key",
		`{"business_key": "` + strings.Repeat("x", 256) + `"}`:   "/business_key",
		`{"correlation_id": ""}`:                                 "/correlation_id",
		`{"correlation_id": "` + strings.Repeat("x", 256) + `"}`: "/correlation_id",
		`{"expires_in": ""}`:                                     "/expires_in",
		`{"expires_in": "soon"}`:                                 "/expires_in",
		`{"expires_in": "0s"}`:                                   "/expires_in",
		`{"expires_in": "-1s"}`:                                  "/expires_in",
		`{"expires_in": 60}`:                                     "/expires_in",
		`{"expires_in": "60s"}`:                                  "/expires_in", // The workflow has no ttl to override.
		`{"id": "0195a2f4-7c31-7e0b-9d52-6f1a3b8c4d5e"}`:         "/id",
	} {
		r := a.post("/v1/workflows/counter/instances", newKey(), body).want(http.StatusBadRequest, "malformed-request")
		r.wantAt("errors.0.pointer", pointer)
	}
	a.do(http.MethodPut, "/v1/workflows/counter", `{"states": {}, "states": {}}`).want(http.StatusBadRequest, "malformed-request")
	a.do(http.MethodPut, "/v1/workflows/counter", `[]`).want(http.StatusBadRequest, "malformed-request")
	a.do(http.MethodPut, "/v1/workflows/counter", `null`).want(http.StatusBadRequest, "malformed-request")
	a.do(http.MethodPut, "/v1/workflows/counter", ``).want(http.StatusBadRequest, "malformed-request")
	a.do(http.MethodPost, "/v1/batch", ``).want(http.StatusBadRequest, "malformed-request")
}

// Numbers keep their digits, through the request, the guard, the context, the answer and
// history.
func TestNumbers(t *testing.T) {
	t.Parallel()
	a := start(t)
	a.register(`{"name": "exact", "initial": "A", "states": {
		"A": {"on": {"keep": {
			"target": "A", "guard": "$.payload.n == $.context.n || $.payload.n == 9007199254740993",
			"assign": {"n": "$.payload.n", "next": "$.payload.n + 1"}
		}, "stop": "B"}}, "B": {"type": "final"}}}`)
	for _, n := range []string{
		"9007199254740993", "-9007199254740993", "1.10", "0.1000000000000000055511151231257827", "123456789012345678901234567890",
		"1.00", "0", "100000000000000000000.000000000000000000001",
	} {
		id := a.create("exact", `{"context": {"n": `+n+`}}`)
		a.get("/v1/instances/"+id).wantAt("context.n", n)
		a.fire(id, "keep", `{"payload": {"n": `+n+`}}`).want(http.StatusOK).wantAt("context.n", n)
		a.get("/v1/instances/"+id+"/history").wantAt("items.0.context.n", n, "items.1.payload.n", n, "items.1.context.n", n)
	}
	id := a.create("exact", `{"context": {"n": 0}}`)
	// In doubles these two are the same.
	a.fire(id, "keep", `{"payload": {"n": 9007199254740992}}`).want(http.StatusConflict, "guard-rejected")
	a.fire(id, "keep", `{"payload": {"n": 9007199254740993}}`).want(http.StatusOK).wantAt("context.next", "9007199254740994")
}

// Claim 11: 413.
func TestSizes(t *testing.T) {
	t.Parallel()
	a := start(t)
	a.register(counter)
	instances := "/v1/workflows/counter/instances"
	id := a.create("counter", `{"context": {"sum": 0}}`)
	fill := func(member string, bytes int) string { // {"a": "xxx"} has 9 bytes more than x.
		return `{"` + member + `":{"a":"` + strings.Repeat("x", bytes-9) + `"}}`
	}
	limit := 64 << 10
	a.post(instances, newKey(), fill("context", limit-1)).want(http.StatusCreated)
	a.post(instances, newKey(), fill("context", limit+1)).want(http.StatusRequestEntityTooLarge, "too-large")
	a.fire(id, "stop", fill("payload", limit+1)).want(http.StatusRequestEntityTooLarge, "too-large")
	full := a.post(instances, newKey(), fill("context", limit-20)).want(http.StatusCreated).at("id")
	grown := a.fire(full, "set", `{"payload": {"more": "`+strings.Repeat("x", 40)+`"}}`)
	grown.want(http.StatusRequestEntityTooLarge, "too-large")
	a.get("/v1/instances/"+full).wantAt("version", "1")
	a.fire(full, "set", `{"payload": {"a": 1}}`).want(http.StatusOK)
	a.fire(id, "stop", fill("payload", limit-1)).want(http.StatusOK)

	space := strings.Repeat(" ", 1<<20-2)
	a.post(instances, newKey(), "{"+space+"}").want(http.StatusCreated)
	for _, target := range []string{instances, "/v1/instances/" + id + "/actions/stop", "/v1/batch"} {
		a.post(target, newKey(), "{"+space+" }").want(http.StatusRequestEntityTooLarge, "too-large")
	}
	a.do(http.MethodPut, "/v1/workflows/counter", "{"+space+" }").want(http.StatusRequestEntityTooLarge, "too-large")
	// Without Content-Length the size shows only in the reading.
	chunked := fmt.Sprintf("POST %s HTTP/1.1\r\nHost: pawl.test\r\nIdempotency-Key: k\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n{%s }\r\n0\r\n\r\n",
		instances, 1<<20+1, space)
	if status := a.raw(chunked); status != http.StatusRequestEntityTooLarge {
		t.Errorf("a large chunked body gets %d", status)
	}
	small := a.another(setup{http: httpapi.Config{MaxBody: 10}})
	small.post(instances, newKey(), `{          }`).want(http.StatusRequestEntityTooLarge, "too-large")

	context, payload := 100, 50
	if err := db.Set(t.Context(), dbtest.DSN(a.pool), db.Settings{ContextLimit: &context, PayloadLimit: &payload}); err != nil {
		t.Fatal(err)
	}
	a.post(instances, newKey(), fill("context", 102)).want(http.StatusRequestEntityTooLarge, "too-large")
	id = a.post(instances, newKey(), fill("context", 90)).want(http.StatusCreated).at("id")
	a.fire(id, "set", fill("payload", 52)).want(http.StatusRequestEntityTooLarge, "too-large")
	a.fire(id, "set", fill("payload", 40)).want(http.StatusOK)
}

func TestMediaTypes(t *testing.T) {
	t.Parallel()
	a := start(t)
	a.register(counter)
	instances := "/v1/workflows/counter/instances"
	for _, fine := range []string{
		"", "application/json", "application/json; charset=utf-8", "Application/JSON;charset=UTF-8", `application/json; charset="utf-8"`,
	} {
		a.post(instances, newKey(), "{}", "Content-Type", fine).want(http.StatusCreated)
	}
	for _, bad := range []string{
		"text/plain", "application/x-www-form-urlencoded", "application/json; charset=latin1", "application/merge-patch+json",
		"application/jsonx", "json", "application/json; charset", "application/yaml",
	} {
		r := a.post(instances, newKey(), "{}", "Content-Type", bad)
		if r.status != http.StatusUnsupportedMediaType {
			t.Errorf("%s: got %d %s", bad, r.status, r.body)
		}
	}
	a.post(instances, newKey(), "{}", "Content-Encoding", "gzip").want(http.StatusUnsupportedMediaType, "unsupported-media-type")
	a.post(instances, newKey(), "", "Content-Type", "text/plain").want(http.StatusCreated) // There is no body to be of it.
	a.do(http.MethodPut, "/v1/workflows/counter", counter, "Content-Type", "application/yaml").want(http.StatusUnsupportedMediaType)
	a.do(http.MethodPost, "/v1/batch", "{}", "Content-Type", "text/plain").want(http.StatusUnsupportedMediaType)

	for _, fine := range []string{
		"", "*/*", "application/*", "application/json", "text/html, application/json;q=0.1", "text/html, */*; q=0.8",
		"application/json; charset=utf-8", "application/problem+json, application/json", "APPLICATION/JSON",
	} {
		a.get("/v1/workflows", "Accept", fine).want(http.StatusOK)
	}
	for _, bad := range []string{
		"text/html", "application/problem+json", "application/json;q=0", "*/*;q=0", "text/*", "application/json;q=0, */*",
	} {
		a.get("/v1/workflows", "Accept", bad).want(http.StatusNotAcceptable, "not-acceptable")
	}
	a.post(instances, newKey(), "{}", "Accept", "text/html").want(http.StatusNotAcceptable, "not-acceptable")
	if got := a.get("/openapi.yaml", "Accept", "text/html").want(http.StatusOK).header.Get("Content-Type"); got != "application/yaml" {
		t.Errorf("the contract is %s", got)
	}
}

func TestPrefer(t *testing.T) {
	t.Parallel()
	a := start(t)
	a.register(counter)
	instances := "/v1/workflows/counter/instances"
	for _, minimal := range []string{
		"return=minimal", "Return=Minimal", `return="minimal"`, "respond-async, return=minimal", "return=minimal; x=y",
		"return = minimal", "return=minimal, return=representation",
	} {
		r := a.post(instances, newKey(), "", "Prefer", minimal).want(http.StatusCreated)
		r.wantHeader("Preference-Applied", "return=minimal").wantHeader("ETag", `"1"`).wantHeader("Content-Type", "")
		if len(r.body) > 0 {
			t.Errorf("%s has the body %s", minimal, r.body)
		}
		a.post(r.header.Get("Location")+"/actions/stop", newKey(), "", "Prefer", minimal).want(http.StatusNoContent).
			wantHeader("Preference-Applied", "return=minimal").wantHeader("ETag", `"2"`)
	}
	for prefer, applied := range map[string]string{
		"return=representation": "return=representation", "wait=5": "", "return=nonsense": "", "": "",
		"return=representation, return=minimal": "return=representation",
	} {
		r := a.post(instances, newKey(), "", "Prefer", prefer).want(http.StatusCreated).wantHeader("Preference-Applied", applied)
		a.fire(r.at("id"), "stop", "", "Prefer", prefer).want(http.StatusOK).wantHeader("Preference-Applied", applied).
			wantAt("state", "OFF")
	}
	// Two lines are one list.
	a.post(instances, newKey(), "", "Prefer", "wait=1", "Prefer", "return=minimal").want(http.StatusCreated).
		wantHeader("Preference-Applied", "return=minimal")
	// A refusal always says what it is.
	a.post("/v1/workflows/none/instances", newKey(), "", "Prefer", "return=minimal").want(http.StatusNotFound, "workflow-not-found").
		wantHeader("Preference-Applied", "")
}

func TestRequestHeaders(t *testing.T) {
	t.Parallel()
	a := start(t)
	a.register(counter)
	a.get("/healthz", "X-Request-ID", "mine-1").wantHeader("X-Request-ID", "mine-1")
	a.get("/v1/nothing", "X-Request-ID", "mine-2").want(http.StatusNotFound).wantAt("request_id", "mine-2")
	a.do(http.MethodOptions, "/v1/workflows", "", "X-Request-ID", "mine-3").wantHeader("X-Request-ID", "mine-3")
	for _, bad := range []string{"", "a b", strings.Repeat("x", 129), "ä"} {
		if got := a.get("/healthz", "X-Request-ID", bad).header.Get("X-Request-ID"); got == bad || len(got) != 36 {
			t.Errorf("the request id %q became %q", bad, got)
		}
	}
	first, second := a.get("/healthz").header.Get("X-Request-ID"), a.get("/healthz").header.Get("X-Request-ID")
	if first == second {
		t.Error("two requests have one id")
	}
	for _, bad := range []string{"", "a b", "ä", strings.Repeat("x", 256)} {
		a.post("/v1/workflows/counter/instances", newKey(), "", "X-Correlation-ID", bad).
			want(http.StatusBadRequest, "malformed-request").wantAt("errors.0.parameter", "X-Correlation-ID")
	}
	for _, bad := range []string{strings.Repeat("ä", 256), "\xff"} {
		a.post("/v1/workflows/counter/instances", newKey(), "", "X-Actor", bad).
			want(http.StatusBadRequest, "malformed-request").wantAt("errors.0.parameter", "X-Actor")
	}
	a.post("/v1/workflows/counter/instances", newKey(), "", "X-Actor", strings.Repeat("ä", 255)).want(http.StatusCreated)
}
