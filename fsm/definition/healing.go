package definition

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"
)

// A Healing is what is done about an instance that is stuck in a state. One of Event, Reconcile and Retry is set.
type Healing struct {
	// Event is fired, with an empty payload.
	Event string
	// Reconcile names a task of the state: what became of its call is asked again.
	Reconcile string
	// Retry names a task of the state, which is tried again if it ended as error or unknown and made no step.
	Retry string
	// Max bounds the attempts since the last step that was not one of them: 1 to 100.
	Max int
}

// DefaultHealings is the Max of a Healing that has none.
const DefaultHealings = 3

// maxHealings is the largest Max.
const maxHealings = 100

// healing reads what is done about an instance that is stuck.
func (d *Draft) healing(at string, v any) *Healing {
	m, ok := d.object(at, v)
	if !ok {
		return nil
	}
	d.members(at, m, "event", "reconcile", "retry", "max")
	h := Healing{Max: DefaultHealings}
	if v, given := m["max"]; given {
		number, _ := v.(json.Number)
		n, err := number.Int64()
		if err != nil || n < 1 || n > maxHealings {
			d.fault(at+"/max", "must be a whole number from 1 to %d: how many attempts there are", maxHealings)
		}
		h.Max = int(n)
	}
	given := 0
	for _, act := range []struct {
		member string
		name   *string
	}{{"event", &h.Event}, {"reconcile", &h.Reconcile}, {"retry", &h.Retry}} {
		if v, written := m[act.member]; written {
			given++
			*act.name = d.text(at+"/"+act.member, v)
		}
	}
	if given != 1 {
		d.fault(at, "must have one of event, reconcile and retry: what is done about an instance that is stuck")
		return nil
	}
	return &h
}

// heals checks what is done about an instance that is stuck in a state.
func (d *Draft) heals(path string, s State, flat FlatState) {
	h := s.OnStuck
	if h == nil {
		return
	}
	at := d.pointers[path] + "/on_stuck"
	if h.Event != "" {
		d.nudge(at+"/event", path, h.Event, flat)
		return
	}
	member, name := "retry", h.Retry
	if h.Reconcile != "" {
		member, name = "reconcile", h.Reconcile
	}
	if name == "" {
		return // It has its fault.
	}
	at += "/" + member
	task, known := s.Invoke[name]
	switch {
	case !known:
		d.fault(at, "%s has no task %q%s", path, name, didYouMean("", name, slices.Collect(maps.Keys(s.Invoke))))
	case member == "reconcile" && task.Reconcile == nil:
		d.fault(at, "the task %s has no reconcile, which says how to ask what became of it: add one, or retry the task", name)
	}
}

// nudge checks an event that is fired at an instance that is stuck.
func (d *Draft) nudge(at, path, event string, flat FlatState) {
	def := &d.Definition
	var accepted []string
	var taking FlatEvent
	var always bool
	for _, e := range flat.Events {
		always = always || e.Name == alwaysEvent
		if e.Timer != nil || strings.Contains(e.Name, ":") {
			continue // The engine's own.
		}
		accepted = append(accepted, e.Name)
		if exactness(e.Name, event) > exactness(taking.Name, event) {
			taking = e
		}
	}
	candidates := make([]Transition, len(taking.Candidates))
	for i, c := range taking.Candidates {
		candidates[i] = c.Transition
	}
	_, schema := payloadSchema("", candidates)
	stays := func(t FlatTransition) bool { return t.Stays && !t.Rearm }
	switch {
	case !identifier.MatchString(event):
		d.fault(at, "must name one event: a letter followed by up to 63 letters, digits, dots, dashes or underscores")
	case taking.Name == "" && !def.accepts(event):
		d.fault(at, "no state accepts %q%s", event, didYouMean("", event, def.events()))
	case taking.Name == "":
		d.fault(at, "%s does not accept %q%s", path, event, didYouMean("", event, accepted))
	case def.protects(path):
		d.fault(at, "is never fired: nothing but callers' events and timers leaves a protected state")
	case d.schemas[string(schema)].refusesEmpty:
		d.fault(at, "is fired with the payload {}, which does not fit the payload_schema of %q", event)
	case !slices.ContainsFunc(taking.Candidates, func(t FlatTransition) bool { return !stays(t) }) && !always:
		d.warn("nudge-stays", at, "neither leaves nor enters a state, so that the instance is as stuck as before")
	}
}

// written returns the healing as it is written in JSON, or nil if there is none.
func (h *Healing) written() *writtenHealing {
	if h == nil {
		return nil
	}
	w := writtenHealing{Event: h.Event, Reconcile: h.Reconcile, Retry: h.Retry}
	if h.Max != DefaultHealings {
		w.Max = h.Max
	}
	return &w
}

// String says what is done, for people.
func (h *Healing) String() string {
	switch {
	case h.Event != "":
		return "fires " + h.Event
	case h.Reconcile != "":
		return "reconciles " + h.Reconcile
	}
	return "retries " + h.Retry
}
