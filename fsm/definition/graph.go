package definition

import (
	"slices"
)

// graph adds a fault for each state that no instance can enter, and for each that is not final and that none
// can leave. flat has the atomic and final states.
func (d *Draft) graph(flat map[string]State) {
	def := &d.Definition
	loops := restless(flat)
	for path, s := range flat {
		leadsOut := func(target string) bool { return target != path }
		switch {
		case loops[path]:
			d.fault(d.pointers[path], "an instance would never come to rest: some always without a guard leads on, from here and from all that it leads to")
		case s.Outcome == "" && !slices.ContainsFunc(targets(s), leadsOut):
			d.fault(d.pointers[path], `no transition leads out of this state: add one, or make it final with "type": "final"`)
		}
	}
	initial, known := def.enter(def.Initial)
	if known {
		from := []string{initial}
		if def.TTL != nil {
			from = append(from, def.TTL.Target)
		}
		reached := map[string]bool{}
		for len(from) > 0 {
			path := from[0]
			from = from[1:]
			if !reached[path] {
				reached[path] = true
				from = append(from, targets(flat[path])...)
			}
		}
		for path := range flat {
			if !reached[path] {
				d.fault(d.pointers[path], "no transition leads to this state")
			}
		}
	}
}

// restless finds the states from which eventless transitions lead on for ever: an instance could
// stay neither there nor in any state that these transitions lead to. At first it takes every state that
// an eventless transition always leaves; then it drops those from which one leads to a state that is not
// in the set, until there are no more of them.
func restless(flat map[string]State) map[string]bool {
	found := map[string]bool{}
	for path, s := range flat {
		found[path] = alwaysLeaves(s.Always)
	}
	for changed := true; changed; {
		changed = false
		for path := range found {
			leadsToRest := func(t Transition) bool { return !found[t.Target] }
			if found[path] && slices.ContainsFunc(flat[path].Always, leadsToRest) {
				found[path], changed = false, true
			}
		}
	}
	return found
}
