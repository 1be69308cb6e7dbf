package httpapi_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/internal/bounded"
)

func TestHistory(t *testing.T) {
	t.Parallel()
	a := start(t)
	a.register(counter)
	trace := "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	key := newKey()
	created := a.post("/v1/workflows/counter/instances", key, `{"context": {"sum": 1}, "reason": "to begin", "correlation_id": "mine"}`,
		"X-Actor", "Åsa", "X-Correlation-ID", "theirs", "traceparent", trace).want(http.StatusCreated)
	created.wantAt("correlation_id", "mine")
	id := created.at("id")
	a.fire(id, "add", `{"payload": {"by": 2}, "reason": "more"}`, "X-Actor", "bob", "X-Correlation-ID", "again", "traceparent", trace).want(http.StatusOK)
	a.fire(id, "stop", ``, "traceparent", "nonsense").want(http.StatusOK)
	r := a.get("/v1/instances/" + id + "/history").want(http.StatusOK)
	r.wantAt("items.0.version", "1", "items.0.workflow_version", "1", "items.0.kind", "created", "items.0.event", "null",
		"items.0.from", "null", "items.0.to", "ON", "items.0.status", "active", "items.0.context.sum", "1",
		"items.0.payload", "null", "items.0.actor", "Åsa", "items.0.reason", "to begin", "items.0.key", key,
		"items.0.correlation_id", "theirs", "items.0.traceparent", trace)
	r.wantAt("items.1.version", "2", "items.1.kind", "transition", "items.1.event", "add", "items.1.from", "ON",
		"items.1.to", "ON", "items.1.context.sum", "3", "items.1.payload.by", "2", "items.1.actor", "bob",
		"items.1.reason", "more", "items.1.correlation_id", "again", "items.1.traceparent", trace)
	r.wantAt("items.2.to", "OFF", "items.2.status", "completed", "items.2.actor", "anonymous", "items.2.reason", "null",
		"items.2.payload", "{}", "items.2.correlation_id", "mine", "items.2.traceparent", "null", "items.3", missing, "items.0.database_user", missing, "items.1.database_user", missing)
	a.get("/v1/instances/x/history").want(http.StatusNotFound, "instance-not-found")

	// A command that came by SQL shows who was logged in.
	id = bounded.Value[uuid.UUID](t, a.pool, "select (pawl.create_one('counter', p_actor => 'carol')).id").String()
	a.get("/v1/instances/"+id+"/history").wantAt("items.0.actor", "carol", "items.0.database_user", bounded.Value[string](t, a.pool, "select session_user"))

	// The header is used if the body has no correlation id.
	id = a.create("counter", "", "X-Correlation-ID", "theirs")
	a.get("/v1/instances/"+id).wantAt("correlation_id", "theirs")

	for _, bad := range []string{
		"00-00000000000000000000000000000000-00f067aa0ba902b7-01", "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
		"ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", trace + "-more", strings.ToUpper(trace),
		"01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-" + strings.Repeat("x", 250),
	} {
		id := a.create("counter", "", "traceparent", bad)
		a.get("/v1/instances/"+id+"/history").wantAt("items.0.traceparent", "null")
	}
	later := "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-what-comes"
	a.get("/v1/instances/"+a.create("counter", "", "traceparent", later)+"/history").wantAt("items.0.traceparent", later)
}
