package httpapi_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/httpapi"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// named returns a counter with another name.
func named(name string) string {
	return strings.Replace(counter, `"name": "counter"`, fmt.Sprintf(`"name": %q`, name), 1)
}

// root has every scope in every tenant.
var root = httpapi.Token{SHA256: sum("root"), Subject: "root", Tenant: fsm.Deployment, Scopes: httpapi.Scopes()}

// guarded starts a service with the workflows mine and theirs, whose tokens are in the database. root's is in a file.
func guarded(t *testing.T, config httpapi.Config) *api {
	t.Helper()
	return guard(startWith(t, setup{http: withTokens(config)}))
}

func withTokens(config httpapi.Config) httpapi.Config {
	config.DatabaseTokens, config.Tokens = true, append(config.Tokens, root)
	return config
}

// guard registers the workflows mine and theirs.
func guard(a *api) *api {
	a.t.Helper()
	for _, name := range []string{"mine", "theirs"} {
		a.do(http.MethodPut, "/v1/workflows/"+name, named(name), as("root")...).want(http.StatusCreated)
	}
	return a
}

// as returns the headers of a caller that acts for a tenant, if one is given.
func as(token string, tenant ...string) []string {
	headers := []string{"Authorization", "Bearer " + token}
	if len(tenant) > 0 {
		headers = append(headers, "X-Pawl-Tenant", tenant[0])
	}
	return headers
}

// token makes a token of a tenant and returns its text.
func (a *api) token(tenant, body string) string {
	a.t.Helper()
	return a.post("/v1/tokens", "", body, as("root", tenant)...).want(http.StatusCreated).at("token")
}

// sameRefusal reports a difference between two refusals, apart from the texts that a caller has sent.
func sameRefusal(t *testing.T, foreign, unknown answer, sent ...string) {
	t.Helper()
	text := func(r answer) string {
		var body map[string]any
		if err := json.Unmarshal(r.body, &body); err != nil {
			t.Fatalf("%s: %v in %q", r.request, err, r.body)
		}
		delete(body, "request_id")
		header := r.header.Clone()
		for _, name := range []string{"Date", "X-Request-Id", "Content-Length"} {
			header.Del(name)
		}
		return strings.NewReplacer(sent...).Replace(fmt.Sprint(r.status, header, jsonText(t, body)))
	}
	if f, u := text(foreign), text(unknown); f != u {
		t.Errorf("%s: what is foreign is told from what is unknown:\n%s\n%s", foreign.request, f, u)
	}
}

// What is of a workflow that a token is not bound to does not exist for it.
func TestBorderOfWorkflows(t *testing.T) {
	t.Parallel()
	a := guarded(t, httpapi.Config{})
	all := `["read", "create", "fire", "deliver"]`
	bound := a.token("default", `{"subject": "bea", "workflows": ["mine"], "scopes": `+all+`}`)
	free := a.token("default", `{"subject": "fred", "scopes": `+all+`}`)
	a.do(http.MethodPut, "/v1/roles/narrow", `{"workflows": ["mine"], "scopes": `+all+`}`, as("root", "default")...).want(http.StatusCreated)
	byRole := a.token("default", `{"subject": "rob", "scopes": ["operate"], "roles": ["narrow"]}`)

	create := func(workflow, body string) string {
		return a.create(workflow, body, as(free)...)
	}
	mine, theirs := create("mine", `{"business_key": "m", "context": {"sum": 0}}`), create("theirs", `{"business_key": "t"}`)
	const none = "0195a2f0-11c8-7a4e-9b6d-3f5e7a9c1d20"
	subscribe := func(workflows string) string {
		return a.post("/v1/subscriptions", "", `{"url": "https://example.com/", "filter": {"workflows": `+workflows+`}}`, as(free)...).
			want(http.StatusCreated).at("id")
	}
	mySub, theirSub, bothSub, allSub := subscribe(`["mine"]`), subscribe(`["theirs"]`), subscribe(`["mine", "theirs"]`), subscribe(`[]`)

	test := func(subscription string) string {
		return a.post("/v1/subscriptions/"+subscription+"/test", "", "", as(free)...).want(http.StatusAccepted).at("id")
	}
	myDelivery, theirDelivery := test(mySub), test(theirSub)
	test(allSub)

	for name, token := range map[string]string{"bound": bound, "by role": byRole} {
		t.Run(name, func(t *testing.T) {
			a := a.on(t)
			for _, c := range []struct{ method, target, body string }{
				{"GET", "/v1/instances/{instance}", ""},
				{"GET", "/v1/instances/{instance}?version=1", ""},
				{"GET", "/v1/instances/{instance}?version=77", ""},
				{"GET", "/v1/instances/{instance}?at=2000-01-01T00:00:00Z", ""},
				{"GET", "/v1/instances/{instance}?until=NOWHERE", ""},
				{"GET", "/v1/instances/{instance}/history", ""},
				{"GET", "/v1/instances/{instance}/history?cursor=x", ""},
				{"GET", "/v1/instances/{instance}/actions?evaluate=true", ""},
				{"GET", "/v1/instances/{instance}/events", ""},
				{"POST", "/v1/instances/{instance}/actions/stop", ""},
				{"POST", "/v1/instances/{instance}/actions/stop?dry_run=true", ""},
				{"POST", "/v1/instances/{instance}/actions/nothing", `{"payload": 1}`},
				{"POST", "/v1/instances/{instance}/actions/stop", `{"bad": true}`},
				{"GET", "/v1/workflows/{workflow}", ""},
				{"GET", "/v1/workflows/{workflow}/versions/1", ""},
				{"GET", "/v1/workflows/{workflow}/versions/9", ""},
				{"GET", "/v1/workflows/{workflow}/diagram", ""},
				{"GET", "/v1/workflows/{workflow}/instances", ""},
				{"POST", "/v1/workflows/{workflow}/simulate", `{"events": []}`},
				{"POST", "/v1/workflows/{workflow}/instances", ""},
				{"POST", "/v1/workflows/{workflow}/instances", `{"context": {"secret": 1}}`},
				{"POST", "/v1/workflows/{workflow}/keys/t/actions/stop", ""},
				{"POST", "/v1/workflows/{workflow}/keys/t/actions/stop?dry_run=true", ""},
				{"POST", "/v1/workflows/{workflow}/keys/t/actions/stop", `{"start": {}}`},
				{"GET", "/v1/workflows/mine/diagram?instance={instance}", ""},
				{"GET", "/v1/instances?workflow={workflow}", ""},
				{"GET", "/v1/subscriptions/{subscription}", ""},
				{"PATCH", "/v1/subscriptions/{subscription}", `{"disabled": true}`},
				{"DELETE", "/v1/subscriptions/{subscription}", ""},
				{"POST", "/v1/subscriptions/{subscription}/rotate-secret", ""},
				{"POST", "/v1/subscriptions/{subscription}/test", ""},
				{"POST", "/v1/subscriptions", `{"url": "https://example.com/", "filter": {"workflows": ["{workflow}"]}}`},
				{"POST", "/v1/subscriptions", `{"url": "https://example.com/", "filter": {"workflows": ["mine", "{workflow}"]}}`},
			} {
				call := func(instance, workflow, subscription string, headers ...string) answer {
					r := strings.NewReplacer("{instance}", instance, "{workflow}", workflow, "{subscription}", subscription)
					return a.do(c.method, r.Replace(c.target), r.Replace(c.body), append(as(token), headers...)...)
				}
				for _, headers := range [][]string{nil, {"Idempotency-Key", newKey()}, {"Idempotency-Key", newKey(), "If-Match", `"9"`}} {
					foreign := call(theirs, "theirs", theirSub, headers...)
					unknown := call(none, "nowhere", none, headers...)
					if foreign.status < 400 {
						t.Errorf("%s: %d %s", foreign.request, foreign.status, foreign.body)
					}
					sameRefusal(t, foreign, unknown, theirs, "ID", none, "ID", theirSub, "ID", "theirs", "W", "nowhere", "W")
				}
			}
			for _, sub := range []string{theirSub, bothSub, allSub} {
				a.get("/v1/subscriptions/"+sub, as(token)...).want(http.StatusNotFound, "not-found")
			}
			a.get("/v1/subscriptions/"+mySub, as(token)...).want(http.StatusOK)

			// Lists have what is within.
			if ids := a.get("/v1/instances", as(token)...).want(http.StatusOK).each("items", "workflow"); slices.Contains(ids, "theirs") || len(ids) == 0 {
				t.Errorf("it sees instances of %v", ids)
			}
			if ids := a.get("/v1/instances?state=ON&sort=-state_changed_at", as(token)...).want(http.StatusOK).each("items", "id"); !slices.Equal(ids, []string{mine}) {
				t.Errorf("it sees the instances %v, want %s", ids, mine)
			}
			if names := a.get("/v1/workflows", as(token)...).want(http.StatusOK).each("items", "name"); !slices.Equal(names, []string{"mine"}) {
				t.Errorf("it sees the workflows %v", names)
			}
			if ids := a.get("/v1/subscriptions", as(token)...).want(http.StatusOK).each("items", "id"); !slices.Equal(ids, []string{mySub}) {
				t.Errorf("it sees the subscriptions %v, want %s", ids, mySub)
			}
			a.post("/v1/deliveries/replay", "", "", as(token)...).want(http.StatusForbidden, "forbidden")
			for _, limit := range []string{"1", "200"} {
				deliveries := a.get("/v1/deliveries?limit="+limit, as(token)...).want(http.StatusOK)
				if ids := deliveries.each("items", "id"); !slices.Equal(ids, []string{myDelivery}) || deliveries.at("next_cursor") != "null" {
					t.Errorf("it sees the deliveries %v, want %s\n%s", ids, myDelivery, deliveries.body)
				}
			}
			sameRefusal(t, a.post("/v1/deliveries/"+theirDelivery+"/replay", "", "", as(token)...), a.post("/v1/deliveries/"+none+"/replay", "", "", as(token)...))
			a.post("/v1/deliveries/"+myDelivery+"/replay", "", "", as(token)...).want(http.StatusConflict, "delivery-conflict")
			for _, sub := range []string{theirSub, none} {
				a.post("/v1/deliveries/replay", "", `{"status": "dead", "subscription_id": "`+sub+`"}`, as(token)...).want(http.StatusOK).
					wantAt("replayed", "0")
			}
			a.do(http.MethodPatch, "/v1/subscriptions/"+mySub, `{"filter": {}}`, as(token)...).want(http.StatusForbidden, "forbidden")
			a.post("/v1/subscriptions", "", `{"url": "https://example.com/"}`, as(token)...).want(http.StatusForbidden, "forbidden")

			// A batch checks each command for itself.
			key := func() string { return `"key": "` + newKey() + `"` }
			batch := a.post("/v1/batch", "", `{"commands": [
				{"op": "create", "workflow": "theirs", `+key()+`},
				{"op": "create", "workflow": "nowhere", `+key()+`},
				{"op": "fire", "instance_id": "`+theirs+`", "event": "stop", `+key()+`},
				{"op": "fire", "instance_id": "`+none+`", "event": "stop", `+key()+`},
				{"op": "fire", "workflow": "theirs", "business_key": "t", "event": "stop", `+key()+`},
				{"op": "fire", "instance_id": "`+mine+`", "event": "add", "payload": {"by": 1}, `+key()+`}
			]}`, as(token)...).want(http.StatusOK)
			if got := batch.each("results", "status"); !slices.Equal(got, []string{"404", "404", "404", "404", "404", "200"}) {
				t.Errorf("the results are %v\n%s", got, batch.body)
			}
		})
	}
	if n := bounded.Value[int](t, a.pool, "select count(*) from pawl.history where workflow = 'theirs'"); n != 1 {
		t.Errorf("the other workflow has %d steps", n)
	}
}

// events of a grant narrow fire, wherever it is asked for, and GET …/actions says so.
func TestPermittedEvents(t *testing.T) {
	t.Parallel()
	a := guarded(t, httpapi.Config{})
	a.do(http.MethodPut, "/v1/roles/adder", `{"scopes": ["fire"], "events": ["add"]}`, as("root", "default")...).want(http.StatusCreated)
	token := a.token("default", `{"subject": "ada", "scopes": ["read"], "roles": ["adder"]}`)
	id := a.create("mine", `{"business_key": "k", "context": {"sum": 0}}`, as("root", "default")...)
	actions := a.get("/v1/instances/"+id+"/actions", as(token)...).want(http.StatusOK)
	if got := actions.each("items", "permitted"); !slices.Equal(actions.each("items", "event"), []string{"add", "set", "stop"}) || !slices.Equal(got, []string{"true", "false", "false"}) {
		t.Errorf("permitted is %v\n%s", got, actions.body)
	}
	a.get("/v1/instances/"+id, as(token)...).want(http.StatusOK).wantAt("actions", `["add","set","stop"]`)
	a.fire(id, "add", `{"payload": {"by": 1}}`, as(token)...).want(http.StatusOK)
	a.post("/v1/workflows/mine/keys/k/actions/add", newKey(), `{"payload": {"by": 1}}`, as(token)...).want(http.StatusOK)
	for _, target := range []string{"/v1/instances/" + id + "/actions/stop", "/v1/workflows/mine/keys/k/actions/stop"} {
		a.post(target, newKey(), "", as(token)...).want(http.StatusForbidden, "forbidden")
		a.post(target+"?dry_run=true", "", "", as(token)...).want(http.StatusForbidden, "forbidden")
	}
	batch := a.post("/v1/batch", "", fmt.Sprintf(`{"commands": [
		{"op": "fire", "instance_id": %[1]q, "event": "stop", "key": "a"},
		{"op": "fire", "workflow": "mine", "business_key": "k", "event": "stop", "key": "b"},
		{"op": "fire", "workflow": "mine", "business_key": "new", "event": "add", "start": {}, "key": "c"},
		{"op": "create", "workflow": "mine", "key": "d"},
		{"op": "fire", "instance_id": %[1]q, "event": "add", "payload": {"by": 1}, "key": "e"}
	]}`, id), as(token)...).want(http.StatusOK)
	if got := batch.each("results", "status"); !slices.Equal(got, []string{"403", "403", "403", "403", "200"}) {
		t.Errorf("the results are %v\n%s", got, batch.body)
	}
	// A fire that may create needs both scopes, for the workflow.
	start := func(token string) answer {
		return a.post("/v1/workflows/mine/keys/new/actions/add", newKey(), `{"payload": {"by": 1}, "start": {"context": {"sum": 0}}}`, as(token)...)
	}
	start(token).want(http.StatusForbidden, "forbidden")
	a.do(http.MethodPut, "/v1/roles/maker", `{"scopes": ["create"], "workflows": ["theirs"]}`, as("root", "default")...).want(http.StatusCreated)
	start(a.token("default", `{"subject": "max", "scopes": ["fire"], "roles": ["maker"]}`)).want(http.StatusForbidden, "forbidden")
	start(a.token("default", `{"subject": "may", "scopes": ["fire", "create"]}`)).want(http.StatusCreated)
}

// A stream of the tenant has the steps of the workflows that the caller may reach.
func TestBorderOfStreams(t *testing.T) {
	t.Parallel()
	a := guard(startLive(t, withTokens(httpapi.Config{})))
	token := a.token("default", `{"subject": "bea", "workflows": ["mine"], "scopes": ["read"]}`)
	stream, both := a.stream("/v1/events", "", as(token)...), a.stream("/v1/events?workflow=theirs,mine", "", as(token)...)
	foreign := a.stream("/v1/events?workflow=theirs,nowhere", "", as(token)...)
	free := a.stream("/v1/events", "", as("root", "default")...)
	theirs, mine := a.create("theirs", "", as("root", "default")...), a.create("mine", "", as("root", "default")...)
	a.fire(theirs, "stop", "", as("root", "default")...).want(http.StatusOK)
	a.fire(mine, "stop", "", as("root", "default")...).want(http.StatusOK)
	free.want("created 1 ON", "created 1 ON", "transition 2 OFF", "transition 2 OFF")
	for _, s := range []*streamed{stream, both} {
		for range 2 {
			e, _ := s.next()
			if id, _, _ := e.step(t); id != mine {
				t.Errorf("the stream has a step of %s", id)
			}
		}
	}
	// What the stream has passed by now is behind all of these steps.
	timer := time.AfterFunc(bounded.Limit, foreign.cancel)
	defer timer.Stop()
	// bounded: the timer ends the stream
	for foreign.lines.Text() != "id: "+free.id {
		if !foreign.lines.Scan() || strings.HasPrefix(foreign.lines.Text(), "data") {
			t.Fatalf("the stream has %q, %v", foreign.lines.Text(), foreign.lines.Err())
		}
	}
}
