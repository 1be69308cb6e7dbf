package invoke_test

import (
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/pawl-fsm/pawl/fsm/live"
	"github.com/pawl-fsm/pawl/internal/bounded"
	"github.com/pawl-fsm/pawl/outbox/invoke"
)

// BenchmarkStepToRequest measures the time from the begin of a step to the request that it makes, while nothing else goes on.
func BenchmarkStepToRequest(b *testing.B) {
	arrived := make(chan time.Time, 1)
	p := newProvider(b, func(w http.ResponseWriter, r *http.Request) {
		arrived <- time.Now()
		ok(w, r)
	})
	d := newDesk(b, "", p.URL)
	hub := live.NewHub(d.pool, live.HubConfig{})
	bounded.Run(b, "the hub", hub.Run)
	d.run(func(c *invoke.Config) {
		c.Poll = 0
		c.Wake = func() (<-chan struct{}, func()) { return hub.WakeTasks("http") }
	})
	d.until(d.create(), "DONE")
	bounded.Receive(b, "the first request", arrived)
	times := make([]time.Duration, 0, b.N)
	for b.Loop() {
		begun := time.Now()
		d.create()
		times = append(times, bounded.Receive(b, "the request", arrived).Sub(begun))
	}
	slices.Sort(times)
	b.ReportMetric(float64(times[len(times)/2].Microseconds())/1000, "p50-ms")
	b.ReportMetric(float64(times[len(times)*99/100].Microseconds())/1000, "p99-ms")
}
