package httpapi_test

import (
	"net/http"
	"testing"
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
