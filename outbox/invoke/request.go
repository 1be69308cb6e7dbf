package invoke

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"

	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/internal/address"
)

// A call is a task that was claimed, with the connection that it goes by.
type call struct {
	*queries.TaskCall
	place      *place
	connection *endpoint
	// claimed is when the claim began.
	claimed time.Time
	// traceparent is what the request carries; empty for nothing.
	traceparent string
}

// request makes the request of a call. Its error says what cannot be sent.
func (c *call) request(ctx context.Context) (*http.Request, error) {
	target, err := c.url()
	if err != nil {
		return nil, err
	}
	request, err := http.NewRequestWithContext(ctx, c.Method, target, c.body())
	if err != nil {
		return nil, errors.New("the URL or the method is not usable")
	}
	request.ContentLength = int64(len(c.Body))
	// net/http sends some requests again by itself: those whose body it can get again, and whose method or key says that this
	// does no harm. An attempt is one request.
	request.GetBody = nil
	if err := c.setHeaders(request.Header); err != nil {
		return nil, err
	}
	return request, nil
}

// body returns the body of the request. One that is not known to be empty keeps net/http from sending the request again.
func (c *call) body() io.Reader {
	switch {
	case c.Body != nil:
		return bytes.NewReader(c.Body)
	case c.Method == http.MethodGet || c.Method == http.MethodHead:
		return io.MultiReader()
	}
	return nil
}

// url joins the base URL of the connection with the path and the query.
func (c *call) url() (string, error) {
	var parts []json.RawMessage
	if err := json.Unmarshal(c.Path, &parts); err != nil {
		return "", fmt.Errorf("path: %w", err)
	}
	var b strings.Builder
	b.WriteString(strings.TrimSuffix(c.connection.base, "/"))
	for _, part := range parts {
		var text string
		if json.Unmarshal(part, &text) == nil {
			b.WriteString(literal.Replace(text))
			continue
		}
		var values []string
		if err := json.Unmarshal(part, &values); err != nil {
			return "", fmt.Errorf("path: %w", err)
		}
		for _, value := range values {
			b.WriteString(url.PathEscape(value))
		}
	}
	query := url.Values{}
	err := each(c.Query, func(name, value string) error {
		query.Add(name, value)
		return nil
	})
	if err != nil {
		return "", fmt.Errorf("query: %w", err)
	}
	if len(query) > 0 {
		b.WriteString("?" + query.Encode())
	}
	normal, err := address.NormalURL(b.String())
	if err != nil {
		return "", fmt.Errorf("the URL is not usable: it %w", err)
	}
	return normal, nil
}

// literal keeps the text of a path in the path.
var literal = strings.NewReplacer("?", "%3F", "#", "%23")

// setHeaders sets the headers of the connection, of the task, and those that pawl adds where they have none.
func (c *call) setHeaders(h http.Header) error {
	for _, headers := range []json.RawMessage{c.connection.headers, c.Headers} {
		own := http.Header{}
		err := each(headers, func(name, value string) error {
			if !httpguts.ValidHeaderFieldName(name) || !httpguts.ValidHeaderFieldValue(value) {
				return fmt.Errorf("the header %q has a name or a value that cannot be sent", name)
			}
			own.Add(name, value)
			return nil
		})
		if err != nil {
			return err
		}
		for name, values := range own {
			set(h, name, values...)
		}
	}
	if c.Body != nil {
		h.Set("Content-Type", "application/json")
	}
	if h.Get("User-Agent") == "" {
		h.Set("User-Agent", "pawl-tasks/1")
	}
	if c.traceparent != "" {
		h.Set("Traceparent", c.traceparent)
	}
	// SQL callers may have stored what a header cannot carry.
	if id := c.CorrelationID; id != nil && fsm.IsVisible(*id, 255) && h.Get("X-Correlation-Id") == "" {
		h.Set("X-Correlation-Id", *id)
	}
	if name, value := c.connection.authName, c.connection.authValue; name != "" {
		h.Set(name, value)
	}
	// The key comes last: without it a repeated attempt could have its effect twice.
	if c.IdempotencyHeader != "" {
		set(h, c.IdempotencyHeader, c.Key)
	}
	return nil
}

// set sets a header. net/http sends a request with a key again by itself, if it can. It looks for the key under its usual
// spelling, so keys are sent under another: names of headers have no case.
func set(h http.Header, name string, values ...string) {
	name = http.CanonicalHeaderKey(name)
	delete(h, name)
	if strings.HasSuffix(name, "Idempotency-Key") {
		name = strings.ToLower(name)
	}
	h[name] = values
}

// each calls f for each member of an object. A member that is null is left out, and of a list each element counts. What is no
// text is written as JSON.
func each(object json.RawMessage, f func(name, value string) error) error {
	if len(object) == 0 {
		return nil
	}
	var members map[string]json.RawMessage
	if err := json.Unmarshal(object, &members); err != nil {
		return err
	}
	for name, member := range members {
		var list []json.RawMessage
		if json.Unmarshal(member, &list) != nil {
			list = []json.RawMessage{member}
		}
		for _, value := range list {
			var text *string
			if json.Unmarshal(value, &text) != nil {
				plain := string(value)
				text = &plain
			}
			if text == nil {
				continue
			}
			if err := f(name, *text); err != nil {
				return err
			}
		}
	}
	return nil
}
