package main

import (
	"errors"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"

	"github.com/pawl-fsm/pawl/fsm/definition"
)

// workflowDiagram prints a diagram. The service draws a workflow; a file is drawn without a service.
type workflowDiagram struct {
	Of       string                   `arg:"" name:"name-or-file" help:"Name of a workflow of the service, or a file with a definition in YAML or JSON."`
	Format   definition.DiagramFormat `enum:"mermaid,dot" default:"mermaid" help:"Format: mermaid or dot."`
	At       int                      `name:"workflow-version" help:"Number of the version; by default that of the instance, or the latest."`
	Instance string                   `help:"Id of an instance whose path is marked."`
	Server   string                   `default:"http://127.0.0.1:8080" env:"PAWL_SERVER" help:"URL of the service."`
	Token    string                   `type:"secret" secret:"" placeholder:"@FILE" env:"PAWL_TOKEN" help:"Bearer token to send, from the environment or a file."`
}

func (w *workflowDiagram) Run(c *console) error {
	if isFile(w.Of) {
		return w.drawFile(c)
	}
	query := url.Values{"format": {string(w.Format)}}
	if w.At != 0 {
		query.Set("version", strconv.Itoa(w.At))
	}
	if w.Instance != "" {
		query.Set("instance", w.Instance)
	}
	client := clientFlags{Server: w.Server, Token: w.Token}
	if err := client.Validate(); err != nil {
		return undecided{err}
	}
	var diagram string
	_, err := client.do(c, call{
		method: http.MethodGet, path: "/v1/workflows/" + url.PathEscape(w.Of) + "/diagram", query: query,
	}, &diagram)
	c.print(diagram)
	return err
}

// drawFile prints the diagram of a definition in a file.
func (w *workflowDiagram) drawFile(c *console) error {
	if w.At != 0 || w.Instance != "" {
		return errors.New("a file has neither versions nor instances: give the name of the workflow")
	}
	_, model, err := readDefinition(w.Of)
	if err != nil {
		c.printFaults(w.Of, err)
		return errReported
	}
	diagram, err := model.Diagram(w.Format, nil)
	c.print(diagram)
	return err
}

// isFile returns true for a file, and false for the name of a workflow, which has no dots and slashes.
func isFile(arg string) bool {
	info, err := os.Stat(arg)
	return strings.ContainsAny(arg, "./\\") || err == nil && info.Mode().IsRegular()
}
