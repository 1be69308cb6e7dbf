package outbox

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/db/session"
	"github.com/pawl-fsm/pawl/fsm"
)

// A Sink is where a relay publishes messages: a broker, a stream, or whatever an embedding
// program implements. Package sink has those that pawl comes with. A relay calls its sink from
// one goroutine at a time.
type Sink interface {
	// Publish returns nil when the receiver has durably stored all of the messages, in their
	// order within each instance. After an error some of them may be stored: the relay then
	// publishes the same messages again before any later one. The context ends before the lease
	// does, and Publish must return soon after. It must not keep the slice after it returns.
	Publish(ctx context.Context, messages []Message) error
	// Close releases what the sink holds. It is called after the last Publish.
	Close() error
}

// RelayConfig tunes a Relay. Its zero value works.
type RelayConfig struct {
	// FromStart makes a consumer that is created now begin with the first step that there is.
	// Default false: with the next one.
	FromStart bool
	// Audit makes the relay publish the rows of the audit instead of the steps, in the order of their positions. Its
	// consumer reads nothing else. FromStart is as for steps: without it, a consumer that is created now begins with the rows
	// that get positions from now on.
	Audit bool
	// Findings makes the relay publish the findings that are opened, too, each at its position between the steps. A consumer
	// begins with those behind its position. It counts for nothing with Audit.
	Findings bool
	// Page is the most messages that are published at once. The page shrinks while pages take
	// too long. Default 500.
	Page int
	// Poll is the longest time between two looks for new steps. Default 200 ms.
	Poll time.Duration
	// Lease is how long a process leads after it last moved its position or renewed the lease.
	// Default 10 s.
	Lease time.Duration
	// Wake, if set, signals that there may be new steps.
	Wake Wake
	// Logger gets who leads and what fails. Default: nothing is logged.
	Logger *slog.Logger
}

func (c RelayConfig) withDefaults() RelayConfig {
	if c.Page <= 0 {
		c.Page = 500
	}
	if c.Poll <= 0 {
		c.Poll = 200 * time.Millisecond
	}
	if c.Lease <= 0 {
		c.Lease = 10 * time.Second
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Wake == nil {
		c.Wake = NeverWake
	}
	return c
}

// A Relay publishes every committed step, with RelayConfig.Findings also the findings, or every row of the audit, to a sink on behalf of a consumer, whose position is in
// the database. Any number of processes may run the relay of one consumer: one at a time leads
// and publishes.
type Relay struct {
	queries  *queries.Queries
	consumer string
	sink     Sink
	config   RelayConfig
	page     PageSize
}

// NewRelay returns a Relay on a pool, of which it takes one connection at a time.
func NewRelay(pool *pgxpool.Pool, consumer string, sink Sink, config RelayConfig) *Relay {
	config = config.withDefaults()
	return &Relay{
		queries: queries.New(session.Pool(pool)), consumer: consumer, sink: sink, config: config, page: NewPageSize(config.Page),
	}
}

// Run relays until the context ends, and then returns nil. Errors are logged and retried; none
// ends it.
func (r *Relay) Run(ctx context.Context) error {
	consumer := queries.ConsumerCreateParams{Consumer: r.consumer, FromStart: r.config.FromStart, Audit: r.config.Audit}
	ElectionOf(r.queries, consumer, r.config.Lease, r.config.Logger).
		Run(ctx, "relaying", func(ctx context.Context, lease Lease) (progress bool, err error) {
			return (&leadership{Relay: r, Lease: lease, renewed: lease.Since}).run(ctx)
		})
	return nil
}

// A leadership is a Relay during one term.
type leadership struct {
	*Relay
	Lease
	// renewed is when the lease was last renewed, or earlier.
	renewed time.Time
}

func (l *leadership) run(ctx context.Context) (progress bool, err error) {
	wake, stop := l.config.Wake()
	defer stop()
	for ctx.Err() == nil {
		n, more, err := l.relayPage(ctx)
		progress = progress || n > 0
		if err != nil {
			return progress, err
		}
		if more {
			continue
		}
		if time.Since(l.renewed) > l.config.Lease/3 {
			if err := l.renew(ctx); err != nil {
				return progress, err
			}
		}
		idle(ctx, wake, l.config.Poll)
	}
	return progress, nil
}

// relayPage publishes the next page and then moves the consumer's position behind it. It returns how many messages the
// page had, and whether there may be more.
func (l *leadership) relayPage(ctx context.Context) (n int, more bool, err error) {
	size := l.page.Size()
	next, err := l.queries.ConsumerNext(ctx, queries.ConsumerNextParams{Consumer: l.consumer, RowLimit: int32(size)})
	if err != nil || next.Until == nil {
		return 0, false, err
	}
	messages, bytes, err := l.read(ctx, *next.Until)
	if err != nil {
		l.page.Adapt(err)
		return 0, false, err
	}
	position := *next.Until
	if bytes >= fsm.PageBytes {
		position = messages[len(messages)-1].Position
	}
	if l.config.Findings && !l.config.Audit {
		if messages, err = l.addFindings(ctx, messages, position); err != nil {
			return 0, false, err
		}
	}
	if len(messages) > 0 {
		if err := l.publish(ctx, messages); err != nil {
			return 0, false, err
		}
	}
	return len(messages), true, l.advance(ctx, next.Epoch, position, len(messages))
}

// read reads the messages up to a position. A page ends with the message by which its documents have fsm.PageBytes.
// bytes is how many they have.
func (l *leadership) read(ctx context.Context, until int64) (messages []Message, bytes int, err error) {
	if l.config.Audit {
		rows, err := l.queries.ConsumerReadAudit(ctx, queries.ConsumerReadAuditParams{Consumer: l.consumer, Until: until, Bytes: fsm.PageBytes})
		for _, row := range rows {
			bytes += len(row.Before) + len(row.After)
			messages = append(messages, auditMessageOf(row))
		}
		return messages, bytes, err
	}
	rows, err := l.queries.ConsumerRead(ctx, queries.ConsumerReadParams{Consumer: l.consumer, Until: until, Bytes: fsm.PageBytes})
	for _, row := range rows {
		bytes += len(row.Context) + len(row.Payload)
		messages = append(messages, MessageOf(row))
	}
	return messages, bytes, err
}

// addFindings adds the findings up to a position to the messages of a page, in the order of positions.
func (l *leadership) addFindings(ctx context.Context, messages []Message, until int64) ([]Message, error) {
	rows, err := l.queries.ConsumerReadFindings(ctx, queries.ConsumerReadFindingsParams{Consumer: l.consumer, Until: until})
	if err != nil {
		l.page.Adapt(err)
		return nil, err
	}
	for _, row := range rows {
		messages = append(messages, FindingMessageOf(row))
	}
	slices.SortFunc(messages, func(a, b Message) int { return cmp.Compare(a.Position, b.Position) })
	return messages, nil
}

// publish gives the sink no more time than the lease has left. What it published later could come
// between the messages of the next leader.
func (l *leadership) publish(ctx context.Context, messages []Message) error {
	ctx, cancel := context.WithDeadline(ctx, l.renewed.Add(l.config.Lease))
	defer cancel()
	err := l.sink.Publish(ctx, messages)
	if err == nil {
		l.page.Adapt(nil)
		return nil
	}
	if late := context.Cause(ctx); errors.Is(late, context.DeadlineExceeded) {
		l.page.cut(len(messages), late)
	}
	return fmt.Errorf("publish: %w", err)
}

// advance moves the consumer's position behind what was published, even if the context has ended.
func (l *leadership) advance(ctx context.Context, epoch, position int64, relayed int) error {
	return l.keepLease(ctx, func(ctx context.Context) (leads bool, err error) {
		return l.queries.ConsumerAdvance(ctx, queries.ConsumerAdvanceParams{
			Consumer: l.consumer, Leader: l.Leader, Term: l.Term, Epoch: epoch, Position: position, Relayed: int64(relayed),
			Lease: Interval(l.config.Lease),
		})
	})
}

func (l *leadership) renew(ctx context.Context) error {
	return l.keepLease(ctx, func(ctx context.Context) (leads bool, err error) {
		return l.queries.ConsumerRenew(ctx, queries.ConsumerRenewParams{Consumer: l.consumer, Leader: l.Leader, Term: l.Term, Lease: Interval(l.config.Lease)})
	})
}

// keepLease makes a call that renews the lease if this term still leads.
func (l *leadership) keepLease(ctx context.Context, call func(context.Context) (leads bool, err error)) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), l.config.Lease/2)
	defer cancel()
	now := time.Now()
	leads, err := call(ctx)
	if err == nil && !leads {
		return ErrDeposed
	}
	l.renewed = now
	return err
}

// Interval is a duration as the database takes it.
func Interval(d time.Duration) pgtype.Interval {
	return pgtype.Interval{Microseconds: d.Microseconds(), Valid: true}
}
