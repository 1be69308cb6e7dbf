package definition

import (
	"fmt"
	"slices"
	"strings"
)

// A timerGroup is a timer with its candidates.
type timerGroup struct {
	Timer
	// pointer is that of the timer, and pointers are those of its candidates.
	pointer    string
	pointers   []string
	candidates []Transition
}

// key tells timers of different times apart.
func (g timerGroup) key() string {
	return jsonText(map[string]any{"delay": g.Delay.String(), "in": g.In, "at": g.At})
}

// groups lists the timers of a member, those of constant times first, each with its candidates.
func groups(at string, timers []Timer) []timerGroup {
	var list []timerGroup
	varies := slices.ContainsFunc(timers, func(t Timer) bool { return !t.constant() }) || strings.HasSuffix(at, "/every")
	for i, t := range timers {
		known := slices.IndexFunc(list, func(g timerGroup) bool { return t.constant() && g.Delay == t.Delay })
		if known < 0 {
			known = len(list)
			list = append(list, timerGroup{Timer: t, pointer: at + Pointer(t.Delay.String())})
		}
		g := &list[known]
		pointer := fmt.Sprintf("%s/%d", g.pointer, len(g.pointers))
		if varies {
			pointer = fmt.Sprintf("%s/%d", at, i)
			if len(g.pointers) == 0 {
				g.pointer = pointer
			}
		}
		g.pointers = append(g.pointers, pointer)
		g.candidates = append(g.candidates, t.Transition)
	}
	slices.SortStableFunc(list, func(a, b timerGroup) int {
		switch {
		case a.constant() && b.constant():
			return a.Delay.compare(b.Delay)
		case a.constant():
			return -1
		case b.constant():
			return 1
		}
		return 0
	})
	return list
}

// timers compares the timeouts or the repeats of a state. Timers of one time are compared with each other. Those
// whose time is in only one of the definitions are paired in their order, and each pair counts as one timer whose
// time changed.
func (d *differ) timers(at, kind, state string, a, b []Timer) {
	before := len(d.changes)
	old, groups := groups(at, a), groups(at, b)
	what := func(g timerGroup) string { return fmt.Sprintf("the %s of %s %s", kind, state, g.when("after")) }
	var gone, come []timerGroup
	for _, g := range old {
		if i := slices.IndexFunc(groups, func(o timerGroup) bool { return o.key() == g.key() }); i >= 0 {
			d.compare(what(g), g.pointers, groups[i].pointers, g.candidates, groups[i].candidates)
		} else {
			gone = append(gone, g)
		}
	}
	for _, g := range groups {
		if !slices.ContainsFunc(old, func(o timerGroup) bool { return o.key() == g.key() }) {
			come = append(come, g)
		}
	}
	added, removed := "an instance that has been in "+state+" for longer leaves it at once", "an instance that nobody moves on stays in "+state
	late := added
	if kind == "repeat" {
		added, removed = "an instance in "+state+" makes these steps, too", "an instance in "+state+" makes no more of these steps"
		late = "an instance makes these steps at other times, counted from entering " + state
	}
	for i := range max(len(gone), len(come)) {
		switch {
		case i >= len(gone):
			d.add(Added, come[i].pointer, added, "%s has a %s %s", state, kind, come[i].when("after"))
		case i >= len(come):
			d.add(Removed, gone[i].pointer, removed, "%s no longer has a %s %s", state, kind, gone[i].when("after"))
		default:
			risk := ""
			switch from, to := gone[i], come[i]; {
			case !from.constant() || !to.constant():
				risk = "an instance may be due at another time, counted from entering " + state
			case to.Delay.compare(from.Delay) < 0 || kind == "repeat":
				risk = late
			}
			d.add(Changed, come[i].pointer, risk, "the %s of %s comes %s, no longer %s",
				kind, state, come[i].when("after"), gone[i].when("after"))
			d.compare(what(come[i]), gone[i].pointers, come[i].pointers, gone[i].candidates, come[i].candidates)
		}
	}
	if len(d.changes) == before && jsonText(writtenTimers(a)) != jsonText(writtenTimers(b)) {
		d.add(Changed, at, "a timer of an instance in "+state+" is taken for the one that is now in its place", "the timers of %s are in another order", state)
	}
}
