package database

import (
	"context"
	"errors"
	"io"
	"net"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/puddle/v2"

	"github.com/pawl-fsm/pawl/db/session"
)

// The SQLSTATEs of PostgreSQL that callers treat in different ways.
const (
	SerializationFailure   = "40001"
	DeadlockDetected       = "40P01"
	LockNotAvailable       = "55P03"
	QueryCanceled          = "57014"
	NotInPrerequisiteState = "55000"
)

// ErrReadOnly says that the server takes no writes. It is for a check that does not try to write.
var ErrReadOnly = errors.New("the server is read-only: it is a standby, or default_transaction_read_only is on")

// IsCode reports whether the server refused the call with the SQLSTATE.
func IsCode(err error, code string) bool { return session.IsCode(err, code) }

// IsGuardFailure reports whether a call may have failed in a guard or an assign: a path raised, or the
// call ran into the statement timeout. Paths are evaluated leniently. They still raise for a variable
// that does not exist (42704), for a time without a zone that is compared with one that has a zone
// (0A000), for a bad template of a time (class 22) and for a result that is too large (class 54).
func IsGuardFailure(err error) bool {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	return ok && (pg.Code == QueryCanceled || pg.Code == "42704" || pg.Code == "0A000" ||
		strings.HasPrefix(pg.Code, "22") || strings.HasPrefix(pg.Code, "54"))
}

// IsRetryable reports whether the call was undone by a deadlock or a serialization failure, so that the
// same call may be made again.
func IsRetryable(err error) bool {
	return IsCode(err, SerializationFailure) || IsCode(err, DeadlockDetected)
}

// IsReadOnly reports whether an error says that the server takes no writes, like a standby or a former
// primary.
func IsReadOnly(err error) bool {
	return session.IsReadOnly(err) || errors.Is(err, ErrReadOnly)
}

// IsConnectionError reports whether the server was not reached, went away, has no room, takes no writes, or does not
// say that its standby has what was committed. Such errors are connection exceptions (class 08), insufficient resources
// (class 53), shutdowns (57P), a read-only transaction (25006), failures of the network, a session.Error,
// session.ErrUnreplicated, and a context that ended.
func IsConnectionError(err error) bool {
	if _, ok := errors.AsType[*pgconn.ConnectError](err); ok || IsReadOnly(err) {
		return true
	}
	if _, ok := errors.AsType[*session.Error](err); ok || errors.Is(err, session.ErrUnreplicated) {
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

// isLost reports whether the error ended an established connection, or made it useless.
func isLost(err error) bool {
	if _, ok := errors.AsType[*pgconn.ConnectError](err); ok {
		return false
	}
	if _, ok := errors.AsType[*session.Error](err); ok || errors.Is(err, session.ErrUnreplicated) {
		return false
	}
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok {
		return !strings.HasPrefix(pg.Code, "53") && IsConnectionError(err)
	}
	return IsConnectionError(err)
}

// isUnanswered reports whether a failed call may have had its effect: it may have been sent, and the
// server did not say that it failed.
func isUnanswered(err error) bool {
	if errors.Is(err, session.ErrUnreplicated) {
		return true
	}
	_, refused := errors.AsType[*pgconn.PgError](err)
	return isLost(err) && !refused && !errors.Is(err, ErrReadOnly) && !pgconn.SafeToRetry(err)
}

// isClosed recognises a connection or a pool that was closed during the call.
func isClosed(err error) bool {
	return slices.ContainsFunc(
		[]error{io.EOF, io.ErrUnexpectedEOF, net.ErrClosed, pgconn.ErrConnClosed, puddle.ErrClosedPool},
		func(closed error) bool { return errors.Is(err, closed) })
}
