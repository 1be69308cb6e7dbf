package httpapi_test

import (
	"net/http"
	"strings"
	"testing"
)

func TestPrefer(t *testing.T) {
	t.Parallel()
	a := start(t)
	a.register(counter)
	instances := "/v1/workflows/counter/instances"
	for _, minimal := range []string{
		"return=minimal", "Return=Minimal", `return="minimal"`, "respond-async, return=minimal", "return=minimal; x=y",
		"return = minimal", "return=minimal, return=representation",
	} {
		r := a.post(instances, newKey(), "", "Prefer", minimal).want(http.StatusCreated)
		r.wantHeader("Preference-Applied", "return=minimal").wantHeader("ETag", `"1"`).wantHeader("Content-Type", "")
		if len(r.body) > 0 {
			t.Errorf("%s has the body %s", minimal, r.body)
		}
		a.post(r.header.Get("Location")+"/actions/stop", newKey(), "", "Prefer", minimal).want(http.StatusNoContent).
			wantHeader("Preference-Applied", "return=minimal").wantHeader("ETag", `"2"`)
	}
	for prefer, applied := range map[string]string{
		"return=representation": "return=representation", "wait=5": "", "return=nonsense": "", "": "",
		"return=representation, return=minimal": "return=representation",
	} {
		r := a.post(instances, newKey(), "", "Prefer", prefer).want(http.StatusCreated).wantHeader("Preference-Applied", applied)
		a.fire(r.at("id"), "stop", "", "Prefer", prefer).want(http.StatusOK).wantHeader("Preference-Applied", applied).
			wantAt("state", "OFF")
	}
	// Two header lines form one list.
	a.post(instances, newKey(), "", "Prefer", "wait=1", "Prefer", "return=minimal").want(http.StatusCreated).
		wantHeader("Preference-Applied", "return=minimal")
	// A problem is sent in full.
	a.post("/v1/workflows/none/instances", newKey(), "", "Prefer", "return=minimal").want(http.StatusNotFound, "workflow-not-found").
		wantHeader("Preference-Applied", "")
}

func TestRequestHeaders(t *testing.T) {
	t.Parallel()
	a := start(t)
	a.register(counter)
	a.get("/healthz", "X-Request-ID", "mine-1").wantHeader("X-Request-ID", "mine-1")
	a.get("/v1/nothing", "X-Request-ID", "mine-2").want(http.StatusNotFound).wantAt("request_id", "mine-2")
	a.do(http.MethodOptions, "/v1/workflows", "", "X-Request-ID", "mine-3").wantHeader("X-Request-ID", "mine-3")
	for _, bad := range []string{"", "a b", strings.Repeat("x", 129), "ä"} {
		if got := a.get("/healthz", "X-Request-ID", bad).header.Get("X-Request-ID"); got == bad || len(got) != 36 {
			t.Errorf("the request id %q became %q", bad, got)
		}
	}
	first, second := a.get("/healthz").header.Get("X-Request-ID"), a.get("/healthz").header.Get("X-Request-ID")
	if first == second {
		t.Error("two requests have one id")
	}
	for _, bad := range []string{"", "a b", "ä", strings.Repeat("x", 256)} {
		a.post("/v1/workflows/counter/instances", newKey(), "", "X-Correlation-ID", bad).
			want(http.StatusBadRequest, "malformed-request").wantAt("errors.0.parameter", "X-Correlation-ID")
	}
	for _, bad := range []string{strings.Repeat("ä", 256), "\xff"} {
		a.post("/v1/workflows/counter/instances", newKey(), "", "X-Actor", bad).
			want(http.StatusBadRequest, "malformed-request").wantAt("errors.0.parameter", "X-Actor")
	}
	a.post("/v1/workflows/counter/instances", newKey(), "", "X-Actor", strings.Repeat("ä", 255)).want(http.StatusCreated)
}
