package httpapi_test

import (
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"strings"
	"testing"

	"github.com/pawl-fsm/pawl/httpapi"
)

func TestPrefer(t *testing.T) {
	t.Parallel()
	a := start(t)
	a.register(counter)
	instances := "/v1/workflows/counter/instances"
	for _, minimal := range []string{
		"return=minimal", "Return=Minimal", `return="minimal"`, "respond-async, return=minimal", "return=minimal; x=y",
		"return = minimal", "return=minimal, return=representation", `x="return=representation, \"", return=minimal`,
		`x="a;b,c"; y="d,e" , return="minimal"; z="1,2"`, `return="min\imal"`, ",, return=minimal",
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
		"return=representation, return=minimal": "return=representation", `x="a, return=minimal"`: "", `x="\", return=minimal`: "",
		`return="minimal`: "",
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

// A header of which one value is meant is refused if it is sent twice, whatever the values, and is
// named. A second traceparent is ignored, as W3C Trace Context says, and so is a second request id.
func TestRepeatedHeaders(t *testing.T) {
	t.Parallel()
	a := start(t)
	a.register(counter)
	token := "Bearer secret"
	sum := sha256.Sum256([]byte("secret"))
	guarded := a.another(setup{http: httpapi.Config{Tokens: []httpapi.Token{{SHA256: hex.EncodeToString(sum[:]), Subject: "ada", Scopes: tenantScopes}}}})
	instances := "/v1/workflows/counter/instances"
	for _, c := range []struct{ name, value string }{
		{"Content-Type", "application/json"},
		{"X-Actor", "ada"},
		{"X-Correlation-ID", "order-7"},
		{"Last-Event-ID", "0"},
	} {
		for _, second := range []string{c.value, c.value + "2", " "} {
			for _, api := range []*api{a, guarded} {
				headers := []string{c.name, c.value, c.name, second}
				if api == guarded {
					headers = append(headers, "Authorization", token)
				}
				api.post(instances, newKey(), `{}`, headers...).want(http.StatusBadRequest, "malformed-request").
					wantAt("errors.0.parameter", c.name, "errors.0.detail", "must be sent once")
				api.get("/v1/events?from=start", headers...).want(http.StatusBadRequest, "malformed-request").wantAt("errors.0.parameter", c.name)
			}
		}
	}
	for _, names := range [][2]string{
		{"Idempotency-Key", "Idempotency-Key"}, {"X-Idempotency-Key", "X-Idempotency-Key"}, {"Idempotency-Key", "X-Idempotency-Key"},
	} {
		a.post(instances, "", `{}`, names[0], "k", names[1], "k").want(http.StatusBadRequest, "idempotency-key-invalid")
	}
	if n := a.count("pawl.instance"); n != 0 {
		t.Errorf("%d instances were created", n)
	}

	first, second := "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "00-4bf92f3577b34da6a3ce929d0e0e4737-00f067aa0ba902b7-01"
	id := a.create("counter", "", "traceparent", first, "traceparent", second)
	a.get("/v1/instances/"+id+"/history").wantAt("items.0.traceparent", "null")
	if got := a.get("/v1/workflows", "X-Request-ID", "mine", "X-Request-ID", "mine").header.Get("X-Request-ID"); len(got) != 36 {
		t.Errorf("a repeated request id became %q", got)
	}
	// A probe reads none of them.
	a.get("/healthz", "Authorization", "a", "Authorization", "b").want(http.StatusOK)
}
