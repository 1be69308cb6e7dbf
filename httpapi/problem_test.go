package httpapi_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/httpapi"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// Every kind of fsm has a code, and every code of the contract has a description.
func TestProblemTables(t *testing.T) {
	t.Parallel()
	statuses := httpapi.Codes()
	for _, kind := range fsm.Kinds() {
		if code, known := httpapi.CodeOf(kind); !known || statuses[code] == 0 {
			t.Errorf("the kind %q has the code %q", kind.Error(), code)
		}
	}
	inContract := map[string]bool{}
	for _, v := range contract().Components.Schemas["ProblemCode"].Value.Enum {
		code := v.(string)
		inContract[code] = true
		if statuses[code] == 0 {
			t.Errorf("there is no description of %q", code)
		}
	}
	for code := range statuses {
		if !inContract[code] {
			t.Errorf("%q is not in the contract", code)
		}
	}
}

var (
	requestIDs  = regexp.MustCompile(`"request_id": "[^"]*"`)
	instanceIDs = regexp.MustCompile(`[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}`)
)

// golden compares a problem with the golden file of its code.
func golden(t *testing.T, r answer) {
	t.Helper()
	var b bytes.Buffer
	if err := json.Indent(&b, r.body, "", "  "); err != nil {
		t.Fatal(err)
	}
	got := requestIDs.ReplaceAllString(b.String(), `"request_id": "REQUEST"`)
	got = instanceIDs.ReplaceAllString(got, "ID")
	file := filepath.Join("testdata", "problems", r.at("code")+".json")
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatalf("%v: run the test with -update", err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s differs (-want +got):\n%s", file, diff)
	}
}

// Every code can be provoked, and its problem has the golden body and the right headers.
// The function is long because its table has one entry for each code.
func TestProblems(t *testing.T) {
	t.Parallel()
	a := start(t)
	a.register(booking)
	a.register(careful)
	a.register(touchy)
	a.register(counter)
	books := "/v1/workflows/booking/instances"
	price := `{"context": {"price": 1}, "business_key": "first"}`
	id := a.post(books, newKey(), price).want(http.StatusCreated).at("id")
	a.post(books, "used", `{"context": {"price": 1}}`).want(http.StatusCreated)
	a.register(safe)
	a.parcels()
	strict, moody, vault := a.create("careful", ""), a.create("touchy", ""), a.create("safe", "")
	guarded := a.another(setup{http: httpapi.Config{Tokens: []httpapi.Token{
		{SHA256: sum("reader"), Subject: "r", Scopes: []httpapi.Scope{httpapi.ScopeRead}},
		{SHA256: sum("operator"), Subject: "o", Tenant: fsm.Deployment, Scopes: httpapi.Scopes()},
		{SHA256: sum("sleeper"), Subject: "s", Tenant: "asleep", Scopes: []httpapi.Scope{httpapi.ScopeRead}},
		{SHA256: sum("small"), Subject: "s", Tenant: "small", Scopes: []httpapi.Scope{httpapi.ScopeDeliver}},
	}}})
	bounded.Exec(a.t, a.pool, "select pawl.tenant_put('asleep', p_disabled => true)")
	busy := a.another(setup{http: httpapi.Config{RateLimit: 0.001}})
	busy.get("/v1/workflows").want(http.StatusOK)
	onLoopback := a.another(setup{http: httpapi.Config{OnLoopback: true}})
	gone := serve(t, "postgres://nobody@127.0.0.1:1/nothing", setup{http: httpapi.Config{Logger: slog.New(slog.DiscardHandler)}})
	broken := startWith(t, setup{http: httpapi.Config{Logger: slog.New(slog.DiscardHandler)}})
	bounded.Exec(broken.t, broken.pool, "drop table pawl.timer cascade")
	bounded.Exec(broken.t, broken.pool, "drop view pawl.instance_at")

	var seen sync.Map
	for name, test := range map[string]struct {
		status  int
		headers []string // Pairs of name and value that the answer must have.
		do      func(a *api) answer
	}{
		"malformed-request": {400, nil, func(a *api) answer {
			return a.get("/v1/instances?limit=0&colour=red&status=happy&limit=1")
		}},
		"idempotency-key-required": {400, nil, func(a *api) answer { return a.post(books, "", price) }},
		"idempotency-key-invalid":  {400, nil, func(a *api) answer { return a.post(books, "a b", price) }},
		"unauthenticated": {401, []string{"WWW-Authenticate", `Bearer realm="pawl"`}, func(a *api) answer {
			return guarded.on(a.t).get("/v1/workflows")
		}},
		"forbidden": {403, nil, func(a *api) answer {
			return guarded.on(a.t).post(books, newKey(), price, "Authorization", "Bearer reader")
		}},
		"unknown-tenant": {403, nil, func(a *api) answer {
			return guarded.on(a.t).get("/v1/instances", "Authorization", "Bearer operator", "X-Pawl-Tenant", "nobody")
		}},
		"tenant-disabled": {403, nil, func(a *api) answer {
			return guarded.on(a.t).get("/v1/instances", "Authorization", "Bearer sleeper")
		}},
		"tenant-required": {400, nil, func(a *api) answer {
			return guarded.on(a.t).get("/v1/instances", "Authorization", "Bearer operator")
		}},
		"token-exists": {409, nil, func(a *api) answer {
			token := `{"id": "ci", "subject": "ci", "scopes": ["read"]}`
			a.do(http.MethodPost, "/v1/tokens", token).want(http.StatusCreated)
			return a.do(http.MethodPost, "/v1/tokens", token)
		}},
		"not-found":          {404, nil, func(a *api) answer { return a.get("/v1/nothing/here") }},
		"workflow-not-found": {404, nil, func(a *api) answer { return a.get("/v1/workflows/nobody") }},
		"instance-not-found": {404, nil, func(a *api) answer { return a.get("/v1/instances/" + id + "?version=7") }},
		"method-not-allowed": {405, []string{"Allow", "GET, HEAD, OPTIONS"}, func(a *api) answer {
			return a.do(http.MethodPatch, "/v1/instances/"+id, `{"state": "PAID"}`)
		}},
		"not-acceptable": {406, nil, func(a *api) answer { return a.get("/v1/workflows", "Accept", "text/html") }},
		"transition-not-allowed": {409, nil, func(a *api) answer {
			return a.fire(id, "pay", "")
		}},
		"state-protected": {409, nil, func(a *api) answer {
			return a.post("/v1/instances/"+vault+"/override", newKey(), `{"to": "OPEN", "reason": "why"}`, "If-Match", `"1"`)
		}},
		"not-cancellable": {409, nil, func(a *api) answer {
			return a.post("/v1/instances/"+id+"/cancel", newKey(), `{"reason": "why"}`)
		}},
		"guard-rejected": {409, nil, func(a *api) answer { return a.fire(id, "reserve", `{"payload": {"price": 2}}`) }},
		"instance-exists": {409, []string{"Location", "/v1/instances/" + id}, func(a *api) answer {
			return a.post(books, newKey(), price)
		}},
		"workflow-conflict": {409, nil, func(a *api) answer {
			return a.do(http.MethodPut, "/v1/workflows/careful", strings.Replace(careful, `"initial"`, `"version": 7, "initial"`, 1))
		}},
		"delivery-conflict": {409, nil, func(a *api) answer {
			subscription := a.do(http.MethodPost, subscriptions, `{"url": "`+endpoint+`"}`).want(http.StatusCreated).at("id")
			delivery := a.post(subscriptions+"/"+subscription+"/test", "", "").want(http.StatusAccepted).at("id")
			return a.post("/v1/deliveries/"+delivery+"/replay", "", "")
		}},
		"lease-superseded": {409, nil, func(a *api) answer {
			a.create("parcel", `{}`)
			claim := a.claim(1, 1)
			a.says(claim, 0, "release", ``).want(http.StatusOK)
			a.claim(1, 1)
			return a.says(claim, 0, "heartbeat", ``)
		}},
		"task-ended": {409, nil, func(a *api) answer {
			parcel := a.create("parcel", `{}`)
			a.fire(parcel, "abort", `{}`).want(http.StatusOK)
			return a.do(http.MethodPost, "/v1/tasks/"+a.get("/v1/tasks?instance_id="+parcel).at("items.0.id")+"/retry", `{"reason": "why"}`)
		}},
		"instance-final": {409, nil, func(a *api) answer {
			parcel := a.create("parcel", `{}`)
			a.fire(parcel, "abort", `{}`).want(http.StatusOK)
			a.fire(parcel, "end", `{}`).want(http.StatusOK)
			return a.get("/v1/instances/" + parcel + "/forecast")
		}},
		"too-few-samples": {409, nil, func(a *api) answer { return a.get("/v1/instances/" + id + "/forecast") }},
		"bulk-conflict": {409, nil, func(a *api) answer {
			bulk := a.post("/v1/bulk", newKey(), `{"action": "archive", "filter": {"status": "failed"}}`).want(http.StatusAccepted).at("id")
			a.post("/v1/bulk/"+bulk+"/stop", "", "").want(http.StatusOK)
			return a.post("/v1/bulk/"+bulk+"/resume", "", "")
		}},
		"confirmation-required": {409, nil, func(a *api) answer {
			return a.post("/v1/bulk", newKey(), `{"action": "archive", "filter": {}}`)
		}},
		"callback-secret-required": {422, nil, func(a *api) answer {
			return a.post(books, newKey(), `{"context": {"price": 1}, "callback_url": "`+endpoint+`"}`)
		}},
		"limit-reached": {409, nil, func(a *api) answer {
			bounded.Exec(a.t, a.pool, `select pawl.tenant_put('small', '{"subscriptions": 0}')`)
			return guarded.on(a.t).do(http.MethodPost, subscriptions, `{"url": "`+endpoint+`"}`, "Authorization", "Bearer small")
		}},
		"version-mismatch": {412, []string{"ETag", ""}, func(a *api) answer { return a.fire(id, "cancel", "", "If-Match", `W/"1"`) }},
		"too-large": {413, nil, func(a *api) answer {
			return a.fire(id, "cancel", `{"payload": {"a": "`+strings.Repeat("x", 65536)+`"}}`)
		}},
		"misdirected-request":    {421, nil, func(a *api) answer { return onLoopback.on(a.t).misdirect("evil.example", "/v1/workflows") }},
		"unsupported-media-type": {415, nil, func(a *api) answer { return a.post(books, newKey(), "price=1", "Content-Type", "text/plain") }},
		"idempotency-key-reuse":  {422, nil, func(a *api) answer { return a.post(books, "used", `{"context": {"price": 2}}`) }},
		"guard-error":            {422, nil, func(a *api) answer { return a.fire(moody, "when", raises) }},
		"invalid-definition": {422, nil, func(a *api) answer {
			return a.do(http.MethodPut, "/v1/workflows/booking", `{"initial": "A", "states": {"A": {"on": {"go": "C"}}, "B": {}}}`)
		}},
		"invalid-context": {422, nil, func(a *api) answer {
			return a.post(books, newKey(), `{"context": {"price": -1}}`)
		}},
		"invalid-payload": {422, nil, func(a *api) answer {
			return a.fire(id, "reserve", `{"payload": {"seat": 1, "price": "cheap"}}`)
		}},
		"unknown-event":         {422, nil, func(a *api) answer { return a.fire(id, "explode", "") }},
		"precondition-required": {428, nil, func(a *api) answer { return a.fire(strict, "go", "") }},
		"too-many-requests": {429, []string{"Retry-After", "1"}, func(a *api) answer {
			return busy.on(a.t).get("/v1/workflows")
		}},
		"internal": {500, nil, func(a *api) answer { return broken.on(a.t).get("/v1/instances/" + id + "?version=1") }},
		"unavailable": {503, []string{"Retry-After", "1"}, func(a *api) answer {
			return gone.on(a.t).get("/v1/workflows")
		}},
	} {
		t.Run(name, func(t *testing.T) {
			r := test.do(a.on(t)).want(test.status, name)
			for i := 0; i < len(test.headers); i += 2 {
				r.wantHeader(test.headers[i], test.headers[i+1])
			}
			golden(t, r)
			seen.Store(name, true)
		})
	}
	// These codes are sent as events of a stream.
	for _, provoke := range []func(*testing.T) answer{tooOld, stepsLost, unknownEventID} {
		r := provoke(t)
		golden(t, r)
		seen.Store(r.at("code"), true)
	}
	for code := range httpapi.Codes() {
		if _, ok := seen.Load(code); !ok {
			t.Errorf("no test provokes %q", code)
		}
	}
	files, err := filepath.Glob("testdata/problems/*.json")
	if err != nil || len(files) != len(httpapi.Codes()) {
		t.Errorf("there are %d golden files for %d codes: %v", len(files), len(httpapi.Codes()), err)
	}
}

// The type of every problem leads to its explanation.
func TestProblemPages(t *testing.T) {
	t.Parallel()
	a := start(t)
	for code, status := range httpapi.Codes() {
		a.get("/problems/"+code).want(http.StatusOK).wantAt("code", code, "status", fmt.Sprint(status))
	}
	a.get("/problems/nonsense").want(http.StatusNotFound, "not-found")
}

// The cause of an internal error is logged under the id of the request and not sent.
func TestInternalErrors(t *testing.T) {
	t.Parallel()
	var log bounded.Lines
	pool := dbtest.New(t)
	a := serve(t, dbtest.DSN(pool), setup{http: httpapi.Config{Logger: slog.New(slog.NewJSONHandler(&log, nil))}})
	a.pool = pool
	a.register(counter)
	id := a.create("counter", `{"context": {"sum": 0}}`)
	bounded.Exec(a.t, a.pool, "alter table pawl.history rename column actor to somebody")
	for i, r := range []answer{
		a.post("/v1/workflows/counter/instances", newKey(), "", "X-Request-ID", "request-0"),
		a.fire(id, "add", `{"payload": {"by": 1}}`, "X-Request-ID", "request-1"),
		a.get("/v1/instances/"+id+"/history", "X-Request-ID", "request-2"),
	} {
		r.want(http.StatusInternalServerError, "internal")
		if bytes.Contains(r.body, []byte("actor")) || bytes.Contains(r.body, []byte("column")) {
			t.Errorf("the problem gives away the cause: %s", r.body)
		}
		if line := log.Find(t, fmt.Sprintf(`"request_id":"request-%d"`, i)); !strings.Contains(line, "actor") {
			t.Errorf("the log does not tell the cause: %q", line)
		}
	}
	r := a.do(http.MethodPost, "/v1/batch", jsonText(t, map[string]any{"commands": []any{command("create", "workflow", "counter")}}))
	r.want(http.StatusOK).wantAt("results.0.status", "500", "results.0.problem.code", "internal")
}

// A panic is answered with internal and logged. A handler without a service panics at each
// read.
func TestPanic(t *testing.T) {
	t.Parallel()
	var log bounded.Lines
	a := serveHandler(t, httpapi.Services{}, setup{http: httpapi.Config{Logger: slog.New(slog.NewJSONHandler(&log, nil))}})
	a.get("/v1/workflows", "X-Request-ID", "panicked").want(http.StatusInternalServerError, "internal")
	if line := log.Find(t, "panicked"); !strings.Contains(line, "panic: ") || !strings.Contains(line, "goroutine") {
		t.Errorf("the log does not tell of the panic: %q", line)
	}
	a.get("/healthz").want(http.StatusOK) // The service goes on.
}

// A row that the database refuses has the data of a tenant. Neither the problem nor the log shows it.
func TestFailingRowIsNotShown(t *testing.T) {
	t.Parallel()
	for name, handler := range map[string]func(io.Writer) slog.Handler{
		"text": func(w io.Writer) slog.Handler { return slog.NewTextHandler(w, nil) },
		"json": func(w io.Writer) slog.Handler { return slog.NewJSONHandler(w, nil) },
	} {
		var log bounded.Lines
		a := startWith(t, setup{http: httpapi.Config{Logger: slog.New(handler(&log))}})
		a.register(counter)
		bounded.Exec(t, a.pool, "alter table pawl.history add constraint planted check (reason is distinct from 'hunter2') not valid")
		r := a.post("/v1/workflows/counter/instances", newKey(), `{"context": {"sum": 47114711}, "reason": "hunter2"}`, "X-Request-ID", "planted").want(http.StatusInternalServerError, "internal")
		line := log.Find(t, "request failed")
		if !strings.Contains(line, "planted") || strings.Contains(strings.ToLower(string(r.body)+line), "failing row") || strings.Contains(string(r.body)+line, "hunter2") || strings.Contains(line, "47114711") {
			t.Errorf("%s: %s\n%s", name, r.body, line)
		}
	}
}
