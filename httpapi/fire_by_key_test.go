package httpapi_test

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/pawl-fsm/pawl/internal/bounded"
)

// byKey is the path of an event at the booking that holds a business key.
func byKey(businessKey, event string) string {
	return "/v1/workflows/booking/keys/" + businessKey + "/actions/" + event
}

const (
	reserve = `{"payload": {"price": 10, "seat": "1A"}}`
	// starts reserves a booking that is created if there is none.
	starts = `{"payload": {"price": 10, "seat": "1A"}, "start": {"context": {"price": 10}, "correlation_id": "c", "expires_in": "5m"}, "reason": "why"}`
)

// Firing by business key answers as firing by id does.
func TestFireByKey(t *testing.T) {
	t.Parallel()
	a := start(t)
	a.register(booking)
	id := a.post("/v1/workflows/booking/instances", newKey(), `{"context": {"price": 10}, "business_key": "a/b é"}`).want(http.StatusCreated).at("id")
	reserveIt, key := byKey("a%2Fb%20%C3%A9", "reserve"), newKey()
	a.post(reserveIt, newKey(), reserve, "If-Match", `"7"`).want(http.StatusPreconditionFailed, "version-mismatch").
		wantAt("version", "1", "state", "QUOTED", "expected", `"7"`)
	a.do(http.MethodPost, reserveIt+"?dry_run=true", reserve).want(http.StatusOK).wantAt("id", id, "state", "RESERVED", "version", "2").
		wantHeader("ETag", `"1"`)
	a.post(reserveIt, newKey(), `{"payload": {"price": "10"}}`).want(http.StatusUnprocessableEntity, "invalid-payload").
		wantAt("errors.0.pointer", "/payload/price")
	rejected := a.post(reserveIt, "rejected", `{"payload": {"price": 11}}`).want(http.StatusConflict, "guard-rejected").wantAt("version", "1")
	first := a.post(reserveIt, key, reserve, "If-Match", `"1"`, "X-Correlation-ID", "mine", "X-Actor", "me").want(http.StatusOK).
		wantAt("id", id, "state", "RESERVED", "context.seat", "1A").wantHeader("ETag", `"2"`).wantHeader("Location", "")
	a.get("/v1/instances/"+id+"/history").wantAt("items.1.key", key, "items.1.correlation_id", "mine", "items.1.actor", "me")
	cancel := newKey()
	a.post(byKey("a%2Fb%20%C3%A9", "cancel"), cancel, "", "Prefer", "return=minimal").want(http.StatusNoContent).
		wantHeader("ETag", `"3"`).wantHeader("Preference-Applied", "return=minimal")
	sameOutcome(t, first, a.post(reserveIt, key, reserve))
	sameOutcome(t, rejected, a.post(reserveIt, "rejected", `{"payload": {"price": 11}}`))
	a.post(reserveIt, newKey(), starts).want(http.StatusConflict, "transition-not-allowed").wantAt("state", "CANCELLED", "version", "3")

	// The same event by another name of the instance, or with a start, is another request.
	a.post("/v1/instances/"+id+"/actions/reserve", key, reserve).want(http.StatusUnprocessableEntity, "idempotency-key-reuse")
	a.post(reserveIt, key, starts).want(http.StatusUnprocessableEntity, "idempotency-key-reuse")
	a.post(byKey("other", "reserve"), key, reserve).want(http.StatusUnprocessableEntity, "idempotency-key-reuse")

	a.post(byKey("nobody", "reserve"), newKey(), reserve).want(http.StatusNotFound, "instance-not-found")
	a.post(byKey("nobody", "reserve"), newKey(), reserve, "If-Match", `"1"`).want(http.StatusNotFound, "instance-not-found")
	a.post(byKey("nobody", "reserve"), "", reserve).want(http.StatusBadRequest, "idempotency-key-required")
	a.post(byKey("", "reserve"), newKey(), reserve).want(http.StatusNotFound, "not-found")
	a.post(byKey(strings.Repeat("x", 256), "reserve"), newKey(), reserve).want(http.StatusBadRequest, "malformed-request").
		wantAt("errors.0.parameter", "business_key")
	a.post(byKey("%00", "reserve"), newKey(), reserve).want(http.StatusBadRequest, "malformed-request")
	a.post(byKey("nobody", strings.Repeat("x", 256)), newKey(), reserve).want(http.StatusBadRequest, "malformed-request").
		wantAt("errors.0.parameter", "event")
	a.post(byKey("nobody", "reserve"), newKey(), `{"context": {}}`).want(http.StatusBadRequest, "malformed-request")
	a.get(byKey("nobody", "reserve")).want(http.StatusMethodNotAllowed).wantHeader("Allow", "OPTIONS, POST")
}

// A start creates an instance and fires at it, or does neither.
func TestStartByKey(t *testing.T) {
	t.Parallel()
	a := start(t)
	a.register(booking)
	a.register(careful)
	a.register(touchy)
	target, key := byKey("new", "reserve"), newKey()
	a.do(http.MethodPost, target+"?dry_run=true", starts).want(http.StatusOK).
		wantAt("state", "RESERVED", "version", "2", "business_key", "new", "correlation_id", "c").wantHeader("ETag", "").wantHeader("Location", "")
	for name, c := range map[string]struct {
		target, body, code string
		status             int
		pairs              []string
	}{
		"guard":     {target, `{"payload": {"price": 11}, "start": {"context": {"price": 10}}}`, "guard-rejected", 409, []string{"state", "QUOTED", "version", "1"}},
		"state":     {byKey("new", "pay"), `{"start": {"context": {"price": 10}}}`, "transition-not-allowed", 409, []string{"state", "QUOTED"}},
		"event":     {byKey("new", "x"), `{"start": {"context": {"price": 10}}}`, "unknown-event", 422, nil},
		"payload":   {target, `{"payload": {"price": "x"}, "start": {"context": {"price": 10}}}`, "invalid-payload", 422, []string{"errors.0.pointer", "/payload/price"}},
		"context":   {target, `{"payload": {"price": 10}, "start": {"context": {"price": -1}}}`, "invalid-context", 422, []string{"errors.0.pointer", "/start/context/price"}},
		"lifetime":  {target, `{"start": {"context": {"price": 10}, "expires_in": "soon"}}`, "malformed-request", 400, []string{"errors.0.pointer", "/start/expires_in"}},
		"id":        {target, `{"start": {"context": {"price": 10}, "correlation_id": ""}}`, "malformed-request", 400, []string{"errors.0.pointer", "/start/correlation_id"}},
		"callback":  {target, `{"start": {"context": {"price": 10}, "callback_url": "ftp://x"}}`, "malformed-request", 400, []string{"errors.0.pointer", "/start/callback_url"}},
		"secret":    {target, `{"start": {"context": {"price": 10}, "callback_url": "https://example.com"}}`, "callback-secret-required", 422, nil},
		"member":    {target, `{"start": {"context": {"price": 10}, "business_key": "x"}}`, "malformed-request", 400, []string{"errors.0.pointer", "/start/business_key"}},
		"no object": {target, `{"start": []}`, "malformed-request", 400, nil},
		"large":     {target, `{"start": {"context": {"price": 10, "x": "` + strings.Repeat("x", 70000) + `"}}}`, "too-large", 413, nil},
		"workflow":  {"/v1/workflows/nothing/keys/new/actions/go", `{"start": {}}`, "workflow-not-found", 404, nil},
		"raises":    {"/v1/workflows/touchy/keys/new/actions/when", strings.Replace(raises, "}}", `}, "start": {}}`, 1), "guard-error", 422, []string{"event", "when", "state", missing}},
	} {
		for _, query := range []string{"", "?dry_run=true"} {
			r := a.post(c.target+query, "refused-"+strings.ReplaceAll(name, " ", "-"), c.body)
			r.want(c.status, c.code).wantAt(c.pairs...).wantHeader("Location", "")
		}
	}
	for _, tag := range []string{`"1"`, "*"} {
		a.post(target, newKey(), starts, "If-Match", tag).want(http.StatusPreconditionFailed, "version-mismatch").
			wantAt("expected", tag, "version", missing, "state", missing)
	}
	if n := a.count("pawl.instance") + a.count("pawl.idempotency_key") + a.count("pawl.history") + a.count("pawl.timer"); n != 0 {
		t.Errorf("refused starts left %d rows", n)
	}

	first := a.post(target, key, starts, "X-Actor", "me").want(http.StatusCreated).
		wantAt("state", "RESERVED", "version", "2", "business_key", "new", "correlation_id", "c").wantHeader("ETag", `"2"`)
	location := first.header.Get("Location")
	if location != "/v1/instances/"+first.at("id") {
		t.Errorf("the location is %q", location)
	}
	a.get(location+"/history").wantAt("items.0.kind", "created", "items.0.actor", "me", "items.0.reason", "why",
		"items.1.event", "reserve", "items.1.key", key, "items.1.reason", "why", "items.2", missing)
	a.post(byKey("new", "cancel"), newKey(), `{"start": {}}`).want(http.StatusOK).wantAt("id", first.at("id"), "version", "3").wantHeader("Location", "")
	sameOutcome(t, first, a.post(target, key, starts))
	minimal, prefer := newKey(), []string{"Prefer", "return=minimal"}
	short := a.post(byKey("short", "cancel"), minimal, `{"start": {"context": {"price": 10}}}`, prefer...).want(http.StatusCreated).wantHeader("ETag", `"2"`)
	sameOutcome(t, short, a.post(byKey("short", "cancel"), minimal, `{"start": {"context": {"price": 10}}}`, prefer...))
	// Who creates an instance knows its version.
	a.post("/v1/workflows/careful/keys/new/actions/go", newKey(), `{"start": {}}`).want(http.StatusCreated).wantAt("state", "B")
	a.post("/v1/workflows/careful/keys/new/actions/go", newKey(), `{"start": {}}`).want(http.StatusPreconditionRequired, "precondition-required")
}

// Many clients that start one booking each get one answer of 201, and their events are applied to it once.
func TestManyClientsStartOneBooking(t *testing.T) {
	t.Parallel()
	a := start(t)
	a.register(counter)
	const clients = 20
	answers := make([]answer, clients)
	var all sync.WaitGroup
	for n := range clients {
		all.Go(func() {
			r, err := a.try(http.MethodPost, "/v1/workflows/counter/keys/b/actions/add", `{"payload": {"by": 1}, "start": {"context": {"sum": 0}}}`,
				"Idempotency-Key", fmt.Sprint("many-", n/2))
			if err != nil {
				t.Error(err)
			}
			answers[n] = r
		})
	}
	bounded.Wait(t, "all answers", all.Wait)
	created, replayed := map[string]bool{}, 0
	for n, r := range answers {
		if r.status == http.StatusCreated {
			created[fmt.Sprint(n/2)] = true
		} else {
			r.want(http.StatusOK)
		}
		if r.header.Get("Idempotent-Replayed") != "" {
			replayed++
		}
	}
	if len(created) != 1 || replayed != clients/2 {
		t.Errorf("%d requests created it, and %d answers are replays; want 1 and %d", len(created), replayed, clients/2)
	}
	a.get("/v1/instances/"+answers[0].at("id")).wantAt("context.sum", fmt.Sprint(clients/2), "version", fmt.Sprint(clients/2+1))
}

// A batch names instances by either, and keeps the order of their commands.
func TestBatchByKey(t *testing.T) {
	t.Parallel()
	a := start(t)
	a.register(counter)
	a.register(booking)
	by := func(n int) map[string]any { return map[string]any{"by": n} }
	zero := map[string]any{"context": map[string]any{"sum": 0}}
	id := a.post("/v1/workflows/counter/instances", newKey(), `{"context": {"sum": 0}, "business_key": "held"}`).want(http.StatusCreated).at("id")
	commands := []map[string]any{
		command("fire", "workflow", "counter", "business_key", "held", "event", "add", "payload", by(1), "if_match", 1),
		command("fire", "instance_id", id, "event", "add", "payload", by(1), "if_match", 2),
		command("fire", "workflow", "counter", "business_key", "held", "event", "add", "payload", by(1), "if_match", 3),
		command("fire", "workflow", "counter", "business_key", "new", "event", "add", "payload", by(1), "start", zero, "reason", "why"),
		command("fire", "workflow", "counter", "business_key", "new", "event", "add", "payload", by(1), "start", zero),
		command("create", "workflow", "counter", "business_key", "created", "context", map[string]any{"sum": 5}),
		command("fire", "workflow", "counter", "business_key", "created", "event", "add", "payload", by(1), "start", zero),
		command("fire", "workflow", "counter", "business_key", "nobody", "event", "add"),
		command("fire", "workflow", "counter", "business_key", "new", "event", "add", "if_match", 9),
		command("fire", "workflow", "booking", "business_key", "b", "event", "cancel", "start", map[string]any{"context": map[string]any{"price": -1}}),
		command("fire", "workflow", "counter", "event", "add"),
		command("fire", "business_key", "b", "event", "add"),
		command("fire", "workflow", "counter", "business_key", "", "event", "add"),
		command("fire", "workflow", "counter", "business_key", strings.Repeat("x", 256), "event", "add"),
		command("fire", "workflow", "counter", "business_key", "b", "event", "add", "start", map[string]any{"expires_in": "soon"}),
		command("fire", "instance_id", id, "business_key", "held", "event", "add"),
		command("fire", "instance_id", id, "event", "add", "start", zero),
		command("create", "workflow", "counter", "start", zero),
	}
	r := a.batch(commands...)
	want := []string{"200", "200", "200", "201", "200", "201", "200", "404", "412", "422", "400", "400", "400", "400", "400", "400", "400", "400"}
	if got := r.each("results", "status"); !slices.Equal(got, want) {
		t.Fatalf("the statuses are %v, want %v\n%s", got, want, r.body)
	}
	r.wantAt("results.2.instance.version", "4", "results.3.instance.version", "2", "results.4.instance.version", "3",
		"results.6.instance.context.sum", "6", "results.6.instance.id", r.at("results.5.instance.id"),
		"results.9.problem.errors.0.pointer", "/commands/9/start/context/price",
		"results.10.problem.errors.0.pointer", "/commands/10/instance_id",
		"results.11.problem.errors.0.pointer", "/commands/11/workflow",
		"results.12.problem.errors.0.pointer", "/commands/12/business_key",
		"results.13.problem.errors.0.pointer", "/commands/13/business_key",
		"results.14.problem.errors.0.pointer", "/commands/14/start/expires_in",
		"results.15.problem.errors.0.pointer", "/commands/15/business_key",
		"results.16.problem.errors.0.pointer", "/commands/16/start",
		"results.17.problem.errors.0.pointer", "/commands/17/start")
	again := a.batch(commands[:7]...)
	for i := range commands[:7] {
		n := fmt.Sprint("results.", i)
		again.wantAt(n+".status", want[i], n+".replayed", "true", n+".instance", r.at(n+".instance"))
	}
}
