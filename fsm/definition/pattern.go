package definition

import (
	"io"
	"regexp"
	"regexp/syntax"
	"unicode/utf8"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

// maxPatternSize bounds the regular expressions of a JSON Schema: how many instructions they stand for
// together. A short pattern may stand for many: x{1000} is a thousand times x.
const maxPatternSize = 20_000

// A pattern is a compiled regular expression whose matches are metered.
type pattern struct {
	*regexp.Regexp
	size  int
	meter *meter
}

// compilePattern is the library's regexp engine.
func (c *compiled) compilePattern(text string) (jsonschema.Regexp, error) {
	if p, known := c.patterns[text]; known {
		return p, nil
	}
	parsed, err := syntax.Parse(text, syntax.Perl)
	if err != nil {
		return nil, err
	}
	size := patternSize(parsed)
	c.meter.take(size)
	expression, err := regexp.Compile(text)
	if err != nil {
		return nil, err
	}
	p := &pattern{expression, size, c.meter}
	if c.patterns != nil {
		c.patterns[text] = p
	}
	return p, nil
}

// patternSize estimates how many instructions an expression is compiled to.
func patternSize(e *syntax.Regexp) int {
	size := 1 + len(e.Rune)/16
	if e.Op == syntax.OpLiteral {
		size = len(e.Rune)
	}
	for _, sub := range e.Sub {
		size += patternSize(sub)
	}
	if e.Op == syntax.OpRepeat {
		size *= max(e.Min+1, e.Max)
	}
	return size
}

// A match of more than so many products is made rune by rune, so that it can be stopped.
const maxProducts = 1 << 14

// MatchString reports whether a text has a match.
func (p *pattern) MatchString(text string) bool {
	p.meter.take(1)
	if products := len(text) * p.size; products <= maxProducts {
		p.meter.match(products)
		return p.Regexp.MatchString(text)
	}
	return p.MatchReader(&meteredText{p, text})
}

// meteredText takes the steps of a match while its text is read.
type meteredText struct {
	pattern *pattern
	text    string
}

// ReadRune returns the next rune, or io.EOF.
func (t *meteredText) ReadRune() (r rune, size int, err error) {
	if t.text == "" {
		return 0, 0, io.EOF
	}
	r, size = utf8.DecodeRuneInString(t.text)
	t.text = t.text[size:]
	t.pattern.meter.match(size * t.pattern.size)
	return r, size, nil
}
