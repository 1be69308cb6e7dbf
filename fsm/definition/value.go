package definition

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// The methods below read single values. For a value that does not fit, each adds a fault and returns a zero
// value.

// members adds a fault for each member that is not known here.
func (d *Draft) members(at string, m map[string]any, known ...string) {
	for name := range m {
		if !slices.Contains(known, name) {
			d.fault(at+Pointer(name), "is not a member here; there are %s", strings.Join(known, ", "))
		}
	}
}

func (d *Draft) object(at string, v any) (map[string]any, bool) {
	m, ok := v.(map[string]any)
	if !ok {
		d.fault(at, "must be an object")
	}
	return m, ok
}

func (d *Draft) text(at string, v any) string {
	s, ok := v.(string)
	if !ok || s == "" {
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
		d.fault(at, "there is no state %q", s)
	}
	return s
}

// path reads a guard or the value of an assign, and notes it for the check by PostgreSQL.
func (d *Draft) path(at string, v any) string {
	s := d.text(at, v)
	if s != "" {
		d.Paths[at] = s
	}
	return s
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

// schema reads a JSON Schema: the member that the pointer at ends with. The contract has objects only.
func (d *Draft) schema(at string, m map[string]any) json.RawMessage {
	v, given := m[at[strings.LastIndexByte(at, '/')+1:]]
	if !given {
		return nil
	}
	if _, ok := v.(map[string]any); !ok {
		d.fault(at, `must be a JSON Schema that is an object; {} takes every document, and {"not": {}} none`)
		return nil
	}
	text, err := json.Marshal(v)
	if err == nil {
		err = d.checkSchema(v, text)
	}
	if err != nil {
		d.fault(at, "%s", err)
	}
	return text
}

// maxSchemaCost bounds the work that the schemas of a definition make when it is read.
const maxSchemaCost = 100_000

// checkSchema compiles a schema, and checks the smallest document against it. The same schema is checked once.
func (d *Draft) checkSchema(v any, text []byte) error {
	if err, known := d.schemas[string(text)]; known {
		return err
	}
	n := countObjects(v)
	if d.schemaCost += n + n*n/100; d.schemaCost > maxSchemaCost {
		return errors.New("the schemas of this definition are too large together; leave out a part of them, or make them simpler")
	}
	c, err := compileSchema(text)
	if err == nil {
		d.schemaCost += c.weight
		if spent := c.run(context.Background(), limits{steps: maxEmptySteps}, func() { _ = c.opposite.Validate(map[string]any{}) }); spent != nil {
			err = fmt.Errorf("checking even {} against this schema takes more than %d steps; apply fewer schemas to the same value", maxEmptySteps)
		}
		d.schemaCost += c.meter.taken / 10
	}
	d.schemas[string(text)] = err
	return err
}
