package definition

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
	_ "time/tzdata" // Faults must not depend on the machine's time zones.
)

// The methods below read single values. For a value that does not fit, each adds a fault and returns a zero
// value.

// members adds a fault for each member that is not known here.
func (d *Draft) members(at string, m map[string]any, known ...string) {
	for name := range m {
		switch {
		case slices.Contains(known, name):
		case name == "true" && slices.Contains(known, "on"):
			d.fault(at+"/true", `was on: a reader of YAML 1.1 took that for true; write "on" in quotes, or read the file as YAML 1.2`)
		default:
			d.fault(at+Pointer(name), "is not a member here%s; there are %s", didYouMean("", name, known), strings.Join(known, ", "))
		}
	}
}

func (d *Draft) object(at string, v any) (map[string]any, bool) {
	m, ok := v.(map[string]any)
	switch {
	case v == nil:
		d.fault(at, "is missing or null: it must be an object")
	case !ok:
		d.fault(at, "must be an object")
	}
	return m, ok
}

func (d *Draft) text(at string, v any) string {
	s, _ := v.(string)
	switch {
	case v == nil:
		d.fault(at, "is missing or null: it must be a string that is not empty")
	case s == "":
		d.fault(at, "must be a string that is not empty")
	}
	return s
}

// boolean reads a member that may be missing; then it is false.
func (d *Draft) boolean(at string, m map[string]any, name string) bool {
	v, given := m[name]
	b, ok := v.(bool)
	if given && !ok {
		d.fault(at+"/"+name, "must be true or false")
	}
	return b
}

func (d *Draft) description(at string, m map[string]any) string {
	v, given := m["description"]
	if !given {
		return ""
	}
	return d.text(at+"/description", v)
}

// target reads the name or the path of a state and returns the path. A name means the nearest state
// that has it, seen from the place where: within it, beside it, or beside a state around it.
func (d *Draft) target(at string, where place, v any) string {
	s := d.text(at, v)
	if s == "" {
		return ""
	}
	if !strings.Contains(s, ".") {
		for i := len(where) - 1; i >= 0; i-- {
			if slices.Contains(d.within[where[i]], s) {
				return join(where[i], s)
			}
		}
	}
	if _, known := d.pointers[s]; !known {
		d.fault(at, "there is no state %q%s", s, didYouMean("", s, slices.Collect(maps.Keys(d.pointers))))
	}
	return s
}

// A use is a path that the definition evaluates.
type use struct {
	at, text string
	// expr is nil if the text could not be parsed.
	expr *pathExpr
	// predicate: the path itself is a condition. invariant: it stands in one.
	predicate, invariant bool
	// equalsNull: the path is compared with null, by equal.
	equalsNull bool
	// roots are the members of the document that the path is evaluated over. Nil: those of a step.
	roots []string
}

// contextNames are the members of the context that the path reads.
func (u use) contextNames() (names []string) {
	if u.expr == nil {
		return nil
	}
	u.expr.walk(func(e *pathExpr, _ bool) {
		if members := e.members(); len(members) > 1 && members[0] == "context" {
			names = append(names, members[1])
		}
	})
	return names
}

// note notes a path, as it is written, for the check by PostgreSQL and for those of its meaning. The engine reads a
// path in strict mode, unless the path names its mode.
func (d *Draft) note(at, text string, predicate bool) {
	u := use{at: at, text: text, predicate: predicate}
	if e, ok := parsePath(text); ok {
		u.expr = e
	}
	d.uses = append(d.uses, u)
	if !strings.HasPrefix(text, "lax ") && !strings.HasPrefix(text, "strict ") {
		text = "strict " + text
	}
	d.Paths[at] = append(d.Paths[at], text)
}

// invariant reads the member invariant.
func (d *Draft) invariant(at string, m map[string]any) Guard {
	v, given := m["invariant"]
	if !given {
		return nil
	}
	first := len(d.uses)
	g := d.guard(at+"/invariant", v)
	for i := range d.uses[first:] {
		d.uses[first+i].invariant = true
	}
	return g
}

// over says of all that f reads what it is evaluated over.
func (d *Draft) over(roots []string, f func()) {
	first := len(d.uses)
	f()
	for i := range d.uses[first:] {
		d.uses[first+i].roots = roots
	}
}

// zone reads the name of a time zone.
func (d *Draft) zone(at string, v any) string {
	name := d.text(at, v)
	if name == "" {
		return ""
	}
	if _, err := time.LoadLocation(name); err != nil || name == "Local" {
		d.fault(at, "%q is no time zone; write a name of the tz database, such as Europe/Berlin or UTC", name)
	}
	return name
}

// A payload is what is known of the payload that a guard or a value reads.
type payload struct {
	// schema is decoded; nil if there is none.
	schema any
	// where names what has the members of the schema.
	where string
}

// payload returns the payload that is there when what stands at a pointer is evaluated.
func (d *Draft) payload(at string) payload {
	for ; at != ""; at = at[:strings.LastIndexByte(at, '/')] {
		if p, known := d.payloads[at]; known {
			return p
		}
	}
	return payload{}
}

// calendarDuration reads a duration that may have months and years.
func (d *Draft) calendarDuration(at, text string) Duration {
	duration, err := ParseCalendarDuration(text)
	if err != nil {
		d.fault(at, "%v", err)
	}
	return duration
}

func (d *Draft) duration(at string, v any) time.Duration {
	s := d.text(at, v)
	if s == "" {
		return 0
	}
	duration, err := ParseDuration(s)
	if err != nil {
		d.fault(at, "%v", err)
	}
	return duration
}

// span reads a duration of a fixed length between two others.
func (d *Draft) span(at string, v any, least, most time.Duration) time.Duration {
	faults := len(d.faults)
	duration := d.duration(at, v)
	if len(d.faults) == faults && (duration < least || duration > most) {
		d.fault(at, "must be from %s to %s", FormatDuration(least), FormatDuration(most))
	}
	return duration
}

// schema reads a JSON Schema: the member that the pointer at ends with. The contract has objects only.
func (d *Draft) schema(at string, m map[string]any) json.RawMessage {
	v, given := m[at[strings.LastIndexByte(at, '/')+1:]]
	if !given {
		return nil
	}
	m, ok := v.(map[string]any)
	if !ok {
		d.fault(at, `must be a JSON Schema that is an object; {} takes every document, and {"not": {}} none`)
		return nil
	}
	checked := d.checkSchemaAt(at, m)
	text, err := json.Marshal(m)
	if err != nil {
		d.fault(at, "%s", err)
	}
	d.schemas[string(text)] = checked
	return text
}

// A checkedSchema is what is known of a schema: its fault, and whether it refuses an empty object.
type checkedSchema struct {
	fault        error
	refusesEmpty bool
}

// checkSchemaAt checks a schema with those of the deployment that it refers to. Nothing is known of one that cannot be
// checked.
func (d *Draft) checkSchemaAt(at string, schema map[string]any) checkedSchema {
	bundle := d.bundle(at, schema)
	if bundle == nil {
		return checkedSchema{}
	}
	var checked checkedSchema
	text, err := json.Marshal(bundle)
	if err == nil {
		checked = d.checkSchema(bundle, text)
		err = checked.fault
	}
	if err != nil {
		d.fault(at, "%s", err)
	}
	return checked
}

// maxSchemaCost bounds the work that the schemas of a definition make when it is read.
const maxSchemaCost = 100_000

// checkSchema compiles a schema, and checks the smallest document against it. The same schema is checked once.
func (d *Draft) checkSchema(v any, text []byte) checkedSchema {
	if checked, known := d.schemas[string(text)]; known {
		return checked
	}
	n := countObjects(v)
	if d.schemaCost += n + n*n/100; d.schemaCost > maxSchemaCost {
		return checkedSchema{fault: errors.New("the schemas of this definition are too large together; leave out a part of them, or make them simpler")}
	}
	var checked checkedSchema
	c, err := compileSchema(text)
	if err == nil {
		d.schemaCost += c.weight
		empty := func() { checked.refusesEmpty = c.opposite.Validate(map[string]any{}) == nil }
		if spent := c.run(context.Background(), limits{steps: maxEmptySteps}, empty); spent != nil {
			err = fmt.Errorf("checking even {} against this schema takes more than %d steps; apply fewer schemas to the same value", maxEmptySteps)
		}
		d.schemaCost += c.meter.taken / 10
		err = cmp.Or(err, c.checkFormats())
	}
	checked.fault = err
	d.schemas[string(text)] = checked
	return checked
}
