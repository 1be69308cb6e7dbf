package httpapi_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
)

const backtested = "/v1/workflows/booking/backtest"

func TestBacktest(t *testing.T) {
	t.Parallel()
	a := start(t)
	a.register(booking)
	waiting, reserved := a.create("booking", `{"context": {"price": 1}}`), a.create("booking", `{"context": {"price": 1}}`)
	a.fire(reserved, "reserve", `{"payload": {"price": 1}}`).want(http.StatusOK)
	a.do(http.MethodPost, backtested, `{"version": 1}`).want(http.StatusOK).wantAt(
		"version", "1", "instances", "2", "same", "2", "different", "0", "incomplete", "0", "summary", "[]", "differences", "[]")
	a.do(http.MethodPost, backtested, fmt.Sprintf(`{"definition": %s}`, bookingTwo)).want(http.StatusOK).wantAt(
		"version", "null", "instances", "2", "same", "1", "different", "1",
		"summary.0.event", "reserve", "summary.0.from", "QUOTED", "summary.0.to", "RESERVED", "summary.0.outcome", "elsewhere",
		"summary.0.would_be", "HELD", "summary.0.count", "1", "summary.0.examples.0", reserved,
		"differences.0.instance_id", reserved, "differences.0.workflow_version", "1", "differences.0.version", "2",
		"differences.0.outcome", "elsewhere", "differences.0.would_be", "HELD", "differences.0.detail", "reserve leads to HELD",
		"differences.0.guards", missing, "differences.0.errors", missing)
	a.get("/v1/workflows/booking").want(http.StatusOK).wantAt("version", "1", "versions.1", missing)

	// Each difference is at the first step: at the creation, or at the event with the guard.
	stricter := strings.Replace(booking, "$.payload.price == $.context.price", "$.payload.price > $.context.price", 1)
	a.do(http.MethodPost, backtested, fmt.Sprintf(`{"definition": %s, "sample": 1}`, stricter)).want(http.StatusOK).wantAt(
		"instances", "1", "differences.0.outcome", "guard-rejected", "differences.0.would_be", "null",
		"differences.0.guards.0", "$.payload.price > $.context.price")
	pickier := strings.Replace(booking, `"required": ["price"]`, `"required": ["price", "by"]`, 1)
	if pickier == booking {
		t.Fatal("the context schema is another")
	}
	a.do(http.MethodPost, backtested, fmt.Sprintf(`{"definition": %s}`, pickier)).want(http.StatusOK).wantAt(
		"different", "2", "summary.0.event", "null", "summary.0.from", "null", "summary.0.count", "2", "summary.0.examples.1", waiting,
		"differences.0.outcome", "invalid-context", "differences.0.errors.0.pointer", "/context")
}

func TestBacktestRefusals(t *testing.T) {
	t.Parallel()
	a := start(t)
	a.register(booking)
	for body, pointer := range map[string]string{
		`{}`: "/definition", fmt.Sprintf(`{"version": 1, "definition": %s}`, booking): "/definition",
		`{"version": 1, "sample": 0}`: "/sample", `{"version": 1, "sample": -1}`: "/sample", `{"version": 1, "states": 1}`: "/states",
		`{"definition": null}`: "/definition", `{"definition": 1}`: "/definition",
	} {
		a.do(http.MethodPost, backtested, body).want(http.StatusBadRequest, "malformed-request").wantAt("errors.0.pointer", pointer)
	}
	a.do(http.MethodPost, backtested, "").want(http.StatusBadRequest, "malformed-request")
	a.do(http.MethodPost, backtested, fmt.Sprintf(`{"definition": %s}`, strings.NewReplacer(
		`"name": "booking"`, `"name": "booked"`, `"cancel": "CANCELLED"`, `"cancel": "NOWHERE"`).Replace(booking))).
		want(http.StatusUnprocessableEntity, "invalid-definition").wantAt("errors.0.pointer", "/definition/name")
	for target, body := range map[string]string{
		backtested: `{"version": 2}`, "/v1/workflows/nobody/backtest": fmt.Sprintf(`{"definition": %s}`, booking),
	} {
		a.do(http.MethodPost, target, body).want(http.StatusNotFound, "workflow-not-found")
	}
	a.do(http.MethodPost, backtested, `{"version": 0}`).want(http.StatusNotFound, "workflow-not-found")
}
