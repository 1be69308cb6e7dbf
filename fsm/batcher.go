package fsm

import (
	"context"
	"slices"
	"sync"
	"time"
)

// A batcher lets commands that arrive together share a call. Commands queue; a few
// flushers each take all that waits, up to a cap, and make one call. There is no timer:
// a command that finds a flusher free is called at once, and those that arrive during a
// call make up the next one. A flusher is a goroutine that lives while there is work.
//
// Commands that exclude one another (for one instance, or under one key) are never in
// flight together and keep their order.
type batcher[C any] struct {
	// flush settles every one of them, does not panic, and says whether the database is away.
	flush    func([]*pending[C]) (away bool)
	flushers int
	cap      int
	maxQueue int
	// patience is how long a command may have waited when the database turns out to be away.
	patience time.Duration

	mu       sync.Mutex
	queue    []*pending[C]
	inFlight map[string]bool
	running  int
	closed   bool
	idle     *sync.Cond // Signalled when running falls to 0.
}

// pending is a command on its way. Whoever settles it closes done.
type pending[C any] struct {
	ctx       context.Context
	command   C
	tenant    string
	exclusive []string // What it shares with no command in flight.
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
		return Result{}, &Error{Kind: Unavailable, Message: "the caller gave up waiting", cause: p.ctx.Err()}
	}
}

func newBatcher[C any](config Config, flush func([]*pending[C]) (away bool)) *batcher[C] {
	b := &batcher[C]{
		flush: flush, flushers: config.Flushers, cap: config.MaxBatch, maxQueue: config.MaxQueue,
		patience: config.CallTimeout / 4,
		inFlight: map[string]bool{},
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
	case len(b.queue)+len(commands) > b.maxQueue:
		return &Error{Kind: Unavailable, Message: "too many commands are waiting; try again"}
	}
	now := time.Now()
	for _, p := range commands {
		p.queued = now
	}
	b.queue = append(b.queue, commands...)
	b.start()
	return nil
}

// start adds a flusher if there is room for one, with the lock held.
func (b *batcher[C]) start() {
	if b.running < b.flushers {
		b.running++
		go b.run()
	}
}

// run flushes until nothing is left that may be taken.
func (b *batcher[C]) run() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for {
		batch := b.take()
		if len(batch) == 0 {
			break
		}
		if len(b.queue) > 0 {
			// What did not fit need not wait for this call, unless it is excluded.
			b.start()
		}
		b.mu.Unlock()
		away := b.flush(batch)
		b.mu.Lock()
		if away {
			b.shed()
		}
		for _, p := range batch {
			for _, x := range p.exclusive {
				delete(b.inFlight, x)
			}
		}
	}
	if b.running--; b.running == 0 {
		b.idle.Broadcast()
	}
}

// shed fails the commands that have waited too long to also wait for a call of their own,
// which is likely to fare as the last one did. The rest may try.
func (b *batcher[C]) shed() {
	b.queue = slices.DeleteFunc(b.queue, func(p *pending[C]) bool {
		if time.Since(p.queued) <= b.patience {
			return false
		}
		p.fail(&Error{Kind: Unavailable, Message: "the database did not answer; try again"})
		return true
	})
}

// take removes from the queue what may go into one call: commands of one tenant, none
// of which excludes another or one in flight, nor overtakes one that it excludes. Those
// whose caller is gone are dropped.
func (b *batcher[C]) take() []*pending[C] {
	var batch []*pending[C]
	blocked := map[string]bool{}
	rest := b.queue[:0]
	for i, p := range b.queue {
		if len(batch) == b.cap {
			rest = append(rest, b.queue[i:]...)
			break
		}
		if p.ctx.Err() != nil {
			p.fail(&Error{Kind: Unavailable, Message: "the caller gave up waiting", cause: p.ctx.Err()})
			continue
		}
		held := func(x string) bool { return b.inFlight[x] || blocked[x] }
		if len(batch) > 0 && p.tenant != batch[0].tenant || slices.ContainsFunc(p.exclusive, held) {
			rest = append(rest, p)
			for _, x := range p.exclusive {
				blocked[x] = true
			}
			continue
		}
		for _, x := range p.exclusive {
			b.inFlight[x] = true
		}
		batch = append(batch, p)
	}
	clear(b.queue[len(rest):])
	b.queue = rest
	return batch
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
