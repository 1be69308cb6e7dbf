package fsm

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pawl-fsm/pawl/db/session"
	"github.com/pawl-fsm/pawl/fsm/definition"
	"github.com/pawl-fsm/pawl/fsm/internal/database"
	"github.com/pawl-fsm/pawl/fsm/internal/gate"
)

// A Kind says what went wrong. It is an error, so that callers can write
// errors.Is(err, fsm.GuardRejected). Every error of this package and of the packages under it has
// one of these kinds.
type Kind int

const (
	// Internal: something failed that is not foreseen. See Error.Cause.
	Internal Kind = iota
	// Malformed: the request cannot be carried out whatever the state of the database. Its JSON is
	// not strict, or a parameter is out of its range. See Error.Faults.
	Malformed
	// KeyInvalid: the idempotency key is not 1 to 255 visible ASCII characters.
	KeyInvalid
	// KeyReuse: the idempotency key was used for another request.
	KeyReuse
	// WorkflowNotFound: there is no such workflow, or no such version of it.
	WorkflowNotFound
	// InstanceNotFound: the tenant has no such instance, or the instance did not exist at the
	// version or the time that was asked for.
	InstanceNotFound
	// TransitionNotAllowed: the state has no transition for the event, or is final.
	TransitionNotAllowed
	// StateProtected: an override, a cancel or an instance migration would leave or enter a protected state.
	StateProtected
	// NotCancellable: the workflow names no state for instances that are cancelled.
	NotCancellable
	// GuardRejected: there are transitions for the event, but no guard of theirs holds.
	GuardRejected
	// GuardError: a guard or an assign raises, although it is evaluated leniently, or takes longer
	// than the statement timeout; or eventless transitions do not come to rest.
	GuardError
	// InstanceExists: another instance has the business key. See Error.InstanceID.
	InstanceExists
	// WorkflowConflict: the definition names a version that is not the next one, the version that is to
	// be retired is in use, or another instance migration of the workflow is under way.
	WorkflowConflict
	// VersionMismatch: the instance or the connection is not at an expected version.
	VersionMismatch
	// PreconditionRequired: the workflow wants every event to expect a version, as every override must.
	PreconditionRequired
	// TooLarge: a context, a payload or a definition is over its limit.
	TooLarge
	// InvalidDefinition: the definition has faults. Error.Faults has all of them.
	InvalidDefinition
	// InvalidContext: the context does not fit the workflow's schema. Error.Faults has up to 100 faults.
	InvalidContext
	// InvalidPayload: the payload does not fit the event's schema. Error.Faults has up to 100 faults.
	InvalidPayload
	// UnknownEvent: no state of the workflow has the event.
	UnknownEvent
	// EventIDTooOld: some of the messages behind the given id have been purged.
	EventIDTooOld
	// UnknownEventID: the log has not been at the given id.
	UnknownEventID
	// StepsLost: the log has been at the given id, and has lost its end since. Error.LastCommon has the last id
	// that it still has.
	StepsLost
	// NotFound: there is no such schema, or the tenant has no such subscription, delivery, bulk or task.
	NotFound
	// Forbidden: the caller may not give what it does not have.
	Forbidden
	// UnknownTenant: there is no such tenant.
	UnknownTenant
	// TenantRequired: there are too many tenants to look at all of them; name one.
	TenantRequired
	// TokenExists: another token has the id.
	TokenExists
	// DeliveryConflict: the delivery is still pending, or its subscription is disabled or deleted.
	DeliveryConflict
	// BulkConflict: the bulk has ended.
	BulkConflict
	// LeaseSuperseded: the lease is not the newest of the task.
	LeaseSuperseded
	// TaskEnded: the task, or the compensation, is in no state in which this can be done with it.
	TaskEnded
	// InstanceFinal: the instance has ended, so that there is nothing to forecast.
	InstanceFinal
	// TooFewSamples: too few visits of the instance's state have ended for a forecast.
	TooFewSamples
	// ConfirmationRequired: the bulk would concern many instances, and its filter must be confirmed.
	ConfirmationRequired
	// CallbackSecretRequired: neither the callback nor the deployment has a secret to sign it with.
	CallbackSecretRequired
	// LimitReached: the tenant has as much of something as it may have. Waiting does not change that. See Error.Limit.
	LimitReached
	// TooManyRequests: as many commands of the tenant wait as its own limit allows. The same request may be made again.
	TooManyRequests
	// Unavailable: the database is away or busy, or the queue is full. The same request may be made
	// again.
	Unavailable

	kindCount
)

var kindNames = [kindCount]string{
	"internal", "malformed request", "invalid idempotency key", "idempotency key reuse",
	"workflow not found", "instance not found", "transition not allowed",
	"state protected", "not cancellable", "guard rejected", "guard error",
	"instance exists", "workflow conflict", "version mismatch", "precondition required", "too large",
	"invalid definition", "invalid context", "invalid payload", "unknown event", "event id too old",
	"unknown event id", "steps lost", "not found", "forbidden", "unknown tenant",
	"tenant required",
	"token exists", "delivery conflict", "bulk conflict", "lease superseded", "task ended", "instance final", "too few samples", "confirmation required", "callback secret required",
	"limit reached", "too many requests",
	"unavailable",
}

// Kinds returns every kind, for tables that must be total.
func Kinds() []Kind {
	kinds := make([]Kind, kindCount)
	for i := range kinds {
		kinds[i] = Kind(i)
	}
	return kinds
}

// Error returns the name of the kind. It makes a Kind a target for errors.Is.
func (k Kind) Error() string { return kindNames[k] }

// Fault is one thing that is wrong with a request.
type Fault struct {
	// Pointer is the place of the fault, as a JSON Pointer (RFC 6901) into the document.
	Pointer string
	// Parameter is the name of a parameter, if the fault is in no document.
	Parameter string
	// Detail says what is wrong there, and what would be right.
	Detail string
}

// Faults returns the faults of a document as those of a request.
func Faults(list []definition.Fault) []Fault {
	var faults []Fault
	for _, f := range list {
		faults = append(faults, Fault{Pointer: f.Pointer, Detail: f.Detail})
	}
	return faults
}

// Error is the error type of this package and of the packages under it. Which members are set
// depends on the kind.
type Error struct {
	// Kind says what went wrong; errors.Is compares with it.
	Kind Kind
	// Message is fit for clients: it has no SQL and no file name.
	Message string
	// Faults of a Malformed, InvalidDefinition, InvalidContext or InvalidPayload.
	Faults []Fault
	// Refusal is set if the instance was found and refuses the event. For a WorkflowConflict, and for the
	// VersionMismatch of a connection, it has only a Version: the latest one, or the one in use; 0 if there is none.
	Refusal *Refusal
	// InstanceID of InstanceExists: the instance that has the business key.
	InstanceID uuid.UUID
	// LastCommon of StepsLost.
	LastCommon string
	// Limit of LimitReached.
	Limit *ReachedLimit
	// Replayed: the refusal was decided before, for the same idempotency key.
	Replayed bool
	// Cause is for logs, and never for clients.
	Cause error
}

// Refusal describes an instance that refused an event, as it was then, so that its caller can go on.
type Refusal struct {
	// Event is the one that was refused. The members below it are as those of an Instance.
	Event          string
	State          string
	Status         Status
	Version        int64
	AcceptedEvents []string
	// Guards of GuardRejected: those that were tried, in order.
	Guards []string
	// Expected is what the command expected, for VersionMismatch.
	Expected Expect
}

// Error returns the kind, the message, the faults and the cause. It is for logs; clients get Message.
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
		b.WriteString(sep)
		if at := f.Pointer + f.Parameter; at != "" {
			b.WriteString(at + ": ")
		}
		b.WriteString(f.Detail)
	}
	if e.Cause != nil {
		b.WriteString(": " + e.Cause.Error())
	}
	return b.String()
}

// Is reports whether the target is this error's Kind.
func (e *Error) Is(target error) bool {
	k, ok := target.(Kind)
	return ok && k == e.Kind
}

// Unwrap returns the Cause.
func (e *Error) Unwrap() error { return e.Cause }

// Errorf returns an Error with a message.
func Errorf(k Kind, format string, args ...any) *Error {
	return &Error{Kind: k, Message: fmt.Sprintf(format, args...)}
}

// NoInstance returns the InstanceNotFound error for an id.
func NoInstance() error { return Errorf(InstanceNotFound, "there is no such instance") }

// NoHolder returns the InstanceNotFound error for a business key.
func NoHolder() error {
	return Errorf(InstanceNotFound, "no instance of the workflow holds this business key")
}

// NoWorkflow returns the WorkflowNotFound error for a name and a version. Version 0 stands for the latest one.
func NoWorkflow(name string, version int) *Error {
	if version == 0 {
		return Errorf(WorkflowNotFound, "there is no workflow %q", shortened(name))
	}
	return Errorf(WorkflowNotFound, "there is no workflow %q, or it has no version %d", shortened(name), version)
}

// NoVersion returns the WorkflowNotFound error for a version that no workflow has.
func NoVersion(name string, version int) *Error {
	return Errorf(WorkflowNotFound, "workflow %q has no version %d", shortened(name), version)
}

// shortened cuts a name that is longer than that of any workflow.
func shortened(name string) string {
	const longest = 255
	if short := []rune(name); len(short) > longest {
		return string(short[:longest]) + "…"
	}
	return name
}

// MalformedAt returns a Malformed error with one fault, at a JSON Pointer into the request.
func MalformedAt(pointer, detail string) *Error {
	return &Error{
		Kind: Malformed, Message: "the JSON document is not acceptable",
		Faults: []Fault{{Pointer: pointer, Detail: detail}},
	}
}

// Within returns err as an *Error whose pointers are below another pointer: the error of a document that is
// a part of the request.
func Within(pointer string, err error) *Error {
	e := AsError(err)
	for i := range e.Faults {
		e.Faults[i].Pointer = pointer + e.Faults[i].Pointer
	}
	return e
}

// IfNoRows returns an Error of the kind if err says that a query found no row, and else err.
func IfNoRows(err error, kind Kind, message string) error {
	if errors.Is(err, pgx.ErrNoRows) {
		return &Error{Kind: kind, Message: message}
	}
	return err
}

// AsError returns err as an *Error. Errors of package definition and of the database get the kind
// that they stand for; every other error is Internal. A lost connection and a context that ended
// are Unavailable.
func AsError(err error) *Error {
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	if e, ok := errors.AsType[*definition.Error](err); ok {
		return &Error{Kind: kindOf(e.Reason), Message: e.Message, Faults: Faults(e.Faults)}
	}
	if e, ok := errors.AsType[*database.PageError](err); ok {
		return &Error{Kind: Malformed, Message: e.Message, Faults: []Fault{{Parameter: e.Parameter, Detail: e.Detail}}}
	}
	return fromDatabase(err)
}

// asError is AsError for [database.Client].
func asError(err error) error { return AsError(err) }

// kindOf is the Kind of the reason for which package definition refuses a document.
func kindOf(reason error) Kind {
	switch reason {
	case definition.ErrTooLarge:
		return TooLarge
	case definition.ErrInvalid:
		return InvalidDefinition
	case definition.ErrBusy:
		return Unavailable
	default:
		return Malformed
	}
}

// fromDatabase is the one place where an error of the driver gets a Kind.
func fromDatabase(err error) *Error {
	if errors.Is(err, gate.ErrCrowded) {
		return &Error{Kind: Unavailable, Message: "too many requests of this kind are waiting; try again", Cause: err}
	}
	pg, ok := errors.AsType[*pgconn.PgError](err)
	if !ok {
		if errors.Is(err, session.ErrUnreplicated) {
			return &Error{Kind: Unavailable, Message: "the database did not confirm that its standby has the change; try again", Cause: err}
		}
		if database.IsConnectionError(err) {
			return &Error{Kind: Unavailable, Message: "the database did not answer; try again", Cause: err}
		}
		return &Error{Kind: Internal, Cause: err}
	}
	if database.IsReadOnly(err) {
		return &Error{Kind: Unavailable, Message: "the database takes no writes; try again", Cause: err}
	}
	// The detail of what the engine raises is JSON.
	var detail struct {
		ReachedLimit
		Version int64
		Errors  []struct{ Pointer, Detail string }
	}
	if strings.HasPrefix(pg.Code, "PW") {
		_ = json.Unmarshal([]byte(pg.Detail), &detail) // Zero values if there is none.
	}
	e := &Error{Kind: Internal, Cause: err}
	if kind, known := conditions[pg.Code]; known {
		e.Kind, e.Message = kind, pg.Message
		switch kind {
		case WorkflowConflict, VersionMismatch:
			e.Refusal = &Refusal{Version: detail.Version}
		case LimitReached:
			e.Limit = &detail.ReachedLimit
		case EventIDTooOld:
			e.Message = "steps behind the event id have been purged; read the instances and begin anew"
		case Malformed, InvalidDefinition:
			for _, f := range detail.Errors {
				e.Faults = append(e.Faults, Fault{Pointer: f.Pointer, Detail: f.Detail})
			}
		}
		return e
	}
	switch {
	case database.IsRetryable(err), database.IsConnectionError(err):
		e.Kind, e.Message = Unavailable, "the database is busy; try again"
	case pg.Code == database.LockNotAvailable, pg.Code == database.QueryCanceled:
		e.Kind, e.Message = Unavailable, "another transaction holds what this one needs; try again"
	}
	return e
}

// conditions are the kinds of the conditions that functions of the database raise, by SQLSTATE. The
// table pawl_private.condition lists the conditions too, and a test compares the two. PW40L is
// not here: it is for operators, not for callers.
var conditions = map[string]Kind{
	"PW400":          Malformed,
	"PW403":          Forbidden,
	"PW404":          InstanceNotFound,
	"PW409":          TransitionNotAllowed,
	principalChanged: Unavailable,
	"PW40C":          NotCancellable,
	"PW40B":          BulkConflict,
	"PW40D":          TaskEnded,
	"PW40E":          InstanceExists,
	"PW40G":          GuardRejected,
	"PW40K":          NotFound,
	"PW40M":          LimitReached,
	"PW40P":          StateProtected,
	"PW40S":          LeaseSuperseded,
	"PW40T":          UnknownTenant,
	"PW40V":          WorkflowConflict,
	"PW40W":          WorkflowNotFound,
	"PW410":          EventIDTooOld,
	"PW412":          VersionMismatch,
	"PW413":          TooLarge,
	"PW422":          UnknownEvent,
	"PW428":          PreconditionRequired,
	"PW42D":          InvalidDefinition,
	"PW42G":          GuardError,
	"PW42K":          KeyReuse,
}
