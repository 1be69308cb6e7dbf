package httpapi_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/fsmtest"
	"github.com/pawl-fsm/pawl/httpapi"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// work carries out all bulks that are due.
func (a *api) work() {
	a.t.Helper()
	for range 100 {
		if bounded.Value[int](a.t, a.pool, "select looked_at from pawl.bulk_step(100)") < 0 {
			return
		}
	}
	a.t.Fatal("the bulks do not end")
}

func TestBulk(t *testing.T) {
	t.Parallel()
	a := start(t)
	a.register(fsmtest.Counter)
	first, second := a.create("counter", `{"context": {"x": 0}}`), a.create("counter", `{"context": {"x": 0}}`)
	a.fire(second, "stop", "").want(http.StatusOK)
	body := `{"action": "fire", "filter": {"workflow": "counter", "state": ["COUNTING", "STOPPED"]}, "params": {"event": "add", "payload": {"n": 1.50}},
		"reason": "a test", "rate": 1000}`
	submitted := a.post("/v1/bulk", "one", body).want(http.StatusAccepted).
		wantAt("status", "queued", "estimated_total", "2", "rate", "1000", "params.payload.n", "1.50", "started_at", "null", "eta", "null").
		wantHeader("Idempotent-Replayed", "")
	path := "/v1/bulk/" + submitted.at("id")
	submitted.wantHeader("Location", path)
	a.work()
	a.get(path).want(http.StatusOK).wantAt("status", "done", "done", "2", "applied", "1", "refused", "1", "reason", "a test")
	a.post("/v1/bulk", "one", body).want(http.StatusAccepted).wantHeader("Idempotent-Replayed", "true").wantAt("id", submitted.at("id"), "status", "done")
	a.post("/v1/bulk", "one", strings.Replace(body, "1.50", "2", 1)).want(http.StatusUnprocessableEntity, "idempotency-key-reuse")
	a.get("/v1/instances/"+first+"/history").wantAt("items.1.key", "bulk:"+submitted.at("id"), "items.1.reason", "a test")
	a.get(path+"/items").want(http.StatusOK).wantAt("items.0.instance_id", first, "items.0.outcome", "applied", "items.0.problem", "null",
		"items.1.problem.code", "transition-not-allowed", "items.1.problem.state", "STOPPED")
	a.get(path+"/items?outcome=refused").want(http.StatusOK).wantAt("items.0.instance_id", second)
	a.get("/v1/bulk?status=done").want(http.StatusOK).wantAt("items.0.id", submitted.at("id"))
	a.post(path+"/retry", "", "").want(http.StatusOK).wantAt("status", "queued", "open", "1", "refused", "0")
	a.post(path+"/pause", "", "").want(http.StatusOK).wantAt("status", "paused")
	a.post(path+"/resume", "", "").want(http.StatusOK).wantAt("status", "queued")
	a.post(path+"/stop", "", "").want(http.StatusOK).wantAt("status", "stopped")
	a.post(path+"/resume", "", "").want(http.StatusConflict, "bulk-conflict")
	a.get("/v1/bulk/"+first).want(http.StatusNotFound, "not-found")
	a.get("/v1/bulk/x/items").want(http.StatusNotFound, "not-found")
	a.post("/v1/instances/"+first+"/actions/add", "bulk:x", "").want(http.StatusBadRequest, "idempotency-key-invalid")
}

func TestBulkIsRefused(t *testing.T) {
	t.Parallel()
	a := start(t)
	a.register(fsmtest.Counter)
	a.post("/v1/bulk", "", `{"action": "archive", "filter": {}}`).want(http.StatusBadRequest, "idempotency-key-required")
	for body, pointer := range map[string]string{
		`{"action": "archive"}`:               "",
		`{"action": "dance", "filter": {}}`:   "/action",
		`{"action": "archive", "ids": []}`:    "/ids",
		`{"action": "archive", "ids": ["x"]}`: "/ids/0",
		`{"action": "archive", "filter": {}, "ids": ["0195a301-2f4e-7b90-8c1d-5e6f708192a3"]}`:                       "/ids",
		`{"action": "archive", "filter": {"workflow": ""}}`:                                                          "/filter/workflow",
		`{"action": "archive", "filter": {"workflow": ["nothing"]}}`:                                                 "/filter/workflow",
		`{"action": "archive", "filter": {"state": "nowhere"}}`:                                                      "/filter/state",
		`{"action": "archive", "filter": {"status": "lost"}}`:                                                        "/filter/status",
		`{"action": "archive", "filter": {"stuck_for": "long"}}`:                                                     "/filter/stuck_for",
		`{"action": "archive", "filter": {"timer": "late"}}`:                                                         "/filter/timer",
		`{"action": "archive", "filter": {"wrokflow": "counter"}}`:                                                   "/filter/wrokflow",
		`{"action": "archive", "filter": {"workflow": "counter"}, "rate": 0}`:                                        "/rate",
		`{"action": "fire", "filter": {"workflow": "counter"}}`:                                                      "/params/event",
		`{"action": "fire", "filter": {}, "params": {"event": "a", "payload":1}}`:                                    "/params/payload",
		`{"action": "cancel", "filter": {"workflow": "counter"}}`:                                                    "/reason",
		`{"action": "override", "filter": {"workflow": "counter"}, "params": {"to": "STOPPED"}}`:                     "/reason",
		`{"action": "override", "filter": {"workflow": "counter"}, "reason": "a test", "params": {"event": "stop"}}`: "/params/bypass",
	} {
		r := a.post("/v1/bulk", newKey(), body).want(http.StatusBadRequest, "malformed-request")
		if pointer != "" {
			r.wantAt("errors.0.pointer", pointer)
		}
	}
	a.post("/v1/bulk", newKey(), `{"action": "archive", "filter": {}}`).want(http.StatusConflict, "confirmation-required")
	a.post("/v1/bulk", newKey(), `{"action": "archive", "filter": {}, "confirm": "*"}`).want(http.StatusAccepted)
	if n := a.count("pawl.bulk"); n != 1 {
		t.Errorf("there are %d bulks, want 1", n)
	}
}

// TestRightsOfABulk submits bulks with tokens that lack a right.
func TestRightsOfABulk(t *testing.T) {
	t.Parallel()
	scopes := map[string][]httpapi.Scope{
		"both": {httpapi.ScopeOperate, httpapi.ScopeFire}, "operator": {httpapi.ScopeOperate}, "firer": {httpapi.ScopeFire},
		"deliverer": {httpapi.ScopeOperate, httpapi.ScopeDeliver}, "creator": {httpapi.ScopeCreate, httpapi.ScopeDeploy},
		"reader": {httpapi.ScopeRead},
	}
	var tokens []httpapi.Token
	for name, s := range scopes {
		tokens = append(tokens, httpapi.Token{SHA256: sum(name), Subject: name, Scopes: s})
	}
	for i, t := range tokens {
		if t.Subject == "creator" || t.Subject == "reader" {
			tokens[i].Tenant = fsm.Deployment
		}
	}
	tokens = append(tokens,
		httpapi.Token{SHA256: sum("bound"), Subject: "bound", Scopes: scopes["both"], Workflows: []string{"counter"}},
		httpapi.Token{SHA256: sum("foreign"), Subject: "foreign", Scopes: scopes["both"], Workflows: []string{"other"}})
	a := startWith(t, setup{http: httpapi.Config{Tokens: tokens}})
	as := func(name string) []string { return []string{"Authorization", "Bearer " + name} }
	creator := append(as("creator"), "X-Pawl-Tenant", "default")
	for _, name := range []string{"counter", "other"} {
		definition := strings.Replace(fsmtest.Counter, `"counter"`, fmt.Sprintf("%q", name), 1)
		a.do(http.MethodPut, "/v1/workflows/"+name, definition, creator...).want(http.StatusCreated)
	}
	counter := a.create("counter", `{"context": {"x": 0}}`, creator...)
	other := a.create("other", `{"context": {"x": 0}}`, creator...)
	submit := func(name, instances, action string) answer {
		body := `{"action": "` + action + `", ` + instances + `}`
		if action == "fire" {
			body = `{"action": "fire", "params": {"event": "add", "payload": {"n": 1}}, ` + instances + `}`
		}
		return a.post("/v1/bulk", newKey(), body, as(name)...)
	}
	const counters = `"filter": {"workflow": "counter"}`
	submit("operator", counters, "fire").want(http.StatusForbidden, "forbidden")
	submit("firer", counters, "fire").want(http.StatusForbidden, "forbidden")
	submit("operator", counters, "replay").want(http.StatusForbidden, "forbidden")
	a.post("/v1/bulk", newKey(), `{"action": "cancel", "reason": "a test", `+counters+`}`, as("operator")...).want(http.StatusAccepted)
	a.post("/v1/bulk", newKey(), `{"action": "override", "params": {"to": "COUNTING"}, "reason": "a test", `+counters+`}`, as("firer")...).
		want(http.StatusForbidden, "forbidden")
	submit("deliverer", counters, "replay").want(http.StatusAccepted)
	submit("both", counters, "migrate").want(http.StatusForbidden, "forbidden")
	submit("operator", counters, "archive").want(http.StatusAccepted)
	submit("bound", `"filter": {}, "confirm": "*"`, "fire").want(http.StatusForbidden, "forbidden")
	submit("bound", `"filter": {"workflow": ["counter", "other"]}`, "fire").want(http.StatusForbidden, "forbidden")
	id := submit("both", counters, "fire").want(http.StatusAccepted).at("id")
	a.get("/v1/bulk/"+id, as("bound")...).want(http.StatusOK)
	a.get("/v1/bulk/"+id, as("foreign")...).want(http.StatusNotFound)
	for _, path := range []string{id, id + "/items"} {
		a.get("/v1/bulk/"+path, as("reader")...).want(http.StatusOK) // It is found for a token of all tenants.
	}
	a.get("/v1/bulk/"+counter, as("reader")...).want(http.StatusNotFound, "not-found")
	a.post("/v1/bulk/"+id+"/stop", "", "", as("foreign")...).want(http.StatusNotFound)
	a.post("/v1/bulk/"+id+"/pause", "", "", as("operator")...).want(http.StatusOK)
	a.post("/v1/bulk/"+id+"/resume", "", "", as("operator")...).want(http.StatusForbidden)
	a.post("/v1/bulk/"+id+"/resume", "", "", as("bound")...).want(http.StatusOK)
	if got := a.get("/v1/bulk", as("foreign")...).want(http.StatusOK).at("items"); got != "[]" {
		t.Errorf("a token that is bound to another workflow sees %s", got)
	}

	// Of the ids, those of other workflows do not exist for a bound token.
	bound := submit("bound", fmt.Sprintf(`"ids": [%q, %q]`, counter, other), "fire").want(http.StatusAccepted).at("id")
	a.work()
	a.get("/v1/bulk/"+bound, as("both")...).want(http.StatusOK).wantAt("applied", "1", "refused", "1")
	items := a.get("/v1/bulk/"+bound+"/items?outcome=refused", as("both")...).want(http.StatusOK)
	items.wantAt("items.0.instance_id", other, "items.0.problem.code", "instance-not-found")
}
