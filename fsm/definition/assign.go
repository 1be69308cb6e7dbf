package definition

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Assign changes the context.
type Assign struct {
	// Values are by the name of the member of the context that each of them sets. A name with dots sets a member
	// deep in another: address.city.
	Values map[string]Value
	// Payload merges the top level of the payload into the context. Where Values has the same name, the value wins.
	Payload bool
	// Members are those of the payload that are merged, sorted. Nil: all of them.
	Members []string
	// Trusted says that callers may set any member of the context.
	Trusted bool
}

// empty reports whether nothing is assigned.
func (a Assign) empty() bool { return !a.Payload && len(a.Values) == 0 }

// unbounded reports whether any member of the payload is merged.
func (a Assign) unbounded() bool { return a.Payload && a.Members == nil }

// names are those that it sets, without those of an unbounded payload. A deep one counts as the member that it is in.
func (a Assign) names() []string {
	var names []string
	for name := range a.Values {
		top, _, _ := strings.Cut(name, ".")
		names = append(names, top)
	}
	return append(names, a.Members...)
}

// assign reads the member assign.
func (d *Draft) assign(at string, m map[string]any) Assign {
	var a Assign
	v, given := m["assign"]
	if !given {
		return a
	}
	at += "/assign"
	written, ok := v.(map[string]any)
	switch {
	case v == "*":
		a.Payload = true
	case !ok:
		d.fault(at, `must be "*", or an object from names to values`)
	default:
		a.Values = make(map[string]Value, len(written))
		for _, name := range slices.Sorted(maps.Keys(written)) {
			d.assigned(at+Pointer(name), name, written[name], written["*"], &a)
		}
		d.overlaps(at, a.Values)
	}
	if !a.empty() {
		d.assigns = append(d.assigns, assignAt{at, a})
	}
	return a
}

// assigned reads one member of an assign. all is the member that stands for the payload.
func (d *Draft) assigned(at, name string, v, all any, a *Assign) {
	switch {
	case name == "*":
		list, bounded := v.([]any)
		a.Payload = v == true || bounded && len(list) > 0
		if !a.Payload {
			d.fault(at, "must be true, or an array of the payload's members that are merged")
		}
		for i, member := range list {
			at := fmt.Sprintf("%s/%d", at, i)
			text := d.text(at, member)
			if text != "" && slices.Contains(a.Members, text) {
				d.fault(at, "is named twice")
			}
			a.Members = append(a.Members, text)
		}
		slices.Sort(a.Members)
	case name == "trusted" && all == true:
		if a.Trusted = v == true; !a.Trusted {
			d.fault(at, `beside "*": true it says whether callers are trusted: it must be true, or be left out`)
		}
	case slices.Contains(strings.Split(name, "."), ""):
		d.fault(at, "a name must not be empty, nor a part of it between dots")
	default:
		a.Values[name] = v
		d.value(at, v, true)
	}
}

// overlaps adds a fault for each name that lies within another one of the same assign.
func (d *Draft) overlaps(at string, values map[string]Value) {
	for name := range values {
		for i, r := range name {
			if r != '.' {
				continue
			}
			if _, both := values[name[:i]]; both {
				d.fault(at+Pointer(name), "lies within %s, which is assigned here too: assign one of them", name[:i])
			}
		}
	}
}

// An assignAt is an assign with its place in the document.
type assignAt struct {
	at string
	Assign
}

// merges adds a fault for each assign by which a caller could set what the workflow relies on.
func (d *Draft) merges() {
	relied := map[string]bool{}
	for _, a := range d.assigns {
		for _, name := range a.names() {
			relied[name] = true
		}
	}
	for _, u := range d.uses {
		for _, name := range u.contextNames() {
			relied[name] = true
		}
	}
	for _, a := range d.assigns {
		if !a.unbounded() || a.Trusted {
			continue
		}
		properties, closed := closedProperties(d.payload(a.at).schema)
		if !closed {
			d.fault(a.at, `lets a caller set any member of the context: name the members, as {"*": ["seat", "meal"]}; or close the payload_schema with "additionalProperties": false; or write {"*": true, "trusted": true}`)
		}
		for _, name := range properties {
			if relied[name] && !slices.Contains(a.names(), name) { // What the assign itself sets, the payload does not.
				d.fault(a.at, `lets a caller set %s, which the workflow sets or reads elsewhere: name the members, as {"*": ["seat", "meal"]}, or write {"*": true, "trusted": true}`, name)
			}
		}
	}
}

// closedProperties returns the properties that a schema allows, if it allows no others.
func closedProperties(schema any) (names []string, closed bool) {
	m, _ := schema.(map[string]any)
	if _, patterns := m["patternProperties"]; patterns || m["additionalProperties"] != false {
		return nil, false
	}
	return schemaProperties(schema), true
}
