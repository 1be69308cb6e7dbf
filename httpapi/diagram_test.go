package httpapi_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/pawl-fsm/pawl/internal/bounded"
)

const drawn = "/v1/workflows/booking/diagram"

func TestDiagram(t *testing.T) {
	t.Parallel()
	a := start(t)
	a.register(booking)
	id := a.create("booking", `{"context": {"price": 1}}`)
	a.fire(id, "cancel", "").want(http.StatusOK)
	a.do(http.MethodPut, "/v1/workflows/booking", strings.Replace(booking, `"30m"`, `"1h"`, 1)).want(http.StatusCreated)
	mermaid := func(r answer, want ...string) answer {
		t.Helper()
		r.want(http.StatusOK).wantHeader("Content-Type", "text/vnd.mermaid").wantHeader("Content-Length", fmt.Sprint(len(r.body)))
		for _, w := range append(want, "stateDiagram-v2\n") {
			if !strings.Contains(string(r.body), w) {
				t.Errorf("%s: there is no %q in\n%s", r.request, w, r.body)
			}
		}
		return r
	}

	plain := mermaid(a.get(drawn), "ttl 1h\n")
	for _, accept := range []string{"*/*", "text/vnd.graphviz;q=0.5, text/*", "text/vnd.graphviz;q=0.1, */*;q=0.9", "text/vnd.graphviz, text/vnd.mermaid"} {
		mermaid(a.get(drawn, "Accept", accept)).wantHeader("Vary", "Accept")
	}
	mermaid(a.get(drawn+"?version=2&format=mermaid", "Accept", "text/*;q=0.1"), string(plain.body))
	mermaid(a.get(drawn+"?version=1"), "ttl 30m\n")
	if strings.ContainsAny(string(plain.body), "✓") {
		t.Errorf("there is a path in\n%s", plain.body)
	}
	a.do(http.MethodHead, drawn, "").want(http.StatusOK)

	// The diagram shows the version of the instance.
	path := mermaid(a.get(drawn+"?instance="+id), "[*] --> s_QUOTED: ✓1\n", "s_QUOTED --> s_CANCELLED: cancel ✓2\n",
		"ttl 30m\n", "class s_QUOTED visited\n", "class s_CANCELLED current\n")
	mermaid(a.get(drawn+"?version=1&instance="+id), string(path.body))
	a.get(drawn+"?version=2&instance="+id).want(http.StatusBadRequest, "malformed-request").wantAt("errors.0.parameter", "version")

	// The parameter chooses the format, else Accept does.
	for _, r := range []answer{
		a.get(drawn + "?format=dot"), a.get(drawn, "Accept", "text/vnd.graphviz"), a.get(drawn+"?format=dot", "Accept", "*/*"),
		a.get(drawn, "Accept", "text/vnd.mermaid;q=0, text/*"), a.get(drawn, "Accept", "text/vnd.graphviz;q=0.9, */*;q=0.1"),
		a.get(drawn, "Accept", "text/vnd.mermaid;q=0.2, text/vnd.graphviz;q=0.3"), a.get(drawn, "Accept", "text/vnd.mermaid;q=0.2, text/*"),
	} {
		r.want(http.StatusOK).wantHeader("Content-Type", "text/vnd.graphviz").wantHeader("Vary", "Accept")
		if !strings.HasPrefix(string(r.body), `digraph "booking" {`) {
			t.Errorf("%s: got %s", r.request, r.body)
		}
	}
	a.get(drawn+"?format=dot", "Accept", "text/vnd.mermaid").want(http.StatusNotAcceptable, "not-acceptable").
		wantAt("detail", "Accept must admit text/vnd.graphviz")
	a.get(drawn, "Accept", "application/json").want(http.StatusNotAcceptable, "not-acceptable").wantHeader("Vary", "Accept").
		wantAt("detail", "Accept must admit text/vnd.graphviz or text/vnd.mermaid")
	a.get(drawn, "Accept", "text/vnd.mermaid;q=0, text/vnd.graphviz;q=0, */*").want(http.StatusNotAcceptable, "not-acceptable")
	a.get("/v1/workflows/booking").wantHeader("Vary", "") // There is one type, whatever Accept says.
	a.get(drawn+"?format=svg").want(http.StatusBadRequest, "malformed-request").wantAt("errors.0.parameter", "format")

	for _, target := range []string{"/v1/workflows/nobody/diagram", drawn + "?version=3", drawn + "?version=0", "/v1/workflows/nobody/diagram?instance=" + id} {
		a.get(target).want(http.StatusNotFound, "workflow-not-found")
	}
	a.register(counter)
	other := a.create("counter", "")
	for _, instance := range []string{other, "nonsense", "0195a2f4-7c31-7e0b-9d52-6f1a3b8c4d5e"} {
		a.get(drawn+"?instance="+instance).want(http.StatusNotFound, "instance-not-found")
	}
	a.get(drawn+"?instance=").want(http.StatusBadRequest, "malformed-request")
}

// A long history is read in pages and cut off. The present state is marked nevertheless.
func TestDiagramOfALongPath(t *testing.T) {
	t.Parallel()
	a := start(t)
	a.register(counter)
	id := a.create("counter", "")
	commands := make([]string, 1000)
	for i := range commands {
		commands[i] = fmt.Sprintf(`{"op": "fire", "key": %q, "instance_id": %q, "event": "set"}`, newKey(), id)
	}
	a.do(http.MethodPost, "/v1/batch", `{"commands": [`+strings.Join(commands, ",")+`]}`).want(http.StatusOK)
	a.fire(id, "stop", "").want(http.StatusOK).wantAt("version", "1002")
	r := a.get("/v1/workflows/counter/diagram?instance=" + id).want(http.StatusOK)
	for _, want := range []string{"s_ON --> s_ON: set ✓2,3,4… 999 times\n", "s_ON --> s_OFF: stop\n", "class s_OFF current"} {
		if !strings.Contains(string(r.body), want) {
			t.Errorf("there is no %q in\n%s", want, r.body)
		}
	}
}

// A workflow that was registered through SQL, and that the service would refuse, has a diagram
// too.
func TestDiagramOfWhatSQLRegistered(t *testing.T) {
	t.Parallel()
	a := start(t)
	bounded.Exec(a.t, a.pool, `select pawl.register_workflow('{"name": "island", "initial": "A", "states": {
		"A": {"on": {"go": [{"target": "B"}]}}, "B": {"type": "final"}, "LOST": {}}}')`)
	r := a.get("/v1/workflows/island/diagram").want(http.StatusOK)
	if !strings.Contains(string(r.body), `state "LOST" as s_LOST`) {
		t.Errorf("got\n%s", r.body)
	}
}
