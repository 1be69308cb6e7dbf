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
	Late          bool
	ResultVersion int64 // 0 if its outcome made no step.
	DeadlineAt    time.Time
	EndedAt       time.Time // Zero while it is open.
	Body          json.RawMessage
}

// An Effect is one of a key at the provider. A call without a key has the id of its task instead.
type Effect struct {
	Task uuid.UUID
	Key  string
	At   time.Time
}

// A Complete is what a worker reported with a lease. Its result was {"lease": …}. Status is 0 without an answer.
type Complete struct {
	Task, Lease uuid.UUID
	Status      int
}

// tasks checks that each task ends by its deadline, that history has its outcome once, that the provider had one effect for
// each key, and another key only after it had said that there was no effect, and that the result of a task is the one that
// its worker was told to be taken.
func tasks(x *index, out *reporter) {
	const grace = 90 * time.Second
	type at struct {
		instance uuid.UUID
		version  int64
	}
	steps, last, made := map[at]*Step{}, map[uuid.UUID]*Step{}, map[string]int{}
	for i := range x.Orders.Steps {
		s := &x.Orders.Steps[i]
		steps[at{s.Instance, s.Version}] = s
		made[s.Key]++
		if l := last[s.Instance]; l == nil || l.Version < s.Version {
			last[s.Instance] = s
		}
	}
	effects, keys := map[uuid.UUID]map[string]int{}, map[uuid.UUID][]string{}
	for _, e := range x.Orders.Effects {
		if effects[e.Task] == nil {
			effects[e.Task] = map[string]int{}
		}
		if effects[e.Task][e.Key]++; effects[e.Task][e.Key] == 1 {
			keys[e.Task] = append(keys[e.Task], e.Key)
		}
	}
	first := map[string]time.Time{}
	for _, e := range x.Orders.Effects {
		if was, there := first[e.Key]; !there || e.At.Before(was) {
			first[e.Key] = e.At
		}
	}

	tasks := map[uuid.UUID]*Task{}
	for i := range x.Orders.Tasks {
		t := &x.Orders.Tasks[i]
		tasks[t.ID] = t
		ended := t.EndedAt
		if ended.IsZero() {
			out.add("task %s: %s of instance %s is open", t.ID, t.Name, t.Instance)
			ended = x.End
		}
		if late := ended.Sub(t.DeadlineAt) - x.excused(t.DeadlineAt, ended); late > grace {
			out.add("task %s: it ended %s after its deadline besides faults, expected at most %s", t.ID, late.Round(time.Millisecond), grace)
		}
		key := "task:" + t.ID.String()
		if !t.EndedAt.IsZero() && !t.Late {
			s := steps[at{t.Instance, t.ResultVersion}]
			if s == nil || s.Key != key || s.Event != t.Status+":"+t.Name {
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
		if t.Status == "done" && t.Name != "pack" && len(keys[t.ID]) == 0 {
			out.add("task %s: it is done, but the provider has done nothing", t.ID)
		}
		for i, k := range keys[t.ID][:max(len(keys[t.ID])-1, 0)] {
			next := keys[t.ID][i+1]
			denied := slices.ContainsFunc(x.Orders.Absences, func(a Effect) bool { return a.Key == k && a.At.Before(first[next]) })
			if !denied {
				out.add("task %s: the key %s had an effect after the key %s had one, which the provider had not denied", t.ID, next, k)
			}
		}
	}
	for _, s := range last {
		if s.Status == "active" {
			out.add("instance %s: it rests in %s after its tasks have ended", s.Instance, s.To)
		}
	}
	for i := range x.Orders.Steps {
		if s := &x.Orders.Steps[i]; s.Kind != "created" {
			id, err := uuid.Parse(strings.TrimPrefix(s.Key, "task:"))
			if t := tasks[id]; err != nil || t == nil || t.ResultVersion != s.Version || t.Instance != s.Instance {
				out.add("instance %s: %s is the outcome of no task", s.Instance, s)
			}
		}
	}
	for _, id := range x.Orders.Created {
		if last[id] == nil {
			out.add("instance %s: its creation was acknowledged, but history has no step of it", id)
		}
	}
	for _, c := range x.Orders.Completes {
		if c.Status != 200 {
			continue
		}
		var body struct{ Lease uuid.UUID }
		if t := tasks[c.Task]; t == nil || t.Status != "done" || json.Unmarshal(t.Body, &body) != nil || body.Lease != c.Lease {
			out.add("task %s: the result of the lease %s was taken, but the task has another one", c.Task, c.Lease)
		}
	}
}
