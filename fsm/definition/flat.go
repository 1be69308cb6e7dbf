package definition

import (
	"maps"
	"slices"
	"strings"
	"time"
)

// Flat returns the atomic and the final states by their paths, as the engine knows them. Each has
// the transitions that can be taken in it: its own, then those of the compound states around it.
// Every target is the path of an atomic or a final state. The assigns are only those that a transition
// itself has; pawl_private.definition_transitions adds those of the exits and entries on its way.
func (d *Definition) Flat() map[string]State {
	flat := map[string]State{}
	var add func(around []State, path string, s State)
	add = func(around []State, path string, s State) {
		around = append(slices.Clip(around), s)
		for name, child := range s.States {
			add(around, join(path, name), child)
		}
		if s.States != nil {
			return
		}
		leaf := State{
			Description: s.Description, Outcome: s.Outcome,
			On: map[string][]Transition{}, After: make(map[time.Duration][]Transition, len(s.After)),
		}
		for _, s := range slices.Backward(around) {
			for event, candidates := range s.On {
				leaf.On[event] = d.inherit(leaf.On[event], candidates)
			}
			leaf.Always = d.inherit(leaf.Always, s.Always)
		}
		for delay, candidates := range s.After {
			leaf.After[delay] = d.inherit(nil, candidates)
		}
		if alwaysLeaves(leaf.Always) {
			leaf.On, leaf.After = nil, nil // It is left before anything could be fired.
		}
		flat[path] = leaf
	}
	for name, s := range d.States {
		add(nil, name, s)
	}
	return flat
}

// inherit appends the candidates of a compound state to those that come before them, unless one of
// these is always taken.
func (d *Definition) inherit(own, candidates []Transition) []Transition {
	if alwaysLeaves(own) {
		return own
	}
	for _, t := range candidates {
		if leaf, known := d.enter(t.Target); known {
			t.Target = leaf
		}
		own = append(own, t)
	}
	return own
}

// inherited counts the transitions of all atomic states, with those that they inherit.
func (d *Definition) inherited() int {
	var count func(around int, states map[string]State) int
	count = func(around int, states map[string]State) (total int) {
		for _, s := range states {
			n := around + len(s.Always)
			for _, candidates := range s.On {
				n += len(candidates)
			}
			for _, candidates := range s.After {
				n += len(candidates)
			}
			if s.States == nil {
				total += n
			} else {
				total += count(n, s.States)
			}
		}
		return total
	}
	return count(0, d.States)
}

// enter returns the path of the atomic or final state in which an instance is after it entered the
// state with the given path.
func (d *Definition) enter(path string) (leaf string, known bool) {
	s, known := d.find(path)
	for known && s.States != nil {
		path = join(path, s.Initial)
		s, known = s.States[s.Initial]
	}
	return path, known
}

// find looks a state up by its path. The name of an atomic state at the top level may have dots.
func (d *Definition) find(path string) (State, bool) {
	if s, known := d.States[path]; known {
		return s, true
	}
	name, rest, nested := strings.Cut(path, ".")
	s, known := d.States[name]
	for known && nested {
		name, rest, nested = strings.Cut(rest, ".")
		s, known = s.States[name]
	}
	return s, known
}

// alwaysLeaves reports whether one of the candidates has no guard, so that one of them is always taken.
func alwaysLeaves(candidates []Transition) bool {
	return slices.ContainsFunc(candidates, func(t Transition) bool { return t.Guard == "" })
}

// targets lists the targets of a state's transitions, in the order in which a diagram draws them.
func targets(s State) []string {
	var list []string
	add := func(candidates []Transition) {
		for _, t := range candidates {
			list = append(list, t.Target)
		}
	}
	for _, event := range slices.Sorted(maps.Keys(s.On)) {
		add(s.On[event])
	}
	add(s.Always)
	for _, delay := range slices.Sorted(maps.Keys(s.After)) {
		add(s.After[delay])
	}
	return list
}
