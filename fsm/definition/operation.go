package definition

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// A Value says what data is made of, as it is written, decoded with its numbers as json.Number. A string that
// begins with $, "lax $" or "strict $" is a SQL/JSON path; $$x is the text $x; any other scalar is itself. An object
// or array is built of values. An object with one member that begins with $ is an operation.
type Value any

// operations are the members that make an object an operation.
var operations = []string{
	"$path", "$all", "$first", "$if", "$append", "$union", "$without", "$merge", "$set", "$concat", "$time", "$duration",
	"$unset", "$literal",
}

// isPath reports whether a string in a value is a path.
func isPath(text string) bool {
	rest := strings.TrimPrefix(strings.TrimPrefix(text, "lax "), "strict ")
	return strings.HasPrefix(rest, "$") && !strings.HasPrefix(text, "$$")
}

// value reads a value, and notes the paths in it. mayUnset allows $unset, which removes a name that is assigned.
func (d *Draft) value(at string, v any, mayUnset bool) {
	switch v := v.(type) {
	case string:
		d.valueText(at, v)
	case []any:
		for i, item := range v {
			d.value(fmt.Sprintf("%s/%d", at, i), item, false)
		}
	case map[string]any:
		var operation string
		for name := range v {
			if strings.HasPrefix(name, "$") {
				operation = name
			}
		}
		switch {
		case operation == "":
			for _, name := range slices.Sorted(maps.Keys(v)) {
				d.value(at+Pointer(name), v[name], false)
			}
		case len(v) > 1:
			d.fault(at, "an object with a member that begins with $ is an operation, and has no other members; write what is no operation as {\"$literal\": …}")
		default:
			d.operation(at+Pointer(operation), operation, v[operation], mayUnset)
		}
	}
}

// valueText reads a string in a value.
func (d *Draft) valueText(at, text string) {
	if isPath(text) {
		d.path(at, text)
		return
	}
	if strings.HasPrefix(text, "$$") || !strings.Contains(text, "$") {
		if len(text) > 1 && strings.HasPrefix(text, `"`) && strings.HasSuffix(text, `"`) {
			d.warn("quoted-text", at, "the double quotes are a part of this text; leave them out, unless they are meant")
		}
		return
	}
	if e, ok := parsePath(text); ok && e.reads("$") {
		d.fault(at, `is a text, since it does not begin with $, but reads like a path: did you mean {"$path": %s}? The text is {"$literal": %[1]s}`, jsonText(text))
	}
}

// path reads a path: a string that begins with $, or the text of $path.
func (d *Draft) path(at, text string) {
	rest := strings.TrimSpace(strings.TrimPrefix(strings.TrimPrefix(text, "lax "), "strict "))
	tokens, _ := pathTokens(rest)
	switch {
	case rest == "":
		d.fault(at, "must be a path that is not empty")
	case rest == "$":
		d.fault(at, `is the whole document; name a member, such as $.context. The text is $$ or {"$literal": "$"}`)
	case len(tokens) > 0 && tokens[0].kind == '$':
		d.fault(at, `names a variable, and there are none: a path goes on with a dot, such as $.context. A text begins with two $, as %q, or is {"$literal": %s}`,
			"$"+text, jsonText(text))
	default:
		d.note(at, text, false)
	}
}

// pathOperand reads an operand that must be a path.
func (d *Draft) pathOperand(at string, v any) {
	if text, ok := v.(string); ok && isPath(text) {
		d.path(at, text)
		return
	}
	if m, ok := v.(map[string]any); ok && len(m) == 1 && m["$path"] != nil {
		d.value(at, v, false)
		return
	}
	if text, ok := v.(string); ok {
		d.fault(at, `must be a path that begins with $; one that does not is written {"$path": %s}`, jsonText(text))
		return
	}
	d.fault(at, "must be a path that begins with $, such as $.context.items")
}

// operands reads the operands of an operation, which are values, or at an index that is not among those, something
// else. A fault was added if the result is not ok.
func (d *Draft) operands(at string, v any, least, most int, others ...int) (list []any, ok bool) {
	list, ok = v.([]any)
	if !ok || len(list) < least || len(list) > most {
		number := fmt.Sprintf("%d to %d", least, most)
		switch {
		case least == most:
			number = fmt.Sprint(least)
		case most == anyNumber:
			number = fmt.Sprintf("%d or more", least)
		}
		d.fault(at, "must be an array of %s values", number)
		return nil, false
	}
	for i, operand := range list {
		if !slices.Contains(others, i) {
			d.value(fmt.Sprintf("%s/%d", at, i), operand, false)
		}
	}
	return list, true
}

const anyNumber = 1 << 30

// operation reads the operands of an operation.
func (d *Draft) operation(at, name string, v any, mayUnset bool) {
	switch name {
	case "$path":
		text, _ := v.(string)
		d.path(at, text)
	case "$all":
		d.pathOperand(at, v)
	case "$first":
		d.operands(at, v, 1, anyNumber)
	case "$if":
		list, _ := v.([]any)
		if len(list) != 3 {
			d.fault(at, "must be an array of 3: a guard, the value if it holds, and the value if it does not")
			break
		}
		d.guard(at+"/0", list[0])
		d.value(at+"/1", list[1], mayUnset)
		d.value(at+"/2", list[2], mayUnset)
	case "$append", "$union":
		if list, ok := d.operands(at, v, 2, anyNumber); ok {
			d.shape(at+"/0", list[0], "array")
		}
	case "$without":
		if list, ok := d.operands(at, v, 2, anyNumber); ok {
			d.shape(at+"/0", list[0], "array", "object")
		}
	case "$merge":
		list, _ := d.operands(at, v, 1, anyNumber)
		for i, operand := range list {
			d.shape(fmt.Sprintf("%s/%d", at, i), operand, "object")
		}
	case "$set":
		d.set(at, v)
	case "$concat":
		list, _ := d.operands(at, v, 1, anyNumber)
		for i, operand := range list {
			d.shape(fmt.Sprintf("%s/%d", at, i), operand, "string", "number", "boolean", "array")
		}
	case "$time":
		if list, ok := d.operands(at, v, 2, 3, 2); ok {
			d.time(at, list)
		}
	case "$duration":
		list, _ := d.operands(at, v, 2, 2)
		for i, operand := range list {
			d.timeOperand(fmt.Sprintf("%s/%d", at, i), operand)
		}
	case "$unset":
		switch {
		case v != true:
			d.fault(at, "must be true")
		case !mayUnset:
			d.fault(at, "only removes a name that is assigned: it stands for the whole value of a name, or for a branch of $if there")
		}
	case "$literal":
	default:
		d.fault(at, `is no operation; there are %s. An object that is meant as it stands is {"$literal": …}`, strings.Join(operations, ", "))
	}
}

// set reads the operands of $set.
func (d *Draft) set(at string, v any) {
	if list, _ := v.([]any); len(list) != 3 {
		d.fault(at, "must be an array of 3: an object, an array of the names that lead to the member, and its value")
		return
	}
	list, _ := d.operands(at, v, 3, 3, 1)
	d.shape(at+"/0", list[0], "object", "array")
	names, _ := list[1].([]any)
	if len(names) == 0 {
		d.fault(at+"/1", "must be an array of the names that lead to the member, and not be empty")
	}
	if len(names) > MaxDepth {
		d.fault(at+"/1", "must have at most %d names, since nothing may be nested deeper", MaxDepth)
	}
	for i, name := range names {
		at := fmt.Sprintf("%s/1/%d", at, i)
		d.value(at, name, false)
		d.shape(at, name, "string", "number")
		if number, ok := name.(json.Number); ok && strings.ContainsAny(number.String(), ".eE-") {
			d.fault(at, "the index of an item must be a whole number from 0")
		}
	}
}

// time checks what is constant in the operands of $time.
func (d *Draft) time(at string, list []any) {
	d.timeOperand(at+"/0", list[0])
	d.shape(at+"/1", list[1], "string")
	if text, ok := constantText(list[1]); ok {
		if err := parseShift(text); err != nil {
			d.fault(at+"/1", "%v; it may have a sign", err)
		}
	}
	if len(list) > 2 {
		d.zone(at+"/2", list[2])
	}
}

// timeOperand checks a value that must give a time.
func (d *Draft) timeOperand(at string, v any) {
	d.shape(at, v, "string")
	if text, ok := constantText(v); ok {
		if _, err := time.Parse(time.RFC3339, text); err != nil {
			d.fault(at, "%q is no time of RFC 3339 with an offset, such as 2026-03-01T09:30:00Z", text)
		}
	}
}

// shape adds a fault if a value can only give another type than those. What is null counts as missing.
func (d *Draft) shape(at string, v any, types ...string) {
	if shape := shapeOf(v); shape != "" && shape != "null" && !slices.Contains(types, shape) {
		d.fault(at, "must give what is of type %s, not %s", strings.Join(types, " or "), shape)
	}
}

// shapeOf returns the JSON type that a value gives, or nothing if it depends on what a path selects.
func shapeOf(v any) string {
	m, ok := v.(map[string]any)
	if !ok || len(m) != 1 {
		if text, ok := v.(string); ok && isPath(text) {
			return ""
		}
		return typeOf(v)
	}
	for name, operand := range m {
		switch name {
		case "$literal":
			return typeOf(operand)
		case "$all", "$append", "$union":
			return "array"
		case "$merge":
			return "object"
		case "$time":
			return "string"
		case "$duration":
			return "number"
		}
		if strings.HasPrefix(name, "$") {
			return ""
		}
	}
	return "object"
}

// constantText returns the text that a value always gives, if it gives one.
func constantText(v any) (string, bool) {
	if m, ok := v.(map[string]any); ok && len(m) == 1 {
		text, ok := m["$literal"].(string)
		return text, ok
	}
	text, ok := v.(string)
	if !ok || isPath(text) {
		return "", false
	}
	if strings.HasPrefix(text, "$$") {
		text = text[1:]
	}
	return text, true
}
