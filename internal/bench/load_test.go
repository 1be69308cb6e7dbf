package bench_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/pawl-fsm/pawl/internal/bench"
)

// TestRefusalsAloneAreNoMeasurement refuses the first requests of a load for longer than its duration.
// The load goes on until an operation was answered.
func TestRefusalsAloneAreNoMeasurement(t *testing.T) {
	t.Parallel()
	var requests atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if requests.Add(1) <= 3 {
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	t.Cleanup(server.Close)
	operations, refused, err := bench.MeasureOne(t.Context(), strings.TrimPrefix(server.URL, "http://"))
	if err != nil || operations == 0 || refused != 3 {
		t.Errorf("%d operations, %d refusals: %v", operations, refused, err)
	}
}
