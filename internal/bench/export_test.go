package bench

import (
	"context"
	"net/http"
	"time"
)

// MeasureOne measures for a moment how often one client is answered 200 by the service at an address.
// It returns the operations that were counted and the refusals.
func MeasureOne(ctx context.Context, address string) (operations, refused int, err error) {
	l := &load{
		connections: 1,
		write:       func(c *client, _ int) { c.get("/", "") },
		applied:     status(http.StatusOK),
	}
	r, err := l.run(ctx, address, []string{""}, 0, time.Millisecond, func() {}, func() {})
	return r.operations, r.refused, err
}
