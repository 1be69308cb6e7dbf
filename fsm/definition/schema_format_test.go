package definition_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/pawl-fsm/pawl/fsm/definition"
)

var drafts = []string{
	"http://json-schema.org/draft-04/schema#", "http://json-schema.org/draft-06/schema#", "http://json-schema.org/draft-07/schema#",
	"https://json-schema.org/draft/2019-09/schema", "https://json-schema.org/draft/2020-12/schema",
}

// Every format that is listed is checked, whatever the draft.
func TestFormatsAreChecked(t *testing.T) {
	t.Parallel()
	examples := map[string][2]string{ // One that fits, and one that does not.
		"date":                  {"2026-02-28", "2026-02-30"},
		"date-time":             {"2026-02-28T10:00:00Z", "2026-02-28 10:00"},
		"duration":              {"P3D", "3d"},
		"email":                 {"ada@example.com", "ada"},
		"hostname":              {"example.com", "-example"},
		"ipv4":                  {"192.0.2.1", "192.0.2"},
		"ipv6":                  {"2001:db8::1", "2001:db8"},
		"iri":                   {"https://example.com/ä", "/ä"},
		"iri-reference":         {"/ä", `\`},
		"json-pointer":          {"/a/b", "a/b"},
		"period":                {"2026-02-28T10:00:00Z/P3D", "2026-02-28"},
		"regex":                 {"a+", "("},
		"relative-json-pointer": {"1/a", "/a"},
		"semver":                {"1.2.3", "1.2"},
		"time":                  {"10:00:00Z", "10:00"},
		"uri":                   {"https://example.com", "/a"},
		"uri-reference":         {"/a", `\`},
		"uri-template":          {"https://example.com/{id}", "https://example.com/{id"},
		"uuid":                  {"0195a2f4-7c31-7e0b-9d52-6f1a3b8c4d5e", "0195a2f4"},
	}
	if names := slices.Sorted(maps.Keys(examples)); !slices.Equal(names, definition.Formats) {
		t.Fatalf("the examples are of %v, the formats are %v", names, definition.Formats)
	}
	var memo definition.Schemas
	for format, example := range examples {
		for _, draft := range append(drafts, "") {
			schema := fmt.Sprintf(`{"$schema":%q,"properties":{"a":{"format":%q}}}`, draft, format)
			if draft == "" {
				schema = fmt.Sprintf(`{"properties":{"a":{"format":%q}}}`, format)
			}
			if faults := check(t, &memo, schema, fmt.Sprintf(`{"a":%q}`, example[0])); len(faults) != 0 {
				t.Errorf("%s refuses %q: %v", schema, example[0], faults)
			}
			if faults := check(t, &memo, schema, fmt.Sprintf(`{"a":%q}`, example[1])); len(faults) != 1 || faults[0].Pointer != "/context/a" {
				t.Errorf("%s takes %q: %v", schema, example[1], faults)
			}
			if faults := check(t, &memo, schema, `{"a":1}`); len(faults) != 0 {
				t.Errorf("%s is applied to a number: %v", schema, faults)
			}
		}
	}
}

// A format that nobody checks is a fault, where it is the keyword of a schema. The word may stand elsewhere.
func TestUnknownFormats(t *testing.T) {
	t.Parallel()
	faults := func(schema string) []definition.Fault {
		d, err := definition.Read([]byte(`{"name":"w","initial":"A","context_schema":`+schema+`,"states":{"A":{"on":{"go":{"target":"B"}}},"B":{"type":"final"}}}`),
			"", definition.Limits{})
		if err != nil {
			t.Fatal(err)
		}
		return definition.FaultsOf(d.Err())
	}
	for schema, places := range map[string][]string{
		`{"properties":{"a":{"format":"int32"},"b":{"items":{"format":"Date"}},"c":{"format":"date"}}}`: {
			`/properties/a/format: there is no format "int32"`, `/properties/b/items/format: there is no format "Date"`,
		},
		`{"format":"x"}`: {`/format: there is no format "x"`},
		`{"$ref":"#/$defs/a~1b%20c","$defs":{"a/b c":{"format":"x"}}}`:                                                      {`/$defs/a~1b c/format: there is no format "x"`},
		`{"$schema":"http://json-schema.org/draft-07/schema#","definitions":{"d":{"format":"x"}},"$ref":"#/definitions/d"}`: {`/definitions/d/format: there is no format "x"`},
	} {
		got := faults(schema)
		if len(got) != 1 || got[0].Pointer != "/context_schema" || !strings.HasSuffix(got[0].Detail, "; the formats are "+strings.Join(definition.Formats, ", ")) {
			t.Errorf("%s: %v", schema, got)
			continue
		}
		for _, place := range places {
			if !strings.Contains(got[0].Detail, place) {
				t.Errorf("%s: %q does not say %q", schema, got[0].Detail, place)
			}
		}
	}
	for _, schema := range []string{
		`{"properties":{"format":{"enum":[{"format":"pdf"}]}},"default":{"format":"pdf"},"const":{"format":"pdf"},"examples":[{"format":"pdf"}]}`,
		`{"properties":{"format":{"type":"string"}},"required":["format"]}`,
	} {
		if got := faults(schema); len(got) != 0 {
			t.Errorf("%s: %v", schema, got)
		}
	}
}
