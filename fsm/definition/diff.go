package definition

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
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

type differ struct {
	changes []Change
	// resumed are the states that some transition goes on in where an instance left them.
	resumed []string
	// around are the states of the old definition around the one that is compared.
	around []State
	// from and to are the schemas of the deployment that the definitions carry. Both are nil if one of the definitions does
	// not carry all that it refers to, since then only the references can be compared.
	from, to named
}

func (d *differ) add(kind ChangeKind, at, risk, format string, args ...any) {
	d.changes = append(d.changes, Change{Kind: kind, Pointer: at, Detail: fmt.Sprintf(format, args...), Risk: risk})
}

// safely makes the changes that f adds safe, since they concern only new instances.
func (d *differ) safely(f func()) {
	first := len(d.changes)
	f()
	for i := range d.changes[first:] {
		d.changes[first+i].Risk = ""
	}
}

func (d *differ) definition(a, b *Definition) {
	if len(a.Missing()) == 0 && len(b.Missing()) == 0 {
		d.from, d.to = a.carried(), b.carried()
	}
	d.resumed = append(resumeTargets(a.States), resumeTargets(b.States)...)
	if a.Name != b.Name {
		d.add(Changed, "/name", "an instance cannot be migrated to another workflow", "the workflow is %s, no longer %s", b.Name, a.Name)
	}
	d.description("", a.Description, b.Description)
	if a.Initial != b.Initial {
		d.add(Changed, "/initial", "", "new instances start in %s, no longer in %s", b.Initial, a.Initial)
	}
	d.safely(func() { d.assign("/initial", "creation", a.InitialAssign, b.InitialAssign) })
	if a.Timezone != b.Timezone {
		d.add(Changed, "/timezone", "timers of months and years that are started from now on may be due at other times",
			"the time zone of timers is %s, no longer %s", cmp.Or(b.Timezone, "UTC"), cmp.Or(a.Timezone, "UTC"))
	}
	d.ttl(a.TTL, b.TTL)
	d.cancel(a.Cancel, b.Cancel)
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
		d.from.text(a.ContextSchema), d.to.text(b.ContextSchema))
	d.safely(func() { d.contextDefault(a.ContextDefault, b.ContextDefault) })
	d.search(a.Search, b.Search)
	d.invariant("", "an instance", a.Invariant, b.Invariant)
	d.allow("", a.Allow, b.Allow)
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
		case !has && !old.Final:
			risk := unfit
			if slices.ContainsFunc(d.resumed, func(target string) bool { return strings.HasPrefix(path, target+".") }) {
				risk += "; one that left it goes on in the initial state instead"
			}
			d.add(Removed, at, risk, "the %s is gone", kindOf(path, old))
		case !has:
			d.add(Removed, at, "", "the final state %s is gone", path)
		default:
			d.state(at, path, old, state)
		}
	}
}

// kindOf returns the name of a state behind what kind of state it is.
func kindOf(name string, s State) string {
	switch {
	case s.Outcome != "":
		return fmt.Sprintf("final state %s, %s", name, s.Outcome)
	case s.Final:
		return "final state " + name
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

func (d *differ) cancel(a, b string) {
	switch {
	case a == b:
	case a == "":
		d.add(Added, "/cancel", "", "instances can be cancelled, and get into %s", b)
	case b == "":
		d.add(Removed, "/cancel", "a cancel is refused with not-cancellable", "instances can no longer be cancelled")
	default:
		d.add(Changed, "/cancel", "an instance that is cancelled ends otherwise than when it was started", "cancelled instances get into %s, no longer into %s", b, a)
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
		d.add(Changed, "/ttl/sliding", "", "each command starts the lifetime again")
	case a.Sliding && !b.Sliding:
		d.add(Changed, "/ttl/sliding", "an instance ends although commands keep coming", "a command no longer starts the lifetime again")
	}
}

func (d *differ) state(at, name string, a, b State) {
	d.description(at, a.Description, b.Description)
	d.allow(at, a.Allow, b.Allow)
	switch {
	case !a.Final && b.Final:
		d.add(Changed, at+"/type", unfit, "%s is final", name)
		return
	case a.States == nil && b.States != nil:
		d.add(Added, at+"/states", unfit, "%s has states within", name)
	case a.States != nil && b.States == nil:
		d.add(Removed, at+"/states", "an instance that is in one cannot be moved, unless the migration maps the state to another",
			"%s no longer has states within", name)
	case a.Final && !b.Final:
		d.add(Changed, at+"/type", "", "%s is no longer final", name)
	case a.Outcome != b.Outcome:
		d.add(Changed, at+"/outcome", "an instance that gets there ends otherwise than when it was started",
			"%s means %s, no longer %s", name, b.Outcome, a.Outcome)
	}
	if a.States != nil && b.States != nil {
		if a.Initial != b.Initial {
			d.add(Changed, at+"/initial", "an instance goes another way than when it was started", "%s begins with %s, no longer with %s", name, b.Initial, a.Initial)
		}
		d.assign(at+"/initial", "beginning "+name, a.InitialAssign, b.InitialAssign)
		d.around = append(d.around, a)
		d.states(at, name, a.States, b.States)
		d.around = d.around[:len(d.around)-1]
	}
	d.assign(at+"/entry", "entering "+name, a.Entry, b.Entry)
	d.assign(at+"/exit", "leaving "+name, a.Exit, b.Exit)
	d.invariant(at, "an instance in "+name, a.Invariant, b.Invariant)
	switch {
	case b.Protected && !a.Protected:
		d.add(Added, at+"/protected", "an override or a cancel that would leave or enter it is refused with state-protected", "%s is protected", name)
	case a.Protected && !b.Protected:
		d.add(Removed, at+"/protected", "an override or a cancel may leave and enter it", "%s is no longer protected", name)
	}
	switch at := at + "/stuck_after"; {
	case a.StuckAfter == b.StuckAfter:
	case a.StuckAfter == 0:
		d.add(Added, at, "", "an instance counts as slow after %s in %s", FormatDuration(b.StuckAfter), name)
	case b.StuckAfter == 0:
		d.add(Removed, at, "", "an instance no longer counts as slow after %s in %s", FormatDuration(a.StuckAfter), name)
	default:
		d.add(Changed, at, "", "an instance counts as slow after %s in %s, no longer after %s",
			FormatDuration(b.StuckAfter), name, FormatDuration(a.StuckAfter))
	}
	d.healing(at+"/on_stuck", name, a.OnStuck, b.OnStuck)
	switch {
	case len(a.Always) == 0 && len(b.Always) > 0:
		d.add(Added, at+"/always", "an instance that is migrated into it is led on, if a guard holds", "%s has eventless transitions", name)
	case len(a.Always) > 0 && len(b.Always) == 0:
		d.add(Removed, at+"/always", "an instance stays in "+name+" that was led on", "%s no longer has eventless transitions", name)
	default:
		d.candidates(at+"/always", "always in "+name, a.Always, b.Always)
	}
	d.tasks(at+"/invoke", name, a.Invoke, b.Invoke)
	d.undoing(at, name, a.Compensate, b.Compensate)
	switch undoes := a.Compensate != nil || b.Compensate != nil; {
	case undoes:
		d.candidates(at+"/done", "done:compensate in "+name, a.Done, b.Done)
	case len(a.Done) == 0 && len(b.Done) > 0:
		d.add(Added, at+"/done", "", "%s leads on when a final state within is entered", name)
	case len(a.Done) > 0 && len(b.Done) == 0:
		d.add(Removed, at+"/done", "an instance goes another way than when it was started", "%s no longer leads on when a final state within is entered", name)
	default:
		d.candidates(at+"/done", "done in "+name, a.Done, b.Done)
	}
	d.candidates(at+"/error", "error:compensate in "+name, a.Error, b.Error)
	d.events(at+"/on", name, a, b)
	d.timers(at+"/after", "timeout", name, a.After, b.After)
	d.timers(at+"/every", "repeat", name, a.Every, b.Every)
}

// healing compares what is done about an instance that is stuck in a state.
func (d *differ) healing(at, name string, a, b *Healing) {
	switch {
	case sameWritten(a.written(), b.written()):
	case a == nil:
		d.add(Added, at, "an instance that is stuck in "+name+" when it is migrated is moved or tried again without a caller", "the healer %s when an instance is stuck in %s", b, name)
	case b == nil:
		d.add(Removed, at, "an instance that is stuck in "+name+" waits for a caller", "nothing is done about an instance that is stuck in %s", name)
	case a.String() == b.String():
		d.add(Changed, at+"/max", "", "the healer %s in %s at most %d times, no longer %d", b, name, b.Max, a.Max)
	default:
		d.add(Changed, at, "an instance that is stuck in "+name+" goes another way than when it was started", "the healer %s when an instance is stuck in %s; before it %s", b, name, a)
	}
}

// events compares the callers' events of a state.
func (d *differ) events(at, name string, a, b State) {
	for _, event := range union(a.On, b.On) {
		at := at + Pointer(event)
		old, had := a.On[event]
		candidates, has := b.On[event]
		switch {
		case !had:
			risk := ""
			if other := taking(event, append(slices.Clone(d.around), a)); other != "" {
				risk = "it takes what " + other + " took"
			}
			d.add(Added, at, risk, "%s accepts %s", name, event)
		case !has:
			d.add(Removed, at, "callers that send it to an instance in "+name+" are refused, or another transition takes it",
				"%s no longer accepts %s", name, event)
		default:
			d.candidates(at, event+" in "+name, old, candidates)
		}
	}
}

// taking returns the event or pattern by which the last of the states, or one around it, takes an event; empty if
// none does.
func taking(event string, states []State) (taking string) {
	for _, s := range slices.Backward(states) {
		for name := range s.On {
			if exactness(name, event) > exactness(taking, event) {
				taking = name
			}
		}
	}
	return taking
}
