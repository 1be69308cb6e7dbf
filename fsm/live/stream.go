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

func (f Filter) chooses(h *queries.Message) bool {
	return (len(f.Workflows) == 0 || slices.Contains(f.Workflows, h.Workflow)) &&
		(len(f.Events) == 0 || h.Event != nil && slices.Contains(f.Events, *h.Event)) &&
		(len(f.States) == 0 || slices.ContainsFunc(f.States, func(state string) bool {
			return h.ToState == state || strings.HasPrefix(h.ToState, state+".")
		})) &&
		(!f.TerminalOnly || fsm.Status(h.Status) != fsm.Active)
}

// A Message is a step as a stream shows it.
type Message struct {
	// ID is the place in the stream behind the message. In an instance's stream it is the id of the
	// CloudEvent, too.
	ID string
	// Tenant, InstanceID and Workflow are those of the instance that made the step.
	Tenant     string
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
	// ended reports whether no step is left to come.
	ended func() bool
}

// C returns a channel that is signalled when there may be something to read.
func (s *Stream) C() <-chan struct{} { return s.waiter.C() }

// ID returns the place of the stream: the id of the last message, or a later place.
func (s *Stream) ID() string { return s.id() }

// Next reads a page of what has been committed behind the place of the stream, and moves the place. It does
// not wait. more says that another page may be there already.
//
// Kinds: EventIDTooOld, StepsLost, UnknownEventID, Unavailable.
func (s *Stream) Next(ctx context.Context) (messages []Message, more bool, err error) {
	return s.next(ctx)
}

// Ended reports that no message is left to come: the instance is final, and its last step was read. A new
// stream may have ended too, if the filter chooses no step behind its id. A tenant's stream never ends.
func (s *Stream) Ended() bool { return s.ended() }

// Alone returns for how long a reader may rely on C alone. After that time it must call Next without a
// signal. It is an hour, or HubConfig.Poll while the hub does not run.
func (s *Stream) Alone() time.Duration {
	if s.hub.running.Load() {
		return time.Hour
	}
	return s.hub.config.Poll
}

// Close ends the stream.
func (s *Stream) Close() { s.waiter.Close() }

// FromStart is the id that stands for the beginning of a stream. No message has it.
const FromStart = "0"

// LastID is the fsm.Fault.Parameter for an id that a stream refuses.
const LastID = "last_id"

func notOfStream(format string, args ...any) *fsm.Error {
	return &fsm.Error{Kind: fsm.Malformed, Message: "the event id does not belong to this stream", Faults: []fsm.Fault{{
		Parameter: LastID, Detail: fmt.Sprintf(format, args...),
	}}}
}

var errTooOld = &fsm.Error{
	Kind:    fsm.EventIDTooOld,
	Message: "what follows the event id is no longer all there; read the instances and begin anew",
}

// tooOld gives every error of kind EventIDTooOld the message of errTooOld, also one that the engine raised.
func tooOld(err error) error {
	if errors.Is(err, fsm.EventIDTooOld) {
		return errTooOld
	}
	return err
}

// The states of a place, as pawl.log_place and pawl.stream_place return them. There are two more, which placeError
// tells apart: 'unknown' and 'unready'.
const (
	known   = "known"
	lost    = "lost"
	pending = "pending"
)

// placeError is the error of a place that the log has not been at, if it is one.
func placeError(state string) error {
	switch state {
	case "unknown":
		return &fsm.Error{Kind: fsm.UnknownEventID, Message: "the log has not been at the event id; it may be of another deployment"}
	case "unready":
		return &fsm.Error{Kind: fsm.Unavailable, Message: "the database has come to another server, and the log has not begun its epoch there yet; try again"}
	}
	return nil
}

// stepsLost is the error of a place beyond the end of what is left of its epoch.
func stepsLost(lastCommon string) error {
	return &fsm.Error{
		Kind:       fsm.StepsLost,
		Message:    "the steps behind " + lastCommon + " are lost: the database has gone on from a copy without them",
		LastCommon: lastCommon,
	}
}

// maxSettle is how long a stream that begins now waits until the steps so far have positions.
const maxSettle = 2 * time.Second

// settle calls settled until it returns true. After maxSettle it gives up: no sequencer seems to run, and the stream may
// show steps that were committed before it was opened.
func (s *Service) settle(ctx context.Context, waiter *Waiter, settled func() (bool, error)) error {
	for end := time.Now().Add(maxSettle); ; {
		done, err := settled()
		if done || err != nil || time.Now().After(end) {
			return err
		}
		s.hub.wait(ctx, waiter, minPoll)
		if err := ctx.Err(); err != nil {
			return &fsm.Error{Kind: fsm.Unavailable, Message: "the request has ended", Cause: err}
		}
	}
}

func messageOf(m queries.Message, id string) Message {
	return Message{ID: id, Tenant: m.TenantID, InstanceID: m.InstanceID, Workflow: m.Workflow, Step: fsm.StepOfMessage(m)}
}
