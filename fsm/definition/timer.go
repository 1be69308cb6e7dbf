package definition

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"
)

// A Timer is a transition that is taken at a time.
type Timer struct {
	// Delay is a constant time, counted from entering the state; of every, the time from one to the next. It is
	// zero if In or At is set.
	Delay Duration
	// In gives such a time, as the text of a duration or as seconds; At gives a point in time. Each is evaluated
	// when the state is entered.
	In, At     Value
	Transition Transition
}

// constant reports whether the timer's delay is constant.
func (t Timer) constant() bool { return t.Delay != Duration{} }

// when says in words when a timer of a kind, after or every, is due.
func (t Timer) when(kind string) string {
	switch {
	case t.constant():
		return kind + " " + t.Delay.String()
	case t.At != nil:
		return "at " + valueText(t.At)
	}
	return kind + " " + valueText(t.In)
}

// minRepeat is the shortest constant time of every, since each time is a step in history.
const minRepeat = time.Second

// timeouts reads the member after: an object from durations to transitions, or an array of transitions that say
// when themselves.
func (d *Draft) timeouts(at string, where place, m map[string]any) []Timer {
	v, given := m["after"]
	if !given {
		return nil
	}
	at += "/after"
	if list, ok := v.([]any); ok {
		return d.timers(at, where, list, timerKind)
	}
	written, ok := v.(map[string]any)
	if !ok {
		d.fault(at, "must be an object from durations to transitions, or an array of transitions that have in or at")
	}
	seen := map[Duration]bool{}
	var timers []Timer
	for _, text := range slices.Sorted(maps.Keys(written)) {
		at := at + Pointer(text)
		delay := d.calendarDuration(at, text)
		if seen[delay] && delay != (Duration{}) {
			d.fault(at, "is the same time as another timeout of this state")
		}
		seen[delay] = true
		for _, t := range d.candidates(at, where, written[text], timeoutKind) {
			timers = append(timers, Timer{Delay: delay, Transition: t})
		}
	}
	slices.SortStableFunc(timers, func(a, b Timer) int { return a.Delay.compare(b.Delay) })
	return timers
}

// repeats reads the member every: a transition, or an array of them.
func (d *Draft) repeats(at string, where place, m map[string]any) []Timer {
	v, given := m["every"]
	if !given {
		return nil
	}
	at += "/every"
	list, several := v.([]any)
	if !several {
		timer, _ := d.timer(at, where, v, repeatKind)
		return []Timer{timer}
	}
	return d.timers(at, where, list, repeatKind)
}

// timers reads an array of transitions that say when they are taken.
func (d *Draft) timers(at string, where place, list []any, kind transitionKind) []Timer {
	if len(list) == 0 {
		d.fault(at, "must have at least one transition")
	}
	var timers []Timer
	taken := map[Duration]bool{}
	varies := false
	for i, v := range list {
		at := fmt.Sprintf("%s/%d", at, i)
		timer, ok := d.timer(at, where, v, kind)
		if ok && timer.constant() {
			if taken[timer.Delay] {
				d.fault(at, "can never be taken, since the transition before it for the same time has no guard")
			}
			taken[timer.Delay] = taken[timer.Delay] || unguarded(v)
		}
		varies = varies || !timer.constant()
		timers = append(timers, timer)
	}
	if !varies && kind == timerKind {
		// This is written in the short form, whose members have no order.
		slices.SortStableFunc(timers, func(a, b Timer) int { return a.Delay.compare(b.Delay) })
	}
	return timers
}

// timer reads a transition that says when it is taken. ok says whether it does.
func (d *Draft) timer(at string, where place, v any, kind transitionKind) (timer Timer, ok bool) {
	m, isObject := v.(map[string]any)
	if !isObject {
		d.fault(at, "must be a transition with the member in, such as {\"in\": \"10m\"}")
		return timer, false
	}
	timer.Transition = d.transition(at, where, m, kind)
	in, hasIn := m["in"]
	point, hasAt := m["at"]
	switch {
	case kind == repeatKind && !hasIn:
		d.fault(at+"/in", "is missing: the time from one to the next, such as 1d")
		return timer, false
	case kind == repeatKind:
		hasAt = false // It is no member of every, which has its fault.
	case hasIn == hasAt:
		d.fault(at, "must have either in, a duration such as 10m, or at, a time")
		return timer, false
	}
	if hasIn && in == nil || hasAt && point == nil {
		d.fault(at, "in and at must not be null")
		return timer, false
	}
	if hasAt {
		timer.At = point
		d.value(at+"/at", point, false)
		d.timeOperand(at+"/at", point)
		return timer, shapeOf(point) == ""
	}
	if text, constant := constantText(in); constant {
		delay := d.calendarDuration(at+"/in", text)
		if kind == repeatKind && delay != (Duration{}) && delay.compare(Duration{Exact: minRepeat}) < 0 {
			d.fault(at+"/in", "must be at least 1s, since each time is a step in history")
		}
		timer.Delay = delay
		return timer, timer.constant()
	}
	timer.In = in
	d.value(at+"/in", in, false)
	d.shape(at+"/in", in, "string", "number")
	if number, ok := in.(json.Number); ok && kind == repeatKind {
		if seconds, err := number.Float64(); err != nil || seconds < minRepeat.Seconds() {
			d.fault(at+"/in", "must be at least 1 second, since each time is a step in history")
		}
	}
	return timer, true
}

// timerNames returns the name of each timer as the engine knows it. Timers of one name are candidates of one timer.
func timerNames(prefix string, timers []Timer) []string {
	names := make([]string, len(timers))
	for i, t := range timers {
		if t.constant() {
			names[i] = prefix + ":" + t.Delay.String()
		} else {
			names[i] = fmt.Sprintf("%s:%d", prefix, i+1)
		}
	}
	return names
}
