package fsm

import (
	"context"
	"fmt"
	"runtime/debug"
	"sync"
	"time"
)

// A batcher lets commands that arrive together share a call. Commands queue; a few flushers each take
// everything that waits, up to a cap, and make one call with it. There is no timer: a command that
// finds a flusher free is called at once, and those that arrive during a call make up the next one. A
// flusher is a goroutine that lives while there is work. C is the type of the commands, and R that of
// their results.
//
// Commands that exclude one another, since they are for one instance or have one key, are never in flight
// together and keep their order. Each command has names. There is a line for each name, in which the
// commands with that name stand. A command may be taken when it is the first in all of its lines. So
// taking a batch does not look at the commands that must wait, however many they are.
type batcher[C, R any] struct {
	// flush completes or fails each of the commands, does not panic, and returns whether the database
	// is away.
	flush    func([]*pending[C, R]) (away bool)
	flushers int
	cap      int
	maxQueue int
	// patience is for how long a command may have waited, when the database turns out to be away, without
	// being failed.
	patience time.Duration

	mu      sync.Mutex
	ready   []*pending[C, R]            // May be taken, in order.
	lines   map[string][]*pending[C, R] // By name; the first of a line is ready or in flight.
	waiting int                         // Commands that are not in flight: ready or in line.
	running int                         // Flushers.
	closed  bool
	idle    *sync.Cond // Signalled when running falls to 0.
}

// pending is a command on its way. It ends with complete or fail.
type pending[C, R any] struct {
	ctx     context.Context
	command C
	tenant  string
	// exclusive are its names: it is never in flight together with a command that has one of them.
	exclusive []string
	// behind counts the lines in which it is not the first.
	behind int
	queued time.Time

	// checked is the checksum of the schema that the document was checked against; empty for none.
	checked string
	// unanswered: the answer to a call with this command was lost, and the call may have had its effect.
	unanswered bool

	result R
	err    error
	done   chan struct{}
}

func newPending[C, R any](ctx context.Context, c C, tenant string, exclusive ...string) *pending[C, R] {
	for i := range exclusive {
		exclusive[i] = tenant + " " + exclusive[i]
	}
	return &pending[C, R]{ctx: ctx, command: c, tenant: tenant, exclusive: exclusive, done: make(chan struct{})}
}

// complete ends a command with its result.
func (p *pending[C, R]) complete(result R) {
	p.result = result
	close(p.done)
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

// failAll recovers from a panic of the call that defers it, and fails the commands of the call.
func failAll[C, R any](batch []*pending[C, R]) {
	if cause := recover(); cause != nil {
		for _, p := range batch {
			p.fail(&Error{Kind: Internal, Cause: fmt.Errorf("panic: %v\n%s", cause, debug.Stack())})
		}
	}
}

func newBatcher[C, R any](config Config, flush func([]*pending[C, R]) (away bool)) *batcher[C, R] {
	b := &batcher[C, R]{
		flush: flush, flushers: config.Flushers, cap: config.MaxBatch, maxQueue: config.MaxQueue,
		patience: config.CallTimeout / 4,
		lines:    map[string][]*pending[C, R]{},
	}
	b.idle = sync.NewCond(&b.mu)
	return b
}

// submit queues commands in order, or fails all of them if they cannot be queued.
func (b *batcher[C, R]) submit(commands ...*pending[C, R]) {
	if err := b.offer(commands...); err != nil {
		for _, p := range commands {
			p.fail(err)
		}
	}
}

// offer queues commands in order: all of them, or none if the queue has no room for all or is closed.
func (b *batcher[C, R]) offer(commands ...*pending[C, R]) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.closed:
		return &Error{Kind: Unavailable, Message: "the service is shutting down; try again"}
	case b.waiting+len(commands) > b.maxQueue:
		return &Error{Kind: Unavailable, Message: "too many commands are waiting; try again"}
	}
	now := time.Now()
	for _, p := range commands {
		p.queued = now
		for _, x := range p.exclusive {
			if len(b.lines[x]) > 0 {
				p.behind++
			}
			b.lines[x] = append(b.lines[x], p)
		}
		if p.behind == 0 {
			b.ready = append(b.ready, p)
		}
	}
	b.waiting += len(commands)
	b.grow()
	return nil
}

// grow starts a flusher if there is work and fewer than flushers run. The lock is held.
func (b *batcher[C, R]) grow() {
	if len(b.ready) > 0 && b.running < b.flushers {
		b.running++
		go b.run()
	}
}

// run is a flusher: it makes calls until nothing is left that may be taken.
func (b *batcher[C, R]) run() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for b.step() {
	}
	if b.running--; b.running == 0 {
		b.idle.Broadcast()
	}
}

// step makes one call, if there is one to make. The lock is held, except during the call.
func (b *batcher[C, R]) step() bool {
	batch := b.take()
	if len(batch) == 0 {
		return false
	}
	b.grow() // Another flusher takes what did not fit.
	b.mu.Unlock()
	away := b.flush(batch)
	b.mu.Lock()
	var freed []*pending[C, R]
	for _, p := range batch {
		freed = append(freed, b.leave(p)...)
	}
	// The freed commands arrived before the ready ones.
	b.ready = append(freed, b.ready...)
	if away {
		// The next call is likely to fail too, and as late as this one. Commands that have waited for
		// long already fail now; the others are called.
		b.drop(func(p *pending[C, R]) error {
			if time.Since(p.queued) <= b.patience {
				return nil
			}
			return &Error{Kind: Unavailable, Message: "the database did not answer; try again"}
		})
	}
	return true
}

// take removes the commands of the next call from the queue: ready commands of one tenant.
func (b *batcher[C, R]) take() []*pending[C, R] {
	b.drop((*pending[C, R]).gaveUp)
	var batch []*pending[C, R]
	rest := b.ready[:0]
	for i, p := range b.ready {
		if len(batch) == b.cap {
			rest = append(rest, b.ready[i:]...)
			break
		}
		if len(batch) > 0 && p.tenant != batch[0].tenant {
			rest = append(rest, p)
		} else {
			batch = append(batch, p)
		}
	}
	clear(b.ready[len(rest):])
	b.ready = rest
	b.waiting -= len(batch)
	return batch
}

// drop fails the ready commands for which refuse returns an error. A command that becomes ready by that is
// treated in the same way.
func (b *batcher[C, R]) drop(refuse func(*pending[C, R]) error) {
	rest := b.ready[:0]
	for i := 0; i < len(b.ready); i++ { // ready grows meanwhile.
		p := b.ready[i]
		if err := refuse(p); err != nil {
			p.fail(err)
			b.waiting--
			b.ready = append(b.ready, b.leave(p)...)
		} else {
			rest = append(rest, p)
		}
	}
	clear(b.ready[len(rest):])
	b.ready = rest
}

// leave takes a command out of its lines, and returns the commands that may be taken because of that.
func (b *batcher[C, R]) leave(p *pending[C, R]) (freed []*pending[C, R]) {
	for _, x := range p.exclusive {
		line := b.lines[x]
		line[0] = nil // The array lives on, and would keep the command.
		if line = line[1:]; len(line) == 0 {
			delete(b.lines, x)
			continue
		}
		b.lines[x] = line
		if line[0].behind--; line[0].behind == 0 {
			freed = append(freed, line[0])
		}
	}
	return freed
}

// close refuses new commands, and waits until those that were accepted have ended.
func (b *batcher[C, R]) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	for b.running > 0 {
		b.idle.Wait()
	}
}
