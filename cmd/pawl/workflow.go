package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"

	"github.com/pawl-fsm/pawl/fsm/definition"
)

// workflowCommand is `pawl workflow`.
type workflowCommand struct {
	Init      workflowInit      `cmd:"" help:"Print a definition to begin with, with comments."`
	Schema    workflowSchema    `cmd:"" help:"Print the JSON Schema of definitions, for editors."`
	Validate  workflowValidate  `cmd:"" help:"Check definitions, and print all of their faults and warnings."`
	Test      workflowTest      `cmd:"" help:"Run the scenarios of definitions, and print what is not as expected."`
	Diff      workflowDiff      `cmd:"" help:"Print the differences between two definitions, and which of them are unsafe for live instances."`
	Backtest  workflowBacktest  `cmd:"" help:"Re-run recorded histories under another definition, and print the instances that would have gone another way."`
	Migration workflowMigration `cmd:"" help:"Print a schema migration that registers a definition, for goose and psql."`
	Apply     workflowApply     `cmd:"" help:"Register definitions."`
	List      workflowList      `cmd:"" help:"List the workflows."`
	Show      workflowShow      `cmd:"" help:"Print the definition of a workflow."`
	Diagram   workflowDiagram   `cmd:"" help:"Print a workflow as a diagram, with the path of an instance if --instance is given."`
	Retire    workflowRetire    `cmd:"" help:"Retire a version that no instance uses."`
	Reindex   workflowReindex   `cmd:"" help:"Index the instances of a workflow by the search attributes of its latest version."`
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

// readDefinition reads a definition in YAML or JSON and checks it. Only the syntax of paths is not checked, since
// that takes a database. It returns the document as JSON, with its shorthands and without what is for editors and
// tests, and its model.
func readDefinition(file string) (document json.RawMessage, model *definition.Definition, err error) {
	return readDefinitionWith(file, nil)
}

// readDefinitionWith is readDefinition with schemas of the deployment.
func readDefinitionWith(file string, lookup definition.Lookup) (document json.RawMessage, model *definition.Definition, err error) {
	document, draft, err := readDraft(file, lookup)
	if err == nil {
		err = draft.Err()
	}
	if err != nil {
		return nil, nil, err
	}
	return document, &draft.Definition, nil
}

// readDraft is readDefinitionWith for a definition that may have faults, and warnings.
func readDraft(file string, lookup definition.Lookup) (document json.RawMessage, draft *definition.Draft, err error) {
	if document, err = readDocument(file); err != nil {
		return nil, nil, err
	}
	if draft, err = definition.ReadWith(document, "", definition.Limits{}, lookup); err != nil {
		return nil, nil, err
	}
	var members map[string]json.RawMessage
	if err := json.Unmarshal(document, &members); err != nil {
		return nil, nil, err
	}
	delete(members, "$schema")
	delete(members, "tests")
	document, err = json.Marshal(members)
	return document, draft, err
}

// confirmFlag says what a registration may lose.
type confirmFlag struct {
	Confirm string `enum:",shorten-retention" default:"" placeholder:"shorten-retention" help:"Register a definition although final instances are kept for a shorter time from then on, and older ones are purged."`
}

// workflowApply registers definitions.
type workflowApply struct {
	clientFlags
	confirmFlag
	Files []string `arg:"" type:"existingfile" help:"Files with a definition in YAML or JSON."`
}

func (w *workflowApply) Run(c *console) error {
	query := url.Values{}
	if w.Confirm != "" {
		query.Set("confirm", w.Confirm)
	}
	for _, file := range w.Files {
		definition, model, err := readDefinition(file)
		var answer workflowAnswer
		status := 0
		if err == nil {
			status, err = w.do(c, call{method: http.MethodPut, path: "/v1/workflows/" + url.PathEscape(model.Name), query: query, body: definition}, &answer)
		}
		if err != nil {
			c.printFaults(file, err)
			return errReported
		}
		if err := w.printRegistered(c, status, answer.Name, answer.Version, answer); err != nil {
			return err
		}
	}
	return nil
}

// printRegistered prints what the service answered to the registration of a version.
func (f *clientFlags) printRegistered(c *console, status int, name string, version int, answer any) error {
	switch {
	case f.JSON:
		return c.printJSON(answer)
	case status == http.StatusCreated:
		c.printf("%s: version %d registered\n", name, version)
	default:
		c.printf("%s: version %d, unchanged\n", name, version)
	}
	return nil
}

// workflowList prints the latest version of each workflow.
type workflowList struct{ clientFlags }

func (w *workflowList) Run(c *console) error {
	items, err := pages[workflowAnswer](c, &w.clientFlags, "/v1/workflows", url.Values{}, 0)
	if err != nil {
		return err
	}
	if w.JSON {
		return c.printJSON(items)
	}
	table := c.table(2)
	table.row("NAME\tVERSION\tREGISTERED\tBY")
	for _, i := range items {
		table.row("%s\t%d\t%s\t%s", i.Name, i.Version, orDash(i.CreatedAt), orDash(i.CreatedBy))
	}
	return table.Flush()
}

// workflowShow prints a definition in its canonical form.
type workflowShow struct {
	clientFlags
	Name string `arg:"" help:"Name of the workflow."`
	At   int    `name:"workflow-version" help:"Number of the version; by default the latest."`
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

// workflow reads a version of a workflow; 0 is the latest version.
func (f *clientFlags) workflow(c *console, name string, version int) (answer workflowAnswer, err error) {
	path := "/v1/workflows/" + url.PathEscape(name)
	if version != 0 {
		path += fmt.Sprintf("/versions/%d", version)
	}
	_, err = f.do(c, call{method: http.MethodGet, path: path}, &answer)
	return answer, err
}
