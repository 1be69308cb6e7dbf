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
	// Initial is the state that an instance starts in.
	Initial string
	// TTL ends the whole instance, in a final state; nil for never.
	TTL *TTL
	// RequireIfMatch makes every event name the version it expects.
	RequireIfMatch bool
	// ContextSchema is a JSON Schema for the context an instance is created with.
	ContextSchema json.RawMessage
	States        map[string]State
}

// TTL is the lifetime of an instance and the state it ends in.
type TTL struct {
	After  time.Duration
	Target string
	// Sliding: each step starts the lifetime again.
	Sliding bool
}

// State is one state. A final one has an outcome and nothing else.
type State struct {
	Description string
	// Outcome of a final state; empty for any other.
	Outcome Status
	// On holds the candidates for each event: the first whose guard holds is taken.
	On map[string][]Transition
	// After holds the same for timeouts, by the time spent in the state.
	After map[time.Duration][]Transition
}

// Transition is one candidate.
type Transition struct {
	Description string
	Target      string
	// Guard is a predicate; empty means that it always holds.
	Guard string
	// Assign sets members of the context to what paths select.
	Assign map[string]string
	// AssignPayload merges the payload's top level into the context instead.
	AssignPayload bool
	// PayloadSchema is a JSON Schema; all candidates for an event share it.
	PayloadSchema json.RawMessage
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
	targets    map[string]string // Names of states that must exist, by pointer.
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
	r := &reader{paths: map[string]string{}, targets: map[string]string{}}
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
	r.members("", document, "name", "version", "description", "initial", "ttl", "require_if_match", "context_schema", "states")
	def := &r.definition
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
	def.Initial = r.target("/initial", document["initial"])
	if v, given := document["ttl"]; given {
		if m, ok := r.object("/ttl", v); ok {
			r.members("/ttl", m, "after", "target", "sliding")
			def.TTL = &TTL{
				After: r.duration("/ttl/after", m["after"]), Target: r.target("/ttl/target", m["target"]),
				Sliding: r.boolean("/ttl", m, "sliding"),
			}
		}
	}
	def.RequireIfMatch = r.boolean("", document, "require_if_match")
	def.ContextSchema = r.schema("/context_schema", document)
	r.states(document["states"], limits)
}

func (r *reader) states(v any, limits Limits) {
	states, ok := r.object("/states", v)
	if !ok {
		return
	}
	r.definition.States = make(map[string]State, len(states))
	switch {
	case len(states) == 0:
		r.fault("/states", "must not be empty")
	case len(states) > limits.States:
		r.fault("/states", "must have at most %d states", limits.States)
	}
	final := false
	for _, name := range slices.Sorted(maps.Keys(states)) {
		at := pointer("states", name)
		if !identifier.MatchString(name) {
			r.fault(at, "a state's name must be a letter followed by up to 63 letters, digits, dots, dashes or underscores")
		}
		s := r.state(at, name, states[name])
		r.definition.States[name] = s
		final = final || s.Outcome != ""
	}
	if !final && len(states) > 0 {
		r.fault("/states", "no state is final, so no instance could ever end")
	}
	for _, at := range slices.Sorted(maps.Keys(r.targets)) {
		if _, known := r.definition.States[r.targets[at]]; !known {
			r.fault(at, "there is no state %q", r.targets[at])
		}
	}
	if ttl := r.definition.TTL; ttl != nil {
		if s, known := r.definition.States[ttl.Target]; known && s.Outcome == "" {
			r.fault("/ttl/target", "must be a final state, since the lifetime ends there")
		}
	}
	r.unreachable()
}

func (r *reader) state(at, name string, v any) State {
	var s State
	m, ok := r.object(at, v)
	if !ok {
		// It has been faulted; an outcome keeps it from being faulted again.
		return State{Outcome: Completed}
	}
	r.members(at, m, "type", "outcome", "description", "on", "after")
	s.Description = r.description(at, m)
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
	if s.Outcome != "" {
		for _, member := range []string{"on", "after"} {
			if _, given := m[member]; given {
				r.fault(at+"/"+member, "a final state has no transitions")
			}
		}
		return s
	}
	wayOut := false
	if v, given := m["on"]; given {
		on, _ := r.object(at+"/on", v)
		s.On = make(map[string][]Transition, len(on))
		for _, event := range slices.Sorted(maps.Keys(on)) {
			at := at + "/on" + pointer(event)
			switch {
			case event == "ttl":
				r.fault(at, "is the engine's own event, which ends an instance's lifetime: name yours otherwise")
			case !identifier.MatchString(event):
				r.fault(at, "an event's name must be a letter followed by up to 63 letters, digits, dots, dashes or underscores")
			}
			s.On[event] = r.candidates(at, on[event])
			wayOut = wayOut || leadsOut(name, s.On[event])
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
			s.After[delay] = r.candidates(at, after[text])
			wayOut = wayOut || leadsOut(name, s.After[delay])
		}
	}
	if !wayOut {
		r.fault(at, `no transition leads out of this state: add one, or make it final with "type": "final"`)
	}
	return s
}

// leadsOut says whether a candidate leads to another state.
func leadsOut(state string, candidates []Transition) bool {
	return slices.ContainsFunc(candidates, func(t Transition) bool { return t.Target != state })
}

// candidates reads a target, a transition, or an array of transitions.
func (r *reader) candidates(at string, v any) []Transition {
	list, several := v.([]any)
	if !several {
		return []Transition{r.transition(at, v)}
	}
	if len(list) == 0 {
		r.fault(at, "must have at least one transition")
	}
	candidates := make([]Transition, len(list))
	var schema json.RawMessage
	for i, v := range list {
		at := fmt.Sprintf("%s/%d", at, i)
		candidates[i] = r.transition(at, v)
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

func (r *reader) transition(at string, v any) Transition {
	if target, ok := v.(string); ok {
		return Transition{Target: r.target(at, target)}
	}
	m, ok := v.(map[string]any)
	if !ok {
		r.fault(at, "must be the name of a state, a transition, or an array of transitions")
		return Transition{}
	}
	r.members(at, m, "target", "guard", "assign", "payload_schema", "description")
	t := Transition{
		Description:   r.description(at, m),
		Target:        r.target(at+"/target", m["target"]),
		PayloadSchema: r.schema(at+"/payload_schema", m),
	}
	if v, given := m["guard"]; given {
		t.Guard = r.path(at+"/guard", v)
	}
	if v, given := m["assign"]; given {
		switch a := v.(type) {
		case string:
			if t.AssignPayload = a == "*"; !t.AssignPayload {
				r.fault(at+"/assign", `must be "*", or an object from names to paths`)
			}
		case map[string]any:
			t.Assign = make(map[string]string, len(a))
			for _, name := range slices.Sorted(maps.Keys(a)) {
				if name == "" {
					r.fault(at+"/assign", "a name must not be empty")
				}
				t.Assign[name] = r.path(at+"/assign"+pointer(name), a[name])
			}
		default:
			r.fault(at+"/assign", `must be "*", or an object from names to paths`)
		}
	}
	return t
}

// unreachable faults the states that no path from the initial state leads to.
func (r *reader) unreachable() {
	def := &r.definition
	if _, known := def.States[def.Initial]; !known {
		return // Faulted already.
	}
	reached := map[string]bool{}
	queue := []string{def.Initial}
	if def.TTL != nil {
		queue = append(queue, def.TTL.Target)
	}
	for len(queue) > 0 {
		name := queue[0]
		queue = queue[1:]
		if reached[name] {
			continue
		}
		reached[name] = true
		for _, candidates := range def.States[name].On {
			for _, t := range candidates {
				queue = append(queue, t.Target)
			}
		}
		for _, candidates := range def.States[name].After {
			for _, t := range candidates {
				queue = append(queue, t.Target)
			}
		}
	}
	for name := range def.States {
		if !reached[name] {
			r.fault(pointer("states", name), "no transition leads to this state")
		}
	}
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

func (r *reader) target(at string, v any) string {
	s := r.text(at, v)
	if s != "" {
		r.targets[at] = s
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

// MarshalJSON writes the canonical form: shorthands written out, durations in their
// largest units, defaults left out but for a final state's outcome, members in order.
// The version is no part of it, since a version is what its content is given.
func (d *Definition) MarshalJSON() ([]byte, error) {
	type transition struct {
		Description   string          `json:"description,omitempty"`
		Target        string          `json:"target"`
		Guard         string          `json:"guard,omitempty"`
		Assign        any             `json:"assign,omitempty"`
		PayloadSchema json.RawMessage `json:"payload_schema,omitempty"`
	}
	type state struct {
		Description string                  `json:"description,omitempty"`
		Type        string                  `json:"type,omitempty"`
		Outcome     Status                  `json:"outcome,omitempty"`
		On          map[string][]transition `json:"on,omitempty"`
		After       map[string][]transition `json:"after,omitempty"`
	}
	type ttl struct {
		After   string `json:"after"`
		Target  string `json:"target"`
		Sliding bool   `json:"sliding,omitempty"`
	}
	written := func(candidates []Transition) []transition {
		list := make([]transition, len(candidates))
		for i, t := range candidates {
			list[i] = transition{
				Description: t.Description, Target: t.Target, Guard: t.Guard, PayloadSchema: t.PayloadSchema,
			}
			switch {
			case t.AssignPayload:
				list[i].Assign = "*"
			case len(t.Assign) > 0:
				list[i].Assign = t.Assign
			}
		}
		return list
	}
	document := struct {
		Name           string           `json:"name"`
		Description    string           `json:"description,omitempty"`
		Initial        string           `json:"initial"`
		TTL            *ttl             `json:"ttl,omitempty"`
		RequireIfMatch bool             `json:"require_if_match,omitempty"`
		ContextSchema  json.RawMessage  `json:"context_schema,omitempty"`
		States         map[string]state `json:"states"`
	}{
		Name: d.Name, Description: d.Description, Initial: d.Initial, RequireIfMatch: d.RequireIfMatch,
		ContextSchema: d.ContextSchema, States: make(map[string]state, len(d.States)),
	}
	if d.TTL != nil {
		document.TTL = &ttl{After: FormatDuration(d.TTL.After), Target: d.TTL.Target, Sliding: d.TTL.Sliding}
	}
	for name, s := range d.States {
		out := state{Description: s.Description, Outcome: s.Outcome}
		if s.Outcome != "" {
			out.Type = "final"
		}
		if len(s.On) > 0 {
			out.On = make(map[string][]transition, len(s.On))
			for event, candidates := range s.On {
				out.On[event] = written(candidates)
			}
		}
		if len(s.After) > 0 {
			out.After = make(map[string][]transition, len(s.After))
			for delay, candidates := range s.After {
				out.After[FormatDuration(delay)] = written(candidates)
			}
		}
		document.States[name] = out
	}
	return json.Marshal(document)
}
