package live

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/db/session"
	"github.com/pawl-fsm/pawl/fsm/worker"
)

// HubConfig tunes a Hub. Its zero value works.
type HubConfig struct {
	// Poll is the time between looks for steps without a notification, such as those of SQL callers. It is
	// the longest time by which a waiter is woken late. Default 1 s.
	Poll time.Duration
	// ListenURL is where to listen, if the pool's connections lead to a pooler: the same database, without a
	// pooler on the way. Default: where the pool's connections lead.
	ListenURL string
	// Logger gets a line when the hub cannot listen, and when looking for steps begins to fail and works
	// again. Default: none.
	Logger *slog.Logger
}

func (c HubConfig) withDefaults() HubConfig {
	if c.Poll <= 0 {
		c.Poll = time.Second
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

const (
	// minPoll is the least time between two looks.
	minPoll = 50 * time.Millisecond
	// maxMoved is how many steps a look reads at most. If there are more, all waiters are woken.
	maxMoved = 20000
	// maxBackoff is the longest time between attempts to listen.
	maxBackoff = 5 * time.Second
	// poolerBackoff is the time between looks whether a pooler is still on the way.
	poolerBackoff = time.Minute
	// maxSilence is how long the connection may be silent before it is tested.
	maxSilence = 30 * time.Second
)

// A Hub wakes those who wait for instances to move. A process needs one, however many wait. It has one
// connection that listens for notifications. While somebody waits, it also polls for steps without a
// notification. A waiter costs an entry in a map and a channel.
//
// A step that is committed after a Waiter was made wakes it, after HubConfig.Poll at the latest. A
// wake-up is a hint: what the waiter reads may be unchanged.
type Hub struct {
	pool    *pgxpool.Pool
	queries *queries.Queries
	config  HubConfig
	running atomic.Bool
	// deaf: there is no connection that listens.
	deaf atomic.Bool
	// look is signalled when poll is to look at once.
	look chan struct{}

	mu      sync.Mutex
	waiters map[topic][]*Waiter
	tenants int // How many of the topics are tenants.
}

// NewHub returns a Hub for a pool's database. While it runs it has a connection of its own beside the pool,
// with the pool's settings. It does not listen through a pooler, which may give the notifications to
// somebody else, but polls four times per HubConfig.Poll.
func NewHub(pool *pgxpool.Pool, config HubConfig) *Hub {
	return &Hub{
		pool: pool, queries: queries.New(session.Pool(pool)), config: config.withDefaults(), look: make(chan struct{}, 1),
		waiters: map[topic][]*Waiter{},
	}
}

// Run wakes waiters until the context ends, and returns nil then. While it does not run, those who wait
// read again once per HubConfig.Poll.
func (h *Hub) Run(ctx context.Context) error {
	h.deaf.Store(true)
	h.running.Store(true)
	defer h.running.Store(false)
	var listening sync.WaitGroup
	listening.Go(func() { h.listen(ctx) })
	defer listening.Wait()
	h.poll(ctx)
	return nil
}

// listen hears notifications, and connects again whenever the connection fails.
func (h *Hub) listen(ctx context.Context) {
	backoff := minPoll
	failing := false
	for {
		connected, err := h.hear(ctx)
		h.deaf.Store(true)
		if ctx.Err() != nil {
			return
		}
		if connected {
			backoff, failing = minPoll, false
		}
		if !failing {
			h.config.Logger.WarnContext(ctx, "listening for steps fails; polling for them meanwhile", "error", err)
			failing = true
		}
		backoff = min(2*backoff, maxBackoff)
		if errors.Is(err, errPooler) {
			backoff = poolerBackoff
		}
		select {
		case <-time.After(backoff/2 + rand.N(backoff)):
		case <-ctx.Done():
			return
		}
	}
}

// errPooler is why the hub does not listen.
var errPooler = errors.New("a pooler is on the way; name the database without it in --listen-database-url")

// hear listens on one connection until it fails, and returns whether it ever listened.
func (h *Hub) hear(ctx context.Context) (connected bool, err error) {
	conn, err := session.Connect(ctx, h.pool, "pawl listen", h.config.ListenURL)
	if err != nil {
		return false, err
	}
	defer func() {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = conn.Close(closing)
	}()
	if session.IsPooled(conn) {
		return false, errPooler
	}
	if _, err := conn.Exec(ctx, "listen "+channel); err != nil {
		return false, err
	}
	h.deaf.Store(false)
	h.config.Logger.DebugContext(ctx, "listening for steps")
	h.lookNow() // Nobody heard the notifications that were sent before.
	for {
		silence, cancel := context.WithTimeout(ctx, maxSilence)
		n, err := conn.WaitForNotification(silence)
		cancel()
		switch {
		case err == nil:
			h.heard(n.Payload)
		case ctx.Err() != nil || !errors.Is(err, context.DeadlineExceeded):
			return true, err
		default:
			ping, cancel := context.WithTimeout(ctx, h.config.Poll)
			err := conn.Ping(ping)
			cancel()
			if err != nil {
				return true, err
			}
		}
	}
}

// heard wakes the waiters that a notification concerns. A notification does not name the tenants of its
// instances. If somebody waits for a tenant, heard asks for a look, which finds the tenants.
func (h *Hub) heard(payload string) {
	topics := []topic{{}}
	_, look := h.waited()
	for field := range strings.FieldsSeq(payload) {
		id, err := uuid.Parse(field)
		if err != nil {
			look = true
			continue
		}
		topics = append(topics, topic{instance: id})
	}
	h.wake(topics...)
	if look {
		h.lookNow()
	}
}

// lookNow asks poll to look without waiting.
func (h *Hub) lookNow() {
	select {
	case h.look <- struct{}{}:
	default:
	}
}

// poll looks for steps: once per Poll, more often while the hub does not listen, and at once when asked
// to.
func (h *Hub) poll(ctx context.Context) {
	var cursor *string
	_ = worker.Repeat(ctx, h.config.Logger, "looking for steps", func(ctx context.Context) (time.Duration, error) {
		wait := h.config.Poll
		if h.deaf.Load() {
			wait = h.config.Poll / 4
		}
		timer := time.NewTimer(max(wait-minPoll, 0))
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-h.look:
		case <-ctx.Done():
			return 0, nil
		}
		var err error
		cursor, err = h.moved(ctx, cursor)
		return minPoll, err
	})
}

// moved wakes the waiters for whom something has moved since the cursor, and returns the next cursor. The
// cursor is a snapshot, or nil at the first look since somebody waits.
func (h *Hub) moved(ctx context.Context, cursor *string) (*string, error) {
	if waited, _ := h.waited(); !waited {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	m, err := h.queries.LogMoved(ctx, queries.LogMovedParams{Cursor: cursor, StepLimit: maxMoved})
	if err != nil {
		return cursor, err
	}
	if !m.Known {
		// This is the first look since somebody waits, or too much has moved.
		h.wakeAll()
		return &m.Snapshot, nil
	}
	if len(m.Instances) == 0 {
		return &m.Snapshot, nil
	}
	topics := make([]topic, 0, 1+len(m.Instances)+len(m.Tenants))
	topics = append(topics, topic{})
	for _, id := range m.Instances {
		topics = append(topics, topic{instance: id})
	}
	for _, tenant := range m.Tenants {
		topics = append(topics, topic{tenant: tenant})
	}
	h.wake(topics...)
	return &m.Snapshot, nil
}
