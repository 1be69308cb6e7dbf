package httpapi

import (
	"context"
	"net/http"
	"net/url"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/httpapi/api"
)

// A request holds what the path, the query and the headers of a request say, parsed once.
// Handlers get it from their context; see requestOf.
type request struct {
	id        string // X-Request-ID, of the client or generated.
	address   string // Where the request comes from, behind the trusted proxies.
	route     *route // Nil for a path that is not in the contract.
	op        *operation
	url       *url.URL
	header    http.Header
	principal principal
	// admission is by what the principal was let in, if it was not looked up; else nil.
	admission *fsm.Admission
	// base is the context without what depends on the principal.
	base context.Context
	// counted: the request was counted against the rate of its subject.
	counted bool
	// client ends when the client has closed the connection, or its own side of it.
	client    context.Context
	memory    *memory
	held      int64           // How many bytes it holds.
	holder    string          // The tenant that holds them, whatever becomes of the principal.
	body      int64           // How many bytes of its body were read.
	streaming bool            // The answer is a stream, which sets deadlines by itself.
	endStream func()          // Counts the request as a stream no more; nil if it is none.
	problem   api.ProblemCode // The code of the answer if it is a problem, for the log.

	// workflow and instance are those that the request was about, for the log; empty if it was about none, or many.
	workflow, instance string
	traceID            string // That of traceparent, or a new one.

	key           string
	correlationID string
	traceparent   string // Empty if the caller sent none that is valid.
	ifMatch       fsm.Expect
	ifMatchText   string // If-Match as it was sent.
	ifNoneMatch   []string
	minimal       bool // Prefer: return=minimal
	preferred     bool // Prefer: return=minimal or return=representation
	head          bool // The method is HEAD, which is routed as GET.
	// wait is the value of Prefer: wait, nil if there is none.
	wait *time.Duration
}

type requestKey struct{}

// requestOf returns the request that a context belongs to, or an empty one.
func requestOf(ctx context.Context) *request {
	if r, ok := ctx.Value(requestKey{}).(*request); ok {
		return r
	}
	return &request{}
}

// outlive returns the context for the work on the request, which ends some time after the client's
// context, or at once if the process shuts down. A client that has sent its request may close its own side
// of the connection and still wait for the answer. net/http ends the client's context then, as it does when
// the client is gone: the two look alike until something is sent. Waits, streams, simulations and back-tests,
// which may last for long, end with the client; see draining.
func (r *request) outlive(client context.Context, config Config) (context.Context, context.CancelFunc) {
	r.client = client
	ctx, cancel := context.WithCancel(context.WithValue(context.WithoutCancel(client), requestKey{}, r))
	r.base = ctx
	stop := context.AfterFunc(client, func() {
		end := time.AfterFunc(config.Outlive, cancel)
		drained := func() bool { return false }
		if config.Draining != nil {
			drained = context.AfterFunc(config.Draining, cancel)
		}
		context.AfterFunc(ctx, func() {
			end.Stop()
			drained()
		})
	})
	return ctx, func() {
		stop()
		cancel()
	}
}

// origin returns what history records about the request.
func (r *request) origin(reason *string) fsm.Origin {
	return fsm.Origin{
		Actor: r.principal.subject, Reason: value(reason), CorrelationID: r.correlationID, Traceparent: r.traceparent,
		TraceID: r.traceID,
	}
}

// caller returns who the request is from, for the audit.
func (r *request) caller() fsm.Caller {
	return fsm.Caller{
		Actor: r.principal.subject, Token: r.principal.tokenID, Address: r.address, RequestID: r.id, Unauthenticated: r.principal.open,
	}
}

// admit runs every check that does not need the body, and fills in r. Its
// order is part of the contract: path, method, repeated headers, token, scope, rate, query,
// Accept, headers. A caller without a valid token thus learns nothing beyond the published contract.
// recall: see identify.
func (s *server) admit(ctx context.Context, r *request, in *http.Request, recall bool) error {
	query, err := cleanURL(in.URL)
	if err != nil {
		return err
	}
	if r.route == nil {
		return &problemError{code: api.ProblemCodeNotFound, detail: "there is nothing at " + in.URL.EscapedPath()}
	}
	method := in.Method
	if method == http.MethodHead {
		method = http.MethodGet
	}
	var known bool
	if r.op, known = r.route.methods[method]; !known {
		return &problemError{
			code: api.ProblemCodeMethodNotAllowed, detail: in.Method + " is not a method of this path",
			headers: map[string]string{"Allow": r.route.allow()},
		}
	}
	if r.op.admission.public {
		return nil // A probe is answered whatever parameters and headers it sends.
	}
	if err := checkSingle(in.Header); err != nil {
		return err
	}
	dryRun := query.Get("dry_run") == "true"
	if err := s.identify(ctx, r, method, recall && r.op.commands() && !dryRun); err != nil {
		return err
	}
	if err := r.op.checkQuery(query); err != nil {
		return err
	}
	if !accepts(in.Header, r.op.produces) {
		return notAcceptable(r.op.produces)
	}
	return r.readHeaders(in.Header, dryRun)
}

// notAcceptable returns the problem of a request whose Accept admits none of the media types.
func notAcceptable(types []string) error {
	return &problemError{code: api.ProblemCodeNotAcceptable, detail: "Accept must admit " + strings.Join(types, " or ")}
}

// cleanURL parses the query. It refuses a path or a query with NUL, with bytes that are not
// UTF-8, or with malformed escapes.
func cleanURL(u *url.URL) (url.Values, error) {
	if !fsm.IsText(u.Path) {
		return nil, malformed("path", "must be UTF-8 without NUL")
	}
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return nil, malformed("query", "is not well formed: "+err.Error())
	}
	for name, values := range query {
		if !fsm.IsText(name) || !fsm.IsText(strings.Join(values, "")) {
			if !fsm.IsText(name) {
				name = "query"
			}
			return nil, malformed(name, "must be UTF-8 without NUL")
		}
	}
	return query, nil
}

// identify sets the principal, and checks its scopes, its rate and its tenant. method: that of the operation. With recall the
// principal may be one that is remembered.
func (s *server) identify(ctx context.Context, r *request, method string, recall bool) (err error) {
	if r.principal, r.admission, err = s.principalOf(ctx, r.header, recall); err != nil {
		return err
	}
	p := &r.principal
	switch {
	case !p.has(r.op.admission.scopes...):
		return &problemError{
			code: api.ProblemCodeForbidden, detail: "this operation needs a token with the scope " + quoted(r.op.admission.scopes, " or "),
		}
	case (r.op.tenancy == ofDeploymentAlone || r.op.admission.needs(ScopeAdmin) && r.op.tenancy == ofDeployment) && !p.isDeployment():
		return &problemError{code: api.ProblemCodeForbidden, detail: "this operation needs a token of the tenant *"}
	}
	if !r.counted {
		if exceeded := s.limits.allow(*p); exceeded != "" {
			return &problemError{code: api.ProblemCodeTooManyRequests, detail: exceeded}
		}
		r.counted = true
	}
	return r.op.tenancy.check(p, method)
}

// principalOf returns the principal of a request; see authenticate.
func (s *server) principalOf(ctx context.Context, h http.Header, recall bool) (principal, *fsm.Admission, error) {
	actsFor := h.Get(tenantHeader)
	if len(h.Values(tenantHeader)) > 0 && (!fsm.IsText(actsFor) || actsFor == "" || utf8.RuneCountInString(actsFor) > 63) {
		return principal{}, nil, malformed(tenantHeader, "must be 1 to 63 characters of UTF-8")
	}
	if s.auth != nil {
		token, err := bearer(h)
		if err != nil {
			return principal{}, nil, err
		}
		return s.auth.authenticate(ctx, token, actsFor, recall)
	}
	p := principal{subject: "anonymous", home: s.config.Tenant, tenant: s.config.Tenant, open: true, grants: []grant{{scopes: Scopes()}}}
	if actor := h.Get("X-Actor"); actor != "" {
		if !fsm.IsText(actor) || utf8.RuneCountInString(actor) > 255 {
			return p, nil, malformed("X-Actor", "must be at most 255 characters of UTF-8")
		}
		p.subject = actor
	}
	if actsFor != "" && actsFor != p.tenant {
		return p, nil, &problemError{code: api.ProblemCodeForbidden, detail: "without authentication the service has one tenant, which is " + p.tenant}
	}
	return p, nil, nil
}
