package definition

import (
	"fmt"
	"regexp"
	"strings"
	"unicode"
)

// mermaid writes a stateDiagram-v2. Mermaid cannot style the edges of such a diagram, so their labels show the
// path. States have aliases, since an id may have no dash and be no keyword of Mermaid's.
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
	if len(g.notes) > 0 { // There is no place for it in the drawing.
		fmt.Fprintf(&b, "    accDescr: %s\n", mermaidText(strings.Join(g.notes, " – ")))
	}
	for _, n := range g.nodes {
		fmt.Fprintf(&b, "    state \"%s\" as %s\n", mermaidText(n.name), ids[n.name])
		for _, note := range n.notes {
			fmt.Fprintf(&b, "    %s: %s\n", ids[n.name], mermaidText(note))
		}
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

// mermaidDirection matches words that Mermaid takes for a statement, wherever they stand in a line.
var mermaidDirection = regexp.MustCompile(`(?i)direction (TB|BT|LR|RL)`)

// mermaidText escapes text for a label. Every character that may have a meaning to Mermaid, to the
// Markdown in its labels or to the HTML that it makes of them becomes an entity code
// (mermaid.js.org/syntax/flowchart.html#entity-codes-to-escape-characters). A colon or a semicolon
// would end the label.
func mermaidText(text string) string {
	runes := []rune(oneLine(text))
	plain := func(i int) bool {
		return i >= 0 && i < len(runes) && (unicode.IsLetter(runes[i]) || unicode.IsDigit(runes[i]))
	}
	var b strings.Builder
	for i, r := range runes {
		var safe bool
		switch {
		case r == '_': // Emphasis, except within a word.
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
