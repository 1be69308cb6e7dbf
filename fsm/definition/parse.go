package definition

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"regexp"
	"slices"
	"strings"
)

var (
	workflowName = regexp.MustCompile(`^[a-z][a-z0-9]*([-_][a-z0-9]+)*$`)
	identifier   = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_.-]{0,63}$`)
	statePath    = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*$`)
)

const (
	maxStateName = 64
	// maxInherited bounds the transitions of a flattened definition.
	maxInherited = 50_000
)

// ParseStored reads a definition that a service has accepted, without limits. The service may have
// accepted it under other rules, so faults do not count.
func ParseStored(data []byte) (*Definition, error) {
	draft, err := Read(data, "", Limits{Bytes: math.MaxInt, States: math.MaxInt})
	if err != nil {
		return nil, err
	}
	return &draft.Definition, nil
}

// Parse reads a definition from strict JSON. It checks everything that can be checked without a
// database, which is all but the syntax of paths. A document without a name takes
// defaultName. If there is a defaultName, it is a fault for the document to have another name.
//
// The error is an [Error], whose reason is ErrMalformed if the document is not a JSON object,
// ErrTooLarge, or ErrInvalid with every fault.
func Parse(data []byte, defaultName string, limits Limits) (*Definition, error) {
	d, err := Read(data, defaultName, limits)
	if err != nil {
		return nil, err
	}
	if err := d.Err(); err != nil {
		return nil, err
	}
	return &d.Definition, nil
}

// A Draft is a definition that was read, with the faults that were found in it.
type Draft struct {
	// Definition has a zero value, or a part of what was written, where there is a fault.
	Definition Definition
	// Paths are those of the guards and values, by their pointers, as the engine reads them: with their mode in
	// front. They are SQL/JSON paths whose syntax was not checked. The path of a request may hold several.
	Paths map[string][]string

	faults   []Fault
	warnings []Warning
	// uses are the paths as they are written, and assigns all assigns.
	uses    []use
	assigns []assignAt
	// payloads has the payloads that are known, by the pointers of what reads them.
	payloads map[string]payload
	// timed has the paths of the states that have timers.
	timed map[string]bool
	// allowed has the warnings that are silenced below a pointer.
	allowed map[string][]string
	// within has the names of the states within each state, by its path; the path of the top level is
	// empty.
	within map[string][]string
	// pointers has the place of each state in the document, by its path.
	pointers map[string]string
	// schemas has the schemas that were read, by their text.
	schemas    map[string]checkedSchema
	schemaCost int
	// late has the events of tasks that end too late, by the pointers to their names.
	late map[string]string
	// connections has the names of connections, by the pointers to them.
	connections map[string]string
	// undos has the pointers of the compensations.
	undos map[*Task]string
	// named has the schemas of the deployment that the definition refers to, and hints what is like those that there
	// are not. looked: the deployment was asked. bundled is how many bytes their copies have.
	named   named
	hints   map[string]string
	looked  bool
	bundled int
	limits  Limits
}

// Read is Parse for callers that check more, or that take a definition with its faults. The error is an
// [Error] with reason ErrMalformed or ErrTooLarge: nothing could be read. Schemas of the deployment that the definition
// refers to without carrying them are not checked.
func Read(data []byte, defaultName string, limits Limits) (*Draft, error) {
	return ReadWith(data, defaultName, limits, nil)
}

// ReadWith is Read with the schemas of the deployment. The error may also be that of the lookup.
func ReadWith(data []byte, defaultName string, limits Limits, lookup Lookup) (*Draft, error) {
	d := newDraft(limits)
	limits = d.limits
	if len(data) > limits.Bytes {
		return nil, &Error{Reason: ErrTooLarge, Message: fmt.Sprintf("a definition must have at most %d bytes", limits.Bytes)}
	}
	if err := CheckObject(data); err != nil {
		return nil, err
	}
	var document map[string]any
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.UseNumber()
	if err := decoder.Decode(&document); err != nil {
		return nil, malformed("", err.Error())
	}
	d.carry(document)
	if err := d.lookUp(document, lookup); err != nil {
		return nil, err
	}
	d.read(document, defaultName, limits)
	return d, nil
}

func newDraft(limits Limits) *Draft {
	if limits.Bytes == 0 {
		limits.Bytes = 1 << 20
	}
	if limits.States == 0 {
		limits.States = 500
	}
	return &Draft{
		Paths: map[string][]string{}, within: map[string][]string{}, pointers: map[string]string{}, schemas: map[string]checkedSchema{},
		payloads: map[string]payload{}, timed: map[string]bool{}, late: map[string]string{}, connections: map[string]string{}, undos: map[*Task]string{}, allowed: map[string][]string{}, named: named{}, limits: limits,
	}
}

// Fault adds a fault at a JSON Pointer.
func (d *Draft) Fault(pointer, detail string) {
	d.faults = append(d.faults, Fault{Pointer: pointer, Detail: detail})
}

func (d *Draft) fault(at, format string, args ...any) { d.Fault(at, fmt.Sprintf(format, args...)) }

// Err returns an Error with reason ErrInvalid and all faults, or nil if there are none.
func (d *Draft) Err() error {
	if len(d.faults) == 0 {
		return nil
	}
	slices.SortStableFunc(d.faults, func(a, b Fault) int { return strings.Compare(a.Pointer, b.Pointer) })
	return &Error{Reason: ErrInvalid, Message: "the definition has faults", Faults: d.faults}
}

// A place is where a state stands: the paths of the states around it and its own, from the outside
// in. The top level is the empty place.
type place []string

func (p place) path() string {
	if len(p) == 0 {
		return ""
	}
	return p[len(p)-1]
}

// join returns the path of a state within another, or of one at the top level if path is empty.
func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

// read reads the whole document.
func (d *Draft) read(document map[string]any, defaultName string, limits Limits) {
	d.members("", document, "name", "version", "description", "initial", "timezone", "ttl", "cancel", "require_if_match", "business_key", "retention",
		"context_schema", "context_default", "search", "invariant", "states", "schemas", "x-allow", "tests", "$schema")
	def := &d.Definition
	d.outline("", "", document)
	def.Name = defaultName
	if _, given := document["name"]; given || defaultName == "" {
		def.Name = d.text("/name", document["name"])
	}
	switch {
	case def.Name == "":
	case defaultName != "" && def.Name != defaultName:
		d.fault("/name", "is %q, but the workflow is %q", def.Name, defaultName)
	case !workflowName.MatchString(def.Name):
		d.fault("/name", "must be of lower-case letters and digits, with single dashes or underscores between")
	case len(def.Name)+strings.Count(def.Name, "_") > MaxNameLength:
		d.fault("/name", "must have at most %d characters; an underscore counts twice", MaxNameLength)
	}
	if v, given := document["version"]; given {
		number, _ := v.(json.Number)
		n, err := number.Int64()
		if err != nil || n < 1 || n > 1<<31-1 {
			d.fault("/version", "must be a whole number from 1")
		}
		def.Version = int(n)
	}
	def.Description = d.description("", document)
	at, initial, assign := d.initial("/initial", document["initial"])
	def.Initial, def.InitialAssign = d.target(at, nil, initial), assign
	if v, given := document["timezone"]; given {
		def.Timezone = d.zone("/timezone", v)
	}
	def.Allow = d.allow("", document)
	if v, given := document["$schema"]; given {
		d.text("/$schema", v)
	}
	if v, given := document["tests"]; given {
		list, ok := v.([]any)
		if !ok {
			d.fault("/tests", "must be an array of scenarios")
		}
		for i, scenario := range list {
			_, _ = d.object(fmt.Sprintf("/tests/%d", i), scenario)
		}
	}
	if v, given := document["ttl"]; given {
		if m, ok := d.object("/ttl", v); ok {
			d.members("/ttl", m, "after", "target", "sliding")
			def.TTL = &TTL{
				After: d.duration("/ttl/after", m["after"]), Target: d.target("/ttl/target", nil, m["target"]),
				Sliding: d.boolean("/ttl", m, "sliding"),
			}
		}
	}
	if v, given := document["cancel"]; given {
		def.Cancel = d.target("/cancel", nil, v)
	}
	def.RequireVersion = d.boolean("", document, "require_if_match")
	if v, given := document["business_key"]; given {
		switch v {
		case "unique":
		case "reusable":
			def.ReusableKey = true
		default:
			d.fault("/business_key", `must be "unique" or "reusable"`)
		}
	}
	if v, given := document["retention"]; given {
		def.Retention = d.duration("/retention", v)
	}
	def.ContextSchema = d.schema("/context_schema", document)
	if v, given := document["context_default"]; given {
		def.ContextDefault, _ = d.object("/context_default", v)
	}
	if v, given := document["search"]; given {
		def.Search = d.search("/search", v)
	}
	def.Invariant = d.invariant("", document)
	if _, ok := d.object("/states", document["states"]); ok {
		d.topStates(document, limits)
	}
	d.merges()
	d.lint()
}

// outline notes the path of every state before the states are read, so that a target may name a state that
// is read later.
func (d *Draft) outline(at, path string, document map[string]any) {
	states, _ := document["states"].(map[string]any)
	for _, name := range slices.Sorted(maps.Keys(states)) {
		at, path := at+Pointer("states", name), join(path, name)
		if _, twice := d.pointers[path]; twice {
			d.fault(at, "has the path %s, which is another state's too", path)
			continue
		}
		d.pointers[path] = at
		if m, ok := states[name].(map[string]any); ok {
			d.timed[path] = m["after"] != nil || m["every"] != nil
			d.outline(at, path, m)
		}
	}
	d.within[path] = slices.Sorted(maps.Keys(states))
}

// topStates reads the states and checks them as a whole.
func (d *Draft) topStates(document map[string]any, limits Limits) {
	def := &d.Definition
	def.States = d.states(nil, document, nil)
	switch {
	case len(def.States) == 0:
		d.fault("/states", "must not be empty")
		return
	case len(d.pointers) > limits.States:
		d.fault("/states", "must have at most %d states", limits.States)
	}
	if !slices.ContainsFunc(slices.Collect(maps.Values(def.States)), func(s State) bool { return s.Final }) {
		d.fault("/states", "no state is final, so no instance could ever end")
	}
	if ttl := def.TTL; ttl != nil && d.pointers[ttl.Target] != "" {
		if s, top := def.States[ttl.Target]; !top || !s.Final {
			d.fault("/ttl/target", "must be a final state, since the lifetime ends there")
		}
	}
	if leaf, known := def.enter(def.Cancel); known && def.protects(leaf) {
		d.warn("cancel-protected", "/cancel", "leads to a protected state, which nothing but transitions enters, so that no instance can be cancelled")
	}
	if n := def.inherited(); n > maxInherited {
		d.fault("/states", "have %d transitions, with those that they inherit, of at most %d", n, maxInherited)
		return
	}
	flat := def.Flat()
	d.graph(flat)
	d.tasks(flat)
}
