package fsm

import (
	"maps"
	"slices"
	"strings"
	"time"
)

// What the engine makes of a definition's states, as far as it shows in Go: which atomic
// states there are, what they inherit, and where that leads. What is assigned on the way is
// the engine's alone; see pawl.definition_transitions.

// flat lists the atomic states and the final ones by their paths. Each has the transitions
// that can be taken in it, its own before those of the compounds around it, and every target
// is atomic or final.
func (d *Definition) flat() map[string]State {
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
			leaf.On, leaf.After = nil, nil // Nothing has the time to happen in it.
		}
		flat[path] = leaf
	}
	for name, s := range d.States {
		add(nil, name, s)
	}
	return flat
}

// inherit appends candidates to those that come before them, unless one of these is taken
// anyway.
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

// inherited counts the transitions of the atomic states, with those that they inherit.
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

// enter says which atomic or final state one enters with a state, by its path.
func (d *Definition) enter(path string) (leaf string, known bool) {
	s, known := d.find(path)
	for known && s.States != nil {
		path = join(path, s.Initial)
		s, known = s.States[s.Initial]
	}
	return path, known
}

// find looks a state up by its path. An atomic state at the top may have dots in its name.
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

// alwaysLeaves says whether one of the candidates is always taken.
func alwaysLeaves(candidates []Transition) bool {
	return slices.ContainsFunc(candidates, func(t Transition) bool { return t.Guard == "" })
}

// targets lists where the transitions of a state lead, in the order of a diagram.
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
