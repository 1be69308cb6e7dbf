package definition

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

// DiagramFormat is a language in which diagrams are written.
type DiagramFormat string

// The formats.
const (
	// Mermaid is a stateDiagram-v2, which GitHub and GitLab draw (mermaid.js.org).
	Mermaid DiagramFormat = "mermaid"
	// DOT is the language of Graphviz (graphviz.org/doc/info/lang.html).
	DOT DiagramFormat = "dot"
)

// Known reports whether Diagram can write the format.
func (f DiagramFormat) Known() bool { return f == Mermaid || f == DOT }

// A Visit is a step of an instance, as a diagram marks it.
type Visit struct {
	// Version is the one that the instance reached by the step.
	Version int64
	// Kind is that of the step, as history has it: "created", "transition", "timeout", "expired", "forced"
	// or "migrated". If it is empty, only the state To is marked.
	Kind string
	// Event, From and To are those of the step. Event is nil if no event made it, and From for a creation.
	Event, From *string
	To          string
}

// Diagram writes the definition as a diagram. It shows the atomic and final states by their paths, from
// the initial one on, and each final state with its outcome. For each transition of a state, its own or an
// inherited one, it shows an edge with the event or timeout and the guard. The same definition and path
// always give the same text.
//
// path marks the way of an instance: its steps, the oldest first. The states that it was in and the
// edges that it took are coloured, and the edges get the versions that it reached by them. History
// does not record which candidate of an event was taken, so candidates with one target are marked alike.
// A step that is no transition of this definition, such as a forced one, is drawn as an edge of its own. A
// step to a state that this definition does not have is left out.
//
// The error says that the format is unknown.
func (d *Definition) Diagram(format DiagramFormat, path []Visit) (string, error) {
	if !format.Known() {
		return "", fmt.Errorf("definition: there is no diagram format %q", format)
	}
	g := d.diagram()
	g.mark(path)
	if format == DOT {
		return g.dot(), nil
	}
	return g.mermaid(), nil
}

// An edge may also start at the beginning, or at any state. No state can have such a name.
const (
	beginning = "(start)"
	anyState  = "(any)"
)

// diagram is what all formats draw: nodes in the order of their distance from the initial state, and
// edges in the order in which they were declared.
type diagram struct {
	name  string
	nodes []*diagramNode
	edges []*diagramEdge
}

type diagramNode struct {
	name             string
	outcome          Outcome
	visited, current bool
}

type diagramEdge struct {
	from, to string
	// event and kind say which steps the edge stands for; kind is empty for a declared transition.
	event, kind string
	label       string
	versions    []int64 // That the instance reached by it.
}

// diagram returns the diagram without the way of an instance.
func (d *Definition) diagram() *diagram {
	g := &diagram{name: d.Name}
	flat := d.Flat()
	initial, _ := d.enter(d.Initial)
	g.edges = append(g.edges, &diagramEdge{from: beginning, to: initial})
	candidates := func(from, event, label string, list []Transition) {
		for i, t := range list {
			text := label
			switch {
			case t.Guard != "":
				text += " [" + t.Guard + "]"
			case i > 0:
				text += " [else]"
			}
			g.edges = append(g.edges, &diagramEdge{from: from, to: t.Target, event: event, label: text})
		}
	}
	for _, name := range nearest(flat, initial) {
		s := flat[name]
		g.nodes = append(g.nodes, &diagramNode{name: name, outcome: s.Outcome})
		for _, event := range slices.Sorted(maps.Keys(s.On)) {
			candidates(name, event, event, s.On[event])
		}
		candidates(name, "", "always", s.Always)
		for _, delay := range slices.Sorted(maps.Keys(s.After)) {
			text := FormatDuration(delay)
			candidates(name, "after:"+text, "after "+text, s.After[delay])
		}
	}
	if d.TTL != nil {
		label := "ttl " + FormatDuration(d.TTL.After)
		if d.TTL.Sliding {
			label += " after any step"
		}
		g.edges = append(g.edges, &diagramEdge{from: anyState, to: d.TTL.Target, event: "ttl", label: label})
	}
	return g
}

// nearest lists the states in the order of their distance from one of them. Those that cannot be reached
// from it come last.
func nearest(flat map[string]State, from string) []string {
	var order []string
	add := func(path string) {
		if _, known := flat[path]; known && !slices.Contains(order, path) {
			order = append(order, path)
		}
	}
	add(from)
	for i := 0; i < len(order); i++ {
		for _, path := range targets(flat[order[i]]) {
			add(path)
		}
	}
	for _, path := range slices.Sorted(maps.Keys(flat)) {
		add(path)
	}
	return order
}

// node returns the node of a state, or nil if there is none.
func (g *diagram) node(name string) *diagramNode {
	for _, n := range g.nodes {
		if n.name == name {
			return n
		}
	}
	return nil
}

// mark adds the way of an instance.
func (g *diagram) mark(path []Visit) {
	for i, step := range path {
		to := g.node(step.To)
		if to == nil {
			continue // A state of another version.
		}
		to.visited = true
		to.current = i == len(path)-1
		if step.Kind == "" {
			continue
		}
		e := diagramEdge{from: beginning, to: step.To}
		if step.From != nil {
			e.from = *step.From
		}
		if step.Event != nil {
			e.event = *step.Event
		}
		switch step.Kind {
		case "forced", "migrated":
			e.event, e.kind = "", step.Kind
		case "expired":
			e.from, e.event = anyState, "ttl"
		}
		found := false
		for _, known := range g.edges {
			if known.from == e.from && known.to == e.to && known.event == e.event &&
				(known.kind == e.kind || known.kind == step.Kind) {
				known.versions = append(known.versions, step.Version)
				found = true
			}
		}
		if drawn := e.from == beginning || e.from == anyState || g.node(e.from) != nil; !found && drawn {
			e.kind = step.Kind
			e.label = strings.TrimSpace(step.Kind + " " + e.event)
			e.versions = []int64{step.Version}
			g.edges = append(g.edges, &e)
		}
	}
}

// taken returns the part of an edge's label that lists the first few of the versions.
func (e *diagramEdge) taken() string {
	if len(e.versions) == 0 {
		return ""
	}
	const room = 3
	var list []string
	for _, v := range e.versions[:min(room, len(e.versions))] {
		list = append(list, strconv.FormatInt(v, 10))
	}
	text := "✓" + strings.Join(list, ",")
	if n := len(e.versions); n > room {
		text += fmt.Sprintf("… %d times", n)
	}
	return text
}

// The colours of the states and edges that an instance went through, and of the state it is in.
const (
	visitedFill = "#fef3c7"
	currentFill = "#fcd34d"
	pathColour  = "#b45309"
)

// hasAny reports whether an edge starts at any state.
func (g *diagram) hasAny() bool {
	return slices.ContainsFunc(g.edges, func(e *diagramEdge) bool { return e.from == anyState })
}

// oneLine replaces line breaks, other white space and control characters by single spaces.
func oneLine(text string) string {
	return strings.Join(strings.FieldsFunc(text, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }), " ")
}
