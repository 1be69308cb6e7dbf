package definition

import (
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"
)

// A Task is work that a state asks for: a call over HTTP, or work for those who pull it. A compensation is a task
// without Done, Error, Unknown, Late and Compensate.
type Task struct {
	Description string
	// HTTP is the call, and Work the work. One of them is set.
	HTTP *Request
	Work *Work
	// Idempotency says how the service is told which attempts are the same. Nil: it is not.
	Idempotency *Idempotency
	// Timeout is that of one attempt of a call, and Deadline that of the task.
	Timeout, Deadline time.Duration
	// Retry of nil is six attempts of a call, and one attempt of work.
	Retry *Retry
	// Success says which answers are good. Nil: those with a status below 300.
	Success Guard
	// Reconcile finds out whether an attempt without an answer had its effect. Nil: nothing does.
	Reconcile *Reconcile
	// Done, Error and Unknown have the candidates for the result. The last of each has no guard.
	Done, Error, Unknown []Transition
	// Late is the event that is fired if the task ends after its state was left. Empty: none.
	Late string
	// Compensate undoes the task. Nil: nothing does.
	Compensate *Task
	// RunIfUnknown of a compensation: it is run even if nobody knows whether there is something to undo.
	RunIfUnknown bool
}

// Work is offered to those who pull it.
type Work struct {
	Topic string
	// Lease is how long a claim holds, unless the claim says so. 0: DefaultLease.
	Lease time.Duration
	// Input is a value that gives an object. Nil: an empty one.
	Input Value
}

// Idempotency is how a service recognizes an attempt that it has seen.
type Idempotency struct {
	// Header has the key, and Window is how long the service knows the key.
	Header string
	Window time.Duration
}

// Retry bounds the attempts of a task.
type Retry struct {
	// Max counts the attempts, the first included.
	Max int
	// Base is the first delay, and Cap the longest one.
	Base, Cap time.Duration
}

// Reconcile finds out what became of an attempt.
type Reconcile struct {
	HTTP Request
	// Every has the delays between the calls; the last repeats.
	Every []time.Duration
	// Done, Failed and Absent say what an answer means. Those that are nil are never so.
	Done, Failed, Absent Guard
	// Result is a value: what the task would have been answered. Nil: the body of the answer.
	Result Value
	// AbsentAfter is how long after an attempt Absent counts. 0 without Absent.
	AbsentAfter time.Duration
}

// Undoing is what an undoing state does.
type Undoing struct {
	// ContinueOnFailure goes on with the steps before one that could not be undone.
	ContinueOnFailure bool
}

// The defaults and the bounds of tasks.
const (
	DefaultTaskTimeout = 15 * time.Second
	DefaultLease       = time.Minute

	maxTasks         = 20 // Of a state.
	maxTaskDeadline  = 365 * 24 * time.Hour
	maxAttempts      = 100
	maxReconcileGaps = 20
)

// The members of the documents that paths of tasks are evaluated over: of requests, of compensations of tasks, and of
// guards on answers.
var (
	taskRoots    = append(slices.Clone(stepRoots), "task")
	undoRoots    = append(slices.Clone(taskRoots), "result")
	answerRoots  = []string{"status", "headers", "body"}
	resultSchema = closedObject("task", "name", "attempt", "status", "headers", "body", "error")
	taskSchema   = closedObject("id", "key", "name", "workflow", "state")
	taskName     = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_-]{0,63}$`)
)

// closedObject is the schema of an object that has these members, and no others.
func closedObject(names ...string) any {
	properties, required := map[string]any{}, []any{}
	for _, name := range names {
		properties[name] = map[string]any{}
		required = append(required, name)
	}
	return map[string]any{"type": "object", "additionalProperties": false, "properties": properties, "required": required}
}

// openObject is the schema of an object that has these members, of which the first is always there.
func openObject(names ...string) any {
	schema := closedObject(names...).(map[string]any)
	delete(schema, "additionalProperties")
	schema["required"] = schema["required"].([]any)[:1]
	return schema
}

// invoke reads the tasks of a state.
func (d *Draft) invoke(at string, where place, v any) map[string]Task {
	written, ok := d.object(at, v)
	switch {
	case ok && len(written) == 0:
		d.fault(at, "must have at least one task")
	case len(written) > maxTasks:
		d.fault(at, "must have at most %d tasks", maxTasks)
	}
	tasks := make(map[string]Task, len(written))
	for _, name := range slices.Sorted(maps.Keys(written)) {
		at := at + Pointer(name)
		switch {
		case name == "compensate":
			d.fault(at, "is the name of what an undoing state does: name the task otherwise")
		case !taskName.MatchString(name):
			d.fault(at, "a task's name must be a letter followed by up to 63 letters, digits, dashes or underscores")
		}
		tasks[name] = d.invoked(at, where, written[name])
	}
	return tasks
}

// taskMembers are those of all tasks.
var taskMembers = []string{"description", "http", "work", "idempotency", "timeout", "deadline", "retry", "success", "reconcile"}

// invoked reads a task of a state.
func (d *Draft) invoked(at string, where place, v any) Task {
	m, ok := d.object(at, v)
	if !ok {
		return Task{}
	}
	d.members(at, m, append(slices.Clone(taskMembers), "done", "error", "unknown", "late", "compensate")...)
	t := d.task(at, m, taskRoots)
	for _, h := range []struct {
		name, when string
		list       *[]Transition
	}{
		{"done", "when the task is done", &t.Done},
		{"error", "when it has failed", &t.Error},
		{"unknown", "when nobody knows whether it was done", &t.Unknown},
	} {
		v, given := m[h.name]
		if !given {
			d.fault(at+"/"+h.name, "is missing: where an instance goes %s", h.when)
			continue
		}
		d.payloads[at+"/"+h.name] = payload{resultSchema, "the payload of a task's result"}
		*h.list = d.handlers(at+"/"+h.name, where, v)
	}
	if v, given := m["late"]; given {
		if m, ok := d.object(at+"/late", v); ok {
			d.members(at+"/late", m, "event")
			if t.Late = d.text(at+"/late/event", m["event"]); t.Late != "" {
				d.late[at+"/late/event"] = t.Late
			}
		}
	}
	if v, given := m["compensate"]; given {
		t.Compensate = d.compensation(at+"/compensate", v, undoRoots)
	}
	return t
}

// handlers reads the candidates for a result, of which the last is always taken.
func (d *Draft) handlers(at string, where place, v any) []Transition {
	list := d.candidates(at, where, v, handlerKind)
	if len(list) > 0 && !list[len(list)-1].unconditional() {
		d.fault(at, "the last transition must have no guard, so that one is always taken")
	}
	return list
}

// compensation reads what undoes a task or an event, whose paths read roots.
func (d *Draft) compensation(at string, v any, roots []string) *Task {
	m, ok := d.object(at, v)
	if !ok {
		return nil
	}
	d.members(at, m, append(slices.Clone(taskMembers), "if_unknown")...)
	t := d.task(at, m, roots)
	if t.HTTP != nil && t.Idempotency == nil {
		t.Idempotency = d.idempotency(at+"/idempotency", map[string]any{})
	}
	if v, given := m["if_unknown"]; given {
		if t.RunIfUnknown = v == "run"; !t.RunIfUnknown && v != "park" {
			d.fault(at+"/if_unknown", `must be "run" or "park"`)
		}
	}
	d.undos[&t] = at
	return &t
}

// task reads the members that tasks and compensations share. Paths read roots.
func (d *Draft) task(at string, m map[string]any, roots []string) Task {
	t := Task{Description: d.description(at, m)}
	call, isCall := m["http"]
	work, isWork := m["work"]
	if isCall == isWork {
		d.fault(at, "must have either http, a call, or work, which is for workers to pull")
	}
	if isCall {
		t.HTTP = d.request(at+"/http", call, "", roots)
	}
	if isWork {
		t.Work = d.work(at+"/work", work, roots)
	}
	for _, member := range []string{"idempotency", "timeout", "success", "reconcile"} {
		if _, given := m[member]; given && !isCall && isWork {
			d.fault(at+"/"+member, "is for a task with http: workers say themselves what became of their work")
		}
	}
	if v, given := m["idempotency"]; given {
		t.Idempotency = d.idempotency(at+"/idempotency", v)
	}
	if v, given := m["timeout"]; given {
		t.Timeout = d.span(at+"/timeout", v, 100*time.Millisecond, 10*time.Minute)
		if t.Timeout == DefaultTaskTimeout {
			t.Timeout = 0
		}
	}
	if v, given := m["deadline"]; given {
		t.Deadline = d.span(at+"/deadline", v, time.Millisecond, maxTaskDeadline)
	} else {
		d.fault(at+"/deadline", "is missing: how long all attempts may take together, such as 15m")
	}
	if v, given := m["retry"]; given {
		t.Retry = d.retry(at+"/retry", v)
	}
	if v, given := m["success"]; given {
		d.over(answerRoots, func() { t.Success = d.guard(at+"/success", v) })
	}
	if v, given := m["reconcile"]; given {
		connection := ""
		if t.HTTP != nil {
			connection = t.HTTP.Connection
		}
		t.Reconcile = d.reconcile(at+"/reconcile", v, connection, roots)
	}
	for _, r := range []*Request{t.HTTP, t.Reconcile.request()} {
		if r == nil || t.Idempotency == nil {
			continue
		}
		for name := range r.Headers {
			if strings.EqualFold(name, t.Idempotency.Header) {
				place := "/http"
				if r != t.HTTP {
					place = "/reconcile/http"
				}
				d.fault(at+place+"/headers"+Pointer(name), "is the header of idempotency, which has the key of the task")
			}
		}
	}
	return t
}

func (r *Reconcile) request() *Request {
	if r == nil {
		return nil
	}
	return &r.HTTP
}

// work reads what is for workers.
func (d *Draft) work(at string, v any, roots []string) *Work {
	m, ok := d.object(at, v)
	if !ok {
		return nil
	}
	d.members(at, m, "topic", "lease", "input")
	w := Work{Topic: d.text(at+"/topic", m["topic"])}
	if w.Topic != "" && !identifier.MatchString(w.Topic) {
		d.fault(at+"/topic", "must be a letter followed by up to 63 letters, digits, dots, dashes or underscores")
	}
	if v, given := m["lease"]; given {
		if w.Lease = d.span(at+"/lease", v, time.Second, time.Hour); w.Lease == DefaultLease {
			w.Lease = 0
		}
	}
	if v, given := m["input"]; given {
		d.over(roots, func() { d.value(at+"/input", v, false) })
		if shape := shapeOf(v); shape != "" && shape != "object" {
			d.fault(at+"/input", "must give an object, not what is of type %s", shape)
		}
		if input, ok := v.(map[string]any); !ok || len(input) > 0 {
			w.Input = v
		}
	}
	return &w
}

// idempotency reads how the service is told which attempts are the same.
func (d *Draft) idempotency(at string, v any) *Idempotency {
	i := Idempotency{Header: "Idempotency-Key", Window: 24 * time.Hour}
	m, _ := d.object(at, v)
	d.members(at, m, "header", "window")
	if v, given := m["header"]; given {
		if i.Header = d.text(at+"/header", v); i.Header != "" && (!IsHeaderName(i.Header) || IsOwnHeader(i.Header)) {
			d.fault(at+"/header", "is no name of a header that could have a key, such as Idempotency-Key")
		}
	}
	if v, given := m["window"]; given {
		i.Window = d.span(at+"/window", v, time.Second, maxTaskDeadline)
	}
	return &i
}

// retry reads the bounds of the attempts.
func (d *Draft) retry(at string, v any) *Retry {
	m, _ := d.object(at, v)
	d.members(at, m, "max", "base", "cap")
	r := Retry{Max: 6, Base: time.Second, Cap: time.Minute}
	if v, given := m["max"]; given {
		number, _ := v.(json.Number)
		n, err := number.Int64()
		if err != nil || n < 1 || n > maxAttempts {
			d.fault(at+"/max", "must be a whole number from 1 to %d: how many attempts there are, the first included", maxAttempts)
		}
		r.Max = int(n)
	}
	if v, given := m["base"]; given {
		r.Base = d.span(at+"/base", v, time.Millisecond, maxTaskDeadline)
	}
	if v, given := m["cap"]; given {
		if r.Cap = d.span(at+"/cap", v, time.Millisecond, maxTaskDeadline); r.Cap > 0 && r.Cap < r.Base {
			d.fault(at+"/cap", "must be at least the base, %s", FormatDuration(r.Base))
		}
	} else {
		r.Cap = max(r.Cap, r.Base)
	}
	return &r
}

// reconcile reads how to find out what became of an attempt. connection is that of the task.
func (d *Draft) reconcile(at string, v any, connection string, roots []string) *Reconcile {
	m, ok := d.object(at, v)
	if !ok {
		return nil
	}
	d.members(at, m, "http", "every", "done", "failed", "absent", "result", "absent_after")
	var r Reconcile
	if call := d.request(at+"/http", m["http"], connection, roots); call != nil {
		r.HTTP = *call
	}
	r.Every = []time.Duration{5 * time.Second, 30 * time.Second, 5 * time.Minute}
	if v, given := m["every"]; given {
		r.Every = d.gaps(at+"/every", v)
	}
	d.over(slices.Concat(answerRoots, roots), func() {
		for name, guard := range map[string]*Guard{"done": &r.Done, "failed": &r.Failed, "absent": &r.Absent} {
			if v, given := m[name]; given {
				*guard = d.guard(at+"/"+name, v)
			}
		}
		if v, given := m["result"]; given {
			d.value(at+"/result", v, false)
			r.Result = v
		}
	})
	if _, given := m["done"]; !given {
		d.fault(at+"/done", "is missing: the guard that says of an answer that the effect is there")
	}
	v, given := m["absent_after"]
	switch {
	case given:
		r.AbsentAfter = d.span(at+"/absent_after", v, time.Millisecond, maxTaskDeadline)
		if _, absent := m["absent"]; !absent {
			d.fault(at+"/absent_after", "is for a guard absent, which says of an answer that there was no effect")
		}
	case r.Absent != nil:
		r.AbsentAfter = time.Minute
	}
	return &r
}

// gaps reads the delays of reconciling: a duration, or an array of them.
func (d *Draft) gaps(at string, v any) []time.Duration {
	const least = time.Second
	list, several := v.([]any)
	if !several {
		return []time.Duration{d.span(at, v, least, maxTaskDeadline)}
	}
	if len(list) == 0 || len(list) > maxReconcileGaps {
		d.fault(at, "must be a duration, or an array of 1 to %d durations", maxReconcileGaps)
	}
	gaps := make([]time.Duration, len(list))
	for i, v := range list {
		gaps[i] = d.span(fmt.Sprintf("%s/%d", at, i), v, least, maxTaskDeadline)
	}
	return gaps
}

// undoing reads the members compensate, done and error of a state that undoes.
func (d *Draft) undoing(at string, where place, v any, m map[string]any, s *State) {
	s.Compensate = &Undoing{}
	if written, ok := d.object(at+"/compensate", v); ok {
		d.members(at+"/compensate", written, "what", "on_failure")
		if v, given := written["what"]; given && v != "all" {
			d.fault(at+"/compensate/what", `must be "all": every compensable step is undone`)
		}
		if v, given := written["on_failure"]; given {
			if s.Compensate.ContinueOnFailure = v == "continue"; !s.Compensate.ContinueOnFailure && v != "stop" {
				d.fault(at+"/compensate/on_failure", `must be "stop" or "continue"`)
			}
		}
	}
	if _, given := m["invoke"]; given {
		d.fault(at+"/invoke", "is not for a state that undoes: its tasks are those that undo")
	}
	for _, h := range []struct {
		name, when string
		list       *[]Transition
	}{{"done", "when all is undone", &s.Done}, {"error", "when something could not be undone", &s.Error}} {
		if v, given := m[h.name]; given {
			*h.list = d.handlers(at+"/"+h.name, where, v)
		} else {
			d.fault(at+"/"+h.name, "is missing: where an instance goes %s", h.when)
		}
	}
}

const uncompensable = "is for an event with a name, which is that of the step to undo; a pattern has none"
