package httpapi_test

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/pawl-fsm/pawl/db"
	"github.com/pawl-fsm/pawl/db/dbtest"
)

func TestRegister(t *testing.T) {
	t.Parallel()
	a := start(t)
	put := func(definition string, headers ...string) answer {
		return a.do(http.MethodPut, "/v1/workflows/booking", definition, headers...)
	}
	first := put(booking, "X-Actor", "deployer").want(http.StatusCreated).wantHeader("Location", "/v1/workflows/booking")
	first.wantAt("name", "booking", "version", "1", "created_by", "deployer",
		"definition.states.QUOTED.on.cancel", `[{"target":"CANCELLED"}]`, "definition.ttl.after", "30m")

	// The same content in another form is no new version.
	again := put(booking, "X-Actor", "somebody else").want(http.StatusOK).wantHeader("Location", "")
	if string(again.body) != string(first.body) {
		t.Errorf("got %s\nwant %s", again.body, first.body)
	}
	put(first.at("definition")).want(http.StatusOK).wantAt("version", "1")
	put(strings.NewReplacer(`"cancel": "CANCELLED"`, `"cancel": [{"target": "CANCELLED"}]`, `"30m"`, `"1800s"`, `"name": "booking",`, ``).Replace(booking)).
		want(http.StatusOK).wantAt("version", "1")
	put(strings.Replace(booking, `"initial"`, `"version": 1, "initial"`, 1)).want(http.StatusOK).wantAt("version", "1")

	// Other content is checked in a dry run, then registered.
	next := strings.Replace(booking, `"30m"`, `"1h"`, 1)
	dry := a.do(http.MethodPut, "/v1/workflows/booking?dry_run=true", next).want(http.StatusOK)
	dry.wantAt("version", "2", "created_at", "null", "created_by", "null", "definition.ttl.after", "1h")
	a.get("/v1/workflows/booking").wantAt("version", "1")
	a.do(http.MethodPut, "/v1/workflows/booking?dry_run=true", booking).want(http.StatusOK).
		wantAt("version", "1", "created_by", "deployer", "created_at", first.at("created_at"))
	id := a.create("booking", `{"context": {"price": 1}}`)
	put(strings.Replace(next, `"initial"`, `"version": 3, "initial"`, 1)).want(http.StatusConflict, "workflow-conflict").wantAt("version", "1")
	second := put(strings.Replace(next, `"initial"`, `"version": 2, "initial"`, 1)).want(http.StatusCreated).wantAt("version", "2")
	if dry.at("checksum") != second.at("checksum") || first.at("checksum") == second.at("checksum") {
		t.Errorf("the checksums are %s, %s and, in the dry run, %s", first.at("checksum"), second.at("checksum"), dry.at("checksum"))
	}
	a.get("/v1/workflows/booking").want(http.StatusOK).wantAt("version", "2", "created_by", "anonymous")
	a.get("/v1/workflows/booking/versions/1").want(http.StatusOK).wantAt("version", "1", "checksum", first.at("checksum"))
	a.get("/v1/workflows/booking/versions/2").want(http.StatusOK).wantAt("version", "2")
	a.get("/v1/workflows/booking/versions/3").want(http.StatusNotFound, "workflow-not-found")
	a.get("/v1/workflows").wantAt("items.0.version", "2", "items.1", missing, "next_cursor", "null")

	// An instance keeps its version.
	a.get("/v1/instances/"+id).wantAt("workflow_version", "1")
	a.get("/v1/instances/"+a.create("booking", `{"context": {"price": 1}}`)).wantAt("workflow_version", "2")

	// The content of an older version becomes a new version.
	put(booking).want(http.StatusCreated).wantAt("version", "3", "checksum", first.at("checksum"))

	a.do(http.MethodPut, "/v1/workflows/brand-new", strings.Replace(counter, `"name": "counter"`, `"version": 4`, 1)).
		want(http.StatusConflict, "workflow-conflict").wantAt("version", missing)
	a.get("/v1/workflows/brand-new").want(http.StatusNotFound, "workflow-not-found")
}

// Concurrent registrations of the same content make one version.
func TestConcurrentRegister(t *testing.T) {
	t.Parallel()
	a := start(t)
	b := a.another(setup{})
	created := 0
	for _, r := range together(t, 12, func(i int) answer {
		return []*api{a, b}[i%2].do(http.MethodPut, "/v1/workflows/counter", counter)
	}) {
		r.wantAt("version", "1")
		if r.status == http.StatusCreated {
			created++
		}
	}
	if created != 1 {
		t.Errorf("%d answers are 201, want 1", created)
	}
}

// All faults of a definition are listed, each with its JSON Pointer.
func TestInvalidDefinition(t *testing.T) {
	t.Parallel()
	a := start(t)
	r := a.do(http.MethodPut, "/v1/workflows/faulty", `{
		"name": "other", "version": 0, "description": 7, "initial": "NOWHERE", "colour": "red",
		"ttl": {"after": "soon", "target": "NEVER", "why": 1}, "require_if_match": "yes",
		"context_schema": {"type": "nonsense"},
		"states": {
			"1st": {"type": "final"},
			"A": {"on": {
				"bad event": "DONE",
				"gone": "GONE",
				"none": [],
				"kind": 7,
				"path": {"target": "DONE", "guard": "$.x ==", "assign": {"y": "$[", "": "$.x"}},
				"late": [{"target": "DONE"}, {"target": "DONE"}],
				"file": {"target": "DONE", "payload_schema": {"$ref": "file:///etc/passwd"}},
				"more": {"target": "DONE", "when": "now", "assign": "payload"},
				"two/~ways": [{"target": "DONE", "guard": "true", "payload_schema": {}}, {"target": "DONE", "payload_schema": {"type": "object"}}]
			}, "after": {"60s": "DONE", "1m": "DONE", "never": "DONE"}},
			"LOOP": {"on": {"again": "LOOP"}},
			"STUCK": {},
			"DONE": {"type": "final", "outcome": "splendid", "on": {"go": "A"}},
			"KIND": {"type": "parallel"},
			"OPEN": {"outcome": "completed", "on": {"go": "DONE"}},
			"LIST": []
		}
	}`).want(http.StatusUnprocessableEntity, "invalid-definition")
	got := r.each("errors", "pointer")
	for _, want := range []string{
		"/name", "/version", "/description", "/initial", "/colour", "/ttl/after", "/ttl/target", "/ttl/why", "/require_if_match",
		"/context_schema", "/states/1st", "/states/A/on/bad event", "/states/A/on/gone", "/states/A/on/none", "/states/A/on/kind",
		"/states/A/on/path/guard", "/states/A/on/path/assign/y", "/states/A/on/path/assign/", "/states/A/on/late/1",
		"/states/A/on/file/payload_schema", "/states/A/on/more/when", "/states/A/on/more/assign",
		"/states/A/on/two~1~0ways/1/payload_schema", "/states/A/on/two~1~0ways", "/states/A/after/never", "/states/LOOP", "/states/STUCK",
		"/states/DONE/outcome", "/states/DONE/on", "/states/KIND/type", "/states/OPEN/outcome", "/states/LIST",
	} {
		if !slices.Contains(got, want) {
			t.Errorf("no fault at %s", want)
		}
	}
	if !slices.Contains(got, "/states/A/after/60s") && !slices.Contains(got, "/states/A/after/1m") {
		t.Error("no fault at a timeout that is there twice")
	}
	if t.Failed() {
		t.Log(strings.Join(got, "\n"))
	}
	a.get("/v1/workflows/faulty").want(http.StatusNotFound, "workflow-not-found")

	for definition, pointer := range map[string]string{
		`{}`:                             "/initial",
		`{"states": 1}`:                  "/states",
		`{"initial": "A", "states": {}}`: "/states",
		`{"initial": "A", "states": {"A": {"on": {"go": "B"}}, "B": {"on": {"go": "A"}}}}`:                             "/states",
		`{"initial": "A", "states": {"A": {"on": {"go": "B"}}, "B": {"type": "final"}, "C": {"type": "final"}}}`:       "/states/C",
		`{"initial": "A", "context_schema": {"$ref": "http://example.com"}, "states": {"A": {"type": "final"}}}`:       "/context_schema",
		`{"initial": "A", "ttl": {"after": "20000d", "target": "A"}, "states": {"A": {"type": "final"}}}`:              "/ttl/after",
		`{"initial": "A", "states": {"A": {"on": {"go": {"target": "B", "guard": ""}}}, "B": {"type": "final"}}}`:      "/states/A/on/go/guard",
		`{"initial": "A", "states": {"A": {"on": {"go": {"guard": "true"}}}, "B": {"type": "final"}}}`:                 "/states/A/on/go/guard",
		`{"initial": "A", "states": {"A": {"on": {"go": {"target": "B", "assign": ["x"]}}}, "B": {"type": "final"}}}`:  "/states/A/on/go/assign",
		`{"initial": "A", "states": {"A": {"on": {"go": {"target": "B", "guard": "1 = 1"}}}, "B": {"type": "final"}}}`: "/states/A/on/go/guard",
	} {
		for _, query := range []string{"", "?dry_run=true"} {
			r := a.do(http.MethodPut, "/v1/workflows/faulty"+query, definition).want(http.StatusUnprocessableEntity, "invalid-definition")
			if got := r.each("errors", "pointer"); !slices.Contains(got, pointer) {
				t.Errorf("%s: faults at %v, want %s", definition, got, pointer)
			}
		}
	}
	for _, name := range []string{"Upper", "a--b", "-a", "1a", "a.b", strings.Repeat("a", 43), strings.Repeat("a_", 20) + "a", "%C3%A4"} {
		r := a.do(http.MethodPut, "/v1/workflows/"+name, strings.Replace(counter, `"name": "counter",`, ``, 1))
		if r.status != http.StatusUnprocessableEntity || r.at("errors.0.pointer") != "/name" {
			t.Errorf("the name %s gets %d %s", name, r.status, r.body)
		}
	}
	a.do(http.MethodPut, "/v1/workflows/"+strings.Repeat("a", 42), strings.Replace(counter, `"name": "counter",`, ``, 1)).want(http.StatusCreated)
}

func TestDefinitionLimits(t *testing.T) {
	t.Parallel()
	a := start(t)
	chain := func(n int) string {
		var states []string
		for i := range n - 1 {
			states = append(states, fmt.Sprintf(`"S%d": {"on": {"go": "S%d"}}`, i, i+1))
		}
		return fmt.Sprintf(`{"initial": "S0", "states": {%s, "S%d": {"type": "final"}}}`, strings.Join(states, ","), n-1)
	}
	a.do(http.MethodPut, "/v1/workflows/long", chain(500)).want(http.StatusCreated)
	a.do(http.MethodPut, "/v1/workflows/longer", chain(501)).want(http.StatusUnprocessableEntity, "invalid-definition").
		wantAt("errors.0.pointer", "/states")
	limit := 1000
	if err := db.Set(t.Context(), dbtest.DSN(a.pool), db.Settings{DefinitionLimit: &limit}); err != nil {
		t.Fatal(err)
	}
	a.do(http.MethodPut, "/v1/workflows/large", chain(100)).want(http.StatusRequestEntityTooLarge, "too-large")
}

// The problem names the workflow, whichever operation did not find it.
func TestWorkflowNotFoundNamesTheWorkflow(t *testing.T) {
	t.Parallel()
	a := start(t)
	const nobody = "/v1/workflows/nobody"
	for name, r := range map[string]answer{
		"read":         a.get(nobody),
		"read version": a.get(nobody + "/versions/3"),
		"version 0":    a.get(nobody + "/versions/0"),
		"retire":       a.do(http.MethodDelete, nobody+"/versions/3", ""),
		"list":         a.get(nobody + "/instances"),
		"diagram":      a.get(nobody + "/diagram"),
		"create":       a.post(nobody+"/instances", newKey(), ""),
		"simulate":     a.do(http.MethodPost, nobody+"/simulate", `{"events": []}`),
		"back-test":    a.do(http.MethodPost, nobody+"/backtest", `{"version": 3}`),
		"migrate":      a.do(http.MethodPost, nobody+"/migrate", `{"from": 1, "to": 2}`),
	} {
		if r.status != http.StatusNotFound || r.at("code") != "workflow-not-found" || !strings.Contains(r.at("detail"), "nobody") {
			t.Errorf("%s: got %d %s", name, r.status, r.body)
		}
	}
	a.batch(command("create", "workflow", "nobody")).wantAt("results.0.problem.detail", `there is no workflow "nobody"`)
}
