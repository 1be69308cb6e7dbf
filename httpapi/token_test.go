package httpapi_test

import (
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"net/url"
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

// Tokens, roles and tenants are refused with what nobody could use or name, and the problem says where it stands. Nothing is
// made then.
func TestGrantsThatCannotBe(t *testing.T) {
	t.Parallel()
	a := startWith(t, setup{http: httpapi.Config{Tokens: []httpapi.Token{
		{SHA256: sum("admin"), Subject: "anna", Scopes: []httpapi.Scope{httpapi.ScopeAdmin, httpapi.ScopeConnect}},
		{SHA256: sum("bound"), Subject: "bob", Scopes: []httpapi.Scope{httpapi.ScopeAdmin}, Workflows: []string{"counter"}},
		{SHA256: sum("root"), Subject: "root", Tenant: fsm.Deployment, Scopes: []httpapi.Scope{httpapi.ScopeAdmin}},
	}}})
	list := func(n int, name string) string { return strings.Repeat(`"`+name+`",`, n-1) + `"` + name + `"` }
	long := strings.Repeat("é", 64)
	for _, c := range []struct{ method, path, body, pointer string }{
		{http.MethodPost, "/v1/tokens", `{"subject": "s", "scopes": ["read"], "workflows": ["a", ""]}`, "/workflows/1"},
		{http.MethodPost, "/v1/tokens", `{"subject": "s", "scopes": ["read"], "workflows": ["` + long + `"]}`, "/workflows/0"},
		{http.MethodPost, "/v1/tokens", `{"subject": "s", "scopes": ["read"], "workflows": [` + list(101, "a") + `]}`, "/workflows"},
		{http.MethodPost, "/v1/tokens", `{"subject": "s", "roles": [""]}`, "/roles/0"},
		{http.MethodPost, "/v1/tokens", `{"subject": " ", "scopes": ["read"]}`, "/subject"},
		{http.MethodPost, "/v1/tokens", `{"subject": "s\n", "scopes": ["read"]}`, "/subject"},
		{http.MethodPost, "/v1/tokens", `{"subject": "s", "roles": [` + list(21, "r") + `]}`, "/roles"},
		{http.MethodPost, "/v1/tokens", `{"subject": "s", "scopes": ["read"], "expires_at": "soon"}`, "/expires_at"},
		{http.MethodPost, "/v1/tokens", `{"subject": "s", "scopes": ["read", "write"], "id": "A"}`, "/scopes/1"},
		{http.MethodPut, "/v1/roles/r", `{"scopes": ["read"], "workflows": [""]}`, "/workflows/0"},
		{http.MethodPut, "/v1/roles/r", `{"scopes": ["read"], "events": ["go", ""]}`, "/events/1"},
		{http.MethodPut, "/v1/roles/r", `{"scopes": ["read"], "events": [` + list(101, "e") + `]}`, "/events"},
		{http.MethodPut, "/v1/tenants/t", `{"limits": {"streams": -1, "queue": 1}}`, "/limits/streams"},
		{http.MethodPut, "/v1/tenants/t", `{"limits": {"storage_bytes": 1000000000001}}`, "/limits/storage_bytes"},
		{http.MethodPut, "/v1/tenants/t", `{"limits": {"queue": 1.5}}`, "/limits/queue"},
	} {
		name := "admin"
		if strings.HasPrefix(c.path, "/v1/tenants") {
			name = "root"
		}
		a.do(c.method, c.path, c.body, bearer(name)...).want(http.StatusBadRequest, "malformed-request").wantAt("errors.0.pointer", c.pointer)
	}
	// The header X-Pawl-Tenant could not name these.
	for _, id := range []string{"a%0Ab", "%7F", "%20a", "a%20", "%2A", long} {
		a.do(http.MethodPut, "/v1/tenants/"+id, "{}", bearer("root")...).want(http.StatusBadRequest, "malformed-request").wantAt("errors.0.parameter", "id")
	}
	a.do(http.MethodPut, "/v1/tenants/"+url.PathEscape(long[2:]), "{}", bearer("root")...).want(http.StatusCreated)
	for _, table := range []string{"pawl.token", "pawl.role"} {
		if n := a.count(table); n != 0 {
			t.Errorf("%s has %d rows", table, n)
		}
	}

	// Who is bound to workflows is told what it is that reaches beyond them.
	a.do(http.MethodPut, "/v1/roles/wide", `{"scopes": ["read"]}`, bearer("admin")...).want(http.StatusCreated)
	a.do(http.MethodPost, "/v1/tokens", `{"id": "wide", "subject": "s", "scopes": ["read"]}`, bearer("admin")...).want(http.StatusCreated)
	for _, c := range []struct{ method, path, body, words string }{
		{http.MethodDelete, "/v1/roles/wide", "", "the role reaches beyond"},
		{http.MethodPut, "/v1/roles/wide", `{"scopes": ["read"], "workflows": ["counter"]}`, "the role as it is reaches beyond"},
		{http.MethodDelete, "/v1/tokens/wide", "", "the token reaches beyond"},
		{http.MethodPut, "/v1/roles/new", `{"scopes": ["read"]}`, "in /workflows"},
	} {
		refused := a.do(c.method, c.path, c.body, bearer("bound")...).want(http.StatusForbidden, "forbidden")
		if detail := refused.at("detail"); !strings.Contains(detail, c.words) {
			t.Errorf("%s %s: %s", c.method, c.path, detail)
		}
	}
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
		`[{"sha256": "` + sum("x") + `", "subject": "s", "scopes": []}]`,
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
