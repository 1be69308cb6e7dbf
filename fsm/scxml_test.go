package fsm_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/fsmtest"
	"github.com/pawl-fsm/pawl/fsm/lifecycle"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// A chart is a random statechart; carrying it out here, on the tree, follows SCXML's
// algorithm (www.w3.org/TR/scxml/#AlgorithmforSCXMLInterpretation) word by word, which the
// engine's flattened tables must come to the same as. Each block of executable content
// writes its own two digits to the end of n, so that the order shows.
type chart struct {
	states  []*chartState // In document order.
	initial *chartState
}

type chartState struct {
	name        string
	parent      *chartState
	children    []*chartState
	initial     *chartState
	final       bool
	entry, exit int // Two digits, or 0 for none.
	on          map[string][]chartTransition
	always      []chartTransition
}

type chartTransition struct {
	target *chartState
	below  int // Guard: x is less. 0 for no guard.
	digits int // Assigned to n, or 0 for none.
	// x becomes the payload's, or one more, or stays.
	x byte
}

func (s *chartState) path() string {
	if s.parent == nil {
		return s.name
	}
	return s.parent.path() + "." + s.name
}

// ancestors lists the states around s, the innermost first.
func (s *chartState) ancestors() (list []*chartState) {
	for p := s.parent; p != nil; p = p.parent {
		list = append(list, p)
	}
	return list
}

func charts() *rapid.Generator[*chart] {
	return rapid.Custom(func(t *rapid.T) *chart {
		c := &chart{}
		digits := 9
		draw := func() int {
			digits++
			if rapid.IntRange(0, 3).Draw(t, "silent") == 0 {
				return 0
			}
			return digits
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
				s.initial = rapid.SampledFrom(s.children).Draw(t, "initial")
			}
		}
		for range rapid.IntRange(1, 3).Draw(t, "tops") {
			grow(nil, 0)
		}
		c.initial = rapid.SampledFrom(c.states).Draw(t, "root's initial")
		c.states = append(c.states, &chartState{name: "END", final: true, entry: draw()})
		for _, s := range c.states[:len(c.states)-1] {
			candidates := func(most int, always bool) (list []chartTransition) {
				for range rapid.IntRange(0, most).Draw(t, "candidates") {
					tr := chartTransition{
						target: rapid.SampledFrom(c.states).Draw(t, "target"),
						below:  rapid.IntRange(0, 3).Draw(t, "below"), digits: draw() % 100,
						x: rapid.SampledFrom([]byte{'p', '+', 0}).Draw(t, "x"),
					}
					if always {
						tr.x = '+' // So that it ends, some day.
						if rapid.IntRange(0, 9).Draw(t, "guarded") > 0 {
							tr.below = max(tr.below, 1)
						}
					}
					list = append(list, tr)
				}
				return list
			}
			s.on = map[string][]chartTransition{}
			for _, event := range events {
				if list := candidates(2, false); len(list) > 0 {
					s.on[event] = list
				}
			}
			if rapid.IntRange(0, 2).Draw(t, "always") == 0 {
				s.always = candidates(2, true)
			}
		}
		return c
	})
}

// json writes the canonical form.
func (c *chart) json(name string) string {
	var states func(list []*chartState) map[string]any
	transitions := func(list []chartTransition) (out []any) {
		for _, tr := range list {
			m := map[string]any{"target": tr.target.path()}
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
			if len(assign) > 0 {
				m["assign"] = assign
			}
			out = append(out, m)
		}
		return out
	}
	block := func(digits int) map[string]any {
		return map[string]any{"assign": map[string]any{"n": fmt.Sprintf("$.context.n * 100 + %d", digits)}}
	}
	states = func(list []*chartState) map[string]any {
		out := map[string]any{}
		for _, s := range list {
			m := map[string]any{}
			if s.final {
				m["type"], m["outcome"] = "final", "completed"
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
			if s.initial != nil {
				m["initial"], m["states"] = s.initial.name, states(s.children)
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
	text, _ := json.Marshal(map[string]any{"name": name, "initial": c.initial.path(), "states": states(tops)})
	return string(text)
}

// chartRun is an instance of a chart.
type chartRun struct {
	leaf *chartState
	x    int
	n    string
}

func (r *chartRun) write(digits int) {
	if digits > 0 {
		r.n += fmt.Sprint(digits)
	}
}

// enter enters a target's ancestors below the domain, the target, and what its initials lead
// to.
func (r *chartRun) enter(domain, target *chartState) {
	var list []*chartState
	for s := target; s != domain; s = s.parent {
		list = append(list, s)
	}
	slices.Reverse(list)
	for s := target.initial; s != nil; s = s.initial {
		list = append(list, s)
	}
	for _, s := range list {
		r.write(s.entry)
	}
	r.leaf = list[len(list)-1]
}

// select is selectTransitions and selectEventlessTransitions.
func (r *chartRun) selectTransition(of func(*chartState) []chartTransition) (*chartState, *chartTransition) {
	for _, s := range append([]*chartState{r.leaf}, r.leaf.ancestors()...) {
		for _, tr := range of(s) {
			if tr.below == 0 || r.x < tr.below {
				return s, &tr
			}
		}
	}
	return nil, nil
}

// microstep takes a transition that a state declares.
func (r *chartRun) microstep(source *chartState, tr *chartTransition, payload int) {
	// findLCCA: the first proper ancestor of the source of which the target is a descendant.
	var domain *chartState
	for _, a := range source.ancestors() {
		if slices.Contains(tr.target.ancestors(), a) {
			domain = a
			break
		}
	}
	for s := r.leaf; s != domain; s = s.parent {
		r.write(s.exit)
	}
	r.write(tr.digits)
	switch tr.x {
	case 'p':
		r.x = payload
	case '+':
		r.x++
	}
	r.enter(domain, tr.target)
}

// macrostep takes eventless transitions until there are none, and says whether there ever
// were none; after each, step is told.
func (r *chartRun) macrostep(step func()) bool {
	for range 101 {
		source, tr := r.selectTransition(func(s *chartState) []chartTransition { return s.always })
		if tr == nil {
			return true
		}
		r.microstep(source, tr, 0)
		step()
	}
	return false
}

type chartStep struct {
	Event, From, To, N string
}

func TestNestedStatesFollowSCXML(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{})
	const machines = 25
	loops, eventless, inherited := 0, 0, 0
	for n := range machines {
		c := charts().Example(n)
		name := fmt.Sprint("chart-", n)
		bounded.Exec(t, pool, "select pawl.register_workflow($1)", c.json(name))

		begin := chartRun{n: "1"}
		begin.enter(nil, c.initial)
		steps := []chartStep{{"", "", begin.leaf.path(), begin.n}}
		record := func(r *chartRun, event string, steps *[]chartStep) func() {
			from := r.leaf
			return func() {
				*steps = append(*steps, chartStep{event, from.path(), r.leaf.path(), r.n})
				from, event = r.leaf, ""
			}
		}
		rests := begin.macrostep(record(&begin, "", &steps))
		for round := range 4 {
			result, err := s.Create(t.Context(), fsm.CreateCommand{Workflow: name, Context: json.RawMessage(`{"n":1,"x":0}`)})
			if !rests {
				loops++
				fsmtest.Refused(t, err, fsm.GuardError)
				break
			}
			if err != nil {
				t.Fatalf("%v\n%s", err, c.json(name))
			}
			run, want := begin, slices.Clone(steps)
			for k := range 12 {
				event := events[(k*7+round*3+n)%len(events)]
				payload := (k + round) % 4
				if run.leaf.final {
					break
				}
				next, more := run, slices.Clone(want)
				source, tr := run.selectTransition(func(s *chartState) []chartTransition { return s.on[event] })
				rests := true
				if tr != nil {
					if source != run.leaf {
						inherited++
					}
					step := record(&next, event, &more)
					next.microstep(source, tr, payload)
					step()
					rests = next.macrostep(record(&next, "", &more))
					eventless += len(more) - len(want) - 1
				}
				command := fsm.FireCommand{ID: result.Instance.ID, Event: event, Payload: json.RawMessage(fmt.Sprintf(`{"x":%d}`, payload))}
				simulated, err := s.Simulate(t.Context(), lifecycle.Simulation{
					Workflow: name, State: run.leaf.path(), Context: json.RawMessage(fmt.Sprintf(`{"n":%s,"x":%d}`, run.n, run.x)),
					Events: []lifecycle.SimulatedEvent{{Event: event, Payload: command.Payload}},
				})
				if err != nil {
					t.Fatal(err)
				}
				preview, previewErr := s.Preview(t.Context(), command)
				fired, err := s.Fire(t.Context(), command)
				switch {
				case tr == nil:
					if !errors.Is(err, fsm.GuardRejected) && !errors.Is(err, fsm.TransitionNotAllowed) && !errors.Is(err, fsm.UnknownEvent) {
						t.Fatalf("%s in %s: %v", event, run.leaf.path(), err)
					}
				case !rests:
					loops++
					fsmtest.Refused(t, err, fsm.GuardError)
				default:
					if err != nil {
						t.Fatalf("%s in %s: %v\n%s", event, run.leaf.path(), err, c.json(name))
					}
					run, want = next, more
					if fired.Instance.State != run.leaf.path() || fired.Instance.Version != int64(len(want)) {
						t.Fatalf("%s leads to %+v, want %s at %d\n%s", event, fired.Instance, run.leaf.path(), len(want), c.json(name))
					}
				}
				// A dry run and a simulation decide alike.
				if (previewErr == nil) != (err == nil) || err == nil && !cmp.Equal(withoutTimes(preview.Instance), withoutTimes(fired.Instance)) {
					t.Fatalf("a dry run says %+v, %v\nfiring comes to %+v, %v", preview.Instance, previewErr, fired.Instance, err)
				}
				if simulated.State != run.leaf.path() || nOf(t, simulated.Context) != run.n {
					t.Fatalf("a simulation of %s leads to %s %s, want %s %s", event, simulated.State, simulated.Context, run.leaf.path(), run.n)
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
	}
	if loops == 0 || eventless == 0 || inherited == 0 {
		t.Errorf("%d loops, %d eventless and %d inherited transitions: this shows little", loops, eventless, inherited)
	}
}

func nOf(t *testing.T, document json.RawMessage) string {
	t.Helper()
	var context struct{ N json.Number }
	if err := json.Unmarshal(document, &context); err != nil {
		t.Fatal(err)
	}
	return context.N.String()
}
