package httpapi

import (
	"context"
	"net/http"

	"github.com/pawl-fsm/pawl/httpapi/api"
)

// GetMetrics answers with the metrics of the process.
func (s *server) GetMetrics(ctx context.Context, _ GetMetricsRequestObject) (GetMetricsResponseObject, error) {
	if requestOf(ctx).within() != nil {
		return nil, forbidden("the metrics tell of all workflows, and your grants are for some")
	}
	if s.config.Metrics == nil {
		return nil, &problemError{code: api.ProblemCodeNotFound, detail: "the process has no metrics"}
	}
	return metrics{s.config.Metrics, ctx}, nil
}

// metrics is an answer that another handler writes.
type metrics struct {
	handler http.Handler
	ctx     context.Context
}

// VisitGetMetricsResponse writes the answer. The handler gets no headers: Accept was looked at, and nothing else counts.
func (m metrics) VisitGetMetricsResponse(w http.ResponseWriter) error {
	in, err := http.NewRequestWithContext(m.ctx, http.MethodGet, "/metrics", nil)
	if err != nil {
		return err
	}
	m.handler.ServeHTTP(w, in)
	return nil
}
