package httpapi_test

import (
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/pawl-fsm/pawl/db/dbtest"
)

func TestInstanceShape(t *testing.T) {
	t.Parallel()
	a := start(t)
	a.register(booking)
	a.register(counter)
	dbtest.SetClock(t, a.pool, at("2026-03-01T09:00:00Z"))
	r := a.post("/v1/workflows/booking/instances", newKey(),
		`{"context": {"price": 1}, "business_key": "b", "correlation_id": "c", "expires_in": "90s"}`).want(http.StatusCreated)
	r.wantAt("workflow", "booking", "workflow_version", "1", "state", "QUOTED", "status", "active", "version", "1",
		"context", `{"price":1}`, "business_key", "b", "correlation_id", "c", "actions", `["cancel","reserve"]`,
		"created_at", "2026-03-01T09:00:00.000000Z", "state_changed_at", "2026-03-01T09:00:00.000000Z",
		"expires_at", "2026-03-01T09:01:30.000000Z", "error", "null")
	a.get("/v1/instances/"+r.at("id")).want(http.StatusOK).wantHeader("ETag", `"1"`)
	// A read has the next deadline besides.
	const deadline = `"next_timeout":{"due_at":"2026-03-01T09:01:30.000000Z","event":"ttl","last_error":null},`
	if got := a.get(r.header.Get("Location")); strings.Replace(string(got.body), deadline, "", 1) != string(r.body) {
		t.Errorf("read %s\nafter creating %s", got.body, r.body)
	}
	a.get("/v1/instances/"+r.at("id")+"?version=1").wantAt("next_timeout", missing)
	a.get("/v1/instances?workflow=booking").wantAt("items.0.next_timeout.event", "ttl")
	dbtest.Advance(t, a.pool, hour)
	moved := a.fire(r.at("id"), "cancel", "").want(http.StatusOK).wantAt("status", "cancelled", "actions", "[]",
		"created_at", "2026-03-01T09:00:00.000000Z", "state_changed_at", "2026-03-01T10:00:00.000000Z")
	if got := a.get("/v1/instances/" + r.at("id")); string(got.body) != string(moved.body) {
		t.Errorf("read %s\nafter firing %s", got.body, moved.body)
	}
	a.post("/v1/workflows/counter/instances", newKey(), "").want(http.StatusCreated).wantAt("context", "{}", "business_key", "null",
		"correlation_id", "null", "expires_at", "null")
	a.post("/v1/workflows/booking/instances", newKey(), `{"context": {"price": 1}, "expires_in": "1d"}`).want(http.StatusCreated).
		wantAt("expires_at", "2026-03-02T10:00:00.000000Z")

	held := a.post("/v1/workflows/booking/instances", newKey(), `{"context": {"price": 1}, "business_key": "b"}`)
	held.want(http.StatusConflict, "instance-exists").wantHeader("Location", "/v1/instances/"+r.at("id")).wantAt("instance_id", r.at("id"))
	a.post("/v1/workflows/counter/instances", newKey(), `{"business_key": "b"}`).want(http.StatusCreated)

	a.post("/v1/workflows/booking/instances", newKey(), `{"context": {"price": "1"}}`).
		want(http.StatusUnprocessableEntity, "invalid-context").wantAt("errors.0.pointer", "/context/price")
	a.post("/v1/workflows/booking/instances", newKey(), ``).
		want(http.StatusUnprocessableEntity, "invalid-context").wantAt("errors.0.pointer", "/context")
	id := a.create("booking", `{"context": {"price": 1}}`)
	faults := a.fire(id, "reserve", `{"payload": {"seat": 7, "price": "x"}}`).want(http.StatusUnprocessableEntity, "invalid-payload")
	if got := faults.each("errors", "pointer"); !slices.Equal(got, []string{"/payload/price", "/payload/seat"}) {
		t.Errorf("faults at %v", got)
	}
}

// An instance is read at a past time or version. Before its creation and after its last
// version it is 404.
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
	// A past version never changes, so its tag stays valid.
	a.get(path+"?version=2", "If-None-Match", `"2"`).want(http.StatusNotModified)
	a.get(path+"?version=2", "If-None-Match", `"4"`).want(http.StatusOK)
}

// If-None-Match with the present version gets 304 without a body.
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

func TestActions(t *testing.T) {
	t.Parallel()
	a := start(t)
	a.register(booking)
	a.register(touchy)
	id := a.create("booking", `{"context": {"price": 10}}`)
	r := a.get("/v1/instances/" + id + "/actions").want(http.StatusOK)
	r.wantAt("items.0.event", "cancel", "items.0.payload_schema", "null", "items.0.guard_holds", "null",
		"items.0.targets", `["CANCELLED"]`, "items.1.event", "reserve", "items.1.payload_schema.type", "object",
		"items.2.event", missing, "next_cursor", "null")
	a.get("/v1/instances/"+id+"/actions?evaluate=true").wantAt("items.0.guard_holds", "true", "items.1.guard_holds", "false")
	a.fire(id, "reserve", `{"payload": {"price": 10}}`).want(http.StatusOK)
	a.get("/v1/instances/"+id+"/actions?evaluate=false").
		wantAt("items.1.event", "pay", "items.1.targets", `["PAID","PAYMENT_MISMATCH"]`, "items.1.guard_holds", "null")
	a.fire(id, "cancel", "").want(http.StatusOK)
	a.get("/v1/instances/"+id+"/actions?evaluate=true").wantAt("items", "[]")
	a.get("/v1/instances/x/actions").want(http.StatusNotFound, "instance-not-found")
	a.get("/v1/instances/"+id+"/actions?evaluate=yes").want(http.StatusBadRequest, "malformed-request")

	// guard_holds is null for a guard that raises. The other events are still evaluated.
	a.register(`{"name": "moody", "initial": "A", "states": {"A": {"on": {
		"bad": {"target": "B", "guard": "$.now.datetime() < \"2026-01-01T00:00:00\".datetime()"}, "good": "B"}}, "B": {"type": "final"}}}`)
	a.get("/v1/instances/"+a.create("moody", "")+"/actions?evaluate=true").
		wantAt("items.0.event", "bad", "items.0.guard_holds", "null", "items.1.guard_holds", "true")
}
