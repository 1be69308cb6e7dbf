package httpapi_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

func TestDeliveries(t *testing.T) {
	t.Parallel()
	a := start(t)
	a.register(booking)
	subscription := a.do(http.MethodPost, subscriptions, `{"url": "`+endpoint+`"}`).want(http.StatusCreated).at("id")
	id := a.create("booking", `{"context": {"price": 1}}`)
	a.fire(id, "cancel", "").want(http.StatusOK)
	// In place of the workers, which do not run here.
	dbtest.Number(t, a.pool)
	bounded.Exec(a.t, a.pool, "select pawl.consumer_create('webhooks', true); select pawl.consumer_lead('webhooks', 'x', '1 hour')")
	bounded.Exec(a.t, a.pool, "select pawl.delivery_route('x', 1, 100, '1 hour', '')")
	all := a.get("/v1/deliveries").want(http.StatusOK).wantAt(
		"items.0.subscription_id", subscription, "items.0.instance_id", id, "items.0.version", "2", "items.0.type", "pawl.instance.transitioned",
		"items.0.status", "pending", "items.0.attempts", "0", "items.0.last_status", "null", "items.0.delivered_at", "null",
		"items.1.version", "1", "items.1.type", "pawl.instance.created", "items.2", missing)
	bounded.Exec(a.t, a.pool, `select pawl.delivery_settle('x', 1, '{default}', array[$1::text::uuid], '{dead}', array[null::interval], array[null::interval],
		'{500}', '{broken}', '{oh dear}', '1s')`, all.at("items.1.id"))
	dead := a.get("/v1/deliveries?status=dead&subscription_id="+subscription+"&instance_id="+id).want(http.StatusOK).wantAt(
		"items.0.version", "1", "items.0.attempts", "1", "items.0.last_status", "500", "items.0.last_error", "broken",
		"items.0.last_response", "oh dear", "items.0.next_attempt_at", "null", "items.1", missing).at("items.0.id")
	pending := all.at("items.0.id")
	page := a.get("/v1/deliveries?limit=1").want(http.StatusOK)
	a.get("/v1/deliveries?limit=1&cursor="+page.at("next_cursor")).want(http.StatusOK).wantAt("items.0.id", dead, "next_cursor", "null")
	a.get("/v1/deliveries?limit=1&status=dead&cursor="+page.at("next_cursor")).want(http.StatusBadRequest, "malformed-request")
	for _, bad := range []string{"status=lost", "subscription_id=x", "instance_id=", "colour=red"} {
		a.get("/v1/deliveries?"+bad).want(http.StatusBadRequest, "malformed-request")
	}
	a.get("/v1/deliveries?instance_id="+subscription).want(http.StatusOK).wantAt("items", "[]")

	replay := func(id string) answer { return a.post("/v1/deliveries/"+id+"/replay", "", "") }
	replay(pending).want(http.StatusConflict, "delivery-conflict")
	replay("nonsense").want(http.StatusNotFound, "not-found")
	replay(subscription).want(http.StatusNotFound, "not-found")
	replay(dead).want(http.StatusAccepted).wantAt("id", dead, "status", "pending", "attempts", "1")
	replay(dead).want(http.StatusConflict, "delivery-conflict")
	a.post("/v1/deliveries/replay", "", "").want(http.StatusOK).wantAt("replayed", "0")
	bounded.Exec(a.t, a.pool, "update pawl.delivery set status = 'dead', next_attempt_at = null")
	a.post("/v1/deliveries/replay", "", `{"before": "2020-01-01T00:00:00Z"}`).want(http.StatusOK).wantAt("replayed", "0")
	a.post("/v1/deliveries/replay", "", `{"subscription_id": "`+id+`"}`).want(http.StatusOK).wantAt("replayed", "0")
	a.post("/v1/deliveries/replay", "", `{"status": "delivered"}`).want(http.StatusOK).wantAt("replayed", "0")
	a.post("/v1/deliveries/replay", "", `{"subscription_id": "`+subscription+`", "status": "dead", "after": "2020-01-01T00:00:00Z"}`).
		want(http.StatusOK).wantAt("replayed", "2")
	for _, bad := range []string{`{"status": "pending"}`, `{"status": ""}`, `{"subscription_id": "x"}`, `{"after": "now"}`, `{"ids": []}`} {
		a.post("/v1/deliveries/replay", "", bad).want(http.StatusBadRequest, "malformed-request")
	}
}

func TestCallbacks(t *testing.T) {
	t.Parallel()
	a := start(t)
	a.register(booking)
	books := "/v1/workflows/booking/instances"
	body := func(callback string) string { return `{"context": {"price": 1}, ` + callback + `}` }
	fine := body(`"callback_url": "` + endpoint + `", "callback_secret": "` + secretOf(24) + `"`)
	id := a.post(books, "one", fine).want(http.StatusCreated).at("id")
	a.post(books, "one", fine).want(http.StatusCreated).wantHeader("Idempotent-Replayed", "true").wantAt("id", id)
	for _, other := range []string{
		`{"context": {"price": 1}}`, strings.Replace(fine, "hook", "hook2", 1), strings.Replace(fine, secretOf(24), secretOf(32), 1),
	} {
		a.post(books, "one", other).want(http.StatusUnprocessableEntity, "idempotency-key-reuse")
	}
	for callback, pointer := range map[string]string{
		`"callback_url": ""`:                                         "/callback_url",
		`"callback_url": "http://127.0.0.1/"`:                        "/callback_url",
		`"callback_url": "http://localhost/"`:                        "/callback_url",
		`"callback_url": "ftp://x"`:                                  "/callback_url",
		`"callback_secret": "` + secretOf(24) + `"`:                  "/callback_secret",
		`"callback_url": "` + endpoint + `", "callback_secret": "x"`: "/callback_secret",
	} {
		a.post(books, newKey(), body(callback)).want(http.StatusBadRequest, "malformed-request").wantAt("errors.0.pointer", pointer)
	}
	a.post(books, "two", body(`"callback_url": "`+endpoint+`"`)).want(http.StatusUnprocessableEntity, "callback-secret-required")
	if n := a.count("pawl.callback"); n != 1 {
		t.Errorf("there are %d callbacks", n)
	}
	// The refusal was not recorded.
	signing := a.another(setup{fsm: fsm.Config{Webhooks: fsm.WebhookPolicy{Secret: secretOf(32)}}})
	signing.post(books, "two", body(`"callback_url": "`+endpoint+`"`)).want(http.StatusCreated).wantHeader("Idempotent-Replayed", "")
	batch := signing.do(http.MethodPost, "/v1/batch", jsonText(t, map[string]any{"commands": []any{
		map[string]any{"op": "create", "key": "a", "workflow": "booking", "context": map[string]any{"price": 1}, "callback_url": endpoint},
		map[string]any{"op": "create", "key": "b", "workflow": "booking", "context": map[string]any{"price": 1}},
		map[string]any{"op": "create", "key": "c", "workflow": "booking", "context": map[string]any{"price": 1}, "callback_url": "http://10.0.0.1"},
		map[string]any{"op": "fire", "key": "d", "instance_id": id, "event": "cancel", "callback_url": endpoint},
	}})).want(http.StatusOK)
	if got := fmt.Sprint(batch.each("results", "status")); got != "[201 201 400 400]" {
		t.Errorf("the batch is %s", batch.body)
	}
	batch.wantAt("results.2.problem.errors.0.pointer", "/commands/2/callback_url")
	if n := a.count("pawl.callback where instance_id = '" + batch.at("results.0.instance.id") + "'"); n != 1 || a.count("pawl.callback") != 3 {
		t.Errorf("there are %d callbacks, %d of the batch", a.count("pawl.callback"), n)
	}
}
