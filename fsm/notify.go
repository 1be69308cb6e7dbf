package fsm

import (
	"context"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/db/queries"
)

const (
	// channel is where processes tell one another that instances have moved.
	channel = "pawl_step"
	// anything is the payload that stands for any number of instances.
	anything = "*"
	// notifyEvery is the least time between two notifications of a process.
	notifyEvery = 10 * time.Millisecond
	// maxNotified is how many ids go into a payload, which has less than 8,000 bytes.
	maxNotified = 7999 / (36 + 1)
)

// A notifier tells all processes which instances have moved, after the commit and never
// within the engine's transaction, where a notification would take a lock of the whole
// cluster. What moves within 10 ms shares a notification, and an idle process sends none.
// It is a hint: if it fails, whoever waits finds out by looking.
type notifier struct {
	queries *queries.Queries
	timeout time.Duration

	mu      sync.Mutex
	moved   map[uuid.UUID]struct{}
	many    bool // Too many have moved to be named.
	running bool
	sent    time.Time
	idle    *sync.Cond // Signalled when running becomes false.
}

func newNotifier(q *queries.Queries, timeout time.Duration) *notifier {
	n := &notifier{queries: q, timeout: timeout, moved: map[uuid.UUID]struct{}{}}
	n.idle = sync.NewCond(&n.mu)
	return n
}

// add notes that instances have moved, and returns at once.
func (n *notifier) add(ids []uuid.UUID) {
	if len(ids) == 0 {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, id := range ids {
		if n.many {
			break
		}
		n.moved[id] = struct{}{}
		n.many = len(n.moved) > maxNotified
	}
	if !n.running {
		n.running = true
		go n.run()
	}
}

// run sends until nothing is left to tell.
func (n *notifier) run() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for len(n.moved) > 0 {
		wait := time.Until(n.sent.Add(notifyEvery))
		if wait > 0 {
			n.mu.Unlock()
			time.Sleep(wait)
			n.mu.Lock()
		}
		payload := n.take()
		n.mu.Unlock()
		n.send(payload)
		n.mu.Lock()
		n.sent = time.Now()
	}
	n.running = false
	n.idle.Broadcast()
}

// take empties what is to be told.
func (n *notifier) take() string {
	defer func() {
		clear(n.moved)
		n.many = false
	}()
	if n.many {
		return anything
	}
	ids := make([]string, 0, len(n.moved))
	for id := range n.moved {
		ids = append(ids, id.String())
	}
	return strings.Join(ids, " ")
}

func (n *notifier) send(payload string) {
	ctx, cancel := context.WithTimeout(context.Background(), n.timeout)
	defer cancel()
	_ = n.queries.Notify(ctx, payload) // Whoever waits looks anyway.
}

// close returns when all is told.
func (n *notifier) close() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for n.running {
		n.idle.Wait()
	}
}
