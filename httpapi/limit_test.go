package httpapi_test

import (
	"net/http"
	"testing"

	"github.com/pawl-fsm/pawl/httpapi"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

func TestRateLimit(t *testing.T) {
	t.Parallel()
	a := startWith(t, setup{http: httpapi.Config{RateLimit: 0.0001, Tokens: []httpapi.Token{
		{SHA256: sum("one"), Subject: "one"},
		{SHA256: sum("two"), Subject: "two"},
		{SHA256: sum("three"), Subject: "b c", Tenant: "a"},
		{SHA256: sum("four"), Subject: "c", Tenant: "a b"},
	}}})
	one, two := []string{"Authorization", "Bearer one"}, []string{"Authorization", "Bearer two"}
	a.get("/v1/workflows", one...).want(http.StatusOK)
	a.get("/v1/workflows", one...).want(http.StatusTooManyRequests, "too-many-requests").wantHeader("Retry-After", "1")
	a.get("/v1/workflows", two...).want(http.StatusOK) // Each subject has a limit of its own.
	a.get("/v1/workflows", "Authorization", "Bearer three").want(http.StatusOK)
	a.get("/v1/workflows", "Authorization", "Bearer four").want(http.StatusOK) // Also if names with spaces look alike.
	a.get("/v1/workflows").want(http.StatusUnauthorized)
	for range 3 { // Public operations have no limit.
		a.get("/healthz").want(http.StatusOK)
	}
	open := a.another(setup{http: httpapi.Config{RateLimit: 0.0001}})
	open.get("/v1/workflows", "X-Actor", "a").want(http.StatusOK)
	open.get("/v1/workflows", "X-Actor", "b").want(http.StatusTooManyRequests, "too-many-requests")
}

// The limits of a tenant hold for all of its subjects, from the next request on, and for nobody else.
func TestTenantLimits(t *testing.T) {
	t.Parallel()
	a := startWith(t, setup{http: httpapi.Config{Tokens: []httpapi.Token{
		{SHA256: sum("one"), Subject: "one", Tenant: "few"},
		{SHA256: sum("two"), Subject: "two", Tenant: "few"},
		{SHA256: sum("other"), Subject: "one", Tenant: "many"},
	}}})
	one, two, other := []string{"Authorization", "Bearer one"}, []string{"Authorization", "Bearer two"}, []string{"Authorization", "Bearer other"}
	open := a.another(setup{})
	open.register(`{"name": "simple", "initial": "A", "states": {"A": {"on": {"go": "Z"}}, "Z": {"type": "final"}}}`)
	limit := func(limits string) {
		t.Helper()
		bounded.Exec(t, a.pool, "select pawl.tenant_put('few', $1::jsonb)", limits)
	}
	refused := func(r answer) {
		t.Helper()
		r.want(http.StatusTooManyRequests, "too-many-requests").wantHeader("Retry-After", "1")
	}

	limit(`{"requests_per_second": 0}`)
	refused(a.get("/v1/instances", one...))
	refused(a.get("/v1/instances", two...))
	a.get("/v1/instances", other...).want(http.StatusOK)

	limit(`{"streams": 1}`)
	first := a.stream("/v1/events", "", one...)
	refused(a.get("/v1/events", two...))
	a.stream("/v1/events", "", other...).close()
	first.close()
	bounded.True(t, "a stream may be opened when the first has ended", func() bool {
		r, err := a.try(http.MethodHead, "/v1/events", "", two...)
		return err == nil && r.status == http.StatusOK
	})

	limit(`{"queue": 2}`)
	batch := func(n int) string {
		body := `{"commands": [`
		for i := range n {
			if i > 0 {
				body += ", "
			}
			body += `{"op": "create", "workflow": "simple", "key": "` + newKey() + `"}`
		}
		return body + "]}"
	}
	for path, want := range map[string]string{"results.0.problem.code": "too-many-requests", "results.2.status": "429"} {
		if got := a.do(http.MethodPost, "/v1/batch", batch(3), one...).want(http.StatusOK).at(path); got != want {
			t.Errorf("%s is %s, want %s", path, got, want)
		}
	}
	a.do(http.MethodPost, "/v1/batch", batch(2), one...).want(http.StatusOK)
	a.do(http.MethodPost, "/v1/batch", batch(3), other...).want(http.StatusOK)
	if n := a.count("pawl.instance"); n != 5 {
		t.Errorf("%d instances, want 5", n)
	}
}
