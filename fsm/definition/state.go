package definition

import (
	"bytes"
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"time"
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
		return State{Outcome: Completed}
	}
	d.members(at, m, "type", "outcome", "description", "initial", "entry", "exit", "on", "always", "after", "states")
	s.Description = d.description(at, m)
	s.Entry = d.block(at+"/entry", m)
	s.Outcome = d.outcome(at, m)
	_, compound := m["states"]
	if compound && len(where) == 1 && strings.Contains(where.path(), ".") {
		d.fault(at, "the name of a state that has states within must have no dots, which are for the paths of those")
	}
	if s.Outcome != "" {
		d.final(at, where, m)
		return s
	}
	s.Exit = d.block(at+"/exit", m)
	s.On, schemas = d.events(at, where, m, schemas)
	if v, given := m["always"]; given {
		s.Always = d.candidates(at+"/always", where, v)
		if _, schema := payloadSchema("", s.Always); schema != nil {
			d.fault(at+"/always", "no event is needed, so there is no payload and no payload_schema")
		}
	}
	s.After = d.timeouts(at, where, m)
	switch {
	case compound:
		d.compound(at, where, m, &s, schemas)
	case m["initial"] != nil:
		d.fault(at+"/initial", "is for a state that has states within")
	case alwaysLeaves(s.Always):
		for member, given := range map[string]bool{"on": len(s.On) > 0, "after": len(s.After) > 0} {
			if given {
				d.fault(at+"/"+member, "can never be taken, since always leaves the state at once")
			}
		}
	}
	return s
}

// outcome reads the members type and outcome. It returns the outcome of a final state, and an empty
// one for any other state.
func (d *Draft) outcome(at string, m map[string]any) Outcome {
	var outcome Outcome
	if v, given := m["type"]; given {
		if v == "final" {
			outcome = Completed
		} else {
			d.fault(at+"/type", `must be "final", or be left out`)
		}
	}
	v, given := m["outcome"]
	if !given {
		return outcome
	}
	text, _ := v.(string)
	switch {
	case outcome == "":
		d.fault(at+"/outcome", "only a final state has an outcome")
	case !slices.Contains([]Outcome{Completed, Failed, Cancelled, Expired}, Outcome(text)):
		d.fault(at+"/outcome", "must be completed, failed, cancelled or expired")
	default:
		outcome = Outcome(text)
	}
	return outcome
}

// final adds a fault for each member that a final state must not have.
func (d *Draft) final(at string, where place, m map[string]any) {
	for _, member := range []string{"on", "always", "after"} {
		if _, given := m[member]; given {
			d.fault(at+"/"+member, "a final state has no transitions")
		}
	}
	for _, member := range []string{"initial", "exit", "states"} {
		if _, given := m[member]; given {
			d.fault(at+"/"+member, "is nothing for a final state, which is never left")
		}
	}
	if len(where) > 1 {
		d.fault(at+"/type", "a final state ends the instance, so that it must stand at the top, not within another state")
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
		switch {
		case event == "ttl":
			d.fault(at, "is the engine's own event, which ends an instance's lifetime: name yours otherwise")
		case !identifier.MatchString(event):
			d.fault(at, "an event's name must be a letter followed by up to 63 letters, digits, dots, dashes or underscores")
		}
		on[event] = d.candidates(at, where, written[event])
		_, schema := payloadSchema("", on[event])
		switch inherited := schemas[event]; {
		case schema == nil:
		case inherited != nil && !bytes.Equal(schema, inherited):
			d.fault(at, "all transitions of an event in a state share one payload schema, and those it inherits have another")
		default:
			schemas[event] = schema
		}
	}
	return on, schemas
}

// timeouts reads the member after.
func (d *Draft) timeouts(at string, where place, m map[string]any) map[time.Duration][]Transition {
	v, given := m["after"]
	if !given {
		return nil
	}
	written, _ := d.object(at+"/after", v)
	after := make(map[time.Duration][]Transition, len(written))
	for _, text := range slices.Sorted(maps.Keys(written)) {
		at := at + "/after" + Pointer(text)
		delay := d.duration(at, text)
		if _, twice := after[delay]; twice && delay > 0 {
			d.fault(at, "is the same time as another timeout of this state")
		}
		after[delay] = d.candidates(at, where, written[text])
	}
	return after
}

// compound reads the members that only a compound state has.
func (d *Draft) compound(at string, where place, m map[string]any, s *State, schemas map[string]json.RawMessage) {
	if _, given := m["after"]; given {
		d.fault(at+"/after", "a timeout is counted from entering an atomic state: give one to states within, or a ttl to the workflow")
		s.After = nil
	}
	if states, ok := d.object(at+"/states", m["states"]); ok && len(states) == 0 {
		d.fault(at+"/states", "must not be empty")
	}
	s.States = d.states(where, m, schemas)
	s.Initial = d.text(at+"/initial", m["initial"])
	if _, known := s.States[s.Initial]; s.Initial != "" && !known {
		d.fault(at+"/initial", "there is no state %q within this one", s.Initial)
	}
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
