package definition

import (
	"slices"
)

// graph adds a fault for each state that no instance can enter, and for each that is not final and that none
// can leave. flat has the atomic and final states.
func (d *Draft) graph(flat map[string]FlatState) {
	def := &d.Definition
	loops := restless(flat)
	for path, s := range flat {
		leadsOut := func(target string) bool { return target != path }
		switch {
		case loops[path]:
			d.fault(d.pointers[path], "an instance would never come to rest: some always or done without a guard leads on, from here and from all that it leads to")
		case !s.Final && !slices.ContainsFunc(s.targets(), leadsOut):
			d.fault(d.pointers[path], `no transition leads out of this state: add one, or make it final with "type": "final"`)
		}
	}
	initial, known := def.enter(def.Initial)
	if known {
		from := []string{initial}
		if def.TTL != nil {
			from = append(from, def.TTL.Target)
		}
		if cancel, known := def.enter(def.Cancel); known {
			from = append(from, cancel)
		}
		reached := reachable(flat, from, func(string) bool { return false })
		for path := range flat {
			if !reached[path] {
				d.fault(d.pointers[path], "no transition leads to this state")
			}
		}
	}
}

// reachable returns the states that transitions lead to from some of them, with those. None leads on from where
// ends is true.
func reachable(flat map[string]FlatState, from []string, ends func(path string) bool) map[string]bool {
	reached := map[string]bool{}
	reach(flat, reached, from, ends)
	return reached
}

// reach adds to what was reached before, and returns what it has added.
func reach(flat map[string]FlatState, reached map[string]bool, from []string, ends func(path string) bool) (added []string) {
	for len(from) > 0 {
		path := from[0]
		from = from[1:]
		if !reached[path] {
			reached[path] = true
			added = append(added, path)
			if !ends(path) {
				from = append(from, flat[path].targets()...)
			}
		}
	}
	return added
}

// restless finds the states from which eventless transitions lead on for ever: an instance could
// stay neither there nor in any state that these transitions lead to. At first it takes every state that
// an eventless transition always leaves; then it drops those from which one leads to a state that is not
// in the set, until there are no more of them.
func restless(flat map[string]FlatState) map[string]bool {
	found := map[string]bool{}
	for path, s := range flat {
		found[path] = slices.ContainsFunc(s.eventless(), FlatTransition.unconditional)
	}
	for changed := true; changed; {
		changed = false
		for path := range found {
			leadsToRest := func(t FlatTransition) bool {
				return slices.ContainsFunc(t.targets(), func(target string) bool { return !found[target] })
			}
			if found[path] && slices.ContainsFunc(flat[path].eventless(), leadsToRest) {
				found[path], changed = false, true
			}
		}
	}
	return found
}
