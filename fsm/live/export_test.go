package live

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

// Hub is the one that wakes the service's waiters.
func (s *Service) Hub() *Hub { return s.hub }
