package fsm

import (
	"context"
	"fmt"
	"runtime/debug"
	"time"
)

// pending is a command on its way. It ends with complete or fail.
type pending[C, R any] struct {
	ctx     context.Context
	command C
	tenant  string
	// exclusive has its names: while it is in flight, no command with one of them is in flight in another
	// call. chain is the name that commands of one call may share; empty for none.
	exclusive []string
	chain     string
	// next is the command behind this one in the line of its chain.
	next *pending[C, R]
	// behind counts the lines in which it is not the first.
	behind int
	// track says with which others it may be called. blamed is the source because of which it is trackSlow.
	track  track
	blamed source
	// arrival is the number of the command in the order of arrival, and queued is when it arrived.
	arrival uint64
	queued  time.Time
	stage   stage
	// called: it was called before. finding is what the engine found out about it.
	called  bool
	finding finding

	// checked is the checksum of the schema that the document was checked against; empty for none. checks
	// counts the checks.
	checked string
	checks  int
	// check, if not nil, must be called before the command is called again. It checks the document against
	// the schema that the engine asked for.
	check func() error
	// unanswered: the answer to a call with this command was lost, and the call may have had its effect.
	unanswered bool

	result R
	err    error
	done   chan struct{}
}

// newPending returns a command with its names. The tenant is part of each name.
func newPending[C, R any](ctx context.Context, c C, tenant string, exclusive ...string) *pending[C, R] {
	for i := range exclusive {
		exclusive[i] = tenant + " " + exclusive[i]
	}
	return &pending[C, R]{ctx: ctx, command: c, tenant: tenant, exclusive: exclusive, done: make(chan struct{})}
}

// chained returns a command that may share a call with those before it in the line of its chain.
func chained[C, R any](ctx context.Context, c C, tenant, chain string, exclusive ...string) *pending[C, R] {
	p := newPending[C, R](ctx, c, tenant, append(exclusive, chain)...)
	p.chain = p.exclusive[len(exclusive)]
	return p
}

// complete ends a command with its result, unless it has ended.
func (p *pending[C, R]) complete(result R) {
	select {
	case <-p.done:
	default:
		p.result = result
		close(p.done)
	}
}

// fail ends a command with an error, unless it has ended.
func (p *pending[C, R]) fail(err error) {
	select {
	case <-p.done:
	default:
		p.err = err
		close(p.done)
	}
}

// wait returns the result or the error, or gives up when the caller does. A command that is given up
// may still be applied.
func (p *pending[C, R]) wait() (R, error) {
	select {
	case <-p.done:
		return p.result, p.err
	case <-p.ctx.Done():
		var none R
		return none, p.gaveUp()
	}
}

// gaveUp returns an error if the caller of the command has given up, and else nil.
func (p *pending[C, R]) gaveUp() error {
	if cause := p.ctx.Err(); cause != nil {
		return &Error{Kind: Unavailable, Message: "the caller gave up waiting", Cause: cause}
	}
	return nil
}

// recheck calls check, which the command then no longer has.
func (p *pending[C, R]) recheck() (err error) {
	defer func() {
		if cause := recover(); cause != nil {
			err = panicked(cause)
		}
	}()
	check := p.check
	p.check = nil
	return check()
}

// failAll recovers from a panic of the call that defers it, and fails the commands of the call. None of them is
// called again.
func failAll[C, R any](batch []*pending[C, R], left *flushed[C, R]) {
	if cause := recover(); cause != nil {
		*left = flushed[C, R]{}
		for _, p := range batch {
			p.fail(panicked(cause))
		}
	}
}

// panicked is the error of a command whose goroutine has panicked.
func panicked(cause any) error {
	return &Error{Kind: Internal, Cause: fmt.Errorf("panic: %v\n%s", cause, debug.Stack())}
}
