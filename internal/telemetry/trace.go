package telemetry

import (
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/google/uuid"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/outbox"
)

// The attributes of a span by which the step before it is found.
const (
	tenantAttribute   = attribute.Key("pawl.tenant")
	instanceAttribute = attribute.Key("pawl.instance")
	versionAttribute  = attribute.Key("pawl.version")
)

// linkTimeout is how long an export waits for the traces of the steps before. Without them it has no links.
const linkTimeout = 2 * time.Second

// tracing makes the provider of spans, which exports them if the variables say so.
func (t *Telemetry) tracing(ctx context.Context, about *resource.Resource) error {
	options := []sdktrace.TracerProviderOption{sdktrace.WithResource(about), sdktrace.WithIDGenerator(ids{})}
	pushes, err := t.pushes("TRACES")
	if err != nil {
		return err
	}
	if pushes {
		push, err := otlptracehttp.New(ctx)
		if err != nil {
			return fmt.Errorf("telemetry: %w", err)
		}
		// Spans that find the queue full are dropped: no command waits for the collector.
		batches := sdktrace.WithSpanProcessor(sdktrace.NewBatchSpanProcessor(&linker{SpanExporter: push, telemetry: t}))
		// Whether a step is sampled has been decided when it was made.
		t.steps = sdktrace.NewTracerProvider(append(options[:len(options):len(options)], batches, sdktrace.WithSampler(sdktrace.AlwaysSample()))...)
		options = append(options, batches)
	}
	t.spans = sdktrace.NewTracerProvider(options...)
	return nil
}

// Trace begins the span of a command; see [fsm.Trace]. Whether it is sampled is what its parent says, and else what
// OTEL_TRACES_SAMPLER says: by default it is.
func (t *Telemetry) Trace(operation string, origin fsm.Origin) (traceparent string, end func(fsm.Ended)) {
	parent := extract(origin.Traceparent)
	if id, err := trace.TraceIDFromHex(origin.TraceID); err == nil {
		parent = context.WithValue(parent, traceIDKey{}, id)
	}
	ctx, span := t.spans.Tracer("pawl").Start(parent, operation, trace.WithSpanKind(trace.SpanKindServer))
	into := propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(ctx, into)
	return into["traceparent"], func(e fsm.Ended) {
		if !span.IsRecording() {
			return
		}
		name := operation
		attributes := []attribute.KeyValue{
			tenantAttribute.String(e.Tenant), attribute.String("pawl.operation", operation), attribute.String("pawl.outcome", e.Outcome),
		}
		if e.Workflow != "" {
			name += " " + e.Workflow
			attributes = append(attributes, attribute.String("pawl.workflow", e.Workflow))
		}
		if e.Event != "" {
			attributes = append(attributes, attribute.String("pawl.event", e.Event))
		}
		if e.Key != "" {
			attributes = append(attributes, attribute.String("pawl.idempotency", e.Key))
		}
		if e.Version > 0 {
			attributes = append(attributes, instanceAttribute.String(e.Instance.String()), versionAttribute.Int64(e.Version))
		}
		if e.Failed {
			span.SetStatus(codes.Error, e.Outcome)
		}
		span.SetName(name)
		span.SetAttributes(attributes...)
		span.End()
	}
}

// Attempt begins the span of an attempt to call a service or to deliver a webhook; see [outbox.Trace].
func (t *Telemetry) Attempt(a outbox.Attempt) (traceparent string, end func(status int, failure error)) {
	attributes := []attribute.KeyValue{tenantAttribute.String(a.Tenant), attribute.String("http.request.method", a.Method), attribute.Int("pawl.attempt", a.Number)}
	for key, id := range map[string]uuid.UUID{"pawl.task": a.Task, "pawl.delivery": a.Delivery, "pawl.subscription": a.Subscription} {
		if id != uuid.Nil {
			attributes = append(attributes, attribute.String(key, id.String()))
		}
	}
	if a.Connection != "" {
		attributes = append(attributes, attribute.String("pawl.connection", a.Connection))
	}
	if a.Reconciling {
		attributes = append(attributes, attribute.Bool("pawl.reconciling", true))
	}
	ctx, span := t.spans.Tracer("pawl").Start(extract(a.Traceparent), a.Method+" "+cmp.Or(a.Connection, "webhook"),
		trace.WithSpanKind(trace.SpanKindClient), trace.WithAttributes(attributes...))
	into := propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(ctx, into)
	return into["traceparent"], func(status int, failure error) {
		if status > 0 {
			span.SetAttributes(attribute.Int("http.response.status_code", status))
		}
		if failure != nil {
			span.SetStatus(codes.Error, failure.Error())
		}
		span.End()
	}
}

type (
	traceIDKey struct{}
	spanIDKey  struct{}
)

// ids makes random ids. A trace and a span have the ids that the context has, if any.
type ids struct{}

// NewIDs returns the ids of a span that begins a trace.
func (i ids) NewIDs(ctx context.Context) (id trace.TraceID, span trace.SpanID) {
	id, _ = ctx.Value(traceIDKey{}).(trace.TraceID)
	for !id.IsValid() {
		binary.BigEndian.PutUint64(id[:8], rand.Uint64())
		binary.BigEndian.PutUint64(id[8:], rand.Uint64())
	}
	return id, i.NewSpanID(ctx, id)
}

// NewSpanID returns the id of a span.
func (ids) NewSpanID(ctx context.Context, _ trace.TraceID) (id trace.SpanID) {
	id, _ = ctx.Value(spanIDKey{}).(trace.SpanID)
	for !id.IsValid() {
		binary.BigEndian.PutUint64(id[:], rand.Uint64())
	}
	return id
}

// LinkBy sets how the traces of the steps before some steps are found, so that spans link to them. Until then they have no
// links.
func (t *Telemetry) LinkBy(previous func(context.Context, []fsm.TracedStep) ([]string, error)) {
	t.previous.Store(&previous)
}

// A linker exports spans with links to those of the steps before theirs. It looks these up in the background, where
// nobody waits for them, and for all spans of an export at once.
type linker struct {
	sdktrace.SpanExporter
	telemetry *Telemetry
}

// linked is a span with a link.
type linked struct {
	sdktrace.ReadOnlySpan
	links []sdktrace.Link
}

// Links returns the links of the span.
func (l linked) Links() []sdktrace.Link { return l.links }

// ExportSpans exports spans.
func (l *linker) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	return l.SpanExporter.ExportSpans(ctx, l.link(ctx, spans))
}

func (l *linker) link(ctx context.Context, spans []sdktrace.ReadOnlySpan) []sdktrace.ReadOnlySpan {
	find := l.telemetry.previous.Load()
	if find == nil {
		return spans
	}
	var steps []fsm.TracedStep
	var at []int
	for i, span := range spans {
		if step, ok := stepOf(span); ok && step.Version > 1 {
			steps, at = append(steps, step), append(at, i)
		}
	}
	if len(steps) == 0 {
		return spans
	}
	ctx, cancel := context.WithTimeout(ctx, linkTimeout)
	defer cancel()
	previous, err := (*find)(ctx, steps)
	if err != nil {
		return spans
	}
	out := append([]sdktrace.ReadOnlySpan{}, spans...)
	for n, traceparent := range previous {
		if link := trace.SpanContextFromContext(extract(traceparent)); link.IsValid() {
			out[at[n]] = linked{out[at[n]], []sdktrace.Link{{
				SpanContext: link, Attributes: []attribute.KeyValue{attribute.String("pawl.link", "previous step")},
			}}}
		}
	}
	return out
}

// stepOf returns the step that a span has made.
func stepOf(span sdktrace.ReadOnlySpan) (step fsm.TracedStep, ok bool) {
	for _, a := range span.Attributes() {
		switch a.Key {
		case tenantAttribute:
			step.Tenant = a.Value.AsString()
		case instanceAttribute:
			step.Instance, _ = uuid.Parse(a.Value.AsString())
		case versionAttribute:
			step.Version = a.Value.AsInt64()
		case "pawl.idempotency":
			if a.Value.AsString() == "replayed" {
				return fsm.TracedStep{}, false // Another span made the step.
			}
		}
	}
	c := span.SpanContext()
	step.Traceparent = fmt.Sprintf("00-%s-%s-%s", c.TraceID(), c.SpanID(), c.TraceFlags())
	return step, step.Instance != uuid.Nil
}
