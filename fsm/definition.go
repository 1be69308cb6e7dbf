package fsm

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Status is what an instance is: active, or the outcome of the final state it is in.
type Status string

// The statuses.
const (
	Active    Status = "active"
	Completed Status = "completed"
	Failed    Status = "failed"
	Cancelled Status = "cancelled"
	Expired   Status = "expired"
)

// A Definition declares a workflow. Its vocabulary is that of statecharts and XState;
// guards and assigns are SQL/JSON paths over {context, payload, instance, now}.
type Definition struct {
	// Name is of lower-case letters and digits, with single dashes or underscores.
	Name string
	// Version is the version that it must become, or 0 for the next one.
	Version     int
	Description string
	// Initial is the path of the state that an instance starts in.
	Initial string
	// TTL ends the whole instance, in a final state; nil for never.
	TTL *TTL
	// RequireIfMatch makes every event name the version it expects.
	RequireIfMatch bool
	// Retention is how long final instances are kept, those of all versions if this is the
	// latest; 0 for ever.
	Retention time.Duration
	// ContextSchema is a JSON Schema for the context an instance is created with.
	ContextSchema json.RawMessage
	// States are those at the top, by name, which is their path.
	States map[string]State
}

// TTL is the lifetime of an instance and the state it ends in.
type TTL struct {
	After  time.Duration
	Target string
	// Sliding: each step starts the lifetime again.
	Sliding bool
}

// State is one state: final, atomic, or a compound of states. An instance is in an atomic
// or a final one, whose path tells the compounds around it: CHECKOUT.PAYMENT.
type State struct {
	Description string
	// Outcome of a final state; empty for any other. A final state stands at the top, and may
	// have an Entry, no more.
	Outcome Status
	// States are those within a compound state, by name.
	States map[string]State
	// Initial is the name of the one of States that entering the compound leads to.
	Initial string
	// Entry and Exit are assigned when the state is entered and left.
	Entry, Exit Assign
	// On holds the candidates for each event: the first whose guard holds is taken. If none
	// does, those of the compound around it are tried.
	On map[string][]Transition
	// Always holds the same for no event: they are tried after every step that leads here.
	Always []Transition
	// After holds the same for timeouts, by the time spent in an atomic state.
	After map[time.Duration][]Transition
}

// Transition is one candidate.
type Transition struct {
	Description string
	// Target is the path of a state. Definitions may also name a state that stands within, or
	// beside, the one that declares the transition or a compound around it: the nearest counts.
	Target string
	// Guard is a predicate; empty means that it always holds.
	Guard  string
	Assign Assign
	// PayloadSchema is a JSON Schema; all candidates for an event share it.
	PayloadSchema json.RawMessage
}

// Assign changes the context.
type Assign struct {
	// Paths say what members are set to, by name.
	Paths map[string]string
	// Payload merges the payload's top level into the context instead.
	Payload bool
}

// Limits bound a definition. The zero value means the usual ones.
type Limits struct {
	Bytes  int // Default 1 MiB.
	States int // Default 500.
}

// MaxNameLength bounds workflow names, in which an underscore counts twice: a name
// becomes part of a constraint's.
const MaxNameLength = 42

var (
	workflowName = regexp.MustCompile(`^[a-z][a-z0-9]*([-_][a-z0-9]+)*$`)
	identifier   = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_.-]{0,63}$`)
	statePath    = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*$`)
)

const (
	maxStateName = 64
	maxStatePath = 255
	// maxInherited bounds what flattening makes of a definition.
	maxInherited = 50_000
)

// Parse reads a definition from strict JSON and checks all that can be checked without
// a database: everything but the syntax of guards and assigns, on which Postgres has
// the only word. It returns an InvalidDefinition error with every fault, or a Malformed
// one if the text is no JSON object. A document without a name takes defaultName.
func Parse(data []byte, defaultName string, limits Limits) (*Definition, error) {
	r, err := readDefinition(data, defaultName, limits)
	if err != nil {
		return nil, err
	}
	if err := r.err(); err != nil {
		return nil, err
	}
	return &r.definition, nil
}

// Model reads the definition. Its faults are passed over: what is registered runs, even if
// SQL registered what Parse refuses.
// Kinds: Internal.
func (w Workflow) Model() (*Definition, error) {
	r, err := readDefinition(w.Definition, "", Limits{Bytes: math.MaxInt, States: math.MaxInt})
	if err != nil {
		return nil, &Error{Kind: Internal, cause: fmt.Errorf("workflow %s, version %d: %w", w.Name, w.Version, err)}
	}
	return &r.definition, nil
}

// reader walks a definition's document, collecting faults rather than stopping.
type reader struct {
	definition Definition
	faults     []Fault
	paths      map[string]string // Guards and assigns, by pointer.
	// Of each state, by its path; the root's is empty.
	within   map[string][]string // The names of the states within.
	pointers map[string]string
}

// place is where a state stands: the paths of the states around it and its own, from the
// outside in.
type place []string

func (p place) path() string {
	if len(p) == 0 {
		return ""
	}
	return p[len(p)-1]
}

// join is the path of a state within another.
func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

func readDefinition(data []byte, defaultName string, limits Limits) (*reader, error) {
	if limits.Bytes == 0 {
		limits.Bytes = 1 << 20
	}
	if limits.States == 0 {
		limits.States = 500
	}
	if len(data) > limits.Bytes {
		return nil, errorf(TooLarge, "a definition must have at most %d bytes", limits.Bytes)
	}
	if err := checkObject(data); err != nil {
		return nil, err
	}
	var document map[string]any
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	if err := d.Decode(&document); err != nil {
		return nil, malformed("", err.Error())
	}
	r := &reader{paths: map[string]string{}, within: map[string][]string{}, pointers: map[string]string{}}
	r.read(document, defaultName, limits)
	return r, nil
}

func (r *reader) fault(at, format string, args ...any) {
	r.faults = append(r.faults, Fault{Pointer: at, Detail: fmt.Sprintf(format, args...)})
}

// err returns what is wrong, if anything is.
func (r *reader) err() error {
	if len(r.faults) == 0 {
		return nil
	}
	slices.SortStableFunc(r.faults, func(a, b Fault) int { return strings.Compare(a.Pointer, b.Pointer) })
	return &Error{Kind: InvalidDefinition, Message: "the definition has faults", Faults: r.faults}
}

func (r *reader) read(document map[string]any, defaultName string, limits Limits) {
	r.members("", document, "name", "version", "description", "initial", "ttl", "require_if_match", "retention", "context_schema", "states")
	def := &r.definition
	r.outline("", "", document)
	def.Name = defaultName
	if _, given := document["name"]; given || defaultName == "" {
		def.Name = r.text("/name", document["name"])
	}
	switch {
	case def.Name == "":
	case defaultName != "" && def.Name != defaultName:
		r.fault("/name", "is %q, but the workflow is %q", def.Name, defaultName)
	case !workflowName.MatchString(def.Name):
		r.fault("/name", "must be of lower-case letters and digits, with single dashes or underscores between")
	case len(def.Name)+strings.Count(def.Name, "_") > MaxNameLength:
		r.fault("/name", "must have at most %d characters; an underscore counts twice", MaxNameLength)
	}
	if v, given := document["version"]; given {
		number, _ := v.(json.Number)
		n, err := number.Int64()
		if err != nil || n < 1 || n > 1<<31-1 {
			r.fault("/version", "must be a whole number from 1")
		}
		def.Version = int(n)
	}
	def.Description = r.description("", document)
	def.Initial = r.target("/initial", nil, document["initial"])
	if v, given := document["ttl"]; given {
		if m, ok := r.object("/ttl", v); ok {
			r.members("/ttl", m, "after", "target", "sliding")
			def.TTL = &TTL{
				After: r.duration("/ttl/after", m["after"]), Target: r.target("/ttl/target", nil, m["target"]),
				Sliding: r.boolean("/ttl", m, "sliding"),
			}
		}
	}
	def.RequireIfMatch = r.boolean("", document, "require_if_match")
	if v, given := document["retention"]; given {
		def.Retention = r.duration("/retention", v)
	}
	def.ContextSchema = r.schema("/context_schema", document)
	if _, ok := r.object("/states", document["states"]); ok {
		r.topStates(document, limits)
	}
}

// outline notes which states there are, so that targets can be told from no states.
func (r *reader) outline(at, path string, document map[string]any) {
	states, _ := document["states"].(map[string]any)
	for _, name := range slices.Sorted(maps.Keys(states)) {
		at, path := at+pointer("states", name), join(path, name)
		if _, twice := r.pointers[path]; twice {
			r.fault(at, "has the path %s, which is another state's too", path)
			continue
		}
		r.pointers[path] = at
		if m, ok := states[name].(map[string]any); ok {
			r.outline(at, path, m)
		}
	}
	r.within[path] = slices.Sorted(maps.Keys(states))
}

func (r *reader) topStates(document map[string]any, limits Limits) {
	def := &r.definition
	def.States = r.states(nil, document, nil)
	switch {
	case len(def.States) == 0:
		r.fault("/states", "must not be empty")
		return
	case len(r.pointers) > limits.States:
		r.fault("/states", "must have at most %d states", limits.States)
	}
	if !slices.ContainsFunc(slices.Collect(maps.Values(def.States)), func(s State) bool { return s.Outcome != "" }) {
		r.fault("/states", "no state is final, so no instance could ever end")
	}
	if ttl := def.TTL; ttl != nil && r.pointers[ttl.Target] != "" {
		if s, top := def.States[ttl.Target]; !top || s.Outcome == "" {
			r.fault("/ttl/target", "must be a final state, since the lifetime ends there")
		}
	}
	if n := def.inherited(); n > maxInherited {
		r.fault("/states", "have %d transitions, with those that they inherit, of at most %d", n, maxInherited)
		return
	}
	r.graph(def.flat())
}

// states reads those of a definition or of a compound state, which stands at the place.
// schemas are those of the payloads of events that they inherit.
func (r *reader) states(around place, document map[string]any, schemas map[string]json.RawMessage) map[string]State {
	at := r.pointers[around.path()]
	written, _ := document["states"].(map[string]any)
	states := make(map[string]State, len(written))
	for _, name := range slices.Sorted(maps.Keys(written)) {
		at := at + pointer("states", name)
		path := join(around.path(), name)
		switch {
		case len(name) > maxStateName || !statePath.MatchString(name) || len(around) > 0 && strings.Contains(name, "."):
			r.fault(at, "a state's name must be a letter followed by up to 63 letters, digits, dashes or underscores, at the top also by dots between")
		case len(path) > maxStatePath:
			r.fault(at, "a state's path must have at most %d characters", maxStatePath)
		}
		states[name] = r.state(at, append(slices.Clip(around), path), written[name], schemas)
	}
	return states
}

func (r *reader) state(at string, where place, v any, schemas map[string]json.RawMessage) State {
	var s State
	m, ok := r.object(at, v)
	if !ok {
		// It has been faulted; an outcome keeps it from being faulted again.
		return State{Outcome: Completed}
	}
	r.members(at, m, "type", "outcome", "description", "initial", "entry", "exit", "on", "always", "after", "states")
	s.Description = r.description(at, m)
	s.Entry = r.block(at+"/entry", m)
	if v, given := m["type"]; given {
		if v == "final" {
			s.Outcome = Completed
		} else {
			r.fault(at+"/type", `must be "final", or be left out`)
		}
	}
	if v, given := m["outcome"]; given {
		text, _ := v.(string)
		outcome := Status(text)
		switch {
		case s.Outcome == "":
			r.fault(at+"/outcome", "only a final state has an outcome")
		case !slices.Contains([]Status{Completed, Failed, Cancelled, Expired}, outcome):
			r.fault(at+"/outcome", "must be completed, failed, cancelled or expired")
		default:
			s.Outcome = outcome
		}
	}
	_, compound := m["states"]
	if compound && len(where) == 1 && strings.Contains(where.path(), ".") {
		r.fault(at, "the name of a state that has states within must have no dots, which are for the paths of those")
	}
	if s.Outcome != "" {
		for _, member := range []string{"on", "always", "after"} {
			if _, given := m[member]; given {
				r.fault(at+"/"+member, "a final state has no transitions")
			}
		}
		for _, member := range []string{"initial", "exit", "states"} {
			if _, given := m[member]; given {
				r.fault(at+"/"+member, "is nothing for a final state, which is never left")
			}
		}
		if len(where) > 1 {
			r.fault(at+"/type", "a final state ends the instance, so that it must stand at the top, not within another state")
		}
		return s
	}
	s.Exit = r.block(at+"/exit", m)
	if v, given := m["on"]; given {
		on, _ := r.object(at+"/on", v)
		s.On = make(map[string][]Transition, len(on))
		schemas = maps.Clone(schemas)
		if schemas == nil {
			schemas = map[string]json.RawMessage{}
		}
		for _, event := range slices.Sorted(maps.Keys(on)) {
			at := at + "/on" + pointer(event)
			switch {
			case event == "ttl":
				r.fault(at, "is the engine's own event, which ends an instance's lifetime: name yours otherwise")
			case !identifier.MatchString(event):
				r.fault(at, "an event's name must be a letter followed by up to 63 letters, digits, dots, dashes or underscores")
			}
			s.On[event] = r.candidates(at, where, on[event])
			_, schema := payloadSchema("", s.On[event])
			switch inherited := schemas[event]; {
			case schema == nil:
			case inherited != nil && !bytes.Equal(schema, inherited):
				r.fault(at, "all transitions of an event in a state share one payload schema, and those it inherits have another")
			default:
				schemas[event] = schema
			}
		}
	}
	if v, given := m["always"]; given {
		s.Always = r.candidates(at+"/always", where, v)
		if _, schema := payloadSchema("", s.Always); schema != nil {
			r.fault(at+"/always", "no event is needed, so there is no payload and no payload_schema")
		}
	}
	if v, given := m["after"]; given {
		after, _ := r.object(at+"/after", v)
		s.After = make(map[time.Duration][]Transition, len(after))
		for _, text := range slices.Sorted(maps.Keys(after)) {
			at := at + "/after" + pointer(text)
			delay := r.duration(at, text)
			if _, twice := s.After[delay]; twice && delay > 0 {
				r.fault(at, "is the same time as another timeout of this state")
			}
			s.After[delay] = r.candidates(at, where, after[text])
		}
	}
	switch {
	case compound:
		r.compound(at, where, m, &s, schemas)
	case m["initial"] != nil:
		r.fault(at+"/initial", "is for a state that has states within")
	case alwaysLeaves(s.Always):
		for member, given := range map[string]bool{"on": len(s.On) > 0, "after": len(s.After) > 0} {
			if given {
				r.fault(at+"/"+member, "can never be taken, since always leaves the state at once")
			}
		}
	}
	return s
}

// compound reads what only a state has that has states within.
func (r *reader) compound(at string, where place, m map[string]any, s *State, schemas map[string]json.RawMessage) {
	if _, given := m["after"]; given {
		r.fault(at+"/after", "a timeout is counted from entering an atomic state: give one to states within, or a ttl to the workflow")
		s.After = nil
	}
	if states, ok := r.object(at+"/states", m["states"]); ok && len(states) == 0 {
		r.fault(at+"/states", "must not be empty")
	}
	s.States = r.states(where, m, schemas)
	s.Initial = r.text(at+"/initial", m["initial"])
	if _, known := s.States[s.Initial]; s.Initial != "" && !known {
		r.fault(at+"/initial", "there is no state %q within this one", s.Initial)
	}
}

// block reads the assign of an entry or an exit, the member that at ends with.
func (r *reader) block(at string, document map[string]any) Assign {
	v, given := document[at[strings.LastIndexByte(at, '/')+1:]]
	if !given {
		return Assign{}
	}
	m, ok := r.object(at, v)
	if !ok {
		return Assign{}
	}
	r.members(at, m, "assign")
	return r.assign(at, m)
}

// candidates reads a target, a transition, or an array of transitions.
func (r *reader) candidates(at string, where place, v any) []Transition {
	list, several := v.([]any)
	if !several {
		return []Transition{r.transition(at, where, v)}
	}
	if len(list) == 0 {
		r.fault(at, "must have at least one transition")
	}
	candidates := make([]Transition, len(list))
	var schema json.RawMessage
	for i, v := range list {
		at := fmt.Sprintf("%s/%d", at, i)
		candidates[i] = r.transition(at, where, v)
		t := &candidates[i]
		if i > 0 && unguarded(list[i-1]) {
			r.fault(at, "can never be taken, since the transition before it has no guard")
		}
		switch {
		case t.PayloadSchema == nil:
		case schema == nil:
			schema = t.PayloadSchema
		case !bytes.Equal(schema, t.PayloadSchema):
			r.fault(at+"/payload_schema", "all transitions of an event in a state share one payload schema")
		}
	}
	return candidates
}

// unguarded says whether a candidate, as it is written, is always taken.
func unguarded(v any) bool {
	m, written := v.(map[string]any)
	if !written {
		_, target := v.(string)
		return target
	}
	_, guarded := m["guard"]
	return !guarded
}

func (r *reader) transition(at string, where place, v any) Transition {
	if target, ok := v.(string); ok {
		return Transition{Target: r.target(at, where, target)}
	}
	m, ok := v.(map[string]any)
	if !ok {
		r.fault(at, "must be the name of a state, a transition, or an array of transitions")
		return Transition{}
	}
	r.members(at, m, "target", "guard", "assign", "payload_schema", "description")
	t := Transition{
		Description:   r.description(at, m),
		Target:        r.target(at+"/target", where, m["target"]),
		Assign:        r.assign(at, m),
		PayloadSchema: r.schema(at+"/payload_schema", m),
	}
	if v, given := m["guard"]; given {
		t.Guard = r.path(at+"/guard", v)
	}
	return t
}

// assign reads the member of that name.
func (r *reader) assign(at string, m map[string]any) Assign {
	var assign Assign
	v, given := m["assign"]
	if !given {
		return assign
	}
	at += "/assign"
	switch a := v.(type) {
	case string:
		if assign.Payload = a == "*"; !assign.Payload {
			r.fault(at, `must be "*", or an object from names to paths`)
		}
	case map[string]any:
		assign.Paths = make(map[string]string, len(a))
		for _, name := range slices.Sorted(maps.Keys(a)) {
			if name == "" {
				r.fault(at, "a name must not be empty")
			}
			assign.Paths[name] = r.path(at+pointer(name), a[name])
		}
	default:
		r.fault(at, `must be "*", or an object from names to paths`)
	}
	return assign
}

// graph faults the states that instances cannot get into or out of. flat are the atomic ones.
func (r *reader) graph(flat map[string]State) {
	def := &r.definition
	loops := restless(flat)
	for path, s := range flat {
		leadsOut := func(target string) bool { return target != path }
		switch {
		case loops[path]:
			r.fault(r.pointers[path], "an instance would never come to rest: some always without a guard leads on, from here and from all that it leads to")
		case s.Outcome == "" && !slices.ContainsFunc(targets(s), leadsOut):
			r.fault(r.pointers[path], `no transition leads out of this state: add one, or make it final with "type": "final"`)
		}
	}
	initial, known := def.enter(def.Initial)
	if known {
		from := []string{initial}
		if def.TTL != nil {
			from = append(from, def.TTL.Target)
		}
		reached := map[string]bool{}
		for len(from) > 0 {
			path := from[0]
			from = from[1:]
			if !reached[path] {
				reached[path] = true
				from = append(from, targets(flat[path])...)
			}
		}
		for path := range flat {
			if !reached[path] {
				r.fault(r.pointers[path], "no transition leads to this state")
			}
		}
	}
}

// restless finds the states from which eventless transitions lead on for ever: in none of
// those that they lead to could an instance stay.
func restless(flat map[string]State) map[string]bool {
	found := map[string]bool{}
	for path, s := range flat {
		found[path] = alwaysLeaves(s.Always)
	}
	for changed := true; changed; {
		changed = false
		for path := range found {
			leadsToRest := func(t Transition) bool { return !found[t.Target] }
			if found[path] && slices.ContainsFunc(flat[path].Always, leadsToRest) {
				found[path], changed = false, true
			}
		}
	}
	return found
}

// The readers of single values: each faults what does not fit and returns a zero value.

func (r *reader) members(at string, m map[string]any, known ...string) {
	for name := range m {
		if !slices.Contains(known, name) {
			r.fault(at+pointer(name), "is not a member here; there are %s", strings.Join(known, ", "))
		}
	}
}

func (r *reader) object(at string, v any) (map[string]any, bool) {
	m, ok := v.(map[string]any)
	if !ok {
		r.fault(at, "must be an object")
	}
	return m, ok
}

func (r *reader) text(at string, v any) string {
	s, ok := v.(string)
	if !ok || s == "" {
		r.fault(at, "must be a string that is not empty")
	}
	return s
}

// boolean reads a member that may be missing, which is false.
func (r *reader) boolean(at string, m map[string]any, name string) bool {
	v, given := m[name]
	b, ok := v.(bool)
	if given && !ok {
		r.fault(at+"/"+name, "must be true or false")
	}
	return b
}

func (r *reader) description(at string, m map[string]any) string {
	v, given := m["description"]
	if !given {
		return ""
	}
	return r.text(at+"/description", v)
}

// target reads the name or the path of a state, as it is meant at a place, and returns the
// path: a name means the nearest state that has it, within, beside or around.
func (r *reader) target(at string, where place, v any) string {
	s := r.text(at, v)
	if s == "" {
		return ""
	}
	if !strings.Contains(s, ".") {
		for i := len(where) - 1; i >= 0; i-- {
			if slices.Contains(r.within[where[i]], s) {
				return join(where[i], s)
			}
		}
	}
	if _, known := r.pointers[s]; !known {
		r.fault(at, "there is no state %q", s)
	}
	return s
}

func (r *reader) path(at string, v any) string {
	s := r.text(at, v)
	if s != "" {
		r.paths[at] = s
	}
	return s
}

func (r *reader) duration(at string, v any) time.Duration {
	s := r.text(at, v)
	if s == "" {
		return 0
	}
	d, err := ParseDuration(s)
	if err != nil {
		r.fault(at, "%v", err)
	}
	return d
}

// schema reads the member that at ends with.
func (r *reader) schema(at string, m map[string]any) json.RawMessage {
	v, given := m[at[strings.LastIndexByte(at, '/')+1:]]
	if !given {
		return nil
	}
	switch v.(type) {
	case map[string]any, bool:
	default:
		r.fault(at, "must be a JSON Schema: an object, true or false")
		return nil
	}
	text, err := json.Marshal(v)
	if err == nil {
		_, err = compileSchema(text)
	}
	if err != nil {
		r.fault(at, "%s", schemaFault(err))
	}
	return text
}

// MarshalJSON writes the canonical form: shorthands written out, targets as paths, durations
// in their largest units, defaults left out but for a final state's outcome, members in
// order. The version is no part of it, since a version is what its content is given.
func (d *Definition) MarshalJSON() ([]byte, error) {
	type ttl struct {
		After   string `json:"after"`
		Target  string `json:"target"`
		Sliding bool   `json:"sliding,omitempty"`
	}
	document := struct {
		Name           string                  `json:"name"`
		Description    string                  `json:"description,omitempty"`
		Initial        string                  `json:"initial"`
		TTL            *ttl                    `json:"ttl,omitempty"`
		RequireIfMatch bool                    `json:"require_if_match,omitempty"`
		Retention      string                  `json:"retention,omitempty"`
		ContextSchema  json.RawMessage         `json:"context_schema,omitempty"`
		States         map[string]writtenState `json:"states"`
	}{
		Name: d.Name, Description: d.Description, Initial: d.Initial, RequireIfMatch: d.RequireIfMatch,
		ContextSchema: d.ContextSchema, States: writtenStates(d.States),
	}
	if d.TTL != nil {
		document.TTL = &ttl{After: FormatDuration(d.TTL.After), Target: d.TTL.Target, Sliding: d.TTL.Sliding}
	}
	if d.Retention > 0 {
		document.Retention = FormatDuration(d.Retention)
	}
	return json.Marshal(document)
}

type writtenState struct {
	Description string                         `json:"description,omitempty"`
	Type        string                         `json:"type,omitempty"`
	Outcome     Status                         `json:"outcome,omitempty"`
	Initial     string                         `json:"initial,omitempty"`
	Entry       writtenBlock                   `json:"entry,omitzero"`
	Exit        writtenBlock                   `json:"exit,omitzero"`
	On          map[string][]writtenTransition `json:"on,omitempty"`
	Always      []writtenTransition            `json:"always,omitempty"`
	After       map[string][]writtenTransition `json:"after,omitempty"`
	States      map[string]writtenState        `json:"states,omitempty"`
}

type writtenBlock struct {
	Assign any `json:"assign,omitempty"`
}

type writtenTransition struct {
	Description   string          `json:"description,omitempty"`
	Target        string          `json:"target"`
	Guard         string          `json:"guard,omitempty"`
	Assign        any             `json:"assign,omitempty"`
	PayloadSchema json.RawMessage `json:"payload_schema,omitempty"`
}

func writtenStates(states map[string]State) map[string]writtenState {
	out := make(map[string]writtenState, len(states))
	for name, s := range states {
		w := writtenState{
			Description: s.Description, Outcome: s.Outcome, Initial: s.Initial,
			Entry: writtenBlock{s.Entry.written()}, Exit: writtenBlock{s.Exit.written()},
			Always: writtenTransitions(s.Always), States: writtenStates(s.States),
		}
		if s.Outcome != "" {
			w.Type = "final"
		}
		if len(s.On) > 0 {
			w.On = make(map[string][]writtenTransition, len(s.On))
			for event, candidates := range s.On {
				w.On[event] = writtenTransitions(candidates)
			}
		}
		if len(s.After) > 0 {
			w.After = make(map[string][]writtenTransition, len(s.After))
			for delay, candidates := range s.After {
				w.After[FormatDuration(delay)] = writtenTransitions(candidates)
			}
		}
		out[name] = w
	}
	return out
}

func writtenTransitions(candidates []Transition) []writtenTransition {
	list := make([]writtenTransition, len(candidates))
	for i, t := range candidates {
		list[i] = writtenTransition{
			Description: t.Description, Target: t.Target, Guard: t.Guard, Assign: t.Assign.written(),
			PayloadSchema: t.PayloadSchema,
		}
	}
	return list
}

// written is nil for no assign.
func (a Assign) written() any {
	switch {
	case a.Payload:
		return "*"
	case len(a.Paths) > 0:
		return a.Paths
	}
	return nil
}
