package definition

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
)

// MaxAttributes is how many search attributes a definition may have.
const MaxAttributes = 20

// AttributeTypes are the types that a search attribute may be given.
var AttributeTypes = []string{"text", "number", "time", "boolean"}

// An Attribute is what instances are found by: a value in their context.
type Attribute struct {
	// Path leads to it by the names of members, as $.context.flight.id does.
	Path string
	// Type is what the value is taken for: one of AttributeTypes. Empty: what it is in JSON; a text that is a time of
	// RFC 3339 is a time, too.
	Type string
}

var (
	attributeName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,62}$`)
	attributePath = regexp.MustCompile(`^\$\.context(\.[A-Za-z_][A-Za-z0-9_]*)+$`)
)

// search reads the search attributes.
func (d *Draft) search(at string, v any) map[string]Attribute {
	m, ok := d.object(at, v)
	if !ok {
		return nil
	}
	if len(m) > MaxAttributes {
		d.fault(at, "must have at most %d attributes", MaxAttributes)
	}
	out := map[string]Attribute{}
	for _, name := range slices.Sorted(maps.Keys(m)) {
		at := at + Pointer(name)
		if !attributeName.MatchString(name) {
			d.fault(at, "must have a name of 1 to 63 letters, digits and underscores that begins with no digit")
		}
		out[name] = d.attribute(at, m[name])
	}
	return out
}

func (d *Draft) attribute(at string, v any) (a Attribute) {
	if m, ok := v.(map[string]any); ok {
		d.members(at, m, "path", "type")
		if kind, given := m["type"]; given {
			a.Type, _ = kind.(string)
			if !slices.Contains(AttributeTypes, a.Type) {
				d.fault(at+"/type", "must be text, number, time or boolean%s", didYouMean("", a.Type, AttributeTypes))
			}
		}
		at, v = at+"/path", m["path"]
	}
	a.Path, _ = v.(string)
	if !attributePath.MatchString(a.Path) || len(a.Path) > 255 {
		d.fault(at, "must be a path of members of the context, such as $.context.flight.id, of at most 255 characters")
		return a
	}
	d.note(at, a.Path, false)
	return a
}

// writtenSearch is the canonical form: a path alone, unless there is a type.
func writtenSearch(search map[string]Attribute) map[string]any {
	out := make(map[string]any, len(search))
	for name, a := range search {
		if out[name] = a.Path; a.Type != "" {
			out[name] = map[string]string{"path": a.Path, "type": a.Type}
		}
	}
	return out
}

func (a Attribute) String() string {
	if a.Type == "" {
		return a.Path
	}
	return fmt.Sprintf("%s as a %s", a.Path, a.Type)
}

// search compares search attributes. None of the changes concerns a step.
func (d *differ) search(a, b map[string]Attribute) {
	for _, name := range union(a, b) {
		at := "/search" + Pointer(name)
		was, before := a[name]
		is, after := b[name]
		switch {
		case !before:
			d.add(Added, at, "", "instances are found by %s, %s; those that exist after a reindex", name, is)
		case !after:
			d.add(Removed, at, "", "instances are no longer found by %s", name)
		case was != is:
			d.add(Changed, at, "", "instances are found by %s, %s, no longer %s; those that exist after a reindex", name, is, was)
		}
	}
}
