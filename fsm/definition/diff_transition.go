package definition

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// candidates compares the candidates of an event, of always or of done.
func (d *differ) candidates(at, what string, a, b []Transition) {
	atA, schemaA := payloadSchema(at, a)
	atB, schemaB := payloadSchema(at, b)
	if schemaB == nil {
		atB = atA
	}
	d.schema(atB, "the payload of "+what, "callers whose payload was accepted may be refused with invalid-payload", d.from.text(schemaA), d.to.text(schemaB))
	for i := range min(len(a), len(b)) {
		if schemaA != nil && schemaB != nil && (a[i].PayloadSchema == nil) != (b[i].PayloadSchema == nil) {
			d.add(Changed, fmt.Sprintf("%s/%d/payload_schema", at, i), "", "the payload schema of %s is given in another place", what)
		}
	}

	pointers := func(n int) []string {
		list := make([]string, n)
		for i := range list {
			list[i] = fmt.Sprintf("%s/%d", at, i)
		}
		return list
	}
	d.compare(what, pointers(len(a)), pointers(len(b)), a, b)
}

// compare compares candidates that have these pointers. Those that are equal at the beginning and at the end of both
// lists count as kept. Those in between are compared by their positions.
func (d *differ) compare(what string, atA, atB []string, a, b []Transition) {
	first := 0
	for first < min(len(a), len(b)) && sameTransition(a[first], b[first]) {
		first++
	}
	endA, endB := len(a), len(b)
	for endA > first && endB > first && sameTransition(a[endA-1], b[endB-1]) {
		endA, endB = endA-1, endB-1
	}
	for i := first; i < max(endA, endB); i++ {
		switch {
		case i >= endA:
			risk := ""
			if i < len(b)-1 {
				risk = "it may take what a later transition took"
			}
			d.add(Added, atB[i], risk, "%s has another transition, %s", what, destination(b[i]))
		case i >= endB:
			d.add(Removed, atA[i], "what it took is refused, or taken by another transition", "%s has a transition %s no longer", what, destination(a[i]))
		default:
			d.transition(atB[i], what, a[i], b[i])
		}
	}
}

// destination says in words where a transition leads.
func destination(t Transition) string {
	if t.Target == "" {
		return "that stays in its state"
	}
	return "to " + t.Target
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
	return a.Description == b.Description && a.Target == b.Target && a.Internal == b.Internal && a.Resume == b.Resume &&
		a.Rearm == b.Rearm && EqualJSON(a.Guard, b.Guard) && slices.Equal(a.Allow, b.Allow) && sameAssign(a.Assign, b.Assign) &&
		sameWritten(a.Compensate.written(), b.Compensate.written())
}

func sameAssign(a, b Assign) bool {
	return a.Payload == b.Payload && a.Trusted == b.Trusted && (a.Members == nil) == (b.Members == nil) &&
		slices.Equal(a.Members, b.Members) && maps.EqualFunc(a.Values, b.Values, func(a, b Value) bool { return EqualJSON(a, b) })
}

func (d *differ) transition(at, what string, a, b Transition) {
	const otherWay = "an instance goes another way than when it was started"
	d.description(at, a.Description, b.Description)
	d.allow(at, a.Allow, b.Allow)
	if a.Target != b.Target {
		d.add(Changed, at+"/target", otherWay, "%s has a transition %s, no longer one %s", what, destination(b), destination(a))
	}
	switch {
	case b.Internal && !a.Internal:
		d.add(Changed, at+"/internal", "the timers of the state that declares it go on, which were started anew", "%s no longer leaves the state that declares it", what)
	case a.Internal && !b.Internal:
		d.add(Changed, at+"/internal", "the timers of the state that declares it are started anew, which went on", "%s leaves the state that declares it, and enters it again", what)
	}
	if a.Resume != b.Resume {
		d.add(Changed, at+"/resume", otherWay, "%s %s, no longer %s", what, b.Resume.words(), a.Resume.words())
	}
	switch {
	case b.Rearm && !a.Rearm:
		d.add(Changed, at+"/rearm", "an instance stays longer in its state than when it was started", "%s starts the timers of its state anew", what)
	case a.Rearm && !b.Rearm:
		d.add(Changed, at+"/rearm", "a timer ends the stay of an instance that was moved on by this", "%s no longer starts the timers of its state anew", what)
	}
	switch {
	case EqualJSON(a.Guard, b.Guard):
	case a.Guard == nil:
		d.add(Added, at+"/guard", "callers whose event was accepted may be refused with guard-rejected", "%s has a guard, %s", what, guardText(b.Guard))
	case b.Guard == nil:
		d.add(Removed, at+"/guard", "what the guard kept an instance from is allowed", "%s no longer has the guard %s", what, guardText(a.Guard))
	default:
		d.add(Changed, at+"/guard", "an event may be refused that was accepted, and accepted that was refused",
			"%s has the guard %s, no longer %s", what, guardText(b.Guard), guardText(a.Guard))
	}
	d.assign(at, what, a.Assign, b.Assign)
	d.compensation(at, what, a.Compensate, b.Compensate)
}

// words says how a transition goes on.
func (r Resume) words() string {
	switch r {
	case ResumeState:
		return "goes on where its target was left"
	case ResumeTimers:
		return "goes on where its target was left, with what was left of the timers"
	}
	return "enters its target anew"
}

// invariant compares what must hold of whom.
func (d *differ) invariant(at, whom string, a, b Guard) {
	at += "/invariant"
	const stuck = "an instance that breaks it cannot move until it holds"
	switch {
	case EqualJSON(a, b):
	case a == nil:
		d.add(Added, at, stuck, "%s has an invariant, %s", whom, guardText(b))
	case b == nil:
		d.add(Removed, at, "what the invariant kept an instance from is allowed", "%s no longer has the invariant %s", whom, guardText(a))
	default:
		d.add(Changed, at, stuck, "%s has the invariant %s, no longer %s", whom, guardText(b), guardText(a))
	}
}

func (d *differ) contextDefault(a, b map[string]any) {
	for _, name := range union(a, b) {
		at := "/context_default" + Pointer(name)
		old, had := a[name]
		v, has := b[name]
		switch {
		case !had:
			d.add(Added, at, "", "new instances start with %s as %s", name, jsonText(v))
		case !has:
			d.add(Removed, at, "", "new instances no longer start with %s", name)
		case !EqualJSON(old, v):
			d.add(Changed, at, "", "new instances start with %s as %s, no longer as %s", name, jsonText(v), jsonText(old))
		}
	}
}

// allow compares which warnings are silenced.
func (d *differ) allow(at string, a, b []string) {
	if !slices.Equal(a, b) {
		d.add(Changed, at+"/x-allow", "", "other warnings are silenced")
	}
}

func (d *differ) assign(at, what string, a, b Assign) {
	const stale = "an instance that is past this has its context without it, whatever reads it"
	at += "/assign"
	switch {
	case b.Payload && (!a.Payload || b.Members == nil && a.Members != nil):
		d.add(Changed, at, "a payload may overwrite members of an instance's context that it could not", "%s merges %s into the context", what, b.merged())
	case a.Payload && !b.Payload:
		d.add(Changed, at, "what reads members that only the payload set finds nothing", "%s no longer merges the payload into the context", what)
	case (a.Members == nil) != (b.Members == nil) || !slices.Equal(a.Members, b.Members):
		d.add(Changed, at, "what reads members that only the payload set finds nothing, and others may be overwritten",
			"%s merges %s into the context, no longer %s", what, b.merged(), a.merged())
	}
	if a.Trusted != b.Trusted {
		d.add(Changed, at+"/trusted", "", "%s says otherwise whether callers are trusted", what)
	}
	for _, name := range union(a.Values, b.Values) {
		at := at + Pointer(name)
		old, had := a.Values[name]
		v, has := b.Values[name]
		switch {
		case had == has && EqualJSON(old, v):
		case !had:
			d.add(Added, at, stale, "%s sets %s to %s", what, name, valueText(v))
		case !has:
			d.add(Removed, at, "what reads "+name+" finds nothing, or what it was before", "%s no longer sets %s", what, name)
		default:
			d.add(Changed, at, "an instance that is past this has "+name+" as the old value gave it",
				"%s sets %s to %s, no longer to %s", what, name, valueText(v), valueText(old))
		}
	}
}

// merged says in words what of the payload is merged.
func (a Assign) merged() string {
	if a.Members == nil {
		return "the payload"
	}
	return "the payload's " + strings.Join(a.Members, ", ")
}

// resumeTargets lists the targets of transitions that resume.
func resumeTargets(states map[string]State) (list []string) {
	for _, s := range states {
		s.each(func(t Transition) {
			if t.Resume != NoResume {
				list = append(list, t.Target)
			}
		})
		list = append(list, resumeTargets(s.States)...)
	}
	return list
}
