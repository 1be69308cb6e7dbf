package fsm_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"pgregory.net/rapid"

	"github.com/pawl-fsm/pawl/db"
	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/fsm"
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
	s, pool := newService(t, fsm.Config{})
	const machines = 25
	loops, eventless, inherited := 0, 0, 0
	for n := range machines {
		c := charts().Example(n)
		name := fmt.Sprint("chart-", n)
		exec(t, pool, "select pawl.register_workflow($1)", c.json(name))

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
				refused(t, err, fsm.GuardError)
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
				simulated, err := s.Simulate(t.Context(), fsm.Simulation{
					Workflow: name, State: run.leaf.path(), Context: json.RawMessage(fmt.Sprintf(`{"n":%s,"x":%d}`, run.n, run.x)),
					Events: []fsm.SimulatedEvent{{Event: event, Payload: command.Payload}},
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
					refused(t, err, fsm.GuardError)
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
			for _, step := range history(t, s, result.Instance.ID) {
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

func withoutTimes(i fsm.Instance) fsm.Instance {
	i.CreatedAt, i.StateChangedAt, i.ExpiresAt = time.Time{}, time.Time{}, nil
	return i
}

const shop = `{
	"name": "shop", "initial": "ORDER", "ttl": {"after": "1h", "target": "EXPIRED"},
	"states": {
		"ORDER": {
			"initial": "CART",
			"entry": {"assign": {"total": "$.context.price"}}, "exit": {"assign": {"left": "$.context.total"}},
			"on": {"cancel": "CANCELLED", "restart": "CART"},
			"states": {
				"CART": {"on": {"checkout": "PAYMENT"}, "after": {"10m": "EXPIRED"}},
				"PAYMENT": {
					"initial": "CHECK",
					"states": {
						"CHECK": {"always": [{"guard": "$.context.total == 0", "target": "DONE", "assign": {"free": "true"}}, "DUE"]},
						"DUE": {"on": {"pay": [{"guard": "$.payload.amount == $.context.total", "target": "DONE"}], "cancel": {"guard": "$.payload.sure == true", "target": "CART"}}}
					}
				}
			}
		},
		"DONE": {"type": "final", "entry": {"assign": {"note": "$.context.left"}}},
		"CANCELLED": {"type": "final", "outcome": "cancelled"},
		"EXPIRED": {"type": "final", "outcome": "expired"}
	}
}`

func TestNestedStates(t *testing.T) {
	t.Parallel()
	s, _ := newService(t, fsm.Config{}, shop)
	i := create(t, s, "shop", `{"price":5}`)
	if i.State != "ORDER.CART" || !slices.Equal(i.Actions, []string{"cancel", "checkout", "restart"}) {
		t.Errorf("created: %+v", i)
	}
	sameJSON(t, i.Context, `{"price":5,"total":5}`)

	// One command, two steps, and a replay that tells of both.
	command := fsm.FireCommand{ID: i.ID, Event: "checkout", Key: "k", Origin: fsm.Origin{Actor: "alice", Reason: "because", CorrelationID: "c"}}
	first, err := s.Fire(t.Context(), command)
	if err != nil || first.Instance.State != "ORDER.PAYMENT.DUE" || first.Instance.Version != 3 {
		t.Fatalf("checkout: %+v, %v", first.Instance, err)
	}
	steps := history(t, s, i.ID)
	for n, want := range []fsm.Step{
		{Version: 2, From: new("ORDER.CART"), To: "ORDER.PAYMENT.CHECK", Event: new("checkout"), Payload: json.RawMessage(`{}`)},
		{Version: 3, From: new("ORDER.PAYMENT.CHECK"), To: "ORDER.PAYMENT.DUE"},
	} {
		got := steps[n+1]
		want.Kind, want.WorkflowVersion, want.Status, want.Context, want.At = "transition", 1, fsm.Active, got.Context, steps[1].At
		want.Actor, want.Reason, want.CorrelationID, want.Key = "alice", new("because"), new("c"), new("k")
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("step %d (-want +got):\n%s", n+2, diff)
		}
	}
	// The innermost wins; where its guard refuses, what is around it is tried.
	if i := fire(t, s, i.ID, "cancel", `{"sure":true}`); i.State != "ORDER.CART" {
		t.Errorf("the inner cancel leads to %s", i.State)
	}
	again, err := s.Fire(t.Context(), command)
	if err != nil || !again.Replayed || !cmp.Equal(again.Instance, first.Instance) {
		t.Errorf("replayed: %+v, %v\nfirst: %+v", again, err, first)
	}
	fire(t, s, i.ID, "checkout", `{}`)
	i = fire(t, s, i.ID, "cancel", `{}`)
	if i.State != "CANCELLED" || i.Status != fsm.Cancelled {
		t.Errorf("the outer cancel leads to %+v", i)
	}
	sameJSON(t, i.Context, `{"price":5,"total":5,"left":5}`)

	_, err = s.Fire(t.Context(), fsm.FireCommand{ID: create(t, s, "shop", `{"price":1}`).ID, Event: ":always"})
	refused(t, err, fsm.UnknownEvent)
	free := fire(t, s, create(t, s, "shop", `{"price":0}`).ID, "checkout", `{}`)
	if free.Status != fsm.Completed {
		t.Errorf("for free: %+v", free)
	}
	sameJSON(t, free.Context, `{"price":0,"total":0,"left":0,"free":true,"note":0}`)

	// What is inherited behind a transition without a guard is none.
	register(t, s, `{"name":"w","initial":"A","states":{"END":{"type":"final"},
		"A":{"initial":"X","on":{"go":"END","stop":"END"},"states":{"X":{"on":{"go":"Y","stop":{"guard":"$.payload.a","target":"Y"}}},"Y":{}}}}}`)
	actions, err := s.Actions(t.Context(), fsm.DefaultTenant, create(t, s, "w", `{}`).ID, false)
	if want := []fsm.Action{{Event: "go", Targets: []string{"A.Y"}}, {Event: "stop", Targets: []string{"A.Y", "END"}}}; err != nil || !cmp.Equal(actions, want) {
		t.Errorf("actions %+v, %v", actions, err)
	}

	// A guard that refuses is told as the definition words it, those inherited too.
	due := fire(t, s, create(t, s, "shop", `{"price":1}`).ID, "checkout", `{}`)
	_, err = s.Fire(t.Context(), fsm.FireCommand{ID: due.ID, Event: "pay", Payload: json.RawMessage(`{"amount":2}`)})
	if e := refusal(t, err, fsm.GuardRejected); !slices.Equal(e.Refusal.Guards, []string{"$.payload.amount == $.context.total"}) {
		t.Errorf("guards %q", e.Refusal.Guards)
	}
}

// What the definition says of a state is written out in its canonical form: names become
// paths.
func TestNestedCanonical(t *testing.T) {
	t.Parallel()
	text := canonical(t, shop)
	for _, part := range []string{
		`"restart":[{"target":"ORDER.CART"}]`, `"pay":[{"target":"DONE","guard":`, `"checkout":[{"target":"ORDER.PAYMENT"}]`,
		`"always":[{"target":"DONE"`, `{"target":"ORDER.PAYMENT.DUE"}]`, `"initial":"CHECK"`,
	} {
		if !strings.Contains(text, part) {
			t.Errorf("there is no %s in\n%s", part, text)
		}
	}
	// The nearest counts: within, beside, around.
	d := parse(t, `{"name":"w","initial":"A","states":{"END":{"type":"final"},"X":{"on":{"go":"END"}},
		"A":{"initial":"X","on":{"in":"X","out":"END","d":"D"},"states":{"X":{"on":{"go":"Y"}},"Y":{"initial":"X","on":{"in":"X","self":"Y"},"states":{"X":{"on":{"go":"X"}}}}}},
		"B.C":{"on":{"go":"X"}},"D":{"on":{"go":"B.C"}}}, "ttl":{"after":"1h","target":"END"}, "retention": "30d"}`)
	a := d.States["A"]
	for n, c := range [][2]string{
		{a.On["in"][0].Target, "A.X"},
		{a.On["out"][0].Target, "END"},
		{a.States["X"].On["go"][0].Target, "A.Y"},
		{a.States["Y"].On["in"][0].Target, "A.Y.X"},
		{a.States["Y"].On["self"][0].Target, "A.Y"},
		{a.States["Y"].States["X"].On["go"][0].Target, "A.Y.X"},
		{d.States["B.C"].On["go"][0].Target, "X"},
		{d.States["D"].On["go"][0].Target, "B.C"},
	} {
		if c[0] != c[1] {
			t.Errorf("%d: the target is %s, want %s", n, c[0], c[1])
		}
	}
	if d.Retention != 30*24*time.Hour {
		t.Errorf("retention %v", d.Retention)
	}
}

func TestNestedFaults(t *testing.T) {
	t.Parallel()
	compound := func(members, within string) string {
		return `{"name":"w","initial":"A","states":{"B":{"type":"final"},"A":{"initial":"X","on":{"out":"B"},` + members + `"states":{` + within + `}}}}`
	}
	for text, want := range map[string]map[string]string{
		compound(``, `"X":{}`):                                                   nil,
		compound(``, `"X":{"on":{"go":"Y"}},"Y":{}`):                             nil,
		compound(``, `"X":{"always":{"target":"B","guard":"$.context.x == 1"}}`): nil,
		compound(``, ``):                                     {"/states/A/states": "empty", "/states/A/initial": "within"},
		compound(``, `"X":{"type":"final"}`):                 {"/states/A/states/X/type": "at the top"},
		compound(``, `"X":{},"Y":{}`):                        {"/states/A/states/Y": "leads to"},
		compound(``, `"Z":{}`):                               {"/states/A/initial": `"X" within`},
		compound(``, `"X.Y":{}`):                             {"/states/A/states/X.Y": "name", "/states/A/initial": "within"},
		compound(`"after":{"1m":"B"},`, `"X":{}`):            {"/states/A/after": "atomic"},
		compound(`"type":"final",`, `"X":{}`):                {"/states/B": "leads to", "/states/A/states": "final", "/states/A/initial": "final", "/states/A/on": "final"},
		compound(`"entry":{"assign":"x"},`, `"X":{}`):        {"/states/A/entry/assign": "*"},
		compound(`"entry":"x","exit":{"do":1},`, `"X":{}`):   {"/states/A/entry": "object", "/states/A/exit/do": "member"},
		compound(``, `"X":{"on":{"go":"Q"}}`):                {"/states/A/states/X/on/go": "no state"},
		compound(``, `"X":{"always":"X"}`):                   {"/states/A/states/X": "rest", "/states/B": "leads to"},
		compound(``, `"X":{"always":["B"],"on":{"go":"B"}}`): {"/states/A/states/X/on": "at once"},
		compound(``, `"X":{"always":"Y"},"Y":{"always":[{"guard":"$.context.a == 1","target":"X"},{"target":"X"}]}`): {"/states/A/states/X": "rest", "/states/A/states/Y": "rest", "/states/B": "leads to"},
		compound(``, `"X":{"always":{"target":"B","payload_schema":true}}`):                                          {"/states/A/states/X/always": "payload"},
		compound(``, `"X":{"initial":"Y"}`): {"/states/A/states/X/initial": "states within"},
		`{"name":"w","initial":"A.B","states":{"C":{"type":"final"},"A.B":{"initial":"X","on":{"go":"C"},"states":{"X":{}}}}}`:                                 {"/states/A.B": "dots"},
		`{"name":"w","initial":"A","states":{"C":{"type":"final"},"A.X":{"on":{"go":"C"}},"A":{"initial":"X","on":{"go":"C"},"states":{"X":{}}}}}`:             {"/states/A.X": "path"},
		`{"name":"w","initial":"A","states":{"C":{"type":"final","exit":{"assign":{}}},"A":{"on":{"go":"C"}}}}`:                                                {"/states/C/exit": "never left"},
		`{"name":"w","initial":"A","retention":"x","states":{"C":{"type":"final"},"A":{"on":{"go":"C"}}}}`:                                                     {"/retention": ""},
		`{"name":"w","initial":"A","ttl":{"after":"1h","target":"A.X"},"states":{"C":{"type":"final"},"A":{"initial":"X","on":{"go":"C"},"states":{"X":{}}}}}`: {"/ttl/target": "final"},
		// The inner and the outer of one event share a schema.
		`{"name":"w","initial":"A","states":{"C":{"type":"final"},"A":{"initial":"X","on":{"go":{"target":"C","payload_schema":{"type":"object"}}},
			"states":{"X":{"on":{"go":{"target":"C","guard":"$.a","payload_schema":true}}}}}}}`: {"/states/A/states/X/on/go": "share"},
	} {
		expect(t, text, faults(t, text, "", fsm.Limits{}), want)
	}
	// What is inherited counts.
	var within, on []string
	for n := range 250 {
		within = append(within, fmt.Sprintf(`"S%d":{"on":{"n":"S%d"}}`, n, (n+1)%250))
		on = append(on, fmt.Sprintf(`"e%d":"B"`, n))
	}
	text := `{"name":"w","initial":"A","states":{"B":{"type":"final"},"A":{"initial":"S0","on":{` + strings.Join(on, ",") + `},"states":{` + strings.Join(within, ",") + `}}}}`
	expect(t, text, faults(t, text, "", fsm.Limits{}), map[string]string{"/states": "inherit"})
	expect(t, shop, faults(t, shop, "", fsm.Limits{States: 7}), map[string]string{"/states": "at most 7"})
}

// Refusals of what follows a step are those of the command: nothing of it is done.
func TestEventlessRefusals(t *testing.T) {
	t.Parallel()
	s, pool := newService(t, fsm.Config{}, `{"name":"w","initial":"A","states":{
		"A":{"on":{
			"loop":{"target":"L","assign":{"x":"$.payload.x"}}, "raise":"R", "large":{"target":"G","assign":"*"}, "fail":"D"}},
		"L":{"always":{"target":"L","guard":"$.context.x > 0","assign":{"x":"$.context.x - $.payload.by"}},"on":{"end":"END"}},
		"R":{"always":{"target":"END","guard":"$nowhere == 1"},"on":{"end":"END"}},
		"G":{"always":{"target":"END","assign":{"twice":"$.payload"}}},
		"D":{"always":"BROKEN"},
		"END":{"type":"final"}, "BROKEN":{"type":"final","outcome":"failed"}}}`)
	i := create(t, s, "w", `{"x":1}`)
	command := func(event, payload string) fsm.FireCommand {
		return fsm.FireCommand{ID: i.ID, Event: event, Payload: json.RawMessage(payload), Key: event, Origin: fsm.Origin{Reason: "why"}}
	}
	neighbour := create(t, s, "w", `{"x":1}`)
	before := counts(t, pool)
	for event, want := range map[string]struct {
		payload string
		kind    fsm.Kind
	}{
		"loop":  {`{"x":100,"by":0}`, fsm.GuardError},
		"raise": {`{}`, fsm.GuardError},
		"large": {`{"a":"` + strings.Repeat("x", 40_000) + `"}`, fsm.TooLarge},
	} {
		replies := s.Do(t.Context(), []fsm.Command{command(event, want.payload), fsm.FireCommand{ID: neighbour.ID, Event: "none"}})
		refused(t, replies[0].Err, want.kind)
		refused(t, replies[1].Err, fsm.UnknownEvent)
		_, err := s.Preview(t.Context(), command(event, want.payload))
		refused(t, err, want.kind)
		if e, ok := errors.AsType[*fsm.Error](err); !ok || want.kind == fsm.GuardError && e.Refusal.State != "A" {
			t.Errorf("%s: %+v", event, e)
		}
	}
	if after := counts(t, pool); after != before {
		t.Errorf("there were %s, there are %s", before, after)
	}
	if got := get(t, s, i.ID); !cmp.Equal(got, i) {
		t.Errorf("it is %+v, it was %+v", got, i)
	}
	// One hundred are allowed.
	if i := fire(t, s, create(t, s, "w", `{}`).ID, "loop", `{"x":100,"by":1}`); i.State != "L" || i.Version != 102 {
		t.Errorf("%s at %d", i.State, i.Version)
	}
	_, err := s.Fire(t.Context(), fsm.FireCommand{ID: create(t, s, "w", `{}`).ID, Event: "loop", Payload: json.RawMessage(`{"x":101,"by":1}`)})
	refused(t, err, fsm.GuardError)
	// What a failure says.
	r, err := s.Fire(t.Context(), command("fail", `{}`))
	if err != nil || r.Instance.Status != fsm.Failed {
		t.Fatalf("%+v, %v", r, err)
	}
	sameJSON(t, r.Instance.Error, `{"event":"fail","state":"D","reason":"why"}`)

	// A caller in SQL has an exception.
	_, err = pool.Exec(t.Context(), `select pawl.fire_one($1, 'loop', '{"x":1,"by":0}')`, neighbour.ID)
	if err == nil || !strings.Contains(err.Error(), "PW422") || !strings.Contains(err.Error(), "come to rest") && !strings.Contains(err.Error(), "coming to rest") {
		t.Errorf("in SQL: %v", err)
	}
}

// A creation may assign, be led on, end and fail, once.
func TestEventlessCreation(t *testing.T) {
	t.Parallel()
	s, pool := newService(t, fsm.Config{}, `{"name":"w","initial":"A","ttl":{"after":"1h","target":"LATE"},"states":{
		"A":{"entry":{"assign":{"n":"$.context.n + 1","id":"$.instance.id","big":"$.context.copy"}},"always":[
			{"guard":"$.context.n == 2","target":"END"},{"guard":"$.context.n == 3","target":"BROKEN"},
			{"guard":"$.context.n > 10","target":"A"},{"guard":"$.context.n == 4","target":"B"}],"on":{"go":"END"}},
		"B":{"on":{"go":"END"},"after":{"5m":"LATE"}},
		"LATE":{"type":"final","outcome":"expired"},"END":{"type":"final"},"BROKEN":{"type":"final","outcome":"failed"}}}`)
	for document, want := range map[string]struct {
		state   string
		version int64
		due     string
	}{
		`{"n":0}`: {"A", 1, "01:00:00"},
		`{"n":1}`: {"END", 2, ""},
		`{"n":2}`: {"BROKEN", 2, ""},
		`{"n":3}`: {"B", 2, "00:05:00"},
	} {
		command := fsm.CreateCommand{Workflow: "w", Context: json.RawMessage(document), Key: document, BusinessKey: document}
		r, err := s.Create(t.Context(), command)
		if err != nil {
			t.Fatal(err)
		}
		if r.Instance.State != want.state || r.Instance.Version != want.version {
			t.Errorf("%s: %+v", document, r.Instance)
		}
		var got struct{ ID uuid.UUID }
		if err := json.Unmarshal(r.Instance.Context, &got); err != nil || got.ID != r.Instance.ID {
			t.Errorf("%s: entry saw the id %s, %v", document, got.ID, err)
		}
		again, err := s.Create(t.Context(), command)
		if err != nil || !again.Replayed || !cmp.Equal(again.Instance, r.Instance) {
			t.Errorf("%s: replayed as %+v, %v", document, again, err)
		}
		if now := get(t, s, r.Instance.ID); !cmp.Equal(now, r.Instance) {
			t.Errorf("%s: it is %+v, answered was %+v", document, now, r.Instance)
		}
		steps := history(t, s, r.Instance.ID)
		if len(steps) != int(want.version) || steps[0].Kind != "created" || steps[0].From != nil {
			t.Errorf("%s: history %+v", document, steps)
		}
		due := scan[string](t, pool, `select coalesce(max(t.due_at - i.created_at)::text, '') from pawl.instance i
			left join pawl.timer t on t.tenant_id = i.tenant_id and t.instance_id = i.id and t.armed_version = i.version where i.id = $1`, r.Instance.ID)
		if due != want.due {
			t.Errorf("%s: the timer is due after %q, want %q", document, due, want.due)
		}
	}
	before := counts(t, pool)
	for document, kind := range map[string]fsm.Kind{
		`{"n":10}`:                 fsm.GuardError,
		`{"n":10,"x":"different"}`: fsm.GuardError,
		`{"n":0,"copy":"` + strings.Repeat("x", 40_000) + `"}`: fsm.TooLarge,
	} {
		_, err := s.Create(t.Context(), fsm.CreateCommand{Workflow: "w", Context: json.RawMessage(document)})
		refused(t, err, kind)
		_, err = s.Simulate(t.Context(), fsm.Simulation{Workflow: "w", Context: json.RawMessage(document)})
		refused(t, err, kind)
	}
	if after := counts(t, pool); after != before {
		t.Errorf("there were %s, there are %s", before, after)
	}
	simulated, err := s.Simulate(t.Context(), fsm.Simulation{Workflow: "w", Context: json.RawMessage(`{"n":3}`), Events: []fsm.SimulatedEvent{{Event: "go"}}})
	if err != nil || simulated.Steps[0].From != "B" || simulated.State != "END" {
		t.Errorf("simulated: %+v, %v", simulated, err)
	}
	// The database's own answer to a business key taken meanwhile stays what it is.
	_, err = s.Create(t.Context(), fsm.CreateCommand{Workflow: "w", Context: json.RawMessage(`{"n":1}`), BusinessKey: `{"n":1}`})
	refused(t, err, fsm.InstanceExists)
}

// A slow guard behind a creation or a step is that command's; a row that stays locked is not.
func TestSlowEventlessGuards(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	limited := open(t, dbtest.DSN(pool), db.Config{StatementTimeout: 150 * time.Millisecond, LockTimeout: 50 * time.Millisecond})
	const guard = `"exists($.context.a[*] ? (exists($.context.a[*] ? (exists($.context.a[*] ? (@ < 0))))))"`
	s := serviceOn(t, limited, fsm.Config{}, `{"name":"w","initial":"A","states":{
		"A":{"always":{"guard":`+guard+`,"target":"END"},"on":{"go":{"target":"A","assign":"*"}}},"END":{"type":"final"}}}`)
	slow := fmt.Sprintf(`{"a":[1%s]}`, strings.Repeat(",1", 600))
	i := create(t, s, "w", `{"a":[]}`)
	before := counts(t, pool)
	_, err := s.Create(t.Context(), fsm.CreateCommand{Workflow: "w", Context: json.RawMessage(slow)})
	refused(t, err, fsm.GuardError)
	_, err = s.Fire(t.Context(), fsm.FireCommand{ID: i.ID, Event: "go", Payload: json.RawMessage(slow)})
	refused(t, err, fsm.GuardError)
	if after := counts(t, pool); after != before {
		t.Errorf("there were %s, there are %s", before, after)
	}
	release := holdKey(t, pool, i.ID)
	defer release()
	_, err = s.Create(t.Context(), fsm.CreateCommand{Workflow: "w", Context: json.RawMessage(`{"a":[]}`), Key: "held"})
	refused(t, err, fsm.Unavailable)
}

// holdKey claims the key "held" in a transaction that stays open.
func holdKey(t *testing.T, pool *pgxpool.Pool, id uuid.UUID) (release func()) {
	t.Helper()
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), `insert into pawl.idempotency_key (tenant_id, key, fingerprint, outcome, instance_id, version, expires_at)
		values ('default', 'held', sha256(''), 'applied', $1, 1, now() + interval '1 hour')`, id); err != nil {
		t.Fatal(err)
	}
	return func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }
}

// Timeouts are those of atomic states, the lifetime leaves all, and what follows them is done
// at once too.
func TestNestedTimers(t *testing.T) {
	t.Parallel()
	s, pool := newService(t, fsm.Config{}, `{"name":"w","initial":"C","ttl":{"after":"1h","target":"LATE"},"states":{
		"C":{"initial":"A","exit":{"assign":{"c":"$.now"}},"on":{"go":"END"},"states":{
			"A":{"after":{"1m":"B"},"exit":{"assign":{"a":"$.payload.due_at"}}},
			"B":{"initial":"I","states":{"I":{"always":[{"guard":"$.context.end == true","target":"END"}, "J"]},"J":{}}}}},
		"LATE":{"type":"final","outcome":"expired"},"END":{"type":"final"}}}`)
	dbtest.SetClock(t, pool, noon)
	ends, stays := create(t, s, "w", `{"end":true}`), create(t, s, "w", `{}`)
	dbtest.Advance(t, pool, time.Minute)
	wantFired(t, pool, 2)
	i := get(t, s, ends.ID)
	if i.State != "END" || i.Version != 3 {
		t.Errorf("%+v", i)
	}
	var context struct{ A, C string }
	if err := json.Unmarshal(i.Context, &context); err != nil || context.A == "" || context.C == "" {
		t.Errorf("context %s", i.Context)
	}
	kinds := func(id uuid.UUID) (list []string) {
		for _, step := range history(t, s, id) {
			list = append(list, step.Kind+" "+step.To)
		}
		return list
	}
	if got := kinds(ends.ID); !slices.Equal(got, []string{"created C.A", "timeout C.B.I", "transition END"}) {
		t.Errorf("history %q", got)
	}
	dbtest.Advance(t, pool, time.Hour)
	wantFired(t, pool, 1)
	if got := kinds(stays.ID); !slices.Equal(got, []string{"created C.A", "timeout C.B.I", "transition C.B.J", "expired LATE"}) {
		t.Errorf("history %q", got)
	}
	if n := timers(t, pool); n != 0 {
		t.Errorf("%d timers are left", n)
	}
}

// A migrated instance takes the eventless transitions of where it gets.
func TestMigrationIntoEventlessStates(t *testing.T) {
	t.Parallel()
	s, pool := newService(t, fsm.Config{})
	dbtest.SetClock(t, pool, noon)
	const first = `{"name":"w","initial":"A","states":{"A":{"on":{"go":"END"}},"END":{"type":"final"}}}`
	register(t, s, first)
	var ids []uuid.UUID
	for _, x := range []string{"0", "1", "2", "3"} {
		ids = append(ids, create(t, s, "w", `{"x":`+x+`}`).ID)
	}
	register(t, s, `{"name":"w","initial":"A","states":{"END":{"type":"final"},"A":{
		"initial":"B","on":{"go":"END"},"entry":{"assign":{"never":"1"}},"states":{
			"B":{"always":[{"guard":"$.context.x == 1","target":"C","assign":{"seen":"$.instance.workflow_version"}},
				{"guard":"$.context.x == 2","target":"END"},{"guard":"$.context.x == 3","target":"B"}]},
			"C":{"after":{"1m":"END"}}}}}}`)
	dbtest.Advance(t, pool, time.Hour)
	c := fsm.MigrateCommand{Workflow: "w", From: 1, To: 2, StateMap: map[string]string{"A": "A.B"}, DryRun: true}
	for range 2 {
		m := migrate(t, s, c)
		want := fsm.Migration{
			Total: 4, Migrated: 3, Moves: []fsm.Move{{From: "A", To: "A.B", Count: 1}, {From: "A", To: "A.C", Count: 1}, {From: "A", To: "END", Count: 1}},
			Left: []fsm.LeftInstance{{ID: ids[3], State: "A", Reason: "unsettled"}},
		}
		if diff := cmp.Diff(want, m); diff != "" {
			t.Fatal(diff)
		}
		c.DryRun = false
	}
	for n, want := range map[int]struct{ state, document string }{
		0: {"A.B", `{"x":0}`}, 1: {"A.C", `{"x":1,"seen":2}`}, 2: {"END", `{"x":2}`}, 3: {"A", `{"x":3}`},
	} {
		i := get(t, s, ids[n])
		steps := history(t, s, ids[n])
		if i.State != want.state || int(i.Version) != len(steps) {
			t.Errorf("%d: %+v", n, i)
		}
		sameJSON(t, i.Context, want.document)
		if n == 1 || n == 2 {
			if step := steps[2]; steps[1].Kind != "migrated" || steps[1].To != "A.B" || step.Kind != "transition" || step.Event != nil || *step.From != "A.B" || !step.At.Equal(i.StateChangedAt) {
				t.Errorf("%d: history %+v", n, steps)
			}
		}
	}
	dbtest.Advance(t, pool, time.Minute)
	wantFired(t, pool, 1)
}
