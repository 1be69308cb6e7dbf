package httpapi

import (
	"context"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/httpapi/api"
)

// other stands in logs and metrics for what callers may invent: paths and methods that are not in the contract.
const other = "_other"

// methods are those that the contract knows of, in some path or all.
var methods = []string{
	http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodOptions,
}

// routeName returns the pattern of the request's path. A path may hold secrets, such as a business key; a pattern holds
// none.
func (r *request) routeName() string {
	if r.route == nil {
		return other
	}
	return r.route.pattern
}

// methodName returns a method as logs and metrics show it.
func methodName(method string) string {
	if slices.Contains(methods, method) {
		return method
	}
	return other
}

// concerns notes the instance that the request is about.
func (r *request) concerns(workflow string, id uuid.UUID) {
	r.workflow = workflow
	if id != uuid.Nil { // Else it is one that a dry run would make.
		r.instance = id.String()
	}
}

// found are the codes of refusals that only an instance or a workflow can give that exists.
var found = []api.ProblemCode{
	api.ProblemCodeTransitionNotAllowed, api.ProblemCodeStateProtected, api.ProblemCodeNotCancellable, api.ProblemCodeGuardRejected,
	api.ProblemCodeGuardError, api.ProblemCodeInvalidContext, api.ProblemCodeInvalidPayload, api.ProblemCodeUnknownEvent,
	api.ProblemCodePreconditionRequired, api.ProblemCodeVersionMismatch, api.ProblemCodeInstanceExists, api.ProblemCodeInstanceFinal,
	api.ProblemCodeTooFewSamples,
}

// subject sets the workflow and the instance from the path, if the answer says that they exist. What does not exist may be
// anything that a caller has put into a path by mistake.
func (r *request) subject(method string, status int) {
	if r.route == nil || method == http.MethodOptions || status >= http.StatusBadRequest && !slices.Contains(found, r.problem) {
		return
	}
	segments := strings.Split(r.url.EscapedPath(), "/")
	switch pattern := r.route.pattern; {
	case strings.HasPrefix(pattern, "/v1/instances/{"):
		if id, err := uuid.Parse(segments[3]); err == nil {
			r.instance = id.String()
		}
	case strings.HasPrefix(pattern, "/v1/workflows/{"):
		if name, err := url.PathUnescape(segments[3]); err == nil {
			r.workflow = name
		}
	}
}

// logRequest logs a request that has ended.
func (s *server) logRequest(ctx context.Context, r *request, method string, status int, took time.Duration) {
	level, route := slog.LevelInfo, r.routeName()
	if r.problem == "" && (route == "/healthz" || route == "/readyz") {
		level = slog.LevelDebug
	}
	if !s.config.Logger.Enabled(ctx, level) {
		return
	}
	r.subject(method, status)
	attrs := append(make([]slog.Attr, 0, 10),
		slog.String("request_id", r.id), slog.String("method", methodName(method)), slog.String("route", route),
		slog.Int("status", status), slog.Float64("duration", took.Round(time.Microsecond).Seconds()), slog.String("trace_id", r.traceID),
	)
	for _, a := range []struct{ name, value string }{
		{"code", string(r.problem)}, {"tenant", r.principal.tenant}, {"workflow", r.workflow}, {"instance", r.instance},
	} {
		if a.value != "" {
			attrs = append(attrs, slog.String(a.name, a.value))
		}
	}
	s.config.Logger.LogAttrs(ctx, level, "request", attrs...)
}
