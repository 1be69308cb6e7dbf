package webhook

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/db/session"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/outbox"
	"github.com/pawl-fsm/pawl/outbox/dispatch"
)

// A Sender makes deliveries of the steps that subscriptions match, and of the ends of instances
// with a callback, and sends them. Any number of processes may run one: one at a time leads.
type Sender struct {
	queries *queries.Queries
	config  Config
	sending dispatch.Config
	retry   dispatch.Retry
	client  *dispatch.Client
	// routed and fetched are the page sizes of steps to route and of due deliveries.
	routed, fetched outbox.PageSize
}

// New returns a Sender on a pool, of which it takes one connection at a time.
func New(pool *pgxpool.Pool, config Config) *Sender {
	config = config.withDefaults()
	sending := config.sending()
	return &Sender{
		queries: queries.New(session.Pool(pool)), config: config, sending: sending,
		retry:  dispatch.Retry{MaxAttempts: config.MaxAttempts, Backoff: config.Backoff},
		client: dispatch.NewClient(sending),
		routed: outbox.NewPageSize(config.Page), fetched: outbox.NewPageSize(4 * sending.Concurrency),
	}
}

// consumer is the consumer that routes.
const consumer = "webhooks"

// Run routes and sends until the context ends, and then returns nil. Errors are logged and
// retried; none ends it.
func (s *Sender) Run(ctx context.Context) error {
	defer s.client.Close()
	// From the first step on: a subscription matches no step from before it was made.
	outbox.ElectionOf(s.queries, queries.ConsumerCreateParams{Consumer: consumer, FromStart: true}, s.config.Lease, s.config.Logger).
		Run(ctx, "delivering webhooks", func(ctx context.Context, lease outbox.Lease) (progress bool, err error) {
			l := &leadership{
				Sender: s, Lease: lease, renewed: lease.Since, signals: outbox.Signals{Wake: s.config.Wake}, places: map[string]uuid.UUID{},
				reported: map[string]string{},
			}
			err = l.run(ctx)
			return l.progress, err
		})
	return nil
}

// A leadership is a Sender during one term. One goroutine owns it.
type leadership struct {
	*Sender
	outbox.Lease
	// renewed is when the lease was last renewed, or earlier.
	renewed time.Time
	// progress is set once anything was routed or settled.
	progress bool

	jobs *dispatch.Dispatcher[delivery]
	// signals tell that there may be new steps, while there are subscriptions or callbacks. While there are none,
	// polling is enough to keep the position near the end of the log.
	signals outbox.Signals
	// stopping is set when no further attempt may begin.
	stopping bool
	// refreshed is when the subscriptions of what is in memory were last read.
	refreshed time.Time
	// turn is the tenant whose unrouted steps were last routed; empty if there are none.
	turn string
	// restEnds is when the router has rested.
	restEnds time.Time
	// after is the tenant up to which the search for due deliveries has come, empty at its end. places
	// are the subscriptions up to which it has come within tenants that have more. searched is when
	// it last began to look at all tenants, or went on with that.
	after     string
	places    map[string]uuid.UUID
	searched  time.Time
	nextPurge time.Time
	// reported are the findings that were logged, of secrets that cannot be opened.
	reported map[string]string
}

// grace is how long attempts that are under way may take to end when the process is to stop.
const grace = 3 * time.Second

func (l *leadership) run(ctx context.Context) (err error) {
	l.jobs = dispatch.New(l.sending, l.send)
	defer l.jobs.Close()
	defer l.signals.Listen(false)
	defer func() {
		if ctx.Err() != nil && err == nil {
			err = l.finish(ctx)
		}
	}()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for look := true; ctx.Err() == nil; {
		busy, err := l.round(ctx, &look)
		if err != nil {
			return err
		}
		if busy {
			continue
		}
		pause := l.config.Poll
		if l.unfinished() {
			pause = min(pause, unfinishedPause)
		}
		if rest := time.Until(l.restEnds); rest > 0 {
			pause = min(pause, rest) // There is more to route.
		}
		timer.Reset(pause)
		select {
		case r := <-l.jobs.Finished():
			l.jobs.Accept(r)
			l.jobs.AcceptAll()
		case <-l.signals.C:
		case <-timer.C:
			look = look || l.after != "" || time.Since(l.searched) >= l.config.Poll
		case <-ctx.Done():
		}
	}
	return nil
}

// send makes an attempt of a delivery.
func (l *leadership) send(ctx context.Context, d delivery) dispatch.Answer {
	request, traceparent, err := d.request(ctx)
	if err != nil {
		return dispatch.Answer{Failure: err}
	}
	traceparent, end := l.config.Trace.Begin(d.described(traceparent))
	if traceparent != "" {
		request.Header.Set("Traceparent", traceparent)
	}
	a := l.client.Send(ctx, request)
	end(a.Status, a.Failure)
	return a
}

// round settles, routes, fetches and starts what it can without waiting for an attempt. If it has routed a piece of a
// tenant's steps, there is more, and another tenant sends commands, then the router rests for as long as the round took. look says
// whether there may be due deliveries to fetch, before and after. It reports whether the next round
// is to follow at once.
func (l *leadership) round(ctx context.Context, look *bool) (busy bool, err error) {
	if len(l.jobs.Ended()) > 0 {
		if err := l.settle(ctx); err != nil {
			return false, err
		}
		*look = true
	}
	began := time.Now()
	var more, made bool
	if began.After(l.restEnds) {
		if more, made, err = l.route(ctx); err != nil {
			return false, err
		}
	}
	if *look || made || len(l.places) > 0 {
		if *look, err = l.fetch(ctx, !*look && !made); err != nil {
			return false, err
		}
	}
	if err := l.refresh(ctx); err != nil {
		return false, err
	}
	if more && l.turn != "" && l.config.Beside(l.turn) {
		l.restEnds = time.Now().Add(min(time.Since(began), fsm.MaxRest))
		more = false
	}
	l.start()
	if l.jobs.AcceptAll(); more || len(l.jobs.Ended()) > 0 {
		return true, nil
	}
	if time.Now().After(l.nextPurge) {
		return false, l.purge(ctx)
	}
	return false, nil
}

// finish settles what has ended, and what ends within the grace after the context has. What is
// still under way then is cut, and sent again by the next leader.
func (l *leadership) finish(ctx context.Context) error {
	l.stopping = true
	deadline := time.NewTimer(min(grace, l.sending.Timeout))
	defer deadline.Stop()
	for waiting := true; waiting && l.jobs.InFlight() > 0; {
		select {
		case r := <-l.jobs.Finished():
			l.jobs.Accept(r)
		case <-deadline.C:
			waiting = false
		}
	}
	return l.settle(ctx)
}

// start begins attempts, unless the lease may have run out: another process may lead then, and
// the next call to the database will find out.
func (l *leadership) start() {
	if l.stopping || time.Since(l.renewed) > l.config.Lease {
		return
	}
	l.jobs.Start()
}

// call makes a call to the database, for no longer than half the lease. Attempts that end
// meanwhile make room for others. The call runs in another goroutine, so it must not touch the
// leadership's jobs.
func (l *leadership) call(ctx context.Context, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), l.config.Lease/2)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	for {
		select {
		case err := <-done:
			return err
		case r := <-l.jobs.Finished():
			l.jobs.Accept(r)
			l.start()
		}
	}
}

// route makes deliveries of the next page of steps. It reports whether there are more steps, and
// whether deliveries were made. It renews the lease when a third of it is over.
func (l *leadership) route(ctx context.Context) (more, made bool, err error) {
	now := time.Now()
	var r queries.DeliveryRouteRow
	err = l.call(ctx, func(ctx context.Context) (err error) {
		r, err = l.queries.DeliveryRoute(ctx, queries.DeliveryRouteParams{
			Leader: l.Leader, Term: l.Term, RowLimit: int32(l.routed.Size()), Lease: outbox.Interval(l.config.Lease), Turn: l.turn,
		})
		return err
	})
	l.routed.Adapt(err)
	switch {
	case err != nil:
		return false, false, fmt.Errorf("route: %w", err)
	case !r.Leads:
		return false, false, outbox.ErrDeposed
	}
	if l.turn = r.Turn; !r.More {
		l.turn = ""
	}
	l.renewed = now.Add(-l.config.Lease / 3) // The lease may have been renewed up to a third ago.
	l.progress = l.progress || r.Steps > 0 || r.Deliveries > 0
	l.signals.Listen(r.Wanted)
	return r.More, r.Deliveries > 0, nil
}
