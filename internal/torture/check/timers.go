package check

import (
	"cmp"
	"time"

	"github.com/google/uuid"
)

// timers checks that states with a timeout are left in time and not before, that a timeout fires only in its own state,
// and that the rows of pawl.timer are those that the instances' states need. A row may be due earlier than the state:
// it then says when to look again.
func timers(x *index, out *reporter) {
	grace := cmp.Or(x.Grace, 90*time.Second)
	// The database rounds times to microseconds.
	const rounding = time.Millisecond
	rows := map[uuid.UUID][]Timer{}
	for _, t := range x.Timers {
		rows[t.Instance] = append(rows[t.Instance], t)
	}

	for _, id := range x.instances {
		steps := x.steps[id]
		for i, s := range steps {
			if i == 0 {
				continue
			}
			before := steps[i-1]
			timeout, timed := x.Model.Timeouts[before.To]
			due := before.At.Add(timeout.After)
			if s.Kind == timeoutKind && (!timed || s.From != before.To || s.Event != timeout.Event) {
				out.add("instance %s: %s fired from %s, but the instance was in %s since version %d", id, s, s.From, before.To, before.Version)
				continue
			}
			if s.Kind == timeoutKind && s.At.Before(due.Add(-rounding)) {
				out.add("instance %s: %s fired at %s, expected at %s or later", id, s, clock(s.At), clock(due))
			}
			if late := s.At.Sub(due) - x.excused(due, s.At); timed && late > grace {
				out.add("instance %s: it was in %s until %s came at %s, %s after its deadline at %s besides faults, expected at most %s",
					id, before.To, s, clock(s.At), late.Round(time.Millisecond), clock(due), grace)
			}
		}

		last, armed := steps[len(steps)-1], rows[id]
		timeout, timed := x.Model.Timeouts[last.To]
		due := last.At.Add(timeout.After)
		switch {
		case len(armed) > 1:
			out.add("instance %s: it has %d timers, expected one at most", id, len(armed))
		case !timed && len(armed) > 0:
			out.add("instance %s: a timer is armed for %s, but there is no timeout in %s", id, clock(armed[0].DueAt), last.To)
		case timed && len(armed) == 0:
			out.add("instance %s: no timer is armed, expected one for %s, since it is in %s since version %d",
				id, clock(due), last.To, last.Version)
		case timed && due.After(x.End) && armed[0].DueAt.After(due.Add(rounding)):
			out.add("instance %s: the timer is armed for %s, expected %s or earlier, since it is in %s since version %d",
				id, clock(armed[0].DueAt), clock(due), last.To, last.Version)
		case timed && armed[0].ArmedVersion > last.Version:
			out.add("instance %s: the timer was armed at version %d, but the last one is %d", id, armed[0].ArmedVersion, last.Version)
		case timed && x.End.Sub(due)-x.excused(due, x.End) > grace:
			out.add("instance %s: it rests in %s since version %d, %s after its deadline at %s, expected at most %s besides faults",
				id, last.To, last.Version, x.End.Sub(due).Round(time.Millisecond), clock(due), grace)
		}
	}
	for _, t := range x.Timers {
		if x.steps[t.Instance] == nil {
			out.add("instance %s: a timer is armed for %s, but history has no step of it", t.Instance, clock(t.DueAt))
		}
	}
}
