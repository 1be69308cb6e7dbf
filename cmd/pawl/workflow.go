package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"text/tabwriter"

	"github.com/pawl-fsm/pawl/fsm"
)

type workflowCommand struct {
	Validate workflowValidate `cmd:"" help:"Check definitions, and say everything that is wrong with them."`
	Apply    workflowApply    `cmd:"" help:"Register definitions."`
	List     workflowList     `cmd:"" help:"List the workflows."`
	Show     workflowShow     `cmd:"" help:"Print a workflow's definition."`
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
// without a database.
func readDefinition(file string) (definition json.RawMessage, name string, err error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, "", err
	}
	if definition, err = toJSON(data); err != nil {
		return nil, "", fmt.Errorf("%s: %w", file, err)
	}
	parsed, err := fsm.Parse(definition, "", fsm.Limits{})
	if err != nil {
		return definition, "", err
	}
	return definition, parsed.Name, nil
}

// complain prints each fault of a definition on a line of its own.
func (c *console) complain(file string, err error) {
	var refused *fsm.Error
	var answered *problem
	say := func(pointer, detail string) { _, _ = fmt.Fprintf(c.err, "%s: %s: %s\n", file, pointer, detail) }
	switch {
	case errors.As(err, &refused) && len(refused.Faults) > 0:
		for _, f := range refused.Faults {
			say(f.Pointer, f.Detail)
		}
	case errors.As(err, &answered) && len(answered.Errors) > 0:
		for _, f := range answered.Errors {
			say(f.Pointer, f.Detail)
		}
	default:
		_, _ = fmt.Fprintf(c.err, "%s: %v\n", file, err)
	}
}

type workflowValidate struct {
	Files  []string `arg:"" type:"existingfile" help:"Definitions in YAML or JSON."`
	Server string   `env:"PAWL_SERVER" help:"A service whose Postgres parses the guards and assigns too. Without it they are not looked at."`
	Token  string   `env:"PAWL_TOKEN" help:"Bearer token."`
}

func (w *workflowValidate) Run(c *console) error {
	failed := false
	for _, file := range w.Files {
		definition, name, err := readDefinition(file)
		if err == nil && w.Server != "" {
			client := clientFlags{Server: w.Server, Token: w.Token}
			_, err = client.do(c, call{
				method: http.MethodPut, path: "/v1/workflows/" + url.PathEscape(name),
				query: url.Values{"dry_run": {"true"}}, body: definition,
			}, nil)
		}
		switch {
		case err != nil:
			c.complain(file, err)
			failed = true
		case w.Server == "":
			c.printf("%s: valid, but for its guards and assigns, which need --server\n", file)
		default:
			c.printf("%s: valid\n", file)
		}
	}
	if failed {
		return errSaid
	}
	return nil
}

type workflowApply struct {
	clientFlags
	Files []string `arg:"" type:"existingfile" help:"Definitions in YAML or JSON."`
}

func (w *workflowApply) Run(c *console) error {
	for _, file := range w.Files {
		definition, name, err := readDefinition(file)
		var answer workflowAnswer
		status := 0
		if err == nil {
			status, err = w.do(c, call{method: http.MethodPut, path: "/v1/workflows/" + url.PathEscape(name), body: definition}, &answer)
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
	if err != nil || w.JSON {
		return errors.Join(err, c.printJSON(items))
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
	path := "/v1/workflows/" + url.PathEscape(w.Name)
	if w.At != 0 {
		path += fmt.Sprintf("/versions/%d", w.At)
	}
	var answer workflowAnswer
	if _, err := w.do(c, call{method: http.MethodGet, path: path}, &answer); err != nil {
		return err
	}
	if w.JSON {
		return c.printJSON(answer)
	}
	return c.printJSON(answer.Definition)
}

func text(s *string) string {
	if s == nil {
		return "-"
	}
	return *s
}
