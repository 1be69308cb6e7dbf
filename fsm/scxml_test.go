package fsm_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/fsmtest"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// A chart is a random statechart; carrying it out here, on the tree, follows SCXML's
// algorithm (www.w3.org/TR/scxml/#AlgorithmforSCXMLInterpretation) word by word, which the
// engine's flattened tables must come to the same as. Each block of executable content
// writes its own two digits to the end of n, so that the order shows.
//
// A transition with resume leads to a deep history state of its target, whose default is the target itself. The
// engine differs from SCXML by design, and so does the model, in this:
//   - A final state is never remembered: a compound state that was left from one within it begins at its initial again.
//   - The done of a compound state is a transition of its own, which comes before all eventless ones. SCXML's done.state
//     event would come after them, and states around might take it.
//   - A state accepts an event by its exact name if itself or a state around it names it, else by the longest pattern. Guards that
//     refuse do not lead on to another name. SCXML tries all that match, by state and document order.
//   - A pattern payment.* does not match payment.
type chart struct {
	states  []*chartState // In document order.
	initial *chartState
	first   int // Digits that go with initial.
	ttl     map[string]any
}

type chartState struct {
	name        string
	parent      *chartState
	children    []*chartState
	initial     *chartState
	final       bool
	entry, exit int // Two digits, or 0 for none.
	first       int // Digits that go with initial.
	on          map[string][]chartTransition
	always      []chartTransition
	done        []chartTransition
	after       []chartTimer
	every       []chartTimer
}

// A chartTimer has in or at.
type chartTimer struct {
	in, at any
	chartTransition
}

type chartTransition struct {
	target   *chartState // nil: it stays.
	internal bool
	resume   bool
	below    int // Guard: x is less. 0 for no guard.
	digits   int // Assigned to n, or 0 for none.
	// x becomes the payload's, or one more, or stays.
	x byte
	// These go with timers.
	timed, rearm bool   // resume is "timers".
	sets         string // A name that is assigned from the payload, or none.
}

func (s *chartState) path() string {
	if s.parent == nil {
		return s.name
	}
	return s.parent.path() + "." + s.name
}

// lineage lists s and the states around it, the innermost first.
func (s *chartState) lineage() (list []*chartState) {
	for p := s; p != nil; p = p.parent {
		list = append(list, p)
	}
	return list
}

// within says whether s is a descendant of another state.
func (s *chartState) within(other *chartState) bool { return slices.Contains(s.lineage()[1:], other) }

// What the charts name, and what is fired.
var (
	chartNames  = []string{"next", "e.a", "e.a.b", "*", "e.*", "e.a.*"}
	chartEvents = []string{"next", "e.a", "e.a.b", "e.c", "e", "other"}
)

// charts are random statecharts; timed: with timers, which SCXML does not have.
func charts(timed bool) *rapid.Generator[*chart] {
	return rapid.Custom(func(t *rapid.T) *chart {
		c := &chart{}
		// The engine counts the timeouts that were refused, and arming some of them anew upsets the count. So no chart has both.
		rearms := timed && rapid.Bool().Draw(t, "rearms")
		digits := 9
		draw := func() int {
			digits++
			if rapid.IntRange(0, 3).Draw(t, "silent") == 0 {
				return 0
			}
			return 10 + digits%90
		}
		var grow func(parent *chartState, depth int)
		grow = func(parent *chartState, depth int) {
			s := &chartState{name: fmt.Sprintf("S%d", len(c.states)), parent: parent, entry: draw(), exit: draw()}
			c.states = append(c.states, s)
			if parent != nil {
				parent.children = append(parent.children, s)
			}
			if depth < 3 && len(c.states) < 14 && rapid.IntRange(0, 2).Draw(t, "compound") > 0 {
				for range rapid.IntRange(1, 3).Draw(t, "children") {
					grow(s, depth+1)
				}
				if rapid.IntRange(0, 2).Draw(t, "ends") == 0 {
					end := &chartState{name: "F", parent: s, final: true, entry: draw()}
					c.states = append(c.states, end)
					s.children = append(s.children, end)
				}
				s.initial = rapid.SampledFrom(s.children).Draw(t, "initial")
				s.first = draw()
			}
		}
		for range rapid.IntRange(1, 3).Draw(t, "tops") {
			grow(nil, 0)
		}
		c.initial, c.first = rapid.SampledFrom(c.states).Draw(t, "root's initial"), draw()
		c.states = append(c.states, &chartState{name: "END", final: true, entry: draw()})
		for _, s := range c.states {
			if s.final {
				continue
			}
			var resumable []*chartState
			for _, other := range c.states {
				if other.initial != nil && !slices.Contains(s.lineage(), other) {
					resumable = append(resumable, other)
				}
			}
			candidates := func(least, most int, eventless bool) (list []chartTransition) {
				for range rapid.IntRange(least, most).Draw(t, "candidates") {
					tr := chartTransition{
						below: rapid.IntRange(0, 3).Draw(t, "below"), digits: draw(),
						x: rapid.SampledFrom([]byte{'p', '+', 0}).Draw(t, "x"),
					}
					if eventless {
						tr.x = '+' // So that it ends, some day.
						if rapid.IntRange(0, 9).Draw(t, "guarded") > 0 {
							tr.below = max(tr.below, 1)
						}
					}
					if eventless || rapid.IntRange(0, 3).Draw(t, "goes") > 0 {
						tr.resume = len(resumable) > 0 && rapid.IntRange(0, 2).Draw(t, "resume") == 0
						if tr.resume {
							tr.target = rapid.SampledFrom(resumable).Draw(t, "target")
						} else {
							tr.target = rapid.SampledFrom(c.states).Draw(t, "target")
						}
						tr.internal = tr.target.within(s) && rapid.Bool().Draw(t, "internal")
					}
					if timed {
						tr.timed = tr.resume && rapid.Bool().Draw(t, "with timers")
						tr.rearm = rearms && tr.target == nil && rapid.Bool().Draw(t, "rearm")
						tr.sets = rapid.SampledFrom([]string{"", "", "in", "at"}).Draw(t, "sets")
					}
					list = append(list, tr)
				}
				return list
			}
			s.on = map[string][]chartTransition{}
			for _, name := range chartNames {
				if rapid.Bool().Draw(t, name) {
					s.on[name] = candidates(1, 2, false)
				}
			}
			if rapid.IntRange(0, 3).Draw(t, "always") == 0 {
				s.always = candidates(1, 2, true)
			}
			if slices.ContainsFunc(s.children, func(child *chartState) bool { return child.final }) {
				s.done = candidates(1, 2, true)
				s.done[len(s.done)-1].below = 0
			}
			if !timed {
				continue
			}
			if rapid.Bool().Draw(t, "after") {
				for _, tr := range candidates(1, 3, false) {
					timer := chartTimer{chartTransition: tr}
					if rearms {
						timer.below = 0
					}
					if timer.at = rapid.SampledFrom([]any{nil, nil, nil, "$.context.at"}).Draw(t, "at"); timer.at == nil {
						timer.in = rapid.SampledFrom([]any{
							"1m", "90s", "4m", "1mo", "$.context.in", map[string]any{"$first": []any{"$.context.in", "50s"}},
						}).Draw(t, "in")
					}
					s.after = append(s.after, timer)
				}
			}
			if rapid.IntRange(0, 2).Draw(t, "every") == 0 {
				tr := candidates(1, 1, true)[0]
				tr.target, tr.internal, tr.resume, tr.timed = nil, false, false, false
				if rearms {
					tr.below = 0
				}
				in := rapid.SampledFrom([]any{"70s", "3m", "1mo", map[string]any{"$path": "40 + $.context.x"}}).Draw(t, "in")
				s.every = []chartTimer{{in: in, chartTransition: tr}}
			}
		}
		if timed && rapid.Bool().Draw(t, "ttl") {
			c.ttl = map[string]any{"after": "20m", "target": "END", "sliding": rapid.Bool().Draw(t, "sliding")}
		}
		return c
	})
}

// json writes the canonical form.
func (c *chart) json(name string) string {
	var states func(list []*chartState) map[string]any
	transition := func(tr chartTransition) map[string]any {
		m := map[string]any{}
		if tr.target != nil {
			m["target"] = tr.target.path()
		}
		if tr.internal {
			m["internal"] = true
		}
		if tr.resume {
			m["resume"] = true
		}
		if tr.timed {
			m["resume"] = "timers"
		}
		if tr.rearm {
			m["rearm"] = true
		}
		if tr.below > 0 {
			m["guard"] = fmt.Sprintf("$.context.x < %d", tr.below)
		}
		assign := map[string]any{}
		if tr.digits > 0 {
			assign["n"] = fmt.Sprintf("$.context.n * 100 + %d", tr.digits)
		}
		switch tr.x {
		case 'p':
			assign["x"] = "$.payload.x"
		case '+':
			assign["x"] = "$.context.x + 1"
		}
		if tr.sets != "" {
			assign[tr.sets] = "$.payload." + tr.sets
		}
		if len(assign) > 0 {
			m["assign"] = assign
		}
		return m
	}
	transitions := func(list []chartTransition) (out []any) {
		for _, tr := range list {
			out = append(out, transition(tr))
		}
		return out
	}
	timers := func(list []chartTimer) (out []any) {
		for _, timer := range list {
			m := transition(timer.chartTransition)
			if timer.at != nil {
				m["at"] = timer.at
			} else {
				m["in"] = timer.in
			}
			out = append(out, m)
		}
		return out
	}
	initial := func(target string, digits int) any {
		if digits == 0 {
			return target
		}
		return map[string]any{"target": target, "assign": map[string]any{"n": fmt.Sprintf("$.context.n * 100 + %d", digits)}}
	}
	block := func(digits int) map[string]any {
		return map[string]any{"assign": map[string]any{"n": fmt.Sprintf("$.context.n * 100 + %d", digits)}}
	}
	states = func(list []*chartState) map[string]any {
		out := map[string]any{}
		for _, s := range list {
			m := map[string]any{}
			if s.final {
				m["type"] = "final"
			}
			if s.entry > 0 {
				m["entry"] = block(s.entry)
			}
			if s.exit > 0 && !s.final {
				m["exit"] = block(s.exit)
			}
			on := map[string]any{}
			for event, list := range s.on {
				on[event] = transitions(list)
			}
			if len(on) > 0 {
				m["on"] = on
			}
			if len(s.always) > 0 {
				m["always"] = transitions(s.always)
			}
			if len(s.after) > 0 {
				m["after"] = timers(s.after)
			}
			if len(s.every) > 0 {
				m["every"] = timers(s.every)
			}
			if len(s.done) > 0 {
				m["done"] = transitions(s.done)
			}
			if s.initial != nil {
				m["initial"], m["states"] = initial(s.initial.name, s.first), states(s.children)
			}
			out[s.name] = m
		}
		return out
	}
	var tops []*chartState
	for _, s := range c.states {
		if s.parent == nil {
			tops = append(tops, s)
		}
	}
	definition := map[string]any{"name": name, "initial": initial(c.initial.path(), c.first), "states": states(tops)}
	if c.ttl != nil {
		definition["ttl"] = c.ttl
	}
	text, _ := json.Marshal(definition)
	return string(text)
}

// chartRun is an instance of a chart.
type chartRun struct {
	leaf *chartState
	x    int
	n    string
	// left is historyValue: by compound state, the atomic state that it was last left from.
	left map[*chartState]*chartState
}

func (r chartRun) clone() chartRun {
	r.left = maps.Clone(r.left)
	return r
}

func (r *chartRun) write(digits int) {
	if digits > 0 {
		r.n += fmt.Sprint(digits)
	}
}

// enter is enterStates: it enters a target's ancestors below the domain, the target, and, unless that is resumed, what its
// initials lead to.
func (r *chartRun) enter(domain, target *chartState, resumed bool) {
	var list []*chartState
	for s := target; s != domain; s = s.parent {
		list = append(list, s)
	}
	slices.Reverse(list)
	for _, s := range list {
		r.write(s.entry)
	}
	r.leaf = target
	if resumed {
		return
	}
	for s := target; s.initial != nil; s = s.initial {
		r.write(s.first)
		r.write(s.initial.entry)
		r.leaf = s.initial
	}
}

// begin is the creation.
func (c *chart) begin() chartRun {
	r := chartRun{n: "1", left: map[*chartState]*chartState{}}
	r.write(c.first)
	r.enter(nil, c.initial, false)
	return r
}

// accepts says under which name an event is accepted in the present state; "" if it is not.
func (r *chartRun) accepts(event string) (name string) {
	for _, s := range r.leaf.lineage() {
		for declared := range s.on {
			prefix, isPattern := strings.CutSuffix(declared, "*")
			if declared == event {
				return event
			}
			if isPattern && strings.HasPrefix(event, prefix) && len(declared) > len(name) {
				name = declared
			}
		}
	}
	return name
}

// selectTransition is selectTransitions and selectEventlessTransitions.
func (r *chartRun) selectTransition(of func(*chartState) []chartTransition) (*chartState, *chartTransition) {
	for _, s := range r.leaf.lineage() {
		for _, tr := range of(s) {
			if tr.below == 0 || r.x < tr.below {
				return s, &tr
			}
		}
	}
	return nil, nil
}

func (r *chartRun) selectEvent(event string) (*chartState, *chartTransition) {
	name := r.accepts(event)
	return r.selectTransition(func(s *chartState) []chartTransition { return s.on[name] })
}

// microstep takes a transition that a state declares.
func (r *chartRun) microstep(source *chartState, tr *chartTransition, payload int) {
	domain := r.leaf // Of a transition without a target nothing is left.
	switch {
	case tr.internal:
		domain = source
	case tr.target != nil:
		// findLCCA: the first proper ancestor of the source of which the target is a descendant.
		domain = nil
		for _, a := range source.lineage()[1:] {
			if tr.target.within(a) {
				domain = a
				break
			}
		}
	}
	leaf := r.leaf
	for s := leaf; s != domain; s = s.parent {
		if s.initial != nil {
			delete(r.left, s)
			if !leaf.final {
				r.left[s] = leaf
			}
		}
		r.write(s.exit)
	}
	r.write(tr.digits)
	switch tr.x {
	case 'p':
		r.x = payload
	case '+':
		r.x++
	}
	if tr.target == nil {
		return
	}
	if last := r.left[tr.target]; tr.resume && last != nil {
		r.enter(domain, last, true)
	} else {
		r.enter(domain, tr.target, false)
	}
}

// macrostep takes done and eventless transitions until there are none, and says whether there ever
// were none; before each, step is told what it is.
func (r *chartRun) macrostep(step func(event string)) bool {
	for range 101 {
		event, of := "", func(s *chartState) []chartTransition { return s.always }
		if r.leaf.final && r.leaf.parent != nil {
			ended := r.leaf.parent
			event, of = "done", func(s *chartState) []chartTransition {
				if s != ended {
					return nil
				}
				return s.done
			}
		}
		source, tr := r.selectTransition(of)
		if tr == nil {
			return true
		}
		r.microstep(source, tr, 0)
		step(event)
	}
	return false
}

type chartStep struct {
	Event, From, To, N string
}

func TestNestedStatesFollowSCXML(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{})
	machines := 300
	if testing.Short() {
		machines = 60
	}
	seen := map[string]int{}
	for n := range machines {
		c := charts(false).Example(n)
		name := fmt.Sprint("chart-", n)
		bounded.Exec(t, pool, "select pawl.register_workflow($1)", c.json(name))

		run := c.begin()
		want := []chartStep{{"", "", run.leaf.path(), run.n}}
		record := func(r *chartRun, steps *[]chartStep) func(string) {
			from := r.leaf
			return func(event string) {
				*steps = append(*steps, chartStep{event, from.path(), r.leaf.path(), r.n})
				from = r.leaf
			}
		}
		rests := run.macrostep(record(&run, &want))
		result, err := s.Create(t.Context(), fsm.CreateCommand{Workflow: name, Context: json.RawMessage(`{"n":1,"x":0}`)})
		if !rests {
			seen["loop"]++
			fsmtest.Refused(t, err, fsm.GuardError)
			continue
		}
		if err != nil {
			t.Fatalf("%v\n%s", err, c.json(name))
		}
		for k := range 24 {
			event := chartEvents[(k*7+n)%len(chartEvents)]
			payload := (k + n) % 4
			if run.leaf.final {
				break
			}
			next, more := run.clone(), slices.Clone(want)
			source, tr := next.selectEvent(event)
			rests := true
			if tr != nil {
				seen["inherited"] += count(source != run.leaf)
				seen["pattern"] += count(next.accepts(event) != event)
				seen["internal"] += count(tr.internal)
				seen["without target"] += count(tr.target == nil)
				seen["resumed"] += count(tr.resume && run.left[tr.target] != nil)
				seen["resumed by initial"] += count(tr.resume && run.left[tr.target] == nil)
				seen["resumed around"] += count(tr.resume && run.leaf.within(tr.target))
				step := record(&next, &more)
				next.microstep(source, tr, payload)
				step(event)
				rests = next.macrostep(record(&next, &more))
				for _, step := range more[len(want)+1:] {
					seen[map[bool]string{true: "done", false: "always"}[step.Event == "done"]]++
				}
			}
			fired, err := s.Fire(t.Context(), fsm.FireCommand{ID: result.Instance.ID, Event: event, Payload: fmt.Appendf(nil, `{"x":%d}`, payload)})
			switch {
			case tr == nil:
				if !errors.Is(err, fsm.GuardRejected) && !errors.Is(err, fsm.TransitionNotAllowed) && !errors.Is(err, fsm.UnknownEvent) {
					t.Fatalf("%s in %s: %v\n%s", event, run.leaf.path(), err, c.json(name))
				}
			case !rests:
				seen["loop"]++
				fsmtest.Refused(t, err, fsm.GuardError)
			default:
				if err != nil {
					t.Fatalf("%s in %s: %v\n%s", event, run.leaf.path(), err, c.json(name))
				}
				if fired.Instance.State != next.leaf.path() || fired.Instance.Version != int64(len(more)) {
					t.Fatalf("%s in %s leads to %s at %d, want %s at %d\n%s", event, run.leaf.path(),
						fired.Instance.State, fired.Instance.Version, next.leaf.path(), len(more), c.json(name))
				}
				run, want = next, more
			}
		}
		var got []chartStep
		for _, step := range fsmtest.History(t, s, result.Instance.ID) {
			out := chartStep{To: step.To, N: nOf(t, step.Context)}
			if step.Event != nil {
				out.Event = *step.Event
			}
			if step.From != nil {
				out.From = *step.From
			}
			got = append(got, out)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("(-want +got):\n%s\n%s", diff, c.json(name))
		}
	}
	for _, what := range []string{
		"loop", "inherited", "pattern", "internal", "without target", "resumed", "resumed by initial", "resumed around", "done", "always",
	} {
		if seen[what] == 0 {
			t.Errorf("%s: never, so this shows little", what)
		}
	}
}

func count(b bool) int {
	if b {
		return 1
	}
	return 0
}

func nOf(t *testing.T, document json.RawMessage) string {
	t.Helper()
	var context struct{ N json.Number }
	if err := json.Unmarshal(document, &context); err != nil {
		t.Fatal(err)
	}
	return context.N.String()
}
