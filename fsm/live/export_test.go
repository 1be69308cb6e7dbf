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

// Forget makes the hub believe that nobody waits elsewhere.
func (h *Hub) Forget() { h.elsewhere.Store(0) }

// WaitedElsewhere reports whether the hub believes that somebody waits elsewhere.
func (h *Hub) WaitedElsewhere() bool { return h.waitedElsewhere() }

// Hub is the one that wakes the service's waiters.
func (s *Service) Hub() *Hub { return s.hub }
