package httpapi_test

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/pawl-fsm/pawl/httpapi"
)

// scopes repeats the x-scope of each operation, so that a change in the contract must be made
// here too. A new operation fails TestMatrix until somebody has decided who may call it.
var scopes = map[string]string{
	"getHealth": "none", "getReadiness": "none", "getContract": "none", "getDefinitionSchema": "none", "getProblem": "none",

	"getMetrics": "read", "getInstanceTrace": "read",
	"listWorkflows": "read", "getWorkflow": "read", "getWorkflowVersion": "read", "getWorkflowStats": "read", "getWorkflowDiagram": "read",
	"simulateWorkflow": "read", "simulateDefinition": "read",
	"listSchemas": "read", "getSchema": "read", "getSchemaVersion": "read",
	"listWorkflowInstances": "read", "listInstances": "read", "getInstance": "read", "listActions": "read", "listHistory": "read",
	"streamInstance": "read", "streamEvents": "read",

	"createInstance": "create", "fireEvent": "fire", "fireEventByKey": "fire", "runBatch": "create fire",

	"overrideInstance": "operate", "cancelInstance": "operate",

	"registerWorkflow": "deploy", "registerSchema": "deploy", "retireWorkflowVersion": "deploy", "migrateWorkflow": "deploy",
	"backtestWorkflow": "deploy", "reindexWorkflow": "deploy",

	"listSubscriptions": "deliver", "getSubscription": "deliver", "listDeliveries": "deliver",
	"createSubscription": "deliver", "updateSubscription": "deliver", "deleteSubscription": "deliver",
	"rotateSubscriptionSecret": "deliver", "testSubscription": "deliver", "replayDeliveries": "deliver", "replayDelivery": "deliver",

	"claimWork": "work", "heartbeatTask": "work", "completeTask": "work", "failTask": "work", "releaseTask": "work",
	"listTasks": "read", "getTask": "read", "listCompensations": "read", "listTimeline": "read", "listFindings": "read", "getForecast": "read", "getDiagnostics": "read",
	"retryTask": "operate", "resolveTask": "operate", "retryCompensation": "operate", "skipCompensation": "operate",

	"createBulk": "operate", "listBulks": "read operate", "getBulk": "read operate", "listBulkItems": "read operate",
	"pauseBulk": "operate", "resumeBulk": "operate", "stopBulk": "operate", "retryBulk": "operate",

	"createToken": "admin", "listTokens": "admin", "getToken": "admin", "revokeToken": "admin",
	"listConnections": "connect", "putConnection": "connect", "getConnection": "connect", "deleteConnection": "connect",
	"listRoles": "admin", "putRole": "admin", "getRole": "admin", "deleteRole": "admin",
	"listAudit":   "audit",
	"listTenants": "admin", "putTenant": "admin", "getTenant": "admin",
	"getSelf": "read create fire work deploy connect deliver operate audit admin",
}

// everyOperation runs a subtest for each operation of the contract, with a target whose
// resource does not exist.
func everyOperation(t *testing.T, test func(t *testing.T, id, method, target string)) {
	t.Helper()
	for path, item := range contract().Paths.Map() {
		target := strings.NewReplacer("{name}", "w", "{version}", "1", "{id}", "i", "{event}", "e", "{topic}", "t", "{code}", "forbidden").Replace(path)
		for method, operation := range item.Operations() {
			t.Run(method+" "+path, func(t *testing.T) { test(t, operation.OperationID, method, target) })
		}
	}
}

// hasStatus reports whether the contract lists a status for an operation.
func hasStatus(id string, status int) bool {
	for _, item := range contract().Paths.Map() {
		for _, operation := range item.Operations() {
			if operation.OperationID == id {
				return operation.Responses.Status(status) != nil
			}
		}
	}
	return false
}

// declaredScopes reads the x-scope of an operation from the contract.
func declaredScopes(t *testing.T, id string) (declared []string) {
	t.Helper()
	for _, item := range contract().Paths.Map() {
		for _, operation := range item.Operations() {
			if operation.OperationID != id {
				continue
			}
			switch v := operation.Extensions["x-scope"].(type) {
			case string:
				declared = []string{v}
			case []any:
				for _, s := range v {
					declared = append(declared, fmt.Sprint(s))
				}
			}
			// In OpenAPI a public operation has an empty list of security requirements.
			if public := operation.Security != nil && len(*operation.Security) == 0; public != slices.Equal(declared, []string{"none"}) {
				t.Errorf("x-scope is %v, but security says %v", declared, operation.Security)
			}
		}
	}
	return declared
}

// The service does not start if an operation of the contract has no valid x-scope.
func TestContractWithoutScope(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("openapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if err := httpapi.CheckContract(text); err != nil {
		t.Fatal(err)
	}
	const declared = "operationId: migrateWorkflow\n      x-scope: deploy\n"
	for _, bad := range []string{
		"", "x-scope:", "x-scope: root", "x-scope: ''", "x-scope: Admin", "x-scope: 7", "x-scope: []", "x-scope: [read, root]", "x-scope: [none, read]",
		"x-scope: [none]", "x-scope: {read: true}", "x-scope: read admin",
	} {
		changed := bytes.Replace(text, []byte(declared), []byte("operationId: migrateWorkflow\n      "+bad+"\n"), 1)
		if bytes.Equal(changed, text) {
			t.Fatal("the contract does not contain " + declared)
		}
		err := httpapi.CheckContract(changed)
		if err == nil || !strings.Contains(err.Error(), "POST /v1/workflows/{name}/migrate (migrateWorkflow): x-scope") {
			t.Errorf("%q: the error is %v", bad, err)
		}
	}
	// The error names all such operations.
	err = httpapi.CheckContract(bytes.ReplaceAll(text, []byte("x-scope: deploy"), []byte("x-scope: root")))
	for id, scope := range scopes {
		if named := err != nil && strings.Contains(err.Error(), "("+id+")"); named != (scope == "deploy") {
			t.Errorf("%s with %s: the error is %v", id, scope, err)
		}
	}
}

// A list of scopes admits a token that has any of them.
func TestScopeLists(t *testing.T) {
	t.Parallel()
	const read, fire, admin = httpapi.ScopeRead, httpapi.ScopeFire, httpapi.ScopeAdmin
	for _, c := range []struct {
		extension any
		held      []httpapi.Scope
		want      bool
	}{
		{"read", []httpapi.Scope{read}, true},
		{"read", []httpapi.Scope{fire, admin}, false},
		{[]any{"read", "admin"}, []httpapi.Scope{read}, true},
		{[]any{"read", "admin"}, []httpapi.Scope{admin}, true},
		{[]any{"read", "admin"}, []httpapi.Scope{fire}, false},
		{[]any{"read", "admin"}, nil, false},
		{"none", nil, true},
	} {
		if got, err := httpapi.Admits(c.extension, c.held...); got != c.want || err != nil {
			t.Errorf("x-scope %v with %v: %v, %v", c.extension, c.held, got, err)
		}
	}
}

// Each operation that needs a token is refused above the rate limit, and for an Accept header
// that admits none of its media types.
func TestEveryOperationRefuses(t *testing.T) {
	t.Parallel()
	limited := startWith(t, setup{http: httpapi.Config{RateLimit: 0.0001}})
	limited.get("/v1/workflows").want(http.StatusOK)
	open := limited.another(setup{})
	everyOperation(t, func(t *testing.T, id, method, target string) {
		if !strings.HasPrefix(target, "/v1/") {
			return
		}
		limited.on(t).do(method, target, "").want(http.StatusTooManyRequests, "too-many-requests")
		if hasStatus(id, http.StatusNotAcceptable) { // Otherwise it answers with a status alone.
			open.on(t).do(method, target, "", "Accept", "image/png").want(http.StatusNotAcceptable, "not-acceptable")
		}
	})
}
