package definition

import (
	"bytes"
	"encoding/json"
	"maps"
	"math/big"
	"slices"
	"strings"
)

// schema compares two JSON Schemas, each nil if there is none.
func (d *differ) schema(at, what, risk string, a, b json.RawMessage) {
	old, schema := decodeSchema(a), decodeSchema(b)
	switch {
	case EqualJSON(old, schema) && (a == nil) == (b == nil):
	case a == nil:
		if loosens(old, schema) {
			risk = ""
		}
		d.add(Added, at, risk, "%s must fit a schema", what)
	case b == nil:
		d.add(Removed, at, "", "%s need no longer fit a schema", what)
	case loosens(old, schema):
		d.add(Changed, at, "", "%s must fit another schema, which takes all that the old one took", what)
	default:
		d.add(Changed, at, risk, "%s must fit another schema", what)
	}
}

// decodeSchema reads a schema. Without a schema every document is valid, as with the schema true.
func decodeSchema(text json.RawMessage) any {
	if text == nil {
		return true
	}
	var v any
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.UseNumber()
	if err := decoder.Decode(&v); err != nil {
		return string(text) // Not JSON, so that it equals only itself.
	}
	return v
}

// EqualJSON compares values as jsonb does: numbers by their value, objects whatever their order.
func EqualJSON(a, b any) bool {
	switch a := a.(type) {
	case map[string]any:
		b, ok := b.(map[string]any)
		return ok && maps.EqualFunc(a, b, EqualJSON)
	case []any:
		b, ok := b.([]any)
		return ok && slices.EqualFunc(a, b, EqualJSON)
	case json.Number:
		b, ok := b.(json.Number)
		return ok && compareNumbers(a, b) == 0
	default:
		return a == b
	}
}

func compareNumbers(a, b json.Number) int {
	x, okX := new(big.Rat).SetString(a.String())
	y, okY := new(big.Rat).SetString(b.String())
	if !okX || !okY {
		return strings.Compare(a.String(), b.String())
	}
	return x.Cmp(y)
}

// Keywords of JSON Schema 2020-12 (json-schema.org/draft/2020-12). Annotations have no effect on validity.
// Assertions can only refuse, so a schema without one accepts at least as much.
var (
	schemaAnnotations = []string{"title", "description", "$comment", "default", "deprecated", "examples", "readOnly", "writeOnly"}
	schemaAssertions  = []string{
		"type", "enum", "const", "format", "multipleOf", "minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum",
		"minLength", "maxLength", "pattern", "minItems", "maxItems", "uniqueItems", "minProperties", "maxProperties",
		"required", "dependentRequired",
	}
)

// loosens reports whether the schema to is certain to accept every document that from accepts. It knows
// the usual ways to loosen a schema, and returns false for all others.
func loosens(from, to any) bool {
	if to == true || from == false || EqualJSON(from, to) {
		return true
	}
	if from == true {
		from = map[string]any{}
	}
	a, okA := from.(map[string]any)
	b, okB := to.(map[string]any)
	if !okA || !okB {
		return false
	}
	if !loosensProperties(a, b) {
		return false
	}
	for _, keyword := range union(a, b) {
		old, had := a[keyword]
		rule, has := b[keyword]
		switch {
		case keyword == "properties", keyword == "additionalProperties", slices.Contains(schemaAnnotations, keyword):
		case had && has && loosensKeyword(keyword, old, rule):
		case !has && slices.Contains(schemaAssertions, keyword):
		default:
			return false
		}
	}
	return true
}

// loosensKeyword is loosens for one keyword that both schemas have.
func loosensKeyword(keyword string, from, to any) bool {
	if EqualJSON(from, to) {
		return true
	}
	a, okA := from.(json.Number)
	b, okB := to.(json.Number)
	switch keyword {
	case "minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties":
		return okA && okB && compareNumbers(b, a) <= 0
	case "maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties":
		return okA && okB && compareNumbers(b, a) >= 0
	case "required":
		return within(to, from)
	case "enum", "type":
		return within(from, to)
	default:
		return false
	}
}

// loosensProperties reports whether b loosens what a demands of each property, declared or not.
func loosensProperties(a, b map[string]any) bool {
	same := true
	for _, keyword := range []string{"properties", "additionalProperties"} {
		same = same && EqualJSON(a[keyword], b[keyword])
	}
	if same {
		return true
	}
	for _, s := range []map[string]any{a, b} {
		_, patterns := s["patternProperties"]
		_, unevaluated := s["unevaluatedProperties"]
		if patterns || unevaluated {
			return false // Several schemas may apply to one property.
		}
	}
	declared := func(s map[string]any) map[string]any { m, _ := s["properties"].(map[string]any); return m }
	rest := func(s map[string]any) any { // The schema of each property that is not declared.
		if rule, given := s["additionalProperties"]; given {
			return rule
		}
		return true
	}
	of := func(s map[string]any, name string) any { // The schema of one property.
		if rule, known := declared(s)[name]; known {
			return rule
		}
		return rest(s)
	}
	for _, name := range union(declared(a), declared(b)) {
		if !loosens(of(a, name), of(b, name)) {
			return false
		}
	}
	return loosens(rest(a), rest(b))
}

// within reports whether every element of one list is in another. A single value is a list of one.
func within(a, b any) bool {
	list := func(v any) []any {
		if l, ok := v.([]any); ok {
			return l
		}
		return []any{v}
	}
	for _, v := range list(a) {
		if !slices.ContainsFunc(list(b), func(w any) bool { return EqualJSON(v, w) }) {
			return false
		}
	}
	return true
}

// union lists the keys of both maps, sorted.
func union[V any](a, b map[string]V) []string {
	keys := slices.AppendSeq(slices.Collect(maps.Keys(a)), maps.Keys(b))
	slices.Sort(keys)
	return slices.Compact(keys)
}
