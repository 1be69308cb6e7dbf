package httpapi_test

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
)

// searched is a workflow that finds its instances by what a member search says.
func searched(search string) string {
	return `{"name": "searched", "initial": "ON", "search": {` + search + `}, "states": {"ON": {"on": {"stop": "OFF"}}, "OFF": {"type": "final"}}}`
}

// list returns the business keys of the instances that a condition finds, in the order of their creation.
func (a *api) list(where string) (keys []string, incomplete string) {
	a.t.Helper()
	r := a.get("/v1/instances?workflow=searched&sort=created_at&where=" + url.QueryEscape(where)).want(http.StatusOK)
	return r.each("items", "business_key"), r.at("incomplete")
}

// wantList wants a condition to find instances.
func (a *api) wantList(what, where string, want ...string) {
	a.t.Helper()
	if got, incomplete := a.list(where); !slices.Equal(got, want) || incomplete != "false" {
		a.t.Errorf("%s, %.60s: %v, incomplete: %s; want %v", what, where, got, incomplete, want)
	}
}

// What a path leads to may be anything. Objects, arrays, null and what is too large are not found, and hinder nothing.
func TestSearchOfOddValues(t *testing.T) {
	t.Parallel()
	a := start(t)
	a.register(searched(`"a": "$.context.a", "deep": "$.context.a.b.c"`))
	long := strings.Repeat("ü", 30_000)
	for key, context := range map[string]string{
		"object": `{"a": {"b": {"c": "deep"}}}`, "array": `{"a": ["LH"]}`, "null": `{"a": null}`, "nothing": `{}`,
		"text": `{"a": "LH"}`, "huge": `{"a": "` + long + `"}`, "zeros": `{"a": 1` + strings.Repeat("0", 200) + `}`,
		"number": `{"a": 1}`, "elements": `{"a": {"b": [{"c": "deep"}]}}`, "empty": `{"a": {"b": {}}}`,
	} {
		a.create("searched", `{"business_key": "`+key+`", "context": `+context+`}`)
	}
	for _, when := range []string{"before the fold", "after it"} {
		a.wantList(when, "a=LH", "text")
		a.wantList(when, "a="+long[:900]+"*", "huge")
		a.wantList(when, "a>LH", "huge")
		a.wantList(when, "a>=1", "number")
		a.wantList(when, "deep=deep", "object")
		for _, nothing := range []string{`a="null"`, "a=null", `a=""`, "a=*x", `a={"b": {"c": "deep"}}`, `a=["LH"]`, "a=true", "a=2026-03-01T09:00:00Z"} {
			a.wantList(when, nothing)
		}
		a.folded()
	}
	a.do(http.MethodPost, "/v1/workflows/searched/reindex", "").want(http.StatusOK).wantAt("complete", "true")
	// A condition as long as the value is refused, as are bytes that are no text.
	for _, where := range []string{"a=" + url.QueryEscape(long[:1002]), "a=%FF", "a=%00", "a=1%00"} {
		a.get("/v1/instances?workflow=searched&where="+where).want(http.StatusBadRequest, "malformed-request").wantAt("errors.0.parameter", "where")
	}
	conditions := strings.Repeat("&where=a=LH", 10)
	a.get("/v1/instances?workflow=searched"+conditions).want(http.StatusOK).wantAt("items.0.business_key", "text")
	a.get("/v1/instances?workflow=searched"+conditions+"&where=a=LH").want(http.StatusBadRequest, "malformed-request").wantAt("errors.0.parameter", "where")
}

// A later version may give an attribute another type, or none. It counts for all instances, once they are indexed anew. An
// attribute that it does not have is none, whatever former versions had.
func TestSearchOfAnotherType(t *testing.T) {
	t.Parallel()
	a := start(t)
	a.register(searched(`"p": "$.context.p", "former": "$.context.p"`))
	for key, value := range map[string]string{"number": "400", "text": `"400"`, "time": `"2026-03-01T09:00:00Z"`, "boolean": "true", "object": `{"x": 1}`, "array": "[400]", "null": "null"} {
		a.create("searched", fmt.Sprintf(`{"business_key": %q, "context": {"p": %s}}`, key, value))
	}
	a.folded()
	a.wantList("of the first version", "p=400", "number")
	refused := func(where, detail string) {
		t.Helper()
		r := a.get("/v1/instances?workflow=searched&where="+url.QueryEscape(where)).want(http.StatusBadRequest, "malformed-request").wantAt("errors.0.parameter", "where")
		if got := r.at("errors.0.detail"); !strings.Contains(got, detail) {
			t.Errorf("%s: %s", where, got)
		}
	}
	const keys = "number text time boolean object array null"
	for _, c := range []struct {
		kind  string
		finds map[string]string
		bad   string
	}{
		{"number", map[string]string{"p=400": "number text", "p<1": ""}, "p=x"},
		{"text", map[string]string{"p=400": "number text", "p=true": "boolean", "p=2026*": "time", `p={"x": 1}`: "", "p=[400]": "", "p=null": "", `p="{\"x\": 1}"`: ""}, ""},
		{"time", map[string]string{"p=2026-03-01T10:00:00+01:00": "time"}, "p=400"},
		{"boolean", map[string]string{"p=true": "boolean", "p=false": ""}, `p="true"`},
	} {
		a.register(searched(`"p": {"path": "$.context.p", "type": "` + c.kind + `"}`))
		for where := range c.finds {
			if _, incomplete := a.list(where); incomplete != "true" {
				t.Errorf("%s, %s: before the reindex incomplete is %s", c.kind, where, incomplete)
			}
		}
		a.do(http.MethodPost, "/v1/workflows/searched/reindex", "").want(http.StatusOK).wantAt("complete", "true", "indexed", "7", "total", "7")
		for where, want := range c.finds {
			got, incomplete := a.list(where)
			for _, key := range strings.Fields(keys) {
				if slices.Contains(got, key) != slices.Contains(strings.Fields(want), key) || incomplete != "false" {
					t.Errorf("%s, %s: %v, incomplete: %s; want %s", c.kind, where, got, incomplete, want)
				}
			}
		}
		if c.bad != "" {
			refused(c.bad, "must have a value of the type "+c.kind)
		}
		refused("former=400", `there is no search attribute "former"`)
		refused("never=400", `there is no search attribute "never"`)
	}
	a.register(strings.Replace(searched(""), `"search": {}, `, "", 1))
	refused("p=400", `there is no search attribute "p"`)
	a.do(http.MethodPost, "/v1/workflows/searched/reindex", "").want(http.StatusOK).wantAt("complete", "true")
}
