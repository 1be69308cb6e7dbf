package httpapi

import (
	"fmt"
	"slices"
	"strings"

	"github.com/pawl-fsm/pawl/fsm/access"
)

// A Scope is a permission of a token. No scope includes another.
type Scope string

const (
	// ScopeRead allows reads, streams and simulations.
	ScopeRead Scope = "read"
	// ScopeCreate allows creating instances.
	ScopeCreate Scope = "create"
	// ScopeFire allows firing events.
	ScopeFire Scope = "fire"
	// ScopeWork allows claiming and completing tasks.
	ScopeWork Scope = "work"
	// ScopeDeploy allows registering, migrating, retiring and back-testing workflows. Only the deployment has it.
	ScopeDeploy Scope = "deploy"
	// ScopeConnect allows managing connections, sources and schedules.
	ScopeConnect Scope = "connect"
	// ScopeDeliver allows managing subscriptions and deliveries.
	ScopeDeliver Scope = "deliver"
	// ScopeOperate allows overriding and cancelling instances, and bulk operations.
	ScopeOperate Scope = "operate"
	// ScopeAudit allows reading the audit.
	ScopeAudit Scope = "audit"
	// ScopeAdmin allows managing tokens, roles and tenants.
	ScopeAdmin Scope = "admin"
)

// Scopes returns all scopes.
func Scopes() []Scope { return each(access.Scopes, as[Scope]) }

// scopeNone is the x-scope of a public operation.
const scopeNone = "none"

// An admission says who may call an operation. Its zero value admits nobody.
type admission struct {
	// public operations need no token and ignore the one that is sent.
	public bool
	// scopes: a token that has any of them is admitted.
	scopes []Scope
}

// parseAdmission reads the x-scope of an operation: none, a scope, or a list of scopes. Nothing
// is derived from the operation's method or path. An operation that declares nothing is an
// error, so that a new one cannot be served before somebody has decided who may call it.
func parseAdmission(extension any) (admission, error) {
	var names []any
	switch v := extension.(type) {
	case nil:
		return admission{}, fmt.Errorf("x-scope is missing; declare %s, or %s for a public operation", quoted(Scopes(), " or "), scopeNone)
	case string:
		if v == scopeNone {
			return admission{public: true}, nil
		}
		names = []any{v}
	case []any:
		names = v
	}
	if len(names) == 0 {
		return admission{}, fmt.Errorf("x-scope is %v; it must be a scope, a list of scopes, or %s", extension, scopeNone)
	}
	var a admission
	for _, name := range names {
		text, _ := name.(string)
		if !slices.Contains(Scopes(), Scope(text)) {
			return admission{}, fmt.Errorf("x-scope has %v, which is not one of the scopes %s", name, quoted(Scopes(), ", "))
		}
		a.scopes = append(a.scopes, Scope(text))
	}
	return a, nil
}

// needs reports whether no other scope admits.
func (a admission) needs(s Scope) bool { return slices.Equal(a.scopes, []Scope{s}) }

// quoted writes scopes in quotes with a separator between them.
func quoted(scopes []Scope, separator string) string {
	texts := make([]string, len(scopes))
	for i, s := range scopes {
		texts[i] = fmt.Sprintf("%q", s)
	}
	return strings.Join(texts, separator)
}
