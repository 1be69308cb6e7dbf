package main

import (
	"net/http"
	"net/url"
)

// workflowReindex indexes the instances of a workflow.
type workflowReindex struct {
	clientFlags
	Name string `arg:"" help:"Name of the workflow."`
}

func (w *workflowReindex) Run(c *console) error {
	for { // bounded: each call indexes more
		var answer struct {
			Indexed  int64 `json:"indexed"`
			Total    int64 `json:"total"`
			Complete bool  `json:"complete"`
		}
		if _, err := w.do(c, call{method: http.MethodPost, path: "/v1/workflows/" + url.PathEscape(w.Name) + "/reindex"}, &answer); err != nil {
			return err
		}
		if w.JSON && answer.Complete {
			return c.printJSON(answer)
		}
		if !w.JSON {
			c.printf("%s: %d of %d instances are indexed\n", w.Name, answer.Indexed, answer.Total)
		}
		if answer.Complete {
			return nil
		}
	}
}
