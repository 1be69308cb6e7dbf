package check

import (
	"encoding/json"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
)

// OrderDefinition is a workflow whose instances charge by a call with a key, are packed by workers, and tell of it by a call
// without a key. The names of its tasks are charge, pack and tell.
const OrderDefinition = `{
  "name": "order",
  "initial": "CHARGING",
  "states": {
    "CHARGING": {"invoke": {"charge": {
      "http": {"connection": "provider", "method": "POST", "path": "/charges", "body": {"task": "$.task.id"}},
      "idempotency": {"window": "24h"}, "timeout": "1s", "deadline": "20s", "retry": {"max": 2, "base": "100ms", "cap": "500ms"},
      "reconcile": {
        "http": {"connection": "provider", "method": "GET", "path": "/charges", "query": {"key": "$.task.key"}},
        "every": ["1s"], "done": "$.body.paid == true", "absent": "$.body.paid == false", "result": "$.body", "absent_after": "1s"
      },
      "done": "PACKING", "error": "FAILED", "unknown": "REVIEW"
    }}},
    "PACKING": {"invoke": {"pack": {
      "work": {"topic": "pack", "lease": "1s"}, "deadline": "20s", "retry": {"max": 10},
      "done": "TELLING", "error": "FAILED", "unknown": "REVIEW"
    }}},
    "TELLING": {"invoke": {"tell": {
      "http": {"connection": "provider", "method": "POST", "path": "/tell", "body": {"task": "$.task.id"}},
      "timeout": "1s", "deadline": "20s", "done": "DONE", "error": "FAILED", "unknown": "REVIEW"
    }}},
    "DONE": {"type": "final"},
    "FAILED": {"type": "final", "outcome": "failed"},
    "REVIEW": {"type": "final", "outcome": "failed"}
  }
}`

// Orders are what was seen of the instances of [OrderDefinition]. They have no part in the rest of a run.
type Orders struct {
	// Created are the instances whose creation was acknowledged.
	Created []uuid.UUID
	// Tasks and Steps are their tasks and their history at the end of the run. The key of a step names its task.
	Tasks []Task
	Steps []Step
	// Effects are what the provider did, and Absences when it said that a key had no effect.
	Effects  []Effect
	Absences []Effect
	// Completes are the results that workers reported.
	Completes []Complete
}

// A Task is a row of pawl.task.
type Task struct {
	ID, Instance  uuid.UUID
	Name, Status  string
	Work          bool  // Workers do it. The others call the provider.
	Compensates   int64 // The number of the compensation that it carries out; 0 for the task of a state.
	Late          bool
	ResultVersion int64 // 0 if its outcome made no step.
	CreatedAt     time.Time
	DeadlineAt    time.Time
	EndedAt       time.Time // Zero while it is open.
	Body          json.RawMessage
}

// An Effect is one of a key at the provider. A call without a key has the id of its task instead.
type Effect struct {
	Task uuid.UUID
	Key  string
	// Of is the task whose effect this one undoes; nil for others.
	Of uuid.UUID
	At time.Time
}

// A Complete is what a worker reported with a lease. Its result was {"lease": …}. Status is 0 without an answer.
type Complete struct {
	Task, Lease uuid.UUID
	Status      int
}

// tasks checks the tasks of orders. All instances reach a final state.
func tasks(x *index, out *reporter) {
	o := x.settled(&x.Orders, out)
	for _, s := range o.last {
		if s.Status == "active" {
			out.add("instance %s: it rests in %s after its tasks have ended", s.Instance, s.To)
		}
	}
	for i := range x.Orders.Steps {
		if s := &x.Orders.Steps[i]; s.Kind != "created" && o.madeBy(s) == nil {
			out.add("instance %s: %s is the outcome of no task", s.Instance, s)
		}
	}
}

// carried is what was seen of tasks, by what the checks look up.
type carried struct {
	tasks map[uuid.UUID]*Task
	last  map[uuid.UUID]*Step    // Of each instance.
	keys  map[uuid.UUID][]string // Under which a task had an effect, in the order of the first one of each.
}

const taskGrace = 90 * time.Second

// settled checks that each task ends by its deadline, that history has its outcome once, that the provider had one effect for
// each key, and another key only after it had said that there was no effect, and that the result of a task is the one that
// its worker was told to be taken.
func (x *index) settled(o *Orders, out *reporter) carried {
	c := carried{tasks: map[uuid.UUID]*Task{}, last: map[uuid.UUID]*Step{}, keys: map[uuid.UUID][]string{}}
	type at struct {
		instance uuid.UUID
		version  int64
	}
	steps, made := map[at]*Step{}, map[string]int{}
	for i := range o.Steps {
		s := &o.Steps[i]
		steps[at{s.Instance, s.Version}] = s
		made[s.Key]++
		if l := c.last[s.Instance]; l == nil || l.Version < s.Version {
			c.last[s.Instance] = s
		}
	}
	effects, first := map[uuid.UUID]map[string]int{}, map[string]time.Time{}
	for _, e := range o.Effects {
		if effects[e.Task] == nil {
			effects[e.Task] = map[string]int{}
		}
		if effects[e.Task][e.Key]++; effects[e.Task][e.Key] == 1 {
			c.keys[e.Task] = append(c.keys[e.Task], e.Key)
		}
		if was, there := first[e.Key]; !there || e.At.Before(was) {
			first[e.Key] = e.At
		}
	}

	for i := range o.Tasks {
		t := &o.Tasks[i]
		c.tasks[t.ID] = t
		ended := t.EndedAt
		if ended.IsZero() {
			out.add("task %s: %s of instance %s is open", t.ID, t.Name, t.Instance)
			ended = x.End
		}
		if late := ended.Sub(t.DeadlineAt) - x.excused(t.DeadlineAt, ended); late > taskGrace {
			out.add("task %s: it ended %s after its deadline besides faults, expected at most %s", t.ID, late.Round(time.Millisecond), taskGrace)
		}
		key := "task:" + t.ID.String()
		if event := t.event(); event != "" {
			s := steps[at{t.Instance, t.ResultVersion}]
			if s == nil || s.Key != key || s.Event != event {
				out.add("task %s: it ended as %s, but version %d of instance %s is %s", t.ID, t.Status, t.ResultVersion, t.Instance, orNothing(s))
			}
		}
		if made[key] > 1 {
			out.add("task %s: its outcome made %d steps of instance %s", t.ID, made[key], t.Instance)
		}
		for k, n := range effects[t.ID] {
			if n > 1 {
				out.add("task %s: the key %s had %d effects", t.ID, k, n)
			}
		}
		if t.Status == "done" && !t.Work && len(c.keys[t.ID]) == 0 {
			out.add("task %s: it is done, but the provider has done nothing", t.ID)
		}
		for i, k := range c.keys[t.ID][:max(len(c.keys[t.ID])-1, 0)] {
			next := c.keys[t.ID][i+1]
			denied := slices.ContainsFunc(o.Absences, func(a Effect) bool { return a.Key == k && a.At.Before(first[next]) })
			if !denied {
				out.add("task %s: the key %s had an effect after the key %s had one, which the provider had not denied", t.ID, next, k)
			}
		}
	}
	for _, id := range o.Created {
		if c.last[id] == nil {
			out.add("instance %s: its creation was acknowledged, but history has no step of it", id)
		}
	}
	for _, r := range o.Completes {
		if r.Status != 200 {
			continue
		}
		var body struct{ Lease uuid.UUID }
		if t := c.tasks[r.Task]; t == nil || t.Status != "done" || json.Unmarshal(t.Body, &body) != nil || body.Lease != r.Lease {
			out.add("task %s: the result of the lease %s was taken, but the task has another one", r.Task, r.Lease)
		}
	}
	return c
}

// event is that of the step which the outcome of a task makes; empty if it need make none.
func (t *Task) event() string {
	switch {
	case t.EndedAt.IsZero(), t.Late, t.Compensates > 0 && t.Status != "done":
		return ""
	case t.Compensates > 0:
		return "compensated:" + t.Name
	}
	return t.Status + ":" + t.Name
}

// madeBy returns the task whose outcome a step is, or nil.
func (c carried) madeBy(s *Step) *Task {
	text, names := strings.CutPrefix(s.Key, "task:")
	id, err := uuid.Parse(text)
	if t := c.tasks[id]; names && err == nil && t != nil && t.ResultVersion == s.Version && t.Instance == s.Instance {
		return t
	}
	return nil
}
