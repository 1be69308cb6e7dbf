package definition

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"
)

// ChangeKind says how a part of a definition changed.
type ChangeKind string

// The kinds of changes.
const (
	Added   ChangeKind = "added"
	Removed ChangeKind = "removed"
	Changed ChangeKind = "changed"
)

// Change is one difference between two definitions.
type Change struct {
	Kind ChangeKind
	// Pointer is the place of the change, as a JSON Pointer (RFC 6901) into a canonical form: for what was
	// removed that of the old definition, else that of the new one.
	Pointer string
	// Detail says what changed, in one sentence.
	Detail string
	// Risk says what could go wrong for an active instance that is migrated from the old definition
	// to the new one, or for the callers that fire events at it. It is empty if the instance can do
	// everything after the migration that it could do before, by the same rules.
	Risk string
}

// Unsafe reports whether the change has a risk for active instances that are migrated. Instances that
// are not migrated stay on their version, and no change concerns them.
func (c Change) Unsafe() bool { return c.Risk != "" }

// Diff lists the differences between the definition a and its successor b, in the order of the
// document. The list is empty if, and only if, registering b after a would not make a new version: the
// member version does not count, nor does the way in which JSON is written. A change that cannot be shown
// to be safe, such as that of a guard and most changes of a JSON Schema, counts as unsafe.
func Diff(a, b *Definition) []Change {
	var d differ
	d.definition(a, b)
	return d.changes
}

type differ struct{ changes []Change }

func (d *differ) add(kind ChangeKind, at, risk, format string, args ...any) {
	d.changes = append(d.changes, Change{Kind: kind, Pointer: at, Detail: fmt.Sprintf(format, args...), Risk: risk})
}

func (d *differ) definition(a, b *Definition) {
	if a.Name != b.Name {
		d.add(Changed, "/name", "an instance cannot be migrated to another workflow", "the workflow is %s, no longer %s", b.Name, a.Name)
	}
	d.description("", a.Description, b.Description)
	if a.Initial != b.Initial {
		d.add(Changed, "/initial", "", "new instances start in %s, no longer in %s", b.Initial, a.Initial)
	}
	d.ttl(a.TTL, b.TTL)
	switch {
	case b.RequireVersion && !a.RequireVersion:
		d.add(Changed, "/require_if_match", "callers that name no version are refused with precondition-required",
			"events must name the version they expect")
	case a.RequireVersion && !b.RequireVersion:
		d.add(Changed, "/require_if_match", "", "events need no longer name the version they expect")
	}
	switch {
	case b.ReusableKey && !a.ReusableKey:
		d.add(Changed, "/business_key", "", "a business key may be used again once its instance is final")
	case a.ReusableKey && !b.ReusableKey:
		d.add(Changed, "/business_key", "callers that use a business key again are refused with instance-exists",
			"a business key names one instance for as long as the instance exists")
	}
	d.schema("/context_schema", "a context", "an instance's context is not checked again, and may lack what the new schema promises to guards and assigns",
		a.ContextSchema, b.ContextSchema)
	const older = "final instances that are older are purged, those of older versions too"
	switch {
	case a.Retention == b.Retention:
	case a.Retention == 0:
		d.add(Added, "/retention", older,
			"final instances are purged after %s", FormatDuration(b.Retention))
	case b.Retention == 0:
		d.add(Removed, "/retention", "", "final instances are kept for ever, no longer for %s", FormatDuration(a.Retention))
	default:
		risk := ""
		if b.Retention < a.Retention {
			risk = older
		}
		d.add(Changed, "/retention", risk, "final instances are purged after %s, no longer after %s",
			FormatDuration(b.Retention), FormatDuration(a.Retention))
	}
	d.states("", "", a.States, b.States)
}

// unfit is the risk for an instance whose state the new definition does not have.
const unfit = "an instance that is in it cannot be moved, unless the migration maps the state to another"

func (d *differ) states(at, within string, a, b map[string]State) {
	for _, name := range union(a, b) {
		at := at + Pointer("states", name)
		path := join(within, name)
		old, had := a[name]
		state, has := b[name]
		switch {
		case !had:
			d.add(Added, at, "", "there is a new %s", kindOf(path, state))
		case !has && old.Outcome == "":
			d.add(Removed, at, unfit, "the %s is gone", kindOf(path, old))
		case !has:
			d.add(Removed, at, "", "the final state %s is gone", path)
		default:
			d.state(at, path, old, state)
		}
	}
}

// kindOf returns the name of a state behind what kind of state it is.
func kindOf(name string, s State) string {
	if s.Outcome != "" {
		return fmt.Sprintf("final state %s, %s", name, s.Outcome)
	}
	if s.States != nil {
		return fmt.Sprintf("compound state %s", name)
	}
	return "state " + name
}

func (d *differ) description(at, a, b string) {
	at += "/description"
	switch {
	case a == b:
	case a == "":
		d.add(Added, at, "", "there is a description")
	case b == "":
		d.add(Removed, at, "", "the description is gone")
	default:
		d.add(Changed, at, "", "the description is another")
	}
}

func (d *differ) ttl(a, b *TTL) {
	switch {
	case a == nil && b == nil:
		return
	case a == nil:
		d.add(Added, "/ttl", "an instance ends that long after it is migrated, unless it is final by then",
			"instances end in %s after %s", b.Target, FormatDuration(b.After))
		return
	case b == nil:
		d.add(Removed, "/ttl", "an instance that nobody moves on stays for ever", "instances no longer end in %s after %s", a.Target, FormatDuration(a.After))
		return
	}
	starts := b.Sliding && !a.Sliding
	if a.After != b.After {
		// A migrated instance keeps its lifetime, unless the lifetime begins to slide.
		risk := ""
		if starts && b.After < a.After {
			risk = "an instance whose last step is longer ago ends at once"
		}
		d.add(Changed, "/ttl/after", risk, "new instances end after %s, no longer after %s", FormatDuration(b.After), FormatDuration(a.After))
	}
	if a.Target != b.Target {
		d.add(Changed, "/ttl/target", "an instance ends otherwise than when it was started",
			"instances end in %s, no longer in %s", b.Target, a.Target)
	}
	switch {
	case starts:
		d.add(Changed, "/ttl/sliding", "", "each step starts the lifetime again")
	case a.Sliding && !b.Sliding:
		d.add(Changed, "/ttl/sliding", "an instance ends although steps keep coming", "a step no longer starts the lifetime again")
	}
}

func (d *differ) state(at, name string, a, b State) {
	d.description(at, a.Description, b.Description)
	switch {
	case a.Outcome == "" && b.Outcome != "":
		d.add(Changed, at+"/type", unfit, "%s is final", name)
		return
	case a.States == nil && b.States != nil:
		d.add(Added, at+"/states", unfit, "%s has states within", name)
	case a.States != nil && b.States == nil:
		d.add(Removed, at+"/states", "an instance that is in one cannot be moved, unless the migration maps the state to another",
			"%s no longer has states within", name)
	case a.Outcome != "" && b.Outcome == "":
		d.add(Changed, at+"/type", "", "%s is no longer final", name)
	case a.Outcome != b.Outcome:
		d.add(Changed, at+"/outcome", "an instance that gets there ends otherwise than when it was started",
			"%s means %s, no longer %s", name, b.Outcome, a.Outcome)
	}
	if a.States != nil && b.States != nil {
		if a.Initial != b.Initial {
			d.add(Changed, at+"/initial", "an instance goes another way than when it was started", "%s begins with %s, no longer with %s", name, b.Initial, a.Initial)
		}
		d.states(at, name, a.States, b.States)
	}
	d.assign(at+"/entry", "entering "+name, a.Entry, b.Entry)
	d.assign(at+"/exit", "leaving "+name, a.Exit, b.Exit)
	switch {
	case len(a.Always) == 0 && len(b.Always) > 0:
		d.add(Added, at+"/always", "an instance that is migrated into it is led on, if a guard holds", "%s has eventless transitions", name)
	case len(a.Always) > 0 && len(b.Always) == 0:
		d.add(Removed, at+"/always", "an instance stays in "+name+" that was led on", "%s no longer has eventless transitions", name)
	default:
		d.candidates(at+"/always", "always in "+name, a.Always, b.Always)
	}
	for _, event := range union(a.On, b.On) {
		at := at + "/on" + Pointer(event)
		old, had := a.On[event]
		candidates, has := b.On[event]
		switch {
		case !had:
			d.add(Added, at, "", "%s accepts %s", name, event)
		case !has:
			d.add(Removed, at, "callers that send it to an instance in "+name+" are refused", "%s no longer accepts %s", name, event)
		default:
			d.candidates(at, event+" in "+name, old, candidates)
		}
	}
	d.timeouts(at+"/after", name, a.After, b.After)
}

// timeouts compares the timeouts of a state. Timeouts of one time are compared with each other. Those whose
// time is in only one of the definitions are paired in the order of their times, and each pair counts as one
// timeout whose time changed.
func (d *differ) timeouts(at, state string, a, b map[time.Duration][]Transition) {
	var gone, come []time.Duration
	for _, delay := range slices.Sorted(maps.Keys(a)) {
		if _, kept := b[delay]; kept {
			text := FormatDuration(delay)
			d.candidates(at+Pointer(text), "the timeout of "+state+" after "+text, a[delay], b[delay])
		} else {
			gone = append(gone, delay)
		}
	}
	for _, delay := range slices.Sorted(maps.Keys(b)) {
		if _, known := a[delay]; !known {
			come = append(come, delay)
		}
	}
	late := "an instance that has been in " + state + " for longer leaves it at once"
	for i := range max(len(gone), len(come)) {
		switch {
		case i >= len(gone):
			text := FormatDuration(come[i])
			d.add(Added, at+Pointer(text), late, "%s has a timeout after %s", state, text)
		case i >= len(come):
			text := FormatDuration(gone[i])
			d.add(Removed, at+Pointer(text), "an instance that nobody moves on stays in "+state, "%s no longer has a timeout after %s", state, text)
		default:
			from, to := FormatDuration(gone[i]), FormatDuration(come[i])
			risk := ""
			if come[i] < gone[i] {
				risk = late
			}
			d.add(Changed, at+Pointer(to), risk, "the timeout of %s comes after %s, no longer after %s", state, to, from)
			d.candidates(at+Pointer(to), "the timeout of "+state+" after "+to, a[gone[i]], b[come[i]])
		}
	}
}

// candidates compares the candidates of an event or a timeout. Those that are equal at the beginning and at
// the end of both lists count as kept. Those in between are compared by their positions.
func (d *differ) candidates(at, what string, a, b []Transition) {
	atA, schemaA := payloadSchema(at, a)
	atB, schemaB := payloadSchema(at, b)
	if schemaB == nil {
		atB = atA
	}
	d.schema(atB, "the payload of "+what, "callers whose payload was accepted may be refused with invalid-payload", schemaA, schemaB)
	for i := range min(len(a), len(b)) {
		if schemaA != nil && schemaB != nil && (a[i].PayloadSchema == nil) != (b[i].PayloadSchema == nil) {
			d.add(Changed, fmt.Sprintf("%s/%d/payload_schema", at, i), "", "the payload schema of %s is given in another place", what)
		}
	}

	first := 0
	for first < min(len(a), len(b)) && sameTransition(a[first], b[first]) {
		first++
	}
	endA, endB := len(a), len(b)
	for endA > first && endB > first && sameTransition(a[endA-1], b[endB-1]) {
		endA, endB = endA-1, endB-1
	}
	for i := first; i < max(endA, endB); i++ {
		at := fmt.Sprintf("%s/%d", at, i)
		switch {
		case i >= endA:
			risk := ""
			if i < len(b)-1 {
				risk = "it may take what a later transition took"
			}
			d.add(Added, at, risk, "%s has another transition, to %s", what, b[i].Target)
		case i >= endB:
			d.add(Removed, at, "what it took is refused, or taken by another transition", "%s has a transition to %s no longer", what, a[i].Target)
		default:
			d.transition(at, what, a[i], b[i])
		}
	}
}

// payloadSchema returns the payload schema of an event, and its pointer. It is that of the first candidate
// which has one, and holds for all of them.
func payloadSchema(at string, candidates []Transition) (string, json.RawMessage) {
	for i, t := range candidates {
		if t.PayloadSchema != nil {
			return fmt.Sprintf("%s/%d/payload_schema", at, i), t.PayloadSchema
		}
	}
	return at + "/0/payload_schema", nil
}

// sameTransition compares everything except the payload schema, which belongs to the event.
func sameTransition(a, b Transition) bool {
	return a.Description == b.Description && a.Target == b.Target && a.Guard == b.Guard &&
		a.Assign.Payload == b.Assign.Payload && maps.Equal(a.Assign.Paths, b.Assign.Paths)
}

func (d *differ) transition(at, what string, a, b Transition) {
	d.description(at, a.Description, b.Description)
	if a.Target != b.Target {
		d.add(Changed, at+"/target", "an instance goes another way than when it was started", "%s leads to %s, no longer to %s", what, b.Target, a.Target)
	}
	switch {
	case a.Guard == b.Guard:
	case a.Guard == "":
		d.add(Added, at+"/guard", "callers whose event was accepted may be refused with guard-rejected", "%s has a guard, %s", what, b.Guard)
	case b.Guard == "":
		d.add(Removed, at+"/guard", "what the guard kept an instance from is allowed", "%s no longer has the guard %s", what, a.Guard)
	default:
		d.add(Changed, at+"/guard", "an event may be refused that was accepted, and accepted that was refused",
			"%s has the guard %s, no longer %s", what, b.Guard, a.Guard)
	}
	d.assign(at, what, a.Assign, b.Assign)
}

func (d *differ) assign(at, what string, a, b Assign) {
	const stale = "an instance that is past this has its context without it, whatever reads it"
	if a.Payload != b.Payload {
		if b.Payload {
			d.add(Changed, at+"/assign", "a payload may overwrite any member of an instance's context", "%s merges the payload into the context", what)
		} else {
			d.add(Changed, at+"/assign", "what reads members that only the payload set finds nothing", "%s no longer merges the payload into the context", what)
		}
	}
	for _, name := range union(a.Paths, b.Paths) {
		at := at + "/assign" + Pointer(name)
		old, had := a.Paths[name]
		path, has := b.Paths[name]
		switch {
		case old == path && had == has:
		case !had:
			d.add(Added, at, stale, "%s sets %s to %s", what, name, path)
		case !has:
			d.add(Removed, at, "what reads "+name+" finds nothing, or what it was before", "%s no longer sets %s", what, name)
		default:
			d.add(Changed, at, "an instance that is past this has "+name+" as the old path gave it",
				"%s sets %s to %s, no longer to %s", what, name, path, old)
		}
	}
}
