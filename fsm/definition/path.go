package definition

import (
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// A pathExpr is a part of a SQL/JSON path, as PostgreSQL reads it (src/backend/utils/adt/jsonpath_gram.y). The
// parser of this file is for finding what a path reads; whether PostgreSQL accepts the path only PostgreSQL knows.
type pathExpr struct {
	// op is that of an operation on args: && || ! == <> != < <= > >= + - * / %, exists, is unknown, like_regex,
	// starts with. "path" is a path: steps from a root. "literal" is a string, a number, true, false or null.
	op   string
	args []*pathExpr
	// root of a path is $, @, last, or $name for a variable; it is empty if the steps start at args[0].
	root  string
	steps []pathStep
	// text of a literal: that of a string is unquoted, and quoted is set.
	text   string
	quoted bool
}

// A pathStep is one accessor of a path.
type pathStep struct {
	// kind is "." for a member, "()" for a method, "?" for a filter, "[]" for subscripts; "[*]", ".*" and ".**"
	// select several items.
	kind string
	// name is that of the member or the method.
	name string
	// args are the filter, the subscripts, or the arguments of the method.
	args []*pathExpr
}

// many reports whether the step may select several items of one.
func (s pathStep) many() bool {
	return s.kind == "[*]" || s.kind == ".*" || s.kind == ".**" || s.kind == "[]" && len(s.args) != 1 ||
		s.kind == "()" && s.name == "keyvalue"
}

// walk calls f with an expression and all that are in it, the outer ones first. filtered says whether the
// expression is within a filter.
func (e *pathExpr) walk(f func(e *pathExpr, filtered bool)) {
	var walk func(e *pathExpr, filtered bool)
	walk = func(e *pathExpr, filtered bool) {
		f(e, filtered)
		for _, a := range e.args {
			walk(a, filtered)
		}
		for _, s := range e.steps {
			for _, a := range s.args {
				walk(a, filtered || s.kind == "?")
			}
		}
	}
	walk(e, false)
}

// reads reports whether a root is anywhere in the expression.
func (e *pathExpr) reads(root string) (found bool) {
	e.walk(func(e *pathExpr, _ bool) { found = found || e.root == root })
	return found
}

// members returns the names of the first members that a path from $ goes through, such as context and total.
func (e *pathExpr) members() []string {
	if e.root != "$" {
		return nil
	}
	var names []string
	for _, s := range e.steps {
		if s.kind != "." {
			break
		}
		names = append(names, s.name)
	}
	return names
}

// A pathToken is a word, a number, a string, a variable or an operator.
type pathToken struct {
	kind byte // 'w', '0', '"', '$' or 'o'; 0 behind the last one.
	text string
}

// parsePath parses a path with or without a mode in front.
func parsePath(text string) (*pathExpr, bool) {
	tokens, ok := pathTokens(text)
	if !ok {
		return nil, false
	}
	p := &pathParser{tokens: tokens}
	if !p.word("lax") {
		p.word("strict")
	}
	e := p.binary(0)
	if p.failed || p.at < len(p.tokens) {
		return nil, false
	}
	ok = true
	e.walk(func(e *pathExpr, filtered bool) { ok = ok && (filtered || e.root != "@") })
	return e, ok
}

// pathTokens cuts a path into tokens, as jsonpath_scan.l does.
func pathTokens(text string) (tokens []pathToken, ok bool) {
	const special = "?%$.[]{}()|&!=<>@#,*:-+/"
	other := func(r rune) bool {
		return !strings.ContainsRune(special, r) && !strings.ContainsRune(" \t\n\r\f\\\"", r)
	}
	word := func(text string) int {
		if n := strings.IndexFunc(text, func(r rune) bool { return !other(r) }); n >= 0 {
			return n
		}
		return len(text)
	}
	for text != "" {
		r, _ := utf8.DecodeRuneInString(text)
		switch {
		case strings.ContainsRune(" \t\n\r\f", r):
			text = text[1:]
		case strings.HasPrefix(text, "/*"):
			end := strings.Index(text[2:], "*/")
			if end < 0 {
				return nil, false
			}
			text = text[end+4:]
		case r == '"', strings.HasPrefix(text, `$"`):
			kind, rest := byte('"'), text[1:]
			if r == '$' {
				kind, rest = '$', text[2:]
			}
			value, n := unquotePath(rest)
			if n < 0 {
				return nil, false
			}
			tokens = append(tokens, pathToken{kind, value})
			text = rest[n:]
		case r == '$' && word(text[1:]) > 0:
			n := 1 + word(text[1:])
			tokens = append(tokens, pathToken{'$', text[1:n]})
			text = text[n:]
		case r >= '0' && r <= '9':
			n := numberLength(text)
			if rest, _ := utf8.DecodeRuneInString(text[n:]); n < len(text) && (unicode.IsLetter(rest) || unicode.IsDigit(rest)) {
				return nil, false
			}
			tokens = append(tokens, pathToken{'0', text[:n]})
			text = text[n:]
		case r == '\\':
			return nil, false // An escape in a name is rare, and not worth reading.
		case strings.ContainsRune(special, r):
			n := 1
			if len(text) > 1 && slices.Contains([]string{"&&", "||", "==", "!=", "<>", "<=", ">=", "**"}, text[:2]) {
				n = 2
			}
			tokens = append(tokens, pathToken{'o', text[:n]})
			text = text[n:]
		default:
			n := word(text)
			tokens = append(tokens, pathToken{'w', text[:n]})
			text = text[n:]
		}
	}
	return tokens, true
}

// numberLength returns how many bytes at the beginning of a text are a number.
func numberLength(text string) int {
	digits := func(n int) int {
		for n < len(text) && (text[n] >= '0' && text[n] <= '9') {
			n++
		}
		return n
	}
	n := digits(0)
	if n < len(text) && text[n] == '.' && digits(n+1) > n+1 {
		n = digits(n + 1)
	}
	if n < len(text) && (text[n] == 'e' || text[n] == 'E') {
		exponent := n + 1
		if exponent < len(text) && (text[exponent] == '+' || text[exponent] == '-') {
			exponent++
		}
		if end := digits(exponent); end > exponent {
			n = end
		}
	}
	return n
}

// unquotePath returns the string that the text begins with, behind its first quote, and how many bytes it takes;
// less than 0 if it does not end. Escapes of characters by their numbers stay as they are.
func unquotePath(text string) (value string, n int) {
	var b strings.Builder
	for i := 0; i < len(text); i++ {
		switch text[i] {
		case '"':
			return b.String(), i + 1
		case '\\':
			if i++; i == len(text) {
				return "", -1
			}
			switch c := text[i]; c {
			case 'u', 'x':
				b.WriteString(text[i-1 : i+1])
			case 'b', 'f', 'n', 'r', 't', 'v':
				b.WriteByte("\b\f\n\r\t\v"[strings.IndexByte("bfnrtv", c)])
			default:
				b.WriteByte(c)
			}
		default:
			b.WriteByte(text[i])
		}
	}
	return "", -1
}

type pathParser struct {
	tokens []pathToken
	at     int
	failed bool
	depth  int
}

func (p *pathParser) peek() pathToken {
	if p.failed || p.at == len(p.tokens) {
		return pathToken{}
	}
	return p.tokens[p.at]
}

// op takes the next token if it is an operator with this text, and word if it is a word.
func (p *pathParser) op(text string) bool   { return p.take(pathToken{'o', text}) }
func (p *pathParser) word(text string) bool { return p.take(pathToken{'w', text}) }

func (p *pathParser) take(t pathToken) bool {
	if p.peek() != t {
		return false
	}
	p.at++
	return true
}

func (p *pathParser) need(ok bool) {
	if !ok {
		p.failed = true
	}
}

// pathPrecedence orders the binary operators; the loosest come first.
var pathPrecedence = [][]string{{"||"}, {"&&"}, {"==", "!=", "<>", "<", "<=", ">", ">="}, {"+", "-"}, {"*", "/", "%"}}

const (
	comparisonLevel = 2
	maxPathDepth    = 200
)

// binary parses an expression of operators that bind as tightly as those of a level, or tighter.
func (p *pathParser) binary(level int) *pathExpr {
	if level == len(pathPrecedence) {
		return p.unary()
	}
	if p.depth++; p.depth > maxPathDepth*len(pathPrecedence) {
		p.failed = true
	}
	defer func() { p.depth-- }()
	e := p.binary(level + 1)
	for !p.failed {
		t := p.peek()
		switch {
		case t.kind == 'o' && slices.Contains(pathPrecedence[level], t.text):
			p.at++
			e = &pathExpr{op: t.text, args: []*pathExpr{e, p.binary(level + 1)}}
		case level == comparisonLevel && p.word("like_regex"):
			pattern := p.string()
			if p.word("flag") {
				p.string()
			}
			e = &pathExpr{op: "like_regex", args: []*pathExpr{e, pattern}}
		case level == comparisonLevel && p.word("starts"):
			p.need(p.word("with"))
			e = &pathExpr{op: "starts with", args: []*pathExpr{e, p.unary()}}
		default:
			return e
		}
		if level == comparisonLevel {
			return e // They do not associate.
		}
	}
	return e
}

func (p *pathParser) string() *pathExpr {
	t := p.peek()
	p.need(t.kind == '"')
	p.at++
	return &pathExpr{op: "literal", text: t.text, quoted: true}
}

func (p *pathParser) unary() *pathExpr {
	if p.depth++; p.depth > maxPathDepth*len(pathPrecedence) {
		p.failed = true
	}
	defer func() { p.depth-- }()
	for _, op := range []string{"!", "-", "+"} {
		if p.op(op) {
			return &pathExpr{op: op, args: []*pathExpr{p.unary()}}
		}
	}
	return p.accessors(p.primary())
}

// primary parses what accessors may stand behind.
func (p *pathParser) primary() *pathExpr {
	t := p.peek()
	p.at++
	switch t.kind {
	case 'o':
		switch t.text {
		case "$", "@":
			return &pathExpr{op: "path", root: t.text}
		case "(":
			e := p.binary(0)
			p.need(p.op(")"))
			if p.word("is") {
				p.need(p.word("unknown"))
				return &pathExpr{op: "is unknown", args: []*pathExpr{e}}
			}
			return e
		}
	case '$':
		return &pathExpr{op: "path", root: "$" + t.text}
	case '"':
		return &pathExpr{op: "literal", text: t.text, quoted: true}
	case '0':
		return &pathExpr{op: "literal", text: t.text}
	case 'w':
		switch t.text {
		case "true", "false", "null":
			return &pathExpr{op: "literal", text: t.text}
		case "last":
			return &pathExpr{op: "path", root: t.text}
		case "exists":
			p.need(p.op("("))
			e := p.binary(0)
			p.need(p.op(")"))
			return &pathExpr{op: "exists", args: []*pathExpr{e}}
		}
	}
	p.failed = true
	return &pathExpr{op: "literal"}
}

// accessors parses the accessors behind an expression.
func (p *pathParser) accessors(e *pathExpr) *pathExpr {
	var steps []pathStep
	for !p.failed {
		switch {
		case p.op("?"):
			p.need(p.op("("))
			filter := p.binary(0)
			p.need(p.op(")"))
			steps = append(steps, pathStep{kind: "?", args: []*pathExpr{filter}})
		case p.op("["):
			steps = append(steps, p.subscripts())
		case p.op("."):
			steps = append(steps, p.member())
		default:
			if len(steps) == 0 {
				return e
			}
			if e.op == "path" && e.root != "" && len(e.steps) == 0 {
				e.steps = steps
				return e
			}
			return &pathExpr{op: "path", args: []*pathExpr{e}, steps: steps}
		}
	}
	return e
}

// subscripts parses what stands behind an opening bracket.
func (p *pathParser) subscripts() pathStep {
	if p.op("*") {
		p.need(p.op("]"))
		return pathStep{kind: "[*]"}
	}
	step := pathStep{kind: "[]"}
	for !p.failed {
		step.args = append(step.args, p.binary(comparisonLevel+1))
		if p.word("to") { // A range counts as two subscripts.
			step.args = append(step.args, p.binary(comparisonLevel+1))
		}
		if !p.op(",") {
			break
		}
	}
	p.need(p.op("]"))
	return step
}

// member parses what stands behind a dot.
func (p *pathParser) member() pathStep {
	t := p.peek()
	p.at++
	switch {
	case t == pathToken{'o', "*"}:
		return pathStep{kind: ".*"}
	case t == pathToken{'o', "**"}:
		if p.op("{") {
			for !p.failed && !p.op("}") {
				level := p.peek()
				p.need(level.kind == '0' || level == pathToken{'w', "last"} || level == pathToken{'w', "to"})
				p.at++
			}
		}
		return pathStep{kind: ".**"}
	case t.kind == '"':
		return pathStep{kind: ".", name: t.text}
	case t.kind != 'w':
		p.failed = true
		return pathStep{}
	case !p.op("("):
		return pathStep{kind: ".", name: t.text}
	}
	step := pathStep{kind: "()", name: t.text}
	for !p.failed && !p.op(")") {
		if len(step.args) > 0 {
			p.need(p.op(","))
		}
		step.args = append(step.args, p.binary(comparisonLevel+1))
	}
	return step
}
