package main

import (
	"fmt"
	"io"
	"reflect"
	"strings"
	"sync"
	"text/tabwriter"
	"unicode"
	"unicode/utf8"
)

// isVisible reports whether a terminal shows a character and does nothing else with it, such as to move the cursor, or
// to turn the direction of the text that follows.
func isVisible(r rune) bool {
	return !unicode.IsControl(r) && !unicode.Is(unicode.Bidi_Control, r)
}

// visible writes a character that is not visible as JSON does, so that JSON stays what it was.
func visible(r rune) string { return fmt.Sprintf(`\u%04x`, r) }

// oneLine returns a text in one line and without characters that are not visible.
func oneLine(text string) string {
	if strings.IndexFunc(text, func(r rune) bool { return !isVisible(r) }) < 0 {
		return text
	}
	var b strings.Builder
	for _, r := range text {
		if isVisible(r) {
			b.WriteRune(r)
		} else {
			b.WriteString(visible(r))
		}
	}
	return b.String()
}

// oneLines returns arguments for fmt with each text in one line.
func oneLines(args []any) []any {
	shown := make([]any, len(args))
	for i, arg := range args {
		_, text := arg.(fmt.Stringer)
		if _, failure := arg.(error); failure || text || isText(reflect.TypeOf(arg)) {
			shown[i] = oneLine(fmt.Sprintf("%s", arg))
		} else {
			shown[i] = arg
		}
	}
	return shown
}

func isText(t reflect.Type) bool {
	return t != nil && (t.Kind() == reflect.String || t.Kind() == reflect.Slice && t.Elem().Kind() == reflect.Uint8)
}

// A table aligns the columns of its rows.
type table struct{ *tabwriter.Writer }

// row adds a row, whose format has a tab between two columns.
func (t table) row(format string, args ...any) { _, _ = fmt.Fprintf(t, format+"\n", oneLines(args)...) }

// A guardedWriter writes text in which there may be words of others: what clients of the service have sent, and what a
// server answers. No character reaches a terminal that it does not show, and no line reads as a command to the
// program that runs a pipeline: `::` at the beginning of a line (GitHub Actions), `##[` (the same, and Azure
// Pipelines), `##vso[` and `##teamcity[`. They are written as JSON writes characters. It may be used by several
// goroutines at once.
type guardedWriter struct {
	to io.Writer

	mu    sync.Mutex
	rest  []byte // The beginning of a character.
	begun bool   // The line has more than white space.
	last  [len("##teamcity")]byte
}

// guarded returns a writer for such text.
func guarded(w io.Writer) *guardedWriter { return &guardedWriter{to: w} }

func (g *guardedWriter) Write(p []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	text := append(g.rest, p...)
	out := make([]byte, 0, len(text)+16)
	for len(text) > 0 && utf8.FullRune(text) {
		r, size := utf8.DecodeRune(text)
		out = g.put(out, r)
		text = text[size:]
	}
	g.rest = append([]byte(nil), text...)
	if _, err := g.to.Write(out); err != nil {
		return 0, err
	}
	return len(p), nil
}

// put adds a character, or what stands for it.
func (g *guardedWriter) put(out []byte, r rune) []byte {
	if r == '\n' {
		g.begun, g.last = false, [len(g.last)]byte{}
		return append(out, '\n')
	}
	follows := func(text string) bool { return strings.HasSuffix(string(g.last[:]), text) }
	command := r == ':' && !g.begun && follows(":") || r == '[' && (follows("##") || follows("##vso") || follows("##teamcity"))
	if command || r != '\t' && !isVisible(r) {
		out = append(out, visible(r)...)
		g.begun = true
	} else {
		out = utf8.AppendRune(out, r)
		g.begun = g.begun || r != ':' && !unicode.IsSpace(r) // One colon may be followed by another.
	}
	copy(g.last[:], g.last[1:])
	g.last[len(g.last)-1] = byte(min(r, utf8.RuneSelf))
	return out
}
