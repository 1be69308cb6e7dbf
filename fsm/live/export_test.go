package live

import (
	"context"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/db/session"
)

// Listens says whether the hub has a connection that listens.
func (h *Hub) Listens() bool { return h.running.Load() && !h.deaf.Load() }

// Waiters counts the waiters of the hub.
func (h *Hub) Waiters() (n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, list := range h.waiters {
		n += len(list)
	}
	return n
}

// Forget makes the hub believe that nobody waits elsewhere.
func (h *Hub) Forget() { h.elsewhere.Store(0) }

// WaitedElsewhere reports whether the hub believes that somebody waits elsewhere.
func (h *Hub) WaitedElsewhere() bool { return h.waitedElsewhere() }

// Hub is the one that wakes the service's waiters.
func (s *Service) Hub() *Hub { return s.hub }

// Opened returns a payload as hubs read it. It reports false if it is not of a hub or a Notifier of the database.
func Opened(ctx context.Context, pool *pgxpool.Pool, channel, payload string) (string, bool) {
	s := &seal{}
	if err := s.read(ctx, queries.New(session.Pool(pool))); err != nil {
		return "", false
	}
	return s.open(channel, payload)
}
