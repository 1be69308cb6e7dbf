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
	// Kind is that of the step, as history has it: "created", "transition", "timeout", "expired", "forced",
	// "cancelled", "migrated", "result" or "compensated". If it is empty, only the state To is marked.
	Kind string
	// Event, From and To are those of the step. Event is nil if no event made it, and From for a creation.
	Event, From *string
	To          string
}

// Diagram writes the definition as a diagram. It shows the atomic and final states by their paths, from
// the initial one on, and each final state with its outcome. A state shows its tasks, and whether it undoes. For each transition of a state, its own or an
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
	notes []string // Of the workflow.
	nodes []*diagramNode
	edges []*diagramEdge
}

type diagramNode struct {
	name             string
	outcome          Outcome
	notes            []string // Shown below the name.
	visited, current bool
}

type diagramEdge struct {
	from, to string
	// event and kind say which steps the edge stands for; kind is empty for a declared transition.
	event, kind string
	// result: it stands for what became of a task or of undoing.
	result   bool
	label    string
	versions []int64 // That the instance reached by it.
}

// diagram returns the diagram without the way of an instance.
func (d *Definition) diagram() *diagram {
	g := &diagram{name: d.Name, notes: notes(d.Description, d.Invariant, false)}
	flat := d.Flat()
	initial, _ := d.enter(d.Initial)
	g.edges = append(g.edges, &diagramEdge{from: beginning, to: initial})
	for _, name := range nearest(flat, initial) {
		s := flat[name]
		g.nodes = append(g.nodes, &diagramNode{name: name, outcome: s.Outcome, notes: d.notes(name)})
		for _, e := range s.Events {
			event := e.Name
			switch event {
			case alwaysEvent:
				event = ""
			case doneEvent:
				event = "done"
			}
			for i, t := range e.Candidates {
				label := e.label(i)
				for _, to := range t.targets() {
					g.edges = append(g.edges, &diagramEdge{from: name, to: to, event: event, result: e.isResult(), label: label})
				}
			}
		}
	}
	if d.TTL != nil {
		label := "ttl " + FormatDuration(d.TTL.After)
		if d.TTL.Sliding {
			label += " after any step"
		}
		g.edges = append(g.edges, &diagramEdge{from: anyState, to: d.TTL.Target, event: "ttl", label: label})
	}
	if cancel, known := d.enter(d.Cancel); known {
		g.edges = append(g.edges, &diagramEdge{from: anyState, to: cancel, label: "cancel"})
	}
	return g
}

// notes lists what a diagram says below the name of an atomic or final state: what it and the states around it are
// described by, what must hold there, and whether they are protected.
func (d *Definition) notes(path string) (list []string) {
	paths, states := d.around(path)
	for i, s := range states {
		for _, text := range notes(s.Description, s.Invariant, s.Protected) {
			if paths[i] != path {
				text = paths[i] + ": " + text
			}
			list = append(list, text)
		}
	}
	return append(list, states[len(states)-1].taskNotes()...)
}

// taskNotes lists what a diagram says of the state's tasks, and of its undoing.
func (s State) taskNotes() (list []string) {
	for _, name := range slices.Sorted(maps.Keys(s.Invoke)) {
		t := s.Invoke[name]
		text := "invoke / " + name
		if t.HTTP != nil {
			text += " (" + t.HTTP.Connection + ")"
		} else {
			text += " (work for " + t.Work.Topic + ")"
		}
		if t.Compensate != nil {
			text += ", can be undone"
		}
		if t.Description != "" {
			text += " – " + t.Description
		}
		list = append(list, text)
	}
	switch {
	case s.Compensate == nil:
	case s.Compensate.ContinueOnFailure:
		list = append(list, "undoes all, and goes on after a failure")
	default:
		list = append(list, "undoes all, and stops at a failure")
	}
	return list
}

func notes(description string, invariant Guard, protected bool) (list []string) {
	if description != "" {
		list = append(list, description)
	}
	if invariant != nil {
		list = append(list, "invariant "+guardText(invariant))
	}
	if protected {
		list = append(list, "protected")
	}
	return list
}

// label returns what an edge says of a candidate: the event, the guard, how it moves, and the description.
func (e FlatEvent) label(i int) string {
	t := e.Candidates[i]
	text := e.title()
	switch {
	case t.Guard != nil:
		text += " [" + guardText(t.Guard) + "]"
	case i > 0:
		text += " [else]"
	}
	switch {
	case t.Stays:
		text += " (stays)"
	case t.Resume == ResumeTimers:
		text += " (resumes, with timers)"
	case t.Resume != NoResume:
		text += " (resumes)"
	}
	if t.Compensate != nil {
		text += " (can be undone)"
	}
	if t.Description != "" {
		text += " – " + t.Description
	}
	return text
}

// nearest lists the states in the order of their distance from one of them. Those that cannot be reached
// from it come last.
func nearest(flat map[string]FlatState, from string) []string {
	var order []string
	add := func(path string) {
		if _, known := flat[path]; known && !slices.Contains(order, path) {
			order = append(order, path)
		}
	}
	add(from)
	for i := 0; i < len(order); i++ {
		for _, path := range flat[order[i]].targets() {
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
		case "compensated":
			e.event, e.kind = strings.TrimPrefix(e.event, "compensated:"), step.Kind
		case "cancelled":
			e.from, e.event = anyState, ""
		case "expired":
			e.from, e.event = anyState, "ttl"
		}
		known := g.taking(e, step.Kind)
		for _, edge := range known {
			edge.versions = append(edge.versions, step.Version)
		}
		if drawn := e.from == beginning || e.from == anyState || g.node(e.from) != nil; len(known) == 0 && drawn {
			e.kind = step.Kind
			e.label = strings.TrimSpace(step.Kind + " " + e.event)
			e.versions = []int64{step.Version}
			g.edges = append(g.edges, &e)
		}
	}
}

// taking lists the edges that a step may have taken: those of its event, or else those of the longest pattern for it.
func (g *diagram) taking(e diagramEdge, kind string) (edges []*diagramEdge) {
	most := 0
	for _, known := range g.edges {
		if known.from != e.from || known.to != e.to || known.kind != e.kind && known.kind != kind {
			continue
		}
		exact := exactness(known.event, e.event)
		if timer := strings.Contains(e.event, ":"); known.event != e.event && (timer || e.event == "") {
			exact = 0 // Patterns are for callers' events.
		}
		switch {
		case exact == 0 || exact < most:
		case exact > most:
			edges, most = []*diagramEdge{known}, exact
		default:
			edges = append(edges, known)
		}
	}
	return edges
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
