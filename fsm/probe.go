package fsm

import (
	"cmp"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/db/queries"
)

// A Probe is told what a Service does, for metrics. Its functions may be nil. They must not block, since commands wait for
// them, and are called by several goroutines at once.
type Probe struct {
	// Waited is called when a command is first called, with the time that it has waited for that. The queues are
	// create, fire, fire_by_key, get and principal, and those of each Batch.
	Waited func(queue string, waited time.Duration)
	// Called is called after a call to the database, with the number of its commands.
	Called func(queue string, commands int, took time.Duration)
	// Answered is called when a command has its reply.
	Answered func(Observation)
	// Collided is called for a command whose key was used for another request, beside Answered.
	Collided func(Collision)
}

// A Collision is a command whose idempotency key was used for another request. The engine has not looked at what it names,
// which need not exist.
type Collision struct {
	Tenant string
	// Workflow is that of a creation, or of the business key; else empty.
	Workflow string
	// Instance is the one to move, unless Workflow is given.
	Instance uuid.UUID
}

// collided tells the probe about the reply to a command if it is a collision.
func (p Probe) collided(command Command, r Reply) {
	if p.Collided == nil || !errors.Is(r.Err, KeyReuse) {
		return
	}
	var c Collision
	switch command := command.(type) {
	case CreateCommand:
		c = Collision{Tenant: command.Tenant, Workflow: command.Workflow}
	case FireCommand:
		c = Collision{Tenant: command.Tenant, Instance: command.ID}
	case FireByKeyCommand:
		c = Collision{Tenant: command.Tenant, Workflow: command.Workflow}
	}
	c.Tenant = cmp.Or(c.Tenant, DefaultTenant)
	p.Collided(c)
}

// And returns a Probe that tells both what it is told. Other need not have Waited and Called.
func (p Probe) And(other Probe) Probe {
	both := p
	both.Answered, both.Collided = told(p.Answered, other.Answered), told(p.Collided, other.Collided)
	return both
}

// told returns a function that tells both; nil if nobody wants to know.
func told[T any](a, b func(T)) func(T) {
	switch {
	case a == nil:
		return b
	case b == nil:
		return a
	}
	return func(v T) { a(v); b(v) }
}

// An Observation says what became of a command. It has no text of a caller that is not a name of a definition.
type Observation struct {
	// Tenant is that of the command.
	Tenant string
	// Workflow is that of the instance; empty if the engine found none.
	Workflow string
	// Event is what was fired; empty if the workflow is not known to declare it. It may be any text that fits a pattern. For an
	// instance that was created it is EventCreate.
	Event string
	// Outcome is "applied", or the kind of the refusal with hyphens, such as "guard-rejected".
	Outcome string
	// Key says what the idempotency key was: "new", "replayed", "collision", or empty if the command had none or was
	// not decided.
	Key string
	// Age is how old the state is that a replay shows: it was entered so long ago. 0 if the command is no replay, or
	// that of a refusal.
	Age time.Duration
}

// EventCreate stands for an event in the Observation of a command that creates an instance.
const EventCreate = "_create"

// Waiting returns how many commands wait in each queue but those of Batches.
func (s *Service) Waiting() map[string]int {
	return map[string]int{
		"create": s.creates.depth(), "fire": s.fires.depth(), "fire_by_key": s.firesByKey.depth(), "get": s.gets.depth(), "principal": s.principals.depth(),
	}
}

func (b *batcher[C, R]) depth() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.waiting
}

// A finding is what the engine found out about a command, whatever it decided.
type finding struct {
	workflow string // Of the instance.
	declared bool   // The workflow exists, and declares the event.
	decided  bool   // The idempotency key, if there is one, was looked at.
}

// find notes what an outcome says.
func (p *pending[C, R]) find(o queries.Outcome) {
	if o.Workflow != nil {
		p.finding.workflow = *o.Workflow
	}
	switch o.Code {
	case "applied", "guard-rejected", "invariant-broken", "transition-not-allowed", "payload-unchecked", "context-unchecked", "instance-exists":
		p.finding.declared, p.finding.decided = true, true
	case "context-too-large", "context-too-deep", "always-loop":
		p.finding.declared = true // A transition was chosen.
	}
}

// A declaration is an event that a workflow declares.
type declaration struct{ workflow, event string }

// declares says whether a workflow declares an event. Some refusals come before the engine asks that, such as a version
// mismatch. Then the event is known if the instance accepts it, or if this process has lately seen that it is declared.
func (s *Service) declares(d declaration, f finding, err error) bool {
	if f.declared {
		s.declarations.put(d, struct{}{})
		return true
	}
	e := (*Error)(nil)
	if f.workflow == "" || !errors.As(err, &e) || e.Kind == UnknownEvent || e.Kind == KeyReuse {
		return false
	}
	if e.Refusal != nil && accepts(e.Refusal.AcceptedEvents, d.event) {
		return true
	}
	_, known := s.declarations.get(d)
	return known
}

// accepts reports whether an event is among those that an instance accepts, or fits one of the patterns there.
func accepts(accepted []string, event string) bool {
	return slices.ContainsFunc(accepted, func(name string) bool {
		beginning, isPattern := strings.CutSuffix(name, "*")
		return name == event || isPattern && strings.HasPrefix(event, beginning)
	})
}

// found returns what was found out, if the command has ended. One that its caller has given up may still be called.
func (p *pending[C, R]) found() finding {
	select {
	case <-p.done:
		return p.finding
	default:
		return finding{}
	}
}

// answered tells the probe about the reply to a command, and ends its span. created is the workflow of a command that
// creates an instance.
func (s *Service) answered(tenant, created, event, key string, f finding, end func(Ended), r Reply) {
	if created != "" {
		event = EventCreate
	}
	if !s.declares(declaration{cmp.Or(created, f.workflow), event}, f, r.Err) {
		event = ""
	} else if created != "" {
		f.workflow = created
	}
	a := observationOf(tenant, event, key, f, r)
	if s.config.Probe.Answered != nil {
		s.config.Probe.Answered(a)
	}
	ended := Ended{Observation: a, Instance: r.Result.Instance.ID, Version: r.Result.Instance.Version}
	if e := (*Error)(nil); errors.As(r.Err, &e) {
		ended.Failed = e.Kind == Internal || e.Kind == Unavailable
	}
	end(ended)
}

// observationOf says what became of a command. The event is empty if it is not known to be declared.
func observationOf(tenant, event, key string, f finding, r Reply) Observation {
	a := Observation{Tenant: tenant, Workflow: f.workflow, Event: event, Outcome: "applied"}
	replayed, decided := r.Result.Replayed, r.Err == nil
	if e := (*Error)(nil); errors.As(r.Err, &e) {
		a.Outcome, replayed, decided = strings.ReplaceAll(e.Kind.Error(), " ", "-"), e.Replayed, f.decided
		if e.Kind == KeyReuse {
			a.Key = "collision"
		}
	} else if r.Err != nil {
		a.Outcome = strings.ReplaceAll(Internal.Error(), " ", "-")
	}
	switch {
	case strings.HasPrefix(key, "auto:"):
	case replayed:
		a.Key = "replayed"
		if r.Err == nil {
			a.Age = max(time.Since(r.Result.Instance.StateChangedAt), 0)
		}
	case decided && a.Key == "":
		a.Key = "new"
	}
	return a
}
