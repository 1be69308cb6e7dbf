package httpapi

import (
	"context"
	"fmt"
	"iter"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/pawl-fsm/pawl/fsm"
)

// A request is what the headers and the path of a request say, parsed once.
type request struct {
	id        string
	op        *operation
	url       *url.URL
	header    http.Header
	principal principal

	key           string
	correlationID string
	traceparent   string
	ifMatch       fsm.Expect
	ifMatchText   string // As it was sent.
	ifNoneMatch   []string
	minimal       bool // Prefer: return=minimal
	preferred     bool // Prefer: return=…
	head          bool
	// wait is how long it may wait, nil if it did not say.
	wait *time.Duration
}

type requestKey struct{}

// requestOf returns the request that a context belongs to.
func requestOf(ctx context.Context) *request {
	if r, ok := ctx.Value(requestKey{}).(*request); ok {
		return r
	}
	return &request{}
}

// origin is what history records of the request.
func (r *request) origin(reason *string) fsm.Origin {
	return fsm.Origin{
		Actor: r.principal.subject, Reason: value(reason), CorrelationID: r.correlationID, Traceparent: r.traceparent,
	}
}

// etag writes a version as a strong entity tag.
func etag(version int64) string { return `"` + strconv.FormatInt(version, 10) + `"` }

// etags writes a precondition as If-Match does: a list of entity tags, or *.
func etags(e fsm.Expect) string {
	if e.Any() {
		return "*"
	}
	return strings.Join(each(e.Versions(), etag), ", ")
}

// notModified compares If-None-Match weakly (RFC 9110, 13.1.2).
func (r *request) notModified(tag string) bool {
	return slices.ContainsFunc(r.ifNoneMatch, func(t string) bool {
		return t == "*" || strings.TrimPrefix(t, "W/") == tag
	})
}

// applied is the Preference-Applied header (RFC 7240), nil if none was asked for.
func (r *request) applied() *string {
	if !r.preferred {
		return nil
	}
	s := "return=representation"
	if r.minimal {
		s = "return=minimal"
	}
	return &s
}

// nextLink is the Link header of a page, nil on the last.
func (r *request) nextLink(cursor string) *string {
	if cursor == "" {
		return nil
	}
	query := r.url.Query()
	query.Set("cursor", cursor)
	link := fmt.Sprintf(`<%s?%s>; rel="next"`, r.url.EscapedPath(), query.Encode())
	return &link
}

// admit checks everything of a request but its body and its meaning, and fills in r.
func (s *server) admit(r *request, in *http.Request) error {
	query, err := cleanURL(in.URL)
	if err != nil {
		return err
	}
	route := s.contract.match(in.URL.EscapedPath())
	if route == nil {
		return &problemError{code: ProblemCodeNotFound, detail: "there is nothing at " + in.URL.EscapedPath()}
	}
	method := in.Method
	if method == http.MethodHead {
		method = http.MethodGet
	}
	var known bool
	if r.op, known = route.methods[method]; !known {
		return &problemError{
			code: ProblemCodeMethodNotAllowed, detail: in.Method + " is not a method of this path",
			headers: map[string]string{"Allow": route.allow()},
		}
	}
	if err := s.identify(r, in.Header); err != nil {
		return err
	}
	if r.op.open {
		return nil // A probe gets its answer, whatever it sends along.
	}
	if err := r.op.checkQuery(query); err != nil {
		return err
	}
	if !accepts(in.Header, r.op.produces) {
		return &problemError{
			code: ProblemCodeNotAcceptable, detail: "this path answers with " + strings.Join(r.op.produces, " or "),
		}
	}
	return r.readHeaders(in.Header, query.Get("dry_run") == "true")
}

// cleanURL refuses a path or query that hides NUL, invalid UTF-8 or bad escapes, and a
// path that only nearly is one of ours.
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

// identify finds out whom the request acts for, and whether it may.
func (s *server) identify(r *request, h http.Header) error {
	r.principal = principal{subject: "anonymous", tenant: s.config.Tenant}
	switch {
	case r.op.open:
		return nil
	case s.auth == nil:
		if actor := h.Get("X-Actor"); actor != "" {
			if !isText(actor) || utf8.RuneCountInString(actor) > 255 {
				return malformed("X-Actor", "must be at most 255 characters of UTF-8")
			}
			r.principal.subject = actor
		}
	default:
		var err error
		if r.principal, err = s.auth.authenticate(h.Get("Authorization")); err != nil {
			return err
		}
		if err := r.principal.allow(r.op); err != nil {
			return err
		}
	}
	if !s.limits.allow(r.principal) {
		return &problemError{code: ProblemCodeTooManyRequests, detail: "wait a moment before the next request"}
	}
	return nil
}

var traceparent = regexp.MustCompile(`^([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(-[!-~]*)?$`)

// isTraceparent follows W3C Trace Context, 3.2: no version ff, no ids of zeros, and
// nothing behind the flags of version 00.
func isTraceparent(text string) bool {
	m := traceparent.FindStringSubmatch(text)
	return m != nil && len(text) <= 255 && m[1] != "ff" && (m[1] != "00" || m[4] == "") &&
		strings.Trim(m[2], "0") != "" && strings.Trim(m[3], "0") != ""
}

func (r *request) readHeaders(h http.Header, dryRun bool) (err error) {
	if r.op.keyRequired && !dryRun {
		if r.key, err = idempotencyKey(h); err != nil {
			return err
		}
	}
	if ids := h.Values("X-Correlation-ID"); len(ids) > 0 {
		if len(ids) > 1 || !fsm.IsVisible(ids[0], 255) {
			return malformed("X-Correlation-ID", "must be 1 to 255 visible ASCII characters, sent once")
		}
		r.correlationID = ids[0]
	}
	// Trace context says to ignore what is not valid.
	if t := h.Get("traceparent"); t != "" && isTraceparent(t) {
		r.traceparent = t
	}
	if lines := h.Values("If-Match"); len(lines) > 0 {
		r.ifMatchText = strings.Join(lines, ", ")
		tags, err := entityTags(r.ifMatchText)
		if err != nil {
			return malformed("If-Match", err.Error())
		}
		r.ifMatch = expect(tags)
	}
	if lines := h.Values("If-None-Match"); len(lines) > 0 {
		if r.ifNoneMatch, err = entityTags(strings.Join(lines, ", ")); err != nil {
			return malformed("If-None-Match", err.Error())
		}
	}
	for preference := range tokens(h, "Prefer") {
		// Unknown preferences are to be ignored, and the first one of a name counts.
		name, value, _ := strings.Cut(preference, "=")
		value, _, _ = strings.Cut(value, ";")
		value = strings.ToLower(strings.Trim(strings.TrimSpace(value), `"`))
		name = strings.ToLower(strings.TrimSpace(name))
		if name == "wait" && r.wait == nil {
			if wait, ok := waitOf(value); ok {
				r.wait = &wait
			}
		}
		if name != "return" || r.preferred {
			continue
		}
		switch value {
		case "minimal":
			r.minimal, r.preferred = true, true
		case "representation":
			r.preferred = true
		}
	}
	return nil
}

// tokens splits the comma-separated values of a header.
func tokens(h http.Header, name string) iter.Seq[string] {
	return func(yield func(string) bool) {
		for _, line := range h.Values(name) {
			for token := range strings.SplitSeq(line, ",") {
				if !yield(strings.TrimSpace(token)) {
					return
				}
			}
		}
	}
}

// idempotencyKey reads the key, bare or as a quoted structured-field string (RFC 8941,
// 3.3.3), which is the same key.
func idempotencyKey(h http.Header) (string, error) {
	keys := append(h.Values("Idempotency-Key"), h.Values("X-Idempotency-Key")...)
	switch {
	case len(keys) == 0:
		return "", &problemError{
			code:   ProblemCodeIdempotencyKeyRequired,
			detail: "send an Idempotency-Key header: a new one for a new request, the same one for a retry",
		}
	case len(keys) > 1:
		return "", &problemError{code: ProblemCodeIdempotencyKeyInvalid, detail: "the key must be sent once"}
	}
	key := keys[0]
	if strings.HasPrefix(key, `"`) {
		quoted, ok := unquote(key)
		if !ok {
			return "", &problemError{code: ProblemCodeIdempotencyKeyInvalid, detail: "the key's quotes are not closed"}
		}
		key = quoted
	}
	return key, fsm.CheckKey(key)
}

// unquote reads a structured-field string.
func unquote(s string) (string, bool) {
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch c := s[i]; {
		case c == '"':
			return b.String(), i == len(s)-1
		case c == '\\':
			if i++; i == len(s) || s[i] != '"' && s[i] != '\\' {
				return "", false
			}
			b.WriteByte(s[i])
		default:
			b.WriteByte(c)
		}
	}
	return "", false
}

// entityTags splits a list of entity tags (RFC 9110, 8.8.3), or "*".
func entityTags(text string) ([]string, error) {
	if strings.TrimSpace(text) == "*" {
		return []string{"*"}, nil
	}
	var tags []string
	for rest := text; ; {
		rest = strings.TrimLeft(rest, " \t,")
		if rest == "" {
			break
		}
		opaque := strings.TrimPrefix(rest, "W/")
		if !strings.HasPrefix(opaque, `"`) {
			return nil, fmt.Errorf(`must be * or quoted entity tags, such as "3"`)
		}
		end := strings.IndexByte(opaque[1:], '"')
		if end < 0 {
			return nil, fmt.Errorf(`has an entity tag without its closing quote`)
		}
		n := len(rest) - len(opaque) + end + 2
		tags, rest = append(tags, rest[:n]), rest[n:]
		if rest = strings.TrimLeft(rest, " \t"); rest != "" && rest[0] != ',' {
			return nil, fmt.Errorf("must have commas between its entity tags")
		}
	}
	if len(tags) == 0 {
		return nil, fmt.Errorf("is empty")
	}
	return tags, nil
}

// expect turns If-Match into the versions that will do. Weak tags and those that no
// version has match nothing.
func expect(tags []string) fsm.Expect {
	var versions []int64
	for _, t := range tags {
		if t == "*" {
			return fsm.ExpectAny()
		}
		v, err := strconv.ParseInt(strings.Trim(t, `"`), 10, 64)
		if err == nil && etag(v) == t {
			versions = append(versions, v)
		}
	}
	return fsm.ExpectVersion(versions...)
}

// accepts says whether an Accept header leaves one of the media types (RFC 9110, 12.5.1).
// A problem is always sent, as the RFC allows.
func accepts(h http.Header, produces []string) bool {
	if strings.Join(h.Values("Accept"), "") == "" || len(produces) == 0 {
		return true
	}
	any := false
	for _, media := range produces {
		kind, _, _ := strings.Cut(media, "/")
		// The most specific range decides.
		best, weight := 0, 0.0
		for token := range tokens(h, "Accept") {
			rng, params, _ := strings.Cut(token, ";")
			specific := map[string]int{media: 3, kind + "/*": 2, "*/*": 1}[strings.ToLower(strings.TrimSpace(rng))]
			if specific <= best {
				continue
			}
			best, weight = specific, 1
			for p := range strings.SplitSeq(params, ";") {
				if q, ok := strings.CutPrefix(strings.ToLower(strings.TrimSpace(p)), "q="); ok {
					if v, err := strconv.ParseFloat(q, 64); err == nil {
						weight = v
					}
				}
			}
		}
		any = any || weight > 0
	}
	return any
}
