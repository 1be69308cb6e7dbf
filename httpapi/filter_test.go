package httpapi_test

import (
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/pawl-fsm/pawl/httpapi"
)

// checkout has a compound state, and a state whose name merely begins like the compound's.
const checkout = `{
	"name": "checkout", "initial": "CART", "states": {
		"CART": {"on": {"begin": "CHECKOUT"}},
		"CHECKOUT": {
			"initial": "ADDRESS",
			"states": {"ADDRESS": {"on": {"next": "PAYMENT"}}, "PAYMENT": {}},
			"on": {"abandon": "CHECKOUTS"}
		},
		"CHECKOUTS": {"on": {"stop": "DONE"}},
		"DONE": {"type": "final"}
	}
}`

// A stream's filter takes the name of a compound state for all states within, as a webhook's
// does.
func TestStreamsFilterByCompoundStates(t *testing.T) {
	t.Parallel()
	a := live(t, httpapi.Config{})
	a.register(checkout)
	id := a.create("checkout", "")
	for _, event := range []string{"begin", "next", "abandon", "stop"} {
		a.fire(id, event, "").want(http.StatusOK)
	}
	within := []string{"transition 2 CHECKOUT.ADDRESS", "transition 3 CHECKOUT.PAYMENT"}
	for states, want := range map[string][]string{
		"CHECKOUT":              within,
		"CHECKOUT.PAYMENT":      within[1:],
		"CHECKOUTS":             {"transition 4 CHECKOUTS"},
		"CART,CHECKOUT.ADDRESS": {"created 1 CART", within[0]},
		"CHECKOUTS,CHECKOUT":    {within[0], within[1], "transition 4 CHECKOUTS"},
	} {
		// The last step is chosen too. It shows that no other step came before it.
		query := "?from=start&state=DONE," + states
		want = append(slices.Clone(want), "transition 5 DONE")
		one := a.stream("/v1/instances/"+id+"/events"+query, "")
		one.want(want...)
		one.wantEnd()
		a.stream("/v1/events"+query, "").want(want...)
	}
	a.get("/v1/instances/" + id + "/events?from=start&state=CHECK").want(http.StatusNoContent)
	a.get("/v1/instances/" + id + "/events?from=start&state=CHECKOUT.").want(http.StatusNoContent)
}

// The longest state path has 255 characters; every filter on states takes it.
func TestFiltersTakeTheLongestStatePath(t *testing.T) {
	t.Parallel()
	a := live(t, httpapi.Config{})
	names := make([]string, 4)
	for i := range names {
		names[i] = strings.Repeat(string(rune('A'+i)), 63)
	}
	path := strings.Join(names, ".")
	if len(path) != 255 {
		t.Fatalf("the path has %d characters", len(path))
	}
	nested := `{"on": {"stop": "END"}}`
	for _, name := range slices.Backward(names[1:]) {
		nested = `{"initial": "` + name + `", "states": {"` + name + `": ` + nested + `}}`
	}
	definition := `{"name": "deep", "initial": "` + names[0] + `", "states": {"` + names[0] + `": ` + nested + `, "END": {"type": "final"}}}`
	a.register(definition)
	id := a.create("deep", "")
	a.get("/v1/instances/"+id).wantAt("state", path)

	if got := a.get("/v1/instances?state="+path).want(http.StatusOK).each("items", "id"); !slices.Equal(got, []string{id}) {
		t.Errorf("the list has %v", got)
	}
	a.get("/v1/instances?state="+path+"x").want(http.StatusBadRequest, "malformed-request").wantAt("errors.0.parameter", "state")
	a.get("/v1/instances/"+id+"?until="+path).want(http.StatusOK).wantAt("id", id)
	a.stream("/v1/events?from=start&state="+path, "").want("created 1 " + path)
	a.stream("/v1/instances/"+id+"/events?from=start&state=x,"+path, "").want("created 1 " + path)
	a.do(http.MethodPost, subscriptions, `{"url": "`+endpoint+`", "filter": {"states": ["`+path+`"]}}`).want(http.StatusCreated).
		wantAt("filter.states.0", path)
	a.do(http.MethodPost, subscriptions, `{"url": "`+endpoint+`", "filter": {"states": ["`+path+`", "`+path+`x"]}}`).
		want(http.StatusBadRequest, "malformed-request").wantAt("errors.0.pointer", "/filter/states/1")

	a.do(http.MethodPut, "/v1/workflows/deep", strings.Replace(definition, `"name"`, `"description": "second", "name"`, 1)).want(http.StatusCreated)
	const migrate = "/v1/workflows/deep/migrate"
	body := func(states string) string { return `{"from": 1, "to": 2, "filter": {"states": [` + states + `]}}` }
	a.do(http.MethodPost, migrate, body(`"END", "`+path+`x"`)).want(http.StatusBadRequest, "malformed-request").
		wantAt("errors.0.pointer", "/filter/states/1", "errors.1", missing)
	a.do(http.MethodPost, migrate, body(`"END", "NOWHERE"`)).want(http.StatusBadRequest, "malformed-request").
		wantAt("errors.0.pointer", "/filter/states/1", "errors.1", missing)
	a.do(http.MethodPost, migrate, body(`"`+path+`"`)).want(http.StatusOK).wantAt("migrated", "1", "moves.0.from", path)
	a.get("/v1/instances/"+id).wantAt("workflow_version", "2", "state", path)
}
