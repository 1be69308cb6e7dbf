package fsm

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"runtime/debug"
	"slices"
	"sync"
	"time"
)

// slowCall is how long a call may take before another one is made beside it. Until then the commands that
// arrive wait for the end of the call, and share the next one.
const slowCall = 5 * time.Millisecond

// maxChain is the largest number of commands for one instance in a call. The engine carries them out in
// rounds, and the other commands of the call wait for all rounds.
const maxChain = 32

// A batcher makes calls with commands that arrive together. Commands wait in a queue. A flusher takes
// everything that waits, up to a limit, and makes one call with it. A command that finds no call in flight is
// called at once, and those that arrive during a call share the next one. Another call is made beside those in
// flight if all of them are slow, or if enough commands for a full call wait. A flusher is a goroutine that
// ends when there is nothing to do. C is the type of the commands, and R that of their results.
//
// Commands for one instance, or with one key, exclude one another: they keep their order, and are never
// in flight in two calls at once. To ensure that, each command has names, such as that of its instance
// and that of its key. For each name there is a line of the commands that have it. A command is ready
// when it is the first in all of its lines. So taking a batch costs nothing for the commands that are
// not ready, however many there are. If a call has room left, it also takes chains: a command that waits
// only in the line of its instance, behind a command of the same call.
//
// A call may have commands of several tenants. Tenants take turns, with one command at each turn. So
// however many commands of a tenant wait, those of another wait only for the calls in flight.
type batcher[C, R any] struct {
	// flush makes a call, and does not panic. It completes or fails the commands, except those that it returns
	// to be called again, each by itself. away: the database does not answer.
	flush    func([]*pending[C, R]) (away bool, again []*pending[C, R])
	flushers int
	cap      int
	maxQueue int // How many commands of one tenant may wait if no others do.
	// patience: when the database is found to be away, the commands that have waited for longer than this
	// fail.
	patience time.Duration

	mu      sync.Mutex
	queues  map[string]*queue[C, R]     // By tenant; only tenants with waiting commands.
	turns   []*queue[C, R]              // The queues with ready commands, in the order of their turns.
	lines   map[string][]*pending[C, R] // By name; the first of a line is ready or in flight.
	waiting int                         // Commands that are not in flight: ready or in line.
	ready   int                         // How many commands are ready.
	alone   []*pending[C, R]            // First in their lines, and waiting for calls of their own.
	single  int                         // Calls in flight with one of those.
	calls   []time.Time                 // When each call in flight began.
	alarmed bool                        // Whether a timer is set to call grow when the calls in flight are slow.
	running int                         // How many flushers there are.
	closed  bool
	idle    *sync.Cond // Signalled when running falls to 0.
}

// A queue has the ready commands of one tenant.
type queue[C, R any] struct {
	tenant string
	// ready has the commands that never were behind others in a line, in the order of arrival. freed has those
	// that were, in the order in which they became ready.
	freed, ready []*pending[C, R]
	waiting      int // How many of the tenant's commands are not in flight.
	inTurns      bool
}

// pop takes the next command of ready or of freed, whichever arrived first. It returns nil if there is none.
func (q *queue[C, R]) pop() *pending[C, R] {
	from := &q.ready
	switch {
	case len(q.freed)+len(q.ready) == 0:
		return nil
	case len(q.ready) == 0 || len(q.freed) > 0 && !q.ready[0].queued.Before(q.freed[0].queued):
		from = &q.freed
	}
	p := (*from)[0]
	(*from)[0] = nil // The array lives on, and would keep the command.
	*from = (*from)[1:]
	return p
}

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
	// taken: the command is in flight. alone: it gets a call of its own, since a call that it shared failed.
	taken, alone bool
	queue        *queue[C, R]
	queued       time.Time

	// checked is the checksum of the schema that the document was checked against; empty for none. checks
	// counts the checks.
	checked string
	checks  int
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

func newBatcher[C, R any](config Config, flush func([]*pending[C, R]) (away bool, again []*pending[C, R])) *batcher[C, R] {
	b := &batcher[C, R]{
		flush: flush, flushers: config.Flushers, cap: config.MaxBatch, maxQueue: config.MaxQueue,
		patience: config.CallTimeout / 4,
		queues:   map[string]*queue[C, R]{}, lines: map[string][]*pending[C, R]{},
	}
	b.idle = sync.NewCond(&b.mu)
	return b
}

// submit queues commands in order. It queues a run of commands of one tenant as a whole, or fails the
// whole run.
func (b *batcher[C, R]) submit(commands ...*pending[C, R]) {
	for len(commands) > 0 {
		n := 1
		for n < len(commands) && commands[n].tenant == commands[0].tenant {
			n++
		}
		if err := b.offer(commands[:n]...); err != nil {
			for _, p := range commands[:n] {
				p.fail(err)
			}
		}
		commands = commands[n:]
	}
}

// offer queues commands of one tenant in order: all of them, or none if there is no room for all or the
// batcher is closed. There are 2 * maxQueue places. Afterwards the tenant must not have more waiting commands
// than places are free. So one tenant alone can fill maxQueue places, and the more others wait, the fewer it
// can fill.
func (b *batcher[C, R]) offer(commands ...*pending[C, R]) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	q := b.queueOf(commands[0].tenant)
	switch {
	case b.closed:
		return &Error{Kind: Unavailable, Message: "the service is shutting down; try again"}
	case q.waiting+len(commands) > 2*b.maxQueue-b.waiting-len(commands):
		return &Error{Kind: Unavailable, Message: "too many commands are waiting; try again"}
	}
	now := time.Now()
	for _, p := range commands {
		p.queued, p.queue = now, q
		for _, x := range p.exclusive {
			line := b.lines[x]
			if len(line) > 0 {
				p.behind++
				if x == p.chain {
					line[len(line)-1].next = p
				}
			}
			b.lines[x] = append(line, p)
		}
		if p.behind == 0 {
			q.ready = append(q.ready, p)
			b.ready++
		}
	}
	b.count(q, len(commands))
	b.turn(q)
	b.grow()
	return nil
}

// queueOf returns the queue of a tenant, which is new if none of its commands wait. The lock is held.
func (b *batcher[C, R]) queueOf(tenant string) *queue[C, R] {
	if q := b.queues[tenant]; q != nil {
		return q
	}
	return &queue[C, R]{tenant: tenant}
}

// count adds n to the number of a tenant's waiting commands. The lock is held.
func (b *batcher[C, R]) count(q *queue[C, R], n int) {
	if q.waiting == 0 {
		b.queues[q.tenant] = q
	}
	b.waiting += n
	if q.waiting += n; q.waiting == 0 {
		delete(b.queues, q.tenant)
	}
}

// turn puts a tenant with ready commands at the end of the turns. The lock is held.
func (b *batcher[C, R]) turn(q *queue[C, R]) {
	if !q.inTurns && len(q.freed)+len(q.ready) > 0 {
		q.inTurns = true
		b.turns = append(b.turns, q)
	}
}

// grow starts a flusher if there is work for one more. If a call must become slow before that, it sets a
// timer. The lock is held.
func (b *batcher[C, R]) grow() {
	if b.ready == 0 && !b.maySingle() || b.running == b.flushers {
		return
	}
	wait := b.mustWait()
	switch {
	case wait == 0 && b.running == len(b.calls): // No flusher is about to make a call.
		b.running++
		go b.run()
	case wait > 0 && !b.alarmed:
		b.alarmed = true
		time.AfterFunc(wait, func() {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.alarmed = false
			b.grow()
		})
	}
}

// mustWait returns how long to wait before a further call is made, unless a call ends earlier. The lock
// is held.
func (b *batcher[C, R]) mustWait() time.Duration {
	if len(b.calls) == 0 || b.ready >= b.cap {
		return 0
	}
	youngest := slices.MaxFunc(b.calls, time.Time.Compare)
	return max(slowCall-time.Since(youngest), 0)
}

// run is a flusher: it makes calls while there is work for it.
func (b *batcher[C, R]) run() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for b.mustWait() == 0 && b.step() {
	}
	b.running--
	b.grow()
	if b.running == 0 {
		b.idle.Broadcast()
	}
}

// step makes one call, if there is one to make. The lock is held, except during the call.
func (b *batcher[C, R]) step() bool {
	batch := b.take()
	if len(batch) == 0 {
		return false
	}
	began := time.Now()
	b.calls = append(b.calls, began)
	b.grow() // Another flusher takes what did not fit.
	b.mu.Unlock()
	away, again := b.flush(batch)
	b.mu.Lock()
	at := slices.Index(b.calls, began)
	b.calls = slices.Delete(b.calls, at, at+1)
	if batch[0].alone {
		b.single--
	}
	for _, p := range again {
		b.again(p)
	}
	for _, p := range batch {
		if p.taken {
			b.leave(p)
		}
	}
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

// again makes a command wait for a call of its own. The lock is held.
func (b *batcher[C, R]) again(p *pending[C, R]) {
	p.taken, p.alone = false, true
	p.queue = b.queueOf(p.tenant)
	b.count(p.queue, 1)
	if p.behind == 0 {
		b.alone = append(b.alone, p)
	}
}

// maySingle reports whether a call may be made with one of the commands that get calls of their own. One flusher
// is left for the other commands, since these calls may be slow. The lock is held.
func (b *batcher[C, R]) maySingle() bool {
	return len(b.alone) > 0 && b.single < max(b.flushers-1, 1)
}

// popAlone takes the next command that gets a call of its own. There must be one.
func (b *batcher[C, R]) popAlone() *pending[C, R] {
	p := b.alone[0]
	b.alone[0] = nil // The array lives on, and would keep the command.
	b.alone = b.alone[1:]
	return p
}

// takeSingle takes a command that gets a call of its own; nil if there is none, or if it may not be called now.
func (b *batcher[C, R]) takeSingle() *pending[C, R] {
	for b.maySingle() {
		p := b.popAlone()
		if err := cmp.Or(p.gaveUp(), p.err); err != nil {
			b.refuse(p, err)
			continue
		}
		b.single++
		return b.takeOne(p)
	}
	return nil
}

// take removes the commands of the next call from the queues.
func (b *batcher[C, R]) take() []*pending[C, R] {
	if p := b.takeSingle(); p != nil {
		return []*pending[C, R]{p}
	}
	var batch []*pending[C, R]
	for len(b.turns) > 0 && len(batch) < b.cap {
		q := b.turns[0]
		b.turns[0] = nil
		b.turns, q.inTurns = b.turns[1:], false
		p := q.pop()
		b.ready--
		b.turn(q)
		if err := p.gaveUp(); err != nil {
			b.refuse(p, err)
			continue
		}
		batch = append(batch, b.takeOne(p))
	}
	// Chains get the rest of the room.
	last := batch
	for n := 1; n < maxChain && len(last) > 0; n++ {
		taken := len(batch)
		for _, p := range last {
			if next := p.next; next != nil && next.behind == 1 && len(batch) < b.cap && next.gaveUp() == nil {
				batch = append(batch, b.takeOne(next))
			}
		}
		last = batch[taken:]
	}
	return batch
}

// takeOne notes that a command is in flight, and returns it.
func (b *batcher[C, R]) takeOne(p *pending[C, R]) *pending[C, R] {
	p.taken = true
	b.count(p.queue, -1)
	return p
}

// refuse fails a command that was taken from its queue but is not called.
func (b *batcher[C, R]) refuse(p *pending[C, R], err error) {
	p.fail(err)
	b.count(p.queue, -1)
	b.leave(p)
}

// drop fails the ready commands, and those that get calls of their own, for which refused returns an error. A
// command that becomes one of them because of that is treated in the same way.
func (b *batcher[C, R]) drop(refused func(*pending[C, R]) error) {
	var alone []*pending[C, R]
	for len(b.alone) > 0 { // refuse may free further commands.
		p := b.popAlone()
		if err := refused(p); err != nil {
			b.refuse(p, err)
		} else {
			alone = append(alone, p)
		}
	}
	b.alone = alone
	for _, q := range slices.Collect(maps.Values(b.queues)) {
		var kept []*pending[C, R]
		for p := q.pop(); p != nil; p = q.pop() { // refuse may free further commands.
			if err := refused(p); err != nil {
				b.ready--
				b.refuse(p, err)
			} else {
				kept = append(kept, p)
			}
		}
		q.ready = kept
		b.turn(q)
	}
	b.turns = slices.DeleteFunc(b.turns, func(q *queue[C, R]) bool {
		q.inTurns = len(q.ready) > 0
		return !q.inTurns
	})
}

// leave removes a command from its lines. Commands that become ready because of that join their queues.
func (b *batcher[C, R]) leave(p *pending[C, R]) {
	for _, x := range p.exclusive {
		line := b.lines[x]
		line[0] = nil // The array lives on, and would keep the command.
		if line = line[1:]; len(line) == 0 {
			delete(b.lines, x)
			continue
		}
		b.lines[x] = line
		first := line[0]
		if first.alone && x == p.chain && errors.Is(p.err, Unavailable) {
			// Say because another transaction holds the instance. It would wait as long as p did.
			first.fail(p.err)
		}
		if first.behind--; first.behind > 0 || first.taken {
			continue
		}
		if first.alone {
			b.alone = append(b.alone, first)
			continue
		}
		b.ready++
		first.queue.freed = append(first.queue.freed, first)
		b.turn(first.queue)
	}
	p.next = nil
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
