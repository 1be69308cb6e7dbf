package httpapi

import (
	"time"

	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/definition"
	"github.com/pawl-fsm/pawl/httpapi/api"
)

// This file reads single members and parameters of requests, and holds the conversions that
// all resources share.

// maxName is the limit of fsm on an event and on a workflow's name in a command. Declared
// names are shorter.
const maxName = 255

// errNoBody is the problem of an operation that needs a body and got none.
var errNoBody = &problemError{code: api.ProblemCodeMalformedRequest, detail: "this operation needs a JSON body"}

// value returns what p points to, or the zero value if p is nil.
func value[T any](p *T) T {
	if p == nil {
		var zero T
		return zero
	}
	return *p
}

// optional returns nil for the zero value, or else a pointer to v.
func optional[T comparable](v T) *T {
	var zero T
	if v == zero {
		return nil
	}
	return &v
}

// each converts the elements of a list. The result is never nil, so JSON has [] and not null.
func each[A, B any](list []A, convert func(A) B) []B {
	out := make([]B, len(list))
	for i, a := range list {
		out[i] = convert(a)
	}
	return out
}

// as converts a text to another type of texts.
func as[B, A ~string](text A) B { return B(text) }

// durationAt parses a duration at a JSON Pointer of the body; a missing one is 0.
func durationAt(pointer string, text *api.Duration) (time.Duration, error) {
	if text == nil {
		return 0, nil
	}
	d, err := definition.ParseDuration(*text)
	if err != nil {
		return 0, malformedAt(pointer, err.Error(), err.Error())
	}
	return d, nil
}

// textAt returns the text at a JSON Pointer of the body. A missing member is "", an empty one
// is refused.
func textAt(pointer string, text *string) (string, error) {
	if text == nil {
		return "", nil
	}
	if *text == "" {
		return "", malformedAt(pointer, pointer+" must not be empty", "must have at least 1 character; leave it out if there is none")
	}
	return *text, nil
}

// parseUUID accepts only the form with hyphens, in which answers have ids.
func parseUUID(text string) (uuid.UUID, bool) {
	id, err := uuid.Parse(text)
	return id, err == nil && len(text) == len(uuid.Nil.String())
}

// instanceID parses the id of an instance. Text that is not a UUID gets the same
// instance-not-found as a UUID that names no instance.
func instanceID(text api.InstanceID) (uuid.UUID, error) {
	id, ok := parseUUID(text)
	if !ok {
		return uuid.Nil, &fsm.Error{Kind: fsm.InstanceNotFound, Message: "there is no such instance"}
	}
	return id, nil
}

// resourceID parses the id of a resource that is no instance. Text that is not a UUID gets the
// same not-found as a UUID that names nothing.
func resourceID(text, resource string) (uuid.UUID, error) {
	id, ok := parseUUID(text)
	if !ok {
		return uuid.Nil, &fsm.Error{Kind: fsm.NotFound, Message: "there is no such " + resource}
	}
	return id, nil
}

// textOf writes an id that may be missing.
func textOf(id *uuid.UUID) *string {
	if id == nil {
		return nil
	}
	text := id.String()
	return &text
}

// filterID parses an id that filters a list. It refuses the nil UUID, because fsm takes that
// as no filter.
func filterID(text *string) (id uuid.UUID, ok bool) {
	if text == nil {
		return uuid.Nil, true
	}
	id, ok = parseUUID(*text)
	return id, ok && id != uuid.Nil
}

// bound converts a bound on a time. fsm takes the zero time as no bound; the year 1, which is
// the zero time of Go, is moved by a microsecond and thus stays a bound. No row is that old.
func bound(t *api.Timestamp) time.Time {
	if t != nil && time.Time(*t).IsZero() {
		return time.Time{}.Add(time.Microsecond)
	}
	return time.Time(value(t))
}
