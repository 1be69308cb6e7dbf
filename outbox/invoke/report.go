package invoke

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"strings"

	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/outbox/dispatch"
)

const (
	// maxBody is how many bytes of the body of an answer are kept.
	maxBody = 64 << 10
	// maxHeader is how many bytes of a header of an answer are kept.
	maxHeader = 2 << 10
	// maxDepth is how deep JSON may be nested, so that it fits into a payload: at most 64 deep with what is around it.
	maxDepth = 60
	// maxNumber is how long the text of a number may be. maxExponent is how large its exponent may be: numeric has at most
	// 131,072 digits before the point.
	maxNumber, maxExponent = 1000, 1000
)

// A report says what came of a call.
type report struct {
	tenant, connection string
	task, lease        uuid.UUID
	outcome            outcome
	health             health
	// probe: the circuit of the connection was half-open.
	probe bool
}

// An outcome is a report as pawl.task_settle takes it.
type outcome struct {
	Result     result            `json:"result"`
	Status     int               `json:"status,omitempty"`
	Headers    map[string]string `json:"headers,omitempty"`
	Body       json.RawMessage   `json:"body,omitempty"`
	Error      string            `json:"error,omitempty"`
	RetryAfter float64           `json:"retry_after,omitempty"` // Seconds.
	Seconds    float64           `json:"seconds,omitempty"`
}

type result string

const (
	// answered: the service answered.
	answered result = "answered"
	// refused: the request was surely not sent.
	refused result = "refused"
	// lost: the request may have been sent, and there was no answer that can be read.
	lost result = "lost"
	// postponed: there was no attempt.
	postponed result = "postponed"
)

// A health is what an attempt says of its connection.
type health int

const (
	unsaid health = iota
	healthy
	failing
)

const (
	// tooLarge is the error of an answer whose body is larger than maxBody.
	tooLarge = "too-large"
	stopped  = "the process that called was stopped before there was an answer"
)

// kept are the headers of an answer that are kept.
var kept = []string{"Content-Type", "Location", "Retry-After", "X-Request-Id", "Request-Id", "X-Correlation-Id"}

// judge says what came of an attempt. cut is true if this process has ended it.
func judge(a dispatch.Answer, cut bool) (outcome, health) {
	switch {
	case a.Status == 0 && cut && !a.Begun:
		return outcome{Result: postponed, Error: stopped}, unsaid
	case a.Status == 0 && cut:
		return outcome{Result: lost, Error: stopped}, unsaid
	case a.Status == 0 && !a.Begun:
		return outcome{Result: refused, Error: a.Failure.Error()}, failing
	case a.Status == 0:
		return outcome{Result: lost, Error: a.Failure.Error()}, failing
	}
	o := outcome{Result: answered, Status: a.Status, Headers: map[string]string{}, RetryAfter: a.RetryAfter.Seconds()}
	for _, name := range kept {
		if value := a.Header.Get(name); value != "" {
			o.Headers[strings.ToLower(name)] = dispatch.Clean(value, maxHeader)
		}
	}
	busy := a.Status == http.StatusTooManyRequests || a.Status == http.StatusServiceUnavailable
	switch {
	case a.BodyFailure == nil:
		o.Body = bodyOf(a)
	case errors.Is(a.BodyFailure, dispatch.ErrTooLarge):
		o.Error = tooLarge
	case busy: // Nothing was done, whatever the rest of the answer would have been.
		o.Error = a.BodyFailure.Error()
	case cut:
		return outcome{Result: lost, Error: stopped}, unsaid
	default:
		return outcome{Result: lost, Error: "the answer ended early: " + a.BodyFailure.Error()}, failing
	}
	switch {
	case busy:
		return o, unsaid
	case a.Status >= http.StatusInternalServerError:
		return o, failing
	}
	return o, healthy
}

// bodyOf returns the body of an answer: JSON if its type says so and it can be stored, else a text. An empty body is none.
func bodyOf(a dispatch.Answer) json.RawMessage {
	if len(a.Body) == 0 {
		return nil
	}
	kind, _, _ := mime.ParseMediaType(a.Header.Get("Content-Type"))
	if kind == "application/json" || strings.HasSuffix(kind, "+json") {
		if body, ok := storable(a.Body); ok {
			return body
		}
	}
	text, _ := encode(dispatch.Clean(string(a.Body), maxBody)) // A text can be written.
	return text
}

// storable returns JSON as Postgres can store it. It reports false for a text that is no JSON, that is nested too deep, or that
// has a number that Postgres does not know.
func storable(text []byte) (json.RawMessage, bool) {
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	var value any
	if d.Decode(&value) != nil {
		return nil, false
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, false
	}
	value, ok := clean(value, maxDepth)
	if !ok {
		return nil, false
	}
	body, err := encode(value)
	return body, err == nil
}

// clean replaces what texts must not have: NUL.
func clean(value any, depth int) (any, bool) {
	if depth == 0 {
		return nil, false
	}
	switch v := value.(type) {
	case string:
		return noNUL(v), true
	case json.Number:
		return v, len(v) <= maxNumber && exponent(v) <= maxExponent
	case []any:
		for i := range v {
			cleaned, ok := clean(v[i], depth-1)
			if !ok {
				return nil, false
			}
			v[i] = cleaned
		}
	case map[string]any:
		cleaned := make(map[string]any, len(v))
		for name, member := range v {
			value, ok := clean(member, depth-1)
			if !ok {
				return nil, false
			}
			cleaned[noNUL(name)] = value
		}
		return cleaned, true
	}
	return value, true
}

func noNUL(text string) string { return strings.ReplaceAll(text, "\x00", "\uFFFD") }

// exponent returns the size of a number's exponent, or more than maxExponent if it is longer than that.
func exponent(n json.Number) (size int) {
	_, digits, _ := strings.Cut(strings.ToLower(n.String()), "e")
	for _, digit := range strings.TrimLeft(digits, "+-0") {
		if size = size*10 + int(digit-'0'); size > maxExponent {
			break
		}
	}
	return size
}

// encode writes JSON as it was meant, without the escapes that are for HTML.
func encode(value any) (json.RawMessage, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	err := e.Encode(value)
	return bytes.TrimSpace(b.Bytes()), err
}

// reportOf makes the report of a call.
func (c *call) reportOf(o outcome, h health) report {
	return report{tenant: c.TenantID, connection: c.Connection, task: c.TaskID, lease: c.Lease, outcome: o, health: h, probe: c.place.probe}
}
