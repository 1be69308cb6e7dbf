package definition

import (
	"errors"
	"strings"
)

// The reasons for which a document is refused, for errors.Is.
var (
	// ErrMalformed: the document is not strict JSON, or not of the JSON type that is needed.
	ErrMalformed = errors.New("malformed document")
	// ErrTooLarge: the document has more bytes than Limits allow.
	ErrTooLarge = errors.New("too large")
	// ErrInvalid: the document is a JSON object, but no definition that could be registered.
	ErrInvalid = errors.New("invalid definition")
	// ErrBusy: the check of a document found no free slot in time; see Schemas.
	ErrBusy = errors.New("busy")
)

// Fault is one thing that is wrong with a document.
type Fault struct {
	// Pointer is the place of the fault, as a JSON Pointer (RFC 6901) into the document.
	Pointer string
	// Detail says what is wrong there, and what would be right.
	Detail string
}

// Error says why a document is refused.
type Error struct {
	// Reason is ErrMalformed, ErrTooLarge, ErrInvalid or ErrBusy.
	Reason error
	// Message says why in one sentence, for the author of the document.
	Message string
	// Faults lists everything that is wrong, in the order of the pointers. It has one fault if the
	// document is malformed, and none if it is too large.
	Faults []Fault
}

// Error returns the reason, the message and the faults.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Reason.Error() + ": " + e.Message)
	for i, f := range e.Faults {
		sep := "; "
		if i == 0 {
			sep = ": "
		}
		b.WriteString(sep + f.Pointer + ": " + f.Detail)
	}
	return b.String()
}

// Unwrap returns the Reason.
func (e *Error) Unwrap() error { return e.Reason }

func malformed(pointer, detail string) *Error {
	return &Error{
		Reason: ErrMalformed, Message: "the JSON document is not acceptable",
		Faults: []Fault{{Pointer: pointer, Detail: detail}},
	}
}
