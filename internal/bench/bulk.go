package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"time"
)

const (
	leastBulk = 3000 // Instances a second.
	bulkBody  = `{"action": "fire", "filter": {"workflow": "bench"}, "params": {"event": "go", "payload": {"n": 1}}, "confirm": "bench"}`
	bulkPoll  = 50 * time.Millisecond
)

// measureBulk fires an event at all instances by one bulk.
func (b *benchmark) measureBulk(ctx context.Context) error {
	var bulk struct {
		ID, Status string
		Done       int
		Applied    int
	}
	began := time.Now()
	if err := b.call(ctx, http.MethodPost, "/v1/bulk", json.RawMessage(bulkBody), &bulk); err != nil {
		return err
	}
	for bulk.Status != "done" {
		pause(ctx, bulkPoll)
		if err := b.call(ctx, http.MethodGet, "/v1/bulk/"+bulk.ID, nil, &bulk); err != nil {
			return err
		}
	}
	rate := float64(bulk.Done) / time.Since(began).Seconds()
	b.report.Bulk = &rate
	b.printf("bulk: %d instances in %.1f s, %.0f per second\n", bulk.Done, time.Since(began).Seconds(), rate)
	if bulk.Applied != bulk.Done {
		return fmt.Errorf("%d of %d instances were not moved", bulk.Done-bulk.Applied, bulk.Done)
	}
	return nil
}
