// Package telemetrytest collects the spans that programs export, for tests.
package telemetrytest

import (
	"cmp"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// A Span is a span with the name of the service that it is of.
type Span struct {
	*tracepb.Span
	Service string
}

// ID is the id of the span, in hexadecimal.
func (s Span) ID() string { return hex.EncodeToString(s.SpanId) }

// Trace is the id of the trace, in hexadecimal.
func (s Span) Trace() string { return hex.EncodeToString(s.TraceId) }

// Parent is the id of the parent, in hexadecimal; empty for none.
func (s Span) Parent() string { return hex.EncodeToString(s.ParentSpanId) }

// A Collector receives spans by OTLP over HTTP, as protobuf or as JSON, and keeps them.
type Collector struct {
	URL   string
	mu    sync.Mutex
	spans []Span
}

// NewCollector starts a Collector, which ends with the test.
func NewCollector(t testing.TB) *Collector {
	t.Helper()
	c := &Collector{}
	server := httptest.NewServer(c)
	t.Cleanup(server.Close)
	c.URL = server.URL
	return c
}

// ServeHTTP receives spans at POST /v1/traces. It refuses a body that is not to the letter of the protocol. Metrics, say, are
// accepted and forgotten.
func (c *Collector) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil || r.Method != http.MethodPost || r.URL.Path != "/v1/traces" {
		return
	}
	// An export has the form of TracesData.
	var data tracepb.TracesData
	if r.Header.Get("Content-Type") == "application/json" {
		err = unmarshal(body, &data)
	} else {
		err = proto.Unmarshal(body, &data)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, of := range data.ResourceSpans {
		service := ""
		for _, a := range of.GetResource().GetAttributes() {
			if a.Key == "service.name" {
				service = a.Value.GetStringValue()
			}
		}
		for _, scope := range of.ScopeSpans {
			for _, span := range scope.Spans {
				c.spans = append(c.spans, Span{span, service})
			}
		}
	}
}

// unmarshal reads the JSON of OTLP, which is that of protobuf but for ids: these are hexadecimal
// (opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding). Members that are not known are refused.
func unmarshal(body []byte, data *tracepb.TracesData) error {
	var document any
	if err := json.Unmarshal(body, &document); err != nil {
		return err
	}
	if err := encodeIDs(document); err != nil {
		return err
	}
	body, err := json.Marshal(document)
	if err != nil {
		return err
	}
	return protojson.Unmarshal(body, data)
}

// encodeIDs writes the ids of a document as protobuf wants them.
func encodeIDs(value any) error {
	switch v := value.(type) {
	case []any:
		for _, element := range v {
			if err := encodeIDs(element); err != nil {
				return err
			}
		}
	case map[string]any:
		for name, member := range v {
			size := map[string]int{"traceId": 16, "spanId": 8, "parentSpanId": 8}[name]
			if size == 0 {
				if err := encodeIDs(member); err != nil {
					return err
				}
				continue
			}
			id, err := hex.DecodeString(fmt.Sprint(member))
			if err != nil || len(id) != size {
				return fmt.Errorf("%s: %v is no id of %d bytes", name, member, size)
			}
			v[name] = base64.StdEncoding.EncodeToString(id)
		}
	}
	return nil
}

// Spans returns the spans that have come so far, by the time at which they began.
func (c *Collector) Spans() []Span {
	c.mu.Lock()
	defer c.mu.Unlock()
	spans := slices.Clone(c.spans)
	slices.SortStableFunc(spans, func(a, b Span) int { return cmp.Compare(a.StartTimeUnixNano, b.StartTimeUnixNano) })
	return spans
}

// Span returns the span with an id, in hexadecimal, and whether it has come.
func (c *Collector) Span(id string) (Span, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := slices.IndexFunc(c.spans, func(s Span) bool { return s.ID() == id })
	if i < 0 {
		return Span{}, false
	}
	return c.spans[i], true
}

// Tree writes spans as a tree, as a viewer shows them: a line has the service and the name of a span, and why it failed, if it
// did. A span is below its parent, if that is one of them.
func Tree(spans []Span) string {
	known := map[string]bool{}
	for _, s := range spans {
		known[s.ID()] = true
	}
	var b strings.Builder
	var write func(parent string, depth int)
	write = func(parent string, depth int) {
		for _, s := range spans {
			if s.Parent() != parent && (depth > 0 || known[s.Parent()]) {
				continue
			}
			failed := ""
			if s.GetStatus().GetCode() == tracepb.Status_STATUS_CODE_ERROR {
				failed = "  ✗ " + s.Status.Message
			}
			_, _ = fmt.Fprintf(&b, "%s%s: %s%s\n", strings.Repeat("  ", depth), s.Service, s.Name, failed)
			write(s.ID(), depth+1)
		}
	}
	write("", 0)
	return b.String()
}
