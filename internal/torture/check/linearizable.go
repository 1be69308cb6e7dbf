package check

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/google/uuid"
)

// linearizable checks that what clients saw of an instance fits an order in which each command had its effect at one
// moment between its first attempt and its answer. History is asked only for what no client saw: whether and where a
// command without an answer had its effect, and which steps timers made.
//
// A loss puts the instance back to the last step that it has spared. A step that the loss has taken comes before it,
// and one that history has comes in the time that history says. Versions that were seen before a loss and that no
// acknowledged step explains are those of commands without an answer, or of timers.
//
// The search is quick because versions leave it little choice. A command is tried only at the version that its answer or
// history says. A command without an answer that history does not have is tried only where a version is to be explained.
// First those versions are explained that history cannot be meant by, which nearly always is enough.
func linearizable(x *index, out *reporter) {
	histories := x.histories()
	ids := slices.SortedFunc(maps.Keys(histories), func(a, b uuid.UUID) int { return bytes.Compare(a[:], b[:]) })
	found := make([]string, len(ids))
	next := make(chan int)
	var group sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		group.Go(func() {
			for i := range next {
				found[i] = x.search(histories[ids[i]])
			}
		})
	}
	for i := range ids {
		next <- i
	}
	close(next)
	group.Wait()
	for i, id := range ids {
		if found[i] != "" {
			out.add("instance %s: %s", id, found[i])
		}
	}
}

// A moment is an instance between two of its steps. Version 0: there is none. The era counts the losses.
type moment struct {
	era     int
	version int64
	Situation
}

// An input is what was asked of an instance, or a loss.
type input struct {
	*Op
	// back is what a loss puts the instance back to, or what it is at the end; nil for commands.
	back *moment
	// step is the one that history has and nobody has asked for; nil for others. What the model says of it is not
	// compared here.
	step *Step
	// era is the only one in which the command can have had its effect; negative: any.
	era int
	// lost: no history has its effect, and it comes before the last loss. in: what it can have made, if its answer does
	// not say.
	lost bool
	in   map[made]bool
}

// A made is a version that was made in an era.
type made struct {
	era     int
	version int64
}

// An output is what was answered, or what history says where nothing was.
type output struct {
	known   bool
	status  int
	version int64  // 0: not known.
	state   string // Empty: not known.
	context string // Empty: not known.
}

func answered(o *Op) output {
	out := output{known: true, status: o.Status, version: o.Version, state: o.State}
	if present(o.Context) {
		out.context = Canonical(o.Context)
	}
	return out
}

// recorded says nothing of the step's state and context, which the check "replay" compares.
func recorded(s *Step) output { return output{known: true, status: 200, version: s.Version} }

// A past is what happened to one instance.
type past struct {
	operations []porcupine.Operation
	// likely and guessed are operations of commands without an answer that losses may have taken: those that explain what
	// history cannot be meant by, and those that explain all that may have been seen of what was lost.
	likely, guessed []porcupine.Operation
	// lost are the acknowledged steps that a loss took, with the eras that they may be of.
	lost []sight
	// seen are the versions that somebody was told of and that a loss may have taken.
	seen []sight
	// open are the commands without an answer that a loss may have taken.
	open []*Op
}

// A sight is a version that somebody was told of, in one of some eras.
type sight struct {
	version     int64
	first, last int
	// known: history has the version, in one of these eras or before, as it was seen.
	known bool
}

// After all else.
const never = 1 << 62

func (x *index) since(t time.Time) int64 { return int64(t.Sub(x.Begin)) }

func (p *past) add(client int, begin, end int64, in *input, out output) {
	p.operations = append(p.operations, porcupine.Operation{ClientId: client, Input: in, Call: begin, Output: out, Return: end})
}

// earliest counts the losses that were over before a time.
func (x *index) earliest(t time.Time) (n int) {
	for n < len(x.Losses) && x.Losses[n].End.Before(t) {
		n++
	}
	return n
}

// sight is what an op was told of, in the eras that it may be of if it began at a time.
func (x *index) sight(o *Op, begin time.Time) sight {
	v := sight{version: o.Version, first: x.earliest(begin), last: x.era(o.End)}
	s := x.step(o.Instance, o.Version)
	v.known = s != nil && x.era(s.At) <= v.last && (o.State == "" || o.State == s.To) && (!present(o.Context) || same(o.Context, s.Context))
	return v
}

// histories are what happened to each instance.
func (x *index) histories() map[uuid.UUID]*past {
	all := map[uuid.UUID]*past{}
	of := func(id uuid.UUID) *past {
		if all[id] == nil {
			all[id] = &past{}
		}
		return all[id]
	}
	placed := map[*Step]bool{}
	for _, key := range x.keys {
		x.place(key, of, placed)
	}
	for i := range x.Ops {
		o := &x.Ops[i]
		if o.Kind == "get" && (o.applied() || o.Status == 404) {
			of(o.Instance).add(o.Client, x.since(o.Begin), x.since(o.End), &input{Op: o, era: -1}, answered(o))
		}
		if o.Version > 0 && len(x.Losses) > 0 && o.Instance != uuid.Nil && x.mayHaveSeenLost(o) {
			of(o.Instance).seen = append(of(o.Instance).seen, x.sight(o, o.Begin))
		}
	}
	for id, p := range all {
		for _, s := range x.steps[id] {
			if placed[s] {
				continue
			}
			// A timer's, or one that nobody asked for, see the check "acknowledged".
			op := &Op{Kind: "fire", Event: s.Event, Payload: s.Payload}
			if s.Kind == "created" {
				op = &Op{Kind: "create", Payload: s.Context}
			}
			p.add(0, 0, never, &input{Op: op, step: s, era: x.era(s.At)}, recorded(s))
		}
		x.lose(id, p)
	}
	return all
}

// place adds what the attempts with a key were told.
func (x *index) place(key string, of func(uuid.UUID) *past, placed map[*Step]bool) {
	var refused, lost, kept *Op // Of the answers of each kind the one that came first.
	var open *Op                // Of the attempts of unknown effect the one that began first.
	first := func(was, o *Op) *Op {
		if was == nil || o.End.Before(was.End) {
			return o
		}
		return was
	}
	var begin time.Time
	for _, o := range x.attempts[key] {
		if begin.IsZero() && (o.unknown() || o.decided()) {
			begin = o.Begin
		}
		switch {
		case o.applied() && x.kept(o):
			kept = first(kept, o)
		case o.applied():
			lost = first(lost, o)
		case o.decided():
			refused = first(refused, o)
		case o.unknown():
			open = cmp.Or(open, o)
		case o.Instance != uuid.Nil && (o.Status == 404 || o.Status == 412):
			of(o.Instance).add(o.Client, x.since(o.Begin), x.since(o.End), &input{Op: o, era: -1}, answered(o))
		}
	}
	add := func(o *Op, in *input, out output) {
		of(o.Instance).add(o.Client, x.since(begin), x.since(o.End), in, out)
	}
	if kept != nil {
		s := x.step(kept.Instance, kept.Version)
		placed[s] = true
		add(kept, &input{Op: kept, era: x.era(s.At)}, answered(kept))
	}
	if lost != nil && (kept == nil || x.losable(lost)) {
		of(lost.Instance).lost = append(of(lost.Instance).lost, x.sight(lost, begin))
		add(lost, &input{Op: lost, era: -1, lost: x.losable(lost)}, answered(lost))
	}
	if refused != nil && refused.Instance != uuid.Nil {
		add(refused, &input{Op: refused, era: -1}, answered(refused))
	}
	if open == nil {
		return
	}
	if effects := x.effects[key]; kept == nil && lost == nil && len(effects) > 0 {
		s := effects[0]
		placed[s] = true
		of(s.Instance).add(open.Client, x.since(open.Begin), never, &input{Op: open, era: x.era(s.At)}, recorded(s))
	}
	// What waits for a standby in vain may be seen by others before it is lost, but nobody has acknowledged it.
	if lost == nil && open.Instance != uuid.Nil && x.precedesLoss(open) {
		p := of(open.Instance)
		p.open = append(p.open, open)
	}
}

// mayHaveSeenLost reports whether the version that an op was told of may be one that a loss has taken.
func (x *index) mayHaveSeenLost(o *Op) bool {
	s := x.step(o.Instance, o.Version)
	for i, l := range x.Losses {
		if !o.Begin.After(l.Begin) && (s == nil || x.era(s.At) > i) && !(o.applied() && o.Kind != "get" && x.kept(o)) {
			return true
		}
	}
	return false
}

// lose adds the losses to an instance's past, if they have taken anything of it that was seen.
func (x *index) lose(id uuid.UUID, p *past) {
	if len(p.seen) == 0 {
		for _, o := range p.operations {
			o.Input.(*input).era = -1
		}
		return
	}
	backs := make([]moment, len(x.Losses)) // By the eras that the losses end.
	for i, l := range x.Losses {
		back := moment{era: i + 1}
		for _, s := range x.steps[id] {
			if x.era(s.At) <= i {
				back.version = s.Version
				back.Situation = situation(s)
			}
		}
		backs[i] = back
		p.add(0, x.since(l.Begin), x.since(l.End), &input{back: &back}, output{})
	}
	// After the end, and not before, the commands that were lost and never seen may have any place. So they do not multiply
	// the orders that are tried.
	last := int64(0)
	for _, o := range p.operations {
		if o.Return != never {
			last = max(last, o.Return)
		}
	}
	end := moment{era: len(x.Losses) + 1}
	if steps := x.steps[id]; len(steps) > 0 {
		end.version = steps[len(steps)-1].Version
	}
	p.add(0, last+1, never, &input{back: &end}, output{})
	p.likely = x.explain(p, x.unexplained(p, backs, func(s sight) bool { return !s.known }), true)
	p.guessed = x.explain(p, x.unexplained(p, backs, func(sight) bool { return true }), false)
}

// unexplained are the versions up to those that were seen in an era, behind those that its loss has spared, but those that
// acknowledged steps made.
func (x *index) unexplained(p *past, backs []moment, counts func(sight) bool) map[made]bool {
	all := map[made]bool{}
	for era, back := range backs {
		// Each command without an answer may have made one version. A timer may have made the next one.
		reach, top, explained := back.version+1, back.version, map[int64]bool{}
		for _, o := range p.open {
			if x.earliest(o.Begin) <= era {
				reach += 2
			}
		}
		for _, l := range p.lost {
			if l.first <= era && era <= l.last {
				reach += 2
			}
			if l.first == era && era == l.last {
				explained[l.version] = true
			}
		}
		for _, s := range p.seen {
			if s.first <= era && era <= s.last && counts(s) {
				top = max(top, s.version)
			}
		}
		for v := back.version + 1; v <= min(top, reach); v++ {
			if !explained[v] {
				all[made{era, v}] = true
			}
		}
	}
	return all
}

// explain returns the operations that may have made versions which nobody has acknowledged. soon: a command has had its effect
// before the second loss after its begin
func (x *index) explain(p *past, in map[made]bool, soon bool) (all []porcupine.Operation) {
	for _, o := range p.open {
		may := map[made]bool{}
		for at := range in {
			if at.era >= x.earliest(o.Begin) && (!soon || at.era <= x.era(o.Begin)+1) {
				may[at] = true
			}
		}
		if len(may) > 0 {
			all = append(all, porcupine.Operation{
				ClientId: o.Client, Input: &input{Op: o, era: -1, lost: true, in: may}, Call: x.since(o.Begin), Output: output{}, Return: never,
			})
		}
	}
	for _, state := range slices.Sorted(maps.Keys(x.Model.Timeouts)) {
		fired := &Op{Kind: "fire", Event: x.Model.Timeouts[state].Event}
		for _, at := range slices.SortedFunc(maps.Keys(in), func(a, b made) int {
			return cmp.Or(cmp.Compare(a.era, b.era), cmp.Compare(a.version, b.version))
		}) {
			// One for each place, or the search would try all orders of those that are the same.
			all = append(all, porcupine.Operation{
				Input: &input{Op: fired, era: -1, lost: true, in: map[made]bool{at: true}}, Call: 0, Output: output{}, Return: never,
			})
		}
	}
	return all
}

// search looks for an order, and says what is wrong if there is none.
func (x *index) search(p *past) string {
	model := porcupine.Model{
		Init: func() any { return moment{} },
		Step: func(state, in, out any) (bool, any) {
			x.tried.Add(1)
			return x.follow(state.(moment), in.(*input), out.(output))
		},
	}
	patience := cmp.Or(x.Patience, 20*time.Second)
	operations := slices.Concat(p.operations, p.guessed)
	if len(p.guessed) > 0 &&
		porcupine.CheckOperationsTimeout(model, slices.Concat(p.operations, p.likely), patience) == porcupine.Ok {
		return ""
	}
	switch porcupine.CheckOperationsTimeout(model, operations, patience) {
	case porcupine.Ok:
		return ""
	case porcupine.Unknown:
		return fmt.Sprintf("unknown: no order of its %d operations was found or ruled out within %s", len(operations), patience)
	}
	// Once more, for the longest order that was found.
	_, info := porcupine.CheckOperationsVerbose(model, operations, patience)
	var longest []int
	for _, partition := range info.PartialLinearizations() {
		for _, order := range partition {
			if len(order) > len(longest) {
				longest = order
			}
		}
	}
	missing := -1
	now := moment{}
	for _, i := range longest {
		_, next := x.follow(now, operations[i].Input.(*input), operations[i].Output.(output))
		now = next.(moment)
	}
	for i, o := range operations {
		if !slices.Contains(longest, i) && (missing < 0 || o.Return < operations[missing].Return) {
			missing = i
		}
	}
	if missing < 0 {
		return "no order explains its operations"
	}
	in := operations[missing].Input.(*input)
	if in.back != nil && in.back.era > len(x.Losses) {
		return fmt.Sprintf("no order explains its end at version %d: the longest one leads to version %d in %s", in.back.version, now.version, now.State)
	}
	if in.back != nil {
		return fmt.Sprintf("no order explains a loss that puts it back from version %d in %s to version %d",
			now.version, now.State, in.back.version)
	}
	return fmt.Sprintf("no order explains that %s was answered %s: the longest one leads before it to version %d in %s with %s",
		in.Op, in.answer(), now.version, now.State, now.Context)
}

// follow reports whether a command can have had its answer at a moment, and what follows.
func (x *index) follow(now moment, in *input, out output) (bool, any) {
	if in.back != nil {
		// What history has of the era came before.
		return now.era+1 == in.back.era && now.version >= in.back.version, *in.back
	}
	if in.lost && now.era >= len(x.Losses) {
		return !out.known && now.era > len(x.Losses), now // It was never seen.
	}
	if in.era >= 0 && now.era != in.era {
		return false, now
	}
	agrees := func(m moment) bool {
		return !out.known || (out.version == 0 || out.version == m.version) && (out.state == "" || out.state == m.State) &&
			(out.context == "" || out.context == m.Context)
	}
	switch {
	case out.status == 404:
		return now.version == 0, now
	case in.Kind == "get":
		return now.version > 0 && agrees(now), now
	case out.status == 412:
		return now.version > 0 && now.version != in.IfMatch && agrees(now), now
	}
	next := moment{era: now.era, version: now.version + 1}
	if in.Kind == "create" {
		next.Situation = x.Model.Create(in.Payload)
		return now.version == 0 && agrees(next), next
	}
	decides := now.version > 0 && (in.IfMatch == 0 || in.IfMatch == now.version)
	if out.status == 409 {
		if !decides || !agrees(now) {
			return false, now
		}
		_, refusal := x.Model.Fire(now.Situation, in.Event, in.Payload)
		return refusal == in.Code, now
	}
	if !decides || out.known && out.version != next.version || !out.known && !in.in[made{now.era, next.version}] {
		return false, now
	}
	var refusal string
	next.Situation, refusal = x.Model.Fire(now.Situation, in.Event, in.Payload)
	if in.step != nil && refusal != "" {
		next.Situation, refusal = situation(in.step), ""
	}
	return refusal == "" && agrees(next), next
}
