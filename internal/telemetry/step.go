package telemetry

import (
	"cmp"
	"context"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/pawl-fsm/pawl/outbox"
)

// stepsEvery is how often the log is read for steps without a span.
const stepsEvery = time.Second

// ReadSteps reads the log behind a position: see [outbox.OwnSteps].
type ReadSteps func(ctx context.Context, after *int64) (until int64, steps []outbox.OwnStep, err error)

// ExportSteps exports the spans of the steps that no request to a process has made, until the context ends. Only the process that
// leads reads the log. It begins a little before it leads, so that no step is missing when the leader changes; spans of that time may
// be exported twice, with the same ids. If no spans are exported, nothing is read.
func (b *Backlog) ExportSteps(ctx context.Context, read ReadSteps) error {
	if b.telemetry.steps == nil {
		return nil
	}
	tick := time.NewTicker(stepsEvery)
	defer tick.Stop()
	var after *int64
	failing := false
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if _, leads := b.shown(time.Now()); !leads {
			after = nil
			continue
		}
		for more := true; more && ctx.Err() == nil; {
			until, steps, err := b.readSteps(ctx, read, after)
			if err != nil {
				if !failing && ctx.Err() == nil {
					b.telemetry.config.Logger.WarnContext(ctx, "steps cannot be read for their spans", "error", err)
				}
				failing = true
				break
			}
			more, failing = after != nil && until > *after, false
			after = &until
			for _, step := range steps {
				b.telemetry.step(step)
			}
		}
	}
}

func (b *Backlog) readSteps(ctx context.Context, read ReadSteps, after *int64) (until int64, steps []outbox.OwnStep, err error) {
	ctx, cancel := context.WithTimeout(ctx, backlogEvery)
	defer cancel()
	return read(ctx, after)
}

// step exports the span of a step, whose ids are those in its traceparent.
func (t *Telemetry) step(s outbox.OwnStep) {
	own := trace.SpanContextFromContext(extract(s.Traceparent))
	if !own.IsValid() {
		return
	}
	ctx := context.WithValue(extract(s.Parent), traceIDKey{}, own.TraceID())
	ctx = context.WithValue(ctx, spanIDKey{}, own.SpanID())
	_, span := t.steps.Tracer("pawl").Start(ctx, cmp.Or(s.Event, "create")+" "+s.Workflow, trace.WithTimestamp(s.At), trace.WithAttributes(
		tenantAttribute.String(s.Tenant), instanceAttribute.String(s.Instance.String()), versionAttribute.Int64(s.Version),
		attribute.String("pawl.operation", s.Kind), attribute.String("pawl.workflow", s.Workflow), attribute.String("pawl.event", s.Event),
	))
	span.End(trace.WithTimestamp(s.At))
}

// extract returns a context with the span of a traceparent, if that is valid.
func extract(traceparent string) context.Context {
	return propagation.TraceContext{}.Extract(context.Background(), propagation.MapCarrier{"traceparent": traceparent})
}
