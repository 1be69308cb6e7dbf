package definition

import (
	"encoding/json"
	"time"
)

// Outcome is the status that a final state gives to the instances that reach it.
type Outcome string

// The outcomes.
const (
	Completed Outcome = "completed"
	Failed    Outcome = "failed"
	Cancelled Outcome = "cancelled"
	Expired   Outcome = "expired"
)

// A Definition declares one version of a workflow. Its vocabulary is that of statecharts and of
// XState; guards and assigns are SQL/JSON paths over {context, payload, instance, now}.
type Definition struct {
	// Name is that of the workflow: lower-case letters and digits, with single dashes or underscores
	// between them; see MaxNameLength.
	Name string
	// Version is the number that this version must get when it is registered; 0 takes the next one.
	Version int
	// Description is for people. Like every description it has no effect.
	Description string
	// Initial is the path of the state that an instance starts in.
	Initial string
	// TTL is the lifetime of an instance. Nil: an instance lives until it reaches a final state.
	TTL *TTL
	// RequireVersion makes every event name the version of the instance that it expects. It is the
	// member require_if_match.
	RequireVersion bool
	// ReusableKey is set if the member business_key is "reusable": a business key may be used again once
	// its instance is final. The default is "unique": a key names one instance for as long as the
	// instance exists.
	ReusableKey bool
	// Retention is how long final instances are kept. The latest version's retention holds for the
	// instances of all versions. 0 keeps them for ever.
	Retention time.Duration
	// ContextSchema is a JSON Schema for the context that an instance is created with. Nil: any
	// object.
	ContextSchema json.RawMessage
	// States are those at the top level, by name, which is also their path.
	States map[string]State
}

// TTL is the lifetime of an instance and the state that the instance ends in.
type TTL struct {
	// After is the length of the lifetime, counted from the creation, and Target the path of a final state.
	After  time.Duration
	Target string
	// Sliding: each step starts the lifetime again.
	Sliding bool
}

// State is one state. It is final if Outcome is set, compound if States is set, and atomic
// otherwise. An instance is in an atomic or a final state, whose path names the compound states
// around it: CHECKOUT.PAYMENT.
type State struct {
	Description string
	// Outcome of a final state; empty for any other state. A final state is at the top level and
	// may have an Entry, and nothing else.
	Outcome Outcome
	// States are those within a compound state, by name.
	States map[string]State
	// Initial is the name of the state within that is entered with the compound state.
	Initial string
	// Entry and Exit are assigned when the state is entered and left.
	Entry, Exit Assign
	// On has the candidates of each event. The first candidate whose guard holds is taken; if none
	// holds, the candidates of the compound state around this one are tried.
	On map[string][]Transition
	// Always has the candidates that need no event. They are tried after every step that leads here.
	Always []Transition
	// After has the candidates of timeouts, by the time that an instance has been in the state. Only
	// an atomic state has timeouts.
	After map[time.Duration][]Transition
}

// Transition is one candidate.
type Transition struct {
	Description string
	// Target is the path of a state. A document may also name a state that is within or beside the
	// state that declares the transition, or beside a compound state around it; the nearest state of
	// that name is meant.
	Target string
	// Guard is a SQL/JSON path that must hold for the transition to be taken. Empty: it always holds.
	Guard string
	// Assign changes the context when the transition is taken.
	Assign Assign
	// PayloadSchema is a JSON Schema, which all candidates of an event share. Nil: any object.
	PayloadSchema json.RawMessage
}

// Assign changes the context.
type Assign struct {
	// Paths are SQL/JSON paths, by the name of the member of the context that each of them sets.
	Paths map[string]string
	// Payload merges the payload's top level into the context. Then there are no Paths.
	Payload bool
}

// Limits bound a definition. The zero value has the defaults.
type Limits struct {
	// Bytes of the document. Default 1 MiB.
	Bytes int
	// States of the definition, compound ones included. Default 500.
	States int
}

// MaxNameLength bounds the name of a workflow, in characters. An underscore counts twice. The database has
// the same bound.
const MaxNameLength = 42

// MaxPathLength bounds the path of a state, in characters.
const MaxPathLength = 255
