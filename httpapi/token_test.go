package httpapi_test

import (
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/httpapi"
)

// tenantScopes are all scopes that a tenant's token may have.
var tenantScopes = slices.DeleteFunc(httpapi.Scopes(), func(s httpapi.Scope) bool { return s == httpapi.ScopeDeploy })

// sum returns the digest of a token in the form of Token.SHA256.
func sum(token string) string {
	s := sha256.Sum256([]byte(token))
	return hex.EncodeToString(s[:])
}

func TestTokens(t *testing.T) {
	t.Parallel()
	a := startWith(t, setup{http: httpapi.Config{Tokens: []httpapi.Token{
		{SHA256: sum("reader"), Subject: "rita", Scopes: []httpapi.Scope{httpapi.ScopeRead}},
		{SHA256: sum("writer"), Subject: "wilma"},
		{SHA256: strings.ToUpper(sum("deployer")), Subject: "dora", Tenant: fsm.Deployment, Scopes: []httpapi.Scope{httpapi.ScopeDeploy}},
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
		{"Authorization", "Bearer  writer"},
		{"Authorization", "Bearer writer, Bearer reader"},
		{"Authorization", "Bearer writer", "Authorization", "Bearer writer"},
		{"Authorization", "Basic d3JpdGVy", "Authorization", "Bearer writer"},
		{"X-Actor", "rita"},
	} {
		for _, target := range []string{"/v1/workflows", "/v1/instances", "/v1/instances/nobody?version=x"} {
			a.get(target, headers...).want(http.StatusUnauthorized, "unauthenticated").wantHeader("WWW-Authenticate", `Bearer realm="pawl"`)
		}
		a.post("/v1/batch", "", "nonsense", headers...).want(http.StatusUnauthorized, "unauthenticated")
	}
	// The token is checked before the resource, the key and If-Match.
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

	// A token of another tenant sees none of this, and has idempotency keys of its own.
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
		`[]`, `null`, `[{"sha256": "` + sum("") + `", "subject": "s"}]`,
		`[{"sha256": "` + sum("x") + `", "subject": "s"}, {"sha256": "` + strings.ToUpper(sum("x")) + `", "subject": "t"}]`,
		`[{"sha256": "` + sum("x") + `", "subject": "s", "scopes": ["write"]}]`,
		`[{"sha256": "` + sum("x") + `", "subject": "s", "scopes": ["read", "admin"]}]`,
		`[{"sha256": "` + sum("x") + `", "subject": "s", "scopes": ["deploy"]}]`,
		`[{"sha256": "` + sum("x") + `", "subject": "s", "tenant": "` + strings.Repeat("t", 64) + `"}]`,
	} {
		if tokens, err := httpapi.ParseTokens([]byte(bad)); err == nil {
			t.Errorf("%s: got %v", bad, tokens)
		}
	}
	if _, err := httpapi.New(httpapi.Services{}, httpapi.Config{Tokens: []httpapi.Token{{SHA256: "x"}}}); err == nil {
		t.Error("a bad token is accepted")
	}
}
