package dispatch

import (
	"context"
	"crypto/x509"
	"iter"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/internal/address"
)

// Config tunes a Client and a Dispatcher. Its zero value works.
type Config struct {
	// Guard decides which addresses endpoints may have. Default: public ones.
	Guard *address.Guard
	// Timeout is how long an attempt may take. Default 15 s.
	Timeout time.Duration
	// Concurrency is the most attempts that are under way at once. Default 512.
	Concurrency int
	// PerLane is the most attempts that are under way at once in one lane, and for one host.
	// Default 32. A lane begins with two; see the package's comment.
	PerLane int
	// Bytes is the most that the requests under way have together, by the sizes of their jobs. A
	// request that is larger is sent alone. Default 64 MiB.
	Bytes int
	// Open is how long a circuit stays open the first time. Default 10 s.
	Open time.Duration
	// Roots are the authorities whose certificates endpoints may have. Default: those of the system.
	Roots *x509.CertPool
	// MaxBody is how many bytes of an answer's body are kept. Default 1 KiB.
	MaxBody int
	// BodyTimeout is how long the body of an answer is read: the status has come by then. Default 2 s.
	BodyTimeout time.Duration
}

// WithDefaults returns the configuration with each zero replaced by its default.
func (c Config) WithDefaults() Config {
	if c.Guard == nil {
		c.Guard = address.NewGuard()
	}
	if c.Timeout <= 0 {
		c.Timeout = 15 * time.Second
	}
	if c.Concurrency <= 0 {
		c.Concurrency = 512
	}
	if c.PerLane <= 0 {
		c.PerLane = 32
	}
	if c.Bytes <= 0 {
		c.Bytes = 64 << 20
	}
	if c.Open <= 0 {
		c.Open = 10 * time.Second
	}
	if c.MaxBody <= 0 {
		c.MaxBody = maxExcerpt
	}
	if c.BodyTimeout <= 0 {
		c.BodyTimeout = 2 * time.Second
	}
	return c
}

// A Job is something to be sent. T is what its owner needs to make the request.
type Job[T any] struct {
	// ID identifies the job in memory.
	ID uuid.UUID
	// Owner names who shares attempts under way with others: the tenant.
	Owner string
	// Lane names the queue that the job waits in, one for each endpoint. All jobs of a lane have the
	// same Owner.
	Lane string
	// Size is about how many bytes the request has.
	Size int
	// Host names what lanes share whose circuits the dispatcher keeps. It is empty for a lane
	// whose circuit the owner keeps. All jobs of a lane have the same Host.
	Host string
	// Sequence names the order that the job belongs to, and Position is its place in it. An
	// empty Sequence means that there is no order to keep.
	Sequence string
	Position int64
	// Abandon, if not empty, is the reason that there is nothing to send. When its turn has come,
	// the job ends without an attempt.
	Abandon string
	// Value belongs to the owner. It may be changed as long as Waiting returns the job, and is
	// copied when the attempt begins.
	Value T

	// begun is set when the attempt begins. over is set when the job has ended.
	begun, over bool
}

// A Kind says how a job has ended.
type Kind int

const (
	// Attempted means that there was an attempt.
	Attempted Kind = iota
	// Postponed means that there was none, because a circuit is open.
	Postponed
	// Abandoned means that there was none, because there is nothing to send.
	Abandoned
)

// A Result says how a job has ended.
type Result[T any] struct {
	Job  *Job[T]
	Kind Kind
	// Answer is that of the attempt.
	Answer Answer
	// Delay is how long a postponed job is to wait.
	Delay time.Duration
}

// Succeeded reports whether the job was answered with success.
func (r Result[T]) Succeeded() bool { return r.Kind == Attempted && r.Answer.Failure == nil }

// A Dispatcher sends jobs. All of its methods must be called by one goroutine, its owner's; each
// attempt runs in a goroutine of its own. The owner
//
//   - adds jobs, and calls Start after anything that may let one begin; or reserves places before it
//     has jobs, and begins a job in each;
//   - receives from Finished and gives what it received to Accept;
//   - collects results, records them, and then forgets their jobs;
//   - calls Close in the end.
type Dispatcher[T any] struct {
	config Config
	send   func(context.Context, T) Answer

	owners map[string]*owner[T]
	// limits are the most attempts of owners that have a limit of their own.
	limits map[string]int
	lanes  map[string]*lane[T]
	hosts  map[string]*host
	known  map[uuid.UUID]*Job[T]
	// sequences have the jobs that are not over, by position. The first may be under way.
	sequences map[string][]*Job[T]
	// inFlight is how many attempts are under way, and bytes the sum of their sizes.
	inFlight, bytes int
	// finished gets the results of attempts. It has room for all that can be under way.
	finished chan Result[T]
	// ended are results that were accepted and are yet to be collected.
	ended []Result[T]

	sending context.Context // Ends by Close.
	stop    context.CancelFunc
	senders sync.WaitGroup
}

// New returns a Dispatcher without jobs. send makes the attempt of a job from its value, in a goroutine of
// its own. Its context ends with Close.
func New[T any](config Config, send func(context.Context, T) Answer) *Dispatcher[T] {
	config = config.WithDefaults()
	d := &Dispatcher[T]{
		config: config, send: send, owners: map[string]*owner[T]{}, limits: map[string]int{}, lanes: map[string]*lane[T]{}, hosts: map[string]*host{},
		known: map[uuid.UUID]*Job[T]{}, sequences: map[string][]*Job[T]{}, finished: make(chan Result[T], config.Concurrency),
	}
	d.sending, d.stop = context.WithCancel(context.Background())
	return d
}

// Close cuts the attempts that are under way and returns when they have ended.
func (d *Dispatcher[T]) Close() {
	d.stop()
	d.senders.Wait()
}

// InFlight is how many attempts are under way.
func (d *Dispatcher[T]) InFlight() int { return d.inFlight }

// Len is how many jobs are in memory, those among them that have ended and were not forgotten.
func (d *Dispatcher[T]) Len() int { return len(d.known) }

// All returns the jobs in memory, those among them that have ended and were not forgotten.
func (d *Dispatcher[T]) All() iter.Seq[*Job[T]] {
	return func(yield func(*Job[T]) bool) {
		for _, j := range d.known {
			if !yield(j) {
				return
			}
		}
	}
}

// Waiting returns the jobs whose attempt has not begun.
func (d *Dispatcher[T]) Waiting() iter.Seq[*Job[T]] {
	return func(yield func(*Job[T]) bool) {
		for _, j := range d.known {
			if !j.begun && !j.over && !yield(j) {
				return
			}
		}
	}
}

// Add makes a job ready, or lets it wait for the jobs of its sequence before it. A job whose
// position is before that of jobs that wait goes before them.
func (d *Dispatcher[T]) Add(j *Job[T]) {
	d.known[j.ID] = j
	if j.Sequence != "" {
		list := append(d.sequences[j.Sequence], j)
		d.sequences[j.Sequence] = list
		for i := len(list) - 1; i > 0 && !list[i-1].begun && list[i-1].Position > j.Position; i-- {
			list[i-1], list[i] = list[i], list[i-1]
		}
		if list[0] != j {
			return
		}
		if len(list) > 1 { // The next one was ready.
			l := d.lanes[list[1].Lane]
			l.ready = slices.DeleteFunc(l.ready, func(r *Job[T]) bool { return r == list[1] })
		}
	}
	d.ready(j)
}

// ready lets a job wait for its lane alone, or ends it if it is to be abandoned.
func (d *Dispatcher[T]) ready(j *Job[T]) {
	l := d.lane(j.Owner, j.Lane, j.Host)
	if j.Abandon != "" {
		d.ended = append(d.ended, Result[T]{Job: j, Kind: Abandoned})
		d.over(j)
		return
	}
	l.ready = append(l.ready, j)
}

// over ends a job, and makes the next one of its sequence ready.
func (d *Dispatcher[T]) over(j *Job[T]) {
	j.over = true
	if j.Sequence == "" {
		return
	}
	list := slices.DeleteFunc(d.sequences[j.Sequence], func(o *Job[T]) bool { return o == j })
	if len(list) == 0 {
		delete(d.sequences, j.Sequence)
		return
	}
	d.sequences[j.Sequence] = list
	d.ready(list[0])
}

// Limit sets how many attempts of an owner may be under way, of its share of all; nil means its share.
func (d *Dispatcher[T]) Limit(owner string, most *int32) {
	if most != nil {
		d.limits[owner] = int(*most)
	} else {
		delete(d.limits, owner)
	}
}

// Start begins as many attempts as the limits allow, one of each owner in turn and among these one of
// each lane in turn, and postpones the jobs whose circuit is open. It also forgets lanes that have
// been idle for a minute.
func (d *Dispatcher[T]) Start() {
	busy := 1
	for name, o := range d.owners {
		d.closeIdle(o)
		if len(o.lanes) == 0 {
			delete(d.owners, name)
			delete(d.limits, name)
		} else if o.busy() > 0 {
			busy++
		}
	}
	attempts, bytes := d.share(busy), d.config.Bytes/busy
	for began := true; began; {
		began = false
		for name, o := range d.owners {
			began = d.startOne(o, d.limited(name, attempts), bytes) || began
		}
	}
}

// share is how many attempts an owner may have under way, if so many divide them.
func (d *Dispatcher[T]) share(owners int) int { return max(d.config.Concurrency/owners, 1) }

// limited is an owner's share, or its limit if that is less.
func (d *Dispatcher[T]) limited(owner string, share int) int {
	if limit, limited := d.limits[owner]; limited {
		return min(share, limit)
	}
	return share
}

// Reserve takes places for up to most attempts of a lane, and returns how many: as many as could begin now.
// ceiling is the most that the lane may have under way, if PerLane is not less. In each place Begin begins a
// job; Release gives back those that are not used. It is for an owner who fetches a job only when it can
// begin.
func (d *Dispatcher[T]) Reserve(owner, name string, most, ceiling int) int {
	if d.inFlight >= d.config.Concurrency {
		return 0
	}
	l := d.lane(owner, name, "")
	o := l.owner
	l.ceiling = max(min(ceiling, d.config.PerLane), 1)
	busy := 2 // This owner and the next one.
	for _, other := range d.owners {
		if other != o && other.busy() > 0 {
			busy++
		}
	}
	attempts := d.limited(owner, d.share(busy))
	lanes := o.busy() + 1
	if !l.busy() {
		lanes++
	}
	n := max(min(most, min(l.limit, l.ceiling, max(attempts/lanes, 1))-l.inFlight, attempts-o.inFlight, d.config.Concurrency-d.inFlight), 0)
	d.take(l, n)
	return n
}

// Release gives back places of a lane that were reserved.
func (d *Dispatcher[T]) Release(name string, n int) { d.take(d.lanes[name], -n) }

// take takes places of a lane, or gives them back if there are less than 0.
func (d *Dispatcher[T]) take(l *lane[T], n int) {
	l.inFlight += n
	l.owner.inFlight += n
	d.inFlight += n
}

// Begin begins the attempt of a job in a place that was reserved in its lane.
func (d *Dispatcher[T]) Begin(j *Job[T]) {
	d.known[j.ID] = j
	l := d.lanes[j.Lane]
	d.take(l, -1)
	d.launch(l, j)
}

// startOne begins one attempt of an owner, who may have so many attempts and bytes under way. It
// returns whether it began or postponed one.
func (d *Dispatcher[T]) startOne(o *owner[T], attempts, bytes int) bool {
	if o.inFlight >= attempts || d.inFlight >= d.config.Concurrency {
		return false
	}
	share := max(attempts/(o.busy()+1), 1)
	for range o.lanes {
		l := o.lanes[o.next%len(o.lanes)]
		o.next = (o.next + 1) % len(o.lanes)
		if len(l.ready) == 0 || l.inFlight >= min(l.limit, share) || l.host != nil && l.host.inFlight >= d.config.PerLane {
			continue
		}
		size := l.ready[0].Size
		if o.inFlight > 0 && o.bytes+size > bytes || d.inFlight > 0 && d.bytes+size > d.config.Bytes {
			continue
		}
		d.begin(l)
		return true
	}
	return false
}

// begin takes the next job of a lane and begins its attempt, or postpones it.
func (d *Dispatcher[T]) begin(l *lane[T]) {
	j := l.ready[0]
	l.ready = l.ready[1:]
	if l.host != nil {
		if open := max(time.Until(l.openUntil), time.Until(l.host.openUntil)); open > 0 {
			delay := open + rand.N(d.config.Open) // So that they do not all come back at once.
			d.ended = append(d.ended, Result[T]{Job: j, Kind: Postponed, Delay: delay})
			d.over(j)
			return
		}
		l.host.inFlight++
	}
	d.launch(l, j)
}

// launch begins the attempt of a job.
func (d *Dispatcher[T]) launch(l *lane[T], j *Job[T]) {
	j.begun = true
	l.used = time.Now()
	d.count(l, j, 1)
	value := j.Value
	d.senders.Go(func() {
		a := d.send(d.sending, value)
		if d.sending.Err() != nil && a.Status == 0 {
			return // It was cut, so it says nothing of the endpoint.
		}
		d.finished <- Result[T]{Job: j, Kind: Attempted, Answer: a}
	})
}

// count counts an attempt that begins (1) or has ended (-1).
func (d *Dispatcher[T]) count(l *lane[T], j *Job[T], by int) {
	d.take(l, by)
	l.owner.bytes += by * j.Size
	d.bytes += by * j.Size
}

// Finished gets the result of each attempt that has ended. The owner gives it to Accept.
func (d *Dispatcher[T]) Finished() <-chan Result[T] { return d.finished }

// Accept takes a result that was received from Finished. It frees the place of the attempt,
// adapts the lane's limit and the circuits, and makes what waited for the job ready.
func (d *Dispatcher[T]) Accept(r Result[T]) {
	l := d.lanes[r.Job.Lane]
	d.count(l, r.Job, -1)
	if l.host != nil {
		l.host.inFlight--
		if r.Answer.Status > 0 {
			l.host.succeeded() // The host answers, whatever its endpoint says.
		} else {
			l.host.failed(d.config.Open)
		}
	}
	d.ended = append(d.ended, r)
	if r.Succeeded() {
		l.succeeded()
		l.limit = min(l.limit+1, l.ceiling)
		d.over(r.Job)
		return
	}
	l.limit = max(l.limit/2, 1)
	if l.host != nil {
		d.over(r.Job)
		l.failed(d.config.Open)
		return
	}
	// Whether more may be sent is for the owner to say, who keeps the circuit.
	r.Job.over = true
	d.Drop(r.Job.Lane)
}

// AcceptAll accepts the results that are there.
func (d *Dispatcher[T]) AcceptAll() {
	for {
		select {
		case r := <-d.finished:
			d.Accept(r)
		default:
			return
		}
	}
}

// Ended returns the results that are yet to be collected, in the order in which the jobs ended.
func (d *Dispatcher[T]) Ended() []Result[T] { return d.ended }

// Collect returns what Ended does, and clears it.
func (d *Dispatcher[T]) Collect() []Result[T] {
	ended := d.ended
	d.ended = nil
	return ended
}

// Forget removes a job that has ended from memory. Until then Add must not be called for its ID.
func (d *Dispatcher[T]) Forget(id uuid.UUID) { delete(d.known, id) }

// Drop removes the jobs that wait in a lane from memory, without a result. Attempts that are under
// way go on.
func (d *Dispatcher[T]) Drop(name string) {
	for id, j := range d.known {
		if j.Lane != name {
			continue
		}
		if j.Sequence != "" {
			if list := slices.DeleteFunc(d.sequences[j.Sequence], func(o *Job[T]) bool { return !o.begun || o.over }); len(list) > 0 {
				d.sequences[j.Sequence] = list
			} else {
				delete(d.sequences, j.Sequence)
			}
		}
		if !j.begun && !j.over {
			delete(d.known, id)
		}
	}
	if l := d.lanes[name]; l != nil {
		l.ready = nil
	}
}

// DropOwner drops the jobs of all lanes of an owner.
func (d *Dispatcher[T]) DropOwner(name string) {
	if o := d.owners[name]; o != nil {
		for _, l := range o.lanes {
			d.Drop(l.name)
		}
	}
}
