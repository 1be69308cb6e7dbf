package definition

import (
	"encoding/json"
)

// MarshalJSON writes the canonical form: shorthands are written out, targets are paths, durations are
// written as by FormatDuration and Duration.String, members have a fixed order. Defaults are left out, except the
// outcome of a final state at the top level. The version is left out too: it is a number for the content, and no
// part of it.
func (d *Definition) MarshalJSON() ([]byte, error) {
	type ttl struct {
		After   string `json:"after"`
		Target  string `json:"target"`
		Sliding bool   `json:"sliding,omitempty"`
	}
	document := struct {
		Name           string                     `json:"name"`
		Description    string                     `json:"description,omitempty"`
		Initial        any                        `json:"initial"`
		Timezone       string                     `json:"timezone,omitempty"`
		TTL            *ttl                       `json:"ttl,omitempty"`
		Cancel         string                     `json:"cancel,omitempty"`
		RequireVersion bool                       `json:"require_if_match,omitempty"`
		BusinessKey    string                     `json:"business_key,omitempty"`
		Retention      string                     `json:"retention,omitempty"`
		ContextSchema  json.RawMessage            `json:"context_schema,omitempty"`
		ContextDefault map[string]any             `json:"context_default,omitempty"`
		Search         map[string]any             `json:"search,omitempty"`
		Invariant      Guard                      `json:"invariant,omitempty"`
		States         map[string]writtenState    `json:"states"`
		Schemas        map[string]json.RawMessage `json:"schemas,omitempty"`
		Allow          []string                   `json:"x-allow,omitempty"`
	}{
		Name: d.Name, Description: d.Description, Initial: writtenInitial(d.Initial, d.InitialAssign), Timezone: d.Timezone,
		Cancel: d.Cancel, RequireVersion: d.RequireVersion, ContextSchema: d.ContextSchema, ContextDefault: d.ContextDefault,
		Search: writtenSearch(d.Search), Invariant: d.Invariant, States: writtenStates(d.States), Schemas: d.Schemas, Allow: d.Allow,
	}
	if d.TTL != nil {
		document.TTL = &ttl{After: FormatDuration(d.TTL.After), Target: d.TTL.Target, Sliding: d.TTL.Sliding}
	}
	if d.ReusableKey {
		document.BusinessKey = "reusable"
	}
	if d.Retention > 0 {
		document.Retention = FormatDuration(d.Retention)
	}
	return json.Marshal(document)
}

type writtenState struct {
	Description string                         `json:"description,omitempty"`
	Type        string                         `json:"type,omitempty"`
	Outcome     Outcome                        `json:"outcome,omitempty"`
	Initial     any                            `json:"initial,omitempty"`
	Entry       writtenBlock                   `json:"entry,omitzero"`
	Exit        writtenBlock                   `json:"exit,omitzero"`
	On          map[string][]writtenTransition `json:"on,omitempty"`
	Always      []writtenTransition            `json:"always,omitempty"`
	After       any                            `json:"after,omitempty"`
	Every       []writtenTransition            `json:"every,omitempty"`
	Invoke      map[string]*writtenTask        `json:"invoke,omitempty"`
	Compensate  *writtenUndoing                `json:"compensate,omitempty"`
	Done        []writtenTransition            `json:"done,omitempty"`
	Error       []writtenTransition            `json:"error,omitempty"`
	Invariant   Guard                          `json:"invariant,omitempty"`
	Protected   bool                           `json:"protected,omitempty"`
	StuckAfter  string                         `json:"stuck_after,omitempty"`
	OnStuck     *writtenHealing                `json:"on_stuck,omitempty"`
	States      map[string]writtenState        `json:"states,omitempty"`
	Allow       []string                       `json:"x-allow,omitempty"`
}

type writtenHealing struct {
	Event     string `json:"event,omitempty"`
	Reconcile string `json:"reconcile,omitempty"`
	Retry     string `json:"retry,omitempty"`
	Max       int    `json:"max,omitempty"`
}

type writtenBlock struct {
	Assign any `json:"assign,omitempty"`
}

type writtenTransition struct {
	Description   string          `json:"description,omitempty"`
	In            Value           `json:"in,omitempty"`
	At            Value           `json:"at,omitempty"`
	Target        string          `json:"target,omitempty"`
	Internal      bool            `json:"internal,omitempty"`
	Resume        any             `json:"resume,omitempty"`
	Rearm         bool            `json:"rearm,omitempty"`
	Guard         Guard           `json:"guard,omitempty"`
	Assign        any             `json:"assign,omitempty"`
	PayloadSchema json.RawMessage `json:"payload_schema,omitempty"`
	Compensate    *writtenTask    `json:"compensate,omitempty"`
	Allow         []string        `json:"x-allow,omitempty"`
}

func writtenStates(states map[string]State) map[string]writtenState {
	out := make(map[string]writtenState, len(states))
	for name, s := range states {
		w := writtenState{
			Description: s.Description, Outcome: s.Outcome, Initial: writtenInitial(s.Initial, s.InitialAssign),
			Entry: writtenBlock{s.Entry.written()}, Exit: writtenBlock{s.Exit.written()},
			Always: writtenTransitions(s.Always), After: writtenTimeouts(s.After), Every: writtenTimers(s.Every),
			Done: writtenTransitions(s.Done), Error: writtenTransitions(s.Error), Compensate: s.Compensate.written(), Invariant: s.Invariant, Protected: s.Protected, OnStuck: s.OnStuck.written(), States: writtenStates(s.States), Allow: s.Allow,
		}
		if s.Final {
			w.Type = "final"
		}
		if s.StuckAfter > 0 {
			w.StuckAfter = FormatDuration(s.StuckAfter)
		}
		if len(s.On) > 0 {
			w.On = make(map[string][]writtenTransition, len(s.On))
			for event, candidates := range s.On {
				w.On[event] = writtenTransitions(candidates)
			}
		}
		if len(s.Invoke) > 0 {
			w.Invoke = make(map[string]*writtenTask, len(s.Invoke))
			for task, t := range s.Invoke {
				w.Invoke[task] = t.written()
			}
		}
		out[name] = w
	}
	return out
}

// writtenInitial returns the member initial, or nil if there is none.
func writtenInitial(name string, assign Assign) any {
	switch {
	case !assign.empty():
		return struct {
			Target string `json:"target"`
			Assign any    `json:"assign"`
		}{name, assign.written()}
	case name != "":
		return name
	}
	return nil
}

func writtenTransitions(candidates []Transition) []writtenTransition {
	list := make([]writtenTransition, len(candidates))
	for i, t := range candidates {
		list[i] = t.written()
	}
	return list
}

func (t Transition) written() writtenTransition {
	w := writtenTransition{
		Description: t.Description, Target: t.Target, Internal: t.Internal, Rearm: t.Rearm, Guard: t.Guard,
		Assign: t.Assign.written(), PayloadSchema: t.PayloadSchema, Compensate: t.Compensate.written(), Allow: t.Allow,
	}
	switch t.Resume {
	case ResumeState:
		w.Resume = true
	case ResumeTimers:
		w.Resume = "timers"
	}
	return w
}

// writtenTimeouts returns the member after, or nil if there is none: an object if all times are constant.
func writtenTimeouts(timers []Timer) any {
	if len(timers) == 0 {
		return nil
	}
	byTime := map[string][]writtenTransition{}
	for _, t := range timers {
		if !t.constant() {
			return writtenTimers(timers)
		}
		text := t.Delay.String()
		byTime[text] = append(byTime[text], t.Transition.written())
	}
	return byTime
}

// writtenTimers writes timers as an array of transitions that say when they are taken.
func writtenTimers(timers []Timer) []writtenTransition {
	list := make([]writtenTransition, len(timers))
	for i, t := range timers {
		list[i] = t.Transition.written()
		list[i].In, list[i].At = t.In, t.At
		if t.constant() {
			list[i].In = t.Delay.String()
		}
	}
	return list
}

// written returns the assign as it is written in JSON, or nil if there is none.
func (a Assign) written() any {
	switch {
	case a.empty():
		return nil
	case a.unbounded() && !a.Trusted && len(a.Values) == 0:
		return "*"
	}
	members := make(map[string]any, len(a.Values)+1)
	for name, v := range a.Values {
		members[name] = v
	}
	if a.Payload {
		members["*"] = true
		if a.Members != nil {
			members["*"] = a.Members
		}
	}
	if a.Trusted {
		members["trusted"] = true
	}
	return members
}
