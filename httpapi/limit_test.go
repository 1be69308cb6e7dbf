package httpapi_test

import (
	"net/http"
	"testing"

	"github.com/pawl-fsm/pawl/httpapi"
)

func TestRateLimit(t *testing.T) {
	t.Parallel()
	a := startWith(t, setup{http: httpapi.Config{RateLimit: 0.0001, Tokens: []httpapi.Token{
		{SHA256: sum("one"), Subject: "one"}, {SHA256: sum("two"), Subject: "two"},
	}}})
	one, two := []string{"Authorization", "Bearer one"}, []string{"Authorization", "Bearer two"}
	a.get("/v1/workflows", one...).want(http.StatusOK)
	a.get("/v1/workflows", one...).want(http.StatusTooManyRequests, "too-many-requests").wantHeader("Retry-After", "1")
	a.get("/v1/workflows", two...).want(http.StatusOK) // Each subject has a limit of its own.
	a.get("/v1/workflows").want(http.StatusUnauthorized)
	for range 3 { // Public operations have no limit.
		a.get("/healthz").want(http.StatusOK)
	}
	open := a.another(setup{http: httpapi.Config{RateLimit: 0.0001}})
	open.get("/v1/workflows", "X-Actor", "a").want(http.StatusOK)
	open.get("/v1/workflows", "X-Actor", "b").want(http.StatusTooManyRequests, "too-many-requests")
}
