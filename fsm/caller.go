package fsm

import (
	"context"
	"encoding/json"
)

// A Caller is who does an act of power, for the audit.
type Caller struct {
	// Actor is the subject.
	Actor string `json:"actor"`
	// Token is the id of the token; empty for none.
	Token string `json:"token,omitempty"`
	// Address is that of the client, and RequestID that of the request.
	Address   string `json:"address,omitempty"`
	RequestID string `json:"request_id,omitempty"`
	// Unauthenticated says that the caller has named the actor itself.
	Unauthenticated bool `json:"unauthenticated,omitempty"`
}

type callerKey struct{}

// WithCaller returns a context for calls of a caller.
func WithCaller(ctx context.Context, c Caller) context.Context {
	return context.WithValue(ctx, callerKey{}, c)
}

// CallerJSON returns the caller of a context as the functions of the database take it, or nil if it has none: then the
// session of the database is the caller.
func CallerJSON(ctx context.Context) json.RawMessage {
	c, known := ctx.Value(callerKey{}).(Caller)
	if !known {
		return nil
	}
	text, err := json.Marshal(c)
	if err != nil {
		panic(err) // It has only texts.
	}
	return text
}
