package main_test

import (
	"fmt"
	"strings"
	"testing"
)

// A short text may stand for a long one, or for several. It is refused with the line that shows it.
func TestYAMLIsBounded(t *testing.T) {
	t.Parallel()
	const states = "states: { A: { on: { go: Z } }, Z: { type: final } }\n"
	bomb := "name: bomb\ninitial: A\nx0: &x0 [l,l,l,l,l,l,l,l,l,l]\n"
	for i := range 12 {
		bomb += fmt.Sprintf("x%d: &x%d [%s*x%d]\n", i+1, i+1, strings.Repeat(fmt.Sprintf("*x%d,", i), 9), i)
	}
	for text, want := range map[string]string{
		bomb + states: ":8: line 8: up to here",
		"name: deep\ninitial: A\nx: " + strings.Repeat("[", 70) + strings.Repeat("]", 70) + "\n" + states: ":3: line 3: is nested deeper than 64",
		"name: cycle\ninitial: A\nx: &x\n  y: *x\n" + states:                                              ":4: line 4: is nested deeper than 64",
		"name: one\ninitial: A\n" + states + "---\nname: two\n":                                           ":4: line 4: here begins a second document",
		"name: merged\ninitial: A\nx: &x { a: 1 }\ny:\n  <<: *x\n" + states:                               ":5: line 5: there are no merge keys",
		"name: broken\ninitial: A\n" + states + "---\n[\n":                                                ": ",
		"# nothing\n": "the document is empty",
	} {
		file := writeFile(t, "bounded.yaml", text)
		_, stderr, code := pawl(t, nil, "workflow", "validate", file)
		if code != 1 || !strings.Contains(stderr, want) || strings.Count(stderr, "\n") != 1 || len(stderr) > 400+len(file) {
			t.Errorf("%.60q: exit code %d: %.500s; want %q", text, code, stderr, want)
		}
	}
	file := writeFile(t, "aliases.yaml", "name: aliases\ninitial: A\nstates:\n  A: { on: { go: &go { target: Z, description: once }, again: *go } }\n  Z: { type: final }\n")
	if stdout, stderr, code := pawl(t, nil, "workflow", "validate", file); code != 0 {
		t.Errorf("an honest alias: %s%s", stdout, stderr)
	}
}

// A number stays a number, however large it is, and what is quoted stays text.
func TestYAMLNumbers(t *testing.T) {
	t.Parallel()
	with := func(value string) string {
		return writeFile(t, "number.yaml",
			"name: number\ninitial: A\ncontext_default: { n: "+value+" }\nstates:\n  A: { on: { go: Z } }\n  Z: { type: final }\n")
	}
	for number, text := range map[string]string{"1e400": "'1e400'", "-1E+400": `"-1E+400"`, "12345678901234567890123": "!!str 12345678901234567890123"} {
		if stdout, stderr, code := pawl(t, nil, "workflow", "diff", with(number), with(text)); code != 1 || !strings.Contains(stdout, "start with n as \""+strings.Trim(number, "+")) {
			t.Errorf("%s and its text: exit code %d: %s%s", number, code, stdout, stderr)
		}
	}
}
