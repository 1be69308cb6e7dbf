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
// XState; guards and values read {context, payload, instance, now, event, actor} by SQL/JSON paths.
type Definition struct {
	// Name is that of the workflow: lower-case letters and digits, with single dashes or underscores
	// between them; see MaxNameLength.
	Name string
	// Version is the number that this version must get when it is registered; 0 takes the next one.
	Version int
	// Description is for people. Like every description it has no effect.
	Description string
	// Initial is the path of the state that an instance starts in, and InitialAssign what its creation assigns.
	Initial       string
	InitialAssign Assign
	// Timezone is the one in which months and years of timers are counted. Empty: UTC.
	Timezone string
	// TTL is the lifetime of an instance. Nil: an instance lives until it reaches a final state.
	TTL *TTL
	// Cancel is the path of the state that a cancelled instance gets into. Empty: instances cannot be cancelled.
	Cancel string
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
	// ContextDefault is merged under the context that a creation sends, at the top level. Nil: nothing is.
	ContextDefault map[string]any
	// Search has what instances are found by, by name; see MaxAttributes. The latest version's holds for the instances of
	// all versions.
	Search map[string]Attribute
	// Invariant must hold after every step. Nil always holds.
	Invariant Guard
	// Allow names the warnings that are silenced; those of a state or a transition are silenced there.
	Allow []string
	// Schemas are copies of the schemas of the deployment that the other schemas refer to, by the references to them,
	// such as "pawl:address". Nil: they refer to none.
	Schemas map[string]json.RawMessage
	// States are those at the top level, by name, which is also their path.
	States map[string]State
}

// TTL is the lifetime of an instance and the state that the instance ends in.
type TTL struct {
	// After is the length of the lifetime, counted from the creation, and Target the path of a final state.
	After  time.Duration
	Target string
	// Sliding: each command starts the lifetime again.
	Sliding bool
}

// State is one state. It is final if Final is set, compound if States is set, and atomic
// otherwise. An instance is in an atomic or a final state, whose path names the compound states
// around it: CHECKOUT.PAYMENT.
type State struct {
	Description string
	// Final: nothing leaves the state but the Done of the compound state around it. A final state may have an
	// Entry and an Invariant, and no transitions.
	Final bool
	// Outcome of a final state at the top level; empty for any other state.
	Outcome Outcome
	// States are those within a compound state, by name.
	States map[string]State
	// Initial is the name of the state within that is entered with the compound state, and InitialAssign what is
	// assigned then.
	Initial       string
	InitialAssign Assign
	// Entry and Exit are assigned when the state is entered and left.
	Entry, Exit Assign
	// On has the candidates of each event. The first candidate whose guard holds is taken; if none
	// holds, the candidates of the compound state around this one are tried. A name that is * or ends with .* is
	// a pattern, for the events that neither this state nor one around it names more exactly.
	On map[string][]Transition
	// Always has the candidates that need no event. They are tried after every step that leads here.
	Always []Transition
	// After has the timeouts, in the order in which they are written; those that all have a constant time are
	// sorted by it. An atomic state inherits the timeouts of the compound states around it.
	After []Timer
	// Every has what is repeated while an instance is in the state.
	Every []Timer
	// Invoke has the tasks of an atomic state, by name. They start when a command ends in the state.
	Invoke map[string]Task
	// Compensate of an atomic state makes it an undoing one: while an instance is in it, the compensable steps that the
	// instance has made are undone. Nil for any other state.
	Compensate *Undoing
	// Done of a compound state has the candidates that are tried when a final state directly within is entered. Done
	// of an undoing state has those that are tried when all is undone, and Error those when something could not be
	// undone. The last of each has no guard.
	Done, Error []Transition
	// Invariant must hold after every step that leads here, or to a state within. Nil always holds.
	Invariant Guard
	// Protected: overrides, cancels and instance migrations neither leave nor enter the state, or one within.
	Protected bool
	// StuckAfter of an atomic state is how long an instance may be in it before it counts as slow; 0 for what the tenant's
	// own instances took. The latest version that has the state counts for all versions.
	StuckAfter time.Duration
	// OnStuck of an atomic state is what is done about an instance that is stuck in it; nil for nothing.
	OnStuck *Healing
	Allow   []string
}

// Resume says how a transition goes on in a compound state.
type Resume string

// How a transition goes on in the compound state that it leads to: as if it was entered anew, in the atomic state
// that was left last, and so with what was left of the times of its timers.
const (
	NoResume     Resume = ""
	ResumeState  Resume = "true"
	ResumeTimers Resume = "timers"
)

// Transition is one candidate.
type Transition struct {
	Description string
	// Target is the path of a state. A document may also name a state that is within or beside the
	// state that declares the transition, or beside a compound state around it; the nearest state of
	// that name is meant. Empty: the transition is internal, and the instance stays where it is.
	Target string
	// Internal of a transition with a target: the target is within the state that declares the transition, and
	// that state is not left.
	Internal bool
	// Resume goes on in the state within Target that was left last.
	Resume Resume
	// Rearm starts the timers of the declaring state anew. The transition has no target.
	Rearm bool
	// Guard must hold for the transition to be taken. Nil: it always holds.
	Guard Guard
	// Assign changes the context when the transition is taken.
	Assign Assign
	// PayloadSchema is a JSON Schema, which all candidates of an event share. Nil: any object.
	PayloadSchema json.RawMessage
	// Compensate undoes what an event that takes this transition stands for. Only transitions in On have one.
	Compensate *Task
	Allow      []string
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
