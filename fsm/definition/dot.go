package definition

import (
	"fmt"
	"strings"
)

// dot writes a digraph for Graphviz.
func (g *diagram) dot() string {
	var b strings.Builder
	fmt.Fprintf(&b, "digraph %s {\n", dotString(g.name))
	b.WriteString("  rankdir=LR;\n")
	if len(g.notes) > 0 {
		fmt.Fprintf(&b, "  label=%s;\n", dotLines(g.notes))
	}
	b.WriteString("  node [shape=box, style=rounded];\n")
	fmt.Fprintf(&b, "  %s [shape=point];\n", dotString(beginning))
	for _, n := range g.nodes {
		var attributes []string
		lines := []string{n.name}
		if n.outcome != "" {
			lines = append(lines, string(n.outcome))
		}
		if lines = append(lines, n.notes...); len(lines) > 1 {
			attributes = append(attributes, "label="+dotLines(lines))
		}
		if n.outcome != "" {
			attributes = append(attributes, "peripheries=2")
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
		if e.kind != "" || e.from == anyState || e.result {
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

// dotText escapes text for a double-quoted string, in which a backslash starts an escape and an
// ampersand may start an HTML entity.
func dotText(text string) string {
	return strings.NewReplacer(`\`, `\\`, `"`, `\"`, `&`, `&amp;`).Replace(oneLine(text))
}

// dotLines returns lines as one string. The backslash is Graphviz's own, for a line break.
func dotLines(lines []string) string {
	escaped := make([]string, len(lines))
	for i, line := range lines {
		escaped[i] = dotText(line)
	}
	return `"` + strings.Join(escaped, `\n`) + `"`
}

func dotString(text string) string { return `"` + dotText(text) + `"` }
