package outbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/db/queries"
)

// RelayConfig tunes a Relay. Its zero value works.
type RelayConfig struct {
	// FromStart begins with the first step that there ever was, not with the next one, if the
	// consumer is new.
	FromStart bool
	// Page is how many events are published at once, at most: fewer after that took too long.
	// Default 500.
	Page int
	// Poll is the longest time between looks. Default 200 ms.
	Poll time.Duration
	// Pause is the least time between batches, and so between writes of the cursor. Default
	// 10 ms.
	Pause time.Duration
	// Lease is for how long a process leads after its last advance. Default 10 s.
	Lease time.Duration
	// Wake, if given, is signalled when there may be something to relay.
	Wake <-chan struct{}
	// Logger is told who leads and what fails. Default: nobody.
	Logger *slog.Logger
}

func (c RelayConfig) withDefaults() RelayConfig {
	if c.Page <= 0 {
		c.Page = 500
	}
	if c.Poll <= 0 {
		c.Poll = 200 * time.Millisecond
	}
	if c.Pause <= 0 {
		c.Pause = 10 * time.Millisecond
	}
	if c.Lease <= 0 {
		c.Lease = 10 * time.Second
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

// A Relay publishes every committed step to a sink for a named consumer, which remembers in
// the database how far it is. Any number of processes may run the same one; one at a time
// publishes.
type Relay struct {
	queries  *queries.Queries
	consumer string
	sink     Sink
	config   RelayConfig
	page     pace
}

// NewRelay returns a Relay on a pool, of which it takes one connection at a time.
func NewRelay(pool *pgxpool.Pool, consumer string, sink Sink, config RelayConfig) *Relay {
	config = config.withDefaults()
	return &Relay{
		queries: queries.New(pool), consumer: consumer, sink: sink, config: config, page: newPace(config.Page),
	}
}

// Run relays until the context ends, and returns nil then. Nothing else ends it.
func (r *Relay) Run(ctx context.Context) error {
	election{
		queries: r.queries, consumer: r.consumer, fromStart: r.config.FromStart, lease: r.config.Lease, logger: r.config.Logger,
	}.run(ctx, "relaying", func(ctx context.Context, term int64, since time.Time) (worked bool, err error) {
		return (&leadership{Relay: r, term: term, renewed: since}).run(ctx)
	})
	return nil
}

// leadership is a Relay during one term.
type leadership struct {
	*Relay
	term    int64
	renewed time.Time
}

func (l *leadership) run(ctx context.Context) (relayed bool, err error) {
	for ctx.Err() == nil {
		n, more, err := l.step(ctx)
		relayed = relayed || n > 0
		switch {
		case err != nil:
			return relayed, err
		case more:
		case n > 0:
			sleep(ctx, l.config.Pause)
		default:
			if time.Since(l.renewed) > l.config.Lease/3 {
				if err := l.renew(ctx); err != nil {
					return relayed, err
				}
			}
			l.idle(ctx)
		}
	}
	return relayed, nil
}

// step relays a page. It says how many events it had, and whether there are more.
func (l *leadership) step(ctx context.Context) (n int, more bool, err error) {
	look, err := l.queries.Look(ctx, l.consumer)
	if err != nil || look.Idle {
		return 0, false, err
	}
	rows, err := l.queries.ReadEvents(ctx, queries.ReadEventsParams{
		Consumer: l.consumer, Batch: look.Batch, RowLimit: int32(l.page.now),
	})
	if err != nil {
		l.page.after(err)
		return 0, false, err
	}
	place := look.Place
	if len(rows) == l.page.now {
		place = &rows[len(rows)-1].Seq
	}
	if len(rows) == 0 && place == nil && !look.Begun {
		return 0, false, nil // The cursor may stay: what it does not see is still nothing.
	}
	if len(rows) > 0 {
		events := make([]Event, len(rows))
		for i, row := range rows {
			events[i] = eventOf(row)
		}
		if err := l.publish(ctx, events); err != nil {
			return 0, false, err
		}
	}
	return len(rows), place != nil, l.advance(ctx, look.Batch, place, len(rows))
}

// publish gives the sink no more time than the lease has left: later, its events could come
// between those of a successor.
func (l *leadership) publish(ctx context.Context, events []Event) error {
	ctx, cancel := context.WithDeadline(ctx, l.renewed.Add(l.config.Lease))
	defer cancel()
	err := l.sink.Publish(ctx, events)
	if err == nil {
		l.page.after(nil)
		return nil
	}
	if late := context.Cause(ctx); errors.Is(late, context.DeadlineExceeded) {
		l.page.now = len(events)
		l.page.after(late)
	}
	return fmt.Errorf("publish: %w", err)
}

// advance notes what was published, even if the process is to end now: the batch, or with seq
// the batch up to there.
func (l *leadership) advance(ctx context.Context, batch string, seq *int64, relayed int) error {
	return l.note(ctx, func(ctx context.Context) (leads bool, err error) {
		return l.queries.Advance(ctx, queries.AdvanceParams{
			Consumer: l.consumer, Term: l.term, Batch: batch, Seq: seq, Relayed: int64(relayed), Lease: interval(l.config.Lease),
		})
	})
}

func (l *leadership) renew(ctx context.Context) error {
	return l.note(ctx, func(ctx context.Context) (leads bool, err error) {
		return l.queries.Renew(ctx, queries.RenewParams{Consumer: l.consumer, Term: l.term, Lease: interval(l.config.Lease)})
	})
}

// note makes a call that renews the lease.
func (l *leadership) note(ctx context.Context, call func(context.Context) (leads bool, err error)) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), l.config.Lease/2)
	defer cancel()
	now := time.Now()
	leads, err := call(ctx)
	if err == nil && !leads {
		return errDeposed
	}
	l.renewed = now
	return err
}

func (l *leadership) idle(ctx context.Context) {
	timer := time.NewTimer(l.config.Poll)
	defer timer.Stop()
	select {
	case <-l.config.Wake:
	case <-timer.C:
	case <-ctx.Done():
	}
}

func sleep(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

func interval(d time.Duration) pgtype.Interval {
	return pgtype.Interval{Microseconds: d.Microseconds(), Valid: true}
}
