package check

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
)

// A plant falsifies a run in one way, and reports whether the run has what that takes.
type plant struct {
	// check is the one that must find it.
	check string
	// also are checks that find it too, since the fault breaks what they check.
	also  []string
	plant func(*field) bool
}

var plants = map[string]plant{
	// What clients were told.
	"stale-read":     {check: "linearizable", plant: plantStaleRead},
	"lost-update":    {check: "linearizable", also: []string{"keys", "acknowledged"}, plant: plantLostUpdate},
	"lost-step":      {check: "acknowledged", plant: func(f *field) bool { return f.plantLostStep(false) }},
	"unasked-step":   {check: "acknowledged", plant: plantUnaskedStep},
	"wrong-answer":   {check: "acknowledged", also: []string{"linearizable", "keys"}, plant: plantWrongAnswer},
	"better-retry":   {check: "keys", plant: func(f *field) bool { return f.plantLostStep(true) }},
	"changed-retry":  {check: "keys", plant: plantChangedRetry},
	"forgotten-key":  {check: "keys", plant: plantForgottenKey},
	"doubled-effect": {check: "keys", plant: plantDoubledEffect},
	// What history says.
	"gap":           {check: "versions", also: []string{"linearizable"}, plant: plantGap},
	"backward-time": {check: "versions", plant: plantBackwardTime},
	"wrong-context": {check: "replay", plant: plantWrongContext},
	"wrong-state":   {check: "replay", plant: plantWrongState},
	// What timers did.
	"late-timer":      {check: "timers", plant: plantLateTimer},
	"early-timer":     {check: "timers", plant: plantEarlyTimer},
	"stale-timer":     {check: "timers", plant: plantStaleTimer},
	"forgotten-timer": {check: "timers", plant: plantForgottenTimer},
	"leftover-timer":  {check: "timers", plant: plantLeftoverTimer},
	"second-timer":    {check: "timers", plant: plantSecondTimer},
	// What receivers got.
	"skipped-step":       {check: "delivered", plant: plantSkippedStep},
	"swapped-order":      {check: "delivered", plant: plantSwappedOrder},
	"phantom":            {check: "delivered", plant: plantPhantom},
	"changed-content":    {check: "delivered", plant: plantChangedContent},
	"changed-instance":   {check: "delivered", plant: plantChangedInstance},
	"shared-id":          {check: "delivered", plant: plantSharedID},
	"wrong-epoch":        {check: "delivered", plant: plantWrongEpoch},
	"wrong-event-epoch":  {check: "delivered", plant: plantWrongEventEpoch},
	"wrong-position":     {check: "delivered", plant: plantWrongPosition},
	"changed-webhook-id": {check: "delivered", plant: plantChangedWebhookID},
	"shared-webhook-id":  {check: "delivered", plant: plantSharedWebhookID},
	// What became of tasks.
	"open-task":      {check: "tasks", plant: plantTask(func(t *Task) bool { t.EndedAt = time.Time{}; return true })},
	"overdue-task":   {check: "tasks", plant: plantTask(func(t *Task) bool { t.EndedAt = t.DeadlineAt.Add(24 * time.Hour); return true })},
	"other-outcome":  {check: "tasks", plant: plantTask(func(t *Task) bool { t.Status = "cancelled"; return true })},
	"lost-outcome":   {check: "tasks", plant: plantLostOutcome},
	"second-outcome": {check: "tasks", plant: plantSecondOutcome},
	"second-charge":  {check: "tasks", plant: func(f *field) bool { return f.plantEffect("-planted") }},
	"doubled-charge": {check: "tasks", plant: func(f *field) bool { return f.plantEffect("") }},
	"no-charge":      {check: "tasks", plant: plantNoCharge},
	"stale-complete": {check: "tasks", plant: plantStaleComplete},
	"lost-order": {check: "tasks", plant: func(f *field) bool {
		f.Orders.Created = append(f.Orders.Created, uuid.UUID{1})
		return len(f.Orders.Tasks) > 0
	}},
	// What was undone.
	"unordered-undoing": {check: "sagas", plant: plantUnorderedUndoing},
	"hasty-undoing":     {check: "sagas", plant: plantHastyUndoing},
	"second-undoing":    {check: "sagas", plant: plantSecondUndoing},
	"lost-undoing":      {check: "sagas", plant: plantLostUndoing},
	"not-undone":        {check: "sagas", plant: plantUndone(func(_ *field, c *Compensation) { c.Status = "registered" })},
	"undone-by-nobody":  {check: "sagas", plant: plantUndone(func(_ *field, c *Compensation) { c.UndoneBy = uuid.UUID{1} })},
	"false-undoing":     {check: "sagas", plant: plantUndone((*field).forgetUndoing)},
	"undead-booking":    {check: "sagas", plant: plantUndone((*field).bookAgain)},
	"false-void":        {check: "sagas", plant: plantUndone(func(_ *field, c *Compensation) { c.Status = "void" })},
	"parked-mutely":     {check: "sagas", plant: plantParked(func(c *Compensation) { c.Reason = "" })},
	"parked-undone":     {check: "sagas", plant: plantParked(func(c *Compensation) { c.Status = "skipped" })},
	"undoing-for-good":  {check: "sagas", plant: plantLast("CANCELLED", func(s *Step) { s.To = "UNDOING" })},
	"undone-trip":       {check: "sagas", plant: plantLast("CANCELLED", func(s *Step) { s.To = "BOOKED" })},
	"lost-registration": {check: "sagas", plant: plantLostRegistration},
	// What a loss took. A run without a loss has nothing to falsify here.
	"lost-middle":   {check: "acknowledged", plant: plantLostMiddle},
	"untold-loss":   {check: "delivered", plant: plantUntoldLoss},
	"false-loss":    {check: "delivered", plant: plantFalseLoss},
	"undead-effect": {check: "linearizable", plant: plantUndeadEffect},
	// How it healed.
	"never-healed": {check: "healed", plant: func(f *field) bool {
		f.Healings = append(f.Healings, Healing{What: "planted", Never: true})
		return true
	}},
	"late-healing": {check: "healed", plant: func(f *field) bool {
		f.Healings = append(f.Healings, Healing{What: "planted", After: time.Hour})
		return true
	}},
	"untold-healing": {check: "healed", plant: func(f *field) bool {
		had := len(f.Faults) > 0 && len(f.Healings) > 0
		f.Healings = nil
		return had
	}},
}

// Plants are the names that Plant knows, in order, each with the check that finds it.
func Plants() (names []string, checks map[string]string) {
	checks = map[string]string{}
	for name, p := range plants {
		checks[name] = p.check
	}
	return slices.Sorted(maps.Keys(plants)), checks
}

// Plant falsifies a run that has no fault, so that All finds one. It reports whether the name is known and the run has
// what the fault takes, such as a timer that fired.
func Plant(name string, r *Run) bool {
	p, known := plants[name]
	if !known {
		return false
	}
	f := &field{newIndex(r), map[stepID][]*Received{}}
	for i := range r.Received {
		m := &r.Received[i]
		s := f.step(m.Instance, m.Version)
		if m.Lost || s == nil {
			continue
		}
		if content, _ := contentIn(m.Data); content == contentOf(*s) {
			id := stepID{m.Instance, m.Version}
			f.messages[id] = append(f.messages[id], m)
		}
	}
	return p.plant(f)
}

// A field is where faults are planted. Its look-ups are those of before.
type field struct {
	*index
	// messages are those of a step that history has.
	messages map[stepID][]*Received
}

// choose returns the first step that will do, of those in the middle of the run and then of the others. What is planted
// there is in the way of later steps.
func (f *field) choose(will func(*Step) bool) *Step {
	for i := range f.Steps {
		if s := &f.Steps[(i+len(f.Steps)/2)%len(f.Steps)]; will(s) {
			return s
		}
	}
	return nil
}

// timed: a timer is armed in the state.
func (f *field) timed(state string) bool {
	_, timed := f.Model.Timeouts[state]
	return timed
}

func (f *field) last(s *Step) bool {
	steps := f.steps[s.Instance]
	return steps[len(steps)-1] == s
}

// latest: the step was made after all losses.
func (f *field) latest(s *Step) bool { return f.era(s.At) == len(f.Losses) }

// told: a client was answered this version of the instance.
func (f *field) told(s *Step, by func(*Op) bool) bool {
	return slices.ContainsFunc(f.Ops, func(o Op) bool { return o.Instance == s.Instance && o.Version == s.Version && by(&o) })
}

// asked returns the first attempt to make the step.
func (f *field) asked(s *Step) *Op {
	if attempts := f.attempts[s.Key]; len(attempts) > 0 && s.Kind != timeoutKind {
		return attempts[0]
	}
	return nil
}

// firstApplied returns the first attempt that was told of its effect.
func (f *field) firstApplied(s *Step) *Op {
	if s.Kind == timeoutKind {
		return nil
	}
	for _, o := range f.attempts[s.Key] {
		if o.applied() && f.kept(o) {
			return o
		}
	}
	return nil
}

// got returns the messages of a step at a receiver, or at all if there is no name.
func (f *field) got(name string, s *Step) (found []*Received) {
	for _, m := range f.messages[stepID{s.Instance, s.Version}] {
		if name == "" || m.Receiver == name {
			found = append(found, m)
		}
	}
	return found
}

// rewrite changes a step in history and in all messages.
func (f *field) rewrite(s *Step, change func(*Step)) {
	messages := f.got("", s)
	change(s)
	for _, m := range messages {
		m.Version = s.Version
		m.Data = s.write(m.Data)
		if isCloudEventID(m.ID) {
			m.ID = cloudEventID(m)
			if m.WebhookID != "" {
				m.WebhookID = "planted " + m.ID
			}
		}
	}
}

// write returns the data of a message with what the step says.
func (s *Step) write(data json.RawMessage) json.RawMessage {
	members := map[string]any{}
	if json.Unmarshal(data, &members) != nil {
		return data
	}
	members["version"], members["kind"], members["event"], members["key"] = s.Version, s.Kind, s.Event, s.Key
	members["from"], members["to"], members["status"] = s.From, s.To, s.Status
	members["context"], members["payload"], members["at"] = s.Context, s.Payload, s.At
	if _, there := members["instance"]; there {
		members["instance"] = map[string]any{
			"id": s.Instance, "version": s.Version, "state": s.To, "status": s.Status, "context": s.Context,
		}
	}
	out, err := json.Marshal(members)
	if err != nil {
		return data
	}
	return out
}

// remove takes a step out of history, the keys and all messages.
func (f *field) remove(s *Step) {
	gone := *s
	f.Received = slices.DeleteFunc(f.Received, func(m Received) bool {
		return !m.Lost && m.Instance == gone.Instance && m.Version == gone.Version
	})
	if gone.Kind != timeoutKind {
		f.Keys = slices.DeleteFunc(f.Keys, func(k Key) bool { return k.Key == gone.Key })
	}
	f.Steps = slices.DeleteFunc(f.Steps, func(s Step) bool { return s.Instance == gone.Instance && s.Version == gone.Version })
}

// add appends a step behind the last one of an instance, and tells every receiver.
func (f *field) add(last *Step, step Step) {
	model := f.Received
	step.Instance, step.Version, step.At = last.Instance, last.Version+1, last.At.Add(time.Microsecond)
	for i := range f.Steps {
		step.Position = max(step.Position, f.Steps[i].Position)
		step.Epoch = max(step.Epoch, f.Steps[i].Epoch)
	}
	if step.Position > 0 {
		step.Position++
	}
	told := map[string]bool{}
	for i := len(model) - 1; i >= 0; i-- {
		m := model[i]
		if told[m.Receiver] || m.Lost {
			continue
		}
		told[m.Receiver] = true
		m.Instance, m.Version, m.Epoch, m.At = step.Instance, step.Version, step.Epoch, f.End
		m.Data = step.write(m.Data)
		switch _, _, ofStream := Place(m.ID); {
		case isCloudEventID(m.ID):
			m.ID = cloudEventID(&m)
		case ofStream:
			m.ID = fmt.Sprintf("%d.%d", step.Epoch, step.Position)
		default:
			m.ID = "planted " + m.Receiver
		}
		if m.WebhookID != "" {
			m.WebhookID = "planted " + m.ID
		}
		f.Received = append(f.Received, m)
	}
	f.Steps = append(f.Steps, step)
}

func plantStaleRead(f *field) bool {
	for i := range f.Ops {
		get := &f.Ops[i]
		if get.Kind != "get" || !get.applied() || get.Version < 2 {
			continue
		}
		// The version that it saw had been told before it began, so the one before is too old.
		s := f.step(get.Instance, get.Version)
		if s == nil || f.firstApplied(s) == nil || !f.firstApplied(s).End.Before(get.Begin) || f.era(s.At) != f.era(get.Begin) {
			continue
		}
		old := f.step(get.Instance, get.Version-1)
		get.Version, get.State, get.Context = old.Version, old.To, old.Context
		return true
	}
	return false
}

// plantLostUpdate lets two commands be told that they made one version.
func plantLostUpdate(f *field) bool {
	s := f.choose(func(s *Step) bool {
		before := f.step(s.Instance, s.Version-1)
		return before != nil && s.Event != "" && f.firstApplied(s) != nil && len(f.attempts[s.Key]) == 1 &&
			f.firstApplied(before) != nil && before.Event == s.Event && f.latest(before)
	})
	if s == nil {
		return false
	}
	o, before := f.firstApplied(s), f.step(s.Instance, s.Version-1)
	o.Version, o.State, o.Context = before.Version, before.To, before.Context
	return true
}

// plantLostStep removes the last step of an instance, whose first attempt was told of it or, if a retry is to be better,
// was not answered.
func (f *field) plantLostStep(better bool) bool {
	s := f.choose(func(s *Step) bool {
		o := f.firstApplied(s)
		return o != nil && !f.losable(o) && f.last(s) && !f.timed(s.From) && !f.timed(s.To) && s.Version > 1 &&
			(f.asked(s) == o) != better && (!better || f.asked(s).unknown())
	})
	if s == nil {
		return false
	}
	f.remove(s)
	return true
}

func plantUnaskedStep(f *field) bool {
	last := f.choose(func(s *Step) bool { return f.last(s) && f.latest(s) && f.accepts(s, s) })
	if last == nil {
		return false
	}
	step := f.again(last, last)
	step.Key = "planted"
	f.add(last, step)
	f.Keys = append(f.Keys, Key{Key: step.Key, Decision: "applied", Instance: last.Instance, Version: last.Version + 1})
	return true
}

// accepts: an instance could make the step once more behind the last one, and no timer has to do with it.
func (f *field) accepts(last, step *Step) bool {
	next, refusal := f.Model.Fire(Situation{last.To, last.Status, Canonical(last.Context)}, step.Event, step.Payload)
	return step.Kind == "transition" && refusal == "" && !f.timed(last.To) && !f.timed(next.State)
}

// again returns a step like another one behind the last.
func (f *field) again(last, step *Step) Step {
	again := *step
	next, _ := f.Model.Fire(Situation{last.To, last.Status, Canonical(last.Context)}, step.Event, step.Payload)
	again.From, again.To, again.Status, again.Context = last.To, next.State, next.Status, json.RawMessage(next.Context)
	return again
}

func plantWrongAnswer(f *field) bool {
	s := f.choose(func(s *Step) bool { return f.firstApplied(s) != nil })
	if s == nil {
		return false
	}
	f.firstApplied(s).Context = json.RawMessage(`{"planted":true}`)
	return true
}

func plantChangedRetry(f *field) bool {
	for _, key := range f.keys {
		var first *Op
		for _, o := range f.attempts[key] {
			switch {
			case !o.decided() || f.losable(o):
			case first == nil:
				first = o
			case first.End.Before(o.End):
				o.Context = json.RawMessage(`{"planted":true}`)
				return true
			}
		}
	}
	return false
}

func plantForgottenKey(f *field) bool {
	for i, k := range f.Keys {
		if k.Decision == "applied" {
			f.Keys = slices.Delete(f.Keys, i, i+1)
			return true
		}
	}
	return false
}

func plantDoubledEffect(f *field) bool {
	for _, id := range f.instances {
		steps := f.steps[id]
		last := steps[len(steps)-1]
		for _, s := range steps {
			if f.asked(s) != nil && f.latest(last) && f.accepts(last, s) {
				f.add(last, f.again(last, s))
				return true
			}
		}
	}
	return false
}

func plantGap(f *field) bool {
	s := f.choose(func(s *Step) bool { return f.last(s) && s.Version > 1 && s.Kind != timeoutKind && !f.timed(s.To) })
	if s == nil {
		return false
	}
	for i := range f.Ops {
		if o := &f.Ops[i]; o.Instance == s.Instance && o.Version == s.Version {
			o.Version++
		}
	}
	for i := range f.Keys {
		if k := &f.Keys[i]; k.Instance == s.Instance && k.Version == s.Version {
			k.Version++
		}
	}
	f.rewrite(s, func(s *Step) { s.Version++ })
	return true
}

func plantBackwardTime(f *field) bool {
	s := f.choose(func(s *Step) bool {
		before := f.step(s.Instance, s.Version-1)
		return before != nil && !f.timed(before.To) && !f.timed(s.To) && f.era(s.At) == f.era(before.At.Add(-time.Second))
	})
	if s == nil {
		return false
	}
	before := f.step(s.Instance, s.Version-1)
	f.rewrite(s, func(s *Step) { s.At = before.At.Add(-time.Second) })
	return true
}

func plantWrongContext(f *field) bool {
	s := f.choose(func(s *Step) bool { return s.Version > 1 && !f.told(s, func(o *Op) bool { return present(o.Context) }) })
	if s == nil {
		return false
	}
	f.rewrite(s, func(s *Step) { s.Context = json.RawMessage(`{"planted":true}`) })
	return true
}

func plantWrongState(f *field) bool {
	s := f.choose(func(s *Step) bool {
		return s.Version > 1 && !f.timed(s.To) && !f.told(s, func(o *Op) bool { return o.State != "" })
	})
	if s == nil {
		return false
	}
	f.rewrite(s, func(s *Step) { s.To = "PLANTED" })
	return true
}

// fired: a timer made the step.
func fired(s *Step) bool { return s.Kind == timeoutKind }

func plantLateTimer(f *field) bool {
	s := f.choose(func(s *Step) bool {
		steps := f.steps[s.Instance]
		return fired(s) && !f.timed(steps[len(steps)-1].To) && len(f.Losses) == 0
	})
	if s == nil {
		return false
	}
	for _, later := range f.steps[s.Instance] {
		if later.Version >= s.Version {
			f.rewrite(later, func(s *Step) { s.At = s.At.Add(24 * time.Hour) })
		}
	}
	return true
}

func plantEarlyTimer(f *field) bool {
	s := f.choose(func(s *Step) bool {
		return fired(s) && !f.timed(s.To) && f.era(s.At) == f.era(f.step(s.Instance, s.Version-1).At)
	})
	if s == nil {
		return false
	}
	before := f.step(s.Instance, s.Version-1)
	f.rewrite(s, func(s *Step) { s.At = before.At.Add(f.Model.Timeouts[s.From].After / 2) })
	return true
}

func plantStaleTimer(f *field) bool {
	last := f.choose(func(s *Step) bool { return f.last(s) && f.latest(s) && !f.timed(s.To) && s.Status == "active" })
	for state, timeout := range f.Model.Timeouts {
		if last == nil {
			break
		}
		next, _ := f.Model.Fire(Situation{state, last.Status, Canonical(last.Context)}, timeout.Event, nil)
		f.add(last, Step{
			Kind: timeoutKind, Event: timeout.Event, From: state, To: next.State, Status: next.Status, Key: "timer:planted",
			Context: json.RawMessage(next.Context),
		})
		return true
	}
	return false
}

func plantForgottenTimer(f *field) bool {
	if len(f.Timers) > 0 {
		f.Timers = f.Timers[1:]
		return true
	}
	// Nobody waits at the end: an instance whose timer fired last has never left its state.
	s := f.choose(func(s *Step) bool { return f.last(s) && fired(s) && !f.told(s, func(*Op) bool { return true }) })
	if s == nil {
		return false
	}
	f.remove(s)
	return true
}

func plantLeftoverTimer(f *field) bool {
	s := f.choose(func(s *Step) bool { return f.last(s) && !f.timed(s.To) })
	if s == nil {
		return false
	}
	f.Timers = append(f.Timers, Timer{Instance: s.Instance, DueAt: f.End, ArmedVersion: s.Version})
	return true
}

func plantSecondTimer(f *field) bool {
	if len(f.Timers) == 0 {
		return false
	}
	f.Timers = append(f.Timers, f.Timers[0])
	return true
}

// at chooses a step that a receiver had to get, and returns its first message there, too.
func (f *field) at(will func(*Step, *Received) bool) (*Step, *Received) {
	for _, r := range f.Receivers {
		s := f.choose(func(s *Step) bool {
			got := f.got(r.Name, s)
			return len(got) > 0 && !s.At.Before(r.Since) && will(s, got[0])
		})
		if s != nil {
			return s, f.got(r.Name, s)[0]
		}
	}
	return nil, nil
}

func plantSkippedStep(f *field) bool {
	s, m := f.at(func(*Step, *Received) bool { return true })
	if s == nil {
		return false
	}
	name, instance, version := m.Receiver, s.Instance, s.Version
	f.Received = slices.DeleteFunc(f.Received, func(m Received) bool {
		return m.Receiver == name && m.Instance == instance && m.Version == version
	})
	return true
}

func plantSwappedOrder(f *field) bool {
	s, m := f.at(func(s *Step, m *Received) bool {
		return f.step(s.Instance, s.Version+1) != nil && f.latest(s)
	})
	if s == nil {
		return false
	}
	first, second := f.got(m.Receiver, s), f.got(m.Receiver, f.step(s.Instance, s.Version+1))
	*first[0], *second[0] = *second[0], *first[0]
	return true
}

func plantPhantom(f *field) bool {
	s, m := f.at(func(s *Step, m *Received) bool { return f.last(s) && f.latest(s) })
	if s == nil {
		return false
	}
	phantom, step := *m, *s
	step.Version++
	phantom.Version, phantom.Data = step.Version, step.write(m.Data)
	if len(f.Epochs) > 0 {
		phantom.Epoch = f.Epochs[len(f.Epochs)-1].Epoch
	}
	phantom.ID, phantom.WebhookID = "planted", ""
	f.Received = append(f.Received, phantom)
	return true
}

func plantChangedContent(f *field) bool {
	s, m := f.at(func(s *Step, _ *Received) bool { return f.latest(s) })
	if s == nil {
		return false
	}
	changed := *s
	changed.Context = json.RawMessage(`{"planted":true}`)
	again := *m
	again.Data = changed.write(m.Data)
	f.Received = append(f.Received, again)
	return true
}

// plantChangedInstance lets a repeat say something else of the instance than the message did before.
func plantChangedInstance(f *field) bool {
	s, m := f.at(func(_ *Step, m *Received) bool { return isCloudEventID(m.ID) })
	if s == nil {
		return false
	}
	again := *m
	data := map[string]any{}
	if json.Unmarshal(m.Data, &data) != nil {
		return false
	}
	data["instance"] = map[string]any{"planted": true}
	changed, err := json.Marshal(data)
	if err != nil {
		return false
	}
	again.Data = changed
	f.Received = append(f.Received, again)
	return true
}

func plantSharedID(f *field) bool {
	s, m := f.at(func(s *Step, _ *Received) bool { return f.latest(s) })
	if s == nil {
		return false
	}
	other := f.choose(func(o *Step) bool { return o != s && f.latest(o) && len(f.got(m.Receiver, o)) > 0 })
	if other == nil {
		return false
	}
	again := *f.got(m.Receiver, other)[0]
	again.ID, again.WebhookID = m.ID, ""
	f.Received = append(f.Received, again)
	return true
}

// plantWrongEpoch lets a message say that it is of an epoch that is still to come.
func plantWrongEpoch(f *field) bool {
	s, m := f.at(func(s *Step, m *Received) bool {
		_, _, ofStream := Place(m.ID)
		return ofStream && s.Position > 0
	})
	if s == nil {
		return false
	}
	again := *m
	again.Epoch += 10
	again.ID = fmt.Sprintf("%d.%d", again.Epoch, s.Position)
	f.Received = append(f.Received, again)
	return true
}

// plantWrongEventEpoch lets a CloudEvent say that its step got its position in a later epoch.
func plantWrongEventEpoch(f *field) bool {
	s, m := f.at(func(s *Step, m *Received) bool { return s.Position > 0 && m.Epoch > 0 && isCloudEventID(m.ID) })
	if s == nil {
		return false
	}
	again := *m
	again.Epoch++
	again.ID, again.WebhookID = cloudEventID(&again), ""
	f.Received = append(f.Received, again)
	return true
}

func plantWrongPosition(f *field) bool {
	s, m := f.at(func(s *Step, m *Received) bool {
		_, _, ofStream := Place(m.ID)
		return ofStream && s.Position > 0 && f.latest(s)
	})
	if s == nil {
		return false
	}
	again := *m
	again.ID = fmt.Sprintf("%d.%d", m.Epoch, s.Position+1_000_000)
	f.Received = append(f.Received, again)
	return true
}

func plantChangedWebhookID(f *field) bool {
	s, m := f.at(func(_ *Step, m *Received) bool { return m.WebhookID != "" })
	if s == nil {
		return false
	}
	again := *m
	again.WebhookID = "planted"
	f.Received = append(f.Received, again)
	return true
}

func plantSharedWebhookID(f *field) bool {
	s, m := f.at(func(_ *Step, m *Received) bool { return m.WebhookID != "" })
	if s == nil {
		return false
	}
	for i := range f.Received {
		if other := &f.Received[i]; other.WebhookID != "" && other.ID != m.ID {
			other.WebhookID = m.WebhookID
			return true
		}
	}
	return false
}

// plantLostMiddle lets a loss take a step that was acknowledged before another one that it spares was asked for.
func plantLostMiddle(f *field) bool {
	era := len(f.Losses)
	latest := time.Time{} // When the last step that was spared was asked for.
	var of uuid.UUID
	for i := range f.Steps {
		if s := &f.Steps[i]; f.asked(s) != nil && f.era(s.At) < era && f.asked(s).Begin.After(latest) {
			latest, of = f.asked(s).Begin, s.Instance
		}
	}
	s := f.choose(func(s *Step) bool {
		o := f.firstApplied(s)
		return o != nil && f.last(s) && f.losable(o) && f.era(o.End) < era && o.End.Before(latest) && s.Instance != of &&
			!f.timed(s.From) && !f.timed(s.To) &&
			!f.told(s, func(other *Op) bool { return other.Begin.After(o.End) })
	})
	if s == nil {
		return false
	}
	f.remove(s)
	return true
}

// plantUntoldLoss takes the error event out of a stream that had got steps which the loss took.
func plantUntoldLoss(f *field) bool {
	at := slices.IndexFunc(f.Received, func(m Received) bool { return m.Lost })
	if at < 0 {
		return false
	}
	f.Received = slices.Delete(f.Received, at, at+1)
	return true
}

// plantFalseLoss tells a stream a last common id of before what it then goes on with.
func plantFalseLoss(f *field) bool {
	for i := range f.Received {
		m := &f.Received[i]
		epoch, position, _ := Place(m.LastCommon)
		if m.Lost && position > 1 {
			m.LastCommon = fmt.Sprintf("%d.%d", epoch, position-1)
			return true
		}
	}
	return false
}

// plantUndeadEffect lets somebody read a step after the loss that has taken it.
func plantUndeadEffect(f *field) bool {
	for i := range f.Ops {
		o := f.Ops[i]
		s := f.step(o.Instance, o.Version)
		if !o.applied() || o.Kind == "get" || s != nil || !f.losable(&o) {
			continue
		}
		f.Ops = append(f.Ops, Op{
			Kind: "get", Instance: o.Instance, Begin: f.End.Add(-time.Millisecond), End: f.End,
			Status: 200, Version: o.Version, State: o.State, Context: o.Context,
		})
		return true
	}
	return false
}

// plantTask changes a task that has ended.
func plantTask(change func(*Task) bool) func(*field) bool {
	return func(f *field) bool {
		for i := range f.Orders.Tasks {
			if t := &f.Orders.Tasks[i]; !t.EndedAt.IsZero() && !t.Late && t.Status == "done" {
				return change(t)
			}
		}
		return false
	}
}

// plantLostOutcome removes the step of a task's outcome.
func plantLostOutcome(f *field) bool {
	at := slices.IndexFunc(f.Orders.Steps, func(s Step) bool { return s.Kind != "created" })
	if at < 0 {
		return false
	}
	f.Orders.Steps = slices.Delete(f.Orders.Steps, at, at+1)
	return true
}

// plantSecondOutcome lets a task's outcome make its last step once more.
func plantSecondOutcome(f *field) bool {
	at := slices.IndexFunc(f.Orders.Steps, func(s Step) bool { return s.Kind != "created" && s.Status != "active" })
	if at < 0 {
		return false
	}
	again := f.Orders.Steps[at]
	again.Version++
	f.Orders.Steps = append(f.Orders.Steps, again)
	return true
}

// plantEffect lets a task have its last effect once more, under another key if there is a suffix.
func (f *field) plantEffect(suffix string) bool {
	if len(f.Orders.Effects) == 0 {
		return false
	}
	again := f.Orders.Effects[len(f.Orders.Effects)-1]
	again.Key, again.At = again.Key+suffix, again.At.Add(time.Second)
	f.Orders.Effects = append(f.Orders.Effects, again)
	return true
}

// plantNoCharge removes the effects of a task that is done.
func plantNoCharge(f *field) bool {
	at := slices.IndexFunc(f.Orders.Tasks, func(t Task) bool { return t.Name == "charge" && t.Status == "done" })
	if at < 0 {
		return false
	}
	f.Orders.Effects = slices.DeleteFunc(f.Orders.Effects, func(e Effect) bool { return e.Task == f.Orders.Tasks[at].ID })
	return true
}

// plantStaleComplete lets a worker be told that the result of another lease was taken.
func plantStaleComplete(f *field) bool {
	at := slices.IndexFunc(f.Orders.Completes, func(c Complete) bool { return c.Status == 200 })
	if at < 0 {
		return false
	}
	again := f.Orders.Completes[at]
	again.Lease = uuid.UUID{1}
	f.Orders.Completes = append(f.Orders.Completes, again)
	return true
}

// plantUnorderedUndoing exchanges two steps that undid something.
func plantUnorderedUndoing(f *field) bool {
	steps := f.Trips.Steps
	for i := range len(steps) - 1 {
		a, b := &steps[i], &steps[i+1]
		if a.Kind != "compensated" || b.Kind != "compensated" || a.Instance != b.Instance {
			continue
		}
		for j := range f.Trips.Tasks {
			switch t := &f.Trips.Tasks[j]; t.ID.String() {
			case strings.TrimPrefix(a.Key, "task:"):
				t.ResultVersion = b.Version
			case strings.TrimPrefix(b.Key, "task:"):
				t.ResultVersion = a.Version
			}
		}
		a.Key, a.Event, b.Key, b.Event = b.Key, b.Event, a.Key, a.Event
		return true
	}
	return false
}

// plantHastyUndoing lets a task that undoes a step begin before the one before has ended.
func plantHastyUndoing(f *field) bool {
	tasks := f.Trips.Tasks
	for i := range len(tasks) - 1 {
		if a, b := &tasks[i], &tasks[i+1]; a.Compensates > 0 && b.Compensates > 0 && a.Instance == b.Instance {
			b.CreatedAt = a.EndedAt.Add(-time.Microsecond)
			return true
		}
	}
	return false
}

// plantSecondUndoing lets one more task undo a step that is undone.
func plantSecondUndoing(f *field) bool {
	at := slices.IndexFunc(f.Trips.Tasks, func(t Task) bool { return t.Compensates > 0 && t.Work && t.Status == "done" })
	if at < 0 {
		return false
	}
	task := f.Trips.Tasks[at]
	made := slices.IndexFunc(f.Trips.Steps, func(s Step) bool { return s.Key == "task:"+task.ID.String() })
	step := f.Trips.Steps[made]
	task.ID, task.CreatedAt, task.ResultVersion = uuid.UUID{1}, task.EndedAt, step.Version+100
	step.Key, step.Version = "task:"+task.ID.String(), task.ResultVersion
	step.To, step.Status = "CANCELLED", "cancelled" // It is the last one.
	f.Trips.Tasks, f.Trips.Steps = append(f.Trips.Tasks, task), append(f.Trips.Steps, step)
	return true
}

// plantLostUndoing removes the step of a task that undid something.
func plantLostUndoing(f *field) bool {
	at := slices.IndexFunc(f.Trips.Steps, func(s Step) bool { return s.Kind == "compensated" })
	if at < 0 {
		return false
	}
	f.Trips.Steps = slices.Delete(f.Trips.Steps, at, at+1)
	return true
}

// plantUndone changes what was seen of a booking that was undone.
func plantUndone(change func(*field, *Compensation)) func(*field) bool {
	return func(f *field) bool {
		for i := range f.Trips.Compensations {
			if c := &f.Trips.Compensations[i]; c.Status == "undone" && c.Task != uuid.Nil {
				change(f, c)
				return true
			}
		}
		return false
	}
}

// forgetUndoing removes what the provider undid of a booking. The task that did so has another effect.
func (f *field) forgetUndoing(c *Compensation) {
	for i := range f.Trips.Effects {
		if e := &f.Trips.Effects[i]; e.Of == c.Task {
			e.Of = uuid.UUID{1}
		}
	}
}

// bookAgain lets a booking be made after it was undone, by a call that was under way for too long.
func (f *field) bookAgain(c *Compensation) {
	for i := range f.Trips.Effects {
		if e := &f.Trips.Effects[i]; e.Task == c.Task {
			e.At = e.At.Add(time.Hour)
		}
	}
}

// plantParked changes a step that could not be undone.
func plantParked(change func(*Compensation)) func(*field) bool {
	return func(f *field) bool {
		for i := range f.Trips.Compensations {
			if c := &f.Trips.Compensations[i]; c.Status == "failed" {
				change(c)
				return true
			}
		}
		return false
	}
}

// plantLast changes the last step of a trip that ended in a state.
func plantLast(state string, change func(*Step)) func(*field) bool {
	return func(f *field) bool {
		at := slices.IndexFunc(f.Trips.Steps, func(s Step) bool { return s.To == state })
		if at < 0 {
			return false
		}
		change(&f.Trips.Steps[at])
		return true
	}
}

// plantLostRegistration removes a step that could be undone, and was not since its trip ended well.
func plantLostRegistration(f *field) bool {
	at := slices.IndexFunc(f.Trips.Compensations, func(c Compensation) bool { return c.Status == "registered" && c.Task != uuid.Nil })
	if at < 0 {
		return false
	}
	f.Trips.Compensations = slices.Delete(f.Trips.Compensations, at, at+1)
	return true
}
