package httpapi

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"github.com/pawl-fsm/pawl/httpapi/api"
)

// An edge decides which requests are looked at, before anything is known of their caller. It protects callers with a
// browser from web pages that send requests in their name, to which the network or a proxy gives access.
type edge struct {
	hosts    []string
	loopback bool
	origins  []string
	foreign  *http.CrossOriginProtection
	proxies  []netip.Prefix
}

// newEdge returns an error for an origin that no browser sends.
func newEdge(config Config) (*edge, error) {
	e := &edge{
		loopback: config.OnLoopback, origins: config.CORSOrigins, foreign: http.NewCrossOriginProtection(), proxies: config.TrustedProxies,
	}
	for _, host := range config.AllowedHosts {
		e.hosts = append(e.hosts, normalHost(host))
	}
	for _, origin := range e.origins {
		if err := e.foreign.AddTrustedOrigin(origin); err != nil || strings.ToLower(origin) != origin || strings.Contains(origin, "*") {
			return nil, fmt.Errorf("the origin %q must be written as browsers send it, such as https://app.example or http://localhost:3000", origin)
		}
	}
	return e, nil
}

// securityHeaders are in every answer. No answer is to be kept by a cache, unless its operation says so, or to be
// shown as a page.
var securityHeaders = map[string]string{
	"X-Content-Type-Options":  "nosniff",
	"Cache-Control":           "no-store",
	"Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
	"Referrer-Policy":         "no-referrer",
}

// mark sets the headers that every answer has. Strict-Transport-Security (RFC 6797) is for a year.
func (e *edge) mark(h http.Header, in *http.Request) {
	for name, value := range securityHeaders {
		h.Set(name, value)
	}
	if in.TLS != nil {
		h.Set("Strict-Transport-Security", "max-age=31536000")
	}
}

// admit refuses a request for another host, and one that a page of another site sends and that may change something.
// It lets pages of the allowed origins read the answer (Fetch standard, CORS protocol).
func (e *edge) admit(h http.Header, in *http.Request) error {
	if !e.answersFor(in) {
		return &problemError{
			code: api.ProblemCodeMisdirectedRequest, detail: fmt.Sprintf("this service does not answer for the host %q; the deployment names its hosts with --allowed-host", in.Host),
		}
	}
	if len(e.origins) > 0 {
		h.Set("Vary", "Origin")
		if e.isOpenTo(in) {
			h.Set("Access-Control-Allow-Origin", in.Header.Get("Origin"))
			h.Set("Access-Control-Expose-Headers", "ETag, Location, Idempotent-Replayed, Retry-After, X-Request-ID")
		}
	}
	if err := e.foreign.Check(in); err != nil {
		return &problemError{
			code: api.ProblemCodeForbidden, detail: "a page of another site sent this request; the deployment names the origins that may, with --cors-origin", cause: err,
		}
	}
	return nil
}

// isOpenTo reports whether a page of an allowed origin sent the request.
func (e *edge) isOpenTo(in *http.Request) bool {
	origin := in.Header["Origin"]
	return len(origin) == 1 && slices.Contains(e.origins, origin[0])
}

// callerHeaders are the request headers that pages may set.
const callerHeaders = "Accept, Authorization, Content-Type, Idempotency-Key, X-Idempotency-Key, If-Match, If-None-Match, Last-Event-ID, Prefer, " +
	"X-Actor, X-Correlation-ID, X-Pawl-Tenant, X-Request-ID, traceparent"

// preflight answers the question whether a page may send a request that it could not send as a form.
func (e *edge) preflight(h http.Header, in *http.Request, allow string) {
	if in.Header.Get("Access-Control-Request-Method") == "" || !e.isOpenTo(in) {
		return
	}
	h.Set("Access-Control-Allow-Methods", allow)
	h.Set("Access-Control-Allow-Headers", callerHeaders)
	h.Set("Access-Control-Max-Age", "600")
}

// answersFor reports whether the request names a host of this service. A page whose name resolves to the address of
// the service (DNS rebinding) is of the same origin for its browser, which still sends that name. So the address
// that the connection came in by is always a host, and the names of this machine are if that is a loopback address.
func (e *edge) answersFor(in *http.Request) bool {
	if len(e.hosts) == 0 && !e.loopback {
		return true
	}
	host := normalHost(in.Host)
	name := hostname(host)
	if slices.Contains(e.hosts, host) || slices.Contains(e.hosts, name) {
		return true
	}
	local, _ := in.Context().Value(http.LocalAddrContextKey).(net.Addr)
	if local == nil {
		return false
	}
	own, err := netip.ParseAddrPort(local.String())
	if err != nil {
		return false
	}
	at := own.Addr().Unmap().WithZone("")
	if given, err := netip.ParseAddr(name); err == nil {
		given = given.Unmap().WithZone("")
		return given == at || at.IsLoopback() && given.IsLoopback()
	}
	return at.IsLoopback() && (name == "localhost" || strings.HasSuffix(name, ".localhost"))
}

// normalHost writes a host, with or without a port, in lower case.
func normalHost(host string) string { return strings.ToLower(host) }

// hostname returns a host without its port, without brackets and without the dot of the root.
func hostname(host string) string {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	return strings.TrimSuffix(strings.Trim(host, "[]"), ".")
}

// caller returns the address that a request comes from: the peer's or, as long as that is a trusted proxy, the one
// that the proxy names in X-Forwarded-For. What stands before an untrusted address there may be invented.
func (e *edge) caller(in *http.Request) string {
	peer, err := parseAddress(in.RemoteAddr)
	if err != nil {
		return ""
	}
	hops := slices.Collect(elements(in.Header, "X-Forwarded-For"))
	for _, hop := range slices.Backward(hops) {
		if !slices.ContainsFunc(e.proxies, func(p netip.Prefix) bool { return p.Contains(peer) }) {
			break
		}
		before, err := parseAddress(hop)
		if err != nil {
			break
		}
		peer = before
	}
	return peer.String()
}

// parseAddress reads an address, with or without a port. The zone is left out.
func parseAddress(text string) (netip.Addr, error) {
	a, err := netip.ParseAddr(strings.Trim(text, "[]"))
	if withPort, portErr := netip.ParseAddrPort(text); portErr == nil {
		a, err = withPort.Addr(), nil
	}
	if err != nil {
		return a, errors.New("not an address")
	}
	return a.Unmap().WithZone(""), nil
}
