package httpapi_test

import (
	"net/http"
	"testing"

	"github.com/pawl-fsm/pawl/internal/bounded"
)

const simulated = "/v1/workflows/booking/simulate"

func TestSimulate(t *testing.T) {
	t.Parallel()
	a := start(t)
	a.register(booking)
	a.do(http.MethodPost, simulated, `{"context": {"price": 5}, "events": [
		{"event": "reserve", "payload": {"price": 6}}, {"event": "reserve", "payload": {"price": 5}},
		{"event": "reserve"}, {"event": "cancel"}]}`).want(http.StatusOK).
		wantAt("steps.0.outcome", "refused").wantAt("steps.0.problem.code", "guard-rejected").wantAt("steps.0.to", "QUOTED").
		wantAt("steps.1.outcome", "applied").wantAt("steps.1.from", "QUOTED").wantAt("steps.1.to", "RESERVED").
		wantAt("steps.2.problem.code", "transition-not-allowed").wantAt("steps.2.problem.allowed_events.0", "cancel").
		wantAt("steps.3.to", "CANCELLED").wantAt("state", "CANCELLED")
	a.get("/v1/instances").want(http.StatusOK).wantAt("items", "[]")

	a.do(http.MethodPost, simulated, `{"state": "RESERVED", "events": [{"event": "cancel"}]}`).want(http.StatusOK).wantAt("state", "CANCELLED")
	a.do(http.MethodPost, simulated+"?version=1", "").want(http.StatusUnprocessableEntity, "invalid-context")
	a.do(http.MethodPost, simulated, `{"state": "NOWHERE"}`).want(http.StatusBadRequest, "malformed-request").wantAt("errors.0.pointer", "/state")
	a.do(http.MethodPost, simulated, `{"state": ""}`).want(http.StatusBadRequest, "malformed-request")
	a.do(http.MethodPost, simulated, `{"unknown": 1}`).want(http.StatusBadRequest, "malformed-request")
	for _, target := range []string{"/v1/workflows/nobody/simulate", simulated + "?version=2", simulated + "?version=0"} {
		a.do(http.MethodPost, target, "").want(http.StatusNotFound, "workflow-not-found")
	}
}

// The rules of time, of actors and of the beginning are those of both operations.
func TestSimulateDefinition(t *testing.T) {
	t.Parallel()
	a := start(t)
	const definition = `{"name": "door", "initial": "OPEN", "ttl": {"after": "1h", "target": "GONE"},
		"invariant": "$.context.keys > 0", "context_schema": {"type": "object", "properties": {"keys": {"type": "integer"}}}, "states": {
		"OPEN": {"after": {"10m": "SHUT"}, "on": {"lock": {"target": "SHUT", "guard": {"equal": ["$.actor.subject", "porter"]}}}},
		"SHUT": {"on": {"open": {"target": "OPEN", "assign": {"by": "$.actor.subject"}}}},
		"GONE": {"type": "final", "outcome": "expired"}}}`
	simulate := func(body string) answer {
		t.Helper()
		return a.do(http.MethodPost, "/v1/simulate", `{"definition": `+definition+`, `+body+`}`, "X-Actor", "asker")
	}
	simulate(`"now": "2026-03-01T09:00:00Z", "context": {"keys": 1}, "events": [
		{"event": "lock"}, {"after": "10m"}, {"event": "open"}, {"event": "lock", "actor": {"subject": "porter"}}, {"after": "1d"}]`).want(http.StatusOK).
		wantAt("start.state", "OPEN").wantAt("start.version", "1").
		wantAt("steps.0.problem.code", "guard-rejected").wantAt("steps.0.kind", "transition").wantAt("steps.0.version", "1").
		wantAt("steps.1.kind", "timeout").wantAt("steps.1.event", "after:10m").wantAt("steps.1.at", "2026-03-01T09:10:00.000000Z").wantAt("steps.1.index", "1").
		wantAt("steps.2.context.by", "asker").wantAt("steps.3.to", "SHUT").
		wantAt("steps.4.kind", "expired").wantAt("steps.4.event", "ttl").wantAt("steps.4.at", "2026-03-01T10:00:00.000000Z").wantAt("steps.4.index", "4").
		wantAt("state", "GONE").wantAt("status", "expired").wantAt("version", "5")
	a.get("/v1/workflows").want(http.StatusOK).wantAt("items", "[]")

	simulate(`"context": {"keys": 0}`).want(http.StatusConflict, "guard-rejected").wantAt("guards.0", "$.context.keys > 0")
	simulate(`"context": {"keys": "one"}`).want(http.StatusUnprocessableEntity, "invalid-context").wantAt("errors.0.pointer", "/context/keys")
	simulate(`"state": "NOWHERE"`).want(http.StatusBadRequest, "malformed-request").wantAt("errors.0.pointer", "/state")
	for events, pointer := range map[string]string{
		`{}`:                               "/events/0",
		`{"event": "open", "after": "1m"}`: "/events/0",
		`{"after": "1m", "payload": {}}`:   "/events/0",
		`{"after": "soon"}`:                "/events/0/after",
		`{"event": ""}`:                    "/events/0/event",
		`{"event": "open", "actor": {"subject": ""}}`: "/events/0/actor/subject",
	} {
		simulate(`"context": {"keys": 1}, "events": [`+events+`]`).want(http.StatusBadRequest, "malformed-request").wantAt("errors.0.pointer", pointer)
	}
	simulate(`"context": {"keys": 1}, "events": [{"event": "open", "actor": {"subject": "x", "roles": []}}]`).want(http.StatusBadRequest, "malformed-request")
	a.do(http.MethodPost, "/v1/simulate", "").want(http.StatusBadRequest, "malformed-request")
	a.do(http.MethodPost, "/v1/simulate", `{}`).want(http.StatusBadRequest, "malformed-request")
	a.do(http.MethodPost, "/v1/simulate", `{"definition": {"name": "x", "initial": "A", "states": {}}}`).
		want(http.StatusUnprocessableEntity, "invalid-definition").wantAt("errors.0.pointer", "/definition/initial")
}

// A creation that would break an invariant is refused in the same way.
func TestCreateBreaksAnInvariant(t *testing.T) {
	t.Parallel()
	a := start(t)
	bounded.Exec(t, a.pool, `select pawl.register_workflow('{"name": "account", "initial": "OPEN", "invariant": "$.context.balance >= 0", "states": {
		"OPEN": {"on": {"close": [{"target": "CLOSED"}]}}, "CLOSED": {"type": "final", "outcome": "completed"}}}')`)
	body := `{"context": {"balance": -1}}`
	a.do(http.MethodPost, "/v1/workflows/account/instances", body, "Idempotency-Key", "k").
		want(http.StatusConflict, "guard-rejected").wantAt("guards.0", "$.context.balance >= 0")
	a.do(http.MethodPost, "/v1/workflows/account/instances", `{"context": {"balance": 1}}`, "Idempotency-Key", "k").want(http.StatusCreated)
}
