package check

import (
	"bytes"
	"cmp"
	"maps"
	"slices"
	"time"

	"github.com/google/uuid"
)

// TripDefinition is a workflow whose instances undo what they did, if a car cannot be had. A payment is undone by workers,
// bookings by calls. The flight and the visa are asked for side by side: the first that is had leads on, and the other one is
// cancelled or late. A booking that may have been made is cancelled; of the visa somebody has to look.
const TripDefinition = `{
  "name": "trip",
  "initial": "WAITING",
  "cancel": "UNDOING",
  "states": {
    "WAITING": {"on": {"pay": {"target": "HOTEL", "compensate": {
      "work": {"topic": "refund", "lease": "1s"}, "deadline": "20s", "retry": {"max": 10}
    }}}},
    "HOTEL": {"invoke": {"hotel": ` + booking + `, "done": "FLIGHT", "error": "UNDOING", "unknown": "UNDOING", "compensate": ` + cancelling + `, "if_unknown": "run"}}}},
    "FLIGHT": {"invoke": {
      "flight": ` + booking + `, "done": "CAR", "error": "UNDOING", "unknown": "UNDOING", "compensate": ` + cancelling + `, "if_unknown": "run"}},
      "visa": ` + booking + `, "done": "CAR", "error": "UNDOING", "unknown": "UNDOING", "compensate": ` + cancelling + `, "if_unknown": "park"}}
    }},
    "CAR": {"invoke": {"car": ` + booking + `, "done": "BOOKED", "error": "UNDOING", "unknown": "UNDOING", "compensate": ` + cancelling + `, "if_unknown": "run"}}}},
    "UNDOING": {"compensate": {"what": "all", "on_failure": "stop"}, "done": "CANCELLED", "error": "STUCK"},
    "STUCK": {"on": {"undo": "UNDOING"}},
    "BOOKED": {"type": "final"},
    "CANCELLED": {"type": "final", "outcome": "cancelled"}
  }
}`

// Each is the beginning of an object.
const (
	booking = `{
        "http": {"connection": "provider", "method": "POST", "path": "/bookings", "body": {"task": "$.task.id", "what": "$.task.name"}},
        "idempotency": {"window": "24h"}, "timeout": "1s", "deadline": "20s", "retry": {"max": 3, "base": "100ms", "cap": "500ms"}`
	cancelling = `{
        "http": {"connection": "provider", "method": "POST", "path": "/cancellations", "body": {"task": "$.task.id", "of": "$.result.task"}},
        "timeout": "1s", "deadline": "20s", "retry": {"max": 3, "base": "100ms", "cap": "500ms"}`
)

// Trips are what was seen of the instances of [TripDefinition].
type Trips struct {
	Orders
	Compensations []Compensation
}

// A Compensation is a row of pawl.compensation: a step that can be undone.
type Compensation struct {
	Instance uuid.UUID
	// Number rises with the steps.
	Number       int64
	Name, Status string
	Task         uuid.UUID // Whose effect it undoes; nil for a transition.
	UndoneBy     uuid.UUID // The last task that carried it out; nil if there was none.
	Reason       string
}

// sagas checks the tasks of trips, and that what was done is undone: newest first, one at a time, and once. An instance that
// was cancelled has nothing left that was done, but what an operator has skipped. One that is parked says why.
func sagas(x *index, out *reporter) {
	o := x.settled(&x.Trips.Orders, out)
	trips := map[uuid.UUID]*saga{}
	of := func(id uuid.UUID) *saga {
		if trips[id] == nil {
			trips[id] = &saga{last: o.last[id]}
		}
		return trips[id]
	}
	for i := range x.Trips.Compensations {
		c := &x.Trips.Compensations[i]
		of(c.Instance).compensations = append(of(c.Instance).compensations, c)
	}
	for i := range x.Trips.Tasks {
		if t := &x.Trips.Tasks[i]; t.Compensates > 0 {
			of(t.Instance).undoing = append(of(t.Instance).undoing, t)
		}
	}
	for i := range x.Trips.Steps {
		s := &x.Trips.Steps[i]
		of(s.Instance).steps = append(of(s.Instance).steps, s)
	}
	// Of each task that booked, when it did so last, and which tasks undid it when.
	booked, undone := map[uuid.UUID]time.Time{}, map[uuid.UUID]map[uuid.UUID]time.Time{}
	for _, e := range x.Trips.Effects {
		switch {
		case e.Of == uuid.Nil && e.At.After(booked[e.Task]):
			booked[e.Task] = e.At
		case e.Of != uuid.Nil:
			if undone[e.Of] == nil {
				undone[e.Of] = map[uuid.UUID]time.Time{}
			}
			if was, there := undone[e.Of][e.Task]; !there || e.At.Before(was) {
				undone[e.Of][e.Task] = e.At
			}
		}
	}
	for _, id := range slices.SortedFunc(maps.Keys(trips), func(a, b uuid.UUID) int { return bytes.Compare(a[:], b[:]) }) {
		s := trips[id]
		s.sort()
		s.rests(id, out)
		s.inOrder(id, o, out)
		for _, c := range s.compensations {
			s.settles(c, o, booked, undone[c.Task], out)
		}
	}
	registered := map[uuid.UUID]bool{}
	for _, c := range x.Trips.Compensations {
		registered[c.Task] = true
	}
	for task := range booked {
		if !registered[task] {
			out.add("task %s: the provider has booked, but nothing is registered that undoes it", task)
		}
	}
}

// A saga is what was seen of one trip.
type saga struct {
	last          *Step
	steps         []*Step // By version.
	compensations []*Compensation
	undoing       []*Task // Those that undo, in the order in which they began.
}

func (s *saga) sort() {
	slices.SortFunc(s.steps, func(a, b *Step) int { return cmp.Compare(a.Version, b.Version) })
	slices.SortFunc(s.compensations, func(a, b *Compensation) int { return cmp.Compare(a.Number, b.Number) })
	slices.SortFunc(s.undoing, func(a, b *Task) int { return cmp.Or(a.CreatedAt.Compare(b.CreatedAt), bytes.Compare(a.ID[:], b.ID[:])) })
}

func (s *saga) in() string {
	if s.last == nil {
		return "no state"
	}
	return s.last.To
}

// rests checks where an instance is when its tasks have ended: in a final state, parked with a reason, or not paid for.
func (s *saga) rests(id uuid.UUID, out *reporter) {
	parked := slices.ContainsFunc(s.compensations, func(c *Compensation) bool { return c.Status == "failed" })
	switch s.in() {
	case "WAITING", "BOOKED":
	case "STUCK":
		if !parked {
			out.add("instance %s: it is parked, but no step of it could not be undone", id)
		}
	case "CANCELLED":
		for _, c := range s.compensations {
			if c.Status != "undone" && c.Status != "void" && c.Status != "skipped" {
				out.add("instance %s: it was cancelled, but the step %s, number %d, is %s", id, c.Name, c.Number, c.Status)
			}
		}
	default:
		out.add("instance %s: it rests in %s after its tasks have ended", id, s.in())
	}
	if s.in() != "CANCELLED" && s.in() != "STUCK" && len(s.undoing) > 0 {
		out.add("instance %s: it is in %s, but the task %s has undone a step of it", id, s.in(), s.undoing[0].ID)
	}
}

// inOrder checks that steps are undone newest first and one at a time, as history has it and as their tasks began.
func (s *saga) inOrder(id uuid.UUID, o carried, out *reporter) {
	var before *Step
	number := int64(1 << 62)
	for _, step := range s.steps {
		if step.Kind != "compensated" {
			continue
		}
		t := o.madeBy(step)
		if t == nil || t.Compensates == 0 {
			out.add("instance %s: %s undoes no step", id, step)
			continue
		}
		if t.Compensates >= number {
			out.add("instance %s: %s undoes the step number %d, after %s has undone the step number %d", id, step, t.Compensates, before, number)
		}
		before, number = step, t.Compensates
	}
	for i, t := range s.undoing[:max(len(s.undoing)-1, 0)] {
		next := s.undoing[i+1]
		if t.EndedAt.IsZero() || next.CreatedAt.Before(t.EndedAt) {
			out.add("instance %s: the task %s began to undo the step number %d before the task %s, of the step number %d, had ended",
				id, next.ID, next.Compensates, t.ID, t.Compensates)
		}
		if next.Compensates > t.Compensates {
			out.add("instance %s: the task %s began to undo the step number %d after the task %s, of the older step number %d",
				id, next.ID, next.Compensates, t.ID, t.Compensates)
		}
	}
}

// settles checks what became of one step that can be undone. undone: when each task did so
func (s *saga) settles(c *Compensation, o carried, booked map[uuid.UUID]time.Time, undone map[uuid.UUID]time.Time, out *reporter) {
	var done []*Task
	for _, t := range s.undoing {
		if t.Compensates == c.Number && t.Status == "done" {
			done = append(done, t)
		}
	}
	if len(done) > 1 {
		out.add("instance %s: the step %s, number %d, was undone by the task %s and by the task %s", c.Instance, c.Name, c.Number, done[0].ID, done[1].ID)
	}
	at, wasBooked := booked[c.Task]
	task := o.tasks[c.Task]
	switch c.Status {
	case "undone":
		if len(done) == 0 || done[0].ID != c.UndoneBy {
			out.add("instance %s: the step %s, number %d, is undone, but not by the task %s", c.Instance, c.Name, c.Number, c.UndoneBy)
		} else if _, there := undone[c.UndoneBy]; !there && !done[0].Work {
			out.add("instance %s: the step %s, number %d, is undone, but the provider has not undone the task %s", c.Instance, c.Name, c.Number, c.Task)
		}
	case "void":
		if wasBooked {
			out.add("instance %s: the step %s, number %d, is void, but the provider had booked for the task %s", c.Instance, c.Name, c.Number, c.Task)
		}
		if task == nil || task.Status != "error" && task.Status != "cancelled" {
			out.add("instance %s: the step %s, number %d, is void, but nothing says that there was no effect", c.Instance, c.Name, c.Number)
		}
	case "failed", "skipped":
		if c.Reason == "" {
			out.add("instance %s: the step %s, number %d, is %s without a reason", c.Instance, c.Name, c.Number, c.Status)
		}
	case "registered":
	default:
		out.add("instance %s: the step %s, number %d, is %s", c.Instance, c.Name, c.Number, c.Status)
	}
	if c.Status != "undone" && len(done) > 0 {
		out.add("instance %s: the step %s, number %d, is %s, but the task %s has undone it", c.Instance, c.Name, c.Number, c.Status, done[0].ID)
	}
	for by, first := range undone {
		if wasBooked && at.After(first) {
			out.add("instance %s: the provider booked for the task %s after the task %s had undone it", c.Instance, c.Task, by)
		}
		if t := o.tasks[by]; t == nil || t.Compensates != c.Number {
			out.add("instance %s: the provider has undone the task %s for the task %s, which does not undo it", c.Instance, c.Task, by)
		}
	}
}
