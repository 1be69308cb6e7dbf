package httpapi_test

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/pawl-fsm/pawl/httpapi"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// A matrixCase is an operation of the contract, as the contract declares it.
type matrixCase struct {
	id, method, path string
	scopes           []string // ["none"] for a public operation.
	tenancy          string
}

// operations returns the operations of the contract.
func operations(t *testing.T) (cases []matrixCase) {
	t.Helper()
	for path, item := range contract().Paths.Map() {
		for method, o := range item.Operations() {
			tenancy, _ := o.Extensions["x-tenant"].(string)
			cases = append(cases, matrixCase{o.OperationID, method, path, declaredScopes(t, o.OperationID), tenancy})
		}
	}
	slices.SortFunc(cases, func(a, b matrixCase) int { return strings.Compare(a.id, b.id) })
	return cases
}

// admits reports whether a caller with the scopes is admitted.
func (c matrixCase) admits(scopes ...string) bool {
	return slices.ContainsFunc(c.scopes, func(s string) bool { return slices.Contains(scopes, s) })
}

// admitted is the status of a call that is admitted, and whose Accept admits nothing: the next check. An operation without
// a body to accept looks for its resource, which does not exist.
func (c matrixCase) admitted() int {
	if hasStatus(c.id, http.StatusNotAcceptable) {
		return http.StatusNotAcceptable
	}
	return http.StatusNotFound
}

// Each operation, called by each kind of caller, answers as its x-scope and x-tenant say. The test reads them from the
// file itself, not through the code under test, and compares the scopes with the table above.
func TestMatrix(t *testing.T) {
	t.Parallel()
	a := guarded(t, httpapi.Config{})
	a.do(http.MethodPut, "/v1/tenants/off", `{}`, as("root")...).want(http.StatusCreated)
	var all []string
	for _, s := range httpapi.Scopes() {
		all = append(all, string(s))
	}
	everything := `"scopes": ` + jsonText(t, all)
	off := a.token("off", `{"subject": "off", "scopes": ["read", "create", "fire", "work", "connect", "deliver", "operate", "audit", "admin"]}`)
	a.do(http.MethodPut, "/v1/tenants/off", `{"disabled": true}`, as("root")...).want(http.StatusOK)
	revoked := a.token("*", `{"id": "revoked", "subject": "s", `+everything+`}`)
	a.do(http.MethodDelete, "/v1/tokens/revoked", "", as("root", "*")...).want(http.StatusNoContent)
	expired := a.token("*", `{"id": "expired", "subject": "s", `+everything+`}`)
	bounded.Exec(t, a.pool, "update pawl.token set created_at = now() - interval '2 hours', expires_at = now() - interval '1 hour' where id = 'expired'")
	deployment := a.token("*", `{"subject": "s", `+everything+`}`)
	// Each scope alone, as the token's own and through a role.
	alone := map[string][2]string{}
	for _, scope := range all {
		a.do(http.MethodPut, "/v1/roles/"+scope, `{"scopes": ["`+scope+`"]}`, as("root", "*")...).want(http.StatusCreated)
		alone[scope] = [2]string{
			a.token("*", `{"subject": "s", "scopes": ["`+scope+`"]}`), a.token("*", `{"subject": "s", "scopes": [], "roles": ["`+scope+`"]}`),
		}
	}
	none := a.token("*", `{"subject": "s", "scopes": [], "roles": ["missing"]}`)

	cases := operations(t)
	for _, c := range cases {
		t.Run(c.id, func(t *testing.T) {
			a := a.on(t)
			if got := strings.Join(c.scopes, " "); got != scopes[c.id] {
				t.Fatalf("x-scope is %q, want %q", got, scopes[c.id])
			}
			target := strings.NewReplacer("{name}", "w", "{version}", "1", "{id}", "i", "{event}", "e", "{business_key}", "k", "{topic}", "t", "{code}", "forbidden").Replace(c.path)
			call := func(token string, tenant ...string) answer {
				headers := []string{"Accept", "image/png"}
				if token != "" {
					headers = append(headers, as(token, tenant...)...)
				}
				return a.do(c.method, target, "", headers...)
			}
			if slices.Equal(c.scopes, []string{"none"}) {
				for _, token := range []string{"", "unknown", revoked, off, deployment} {
					call(token).want(http.StatusOK)
				}
				return
			}
			for _, token := range []string{"", "unknown", revoked, expired, deployment[:len(deployment)-1]} {
				call(token, "default").want(http.StatusUnauthorized, "unauthenticated")
			}
			call(off).want(http.StatusForbidden, "tenant-disabled")
			call(off, "default").want(http.StatusForbidden, "forbidden")
			call(deployment, "nowhere").want(http.StatusForbidden, "unknown-tenant")
			call(none, "default").want(http.StatusForbidden, "forbidden")
			for scope, tokens := range alone {
				for _, token := range tokens {
					if c.admits(scope) {
						call(token, "default").want(c.admitted())
					} else {
						call(token, "default").want(http.StatusForbidden, "forbidden")
					}
				}
			}
			switch get := c.method == http.MethodGet; {
			case strings.HasPrefix(c.tenancy, "deployment"), c.tenancy == "found" && get:
				call(deployment).want(c.admitted())
			default:
				call(deployment).want(http.StatusBadRequest, "tenant-required")
				if get || c.tenancy == "own" {
					call(deployment, "*").want(c.admitted())
				} else {
					call(deployment, "*").want(http.StatusBadRequest, "tenant-required")
				}
			}
		})
	}
	for id := range scopes {
		if !slices.ContainsFunc(cases, func(c matrixCase) bool { return c.id == id }) {
			t.Errorf("the contract has no operation %s", id)
		}
	}
}

// Each operation is called for resources that exist, by a caller of another tenant, and by one that is bound to another
// workflow.
func TestMatrixOfResources(t *testing.T) {
	t.Parallel()
	a := guarded(t, httpapi.Config{})
	a.do(http.MethodPut, "/v1/tenants/elsewhere", `{}`, as("root")...).want(http.StatusCreated)
	home := as("root", "default")
	instance := a.create("mine", `{"business_key": "k"}`, home...)
	subscription := a.post("/v1/subscriptions", "", `{"url": "https://example.com/", "filter": {"workflows": ["mine"]}}`, home...).want(http.StatusCreated).at("id")
	delivery := a.post("/v1/subscriptions/"+subscription+"/test", "", "", home...).want(http.StatusAccepted).at("id")
	a.parcels()
	a.create("parcel", `{}`, home...)
	task := a.get("/v1/tasks", home...).at("items.0.id")
	bulk := a.post("/v1/bulk", newKey(), `{"action": "retry", "ids": ["`+instance+`"]}`, home...).want(http.StatusAccepted).at("id")
	a.do(http.MethodPut, "/v1/roles/r", `{"scopes": ["read"]}`, home...).want(http.StatusCreated)
	a.do(http.MethodPut, "/v1/connections/psp", `{"base_url": "https://93.184.215.14"}`, home...).want(http.StatusCreated)
	a.token("default", `{"id": "tok", "subject": "s", "scopes": ["read"]}`)
	a.do(http.MethodPut, "/v1/schemas/s", `{}`, as("root")...).want(http.StatusCreated)

	other := a.token("elsewhere", `{"subject": "s", "scopes": ["read", "create", "fire", "work", "connect", "deliver", "operate", "audit", "admin"]}`)
	var all []string
	for _, s := range httpapi.Scopes() {
		all = append(all, string(s))
	}
	bound := a.token("*", `{"subject": "s", "workflows": ["theirs"], "scopes": `+jsonText(t, all)+`}`)

	bodies := map[string]string{
		"registerWorkflow": named("mine"), "registerSchema": `{"type": "object"}`, "migrateWorkflow": `{"from": 1, "to": 1}`,
		"simulateWorkflow": `{"events": []}`, "simulateDefinition": `{"definition": ` + counter + `, "events": []}`, "backtestWorkflow": `{"version": 1}`,
		"runBatch":         `{"commands": [{"op": "fire", "instance_id": "` + instance + `", "event": "stop", "key": "k"}]}`,
		"overrideInstance": `{"reason": "why", "to": "RUNNING"}`, "cancelInstance": `{"reason": "why"}`,
		"claimWork": `{"worker": "w"}`, "heartbeatTask": `{"lease": "l"}`, "completeTask": `{"lease": "l"}`, "failTask": `{"lease": "l", "error": "e"}`,
		"releaseTask": `{"lease": "l"}`, "retryTask": `{"reason": "why"}`, "resolveTask": `{"reason": "why", "outcome": "done"}`,
		"retryCompensation": `{"reason": "why"}`, "skipCompensation": `{"reason": "why"}`,
		"createBulk":         `{"action": "fire", "ids": ["` + instance + `"], "params": {"event": "stop"}}`,
		"createSubscription": `{"url": "https://example.com/"}`, "updateSubscription": `{"disabled": true}`,
		"createToken": `{"subject": "x", "scopes": ["read"]}`, "putRole": `{"scopes": ["read"]}`, "putTenant": `{}`,
		"putConnection": `{"base_url": "https://93.184.215.14"}`,
	}
	// What would reach behind the border is refused, and what lies there does not exist.
	reaching := []string{"registerWorkflow", "registerSchema", "createSubscription", "replayDeliveries", "createToken", "putRole", "revokeToken", "deleteRole", "putConnection", "deleteConnection"}
	for _, c := range operations(t) {
		if slices.Equal(c.scopes, []string{"none"}) {
			continue
		}
		t.Run(c.id, func(t *testing.T) {
			a := a.on(t)
			segments := strings.Split(c.path, "/")
			prefix := strings.Join(segments[:min(3, len(segments))], "/") // Such as /v1/instances.
			resource := map[string]string{"/v1/instances": instance, "/v1/subscriptions": subscription, "/v1/deliveries": delivery, "/v1/bulk": bulk, "/v1/tasks": task, "/v1/tokens": "tok", "/v1/tenants": "default"}[prefix]
			name := map[string]string{"/v1/workflows": "mine", "/v1/roles": "r", "/v1/schemas": "s", "/v1/connections": "psp", "/v1/instances": "pack"}[prefix]
			target := strings.NewReplacer("{name}", name, "{version}", "1", "{id}", resource, "{event}", "stop", "{business_key}", "k", "{topic}", "pack").Replace(c.path)
			method := c.method
			if hasStatus(c.id, http.StatusOK) && strings.HasSuffix(c.path, "/events") {
				method = http.MethodHead // The stream would not end.
			}
			call := func(headers []string) answer {
				return a.do(method, target, bodies[c.id], append(headers, "Idempotency-Key", newKey())...)
			}
			want := func(r answer, status int) {
				t.Helper()
				allowed := !slices.Contains([]int{http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound}, r.status) && r.status < 500
				if status == 0 && !allowed || status != 0 && r.status != status {
					t.Errorf("%s: %d, want %d\n%s", r.request, r.status, status, r.body)
				}
			}
			byID := strings.Contains(c.path, "{id}")
			call(as(other, "default")).want(http.StatusForbidden)
			switch {
			case c.admits("deploy") && len(c.scopes) == 1, prefix == "/v1/tenants", c.tenancy == "deployment-only":
				want(call(as(other)), http.StatusForbidden)
			case byID, slices.Contains([]string{"/v1/roles", "/v1/connections"}, prefix) && strings.Contains(c.path, "{name}") && c.method != http.MethodPut, c.id == "fireEventByKey":
				want(call(as(other)), http.StatusNotFound)
			default:
				want(call(as(other)), 0)
			}
			switch {
			case slices.Contains(reaching, c.id), c.tenancy == "deployment-only":
				want(call(as(bound, "default")), http.StatusForbidden)
			case prefix == "/v1/workflows" && strings.Contains(c.path, "{name}"), byID && slices.Contains([]string{"/v1/instances", "/v1/subscriptions", "/v1/deliveries", "/v1/bulk", "/v1/tasks"}, prefix):
				want(call(as(bound, "default")), http.StatusNotFound)
			default:
				want(call(as(bound, "default")), 0)
			}
		})
	}
	// Nothing happened.
	a.get("/v1/instances/"+instance, home...).want(http.StatusOK).wantAt("version", "1")
	a.get("/v1/subscriptions/"+subscription, home...).want(http.StatusOK).wantAt("disabled", "false")
	if got := bounded.Value[string](t, a.pool, "select format('%s %s', (select count(*) from pawl.instance), (select count(*) from pawl.workflow where name <> 'theirs'))"); got != fmt.Sprint(3, " ", 2) {
		t.Errorf("there are %s instances and versions", got)
	}
}
