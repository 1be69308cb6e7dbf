package fsm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/puddle/v2"
)

// A Kind says what went wrong, so that callers can write errors.Is(err, fsm.GuardRejected).
// What every error of this package comes to is one of these.
type Kind int

const (
	// Internal is anything that nobody foresaw.
	Internal Kind = iota
	// Malformed is a request that makes no sense whatever the state of the database:
	// JSON that is not strict, a parameter out of its range. See Error.Faults.
	Malformed
	// KeyInvalid is an idempotency key that is not 1 to 255 visible ASCII characters.
	KeyInvalid
	// KeyReuse is an idempotency key that was used for another request.
	KeyReuse
	// WorkflowNotFound and InstanceNotFound are what they say, for this tenant. The
	// latter also means a version or a time at which the instance did not exist.
	WorkflowNotFound
	InstanceNotFound
	// TransitionNotAllowed: the state has no transition for the event, or is final.
	TransitionNotAllowed
	// GuardRejected: there are transitions, but no guard of theirs holds.
	GuardRejected
	// GuardError: a guard or an assign raises, although evaluated leniently, or takes
	// longer than the statement timeout.
	GuardError
	// InstanceExists: another instance has the business key. See Error.InstanceID.
	InstanceExists
	// WorkflowConflict: the definition names a version that is not the next.
	WorkflowConflict
	// VersionMismatch: the instance is not at an expected version.
	VersionMismatch
	// PreconditionRequired: the workflow wants every event to expect a version.
	PreconditionRequired
	// TooLarge: a context, payload or definition is over its limit.
	TooLarge
	// InvalidDefinition, InvalidContext and InvalidPayload come with every fault at once.
	InvalidDefinition
	InvalidContext
	InvalidPayload
	// UnknownEvent: no state of the workflow has the event.
	UnknownEvent
	// EventIDTooOld: what follows an event's id is no longer all there, or is too much.
	EventIDTooOld
	// NotFound: the tenant has no such subscription or delivery.
	NotFound
	// DeliveryConflict: a delivery, or its subscription, is not in the state that was asked for.
	DeliveryConflict
	// CallbackSecretRequired: there is nothing to sign a callback with.
	CallbackSecretRequired
	// Unavailable: the database is away or busy, or the queue is full. Try again.
	Unavailable

	kindCount
)

var kindNames = [kindCount]string{
	"internal error", "malformed request", "invalid idempotency key", "idempotency key reused",
	"workflow not found", "instance not found", "transition not allowed", "guard rejected", "guard error",
	"instance exists", "workflow conflict", "version mismatch", "precondition required", "too large",
	"invalid definition", "invalid context", "invalid payload", "unknown event", "event id too old",
	"not found", "delivery conflict", "callback secret required", "unavailable",
}

// Kinds returns every kind, for tables that must be total.
func Kinds() []Kind {
	kinds := make([]Kind, kindCount)
	for i := range kinds {
		kinds[i] = Kind(i)
	}
	return kinds
}

// Error makes a Kind a target for errors.Is.
func (k Kind) Error() string { return kindNames[k] }

// Fault is one of the things that are wrong with a document.
type Fault struct {
	// Pointer says where, as a JSON Pointer (RFC 6901) into the document.
	Pointer string
	// Parameter says which parameter, where there is no document.
	Parameter string
	// Detail says what is wrong there, and what would be right.
	Detail string
}

// Error is the error type of this package. Which members are set depends on the kind.
type Error struct {
	Kind Kind
	// Message is fit for a client: it has no SQL and no path.
	Message string
	// Faults of a Malformed, InvalidDefinition, InvalidContext or InvalidPayload.
	Faults []Fault
	// Refusal is set where the instance was found and refuses.
	Refusal *Refusal
	// InstanceID of InstanceExists.
	InstanceID uuid.UUID
	// Replayed: the refusal was decided before, for the same idempotency key.
	Replayed bool
	// cause is for logs, never for clients.
	cause error
}

// Refusal is what a caller needs to go on after an instance refused.
type Refusal struct {
	Event         string
	State         string
	Status        Status
	Version       int64
	AllowedEvents []string
	Guards        []string // Of GuardRejected: those tried, in order.
	Expected      string   // Of VersionMismatch: as ETags.
}

func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Kind.Error())
	if e.Message != "" {
		b.WriteString(": " + e.Message)
	}
	for i, f := range e.Faults {
		sep := "; "
		if i == 0 {
			sep = ": "
		}
		b.WriteString(sep + f.Pointer + f.Parameter + ": " + f.Detail)
	}
	if e.cause != nil {
		b.WriteString(": " + e.cause.Error())
	}
	return b.String()
}

// Is reports whether the target is this error's Kind.
func (e *Error) Is(target error) bool {
	k, ok := target.(Kind)
	return ok && k == e.Kind
}

func (e *Error) Unwrap() error { return e.cause }

func errorf(k Kind, format string, args ...any) *Error {
	return &Error{Kind: k, Message: fmt.Sprintf(format, args...)}
}

// AsError returns err as an *Error; one that nobody made such is Internal, or
// Unavailable if it comes from a lost connection or a context that ended.
func AsError(err error) *Error {
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	return fromDatabase(err)
}

// fromDatabase is the one place where what Postgres says becomes a Kind.
func fromDatabase(err error) *Error {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	if !ok {
		if isConnectionError(err) {
			return &Error{Kind: Unavailable, Message: "the database did not answer; try again", cause: err}
		}
		return &Error{Kind: Internal, cause: err}
	}
	e := &Error{Kind: Internal, cause: err}
	switch {
	case pg.Code == "PW409":
		e.Kind, e.Message = WorkflowConflict, pg.Message
	case pg.Code == "PW410":
		e.Kind, e.Message = EventIDTooOld, errTooOld.Message
	case pg.Code == "PW422":
		e.Kind, e.Message = InvalidDefinition, pg.Message
	case isRetryable(err), isConnectionError(err):
		e.Kind, e.Message = Unavailable, "the database is busy; try again"
	case pg.Code == lockNotAvailable, pg.Code == queryCanceled:
		e.Kind, e.Message = Unavailable, "another transaction holds what this one needs; try again"
	}
	var detail struct {
		Version int64 `json:"version"`
	}
	if e.Kind == WorkflowConflict && json.Unmarshal([]byte(pg.Detail), &detail) == nil {
		e.Refusal = &Refusal{Version: detail.Version}
	}
	return e
}

// SQLSTATEs that are told apart.
const (
	serializationFailure = "40001"
	deadlockDetected     = "40P01"
	lockNotAvailable     = "55P03"
	queryCanceled        = "57014"
)

// isGuardFailure says whether the error is one that a read can only have from a guard or
// an assign: it raised, or it ran into the statement timeout. Evaluated leniently, a path
// still raises for a variable that is not there (42704), a time without a zone compared
// with one that has a zone (0A000), a bad template for a time (22), or a result too large
// (54).
func isGuardFailure(err error) bool {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	return ok && (pg.Code == queryCanceled || pg.Code == "42704" || pg.Code == "0A000" ||
		strings.HasPrefix(pg.Code, "22") || strings.HasPrefix(pg.Code, "54"))
}

// isRetryable says whether the same call may simply be made again.
func isRetryable(err error) bool {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	return ok && (pg.Code == serializationFailure || pg.Code == deadlockDetected)
}

// isConnectionError says whether the server was not reached, went away, or has no room:
// insufficient resources (53), operator intervention (57P), connection exceptions (08).
func isConnectionError(err error) bool {
	if _, ok := errors.AsType[*pgconn.ConnectError](err); ok {
		return true
	}
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok {
		return strings.HasPrefix(pg.Code, "08") || strings.HasPrefix(pg.Code, "53") || strings.HasPrefix(pg.Code, "57P")
	}
	if _, ok := errors.AsType[net.Error](err); ok {
		return true
	}
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) || isClosed(err)
}

// isLost says whether the error took the connection with it.
func isLost(err error) bool {
	if _, ok := errors.AsType[*pgconn.ConnectError](err); ok {
		return false
	}
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok {
		return !strings.HasPrefix(pg.Code, "53") && isConnectionError(err)
	}
	return isConnectionError(err)
}

// isUnanswered says whether the call may have had its effect although it failed: it was
// sent, and the server did not say that it failed.
func isUnanswered(err error) bool {
	_, refused := errors.AsType[*pgconn.PgError](err)
	return !refused && !pgconn.SafeToRetry(err)
}

// isClosed recognises a connection or a pool that ended in the middle.
func isClosed(err error) bool {
	return slices.ContainsFunc(
		[]error{io.EOF, io.ErrUnexpectedEOF, net.ErrClosed, pgconn.ErrConnClosed, puddle.ErrClosedPool},
		func(closed error) bool { return errors.Is(err, closed) })
}
