package webhook

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/jackc/pgx/v5/pgtype"

	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/outbox"
	"github.com/pawl-fsm/pawl/outbox/dispatch"
)

// The results with which a delivery is settled, as pawl.delivery_settle takes them. A test
// compares their effects with what is said here.
const (
	// resultDelivered: the endpoint answered 2xx.
	resultDelivered = "delivered"
	// resultRetry: the attempt failed. There will be another after a delay.
	resultRetry = "retry"
	// resultDead: the attempt failed and was the last one.
	resultDead = "dead"
	// resultGone: the endpoint answered 410. The delivery is dead and the subscription disabled.
	resultGone = "gone"
	// resultPostponed: there was no attempt, since the circuit is open or the secret cannot be opened. It is due after a delay.
	resultPostponed = "postponed"
	// resultAbandoned: there was no attempt, since there is nothing to send. It is dead.
	resultAbandoned = "abandoned"
)

// A settlement is what is recorded of a delivery.
type settlement struct {
	result string
	// delay is how long to wait before the next attempt.
	delay time.Duration
	// failure is the text for the owner of the endpoint; empty for none.
	failure string
}

// decide returns what a dispatched delivery is settled with.
func (s *Sender) decide(r dispatch.Result[delivery]) settlement {
	switch r.Kind {
	case dispatch.Postponed:
		return settlement{result: resultPostponed, delay: r.Delay}
	case dispatch.Abandoned:
		return settlement{result: resultAbandoned, failure: r.Job.Abandon}
	}
	failure := r.Answer.Failure
	if failure == nil {
		return settlement{result: resultDelivered}
	}
	out := settlement{result: resultDead, failure: failure.Error()}
	if errors.Is(failure, dispatch.ErrProhibited) {
		out.failure = "the host has an address that webhooks must not be sent to"
	}
	if r.Answer.Status == http.StatusGone {
		out.result = resultGone
		return out
	}
	made := 1
	if row := r.Job.Value.row; !row.Replayed {
		made += int(row.Attempts)
	}
	delay, again := s.retry.Next(made, r.Answer)
	if again {
		out.result, out.delay = resultRetry, delay
	}
	return out
}

// settlements returns what settles deliveries of this leader; so far it has none.
func (l *leadership) settlements() queries.DeliverySettleParams {
	return queries.DeliverySettleParams{Leader: l.Leader, Term: l.Term, Rest: outbox.Interval(l.sending.Open)}
}

// addSettlement adds a delivery with its settlement and the answer to its attempt, which is empty if there was none.
func addSettlement(p *queries.DeliverySettleParams, row *queries.Delivery, s settlement, answer dispatch.Answer) {
	p.Tenants = append(p.Tenants, row.TenantID)
	p.Ids = append(p.Ids, row.ID)
	p.Results = append(p.Results, s.result)
	p.Delays = append(p.Delays, outbox.Interval(s.delay))
	p.Pauses = append(p.Pauses, pgtype.Interval{Microseconds: answer.RetryAfter.Microseconds(), Valid: answer.RetryAfter > 0})
	p.Statuses = append(p.Statuses, int32(answer.Status))
	p.Errors = append(p.Errors, s.failure)
	p.Responses = append(p.Responses, answer.Excerpt())
}

// settle records the results that there are, in the order in which the jobs ended. If the term has
// ended, nothing is recorded, and the error is outbox.ErrDeposed.
func (l *leadership) settle(ctx context.Context) error {
	ended := l.jobs.Collect()
	if len(ended) == 0 {
		return nil
	}
	p := l.settlements()
	for _, r := range ended {
		d := r.Job.Value.row
		s := l.decide(r)
		if s.failure != "" {
			l.config.Logger.Debug("a webhook was not delivered", "delivery", d.ID, "result", s.result, "error", s.failure)
		}
		addSettlement(&p, d, s, r.Answer)
	}
	leads := false
	err := l.call(ctx, func(ctx context.Context) (err error) {
		leads, err = l.queries.DeliverySettle(ctx, p)
		return err
	})
	switch {
	case err != nil:
		return fmt.Errorf("settle: %w", err)
	case !leads:
		return outbox.ErrDeposed
	}
	l.progress = true
	for _, r := range ended {
		l.jobs.Forget(r.Job.ID)
	}
	return nil
}

// purge deletes settled deliveries that are past their time, some at a time: again after 50 ms if
// there may be more, else after a minute.
func (l *leadership) purge(ctx context.Context) error {
	const batch = 1000
	var purged int32
	err := l.call(ctx, func(ctx context.Context) (err error) {
		purged, err = l.queries.DeliveryPurge(ctx, queries.DeliveryPurgeParams{
			RowLimit: batch, Delivered: outbox.Interval(l.config.KeepDelivered), Dead: outbox.Interval(l.config.KeepDead),
		})
		return err
	})
	if err != nil {
		return fmt.Errorf("purge deliveries: %w", err)
	}
	pause := time.Minute
	if purged >= batch {
		pause = 50 * time.Millisecond
	}
	l.nextPurge = time.Now().Add(pause)
	return nil
}
