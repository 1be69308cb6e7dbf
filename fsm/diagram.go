package fsm

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

// DiagramFormat is a language for diagrams.
type DiagramFormat string

// The formats.
const (
	// Mermaid is a stateDiagram-v2, which GitHub and GitLab draw (mermaid.js.org).
	Mermaid DiagramFormat = "mermaid"
	// DOT is the language of Graphviz (graphviz.org/doc/info/lang.html).
	DOT DiagramFormat = "dot"
)

// Diagram writes the definition as a diagram: its states from the initial one on, final
// ones with their outcome, and an edge per transition with its event or its timeout and its
// guard. States within others go by their paths, each with the transitions that it inherits.
// The same definition always gives the same text.
//
// The steps of an instance's history, the oldest first, mark the states it went through and
// the edges it took, with the versions it reached by them. History does not say which
// candidate of an event was taken, so that those with one target are marked alike. A step
// that no transition of this definition stands for, such as a forced one, is an edge of its
// own, unless its states are those of another version; one without a kind marks its state only.
//
// Kinds: Malformed for an unknown format.
func (d *Definition) Diagram(format DiagramFormat, path []Step) (string, error) {
	var write func(*diagram) string
	switch format {
	case Mermaid:
		write = (*diagram).mermaid
	case DOT:
		write = (*diagram).dot
	default:
		return "", &Error{Kind: Malformed, Message: "there is no such format of diagrams", Faults: []Fault{{
			Parameter: "format", Detail: "must be mermaid or dot",
		}}}
	}
	g := d.diagram()
	g.mark(path)
	return write(g), nil
}

// What an edge starts from that is no state. No state has such a name.
const (
	beginning = "(start)"
	anyState  = "(any)"
)

// diagram is what all formats draw.
type diagram struct {
	name  string
	nodes []*diagramNode
	edges []*diagramEdge
}

type diagramNode struct {
	name             string
	outcome          Status
	visited, current bool
}

type diagramEdge struct {
	from, to string
	// event and kind tell which steps the edge stands for; kind only of what is not declared.
	event, kind string
	label       string
	versions    []int64 // Reached by it.
}

func (d *Definition) diagram() *diagram {
	g := &diagram{name: d.Name}
	flat := d.flat()
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

// nearest lists the states, those first that are the fewest steps away from one.
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

func (g *diagram) node(name string) *diagramNode {
	for _, n := range g.nodes {
		if n.name == name {
			return n
		}
	}
	return nil
}

// mark draws the path of an instance.
func (g *diagram) mark(path []Step) {
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

// taken lists the versions that an edge led to, as far as there is room for them.
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

// The colours of what an instance went through, and of where it is.
const (
	visitedFill = "#fef3c7"
	currentFill = "#fcd34d"
	pathColour  = "#b45309"
)

// mermaid writes a stateDiagram-v2. Mermaid has no style for the edges of one, so that the
// path shows in their labels. States go by aliases, since ids admit neither dashes nor its
// own words.
func (g *diagram) mermaid() string {
	ids := map[string]string{beginning: "[*]", anyState: "any"}
	taken := map[string]bool{}
	for _, n := range g.nodes {
		base := "s_" + strings.NewReplacer(".", "_", "-", "_").Replace(n.name)
		id := base
		for i := 2; taken[id]; i++ {
			id = fmt.Sprintf("%s_%d", base, i)
		}
		taken[id] = true
		ids[n.name] = id
	}
	var b strings.Builder
	b.WriteString("stateDiagram-v2\n")
	for _, n := range g.nodes {
		fmt.Fprintf(&b, "    state \"%s\" as %s\n", mermaidText(n.name), ids[n.name])
	}
	if g.hasAny() {
		fmt.Fprintf(&b, "    state \"any state\" as %s\n", ids[anyState])
	}
	var visited, current []string
	for _, e := range g.edges {
		fmt.Fprintf(&b, "    %s --> %s", ids[e.from], ids[e.to])
		if label := strings.TrimSpace(mermaidText(e.label) + " " + e.taken()); label != "" {
			b.WriteString(": " + label)
		}
		b.WriteString("\n")
	}
	for _, n := range g.nodes {
		if n.outcome != "" {
			fmt.Fprintf(&b, "    %s --> [*]: %s\n", ids[n.name], n.outcome)
		}
		switch {
		case n.current:
			current = append(current, ids[n.name])
		case n.visited:
			visited = append(visited, ids[n.name])
		}
	}
	class := func(name, fill string, ids []string) {
		if len(ids) > 0 {
			fmt.Fprintf(&b, "    classDef %s fill:%s,stroke:%s,color:#000\n", name, fill, pathColour)
			fmt.Fprintf(&b, "    class %s %s\n", strings.Join(ids, ","), name)
		}
	}
	class("visited", visitedFill, visited)
	class("current", currentFill, current)
	return b.String()
}

func (g *diagram) hasAny() bool {
	return slices.ContainsFunc(g.edges, func(e *diagramEdge) bool { return e.from == anyState })
}

// mermaidDirection is a statement wherever it stands in a line.
var mermaidDirection = regexp.MustCompile(`(?i)direction (TB|BT|LR|RL)`)

// mermaidText writes text for a label. What may mean something to Mermaid, to the Markdown
// in its labels or to the HTML it makes of them becomes an entity code
// (mermaid.js.org/syntax/flowchart.html#entity-codes-to-escape-characters): a colon or a
// semicolon would end the label.
func mermaidText(text string) string {
	runes := []rune(oneLine(text))
	plain := func(i int) bool {
		return i >= 0 && i < len(runes) && (unicode.IsLetter(runes[i]) || unicode.IsDigit(runes[i]))
	}
	var b strings.Builder
	for i, r := range runes {
		var safe bool
		switch {
		case r == '_': // Emphasis, but within a word.
			safe = plain(i-1) && plain(i+1)
		case r == '$': // Two begin a formula.
			safe = i == 0 || runes[i-1] != '$'
		case r == '(': // With a bracket before it, a link.
			safe = i == 0 || runes[i-1] != ']'
		case r < unicode.MaxASCII:
			safe = plain(i) || strings.ContainsRune(" .,@?)[]=!|+-/'", r)
		default:
			safe = true
		}
		if safe {
			b.WriteRune(r)
		} else {
			fmt.Fprintf(&b, "#%d;", r)
		}
	}
	return mermaidDirection.ReplaceAllStringFunc(b.String(), func(s string) string {
		return strings.Replace(s, " ", "#32;", 1)
	})
}

// dot writes a digraph.
func (g *diagram) dot() string {
	var b strings.Builder
	fmt.Fprintf(&b, "digraph %s {\n", dotString(g.name))
	b.WriteString("  rankdir=LR;\n")
	b.WriteString("  node [shape=box, style=rounded];\n")
	fmt.Fprintf(&b, "  %s [shape=point];\n", dotString(beginning))
	for _, n := range g.nodes {
		var attributes []string
		if n.outcome != "" {
			// The backslash is Graphviz's own, for a line break.
			attributes = append(attributes, fmt.Sprintf(`label="%s\n%s"`, dotText(n.name), n.outcome), "peripheries=2")
		}
		switch {
		case n.current:
			attributes = append(attributes, fmt.Sprintf(`style="rounded,filled", fillcolor=%q, color=%q, penwidth=2`, currentFill, pathColour))
		case n.visited:
			attributes = append(attributes, fmt.Sprintf(`style="rounded,filled", fillcolor=%q, color=%q`, visitedFill, pathColour))
		}
		b.WriteString("  " + dotString(n.name) + dotAttributes(attributes) + ";\n")
	}
	if g.hasAny() {
		fmt.Fprintf(&b, "  %s [label=\"any state\", style=\"rounded,dashed\"];\n", dotString(anyState))
	}
	for _, e := range g.edges {
		var attributes []string
		if label := strings.TrimSpace(e.label + " " + e.taken()); label != "" {
			attributes = append(attributes, "label="+dotString(label))
		}
		if e.kind != "" || e.from == anyState {
			attributes = append(attributes, "style=dashed")
		}
		if len(e.versions) > 0 {
			attributes = append(attributes, fmt.Sprintf("color=%q, penwidth=2", pathColour))
		}
		fmt.Fprintf(&b, "  %s -> %s%s;\n", dotString(e.from), dotString(e.to), dotAttributes(attributes))
	}
	b.WriteString("}\n")
	return b.String()
}

func dotAttributes(list []string) string {
	if len(list) == 0 {
		return ""
	}
	return " [" + strings.Join(list, ", ") + "]"
}

// dotText writes text for a double-quoted string, in which a backslash is an escape and an
// ampersand may begin an HTML entity.
func dotText(text string) string {
	return strings.NewReplacer(`\`, `\\`, `"`, `\"`, `&`, `&amp;`).Replace(oneLine(text))
}

func dotString(text string) string { return `"` + dotText(text) + `"` }

// oneLine draws line breaks, and whatever else is no mark on paper, as a space.
func oneLine(text string) string {
	return strings.Join(strings.FieldsFunc(text, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }), " ")
}
