package main

import (
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/internal/bounded"
	"github.com/pawl-fsm/pawl/internal/telemetry/telemetrytest"
)

// traced makes each request to a handler a span below that of the caller, as a service does that is instrumented, and exports
// it to a collector.
func traced(t *testing.T, collector string, handler http.Handler) http.Handler {
	t.Helper()
	push, err := otlptracehttp.New(t.Context(), otlptracehttp.WithEndpointURL(collector+"/v1/traces"))
	if err != nil {
		t.Fatal(err)
	}
	spans := sdktrace.NewTracerProvider(sdktrace.WithSyncer(push), sdktrace.WithResource(resource.NewSchemaless(attribute.String("service.name", "agency"))))
	t.Cleanup(func() { _ = spans.Shutdown(context.Background()) })
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		place, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
		caller := propagation.TraceContext{}.Extract(r.Context(), propagation.HeaderCarrier(r.Header))
		_, span := spans.Tracer("agency").Start(caller, r.Method+" /"+place+"/bookings", trace.WithSpanKind(trace.SpanKindServer))
		answer := httptest.NewRecorder()
		handler.ServeHTTP(answer, r)
		if answer.Code >= http.StatusBadRequest {
			span.SetStatus(codes.Error, strings.TrimSpace(answer.Body.String()))
		}
		// It ends, and is exported, before the answer.
		span.End()
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(answer.Code)
		_, _ = w.Write(answer.Body.Bytes()) // Nobody is left to tell if it fails.
	})
}

// A trip without a car is one trace: as the services export it while it is made, and as pawl tells the whole life of the instance
// afterwards.
func TestTrace(t *testing.T) {
	t.Parallel()
	live := telemetrytest.NewCollector(t)
	stub := httptest.NewServer(traced(t, live.URL, newAgency()))
	t.Cleanup(stub.Close)
	s := begin(t, dbtest.NewDSN(t), stub.URL, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT="+live.URL+"/v1/traces", "OTEL_BSP_SCHEDULE_DELAY=50")
	const caller = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	trip := s.Do(http.MethodPost, "/v1/workflows/trip-saga/instances", `{"context": {"city": "Lisbon", "car": "limousine"}}`,
		"Idempotency-Key", "trip", "traceparent", caller).Want(t, http.StatusCreated).Header.Get("Location")
	s.Await(trip, "CANCELLED")

	t.Run("exported", func(t *testing.T) {
		want := readme(t, "pawl: create")
		// The registration is a span, too, of a trace of its own.
		spans := bounded.Until(t, "all spans", live.Spans, func(spans []telemetrytest.Span) bool {
			return len(in(spans, caller[3:35])) >= strings.Count(want, "\n")
		})
		spans = in(spans, caller[3:35])
		if diff := cmp.Diff(want, telemetrytest.Tree(spans)); diff != "" {
			t.Errorf("the spans are not those of the README (-README +got):\n%s%s", diff, telemetrytest.Tree(spans))
		}
		if root := spans[0]; root.Parent() != caller[36:52] {
			t.Errorf("the first span is below %s, want the caller's", root.Parent())
		}
	})
	t.Run("told", func(t *testing.T) {
		viewer := telemetrytest.NewCollector(t)
		answer := s.Do(http.MethodGet, trip+"/trace", nil).Want(t, http.StatusOK)
		post(t, viewer.URL+"/v1/traces", answer.Text)
		spans := viewer.Spans()
		if want, got := readme(t, "pawl: trip-saga"), telemetrytest.Tree(spans); got != want {
			t.Errorf("the trace is not the one of the README (-README +got):\n%s%s", cmp.Diff(want, got), got)
		}
		instance := strings.ReplaceAll(trip[strings.LastIndex(trip, "/")+1:], "-", "")
		for _, span := range spans {
			if span.Trace() != instance || span.EndTimeUnixNano < span.StartTimeUnixNano {
				t.Errorf("the span %v is not of the trace %s, or has not ended", span, instance)
			}
			for _, link := range span.Links {
				linked := telemetrytest.Span{Span: span.Span}
				linked.TraceId, linked.SpanId = link.TraceId, link.SpanId
				if _, exported := live.Span(linked.ID()); !exported || linked.Trace() != caller[3:35] {
					t.Errorf("the span %s links to %s of %s, which was not exported", span.Name, linked.ID(), linked.Trace())
				}
			}
		}
	})
}

// in returns the spans of a trace.
func in(spans []telemetrytest.Span, id string) (list []telemetrytest.Span) {
	for _, s := range spans {
		if s.Trace() == id {
			list = append(list, s)
		}
	}
	return list
}

// readme returns the tree of the README that begins with a text.
func readme(t *testing.T, begin string) string {
	t.Helper()
	text, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "```text\n"+begin)
	rest, _, found := strings.Cut(rest, "```")
	if !found {
		t.Fatalf("the README has no tree that begins with %s", begin)
	}
	return begin + rest
}

// post sends JSON.
func post(t *testing.T, url, body string) {
	t.Helper()
	r, err := http.NewRequestWithContext(bounded.Context(t), http.MethodPost, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = answer.Body.Close() }()
	if answer.StatusCode != http.StatusOK {
		t.Fatalf("%s: %d", url, answer.StatusCode)
	}
}
