package definition

import (
	"maps"
	"slices"
	"strings"
)

// A FlatState is an atomic or final state as the engine knows it, with the transitions that can be taken in it.
type FlatState struct {
	// Final is set for a final state at the top level and for one within another, and Outcome for the former.
	Final   bool
	Outcome Outcome
	// Events are those that the state has transitions for: callers' events and patterns by name, then :always,
	// :done, the results of its tasks or of its undoing, the timeouts and the repeats, each first its own and then those
	// of the states around it.
	Events []FlatEvent
}

// A FlatEvent is an event with its candidates. Timers are named like after:10m, after:2, every:24h and, where they
// are inherited, after:10m@REVIEW.
type FlatEvent struct {
	Name string
	// Timer says when a timer is due; nil for what is none.
	Timer      *Timer
	Candidates []FlatTransition
}

// The engine's names of the events that stand for no event.
const (
	alwaysEvent = ":always"
	doneEvent   = ":done"
)

// exactness says how exactly a name or a pattern of on takes an event; 0 if it does not. Of several, the most exact one
// takes it.
func exactness(name, event string) int {
	prefix, pattern := strings.CutSuffix(name, "*")
	switch {
	case name == event:
		return len(event) + 2
	case pattern && strings.HasPrefix(event, prefix):
		return len(prefix) + 1
	}
	return 0
}

// isResult reports whether the event stands for what became of a task, or of undoing.
func (e FlatEvent) isResult() bool { return e.Timer == nil && strings.Index(e.Name, ":") > 0 }

// title returns the event for people: a timer with when it is due, and the state that it is inherited from.
func (e FlatEvent) title() string {
	switch {
	case e.Name == alwaysEvent || e.Name == doneEvent:
		return e.Name[1:]
	case e.Timer == nil:
		return e.Name
	}
	kind, _, _ := strings.Cut(e.Name, ":")
	text := e.Timer.when(kind)
	if _, from, inherited := strings.Cut(e.Name, "@"); inherited {
		text += " in " + from
	}
	return text
}

// A FlatTransition is a candidate as the engine knows it. Its Target is the path of an atomic or final state: that
// of the state itself if the transition has no target.
type FlatTransition struct {
	Transition
	// Stays is set if the transition has no target.
	Stays bool
	// Resumed are the other states that it may lead to, if it resumes.
	Resumed []string
}

// targets are all states that it may lead to.
func (t FlatTransition) targets() []string { return append([]string{t.Target}, t.Resumed...) }

// Flat returns the atomic and the final states by their paths, as the engine knows them. Each has
// the transitions that can be taken in it: its own, then those of the compound states around it. A final state
// within another has only the done of that one. The assigns are only those that a transition
// itself has; pawl_private.definition_transitions adds those of the exits and entries on its way.
func (d *Definition) Flat() map[string]FlatState {
	flat := map[string]FlatState{}
	var add func(around []located, path string, s State)
	add = func(around []located, path string, s State) {
		around = append(slices.Clip(around), located{path, s})
		for name, child := range s.States {
			add(around, join(path, name), child)
		}
		if s.States == nil {
			flat[path] = d.flatten(around)
		}
	}
	for name, s := range d.States {
		add(nil, name, s)
	}
	return flat
}

// A located state is one with its path.
type located struct {
	path string
	State
}

// flatten returns the last of the states as the engine knows it; those before it are around it, from the outside in.
func (d *Definition) flatten(around []located) FlatState {
	s := around[len(around)-1]
	leaf := FlatState{Final: s.Final, Outcome: s.Outcome}
	if s.Final {
		if len(around) > 1 {
			parent := around[len(around)-2]
			leaf.add(doneEvent, nil, d.inherit(nil, s.path, parent.Done))
		}
		return leaf
	}
	var always []FlatTransition
	on := map[string][]FlatTransition{}
	for _, declaring := range slices.Backward(around) {
		always = d.inherit(always, s.path, declaring.Always)
		for event, candidates := range declaring.On {
			on[event] = d.inherit(on[event], s.path, candidates)
		}
	}
	if !slices.ContainsFunc(always, FlatTransition.unconditional) { // Else the state is left before anything else could happen.
		for _, event := range slices.Sorted(maps.Keys(on)) {
			leaf.add(event, nil, on[event])
		}
	}
	leaf.add(alwaysEvent, nil, always)
	if slices.ContainsFunc(always, FlatTransition.unconditional) {
		return leaf
	}
	for _, r := range s.results() {
		leaf.add(r.event, nil, d.inherit(nil, s.path, r.candidates))
	}
	for _, declaring := range slices.Backward(around) {
		suffix := ""
		if declaring.path != s.path {
			suffix = "@" + declaring.path
		}
		for _, part := range []struct {
			prefix string
			timers []Timer
		}{{"after", declaring.After}, {"every", declaring.Every}} {
			first := map[string]int{} // Of each name, by its place among the events.
			for i, name := range timerNames(part.prefix, part.timers) {
				timer := part.timers[i]
				candidates := d.inherit(nil, s.path, []Transition{timer.Transition})
				if at, known := first[name]; !known {
					first[name] = len(leaf.Events)
					leaf.add(name+suffix, &timer, candidates)
				} else if e := &leaf.Events[at]; e.Candidates[len(e.Candidates)-1].Guard != nil {
					e.Candidates = append(e.Candidates, candidates...)
				}
			}
		}
	}
	return leaf
}

// add adds an event, if it has candidates.
func (s *FlatState) add(event string, timer *Timer, candidates []FlatTransition) {
	if len(candidates) > 0 {
		s.Events = append(s.Events, FlatEvent{event, timer, candidates})
	}
}

// inherit appends the candidates of a state, as they are in a state within it or in itself, to those that come before
// them, unless one of these is always taken.
func (d *Definition) inherit(own []FlatTransition, source string, candidates []Transition) []FlatTransition {
	if slices.ContainsFunc(own, FlatTransition.unconditional) {
		return own
	}
	for _, t := range candidates {
		flat := FlatTransition{Transition: t, Stays: t.Target == ""}
		if flat.Stays {
			flat.Target = source
		} else if leaf, known := d.enter(t.Target); known {
			flat.Target = leaf
			if t.Resume != NoResume {
				for _, path := range d.leaves(t.Target) {
					if path != leaf {
						flat.Resumed = append(flat.Resumed, path)
					}
				}
			}
		}
		own = append(own, flat)
	}
	return own
}

// leaves lists the atomic states within a compound state, sorted.
func (d *Definition) leaves(path string) []string {
	var list []string
	var add func(path string, s State)
	add = func(path string, s State) {
		if s.States == nil && !s.Final {
			list = append(list, path)
		}
		for _, name := range slices.Sorted(maps.Keys(s.States)) {
			add(join(path, name), s.States[name])
		}
	}
	s, _ := d.find(path)
	add(path, s)
	return list
}

// inherited counts the transitions of all atomic states, with those that they inherit. One that resumes counts once
// for each state that it may lead to.
func (d *Definition) inherited() int {
	leaves := map[string]int{}
	rows := func(t Transition) int {
		if t.Resume == NoResume {
			return 1
		}
		if _, known := leaves[t.Target]; !known {
			leaves[t.Target] = max(1, len(d.leaves(t.Target)))
		}
		return leaves[t.Target]
	}
	all := func(s State) (n int) {
		s.each(func(t Transition) { n += rows(t) })
		if s.States != nil { // They count for the final states within.
			for _, t := range s.Done {
				n -= rows(t)
			}
		}
		return n
	}
	var count func(around int, states map[string]State) int
	count = func(around int, states map[string]State) (total int) {
		for _, s := range states {
			n := around + all(s)
			for _, child := range s.States {
				if child.Final {
					for _, t := range s.Done {
						total += rows(t)
					}
				}
			}
			switch {
			case s.States != nil:
				total += count(n, s.States)
			case !s.Final:
				total += n
			}
		}
		return total
	}
	return count(0, d.States)
}

// A result is what becomes of a task or of undoing: an event of the engine's, with its candidates.
type result struct {
	event      string
	candidates []Transition
}

// results are those of the state's tasks, or of its undoing.
func (s State) results() (list []result) {
	for _, name := range slices.Sorted(maps.Keys(s.Invoke)) {
		t := s.Invoke[name]
		list = append(list, result{"done:" + name, t.Done}, result{"error:" + name, t.Error}, result{"unknown:" + name, t.Unknown})
	}
	if s.Compensate != nil {
		list = append(list, result{"done:compensate", s.Done}, result{"error:compensate", s.Error})
	}
	return list
}

// each calls f with each transition that the state declares.
func (s State) each(f func(Transition)) {
	for _, event := range slices.Sorted(maps.Keys(s.On)) {
		for _, t := range s.On[event] {
			f(t)
		}
	}
	for _, list := range [][]Transition{s.Always, s.Done, s.Error} {
		for _, t := range list {
			f(t)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(s.Invoke)) {
		task := s.Invoke[name]
		for _, t := range slices.Concat(task.Done, task.Error, task.Unknown) {
			f(t)
		}
	}
	for _, list := range [][]Timer{s.After, s.Every} {
		for _, t := range list {
			f(t.Transition)
		}
	}
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

// accepts reports whether some state has a transition for an event.
func (d *Definition) accepts(event string) bool {
	return slices.ContainsFunc(d.events(), func(name string) bool { return exactness(name, event) > 0 })
}

// events lists the events and patterns of all states.
func (d *Definition) events() []string {
	names := map[string]bool{}
	var add func(states map[string]State)
	add = func(states map[string]State) {
		for _, s := range states {
			for name := range s.On {
				names[name] = true
			}
			add(s.States)
		}
	}
	add(d.States)
	return slices.Sorted(maps.Keys(names))
}

// around lists the compound states around an atomic state, the outermost first, and then the state itself, with their paths.
func (d *Definition) around(path string) (paths []string, states []State) {
	for i, r := range path + "." {
		if r != '.' {
			continue
		}
		if s, known := d.find(path[:i]); known && (s.States != nil || i == len(path)) {
			paths, states = append(paths, path[:i]), append(states, s)
		}
	}
	return paths, states
}

// protects reports whether an atomic state, or one around it, is protected.
func (d *Definition) protects(path string) bool {
	_, states := d.around(path)
	return slices.ContainsFunc(states, func(s State) bool { return s.Protected })
}

// unconditional reports whether a candidate has no guard, so that it is taken if none before it is.
func (t Transition) unconditional() bool { return t.Guard == nil }

// targets lists where the state's transitions lead, in the order in which a diagram draws them.
func (s FlatState) targets() []string {
	var list []string
	for _, e := range s.Events {
		for _, t := range e.Candidates {
			list = append(list, t.targets()...)
		}
	}
	return list
}

// eventless returns the candidates that are tried without an event.
func (s FlatState) eventless() []FlatTransition {
	for _, e := range s.Events {
		if e.Name == alwaysEvent || e.Name == doneEvent {
			return e.Candidates
		}
	}
	return nil
}
