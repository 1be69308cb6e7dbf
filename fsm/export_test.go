package fsm

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/db/queries"
)

// The batcher is tested with a call of the test's own, which no exported function takes.

// MaxChain is the largest number of commands for one instance in a call.
const MaxChain = maxChain

// SlowCall is how long a call may take before another one is made beside it.
const SlowCall = slowCall

// SmallShare is how many commands of a tenant a call may have although another tenant has fewer.
const SmallShare = smallShare

// CutMemory is how long a call that was cut is remembered.
const CutMemory = cutMemory

// Call is a command on its way through a Batcher.
type Call = pending[string, Result]

// NewCall returns a command that shares its names with no command in flight.
func NewCall(ctx context.Context, command, tenant string, exclusive ...string) *Call {
	return newPending[string, Result](ctx, command, tenant, exclusive...)
}

// NewChained returns a command that may share a call with those before it in the line of its chain.
func NewChained(ctx context.Context, command, tenant, chain string, exclusive ...string) *Call {
	return chained[string, Result](ctx, command, tenant, chain, exclusive...)
}

func (p *pending[C, R]) Command() C          { return p.command }
func (p *pending[C, R]) Tenant() string      { return p.tenant }
func (p *pending[C, R]) Exclusive() []string { return p.exclusive }
func (p *pending[C, R]) Fail(err error)      { p.fail(err) }
func (p *pending[C, R]) Wait() (R, error)    { return p.wait() }
func (p *pending[C, R]) Done() chan struct{} { return p.done }

// Slowness remembers what is slow, and Source is what may be.
type (
	Slowness slowness
	Source   = source
)

// SourceOf is an event of a workflow for a tenant.
func SourceOf(tenant, workflow, event string) Source {
	return source{tenant: tenant, workflow: workflow, event: event}
}

func (s *Slowness) Track(x Source) string {
	return []string{"shared", "alone", "slow"}[(*slowness)(s).track(x)]
}

func (s *Slowness) Knows(tenant, event string) bool       { return (*slowness)(s).knows(tenant, event) }
func (s *Slowness) Suspect(x Source)                      { (*slowness)(s).suspect(x) }
func (s *Slowness) Convict(x Source)                      { (*slowness)(s).convict(x) }
func (s *Slowness) Blame(x Source)                        { (*slowness)(s).blame(x) }
func (s *Slowness) Acquit(x Source)                       { (*slowness)(s).acquit(x) }
func (s *Slowness) IsSlow(took time.Duration, n int) bool { return (*slowness)(s).isSlow(took, n) }

// Batcher is where commands queue.
type Batcher struct{ b *batcher[string, Result] }

func NewBatcher(c Config, flush func([]*Call) (away bool)) Batcher {
	return NewBatcherAgain(c, func(calls []*Call) (away bool, alone []*Call) { return flush(calls), nil })
}

// NewBatcherAgain is NewBatcher with calls whose commands may have to be called again, each by itself, or, if
// they have a check, after it.
func NewBatcherAgain(c Config, flush func([]*Call) (away bool, alone []*Call)) Batcher {
	return Batcher{newBatcher("test", c.withDefaults(20), func(calls []*Call) (left flushed[string, Result]) {
		left.away, left.alone = flush(calls)
		for _, p := range calls {
			if p.check != nil {
				left.again = append(left.again, p)
			}
		}
		return left
	})}
}

// Slow makes a command one of those that were slow before, and returns it.
func Slow(p *Call) *Call {
	p.track = trackSlow
	return p
}

// Check gives a command a document to check before it is called again.
func (p *pending[C, R]) Check(check func() error) { p.check = check }

// HasCheck reports whether there is a document to check.
func (p *pending[C, R]) HasCheck() bool { return p.check != nil }

func (b Batcher) Submit(calls ...*Call) error { return b.b.offer(calls...) }
func (b Batcher) Close()                      { b.b.close() }

// Held says how many commands wait, how many names it knows, and how many flushers run.
func (b Batcher) Held() (waiting, names, running int) {
	b.b.mu.Lock()
	defer b.b.mu.Unlock()
	return b.b.waiting, len(b.b.lines), b.b.running
}

// CreatesWaiting says how many creates of a tenant wait.
func (s *Service) CreatesWaiting(tenant string) int {
	s.creates.mu.Lock()
	defer s.creates.mu.Unlock()
	return s.creates.tenants[tenant].waiting
}

// FiresEnded says whether all fires have left their lines. A fire is answered shortly before that.
func (s *Service) FiresEnded() bool {
	s.fires.mu.Lock()
	defer s.fires.mu.Unlock()
	return len(s.fires.lines) == 0
}

// FromDatabase maps an error of the driver.
func FromDatabase(err error) *Error { return fromDatabase(err) }

// Refused is the error that an outcome of the engine becomes.
func Refused(code string, id uuid.UUID, r Refusal) *Error {
	_, err := resultOf(queries.Outcome{Code: code, ID: &id}, &Error{Refusal: &r})
	e, _ := errors.AsType[*Error](err)
	return e
}

// ConditionStates are the SQLSTATEs that the service knows.
func ConditionStates() []string { return slices.Sorted(maps.Keys(conditions)) }

// WaitingFires returns how many fires wait for a call.
func (s *Service) WaitingFires() int {
	s.fires.mu.Lock()
	defer s.fires.mu.Unlock()
	return s.fires.waiting
}
