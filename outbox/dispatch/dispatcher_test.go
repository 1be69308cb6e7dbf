package dispatch_test

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/internal/address"
	"github.com/pawl-fsm/pawl/internal/bounded"
	"github.com/pawl-fsm/pawl/outbox/dispatch"
)

// An owner is what a Dispatcher belongs to. Its jobs have a URL as their value.
type owner struct {
	*dispatch.Dispatcher[string]
	t     *testing.T
	names map[uuid.UUID]string
}

func newOwner(t *testing.T, config dispatch.Config) *owner {
	t.Helper()
	config.Guard = address.NewGuard(address.Private()...)
	client := newClient(t, config)
	d := dispatch.New(config, func(ctx context.Context, url string) dispatch.Answer {
		request, err := http.NewRequestWithContext(ctx, http.MethodPost, url, nil)
		if err != nil {
			return dispatch.Answer{Failure: err}
		}
		return client.Send(ctx, request)
	})
	t.Cleanup(d.Close)
	return &owner{d, t, map[uuid.UUID]string{}}
}

// add adds a job, which is shown by its name.
func (o *owner) add(name string, j dispatch.Job[string]) {
	j.ID = uuid.New()
	o.names[j.ID] = name
	o.Add(&j)
}

// want starts what it can until so many jobs have ended, and returns how: "name", with a + for
// success, a - for a failure, a ~ if it was postponed and a / if it was abandoned.
func (o *owner) want(n int) (list []string) {
	o.t.Helper()
	what := fmt.Sprintf("%d jobs to end", n)
	// bounded: a job ends in each round
	for o.Start(); len(o.Ended()) < n; o.Start() {
		o.Accept(bounded.Receive(o.t, what, o.Finished()))
		o.AcceptAll()
	}
	for _, r := range o.Collect() {
		sign := map[dispatch.Kind]string{dispatch.Attempted: "-", dispatch.Postponed: "~", dispatch.Abandoned: "/"}[r.Kind]
		if r.Succeeded() {
			sign = "+"
		}
		list = append(list, o.names[r.Job.ID]+sign)
		o.Forget(r.Job.ID)
	}
	return list
}

func (o *owner) check(got []string, want ...string) {
	o.t.Helper()
	if !slices.Equal(got, want) {
		o.t.Errorf("the jobs ended as %v, want %v", got, want)
	}
}

// probe adds a job again and again until it is not postponed, and returns how it ended.
func (o *owner) probe(j dispatch.Job[string]) []string {
	o.t.Helper()
	return bounded.Until(o.t, "the circuit to be half-open", func() []string {
		o.add("probe", j)
		return o.want(1)
	}, func(list []string) bool { return list[0] != "probe~" })
}

// paths records the paths that an endpoint was asked for, in their order.
type paths struct {
	mu   sync.Mutex
	list []string
}

func (p *paths) add(path string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.list = append(p.list, path)
}

func ok(http.ResponseWriter, *http.Request) {}

func broken(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) }

// Jobs of a sequence are sent by their positions, whenever they were added. Others do not wait.
func TestSequences(t *testing.T) {
	t.Parallel()
	var seen paths
	url := serve(t, func(_ http.ResponseWriter, r *http.Request) { seen.add(r.URL.Path) })
	o := newOwner(t, dispatch.Config{PerLane: 1})
	for _, position := range []int64{3, 1, 2} {
		o.add(fmt.Sprint(position), dispatch.Job[string]{Lane: "a", Sequence: "s", Position: position, Value: fmt.Sprintf("%s/%d", url, position)})
	}
	o.check(o.want(3), "1+", "2+", "3+")
	if want := []string{"/1", "/2", "/3"}; !slices.Equal(seen.list, want) {
		t.Errorf("the endpoint was asked for %v, want %v", seen.list, want)
	}
	if o.Len() != 0 || o.InFlight() != 0 {
		t.Errorf("%d jobs are left, %d under way", o.Len(), o.InFlight())
	}
}

// A job that is to be abandoned waits for its turn, and lets the next one go on.
func TestAbandoned(t *testing.T) {
	t.Parallel()
	url := serve(t, ok)
	o := newOwner(t, dispatch.Config{})
	o.add("1", dispatch.Job[string]{Lane: "a", Sequence: "s", Position: 1, Value: url})
	o.add("2", dispatch.Job[string]{Lane: "a", Sequence: "s", Position: 2, Abandon: "gone"})
	o.add("3", dispatch.Job[string]{Lane: "a", Sequence: "s", Position: 3, Value: url})
	o.check(o.want(3), "1+", "2/", "3+")
	o.add("4", dispatch.Job[string]{Lane: "a", Abandon: "gone"})
	o.check(o.want(1), "4/")
}

// An endpoint that hangs fills its own lane, and another lane goes on.
func TestLanesDoNotWaitForEachOther(t *testing.T) {
	t.Parallel()
	hang := bounded.NewGate(t, "the hanging attempts")
	url := serve(t, func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/hang" {
			hang.Pass()
		}
	})
	o := newOwner(t, dispatch.Config{Concurrency: 8})
	var want []string
	for n := range 20 {
		o.add("hangs", dispatch.Job[string]{Lane: "hang", Value: url + "/hang"})
		o.add(fmt.Sprint(n), dispatch.Job[string]{Lane: "good", Sequence: "s", Position: int64(n), Value: url})
		want = append(want, fmt.Sprintf("%d+", n))
	}
	o.check(o.want(20), want...)
	if o.InFlight() != 2 {
		t.Errorf("%d attempts hang, want the initial limit of a lane", o.InFlight())
	}
	if n := len(slices.Collect(o.Waiting())); n != 18 {
		t.Errorf("%d jobs wait, want 18", n)
	}
	o.Drop("hang")
	if n := o.Len(); n != 2 {
		t.Errorf("after the lane was dropped %d jobs are left, want those under way", n)
	}
}

// The value is copied when the attempt begins, and may change until then.
func TestValueMayChange(t *testing.T) {
	t.Parallel()
	var seen paths
	url := serve(t, func(_ http.ResponseWriter, r *http.Request) { seen.add(r.URL.Path) })
	o := newOwner(t, dispatch.Config{PerLane: 1})
	for n := range int64(2) {
		o.add(fmt.Sprint(n), dispatch.Job[string]{Lane: "a", Sequence: "s", Position: n, Value: url + "/old"})
	}
	o.Start()
	for j := range o.Waiting() {
		j.Value = url + "/new"
	}
	o.check(o.want(2), "0+", "1+")
	if want := []string{"/old", "/new"}; !slices.Equal(seen.list, want) {
		t.Errorf("the endpoint was asked for %v, want %v", seen.list, want)
	}
}

// Without a host the owner keeps the circuit: after a failure nothing of the lane is left.
func TestFailureWithoutHost(t *testing.T) {
	t.Parallel()
	url, good := serve(t, broken), serve(t, ok)
	o := newOwner(t, dispatch.Config{PerLane: 1})
	o.add("1", dispatch.Job[string]{Lane: "a", Sequence: "s", Position: 1, Value: url})
	o.add("2", dispatch.Job[string]{Lane: "a", Sequence: "s", Position: 2, Value: url})
	o.add("3", dispatch.Job[string]{Lane: "a", Value: url})
	o.add("other", dispatch.Job[string]{Lane: "b", Value: good})
	got := o.want(2)
	slices.Sort(got)
	o.check(got, "1-", "other+")
	if o.Len() != 0 {
		t.Errorf("%d jobs are left", o.Len())
	}
	o.add("no request", dispatch.Job[string]{Lane: "a"})
	o.check(o.want(1), "no request-")
}

// With a host the dispatcher keeps the circuit: it opens after five failures, postpones what comes
// then, is half-open after its time, and closes with a success.
func TestCircuit(t *testing.T) {
	t.Parallel()
	var well atomic.Bool
	url := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if !well.Load() {
			broken(w, r)
		}
	})
	const open = 2 * time.Second
	o := newOwner(t, dispatch.Config{PerLane: 1, Open: open})
	job := dispatch.Job[string]{Lane: url, Host: "host", Value: url}
	for n := range 7 {
		o.add(fmt.Sprint(n), job)
	}
	o.check(o.want(7), "0-", "1-", "2-", "3-", "4-", "5~", "6~")
	opened := time.Now()
	o.add("while open", job)
	o.Start()
	for _, r := range o.Ended() {
		if r.Delay <= 0 || r.Delay > 2*open {
			t.Errorf("it is postponed by %s", r.Delay)
		}
	}
	o.check(o.want(1), "while open~")
	// Another lane of the host goes on, since the host answers.
	o.add("neighbour", dispatch.Job[string]{Lane: "neighbour", Host: "host", Value: serve(t, ok)})
	o.check(o.want(1), "neighbour+")
	o.check(o.probe(job), "probe-")
	if waited := time.Since(opened); waited < open*9/10 {
		t.Errorf("the circuit was half-open after %s", waited)
	}
	opened = time.Now()
	well.Store(true)
	o.check(o.probe(job), "probe+")
	if waited := time.Since(opened); waited < 2*open*9/10 {
		t.Errorf("after a failed probe the circuit was half-open after %s", waited)
	}
	for n := range 5 {
		o.add(fmt.Sprint(n), job)
	}
	o.check(o.want(5), "0+", "1+", "2+", "3+", "4+")
}

// A host that does not answer opens the circuit of all of its lanes.
func TestCircuitOfAHost(t *testing.T) {
	t.Parallel()
	o := newOwner(t, dispatch.Config{PerLane: 1, Open: time.Minute})
	for n := range 7 {
		o.add(fmt.Sprint(n), dispatch.Job[string]{Lane: fmt.Sprint(n), Host: "host", Value: "http://127.0.0.1:1"})
	}
	attempts, postponed := 0, 0
	for _, text := range o.want(7) {
		switch text[1:] {
		case "-":
			attempts++
		case "~":
			postponed++
		}
	}
	if attempts != 5 || postponed != 2 {
		t.Errorf("%d attempts and %d postponed, want 5 and 2", attempts, postponed)
	}
}

// A lane has more attempts at once with each success, and no more than the limits allow.
func TestLimits(t *testing.T) {
	t.Parallel()
	var under, most atomic.Int32
	url := serve(t, func(http.ResponseWriter, *http.Request) {
		now := under.Add(1)
		defer under.Add(-1)
		for old := most.Load(); now > old && !most.CompareAndSwap(old, now); old = most.Load() {
		}
	})
	o := newOwner(t, dispatch.Config{PerLane: 4, Concurrency: 6})
	for n := range 200 {
		o.add(fmt.Sprint(n), dispatch.Job[string]{Lane: fmt.Sprint(n % 3), Value: url})
	}
	for range 200 {
		o.Start()
		if n := o.InFlight(); n > 6 {
			t.Fatalf("%d attempts are under way", n)
		}
		o.Accept(bounded.Receive(t, "a job to end", o.Finished()))
	}
	if n := most.Load(); n > 6 {
		t.Errorf("%d attempts were made at once", n)
	}
}

// Close cuts what is under way, which has no result then.
func TestClose(t *testing.T) {
	t.Parallel()
	hang := bounded.NewGate(t, "the attempt")
	url := serve(t, func(http.ResponseWriter, *http.Request) { hang.Pass() })
	o := newOwner(t, dispatch.Config{})
	o.add("1", dispatch.Job[string]{Lane: "a", Value: url})
	o.Start()
	hang.Reached()
	o.Close()
	if o.AcceptAll(); len(o.Ended()) != 0 {
		t.Errorf("an attempt that was cut has the result %+v", o.Ended()[0])
	}
}

// An owner whose endpoints hang takes half of the attempts under way, and another owner's jobs go on:
// so does a third's.
func TestOwnersShareTheAttempts(t *testing.T) {
	t.Parallel()
	hang := bounded.NewGate(t, "the hanging attempts")
	url := serve(t, func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/hang" {
			hang.Pass()
		}
	})
	o := newOwner(t, dispatch.Config{Concurrency: 12})
	flood := func(owner string, want int) {
		t.Helper()
		for n := range 100 {
			o.add("hangs", dispatch.Job[string]{Owner: owner, Lane: fmt.Sprint(owner, n), Value: url + "/hang"})
		}
		before := o.InFlight()
		if o.Start(); o.InFlight()-before != want {
			t.Errorf("%d attempts of %s are under way, want %d", o.InFlight()-before, owner, want)
		}
	}
	flood("first", 6)
	flood("second", 4)
	var want []string
	for n := range 20 {
		o.add(fmt.Sprint(n), dispatch.Job[string]{Owner: "third", Lane: "good", Sequence: "s", Position: int64(n), Value: url})
		want = append(want, fmt.Sprintf("%d+", n))
	}
	o.check(o.want(20), want...)
}

// An owner with a limit has no more attempts under way than that, and has its share again without the limit.
func TestLimitOfAnOwner(t *testing.T) {
	t.Parallel()
	hang := bounded.NewGate(t, "the hanging attempts")
	url := serve(t, func(http.ResponseWriter, *http.Request) { hang.Pass() })
	o := newOwner(t, dispatch.Config{Concurrency: 12})
	for n := range 100 {
		o.add("hangs", dispatch.Job[string]{Owner: "limited", Lane: fmt.Sprint(n), Value: url})
	}
	for _, step := range []struct {
		most *int32
		want int
	}{{new(int32(0)), 0}, {new(int32(2)), 2}, {nil, 6}, {new(int32(1)), 6}} {
		o.Limit("limited", step.most)
		if o.Start(); o.InFlight() != step.want {
			t.Errorf("%d attempts are under way, want %d", o.InFlight(), step.want)
		}
	}
}

// The lanes of an owner are served in turn.
func TestLanesTakeTurns(t *testing.T) {
	t.Parallel()
	url := serve(t, ok)
	o := newOwner(t, dispatch.Config{Concurrency: 2}) // One attempt at a time.
	for _, lane := range []string{"a", "b", "c"} {
		for range 2 {
			o.add(lane, dispatch.Job[string]{Lane: lane, Value: url})
		}
	}
	o.check(o.want(6), "a+", "b+", "c+", "a+", "b+", "c+")
}

// Requests under way are bounded in bytes: an owner has its share of them, and always one request.
func TestBytesUnderWay(t *testing.T) {
	t.Parallel()
	hang := bounded.NewGate(t, "the attempts")
	url := serve(t, func(http.ResponseWriter, *http.Request) { hang.Pass() })
	o := newOwner(t, dispatch.Config{Bytes: 1000})
	add := func(owner string, size, want int) {
		t.Helper()
		for n := range 10 {
			o.add(owner, dispatch.Job[string]{Owner: owner, Lane: fmt.Sprint(owner, n), Size: size, Value: url})
		}
		if o.Start(); o.InFlight() != want {
			t.Errorf("with the jobs of %s %d attempts are under way, want %d", owner, o.InFlight(), want)
		}
	}
	add("first", 100, 5)      // Half of the bytes.
	add("second", 400, 5+1)   // A third of them has no room for one, but each owner has one.
	add("third", 200, 5+1)    // 900 bytes are under way.
	add("fourth", 10, 5+1+10) // Smaller ones have room.
	hang.Open()
	o.want(40)
	if o.Len() != 0 || o.InFlight() != 0 {
		t.Errorf("%d jobs are left, %d under way", o.Len(), o.InFlight())
	}
}

// Places are reserved within the limits of the lane, its ceiling, the owner's share and all, and hold back others until they
// are used or given back.
func TestReserve(t *testing.T) {
	t.Parallel()
	hang := bounded.NewGate(t, "the attempts")
	url := serve(t, func(http.ResponseWriter, *http.Request) { hang.Pass() })
	o := newOwner(t, dispatch.Config{Concurrency: 12})
	reserve := func(owner, lane string, most, ceiling, want int) {
		t.Helper()
		if n := o.Reserve(owner, lane, most, ceiling); n != want {
			t.Errorf("%d places are reserved in the lane %s of %s, want %d", n, lane, owner, want)
		}
	}
	reserve("first", "a", 9, 9, 2) // A lane begins with two.
	reserve("first", "a", 9, 9, 0)
	o.Release("a", 1)
	reserve("first", "a", 9, 1, 0)
	reserve("first", "a", 9, 9, 1)
	reserve("first", "b", 9, 1, 1)
	for _, lane := range []string{"c", "d", "e", "f"} {
		reserve("first", lane, 1, 9, map[string]int{"c": 1, "d": 1, "e": 1}[lane]) // Half of them all.
	}
	reserve("second", "g", 9, 9, 2) // A third of them, and half of that for the lane.
	reserve("second", "h", 9, 9, 1)
	job := dispatch.Job[string]{ID: uuid.New(), Owner: "first", Lane: "a", Value: url}
	o.Begin(&job)
	hang.Reached()
	if o.Start(); o.InFlight() != 9 {
		t.Errorf("%d places are taken, want 9", o.InFlight())
	}
	hang.Open()
	o.Accept(bounded.Receive(t, "the attempt", o.Finished()))
	if r := o.Collect(); len(r) != 1 || !r[0].Succeeded() || o.InFlight() != 8 {
		t.Errorf("the attempt ended as %+v, with %d places taken", r, o.InFlight())
	}
	reserve("first", "a", 9, 9, 0) // It may have three now, but its owner has its share.
	o.Release("b", 1)
	o.Release("c", 1)
	o.Release("d", 1)
	o.Release("e", 1)
	reserve("first", "a", 9, 9, 1)
}
