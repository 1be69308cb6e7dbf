package httpapi

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/access"
	"github.com/pawl-fsm/pawl/httpapi/api"
)

// A grant says that a principal has scopes, for workflows and for events. A nil list stands for all of them.
type grant struct {
	scopes            []Scope
	workflows, events []string
}

// A principal is the caller that a request acts for.
type principal struct {
	subject string
	// home is the tenant that the caller belongs to, and tenant the one that it acts for. Both are fsm.Deployment for the
	// deployment that names no tenant, or all of them.
	home, tenant string
	// tokenID is the id of a token in the database; empty for none.
	tokenID string
	// grants have one at least that allows the operation. They are within the workflows that the token is bound to.
	grants []grant
	// within are the workflows that the token is bound to; nil for all.
	within []string
	limits fsm.TenantLimits
	// open: the service runs without authentication.
	open bool
	// named: the caller has named the tenant, or all of them, in X-Pawl-Tenant.
	named bool
}

// isDeployment reports whether the caller belongs to the deployment.
func (p *principal) isDeployment() bool { return p.open || p.home == fsm.Deployment }

// has reports whether a grant has one of the scopes. Outside the deployment deploy does not count.
func (p *principal) has(scopes ...Scope) bool {
	return slices.ContainsFunc(p.grants, func(g grant) bool { return g.hasAny(scopes) })
}

func (g grant) hasAny(scopes []Scope) bool {
	return slices.ContainsFunc(scopes, func(s Scope) bool { return slices.Contains(g.scopes, s) })
}

// mayReach reports whether a grant with one of the scopes is for the workflow.
func (p *principal) mayReach(workflow string, scopes ...Scope) bool {
	return slices.ContainsFunc(p.grants, func(g grant) bool { return g.hasAny(scopes) && admits(g.workflows, workflow) })
}

// may reports whether a grant has the scope for the workflow, and for the event or the topic.
func (p *principal) may(scope Scope, workflow, event string) bool {
	return slices.ContainsFunc(p.grants, func(g grant) bool {
		return g.hasAny([]Scope{scope}) && admits(g.workflows, workflow) && admits(g.events, event)
	})
}

// mayAll reports whether a grant has the scope for all workflows, and for all events and topics.
func (p *principal) mayAll(scope Scope) bool {
	return slices.ContainsFunc(p.grants, func(g grant) bool {
		return g.hasAny([]Scope{scope}) && g.workflows == nil && g.events == nil
	})
}

// workflows returns the workflows for which a grant has one of the scopes. all is true if they are all workflows.
func (p *principal) workflows(scopes ...Scope) (names []string, all bool) {
	for _, g := range p.grants {
		if !g.hasAny(scopes) {
			continue
		}
		if g.workflows == nil {
			return nil, true
		}
		names = append(names, g.workflows...)
	}
	slices.Sort(names)
	return slices.Compact(names), false
}

func admits(names []string, name string) bool { return names == nil || slices.Contains(names, name) }

// newGrant returns a grant as it counts for a caller of a tenant whose token is bound to workflows. ok is false if
// nothing is left of it.
func newGrant(home string, within []string, scopes []Scope, workflows, events []string) (g grant, ok bool) {
	for _, s := range scopes {
		if s != ScopeDeploy || home == fsm.Deployment {
			g.scopes = append(g.scopes, s)
		}
	}
	if len(workflows) > 0 {
		g.workflows = workflows
	}
	if within != nil {
		bound := []string{}
		for _, w := range within {
			if admits(g.workflows, w) {
				bound = append(bound, w)
			}
		}
		g.workflows = bound
	}
	if len(events) > 0 {
		g.events = events
	}
	return g, len(g.scopes) > 0 && (g.workflows == nil || len(g.workflows) > 0)
}

// An Identity is who a token of the identity provider is for.
type Identity struct {
	// Subject becomes the actor.
	Subject string
	// Tenant is that of the caller; fsm.Deployment for the deployment.
	Tenant string
	// Roles name roles of the tenant.
	Roles []string
}

// A Verifier verifies tokens of an identity provider. Verify returns an error that is fit for clients: an *fsm.Error of
// kind Unavailable if the provider's keys are not known, and any other error if the token is not valid.
type Verifier interface {
	Verify(ctx context.Context, token string) (Identity, error)
}

// An authenticator finds out who a caller is.
type authenticator struct {
	service  *fsm.Service
	tokens   bool // Whether tokens of the database and of the file are taken.
	static   map[[sha256.Size]byte]Token
	verifier Verifier // Nil for none.
	uses     uses
}

// uses notes that tokens were used. It does so in the background, one at a time, and rests after a failure, such as on a
// server that takes no writes. What it leaves out, a later request notes.
type uses struct {
	busy atomic.Bool
	rest atomic.Int64 // Until when, in nanoseconds since 1970.
}

const (
	usePatience = 5 * time.Second
	useRest     = time.Minute
)

func (u *uses) note(service *fsm.Service, id string) {
	if time.Now().UnixNano() < u.rest.Load() || !u.busy.CompareAndSwap(false, true) {
		return
	}
	go func() {
		defer u.busy.Store(false)
		ctx, cancel := context.WithTimeout(context.Background(), usePatience)
		defer cancel()
		if err := service.TokenUsed(ctx, id); err != nil {
			u.rest.Store(time.Now().Add(useRest).UnixNano())
		}
	}()
}

// unauthenticated returns the problem of a request without a valid token.
func unauthenticated(detail string) error {
	return &problemError{code: api.ProblemCodeUnauthenticated, detail: detail}
}

// bearer returns the token of a request. RFC 6750 has one space behind the scheme and no comma in a token.
func bearer(h http.Header) (string, error) {
	values := h.Values("Authorization")
	if len(values) != 1 {
		return "", unauthenticated("send one header Authorization: Bearer with a token")
	}
	scheme, token, _ := strings.Cut(values[0], " ")
	if !strings.EqualFold(scheme, "Bearer") || token == "" || !isTokenText(token) {
		return "", unauthenticated("send the header Authorization: Bearer with a token")
	}
	return token, nil
}

// maxToken is the largest size of a token, in bytes.
const maxToken = 16 << 10

// isTokenText reports whether a text is a token68 of RFC 9110.
func isTokenText(token string) bool {
	for i := range len(token) {
		c := token[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && !strings.ContainsRune("-._~+/=", rune(c)) {
			return false
		}
	}
	return len(token) <= maxToken
}

// authenticate returns the principal of a token that acts for a tenant; the empty one is that of the token. With recall it may
// be one that is remembered. Then it comes with an admission, and so does what it is refused for.
func (a *authenticator) authenticate(ctx context.Context, token, actsFor string, recall bool) (principal, *fsm.Admission, error) {
	query := fsm.PrincipalQuery{Tenant: actsFor}
	p := principal{tenant: actsFor}
	var scopes []Scope
	digest := sha256.Sum256([]byte(token))
	// The time of the map look-up depends on the digest, which a caller cannot choose.
	static, isStatic := a.static[digest]
	id, isStored := access.TokenID(token)
	switch {
	case isStatic:
		p.subject, p.home, scopes, query.Roles = static.Subject, static.Tenant, static.Scopes, static.Roles
		p.within = boundTo(static.Workflows)
	case isStored && a.tokens:
		query.Token, p.tokenID = id, id
	case a.verifier != nil && strings.Count(token, ".") == 2:
		identity, err := a.verifier.Verify(ctx, token)
		if err != nil {
			if e := fsm.AsError(err); e.Kind == fsm.Unavailable {
				return principal{}, nil, e
			}
			return principal{}, nil, unauthenticated("the token is not valid: " + err.Error())
		}
		p.subject, p.home, query.Roles = identity.Subject, identity.Tenant, identity.Roles
	default:
		return principal{}, nil, unauthenticated("the token is unknown")
	}
	if query.Token == "" {
		query.Home = p.home
	}
	var found fsm.Principal
	var admission *fsm.Admission
	if recall {
		found, admission = a.service.Recall(query)
	}
	if admission == nil {
		var err error
		if found, err = a.service.Principal(ctx, query); err != nil {
			return principal{}, nil, err
		}
	}
	if query.Token != "" {
		switch {
		case subtle.ConstantTimeCompare(found.SHA256, digest[:]) != 1:
			return principal{}, admission, unauthenticated("the token is unknown")
		case !found.Live:
			return principal{}, admission, unauthenticated("the token is revoked or has expired")
		}
		if found.Stale {
			a.uses.note(a.service, id)
		}
		p.subject, p.home, p.within, scopes = found.Subject, found.Home, boundTo(found.Workflows), each(found.Scopes, as[Scope])
	}
	if g, ok := newGrant(p.home, p.within, scopes, nil, nil); ok {
		p.grants = append(p.grants, g)
	}
	for _, r := range found.Roles {
		if g, ok := newGrant(p.home, p.within, each(r.Scopes, as[Scope]), r.Workflows, r.Events); ok {
			p.grants = append(p.grants, g)
		}
	}
	p.tenant, p.limits = found.Tenant, found.Limits
	return p, admission, a.checkTenant(&p, actsFor, found)
}

// checkTenant refuses a tenant that does not exist, is disabled or is another's.
func (a *authenticator) checkTenant(p *principal, actsFor string, found fsm.Principal) error {
	p.named = actsFor != ""
	switch {
	case p.home != fsm.Deployment && actsFor != "" && actsFor != p.home:
		p.tenant = p.home // What is refused counts for nobody else.
		return &problemError{code: api.ProblemCodeForbidden, detail: "X-Pawl-Tenant names another tenant than that of the token"}
	case p.tenant == fsm.Deployment:
		return nil
	case !found.Known:
		unknown := p.tenant
		p.tenant = "" // It may be anything.
		return &problemError{code: api.ProblemCodeUnknownTenant, detail: "the tenant " + unknown + " does not exist; pawl tenant create makes it"}
	case found.Disabled && p.home != fsm.Deployment:
		return &problemError{code: api.ProblemCodeTenantDisabled, detail: "the tenant " + p.tenant + " is disabled"}
	}
	return nil
}

// boundTo returns the workflows that a token is bound to; nil for all.
func boundTo(workflows []string) []string {
	if len(workflows) == 0 {
		return nil
	}
	return workflows
}

// tenantHeader names the tenant that a request is for.
const tenantHeader = "X-Pawl-Tenant"

// A tenancy says which tenant an operation is for, when a caller of the deployment calls it.
type tenancy string

const (
	// ofDeployment: none, since what the operation is about belongs to the deployment.
	ofDeployment tenancy = "deployment"
	// ofDeploymentAlone: none, and only callers of the deployment may call it.
	ofDeploymentAlone tenancy = "deployment-only"
	// ofFound: the one that has the resource, unless the caller names one.
	ofFound tenancy = "found"
	// ofNamed: the one that the caller must name. For GET it may name all.
	ofNamed tenancy = "required"
	// ofOwn: the one that the caller must name, which may be the deployment.
	ofOwn tenancy = "own"
)

// parseTenancy reads the x-tenant of an operation.
func parseTenancy(extension any) (tenancy, error) {
	text, _ := extension.(string)
	switch t := tenancy(text); t {
	case ofDeployment, ofDeploymentAlone, ofFound, ofNamed, ofOwn:
		return t, nil
	}
	return "", fmt.Errorf("x-tenant is %v; it must be %s, %s, %s, %s or %s", extension, ofDeployment, ofDeploymentAlone, ofFound, ofNamed, ofOwn)
}

// check refuses a request of the deployment that names no tenant although the operation needs one.
func (t tenancy) check(p *principal, method string) error {
	if p.tenant != fsm.Deployment || t == ofDeployment || t == ofDeploymentAlone || t == ofFound && method == http.MethodGet || p.named && (t == ofOwn || method == http.MethodGet) {
		return nil
	}
	return &problemError{
		code: api.ProblemCodeTenantRequired, detail: "a caller of the tenant * must name the tenant that it acts for, in the header " + tenantHeader,
	}
}
