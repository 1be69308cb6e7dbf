package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/httpapi/api"
)

// clientFlags are the flags of the commands that are clients of the HTTP API.
type clientFlags struct {
	Server string `default:"http://127.0.0.1:8080" env:"PAWL_SERVER" help:"URL of the service."`
	Token  string `type:"secret" secret:"" placeholder:"@FILE" env:"PAWL_TOKEN" help:"Bearer token to send, from the environment or a file."`
	Tenant string `placeholder:"ID" help:"Tenant to act for, with a token of the tenant '*'."`
	Actor  string `env:"PAWL_ACTOR" help:"Who acts, for the history. It is ignored by a service with tokens."`
	JSON   bool   `help:"Print the answer as JSON."`
}

// Validate refuses a URL that no request can be sent to.
func (f *clientFlags) Validate() error {
	u, err := url.Parse(f.Server)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return errors.New("--server or PAWL_SERVER must be a URL such as http://127.0.0.1:8080")
	}
	return nil
}

// moment is a time in RFC 3339, as the service reads it.
type moment string

// UnmarshalText refuses a time that the service would refuse.
func (m *moment) UnmarshalText(text []byte) error {
	*m = moment(text)
	return new(api.Timestamp).UnmarshalText(text)
}

// problem is an error answer of the service, as RFC 9457 defines it, with pawl's members.
type problem struct {
	foreign       string         // The message for an answer that is not pawl's; the rest is empty then.
	Status        int            `json:"status"`
	Code          string         `json:"code"`
	Detail        string         `json:"detail"`
	RequestID     string         `json:"request_id"`
	AllowedEvents []string       `json:"allowed_events"`
	Guards        []string       `json:"guards"`
	Errors        []problemFault `json:"errors"`
}

type problemFault struct {
	Pointer   string `json:"pointer"`
	Parameter string `json:"parameter"`
	Detail    string `json:"detail"`
}

// Error returns the detail with what helps to go on, below it and indented.
func (p *problem) Error() string {
	if p.foreign != "" {
		return p.foreign
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%d %s: %s (request %s)", p.Status, oneLine(p.Code), oneLine(p.Detail), oneLine(p.RequestID))
	for _, e := range p.Errors {
		fmt.Fprintf(&b, "\n  %s%s: %s", oneLine(e.Pointer), oneLine(e.Parameter), oneLine(e.Detail))
	}
	if len(p.AllowedEvents) > 0 {
		fmt.Fprintf(&b, "\n  it accepts: %s", oneLine(strings.Join(p.AllowedEvents, ", ")))
	}
	for _, g := range p.Guards {
		fmt.Fprintf(&b, "\n  guard: %s", oneLine(g))
	}
	return b.String()
}

// call is a request to the service.
type call struct {
	method, path string
	query        url.Values
	body         any // Sent as JSON; nil sends no body.
	key          string
	ifMatch      string
	wait         time.Duration // How long the service may wait before it answers.
}

// ifMatch is the If-Match header for a version; empty for 0.
func ifMatch(version int64) string {
	if version == 0 {
		return ""
	}
	return fmt.Sprintf("%q", strconv.FormatInt(version, 10))
}

// parameters returns a query of those values that are not empty.
func parameters(values map[string]string) url.Values {
	query := url.Values{}
	for name, value := range values {
		if value != "" {
			query.Set(name, value)
		}
	}
	return query
}

// do sends a request and decodes the answer: JSON, or the text of a diagram if into is a *string. A POST gets
// an idempotency key, unless it has one. A request that is not answered, or answered with 429 or 503, is sent
// again with the same key: up to four times, each after a random wait whose bound doubles, and not before the
// Retry-After of the answer.
func (f *clientFlags) do(ctx context.Context, c call, into any) (status int, err error) {
	var body []byte
	if c.body != nil {
		if body, err = json.Marshal(c.body); err != nil {
			return 0, err
		}
	}
	if c.method == http.MethodPost && c.key == "" {
		c.key = uuid.NewString()
	}
	const tries = 5
	for try := 0; ; try++ {
		status, wait, err := f.once(ctx, c, body, into)
		var refused *problem
		again := err != nil && (!errors.As(err, &refused) || status == http.StatusTooManyRequests || status == http.StatusServiceUnavailable)
		if !again || try == tries-1 || ctx.Err() != nil {
			return status, err
		}
		wait = max(wait, rand.N(100*time.Millisecond<<try))
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return status, err
		}
	}
}

// once sends a request once. wait is the Retry-After of a refusal.
func (f *clientFlags) once(ctx context.Context, c call, body []byte, into any) (status int, wait time.Duration, err error) {
	target := strings.TrimRight(f.Server, "/") + c.path
	if len(c.query) > 0 {
		target += "?" + c.query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, c.method, target, bytes.NewReader(body))
	if err != nil {
		return 0, 0, err
	}
	for name, value := range map[string]string{
		"Idempotency-Key": c.key, "If-Match": c.ifMatch, "X-Actor": f.Actor, "X-Pawl-Tenant": f.Tenant,
	} {
		if value != "" {
			req.Header.Set(name, value)
		}
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if f.Token != "" {
		req.Header.Set("Authorization", "Bearer "+f.Token)
	}
	client := http.Client{Timeout: 30*time.Second + c.wait}
	res, err := client.Do(req)
	if err != nil {
		return 0, 0, unreachable(err)
	}
	defer func() { _ = res.Body.Close() }()
	if into == nil && res.StatusCode == http.StatusNoContent {
		return res.StatusCode, 0, nil
	}
	kinds := []string{"application/json"}
	text, drawn := into.(*string)
	if drawn {
		kinds = []string{"text/vnd.mermaid", "text/vnd.graphviz"}
	}
	if err := f.refusal(res, kinds...); err != nil {
		seconds, _ := strconv.Atoi(res.Header.Get("Retry-After"))
		return res.StatusCode, time.Duration(seconds) * time.Second, err
	}
	answer, err := io.ReadAll(res.Body)
	if err != nil {
		return 0, 0, err
	}
	if drawn {
		*text = string(answer)
	} else if into != nil {
		if err := json.Unmarshal(answer, into); err != nil {
			return 0, 0, fmt.Errorf("cannot read the service's answer: %w", err)
		}
	}
	return res.StatusCode, 0, nil
}

// unreachable adds advice to the error of a request that got no answer.
func unreachable(err error) error {
	return fmt.Errorf("%w (check --server, and that the service is running)", err)
}

// refusal returns nil for a successful answer of one of these media types, and a *problem otherwise. An
// answer that is not pawl's, such as one of a proxy, is a problem that names its status and media type.
func (f *clientFlags) refusal(res *http.Response, kinds ...string) error {
	kind, _, _ := mime.ParseMediaType(res.Header.Get("Content-Type"))
	if res.StatusCode < http.StatusBadRequest {
		if slices.Contains(kinds, kind) {
			return nil
		}
	} else if kind == "application/problem+json" {
		p := &problem{Status: res.StatusCode}
		if err := json.NewDecoder(io.LimitReader(res.Body, maxStep)).Decode(p); err == nil {
			return p
		}
	}
	server := f.Server
	if u, err := url.Parse(server); err == nil {
		server = u.Redacted()
	}
	text := fmt.Sprintf("%s does not answer as pawl does: %s", server, res.Status)
	if kind != "" {
		text += " with " + kind
	}
	text += " (check --server)"
	return &problem{Status: res.StatusCode, foreign: text}
}
