package fsm_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"sync/atomic"
	"testing"

	"pgregory.net/rapid"

	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/fsmtest"
)

// The model: what a workflow with guards on small numbers must do, in plain Go.

// values are a context or a payload.
type values map[string]int64

func (v values) json() json.RawMessage {
	text, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return text
}

// A rule is one candidate. Its guard and its assign are an index into what the model and
// Postgres both understand.
type rule struct {
	guard, assign int
	k             int64
	target        string
}

func (r rule) holds(context, payload values) bool {
	n, given := payload["n"]
	switch r.guard {
	case 1:
		return given && n > r.k
	case 2:
		return context["x"] >= r.k
	case 3:
		return given && n == context["x"]
	default:
		return true
	}
}

// apply returns the context that the assigns leave. It is nil if one of them raises.
func (r rule) apply(context, payload values, version int64) values {
	n, given := payload["n"]
	next := maps.Clone(context)
	switch r.assign {
	case 1:
		if given {
			next["x"] = n
		}
	case 2:
		if !given {
			return nil
		}
		next["x"] += n
		next["y"] = version
	case 3:
		maps.Copy(next, payload)
	}
	return next
}

func (r rule) definition() map[string]any {
	d := map[string]any{"target": r.target}
	switch r.guard {
	case 1:
		d["guard"] = fmt.Sprintf("$.payload.n > %d", r.k)
	case 2:
		d["guard"] = fmt.Sprintf("$.context.x >= %d", r.k)
	case 3:
		d["guard"] = "$.payload.n == $.context.x"
	}
	switch r.assign {
	case 1:
		d["assign"] = map[string]any{"x": "$.payload.n"}
	case 2:
		d["assign"] = map[string]any{"x": "$.context.x + $.payload.n", "y": "$.instance.version"}
	case 3:
		d["assign"] = map[string]any{"*": true, "trusted": true}
	}
	return d
}

// A machine is a random workflow: a chain of states that the event "next" follows to the
// end, and other events across it.
type machine map[string]map[string][]rule

const end = "END"

var events = []string{"next", "e1", "e2"}

func machines() *rapid.Generator[machine] {
	return rapid.Custom(func(t *rapid.T) machine {
		n := rapid.IntRange(1, 4).Draw(t, "states")
		names := []string{}
		for i := range n {
			names = append(names, fmt.Sprint("S", i))
		}
		names = append(names, end)
		candidate := func(guarded bool, target string) rule {
			r := rule{assign: rapid.IntRange(0, 3).Draw(t, "assign"), k: rapid.Int64Range(-2, 2).Draw(t, "k"), target: target}
			if guarded {
				r.guard = rapid.IntRange(1, 3).Draw(t, "guard")
			}
			return r
		}
		m := machine{}
		for i := range n {
			m[names[i]] = map[string][]rule{}
			for _, event := range events {
				rules := []rule{}
				for range rapid.IntRange(0, 2).Draw(t, "guarded") {
					rules = append(rules, candidate(true, rapid.SampledFrom(names).Draw(t, "target")))
				}
				switch {
				case event == "next":
					rules = append(rules, candidate(false, names[i+1]))
				case rapid.IntRange(0, 3).Draw(t, "last") == 0:
					rules = append(rules, candidate(false, rapid.SampledFrom(names[:n]).Draw(t, "target")))
				}
				if len(rules) > 0 {
					m[names[i]][event] = rules
				}
			}
		}
		return m
	})
}

var machineNames atomic.Int64

// register gives the workflow a name of its own.
func (m machine) register(t testing.TB, s *fsmtest.Service) (name string) {
	t.Helper()
	states := map[string]any{end: map[string]any{"type": "final"}}
	for state, accepted := range m {
		on := map[string]any{}
		for event, rules := range accepted {
			list := []any{}
			for _, r := range rules {
				list = append(list, r.definition())
			}
			on[event] = list
		}
		states[state] = map[string]any{"on": on}
	}
	name = fmt.Sprint("machine-", machineNames.Add(1))
	text, err := json.Marshal(map[string]any{"name": name, "initial": "S0", "states": states})
	if err != nil {
		t.Fatal(err)
	}
	fsmtest.Register(t, s, string(text))
	return name
}

// A run is an instance of the model.
type run struct {
	state   string
	version int64
	context values
	steps   []fsm.Step
}

// request is what a key stands for.
type request struct {
	run     int
	event   string
	payload string
}

// outcome is what a command comes to: a Kind, or none if it was applied.
type outcome struct {
	kind     fsm.Kind
	applied  bool
	replayed bool
	state    string
	version  int64
	context  string
}

// fire moves the run as the event says.
func (m machine) fire(r *run, event string, payload values) outcome {
	refused := outcome{kind: fsm.UnknownEvent, state: r.state, version: r.version}
	for _, accepted := range m {
		if _, known := accepted[event]; known {
			refused.kind = fsm.TransitionNotAllowed
		}
	}
	rules, accepted := m[r.state][event]
	if accepted {
		refused.kind = fsm.GuardRejected
	}
	for _, rule := range rules {
		if !rule.holds(r.context, payload) {
			continue
		}
		next := rule.apply(r.context, payload, r.version)
		if next == nil {
			return outcome{kind: fsm.GuardError, state: r.state, version: r.version}
		}
		from := r.state
		r.context, r.state = next, rule.target
		r.version++
		r.steps = append(r.steps, fsm.Step{Version: r.version, Event: &event, From: &from, To: r.state, Context: r.context.json()})
		return outcome{applied: true, state: r.state, version: r.version, context: string(r.context.json())}
	}
	return refused
}
