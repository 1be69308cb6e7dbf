package docs_test

import (
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/db/localpg"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// unrunnable lists the lines of shell blocks that cannot run here, each with its reason. A line
// counts that begins so; one that no page has fails the test.
var unrunnable = map[string]string{
	"git clone https://github.com/pawl-fsm/pawl && cd pawl": "fetches what is being tested",
	"for replica in $(docker compose ps --quiet pawl)":      "needs Docker; make test-containers restarts the replicas",
}

// examples are the programs of the examples, which are built beside pawl.
var examples = []string{"webhook-receiver", "trip-saga", "payment", "export-job"}

// program is the real thing, built once.
var program string

func exampleProgram(name string) string { return filepath.Join(filepath.Dir(program), name) }

func TestMain(m *testing.M) {
	packages := []string{"../cmd/pawl"}
	for _, example := range examples {
		packages = append(packages, "../examples/"+example)
	}
	programs, remove := bounded.Build(packages...)
	program = programs[0]
	code := m.Run()
	remove()
	dbtest.Exit(code)
}

// TestPages runs every block of every page.
func TestPages(t *testing.T) {
	t.Parallel()
	all, err := pages()
	if err != nil {
		t.Fatal(err)
	}
	contract, err := openapi3.NewLoader().LoadFromFile(filepath.Join(root, "httpapi", "openapi.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	passed := make(chan string, 100) // Lines of unrunnable.
	var checker services
	address := checker.start(t, root, append(os.Environ(), "DATABASE_URL="+dbtest.NewDSN(t)), program+" serve --listen 127.0.0.1:0")
	var started, with atomic.Int32
	t.Run("pages", func(t *testing.T) {
		for _, p := range all {
			if len(p.blocks) == 0 {
				continue
			}
			with.Add(1)
			t.Run(p.path, func(t *testing.T) {
				t.Parallel()
				started.Add(1)
				t.Cleanup(func() {
					if t.Skipped() {
						started.Add(-1)
					}
				})
				newRunner(t, p, contract, "http://"+address, passed).run()
			})
		}
	})
	close(passed)
	if started.Load() < with.Load() {
		return // Of the pages only some were asked for, or can run here.
	}
	left := map[string]bool{}
	for line := range unrunnable {
		left[line] = true
	}
	// bounded: the channel is closed
	for line := range passed {
		delete(left, line)
	}
	for line := range left {
		t.Errorf("no page has the line %q: take it out of unrunnable", line)
	}
}

// runner runs the blocks of one page.
type runner struct {
	*testing.T
	page     page
	contract *openapi3.T
	checker  string // The URL of a service that checks definitions.
	passed   chan<- string
	dir      string // What looks like a clone.
	dsn      string
	env      []string
	words    *strings.Replacer
	bound    bindings
	shell    *session
	psql     *session
	services services
	// output is what the last block printed, if one did that no block has shown yet.
	output  string
	printed bool
	// files are those that blocks have written, and whether a block has used them.
	files map[string]bool
}

func newRunner(t *testing.T, p page, contract *openapi3.T, checker string, passed chan<- string) *runner {
	r := &runner{
		T: t, page: p, contract: contract, checker: checker, passed: passed,
		dir: t.TempDir(), bound: bindings{}, files: map[string]bool{},
	}
	if p.emptyDatabase {
		r.dsn = dbtest.Empty(t)
	} else {
		r.dsn = dbtest.NewDSN(t)
	}
	r.clone()
	service, replica, hook := "127.0.0.1:"+bounded.Port(t), "127.0.0.1:"+bounded.Port(t), "127.0.0.1:"+bounded.Port(t)
	role := "pawl_service_" + filepath.Base(databaseName(t, r.dsn))
	r.dropRoleAtEnd(role)
	r.words = strings.NewReplacer(
		"127.0.0.1:8080", service, "--listen :8080", "--listen "+service, "127.0.0.1:8081", replica, "127.0.0.1:9090", hook, "127.0.0.1:9091", hook,
		"127.0.0.1:9092", hook, "127.0.0.1:9093", hook,
		// A shell would take a URL with several parameters apart.
		"postgres://owner@db/app", "$OWNER_URL", "postgres://pawl_service@db/app", "$SERVICE_URL", "pawl_service", role,
		// Pasted as it is printed, with what a shell makes something else of.
		"postgres://…", withQuery(r.dsn, "application_name=docs&timezone=UTC"),
	)
	path := filepath.Join(r.dir, "bin") + ":"
	if binaries, err := localpg.Find(); err == nil {
		if psql, err := binaries.Path("psql"); err == nil {
			path += filepath.Dir(psql) + ":"
		}
	}
	r.env = append(os.Environ(),
		"PATH="+path+os.Getenv("PATH"), "DATABASE_URL="+r.dsn, "OWNER_URL="+r.dsn, "SERVICE_URL="+withUser(t, r.dsn, role), "PAWL_DATABASE_URL=", "PAWL_SERVER=http://"+service,
		"PAWL_LISTEN="+service, "LISTEN="+hook, "PAWL_TOKEN=", "PAWL_ACTOR=", "PSQL_PAGER=", "PGTZ=UTC", "LC_ALL=C.UTF-8")
	return r
}

// clone makes the scratch directory: links to what the repository has, and bin with the programs
// that pages name.
func (r *runner) clone() {
	r.Helper()
	absolute, err := filepath.Abs(root)
	if err != nil {
		r.Fatal(err)
	}
	for _, name := range []string{"examples", "httpapi", "db", "Makefile", "docker-compose.yml"} {
		if err := os.Symlink(filepath.Join(absolute, name), filepath.Join(r.dir, name)); err != nil {
			r.Fatal(err)
		}
	}
	bin := filepath.Join(r.dir, "bin")
	// What make does here is the Makefile's business: it would run this test again.
	plan := "#!/bin/sh\nexec " + lookPath(r.T, "make") + " -n -C '" + absolute + "' \"$@\" >/dev/null\n"
	for _, err := range []error{
		os.Mkdir(bin, 0o700), os.Symlink(program, filepath.Join(bin, "pawl")),
		os.WriteFile(filepath.Join(bin, "make"), []byte(plan), 0o700),
	} {
		if err != nil {
			r.Fatal(err)
		}
	}
	if goose := os.Getenv("PAWL_GOOSE"); goose != "" {
		if err := os.Symlink(goose, filepath.Join(bin, "goose")); err != nil {
			r.Fatal(err)
		}
	}
}

// run runs the page's blocks in their order.
func (r *runner) run() {
	r.wantPrograms()
	for _, b := range r.page.blocks {
		b.text = r.asRun(b.text)
		switch {
		case b.file() != "" && b.language != "yaml":
			r.write(b)
		case b.language == "sh":
			r.sh(b)
		case b.language == "sql":
			r.sql(b)
		case b.language == "yaml":
			r.definition(b)
		case b.language == "go":
			r.goProgram(b)
		case b.language == "json":
			r.document(b)
		case b.language == "text":
			r.shown(b)
		default:
			r.fail(b, "a block in %q cannot be run: see the package's comment", b.language)
		}
	}
	for file, used := range r.files {
		if !used {
			r.Errorf("%s: the file %s is written, and no later block uses it", r.page.path, file)
		}
	}
}

// asRun gives the words of a page as they hold here, and notes which files they use.
func (r *runner) asRun(text string) string {
	for file := range r.files {
		if strings.Contains(text, file) {
			r.files[file] = true
		}
	}
	return r.bound.replace(r.words.Replace(text))
}

func (r *runner) fail(b block, format string, args ...any) {
	r.Helper()
	r.Fatalf("%s:%d: %s", r.page.path, b.line, fmt.Sprintf(format, args...))
}

// wantPrograms skips a page whose blocks use programs that this machine does not have.
func (r *runner) wantPrograms() {
	for _, b := range r.page.blocks {
		for name, how := range map[string]string{"curl": "install curl", "goose": "make test builds it and sets PAWL_GOOSE", "pg_dump": "install PostgreSQL's client programs"} {
			if b.language == "sh" && regexp.MustCompile(`(^|[|&;(] *|\n)`+name+` `).MatchString(b.text) && !r.has(name) {
				r.Skipf("%s needs %s: %s", r.page.path, name, how)
			}
		}
		if b.language == "sql" && !r.has("psql") {
			r.Skipf("%s needs psql: install PostgreSQL's client programs", r.page.path)
		}
		// It refuses to read a server that is newer than itself.
		if strings.Contains(b.text, "pg_dump ") && b.language == "sh" && major(r.T, r.env, "pg_dump --version") < major(r.T, r.env, "psql -XAtc 'show server_version' \"$DATABASE_URL\"") {
			r.Skipf("%s needs the pg_dump of the server's version", r.page.path)
		}
	}
}

// major is the first number that a command prints.
func major(t *testing.T, env []string, command string) int {
	t.Helper()
	cmd := bounded.Command(t, "sh", "-c", command)
	cmd.Env = env
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", command, err, out)
	}
	n, err := strconv.Atoi(regexp.MustCompile(`\d+`).FindString(string(out)))
	if err != nil {
		t.Fatalf("%s prints %s", command, out)
	}
	return n
}

func (r *runner) has(name string) bool {
	look := bounded.Command(r, "sh", "-c", "command -v "+name)
	look.Env = r.env
	return look.Run() == nil
}

// sh runs a block in the page's shell, but for the services that it starts.
func (r *runner) sh(b block) {
	if r.shell == nil {
		r.shell = startShell(r.T, r.dir, r.env)
	}
	var output strings.Builder
	var lines []string
	flush := func() {
		if len(lines) == 0 {
			return
		}
		out, code := r.shell.run(strings.Join(lines, "\n")+"\n", b.exits == "")
		output.WriteString(out)
		lines = nil
		want := b.exits
		if want == "" {
			want = "0"
		}
		if code != want {
			r.fail(b, "exit code %s, want %s: %s", code, want, output.String())
		}
	}
	for line := range strings.Lines(b.text) {
		line = strings.TrimSuffix(line, "\n")
		if r.isUnrunnable(line) {
			continue
		}
		if command, isService := serviceCommand(line); isService {
			flush()
			r.services.start(r.T, r.dir, r.env, command)
			continue
		}
		lines = append(lines, line)
	}
	flush()
	r.wantPrinted(b, output.String())
}

func (r *runner) isUnrunnable(line string) bool {
	for start := range unrunnable {
		if strings.HasPrefix(line, start) {
			r.passed <- start
			return true
		}
	}
	return false
}

func (r *runner) wantPrinted(b block, output string) {
	r.Helper()
	for _, want := range b.prints {
		if !strings.Contains(output, r.asRun(want)) {
			r.fail(b, "%q is not printed: %s", want, output)
		}
	}
	if b.statuses != "" {
		var statuses []string
		for _, m := range regexp.MustCompile(`(?m)^HTTP/1\.1 (\d+)`).FindAllStringSubmatch(output, -1) {
			statuses = append(statuses, m[1])
		}
		if got := strings.Join(statuses, " "); got != b.statuses {
			r.fail(b, "the statuses are %s, want %s: %s", got, b.statuses, output)
		}
	}
	r.output, r.printed = output, !b.hidden
}

func (r *runner) sql(b block) {
	if r.psql == nil {
		r.psql = startPsql(r.T, r.dir, r.env, r.dsn)
	}
	output, code := r.psql.run(b.text, true)
	want := b.raises
	if want == "" {
		want = "00000"
	}
	if !strings.HasPrefix(code, want) {
		r.fail(b, "SQLSTATE %s, want %s: %s", code, want, output)
	}
	r.wantPrinted(b, output)
}

// write keeps a block in the file that it names.
func (r *runner) write(b block) string {
	r.Helper()
	path := filepath.Join(r.dir, b.file())
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		r.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(b.text), 0o600); err != nil {
		r.Fatal(err)
	}
	r.files[b.file()] = false
	return path
}

// definition has a definition validated, with the guards by Postgres.
func (r *runner) definition(b block) {
	path := filepath.Join(r.dir, "definition.yaml")
	if b.file() != "" {
		path = r.write(b)
	} else if err := os.WriteFile(path, []byte(b.text), 0o600); err != nil {
		r.Fatal(err)
	}
	validate := bounded.Command(r, program, "workflow", "validate", "--server", r.checker, path)
	out, err := validate.CombinedOutput()
	if (err != nil) != b.faulty {
		r.fail(b, "the definition's faults (%v): %s", err, out)
	}
	r.output, r.printed = string(out), false
}

// goProgram compiles and runs a program as if it were a package of this module.
func (r *runner) goProgram(b block) {
	source := filepath.Join(r.TempDir(), "main.go")
	absolute, err := filepath.Abs(root)
	if err != nil {
		r.Fatal(err)
	}
	overlay, err := json.Marshal(map[string]any{"Replace": map[string]string{filepath.Join(absolute, "docs", "block", "main.go"): source}})
	if err != nil {
		r.Fatal(err)
	}
	file := filepath.Join(r.TempDir(), "overlay.json")
	for path, data := range map[string][]byte{source: []byte(b.text), file: overlay} {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			r.Fatal(err)
		}
	}
	run := bounded.Command(r, "go", "run", "-overlay", file, "./docs/block")
	run.Dir, run.Env = absolute, r.env
	out, err := run.CombinedOutput()
	if err != nil {
		r.fail(b, "%v: %s", err, out)
	}
	r.wantPrinted(b, string(out))
}

// document checks a request against the contract, or an answer against what was printed.
func (r *runner) document(b block) {
	if b.schema == "" {
		r.wantOutput(b)
		if err := r.bound.json(b.text, r.output); err != nil {
			r.fail(b, "%v\n%s", err, r.output)
		}
		return
	}
	schema := r.contract.Components.Schemas[b.schema]
	v, err := decode(b.text)
	if err != nil || schema == nil {
		r.fail(b, "the schema %s is there: %t; the document: %v", b.schema, schema != nil, err)
	}
	if err := schema.Value.VisitJSON(v, openapi3.EnableJSONSchema2020()); err != nil {
		r.fail(b, "%v", err)
	}
}

// shown compares a block with what the one before it has printed.
func (r *runner) shown(b block) {
	if b.figure {
		return
	}
	r.wantOutput(b)
	if err := r.bound.lines(b.text, r.output); err != nil {
		r.fail(b, "%v\nprinted is\n%s", err, r.output)
	}
}

func (r *runner) wantOutput(b block) {
	r.Helper()
	if !r.printed {
		r.fail(b, "shows the output of no block: name its schema, or mark it as a figure")
	}
	r.printed = false
}

// dropRoleAtEnd drops the role that a page may have made, which belongs to the whole server.
func (r *runner) dropRoleAtEnd(role string) {
	r.Cleanup(func() { dropRole(r.T, r.dsn, role) })
}

func databaseName(t *testing.T, dsn string) string {
	t.Helper()
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	return strings.ReplaceAll(u.Path, "-", "_")
}

func withUser(t *testing.T, dsn, user string) string {
	t.Helper()
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword(user, "secret")
	return u.String()
}

func withQuery(dsn, query string) string {
	if strings.Contains(dsn, "?") {
		return dsn + "&" + query
	}
	return dsn + "?" + query
}
