package main

import (
	"fmt"
	"net/http"
	"net/url"
)

// workflowRetire retires a version of a workflow.
type workflowRetire struct {
	clientFlags
	Name    string `arg:"" help:"Name of the workflow."`
	Version int    `arg:"" name:"number" help:"Number of the version. No instance may use it."`
}

func (w *workflowRetire) Run(c *console) error {
	path := fmt.Sprintf("/v1/workflows/%s/versions/%d", url.PathEscape(w.Name), w.Version)
	if _, err := w.do(c, call{method: http.MethodDelete, path: path}, nil); err != nil {
		return err
	}
	c.printf("%s: version %d retired\n", w.Name, w.Version)
	return nil
}
