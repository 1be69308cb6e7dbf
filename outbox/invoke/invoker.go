package invoke

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/db/session"
	"github.com/pawl-fsm/pawl/fsm/worker"
	"github.com/pawl-fsm/pawl/outbox"
	"github.com/pawl-fsm/pawl/outbox/dispatch"
)

// An Invoker calls services for the tasks that are due, and records what came of it. Any number of processes may run one:
// each claims what it has room for.
type Invoker struct {
	queries *queries.Queries
	config  Config
}

// New returns an Invoker on a pool, of which it takes up to three connections at a time.
func New(pool *pgxpool.Pool, config Config) *Invoker {
	return &Invoker{queries: queries.New(session.Pool(pool)), config: config.withDefaults()}
}

// maxTimeout is the longest that an attempt may take.
const maxTimeout = 10 * time.Minute

// Run calls services until the context ends, and then returns nil. Calls that are under way then have Config.Grace to end;
// the others are cut, and count as lost. Errors are logged and what failed is tried again; none ends it.
func (i *Invoker) Run(ctx context.Context) error {
	settling, stop := context.WithCancel(context.WithoutCancel(ctx))
	settler := newSettler(i.queries, i.config)
	var beside, last sync.WaitGroup
	last.Go(func() { settler.run(settling) })
	beside.Go(func() { i.sweep(ctx) })
	c := &caller{Invoker: i, settler: settler, connections: newConnections(i.config), signals: outbox.Signals{Wake: i.config.Wake}, again: true}
	c.jobs = dispatch.New(dispatch.Config{Concurrency: c.config.Concurrency, PerLane: c.config.Concurrency}, c.send)
	c.run(ctx)
	beside.Wait()
	stop()
	last.Wait()
	return nil
}

// A caller claims tasks and calls. One goroutine owns it.
type caller struct {
	*Invoker
	settler     *settler
	connections *connections
	jobs        *dispatch.Dispatcher[*call]
	signals     outbox.Signals
	// after is the tenant up to which the search for lanes has come; empty at its end.
	after string
	// waiting is set when there are tasks that wait for a place.
	waiting bool
	// again is set when there may be more to claim at once, and found when a look since the last pause has claimed something.
	again, found bool
}

func (c *caller) run(ctx context.Context) {
	c.signals.Listen(true)
	defer c.signals.Listen(false)
	_ = worker.Repeat(ctx, c.config.Logger, "looking for tasks to call", func(ctx context.Context) (time.Duration, error) {
		if !c.again {
			c.idle(ctx)
		}
		if ctx.Err() != nil {
			return 0, nil
		}
		if err := c.look(ctx); err != nil {
			c.again = true
			return lookAgain, err
		}
		return 0, nil
	})
	c.finish()
}

// lookAgain is how long to wait after a look has failed.
const lookAgain = 250 * time.Millisecond

// afterFound is the time until the next look if the last ones have found something. A step that arms a task while another one
// waits does not notify, and may be committed after the look that has claimed the other one.
const afterFound = 10 * time.Millisecond

// idle waits until there may be something to claim: when it is told so, when a place is free that a task waits for, and
// after Config.Poll.
func (c *caller) idle(ctx context.Context) {
	pause := c.config.Poll
	if c.found {
		pause = min(pause, afterFound)
	}
	c.found = false
	timer := time.NewTimer(pause)
	defer timer.Stop()
	for {
		select {
		case r := <-c.jobs.Finished():
			c.accept(r)
			if c.waiting {
				return
			}
		case <-c.signals.C:
			return
		case <-timer.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

// accept takes the end of a call, whose report the settler has.
func (c *caller) accept(r dispatch.Result[*call]) {
	c.jobs.Accept(r)
	c.collect()
}

// collect takes the ends of all calls that have ended.
func (c *caller) collect() {
	c.jobs.AcceptAll()
	for _, r := range c.jobs.Collect() {
		c.jobs.Forget(r.Job.ID)
	}
}

// finish lets the calls that are under way end, and cuts those that take too long.
func (c *caller) finish() {
	grace := time.NewTimer(c.config.Grace)
	defer grace.Stop()
	for waiting := true; waiting && c.jobs.InFlight() > 0; {
		select {
		case r := <-c.jobs.Finished():
			c.accept(r)
		case <-grace.C:
			waiting = false
		}
	}
	c.jobs.Close()
	c.connections.closeAll()
}

// send makes a call, and gives what came of it to the settler.
func (c *caller) send(ctx context.Context, call *call) dispatch.Answer {
	// The wall clock counts the time in which the machine was suspended, too.
	if max(time.Since(call.claimed), time.Now().Round(0).Sub(call.claimed)) > sendWithin {
		c.settler.add(call.reportOf(outcome{Result: postponed, Error: tooOld}, unsaid))
		return dispatch.Answer{}
	}
	var end func(int, error)
	call.traceparent, end = c.config.Trace.Begin(call.described())
	a, err := call.attempt(ctx)
	end(a.Status, cmp.Or(err, a.Failure, a.BodyFailure))
	if err != nil {
		c.settler.add(call.reportOf(outcome{Result: refused, Error: err.Error()}, unsaid))
		return dispatch.Answer{}
	}
	o, h := judge(a, ctx.Err() != nil)
	c.settler.add(call.reportOf(o, h))
	// A service that refuses what it is asked for works.
	if h == healthy {
		a.Failure = nil
	}
	return a
}

// described says which attempt it is.
func (c *call) described() outbox.Attempt {
	a := outbox.Attempt{
		Tenant: c.TenantID, Method: c.Method, Connection: c.Connection, Task: c.TaskID, Number: int(c.Attempt), Reconciling: c.Reconciling,
	}
	if c.Traceparent != nil {
		a.Traceparent = *c.Traceparent
	}
	return a
}

// attempt makes one attempt. Its error says why no request could be made.
func (c *call) attempt(ctx context.Context) (a dispatch.Answer, err error) {
	timeout := seconds(c.TimeoutSeconds)
	if c.connection.timeout > 0 {
		timeout = min(timeout, c.connection.timeout)
	}
	until := time.Now().Add(timeout)
	for left := timeout; ; left = time.Until(until).Round(time.Millisecond) {
		var request *http.Request
		if request, err = c.request(ctx); err != nil {
			return a, err
		}
		a = c.connection.client.SendWithin(ctx, request, left)
		// The service may close a connection at the moment at which it is to be used again. Then another one is taken.
		if a.Status > 0 || a.Begun || !a.Reused || time.Now().After(until) || ctx.Err() != nil {
			return a, nil
		}
	}
}

const (
	// looks is how many lanes one search looks at.
	looks = 1000
	// maxClaimed is how many tasks are claimed at once.
	maxClaimed = 64
	// tooLate is why a call was not made that was claimed when the process stopped.
	tooLate = "the process that claimed it was stopped before it called"
	// sendWithin is how long after its claim a call may begin. A lease holds for 10 s longer than the call may take. So a
	// process that was paused between the two does not call when somebody else may have claimed the task since.
	sendWithin = 5 * time.Second
	// tooOld is why such a process has not called.
	tooOld = "the process that claimed it was paused before it called"
)

// A place is a lane with places that are reserved in it.
type place struct {
	connectionKey
	reserved int
	probe    bool
}

// look searches for tasks that are due, claims as many as may begin now, and begins them.
func (c *caller) look(ctx context.Context) error {
	c.collect()
	c.connections.closeIdle()
	c.jobs.Start() // It forgets the lanes that are idle.
	c.again, c.waiting = false, false
	if c.settler.len() > c.config.Concurrency {
		return errors.New("too many results wait for the database to take them")
	}
	if c.jobs.InFlight() >= c.config.Concurrency {
		c.waiting = true
		return nil
	}
	calling, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
	defer cancel()
	lanes, err := c.queries.TaskLanes(calling, queries.TaskLanesParams{After: c.after, Looks: looks})
	if err != nil {
		return fmt.Errorf("lanes: %w", err)
	}
	places := c.reserve(ctx, lanes)
	defer func() {
		for _, p := range places {
			c.jobs.Release(p.lane(), p.reserved)
		}
	}()
	if len(places) == 0 {
		return nil
	}
	claimed, err := c.claim(calling, places)
	c.found = c.found || len(claimed) > 0
	for _, t := range claimed {
		if ctx.Err() != nil {
			c.settler.add(t.reportOf(outcome{Result: postponed, Error: tooLate}, unsaid))
			continue
		}
		t.place.reserved--
		// There may be more if as many were claimed as there were places.
		c.again = c.again || t.place.reserved == 0
		c.jobs.Begin(&dispatch.Job[*call]{ID: t.Lease, Owner: t.TenantID, Lane: t.place.lane(), Value: t})
	}
	return err
}

// missing is the finding of a connection for which tasks wait.
const missing = "there is no such connection"

// reserve takes places for the lanes with tasks that are due, as many as may begin now.
func (c *caller) reserve(ctx context.Context, lanes []queries.TaskLane) (places []*place) {
	free := maxClaimed
	for i, l := range lanes {
		if free == 0 {
			c.after, c.again = lanes[i-1].TenantID, true
			return places
		}
		key := connectionKey{l.TenantID, l.Connection}
		if l.Missing {
			c.connections.report(ctx, key, missing)
		}
		if !l.Ready {
			continue
		}
		p := &place{connectionKey: key, probe: l.HalfOpen}
		ceiling := int(l.Concurrency)
		if p.probe {
			ceiling = 1
		}
		if p.reserved = c.jobs.Reserve(p.tenant, p.lane(), free, ceiling); p.reserved == 0 {
			c.waiting = true
			continue
		}
		free -= p.reserved
		places = append(places, p)
	}
	if c.after = ""; len(lanes) >= looks {
		c.after, c.again = lanes[len(lanes)-1].TenantID, true
	}
	return places
}

// claim claims tasks for the places.
func (c *caller) claim(ctx context.Context, places []*place) (claimed []*call, err error) {
	keys := make([]connectionKey, len(places))
	for i, p := range places {
		keys[i] = p.connectionKey
	}
	connections, err := c.connections.find(ctx, c.queries, keys)
	if err != nil {
		return nil, err
	}
	p := queries.TaskClaimParams{Claimer: c.config.Name}
	reserved := map[connectionKey]*place{}
	for _, place := range places {
		if connections[place.connectionKey] == nil {
			continue
		}
		reserved[place.connectionKey] = place
		p.Tenants, p.Connections = append(p.Tenants, place.tenant), append(p.Connections, place.name)
		p.Limits = append(p.Limits, int32(place.reserved))
	}
	if len(p.Tenants) == 0 {
		return nil, nil
	}
	now := time.Now()
	tasks, err := c.queries.TaskClaim(ctx, p)
	if err != nil {
		return nil, fmt.Errorf("claim: %w", err)
	}
	for i, t := range tasks {
		key := connectionKey{t.TenantID, t.Connection}
		claimed = append(claimed, &call{TaskCall: &tasks[i], place: reserved[key], connection: connections[key], claimed: now})
	}
	return claimed, nil
}

// sweepAgain is the least time between two sweeps.
const sweepAgain = 10 * time.Millisecond

// maxSwept is how many tasks one sweep looks at.
const maxSwept = 100

// sweep ends what nobody else ends in time, until the context ends.
func (i *Invoker) sweep(ctx context.Context) {
	signals := outbox.Signals{Wake: i.config.Wake}
	signals.Listen(true)
	defer signals.Listen(false)
	size := outbox.NewPageSize(maxSwept)
	wait := time.Duration(0)
	_ = worker.Repeat(ctx, i.config.Logger, "sweeping tasks", func(ctx context.Context) (time.Duration, error) {
		timer := time.NewTimer(max(wait-sweepAgain, 0))
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-signals.C:
		case <-ctx.Done():
			return 0, nil
		}
		wait = i.config.Poll
		swept, err := i.queries.TaskSweep(ctx, int32(size.Size()))
		size.Adapt(err)
		if err != nil {
			return sweepAgain, fmt.Errorf("sweep: %w", err)
		}
		// What is due and was not looked at, such as the tasks of a disabled tenant, has to wait.
		if next := seconds(swept.NextSeconds); swept.Looked > 0 || next > 0 {
			wait = min(wait, next)
		}
		return sweepAgain, nil
	})
}

func seconds(n float64) time.Duration { return time.Duration(n * float64(time.Second)) }
