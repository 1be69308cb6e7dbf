package definition_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/santhosh-tekuri/jsonschema/v6"
	"go.yaml.in/yaml/v4"
	"pgregory.net/rapid"

	"github.com/pawl-fsm/pawl/fsm/definition"
	"github.com/pawl-fsm/pawl/fsm/fsmtest"
)

// documentSchema compiles the JSON Schema of definitions.
func documentSchema(t *testing.T) *jsonschema.Schema {
	t.Helper()
	document, err := jsonschema.UnmarshalJSON(strings.NewReader(definition.DocumentSchema))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("pawl:///workflow.json", document); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile("pawl:///workflow.json")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// everything is a definition that has each member of the language.
const everything = `{
  "$schema": "workflow.schema.json", "name": "everything", "version": 1, "description": "d", "initial": {"target": "P", "assign": {"n": 0}},
  "timezone": "Europe/Berlin", "ttl": {"after": "P1W", "target": "END", "sliding": true}, "cancel": "P", "require_if_match": true, "business_key": "reusable",
  "retention": "30d", "context_schema": {"type": "object"}, "context_default": {"a": 1}, "search": {"a": "$.context.a", "n": {"path": "$.context.o.n", "type": "number"}}, "invariant": {"not": {"equal": ["$.context.n", 9]}},
  "x-allow": ["quoted-text"], "tests": [{"name": "t", "steps": [{"event": "e", "refused": "guard-rejected"}, {"after": "1m", "expect": {"state": "P"}}]}],
  "states": {
    "END": {"type": "final", "outcome": "failed", "description": "d", "entry": {"assign": {"e": 1}}, "invariant": "$.context.n > 0", "protected": true, "x-allow": ["quoted-text"]},
    "P": {
      "description": "d", "entry": {"assign": {"*": ["a", "b"]}}, "exit": {"assign": {"*": true, "trusted": true}}, "invariant": "$.context.n > 0", "protected": false, "x-allow": ["quoted-text"],
      "always": [{"guard": {"all": ["$.context.n == 1", {"any": [{"present": "$.context.a"}, {"absent": {"$path": "$.context.b"}}]}]}, "target": "END"}],
      "on": {
        "go": [{"target": "R", "resume": true, "guard": {"in": ["$.payload.a", ["a", "b"]]}, "payload_schema": {"type": "object"}}, {"target": "R", "resume": "timers", "description": "d"}],
        "call": "CALL", "*": {"rearm": true, "x-allow": ["quoted-text"], "guard": {"before": ["$.now", "$.context.t"]}},
        "pay.*": {"internal": true, "guard": {"after": ["$.now", "$.context.t"]}},
        "set": {"assign": {"a.b": {"$if": ["$.context.n == 1", {"$unset": true}, {"$first": ["$.payload.a", null, 1.5]}]}, "c": [{"$path": "1 + $.context.n"}, {"$all": "$.payload.c[*]"}],
          "d": {"$append": ["$.context.d", 1]}, "e": {"$union": ["$.context.d", {"$without": [[1], 2]}]}, "f": {"$merge": [{}, {"$set": [{}, ["a", 0], true]}]},
          "g": {"$concat": ["a", "$.payload.b"]}, "h": {"$time": ["$.now", "+3d", "UTC"]}, "i": {"$duration": ["$.context.t", "$.now"]}, "j": {"$literal": {"$x": 1}}}}
      },
      "after": {"10m": "END", "1mo": [{"assign": {"n": 1}}]},
      "every": {"in": "1d", "assign": {"n": 2}}
    },
    "R": {
      "initial": {"target": "X", "assign": {"x": "$.now"}}, "done": [{"target": "P", "guard": "$.context.n == 3"}, "END"],
      "after": [{"in": "$.context.grace", "target": "Y", "internal": true}, {"at": {"$first": ["$.context.due", "$.now"]}, "target": "END"}, {"in": 90, "target": "P"}, {"in": "2h"}],
      "every": [{"in": "1h", "guard": "$.context.n == 1"}],
      "states": {"X": {"on": {"next": "Y", "end": "F"}}, "Y": {"on": {"back": "X"}}, "F": {"type": "final"}}
    },
    "CALL": {
      "stuck_after": "2h", "on_stuck": {"reconcile": "charge", "max": 2},
      "invoke": {
        "charge": {
          "description": "d", "http": {"connection": "psp", "method": "POST", "path": "/a/{$.context.a}", "query": {"a": 1}, "headers": {"X-A": "$.task.id"}, "body": {"a": "$.payload.a"}},
          "idempotency": {"header": "X-Key", "window": "2d"}, "timeout": "10s", "deadline": "15m", "retry": {"max": 3, "base": "2s", "cap": "1m"}, "success": "$.status == 200",
          "reconcile": {"http": {"connection": "other", "method": "GET", "path": "/a", "query": {"key": "$.task.key"}, "headers": {"X-B": 1}}, "every": ["5s", "1m"], "done": "$.body.a == 1",
            "failed": "$.body.a == 2", "absent": {"absent": "$.body.a"}, "result": "$.body.b", "absent_after": "2m"},
          "done": [{"target": "PACK", "guard": "$.payload.status == 200", "assign": {"a": "$.payload.body.a"}, "description": "d", "x-allow": ["quoted-text"]}, {"target": "PACK"}], "error": ["END"], "unknown": "END",
          "late": {"event": "go"},
          "compensate": {"description": "d", "http": {"connection": "psp", "method": "DELETE", "path": "/a", "body": "$.result"}, "idempotency": {}, "timeout": "1s", "deadline": "1d",
            "retry": {"max": 1}, "success": "$.status == 204", "reconcile": {"http": {"method": "GET", "path": "/b"}, "every": "10s", "done": "$.status == 404"}, "if_unknown": "run"}
        },
        "pack": {"work": {"topic": "pack", "lease": "30s", "input": {"a": "$.context.a"}}, "deadline": "2h", "done": "PACK", "error": "PACK", "unknown": "PACK",
          "compensate": {"work": {"topic": "unpack"}, "deadline": "2h", "if_unknown": "park"}}
      },
      "on": {"pay": {"target": "PACK", "compensate": {"work": {"topic": "refund", "input": "$.context.a"}, "deadline": "1h"}}}
    },
    "PACK": {"on": {"undo": "UNDO"}, "on_stuck": {"event": "undo"}},
    "UNDO": {"compensate": {"what": "all", "on_failure": "continue"}, "done": [{"target": "END", "assign": {"n": 1}}], "error": "PACK", "on": {"pay": "CALL"}, "after": {"1h": "PACK"}}
  }
}`

// definitions are those of examples/, of testdata and of the tests.
func definitions(t *testing.T) map[string]string {
	t.Helper()
	found := map[string]string{
		"flights": fsmtest.FlightBooking, "counter": fsmtest.Counter, "shop": fsmtest.Shop, "bombs": fsmtest.Bombs,
		"nasty": nasty, "support": support, "trip": fsmtest.Trip, "everything": everything,
	}
	files, err := filepath.Glob("../../examples/*/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatal("there are no examples", err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var v any
		if err := yaml.Unmarshal(text, &v); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		data, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		found[file] = string(data)
	}
	return found
}

func TestDocumentSchemaTakesDefinitions(t *testing.T) {
	t.Parallel()
	schema := documentSchema(t)
	for name, text := range definitions(t) {
		for form, text := range map[string]string{"as written": text, "canonical": canonical(t, text)} {
			v, err := jsonschema.UnmarshalJSON(strings.NewReader(text))
			if err != nil {
				t.Fatal(err)
			}
			if err := schema.Validate(v); err != nil {
				t.Errorf("%s, %s: %v", name, form, err)
			}
		}
	}
}

// semantic are words of the faults that only a look at the whole definition, or into a text, shows.
var semantic = []string{
	"there is no state", "leads to this state", "leads out of", "no state is final", "never be taken", "must have done", "is final", "no guard", "leaves the state at once",
	"states within", "must be a final state", "already", "come to rest", "at the top", "stays in", "lies within", "any member", "lets a caller", "only removes", "must give", "reads nothing",
	"no duration", "no time", "no time zone", "whole document", "begins with $; one", "must be an array, or something", "JSON Schema", "whole number", "share one",
	"same time", "is no warning", "must be from", "no state accepts", "one slash", "brace", "is no path", "not for a definition to set", "twice", "header of idempotency",
	"does not accept", "has no task", "has no reconcile", "never fired", "does not fit", "pattern has none", "must not lead to", "at least the base", "could have a key",
}

// place is a value in a document, with what replaces it.
type docPlace struct {
	pointer string
	value   any
	set     func(any)
	remove  func()
}

// places lists the values of a document, but for those within parts that are free.
func places(v any) (list []docPlace) {
	var add func(pointer string, v any)
	add = func(pointer string, v any) {
		switch v := v.(type) {
		case map[string]any:
			for _, name := range slices.Sorted(maps.Keys(v)) {
				at := pointer + definition.Pointer(name)
				list = append(list, docPlace{at, v[name], func(new any) { v[name] = new }, func() { delete(v, name) }})
				if !slices.Contains([]string{"payload_schema", "context_schema", "context_default", "tests", "$literal"}, name) {
					add(at, v[name])
				}
			}
		case []any:
			for i, item := range v {
				at := fmt.Sprintf("%s/%d", pointer, i)
				list = append(list, docPlace{at, item, func(new any) { v[i] = new }, nil})
				add(at, item)
			}
		}
	}
	add("", v)
	return list
}

// roundTrip fails unless the canonical form of a definition is the same definition.
func roundTrip(t rapid.TB, d *definition.Definition) {
	t.Helper()
	text, err := json.Marshal(d)
	if err != nil {
		t.Fatal(err)
	}
	again, err := definition.Parse(text, "", definition.Limits{})
	if err != nil {
		t.Fatalf("the canonical form is refused: %v\n%s", err, text)
	}
	again.Version = d.Version // It is no part of the content.
	if diff := cmp.Diff(d, again, cmpopts.EquateEmpty()); diff != "" {
		t.Fatalf("%s\nis read as another definition (-first +again):\n%s", text, diff)
	}
	if changes := definition.Diff(d, again); len(changes) > 0 {
		t.Fatalf("%s\ndiffers from what it was made of: %v", text, changes)
	}
}

// The schema and the reader refuse the same: unknown members, values of a wrong type, members that are missing.
func TestDocumentSchemaIsTheReader(t *testing.T) {
	t.Parallel()
	schema := documentSchema(t)
	all := definitions(t)
	names := slices.Sorted(maps.Keys(all))
	rapid.Check(t, func(rt *rapid.T) {
		name := rapid.SampledFrom(names).Draw(rt, "definition")
		var document any
		if err := json.Unmarshal([]byte(all[name]), &document); err != nil {
			rt.Fatal(err)
		}
		p := rapid.SampledFrom(places(document)).Draw(rt, "place")
		switch rapid.IntRange(0, 2).Draw(rt, "mutation") {
		case 0:
			if m, ok := p.value.(map[string]any); ok {
				m["unknown-member"] = "x"
			}
		case 1:
			if p.remove != nil {
				p.remove()
			}
		case 2:
			others := []any{nil, true, 7.0, []any{}, []any{"text"}, map[string]any{}, map[string]any{"text": "text"}, map[string]any{"$text": "text"}}
			if _, text := p.value.(string); !text {
				others = append(others, "text")
			}
			p.set(rapid.SampledFrom(others).Draw(rt, "other"))
		}
		data, err := json.Marshal(document)
		if err != nil {
			rt.Fatal(err)
		}
		v, err := jsonschema.UnmarshalJSON(strings.NewReader(string(data)))
		if err != nil {
			rt.Fatal(err)
		}
		invalid := schema.Validate(v)
		d, err := definition.Parse(data, "", definition.Limits{})
		if err == nil {
			roundTrip(rt, d)
		}
		structural := ""
		if e, ok := err.(*definition.Error); ok {
			for _, f := range e.Faults {
				if !slices.ContainsFunc(semantic, func(words string) bool { return strings.Contains(f.Detail, words) }) {
					structural = f.Pointer + ": " + f.Detail
				}
			}
		}
		switch {
		case invalid != nil && err == nil:
			rt.Fatalf("%s at %s: only the schema refuses\n%s\n%v", name, p.pointer, data, invalid)
		case invalid == nil && structural != "":
			rt.Fatalf("%s at %s: only the reader refuses\n%s\n%v", name, p.pointer, data, structural)
		}
	})
}
