package fsm

import (
	"errors"
	"strings"
	"time"

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
}

// An Observation says what became of a command. It has no text of a caller that is not a name of a definition.
type Observation struct {
	// Tenant is that of the command.
	Tenant string
	// Workflow is that of the instance; empty if the engine found none.
	Workflow string
	// Event is what was fired; empty if the workflow does not declare it. It may be any text that fits a pattern. For an
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
}

// find notes what an outcome says.
func (p *pending[C, R]) find(o queries.Outcome) {
	if o.Workflow != nil {
		p.finding.workflow = *o.Workflow
	}
	switch o.Code {
	case "applied", "guard-rejected", "invariant-broken", "transition-not-allowed", "payload-unchecked", "context-unchecked", "instance-exists":
		p.finding.declared = true
	}
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
	a := observationOf(tenant, created, event, key, f, r)
	if s.config.Probe.Answered != nil {
		s.config.Probe.Answered(a)
	}
	ended := Ended{Observation: a, Instance: r.Result.Instance.ID, Version: r.Result.Instance.Version}
	if e := (*Error)(nil); errors.As(r.Err, &e) {
		ended.Failed = e.Kind == Internal || e.Kind == Unavailable
	}
	end(ended)
}

// observationOf says what became of a command.
func observationOf(tenant, created, event, key string, f finding, r Reply) Observation {
	a := Observation{Tenant: tenant, Workflow: f.workflow, Outcome: "applied"}
	if f.declared {
		a.Event = event
		if created != "" {
			a.Workflow, a.Event = created, EventCreate
		}
	}
	replayed, decided := r.Result.Replayed, r.Err == nil
	if e := (*Error)(nil); errors.As(r.Err, &e) {
		a.Outcome, replayed, decided = strings.ReplaceAll(e.Kind.Error(), " ", "-"), e.Replayed, f.declared
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
