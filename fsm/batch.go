package fsm

import (
	"context"

	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/fsm/internal/database"
)

// A Batch makes calls with commands that arrive together, as a Service does with its own: one call at a time while the
// database is quick, and by turns of tenants. It is for the packages under fsm. C is the type of the commands, and R that
// of their results.
type Batch[C, R any] struct {
	batcher *batcher[C, R]
	name    func(C) string
}

// An Answer is what a Batch answers a command with.
type Answer[R any] struct {
	Result R
	Err    error
}

// batchFlushers is how many calls a Batch makes at a time. Its calls cost more to start than a command in them does, and take
// longer than slowCall on a busy machine: with more calls at a time each has few commands.
const batchFlushers = 2

// NewBatch returns a Batch, whose queue has a name for the Probe. call returns one result for each command, in their order. It is repeated after a deadlock, a
// serialization failure or a lost connection, so that a command that was carried out already must be answered with the
// same result. If it fails for several commands although there is a connection, each of them is called again by itself.
// Two commands of a tenant with the same name are never in flight at the same time.
func NewBatch[C, R any](s *Service, queue string, name func(C) string, call func(context.Context, *queries.Queries, []C) ([]R, error)) *Batch[C, R] {
	flush := func(batch []*pending[C, R]) (left flushed[C, R]) {
		defer failAll(batch, &left)
		commands := make([]C, len(batch))
		for i, p := range batch {
			commands[i] = p.command
		}
		var results []R
		_, err := s.db.Attempt(context.Background(), func(ctx context.Context) (err error) {
			results, err = call(ctx, s.db.Queries(), commands)
			return err
		})
		if err != nil {
			left.away = database.IsConnectionError(err)
			if len(batch) > 1 && !left.away {
				left.alone = batch
				return left
			}
			for _, p := range batch {
				p.fail(callError(err))
			}
			return left
		}
		for i, p := range batch {
			p.complete(results[i])
		}
		return left
	}
	config := s.config
	config.Flushers = min(config.Flushers, batchFlushers)
	return &Batch[C, R]{newBatcher(queue, config, flush), name}
}

// callError is the error of a call that may evaluate guards and values of a definition. A call that takes too long may
// wait for a lock, so that it may be made again.
func callError(err error) error {
	if database.IsGuardFailure(err) && !database.IsCode(err, database.QueryCanceled) {
		return newGuardError(err)
	}
	return AsError(err)
}

// Do carries out commands of a tenant, and answers them in their order.
// Kinds: those of the errors that call returns, GuardError, TooManyRequests, Unavailable.
func (b *Batch[C, R]) Do(ctx context.Context, tenant string, commands ...C) []Answer[R] {
	ps := make([]*pending[C, R], len(commands))
	for i, c := range commands {
		ps[i] = newPending[C, R](ctx, c, tenant, b.name(c))
	}
	b.batcher.submit(ps...)
	answers := make([]Answer[R], len(ps))
	for i, p := range ps {
		answers[i].Result, answers[i].Err = p.wait()
	}
	return answers
}

// NoteMoved calls Config.Moved for instances that were moved otherwise than by a command of the Service.
func (s *Service) NoteMoved(ids []uuid.UUID) {
	if len(ids) > 0 {
		s.config.Moved(ids)
	}
}
