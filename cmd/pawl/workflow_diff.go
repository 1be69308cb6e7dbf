package main

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/pawl-fsm/pawl/fsm/definition"
	"github.com/pawl-fsm/pawl/fsm/lifecycle"
)

type workflowDiff struct {
	Old    string `arg:"" help:"A definition in YAML or JSON, or a workflow of the service: NAME for its latest version, NAME@VERSION for another."`
	New    string `arg:"" help:"The same, of what is to come."`
	Format string `enum:"text,json" default:"text" help:"text or json."`
	FailOn string `enum:"any,unsafe,none" default:"any" help:"Which differences make the exit code 1: any, unsafe ones, or none."`
	Server string `default:"http://127.0.0.1:8080" env:"PAWL_SERVER" help:"The service."`
	Token  string `env:"PAWL_TOKEN" help:"Bearer token."`
}

// Help says more than the line in the list of commands.
func (w *workflowDiff) Help() string {
	return "An instance stays on the version it was created with. A change is unsafe if an instance that is migrated " +
		"could then be refused what it was allowed, go another way, end at once, or never. Where that cannot be told, as of " +
		"guards and most of JSON Schema, a change is taken for unsafe.\n\n" +
		"The exit code is 0 if there is no difference, 1 if there is one (see --fail-on), and 2 if that cannot be told."
}

// difference is a change as JSON.
type difference struct {
	Kind    definition.ChangeKind `json:"kind"`
	Pointer string                `json:"pointer"`
	Detail  string                `json:"detail"`
	Unsafe  bool                  `json:"unsafe"`
	Risk    string                `json:"risk,omitempty"`
}

func (w *workflowDiff) Run(c *console) error {
	a, err := w.read(c, w.Old)
	if err != nil {
		return trouble{err}
	}
	b, err := w.read(c, w.New)
	if err != nil {
		return trouble{err}
	}
	changes, unsafe := []difference{}, 0
	for _, change := range definition.Diff(a, b) {
		changes = append(changes, difference{
			Kind: change.Kind, Pointer: change.Pointer, Detail: change.Detail, Unsafe: change.Unsafe(), Risk: change.Risk,
		})
		if change.Unsafe() {
			unsafe++
		}
	}
	if w.Format == "json" {
		if err := c.printJSON(changes); err != nil {
			return trouble{err}
		}
	} else {
		w.say(c, changes, unsafe)
	}
	if w.FailOn == "any" && len(changes) > 0 || w.FailOn == "unsafe" && unsafe > 0 {
		return errSaid
	}
	return nil
}

func (w *workflowDiff) say(c *console, changes []difference, unsafe int) {
	if len(changes) == 0 {
		c.printf("no differences\n")
		return
	}
	for _, change := range changes {
		c.printf("%-7s  %s: %s\n", change.Kind, change.Pointer, change.Detail)
		if change.Unsafe {
			c.printf("         unsafe: %s\n", change.Risk)
		}
	}
	c.printf("%d changed, %d of it unsafe for live instances that are migrated\n", len(changes), unsafe)
}

// read gets a definition from a file or from the service.
func (w *workflowDiff) read(c *console, from string) (*definition.Definition, error) {
	if isFile(from) {
		_, model, err := readDefinition(from)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", from, err)
		}
		return model, nil
	}
	name, at, given := strings.Cut(from, "@")
	version := 0
	if given {
		var err error
		if version, err = strconv.Atoi(at); err != nil || version < 1 {
			return nil, fmt.Errorf("%s: %q is no version", from, at)
		}
	}
	client := clientFlags{Server: w.Server, Token: w.Token}
	if err := client.Validate(); err != nil {
		return nil, err
	}
	answer, err := client.workflow(c, name, version)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", from, err)
	}
	return lifecycle.Workflow{Name: answer.Name, Version: answer.Version, Definition: answer.Definition}.Model()
}
