package task

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/fsm"
)

const (
	// maxClaimed is how many tasks a claim may ask for.
	maxClaimed = 100
	// minLease and maxLease bound a lease.
	minLease, maxLease = time.Second, time.Hour
	// maxTopic is how long a topic may be.
	maxTopic = 64

	// look is the time between two looks at a topic for which somebody waits: for tasks that became due, which no
	// notification tells of.
	look = time.Second
	// lookAgain is the time until the next look if the last ones have found something. A step that arms a task while
	// another one waits does not notify, and may be committed after the look that has claimed the other one.
	lookAgain = 10 * time.Millisecond
	// maxLooks is how many claims look at a topic in one call.
	maxLooks = 32
)

// A ClaimCommand asks for tasks of a topic.
type ClaimCommand struct {
	Tenant, Topic string
	// Worker is who claims, for people: 1 to 255 characters.
	Worker string
	// Max is how many tasks it wants, 1 to maxClaimed.
	Max int
	// Lease is how long the lease of each task is. 0: as long as the task declares.
	Lease time.Duration
	// Key is the idempotency key: the claim that has it gets the tasks that were claimed with it, while they have their
	// lease.
	Key string
	// Within, if not nil, are the workflows whose tasks it may have.
	Within []string
}

// Work is a task that a worker has claimed.
type Work struct {
	ID          uuid.UUID
	Topic, Name string
	InstanceID  uuid.UUID
	Workflow    string
	// Attempt is the number of this attempt. From 2 on the work may have been done before.
	Attempt int
	// Key is the same in each attempt.
	Key   string
	Input json.RawMessage
	// Lease is what ends the task.
	Lease                      uuid.UUID
	LeaseExpiresAt, DeadlineAt time.Time
	CorrelationID, Traceparent *string
}

// isTopic reports whether a text can be a topic.
func isTopic(text string) bool {
	for i, c := range []byte(text) {
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
		if !letter && (i == 0 || (c < '0' || c > '9') && !strings.ContainsRune("_.-", rune(c))) {
			return false
		}
	}
	return text != "" && len(text) <= maxTopic
}

func (c *ClaimCommand) check() error {
	switch {
	case !isTopic(c.Topic):
		return &fsm.Error{Kind: fsm.Malformed, Message: "the topic is no name", Faults: []fsm.Fault{{
			Parameter: "topic", Detail: "must be a letter, then up to 63 letters, digits, _, . and -",
		}}}
	case c.Worker == "":
		return fsm.MalformedAt("/worker", "must have at least 1 character")
	case c.Max < 1 || c.Max > maxClaimed:
		return fsm.MalformedAt("/max", "must be from 1 to 100")
	case c.Lease != 0 && (c.Lease < minLease || c.Lease > maxLease):
		return fsm.MalformedAt("/lease", "must be from 1s to 1h")
	}
	if err := fsm.CheckKey(c.Key); err != nil {
		return err
	}
	return fsm.CheckTexts(fsm.Text{Pointer: "/worker", Value: c.Worker, Max: 255})
}

// A line has the claims that look for the same: tasks of a topic, within the same workflows. It looks for all of them, in
// few calls, and ends with the last of them.
type line struct {
	name lineName
	// changed is signalled when a claim has joined or left.
	changed chan struct{}
	claims  []*Claim // In the order in which they came. The lock of the Service is held.
}

type lineName struct{ tenant, topic, within string }

// A Claim is a request for tasks on its way.
type Claim struct {
	service *Service
	line    *line
	ctx     context.Context
	command ClaimCommand

	looked   chan struct{} // Closed after the first look.
	answered chan struct{} // Closed when there is an answer.

	// The lock of the Service is held for these.
	looks    bool          // It is in a call.
	over     chan struct{} // Closed when that call is over.
	first    bool          // Its first look is over.
	left     bool          // Nobody waits for its answer any more.
	returned bool          // Await has returned the tasks.
	work     []Work
	err      error
}

// Claim begins to claim tasks: see [Claim.Await]. The caller must call [Claim.Close].
// Kinds: Malformed, KeyInvalid.
func (s *Service) Claim(ctx context.Context, c ClaimCommand) (*Claim, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	name := lineName{c.Tenant, c.Topic, strings.Join(c.Within, "\x00")}
	if c.Within != nil {
		name.within += "\x00"
	}
	claim := &Claim{
		service: s, ctx: context.WithoutCancel(ctx), command: c, looked: make(chan struct{}), answered: make(chan struct{}),
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.lines[name]
	if l == nil {
		l = &line{name: name, changed: make(chan struct{}, 1)}
		s.lines[name] = l
		go s.serve(l)
	}
	claim.line = l
	l.claims = append(l.claims, claim)
	l.change()
	return claim, nil
}

func (l *line) change() {
	select {
	case l.changed <- struct{}{}:
	default:
	}
}

// Await returns the tasks when there are some. When the context ends it returns none, but it looks once whatever the
// context, and at its deadline a look that is under way counts. It may be called again.
// Kinds: TooManyRequests, Unavailable.
func (c *Claim) Await(ctx context.Context) ([]Work, error) {
	select {
	case <-c.answered:
	case <-ctx.Done():
		<-c.looked
	}
	c.service.mu.Lock()
	defer c.service.mu.Unlock()
	// What the look takes would have to be given back, and then look to the next worker as if it had been worked on.
	for c.looks && errors.Is(ctx.Err(), context.DeadlineExceeded) {
		over := c.over
		c.service.mu.Unlock()
		<-over
		c.service.mu.Lock()
	}
	c.returned = len(c.work) > 0
	return c.work, c.err
}

// Close ends the claim. Tasks that Await has not returned are released.
func (c *Claim) Close() {
	s := c.service
	s.mu.Lock()
	c.left = true
	if at := slices.Index(c.line.claims, c); at >= 0 && !c.looks {
		c.line.claims = slices.Delete(c.line.claims, at, at+1)
	}
	c.line.change()
	unwanted := c.work
	if c.returned {
		unwanted = nil
	}
	s.mu.Unlock()
	s.giveBack(c.command.Tenant, unwanted)
}

// serve looks for the claims of a line until there are none.
func (s *Service) serve(l *line) {
	signal, stop := s.hub.WakeTasks("work:" + l.name.tenant + "/" + l.name.topic)
	defer stop()
	// again is how many claims look that have looked before, and found whether a look since the last pause has found something.
	found := false
	for again := 0; ; {
		batch, more := s.take(l, again)
		if !more {
			return
		}
		if len(batch) > 0 {
			some, full := s.lookFor(l, batch)
			found = found || some
			if full {
				// There may be more tasks, for more claims.
				again = min(max(2*again, 1), maxLooks)
				continue
			}
		}
		pause := time.Until(s.began.Add(time.Since(s.began).Truncate(look) + look))
		if found {
			pause = min(pause, lookAgain)
		}
		found = false
		next := time.NewTimer(pause)
		select {
		case <-l.changed:
			again = 0
		case <-signal:
			again = 1
		case <-next.C:
			again = 1
		}
		next.Stop()
	}
}

// take returns the claims that look now: those that have not looked yet, and some of the others. more is false if the line
// has no claim; then it has ended.
func (s *Service) take(l *line, again int) (batch []*Claim, more bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(l.claims) == 0 {
		delete(s.lines, l.name)
		return nil, false
	}
	for _, c := range l.claims {
		if len(batch) == maxLooks {
			l.change() // The others look next.
			break
		}
		if c.first && again == 0 {
			continue
		}
		if c.first {
			again--
		}
		c.looks, c.over = true, make(chan struct{})
		batch = append(batch, c)
	}
	return batch, true
}

// lookFor makes claims look, and reports whether they got some tasks, and whether the last of them got all that it wanted.
func (s *Service) lookFor(l *line, batch []*Claim) (some, full bool) {
	commands := make([]ClaimCommand, len(batch))
	for i, c := range batch {
		commands[i] = c.command
	}
	answers := s.claims.Do(batch[0].ctx, l.name.tenant, commands...)
	var unwanted []Work
	s.mu.Lock()
	for i, c := range batch {
		work, err := answers[i].Result, answers[i].Err
		some, full = some || len(work) > 0, len(work) == c.command.Max
		c.looks = false
		close(c.over)
		waits := len(work) == 0 && (err == nil || c.first && errors.Is(err, fsm.Unavailable))
		if !c.first {
			c.first = true
			close(c.looked)
		}
		if waits && !c.left {
			continue
		}
		at := slices.Index(l.claims, c)
		l.claims = slices.Delete(l.claims, at, at+1)
		if c.left {
			unwanted = append(unwanted, work...)
			continue
		}
		c.work, c.err = work, err
		close(c.answered)
	}
	s.mu.Unlock()
	s.giveBack(l.name.tenant, unwanted)
	return some, full
}

// giveBack releases tasks that nobody waits for any more. A task that cannot be released keeps its lease until it is over.
func (s *Service) giveBack(tenant string, work []Work) {
	if len(work) == 0 {
		return
	}
	reports := make([]report, len(work))
	for i, w := range work {
		reports[i] = report{tenant: tenant, id: w.ID, lease: w.Lease, text: released}
	}
	s.settles.Do(context.Background(), tenant, reports...)
}

// claim carries out claims in one call.
func claim(ctx context.Context, q *queries.Queries, commands []ClaimCommand) ([][]Work, error) {
	type request struct {
		Tenant string   `json:"tenant"`
		Topic  string   `json:"topic"`
		Worker string   `json:"worker"`
		Max    int      `json:"max"`
		Lease  *float64 `json:"lease"` // In seconds.
		Key    string   `json:"key"`
		Within []string `json:"within"`
	}
	requests := make([]request, len(commands))
	for i, c := range commands {
		requests[i] = request{c.Tenant, c.Topic, c.Worker, c.Max, nil, c.Key, c.Within}
		if c.Lease != 0 {
			seconds := c.Lease.Seconds()
			requests[i].Lease = &seconds
		}
	}
	text, err := json.Marshal(requests)
	if err != nil {
		return nil, err
	}
	rows, err := q.WorkClaims(ctx, text)
	if err != nil {
		return nil, err
	}
	claimed := make([][]Work, len(commands))
	for _, r := range rows {
		claimed[r.Ordinal-1] = append(claimed[r.Ordinal-1], Work{
			ID: r.ID, Topic: r.Topic, Name: r.Name, InstanceID: r.InstanceID, Workflow: r.Workflow, Attempt: int(r.Attempt), Key: r.Key,
			Input: r.Input, Lease: r.Lease, LeaseExpiresAt: r.LeaseExpiresAt, DeadlineAt: r.DeadlineAt, CorrelationID: r.CorrelationID,
			Traceparent: r.Traceparent,
		})
	}
	return claimed, nil
}
