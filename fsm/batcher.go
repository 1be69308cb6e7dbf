package fsm

import (
	"cmp"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/pawl-fsm/pawl/fsm/internal/gate"
)

// slowCall is how long a call may take before another one is made beside it. Until then the commands that
// arrive wait for the end of the call, and share the next one.
const slowCall = 5 * time.Millisecond

// maxChain is the largest number of commands for one instance in a call. The engine carries them out in
// rounds, and the other commands of the call wait for all rounds.
const maxChain = 32

// smallShare is how many commands of a tenant a call has at least, if it takes that many turns. If a tenant with
// fewer commands is in the call, the others get no more than that. So a command of a tenant with few commands
// is not held up by a full call of another's.
const smallShare = 8

// cutMemory is how long a call that was cut for the sake of a tenant with few commands is remembered.
const cutMemory = time.Second

// MaxRest is how long a tenant with many commands rests at most after a call that had many of them. What else uses
// processors for one tenant, such as the routing of webhooks, rests as long.
const MaxRest = gate.MaxRest

// A track says with which others a command may be called.
type track int

const (
	// trackShared: the command shares a call with others.
	trackShared track = iota
	// trackAlone: the command gets a call of its own, because a call that it shared failed, or to find out
	// whether it is slow.
	trackAlone
	// trackSlow: the command gets a call of its own, because such commands were slow before, or made a call
	// fail. Few of these calls are made at a time.
	trackSlow
	tracks
)

// A stage says what happens to a command now.
type stage int

const (
	// waits: the command is ready, or behind others in a line.
	waits stage = iota
	// flies: the command is in flight.
	flies
	// isChecked: the command's document is being checked.
	isChecked
)

// A batcher makes calls with commands that arrive together. Commands wait in a lane. A flusher takes
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
// A call may have commands of several tenants. Tenants take turns, with one command at each turn, and take as
// many turns as the tenant with the fewest commands needs. So the call of a tenant with few commands is short,
// however many commands of others wait. It does not wait for other calls either: calls that are crowded, with
// more than smallShare commands for each tenant, leave one flusher for it, and more if there are such tenants. While
// there are, a crowded call has a quarter of the commands at most, and its tenants rest for as long as it took: their
// commands wait, unless those of another tenant are called. So the processors that the other tenants' calls need are
// free for half of the time, and soon.
//
// A command that may be slow gets a call of its own, so that it holds up no other: see track. The calls of
// trackSlow have flushers of their own.
type batcher[C, R any] struct {
	// name is that of the queue, for the probe.
	name  string
	probe Probe
	// flush makes a call, and does not panic. It completes or fails the commands, except those that must be
	// called again.
	flush     func([]*pending[C, R]) flushed[C, R]
	flushers  int
	slowCalls int
	cap       int
	maxQueue  int // How many commands of one tenant may wait if no others do.
	// patience: when the database is found to be away, the commands that have waited for longer than this
	// fail.
	patience time.Duration

	mu       sync.Mutex
	ready    [tracks]lane[C, R]          // The commands that are ready, by track.
	lines    map[string][]*pending[C, R] // By name; the first of a line is ready, in flight or being checked.
	tenants  map[string]tally            // Only tenants with waiting commands.
	waiting  int                         // Commands that are not in flight: ready, in line, or being checked.
	arrivals uint64                      // Numbers the commands.
	checking int                         // How many documents are being checked.
	single   int                         // Calls of trackAlone in flight.
	calls    []*inFlight                 // The calls in flight, without those of trackSlow.
	// newcomer: a command has come of a tenant that has none in crowded calls, and is not called yet.
	newcomer bool
	lastCut  time.Time // When a call was last cut.
	// resting are the tenants that rest until restEnds.
	resting  map[string]bool
	restEnds time.Time
	alarm    time.Time // When a timer will call grow; zero for never.
	running  int       // How many flushers there are, without those of trackSlow.
	slow     int       // How many flushers of trackSlow there are.
	closed   bool
	idle     *sync.Cond // Signalled when no flusher runs and nothing is checked.
}

// flushed says what is left to do after a call.
type flushed[C, R any] struct {
	// away: the database does not answer.
	away bool
	// alone has the commands that must be called again, each by itself.
	alone []*pending[C, R]
	// again has the commands that must be called again, after their check if they have one.
	again []*pending[C, R]
}

// A tally counts the commands of a tenant: those that wait, those of trackSlow among these, and those in crowded
// calls.
type tally struct{ waiting, slow, crowded int }

// inFlight is a call. It is crowded if a tenant has more than smallShare commands in it, and cut if it left out
// commands of a tenant so that those of another are not held up.
type inFlight struct {
	began        time.Time
	crowded, cut bool
}

func newBatcher[C, R any](name string, config Config, flush func([]*pending[C, R]) flushed[C, R]) *batcher[C, R] {
	b := &batcher[C, R]{
		name: name, probe: config.Probe, flush: flush, flushers: config.Flushers, slowCalls: config.SlowCalls, cap: config.MaxBatch, maxQueue: config.MaxQueue,
		patience: config.CallTimeout / 4,
		lines:    map[string][]*pending[C, R]{}, tenants: map[string]tally{}, resting: map[string]bool{},
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
// batcher is closed. There are 2 * maxQueue places, and a limit of the tenant's own if the commands' context
// has one. Afterwards the tenant must not have more waiting commands than places are free. So one tenant alone
// can fill maxQueue places, and the more others wait, the fewer it can fill. Slow commands fill no more than an
// eighth of maxQueue, so that the tenant's other commands find room.
func (b *batcher[C, R]) offer(commands ...*pending[C, R]) error {
	slow := 0
	for _, p := range commands {
		if p.track == trackSlow {
			slow++
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	t := b.tenants[commands[0].tenant]
	own := limitsOf(commands[0].ctx).Queue
	switch {
	case b.closed:
		return &Error{Kind: Unavailable, Message: "the service is shutting down; try again"}
	case own != nil && int64(t.waiting+len(commands)) > *own:
		return Errorf(TooManyRequests, "more than %d commands of the tenant would wait; try again with fewer at a time", *own)
	case t.waiting+len(commands) > 2*b.maxQueue-b.waiting-len(commands):
		return &Error{Kind: Unavailable, Message: "too many commands are waiting; try again"}
	case slow > 0 && t.slow+slow > max(b.maxQueue/8, 1):
		return &Error{Kind: Unavailable, Message: "too many commands are waiting whose guards are slow, or whose instances are locked; try again"}
	}
	now := time.Now()
	for _, p := range commands {
		p.arrival, p.queued = b.arrivals, now
		b.arrivals++
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
		b.await(p)
	}
	b.newcomer = b.newcomer || t.crowded == 0
	b.grow()
	return nil
}

// count adds n to the number of waiting commands, for a command. The lock is held.
func (b *batcher[C, R]) count(p *pending[C, R], n int) {
	b.waiting += n
	t := b.tenants[p.tenant]
	t.waiting += n
	if p.track == trackSlow {
		t.slow += n
	}
	b.tally(p, t)
}

// crowd adds n to the number of commands in crowded calls, for a command. The lock is held.
func (b *batcher[C, R]) crowd(p *pending[C, R], n int) {
	t := b.tenants[p.tenant]
	t.crowded += n
	b.tally(p, t)
}

// tally keeps the counts of a command's tenant, unless all are 0. The lock is held.
func (b *batcher[C, R]) tally(p *pending[C, R], t tally) {
	if t == (tally{}) {
		delete(b.tenants, p.tenant)
	} else {
		b.tenants[p.tenant] = t
	}
}

// await makes a command wait to be called. The lock is held.
func (b *batcher[C, R]) await(p *pending[C, R]) {
	p.stage = waits
	b.count(p, 1)
	b.prepare(p)
}

// prepare makes a waiting command ready if it is the first in all of its lines. The lock is held.
func (b *batcher[C, R]) prepare(p *pending[C, R]) {
	if p.behind > 0 || p.stage != waits {
		return
	}
	b.ready[p.track].push(p)
	if p.track == trackSlow && b.slow < b.slowCalls {
		b.slow++
		go b.runSlow()
	}
}

// grow starts a flusher if there is work for one more. If a call must become slow before that, or tenants must have
// rested, it sets a timer. The lock is held.
func (b *batcher[C, R]) grow() {
	if b.ready[trackShared].size == 0 && !b.maySingle() || b.running == b.flushers {
		return
	}
	wait := b.mustWait()
	switch {
	case wait == 0 && b.running == len(b.calls): // No flusher is about to make a call.
		b.running++
		go b.run()
	case wait > 0:
		at := time.Now().Add(wait)
		if !b.alarm.IsZero() && !at.Before(b.alarm) {
			return
		}
		b.alarm = at
		time.AfterFunc(wait, func() {
			b.mu.Lock()
			defer b.mu.Unlock()
			if b.alarm.Equal(at) {
				b.alarm = time.Time{}
			}
			b.grow()
		})
	}
}

// mustWait returns how long to wait before a further call is made, unless a call ends earlier; -1 if none is made
// before that. The lock is held.
func (b *batcher[C, R]) mustWait() time.Duration {
	crowded, cut := b.crowded()
	rest := b.rest()
	switch {
	case rest > 0 && !b.maySingle():
		return rest
	case b.newcomer && crowded == len(b.calls), cut == len(b.calls):
		return 0
	case crowded > 0 && crowded >= b.mostCrowded() && !b.newcomer && !b.maySingle():
		return -1
	case b.ready[trackShared].size >= b.cap:
		return 0
	}
	youngest := slices.MaxFunc(b.calls, func(c, d *inFlight) int { return c.began.Compare(d.began) })
	return max(slowCall-time.Since(youngest.began), 0)
}

// rest returns how long the tenants rest whose commands are ready; 0 if one of them does not rest. The lock is held.
func (b *batcher[C, R]) rest() time.Duration {
	rest := time.Until(b.restEnds)
	if rest <= 0 {
		return 0
	}
	for _, q := range b.ready[trackShared].turns {
		if !b.resting[q.tenant] || b.tenants[q.tenant].waiting <= smallShare {
			return 0
		}
	}
	return rest
}

// restAfter makes the tenants of a crowded call rest for as long as it took, if there are tenants with few commands. The
// lock is held.
func (b *batcher[C, R]) restAfter(c *inFlight, batch []*pending[C, R]) {
	if !b.besideFew() {
		return
	}
	now := time.Now()
	if !now.Before(b.restEnds) {
		clear(b.resting)
	}
	for _, p := range batch {
		b.resting[p.tenant] = true
	}
	if ends := now.Add(min(now.Sub(c.began), MaxRest)); ends.After(b.restEnds) {
		b.restEnds = ends
	}
}

// crowded returns how many calls in flight are crowded, and how many are cut.
func (b *batcher[C, R]) crowded() (crowded, cut int) {
	for _, c := range b.calls {
		if c.crowded {
			crowded++
		}
		if c.cut {
			cut++
		}
	}
	return crowded, cut
}

// besideFew reports whether there are tenants with few commands beside one with many. The lock is held.
func (b *batcher[C, R]) besideFew() bool { return time.Since(b.lastCut) < cutMemory }

// mostCrowded returns how many calls in flight may be crowded: one flusher is left beside them and the calls of
// trackAlone. While there are tenants with few commands, a quarter of the flushers may make crowded calls: more
// of these would use up the processors that those tenants' calls need too. The lock is held.
func (b *batcher[C, R]) mostCrowded() int {
	most := max(b.flushers-1, 1) - b.single
	if b.besideFew() {
		most = min(most, max(b.flushers/4, 1))
	}
	return most
}

// maySingle reports whether a call of trackAlone may be made. One flusher is left for the other commands, since
// these calls may be slow. The lock is held.
func (b *batcher[C, R]) maySingle() bool {
	crowded, _ := b.crowded()
	return b.ready[trackAlone].size > 0 && b.single+crowded < max(b.flushers-1, 1)
}

// run is a flusher: it makes calls while there is work for it.
func (b *batcher[C, R]) run() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for b.mustWait() == 0 && b.step() {
	}
	b.running--
	b.ended()
}

// runSlow is a flusher of trackSlow.
func (b *batcher[C, R]) runSlow() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for {
		p := b.takeSingle(trackSlow)
		if p == nil {
			break
		}
		b.call([]*pending[C, R]{p})
		b.grow() // The command may have held up others in its lines.
	}
	b.slow--
	b.ended()
}

// ended is called when a flusher or a check has ended. The lock is held.
func (b *batcher[C, R]) ended() {
	b.grow()
	if b.running+b.slow+b.checking == 0 {
		b.idle.Broadcast()
	}
}

// step makes one call, if there is one to make. The lock is held, except during the call.
func (b *batcher[C, R]) step() bool {
	batch, c := b.take()
	if len(batch) == 0 {
		return false
	}
	b.calls = append(b.calls, c)
	alone := batch[0].track == trackAlone
	if alone {
		b.single++
	}
	if c.crowded {
		for _, p := range batch {
			b.crowd(p, 1)
		}
	}
	b.grow() // Another flusher takes what did not fit.
	b.call(batch)
	if c.crowded {
		for _, p := range batch {
			b.crowd(p, -1)
		}
		b.restAfter(c, batch)
	}
	at := slices.Index(b.calls, c)
	b.calls = slices.Delete(b.calls, at, at+1)
	if alone {
		b.single--
	}
	return true
}

// call makes a call, and lets go of the commands that have ended. The lock is held, except during the call.
func (b *batcher[C, R]) call(batch []*pending[C, R]) {
	b.mu.Unlock()
	began := time.Now()
	b.waited(batch, began)
	left := b.flush(batch)
	if b.probe.Called != nil {
		b.probe.Called(b.name, len(batch), time.Since(began))
	}
	b.mu.Lock()
	for _, p := range left.alone {
		p.track = max(p.track, trackAlone)
		b.await(p)
	}
	for _, p := range left.again {
		if p.check == nil {
			b.await(p)
			continue
		}
		p.stage = isChecked
		b.count(p, 1)
		b.checking++
		go b.check(p)
	}
	for _, p := range batch {
		if p.stage == flies {
			b.leave(p)
		}
	}
	if left.away {
		// The next call is likely to fail too, and as late as this one. Commands that have waited for
		// long already fail now; the others are called.
		b.drop(func(p *pending[C, R]) error {
			if time.Since(p.queued) <= b.patience {
				return nil
			}
			return &Error{Kind: Unavailable, Message: "the database did not answer; try again"}
		})
	}
}

// waited tells the probe how long the commands of a call have waited that were not called before.
func (b *batcher[C, R]) waited(batch []*pending[C, R], now time.Time) {
	for _, p := range batch {
		if !p.called && b.probe.Waited != nil {
			b.probe.Waited(b.name, now.Sub(p.queued))
		}
		p.called = true
	}
}

// check checks the document of a command, and makes the command wait for the next call. It keeps its places in
// its lines meanwhile. A check may take long, and so it uses no flusher.
func (b *batcher[C, R]) check(p *pending[C, R]) {
	err := p.recheck()
	b.mu.Lock()
	defer b.mu.Unlock()
	if err == nil {
		p.stage = waits
		b.prepare(p)
	} else {
		b.refuse(p, err)
	}
	b.checking--
	b.ended()
}

// takeSingle takes a command that gets a call of its own; nil if there is none.
func (b *batcher[C, R]) takeSingle(t track) *pending[C, R] {
	for p := b.ready[t].pop(); p != nil; p = b.ready[t].pop() {
		if err := cmp.Or(p.gaveUp(), p.err); err != nil {
			b.refuse(p, err)
			continue
		}
		return b.takeOne(p)
	}
	return nil
}

// take removes the commands of the next call from the lanes.
func (b *batcher[C, R]) take() (batch []*pending[C, R], c *inFlight) {
	c = &inFlight{began: time.Now()}
	if b.maySingle() {
		if p := b.takeSingle(trackAlone); p != nil {
			return []*pending[C, R]{p}, c
		}
	}
	b.newcomer = false
	most := b.cap // Of a crowded call.
	if b.besideFew() {
		most = max(b.cap/4, 1)
	}
	ready := &b.ready[trackShared]
	turns, mixed := max(ready.least(), smallShare), len(ready.turns) > 1
	if busy, _ := b.crowded(); busy >= b.mostCrowded() {
		turns = smallShare // This flusher is left for tenants with few commands.
	}
	for turn, room := 0, b.cap; turn < turns && ready.size > 0 && len(batch) < room; turn++ {
		if turn == smallShare {
			if room = most; len(batch) >= room {
				break
			}
			c.crowded = true
		}
		for n := len(ready.turns); n > 0 && len(batch) < room; n-- {
			p := ready.pop()
			if err := p.gaveUp(); err != nil {
				b.refuse(p, err)
				continue
			}
			batch = append(batch, b.takeOne(p))
		}
	}
	if c.cut = !c.crowded && ready.size > 0 && len(batch) < b.cap; c.cut {
		b.lastCut = c.began
	}
	// Chains get the rest of the room, or little of it if commands of other tenants wait for them.
	room := most
	if mixed && !c.crowded {
		room = min(len(batch)+smallShare, b.cap)
	}
	last := batch
	for n := 1; n < maxChain && len(last) > 0; n++ {
		taken := len(batch)
		for _, p := range last {
			next := p.next
			if next != nil && next.stage == waits && next.behind == 1 && next.track == trackShared && len(batch) < room && next.gaveUp() == nil {
				batch = append(batch, b.takeOne(next))
			}
		}
		last = batch[taken:]
		c.crowded = c.crowded || n >= smallShare && len(last) > 0
	}
	return batch, c
}

// takeOne notes that a command is in flight, and returns it.
func (b *batcher[C, R]) takeOne(p *pending[C, R]) *pending[C, R] {
	p.stage = flies
	b.count(p, -1)
	return p
}

// refuse fails a waiting command that is in no lane any more.
func (b *batcher[C, R]) refuse(p *pending[C, R], err error) {
	p.fail(err)
	b.count(p, -1)
	b.leave(p)
}

// drop fails the ready commands for which refused returns an error. A command that becomes ready because of
// that is treated in the same way.
func (b *batcher[C, R]) drop(refused func(*pending[C, R]) error) {
	var kept []*pending[C, R]
	for t := trackShared; t < tracks; {
		p := b.ready[t].pop()
		if p == nil {
			t++
			continue
		}
		if err := refused(p); err != nil {
			b.refuse(p, err)
			t = trackShared
		} else {
			kept = append(kept, p)
		}
	}
	for _, p := range kept {
		b.ready[p.track].push(p)
	}
}

// leave removes a command from its lines. Commands that are the first in all of their lines because of that
// become ready.
func (b *batcher[C, R]) leave(p *pending[C, R]) {
	for _, x := range p.exclusive {
		line := b.lines[x]
		if at := slices.Index(line, p); at > 0 {
			// Those before it must still be called again: their documents are being checked.
			if x == p.chain {
				line[at-1].next = p.next
			}
			b.lines[x] = slices.Delete(line, at, at+1)
			continue
		}
		line[0] = nil // The array lives on, and would keep the command.
		if line = line[1:]; len(line) == 0 {
			delete(b.lines, x)
			continue
		}
		b.lines[x] = line
		first := line[0]
		if first.track != trackShared && x == p.chain && errors.Is(p.err, Unavailable) {
			// Say because another transaction holds the instance. It would wait as long as p did.
			first.fail(p.err)
		}
		first.behind--
		b.prepare(first)
	}
	p.next = nil
}

// close refuses new commands, and waits until those that were accepted have ended.
func (b *batcher[C, R]) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	for b.running+b.slow+b.checking > 0 {
		b.idle.Wait()
	}
}
