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
	"github.com/jackc/pgx/v5/pgconn"
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
	// ListenURL is the database to listen in. If the pool's connections lead to a pooler, it names the same
	// database without the pooler. Default: the pool's URL.
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
	// poolerBackoff is the time between attempts to listen while there is a pooler.
	poolerBackoff = time.Minute
	// maxSilence is how long the connection may be silent before it is tested.
	maxSilence = 30 * time.Second
	// announceEvery is the time between two announcements of a hub with waiters. forgetAfter is how long an
	// announcement is remembered.
	announceEvery = 2 * time.Second
	forgetAfter   = 3 * announceEvery
	// answerWithin: a hub that begins to listen has heard no announcements, so it asks for them. For this
	// long it assumes that somebody waits.
	answerWithin = 500 * time.Millisecond
	// question is the payload of a notification that asks for announcements.
	question = "?"
	// lookAgain is the time after which the other hubs have probably heard an announcement.
	lookAgain = 100 * time.Millisecond
)

// A Hub wakes those who wait for instances to move. A process needs one, however many wait. It has one
// connection that listens for notifications. While somebody waits, it polls for steps that no notification
// told of, and announces the waiters to the other processes, since they send notifications only then. A
// waiter costs an entry in a map and a channel.
//
// A step that is committed after a Waiter was made wakes it, at the latest HubConfig.Poll after it got its position. A
// wake-up is a hint: what the waiter reads may be unchanged.
type Hub struct {
	pool    *pgxpool.Pool
	queries *queries.Queries
	config  HubConfig
	// id tells this hub's notifications from those of others.
	id      string
	seal    seal
	running atomic.Bool
	// deaf: there is no connection that listens.
	deaf atomic.Bool
	// look makes poll look at once. announce makes announceWaiters announce at once.
	look, announce chan struct{}
	// elsewhere is the time until which the hub assumes that somebody waits in another process, in Unix
	// nanoseconds.
	elsewhere atomic.Int64
	// asked: another hub has asked whether somebody waits here.
	asked atomic.Bool

	mu      sync.Mutex
	waiters map[topic][]*Waiter
	// waitedFor counts the topics of steps that have waiters, for which the hub polls. For tasks it does not.
	waitedFor int
}

// NewHub returns a Hub for a pool's database. While it runs it has a connection of its own beside the pool,
// with the pool's settings. It does not listen through a pooler, which may pass the notifications to
// another client; it polls four times per HubConfig.Poll instead.
func NewHub(pool *pgxpool.Pool, config HubConfig) *Hub {
	return &Hub{
		pool: pool, queries: queries.New(session.Pool(pool)), config: config.withDefaults(), id: uuid.NewString(),
		look: make(chan struct{}, 1), announce: make(chan struct{}, 1), waiters: map[topic][]*Waiter{},
	}
}

// Run wakes waiters until the context ends, and returns nil then. While it does not run, those who wait
// read again once per HubConfig.Poll.
func (h *Hub) Run(ctx context.Context) error {
	h.deaf.Store(true)
	h.running.Store(true)
	defer h.running.Store(false)
	var beside sync.WaitGroup
	beside.Go(func() { h.listen(ctx) })
	beside.Go(func() { h.announceWaiters(ctx) })
	defer beside.Wait()
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
	if _, err := conn.Exec(ctx, "listen "+stepChannel+"; listen "+logChannel+"; listen "+waitChannel+"; listen "+taskChannel); err != nil {
		return false, err
	}
	h.somebodyWaits(answerWithin)
	// Another database may answer now, with another secret.
	q := queries.New(conn)
	if err := h.seal.read(ctx, q); err != nil {
		return false, err
	}
	asked, err := h.seal.close(ctx, q, waitChannel, h.id+" "+question)
	if err != nil {
		return false, err
	}
	if err := q.Notify(ctx, queries.NotifyParams{Channel: waitChannel, Payload: asked}); err != nil {
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
			h.heard(n)
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

// heard handles a notification of another process: it wakes the waiters of the instances that have
// moved or of the log, notes that somebody waits there, or answers the question whether somebody waits here. What
// another login has sent makes the hub look, and nothing more. It wakes those who wait for tasks too: the engine sends
// these notifications in the transactions of any login.
func (h *Hub) heard(n *pgconn.Notification) {
	if n.Channel == taskChannel {
		h.wake(topic{tasks: n.Payload})
		return
	}
	text, ours := h.seal.open(n.Channel, n.Payload)
	sender, payload, _ := strings.Cut(text, " ")
	switch {
	case !ours:
		h.lookNow()
	case sender == h.id:
	case n.Channel == waitChannel && payload == question:
		h.asked.Store(true)
		h.announceNow()
	case n.Channel == waitChannel:
		h.somebodyWaits(forgetAfter)
	case n.Channel == logChannel:
		h.numbered()
	default:
		h.moved(parse(payload))
	}
}

// somebodyWaits makes the hub assume for a time d that somebody waits in another process.
func (h *Hub) somebodyWaits(d time.Duration) {
	until := time.Now().Add(d).UnixNano()
	h.elsewhere.Store(max(until, h.elsewhere.Load()))
}

// waitedElsewhere reports whether somebody may wait in another process. A hub that does not listen assumes
// so.
func (h *Hub) waitedElsewhere() bool {
	return !h.running.Load() || h.deaf.Load() || time.Now().UnixNano() < h.elsewhere.Load()
}

// announceNow asks announceWaiters to announce without waiting.
func (h *Hub) announceNow() {
	select {
	case h.announce <- struct{}{}:
	default:
	}
}

// announceWaiters tells the other processes that somebody waits here: when the first waiter comes, when
// another hub asks, and every announceEvery while there are waiters. Another process sends no notification
// of a step that it commits before it hears the announcement. So the hub looks for steps after it.
func (h *Hub) announceWaiters(ctx context.Context) {
	ticker := time.NewTicker(announceEvery)
	defer ticker.Stop()
	var announced time.Time
	for {
		first := false
		select {
		case <-h.announce:
			first = true
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
		// The others still remember the last announcement.
		known := first && !h.asked.Swap(false) && time.Since(announced) < announceEvery
		if !h.waited() || known {
			continue
		}
		notify(h.queries, &h.seal, waitChannel, h.id)
		announced = time.Now()
		if !first {
			continue
		}
		h.lookNow()
		select {
		case <-time.After(lookAgain):
			h.lookNow()
		case <-ctx.Done():
			return
		}
	}
}

// moved wakes the waiters of instances, and those of any step.
func (h *Hub) moved(ids []uuid.UUID) {
	topics := make([]topic, 1, 1+len(ids))
	topics[0] = anyStep
	for _, id := range ids {
		topics = append(topics, topic{instance: id})
	}
	h.wake(topics...)
}

// numbered wakes the waiters of the log after steps have got positions, and asks poll to look whose these are.
func (h *Hub) numbered() {
	h.wake(theLog)
	h.lookNow()
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
	var place *int64
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
		place, err = h.lookFor(ctx, place)
		return minPoll, err
	})
}

// lookFor wakes the waiters for whom something has got a position after the place, and returns the next place. It is a
// position, or nil at the first look since somebody waits.
func (h *Hub) lookFor(ctx context.Context, place *int64) (*int64, error) {
	if !h.waited() {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	m, err := h.queries.LogMoved(ctx, queries.LogMovedParams{After: place, StepLimit: maxMoved})
	if err != nil {
		return place, err
	}
	if !m.Known {
		// This is the first look since somebody waits, or too much has moved, or the log has lost its end.
		h.wakeAll()
		return &m.Last, nil
	}
	if len(m.Instances) == 0 {
		return &m.Last, nil
	}
	topics := make([]topic, 0, 2+len(m.Instances)+len(m.Tenants))
	topics = append(topics, anyStep, theLog)
	for _, id := range m.Instances {
		topics = append(topics, topic{instance: id})
	}
	for _, tenant := range m.Tenants {
		topics = append(topics, topic{tenant: tenant})
	}
	h.wake(topics...)
	return &m.Last, nil
}
