package main

import (
	_ "embed"
	"strings"

	"github.com/pawl-fsm/pawl/fsm/definition"
)

// beginning is the definition that workflow init prints, of a workflow called order.
//
//go:embed workflow_init.yaml
var beginning string

// workflowInit prints a definition to begin with.
type workflowInit struct {
	Name string `arg:"" default:"order" help:"Name of the workflow."`
}

// Help is printed below the help of the command.
func (w *workflowInit) Help() string {
	return "An editor that knows YAML completes and checks the definition by its JSON Schema:\n\n" +
		"    pawl workflow init order > order.yaml\n" +
		"    pawl workflow schema > workflow.schema.json"
}

// Run prints nothing if the name is none.
func (w *workflowInit) Run(c *console) error {
	text := strings.Replace(beginning, "name: order", "name: "+w.Name, 1)
	document, err := toJSON([]byte(text))
	if err == nil {
		_, err = definition.Parse(document, w.Name, definition.Limits{})
	}
	if err != nil {
		return err
	}
	c.print(text)
	return nil
}

// workflowSchema prints the JSON Schema of definitions.
type workflowSchema struct{}

func (w *workflowSchema) Run(c *console) error {
	c.print(definition.DocumentSchema)
	return nil
}
