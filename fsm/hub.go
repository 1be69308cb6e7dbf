package fsm

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/db/queries"
)

// HubConfig tunes a Hub. Its zero value works.
type HubConfig struct {
	// Poll is the time between looks for steps that nobody told of, such as those of SQL
	// callers, and so the longest that a waiter may miss one. Default 1 s.
	Poll time.Duration
	// Logger is told when notifications cannot be had. Default: nobody.
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
	// maxMoved is how many steps a look reads; after more, all waiters look for themselves.
	maxMoved = 20000
	// maxBackoff is the longest time between attempts to listen.
	maxBackoff = 5 * time.Second
	// maxSilence is how long to hear nothing before making sure of the connection.
	maxSilence = 30 * time.Second
)

// A Hub wakes whoever waits for instances to move. A process needs one, however many wait:
// it has one connection that listens, and looks once a second, with one query, for what it
// was not told of. Nobody waits, no query. A waiter is an entry in a map and a channel.
//
// A wake-up is a hint: the waiter reads what it waits for, and may find it unchanged.
// Whatever is committed after the Waiter was made wakes it, within Poll if nobody
// tells.
type Hub struct {
	pool    *pgxpool.Pool
	queries *queries.Queries
	config  HubConfig
	running atomic.Bool
	// deaf while there is no connection that listens.
	deaf atomic.Bool
	// look asks for a look now.
	look chan struct{}

	mu      sync.Mutex
	waiters map[topic][]*Waiter
	tenants int // How many topics are tenants.
}

// A topic is what is waited for: an instance, a tenant, or, if both are zero,
// everything.
type topic struct {
	tenant   string
	instance uuid.UUID
}

// A Waiter is signalled when something of its topic may have moved.
type Waiter struct {
	hub    *Hub
	topic  topic
	signal chan struct{}
	at     int // Its index among those of its topic.
}

// NewHub returns a Hub for a pool's database. It takes a connection of its own besides the
// pool, which is direct or goes through a session pooler.
func NewHub(pool *pgxpool.Pool, config HubConfig) *Hub {
	return &Hub{
		pool: pool, queries: queries.New(pool), config: config.withDefaults(), look: make(chan struct{}, 1),
		waiters: map[topic][]*Waiter{},
	}
}

// Instance returns a Waiter for an instance.
func (h *Hub) Instance(id uuid.UUID) *Waiter { return h.join(topic{instance: id}) }

// Tenant returns a Waiter for all instances of a tenant.
func (h *Hub) Tenant(tenant string) *Waiter { return h.join(topic{tenant: tenant}) }

// All returns a Waiter for everything.
func (h *Hub) All() *Waiter { return h.join(topic{}) }

func (h *Hub) join(t topic) *Waiter {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := &Waiter{hub: h, topic: t, signal: make(chan struct{}, 1), at: len(h.waiters[t])}
	if s.at == 0 && t.tenant != "" {
		h.tenants++
	}
	h.waiters[t] = append(h.waiters[t], s)
	return s
}

// C is signalled once for any number of steps since it was last received from.
func (s *Waiter) C() <-chan struct{} { return s.signal }

// Close has the waiter no longer signalled.
func (s *Waiter) Close() {
	s.hub.mu.Lock()
	defer s.hub.mu.Unlock()
	list := s.hub.waiters[s.topic]
	if s.at >= len(list) || list[s.at] != s {
		return // It is closed.
	}
	last := len(list) - 1
	list[s.at], list[last].at = list[last], s.at
	list[last] = nil
	if s.hub.waiters[s.topic] = list[:last]; last == 0 {
		delete(s.hub.waiters, s.topic)
		if s.topic.tenant != "" {
			s.hub.tenants--
		}
	}
}

// wake signals those who wait for the topics.
func (h *Hub) wake(topics ...topic) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, t := range topics {
		for _, s := range h.waiters[t] {
			s.wake()
		}
	}
}

func (h *Hub) wakeAll() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, list := range h.waiters {
		for _, s := range list {
			s.wake()
		}
	}
}

func (s *Waiter) wake() {
	select {
	case s.signal <- struct{}{}:
	default: // It has not looked since.
	}
}

// waited says whether anybody waits, and whether for a tenant.
func (h *Hub) waited() (anybody, tenants bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.waiters) > 0, h.tenants > 0
}

// Run wakes until the context ends, and returns nil then. Until it runs, nobody is woken,
// and those who wait look for themselves.
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

// listen hears what processes tell, and connects again whenever that ends.
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
			h.config.Logger.WarnContext(ctx, "listening for steps fails; looking for them meanwhile", "error", err)
			failing = true
		}
		select {
		case <-time.After(backoff/2 + rand.N(backoff)):
		case <-ctx.Done():
			return
		}
		backoff = min(2*backoff, maxBackoff)
	}
}

// hear listens on a connection until it fails, and says whether it listened at all.
func (h *Hub) hear(ctx context.Context) (connected bool, err error) {
	config := h.pool.Config().ConnConfig
	config.RuntimeParams["application_name"] = "pawl listen"
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return false, err
	}
	defer func() {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = conn.Close(closing)
	}()
	if _, err := conn.Exec(ctx, "listen "+channel); err != nil {
		return false, err
	}
	h.deaf.Store(false)
	h.config.Logger.DebugContext(ctx, "listening for steps")
	h.lookNow() // For what was told before.
	for {
		silence, cancel := context.WithTimeout(ctx, maxSilence)
		n, err := conn.WaitForNotification(silence)
		cancel()
		switch {
		case err == nil:
			h.told(n.Payload)
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

// told wakes those whom a notification concerns. It does not say whose the instances are:
// one look for all tenants that are waited for does.
func (h *Hub) told(payload string) {
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

func (h *Hub) lookNow() {
	select {
	case h.look <- struct{}{}:
	default:
	}
}

// poll looks for what has moved: once per Poll, more often while nobody can be heard, and
// when something moved that was not named.
func (h *Hub) poll(ctx context.Context) {
	var cursor *string
	_ = repeat(ctx, h.config.Logger, "looking for steps", func(ctx context.Context) (time.Duration, error) {
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

// moved wakes those for whom something has moved since the cursor, and returns the next.
func (h *Hub) moved(ctx context.Context, cursor *string) (*string, error) {
	if waited, _ := h.waited(); !waited {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	m, err := h.queries.Moved(ctx, queries.MovedParams{Cursor: cursor, StepLimit: maxMoved})
	if err != nil {
		return cursor, err
	}
	if !m.Known {
		// Nothing was looked at since the first of them came, or too much has moved.
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

// Await waits for an instance to become what done wants, or final, when nothing moves it
// any more, or for the context to end, and returns the instance as it is then.
// Kinds: InstanceNotFound, Unavailable.
func (s *Service) Await(ctx context.Context, tenant string, id uuid.UUID, done func(Instance) bool) (Instance, error) {
	// First, so that what comes after the first look is not missed.
	waiter := s.hub.Instance(id)
	defer waiter.Close()
	for waited := false; ; waited = true {
		i, err := s.Get(context.WithoutCancel(ctx), tenant, id)
		switch {
		case ctx.Err() != nil:
			return i, err
		case waited && errors.Is(err, Unavailable):
			// All who wait may have been woken at once, or the database may be about to return.
			s.hub.wait(ctx, waiter, s.hub.config.Poll/2+rand.N(s.hub.config.Poll))
			continue
		case err != nil || done(i) || i.Status != Active:
			return i, err
		}
		s.hub.wait(ctx, waiter, 0)
	}
}

// wait returns when a waiter is signalled or the context ends, or after a time if it
// is not 0. Without a hub that runs it returns after Poll.
func (h *Hub) wait(ctx context.Context, s *Waiter, most time.Duration) {
	if most == 0 && !h.running.Load() {
		most = h.config.Poll
	}
	var alone <-chan time.Time
	if most > 0 {
		alone = time.After(most)
	}
	select {
	case <-s.signal:
	case <-alone:
	case <-ctx.Done():
	}
}

// States returns the states of a version of a workflow that an instance can be in, sorted,
// and those around them: CHECKOUT for CHECKOUT.PAYMENT.
func (s *Service) States(ctx context.Context, workflow string, version int) ([]string, error) {
	var states []string
	err := s.read(ctx, func(ctx context.Context, q *queries.Queries) error {
		rows, err := q.ListStates(ctx, queries.ListStatesParams{Workflow: workflow, WorkflowVersion: int32(version)})
		for _, r := range rows {
			states = append(states, r.State)
			for i, c := range r.State {
				if c == '.' {
					states = append(states, r.State[:i])
				}
			}
		}
		return err
	})
	slices.Sort(states)
	return slices.Compact(states), err
}
