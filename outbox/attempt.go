package outbox

import (
	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/fsm"
)

// An Attempt is a request that a worker makes: a call for a task, or a delivery of a webhook.
type Attempt struct {
	// Tenant on whose behalf it is made.
	Tenant string
	// Method of the request.
	Method string
	// Connection that a call goes by; empty for a webhook.
	Connection string
	// Task that a call is made for, or nil.
	Task uuid.UUID
	// Delivery and Subscription of a webhook, or nil. Of a callback the subscription is nil, too.
	Delivery, Subscription uuid.UUID
	// Number counts the attempts from 1.
	Number int
	// Reconciling: it asks what came of an earlier attempt.
	Reconciling bool
	// Traceparent is that of the step that the attempt follows.
	Traceparent string
}

// A Trace begins the span of an attempt, which is a child of that of its step. It returns the traceparent of the new span,
// which the request carries, and a function that ends the span: with the HTTP status, 0 if there was no answer, and with why the
// attempt failed, if it did. Neither must block. The failure must name no host and no address.
type Trace func(Attempt) (traceparent string, end func(status int, failure error))

// Begin begins the span of an attempt, if there are spans and the step has one. Otherwise the request carries the traceparent
// of the step, if that can be sent in a header: SQL callers may have stored what cannot.
func (t Trace) Begin(a Attempt) (traceparent string, end func(status int, failure error)) {
	if !fsm.IsVisible(a.Traceparent, 255) {
		return "", func(int, error) {}
	}
	if t == nil {
		return a.Traceparent, func(int, error) {}
	}
	return t(a)
}
