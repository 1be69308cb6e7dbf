package main_test

import (
	"encoding/json"
	"encoding/xml"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.yaml.in/yaml/v4"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/fsm/definition"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

const doorway = `name: door
initial: OPEN
context_schema: { type: object, properties: { keys: { type: integer } } }
invariant: '$.context.keys > 0'
states:
  OPEN:
    on: { lock: { target: SHUT, guard: { equal: ['$.actor.subject', porter] }, assign: { log.by: '$.actor.subject' } } }
    after: { 10m: SHUT }
  SHUT: { on: { open: OPEN, close: GONE } }
  GONE: { type: final, outcome: cancelled }
tests:
`

// Scenarios that are as expected: creations, events, actors and times, of the whole and of parts of a context.
const fineScenarios = `  - name: the porter locks
    context: { keys: 2 }
    actor: { subject: guest }
    expect: { state: OPEN, version: 1 }
    steps:
      - { event: lock, refused: guard-rejected }
      - { event: lock, actor: { subject: porter }, expect: { state: SHUT, status: active, version: 2, context: { keys: 2.0, log: { by: porter } } } }
      - { event: close, expect: { status: cancelled, context_equals: { keys: 2, log: { by: porter } } } }
  - name: it shuts by itself
    now: '2026-03-01T09:00:00Z'
    context: { keys: 1 }
    steps: [{ after: 9m, expect: { state: OPEN } }, { after: 1m, expect: { state: SHUT } }, { event: knock, refused: unknown-event }]
  - { name: no key, context: { keys: 0 }, refused: guard-rejected }
  - { name: no number, context: { keys: one }, refused: invalid-context }
  - { name: from a state, context: { keys: 1 }, state: SHUT, steps: [{ event: open, expect: { state: OPEN } }] }
`

func TestWorkflowTest(t *testing.T) {
	t.Parallel()
	env := []string{"DATABASE_URL=" + dbtest.DSN(dbtest.New(t))}
	fine := writeFile(t, "fine.yaml", doorway+fineScenarios)
	if out := mustPawl(t, env, "workflow", "test", fine); !strings.HasSuffix(out, "fine.yaml: 5 ok, 0 failed\n") {
		t.Error(out)
	}
	out := mustPawl(t, env, "workflow", "test", "-v", fine)
	for _, line := range []string{"ok    the porter locks", "      lock refused in OPEN: guard-rejected", "      lock: OPEN → SHUT", "      after:10m: OPEN → SHUT"} {
		if !strings.Contains(out, line+"\n") {
			t.Errorf("there is no line %q in\n%s", line, out)
		}
	}

	// Each failure is named with the line of its step.
	file := writeFile(t, "wrong.yaml", doorway+`  - name: wrong
    context: { keys: 2 }
    steps:
      - { event: lock, actor: { subject: porter },
          expect: { state: OPEN, status: completed, version: 3, context: { log: { by: [guest], at: 1 } }, context_equals: { keys: 2 } } }
      - { event: never, expect: { state: GONE } }
  - { name: refused, context: { keys: 2 }, steps: [{ event: lock }] }
  - { name: not refused, context: { keys: 2 }, steps: [{ after: 10m, refused: guard-rejected }] }
  - { name: created, context: { keys: 2 }, refused: invalid-context }
  - { name: not created, context: { keys: 0 }, steps: [] }
  - { name: begun, context: { keys: 2 }, expect: { state: SHUT } }
`)
	report := filepath.Join(t.TempDir(), "junit.xml")
	stdout, stderr, code := pawl(t, env, "workflow", "test", "--junit", report, file, fine)
	if code != 1 || !strings.Contains(stdout, "0 ok, 6 failed") || !strings.Contains(stdout, "5 ok, 0 failed") {
		t.Errorf("exit code %d: %s", code, stdout)
	}
	for _, line := range []string{
		":15:9: wrong: step 1, lock: state is SHUT, expected OPEN",
		":15:9: wrong: step 1, lock: status is active, expected completed",
		":15:9: wrong: step 1, lock: version is 2, expected 3",
		":15:9: wrong: step 1, lock: context.log.at is missing, expected 1",
		`:15:9: wrong: step 1, lock: context.log.by is "porter", expected ["guest"]`,
		`:15:9: wrong: step 1, lock: context.log is {"by":"porter"}, expected nothing`,
		":18:52: refused: step 1, lock: is refused in OPEN as guard-rejected: ",
		":19:56: not refused: step 1, after 10m: leads to SHUT, expected to be refused as guard-rejected",
		":20:5: created: the instance is created in OPEN, expected to be refused as invalid-context",
		":21:5: not created: the instance is refused as guard-rejected: ",
		":22:42: begun: state is OPEN, expected SHUT",
	} {
		if !strings.Contains(stderr, file+line) {
			t.Errorf("there is no line %q in\n%s", line, stderr)
		}
	}
	if n := strings.Count(stderr, "\n"); n != 11 {
		t.Errorf("%d lines: %s", n, stderr)
	}
	var suites struct {
		Suites []struct {
			Tests    int `xml:"tests,attr"`
			Failures int `xml:"failures,attr"`
			Cases    []struct {
				Name    string `xml:"name,attr"`
				Failure *struct {
					Message string `xml:"message,attr"`
				} `xml:"failure"`
			} `xml:"testcase"`
		} `xml:"testsuite"`
	}
	text, err := os.ReadFile(report)
	if err != nil {
		t.Fatal(err)
	}
	if err := xml.Unmarshal(text, &suites); err != nil {
		t.Fatal(err)
	}
	if s := suites.Suites; len(s) != 2 || s[0].Tests != 6 || s[0].Failures != 6 || s[1].Tests != 5 || s[1].Failures != 0 ||
		s[0].Cases[0].Name != "wrong" || s[0].Cases[0].Failure.Message != "step 1, lock: state is SHUT, expected OPEN" || s[1].Cases[0].Failure != nil {
		t.Errorf("%s", text)
	}
}

// The schemas that definitions share need not be registered where the scenarios are run.
func TestWorkflowTestSchemas(t *testing.T) {
	t.Parallel()
	env := []string{"DATABASE_URL=" + dbtest.DSN(dbtest.New(t))}
	folder := filepath.Dir(writeFile(t, "keys.yaml", "{ type: integer }"))
	file := writeFile(t, "shared.yaml", strings.Replace(doorway, "keys: { type: integer }", "keys: { $ref: 'pawl:keys' }", 1)+fineScenarios)
	if _, stderr, code := pawl(t, env, "workflow", "test", file); code != 2 || !strings.Contains(stderr, `there is no schema "keys"`) {
		t.Errorf("without the schema: exit code %d: %s", code, stderr)
	}
	if out := mustPawl(t, env, "workflow", "test", "--schemas", folder, file); !strings.Contains(out, "5 ok, 0 failed") {
		t.Error(out)
	}
}

// What cannot be told is neither right nor wrong.
func TestWorkflowTestCannotTell(t *testing.T) {
	t.Parallel()
	env := []string{"DATABASE_URL=" + dbtest.DSN(dbtest.New(t))}
	fine := writeFile(t, "fine.yaml", doorway+fineScenarios)
	for name, c := range map[string]struct{ text, want string }{
		"no scenarios":    {strings.TrimSuffix(doorway, "tests:\n"), "there is no scenario"},
		"no definition":   {"[1]", "must be a JSON object"},
		"a fault":         {strings.Replace(doorway, "log.by", "''", 1) + fineScenarios, ":7:90: /states/OPEN/on/lock/assign/"},
		"a path":          {strings.Replace(doorway, "'$.context.keys > 0'", "'$.context.keys >'", 1) + fineScenarios, ":4:1: /invariant: "},
		"a member":        {doorway + "  - { name: x, step: [] }\n", ":12:16: /tests/0/step: "},
		"no name":         {doorway + "  - { steps: [] }\n", ":12:5: /tests/0: the scenario needs a name"},
		"neither":         {doorway + "  - { name: x, context: { keys: 1 }, steps: [{ payload: {} }] }\n", ":12:46: /tests/0/steps/0: "},
		"both":            {doorway + "  - { name: x, steps: [{ event: e, refused: x, expect: { state: A } }] }\n", ":12:36: /tests/0/steps/0/refused: "},
		"refused, steps":  {doorway + "  - { name: x, refused: y, steps: [] }\n", ":12:16: /tests/0/refused: "},
		"no such state":   {doorway + "  - { name: x, state: NOWHERE }\n", ":12:16: /tests/0/state: "},
		"no duration":     {doorway + "  - { name: x, context: { keys: 1 }, steps: [{ after: soon }] }\n", ":12:48: /tests/0/steps/0/after: "},
		"time with event": {doorway + "  - { name: x, context: { keys: 1 }, steps: [{ after: 1m, actor: { subject: x } }] }\n", ":12:46: /tests/0/steps/0: "},
	} {
		file := writeFile(t, "file.yaml", c.text)
		args := []string{"workflow", "test", file}
		if name != "no scenarios" {
			args = append(args, fine)
		}
		stdout, stderr, code := pawl(t, env, args...)
		if code != 2 || !strings.Contains(stderr, c.want) || len(args) == 4 && !strings.Contains(stdout, "5 ok, 0 failed") {
			t.Errorf("%s: exit code %d: %s%s", name, code, stdout, stderr)
		}
	}
	if _, stderr, code := pawl(t, nil, "workflow", "test", "--server", "http://127.0.0.1:1", fine); code != 2 || !strings.Contains(stderr, "check --server") {
		t.Errorf("without a service: exit code %d: %s", code, stderr)
	}
	if _, stderr, code := pawl(t, nil, "workflow", "test", "--database-url", "postgres://127.0.0.1:1/none", fine); code != 2 {
		t.Errorf("without a database: exit code %d: %s", code, stderr)
	}
}

// Without a service and a database the command has a private one, and a service answers the same.
func TestWorkflowTestSomewhere(t *testing.T) {
	t.Parallel()
	fine := writeFile(t, "fine.yaml", doorway+fineScenarios)
	own := mustPawl(t, []string{"DATABASE_URL=", "PAWL_DATABASE_URL="}, "workflow", "test", "-v", fine)
	p := start(t, []string{"DATABASE_URL=" + dbtest.NewDSN(t)}, "serve")
	if answered := mustPawl(t, nil, "workflow", "test", "-v", "--server", p.url, fine); answered != own {
		t.Errorf("the service: %s\nthe private database: %s", answered, own)
	}
}

// The scenarios of the examples are as expected.
func TestExamples(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("../../examples/*/workflow.yaml")
	if err != nil || len(files) != 14 {
		t.Fatalf("there are %d examples, want 14 (%v)", len(files), err)
	}
	pool := dbtest.New(t)
	args := append([]string{"workflow", "test", "--database-url", dbtest.DSN(pool)}, files...)
	stdout, stderr, code := pawl(t, nil, args...)
	if code != 0 {
		t.Errorf("exit code %d: %s%s", code, stdout, stderr)
	}
	if strings.Contains(stdout, " 0 ok") {
		t.Errorf("an example has no scenarios: %s", stdout)
	}
	bounded.UntilSQL(t, pool, "select count(*) = $1 from pawl.workflow", 0)
}

// Each member and each operation of the language is in an example, whose first line is for editors.
func TestExamplesShowTheLanguage(t *testing.T) {
	t.Parallel()
	var schema any
	if err := json.Unmarshal([]byte(definition.DocumentSchema), &schema); err != nil {
		t.Fatal(err)
	}
	members := map[string]bool{}
	var declared func(v any)
	declared = func(v any) {
		switch v := v.(type) {
		case map[string]any:
			properties, _ := v["properties"].(map[string]any)
			for name := range properties {
				members[name] = true
			}
			for _, child := range v {
				declared(child)
			}
		case []any:
			for _, child := range v {
				declared(child)
			}
		}
	}
	declared(schema)
	if len(members) < 50 {
		t.Fatalf("the schema has only %d members", len(members))
	}
	// The editor's schema is in the first line, copies of schemas are made by tools, and a number is for those who count
	// themselves.
	for _, name := range []string{"$schema", "schemas", "version"} {
		delete(members, name)
	}
	files, err := filepath.Glob("../../examples/*/workflow.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(string(text), "# yaml-language-server: $schema=../../fsm/definition/schema.json\n") {
			t.Errorf("%s does not begin with the line for editors", file)
		}
		if _, err := os.Stat(filepath.Join(filepath.Dir(file), "README.md")); err != nil {
			t.Error(err)
		}
		var document yaml.Node
		if err := yaml.Unmarshal(text, &document); err != nil {
			t.Fatal(err)
		}
		var used func(n *yaml.Node)
		used = func(n *yaml.Node) {
			for i, child := range n.Content {
				if n.Kind == yaml.MappingNode && i%2 == 0 {
					delete(members, child.Value)
				}
				used(child)
			}
		}
		used(&document)
	}
	for name := range members {
		t.Errorf("no example shows %s", name)
	}
}
