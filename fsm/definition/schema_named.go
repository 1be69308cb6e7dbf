package definition

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

// A Library has schemas of a deployment: what is there for the references that were asked for.
type Library struct {
	// Schemas has a schema by each reference to it, without a fragment: "pawl:address" or "pawl:address@3". It
	// also has those that these schemas refer to.
	Schemas map[string]json.RawMessage
	// Hints says for a reference that is not among them which name is like it.
	Hints map[string]string
}

// A Lookup finds the schemas for references, with all that they refer to. A nil Lookup knows none, and cannot tell
// whether there are any.
type Lookup func(references []string) (Library, error)

const (
	referencePrefix = "pawl:"
	latestDraft     = "https://json-schema.org/draft/2020-12/schema"
)

var reference = regexp.MustCompile(`^pawl:[a-z][a-z0-9]*([-_][a-z0-9]+)*(@[1-9][0-9]{0,8})?$`)

// References lists the schemas of a deployment that a JSON document refers to, sorted. Such a reference is any
// member $ref whose text begins with "pawl:"; the fragment is left out.
func References(document any) []string {
	var found []string
	eachReference(document, "", func(_, ref string) { found = append(found, ref) })
	slices.Sort(found)
	return slices.Compact(found)
}

// eachReference calls f with each reference of a document and with its place.
func eachReference(v any, at string, f func(at, ref string)) {
	switch v := v.(type) {
	case map[string]any:
		if ref, ok := v["$ref"].(string); ok && strings.HasPrefix(ref, referencePrefix) {
			ref, _, _ = strings.Cut(ref, "#")
			f(at+"/$ref", ref)
		}
		for _, name := range slices.Sorted(maps.Keys(v)) {
			eachReference(v[name], at+Pointer(name), f)
		}
	case []any:
		for i, item := range v {
			eachReference(item, fmt.Sprintf("%s/%d", at, i), f)
		}
	}
}

// named are schemas of the deployment by the references to them, as they were read.
type named map[string]map[string]any

// add reads a schema.
func (n named) add(ref string, schema []byte) error {
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(schema))
	if err != nil {
		return err
	}
	m, ok := v.(map[string]any)
	if !ok {
		return fmt.Errorf("schema %s is no object", ref)
	}
	n[ref] = m
	return nil
}

// reach lists the references of a schema, and those of the schemas that these lead to.
func (n named) reach(schema any) []string {
	found := map[string]bool{}
	for next := References(schema); len(next) > 0; {
		ref := next[len(next)-1]
		next = next[:len(next)-1]
		if !found[ref] {
			found[ref] = true
			next = append(next, References(n[ref])...)
		}
	}
	return slices.Sorted(maps.Keys(found))
}

// bundle returns a schema with copies of those that it refers to under $defs, where $id gives them the name that the
// references have (JSON Schema 2020-12, core, section 9.3). The function pawl_private.bundle does the same.
func (n named) bundle(schema map[string]any) map[string]any {
	refs := n.reach(schema)
	if len(refs) == 0 {
		return schema
	}
	own, _ := schema["$defs"].(map[string]any)
	defs := make(map[string]any, len(own)+len(refs))
	maps.Copy(defs, own)
	for _, ref := range refs {
		if m, known := n[ref]; known {
			defs[ref] = resource(ref, m)
		}
	}
	out := maps.Clone(schema)
	out["$defs"] = defs
	return out
}

// resource returns a named schema as it stands under $defs. Without $schema it is of the latest draft, whatever the
// schema around it is of.
func resource(ref string, schema map[string]any) map[string]any {
	out := make(map[string]any, len(schema)+2)
	out["$schema"] = latestDraft
	maps.Copy(out, schema)
	out["$id"] = ref
	return out
}

// text is bundle for a schema as JSON text.
func (n named) text(schema json.RawMessage) json.RawMessage {
	if len(n) == 0 || !bytes.Contains(schema, []byte(referencePrefix)) {
		return schema
	}
	m, _ := decodeSchema(schema).(map[string]any)
	text, err := json.Marshal(n.bundle(m))
	if err != nil {
		return schema
	}
	return text
}

// Bundled returns a schema of the definition with the schemas of the deployment that it refers to, as documents are
// checked against it.
func (d *Definition) Bundled(schema json.RawMessage) json.RawMessage { return d.carried().text(schema) }

// carried are the schemas that the definition carries.
func (d *Definition) carried() named {
	n := named{}
	for ref, text := range d.Schemas {
		_ = n.add(ref, text) // They were read when the definition was.
	}
	return n
}

// Missing lists the references to schemas of the deployment that the definition does not carry. A definition that a
// service has registered misses none.
func (d *Definition) Missing() []string {
	n := d.carried()
	var missing []string
	for _, schema := range d.allSchemas() {
		for _, ref := range n.reach(decodeSchema(schema)) {
			if _, carried := n[ref]; !carried {
				missing = append(missing, ref)
			}
		}
	}
	slices.Sort(missing)
	return slices.Compact(missing)
}

// allSchemas lists the context schema and the payload schemas.
func (d *Definition) allSchemas() (all []json.RawMessage) {
	all = append(all, d.ContextSchema)
	var collect func(states map[string]State)
	collect = func(states map[string]State) {
		for _, s := range states {
			for _, candidates := range s.On {
				for _, t := range candidates {
					all = append(all, t.PayloadSchema)
				}
			}
			collect(s.States)
		}
	}
	collect(d.States)
	return slices.DeleteFunc(all, func(s json.RawMessage) bool { return s == nil })
}

// carry reads the schemas of the deployment that the definition brings with it.
func (d *Draft) carry(document map[string]any) {
	v, given := document["schemas"]
	if !given {
		return
	}
	m, _ := d.object("/schemas", v)
	for ref, schema := range m {
		at := "/schemas" + Pointer(ref)
		m, ok := schema.(map[string]any)
		if !ok || !reference.MatchString(ref) {
			d.fault(at, `must be a schema that is an object, with a name such as "pawl:address" or "pawl:address@3"`)
			continue
		}
		d.named[ref] = m
		d.checkNamed(at, m)
	}
}

// lookUp finds the schemas that a document refers to and does not bring with it.
func (d *Draft) lookUp(document map[string]any, lookup Lookup) error {
	d.looked = lookup != nil
	wanted := slices.DeleteFunc(d.named.reach(document), func(ref string) bool { return d.named[ref] != nil || !reference.MatchString(ref) })
	if lookup == nil || len(wanted) == 0 {
		return nil
	}
	library, err := lookup(wanted)
	if err != nil {
		return err
	}
	for ref, schema := range library.Schemas {
		if _, carried := d.named[ref]; !carried {
			if err := d.named.add(ref, schema); err != nil {
				return err
			}
		}
	}
	d.hints = library.Hints
	return nil
}

// bundle returns the schema at a place with those of the deployment that it refers to. It is nil if that is not
// possible, for which there is a fault unless nobody knows the schemas of the deployment.
func (d *Draft) bundle(at string, schema map[string]any) map[string]any {
	if d.bundled > d.limits.Bytes {
		return nil
	}
	good := true
	eachID(schema, at, func(at string) {
		d.fault(at, "must not begin with pawl:, which is for the schemas of the deployment")
		good = false
	})
	refs := d.named.reach(schema)
	if len(refs) == 0 {
		if good {
			return schema
		}
		return nil
	}
	if old(schema) {
		d.fault(at+"/$schema", "must be that of draft 2019-09 or 2020-12, or left out, since the schema refers to %s", refs[0])
		good = false
	}
	places := map[string]string{}
	eachReference(schema, at, func(at, ref string) {
		if places[ref] == "" {
			places[ref] = at
		}
	})
	own, _ := schema["$defs"].(map[string]any)
	texts := map[string]json.RawMessage{}
	for _, ref := range refs {
		if _, twice := own[ref]; twice {
			d.fault(at+Pointer("$defs", ref), "has the name of a schema of the deployment that is referred to; take another name")
			good = false
		}
		if d.named[ref] == nil {
			good = false
			if fault := d.missing(ref); fault != "" {
				d.fault(cmp.Or(places[ref], at), "%s", fault)
			}
			continue
		}
		texts[ref], _ = json.Marshal(d.named[ref]) // It was read from JSON.
		d.bundled += len(texts[ref])
	}
	if d.bundled > d.limits.Bytes {
		d.fault(at, "the schemas of the deployment have, wherever they are referred to, more than %d bytes together; refer to fewer or smaller ones", d.limits.Bytes)
		good = false
	}
	if !good {
		return nil
	}
	if d.Definition.Schemas == nil {
		d.Definition.Schemas = map[string]json.RawMessage{}
	}
	maps.Copy(d.Definition.Schemas, texts)
	return d.named.bundle(schema)
}

// missing says what is wrong with a reference that leads to no schema. It is empty if nobody knows the schemas of the
// deployment.
func (d *Draft) missing(ref string) string {
	switch {
	case !reference.MatchString(ref):
		return fmt.Sprintf(`%q must be "pawl:" and the name of a schema, and may end with @ and a version, as "pawl:address@3"`, shortened(ref))
	case !d.looked:
		return ""
	case d.hints[ref] != "":
		return fmt.Sprintf("there is no schema %q; did you mean %q?", strings.TrimPrefix(ref, referencePrefix), d.hints[ref])
	}
	return fmt.Sprintf("there is no schema %q: register it first, with PUT /v1/schemas", strings.TrimPrefix(ref, referencePrefix))
}

// eachID calls f with the place of each identifier that begins as a reference does.
func eachID(v any, at string, f func(at string)) {
	switch v := v.(type) {
	case map[string]any:
		if id, ok := v["$id"].(string); ok && strings.HasPrefix(id, referencePrefix) {
			f(at + "/$id")
		}
		for _, name := range slices.Sorted(maps.Keys(v)) {
			eachID(v[name], at+Pointer(name), f)
		}
	case []any:
		for i, item := range v {
			eachID(item, fmt.Sprintf("%s/%d", at, i), f)
		}
	}
}

// old reports whether a schema is of a draft in which nothing stands beside $ref.
func old(schema map[string]any) bool {
	text, _ := schema["$schema"].(string)
	return strings.Contains(text, "draft-0")
}

// checkNamed checks what a schema must be to have a name in the deployment.
func (d *Draft) checkNamed(at string, schema map[string]any) {
	if _, given := schema["$id"]; given {
		d.fault(at+"/$id", "must be left out: the name of the schema is its identifier")
	}
	text, _ := schema["$schema"].(string)
	_, root := schema["$ref"]
	switch {
	case strings.Contains(text, "draft-04"):
		d.fault(at+"/$schema", "must be that of draft-06 or later, or left out")
	case old(schema) && root:
		d.fault(at+"/$ref", "must be within allOf, since this draft reads nothing beside it")
	}
}

// CheckSchema checks a schema that is to have a name in the deployment, as far as the schemas of a definition are
// checked. It may refer to itself by its name.
//
// The error is an [Error], whose reason is ErrMalformed if the document is not a JSON object, ErrTooLarge, or
// ErrInvalid with every fault; or that of the lookup.
func CheckSchema(name string, data []byte, limits Limits, lookup Lookup) error {
	d := newDraft(limits)
	if len(data) > d.limits.Bytes {
		return &Error{Reason: ErrTooLarge, Message: fmt.Sprintf("a schema must have at most %d bytes", d.limits.Bytes)}
	}
	if err := CheckObject(data); err != nil {
		return err
	}
	if !workflowName.MatchString(name) || len(name)+strings.Count(name, "_") > MaxNameLength {
		d.fault("", "the name must be of lower-case letters and digits, with single dashes or underscores between, and have at most %d characters; an underscore counts twice", MaxNameLength)
		return d.schemaErr()
	}
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(data))
	if err != nil {
		return malformed("", err.Error())
	}
	schema := v.(map[string]any) // CheckObject has seen one.
	err = d.lookUp(schema, itself(referencePrefix+name, data, lookup))
	if err != nil {
		return err
	}
	d.checkNamed("", schema)
	d.checkSchemaAt("", schema)
	return d.schemaErr()
}

// itself is a lookup that also finds a schema that is about to get its name. It may refer to itself, and those that it
// refers to may refer to it.
func itself(ref string, schema []byte, lookup Lookup) Lookup {
	if lookup == nil {
		return nil
	}
	return func(references []string) (Library, error) {
		library, err := lookup(references)
		if library.Schemas == nil {
			library.Schemas = map[string]json.RawMessage{}
		}
		library.Schemas[ref] = schema
		return library, err
	}
}

func (d *Draft) schemaErr() error {
	err := d.Err()
	if e, ok := err.(*Error); ok {
		e.Message = "the schema has faults"
	}
	return err
}
