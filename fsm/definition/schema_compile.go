package definition

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

// schemaRoot is the base URI of a schema while it is compiled. Nothing can be read there. It ends
// with a slash, so that no relative reference except the empty one resolves to it.
const schemaRoot = "pawl:///schema/"

// oppositeRoot is the base URI of the schema that holds where the schema does not.
const oppositeRoot = "pawl:///opposite/"

// noLoader refuses every reference that leaves the document. The library's default reads files.
type noLoader struct{}

// Load returns an error.
func (noLoader) Load(url string) (any, error) {
	return nil, fmt.Errorf("$ref to %s leaves the document", url)
}

// maxSchemaObjects is how many JSON objects a JSON Schema may have. Every subschema is one, unless it is true
// or false. Compiling takes time that grows with the square of their number.
const maxSchemaObjects = 1000

// compiled is a compiled JSON Schema. Its meter counts one check at a time, so it is used by one goroutine at a
// time.
type compiled struct {
	// schema finds all faults of a document. opposite holds for a document that has any: below "not" the library
	// stops at the first fault, and makes no descriptions.
	schema, opposite *jsonschema.Schema
	meter            *meter
	// patterns has the regular expressions of the schema by their text, while it is compiled.
	patterns map[string]*pattern
	// weight is roughly how many KiB it takes.
	weight int
	// objects is how many JSON objects the schema has.
	objects int
	// unknownFormats has the formats that are not checked, each with its place.
	unknownFormats []string
}

// compileSchema compiles a JSON Schema that refers to nothing but itself. Without $schema it is of
// draft 2020-12 (json-schema.org/draft/2020-12). The error is fit for the author of the schema.
func compileSchema(schema []byte) (*compiled, error) {
	document, err := jsonschema.UnmarshalJSON(bytes.NewReader(schema))
	if err != nil {
		return nil, err
	}
	c := &compiled{meter: &meter{}, patterns: map[string]*pattern{}, objects: countObjects(document)}
	if c.objects > maxSchemaObjects {
		return nil, fmt.Errorf("has %d objects of at most %d; make the schema smaller", c.objects, maxSchemaObjects)
	}
	compiler := jsonschema.NewCompiler()
	compiler.UseLoader(noLoader{})
	compiler.AssertFormat()
	compiler.UseRegexpEngine(c.compilePattern)
	roots := []*jsonschema.Schema{}
	spent := c.run(context.Background(), limits{steps: maxPatternSize}, func() {
		// The opposite is of the latest draft, whatever the schema is of.
		opposite := map[string]any{"not": map[string]any{"$ref": schemaRoot}}
		if err = errors.Join(compiler.AddResource(schemaRoot, document), compiler.AddResource(oppositeRoot, opposite)); err != nil {
			return
		}
		if c.schema, err = compiler.Compile(schemaRoot); err != nil {
			return
		}
		if c.opposite, err = compiler.Compile(oppositeRoot); err != nil {
			return
		}
		roots = append(roots, c.schema)
		for _, pointer := range dynamicAnchors(document, "", nil) {
			// These are compiled already, or are no schemas.
			if s, err := compiler.Compile(schemaRoot + "#" + pointer); err == nil {
				roots = append(roots, s)
			}
		}
	})
	if spent != nil {
		return nil, fmt.Errorf("its patterns stand for more than %d characters and classes; make them or their repetitions smaller", maxPatternSize)
	}
	if err != nil {
		return nil, errors.New(schemaFault(err, document))
	}
	c.weight = 1 + c.objects + c.meter.taken/20
	c.patterns = nil
	c.measure(roots, document)
	return c, nil
}

// run runs a part of a check, or of a compilation, within limits. The error is errSpent, or that of the context.
func (c *compiled) run(ctx context.Context, limits limits, part func()) (err error) {
	*c.meter = meter{limits: limits, ctx: ctx, begun: time.Now()}
	defer func() {
		switch v := recover().(type) {
		case nil:
		case stop:
			err = v.err
		default:
			panic(v)
		}
	}()
	part()
	return nil
}

// countObjects counts the objects of a JSON document.
func countObjects(v any) int {
	n := 0
	switch v := v.(type) {
	case map[string]any:
		n++
		for _, child := range v {
			n += countObjects(child)
		}
	case []any:
		for _, child := range v {
			n += countObjects(child)
		}
	}
	return n
}

// dynamicAnchors lists the pointers of all objects with a $dynamicAnchor. No field of a compiled schema leads to
// them.
func dynamicAnchors(v any, at string, pointers []string) []string {
	switch v := v.(type) {
	case map[string]any:
		if _, dynamic := v["$dynamicAnchor"]; dynamic {
			pointers = append(pointers, at)
		}
		for name, child := range v {
			pointers = dynamicAnchors(child, at+Pointer(name), pointers)
		}
	case []any:
		for i, child := range v {
			pointers = dynamicAnchors(child, at+"/"+strconv.Itoa(i), pointers)
		}
	}
	return pointers
}

// measure makes every schema that the roots lead to take the steps of its check from the meter.
func (c *compiled) measure(roots []*jsonschema.Schema, document any) {
	seen := map[*jsonschema.Schema]bool{}
	for len(roots) > 0 {
		s := roots[len(roots)-1]
		roots = roots[:len(roots)-1]
		if s == nil || seen[s] {
			continue
		}
		seen[s] = true
		inPlace, members, others := subschemas(s)
		roots = append(append(append(roots, inPlace...), members...), others...)
		if s.Bool == nil {
			c.noteFormat(s, document)
			newToll(c.meter, s, len(inPlace), len(members)).install(s)
		}
	}
}

// subschemas lists the schemas that a schema applies: in place, to every member of an object or item of an array,
// and to single ones.
func subschemas(s *jsonschema.Schema) (inPlace, members, others []*jsonschema.Schema) {
	add := func(to *[]*jsonschema.Schema, list ...any) {
		for _, v := range list {
			switch v := v.(type) {
			case *jsonschema.Schema:
				if v != nil {
					*to = append(*to, v)
				}
			case []*jsonschema.Schema:
				*to = append(*to, v...)
			}
		}
	}
	add(&inPlace, s.Ref, s.RecursiveRef, s.Not, s.AllOf, s.AnyOf, s.OneOf, s.If, s.Then, s.Else, s.ContentSchema)
	if s.DynamicRef != nil {
		add(&inPlace, s.DynamicRef.Ref)
	}
	for _, dependency := range s.Dependencies {
		add(&inPlace, dependency)
	}
	for _, schema := range s.DependentSchemas {
		add(&inPlace, schema)
	}
	if items, single := s.Items.(*jsonschema.Schema); single {
		add(&members, items)
	} else {
		add(&others, s.Items)
	}
	add(&members, s.AdditionalProperties, s.PropertyNames, s.UnevaluatedProperties, s.Items2020, s.AdditionalItems, s.Contains,
		s.UnevaluatedItems)
	for _, schema := range s.PatternProperties {
		add(&members, schema)
	}
	add(&others, s.PrefixItems)
	for _, schema := range s.Properties {
		add(&others, schema)
	}
	return inPlace, members, others
}

// toll is what a schema does before it applies others: it takes the steps of that, and checks type, const,
// enum and format. The library makes these checks first, too, but does not measure them.
type toll struct {
	meter *meter
	// fixed is what applying the schema costs, and perMember what each member or item adds to that.
	fixed, perMember int
	types            []string
	constant, enum   *choice
	format           *jsonschema.Format
	unique           bool
	calculates       bool // Whether the library turns numbers into fractions.
}

// A choice is a set of values.
type choice struct {
	values map[string]bool // By their canonical text.
	types  map[string]bool
	fault  jsonschema.ErrorKind
}

func newChoice(values []any, fault jsonschema.ErrorKind) *choice {
	c := &choice{map[string]bool{}, map[string]bool{}, fault}
	free := &meter{limits: limits{steps: math.MaxInt}, ctx: context.Background()}
	for _, v := range values {
		c.values[canonicalText(free, v)] = true
		c.types[typeOf(v)] = true
	}
	return c
}

// refuses returns the fault of a value that is not in the set, and nil for one that is.
func (c *choice) refuses(m *meter, v any, t string) error {
	if c == nil || c.types[t] && c.values[canonicalText(m, v)] {
		return nil
	}
	return &refusal{c.fault}
}

// refusal is a fault as an error.
type refusal struct{ kind jsonschema.ErrorKind }

// Error describes the fault.
func (r *refusal) Error() string { return r.kind.LocalizedString(english) }

func newToll(m *meter, s *jsonschema.Schema, inPlace, members int) *toll {
	t := &toll{meter: m, fixed: 1 + inPlace + len(s.Required)/8, perMember: 1 + members, format: s.Format, unique: s.UniqueItems}
	for _, names := range s.DependentRequired {
		t.fixed += 1 + len(names)/8
	}
	if s.Types != nil {
		t.types = s.Types.ToStrings()
	}
	if s.Const != nil {
		t.constant = newChoice([]any{*s.Const}, constFault(*s.Const))
	}
	if s.Enum != nil {
		t.enum = newChoice(s.Enum.Values, enumFault(s.Enum.Values))
	}
	t.calculates = s.Minimum != nil || s.Maximum != nil || s.ExclusiveMinimum != nil || s.ExclusiveMaximum != nil || s.MultipleOf != nil
	return t
}

// install puts the toll where the library checks the format, which it then does first.
func (t *toll) install(s *jsonschema.Schema) {
	s.Types, s.Const, s.Enum = nil, nil, nil
	s.Format = &jsonschema.Format{Validate: t.check}
	if t.format != nil {
		s.Format.Name = t.format.Name
	}
	if t.unique {
		// The library's own check compares all items with one another if their hashes are made to collide.
		s.UniqueItems = false
		s.Extensions = append(s.Extensions, uniqueItems{t.meter})
	}
}

// check is the Validate of a format.
func (t *toll) check(v any) error {
	steps := t.fixed
	switch v := v.(type) {
	case map[string]any:
		steps += len(v) * t.perMember
	case []any:
		steps += len(v) * t.perMember
	case string:
		steps += len(v) / 256
	case numberText:
		if t.calculates {
			steps += calculationSteps(string(v))
		}
	}
	t.meter.take(steps)
	kind := typeOf(v)
	if t.types != nil && !t.takes(kind, v) {
		return &refusal{typeFault(kind, t.types)}
	}
	if err := t.constant.refuses(t.meter, v, kind); err != nil {
		return err
	}
	if err := t.enum.refuses(t.meter, v, kind); err != nil {
		return err
	}
	if t.format != nil {
		return t.format.Validate(v)
	}
	return nil
}

// takes reports whether a value has one of the types.
func (t *toll) takes(kind string, v any) bool {
	for _, want := range t.types {
		if want == kind {
			return true
		}
		if number, ok := v.(numberText); ok && want == "integer" {
			t.meter.take(len(number) / 256)
			if _, exponent := canonicalNumber(string(number)); exponent >= 0 {
				return true
			}
		}
	}
	return false
}

// uniqueItems is the keyword of that name.
type uniqueItems struct{ meter *meter }

// Validate adds the fault of an array that has a value twice.
func (u uniqueItems) Validate(ctx *jsonschema.ValidatorContext, v any) {
	items, _ := v.([]any)
	places := make(map[string]int, len(items))
	for i, item := range items {
		text := canonicalText(u.meter, item)
		if first, twice := places[text]; twice {
			ctx.AddError(uniqueFault(first, i))
			return
		}
		places[text] = i
	}
}

// calculationSteps is what it costs to turn a number into a fraction, and to divide it. The time grows with the
// square of its digits.
func calculationSteps(number string) int {
	if len(number) <= 20 && !strings.ContainsAny(number, "eE") {
		return 0
	}
	whole, fraction := digits(number)
	n := min(whole+fraction, 1<<30)
	return n/8 + n*n/50_000
}
