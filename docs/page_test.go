package docs_test

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// root is the repository, as seen from this package.
const root = ".."

// page is a Markdown file.
type page struct {
	path   string // From the root, with slashes.
	text   string
	blocks []block
	// emptyDatabase: the page's database begins without the schema.
	emptyDatabase bool
}

// block is a fenced block, or one that a comment hides.
type block struct {
	line     int // Of its first line, from 1.
	language string
	text     string
	hidden   bool
	prints   []string
	statuses string
	exits    string
	raises   string
	schema   string
	path     string
	faulty   bool
	figure   bool
}

// file is the file that a block's first line names, if it does.
func (b block) file() string {
	if b.path != "" {
		return b.path
	}
	first, _, _ := strings.Cut(b.text, "\n")
	if m := fileLine.FindStringSubmatch(first); m != nil && b.language != "sh" {
		return m[1]
	}
	return ""
}

var (
	fileLine  = regexp.MustCompile(`^(?:#|--|//) ([\w./-]+\.(?:yaml|sql|go))$`)
	fence     = regexp.MustCompile("^( *)```(.*)$")
	directive = regexp.MustCompile(`^ *<!-- ([a-z]+)(?:: (.*?))? -->$`)
	hiddenRun = regexp.MustCompile(`^ *<!-- run: (sh|sql)$`)
)

// pages reads all pages.
func pages() ([]page, error) {
	var paths []string
	for _, pattern := range []string{"README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "docs/*.md", "docs/decisions/*.md", "examples/*/README.md"} {
		found, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			return nil, err
		}
		if len(found) == 0 {
			return nil, fmt.Errorf("there is no %s", pattern)
		}
		paths = append(paths, found...)
	}
	slices.Sort(paths)
	var all []page
	for _, path := range paths {
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		name, err := filepath.Rel(root, path)
		if err != nil {
			return nil, err
		}
		p := page{path: filepath.ToSlash(name), text: string(data)}
		if err := p.read(); err != nil {
			return nil, err
		}
		all = append(all, p)
	}
	return all, nil
}

// read finds the blocks and what the directives say of them.
func (p *page) read() error {
	var next block // Takes directives until its fence comes.
	lines := strings.Split(p.text, "\n")
	for i := 0; i < len(lines); i++ {
		line := lines[i]
		fail := func(format string, args ...any) error {
			return fmt.Errorf("%s:%d: %s", p.path, i+1, fmt.Sprintf(format, args...))
		}
		if m := fence.FindStringSubmatch(line); m != nil {
			next.language, next.line = strings.TrimSpace(m[2]), i+2
			var text []string
			for i++; i < len(lines) && strings.TrimSpace(lines[i]) != "```"; i++ {
				text = append(text, strings.TrimPrefix(lines[i], m[1]))
			}
			if i == len(lines) {
				return fail("the block has no end")
			}
			next.text = strings.Join(text, "\n") + "\n"
			p.blocks = append(p.blocks, next)
			next = block{}
			continue
		}
		if m := hiddenRun.FindStringSubmatch(line); m != nil {
			hidden := block{language: m[1], line: i + 2, hidden: true}
			for i++; i < len(lines) && strings.TrimSpace(lines[i]) != "-->"; i++ {
				hidden.text += lines[i] + "\n"
			}
			p.blocks = append(p.blocks, hidden)
			continue
		}
		if m := directive.FindStringSubmatch(line); m != nil {
			if !p.take(&next, m[1], m[2]) {
				return fail("<!-- %s --> is no directive", m[1])
			}
			continue
		}
		if strings.TrimSpace(line) != "" && len(next.prints)+len(next.statuses)+len(next.exits)+len(next.raises)+len(next.schema)+len(next.path) > 0 {
			return fail("a directive stands before no block")
		}
	}
	return nil
}

// take notes a directive, and reports whether it is one.
func (p *page) take(next *block, name, value string) bool {
	switch name {
	case "prints":
		next.prints = append(next.prints, value)
	case "statuses":
		next.statuses = value
	case "exits":
		next.exits = value
	case "raises":
		next.raises = value
	case "file":
		next.path = value
	case "schema":
		next.schema = value
	case "faulty":
		next.faulty = true
	case "figure":
		next.figure = true
	case "database":
		p.emptyDatabase = value == "empty"
		return p.emptyDatabase
	default:
		return false
	}
	return true
}
