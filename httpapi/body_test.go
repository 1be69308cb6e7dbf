package httpapi_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/pawl-fsm/pawl/db"
	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/httpapi"
)

// JSON that is not strict is 400, with the place of the fault where there is one.
func TestStrictJSON(t *testing.T) {
	t.Parallel()
	a := start(t)
	a.register(counter)
	id := a.create("counter", `{"context": {"sum": 0}}`)
	deep := func(n int) string { return strings.Repeat(`{"a":`, n-1) + `{}` + strings.Repeat(`}`, n-1) }
	bodies := map[string]string{
		`null`:                           "",
		`[]`:                             "",
		`"x"`:                            "",
		`1`:                              "",
		` `:                              "",
		`{`:                              "",
		`{"DOC": {}`:                     "",
		`{"DOC": {}} {}`:                 "",
		`{"DOC": {}}x`:                   "",
		`{"DOC": {},}`:                   "",
		`{'DOC': {}}`:                    "",
		`{"DOC": {"a": 01}}`:             "/DOC",
		`{"DOC": {"a": NaN}}`:            "/DOC/a",
		`{"DOC": {"a": .5}}`:             "/DOC/a",
		`{"DOC": {} /* no */}`:           "",
		"\ufeff{}":                       "",
		`{"DOC": null}`:                  "/DOC",
		`{"DOC": []}`:                    "/DOC",
		`{"DOC": "x"}`:                   "/DOC",
		`{"DOC": 1}`:                     "/DOC",
		`{"DOC": {}, "DOC": {}}`:         "/DOC",
		`{"DOC": {"a": 1, "a": 1}}`:      "/DOC/a",
		`{"DOC": {"a": 1, "\u0061": 1}}`: "/DOC/a",
		`{"Doc": {}}`:                    "/Doc",
		`{"nonsense": 1}`:                "/nonsense",
		`{"reason": null}`:               "/reason",
		`{"reason": 1}`:                  "/reason",
		`{"reason": "` + strings.Repeat("x", 1001) + `"}`: "/reason",
		`{"DOC": {"a": "\u0000"}}`:                        "/DOC/a",
		`{"DOC": {"a\u0000": 1}}`:                         "/DOC/a\x00",
		`{"reason": "a\u0000"}`:                           "/reason",
		"{\"DOC\": {\"a\": \"\x00\"}}":                    "/DOC/a",
		`{"DOC": {"a": "\ud800"}}`:                        "/DOC/a",
		`{"DOC": {"a": "\udc00\ud800"}}`:                  "/DOC/a",
		`{"DOC": {"a": "\ud800x"}}`:                       "/DOC/a",
		"{\"DOC\": {\"a\": \"\xff\"}}":                    "/DOC/a",
		"{\"DOC\": {\"a\": \"\xed\xa0\x80\"}}":            "/DOC/a",
		`{"DOC": ` + deep(64) + `}`:                       "*",
		`{"DOC": {"a": ` + strings.Repeat("[", 63) + strings.Repeat("]", 63) + `}}`: "*",
		`{"DOC": {"a": 1e400000}}`:              "/DOC/a",
		`{"DOC": {"a": -1e-400000}}`:            "/DOC/a",
		`{"DOC": {"a": 1e9999999999999999999}}`: "/DOC/a",
	}
	for body, pointer := range bodies {
		for target, document := range map[string]string{
			"/v1/workflows/counter/instances": "context", "/v1/instances/" + id + "/actions/set": "payload",
		} {
			text := strings.ReplaceAll(body, "DOC", document)
			r := a.post(target, newKey(), text)
			if r.status != http.StatusBadRequest || r.at("code") != "malformed-request" {
				t.Errorf("%.100q: got %d %s", text, r.status, r.body)
				continue
			}
			want := strings.ReplaceAll(pointer, "DOC", document)
			if got := r.at("errors.0.pointer"); want != "*" && !strings.HasPrefix(got, want) {
				t.Errorf("%.100q: the fault is at %q, want %q: %s", text, got, want, r.body)
			}
		}
	}
	for _, fine := range []string{
		`{}`, ` {"payload":{}} `, `{"payload": ` + deep(63) + `}`, `{"payload": {"a": "\u00e9 \ud83d\ude00 \\u0000"}}`,
		`{"reason": "` + strings.Repeat("é", 1000) + `"}`, `{"payload": {"": 1}}`,
	} {
		if r := a.post("/v1/instances/"+id+"/actions/set", newKey(), fine); r.status != http.StatusOK {
			t.Errorf("%.100q: got %d %s", fine, r.status, r.body)
		}
	}
}

// Members that are empty, too long or of another type are 400, with the place of the fault. So
// are bodies of other operations that are no JSON object.
func TestStrictMembers(t *testing.T) {
	t.Parallel()
	a := start(t)
	a.register(counter)
	for body, pointer := range map[string]string{
		`{"business_key": ""}`:                                   "/business_key",
		`{"business_key": null}`:                                 "/business_key",
		`{"business_key": "` + strings.Repeat("x", 256) + `"}`:   "/business_key",
		`{"correlation_id": ""}`:                                 "/correlation_id",
		`{"correlation_id": "a\nb\u0007"}`:                       "/correlation_id",
		`{"correlation_id": "a b"}`:                              "/correlation_id",
		`{"correlation_id": "` + strings.Repeat("x", 256) + `"}`: "/correlation_id",
		`{"expires_in": ""}`:                                     "/expires_in",
		`{"expires_in": "soon"}`:                                 "/expires_in",
		`{"expires_in": "0s"}`:                                   "/expires_in",
		`{"expires_in": "-1s"}`:                                  "/expires_in",
		`{"expires_in": 60}`:                                     "/expires_in",
		`{"expires_in": "60s"}`:                                  "/expires_in", // The workflow has no ttl to override.
		`{"id": "0195a2f4-7c31-7e0b-9d52-6f1a3b8c4d5e"}`:         "/id",
	} {
		r := a.post("/v1/workflows/counter/instances", newKey(), body).want(http.StatusBadRequest, "malformed-request")
		r.wantAt("errors.0.pointer", pointer)
	}
	a.do(http.MethodPut, "/v1/workflows/counter", `{"states": {}, "states": {}}`).want(http.StatusBadRequest, "malformed-request")
	a.do(http.MethodPut, "/v1/workflows/counter", `[]`).want(http.StatusBadRequest, "malformed-request")
	a.do(http.MethodPut, "/v1/workflows/counter", `null`).want(http.StatusBadRequest, "malformed-request")
	a.do(http.MethodPut, "/v1/workflows/counter", ``).want(http.StatusBadRequest, "malformed-request")
	a.do(http.MethodPost, "/v1/batch", ``).want(http.StatusBadRequest, "malformed-request")
}

// Numbers keep all digits in the request, the guard, the context, the answer and history.
func TestNumbers(t *testing.T) {
	t.Parallel()
	a := start(t)
	a.register(`{"name": "exact", "initial": "A", "states": {
		"A": {"on": {"keep": {
			"target": "A", "guard": "$.payload.n == $.context.n || $.payload.n == 9007199254740993",
			"assign": {"n": "$.payload.n", "next": "$.payload.n + 1"}
		}, "stop": "B"}}, "B": {"type": "final"}}}`)
	for _, n := range []string{
		"9007199254740993", "-9007199254740993", "1.10", "0.1000000000000000055511151231257827", "123456789012345678901234567890",
		"1.00", "0", "100000000000000000000.000000000000000000001",
	} {
		id := a.create("exact", `{"context": {"n": `+n+`}}`)
		a.get("/v1/instances/"+id).wantAt("context.n", n)
		a.fire(id, "keep", `{"payload": {"n": `+n+`}}`).want(http.StatusOK).wantAt("context.n", n)
		a.get("/v1/instances/"+id+"/history").wantAt("items.0.context.n", n, "items.1.payload.n", n, "items.1.context.n", n)
	}
	id := a.create("exact", `{"context": {"n": 0}}`)
	// As float64 these two numbers are equal.
	a.fire(id, "keep", `{"payload": {"n": 9007199254740992}}`).want(http.StatusConflict, "guard-rejected")
	a.fire(id, "keep", `{"payload": {"n": 9007199254740993}}`).want(http.StatusOK).wantAt("context.next", "9007199254740994")
}

// A body, a context or a payload above its limit is 413.
func TestSizes(t *testing.T) {
	t.Parallel()
	a := start(t)
	a.register(counter)
	instances := "/v1/workflows/counter/instances"
	id := a.create("counter", `{"context": {"sum": 0}}`)
	fill := func(member string, bytes int) string { // The quotes, braces, colon, name and spaces take 9 bytes.
		return `{"` + member + `":{"a":"` + strings.Repeat("x", bytes-9) + `"}}`
	}
	limit := 64 << 10
	a.post(instances, newKey(), fill("context", limit-1)).want(http.StatusCreated)
	a.post(instances, newKey(), fill("context", limit+1)).want(http.StatusRequestEntityTooLarge, "too-large")
	a.fire(id, "stop", fill("payload", limit+1)).want(http.StatusRequestEntityTooLarge, "too-large")
	full := a.post(instances, newKey(), fill("context", limit-20)).want(http.StatusCreated).at("id")
	grown := a.fire(full, "set", `{"payload": {"more": "`+strings.Repeat("x", 40)+`"}}`)
	grown.want(http.StatusRequestEntityTooLarge, "too-large")
	a.get("/v1/instances/"+full).wantAt("version", "1")
	a.fire(full, "set", `{"payload": {"a": 1}}`).want(http.StatusOK)
	a.fire(id, "stop", fill("payload", limit-1)).want(http.StatusOK)

	space := strings.Repeat(" ", 1<<20-2)
	a.post(instances, newKey(), "{"+space+"}").want(http.StatusCreated)
	for _, target := range []string{instances, "/v1/instances/" + id + "/actions/stop", "/v1/batch"} {
		a.post(target, newKey(), "{"+space+" }").want(http.StatusRequestEntityTooLarge, "too-large")
	}
	a.do(http.MethodPut, "/v1/workflows/counter", "{"+space+" }").want(http.StatusRequestEntityTooLarge, "too-large")
	// Without Content-Length the size is known only after reading.
	chunked := fmt.Sprintf("POST %s HTTP/1.1\r\nHost: pawl.test\r\nContent-Type: application/json\r\nIdempotency-Key: k\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n{%s }\r\n0\r\n\r\n",
		instances, 1<<20+1, space)
	if status := a.raw(chunked); status != http.StatusRequestEntityTooLarge {
		t.Errorf("a large chunked body gets %d", status)
	}
	small := a.another(setup{http: httpapi.Config{MaxBody: 10}})
	small.post(instances, newKey(), `{          }`).want(http.StatusRequestEntityTooLarge, "too-large")

	context, payload := 100, 50
	if err := db.Set(t.Context(), dbtest.DSN(a.pool), db.Settings{ContextLimit: &context, PayloadLimit: &payload}); err != nil {
		t.Fatal(err)
	}
	a.post(instances, newKey(), fill("context", 102)).want(http.StatusRequestEntityTooLarge, "too-large")
	id = a.post(instances, newKey(), fill("context", 90)).want(http.StatusCreated).at("id")
	a.fire(id, "set", fill("payload", 52)).want(http.StatusRequestEntityTooLarge, "too-large")
	a.fire(id, "set", fill("payload", 40)).want(http.StatusOK)
}

func TestMediaTypes(t *testing.T) {
	t.Parallel()
	a := start(t)
	a.register(counter)
	instances := "/v1/workflows/counter/instances"
	for _, fine := range []string{
		"application/json", "application/json; charset=utf-8", "Application/JSON;charset=UTF-8", `application/json; charset="utf-8"`,
	} {
		a.post(instances, newKey(), "{}", "Content-Type", fine).want(http.StatusCreated)
	}
	for _, bad := range []string{
		"text/plain", "application/x-www-form-urlencoded", "application/json; charset=latin1", "application/merge-patch+json",
		"application/jsonx", "json", "application/json; charset", "application/yaml",
	} {
		r := a.post(instances, newKey(), "{}", "Content-Type", bad)
		if r.status != http.StatusUnsupportedMediaType {
			t.Errorf("%s: got %d %s", bad, r.status, r.body)
		}
	}
	for _, bad := range []string{"gzip", "identity, gzip", "gzip, identity"} {
		a.post(instances, newKey(), "{}", "Content-Encoding", bad).want(http.StatusUnsupportedMediaType, "unsupported-media-type")
	}
	a.post(instances, newKey(), "{}", "Content-Encoding", "identity", "Content-Encoding", "gzip").
		want(http.StatusUnsupportedMediaType, "unsupported-media-type")
	a.post(instances, newKey(), "{}", "Content-Encoding", "Identity").want(http.StatusCreated)
	a.post(instances, newKey(), "", "Content-Type", "text/plain").want(http.StatusCreated) // Without a body its type does not matter.
	a.do(http.MethodPut, "/v1/workflows/counter", counter, "Content-Type", "application/yaml").want(http.StatusUnsupportedMediaType)
	a.do(http.MethodPost, "/v1/batch", "{}", "Content-Type", "text/plain").want(http.StatusUnsupportedMediaType)

	for _, fine := range []string{
		"", "*/*", "application/*", "application/json", "text/html, application/json;q=0.1", "text/html, */*; q=0.8",
		"application/json; charset=utf-8", "application/problem+json, application/json", "APPLICATION/JSON",
		`text/html;title="a, b;q=0", application/json`, `text/html;title="\",application/json;q=0", */*;q=0.1`, ",application/json,,",
		"application/json;q=nonsense", `application/json;q="0.5"`,
	} {
		a.get("/v1/workflows", "Accept", fine).want(http.StatusOK)
	}
	for _, bad := range []string{
		"text/html", "application/problem+json", "application/json;q=0", "*/*;q=0", "text/*", "application/json;q=0, */*",
		"application/json;q=0.000", `text/html;title="a, application/json"`, "application/json; Q=0",
	} {
		a.get("/v1/workflows", "Accept", bad).want(http.StatusNotAcceptable, "not-acceptable")
	}
	a.post(instances, newKey(), "{}", "Accept", "text/html").want(http.StatusNotAcceptable, "not-acceptable")
	if got := a.get("/openapi.yaml", "Accept", "text/html").want(http.StatusOK).header.Get("Content-Type"); got != "application/yaml" {
		t.Errorf("the contract is %s", got)
	}
}

// Which operations take a body, and which need one, is as the contract says. A body without a
// type is refused.
func TestBodiesOfTheContract(t *testing.T) {
	t.Parallel()
	a := start(t)
	a.register(counter)
	parameter := strings.NewReplacer("{name}", "counter", "{version}", "1", "{id}", "0195a2f4-7c31-7e0b-9d52-6f1a3b8c4d5e", "{event}", "set", "{code}", "internal")
	seen := 0
	for path, item := range contract().Paths.Map() {
		for method, op := range item.Operations() {
			if op.RequestBody == nil {
				continue
			}
			seen++
			send := func(body string, headers ...string) answer {
				return a.do(method, parameter.Replace(path), body, append(headers, "Idempotency-Key", newKey())...)
			}
			for _, typeless := range [][]string{{"Content-Type", ""}, {"Content-Type", " "}} {
				send(`{}`, typeless...).want(http.StatusUnsupportedMediaType, "unsupported-media-type").
					wantAt("detail", "send the body with Content-Type: application/json, in UTF-8 and without compression")
			}
			none := send("")
			if needed := none.status == http.StatusBadRequest && none.at("detail") == "this operation needs a JSON body"; needed != op.RequestBody.Value.Required {
				t.Errorf("%s %s needs a body: %v, but the contract says %v: %s", method, path, needed, op.RequestBody.Value.Required, none.body)
			}
		}
	}
	if seen < 10 {
		t.Errorf("the contract has %d operations with a body", seen)
	}
}
