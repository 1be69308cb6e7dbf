package httpapi

import (
	"fmt"
	"slices"
	"strings"

	"github.com/pawl-fsm/pawl/httpapi/api"
)

// A Scope is a permission of a token. No scope includes another.
type Scope string

const (
	// ScopeRead allows reading, streaming, simulation and back-tests: what writes nothing.
	ScopeRead Scope = "read"
	// ScopeWrite allows creating instances, firing events and replaying deliveries.
	ScopeWrite Scope = "write"
	// ScopeAdmin allows registering, migrating and retiring workflows, and managing
	// subscriptions: a subscriber receives every step of the tenant.
	ScopeAdmin Scope = "admin"
)

// Scopes returns all scopes.
func Scopes() []Scope { return []Scope{ScopeRead, ScopeWrite, ScopeAdmin} }

// scopeNone is the x-scope of a public operation.
const scopeNone = "none"

// An access says who may call an operation. Its zero value admits nobody.
type access struct {
	// public operations need no token and ignore the one that is sent.
	public bool
	// scopes: a token that has any of them is admitted.
	scopes []Scope
}

// parseAccess reads the x-scope of an operation: none, a scope, or a list of scopes. Nothing
// is derived from the operation's method or path. An operation that declares nothing is an
// error, so that a new one cannot be served before somebody has decided who may call it.
func parseAccess(extension any) (access, error) {
	var names []any
	switch v := extension.(type) {
	case nil:
		return access{}, fmt.Errorf("x-scope is missing; declare %s, or %s for a public operation", quoted(Scopes(), " or "), scopeNone)
	case string:
		if v == scopeNone {
			return access{public: true}, nil
		}
		names = []any{v}
	case []any:
		names = v
	}
	if len(names) == 0 {
		return access{}, fmt.Errorf("x-scope is %v; it must be a scope, a list of scopes, or %s", extension, scopeNone)
	}
	var a access
	for _, name := range names {
		text, _ := name.(string)
		if !slices.Contains(Scopes(), Scope(text)) {
			return access{}, fmt.Errorf("x-scope has %v, which is not one of the scopes %s", name, quoted(Scopes(), ", "))
		}
		a.scopes = append(a.scopes, Scope(text))
	}
	return a, nil
}

// allow returns a forbidden problem unless a token with these scopes may call the operation.
func (a access) allow(held []Scope) error {
	if slices.ContainsFunc(a.scopes, func(s Scope) bool { return slices.Contains(held, s) }) {
		return nil
	}
	return &problemError{code: api.ProblemCodeForbidden, detail: "this operation needs a token with the scope " + quoted(a.scopes, " or ")}
}

// quoted writes scopes in quotes with a separator between them.
func quoted(scopes []Scope, separator string) string {
	texts := make([]string, len(scopes))
	for i, s := range scopes {
		texts[i] = fmt.Sprintf("%q", s)
	}
	return strings.Join(texts, separator)
}
