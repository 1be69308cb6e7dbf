package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v4"

	"github.com/pawl-fsm/pawl/fsm/definition"
)

// workflowValidate checks definitions. With --server, the service checks the syntax of paths too.
type workflowValidate struct {
	Files  []string `arg:"" type:"existingfile" help:"Files with a definition in YAML or JSON."`
	Format string   `enum:"text,json,github" default:"text" help:"Format: text, json, or github (annotations in the log of GitHub Actions)."`
	Server string   `placeholder:"URL" env:"PAWL_SERVER" help:"URL of a service that checks the syntax of guards and assigns too, and says which connections there are not; without it that is not checked."`
	Token  string   `type:"secret" secret:"" placeholder:"@FILE" env:"PAWL_TOKEN" help:"Bearer token to send, from the environment or a file."`
	Strict bool     `help:"Fail if there are warnings, too."`
	schemasFlag
}

// schemasFlag names where the schemas of the deployment are.
type schemasFlag struct {
	Schemas string `type:"existingdir" placeholder:"DIR" help:"Folder with the JSON Schemas of the deployment in YAML or JSON: pawl:address is in address.yaml."`
}

// Help is printed below the help of the command.
func (w *workflowValidate) Help() string {
	return "Every file is checked. The exit code is 1 if any of them has a fault, or with --strict a warning. " +
		"A definition silences a warning by its name: x-allow: [NAME] in the definition, a state or a transition."
}

// Validate refuses a URL that no request can be sent to.
func (w *workflowValidate) Validate() error {
	if w.Server == "" {
		return nil
	}
	return (&clientFlags{Server: w.Server}).Validate()
}

// checkedFile is the result for one file.
type checkedFile struct {
	File   string  `json:"file"`
	Valid  bool    `json:"valid"`
	Faults []fault `json:"faults"`
	// Warnings have names.
	Warnings []fault `json:"warnings"`
	// PathsChecked is false if the syntax of the paths was not checked.
	PathsChecked bool `json:"paths_checked"`
}

// fault is one thing that is wrong with a file, or with a name a warning. Line and Column begin at 1, and are 0 if
// unknown.
type fault struct {
	Name    string `json:"name,omitempty"`
	Pointer string `json:"pointer"`
	Detail  string `json:"detail"`
	Line    int    `json:"line,omitempty"`
	Column  int    `json:"column,omitempty"`
}

func (w *workflowValidate) Run(c *console) error {
	checked := make([]checkedFile, len(w.Files))
	failed := false
	for i, file := range w.Files {
		warnings, err := w.check(c, file)
		checked[i] = checkedFile{File: relative(file), Valid: err == nil, Faults: []fault{}, Warnings: warnings, PathsChecked: w.Server != ""}
		if err != nil {
			checked[i].Faults = faultsOf(file, err)
		}
		failed = failed || err != nil || w.Strict && len(warnings) > 0
	}
	if w.Format == "json" {
		if err := c.printJSON(checked); err != nil {
			return err
		}
	} else {
		for _, f := range checked {
			w.print(c, f)
		}
	}
	if failed {
		return errReported
	}
	return nil
}

// relative returns the path of a file below the current folder relative to that folder, as annotations
// need it. It returns other paths unchanged.
func relative(file string) string {
	here, err := os.Getwd()
	if err != nil {
		return file
	}
	path, err := filepath.Rel(here, file)
	if err != nil || !filepath.IsLocal(path) {
		return file
	}
	return path
}

// check returns the warnings of a file, and its faults as an error.
func (w *workflowValidate) check(c *console, file string) (warnings []fault, err error) {
	document, draft, err := readDraft(file, schemasIn(w.Schemas))
	if err != nil {
		return []fault{}, err
	}
	if err = draft.Err(); err == nil && w.Server != "" {
		err = w.ask(c, document, draft)
	}
	warnings = []fault{}
	for _, warning := range draft.Warnings() {
		warnings = append(warnings, fault{Name: warning.Name, Pointer: warning.Pointer, Detail: warning.Detail})
	}
	locateFaults(file, warnings)
	return warnings, err
}

// ask has the service check a definition, and warns of the connections that the token's tenant does not have. A token that may
// not see connections is warned of none.
func (w *workflowValidate) ask(c *console, document json.RawMessage, draft *definition.Draft) (err error) {
	if w.Schemas != "" { // The service may not have these schemas yet.
		if document, err = withSchemas(document, &draft.Definition); err != nil {
			return err
		}
	}
	client := clientFlags{Server: w.Server, Token: w.Token}
	if _, err = client.do(c, call{
		method: http.MethodPut, path: "/v1/workflows/" + url.PathEscape(draft.Definition.Name),
		query: url.Values{"dry_run": {"true"}}, body: document,
	}, nil); err != nil {
		return err
	}
	draft.WarnOfConnections(func(name string) bool {
		var refused *problem
		_, err := client.do(c, call{method: http.MethodGet, path: "/v1/connections/" + url.PathEscape(name)}, nil)
		return errors.As(err, &refused) && refused.Status == http.StatusNotFound && refused.Code == "not-found"
	})
	return nil
}

// withSchemas returns a document with the copies of schemas that its model carries.
func withSchemas(document json.RawMessage, model *definition.Definition) (json.RawMessage, error) {
	if len(model.Schemas) == 0 {
		return document, nil
	}
	var members map[string]json.RawMessage
	if err := json.Unmarshal(document, &members); err != nil {
		return nil, err
	}
	schemas, err := json.Marshal(model.Schemas)
	if err != nil {
		return nil, err
	}
	members["schemas"] = schemas
	return json.Marshal(members)
}

// print prints the result for a file in the format that was asked for.
func (w *workflowValidate) print(c *console, f checkedFile) {
	found := append(f.Faults, f.Warnings...)
	if w.Format == "github" {
		for _, fault := range found {
			c.annotate(fault.annotation(f.File))
		}
	} else {
		c.printFaultsOf(f.File, found)
	}
	switch {
	case !f.Valid:
	case f.PathsChecked:
		c.printf("%s: valid\n", f.File)
	default:
		c.printf("%s: valid, but for its guards and assigns, which only --server checks\n", f.File)
	}
}

// annotation returns the fault as a workflow command of GitHub Actions
// (docs.github.com/actions/reference/workflow-commands-for-github-actions).
func (f fault) annotation(file string) string {
	escape := strings.NewReplacer("%", "%25", "\r", "%0D", "\n", "%0A")
	property := strings.NewReplacer("%", "%25", "\r", "%0D", "\n", "%0A", ":", "%3A", ",", "%2C")
	text := "::error file="
	if f.Name != "" {
		text = "::warning file="
	}
	text += property.Replace(file)
	if f.Line > 0 {
		text += fmt.Sprintf(",line=%d", f.Line)
	}
	if f.Column > 0 {
		text += fmt.Sprintf(",col=%d", f.Column)
	}
	return text + "::" + escape.Replace(f.String())
}

// String returns the detail of a fault behind its pointer, and the name of a warning.
func (f fault) String() string {
	text := f.Detail
	if f.Pointer != "" {
		text = f.Pointer + ": " + text
	}
	if f.Name != "" {
		text = fmt.Sprintf("%s (%s)", text, f.Name)
	}
	return text
}

// printFaults prints the faults of a definition on standard error, each on a line of its own.
func (c *console) printFaults(file string, err error) { c.printFaultsOf(file, faultsOf(file, err)) }

// printFaultsOf prints faults as printFaults does.
func (c *console) printFaultsOf(file string, faults []fault) {
	for _, f := range faults {
		at := file
		if f.Line > 0 {
			at += fmt.Sprintf(":%d", f.Line)
		}
		if f.Column > 0 {
			at += fmt.Sprintf(":%d", f.Column)
		}
		if f.Name != "" {
			at += ": warning"
		}
		c.complain("%s: %s\n", at, f)
	}
}

// faultsOf returns the faults that an error names, with their lines and columns in the file.
func faultsOf(file string, err error) []fault {
	var faults []fault
	var refused *definition.Error
	var answered *problem
	if errors.As(err, &refused) {
		for _, f := range refused.Faults {
			faults = append(faults, fault{Pointer: f.Pointer, Detail: f.Detail})
		}
	}
	if errors.As(err, &answered) {
		for _, f := range answered.Errors {
			detail := f.Detail
			if f.Parameter != "" {
				detail = f.Parameter + ": " + detail
			}
			faults = append(faults, fault{Pointer: f.Pointer, Detail: detail})
		}
	}
	if len(faults) == 0 {
		return []fault{{Detail: err.Error(), Line: lineIn(err)}}
	}
	locateFaults(file, faults)
	return faults
}

// locateFaults adds the lines and columns to faults, if the file can be read.
func locateFaults(file string, faults []fault) {
	data, err := os.ReadFile(file)
	if err != nil {
		return
	}
	document, err := parseYAML(data)
	if err != nil {
		return
	}
	for i := range faults {
		n := locate(document, faults[i].Pointer)
		faults[i].Line, faults[i].Column = n.Line, n.Column
	}
}

var yamlLine = regexp.MustCompile(`\bline (\d+)`)

// lineIn returns the line that a message of the YAML parser names, or 0.
func lineIn(err error) int {
	m := yamlLine.FindStringSubmatch(err.Error())
	if m == nil {
		return 0
	}
	line, _ := strconv.Atoi(m[1])
	return line
}

// locate returns the node that a JSON Pointer leads to: the name of a member, or an element. If the last parts
// of the pointer lead nowhere, it returns the node that the parts before them lead to.
func locate(n *yaml.Node, pointer string) *yaml.Node {
	at := n
	for _, name := range strings.Split(pointer, "/")[1:] {
		name = strings.NewReplacer("~1", "/", "~0", "~").Replace(name)
		for n.Kind == yaml.AliasNode {
			n = n.Alias
		}
		var next *yaml.Node
		switch n.Kind {
		case yaml.MappingNode:
			for i := 0; i+1 < len(n.Content); i += 2 {
				if n.Content[i].Value == name { // Of two members of one name, the latter is the fault.
					at, next = n.Content[i], n.Content[i+1]
				}
			}
		case yaml.SequenceNode:
			if i, err := strconv.Atoi(name); err == nil && i < len(n.Content) {
				at, next = n.Content[i], n.Content[i]
			}
		}
		if next == nil {
			break
		}
		n = next
	}
	return at
}
