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

type workflowDiagram struct {
	Of       string                   `arg:"" name:"name-or-file" help:"A workflow of the service, or a definition in YAML or JSON, which is drawn without one."`
	Format   definition.DiagramFormat `enum:"mermaid,dot" default:"mermaid" help:"mermaid or dot."`
	At       int                      `name:"workflow-version" help:"The version; by default the latest, or the instance's."`
	Instance string                   `help:"The instance whose path to mark."`
	Server   string                   `default:"http://127.0.0.1:8080" env:"PAWL_SERVER" help:"The service."`
	Token    string                   `env:"PAWL_TOKEN" help:"Bearer token."`
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
		return trouble{err}
	}
	var diagram string
	_, err := client.do(c, call{
		method: http.MethodGet, path: "/v1/workflows/" + url.PathEscape(w.Of) + "/diagram", query: query,
	}, &diagram)
	c.printf("%s", diagram)
	return err
}

func (w *workflowDiagram) drawFile(c *console) error {
	if w.At != 0 || w.Instance != "" {
		return errors.New("a file has neither versions nor instances: name the workflow")
	}
	_, model, err := readDefinition(w.Of)
	if err != nil {
		c.complain(w.Of, err)
		return errSaid
	}
	diagram, err := model.Diagram(w.Format, nil)
	c.printf("%s", diagram)
	return err
}

// isFile tells a file from the name of a workflow, which has neither dots nor slashes.
func isFile(arg string) bool {
	info, err := os.Stat(arg)
	return strings.ContainsAny(arg, "./\\") || err == nil && info.Mode().IsRegular()
}
