package live

import (
	"context"
	"time"

	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/fsm"
)

// A topic is what is waited for: an instance, a tenant, tasks, or one of those below.
type topic struct {
	tenant   string
	instance uuid.UUID
	tasks    string // The payload of the notifications.
	log      bool
}

var (
	// anyStep is the topic of the sequencer, which waits for steps that have no position yet.
	anyStep = topic{}
	// theLog is the topic of those who read the log.
	theLog = topic{log: true}
)

// A Waiter is signalled when an instance of its topic may have moved.
type Waiter struct {
	hub    *Hub
	topic  topic
	signal chan struct{}
	at     int // Its index in the list of its topic.
}

// Instance returns a Waiter for an instance.
func (h *Hub) Instance(id uuid.UUID) *Waiter { return h.join(topic{instance: id}) }

// Tenant returns a Waiter for all instances of a tenant, or of all tenants for fsm.Deployment.
func (h *Hub) Tenant(tenant string) *Waiter {
	if tenant == fsm.Deployment {
		return h.join(theLog)
	}
	return h.join(topic{tenant: tenant})
}

// WakeLog returns a channel that is signalled after steps have got positions, and the function that ends the signals. It
// is meant for outbox.RelayConfig.Wake and the like.
func (h *Hub) WakeLog() (signal <-chan struct{}, stop func()) { return h.signals(theLog) }

// WakeSteps returns a channel that is signalled after steps have been committed, and the function that ends the signals. It
// is meant for outbox.SequencerConfig.Wake.
func (h *Hub) WakeSteps() (signal <-chan struct{}, stop func()) { return h.signals(anyStep) }

// WakeTasks returns a channel that is signalled after a task was armed whose notification has the payload, and the
// function that ends the signals. A notification may be lost, and tells nothing of tasks that become due later.
func (h *Hub) WakeTasks(payload string) (signal <-chan struct{}, stop func()) {
	return h.signals(topic{tasks: payload})
}

func (h *Hub) signals(t topic) (signal <-chan struct{}, stop func()) {
	w := h.join(t)
	return w.C(), w.Close
}

// Wanted reports whether somebody is to be told of steps: in this process, or perhaps in another. It is meant for
// outbox.SequencerConfig.Wanted.
func (h *Hub) Wanted() bool {
	if h.waitedElsewhere() {
		return true
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	others := h.waitedFor
	if _, sequencer := h.waiters[anyStep]; sequencer {
		others--
	}
	return others > 0
}

// join makes a waiter of a topic.
func (h *Hub) join(t topic) *Waiter {
	h.mu.Lock()
	defer h.mu.Unlock()
	w := &Waiter{hub: h, topic: t, signal: make(chan struct{}, 1), at: len(h.waiters[t])}
	if len(h.waiters[t]) == 0 && t.tasks == "" {
		if h.waitedFor == 0 {
			h.announceNow()
		}
		h.waitedFor++
	}
	h.waiters[t] = append(h.waiters[t], w)
	return w
}

// C returns a channel that is signalled once for any number of steps since the last receive from it.
func (w *Waiter) C() <-chan struct{} { return w.signal }

// Close ends the signals. It may be called twice.
func (w *Waiter) Close() {
	w.hub.mu.Lock()
	defer w.hub.mu.Unlock()
	list := w.hub.waiters[w.topic]
	if w.at >= len(list) || list[w.at] != w {
		return // It is closed already.
	}
	last := len(list) - 1
	list[w.at], list[last].at = list[last], w.at
	list[last] = nil
	if w.hub.waiters[w.topic] = list[:last]; last == 0 {
		delete(w.hub.waiters, w.topic)
		if w.topic.tasks == "" {
			w.hub.waitedFor--
		}
	}
}

// wake signals the waiters of the topics.
func (h *Hub) wake(topics ...topic) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, t := range topics {
		for _, w := range h.waiters[t] {
			w.wake()
		}
	}
}

// wakeAll signals all waiters.
func (h *Hub) wakeAll() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, list := range h.waiters {
		for _, w := range list {
			w.wake()
		}
	}
}

// wake signals a waiter and does not block.
func (w *Waiter) wake() {
	select {
	case w.signal <- struct{}{}:
	default: // It is signalled already.
	}
}

// waited returns whether anybody waits for steps.
func (h *Hub) waited() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.waitedFor > 0
}

// wait returns when the waiter is signalled, when the context ends, or after most. If most is 0, there is no
// such limit, except Poll while the hub does not run.
func (h *Hub) wait(ctx context.Context, w *Waiter, most time.Duration) {
	if most == 0 && !h.running.Load() {
		most = h.config.Poll
	}
	var alone <-chan time.Time
	if most > 0 {
		alone = time.After(most)
	}
	select {
	case <-w.signal:
	case <-alone:
	case <-ctx.Done():
	}
}
