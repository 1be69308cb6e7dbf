package httpapi

import (
	"context"
	"math"
	"time"

	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/httpapi/api"
	"github.com/pawl-fsm/pawl/insight"
)

// GetWorkflowStats answers with the statistics of a workflow.
func (s *server) GetWorkflowStats(ctx context.Context, r GetWorkflowStatsRequestObject) (GetWorkflowStatsResponseObject, error) {
	if err := requestOf(ctx).checkWorkflow(r.Name, 0); err != nil {
		return nil, err
	}
	if requestOf(ctx).principal.tenant == fsm.Deployment {
		return nil, &problemError{code: api.ProblemCodeTenantRequired, detail: "statistics are those of one tenant: name it in the header " + tenantHeader}
	}
	query := insight.StatsQuery{By: insight.By(value(r.Params.By))}
	var err error
	if query.From, err = dayAt("from", r.Params.From); err != nil {
		return nil, err
	}
	if query.To, err = dayAt("to", r.Params.To); err != nil {
		return nil, err
	}
	stats, err := s.insight.Stats(ctx, requestOf(ctx).principal.tenant, r.Name, query)
	if err != nil {
		return nil, err
	}
	return GetWorkflowStats200JSONResponse{
		Workflow: r.Name, AsOf: (*api.Timestamp)(stats.AsOf), From: stats.From.Format(time.DateOnly), To: stats.To.Format(time.DateOnly),
		Instances: each(stats.Instances, func(i insight.InstanceCount) api.InstanceCount {
			return api.InstanceCount{Version: optional(i.Version), State: i.State, Status: api.InstanceStatus(i.Status), Instances: i.Instances}
		}),
		States: each(stats.States, func(s insight.StateStats) api.StateStats {
			return api.StateStats{
				Version: optional(s.Version), Day: dayText(s.Day), State: s.State, Visits: s.Visits, P50: rounded(s.P50), P90: rounded(s.P90),
				P99: rounded(s.P99), Mean: rounded(s.Mean), Total: rounded(s.Total), Leavings: s.Leavings, DropOff: s.DropOff,
			}
		}),
		Edges: each(stats.Edges, func(e insight.Edge) api.StatsEdge {
			return api.StatsEdge{
				Version: optional(e.Version), Day: dayText(e.Day), From: optional(e.From), Event: optional(e.Event), To: e.To, Steps: e.Steps,
			}
		}),
		Hotspots: each(stats.Hotspots, func(h insight.Hotspot) api.Hotspot {
			return api.Hotspot{State: h.State, Share: h.Share, Total: rounded(h.Total), Now: h.Now, Before: h.Before, Slowdown: h.Slowdown}
		}),
		Tasks: each(stats.Tasks, func(t insight.TaskStats) api.TaskStats {
			return api.TaskStats{
				Topic: optional(t.Topic), Connection: optional(t.Connection), Tasks: t.Tasks, Open: t.Open, Done: t.Done, Errors: t.Errors,
				Unknown: t.Unknown, Cancelled: t.Cancelled, ErrorRate: t.ErrorRate, UnknownRate: t.UnknownRate,
			}
		}),
		TasksComplete: stats.TasksComplete,
		Refusals: each(stats.Refusals, func(r insight.Refusals) api.RefusalCount {
			return api.RefusalCount{Event: r.Event, Reason: r.Reason, Commands: r.Commands}
		}),
		Idempotency: api.IdempotencyCount{New: stats.Idempotency.New, Replayed: stats.Idempotency.Replayed, Collision: stats.Idempotency.Collision},
	}, nil
}

// GetForecast answers with what will probably become of an instance.
func (s *server) GetForecast(ctx context.Context, in GetForecastRequestObject) (GetForecastResponseObject, error) {
	id, err := s.instance(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	f, err := s.insight.Forecast(ctx, requestOf(ctx).principal.tenant, id)
	if err != nil {
		return nil, err
	}
	var coverage *api.ForecastCoverage
	if c := f.Coverage; c != nil {
		coverage = &api.ForecastCoverage{Visits: c.Visits, P50: rounded(c.P50), P90: rounded(c.P90)}
	}
	return GetForecast200JSONResponse{
		Coverage: coverage,
		AsOf:     (*api.Timestamp)(f.AsOf), State: f.State, Spent: rounded(f.Spent), Sample: f.Sample, P50: roundedAt(f.P50), P90: roundedAt(f.P90),
		Next: each(f.Next, func(n insight.NextState) api.ForecastNext {
			return api.ForecastNext{State: n.State, Chance: rounded(n.Chance), P50: roundedAt(n.P50), P90: roundedAt(n.P90)}
		}),
		Outcomes: each(f.Outcomes, func(o insight.Outcome) api.ForecastOutcome {
			return api.ForecastOutcome{State: o.State, Status: api.InstanceStatus(o.Status), Chance: rounded(o.Chance)}
		}),
	}, nil
}

// roundedAt is rounded for a number that may be missing.
func roundedAt(seconds *float64) *float64 {
	if seconds == nil {
		return nil
	}
	return new(rounded(*seconds))
}

// dayAt reads a day, or a time of it.
func dayAt(parameter string, text *string) (*time.Time, error) {
	if text == nil {
		return nil, nil
	}
	for _, layout := range []string{time.DateOnly, time.RFC3339} {
		if t, err := time.Parse(layout, *text); err == nil {
			return &t, nil
		}
	}
	return nil, malformed(parameter, "must be a day, such as 2026-03-01, or a time, such as 2026-03-01T09:30:00Z")
}

// dayText writes a day; nil for none.
func dayText(day time.Time) *string {
	if day.IsZero() {
		return nil
	}
	return new(day.Format(time.DateOnly))
}

// rounded rounds a number of seconds to microseconds.
func rounded(seconds float64) float64 { return math.Round(seconds*1e6) / 1e6 }
