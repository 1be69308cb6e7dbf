package definition

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
)

// candidates reads the transitions of an event, of a timeout or of always: a target, a transition, or
// an array of transitions.
func (d *Draft) candidates(at string, where place, v any) []Transition {
	list, several := v.([]any)
	if !several {
		return []Transition{d.transition(at, where, v)}
	}
	if len(list) == 0 {
		d.fault(at, "must have at least one transition")
	}
	candidates := make([]Transition, len(list))
	var schema json.RawMessage
	for i, v := range list {
		at := fmt.Sprintf("%s/%d", at, i)
		candidates[i] = d.transition(at, where, v)
		t := &candidates[i]
		if i > 0 && unguarded(list[i-1]) {
			d.fault(at, "can never be taken, since the transition before it has no guard")
		}
		switch {
		case t.PayloadSchema == nil:
		case schema == nil:
			schema = t.PayloadSchema
		case !bytes.Equal(schema, t.PayloadSchema):
			d.fault(at+"/payload_schema", "all transitions of an event in a state share one payload schema")
		}
	}
	return candidates
}

// unguarded reports whether a candidate, as it is written, is always taken.
func unguarded(v any) bool {
	m, written := v.(map[string]any)
	if !written {
		_, target := v.(string)
		return target
	}
	_, guarded := m["guard"]
	return !guarded
}

// transition reads one candidate: a target, or an object.
func (d *Draft) transition(at string, where place, v any) Transition {
	if target, ok := v.(string); ok {
		return Transition{Target: d.target(at, where, target)}
	}
	m, ok := v.(map[string]any)
	if !ok {
		d.fault(at, "must be the name of a state, a transition, or an array of transitions")
		return Transition{}
	}
	d.members(at, m, "target", "guard", "assign", "payload_schema", "description")
	t := Transition{
		Description:   d.description(at, m),
		Target:        d.target(at+"/target", where, m["target"]),
		Assign:        d.assign(at, m),
		PayloadSchema: d.schema(at+"/payload_schema", m),
	}
	if v, given := m["guard"]; given {
		t.Guard = d.path(at+"/guard", v)
	}
	return t
}

// assign reads the member assign.
func (d *Draft) assign(at string, m map[string]any) Assign {
	var assign Assign
	v, given := m["assign"]
	if !given {
		return assign
	}
	at += "/assign"
	switch a := v.(type) {
	case string:
		if assign.Payload = a == "*"; !assign.Payload {
			d.fault(at, `must be "*", or an object from names to paths`)
		}
	case map[string]any:
		assign.Paths = make(map[string]string, len(a))
		for _, name := range slices.Sorted(maps.Keys(a)) {
			if name == "" {
				d.fault(at, "a name must not be empty")
			}
			assign.Paths[name] = d.path(at+Pointer(name), a[name])
		}
	default:
		d.fault(at, `must be "*", or an object from names to paths`)
	}
	return assign
}
