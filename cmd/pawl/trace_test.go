package main_test

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"syscall"
	"testing"

	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// A collector keeps the spans that it gets, by their ids.
type collector struct {
	*httptest.Server
	mu    sync.Mutex
	spans map[string]*tracepb.Span
}

func newCollector(t *testing.T) *collector {
	c := &collector{spans: map[string]*tracepb.Span{}}
	c.Server = httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, in *http.Request) {
		body, err := io.ReadAll(in.Body)
		// An export has the form of TracesData.
		var data tracepb.TracesData
		if err != nil || proto.Unmarshal(body, &data) != nil || in.URL.Path != "/v1/traces" {
			return // Metrics, say.
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, r := range data.ResourceSpans {
			for _, s := range r.ScopeSpans {
				for _, span := range s.Spans {
					c.spans[hex.EncodeToString(span.SpanId)] = span
				}
			}
		}
	}))
	t.Cleanup(c.Close)
	return c
}

func (c *collector) span(id string) *tracepb.Span {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.spans[id]
}

// sendTraced sends a POST, which must succeed, and returns the instance.
func sendTraced(t *testing.T, url, key, traceparent, body string) (id string) {
	t.Helper()
	in, err := http.NewRequestWithContext(bounded.Context(t), http.MethodPost, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	in.Header.Set("Content-Type", "application/json")
	in.Header.Set("Idempotency-Key", key)
	if traceparent != "" {
		in.Header.Set("traceparent", traceparent)
	}
	out, err := http.DefaultClient.Do(in)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Body.Close()
	var instance struct{ ID string }
	if err := json.NewDecoder(out.Body).Decode(&instance); err != nil || out.StatusCode >= 300 {
		t.Fatalf("%s: %d %v", url, out.StatusCode, err)
	}
	return instance.ID
}

// A pinger can be moved for ever.
const pinger = `{"name": "pinger", "initial": "ON", "states": {"ON": {"on": {"ping": "ON", "stop": "OFF"}}, "OFF": {"type": "final"}}}`

// Each command is a span below its caller's, of which history has the traceparent, and which links to that of the step before.
func TestTraces(t *testing.T) {
	t.Parallel()
	c := newCollector(t)
	dsn := dbtest.NewDSN(t)
	p := start(t, []string{"DATABASE_URL=" + dsn, "OTEL_EXPORTER_OTLP_ENDPOINT=" + c.URL, "OTEL_BSP_SCHEDULE_DELAY=50"}, "serve")
	mustPawl(t, []string{"PAWL_SERVER=" + p.url}, "workflow", "apply", writeFile(t, "pinger.json", pinger))
	const first, second, unsampled = "4bf92f3577b34da6a3ce929d0e0e4736", "0af7651916cd43dd8448eb211c80319c", "0af7651916cd43dd8448eb211c80319d"
	const caller = "00f067aa0ba902b7"
	id := sendTraced(t, p.url+"/v1/workflows/pinger/instances", "1", "00-"+first+"-"+caller+"-01", "{}")
	ping := p.url + "/v1/instances/" + id + "/actions/ping"
	sendTraced(t, ping, "2", "00-"+second+"-"+caller+"-01", "{}")
	sendTraced(t, ping, "2", "00-"+second+"-"+caller+"-01", "{}") // A replay makes no step.
	sendTraced(t, ping, "3", "00-"+unsampled+"-"+caller+"-00", "{}")
	sendTraced(t, ping, "4", "00-"+strings.Repeat("0", 32)+"-"+caller+"-01", "{}")
	sendTraced(t, ping, "5", "", "{}")
	db := dialDSN(t, dsn)
	at := func(version int) (trace, span, flags string) {
		parts := strings.Split(bounded.Value[string](t, db, "select coalesce(traceparent, '---') from pawl.history where version = $1", version), "-")
		return parts[1], parts[2], parts[3]
	}
	var spans []string
	for version, want := range []struct{ trace, flags string }{{first, "01"}, {second, "01"}, {unsampled, "00"}, {"", "01"}, {"", "01"}} {
		trace, span, flags := at(version + 1)
		if want.trace != "" && trace != want.trace || len(trace) != 32 || strings.Trim(trace, "0") == "" || span == caller || len(span) != 16 || flags != want.flags {
			t.Errorf("history has %s %s %s, want the trace %s", trace, span, flags, want.trace)
		}
		spans = append(spans, span)
		if flags == "01" {
			exported := bounded.Until(t, "a span", func() *tracepb.Span { return c.span(span) }, func(s *tracepb.Span) bool { return s != nil })
			parent := hex.EncodeToString(exported.ParentSpanId)
			if hex.EncodeToString(exported.TraceId) != trace || parent != map[bool]string{true: caller}[want.trace != ""] {
				t.Errorf("the span of version %d is of the trace %x, below %s", version+1, exported.TraceId, parent)
			}
			if linked := fmt.Sprintf("%x", exported.Links); version > 0 && (len(exported.Links) != 1 || hex.EncodeToString(exported.Links[0].SpanId) != spans[version-1]) {
				t.Errorf("the span of version %d links to %s, want %s", version+1, linked, spans[version-1])
			}
		}
	}
	if c.span(spans[2]) != nil {
		t.Error("a span is exported that its caller has not sampled")
	}
}

// A collector that takes connections and never answers costs nothing but its own spans: no command waits for it, and nor
// does the end of the process.
func TestCollectorThatHangs(t *testing.T) {
	t.Parallel()
	hole, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = hole.Close() })
	for name, url := range map[string]string{"hangs": "http://" + hole.Addr().String(), "away": "http://127.0.0.1:1"} {
		t.Run(name, func(t *testing.T) {
			env := []string{
				"DATABASE_URL=" + dbtest.NewDSN(t), "OTEL_EXPORTER_OTLP_ENDPOINT=" + url, "OTEL_BSP_MAX_QUEUE_SIZE=8", "OTEL_BSP_SCHEDULE_DELAY=1",
				"OTEL_BSP_MAX_EXPORT_BATCH_SIZE=4", "OTEL_METRIC_EXPORT_INTERVAL=100",
				// Who waits for the collector waits for longer than the test.
				"OTEL_EXPORTER_OTLP_TIMEOUT=3600000", "OTEL_BSP_EXPORT_TIMEOUT=3600000", "OTEL_METRIC_EXPORT_TIMEOUT=3600000",
			}
			p := start(t, env, "serve")
			mustPawl(t, []string{"PAWL_SERVER=" + p.url}, "workflow", "apply", writeFile(t, "pinger.json", pinger))
			id := sendTraced(t, p.url+"/v1/workflows/pinger/instances", "0", "", "{}")
			// Many times as many as there is room for in the queue.
			for n := range 100 {
				sendTraced(t, p.url+"/v1/instances/"+id+"/actions/ping", fmt.Sprint(n+1), "", "{}")
			}
			wantMetric(t, p.url, `pawl_commands_total{event="ping",outcome="applied",workflow="pinger"} 100`)
			p.Signal(t, syscall.SIGTERM)
			if err := p.Wait(t); err != nil {
				t.Errorf("after SIGTERM: %v", err)
			}
		})
	}
}
