package outbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/db/queries"
)

// ErrDeposed is the error of a leader whose term has ended: another process leads.
var ErrDeposed = errors.New("another process leads now")

// An Election makes one process at a time the leader of some work. The leader holds a lease that it must renew.
// Each lease has a term, which with the leader's name is the fencing token: the database refuses what the leader
// of an earlier lease writes. The name is part of the token, since a failover may lose a term and give it out
// again.
type Election struct {
	// Stand returns the term in which the leader of that name leads now, or 0 if another process does.
	Stand func(ctx context.Context, leader string) (term int64, err error)
	// Resign gives up the lease, so that the next leader need not wait until it has run out.
	Resign func(ctx context.Context, leader string, term int64) error
	// Length is how long a process leads after its last renewal.
	Length time.Duration
	// Logger gets who leads and what fails.
	Logger *slog.Logger
}

// A Lease is what a leader holds. It began at Since or later.
type Lease struct {
	Leader string
	Term   int64
	Since  time.Time
}

// A Lead is what a leader does while it holds the lease, which it must renew. It returns when the context ends,
// with ErrDeposed when another process leads, or with whatever fails, and reports whether it made any progress.
type Lead func(ctx context.Context, lease Lease) (progress bool, err error)

// Run stands for election until the context ends, and calls lead each time it is elected. After an error it gives
// up the lease and waits: 100 ms, doubling with each error without progress, up to the length of the lease (at
// least 1 s). Another process may lead meanwhile, which perhaps reaches what this one does not. The work is named
// in the log.
func (e Election) Run(ctx context.Context, work string, lead Lead) {
	host, _ := os.Hostname()
	leader := fmt.Sprintf("%s %d %s", host, os.Getpid(), uuid.NewString())
	failed := 0
	for ctx.Err() == nil {
		wait := e.Length / 3
		since := time.Now()
		term, err := e.Stand(ctx, leader)
		if err == nil && term > 0 {
			e.Logger.InfoContext(ctx, "leading", "term", term)
			var progress bool
			if progress, err = lead(ctx, Lease{Leader: leader, Term: term, Since: since}); progress {
				failed = 0
			}
			e.resign(ctx, leader, term)
		}
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, ErrDeposed):
			e.Logger.WarnContext(ctx, "no longer leading", "term", term)
		case err != nil:
			wait = min(100*time.Millisecond<<min(failed, 10), max(e.Length, time.Second))
			failed++
			e.Logger.ErrorContext(ctx, work+" fails; trying on", "error", err, "in", wait)
		}
		Sleep(ctx, wait)
	}
}

// resign gives up the lease. An error does no harm: the lease runs out then.
func (e Election) resign(ctx context.Context, leader string, term int64) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_ = e.Resign(ctx, leader, term)
}

// ElectionOf returns the Election of a consumer, which is created if need be.
func ElectionOf(q *queries.Queries, c queries.ConsumerCreateParams, length time.Duration, logger *slog.Logger) Election {
	return Election{
		Length: length, Logger: logger.With("consumer", c.Consumer),
		Stand: func(ctx context.Context, leader string) (term int64, err error) {
			p := queries.ConsumerLeadParams{Consumer: c.Consumer, Leader: leader, Lease: Interval(length), Audit: c.Audit}
			if term, err = q.ConsumerLead(ctx, p); err != nil || term > 0 {
				return term, err
			}
			// The reason may be that there is no such consumer.
			if err := q.ConsumerCreate(ctx, c); err != nil {
				return 0, err
			}
			return q.ConsumerLead(ctx, p)
		},
		Resign: func(ctx context.Context, leader string, term int64) error {
			return q.ConsumerResign(ctx, queries.ConsumerResignParams{Consumer: c.Consumer, Leader: leader, Term: term})
		},
	}
}
