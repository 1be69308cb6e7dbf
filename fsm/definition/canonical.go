package definition

import (
	"encoding/json"
)

// MarshalJSON writes the canonical form: shorthands are written out, targets are paths, durations are
// written as by FormatDuration, members have a fixed order. Defaults are left out, except the outcome of
// a final state. The version is left out too: it is a number for the content, and no part of it.
func (d *Definition) MarshalJSON() ([]byte, error) {
	type ttl struct {
		After   string `json:"after"`
		Target  string `json:"target"`
		Sliding bool   `json:"sliding,omitempty"`
	}
	document := struct {
		Name           string                  `json:"name"`
		Description    string                  `json:"description,omitempty"`
		Initial        string                  `json:"initial"`
		TTL            *ttl                    `json:"ttl,omitempty"`
		RequireVersion bool                    `json:"require_if_match,omitempty"`
		BusinessKey    string                  `json:"business_key,omitempty"`
		Retention      string                  `json:"retention,omitempty"`
		ContextSchema  json.RawMessage         `json:"context_schema,omitempty"`
		States         map[string]writtenState `json:"states"`
	}{
		Name: d.Name, Description: d.Description, Initial: d.Initial, RequireVersion: d.RequireVersion,
		ContextSchema: d.ContextSchema, States: writtenStates(d.States),
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
	Initial     string                         `json:"initial,omitempty"`
	Entry       writtenBlock                   `json:"entry,omitzero"`
	Exit        writtenBlock                   `json:"exit,omitzero"`
	On          map[string][]writtenTransition `json:"on,omitempty"`
	Always      []writtenTransition            `json:"always,omitempty"`
	After       map[string][]writtenTransition `json:"after,omitempty"`
	States      map[string]writtenState        `json:"states,omitempty"`
}

type writtenBlock struct {
	Assign any `json:"assign,omitempty"`
}

type writtenTransition struct {
	Description   string          `json:"description,omitempty"`
	Target        string          `json:"target"`
	Guard         string          `json:"guard,omitempty"`
	Assign        any             `json:"assign,omitempty"`
	PayloadSchema json.RawMessage `json:"payload_schema,omitempty"`
}

func writtenStates(states map[string]State) map[string]writtenState {
	out := make(map[string]writtenState, len(states))
	for name, s := range states {
		w := writtenState{
			Description: s.Description, Outcome: s.Outcome, Initial: s.Initial,
			Entry: writtenBlock{s.Entry.written()}, Exit: writtenBlock{s.Exit.written()},
			Always: writtenTransitions(s.Always), States: writtenStates(s.States),
		}
		if s.Outcome != "" {
			w.Type = "final"
		}
		if len(s.On) > 0 {
			w.On = make(map[string][]writtenTransition, len(s.On))
			for event, candidates := range s.On {
				w.On[event] = writtenTransitions(candidates)
			}
		}
		if len(s.After) > 0 {
			w.After = make(map[string][]writtenTransition, len(s.After))
			for delay, candidates := range s.After {
				w.After[FormatDuration(delay)] = writtenTransitions(candidates)
			}
		}
		out[name] = w
	}
	return out
}

func writtenTransitions(candidates []Transition) []writtenTransition {
	list := make([]writtenTransition, len(candidates))
	for i, t := range candidates {
		list[i] = writtenTransition{
			Description: t.Description, Target: t.Target, Guard: t.Guard, Assign: t.Assign.written(),
			PayloadSchema: t.PayloadSchema,
		}
	}
	return list
}

// written returns the assign as it is written in JSON, or nil if there is none.
func (a Assign) written() any {
	switch {
	case a.Payload:
		return "*"
	case len(a.Paths) > 0:
		return a.Paths
	}
	return nil
}
