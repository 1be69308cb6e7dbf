package httpapi_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"

	"github.com/pawl-fsm/pawl/httpapi"
)

// contract returns the parsed openapi.yaml. Every answer in the suite is checked against it.
var contract = sync.OnceValue(func() *openapi3.T {
	text, err := os.ReadFile("openapi.yaml")
	if err != nil {
		panic(err)
	}
	doc, err := openapi3.NewLoader().LoadFromData(text)
	if err != nil {
		panic(err)
	}
	return doc
})

// The contract and its examples are valid OpenAPI, and the service serves that contract.
func TestContract(t *testing.T) {
	t.Parallel()
	if err := contract().Validate(t.Context()); err != nil {
		t.Error(err)
	}
	text, err := os.ReadFile("openapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	served := start(t).get("/openapi.yaml").want(http.StatusOK).wantHeader("Content-Type", "application/yaml")
	if !bytes.Equal(served.body, text) {
		t.Error("the service serves another contract")
	}
}

// Each operation lists every status that its kind can answer with. Which others it has, such as 409, the
// answers of the whole suite are compared with; see check.
func TestContractListsStatuses(t *testing.T) {
	t.Parallel()
	for path, item := range contract().Paths.Map() {
		for method, op := range item.Operations() {
			want := []int{http.StatusBadRequest, http.StatusInternalServerError}
			if op.Extensions["x-scope"] != "none" {
				want = append(want, http.StatusUnauthorized, http.StatusForbidden, http.StatusTooManyRequests, http.StatusServiceUnavailable)
			}
			if op.RequestBody != nil {
				want = append(want, http.StatusRequestEntityTooLarge, http.StatusUnsupportedMediaType)
			}
			// They make what the path names, or take any name.
			unbound := []string{"registerWorkflow", "registerSchema", "putRole", "putTenant", "putConnection", "claimWork"}
			if strings.Contains(path, "{") && !slices.Contains(unbound, op.OperationID) {
				want = append(want, http.StatusNotFound)
			}
			for status, response := range op.Responses.Map() {
				if strings.HasPrefix(status, "2") && len(response.Value.Content) > 0 && op.Extensions["x-scope"] != "none" {
					want = append(want, http.StatusNotAcceptable)
				}
			}
			for _, status := range want {
				if op.Responses.Status(status) == nil {
					t.Errorf("%s %s does not list %d", method, path, status)
				}
			}
		}
	}
}

// Each integer of the contract has a format and a smallest value, from which clients choose its type.
func TestContractBoundsIntegers(t *testing.T) {
	t.Parallel()
	seen := 0
	var walk func(at string, v any)
	walk = func(at string, v any) {
		switch v := v.(type) {
		case map[string]any:
			kinds, _ := v["type"].([]any)
			if v["type"] == "integer" || slices.Contains(kinds, any("integer")) {
				seen++
				if format := v["format"]; format != "int32" && format != "int64" || v["minimum"] == nil {
					t.Errorf("%s has the format %v and the minimum %v", at, format, v["minimum"])
				}
			}
			for name, child := range v {
				if name != "example" && name != "examples" {
					walk(at+"/"+name, child)
				}
			}
		case []any:
			for i, child := range v {
				walk(fmt.Sprintf("%s/%d", at, i), child)
			}
		}
	}
	if walk("", contractDocument(t)); seen < 30 {
		t.Errorf("only %d integers were found", seen)
	}
}

// contractDocument returns the contract as decoded JSON.
func contractDocument(t *testing.T) (document any) {
	t.Helper()
	text, err := json.Marshal(contract())
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &document); err != nil {
		t.Fatal(err)
	}
	return document
}

// The problems in the contract's examples are those that the service sends.
func TestContractExamples(t *testing.T) {
	t.Parallel()
	document := contractDocument(t)
	seen := 0
	var walk func(v any)
	walk = func(v any) {
		switch v := v.(type) {
		case map[string]any:
			code, _ := v["code"].(string)
			if status, known := httpapi.Codes()[code]; known {
				seen++
				if v["status"] != float64(status) || v["title"] != httpapi.TitleOf(code) {
					t.Errorf("the example of %s has the status %v and the title %q, want %d and %q", code, v["status"], v["title"], status, httpapi.TitleOf(code))
				}
				if kind, ok := v["type"]; ok && kind != "/problems/"+code {
					t.Errorf("the example of %s has the type %v", code, kind)
				}
			}
			for _, child := range v {
				walk(child)
			}
		case []any:
			for _, child := range v {
				walk(child)
			}
		}
	}
	if walk(document); seen < 10 {
		t.Errorf("only %d examples of problems were found", seen)
	}
	var page struct{ Code, Title, Description string }
	example, err := json.Marshal(contract().Paths.Value("/problems/{code}").Get.Responses.Status(http.StatusOK).Value.Content["application/json"].Example)
	if err == nil {
		err = json.Unmarshal(example, &page)
	}
	if err != nil {
		t.Fatal(err)
	}
	start(t).get("/problems/"+page.Code).want(http.StatusOK).wantAt("title", page.Title, "description", page.Description)
}

// operationOf finds the operation for a request. op is nil if the contract has none.
func operationOf(method, target string) (path string, item *openapi3.PathItem, op *openapi3.Operation) {
	target, _, _ = strings.Cut(target, "?")
	segments := strings.Split(target, "/")
	if item := contract().Paths.Value(target); item != nil {
		return target, item, item.GetOperation(method)
	}
	for path, item := range contract().Paths.Map() {
		pattern := strings.Split(path, "/")
		fits := len(pattern) == len(segments)
		for i := 0; fits && i < len(pattern); i++ {
			fits = pattern[i] == segments[i] || strings.HasPrefix(pattern[i], "{") && segments[i] != ""
		}
		if fits {
			return path, item, item.GetOperation(method)
		}
	}
	return "", nil, nil
}

var (
	knownProblems sync.Map // The codes whose page was already compared.
	timePattern   = regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$`)
	uuidPattern   = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`)
)

// check compares an answer with the contract: its status, headers and body, and the members
// that every problem has.
func (a *api) check(method, target string, r answer) {
	a.t.Helper()
	id := r.header.Get("X-Request-ID")
	if id == "" {
		a.t.Errorf("%s: there is no X-Request-ID", r.request)
	}
	bodiless := method == http.MethodHead || r.status == http.StatusNotModified || r.status == http.StatusNoContent ||
		r.header.Get("Preference-Applied") == "return=minimal"
	if bodiless && len(r.body) > 0 {
		a.t.Errorf("%s: %d has the body %q", r.request, r.status, r.body)
	}
	if method == http.MethodHead {
		method = http.MethodGet
	}
	path, item, op := operationOf(method, target)
	if op != nil && r.header.Get("Allow") == "" {
		in, err := http.NewRequestWithContext(context.Background(), method, "http://pawl.test", nil)
		if err != nil {
			a.t.Fatal(err)
		}
		err = openapi3filter.ValidateResponse(context.Background(), &openapi3filter.ResponseValidationInput{
			RequestValidationInput: &openapi3filter.RequestValidationInput{Request: in, Route: &routers.Route{
				Spec: contract(), Path: path, PathItem: item, Method: method, Operation: op,
			}},
			Status: r.status, Header: r.header, Body: io.NopCloser(bytes.NewReader(r.body)),
			Options: &openapi3filter.Options{IncludeResponseStatus: true, ExcludeResponseBody: bodiless},
		})
		if err != nil {
			a.t.Errorf("%s: %d is not what the contract says: %v\n%s", r.request, r.status, err, r.body)
		}
	}
	switch {
	case r.status >= 400:
		a.checkProblem(r, bodiless)
	case r.status == http.StatusNotModified:
		if r.header.Get("ETag") == "" {
			a.t.Errorf("%s: 304 without ETag", r.request)
		}
	case strings.HasPrefix(r.header.Get("Content-Type"), "application/json"):
		if !bodiless {
			a.checkValues(r, "", r.json())
		}
	}
}

func (a *api) checkProblem(r answer, bodiless bool) {
	a.t.Helper()
	if got := r.header.Get("Content-Type"); got != "application/problem+json" {
		a.t.Errorf("%s: the problem is %q: %s", r.request, got, r.body)
		return
	}
	if bodiless {
		return
	}
	if err := contract().Components.Schemas["Problem"].Value.VisitJSON(plain(r), openapi3.EnableJSONSchema2020()); err != nil {
		a.t.Errorf("%s: %v\n%s", r.request, err, r.body)
	}
	code := r.at("code")
	if r.at("status") != r.statusText() || r.at("type") != "/problems/"+code || r.at("request_id") != r.header.Get("X-Request-ID") {
		a.t.Errorf("%s: status, type or request_id of the problem are not those of the answer: %d %v\n%s",
			r.request, r.status, r.header, r.body)
	}
	if _, known := knownProblems.LoadOrStore(code, true); !known {
		page := a.get(r.at("type")).want(http.StatusOK)
		page.wantAt("code", code, "status", r.at("status"), "title", r.at("title"))
	}
	for _, secret := range []string{"pawl.", "SQLSTATE", "goroutine", ".go:"} {
		if bytes.Contains(r.body, []byte(secret)) {
			a.t.Errorf("%s: the problem gives %q away: %s", r.request, secret, r.body)
		}
	}
}

// checkValues checks the form of times and ids, which the schema does not express.
func (a *api) checkValues(r answer, name string, v any) {
	a.t.Helper()
	switch v := v.(type) {
	case map[string]any:
		for name, child := range v {
			switch name {
			case "context", "payload", "payload_schema", "definition": // These belong to the client and may have any form.
			default:
				a.checkValues(r, name, child)
			}
		}
	case []any:
		for _, child := range v {
			a.checkValues(r, "", child)
		}
	case string:
		ids := uuidPattern
		if strings.Contains(r.request, "/v1/tokens") || strings.Contains(r.request, "/v1/tenants") {
			ids = nil // Those are names.
		}
		pattern := map[string]*regexp.Regexp{
			"id": ids, "instance_id": uuidPattern,
			"at": timePattern, "created_at": timePattern, "state_changed_at": timePattern, "expires_at": timePattern,
		}[name]
		if pattern != nil && !pattern.MatchString(v) {
			a.t.Errorf("%s: %s is %q, not like %v", r.request, name, v, pattern)
		}
	}
}

func (r answer) statusText() string { return strconv.Itoa(r.status) }

// plain decodes a body with float64 numbers, as openapi3 expects it.
func plain(r answer) (v any) {
	if err := json.Unmarshal(r.body, &v); err != nil {
		r.t.Errorf("%s: %v in %q", r.request, err, r.body)
	}
	return v
}

func jsonText(t testing.TB, v any) string {
	t.Helper()
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		t.Fatal(err)
	}
	return strings.TrimSuffix(b.String(), "\n")
}
