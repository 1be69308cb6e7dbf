package definition

import (
	"bytes"
	"encoding/json"
	"maps"
	"slices"
	"strings"
)

// states reads the states within a compound state, or those at the top level. around is the place of the
// compound state, and empty for the top level. schemas are the payload schemas that the states inherit, by
// event.
func (d *Draft) states(around place, document map[string]any, schemas map[string]json.RawMessage) map[string]State {
	at := d.pointers[around.path()]
	written, _ := document["states"].(map[string]any)
	states := make(map[string]State, len(written))
	for _, name := range slices.Sorted(maps.Keys(written)) {
		at := at + Pointer("states", name)
		path := join(around.path(), name)
		switch {
		case len(name) > maxStateName || !statePath.MatchString(name) || len(around) > 0 && strings.Contains(name, "."):
			d.fault(at, "a state's name must be a letter followed by up to 63 letters, digits, dashes or underscores, at the top also by dots between")
		case len(path) > MaxPathLength:
			d.fault(at, "a state's path must have at most %d characters", MaxPathLength)
		}
		states[name] = d.state(at, append(slices.Clip(around), path), written[name], schemas)
	}
	return states
}

// state reads one state, which is at the place where.
func (d *Draft) state(at string, where place, v any, schemas map[string]json.RawMessage) State {
	var s State
	m, ok := d.object(at, v)
	if !ok {
		// It has its fault. A final state gets no others.
		return State{Final: true, Outcome: Completed}
	}
	d.members(at, m, "type", "outcome", "description", "initial", "entry", "exit", "on", "always", "after", "every", "invoke", "compensate", "done", "error",
		"invariant", "protected", "stuck_after", "on_stuck", "states", "x-allow")
	s.Description = d.description(at, m)
	s.Allow = d.allow(at, m)
	s.Entry = d.block(at+"/entry", m)
	s.Invariant = d.invariant(at, m)
	s.Protected = d.boolean(at, m, "protected")
	s.Final, s.Outcome = d.outcome(at, where, m)
	_, compound := m["states"]
	if compound && len(where) == 1 && strings.Contains(where.path(), ".") {
		d.fault(at, "the name of a state that has states within must have no dots, which are for the paths of those")
	}
	if s.Final {
		d.final(at, m)
		return s
	}
	s.Exit = d.block(at+"/exit", m)
	s.On, schemas = d.events(at, where, m, schemas)
	if v, given := m["always"]; given {
		s.Always = d.candidates(at+"/always", where, v, alwaysKind)
	}
	s.After = d.timeouts(at, where, m)
	s.Every = d.repeats(at, where, m)
	if v, given := m["stuck_after"]; given && !compound {
		s.StuckAfter = d.duration(at+"/stuck_after", v)
	}
	if v, given := m["on_stuck"]; given && !compound {
		s.OnStuck = d.healing(at+"/on_stuck", v)
	}
	switch {
	case compound:
		d.compound(at, where, m, &s, schemas)
		return s
	case m["initial"] != nil:
		d.fault(at+"/initial", "is for a state that has states within")
	case slices.ContainsFunc(s.Always, Transition.unconditional):
		for member, given := range map[string]bool{"on": len(s.On) > 0, "after": len(s.After) > 0, "every": len(s.Every) > 0} {
			if given {
				d.fault(at+"/"+member, "can never be taken, since always leaves the state at once")
			}
		}
		for _, member := range []string{"invoke", "compensate"} {
			if _, given := m[member]; given {
				d.fault(at+"/"+member, "can never begin, since always leaves the state at once")
			}
		}
	}
	if v, given := m["invoke"]; given {
		s.Invoke = d.invoke(at+"/invoke", where, v)
	}
	if v, given := m["compensate"]; given {
		d.undoing(at, where, v, m, &s)
		return s
	}
	if _, given := m["done"]; given {
		d.fault(at+"/done", "is for a state that has a final state within, or that undoes with compensate")
	}
	if _, given := m["error"]; given {
		d.fault(at+"/error", "is for a state that undoes with compensate")
	}
	return s
}

// outcome reads the members type and outcome. A final state within another has no outcome.
func (d *Draft) outcome(at string, where place, m map[string]any) (final bool, outcome Outcome) {
	within := len(where) > 1
	if v, given := m["type"]; given {
		switch final = v == "final"; {
		case final:
		case v == "parallel":
			d.fault(at+"/type", `must be "final", or be left out: an instance is in one state at a time; let transitions without a target note what is done, and always lead on`)
		case v == "history":
			d.fault(at+"/type", `must be "final", or be left out: there are no history states; give the transition that goes back the compound state as its target, and "resume": true`)
		default:
			d.fault(at+"/type", `must be "final", or be left out`)
		}
	}
	if final && !within {
		outcome = Completed
	}
	v, given := m["outcome"]
	if !given {
		return final, outcome
	}
	text, _ := v.(string)
	switch {
	case !final:
		d.fault(at+"/outcome", "only a final state has an outcome")
	case within:
		d.fault(at+"/outcome", "only a final state at the top ends the instance: this one leads on by the done of the state around it")
	case !slices.Contains([]Outcome{Completed, Failed, Cancelled, Expired}, Outcome(text)):
		d.fault(at+"/outcome", "must be completed, failed, cancelled or expired")
	default:
		outcome = Outcome(text)
	}
	return final, outcome
}

// final adds a fault for each member that a final state must not have.
func (d *Draft) final(at string, m map[string]any) {
	for _, member := range []string{"on", "always", "after", "every"} {
		if _, given := m[member]; given {
			d.fault(at+"/"+member, "a final state has no transitions")
		}
	}
	for _, member := range []string{"initial", "exit", "states", "invoke", "compensate", "done", "error", "stuck_after", "on_stuck"} {
		if _, given := m[member]; given {
			d.fault(at+"/"+member, "is nothing for a final state, in which nothing happens")
		}
	}
}

// events reads the member on. It also returns the payload schemas that the states within inherit, by event:
// the given ones, and those of the events that it has read.
func (d *Draft) events(
	at string, where place, m map[string]any, schemas map[string]json.RawMessage,
) (map[string][]Transition, map[string]json.RawMessage) {
	v, given := m["on"]
	if !given {
		return nil, schemas
	}
	written, _ := d.object(at+"/on", v)
	on := make(map[string][]Transition, len(written))
	schemas = maps.Clone(schemas)
	if schemas == nil {
		schemas = map[string]json.RawMessage{}
	}
	for _, event := range slices.Sorted(maps.Keys(written)) {
		at := at + "/on" + Pointer(event)
		prefix, pattern := strings.CutSuffix(event, ".*")
		switch {
		case event == "ttl" || event == "done":
			d.fault(at, "is the engine's own event: name yours otherwise")
		case event == "*":
		case !identifier.MatchString(prefix) && pattern:
			d.fault(at, "a pattern is * for all events, or the beginning of their names followed by .*, such as payment.*")
		case !identifier.MatchString(event) && !pattern:
			d.fault(at, "an event's name must be a letter followed by up to 63 letters, digits, dots, dashes or underscores; * and payment.* are patterns")
		}
		on[event] = d.candidates(at, where, written[event], eventKind)
		if pattern || event == "*" {
			for _, t := range on[event] {
				if t.Compensate != nil {
					d.fault(d.undos[t.Compensate], uncompensable)
				}
			}
		}
		_, schema := payloadSchema("", on[event])
		switch inherited := schemas[event]; {
		case schema == nil:
		case inherited != nil && !bytes.Equal(schema, inherited):
			d.fault(at, "all transitions of an event in a state share one payload schema, and those it inherits have another")
		default:
			schemas[event] = schema
		}
		if schema := schemas[event]; schema != nil {
			d.payloads[at] = payload{decodeSchema(schema), "the payload_schema"}
		}
	}
	return on, schemas
}

// compound reads the members that only a compound state has.
func (d *Draft) compound(at string, where place, m map[string]any, s *State, schemas map[string]json.RawMessage) {
	if states, ok := d.object(at+"/states", m["states"]); ok && len(states) == 0 {
		d.fault(at+"/states", "must not be empty")
	}
	for _, member := range []string{"invoke", "compensate", "error", "stuck_after", "on_stuck"} {
		if _, given := m[member]; given {
			d.fault(at+"/"+member, "is for a state without states within: an instance is in one of those")
		}
	}
	s.States = d.states(where, m, schemas)
	atName, initial, assign := d.initial(at+"/initial", m["initial"])
	s.Initial, s.InitialAssign = d.text(atName, initial), assign
	if _, known := s.States[s.Initial]; s.Initial != "" && !known {
		d.fault(atName, "there is no state %q within this one", s.Initial)
	}
	finals := false
	for _, child := range s.States {
		finals = finals || child.Final
	}
	v, given := m["done"]
	switch {
	case given:
		s.Done = d.candidates(at+"/done", where, v, doneKind)
		if !finals {
			d.fault(at+"/done", "can never be taken, since no state directly within this one is final")
		} else if !slices.ContainsFunc(s.Done, Transition.unconditional) {
			d.fault(at+"/done", "the last transition must have no guard, so that one is always taken")
		}
	case finals:
		d.fault(at, "has a final state within, so that it must have done, which leads on from there")
	}
}

// initial reads the member initial: the name of a state, or an object with the name as target and an assign. It
// returns the name as it is written, and its pointer.
func (d *Draft) initial(at string, v any) (atName string, name any, assign Assign) {
	m, ok := v.(map[string]any)
	if !ok {
		return at, v, Assign{}
	}
	d.members(at, m, "target", "assign")
	return at + "/target", m["target"], d.assign(at, m)
}

// block reads the assign of an entry or an exit: the member that the pointer at ends with.
func (d *Draft) block(at string, document map[string]any) Assign {
	v, given := document[at[strings.LastIndexByte(at, '/')+1:]]
	if !given {
		return Assign{}
	}
	m, ok := d.object(at, v)
	if !ok {
		return Assign{}
	}
	d.members(at, m, "assign")
	return d.assign(at, m)
}
