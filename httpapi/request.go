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
	op        *operation
	url       *url.URL
	header    http.Header
	principal principal
	// client ends when the client has closed the connection, or its own side of it.
	client    context.Context
	memory    *memory
	held      int64           // How many bytes it holds.
	body      int64           // How many bytes of its body were read.
	streaming bool            // The answer is a stream, which sets deadlines by itself.
	problem   api.ProblemCode // The code of the answer if it is a problem, for the log.

	key           string
	correlationID string
	traceparent   string
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
	}
}

// admit runs every check that needs neither the body nor the database, and fills in r. Its
// order is part of the contract: path, method, repeated headers, token, scope, rate, query,
// Accept, headers. A caller without a valid token thus learns nothing beyond the published contract.
func (s *server) admit(r *request, in *http.Request) error {
	query, err := cleanURL(in.URL)
	if err != nil {
		return err
	}
	route := s.contract.match(in.URL.EscapedPath())
	if route == nil {
		return &problemError{code: api.ProblemCodeNotFound, detail: "there is nothing at " + in.URL.EscapedPath()}
	}
	method := in.Method
	if method == http.MethodHead {
		method = http.MethodGet
	}
	var known bool
	if r.op, known = route.methods[method]; !known {
		return &problemError{
			code: api.ProblemCodeMethodNotAllowed, detail: in.Method + " is not a method of this path",
			headers: map[string]string{"Allow": route.allow()},
		}
	}
	if r.op.access.public {
		return nil // A probe is answered whatever parameters and headers it sends.
	}
	if err := checkSingle(in.Header); err != nil {
		return err
	}
	if err := s.identify(r, in.Header); err != nil {
		return err
	}
	if err := r.op.checkQuery(query); err != nil {
		return err
	}
	if !accepts(in.Header, r.op.produces) {
		return notAcceptable(r.op.produces)
	}
	return r.readHeaders(in.Header, query.Get("dry_run") == "true")
}

// notAcceptable returns the problem of a request whose Accept admits none of the media types.
func notAcceptable(types []string) error {
	return &problemError{code: api.ProblemCodeNotAcceptable, detail: "Accept must admit " + strings.Join(types, " or ")}
}

// cleanURL parses the query. It refuses a path or a query with NUL, with bytes that are not
// UTF-8, or with malformed escapes.
func cleanURL(u *url.URL) (url.Values, error) {
	if !isText(u.Path) {
		return nil, malformed("path", "must be UTF-8 without NUL")
	}
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return nil, malformed("query", "is not well formed: "+err.Error())
	}
	for name, values := range query {
		if !isText(name) || !isText(strings.Join(values, "")) {
			if !isText(name) {
				name = "query"
			}
			return nil, malformed(name, "must be UTF-8 without NUL")
		}
	}
	return query, nil
}

func isText(s string) bool { return utf8.ValidString(s) && !strings.ContainsRune(s, 0) }

// identify sets the principal and checks its scopes and its rate.
func (s *server) identify(r *request, h http.Header) error {
	r.principal = principal{subject: "anonymous", tenant: s.config.Tenant}
	if s.auth == nil {
		if actor := h.Get("X-Actor"); actor != "" {
			if !isText(actor) || utf8.RuneCountInString(actor) > 255 {
				return malformed("X-Actor", "must be at most 255 characters of UTF-8")
			}
			r.principal.subject = actor
		}
	} else {
		var err error
		if r.principal, err = s.auth.authenticate(h.Get("Authorization")); err != nil {
			return err
		}
		if err := r.op.access.allow(r.principal.scopes); err != nil {
			return err
		}
	}
	if !s.limits.allow(r.principal) {
		return &problemError{code: api.ProblemCodeTooManyRequests, detail: "the request rate of this subject is exceeded"}
	}
	return nil
}
