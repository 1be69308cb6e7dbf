package httpapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"net/netip"
	"regexp"
	"runtime/debug"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/labstack/echo/v4"
	"golang.org/x/sync/singleflight"
	"golang.org/x/time/rate"

	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/access"
	"github.com/pawl-fsm/pawl/fsm/bulk"
	"github.com/pawl-fsm/pawl/fsm/connection"
	"github.com/pawl-fsm/pawl/fsm/diagnosis"
	"github.com/pawl-fsm/pawl/fsm/finding"
	"github.com/pawl-fsm/pawl/fsm/lifecycle"
	"github.com/pawl-fsm/pawl/fsm/live"
	"github.com/pawl-fsm/pawl/fsm/subscription"
	"github.com/pawl-fsm/pawl/fsm/task"
	"github.com/pawl-fsm/pawl/httpapi/api"
	"github.com/pawl-fsm/pawl/insight"
)

// A Config configures the handler. The zero value works.
type Config struct {
	// Tenant is the tenant of all requests without authentication. Default fsm.DefaultTenant.
	Tenant string
	// DatabaseTokens says that callers need a token, and that those of the database are taken. Without it, Tokens and
	// Verifier the service runs without authentication, and every caller may do everything.
	DatabaseTokens bool
	// Tokens are static tokens that are taken beside those of the database.
	Tokens []Token
	// Verifier, if not nil, verifies tokens of an identity provider.
	Verifier Verifier
	// RateLimit is the number of requests per second that each subject may send to this
	// process, with bursts of the same size. Default 0: no limit.
	RateLimit float64
	// AnswerPatience is how long a client may take to receive an answer, apart from a second for each 256 KiB. Then
	// the connection is closed. Default 30 s.
	AnswerPatience time.Duration
	// MaxHeld is how many bytes of bodies and of answers that were not received yet all requests together may hold.
	// One tenant's may hold half of that. Further requests are refused as unavailable. Bodies and answers of up to
	// 64 KiB do not count. Default 64 MiB.
	MaxHeld int64
	// MaxBody is the limit on the size of a body, in bytes. Default 1 MiB.
	MaxBody int64
	// Heartbeat is the interval at which an idle stream sends a comment, at most 15 s.
	// Default 10 s.
	Heartbeat time.Duration
	// StreamPatience is how long the client of a stream may take to receive a page before the
	// stream is ended. Default 10 s.
	StreamPatience time.Duration
	// Outlive is for how long a request is worked on after its client has closed the connection, or
	// its own side of it. Waits, streams, simulations and back-tests end at once.
	// Default 30 s.
	Outlive time.Duration
	// Auditor, if not nil, writes answers with 401 and 403 down, and reads of the audit. Default nil: nobody does.
	Auditor *access.Auditor
	// OnLoopback says that the service listens on a loopback address. Then it answers only requests that name a host of
	// AllowedHosts, an address of this machine or localhost. Default false.
	OnLoopback bool
	// AllowedHosts are the hosts that requests may name, with any port unless one is given here. The address that the
	// service listens on is always one of them. Default none: any host, or with OnLoopback those of this machine.
	AllowedHosts []string
	// CORSOrigins are the origins whose pages may call the service from a browser, such as https://app.example.
	// Default none: pages of other sites can read nothing and change nothing.
	CORSOrigins []string
	// TrustedProxies are the networks whose X-Forwarded-For is believed. Default none: the caller has the address that
	// the connection comes from.
	TrustedProxies []netip.Prefix
	// Leaving ends when the process is told to stop. It is not ready then, and still serves; it closes each connection
	// after the next answer, so that clients go elsewhere. Default nil: never.
	Leaving context.Context
	// Draining ends when the process begins to shut down. Waiting requests are then answered
	// and streams end. Default nil: never.
	Draining context.Context
	// Metrics answers GET /metrics, for callers of the deployment. Default nil: there is nothing there.
	Metrics http.Handler
	// Observe, if not nil, is called when a request has ended. Method and route are those of the contract, such as
	// /v1/instances/{id}, or _other. The tenant is empty if the caller was not let in.
	Observe func(method, route, tenant string, status int, took time.Duration)
	// Logger gets a line for each request when it has ended, at info, with the code of the problem if it was refused,
	// and at debug for each probe that succeeds. The line never has a path, a query, a key or a payload. It also gets an error line for each failure of the
	// service, and at most one warning a second while requests are refused as unavailable. Default: no
	// log.
	Logger *slog.Logger
}

// A server is the handler. It keeps no state about instances between requests.
type server struct {
	service       *fsm.Service
	workflows     *lifecycle.Service
	live          *live.Service
	subscriptions *subscription.Service
	bulks         *bulk.Service
	tasks         *task.Service
	findings      *finding.Service
	diagnoses     *diagnosis.Service
	connections   *connection.Service

	config   Config
	contract *contract
	edge     *edge
	access   *access.Service
	insight  *insight.Service
	auth     *authenticator // Nil without authentication.
	limits   *limits
	memory   *memory
	streams  *streams
	batches  *fsm.Gate
	router   http.Handler
	probes   singleflight.Group
	// unavailable limits the log lines about overload and an unavailable database.
	unavailable rate.Sometimes
}

// Services are what the handler answers from, all on one database.
type Services struct {
	Instances     *fsm.Service
	Workflows     *lifecycle.Service
	Live          *live.Service
	Subscriptions *subscription.Service
	Bulks         *bulk.Service
	Tasks         *task.Service
	Findings      *finding.Service
	Diagnoses     *diagnosis.Service
	Connections   *connection.Service
	Access        *access.Service
	Insight       *insight.Service
}

// ServicesOf returns the services on the database of one of them. The hub wakes the requests that wait;
// without one (nil) they look once a second.
func ServicesOf(instances *fsm.Service, hub *live.Hub) Services {
	return Services{
		Instances: instances, Workflows: lifecycle.New(instances), Live: live.New(instances, hub),
		Subscriptions: subscription.New(instances), Bulks: bulk.New(instances), Connections: connection.New(instances),
		Tasks: task.New(instances, hub), Findings: finding.New(instances), Diagnoses: diagnosis.New(instances), Access: access.New(instances), Insight: insight.New(instances),
	}
}

// New returns the handler for the whole contract. It returns an error if a token of the
// configuration is invalid, or if the contract has an operation without a valid x-scope.
func New(services Services, config Config) (http.Handler, error) {
	if config.Tenant == "" {
		config.Tenant = fsm.DefaultTenant
	}
	if config.MaxBody == 0 {
		config.MaxBody = 1 << 20
	}
	if config.Heartbeat <= 0 || config.Heartbeat > 15*time.Second {
		config.Heartbeat = 10 * time.Second
	}
	if config.StreamPatience <= 0 {
		config.StreamPatience = 10 * time.Second
	}
	if config.Outlive <= 0 {
		config.Outlive = 30 * time.Second
	}
	if config.AnswerPatience <= 0 {
		config.AnswerPatience = 30 * time.Second
	}
	if config.MaxHeld <= 0 {
		config.MaxHeld = 64 << 20
	}
	if config.Observe == nil {
		config.Observe = func(_, _, _ string, _ int, _ time.Duration) {}
	}
	if config.Logger == nil {
		config.Logger = slog.New(slog.DiscardHandler)
	}
	s := &server{
		service: services.Instances, workflows: services.Workflows, live: services.Live,
		subscriptions: services.Subscriptions, bulks: services.Bulks, connections: services.Connections, tasks: services.Tasks,
		findings: services.Findings, diagnoses: services.Diagnoses, access: services.Access, insight: services.Insight, config: config,
		limits: newLimits(config.RateLimit), memory: newMemory(config.MaxHeld), streams: newStreams(), batches: fsm.NewGate(4, 2, 1024),
		unavailable: rate.Sometimes{First: 1, Interval: time.Second},
	}
	var err error
	if s.contract, err = loadContract(); err != nil {
		return nil, fmt.Errorf("httpapi: %w", err)
	}
	if s.edge, err = newEdge(config); err != nil {
		return nil, fmt.Errorf("httpapi: %w", err)
	}
	if config.DatabaseTokens || len(config.Tokens) > 0 || config.Verifier != nil {
		s.auth = &authenticator{
			service: services.Instances, tokens: config.DatabaseTokens || len(config.Tokens) > 0, verifier: config.Verifier,
		}
		if s.auth.static, err = staticTokens(config.Tokens); err != nil {
			return nil, fmt.Errorf("httpapi: %w", err)
		}
	}
	e := echo.New()
	e.Binder = binder{config.MaxBody}
	e.HTTPErrorHandler = func(err error, c echo.Context) { s.fail(c.Request().Context(), c.Response(), err) }
	RegisterHandlers(e, NewStrictHandler(s, []StrictMiddlewareFunc{s.confirm}))
	s.router = e
	return s, nil
}

// ServeHTTP answers every request, with a problem if a handler panics.
func (s *server) ServeHTTP(w http.ResponseWriter, in *http.Request) {
	start, method := time.Now(), in.Method
	r := &request{id: uuid.NewString(), address: s.edge.caller(in), url: in.URL, header: in.Header, memory: s.memory, route: s.contract.match(in.URL.EscapedPath())}
	r.readTrace(in.Header)
	if ids := in.Header.Values("X-Request-ID"); len(ids) == 1 && fsm.IsVisible(ids[0], 128) {
		r.id = ids[0]
	}
	w.Header().Set("X-Request-ID", r.id)
	s.edge.mark(w.Header(), in)
	if s.isLeaving() {
		w.Header().Set("Connection", "close")
	}
	ctx, release := r.outlive(in.Context(), s.config)
	defer release()
	out := &response{ResponseWriter: w, server: s, ctx: ctx, request: r}
	defer func() {
		defer func() {
			r.hold(-r.held)
			if r.endStream != nil {
				r.endStream()
			}
		}()
		if cause := recover(); cause != nil {
			if cause == http.ErrAbortHandler {
				panic(cause)
			}
			s.fail(ctx, out, fmt.Errorf("panic: %v\n%s", cause, debug.Stack()))
		}
		out.end()
		took := time.Since(start)
		s.logRequest(ctx, r, method, out.status, took)
		s.config.Observe(methodName(method), r.routeName(), r.principal.tenant, out.status, took)
	}()
	if err := s.edge.admit(out.Header(), in); err != nil {
		if r.route != nil {
			r.op = r.route.methods[method] // For the audit.
		}
		s.fail(ctx, out, err)
		return
	}
	if in.Method == http.MethodOptions {
		if r.route != nil {
			out.Header().Set("Allow", r.route.allow())
			s.edge.preflight(out.Header(), in, r.route.allow())
			out.WriteHeader(http.StatusNoContent)
			return
		}
	}
	err := s.admit(ctx, r, in, true)
	if err != nil && r.admission != nil {
		err = s.admit(ctx, r, in, false)
	}
	if r.op != nil && len(r.op.produces) > 1 {
		out.Header().Set("Vary", strings.Join(append(out.Header().Values("Vary"), "Accept"), ", "))
	}
	if err != nil {
		s.fail(ctx, out, err)
		return
	}
	in = in.WithContext(r.context())
	if in.Method == http.MethodHead {
		// net/http discards the body of a response to HEAD.
		in.Method, r.head = http.MethodGet, true
	}
	s.router.ServeHTTP(out, in)
}

// fail answers with a problem, unless the response has begun, and logs the cause of a
// failure of the service, which the problem does not show.
func (s *server) fail(ctx context.Context, w http.ResponseWriter, err error) {
	if sent, ok := w.(interface{ sent() bool }); ok && sent.sent() {
		return
	}
	err = fromEcho(err)
	r := requestOf(ctx)
	if r.doubts(err) {
		if _, refusal := s.lookUp(r); refusal != nil {
			err = refusal
		}
	}
	p := writeProblem(ctx, w, err)
	r.problem = p.Code
	s.noteRefusal(r, p)
	switch {
	case p.Status == http.StatusServiceUnavailable:
		// Thousands of requests may fail for one reason: log one of them a second.
		s.unavailable.Do(func() {
			s.config.Logger.WarnContext(ctx, "requests are refused", "request_id", p.RequestID, "status", p.Status, "error", err)
		})
	case p.Status >= http.StatusInternalServerError:
		s.config.Logger.ErrorContext(ctx, "request failed", "request_id", p.RequestID, "status", p.Status, "error", err)
	}
}

// confirm answers a request anew whose answer is in doubt.
func (s *server) confirm(answer StrictHandlerFunc, _ string) StrictHandlerFunc {
	return func(c echo.Context, in any) (any, error) {
		out, err := answer(c, in)
		if r := requestOf(c.Request().Context()); err != nil && r.doubts(err) {
			ctx, err := s.lookUp(r)
			if err != nil {
				return nil, err
			}
			c.SetRequest(c.Request().WithContext(ctx))
			return answer(c, in)
		}
		return out, err
	}
}

var boundParameter = regexp.MustCompile(`^Invalid format for parameter ([^:]+): `)

// fromEcho converts the errors of echo and of the generated binding to problems.
func fromEcho(err error) error {
	he, ok := errors.AsType[*echo.HTTPError](err)
	_, domain := errors.AsType[*fsm.Error](err)
	switch {
	case domain: // First, because its cause may be an io.EOF of a lost database connection.
		return err
	case errors.Is(err, io.EOF):
		return &problemError{code: api.ProblemCodeMalformedRequest, detail: "this operation needs a JSON body"}
	case !ok:
		return err
	case he.Code == http.StatusNotFound:
		return &problemError{code: api.ProblemCodeNotFound, detail: "there is nothing at this path"}
	case he.Code == http.StatusBadRequest:
		if m := boundParameter.FindStringSubmatch(fmt.Sprint(he.Message)); m != nil {
			return malformed(m[1], "does not match its schema in the contract")
		}
		return &problemError{code: api.ProblemCodeMalformedRequest, detail: "the request is not well formed"}
	default:
		return fmt.Errorf("echo: %w", err)
	}
}

// A binder decodes bodies strictly, in place of the binder of echo. It returns io.EOF if
// there is no body.
type binder struct{ maxBody int64 }

func (b binder) Bind(into any, c echo.Context) error {
	in := c.Request()
	if in.ContentLength > b.maxBody {
		return b.tooLarge()
	}
	body, err := io.ReadAll(&held{http.MaxBytesReader(c.Response(), in.Body, b.maxBody), requestOf(in.Context())})
	if errors.Is(err, errHeld) {
		return errHeld
	}
	if _, large := errors.AsType[*http.MaxBytesError](err); large {
		return b.tooLarge()
	}
	if err != nil {
		return &problemError{code: api.ProblemCodeMalformedRequest, detail: "the body could not be read", cause: err}
	}
	if len(body) == 0 {
		return io.EOF
	}
	if !isJSON(in.Header.Get("Content-Type")) || isEncoded(in.Header) {
		return &problemError{
			code: api.ProblemCodeUnsupportedMediaType, detail: "send the body with Content-Type: application/json, in UTF-8 and without compression",
		}
	}
	return fsm.Decode(body, into)
}

// held is a body whose bytes are counted until the request ends, behind the first ones.
type held struct {
	body    io.Reader
	request *request
}

func (h *held) Read(p []byte) (int, error) {
	n, err := h.body.Read(p)
	if n > 0 && !h.request.holdBody(int64(n)) {
		return 0, errHeld
	}
	return n, err
}

func (b binder) tooLarge() error {
	return &problemError{code: api.ProblemCodeTooLarge, detail: fmt.Sprintf("a body must have at most %d bytes", b.maxBody)}
}

// isEncoded reports whether a body has a content coding. The service supports none.
func isEncoded(h http.Header) bool {
	for coding := range elements(h, "Content-Encoding") {
		if !strings.EqualFold(coding, "identity") {
			return true
		}
	}
	return false
}

// isJSON reports whether a content type is application/json in UTF-8.
func isJSON(contentType string) bool {
	media, params, err := mime.ParseMediaType(contentType)
	charset := params["charset"]
	return err == nil && media == "application/json" && (charset == "" || strings.EqualFold(charset, "utf-8"))
}
