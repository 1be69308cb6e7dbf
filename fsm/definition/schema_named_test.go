package definition_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/pawl-fsm/pawl/fsm/definition"
)

// library is a lookup of schemas that are given as JSON.
func library(schemas map[string]string) definition.Lookup {
	return func([]string) (definition.Library, error) {
		l := definition.Library{Schemas: map[string]json.RawMessage{}, Hints: map[string]string{"pawl:addrezz": "address"}}
		for ref, schema := range schemas {
			l.Schemas[ref] = json.RawMessage(schema)
		}
		return l, nil
	}
}

// withSchemas is a workflow with a context schema and a payload schema.
func withSchemas(contextSchema, payloadSchema string) string {
	return fmt.Sprintf(`{"name":"w","initial":"A","context_schema":%s,"states":{"A":{"on":{"go":{"target":"B","payload_schema":%s}}},"B":{"type":"final"}}}`,
		contextSchema, payloadSchema)
}

var deployment = map[string]string{
	"pawl:zip":      `{"type":"string","pattern":"^[0-9]{5}$"}`,
	"pawl:zip@1":    `{"type":"string"}`,
	"pawl:address":  `{"type":"object","required":["zip"],"properties":{"zip":{"$ref":"pawl:zip"},"at":{"$ref":"#/$defs/point"}},"$defs":{"point":{"type":"array"}}}`,
	"pawl:old":      `{"$schema":"http://json-schema.org/draft-07/schema#","properties":{"at":{"$ref":"#/definitions/pair"}},"definitions":{"pair":{"items":[{"type":"number"},{"type":"string"}]}}}`,
	"pawl:node":     `{"required":["name"],"properties":{"children":{"items":{"$ref":"pawl:node"}}}}`,
	"pawl:egg":      `{"properties":{"hen":{"$ref":"pawl:hen"}}}`,
	"pawl:hen":      `{"required":["name"],"properties":{"egg":{"$ref":"pawl:egg"}}}`,
	"pawl:anchored": `{"$defs":{"x":{"$anchor":"here","type":"number"}}}`,
}

// A document is checked against the schemas that its own refers to, wherever they stand and whatever their draft.
func TestSchemasOfTheDeployment(t *testing.T) {
	t.Parallel()
	var memo definition.Schemas
	for _, c := range []struct{ schema, fits, not, pointer string }{
		{`{"$ref":"pawl:address"}`, `{"zip":"12345","at":[]}`, `{"zip":"1"}`, "/zip"},
		{`{"properties":{"a":{"$ref":"pawl:address#/$defs/point"}}}`, `{"a":[]}`, `{"a":1}`, "/a"},
		{`{"properties":{"a":{"$ref":"pawl:anchored#here"}}}`, `{"a":1}`, `{"a":"1"}`, "/a"},
		{`{"properties":{"a":{"$ref":"pawl:zip"},"b":{"$ref":"pawl:zip@1"}}}`, `{"a":"12345","b":"x"}`, `{"a":"x","b":"x"}`, "/a"},
		{`{"properties":{"a":{"$ref":"pawl:old"}}}`, `{"a":{"at":[1,"x"]}}`, `{"a":{"at":["x"]}}`, "/a/at/0"},
		{`{"$schema":"https://json-schema.org/draft/2019-09/schema","properties":{"a":{"$ref":"pawl:address"}}}`, `{"a":{"zip":"12345"}}`, `{"a":{}}`, "/a"},
		{`{"$ref":"pawl:node"}`, `{"name":1,"children":[{"name":2}]}`, `{"name":1,"children":[{"name":2,"children":[{}]}]}`, "/children/0/children/0"},
		{`{"$ref":"pawl:egg"}`, `{"hen":{"name":1}}`, `{"hen":{"name":1,"egg":{"hen":{}}}}`, "/hen/egg/hen"},
		{`{"$id":"https://example.com/a","$ref":"#/$defs/pawl:x","$defs":{"pawl:x":{"$ref":"pawl:address"}}}`, `{"zip":"12345"}`, `{}`, ""},
	} {
		d, err := definition.ReadWith([]byte(withSchemas(c.schema, c.schema)), "", definition.Limits{}, library(deployment))
		if err != nil {
			t.Fatal(err)
		}
		if err := d.Err(); err != nil {
			t.Errorf("%s: %v", c.schema, err)
			continue
		}
		if d.Definition.Missing() != nil {
			t.Errorf("%s misses %v", c.schema, d.Definition.Missing())
		}
		bundle := string(d.Definition.Bundled(d.Definition.ContextSchema))
		if faults := check(t, &memo, bundle, c.fits); len(faults) != 0 {
			t.Errorf("%s refuses %s: %v", c.schema, c.fits, faults)
		}
		if faults := check(t, &memo, bundle, c.not); len(faults) != 1 || faults[0].Pointer != "/context"+c.pointer {
			t.Errorf("%s about %s: %v", c.schema, c.not, faults)
		}

		// What is written is kept, and the canonical form needs no deployment.
		canonical, err := json.Marshal(&d.Definition)
		if err != nil {
			t.Fatal(err)
		}
		again, err := definition.Parse(canonical, "", definition.Limits{})
		if err != nil {
			t.Fatalf("%s: %v", canonical, err)
		}
		if text, _ := json.Marshal(again); string(text) != string(canonical) {
			t.Errorf("it is read as %s\nwritten as   %s", text, canonical)
		}
		if string(again.Bundled(again.ContextSchema)) != bundle || string(again.ContextSchema) != compact(t, c.schema) {
			t.Errorf("%s becomes %s with %s", c.schema, again.ContextSchema, again.Bundled(again.ContextSchema))
		}
	}
}

func compact(t *testing.T, text string) string {
	t.Helper()
	var v any
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatal(err)
	}
	out, _ := json.Marshal(v)
	return string(out)
}

func TestFaultsOfReferences(t *testing.T) {
	t.Parallel()
	lost := map[string]string{"pawl:lost": `{"$ref":"pawl:gone"}`, "pawl:wrong": `{"type":"strin"}`, "pawl:zip": deployment["pawl:zip"]}
	for schema, want := range map[string]string{
		`{"properties":{"a":{"$ref":"pawl:addrezz"}}}`: `/context_schema/properties/a/$ref: there is no schema "addrezz"; did you mean "address"?`,
		`{"$ref":"pawl:zip@9"}`:                        `/context_schema/$ref: there is no schema "zip@9": register it first, with PUT /v1/schemas`,
		`{"$ref":"pawl:lost"}`:                         `/context_schema: there is no schema "gone": register it first, with PUT /v1/schemas`,
		`{"$ref":"pawl:Zip#/a"}`:                       `/context_schema/$ref: "pawl:Zip" must be "pawl:" and the name of a schema, and may end with @ and a version, as "pawl:address@3"`,
		`{"$ref":"pawl:zip#/nothing"}`:                 `nothing`,
		`{"$ref":"pawl:wrong"}`:                        `/context_schema: is no JSON Schema`,
		`{"$ref":"https://example.com/a"}`:             `/context_schema: $ref to https://example.com/a leaves the document`,
		`{"$schema":"http://json-schema.org/draft-07/schema#","allOf":[{"$ref":"pawl:zip"}]}`: `/context_schema/$schema: must be that of draft 2019-09 or 2020-12, or left out, since the schema refers to pawl:zip`,
		`{"$ref":"pawl:zip","$defs":{"pawl:zip":{}}}`:                                         `/context_schema/$defs/pawl:zip: has the name of a schema of the deployment that is referred to; take another name`,
		`{"$defs":{"a":{"$id":"pawl:zip"}}}`:                                                  `/context_schema/$defs/a/$id: must not begin with pawl:, which is for the schemas of the deployment`,
		`{"properties":{"a":{"$ref":"pawl:zip"}},"description":"` + strings.Repeat("x", 900) + `","a":[` + join(30, func(int) string { return `{"$ref":"pawl:zip"}` }) + `]}`: "",
	} {
		d, err := definition.ReadWith([]byte(withSchemas(schema, `{}`)), "", definition.Limits{Bytes: 4000}, library(lost))
		if err != nil {
			t.Fatal(err)
		}
		faults := definition.FaultsOf(d.Err())
		switch {
		case want == "":
			if len(faults) != 0 {
				t.Errorf("%s: %v", schema, faults)
			}
		case len(faults) != 1 || !strings.Contains(faults[0].Pointer+": "+faults[0].Detail, want):
			t.Errorf("%s: %v", schema, faults)
		}
	}
}

// Where nobody knows the schemas of the deployment, a definition that refers to some is read, and says which it misses.
func TestReferencesWithoutADeployment(t *testing.T) {
	t.Parallel()
	d, err := definition.Parse([]byte(withSchemas(`{"$ref":"pawl:b"}`, `{"allOf":[{"$ref":"pawl:a@2#/x"},{"$ref":"pawl:b"}]}`)), "", definition.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if got := d.Missing(); !slices.Equal(got, []string{"pawl:a@2", "pawl:b"}) {
		t.Errorf("it misses %v", got)
	}
}

// The copies of the deployment's schemas count against the limit of a definition, each as often as it is referred to.
func TestCopiesOfSchemasAreBounded(t *testing.T) {
	t.Parallel()
	big := library(map[string]string{"pawl:big": `{"description":"` + strings.Repeat("x", 3000) + `"}`})
	d, err := definition.ReadWith([]byte(withSchemas(`{"$ref":"pawl:big"}`, `{"properties":{"a":{"$ref":"pawl:big"}}}`)), "", definition.Limits{Bytes: 4000}, big)
	if err != nil {
		t.Fatal(err)
	}
	faults := definition.FaultsOf(d.Err())
	if len(faults) != 1 || !strings.Contains(faults[0].Detail, "more than 4000 bytes together") {
		t.Errorf("%v", faults)
	}
}

func TestDiffKnowsTheSchemasOfTheDeployment(t *testing.T) {
	t.Parallel()
	read := func(zip string) *definition.Definition {
		d, err := definition.ReadWith([]byte(withSchemas(`{"$ref":"pawl:zip"}`, `{"$ref":"pawl:zip"}`)), "", definition.Limits{}, library(map[string]string{"pawl:zip": zip}))
		if err != nil || d.Err() != nil {
			t.Fatal(err, d.Err())
		}
		return &d.Definition
	}
	if changes := definition.Diff(read(`{"minLength":1}`), read(`{"minLength":1}`)); len(changes) != 0 {
		t.Errorf("the same schemas differ: %v", changes)
	}
	changes := definition.Diff(read(`{"minLength":1}`), read(`{"minLength":2}`))
	if len(changes) != 2 || changes[0].Pointer != "/context_schema" || changes[1].Pointer != "/states/A/on/go/0/payload_schema" || changes[1].Risk == "" {
		t.Errorf("another version of a schema: %v", changes)
	}
	written, err := definition.Parse([]byte(withSchemas(`{"$ref":"pawl:zip"}`, `{"$ref":"pawl:zip"}`)), "", definition.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if changes := definition.Diff(read(`{"minLength":1}`), written); len(changes) != 0 {
		t.Errorf("the same references differ: %v", changes)
	}
}

func TestCheckSchema(t *testing.T) {
	t.Parallel()
	for schema, want := range map[string]string{
		`{"properties":{"zip":{"$ref":"pawl:zip"}}}`:                                                                        "",
		`{"properties":{"next":{"$ref":"pawl:mine"},"first":{"$ref":"pawl:mine#/$defs/a"}},"$defs":{"a":{}}}`:               "",
		`{"$schema":"http://json-schema.org/draft-07/schema#","allOf":[{"$ref":"#/definitions/a"}],"definitions":{"a":{}}}`: "",
		`{"schemas":{"a":1}}`:            "",
		`{"$ref":"pawl:addrezz"}`:        `/$ref: there is no schema "addrezz"; did you mean "address"?`,
		`{"$ref":"pawl:mine#/$defs/b"}`:  `$defs/b`,
		`{"$id":"https://example.com/"}`: `/$id: must be left out: the name of the schema is its identifier`,
		`{"format":"int32"}`:             `/format: there is no format "int32"`,
		`{"type":"strin"}`:               `is no JSON Schema`,
		`{"$schema":"http://json-schema.org/draft-07/schema#","$ref":"#/definitions/a","definitions":{"a":{}}}`: `/$ref: must be within allOf, since this draft reads nothing beside it`,
		`{"$schema":"http://json-schema.org/draft-04/schema#"}`:                                                 `/$schema: must be that of draft-06 or later, or left out`,
		`[]`: `object`,
	} {
		err := definition.CheckSchema("mine", []byte(schema), definition.Limits{}, library(deployment))
		var e *definition.Error
		if want == "" && err != nil || want != "" && (!errors.As(err, &e) || len(e.Faults) != 1 || !strings.Contains(e.Faults[0].Pointer+": "+e.Faults[0].Detail, want)) {
			t.Errorf("%s: %v", schema, err)
		}
	}
	if err := definition.CheckSchema("Mine", []byte(`{}`), definition.Limits{}, nil); !errors.Is(err, definition.ErrInvalid) {
		t.Errorf("a bad name: %v", err)
	}
	if err := definition.CheckSchema("mine", []byte(`{"a":1}`), definition.Limits{Bytes: 6}, nil); !errors.Is(err, definition.ErrTooLarge) {
		t.Errorf("a large schema: %v", err)
	}
	failed := errors.New("no deployment")
	if err := definition.CheckSchema("mine", []byte(`{"$ref":"pawl:a"}`), definition.Limits{}, func([]string) (definition.Library, error) { return definition.Library{}, failed }); !errors.Is(err, failed) {
		t.Errorf("a lookup that fails: %v", err)
	}
}
