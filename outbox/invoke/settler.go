package invoke

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/fsm/worker"
	"github.com/pawl-fsm/pawl/outbox"
)

const (
	// maxSettled is how many reports are settled at once.
	maxSettled = 100
	// settleAgain is how long to wait after reports could not be settled.
	settleAgain = 100 * time.Millisecond
	// flushTimeout is how long reports are settled that are left when the process stops.
	flushTimeout = 3 * time.Second
	// callTimeout bounds a call to the database.
	callTimeout = 5 * time.Second
)

// A settler records what came of calls. A report is kept until the database has taken or refused it.
type settler struct {
	queries *queries.Queries
	rest    time.Duration
	logger  *slog.Logger
	// size is how many reports to settle at once now: one after a failure, and twice as many after each success. So the one
	// that cannot be settled is soon alone.
	size int
	// well are the connections of which the last report was a success.
	well map[connectionKey]bool

	mu     sync.Mutex
	queue  []report
	signal chan struct{}
}

func newSettler(q *queries.Queries, config Config) *settler {
	return &settler{
		queries: q, rest: config.Rest, logger: config.Logger, size: maxSettled, well: map[connectionKey]bool{}, signal: make(chan struct{}, 1),
	}
}

// add takes a report.
func (s *settler) add(r report) {
	s.mu.Lock()
	s.queue = append(s.queue, r)
	s.mu.Unlock()
	select {
	case s.signal <- struct{}{}:
	default:
	}
}

// len is how many reports wait.
func (s *settler) len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.queue)
}

// run settles reports until the context ends, and then those that are left, for as long as flushTimeout.
func (s *settler) run(ctx context.Context) {
	_ = worker.Repeat(ctx, s.logger, "settling tasks", func(ctx context.Context) (time.Duration, error) {
		select {
		case <-s.signal:
		case <-ctx.Done():
			return 0, nil
		}
		return s.drain(context.WithoutCancel(ctx))
	})
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushTimeout)
	defer cancel()
	for s.len() > 0 && ctx.Err() == nil {
		if wait, err := s.drain(ctx); err != nil {
			s.logger.WarnContext(ctx, "the last tasks could not be settled yet", "tasks", s.len(), "error", err)
			time.Sleep(wait) // A fraction of flushTimeout, which ends the loop.
		}
	}
}

// drain settles what waits. After a failure it returns how long to wait, and is called again then.
func (s *settler) drain(ctx context.Context) (time.Duration, error) {
	for s.len() > 0 {
		if err := s.settle(ctx); err != nil {
			select {
			case s.signal <- struct{}{}:
			default:
			}
			return settleAgain, err
		}
	}
	return 0, nil
}

// settle settles the first reports of the queue.
func (s *settler) settle(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	s.mu.Lock()
	reports := slices.Clone(s.queue[:min(len(s.queue), s.size)])
	s.mu.Unlock()
	var p queries.TaskSettleParams
	for _, r := range reports {
		text, err := json.Marshal(r.outcome)
		if err != nil {
			return fmt.Errorf("write a report: %w", err)
		}
		p.Tenants, p.Ids, p.Leases = append(p.Tenants, r.tenant), append(p.Ids, r.task), append(p.Leases, r.lease)
		p.Reports = append(p.Reports, text)
	}
	settled, err := s.queries.TaskSettle(ctx, p)
	s.taken(reports, err)
	if err != nil {
		return fmt.Errorf("settle: %w", err)
	}
	for _, t := range settled {
		if t.Code != "settled" && t.Code != "repeated" {
			s.logger.InfoContext(ctx, "the result of a call came too late", "tenant", t.TenantID, "task", t.TaskID, "code", t.Code)
		}
	}
	return s.reportHealth(ctx, reports)
}

// taken removes reports that were settled from the queue. Those that were not are tried alone. One that was alone goes behind
// the others, without what the database may not be able to store.
func (s *settler) taken(reports []report, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		s.queue = slices.Delete(s.queue, 0, len(reports))
		s.size = min(2*s.size, maxSettled)
		return
	}
	s.size = 1
	if refused, answered := errors.AsType[*pgconn.PgError](err); answered && len(reports) == 1 {
		r := reports[0]
		if strings.HasPrefix(refused.Code, "22") || strings.HasPrefix(refused.Code, "54") {
			r.outcome.Body, r.outcome.Error = nil, "the body cannot be stored"
		}
		s.queue = append(slices.Delete(s.queue, 0, 1), r)
	}
}

// reportHealth reports of connections whether attempts failed. Successes are reported after a failure, and of probes: to
// report each would write the connection's row each time.
func (s *settler) reportHealth(ctx context.Context, reports []report) error {
	p := queries.ConnectionReportParams{Rest: outbox.Interval(s.rest)}
	for _, r := range reports {
		key := connectionKey{r.tenant, r.connection}
		if r.health == unsaid || r.health == healthy && s.well[key] && !r.probe {
			continue
		}
		s.well[key] = r.health == healthy
		p.Tenants, p.Names, p.Succeeded = append(p.Tenants, r.tenant), append(p.Names, r.connection), append(p.Succeeded, r.health == healthy)
	}
	if len(p.Names) == 0 {
		return nil
	}
	if err := s.queries.ConnectionReport(ctx, p); err != nil {
		clear(s.well)
		return fmt.Errorf("report of connections: %w", err)
	}
	return nil
}
