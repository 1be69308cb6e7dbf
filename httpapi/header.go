package httpapi

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"iter"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/httpapi/api"
)

// singleHeaders are the headers of which one value is meant. The idempotency key is another one,
// with a problem code of its own, and so is Authorization. net/http refuses a second Host and a second Content-Length.
var singleHeaders = []string{"Content-Type", "Last-Event-ID", "X-Actor", "X-Correlation-ID", tenantHeader}

// checkSingle refuses a single header that was sent more than once. A proxy in front may have
// chosen, and checked, another one than the service would.
func checkSingle(h http.Header) error {
	for _, name := range singleHeaders {
		if len(h.Values(name)) > 1 {
			return malformed(name, "must be sent once")
		}
	}
	return nil
}

// readHeaders parses the headers that commands and conditional requests have. A dry run
// needs no idempotency key.
func (r *request) readHeaders(h http.Header, dryRun bool) (err error) {
	if r.op.keyRequired && !dryRun {
		if r.key, err = idempotencyKey(h); err != nil {
			return err
		}
	}
	if ids := h.Values("X-Correlation-ID"); len(ids) > 0 {
		if !fsm.IsVisible(ids[0], 255) {
			return malformed("X-Correlation-ID", "must be 1 to 255 visible ASCII characters")
		}
		r.correlationID = ids[0]
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
	r.readPreferences(h)
	return nil
}

// readTrace reads traceparent. W3C Trace Context, 3.2: an invalid one is ignored, and so is one that was sent twice. The
// request begins a trace then.
func (r *request) readTrace(h http.Header) {
	if lines := h.Values("traceparent"); len(lines) == 1 && isTraceparent(lines[0]) {
		r.traceparent, r.traceID = lines[0], lines[0][3:35]
		return
	}
	r.traceID = newTraceID()
}

// newTraceID returns a random id as W3C Trace Context, 3.2.2.3, has it.
func newTraceID() string {
	var id [16]byte
	_, _ = rand.Read(id[:]) // It never fails.
	return hex.EncodeToString(id[:])
}

// readPreferences reads return and wait from Prefer (RFC 7240). Unknown preferences are
// ignored; of several with one name the first counts.
func (r *request) readPreferences(h http.Header) {
	for preference := range elements(h, "Prefer") {
		name, value := parameter(slices.Collect(split(preference, ';'))[0])
		value = strings.ToLower(value)
		if name == "wait" && r.wait == nil {
			if wait, ok := parseWait(value); ok {
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
}

// returnApplied returns the Preference-Applied header (RFC 7240, 3) for return, or nil if the
// request has no such preference.
func (r *request) returnApplied() *string {
	if !r.preferred {
		return nil
	}
	s := "return=representation"
	if r.minimal {
		s = "return=minimal"
	}
	return &s
}

// elements returns the elements of a header whose value is a comma-separated list (RFC 9110,
// 5.6.1), without the empty ones.
func elements(h http.Header, name string) iter.Seq[string] {
	return func(yield func(string) bool) {
		for _, line := range h.Values(name) {
			for element := range split(line, ',') {
				if element != "" && !yield(element) {
					return
				}
			}
		}
	}
}

// split splits a text at each separator that is not within a quoted string (RFC 9110, 5.6.4), and
// trims the parts. There is at least one part.
func split(text string, separator byte) iter.Seq[string] {
	return func(yield func(string) bool) {
		quoted, begin := false, 0
		for i := 0; i < len(text); i++ {
			switch c := text[i]; {
			case quoted && c == '\\':
				i++
			case c == '"':
				quoted = !quoted
			case c == separator && !quoted:
				if !yield(strings.TrimSpace(text[begin:i])) {
					return
				}
				begin = i + 1
			}
		}
		yield(strings.TrimSpace(text[begin:]))
	}
}

// parameter splits name=value, whose value may be a quoted string. The name is returned in lower
// case. A quoted string that is not well formed has the value "".
func parameter(text string) (name, value string) {
	name, value, _ = strings.Cut(text, "=")
	name, value = strings.ToLower(strings.TrimSpace(name)), strings.TrimSpace(value)
	if strings.HasPrefix(value, `"`) {
		value, _ = unquote(value, func(byte) bool { return true })
	}
	return name, value
}

var traceparent = regexp.MustCompile(`^([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(-[!-~]*)?$`)

// isTraceparent implements W3C Trace Context, 3.2: version ff and ids of zeros are invalid,
// and version 00 ends after the flags. Longer versions are limited to 255 characters.
func isTraceparent(text string) bool {
	m := traceparent.FindStringSubmatch(text)
	return m != nil && len(text) <= 255 && m[1] != "ff" && (m[1] != "00" || m[4] == "") &&
		strings.Trim(m[2], "0") != "" && strings.Trim(m[3], "0") != ""
}

// idempotencyKey reads the key from Idempotency-Key or its alias. A bare key and the same key
// as a structured-field string (RFC 8941, 3.3.3) are equal.
func idempotencyKey(h http.Header) (string, error) {
	keys := append(h.Values("Idempotency-Key"), h.Values("X-Idempotency-Key")...)
	switch {
	case len(keys) == 0:
		return "", &problemError{
			code:   api.ProblemCodeIdempotencyKeyRequired,
			detail: "send an Idempotency-Key header: a new key for a new request, the same key for a retry",
		}
	case len(keys) > 1:
		return "", &problemError{
			code: api.ProblemCodeIdempotencyKeyInvalid, detail: "send one Idempotency-Key header, or one X-Idempotency-Key header instead",
		}
	}
	key := keys[0]
	if strings.HasPrefix(key, `"`) {
		unquoted, ok := unquote(key, func(c byte) bool { return c == '"' || c == '\\' })
		if !ok {
			return "", &problemError{code: api.ProblemCodeIdempotencyKeyInvalid, detail: "the quoted key is not a structured-field string"}
		}
		key = unquoted
	}
	return key, fsm.CheckKey(key)
}

// unquote parses a quoted string. It returns false if the string escapes a character that is not
// escapable, has no closing quote, or goes on after it.
func unquote(s string, escapable func(byte) bool) (string, bool) {
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch c := s[i]; {
		case c == '"':
			return b.String(), i == len(s)-1
		case c == '\\':
			if i++; i == len(s) || !escapable(s[i]) {
				return "", false
			}
			b.WriteByte(s[i])
		default:
			b.WriteByte(c)
		}
	}
	return "", false
}

// etag writes a version of an instance as a strong entity tag.
func etag(version int64) string { return `"` + strconv.FormatInt(version, 10) + `"` }

// etags writes a precondition as If-Match does: a list of entity tags, or *.
func etags(e fsm.Expect) string {
	if e.Any() {
		return "*"
	}
	return strings.Join(each(e.Versions(), etag), ", ")
}

// notModified compares If-None-Match with a tag, weakly (RFC 9110, 13.1.2).
func (r *request) notModified(tag string) bool {
	return slices.ContainsFunc(r.ifNoneMatch, func(t string) bool {
		return t == "*" || strings.TrimPrefix(t, "W/") == tag
	})
}

// entityTags splits a list of entity tags (RFC 9110, 8.8.3), or returns "*" alone.
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
			return nil, errors.New(`must be * or quoted entity tags, such as "3"`)
		}
		end := strings.IndexByte(opaque[1:], '"')
		if end < 0 {
			return nil, errors.New("has an entity tag without its closing quote")
		}
		n := len(rest) - len(opaque) + end + 2
		tags, rest = append(tags, rest[:n]), rest[n:]
		if rest = strings.TrimLeft(rest, " \t"); rest != "" && rest[0] != ',' {
			return nil, errors.New("must have commas between its entity tags")
		}
	}
	if len(tags) == 0 {
		return nil, errors.New("is empty")
	}
	return tags, nil
}

// expect converts If-Match to the versions that it admits. The comparison is strong (RFC
// 9110, 13.1.1): a weak tag matches no version, nor does a tag that etag does not write.
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

// accepts reports whether the Accept header admits one of the media types (RFC 9110, 12.5.1).
// It is not asked about problems: the RFC allows to send an error in any media type.
func accepts(h http.Header, produces []string) bool {
	return len(produces) == 0 || preferredOf(h, produces) != ""
}

// preferredOf returns the media type with the highest weight, the first one of equals, or "" if
// Accept admits none.
func preferredOf(h http.Header, produces []string) (best string) {
	weight := 0.0
	for _, media := range produces {
		if q := quality(h, media); q > weight {
			best, weight = media, q
		}
	}
	return best
}

var weightPattern = regexp.MustCompile(`^(0(\.[0-9]{0,3})?|1(\.0{0,3})?)$`)

// quality returns the weight that Accept gives a media type. The most specific range decides.
// Without Accept every type has the weight 1, as has a range without a weight that can be read.
func quality(h http.Header, media string) float64 {
	if strings.Join(h.Values("Accept"), "") == "" {
		return 1
	}
	kind, _, _ := strings.Cut(media, "/")
	best, weight := 0, 0.0
	for element := range elements(h, "Accept") {
		parts := slices.Collect(split(element, ';'))
		specific := map[string]int{media: 3, kind + "/*": 2, "*/*": 1}[strings.ToLower(parts[0])]
		if specific <= best {
			continue
		}
		best, weight = specific, 1
		for _, p := range parts[1:] {
			if name, q := parameter(p); name == "q" && weightPattern.MatchString(q) {
				weight, _ = strconv.ParseFloat(q, 64) // It matches the pattern.
			}
		}
	}
	return weight
}
