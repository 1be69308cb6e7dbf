package definition

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"time"
)

// tasks looks at the tasks and the compensations of the whole definition.
func (d *Draft) tasks(flat map[string]FlatState) {
	def := &d.Definition
	for at, event := range d.late {
		if !def.accepts(event) {
			d.fault(at, "no state accepts %q%s", event, didYouMean("", event, def.events()))
		}
	}
	for _, path := range slices.Sorted(maps.Keys(flat)) {
		_, around := def.around(path)
		s := around[len(around)-1]
		var timers []Timer
		for _, a := range around {
			timers = append(timers, a.After...)
		}
		for _, name := range slices.Sorted(maps.Keys(s.Invoke)) {
			t := s.Invoke[name]
			at := d.pointers[path] + Pointer("invoke", name)
			d.retries(at, &t)
			d.retries(at+"/compensate", t.Compensate)
			for _, timer := range timers {
				if timer.constant() && timer.Transition.Target != "" && timer.Delay.compare(Duration{Exact: t.Deadline}) < 0 {
					d.warn("deadline-after-timeout", at+"/deadline",
						"is later than the timeout %s, which may leave the state while the task is under way", timer.when("after"))
					break
				}
			}
		}
		d.stuck(d.pointers[path]+"/stuck_after", s.StuckAfter, timers)
		d.heals(path, s, flat[path])
		if s.Compensate != nil {
			d.undone(path, s)
		}
	}
	d.compensations(flat)
}

// stuck warns of a stuck_after that no instance gets to, since one of the timers of its state leaves the state before.
func (d *Draft) stuck(at string, after time.Duration, timers []Timer) {
	for _, timer := range timers {
		if after > 0 && timer.constant() && timer.Transition.unconditional() && timer.Transition.Target != "" && timer.Delay.compare(Duration{Exact: after}) <= 0 {
			d.warn("stuck-after-timeout", at, "is not before the timeout %s, which leaves the state", timer.when("after"))
			return
		}
	}
}

// retries warns of a call whose attempts cannot be told apart by the service.
func (d *Draft) retries(at string, t *Task) {
	if t == nil || t.HTTP == nil || t.Idempotency != nil || t.Reconcile != nil {
		return
	}
	d.warn("task-without-key", at, "has neither idempotency nor reconcile, so that the task is unknown at once if an attempt gets no clear answer")
	if t.Retry != nil && t.Retry.Max > 1 {
		d.warn("retry-without-key", at+"/retry",
			"is only for connections that are refused and for 429 and 503, since there is neither idempotency nor reconcile")
	}
}

// undone checks where an undoing state leads.
func (d *Draft) undone(path string, s State) {
	for name, list := range map[string][]Transition{"done": s.Done, "error": s.Error} {
		for _, t := range list {
			leaf, known := d.Definition.enter(t.Target)
			if !known {
				continue // It has its fault.
			}
			target, _ := d.Definition.find(leaf)
			switch {
			case target.Compensate != nil:
				d.fault(d.pointers[path]+"/"+name, "must not lead to a state that undoes, %s: it would begin again at once", leaf)
			case name == "error" && target.Final:
				d.fault(d.pointers[path]+"/"+name, "must not lead to a final state, %s: what could not be undone is for somebody to look at, and to undo again", leaf)
			}
		}
	}
}

// A compensable is a step that can be undone.
type compensable struct {
	at, name string
	// targets are where an instance may be behind the step.
	targets []string
}

// compensations warns of steps that are never undone, or not on each way to a bad end.
func (d *Draft) compensations(flat map[string]FlatState) {
	def := &d.Definition
	undoes := func(path string) bool {
		s, _ := def.find(path)
		return s.Compensate != nil
	}
	steps := d.compensables(flat)
	never := !slices.ContainsFunc(slices.Collect(maps.Keys(flat)), undoes)
	reached := map[string]bool{} // Of what an earlier step has reached, the ends were warned of.
	for _, step := range steps {
		if never {
			d.warn("no-undoing-state", step.at, "is never carried out, since no state of this definition undoes: add one that has compensate")
		}
		for _, path := range reach(flat, reached, step.targets, undoes) {
			if s := flat[path]; s.Final && (s.Outcome == Failed || s.Outcome == Cancelled) {
				d.warn("not-undone", d.pointers[path], "can be reached past %s, which is not undone then: lead here through a state that undoes", step.name)
			}
		}
	}
	if len(steps) == 0 {
		return
	}
	ends := map[string]string{"/cancel": def.Cancel}
	if def.TTL != nil {
		ends["/ttl/target"] = def.TTL.Target
	}
	for at, target := range ends {
		leaf, _ := def.enter(target)
		for path := range reachable(flat, []string{leaf}, undoes) {
			s := flat[path]
			if s.Final && (s.Outcome == Failed || s.Outcome == Cancelled) {
				d.warn("not-undone", at, "leads to %s although %s may have to be undone: lead to a state that undoes", path, steps[0].name)
				break
			}
		}
	}
}

// compensables lists the steps that can be undone, in the order of their places.
func (d *Draft) compensables(flat map[string]FlatState) []compensable {
	targets := map[*Task][]string{}
	names := map[*Task]string{}
	for _, path := range slices.Sorted(maps.Keys(flat)) {
		state, _ := d.Definition.find(path)
		for _, e := range flat[path].Events {
			for _, c := range e.Candidates {
				if c.Compensate != nil {
					names[c.Compensate] = cmp.Or(names[c.Compensate], e.Name+" in "+path)
					targets[c.Compensate] = append(targets[c.Compensate], c.targets()...)
				}
				for name, t := range state.Invoke {
					if t.Compensate != nil && !c.Stays && e.Name != "error:"+name { // It had no effect then.
						names[t.Compensate] = name + " of " + path
						targets[t.Compensate] = append(targets[t.Compensate], c.targets()...)
					}
				}
			}
		}
	}
	var steps []compensable
	for t, name := range names {
		steps = append(steps, compensable{d.undos[t], name, targets[t]})
	}
	slices.SortFunc(steps, func(a, b compensable) int { return strings.Compare(a.at, b.at) })
	return steps
}
