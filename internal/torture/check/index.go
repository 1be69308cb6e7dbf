package check

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
)

// An index is a run with what the checks look up.
type index struct {
	*Run
	// instances have steps, in the order of their ids.
	instances []uuid.UUID
	// steps are those of an instance, by version.
	steps map[uuid.UUID][]*Step
	// effects are the steps of a key. Timers have keys of the engine's, which are not here.
	effects map[string][]*Step
	// keys are those of ops, in order; attempts are the ops of a key, by their begin.
	keys     []string
	attempts map[string][]*Op
	// tried counts the steps of the searches for an order.
	tried atomic.Int64
}

func newIndex(r *Run) *index {
	x := &index{
		Run: r, steps: map[uuid.UUID][]*Step{}, effects: map[string][]*Step{}, attempts: map[string][]*Op{},
	}
	for i := range r.Steps {
		s := &r.Steps[i]
		if x.steps[s.Instance] == nil {
			x.instances = append(x.instances, s.Instance)
		}
		x.steps[s.Instance] = append(x.steps[s.Instance], s)
		if s.Key != "" && s.Kind != timeoutKind {
			x.effects[s.Key] = append(x.effects[s.Key], s)
		}
	}
	slices.SortFunc(x.instances, func(a, b uuid.UUID) int { return bytes.Compare(a[:], b[:]) })
	for _, steps := range x.steps {
		slices.SortStableFunc(steps, func(a, b *Step) int { return cmp.Compare(a.Version, b.Version) })
	}
	for i := range r.Ops {
		o := &r.Ops[i]
		if o.Kind == "get" {
			continue
		}
		if x.attempts[o.Key] == nil {
			x.keys = append(x.keys, o.Key)
		}
		x.attempts[o.Key] = append(x.attempts[o.Key], o)
	}
	slices.Sort(x.keys)
	for _, attempts := range x.attempts {
		slices.SortStableFunc(attempts, func(a, b *Op) int { return a.Begin.Compare(b.Begin) })
	}
	return x
}

// The kind of a step that a timer made.
const timeoutKind = "timeout"

// step returns a version of an instance, or nil.
func (x *index) step(instance uuid.UUID, version int64) *Step {
	steps := x.steps[instance]
	at, found := slices.BinarySearchFunc(steps, version, func(s *Step, v int64) int { return cmp.Compare(s.Version, v) })
	if !found {
		return nil
	}
	return steps[at]
}

// era counts the losses that had begun before a time.
func (x *index) era(t time.Time) (n int) {
	for n < len(x.Losses) && x.Losses[n].Begin.Before(t) {
		n++
	}
	return n
}

// precedesLoss reports whether a loss came after an op began.
func (x *index) precedesLoss(o *Op) bool {
	return slices.ContainsFunc(x.Losses, func(l Loss) bool { return !o.Begin.After(l.Begin) })
}

// losable reports whether a loss may have taken what an op was told that it did.
func (x *index) losable(o *Op) bool {
	return slices.ContainsFunc(x.Losses, func(l Loss) bool { return !o.Begin.After(l.Begin) && (o.Async || !l.AsyncOnly) })
}

// kept reports whether history has what an op was told. After a loss the same command may have made the same version once
// more, after the answer.
func (x *index) kept(o *Op) bool {
	s := x.step(o.Instance, o.Version)
	return s != nil && s.Kind != timeoutKind && s.Key == o.Key &&
		(len(x.Losses) == 0 || s.At.Before(o.End.Add(time.Millisecond)))
}

// excused is how much of a time was spent in faults.
func (x *index) excused(begin, end time.Time) (sum time.Duration) {
	for _, f := range x.Faults {
		from, to := f.Begin, f.End
		if from.Before(begin) {
			from = begin
		}
		if to.After(end) {
			to = end
		}
		sum += max(0, to.Sub(from))
	}
	return sum
}

// applied: the op was told that it has had its effect.
func (o *Op) applied() bool { return o.Status >= 200 && o.Status < 300 }

// decided: the op was told what the engine keeps for its key.
func (o *Op) decided() bool { return o.applied() || o.Status == 409 }

// unknown: nobody knows whether the op has had its effect.
func (o *Op) unknown() bool { return o.Status == 0 || o.Status >= 500 }

// String says what was asked.
func (o *Op) String() string {
	out := o.Kind
	if o.Event != "" {
		out += " " + o.Event
	}
	if o.Key != "" {
		out += " with key " + o.Key
	}
	return out
}

// answer says what was answered, and when.
func (o *Op) answer() string {
	if o.Status == 0 {
		return "nothing"
	}
	out := fmt.Sprint(o.Status)
	if o.Code != "" {
		out += " " + o.Code
	}
	if o.Version != 0 {
		out += fmt.Sprintf(", version %d", o.Version)
	}
	if o.State != "" {
		out += " in " + o.State
	}
	return out + " at " + clock(o.End)
}

// clock writes a time of a run.
func clock(t time.Time) string { return t.Format("15:04:05.000000") }

// String says what the step was.
func (s *Step) String() string {
	out := fmt.Sprintf("version %d, %s", s.Version, s.Kind)
	if s.Event != "" {
		out += " by " + s.Event
	}
	if s.Key != "" {
		out += " with key " + s.Key
	}
	return out
}
