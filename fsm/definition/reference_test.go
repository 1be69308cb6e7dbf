package definition_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pawl-fsm/pawl/fsm/definition"
)

// reference is the page whose tables of members are those of the JSON Schema of definitions.
const reference = "../../docs/language.md"

// TestReference compares the tables of the page with the schema; -update writes them.
func TestReference(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile(reference)
	if err != nil {
		t.Fatal(err)
	}
	tables := referenceTables(t)
	found := map[string]bool{}
	generated := regexp.MustCompile(`(?s)(<!-- GENERATED ([a-z]+): .*? -->\n).*?(<!-- END -->)`).ReplaceAllFunc(page, func(part []byte) []byte {
		begin, _, _ := bytes.Cut(part, []byte("\n"))
		name := string(regexp.MustCompile(`[a-z]+`).Find(begin))
		found[name] = true
		return fmt.Appendf(nil, "%s\n\n%s\n<!-- END -->", begin, tables[name])
	})
	for name := range tables {
		if !found[name] {
			t.Errorf("%s has no place for the table %s", reference, name)
		}
	}
	switch {
	case *update && !t.Failed():
		if err := os.WriteFile(reference, generated, 0o644); err != nil {
			t.Fatal(err)
		}
	case !bytes.Equal(page, generated):
		t.Errorf("%s is not what the schema says; run make generate (-page +schema):\n%s", reference, cmp.Diff(string(page), string(generated)))
	}
}

// schemaNode is a part of the JSON Schema of definitions, as far as the tables show it.
type schemaNode struct {
	Ref                  string `json:"$ref"`
	Title, Description   string
	Type, Const, Default any
	Enum                 []any
	Required             []string
	Properties           schemaProperties
	Items                *schemaNode
	PrefixItems, OneOf   []schemaNode
	MinItems, MaxItems   int
	Defs                 map[string]schemaNode `json:"$defs"`
}

// schemaProperties are properties in the order in which they are written.
type schemaProperties []schemaProperty

type schemaProperty struct {
	name string
	schemaNode
}

// UnmarshalJSON keeps the order.
func (p *schemaProperties) UnmarshalJSON(text []byte) error {
	d := json.NewDecoder(bytes.NewReader(text))
	if _, err := d.Token(); err != nil {
		return err
	}
	for d.More() { // bounded: the text of the schema ends.
		name, err := d.Token()
		if err != nil {
			return err
		}
		property := schemaProperty{name: name.(string)}
		if err := d.Decode(&property.schemaNode); err != nil {
			return err
		}
		*p = append(*p, property)
	}
	return nil
}

// referenceTables are the tables by their names, in Markdown.
func referenceTables(t *testing.T) map[string]string {
	t.Helper()
	var root schemaNode
	if err := json.Unmarshal([]byte(definition.DocumentSchema), &root); err != nil {
		t.Fatal(err)
	}
	members := func(prefix string, n schemaNode, row func(name, kind, value, meaning string)) {
		for _, p := range n.Properties {
			row(prefix+p.name, p.words(root.Defs), p.ifMissing(n), p.Description)
		}
	}
	var workflow, state, transition, task, undoing, guard, operation, scenario, warning strings.Builder
	table := func(b *strings.Builder, columns ...string) func(cells ...string) {
		row := func(cells ...string) {
			line := "| " + strings.Join(cells, " | ") + " |"
			b.WriteString(strings.NewReplacer("|  |", "| |", "*", `\*`).Replace(line) + "\n")
		}
		row(columns...)
		fmt.Fprintf(b, "%s|\n", strings.Repeat("|---", len(columns)))
		return row
	}

	row := table(&workflow, "member", "type", "default", "meaning")
	for _, p := range root.Properties {
		row(code(p.name), p.words(root.Defs), p.ifMissing(root), p.Description)
		members(p.name+".", p.schemaNode, func(name, kind, value, meaning string) { row(code(name), kind, value, meaning) })
	}
	row = table(&state, "member", "type", "default", "meaning")
	stateRow := func(name, kind, value, meaning string) { row(code(name), kind, value, meaning) }
	for _, p := range root.Defs["state"].Properties {
		stateRow(p.name, p.words(root.Defs), p.ifMissing(root.Defs["state"]), p.Description)
		if p.name == "on_stuck" {
			members(p.name+".", root.Defs["healing"], stateRow)
		}
	}

	// Each place has its own transitions. A member stands in a row, with the places that have it.
	type memberRow struct{ kind, value, meaning string }
	var names []string
	rows, places := map[string]memberRow{}, map[string][]string{}
	for _, place := range []struct{ definition, name string }{
		{"transition", "on"}, {"eventless", "always, done"}, {"timeout", "after"}, {"timer", "after"}, {"repeat", "every"}, {"handler", "invoke"},
	} {
		members("", root.Defs[place.definition], func(name, kind, value, meaning string) {
			if meaning == "" {
				return // It is there only to have its one value.
			}
			if _, known := rows[name]; !known {
				names = append(names, name)
				rows[name] = memberRow{kind, value, meaning}
			}
			if !slices.Contains(places[name], place.name) {
				places[name] = append(places[name], place.name)
			}
		})
	}
	row = table(&transition, "member", "type", "default", "in", "meaning")
	for _, name := range names {
		in := strings.Join(places[name], ", ")
		if in == "on, always, done, after, every, invoke" {
			in = "all"
		}
		row(code(name), rows[name].kind, rows[name].value, in, rows[name].meaning)
	}

	row = table(&task, "member", "type", "default", "meaning")
	taskRow := func(name, kind, value, meaning string) { row(code(name), kind, value, meaning) }
	for _, p := range root.Defs["task"].Properties {
		taskRow(p.name, p.words(root.Defs), p.ifMissing(root.Defs["task"]), p.Description)
		if p.name != "compensate" && p.Ref != "#/$defs/guard" {
			members(p.name+".", root.Defs[strings.TrimPrefix(p.Ref, "#/$defs/")], taskRow)
		}
	}
	row = table(&undoing, "member", "type", "default", "meaning")
	members("compensate.", root.Defs["undoing"], taskRow)
	for _, p := range root.Defs["compensation"].Properties {
		if p.name == "idempotency" || p.name == "if_unknown" {
			taskRow("compensate."+p.name, p.words(root.Defs), p.ifMissing(root.Defs["compensation"]), p.Description)
		}
	}

	row = table(&guard, "member", "operands", "is true if")
	members("", root.Defs["guard"], func(name, kind, _, meaning string) { row(code(name), kind, meaning) })
	row = table(&operation, "operation", "operands", "gives")
	members("", root.Defs["operation"], func(name, kind, _, meaning string) { row(code(name), kind, meaning) })
	for _, part := range []struct{ definition, name string }{
		{"scenario", "of a scenario"}, {"scenarioStep", "of a step"}, {"expectation", "of an expectation"},
	} {
		row = table(&scenario, part.name, "type", "default", "meaning")
		members("", root.Defs[part.definition], func(name, kind, value, meaning string) { row(code(name), kind, value, meaning) })
		scenario.WriteString("\n")
	}
	row = table(&warning, "warning", "of")
	for _, w := range root.Defs["allow"].Items.OneOf {
		row(jsonCode(w.Const), w.Description)
	}
	return map[string]string{
		"workflow": workflow.String(), "state": state.String(), "transition": transition.String(), "task": task.String(), "undoing": undoing.String(), "guard": guard.String(),
		"operation": operation.String(), "scenario": strings.TrimSuffix(scenario.String(), "\n"), "warning": warning.String(),
	}
}

// words says in words which values a part of the schema takes.
func (n schemaNode) words(defs map[string]schemaNode) string {
	list := func(nodes []schemaNode, more string) string {
		var words []string
		for _, n := range nodes {
			words = append(words, n.words(defs))
		}
		return "[" + strings.Join(words, ", ") + more + "]"
	}
	switch {
	case n.Title != "":
		return n.Title
	case n.Ref != "":
		return defs[strings.TrimPrefix(n.Ref, "#/$defs/")].words(defs)
	case n.Const != nil:
		return jsonCode(n.Const)
	case n.Enum != nil:
		var words []string
		for _, v := range n.Enum {
			words = append(words, jsonCode(v))
		}
		return strings.Join(words, ", ")
	case n.PrefixItems != nil && n.MinItems < len(n.PrefixItems):
		return list(n.PrefixItems[:n.MinItems], "") + " or " + list(n.PrefixItems, "")
	case n.PrefixItems != nil:
		return list(n.PrefixItems, "")
	case n.Type == "array" && n.MinItems == n.MaxItems:
		return list(slices.Repeat([]schemaNode{*n.Items}, n.MinItems), "")
	case n.Type == "array":
		return list(slices.Repeat([]schemaNode{*n.Items}, n.MinItems), ", …")
	case n.Type == "string":
		return "text"
	case n.Type == nil:
		return "JSON"
	}
	return fmt.Sprint(n.Type)
}

// ifMissing says what holds if a property of an object is left out.
func (p schemaProperty) ifMissing(of schemaNode) string {
	switch {
	case slices.Contains(of.Required, p.name):
		return "required"
	case p.Default != nil:
		return jsonCode(p.Default)
	}
	return ""
}

func code(text string) string { return "`" + text + "`" }

// jsonCode is a constant as code; a text stands without quotes.
func jsonCode(v any) string {
	if text, ok := v.(string); ok {
		return code(text)
	}
	text, _ := json.Marshal(v)
	return code(string(text))
}
