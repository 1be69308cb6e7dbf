package definition

import (
	"fmt"
	"slices"
	"strings"
)

// A Warning is something in a definition that can be registered, but that is hardly meant.
type Warning struct {
	// Name is what x-allow silences the warning by.
	Name string
	// Pointer is the place, as a JSON Pointer (RFC 6901) into the document.
	Pointer string
	// Detail says what is wrong there, and what would be right.
	Detail string
}

// warningNames are those of all warnings.
var warningNames = []string{
	"actor-unverified", "cancel-protected", "deadline-after-timeout", "default-is-text", "no-undoing-state", "not-undone", "nudge-stays", "operand-may-be-missing",
	"quoted-text", "rearm-without-timer", "retry-without-key", "stuck-after-timeout", "task-without-key", "time-as-text", "unknown-connection", "unknown-context-member",
	"unknown-payload-member", "unknown-variable", "use-absent", "use-present", "wildcard-comparison",
}

// warn adds a warning, unless the definition silences it at this place.
func (d *Draft) warn(name, at, format string, args ...any) {
	d.warnings = append(d.warnings, Warning{Name: name, Pointer: at, Detail: fmt.Sprintf(format, args...)})
}

// Warnings returns what can be registered, but is hardly meant, in the order of the pointers. What x-allow silences
// is left out.
func (d *Draft) Warnings() []Warning {
	silenced := func(w Warning) bool {
		for at := w.Pointer; ; at = at[:strings.LastIndexByte(at, '/')] {
			if slices.Contains(d.allowed[at], w.Name) {
				return true
			}
			if at == "" {
				return false
			}
		}
	}
	warnings := slices.DeleteFunc(slices.Clone(d.warnings), silenced)
	slices.SortStableFunc(warnings, func(a, b Warning) int { return strings.Compare(a.Pointer, b.Pointer) })
	return warnings
}

// WarnOfConnections warns of the connections that are missing, of which each tenant has its own.
func (d *Draft) WarnOfConnections(missing func(name string) bool) {
	known := map[string]bool{}
	for at, name := range d.connections {
		if _, asked := known[name]; !asked {
			known[name] = !missing(name)
		}
		if !known[name] {
			d.warn("unknown-connection", at, "there is no connection %s: tasks wait until there is one", name)
		}
	}
}

// allow reads the member x-allow: the names of warnings that are silenced from here on.
func (d *Draft) allow(at string, m map[string]any) []string {
	v, given := m["x-allow"]
	if !given {
		return nil
	}
	list, ok := v.([]any)
	if !ok || len(list) == 0 {
		d.fault(at+"/x-allow", "must be an array of the names of warnings that is not empty")
		return nil
	}
	var names []string
	for i, name := range list {
		text, _ := name.(string)
		if !slices.Contains(warningNames, text) {
			d.fault(fmt.Sprintf("%s/x-allow/%d", at, i), "is no warning; there are %s", strings.Join(warningNames, ", "))
			continue
		}
		names = append(names, text)
	}
	slices.Sort(names)
	names = slices.Compact(names)
	d.allowed[at] = names
	return names
}
