package definition

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// A transitionKind is the part of a state in which a transition stands.
type transitionKind int

const (
	eventKind transitionKind = iota
	alwaysKind
	doneKind
	timeoutKind // In an object by times.
	timerKind   // In an array; it says itself when.
	repeatKind
	handlerKind // Of a task's result.
)

// unknownTarget is that of a transition whose target cannot be read.
const unknownTarget = "?"

// candidates reads the transitions of an event, of a timeout, of always or of done: a target, a transition, or
// an array of transitions.
func (d *Draft) candidates(at string, where place, v any, kind transitionKind) []Transition {
	list, several := v.([]any)
	if !several {
		return []Transition{d.transition(at, where, v, kind)}
	}
	if len(list) == 0 {
		d.fault(at, "must have at least one transition")
	}
	candidates := make([]Transition, len(list))
	var schema json.RawMessage
	for i, v := range list {
		at := fmt.Sprintf("%s/%d", at, i)
		candidates[i] = d.transition(at, where, v, kind)
		t := &candidates[i]
		if i > 0 && unguarded(list[i-1]) {
			d.fault(at, "can never be taken, since the transition before it has no guard")
		}
		switch {
		case t.PayloadSchema == nil:
		case schema == nil:
			schema = t.PayloadSchema
		case !bytes.Equal(schema, t.PayloadSchema):
			d.fault(at+"/payload_schema", "all transitions of an event in a state share one payload schema")
		}
	}
	return candidates
}

// unguarded reports whether a candidate, as it is written, is always taken.
func unguarded(v any) bool {
	m, written := v.(map[string]any)
	if !written {
		_, target := v.(string)
		return target
	}
	_, guarded := m["guard"]
	return !guarded
}

// transition reads one candidate: a target, or an object. The time of a timer is read by timer.
func (d *Draft) transition(at string, where place, v any, kind transitionKind) Transition {
	if target, ok := v.(string); ok {
		return Transition{Target: cmp.Or(d.target(at, where, target), unknownTarget)}
	}
	m, ok := v.(map[string]any)
	if !ok {
		d.fault(at, "must be the name of a state, a transition, or an array of transitions")
		return Transition{Target: unknownTarget}
	}
	members := []string{"target", "internal", "resume", "rearm", "guard", "assign", "description", "x-allow"}
	switch kind {
	case eventKind:
		members = append(members, "payload_schema", "compensate")
	case handlerKind:
		members = []string{"target", "guard", "assign", "description", "x-allow"}
	case repeatKind:
		members = append(members, "in")
	case timerKind:
		members = append(members, "in", "at")
	}
	if kind == timeoutKind || kind == timerKind || kind == repeatKind {
		timed := payload{timeoutSchema, "the payload of a timer"}
		if kind == repeatKind {
			timed.schema = repeatSchema
		}
		for _, member := range []string{"/guard", "/assign"} { // Not when it is due, which is read in the step that enters the state.
			d.payloads[at+member] = timed
		}
	}
	d.members(at, m, members...)
	t := Transition{
		Description: d.description(at, m),
		Assign:      d.assign(at, m),
		Rearm:       d.boolean(at, m, "rearm"),
		Allow:       d.allow(at, m),
	}
	if kind == eventKind {
		t.PayloadSchema = d.schema(at+"/payload_schema", m)
		if v, given := m["compensate"]; given {
			t.Compensate = d.compensation(at+"/compensate", v, taskRoots)
		}
	}
	if v, given := m["target"]; given {
		t.Target = cmp.Or(d.target(at+"/target", where, v), unknownTarget)
	}
	d.move(at, where, m, kind, &t)
	if v, given := m["guard"]; given {
		t.Guard = d.guard(at+"/guard", v)
	}
	return t
}

// move reads how a transition moves, if it does: the members internal and resume, and rearm.
func (d *Draft) move(at string, where place, m map[string]any, kind transitionKind, t *Transition) {
	_, moves := m["target"]
	switch {
	case moves && kind == repeatKind:
		d.fault(at+"/target", "every repeats without leaving the state: leave the target out, or use after")
	case !moves && kind == alwaysKind:
		d.fault(at, "must have a target, since always is tried again after each step")
		t.Target = unknownTarget
	case !moves && kind == doneKind:
		d.fault(at, "must have a target, since it leaves the final state within")
		t.Target = unknownTarget
	case !moves && kind == handlerKind:
		d.fault(at, "must have a target, since the state has nothing more to wait for")
		t.Target = unknownTarget
	}
	if kind == handlerKind {
		return // It has no more members.
	}
	switch {
	case t.Rearm && moves:
		d.fault(at+"/rearm", "is for a transition without a target; one with a target starts the timers of what it enters")
	case t.Rearm && !d.timed[where.path()]:
		d.rearmsNothing(at+"/rearm", where)
	}
	internal := d.boolean(at, m, "internal")
	switch _, given := m["internal"]; {
	case !moves && given && !internal:
		d.fault(at+"/internal", "a transition without a target is internal: give it a target, or leave this out")
	case moves && internal && t.Target != unknownTarget:
		if t.Internal = strings.HasPrefix(t.Target, where.path()+"."); !t.Internal {
			d.fault(at+"/internal", "an internal transition stays in %s, so that its target must be a state within", where.path())
		}
	}
	if v, given := m["resume"]; given {
		switch {
		case v == true:
			t.Resume = ResumeState
		case v == "timers":
			t.Resume = ResumeTimers
		default:
			d.fault(at+"/resume", `must be true, or "timers"`)
			return
		}
		d.resumed(at+"/resume", where, moves, t.Target)
	}
}

// rearmsNothing warns of a transition that starts the timers of its state anew, which has none.
func (d *Draft) rearmsNothing(at string, where place) {
	hint := ""
	for _, around := range slices.Backward(where[:len(where)-1]) {
		if d.timed[around] {
			hint = fmt.Sprintf("; %s has some, which a transition that it declares itself starts anew", around)
			break
		}
	}
	d.warn("rearm-without-timer", at, "starts nothing anew: %s has no after and no every%s", where.path(), hint)
}

// resumed checks the target of a transition that resumes.
func (d *Draft) resumed(at string, where place, moves bool, target string) {
	_, known := d.pointers[target]
	switch {
	case !moves:
		d.fault(at, "needs a target: the compound state to go on in")
	case !known: // It has its fault.
	case len(d.within[target]) == 0:
		d.fault(at, "%s has no states within to go on in", target)
	case slices.Contains(where, target):
		d.fault(at, "an instance is in %s already: the state to go on in is one that was left", target)
	}
}
