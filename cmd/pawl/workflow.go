package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"text/tabwriter"

	"github.com/pawl-fsm/pawl/fsm/definition"
)

type workflowCommand struct {
	Validate  workflowValidate  `cmd:"" help:"Check definitions, and say everything that is wrong with them."`
	Diff      workflowDiff      `cmd:"" help:"Say what differs between two definitions, and what of it is unsafe for live instances."`
	Backtest  workflowBacktest  `cmd:"" help:"Replay recorded histories against a definition, and say which instances would have gone another way."`
	Migration workflowMigration `cmd:"" help:"Print a migration that registers a definition, for goose and psql."`
	Apply     workflowApply     `cmd:"" help:"Register definitions."`
	List      workflowList      `cmd:"" help:"List the workflows."`
	Show      workflowShow      `cmd:"" help:"Print a workflow's definition."`
	Diagram   workflowDiagram   `cmd:"" help:"Print a workflow as a diagram, with the path of an instance if wanted."`
	Migrate   workflowMigrate   `cmd:"" help:"Move live instances to another version of their workflow."`
	Retire    workflowRetire    `cmd:"" help:"Remove a version that no instance is on."`
}

// workflowAnswer is a workflow as the API shows it.
type workflowAnswer struct {
	Name       string          `json:"name"`
	Version    int             `json:"version"`
	Checksum   string          `json:"checksum"`
	Definition json.RawMessage `json:"definition"`
	CreatedAt  *string         `json:"created_at"`
	CreatedBy  *string         `json:"created_by"`
}

// readDefinition reads a file in YAML or JSON and checks it as far as it can be checked
// without a database. It returns the document as it was written, as JSON, and its model.
func readDefinition(file string) (document json.RawMessage, model *definition.Definition, err error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, nil, err
	}
	if document, err = toJSON(data); err != nil {
		return nil, nil, err
	}
	model, err = definition.Parse(document, "", definition.Limits{})
	return document, model, err
}

type workflowApply struct {
	clientFlags
	Files []string `arg:"" type:"existingfile" help:"Definitions in YAML or JSON."`
}

func (w *workflowApply) Run(c *console) error {
	for _, file := range w.Files {
		definition, model, err := readDefinition(file)
		var answer workflowAnswer
		status := 0
		if err == nil {
			status, err = w.do(c, call{method: http.MethodPut, path: "/v1/workflows/" + url.PathEscape(model.Name), body: definition}, &answer)
		}
		if err != nil {
			c.complain(file, err)
			return errSaid
		}
		switch {
		case w.JSON:
			if err := c.printJSON(answer); err != nil {
				return err
			}
		case status == http.StatusCreated:
			c.printf("%s: version %d registered\n", answer.Name, answer.Version)
		default:
			c.printf("%s: version %d, unchanged\n", answer.Name, answer.Version)
		}
	}
	return nil
}

type workflowList struct{ clientFlags }

func (w *workflowList) Run(c *console) error {
	items, err := pages[workflowAnswer](c, &w.clientFlags, "/v1/workflows", url.Values{}, 0)
	if err != nil {
		return err
	}
	if w.JSON {
		return c.printJSON(items)
	}
	table := tabwriter.NewWriter(c.out, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(table, "NAME\tVERSION\tREGISTERED\tBY")
	for _, i := range items {
		_, _ = fmt.Fprintf(table, "%s\t%d\t%s\t%s\n", i.Name, i.Version, text(i.CreatedAt), text(i.CreatedBy))
	}
	return table.Flush()
}

type workflowShow struct {
	clientFlags
	Name string `arg:"" help:"The workflow."`
	At   int    `name:"workflow-version" help:"The version; the latest by default."`
}

func (w *workflowShow) Run(c *console) error {
	answer, err := w.workflow(c, w.Name, w.At)
	if err != nil {
		return err
	}
	if w.JSON {
		return c.printJSON(answer)
	}
	return c.printJSON(answer.Definition)
}

// workflow reads a version of a workflow, or the latest for version 0.
func (f *clientFlags) workflow(c *console, name string, version int) (answer workflowAnswer, err error) {
	path := "/v1/workflows/" + url.PathEscape(name)
	if version != 0 {
		path += fmt.Sprintf("/versions/%d", version)
	}
	_, err = f.do(c, call{method: http.MethodGet, path: path}, &answer)
	return answer, err
}

func text(s *string) string {
	if s == nil {
		return "-"
	}
	return *s
}
