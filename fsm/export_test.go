package fsm

import "context"

// What the batcher does is tested with a fake call, which no exported function takes.

// Call is a command on its way through a Batcher.
type Call = pending[string]

// NewCall returns a command that excludes those it shares a name with.
func NewCall(ctx context.Context, command, tenant string, exclusive ...string) *Call {
	return newPending(ctx, command, tenant, exclusive...)
}

func (p *pending[C]) Command() C             { return p.command }
func (p *pending[C]) Tenant() string         { return p.tenant }
func (p *pending[C]) Exclusive() []string    { return p.exclusive }
func (p *pending[C]) Settle(err error)       { p.fail(err) }
func (p *pending[C]) Wait() (Result, error)  { return p.wait() }
func (p *pending[C]) Settled() chan struct{} { return p.done }

// Batcher is what commands queue in.
type Batcher struct{ b *batcher[string] }

func NewBatcher(c Config, flush func([]*Call) (away bool)) Batcher {
	return Batcher{newBatcher(c.withDefaults(), flush)}
}

func (b Batcher) Submit(calls ...*Call) error { return b.b.submit(calls...) }
func (b Batcher) Close()                      { b.b.close() }

// Held says how many commands wait, how many names it knows, and how many flushers run.
func (b Batcher) Held() (waiting, names, running int) {
	b.b.mu.Lock()
	defer b.b.mu.Unlock()
	return b.b.waiting, len(b.b.lines), b.b.running
}

// FromDatabase maps an error of the driver.
func FromDatabase(err error) *Error { return fromDatabase(err) }

// The memo of compiled schemas.

const MaxSchemas = maxSchemas

type Schemas struct{ s schemas }

func (s *Schemas) Check(schema, document []byte, root string) (string, []Fault, error) {
	return s.s.check(schema, document, root)
}

func (s *Schemas) Len() int { return len(s.s.compiled) }

// Listens says whether the hub has a connection that listens.
func (h *Hub) Listens() bool { return h.running.Load() && !h.deaf.Load() }

// Waiters counts them.
func (h *Hub) Waiters() (n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, list := range h.waiters {
		n += len(list)
	}
	return n
}
