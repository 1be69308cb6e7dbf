package httpapi_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// generatedTypeFaults returns the places of a contract from which generators of clients make types that are hard to
// use. They make an object without members of a free-form object without additionalProperties, a required member of
// a property with a default, and any text of an id without a format.
func generatedTypeFaults(document any) (faults []string) {
	// The client chooses the first two, which may be any text. Traces have ids of their own.
	texts := []string{"correlation_id", "request_id", "trace_id"}
	isID := func(name string) bool {
		return (name == "id" || name == "instance" || strings.HasSuffix(name, "_id")) && !slices.Contains(texts, name)
	}
	uuid := func(schema any) bool {
		s, _ := schema.(map[string]any)
		// A name is an id that people choose.
		return s["$ref"] != nil || s["format"] == "uuid" || s["format"] == "name"
	}
	var walk func(at string, v any)
	walk = func(at string, v any) {
		switch v := v.(type) {
		case map[string]any:
			kinds, _ := v["type"].([]any)
			if v["type"] == "object" || slices.Contains(kinds, any("object")) {
				if v["properties"] == nil && v["additionalProperties"] == nil {
					faults = append(faults, at+" is an object without properties and additionalProperties")
				}
			}
			if properties, ok := v["properties"].(map[string]any); ok {
				for name, p := range properties {
					property, _ := p.(map[string]any)
					if _, ok := property["default"]; ok {
						faults = append(faults, at+"/"+name+" has a default")
					}
					if isID(name) && !uuid(p) {
						faults = append(faults, at+"/"+name+" is an id without its format")
					}
					if items, ok := property["items"].(map[string]any); ok && name == "ids" && !uuid(items) {
						faults = append(faults, at+"/"+name+" has ids without their format")
					}
				}
			}
			if name, ok := v["name"].(string); ok && v["in"] != nil && v["in"] != "header" && isID(name) && !uuid(v["schema"]) {
				faults = append(faults, at+" is an id without its format")
			}
			for name, child := range v {
				if !slices.Contains([]string{"example", "examples", "enum"}, name) {
					walk(at+"/"+name, child)
				}
			}
		case []any:
			for i, child := range v {
				walk(fmt.Sprintf("%s/%d", at, i), child)
			}
		}
	}
	walk("", document)
	slices.Sort(faults)
	return faults
}

func TestContractMakesUsableTypes(t *testing.T) {
	t.Parallel()
	for _, fault := range generatedTypeFaults(contractDocument(t)) {
		t.Error(fault)
	}
	var document any
	if err := json.Unmarshal([]byte(`{
		"parameters": [
			{"name": "id", "in": "path", "schema": {"type": "string"}}, {"name": "correlation_id", "in": "query", "schema": {"type": "string"}}
		],
		"schemas": {"A": {"type": "object", "properties": {
			"context": {"type": ["object", "null"]}, "other": {"type": "object", "additionalProperties": true},
			"limit": {"type": "integer", "default": 0}, "instance_id": {"type": "string"},
			"ids": {"type": "array", "items": {"type": "string"}}, "request_id": {"type": "string"}, "id": {"$ref": "#"}
		}}}
	}`), &document); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"/parameters/0 is an id without its format",
		"/schemas/A/ids has ids without their format",
		"/schemas/A/instance_id is an id without its format",
		"/schemas/A/limit has a default",
		"/schemas/A/properties/context is an object without properties and additionalProperties",
	}
	if got := generatedTypeFaults(document); !slices.Equal(got, want) {
		t.Errorf("the check finds %q, want %q", got, want)
	}
}
