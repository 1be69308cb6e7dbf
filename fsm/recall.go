package fsm

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
)

// ErrPrincipalChanged is the error of commands that were not carried out, since tokens, roles or tenants have changed
// since the [Admission] of their context was made. Look the caller up, and decide anew.
var ErrPrincipalChanged error = &Error{Kind: Unavailable, Message: "tokens, roles or tenants have changed; try again"}

// principalChanged is the SQLSTATE that the engine raises then.
const principalChanged = "PW40A"

// An Admission says that a caller was let in by a principal that was not looked up but remembered. The engine carries out
// commands of a context with an Admission only if no token, role or tenant has changed since. Nothing else looks at it.
type Admission struct {
	version   uuid.UUID
	confirmed atomic.Bool
}

// Confirmed reports whether the engine has answered a command of the Admission, and so found it to be true.
func (a *Admission) Confirmed() bool { return a.confirmed.Load() }

type admissionKey struct{}

// WithAdmission returns a context for the commands of a caller. An Admission that is nil is none.
func WithAdmission(ctx context.Context, a *Admission) context.Context {
	return context.WithValue(ctx, admissionKey{}, a)
}

// admissionOf returns the admission of a context; nil for none.
func admissionOf(ctx context.Context) *Admission {
	a, _ := ctx.Value(admissionKey{}).(*Admission)
	return a
}

// confirm notes that the engine has compared the version of a command's admission.
func confirm[C, R any](p *pending[C, R]) {
	if a := admissionOf(p.ctx); a != nil {
		a.confirmed.Store(true)
	}
}

// accessOf is the version of the admissions of a call, which have the same one; nil for none.
func accessOf[C, R any](batch []*pending[C, R]) *uuid.UUID {
	for _, p := range batch {
		if a := admissionOf(p.ctx); a != nil {
			return &a.version
		}
	}
	return nil
}

// oneAccess returns the commands of a batch that may share a call: those without an admission, and those whose admission
// has the version of the first one. The others must be called again.
func oneAccess[C, R any](batch []*pending[C, R]) (calls, again []*pending[C, R]) {
	version := accessOf(batch)
	for i, p := range batch {
		switch a := admissionOf(p.ctx); {
		case a != nil && a.version != *version:
			if again == nil {
				calls = append(calls, batch[:i]...)
			}
			again = append(again, p)
		case again != nil:
			calls = append(calls, p)
		}
	}
	if again == nil {
		return batch, nil
	}
	return calls, again
}

// How much of principals is remembered: for how long, how many, and the size of their lists.
const (
	recallFor   = time.Minute
	maxRecalled = 4096
	recallBytes = 4 << 10
)

// recollection remembers principals as they are at one version of tokens, roles and tenants.
type recollection struct {
	mu         sync.Mutex
	version    uuid.UUID
	principals map[principalKey]recalled
}

type recalled struct {
	principal Principal
	at        time.Time
}

// principalKey is a PrincipalQuery as the key of a map.
type principalKey struct{ token, home, tenant, roles string }

func (q PrincipalQuery) key() principalKey {
	return principalKey{q.Token, q.Home, q.Tenant, strings.Join(q.Roles, "\x00")}
}

// Recall returns what Principal read for a query within the last minute, unless something is known to have changed since. It
// may have changed unknown to this process. So the Admission, which is nil if nothing is remembered, must be in the context
// of all that the caller does by this principal, which must be commands; and a refusal that no Admission has confirmed must be
// decided anew by Principal.
func (s *Service) Recall(q PrincipalQuery) (Principal, *Admission) {
	r := &s.recollection
	r.mu.Lock()
	defer r.mu.Unlock()
	if p, known := r.principals[q.key()]; known && time.Since(p.at) < recallFor {
		return p.principal, &Admission{version: r.version}
	}
	return Principal{}, nil
}

// remember notes what was read for a query, beginning at a time. Principals of another version are forgotten.
func (r *recollection) remember(q principalKey, p Principal, version uuid.UUID, at time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if version != r.version || r.principals == nil || len(r.principals) >= maxRecalled {
		r.version, r.principals = version, map[principalKey]recalled{}
	}
	r.principals[q] = recalled{p, at}
}

// forget forgets the principals of a version.
func (r *recollection) forget(version uuid.UUID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if version == r.version {
		r.principals = nil
	}
}
