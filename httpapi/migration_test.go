package httpapi_test

import (
	"net/http"
	"strings"
	"testing"
)

// bookingTwo is booking with one state renamed.
var bookingTwo = strings.ReplaceAll(booking, "RESERVED", "HELD")

func TestMigrateAndRetire(t *testing.T) {
	t.Parallel()
	a := start(t)
	a.register(booking)
	quoted, reserved := a.create("booking", `{"context": {"price": 1}}`), a.create("booking", `{"context": {"price": 1}}`)
	a.fire(reserved, "reserve", `{"payload": {"price": 1}}`).want(http.StatusOK)
	a.do(http.MethodPut, "/v1/workflows/booking", bookingTwo).want(http.StatusCreated)
	a.get("/v1/workflows/booking").want(http.StatusOK).wantAt(
		"version", "2", "versions.0.version", "2", "versions.0.instances", "{}",
		"versions.1.version", "1", "versions.1.instances", `{"QUOTED":1,"RESERVED":1}`)
	a.do(http.MethodDelete, "/v1/workflows/booking/versions/1", "").want(http.StatusConflict, "workflow-conflict")

	const migrate = "/v1/workflows/booking/migrate"
	a.do(http.MethodPost, migrate, `{"from": 1, "to": 2, "dry_run": true}`).want(http.StatusOK).wantAt(
		"total", "2", "migrated", "1", "moves.0.from", "QUOTED", "left.0.id", reserved, "left.0.reason", "state-unknown")
	a.get("/v1/instances/"+quoted).wantAt("workflow_version", "1")
	a.do(http.MethodPost, migrate, `{"from": 1, "to": 2, "state_map": {"NONE": "HELD", "RESERVED": "NOWHERE"}}`).
		want(http.StatusBadRequest, "malformed-request").wantAt("errors.0.pointer", "/state_map/NONE", "errors.1.pointer", "/state_map/RESERVED")
	a.do(http.MethodPost, migrate, `{"from": 1, "to": 2, "filter": {"ids": ["x"]}}`).want(http.StatusBadRequest, "malformed-request").
		wantAt("errors.0.pointer", "/filter/ids/0")
	a.do(http.MethodPost, migrate, `{"to": 2}`).want(http.StatusBadRequest, "malformed-request").wantAt("errors.0.pointer", "/from")
	a.do(http.MethodPost, migrate, `{"from": 1}`).want(http.StatusBadRequest, "malformed-request").wantAt("errors.0.pointer", "/to")
	a.do(http.MethodPost, migrate, `{"from": 1, "to": 3}`).want(http.StatusNotFound, "workflow-not-found")
	a.do(http.MethodPost, migrate, "").want(http.StatusBadRequest, "malformed-request")
	a.do(http.MethodPost, migrate, `{"from": 1, "to": 2, "state_map": {"RESERVED": "HELD"}, "filter": {"states": ["RESERVED"]}, "reason": "renamed"}`,
		"X-Actor", "operator").want(http.StatusOK).wantAt("migrated", "1", "moves.0.to", "HELD", "left", "[]")
	a.get("/v1/instances/"+reserved).wantAt("state", "HELD", "workflow_version", "2", "version", "3")
	a.get("/v1/instances/"+reserved+"/history").wantAt(
		"items.2.kind", "migrated", "items.2.from", "RESERVED", "items.2.to", "HELD", "items.2.actor", "operator", "items.2.reason", "renamed")
	a.do(http.MethodPost, migrate, `{"from": 1, "to": 2}`).want(http.StatusOK).wantAt("total", "1", "migrated", "1")

	a.do(http.MethodDelete, "/v1/workflows/booking/versions/1", "").want(http.StatusNoContent)
	a.do(http.MethodDelete, "/v1/workflows/booking/versions/1", "").want(http.StatusNotFound, "workflow-not-found")
	a.get("/v1/workflows/booking").want(http.StatusOK).wantAt("versions.1", missing)
}
