package httpapi_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/httpapi"
	"github.com/pawl-fsm/pawl/internal/bounded"
	"github.com/pawl-fsm/pawl/internal/seal"
	"github.com/pawl-fsm/pawl/internal/variable"
)

const (
	connections = "/v1/connections"
	service     = "https://93.184.215.14"
	// authority is a certificate, made by `openssl req -x509 -newkey ed25519 -nodes -subj /CN=pawl -days 36500`.
	authority = `-----BEGIN CERTIFICATE-----
MIIBNDCB56ADAgECAhR4+SJ1B9tcngJSJEqI/nGFY1NUHTAFBgMrZXAwDzENMAsG
A1UEAwwEcGF3bDAgFw0yNjExMjkwMDIxMjRaGA8yMTI2MTEwNTAwMjEyNFowDzEN
MAsGA1UEAwwEcGF3bDAqMAUGAytlcAMhAGOgJSKDfQxwnEJOjzX5n2OcmOMM4Fym
oAdxEfABY0QTo1MwUTAdBgNVHQ4EFgQUVAHAxeZqgd4+E0/KT4PyhbRw0q8wHwYD
VR0jBBgwFoAUVAHAxeZqgd4+E0/KT4PyhbRw0q8wDwYDVR0TAQH/BAUwAwEB/zAF
BgMrZXADQQAHwaBlIp4/gyiFRmaedma+0I7msCcLN2INqgj5w9jJtwTaVIMZoHKn
mspklJCVuQczGR6JSRAwPr4NeLFmAYUM
-----END CERTIFICATE-----
`
)

// withSecrets is a service with a key, whose default tenant may name some variables.
func withSecrets(t *testing.T) (*api, seal.Keys) {
	t.Helper()
	keys, err := seal.Parse(seal.NewKey())
	if err != nil {
		t.Fatal(err)
	}
	return startWith(t, setup{fsm: fsm.Config{Keys: keys, Variables: variable.Policy{{Tenant: "default", Name: "PAWL_CONNECTION_*"}}}}), keys
}

func TestConnections(t *testing.T) {
	t.Parallel()
	a, keys := withSecrets(t)
	psp := connections + "/psp"
	body := `{"base_url": "https://93.184.215.14/api/", "auth": {"type": "basic", "user": "ann", "secret": "hunter2"}, "headers": {"X-Merchant": "17"},
		"timeout": "1500ms", "concurrency": 8, "tls": {"ca": ` + jsonText(t, authority) + `}}`
	made := a.do(http.MethodPut, psp, body, "X-Actor", "dora").want(http.StatusCreated).wantHeader("ETag", `"1"`).wantHeader("Location", psp).wantAt(
		"name", "psp", "base_url", "https://93.184.215.14/api", "auth", `{"type":"basic","user":"ann"}`, "headers", `{"X-Merchant":"17"}`,
		"timeout", "1s500ms", "concurrency", "8", "tls.ca", authority, "version", "1", "failures", "0", "rests_until", "null", "finding", "null", "created_by", "dora")
	a.get(psp).want(http.StatusOK).wantHeader("ETag", `"1"`).wantAt("created_at", made.at("created_at"), "auth", `{"type":"basic","user":"ann"}`)
	stored := bounded.Value[string](t, a.pool, "select secret from pawl.connection")
	if secret, err := keys.Open(stored, seal.Connection("default", "psp")); err != nil || secret != "hunter2" || stored == secret {
		t.Errorf("%s is stored, opened to %q: %v", stored, secret, err)
	}

	// A replacement has the defaults of what it leaves out, and begins with a closed circuit.
	bounded.Exec(t, a.pool, "select pawl.connection_report(array_fill('default'::text, '{5}'), array_fill('psp'::text, '{5}'), array_fill(false, '{5}'), '1 hour')")
	a.get(psp).want(http.StatusOK).wantHeader("ETag", `"1"`).wantAt("failures", "5", "finding", "null")
	a.do(http.MethodPut, psp, `{"base_url": "`+service+`", "auth": {"type": "header", "name": "X-Api-Key", "env": "PAWL_CONNECTION_PSP"}}`).
		want(http.StatusOK).wantHeader("ETag", `"2"`).wantAt("auth", `{"env":"PAWL_CONNECTION_PSP","name":"X-Api-Key","type":"header"}`,
		"headers", "{}", "timeout", "null", "concurrency", "32", "tls", "{}", "failures", "0", "rests_until", "null", "created_at", made.at("created_at"), "created_by", "dora")
	if n := bounded.Value[int](t, a.pool, "select count(secret)::integer from pawl.connection"); n != 0 {
		t.Error("the secret stays although a variable has it")
	}

	for _, name := range []string{"crm", "a-b_c"} {
		a.do(http.MethodPut, connections+"/"+name, `{"base_url": "`+service+`"}`).want(http.StatusCreated).wantAt("auth", `{"type":"none"}`)
	}
	page := a.get(connections+"?limit=2").want(http.StatusOK).wantAt("items.0.name", "a-b_c", "items.1.name", "crm", "items.2", missing, "items.0.tenant", missing)
	a.get(connections+"?limit=2&cursor="+page.at("next_cursor")).want(http.StatusOK).wantAt("items.0.name", "psp", "items.1", missing, "next_cursor", "null")
	a.get(connections+"?cursor=nonsense").want(http.StatusBadRequest, "malformed-request")

	a.do(http.MethodDelete, psp, "").want(http.StatusNoContent)
	for _, name := range []string{"psp", "nobody", "Not-a-name"} {
		a.get(connections+"/"+name).want(http.StatusNotFound, "not-found")
		a.do(http.MethodDelete, connections+"/"+name, "").want(http.StatusNotFound, "not-found")
	}
}

// A caller that changes what somebody else has just changed is refused.
func TestPreconditionsOfConnections(t *testing.T) {
	t.Parallel()
	a := start(t)
	psp, body := connections+"/psp", `{"base_url": "`+service+`"}`
	for _, tag := range []string{"*", `"1"`} {
		a.do(http.MethodPut, psp, body, "If-Match", tag).want(http.StatusPreconditionFailed, "version-mismatch").wantAt("expected", tag, "version", missing)
	}
	a.do(http.MethodDelete, psp, "", "If-Match", "*").want(http.StatusNotFound, "not-found")
	a.do(http.MethodPut, psp, body).want(http.StatusCreated)
	a.do(http.MethodPut, psp, body, "If-Match", "*").want(http.StatusOK).wantHeader("ETag", `"2"`)
	for _, tag := range []string{`"1"`, `W/"2"`, `"x"`} {
		for _, method := range []string{http.MethodPut, http.MethodDelete} {
			content := body
			if method == http.MethodDelete {
				content = ""
			}
			a.do(method, psp, content, "If-Match", tag).want(http.StatusPreconditionFailed, "version-mismatch").wantAt("expected", tag, "version", "2", "state", missing)
		}
	}
	a.do(http.MethodPut, psp, body, "If-Match", `"1", "2"`).want(http.StatusOK).wantHeader("ETag", `"3"`)
	a.do(http.MethodDelete, psp, "", "If-Match", `"3"`).want(http.StatusNoContent)
}

// Who may change a connection and does not know its secret cannot have it sent elsewhere.
func TestSecretsStayWhereTheyWereGivenFor(t *testing.T) {
	t.Parallel()
	a, _ := withSecrets(t)
	psp := connections + "/psp"
	settings := func(change map[string]any) string {
		all := map[string]any{"base_url": service + "/v1", "auth": map[string]any{"type": "basic", "user": "ann"}}
		for name, v := range change {
			all[name] = v
		}
		text, err := json.Marshal(all)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	missingSecret := func(body string) {
		t.Helper()
		a.do(http.MethodPut, psp, body).want(http.StatusBadRequest, "malformed-request").wantAt("errors.0.pointer", "/auth/secret")
	}
	missingSecret(settings(nil)) // There is none yet.
	a.do(http.MethodPut, psp, settings(map[string]any{"auth": map[string]any{"type": "basic", "user": "ann", "secret": "hunter2"}})).want(http.StatusCreated)
	stored := bounded.Value[string](t, a.pool, "select secret from pawl.connection")
	a.do(http.MethodPut, psp, settings(map[string]any{"headers": map[string]any{"X-Merchant": "17"}, "concurrency": 2, "timeout": "5s"})).want(http.StatusOK).wantHeader("ETag", `"2"`)
	for name, change := range map[string]map[string]any{
		"another server":    {"base_url": "https://93.184.215.15/v1"},
		"another port":      {"base_url": service + ":8443/v1"},
		"another path":      {"base_url": service + "/v2"},
		"in the clear":      {"base_url": "http://93.184.215.14/v1"},
		"another user":      {"auth": map[string]any{"type": "basic", "user": "bob"}},
		"another type":      {"auth": map[string]any{"type": "bearer"}},
		"another header":    {"auth": map[string]any{"type": "header", "name": "X-Log"}},
		"another authority": {"tls": map[string]any{"ca": authority}},
	} {
		t.Run(name, func(t *testing.T) {
			a.on(t).do(http.MethodPut, psp, settings(change)).want(http.StatusBadRequest, "malformed-request").wantAt("errors.0.pointer", "/auth/secret")
		})
	}
	if now := bounded.Value[string](t, a.pool, "select secret from pawl.connection"); now != stored {
		t.Errorf("the secret became %s", now)
	}
	// Without the need of a secret it is forgotten, and does not come back.
	a.do(http.MethodPut, psp, settings(map[string]any{"auth": map[string]any{"type": "none"}})).want(http.StatusOK)
	missingSecret(settings(nil))
}

func TestConnectionsThatWillNotDo(t *testing.T) {
	t.Parallel()
	a, _ := withSecrets(t)
	put := func(body, pointer string) {
		t.Helper()
		r := a.do(http.MethodPut, connections+"/psp", body).want(http.StatusBadRequest, "malformed-request").wantAt("errors.0.pointer", pointer, "errors.1", missing)
		if strings.Contains(string(r.body), "hunter2") {
			t.Errorf("the problem shows the secret: %s", r.body)
		}
	}
	for _, url := range []string{
		"", "nonsense", "/v1", "ftp://example.com", "https://", "https://bob:hunter2@93.184.215.14/", "https://93.184.215.14/#x", "https://93.184.215.14/?a=b",
		"https://93.184.215.14/?", "https://93.184.215.14:70000/", "http://127.0.0.1/", "http://localhost:8080/", "http://[::1]/", "http://10.1.2.3/",
		"http://169.254.169.254/latest/meta-data", "https://93.184.215.14/" + strings.Repeat("x", 2048),
	} {
		put(`{"base_url": "`+url+`"}`, "/base_url")
	}
	for auth, pointer := range map[string]string{
		`{"type": "digest"}`:                                                            "/auth/type",
		`{"type": ""}`:                                                                  "/auth/type",
		`{"env": "PAWL_CONNECTION_X"}`:                                                  "/auth/type",
		`{"type": "none", "secret": "hunter2"}`:                                         "/auth/secret",
		`{"type": "none", "env": "PAWL_CONNECTION_X"}`:                                  "/auth/env",
		`{"type": "none", "user": "ann"}`:                                               "/auth/user",
		`{"type": "bearer", "secret": "hunter2", "user": "ann"}`:                        "/auth/user",
		`{"type": "bearer", "secret": "hunter2", "name": "X-Key"}`:                      "/auth/name",
		`{"type": "bearer", "secret": "hunter2", "env": "PAWL_CONNECTION_X"}`:           "/auth/secret",
		`{"type": "bearer", "secret": ""}`:                                              "/auth/secret",
		`{"type": "bearer", "secret": "Bearer hunter2"}`:                                "/auth/secret",
		`{"type": "bearer", "secret": "hunter2\r\nX-Admin: 1"}`:                         "/auth/secret",
		`{"type": "bearer", "secret": "hunter2ü"}`:                                      "/auth/secret",
		`{"type": "bearer", "secret": "hunter2` + strings.Repeat("x", 4096) + `"}`:      "/auth/secret",
		`{"type": "basic", "secret": "hunter2"}`:                                        "/auth/user",
		`{"type": "basic", "secret": "hunter2", "user": "a:b"}`:                         "/auth/user",
		`{"type": "basic", "secret": "hunter2\n", "user": "ann"}`:                       "/auth/secret",
		`{"type": "header", "secret": "hunter2"}`:                                       "/auth/name",
		`{"type": "header", "secret": "hunter2", "name": "Host"}`:                       "/auth/name",
		`{"type": "header", "secret": "hunter2", "name": "X Key"}`:                      "/auth/name",
		`{"type": "header", "secret": " hunter2", "name": "X-Key"}`:                     "/auth/secret",
		`{"type": "bearer", "env": "PAWL_DATABASE_URL"}`:                                "/auth/env",
		`{"type": "bearer", "env": "DATABASE_URL"}`:                                     "/auth/env",
		`{"type": "bearer", "env": "PATH"}`:                                             "/auth/env",
		`{"type": "bearer", "env": "pawl_connection_x"}`:                                "/auth/env",
		`{"type": "bearer", "env": "PAWL_CONNECTION_` + strings.Repeat("X", 255) + `"}`: "/auth/env",
		`{"type": "bearer", "env": "PAWL_CONNECTION_X=y"}`:                              "/auth/env",
	} {
		put(`{"base_url": "`+service+`", "auth": `+auth+`}`, pointer)
	}
	for member, pointer := range map[string]string{
		`"headers": {"Authorization": "hunter2"}`:                 "/headers/Authorization",
		`"headers": {"cookie": "hunter2"}`:                        "/headers/cookie",
		`"headers": {"Transfer-Encoding": "x"}`:                   "/headers/Transfer-Encoding",
		`"headers": {"Idempotency-Key": "x"}`:                     "/headers/Idempotency-Key",
		`"headers": {"X-A": "x", "x-a": "y"}`:                     "/headers/x-a",
		`"headers": {"X/A": "x"}`:                                 "/headers/X~1A",
		`"headers": {"": "x"}`:                                    "/headers/",
		`"headers": {"X-A": ""}`:                                  "/headers/X-A",
		`"headers": {"X-A": "a\r\nb: c"}`:                         "/headers/X-A",
		`"headers": {"X-A": "` + strings.Repeat("x", 1025) + `"}`: "/headers/X-A",
		`"headers": ` + jsonText(t, many(51)):                     "/headers",
		`"timeout": "99ms"`:                                       "/timeout",
		`"timeout": "11m"`:                                        "/timeout",
		`"timeout": "soon"`:                                       "/timeout",
		`"concurrency": 0`:                                        "/concurrency",
		`"concurrency": -1`:                                       "/concurrency",
		`"concurrency": 513`:                                      "/concurrency",
		`"tls": {"ca": ""}`:                                       "/tls/ca",
		`"tls": {"ca": "nonsense"}`:                               "/tls/ca",
		`"tls": {"ca": ` + jsonText(t, authority[:200]) + `}`:     "/tls/ca",
		`"tls": {"ca": ` + jsonText(t, strings.ReplaceAll(authority, "CERTIFICATE", "PRIVATE KEY")) + `}`: "/tls/ca",
		`"tls": {"ca": ` + jsonText(t, authority+"\n-----BEGIN PRIVATE KEY-----\nAA") + `}`:               "/tls/ca",
		`"tls": {"ca": "` + strings.Repeat("x", 65537) + `"}`:                                             "/tls/ca",
	} {
		put(`{"base_url": "`+service+`", `+member+`}`, pointer)
	}
	put(`{"base_url": "http://93.184.215.14", "tls": {"ca": `+jsonText(t, authority)+`}}`, "/tls/ca")
	// The header that has the secret is not given twice.
	put(`{"base_url": "`+service+`", "auth": {"type": "header", "name": "X-Key", "secret": "hunter2"}, "headers": {"x-key": "y"}}`, "/headers/x-key")
	for _, name := range []string{"PSP", "p--q", "-p", "9p", "p.q", strings.Repeat("p", 64), "%00"} {
		a.do(http.MethodPut, connections+"/"+name, `{"base_url": "`+service+`"}`).want(http.StatusBadRequest, "malformed-request")
	}
	// All faults are listed.
	r := a.do(http.MethodPut, connections+"/psp", `{"base_url": "http://10.0.0.1", "auth": {"type": "basic"}, "headers": {"Host": "x"}, "concurrency": 600}`).want(http.StatusBadRequest)
	if got := fmt.Sprint(r.each("errors", "pointer")); got != "[/base_url /auth/user /headers/Host /concurrency]" {
		t.Errorf("the faults are at %s", got)
	}
	for _, body := range []string{``, `{}`, `{"base_url": 1}`, `{"base_url": "` + service + `", "more": 1}`, `{"base_url": "` + service + `", "auth": {"type": "none", "token": "x"}}`} {
		a.do(http.MethodPut, connections+"/psp", body).want(http.StatusBadRequest, "malformed-request")
	}
	if n := a.count("pawl.connection"); n != 0 {
		t.Errorf("%d connections were made", n)
	}
	a.another(setup{fsm: fsm.Config{Webhooks: fsm.WebhookPolicy{AllowPrivate: true}}}).
		do(http.MethodPut, connections+"/psp", `{"base_url": "http://127.0.0.1:9/"}`).want(http.StatusCreated)
}

func many(n int) map[string]string {
	headers := map[string]string{}
	for i := range n {
		headers[fmt.Sprintf("X-%d", i)] = "x"
	}
	return headers
}

// A tenant has its own connections, and its own variables.
func TestBordersOfConnections(t *testing.T) {
	t.Parallel()
	a := startWith(t, setup{
		fsm: fsm.Config{Variables: variable.Policy{{Tenant: "acme", Name: "ACME_TOKEN"}, {Tenant: "*", Name: "SHARED_*"}}},
		http: httpapi.Config{Tokens: []httpapi.Token{
			{SHA256: sum("anna"), Subject: "anna", Tenant: "acme", Scopes: []httpapi.Scope{httpapi.ScopeConnect}},
			{SHA256: sum("otto"), Subject: "otto", Tenant: "other", Scopes: []httpapi.Scope{httpapi.ScopeConnect}},
			{SHA256: sum("bound"), Subject: "bob", Tenant: "acme", Scopes: []httpapi.Scope{httpapi.ScopeConnect}, Workflows: []string{"door"}},
			{SHA256: sum("rita"), Subject: "rita", Tenant: "acme", Scopes: []httpapi.Scope{httpapi.ScopeRead, httpapi.ScopeDeliver, httpapi.ScopeOperate}},
			{SHA256: sum("root"), Subject: "root", Tenant: fsm.Deployment, Scopes: []httpapi.Scope{httpapi.ScopeConnect}},
		}},
	})
	for _, tenant := range []string{"acme", "other"} {
		bounded.Exec(t, a.pool, "select pawl.tenant_put($1) where not exists (select from pawl.tenant where id = $1)", tenant)
	}
	psp := connections + "/psp"
	with := func(auth string) string { return `{"base_url": "` + service + `", "auth": ` + auth + `}` }
	own, shared := `{"type": "bearer", "env": "ACME_TOKEN"}`, `{"type": "bearer", "env": "SHARED_TOKEN"}`
	a.do(http.MethodPut, psp, with(own), bearer("anna")...).want(http.StatusCreated)
	a.get(psp, bearer("otto")...).want(http.StatusNotFound, "not-found")
	a.get(connections, bearer("otto")...).want(http.StatusOK).wantAt("items", "[]")
	a.do(http.MethodDelete, psp, "", bearer("otto")...).want(http.StatusNotFound, "not-found")
	a.do(http.MethodPut, psp, with(own), bearer("otto")...).want(http.StatusBadRequest, "malformed-request").wantAt("errors.0.pointer", "/auth/env")
	a.do(http.MethodPut, psp, with(shared), bearer("otto")...).want(http.StatusCreated).wantHeader("ETag", `"1"`)
	a.get(psp, bearer("anna")...).want(http.StatusOK).wantAt("auth.env", "ACME_TOKEN")

	for _, method := range []string{http.MethodPut, http.MethodDelete} {
		body := ""
		if method == http.MethodPut {
			body = with(shared)
		}
		a.do(method, psp, body, bearer("bound")...).want(http.StatusForbidden, "forbidden")
		a.do(method, psp, body, bearer("rita")...).want(http.StatusForbidden, "forbidden")
	}
	a.get(psp, bearer("bound")...).want(http.StatusOK)
	a.get(psp, bearer("rita")...).want(http.StatusForbidden, "forbidden")
	if got := a.allPages(connections, "name", 1); fmt.Sprint(got) != "[acme psp other psp]" {
		t.Errorf("over all tenants: %v", got)
	}
}

// What is changed is in the audit, with neither secrets nor the texts of headers.
func TestAuditOfConnections(t *testing.T) {
	t.Parallel()
	a, _ := withSecrets(t)
	psp := connections + "/psp"
	with := func(secret string) string {
		return `{"base_url": "` + service + `", "auth": {"type": "bearer", "secret": "` + secret + `"}, "headers": {"X-Key": "planted"}, "timeout": "1500ms"}`
	}
	a.do(http.MethodPut, psp, with("hunter2"), "X-Actor", "ann").want(http.StatusCreated)
	a.do(http.MethodPut, psp, with("hunter3")).want(http.StatusOK)
	a.do(http.MethodPut, psp, with("hunter4"), "If-Match", `"1"`).want(http.StatusPreconditionFailed)
	a.do(http.MethodDelete, psp, "").want(http.StatusNoContent)
	a.do(http.MethodDelete, psp, "").want(http.StatusNotFound)
	audit := a.get("/v1/audit").want(http.StatusOK)
	put := `{"auth":{"type":"bearer"},"base_url":"` + service + `","concurrency":32,"headers":["X-Key"],"timeout_ms":1500,"tls_ca_sha256":null}`
	audit.wantAt(
		"items.0.action", "connection.put", "items.0.target", "psp", "items.0.actor", "ann", "items.0.before", "null", "items.0.after", put,
		"items.1.action", "connection.put", "items.1.before", put, "items.1.after", put,
		"items.2.action", "connection.delete", "items.2.before", put, "items.2.after", "null", "items.3", missing)
	for _, planted := range []string{"hunter", "planted", "sealed:"} {
		if strings.Contains(string(audit.body), planted) {
			t.Errorf("the audit shows %s: %s", planted, audit.body)
		}
	}
}
