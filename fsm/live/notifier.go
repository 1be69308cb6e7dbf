package live

import (
	"context"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/db/session"
)

const (
	// The channels of LISTEN and NOTIFY. On the first, processes tell one another which instances have
	// moved; on the second, that steps have got positions; on the third, that somebody waits. Each payload
	// begins with the id of the hub that sends it, and is sealed: see seal.
	stepChannel, logChannel, waitChannel = "pawl_step", "pawl_log", "pawl_wait"
	// taskChannel is where the engine tells that a task was armed. The payload says for whom: "http", or "work:" with
	// tenant/topic.
	taskChannel = "pawl_task"
	// anything is the payload of a notification that names no instances.
	anything = "*"
	// notifyEvery is the least time between two notifications of a process.
	notifyEvery = 10 * time.Millisecond
	// notifyTimeout bounds a notification.
	notifyTimeout = 1500 * time.Millisecond
	// maxNotified is how many ids fit into a payload beside that of the hub. A payload must have less than
	// 8,000 bytes, and is written in base 64.
	maxNotified = (8000/4*3-3-sealing)/(36+1) - 1
)

// A Notifier tells the hubs which instances have moved. It tells the hub of its process in memory. While
// somebody waits in another process, it tells the other hubs by a notification. It sends that after the
// commit, in a transaction of its own: in the engine's transaction a notification would take a lock of the
// whole cluster. Instances that move within 10 ms share a notification.
//
// A notification is a hint. If one is lost, those who wait are woken by the next poll of their hub.
type Notifier struct {
	queries *queries.Queries
	hub     *Hub
	seal    *seal

	mu      sync.Mutex
	moved   map[uuid.UUID]struct{}
	many    bool // The next payload is anything: an id is unknown, or there are too many ids.
	log     bool // Steps have got positions.
	running bool
	sent    time.Time
	idle    *sync.Cond // Signalled when running becomes false.
}

// NewNotifier returns a Notifier on a pool, of which it uses one connection at a time. The hub is that of
// the process. If it is nil, the Notifier assumes that somebody waits in another process.
func NewNotifier(pool *pgxpool.Pool, hub *Hub) *Notifier {
	n := &Notifier{queries: queries.New(session.Pool(pool)), hub: hub, seal: &seal{}, moved: map[uuid.UUID]struct{}{}}
	if hub != nil {
		n.seal = &hub.seal
	}
	n.idle = sync.NewCond(&n.mu)
	return n
}

// Moved notes that instances have moved, and returns at once. It is meant for fsm.Config.Moved.
func (n *Notifier) Moved(ids []uuid.UUID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, id := range ids {
		if n.many {
			break
		}
		n.moved[id] = struct{}{}
		n.many = len(n.moved) > maxNotified
	}
	n.start()
}

// MovedAny notes that some instances have moved, and returns at once. It is meant for
// worker.TimerConfig.Fired.
func (n *Notifier) MovedAny() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.many = true
	n.start()
}

// Numbered notes that steps have got positions, and returns at once. It is meant for outbox.SequencerConfig.Moved.
func (n *Notifier) Numbered() {
	if n.hub != nil {
		n.hub.numbered()
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.log = true
	n.start()
}

// start starts the sender if something is pending. The lock is held.
func (n *Notifier) start() {
	if !n.running && n.pending() {
		n.running = true
		go n.run()
	}
}

// pending reports whether a notification is to be sent. The lock is held.
func (n *Notifier) pending() bool { return n.many || n.log || len(n.moved) > 0 }

// run sends notifications until nothing is pending.
func (n *Notifier) run() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for n.pending() {
		wait := time.Until(n.sent.Add(notifyEvery))
		if wait > 0 {
			n.mu.Unlock()
			time.Sleep(wait)
			n.mu.Lock()
		}
		ids, others, log := n.take()
		n.mu.Unlock()
		n.send(ids, others, log)
		n.mu.Lock()
		n.sent = time.Now()
	}
	n.running = false
	n.idle.Broadcast()
}

// take returns what the next notifications tell, after which nothing is pending: the instances that have moved,
// or that others than these have moved, and whether steps have got positions.
func (n *Notifier) take() (ids []uuid.UUID, others, log bool) {
	if others = n.many; !others {
		ids = slices.Collect(maps.Keys(n.moved))
	}
	log = n.log
	clear(n.moved)
	n.many, n.log = false, false
	return ids, others, log
}

func (n *Notifier) send(ids []uuid.UUID, others, log bool) {
	sender := "-"
	steps := others || len(ids) > 0
	if n.hub != nil {
		if steps {
			n.hub.moved(ids)
		}
		if !n.hub.waitedElsewhere() {
			return
		}
		sender = n.hub.id
	}
	if steps {
		notify(n.queries, n.seal, stepChannel, sender+" "+payload(ids, others))
	}
	if log {
		notify(n.queries, n.seal, logChannel, sender)
	}
}

// payload writes what a notification tells.
func payload(ids []uuid.UUID, others bool) string {
	if others {
		return anything
	}
	texts := make([]string, len(ids))
	for i, id := range ids {
		texts[i] = id.String()
	}
	return strings.Join(texts, " ")
}

// parse reads the ids that payload has written.
func parse(payload string) (ids []uuid.UUID) {
	for field := range strings.FieldsSeq(payload) {
		if id, err := uuid.Parse(field); err == nil {
			ids = append(ids, id)
		}
	}
	return ids
}

// notify sends a notification. Whether it arrives does not matter: it is a hint, and hubs poll too.
func notify(q *queries.Queries, s *seal, channel, payload string) {
	ctx, cancel := context.WithTimeout(context.Background(), notifyTimeout)
	defer cancel()
	if sealed, err := s.close(ctx, q, channel, payload); err == nil {
		_ = q.Notify(ctx, queries.NotifyParams{Channel: channel, Payload: sealed})
	}
}

// Close returns when everything that was noted has been sent. A Notifier may be used after it.
func (n *Notifier) Close() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for n.running {
		n.idle.Wait()
	}
}
