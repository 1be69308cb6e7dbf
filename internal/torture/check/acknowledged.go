package check

import (
	"github.com/google/uuid"
)

// acknowledged checks that history has each step that a client was told of, as the client was told, and no step that
// nobody has asked for.
//
// Where a fault may lose steps, it loses the end of what was written. So if of two steps one was acknowledged before
// the other was asked for, the second is lost with the first; and so is every later step of the same instance. What a
// client is told afterwards is checked by "linearizable", "keys" and "delivered".
func acknowledged(x *index, out *reporter) {
	// Of the lost steps, in each era the one that was acknowledged first, and of each instance the one with the
	// lowest version.
	type place struct {
		instance uuid.UUID
		era      int
	}
	firstLost := map[int]*Op{}
	lowest := map[place]*Op{}

	for _, key := range x.keys {
		compared := false // The other attempts are compared with the first, see the check "keys".
		for _, o := range x.attempts[key] {
			if !o.applied() {
				continue
			}
			if !x.kept(o) && x.losable(o) {
				era := x.era(o.End)
				if era != x.era(o.Begin) {
					continue // It may belong to either.
				}
				if was := firstLost[era]; was == nil || o.End.Before(was.End) {
					firstLost[era] = o
				}
				if was := lowest[place{o.Instance, era}]; was == nil || o.Version < was.Version {
					lowest[place{o.Instance, era}] = o
				}
				continue
			}
			if compared {
				continue
			}
			compared = true
			if s := x.step(o.Instance, o.Version); x.kept(o) {
				if fault := o.differs(x.Model, s); fault != "" {
					out.add("instance %s: %s was answered %s, but history has %s %s", o.Instance, o, o.answer(), s, fault)
				}
			} else if o == x.attempts[key][0] { // Of a retry it is the fault that "keys" reports.
				out.add("instance %s: %s was answered %s, but %s", o.Instance, o, o.answer(), x.instead(o))
			}
		}
	}

	for _, id := range x.instances {
		for _, s := range x.steps[id] {
			era := x.era(s.At)
			if lost := lowest[place{id, era}]; lost != nil && lost.Version <= s.Version {
				out.add("instance %s: %s was answered %s and is lost, but a later step of the time before the loss is not: %s",
					id, lost, lost.answer(), s)
			}
			if s.Kind == timeoutKind {
				continue
			}
			attempts := x.attempts[s.Key]
			if len(attempts) == 0 {
				out.add("instance %s: nobody has asked for %s", id, s)
				continue
			}
			asked := attempts[0].Begin
			if lost := firstLost[era]; lost != nil && lost.Instance != id && asked.After(lost.End) {
				out.add("instance %s: %s was answered %s and is lost, but what was asked for later is not: instance %s, %s, asked for at %s",
					lost.Instance, lost, lost.answer(), id, s, clock(asked))
			}
		}
	}
}

// differs says in what history's step differs from what the op asked for and was told; empty if in nothing.
func (o *Op) differs(m Model, s *Step) string {
	switch {
	case s.Event != o.Event:
		return "by the event " + s.Event
	case s.To != o.State:
		return "to " + s.To
	case !same(o.Context, s.Context):
		return "with the context " + Canonical(s.Context) + ", not " + Canonical(o.Context)
	case o.Kind == "create" && m.Create(o.Payload).Context != Canonical(s.Context):
		return "with the context " + Canonical(s.Context) + ", not " + Canonical(o.Payload)
	case o.Kind == "fire" && !same(o.Payload, s.Payload):
		return "with the payload " + Canonical(s.Payload) + ", not " + Canonical(o.Payload)
	}
	return ""
}

// instead says what history has for a command whose step it does not have.
func (x *index) instead(o *Op) string {
	if effects := x.effects[o.Key]; len(effects) > 0 {
		return "history has the key at instance " + effects[0].Instance.String() + ", " + effects[0].String()
	}
	if s := x.step(o.Instance, o.Version); s != nil {
		return "history has " + s.String()
	}
	return "history has no such step"
}
