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

// An Election makes one process at a time the leader of a consumer. The leader holds a lease that
// it must renew. Each election has a term, which is the fencing token: the database refuses what
// the leader of an earlier term writes.
type Election struct {
	Queries  *queries.Queries
	Consumer string
	// FromStart lets a consumer that is created now begin with the first step that there is, and
	// not with the next one.
	FromStart bool
	// Lease is how long a process leads after its last renewal.
	Lease time.Duration
	// Logger gets who leads and what fails.
	Logger *slog.Logger
}

// A Lead is what a leader does during its term. Its lease began at since or later, and it must
// renew it. It returns when the context ends, with ErrDeposed when its term has ended, or with
// whatever fails, and reports whether it made any progress.
type Lead func(ctx context.Context, term int64, since time.Time) (progress bool, err error)

// Run stands for election until the context ends, and calls lead each time it is elected. After
// an error it gives up the lease and waits: 100 ms, doubling with each error without progress, up
// to the length of the lease (at least 1 s). Another process may lead meanwhile, which perhaps
// reaches what this one does not. The work is named in the log.
func (e Election) Run(ctx context.Context, work string, lead Lead) {
	host, _ := os.Hostname()
	leader := fmt.Sprintf("%s %d %s", host, os.Getpid(), uuid.NewString())
	log := e.Logger.With("consumer", e.Consumer)
	failed := 0
	for ctx.Err() == nil {
		wait := e.Lease / 3
		since := time.Now()
		term, err := e.stand(ctx, leader)
		if err == nil && term > 0 {
			log.InfoContext(ctx, "leading", "term", term)
			var progress bool
			if progress, err = lead(ctx, term, since); progress {
				failed = 0
			}
			e.resign(ctx, term)
		}
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, ErrDeposed):
			log.WarnContext(ctx, "no longer leading", "term", term)
		case err != nil:
			wait = min(100*time.Millisecond<<min(failed, 10), max(e.Lease, time.Second))
			failed++
			log.ErrorContext(ctx, work+" fails; trying on", "error", err, "in", wait)
		}
		sleep(ctx, wait)
	}
}

// stand returns the term in which this process leads, or 0 if another process does.
func (e Election) stand(ctx context.Context, leader string) (term int64, err error) {
	p := queries.ConsumerLeadParams{Consumer: e.Consumer, Leader: leader, Lease: interval(e.Lease)}
	if term, err = e.Queries.ConsumerLead(ctx, p); err != nil || term > 0 {
		return term, err
	}
	// The reason may be that there is no such consumer.
	if err := e.Queries.ConsumerCreate(ctx, queries.ConsumerCreateParams{Consumer: e.Consumer, FromStart: e.FromStart}); err != nil {
		return 0, err
	}
	return e.Queries.ConsumerLead(ctx, p)
}

// resign gives up the lease, so that the next leader need not wait until it has run out. An error
// does no harm: the lease runs out then.
func (e Election) resign(ctx context.Context, term int64) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_ = e.Queries.ConsumerResign(ctx, queries.ConsumerResignParams{Consumer: e.Consumer, Term: term})
}
