package bounded

import (
	"bytes"
	"fmt"
	"log/slog"
	"regexp"
	"strings"
	"sync"
	"testing"
)

// Lines is an io.Writer that keeps what a program or a logger writes, for any number of goroutines. Its zero value is
// empty. A line is taken once, by Next or Find; String and Match see all of them.
type Lines struct {
	mu    sync.Mutex
	text  bytes.Buffer
	taken int // bytes
}

// Write appends to what was written.
func (l *Lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

// String returns all that was written.
func (l *Lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// Logger returns a logger that writes here, as slog.TextHandler does, from level debug on.
func (l *Lines) Logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// take takes the next whole line.
func (l *Lines) take() (line string, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	rest := l.text.Bytes()[l.taken:]
	end := bytes.IndexByte(rest, '\n')
	if end < 0 {
		return "", false
	}
	l.taken += end + 1
	return string(rest[:end]), true
}

// Next waits for the next line and takes it, or fails the test.
func (l *Lines) Next(t testing.TB) string {
	t.Helper()
	return l.Find(t, "")
}

// Find waits for a line that has the text, and takes it and those before it, or fails the test.
func (l *Lines) Find(t testing.TB, text string) string {
	t.Helper()
	type look struct {
		line  string
		found bool
		all   string
	}
	return Until(t, fmt.Sprintf("a line with %q", text), func() look {
		for line, ok := l.take(); ok; line, ok = l.take() {
			if strings.Contains(line, text) {
				return look{line: line, found: true}
			}
		}
		return look{all: l.String()}
	}, func(l look) bool { return l.found }).line
}

// Rest returns the whole lines that nobody has taken, and takes them.
func (l *Lines) Rest() (lines []string) {
	for line, ok := l.take(); ok; line, ok = l.take() {
		lines = append(lines, line)
	}
	return lines
}

// Match waits until what was written matches, and returns the match and its groups, as regexp's FindStringSubmatch
// does, or fails the test. It takes no line.
func (l *Lines) Match(t testing.TB, pattern *regexp.Regexp) []string {
	t.Helper()
	var match []string
	Until(t, fmt.Sprintf("output that matches %q", pattern), func() string {
		text := l.String()
		match = pattern.FindStringSubmatch(text)
		return text
	}, func(string) bool { return match != nil })
	return match
}
