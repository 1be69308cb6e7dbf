package docs_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"strings"
	"testing"
)

const (
	uuidPattern = `[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`
	timePattern = `\d{4}-\d\d-\d\d[T ]\d\d:\d\d(?::\d\d(?:\.\d+)?)?(?:Z|[+-]\d\d(?::?\d\d)?)?`
)

var (
	uuids        = regexp.MustCompile(uuidPattern)
	placeholders = regexp.MustCompile(uuidPattern + `|` + timePattern + `|…`)
	spaces       = regexp.MustCompile(`\s+`)
	rules        = regexp.MustCompile(`-{2,}[-+]*`)
)

// bindings says which UUID a page's UUID stands for.
type bindings map[string]string

// replace gives a text with the UUIDs that it stands for.
func (b bindings) replace(text string) string {
	return uuids.ReplaceAllStringFunc(text, func(shown string) string {
		if actual, bound := b[shown]; bound {
			return actual
		}
		return shown
	})
}

// line reports whether a shown line stands for a printed one, and notes what its UUIDs stand for.
func (b bindings) line(want, got string) bool {
	var pattern strings.Builder
	var shown []string
	pattern.WriteString("^")
	rest := want
	// bounded: each round shortens the rest
	for {
		at := placeholders.FindStringIndex(rest)
		if at == nil {
			break
		}
		pattern.WriteString(regexp.QuoteMeta(rest[:at[0]]))
		switch p := rest[at[0]:at[1]]; {
		case p == "…":
			pattern.WriteString(`.*?`)
		case uuids.MatchString(p):
			shown = append(shown, p)
			pattern.WriteString(`(` + uuidPattern + `)`)
		default:
			pattern.WriteString(timePattern)
		}
		rest = rest[at[1]:]
	}
	pattern.WriteString(regexp.QuoteMeta(rest) + "$")
	m := regexp.MustCompile(pattern.String()).FindStringSubmatch(got)
	if m == nil {
		return false
	}
	found := bindings{}
	for i, name := range shown {
		for _, known := range []bindings{b, found} {
			if actual, bound := known[name]; bound && actual != m[i+1] {
				return false
			}
		}
		found[name] = m[i+1]
	}
	maps.Copy(b, found)
	return true
}

// lines compares shown output with printed output. Runs of spaces, blank lines and the rules of
// tables count for nothing, since their length follows the values.
func (b bindings) lines(want, got string) error {
	return b.all(tidy(want), tidy(got))
}

func (b bindings) all(want, got []string) error {
	// bounded: each round takes a line away, or is the last
	for len(want) > 0 {
		if want[0] == "…" {
			if len(want) == 1 {
				return nil
			}
			for skip := range len(got) + 1 {
				if b.all(want[1:], got[skip:]) == nil {
					return nil
				}
			}
			return fmt.Errorf("no printed line continues with %q", want[1])
		}
		if len(got) == 0 {
			return fmt.Errorf("the line %q is not printed", want[0])
		}
		if !b.line(want[0], got[0]) {
			return fmt.Errorf("shown is the line\n  %s\nand printed\n  %s", want[0], got[0])
		}
		want, got = want[1:], got[1:]
	}
	if len(got) > 0 {
		return fmt.Errorf("printed, and not shown, is the line %q", got[0])
	}
	return nil
}

func tidy(text string) []string {
	var lines []string
	for line := range strings.SplitSeq(text, "\n") {
		line = rules.ReplaceAllString(strings.TrimSpace(line), "--")
		if line = spaces.ReplaceAllString(line, " "); line != "" {
			lines = append(lines, line)
		}
	}
	return lines
}

// json compares shown JSON with the printed one. Members that are not shown count for nothing, nor
// do elements behind a last element "…".
func (b bindings) json(want, got string) error {
	wanted, err := decode(want)
	if err != nil {
		return fmt.Errorf("what is shown: %w", err)
	}
	printed, err := lastJSON(got)
	if err != nil {
		return err
	}
	return b.value("", wanted, printed)
}

func (b bindings) value(at string, want, got any) error {
	differ := fmt.Errorf("%s is shown as %v, and printed as %v", at, want, got)
	switch want := want.(type) {
	case map[string]any:
		members, ok := got.(map[string]any)
		if !ok {
			return differ
		}
		for name, v := range want {
			printed, there := members[name]
			if !there {
				return fmt.Errorf("%s/%s is shown, and not printed", at, name)
			}
			if err := b.value(at+"/"+name, v, printed); err != nil {
				return err
			}
		}
		return nil
	case []any:
		elements, ok := got.([]any)
		if !ok {
			return differ
		}
		if n := len(want) - 1; n >= 0 && want[n] == "…" {
			want, elements = want[:n], elements[:min(n, len(elements))]
		}
		if len(want) != len(elements) {
			return differ
		}
		for i, v := range want {
			if err := b.value(fmt.Sprintf("%s/%d", at, i), v, elements[i]); err != nil {
				return err
			}
		}
		return nil
	case string:
		if text, ok := got.(string); ok && b.line(want, text) {
			return nil
		}
		return differ
	default:
		if want != got {
			return differ
		}
		return nil
	}
}

func decode(text string) (v any, err error) {
	d := json.NewDecoder(bytes.NewReader([]byte(text)))
	d.UseNumber()
	if err := d.Decode(&v); err != nil {
		return nil, err
	}
	if d.More() {
		return nil, errors.New("more than one document")
	}
	return v, nil
}

// lastJSON finds the document that an output ends with. It may have other lines before it, such as
// the headers that curl -i prints, or other documents.
func lastJSON(text string) (any, error) {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	for i, line := range lines {
		if line = strings.TrimSpace(line); strings.HasPrefix(line, "{") || strings.HasPrefix(line, "[") {
			if v, err := decode(strings.Join(lines[i:], "\n")); err == nil {
				return v, nil
			}
		}
	}
	return nil, fmt.Errorf("no JSON is printed: %s", text)
}

// TestMatch shows what counts as the same output, so that a page cannot be wrong unseen.
func TestMatch(t *testing.T) {
	t.Parallel()
	const a, b = "01a1fcd7-ff39-747e-a6b5-6e2ff2d8f87b", "01a1fcd7-ff39-747e-a6b5-6e2ff2d8f87c"
	const x, y = "11111111-1111-7111-8111-111111111111", "22222222-2222-7222-8222-222222222222"
	for _, c := range []struct {
		want, got string
		same      bool
	}{
		{"a\nb", "a\nb\n", true},
		{"a  b\n\n", "a b", true},
		{"a", "a\nb", false},
		{"a\nb", "a", false},
		{"a\n…", "a\nb\nc", true},
		{"…\nc", "a\nb\nc", true},
		{"…\nd", "a\nb\nc", false},
		{"a … c", "a b b c", true},
		{"a … c", "a b", false},
		{"----+---", "-------+-", true},
		{a + " " + b, x + " " + y, true},
		{a + " " + a, x + " " + y, false},
		{a, "none", false},
		{"at 2026-03-01T09:30:00.000000Z", "at 2027-01-01T00:00:00Z", true},
		{"at 2026-03-01T09:30:00.000000Z", "at noon", false},
		{"3 rows", "4 rows", false},
	} {
		if err := (bindings{}).lines(c.want, c.got); (err == nil) != c.same {
			t.Errorf("%q and %q: %v, want the same: %t", c.want, c.got, err, c.same)
		}
	}
	for _, c := range []struct {
		want, got string
		same      bool
	}{
		{`{"a": 1}`, `{"a": 1, "b": 2}`, true},
		{`{"a": 1}`, `{"a": 2}`, false},
		{`{"a": 1}`, `{"b": 1}`, false},
		{`{"a": "…x"}`, "HTTP/1.1 200 OK\r\n\r\n{\"a\": \"yx\"}", true},
		{`[1, "…"]`, `[1, 2, 3]`, true},
		{`[1]`, `[1, 2]`, false},
		{`[1, 2]`, `[1]`, false},
		{`{"a": null}`, `{"a": null}`, true},
		{`{"a": null}`, `{"a": {}}`, false},
		{`{"a": {"b": true}}`, `{"a": {"b": false}}`, false},
		{`{"a": 1}`, `nothing`, false},
	} {
		if err := (bindings{}).json(c.want, c.got); (err == nil) != c.same {
			t.Errorf("%s and %s: %v, want the same: %t", c.want, c.got, err, c.same)
		}
	}
	bound := bindings{}
	if err := bound.lines("id "+a, "id "+x); err != nil || bound.replace("get "+a+" "+b) != "get "+x+" "+b {
		t.Errorf("bound are %v (%v)", bound, err)
	}
}
