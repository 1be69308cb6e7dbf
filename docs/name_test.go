package docs_test

import (
	"io/fs"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

func mustPages(t *testing.T) []page {
	t.Helper()
	all, err := pages()
	if err != nil {
		t.Fatal(err)
	}
	return all
}

var (
	links    = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	headings = regexp.MustCompile(`(?m)^#{1,6} +(.+)$`)
	fenced   = regexp.MustCompile("(?ms)^ *```.*?^ *```$")
	spans    = regexp.MustCompile("`([^`\n]+)`")
)

// anchors are those that GitHub gives the headings of a page.
func anchors(p page) map[string]bool {
	got := map[string]bool{}
	for _, m := range headings.FindAllStringSubmatch(fenced.ReplaceAllString(p.text, ""), -1) {
		anchor := strings.ToLower(regexp.MustCompile(`\[([^\]]*)\]\([^)]*\)`).ReplaceAllString(m[1], "$1"))
		anchor = regexp.MustCompile(`[^\pL\pN _-]`).ReplaceAllString(anchor, "")
		got[strings.ReplaceAll(anchor, " ", "-")] = true
	}
	return got
}

// TestLinks follows the links between pages and to files of the repository.
func TestLinks(t *testing.T) {
	t.Parallel()
	all := mustPages(t)
	followed := map[string]bool{"README.md": true}
	for _, p := range all {
		for _, m := range links.FindAllStringSubmatch(fenced.ReplaceAllString(p.text, ""), -1) {
			u, err := url.Parse(m[1])
			if err != nil {
				t.Errorf("%s: %v", p.path, err)
				continue
			}
			if u.IsAbs() {
				if u.Scheme != "https" {
					t.Errorf("%s: %s is not https", p.path, m[1])
				}
				continue
			}
			target := p.path
			if u.Path != "" {
				target = path.Join(path.Dir(p.path), u.Path)
			}
			followed[target] = true
			if _, err := os.Stat(filepath.Join(root, target)); err != nil {
				t.Errorf("%s: %s leads nowhere: %v", p.path, m[1], err)
				continue
			}
			if u.Fragment == "" {
				continue
			}
			i := slices.IndexFunc(all, func(p page) bool { return p.path == target })
			if i < 0 || !anchors(all[i])[u.Fragment] {
				t.Errorf("%s: %s has no such heading", p.path, m[1])
			}
		}
	}
	for _, p := range all {
		if !followed[p.path] {
			t.Errorf("no page links to %s", p.path)
		}
	}
}

// TestReadmeIsShort keeps the first page one that is read to its end.
func TestReadmeIsShort(t *testing.T) {
	t.Parallel()
	for _, p := range mustPages(t) {
		if n := strings.Count(p.text, "\n"); p.path == "README.md" && n > 200 {
			t.Errorf("README.md has %d lines, want at most 200", n)
		}
	}
}

// TestCommandsAndFlags looks up the commands of pawl, and their flags, that prose and blocks name.
func TestCommandsAndFlags(t *testing.T) {
	t.Parallel()
	help := func(command string) string {
		t.Helper()
		args := append(strings.Fields(command), "--help")
		out, err := bounded.Command(t, program, args...).Output()
		if err != nil {
			t.Fatalf("pawl %s --help: %v", command, err)
		}
		return string(out)
	}
	commands := map[string]string{"": help("")}
	for _, m := range regexp.MustCompile(`(?m)^  ([a-z-]+(?: [a-z-]+){0,2})(?:  | *$)`).FindAllStringSubmatch(commands[""], -1) {
		commands[m[1]] = ""
	}
	if len(commands) < 20 {
		t.Fatalf("pawl has %d commands: %v", len(commands), commands)
	}
	groups := map[string]bool{}
	for c := range commands {
		group, _, _ := strings.Cut(c, " ")
		groups[group] = true
	}
	words := regexp.MustCompile(`^(?:[A-Z_]+=\S+ )*(?:bin/)?pawl ([a-z]+)(?: ([a-z-]+))?(?: ([a-z-]+))?`)
	flags := regexp.MustCompile(`(?:^|[\s\[])(--[a-z][a-z-]*)`)
	looked := 0
	for _, p := range mustPages(t) {
		var named []string
		prose := fenced.ReplaceAllString(p.text, "")
		for _, m := range spans.FindAllStringSubmatch(regexp.MustCompile(`\n *`).ReplaceAllString(prose, " "), -1) {
			named = append(named, m[1])
		}
		for _, b := range p.blocks {
			if b.language == "sh" {
				named = append(named, strings.Split(strings.ReplaceAll(b.text, "\\\n", " "), "\n")...)
			}
		}
		for _, text := range named {
			text = strings.TrimSpace(text)
			m := words.FindStringSubmatch(text)
			if m == nil {
				continue
			}
			command := m[1]
			if _, single := commands[command]; !single && m[2] != "" {
				command += " " + m[2]
			}
			if _, whole := commands[command]; !whole && m[3] != "" {
				command += " " + m[3]
			}
			known, is := commands[command]
			if !is {
				if !groups[command] {
					t.Errorf("%s: there is no command in %q", p.path, text)
				}
				continue
			}
			looked++
			if known == "" {
				known = help(command)
				commands[command] = known
			}
			text, _, _ = strings.Cut(text, " | ")
			for _, flag := range flags.FindAllStringSubmatch(text, -1) {
				name := strings.TrimPrefix(flag[1], "--")
				if !regexp.MustCompile(`--(\[no-\])?` + regexp.QuoteMeta(strings.TrimPrefix(name, "no-")) + `\b`).MatchString(known) {
					t.Errorf("%s: pawl %s has no flag %s: %s", p.path, command, flag[1], text)
				}
			}
		}
	}
	if looked < 50 {
		t.Errorf("only %d commands were looked at", looked)
	}
}

// TestNames looks up what else pages name: objects of the database, variables, tests.
func TestNames(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	objects := map[string]bool{}
	for _, name := range bounded.Column[string](t, pool, `
		select n.nspname || '.' || o.name
		from pg_namespace n
		join (
			select relnamespace, relname from pg_class
			union select pronamespace, proname from pg_proc
			union select typnamespace, typname from pg_type
		) o (namespace, name) on o.namespace = n.oid
		where n.nspname in ('pawl', 'pawl_private')`) {
		objects[name] = true
	}
	source := sources(t)
	for _, p := range mustPages(t) {
		if p.path == "CHANGELOG.md" {
			continue // It tells of what was, too.
		}
		text := p.text
		for _, name := range regexp.MustCompile(`\bpawl(?:_private)?\.[a-z][a-z0-9_]*`).FindAllString(text, -1) {
			if !objects[name] {
				t.Errorf("%s: the database has no %s", p.path, name)
			}
		}
		for _, name := range regexp.MustCompile(`\bPAWL_[A-Z][A-Z_]*[A-Z]\b`).FindAllString(text, -1) {
			if !strings.Contains(source, name) {
				t.Errorf("%s: nothing reads %s", p.path, name)
			}
		}
		for _, m := range regexp.MustCompile("`(Test[A-Z]\\w*)`").FindAllStringSubmatch(text, -1) {
			if !strings.Contains(source, "func "+m[1]+"(") {
				t.Errorf("%s: there is no test %s", p.path, m[1])
			}
		}
	}
}

// sources are the texts of all programs and scripts of the repository.
func sources(t *testing.T) string {
	t.Helper()
	var all strings.Builder
	err := fs.WalkDir(os.DirFS(root), ".", func(name string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && (name == ".git" || name == ".tools" || name == ".pawl" || name == "docs"):
			return fs.SkipDir
		case entry.IsDir() || !strings.HasSuffix(name, ".go") && !strings.HasPrefix(name, ".ci/") && name != "Makefile" && name != "docker-compose.yml":
			return nil
		}
		text, err := os.ReadFile(filepath.Join(root, name))
		all.Write(text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all.String()
}

// TestProblems compares the page on problems with the contract: it has each code, and no other.
func TestProblems(t *testing.T) {
	t.Parallel()
	contract, err := openapi3.NewLoader().LoadFromFile(filepath.Join(root, "httpapi", "openapi.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	declared := map[string]bool{}
	for _, code := range contract.Components.Schemas["ProblemCode"].Value.Enum {
		declared[code.(string)] = true
	}
	for _, p := range mustPages(t) {
		if p.path != "docs/http-guide.md" {
			continue
		}
		_, section, _ := strings.Cut(p.text, "\n## Problems\n")
		section, _, _ = strings.Cut(section, "\n## ")
		listed := map[string]bool{}
		for line := range strings.Lines(section) {
			if cells := strings.Split(line, "|"); len(cells) == 5 {
				for _, m := range spans.FindAllStringSubmatch(cells[2], -1) {
					listed[m[1]] = true
				}
			}
		}
		for code := range declared {
			if !listed[code] {
				t.Errorf("%s does not have the problem %s", p.path, code)
			}
		}
		for code := range listed {
			if !declared[code] {
				t.Errorf("%s has the problem %s, which the contract does not have", p.path, code)
			}
		}
	}
}

// TestSQLStates compares the table of SQLSTATEs with the conditions of the database: it has each, with
// its code, and no other.
func TestSQLStates(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	rows, err := pool.Query(t.Context(), "select distinct sqlstate, problem from pawl_private.condition")
	if err != nil {
		t.Fatal(err)
	}
	raised := map[string]string{}
	var sqlstate, problem string
	if _, err := pgx.ForEachRow(rows, []any{&sqlstate, &problem}, func() error {
		if other, twice := raised[sqlstate]; twice {
			t.Errorf("%s is raised for %s and for %s", sqlstate, other, problem)
		}
		raised[sqlstate] = problem
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	all := mustPages(t)
	i := slices.IndexFunc(all, func(p page) bool { return p.path == "docs/sql-api.md" })
	row := regexp.MustCompile("(?m)^\\| `(PW\\w+)` \\| `([a-z-]+)` \\| .+ \\| (.+) \\|$")
	listed := map[string]string{}
	for _, m := range row.FindAllStringSubmatch(all[i].text, -1) {
		if _, twice := listed[m[1]]; twice {
			t.Errorf("docs/sql-api.md has %s twice", m[1])
		}
		listed[m[1]] = m[2]
		for _, f := range spans.FindAllStringSubmatch(m[3], -1) {
			var known bool
			if err := pool.QueryRow(t.Context(), "select to_regproc('pawl.' || $1) is not null", f[1]).Scan(&known); err != nil {
				t.Fatal(err)
			} else if !known {
				t.Errorf("docs/sql-api.md: %s is raised by %s, which the schema does not have", m[1], f[1])
			}
		}
	}
	if diff := cmp.Diff(raised, listed); diff != "" {
		t.Errorf("docs/sql-api.md has other SQLSTATEs than pawl_private.condition (-database +page):\n%s", diff)
	}
}

// TestReceiverWithoutADatabase shows that the example says in one line what is wrong.
func TestReceiverWithoutADatabase(t *testing.T) {
	t.Parallel()
	away := bounded.Command(t, exampleProgram("webhook-receiver"))
	away.Env = append(os.Environ(), "DATABASE_URL=postgres://127.0.0.1:1/x", "WEBHOOK_SECRET=whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
	if out, err := away.CombinedOutput(); err == nil || strings.Count(string(out), "\n") != 1 || strings.Count(string(out), "refused") != 1 {
		t.Errorf("without a database the receiver says (%v) %s", err, out)
	}
}
