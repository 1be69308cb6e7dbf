package httpapi_test

import (
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"strings"
	"testing"

	"github.com/pawl-fsm/pawl/httpapi"
)

// sum is a token's SHA-256, as a Token wants it.
func sum(token string) string {
	s := sha256.Sum256([]byte(token))
	return hex.EncodeToString(s[:])
}

func TestTokens(t *testing.T) {
	t.Parallel()
	a := startWith(t, setup{http: httpapi.Config{Tokens: []httpapi.Token{
		{SHA256: sum("reader"), Subject: "rita", Scopes: []httpapi.Scope{httpapi.ScopeRead}},
		{SHA256: sum("writer"), Subject: "wilma"},
		{SHA256: strings.ToUpper(sum("deployer")), Subject: "dora", Scopes: []httpapi.Scope{httpapi.ScopeAdmin, httpapi.ScopeRead}},
		{SHA256: sum("stranger"), Subject: "sam", Tenant: "elsewhere"},
	}}})
	as := func(token string) []string { return []string{"Authorization", "Bearer " + token, "X-Actor", "mallory"} }
	definition := func(token string) answer { return a.do(http.MethodPut, "/v1/workflows/counter", counter, as(token)...) }
	instances := "/v1/workflows/counter/instances"

	for _, headers := range [][]string{
		nil,
		{"Authorization", ""},
		{"Authorization", "Bearer"},
		{"Authorization", "Bearer "},
		{"Authorization", "Bearer nonsense"},
		{"Authorization", "Bearer " + sum("writer")},
		{"Authorization", "Basic d3JpdGVy"},
		{"Authorization", "writer"},
		{"X-Actor", "rita"},
	} {
		for _, target := range []string{"/v1/workflows", "/v1/instances", "/v1/instances/nobody?version=x"} {
			a.get(target, headers...).want(http.StatusUnauthorized, "unauthenticated").wantHeader("WWW-Authenticate", `Bearer realm="pawl"`)
		}
		a.post("/v1/batch", "", "nonsense", headers...).want(http.StatusUnauthorized, "unauthenticated")
	}
	// Claim 10: 401 before anything of the request is looked at.
	a.post("/v1/instances/nobody/actions/go", newKey(), "", "If-Match", `"9"`).want(http.StatusUnauthorized, "unauthenticated")
	for _, open := range []string{"/healthz", "/readyz", "/openapi.yaml", "/problems/forbidden"} {
		a.get(open).want(http.StatusOK)
	}

	definition("reader").want(http.StatusForbidden, "forbidden")
	definition("writer").want(http.StatusForbidden, "forbidden")
	definition("deployer").want(http.StatusCreated).wantAt("created_by", "dora")
	a.post(instances, newKey(), "", as("reader")...).want(http.StatusForbidden, "forbidden")
	a.post(instances, newKey(), "", as("deployer")...).want(http.StatusForbidden, "forbidden")
	a.do(http.MethodPost, "/v1/batch", "{}", as("reader")...).want(http.StatusForbidden, "forbidden")
	key := newKey()
	created := a.post(instances, key, "", as("writer")...).want(http.StatusCreated)
	id := created.at("id")
	a.get("/v1/instances/"+id, as("reader")...).want(http.StatusOK)
	a.post("/v1/instances/"+id+"/actions/stop", newKey(), "", "Authorization", "bearer writer").want(http.StatusOK)
	a.get("/v1/instances/"+id+"/history", as("reader")...).wantAt("items.0.actor", "wilma", "items.1.actor", "wilma")

	// Another tenant's token sees nothing of it, and its keys are its own.
	a.get("/v1/workflows/counter", as("stranger")...).want(http.StatusOK)
	a.get("/v1/instances/"+id, as("stranger")...).want(http.StatusNotFound, "instance-not-found")
	a.get("/v1/instances", as("stranger")...).want(http.StatusOK).wantAt("items", "[]")
	theirs := a.post(instances, key, "", as("stranger")...).want(http.StatusCreated).wantHeader("Idempotent-Replayed", "")
	if theirs.at("id") == id {
		t.Error("two tenants share an instance")
	}
	a.get("/v1/instances", as("reader")...).wantAt("items.0.id", id, "items.1", missing)
}

func TestTokenFiles(t *testing.T) {
	t.Parallel()
	tokens, err := httpapi.ParseTokens([]byte(`[{"sha256": "` + sum("x") + `", "subject": "s", "tenant": "t", "scopes": ["read"]}]`))
	if err != nil || len(tokens) != 1 || tokens[0].Subject != "s" || tokens[0].Tenant != "t" || tokens[0].Scopes[0] != httpapi.ScopeRead {
		t.Errorf("got %v, %v", tokens, err)
	}
	for _, bad := range []string{
		``, `{}`, `[{}]`, `[{"sha256": "x", "subject": "s"}]`, `[{"sha256": "` + sum("x") + `"}]`,
		`[{"sha256": "` + sum("x") + `", "subject": "s", "scopes": ["root"]}]`,
		`[{"sha256": "` + sum("x") + `", "subject": "s", "more": 1}]`,
	} {
		if tokens, err := httpapi.ParseTokens([]byte(bad)); err == nil {
			t.Errorf("%s: got %v", bad, tokens)
		}
	}
	if _, err := httpapi.New(httpapi.Services{}, httpapi.Config{Tokens: []httpapi.Token{{SHA256: "x"}}}); err == nil {
		t.Error("a bad token is accepted")
	}
}

func TestRateLimit(t *testing.T) {
	t.Parallel()
	a := startWith(t, setup{http: httpapi.Config{RateLimit: 0.0001, Tokens: []httpapi.Token{
		{SHA256: sum("one"), Subject: "one"}, {SHA256: sum("two"), Subject: "two"},
	}}})
	one, two := []string{"Authorization", "Bearer one"}, []string{"Authorization", "Bearer two"}
	a.get("/v1/workflows", one...).want(http.StatusOK)
	a.get("/v1/workflows", one...).want(http.StatusTooManyRequests, "too-many-requests").wantHeader("Retry-After", "1")
	a.get("/v1/workflows", two...).want(http.StatusOK) // Each subject has its own.
	a.get("/v1/workflows").want(http.StatusUnauthorized)
	for range 3 { // Probes are not counted.
		a.get("/healthz").want(http.StatusOK)
	}
	open := a.another(setup{http: httpapi.Config{RateLimit: 0.0001}})
	open.get("/v1/workflows", "X-Actor", "a").want(http.StatusOK)
	open.get("/v1/workflows", "X-Actor", "b").want(http.StatusTooManyRequests, "too-many-requests")
}

// Every operation of the API asks for a token, for its scope, for no more than the rate,
// and for a media type that it has.
func TestEveryOperationRefuses(t *testing.T) {
	t.Parallel()
	none := httpapi.Token{SHA256: sum("none"), Subject: "nobody"}
	limited := startWith(t, setup{http: httpapi.Config{RateLimit: 0.0001}})
	limited.get("/v1/workflows").want(http.StatusOK)
	for path, item := range contract().Paths.Map() {
		target := strings.NewReplacer("{name}", "w", "{version}", "1", "{id}", "i", "{event}", "e").Replace(path)
		for method, operation := range item.Operations() {
			if !strings.HasPrefix(path, "/v1/") {
				continue
			}
			none.Scopes = []httpapi.Scope{httpapi.ScopeRead}
			if method == http.MethodGet || operation.OperationID == "simulateWorkflow" || operation.OperationID == "backtestWorkflow" {
				none.Scopes = []httpapi.Scope{httpapi.ScopeWrite, httpapi.ScopeAdmin}
			}
			t.Run(method+" "+path, func(t *testing.T) {
				guarded := limited.another(setup{http: httpapi.Config{Tokens: []httpapi.Token{none}}}).on(t)
				guarded.do(method, target, "").want(http.StatusUnauthorized, "unauthenticated")
				guarded.do(method, target, "", "Authorization", "Bearer none").want(http.StatusForbidden, "forbidden")
				limited.on(t).do(method, target, "").want(http.StatusTooManyRequests, "too-many-requests")
				if operation.Responses.Status(http.StatusNotAcceptable) == nil {
					return // It answers with nothing but a status.
				}
				open := limited.another(setup{}).on(t)
				open.do(method, target, "", "Accept", "image/png").want(http.StatusNotAcceptable, "not-acceptable")
			})
		}
	}
}
