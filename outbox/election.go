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

// errDeposed says that another process leads.
var errDeposed = errors.New("another process leads now")

// An election has one process at a time lead for a consumer: by a lease, whose term refuses
// what an earlier leader writes.
type election struct {
	queries   *queries.Queries
	consumer  string
	fromStart bool // For a consumer that is new.
	lease     time.Duration
	logger    *slog.Logger
}

// run leads whenever nobody does, until the context ends. lead leads for a term, its lease
// having begun at since or later; it ends with the context, with errDeposed, or with what
// fails, and says whether it got anything done before. work names what fails, for the log.
func (e election) run(ctx context.Context, work string, lead func(ctx context.Context, term int64, since time.Time) (worked bool, err error)) {
	host, _ := os.Hostname()
	leader := fmt.Sprintf("%s %d %s", host, os.Getpid(), uuid.NewString())
	log := e.logger.With("consumer", e.consumer)
	failed := 0
	for ctx.Err() == nil {
		wait := e.lease / 3
		since := time.Now()
		term, err := e.lead(ctx, leader)
		if err == nil && term > 0 {
			log.InfoContext(ctx, "leading", "term", term)
			var worked bool
			if worked, err = lead(ctx, term, since); worked {
				failed = 0
			}
			e.resign(ctx, term)
		}
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, errDeposed):
			log.WarnContext(ctx, "no longer leading", "term", term)
		case err != nil:
			// Later and later. The lease is given up meanwhile: another process may reach
			// what this one does not.
			wait = min(100*time.Millisecond<<min(failed, 10), max(e.lease, time.Second))
			failed++
			log.ErrorContext(ctx, work+" fails; trying on", "error", err, "in", wait)
		}
		sleep(ctx, wait)
	}
}

// lead returns the term, or 0 if another process leads.
func (e election) lead(ctx context.Context, leader string) (term int64, err error) {
	p := queries.LeadParams{Consumer: e.consumer, Leader: leader, Lease: interval(e.lease)}
	if term, err = e.queries.Lead(ctx, p); err != nil || term > 0 {
		return term, err
	}
	// There may be no such consumer.
	if err := e.queries.AddConsumer(ctx, queries.AddConsumerParams{Consumer: e.consumer, FromStart: e.fromStart}); err != nil {
		return 0, err
	}
	return e.queries.Lead(ctx, p)
}

func (e election) resign(ctx context.Context, term int64) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	// Without it the lease runs out.
	_ = e.queries.Resign(ctx, queries.ResignParams{Consumer: e.consumer, Term: term})
}
