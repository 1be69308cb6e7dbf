package live

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/fsm"
)

// Filter chooses messages. A zero member chooses all of them.
type Filter struct {
	// Workflows, Events and States each choose the messages with one of the names. A state is the one
	// that the step led to; the name of a compound state stands for all states within it.
	Workflows, Events, States []string
	// TerminalOnly chooses the steps that led to a final state.
	TerminalOnly bool
}

func (f Filter) chooses(h *queries.History) bool {
	return (len(f.Workflows) == 0 || slices.Contains(f.Workflows, h.Workflow)) &&
		(len(f.Events) == 0 || h.Event != nil && slices.Contains(f.Events, *h.Event)) &&
		(len(f.States) == 0 || slices.ContainsFunc(f.States, func(state string) bool {
			return h.ToState == state || strings.HasPrefix(h.ToState, state+".")
		})) &&
		(!f.TerminalOnly || fsm.Status(h.Status) != fsm.Active)
}

// A Message is a step as a stream shows it.
type Message struct {
	// ID is where a stream goes on behind the message.
	ID         string
	InstanceID uuid.UUID
	Workflow   string
	fsm.Step
}

// A Stream reads the steps of an instance, or of a tenant, as they are committed. It keeps nothing but
// its place; see the package's comment. It is for one goroutine at a time.
type Stream struct {
	hub    *Hub
	waiter *Waiter
	// next reads a page, and returns whether there may be another one at once.
	next func(ctx context.Context) (messages []Message, more bool, err error)
	// id is the place of the stream.
	id func() string
	// ended: no step is left to come.
	ended bool
}

// C is signalled when there may be something to read.
func (s *Stream) C() <-chan struct{} { return s.waiter.C() }

// ID is the place of the stream: the id of the last message, or a later place to go on from.
func (s *Stream) ID() string { return s.id() }

// Next reads what has been committed since, up to a page, and does not wait. more says that another page
// may be there already.
// Kinds: EventIDTooOld, InstanceNotFound, Unavailable.
func (s *Stream) Next(ctx context.Context) (messages []Message, more bool, err error) {
	return s.next(ctx)
}

// Ended reports that no step is left to come: the instance is final, and its last step was read. A new
// stream has ended if no step behind its id is chosen by the filter.
func (s *Stream) Ended() bool { return s.ended }

// Alone is how long to wait for C at most before calling Next: an hour, or HubConfig.Poll while the hub
// does not run.
func (s *Stream) Alone() time.Duration {
	if s.hub.running.Load() {
		return time.Hour
	}
	return s.hub.config.Poll
}

// Close ends the stream.
func (s *Stream) Close() { s.waiter.Close() }

// FromStart is the id for a stream from the beginning. No message has it.
const FromStart = "0"

// LastID is the Fault.Parameter of an id that a stream refuses.
const LastID = "last_id"

func notOfStream(format string, args ...any) *fsm.Error {
	return &fsm.Error{Kind: fsm.Malformed, Message: "the event id does not belong to this stream", Faults: []fsm.Fault{{
		Parameter: LastID, Detail: fmt.Sprintf(format, args...),
	}}}
}

var errTooOld = &fsm.Error{
	Kind:    fsm.EventIDTooOld,
	Message: "what follows the event id is no longer all there, or is too much; read the instances and begin anew",
}

// tooOld gives every EventIDTooOld the message of errTooOld, also that of the engine.
func tooOld(err error) error {
	if errors.Is(err, fsm.EventIDTooOld) {
		return errTooOld
	}
	return err
}

func messageOf(h queries.History, id string) Message {
	return Message{ID: id, InstanceID: h.InstanceID, Workflow: h.Workflow, Step: fsm.StepOf(h)}
}
