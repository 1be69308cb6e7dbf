package main_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// writeFile writes a file that is deleted when the test ends.
func writeFile(t testing.TB, name, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// edited writes a copy of the flight-booking definition with some of its text replaced.
func edited(t testing.TB, pairs ...string) string {
	t.Helper()
	text, err := os.ReadFile(flight)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(pairs); i += 2 {
		if !strings.Contains(string(text), pairs[i]) {
			t.Fatalf("there is no %q in %s", pairs[i], flight)
		}
	}
	return writeFile(t, "edited.yaml", strings.NewReplacer(pairs...).Replace(string(text)))
}

// Validate names every fault of every file with its line, in each format.
func TestWorkflowValidate(t *testing.T) {
	t.Parallel()
	faulty := writeFile(t, "faulty.yaml", `name: faulty
initial: A
states:
  A:
    on:
      go: [{ target: A }, { target: NOWHERE }]
      back: &back
        target: NOWHERE
        guard: '$.context.a == 1'
      again: *back
    colour: red
  B: { type: final }
`)
	noYAML := writeFile(t, "no,yaml: %.yaml", "name: x\n  initial: [\n")
	twice := writeFile(t, "twice.json", "{\"name\": \"twice\",\n\"initial\": \"A\",\n\"initial\": \"B\"}")
	const valid = "but for its guards"
	flight, err := filepath.Abs(flight)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string][]string{
		faulty: {
			"6:27 /states/A/on/go/1", "6:29 /states/A/on/go/1/target", "8:9 /states/A/on/back/target", "8:9 /states/A/on/again/target",
			"11:5 /states/A/colour", "12:3 /states/B",
		},
		twice: {"3:1 /initial"},
	}

	stdout, stderr, code := pawl(t, nil, "workflow", "validate", faulty, flight, noYAML, twice)
	if code != 1 || strings.Count(stdout, "\n") != 1 || !strings.Contains(stdout, flight+": valid, "+valid) {
		t.Errorf("exit code %d: %s", code, stdout)
	}
	for file, faults := range want {
		for _, fault := range faults {
			place, pointer, _ := strings.Cut(fault, " ")
			if !strings.Contains(stderr, file+":"+place+": "+pointer+": ") {
				t.Errorf("there is no %s at %s in\n%s", pointer, place, stderr)
			}
		}
	}

	stdout, stderr, code = pawl(t, nil, "workflow", "validate", "--format", "github", faulty, flight, noYAML, twice)
	if code != 1 || stderr != "" || !strings.Contains(stdout, valid) {
		t.Errorf("exit code %d: %s%s", code, stdout, stderr)
	}
	for _, line := range []string{
		"::error file=" + faulty + ",line=11,col=5::/states/A/colour: is not a member here",
		"::error file=" + strings.NewReplacer("%", "%25", ":", "%3A", ",", "%2C").Replace(noYAML) + ",line=",
		"::error file=" + twice + ",line=3,col=1::/initial: is a member twice",
	} {
		if !strings.Contains(stdout, line) {
			t.Errorf("there is no %s in\n%s", line, stdout)
		}
	}
	if got := strings.Count(stdout, "::error"); got != len(want[faulty])+2 {
		t.Errorf("there are %d annotations in\n%s", got, stdout)
	}

	var checked []struct {
		File         string
		Valid        bool
		PathsChecked bool `json:"paths_checked"`
		Faults       []struct {
			Pointer, Detail string
			Line, Column    int
		}
	}
	stdout, _, code = pawl(t, nil, "workflow", "validate", "--format", "json", faulty, flight, noYAML, twice)
	if err := json.Unmarshal([]byte(stdout), &checked); err != nil || code != 1 || len(checked) != 4 {
		t.Fatalf("exit code %d (%v): %s", code, err, stdout)
	}
	for i, valid := range []bool{false, true, false, false} {
		if c := checked[i]; c.Valid != valid || (len(c.Faults) == 0) != valid || c.PathsChecked {
			t.Errorf("of %s it says %+v", c.File, c)
		}
	}
	got := []string{}
	for _, f := range checked[3].Faults {
		got = append(got, fmt.Sprintf("%d:%d %s", f.Line, f.Column, f.Pointer))
	}
	if diff := cmp.Diff(want[twice], got); diff != "" {
		t.Error(diff)
	}
	mustPawl(t, nil, "workflow", "validate", "--format", "github", flight)

	// The paths of annotations are relative to the current folder.
	cmd := bounded.Command(t, program, "workflow", "validate", "--format", "github", filepath.Base(faulty))
	cmd.Dir = filepath.Dir(faulty)
	if out, err := cmd.Output(); err == nil || !strings.HasPrefix(string(out), "::error file=faulty.yaml,line=") {
		t.Errorf("%v: %s", err, out)
	}

	// The faults that the service finds have lines too.
	p := start(t, []string{"DATABASE_URL=" + dbtest.NewDSN(t)}, "serve")
	guard := edited(t, "'$.payload.price == $.context.price'", "'$.payload.price =='")
	stdout, _, code = pawl(t, []string{"PAWL_SERVER=" + p.url}, "workflow", "validate", "--format", "github", guard, flight)
	if code != 1 || !strings.Contains(stdout, ",line=19,col=9::/states/QUOTED/on/reserve/guard: is no SQL/JSON path") ||
		!strings.Contains(stdout, flight+": valid\n") {
		t.Errorf("exit code %d: %s", code, stdout)
	}
}

// Validate prints warnings with their names and places, and fails for them if it is told to.
func TestWorkflowWarnings(t *testing.T) {
	t.Parallel()
	const text = `name: w
initial: A
tests: [{ name: t }]
states:
  A:
    on:
      go:
        target: B
        guard: 'exists($.payload.x)'
        assign: { n: '"text"' }
  B: { type: final }
`
	warned := writeFile(t, "warned.yaml", text)
	silent := writeFile(t, "silent.yaml", strings.Replace(text, "    on:", "    x-allow: [use-present, quoted-text]\n    on:", 1))
	stdout, stderr, code := pawl(t, nil, "workflow", "validate", warned)
	for _, want := range []string{
		":9:9: warning: /states/A/on/go/guard: exists(", "(use-present)\n", ":10:19: warning: /states/A/on/go/assign/n: ", "(quoted-text)\n",
	} {
		if code != 0 || !strings.Contains(stderr, want) || !strings.Contains(stdout, warned+": valid") {
			t.Errorf("exit code %d, no %q in %s%s", code, want, stdout, stderr)
		}
	}
	stdout, _, code = pawl(t, nil, "workflow", "validate", "--strict", "--format", "github", warned)
	if want := "::warning file=" + warned + ",line=9,col=9::/states/A/on/go/guard: exists("; code != 1 || !strings.Contains(stdout, want) {
		t.Errorf("exit code %d, no %q in %s", code, want, stdout)
	}
	var checked []struct {
		Valid    bool
		Warnings []struct {
			Name, Pointer, Detail string
			Line, Column          int
		}
	}
	stdout, _, code = pawl(t, nil, "workflow", "validate", "--format", "json", warned, silent)
	if err := json.Unmarshal([]byte(stdout), &checked); err != nil || code != 0 || len(checked) != 2 || !checked[0].Valid {
		t.Fatalf("exit code %d (%v): %s", code, err, stdout)
	}
	if w := checked[0].Warnings; len(w) != 2 || w[0].Name != "quoted-text" || w[0].Line != 10 || w[0].Column != 19 || w[0].Detail == "" || w[1].Pointer != "/states/A/on/go/guard" {
		t.Errorf("got %+v", w)
	}
	if w := checked[1].Warnings; w == nil || len(w) != 0 {
		t.Errorf("got %+v, want an empty list", w)
	}
	mustPawl(t, nil, "workflow", "validate", "--strict", silent, flight)
	// A file that another tool made of YAML 1.1.
	old := writeFile(t, "old.json", `{"name": "w", "initial": "A", "states": {"A": {"true": {"go": "B"}}, "B": {"type": "final"}}}`)
	if _, stderr, code := pawl(t, nil, "workflow", "validate", old); code != 1 || !strings.Contains(stderr, "YAML 1.1") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
}

// What init prints is a definition that has neither faults nor warnings, and fits the schema that it names.
func TestWorkflowInit(t *testing.T) {
	t.Parallel()
	text := mustPawl(t, nil, "workflow", "init", "my-order")
	file := writeFile(t, "order.yaml", text)
	if out := mustPawl(t, nil, "workflow", "validate", "--strict", file); !strings.Contains(out, "valid") || !strings.Contains(text, "name: my-order\n") {
		t.Errorf("%s\n%s", out, text)
	}
	if !strings.HasPrefix(text, "# yaml-language-server: $schema=./workflow.schema.json\n") || !strings.Contains(text, "\ntests:\n") {
		t.Error(text)
	}
	if stdout, stderr, code := pawl(t, nil, "workflow", "init", "No Name"); code != 1 || stdout != "" || !strings.Contains(stderr, "lower-case") {
		t.Errorf("exit code %d: %s%s", code, stdout, stderr)
	}
	var schema struct {
		Schema string `json:"$schema"`
	}
	if err := json.Unmarshal([]byte(mustPawl(t, nil, "workflow", "schema")), &schema); err != nil || !strings.Contains(schema.Schema, "2020-12") {
		t.Errorf("%v: %+v", err, schema)
	}
}

// A diagram and a diff are the same from a file and from the service.
func TestWorkflowDiagramAndDiff(t *testing.T) {
	t.Parallel()
	p := start(t, []string{"DATABASE_URL=" + dbtest.NewDSN(t)}, "serve")
	env := []string{"PAWL_SERVER=" + p.url}
	away := []string{"PAWL_SERVER=http://127.0.0.1:1"}
	mustPawl(t, env, "workflow", "apply", flight)
	booking := strings.TrimPrefix(
		mustSend(t, http.StatusCreated, http.MethodPost, p.url+create, quote, "Idempotency-Key", "quote-1").header.Get("Location"), "/v1/instances/")
	safer := edited(t, "after: { 10m: EXPIRED }", "after: { 20m: EXPIRED }")
	riskier := edited(t, "after: { 10m: EXPIRED }", "after: { 5m: EXPIRED }", "      cancel: CANCELLED # shorthand", "      drop: CANCELLED # shorthand")
	mustPawl(t, env, "workflow", "apply", safer)

	for _, format := range []string{"mermaid", "dot"} {
		offline := mustPawl(t, away, "workflow", "diagram", flight, "--format", format)
		if diff := cmp.Diff(offline, mustPawl(t, env, "workflow", "diagram", "flight-booking", "--workflow-version", "1", "--format", format)); diff != "" {
			t.Errorf("the service draws it otherwise: %s", diff)
		}
		if marked := mustPawl(t, env, "workflow", "diagram", "flight-booking", "--instance", booking, "--format", format); strings.Count(marked, "✓") != 1 {
			t.Error(marked)
		}
	}
	if out := mustPawl(t, env, "workflow", "diagram", "flight-booking"); !strings.Contains(out, "after 20m") {
		t.Error(out)
	}
	for _, args := range [][]string{{flight, "--instance", booking}, {flight, "--workflow-version", "1"}, {"nobody"}, {"no/file.yaml"}} {
		if out, stderr, code := pawl(t, env, append([]string{"workflow", "diagram"}, args...)...); code != 1 || stderr == "" || out != "" {
			t.Errorf("diagram %v: exit code %d: %s", args, code, stderr)
		}
	}

	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{flight, flight}, 0, "no differences\n"},
		{[]string{flight, "flight-booking@1"}, 0, "no differences\n"},
		{[]string{safer, "flight-booking"}, 0, "no differences\n"},
		{[]string{"flight-booking@1", "flight-booking"}, 1, "changed  /states/QUOTED/after/20m: the timeout of QUOTED comes after 20m, no longer after 10m\n1 changed, 0 of them unsafe"},
		{[]string{flight, safer, "--fail-on", "unsafe"}, 0, "1 changed, 0 of them unsafe"},
		{[]string{flight, riskier, "--fail-on", "none"}, 0, "removed  /states/QUOTED/on/cancel: QUOTED no longer accepts cancel\n         unsafe: callers"},
		{[]string{"flight-booking", riskier, "--fail-on", "unsafe"}, 1, "3 changed, 2 of them unsafe"},
		{[]string{flight, riskier, "--format", "json"}, 1, `"unsafe": true`},
		{[]string{flight, flight, "--format", "json"}, 0, "[]\n"},
		{[]string{flight, "flight-booking@3"}, 2, ""},
		{[]string{"flight-booking@latest", flight}, 2, ""},
		{[]string{flight, "no.yaml"}, 2, ""},
	} {
		out, stderr, code := pawl(t, env, append([]string{"workflow", "diff"}, c.args...)...)
		if code != c.code || !strings.Contains(out, c.want) || (code == 2) != (stderr != "") {
			t.Errorf("diff %v: exit code %d, want %d\n%s%s", c.args, code, c.code, out, stderr)
		}
	}
}
