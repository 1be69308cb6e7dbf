package definition

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// A Guard is a condition as it is written, decoded with its numbers as json.Number: a SQL/JSON path predicate, or
// an object with one of the members all, any, not, present, absent, equal, in, before and after. Nil always holds.
type Guard any

// guardMembers are those of which a guard object has one.
var guardMembers = []string{"all", "any", "not", "present", "absent", "equal", "in", "before", "after"}

// guardText returns a guard as one line: a path as it is, an object as compact JSON.
func guardText(g Guard) string {
	if text, ok := g.(string); ok {
		return text
	}
	return jsonText(g)
}

// valueText returns a value as one line: a path as it is, anything else as compact JSON.
func valueText(v Value) string {
	if text, ok := v.(string); ok && isPath(text) {
		return text
	}
	return jsonText(v)
}

// jsonText returns a decoded value as compact JSON.
func jsonText(v any) string {
	var b bytes.Buffer
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(v); err != nil {
		return fmt.Sprint(v) // It holds something that no JSON document has.
	}
	return strings.TrimSuffix(b.String(), "\n")
}

// guard reads a condition, and notes the paths in it.
func (d *Draft) guard(at string, v any) Guard {
	switch v := v.(type) {
	case string:
		d.predicate(at, v)
	case map[string]any:
		if len(v) != 1 || !slices.Contains(guardMembers, slices.Collect(maps.Keys(v))[0]) {
			d.fault(at, "a guard object has exactly one of the members %s", strings.Join(guardMembers, ", "))
			break
		}
		for name, operand := range v {
			d.guardMember(at+"/"+name, name, operand)
		}
	default:
		d.fault(at, "must be a path, or an object with one of the members %s", strings.Join(guardMembers, ", "))
	}
	return v
}

// predicate reads a condition that is a path.
func (d *Draft) predicate(at, text string) {
	reads := strings.ContainsAny(text, "$@")
	if tokens, ok := pathTokens(text); ok {
		reads = slices.ContainsFunc(tokens, func(t pathToken) bool {
			return t.kind == '$' || t == pathToken{'o', "$"} || t == pathToken{'o', "@"}
		})
	}
	switch {
	case text == "":
		d.fault(at, "must not be empty; leave the guard out if it always holds")
	case !reads:
		d.fault(at, "reads nothing, so that it would always or never hold; compare something that begins with $, such as $.context.total > 0")
	default:
		d.note(at, text, true)
	}
}

// guardMember reads the operands of a guard object's member.
func (d *Draft) guardMember(at, name string, v any) {
	switch name {
	case "all", "any":
		list, _ := v.([]any)
		if len(list) == 0 {
			d.fault(at, "must be an array of guards that is not empty")
		}
		for i, g := range list {
			d.guard(fmt.Sprintf("%s/%d", at, i), g)
		}
	case "not":
		d.guard(at, v)
	case "present", "absent":
		d.pathOperand(at, v)
	default:
		first := len(d.uses)
		pair, ok := d.operands(at, v, 2, 2)
		if !ok {
			return
		}
		if name == "equal" && (pair[0] == nil || pair[1] == nil) {
			for i, u := range d.uses[first:] {
				d.uses[first+i].equalsNull = u.at == at+"/0" || u.at == at+"/1"
			}
		}
		switch shape := shapeOf(pair[1]); {
		case name == "before" || name == "after":
			d.timeOperand(at+"/0", pair[0])
			d.timeOperand(at+"/1", pair[1])
		case name == "in" && shape != "" && shape != "array":
			d.fault(at+"/1", "must be an array, or something that gives one")
		}
	}
}
