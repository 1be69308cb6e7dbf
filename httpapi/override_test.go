package httpapi_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/httpapi"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// opened returns an instance of safe that is in the state OPEN, at version 2.
func opened(a *api) (id string) {
	a.t.Helper()
	id = a.create("safe", "")
	a.fire(id, "unlock", "").want(http.StatusOK)
	return id
}

func TestOverride(t *testing.T) {
	t.Parallel()
	a := start(t)
	a.register(safe)
	id := opened(a)
	path, key := "/v1/instances/"+id+"/override", newKey()
	const body = `{"to": "READ", "context_patch": {"n": 12345678901234567890}, "reason": "why"}`
	rows := func() []int {
		t.Helper()
		return []int{a.count("pawl.history"), a.count("pawl.idempotency_key"), a.count("pawl.audit")}
	}
	before := rows()
	a.do(http.MethodPost, path+"?dry_run=true", body, "If-Match", `"2"`).want(http.StatusOK).
		wantAt("state", "READ", "version", "3", "context.n", "12345678901234567890").wantHeader("ETag", `"2"`)
	a.post(path, "", body, "If-Match", `"2"`).want(http.StatusBadRequest, "idempotency-key-required")
	a.post(path, newKey(), body).want(http.StatusPreconditionRequired, "precondition-required").
		wantAt("version", "2", "event", missing, "detail", `an override must name the version it has seen: send it again with If-Match: "2"`)
	a.post(path, newKey(), body, "If-Match", `"1"`).want(http.StatusPreconditionFailed, "version-mismatch").wantAt("expected", `"1"`, "version", "2")
	a.post("/v1/instances/0195a2f4-7c31-7e0b-9d52-6f1a3b8c4d5e/override", newKey(), body).want(http.StatusNotFound, "instance-not-found")
	for malformed, pointer := range map[string]string{
		`{"to": "READ"}`:                                                      "/reason",
		`{"to": "READ", "reason": ""}`:                                        "/reason",
		`{"to": "READ", "reason": "  "}`:                                      "/reason",
		`{"to": "READ", "reason": null}`:                                      "/reason",
		`{"to": "READ", "reason": "` + strings.Repeat("x", 1001) + `"}`:       "/reason",
		`{"reason": "why"}`:                                                   "",
		`{"to": "READ", "event": "read", "bypass": "guard", "reason": "why"}`: "",
		`{"event": "read", "reason": "why"}`:                                  "/bypass",
		`{"event": "read", "bypass": "all", "reason": "why"}`:                 "/bypass",
		`{"to": "ELSEWHERE", "reason": "why"}`:                                "/to",
		`{"to": "READ", "context_patch": [], "reason": "why"}`:                "/context_patch",
		`{"to": "READ", "context_patch": null, "reason": "why"}`:              "/context_patch",
		`{"to": "READ", "payload": {}, "reason": "why"}`:                      "/payload",
		`{"to": "READ", "force": true, "reason": "why"}`:                      "/force",
	} {
		r := a.post(path, newKey(), malformed, "If-Match", `"2"`).want(http.StatusBadRequest, "malformed-request")
		if got := r.at("errors.0.pointer"); got != pointer {
			t.Errorf("%s: the fault is at %s, want %s", malformed, got, pointer)
		}
	}
	a.post(path, newKey(), `{"to": "READ", "context_patch": {"n": "text"}, "reason": "why"}`, "If-Match", `"2"`).
		want(http.StatusUnprocessableEntity, "invalid-context").wantAt("errors.0.pointer", "/context_patch/n")
	a.post(path, newKey(), `{"event": "read", "bypass": "guard", "payload": {}, "reason": "why"}`, "If-Match", `"2"`).
		want(http.StatusUnprocessableEntity, "invalid-payload")
	if after := rows(); after[0] != before[0] || after[1] != before[1] || after[2] != before[2] {
		t.Errorf("from %v to %v", before, after)
	}

	first := a.post(path, key, body, "If-Match", `"2"`, "X-Actor", "ops").want(http.StatusOK).
		wantAt("state", "READ", "version", "3", "context.by", "forced", "context.n", "12345678901234567890").wantHeader("ETag", `"3"`)
	sameOutcome(t, first, a.post(path, key, strings.Replace(body, "why", "why not", 1), "If-Match", `"2"`))
	a.post(path, key, strings.Replace(body, "READ", "OPEN", 1), "If-Match", `"2"`).want(http.StatusUnprocessableEntity, "idempotency-key-reuse")
	a.get("/v1/instances/"+id+"/history").wantAt(
		"items.2.kind", "forced", "items.2.event", "null", "items.2.from", "OPEN", "items.2.to", "READ", "items.2.reason", "why", "items.2.actor", "ops")
	refused := a.post(path, "p", `{"to": "LOCKED", "reason": "why"}`, "If-Match", "*").want(http.StatusConflict, "state-protected").
		wantAt("state", "READ", "instance_status", "active", "version", "3", "allowed_events", `["lock"]`)
	sameOutcome(t, refused, a.post(path, "p", `{"to": "LOCKED", "reason": "why"}`, "If-Match", "*"))
	a.post(path, newKey(), `{"event": "unlock", "bypass": "guard", "reason": "why"}`, "If-Match", "*").
		want(http.StatusConflict, "transition-not-allowed").wantAt("event", "unlock")

	id = opened(a)
	path = "/v1/instances/" + id + "/override"
	elsewhere := `{"event": "read", "bypass": "guard", "payload": {"code": 1}, "target": "LOCKED", "reason": "why"}`
	refused = a.post(path, "t", elsewhere, "If-Match", `"2"`).want(http.StatusConflict, "transition-not-allowed").
		wantAt("detail", "the state OPEN has no transition for read that leads to LOCKED, or to a state within")
	sameOutcome(t, refused, a.post(path, "t", elsewhere, "If-Match", `"2"`))
	a.post(path, newKey(), `{"event": "read", "bypass": "guard", "payload": {"code": 1}, "target": "READ", "reason": "why"}`, "If-Match", `"2"`, "Prefer", "return=minimal").
		want(http.StatusNoContent).wantHeader("ETag", `"3"`).wantHeader("Preference-Applied", "return=minimal")
	a.get("/v1/instances/"+id+"/history").wantAt("items.2.kind", "forced", "items.2.event", "read", "items.2.payload.code", "1")
}

func TestCancel(t *testing.T) {
	t.Parallel()
	a := start(t)
	a.register(safe)
	a.register(booking)
	id := opened(a)
	path := "/v1/instances/" + id + "/cancel"
	const body = `{"reason": "why"}`
	// The tag is that of the instance, also if eventless steps would follow.
	a.do(http.MethodPost, path+"?dry_run=true", body).want(http.StatusOK).wantAt("state", "CLOSED", "version", "4").wantHeader("ETag", `"2"`)
	a.post(path, newKey(), body, "If-Match", `"1"`).want(http.StatusPreconditionFailed, "version-mismatch")
	a.post(path, newKey(), "").want(http.StatusBadRequest, "malformed-request")
	a.post(path, newKey(), "{}").want(http.StatusBadRequest, "malformed-request").wantAt("errors.0.pointer", "/reason")
	a.post(path, "", body).want(http.StatusBadRequest, "idempotency-key-required")
	first := a.post(path, "k", body, "X-Correlation-ID", "mine").want(http.StatusOK).
		wantAt("state", "CLOSED", "status", "cancelled", "version", "4").wantHeader("ETag", `"4"`)
	sameOutcome(t, first, a.post(path, "k", body))
	a.get("/v1/instances/"+id+"/history").wantAt(
		"items.2.kind", "cancelled", "items.2.to", "CLOSING", "items.2.reason", "why", "items.2.correlation_id", "mine", "items.3.kind", "transition")
	final := a.post(path, newKey(), body).want(http.StatusConflict, "transition-not-allowed").wantAt("instance_status", "cancelled", "event", missing)
	if !strings.Contains(final.at("detail"), "final") {
		t.Errorf("the detail is %s", final.at("detail"))
	}
	locked := a.create("safe", "")
	a.post("/v1/instances/"+locked+"/cancel", newKey(), body).want(http.StatusConflict, "state-protected")
	a.post("/v1/instances/"+a.create("booking", `{"context": {"price": 1}}`)+"/cancel", newKey(), body).want(http.StatusConflict, "not-cancellable")
	// So it is for events.
	a.register(`{"name": "leading", "initial": "A", "states": {"A": {"on": {"go": "B"}}, "B": {"always": {"target": "C"}}, "C": {"type": "final"}}}`)
	a.do(http.MethodPost, "/v1/instances/"+a.create("leading", "")+"/actions/go?dry_run=true", "").want(http.StatusOK).
		wantAt("version", "3").wantHeader("ETag", `"1"`)
}

// Who may operate may not fire for that, and who may fire may not operate. The audit names the caller.
func TestOverrideNeedsItsScope(t *testing.T) {
	t.Parallel()
	a := start(t)
	a.register(safe)
	id := opened(a)
	guarded := a.another(setup{http: httpapi.Config{Tokens: []httpapi.Token{
		{SHA256: sum("ops"), Subject: "olga", Tenant: fsm.DefaultTenant, Scopes: []httpapi.Scope{httpapi.ScopeOperate}},
		{SHA256: sum("app"), Subject: "app", Tenant: fsm.DefaultTenant, Scopes: []httpapi.Scope{httpapi.ScopeFire, httpapi.ScopeRead, httpapi.ScopeAdmin}},
		{SHA256: sum("other"), Subject: "otto", Tenant: "other", Scopes: []httpapi.Scope{httpapi.ScopeOperate}},
	}}})
	const override, cancel = `{"to": "READ", "reason": "why"}`, `{"reason": "why"}`
	for path, body := range map[string]string{"/v1/instances/" + id + "/override": override, "/v1/instances/" + id + "/cancel": cancel} {
		for _, query := range []string{"", "?dry_run=true"} {
			guarded.post(path+query, newKey(), body, "If-Match", `"2"`, "Authorization", "Bearer app").want(http.StatusForbidden, "forbidden")
			guarded.post(path+query, newKey(), body, "If-Match", `"2"`, "Authorization", "Bearer other").want(http.StatusNotFound, "instance-not-found")
		}
	}
	guarded.post("/v1/instances/"+id+"/override", newKey(), override, "If-Match", `"2"`, "Authorization", "Bearer ops", "X-Actor", "me", "X-Request-ID", "r-1").
		want(http.StatusOK)
	got := bounded.Value[string](t, a.pool, `
		select concat_ws(' ', tenant_id, actor, unauthenticated, request_id, action, target = $1, outcome, reason) from pawl.audit where action = 'instance.override'`, id)
	if want := "default olga f r-1 instance.override t done why"; got != want {
		t.Errorf("the audit has %q, want %q", got, want)
	}
}
