package fsm

import (
	"context"

	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/db/queries"
)

// A Trace begins the span of a command, which is a child of the one that its origin names. It returns the traceparent of
// the new span, which history records, and a function that ends the span. Neither must block.
type Trace func(operation string, origin Origin) (traceparent string, end func(Ended))

// Ended says how a command has ended.
type Ended struct {
	Observation
	// Instance and Version are those after the step; zero if there was none.
	Instance uuid.UUID
	Version  int64
	// Failed: the service failed, as opposed to a refusal.
	Failed bool
}

// begin begins the span of a command, if there are spans, and gives its traceparent to the origin.
func (s *Service) begin(operation string, o *Origin) (end func(Ended)) {
	if s.config.Trace == nil {
		return func(Ended) {}
	}
	traceparent, end := s.config.Trace(operation, *o)
	o.Traceparent = traceparent
	return end
}

// A TracedStep names a step of an instance.
type TracedStep struct {
	Tenant   string
	Instance uuid.UUID
	Version  int64
	// Traceparent is that of the step.
	Traceparent string
}

// PreviousTraces returns, for each step, the traceparent of the last step before it that another command made, within 50
// steps; empty if there is none. It gives up with the context.
func (s *Service) PreviousTraces(ctx context.Context, steps []TracedStep) ([]string, error) {
	var p queries.PreviousTracesParams
	for _, x := range steps {
		p.Tenants = append(p.Tenants, x.Tenant)
		p.Ids = append(p.Ids, x.Instance)
		p.Versions = append(p.Versions, x.Version)
		p.Traceparents = append(p.Traceparents, x.Traceparent)
	}
	previous := make([]string, len(steps))
	err := s.db.Read(ctx, func(ctx context.Context, q *queries.Queries) error {
		rows, err := q.PreviousTraces(ctx, p)
		for _, r := range rows {
			previous[r.Ordinal-1] = r.Traceparent
		}
		return err
	})
	return previous, err
}

// Traceparents returns the traceparents of an instance's first steps, up to a limit, by their versions. Steps without one
// are left out.
func (s *Service) Traceparents(ctx context.Context, tenant string, id uuid.UUID, limit int) (map[int64]string, error) {
	out := map[int64]string{}
	err := s.db.Read(ctx, func(ctx context.Context, q *queries.Queries) error {
		rows, err := q.ListTraceparents(ctx, queries.ListTraceparentsParams{TenantID: tenant, InstanceID: id, RowLimit: int32(limit)})
		for _, r := range rows {
			out[r.Version] = r.Traceparent
		}
		return err
	})
	return out, err
}
