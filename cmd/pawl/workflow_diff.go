package main

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/pawl-fsm/pawl/fsm/definition"
)

// workflowDiff compares two definitions, each from a file or from the service.
type workflowDiff struct {
	Old    string `arg:"" help:"Old definition: a file in YAML or JSON, or a workflow of the service as NAME (its latest version) or NAME@VERSION."`
	New    string `arg:"" help:"New definition, in the same form."`
	Format string `enum:"text,json" default:"text" help:"Format: text or json."`
	FailOn string `enum:"any,unsafe,none" default:"any" help:"Differences that make the exit code 1: any, unsafe ones only, or none."`
	Server string `default:"http://127.0.0.1:8080" env:"PAWL_SERVER" help:"URL of the service."`
	Token  string `type:"secret" secret:"" placeholder:"@FILE" env:"PAWL_TOKEN" help:"Bearer token to send, from the environment or a file."`
}

// Help is printed below the help of the command.
func (w *workflowDiff) Help() string {
	return "An instance stays on the version that it was created with. A change is unsafe if an instance that is migrated " +
		"could be refused an event that it accepted before, go another way, end at once, or never end. A change that cannot " +
		"be proven safe, such as that of a guard or of most of a JSON Schema, counts as unsafe.\n\n" +
		"The exit code is 0 if there is no difference, 1 if there is one (see --fail-on), and 2 if the definitions cannot be compared."
}

// difference is a change as it is printed as JSON.
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
		return undecided{err}
	}
	b, err := w.read(c, w.New)
	if err != nil {
		return undecided{err}
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
			return undecided{err}
		}
	} else {
		w.print(c, changes, unsafe)
	}
	if w.FailOn == "any" && len(changes) > 0 || w.FailOn == "unsafe" && unsafe > 0 {
		return errReported
	}
	return nil
}

// print prints each change in a line, and the risk of an unsafe one below it.
func (w *workflowDiff) print(c *console, changes []difference, unsafe int) {
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
	c.printf("%d changed, %d of them unsafe for live instances that are migrated\n", len(changes), unsafe)
}

// read returns a definition from a file or from the service.
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
			return nil, fmt.Errorf("%s: %q is no version: give a number from 1 on", from, at)
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
	return definition.ParseStored(answer.Definition)
}
