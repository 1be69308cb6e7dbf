package fsm

import (
	"context"
	"sync"
	"time"
)

// A batcher lets commands that arrive together share a call. Commands queue; a few
// flushers each take all that waits, up to a cap, and make one call. There is no timer: a
// command that finds a flusher free is called at once, and those that arrive during a call
// make up the next one. A flusher is a goroutine that lives while there is work.
//
// Commands that exclude one another (for one instance, or under one key) are never in
// flight together and keep their order: those that share a name stand in line, and only
// the first of its lines may be taken. So no command is looked at twice, however many
// stand behind it.
type batcher[C any] struct {
	// flush settles every one of them, does not panic, and says whether the database is away.
	flush    func([]*pending[C]) (away bool)
	flushers int
	cap      int
	maxQueue int
	// patience is how long a command may have waited when the database turns out to be away.
	patience time.Duration

	mu      sync.Mutex
	ready   []*pending[C]            // May be taken, in order.
	lines   map[string][]*pending[C] // Those that share a name; the first is ready or in flight.
	waiting int                      // Those that are not in flight: ready or in line.
	running int                      // Flushers.
	closed  bool
	idle    *sync.Cond // Signalled when running falls to 0.
}

// pending is a command on its way. Whoever settles it closes done.
type pending[C any] struct {
	ctx       context.Context
	command   C
	tenant    string
	exclusive []string // What it shares with no command in flight.
	behind    int      // In how many lines it is not the first.
	queued    time.Time

	// checked is the checksum of the schema that the document was checked against.
	checked string
	// unanswered: a call with it may have had its effect, but its answer was lost.
	unanswered bool
	result     Result
	err        error
	done       chan struct{}
}

// fail settles a command with an error, unless it is settled.
func (p *pending[C]) fail(err error) {
	select {
	case <-p.done:
	default:
		p.err = err
		close(p.done)
	}
}

// wait returns the outcome, or gives up when the caller does; the command may then
// still be applied.
func (p *pending[C]) wait() (Result, error) {
	select {
	case <-p.done:
		return p.result, p.err
	case <-p.ctx.Done():
		return Result{}, p.gaveUp()
	}
}

// gaveUp is the error of a command whose caller is gone, else nil.
func (p *pending[C]) gaveUp() error {
	if cause := p.ctx.Err(); cause != nil {
		return &Error{Kind: Unavailable, Message: "the caller gave up waiting", cause: cause}
	}
	return nil
}

func newBatcher[C any](config Config, flush func([]*pending[C]) (away bool)) *batcher[C] {
	b := &batcher[C]{
		flush: flush, flushers: config.Flushers, cap: config.MaxBatch, maxQueue: config.MaxQueue,
		patience: config.CallTimeout / 4,
		lines:    map[string][]*pending[C]{},
	}
	b.idle = sync.NewCond(&b.mu)
	return b
}

// submit queues commands in order, all or, beyond the queue's bound, none.
func (b *batcher[C]) submit(commands ...*pending[C]) error {
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

// grow adds a flusher if there is work and room for one, with the lock held.
func (b *batcher[C]) grow() {
	if len(b.ready) > 0 && b.running < b.flushers {
		b.running++
		go b.run()
	}
}

// run flushes until nothing is left that may be taken.
func (b *batcher[C]) run() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for b.step() {
	}
	if b.running--; b.running == 0 {
		b.idle.Broadcast()
	}
}

// step makes one call, if there is one to make. The lock is held, but not during the call.
func (b *batcher[C]) step() bool {
	batch := b.take()
	if len(batch) == 0 {
		return false
	}
	b.grow() // What did not fit need not wait for this call.
	b.mu.Unlock()
	away := b.flush(batch)
	b.mu.Lock()
	var freed []*pending[C]
	for _, p := range batch {
		freed = append(freed, b.leave(p)...)
	}
	// They came before what is ready.
	b.ready = append(freed, b.ready...)
	if away {
		// What has waited too long to also wait for a call of its own, which is likely to
		// fare as this one did, fails. The rest may try.
		b.drop(func(p *pending[C]) error {
			if time.Since(p.queued) <= b.patience {
				return nil
			}
			return &Error{Kind: Unavailable, Message: "the database did not answer; try again"}
		})
	}
	return true
}

// take removes what may go into one call: ready commands of one tenant.
func (b *batcher[C]) take() []*pending[C] {
	b.drop((*pending[C]).gaveUp)
	var batch []*pending[C]
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

// drop fails the ready commands that refuse has an error for, and looks at those behind
// them too.
func (b *batcher[C]) drop(refuse func(*pending[C]) error) {
	rest := b.ready[:0]
	for i := 0; i < len(b.ready); i++ { // It grows meanwhile.
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

// leave takes a command out of its lines and returns those that are the first now.
func (b *batcher[C]) leave(p *pending[C]) (freed []*pending[C]) {
	for _, x := range p.exclusive {
		line := b.lines[x]
		line[0] = nil // The array may live on.
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

// close refuses new commands and waits for those that were accepted.
func (b *batcher[C]) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	for b.running > 0 {
		b.idle.Wait()
	}
}
