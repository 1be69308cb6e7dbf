package main

import (
	"encoding/json"
	"net/http"
)

// instanceTrace prints the life of an instance as a trace, for a viewer of traces.
type instanceTrace struct{ oneInstance }

func (i *instanceTrace) Run(c *console) error {
	var trace json.RawMessage
	if _, err := i.do(c, call{method: http.MethodGet, path: i.path() + "/trace"}, &trace); err != nil {
		return err
	}
	return c.printJSON(trace)
}
