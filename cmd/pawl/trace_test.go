package main_test

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"syscall"
	"testing"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/internal/bounded"
	"github.com/pawl-fsm/pawl/internal/telemetry/telemetrytest"
)

// sendTraced sends a POST, which must succeed, and returns the instance.
func sendTraced(t *testing.T, url, key, traceparent, body string) (id string) {
	t.Helper()
	in, err := http.NewRequestWithContext(bounded.Context(t), http.MethodPost, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	in.Header.Set("Content-Type", "application/json")
	if key != "" {
		in.Header.Set("Idempotency-Key", key)
	}
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
	c := telemetrytest.NewCollector(t)
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
			bounded.True(t, "a span", func() bool {
				_, ok := c.Span(span)
				return ok
			})
			exported, _ := c.Span(span)
			if exported.Trace() != trace || exported.Parent() != map[bool]string{true: caller}[want.trace != ""] {
				t.Errorf("the span of version %d is of the trace %s, below %s", version+1, exported.Trace(), exported.Parent())
			}
			if linked := fmt.Sprintf("%x", exported.Links); version > 0 && (len(exported.Links) != 1 || hex.EncodeToString(exported.Links[0].SpanId) != spans[version-1]) {
				t.Errorf("the span of version %d links to %s, want %s", version+1, linked, spans[version-1])
			}
		}
	}
	if _, exported := c.Span(spans[2]); exported {
		t.Error("a span is exported that its caller has not sampled")
	}
}

// An attempt to deliver a webhook is a span below that of its step, and the request carries it. The event has that of the step.
func TestDeliveriesAreTraced(t *testing.T) {
	t.Parallel()
	c := telemetrytest.NewCollector(t)
	type delivery struct{ carried, event string }
	got := make(chan delivery, 10)
	receiver := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, in *http.Request) {
		var event struct{ Traceparent string }
		if err := json.NewDecoder(in.Body).Decode(&event); err != nil {
			t.Error(err)
		}
		got <- delivery{in.Header.Get("Traceparent"), event.Traceparent}
		w.WriteHeader(http.StatusTeapot)
	}))
	t.Cleanup(receiver.Close)
	dsn := dbtest.NewDSN(t)
	p := start(t, []string{
		"DATABASE_URL=" + dsn, "OTEL_EXPORTER_OTLP_ENDPOINT=" + c.URL, "OTEL_BSP_SCHEDULE_DELAY=50", "PAWL_WEBHOOK_ALLOW_PRIVATE=true", "PAWL_WEBHOOK_MAX_ATTEMPTS=1",
	}, "serve")
	mustPawl(t, []string{"PAWL_SERVER=" + p.url}, "workflow", "apply", writeFile(t, "pinger.json", pinger))
	sendTraced(t, p.url+"/v1/subscriptions", "", "", `{"url": "`+receiver.URL+`"}`)
	const trace = "4bf92f3577b34da6a3ce929d0e0e4736"
	sendTraced(t, p.url+"/v1/workflows/pinger/instances", "1", "00-"+trace+"-00f067aa0ba902b7-01", "{}")
	sent := bounded.Receive(t, "the delivery", got)
	if step := bounded.Value[string](t, dialDSN(t, dsn), "select traceparent from pawl.history"); sent.event != step {
		t.Errorf("the event has %s, want %s of its step", sent.event, step)
	}
	if len(sent.carried) != 55 || sent.carried[3:35] != trace {
		t.Fatalf("the request carries %q", sent.carried)
	}
	id := sent.carried[36:52]
	bounded.True(t, "the span", func() bool {
		_, ok := c.Span(id)
		return ok
	})
	if span, _ := c.Span(id); span.Trace() != trace || span.Parent() != sent.event[36:52] || span.Status.Message != "the endpoint answered 418" {
		t.Errorf("the span is %v", span)
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
