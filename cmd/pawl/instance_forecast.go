package main

import (
	"encoding/json"
	"net/http"
)

// instanceForecast prints what will probably become of an instance.
type instanceForecast struct{ oneInstance }

func (i *instanceForecast) Run(c *console) error {
	var raw json.RawMessage
	if _, err := i.do(c, call{method: http.MethodGet, path: i.path() + "/forecast"}, &raw); err != nil {
		return err
	}
	if i.JSON {
		return c.printJSON(raw)
	}
	var answer struct {
		State  string   `json:"state"`
		Spent  float64  `json:"spent"`
		Sample int64    `json:"sample"`
		P50    *float64 `json:"p50"`
		P90    *float64 `json:"p90"`
		Next   []struct {
			State  string   `json:"state"`
			Chance float64  `json:"chance"`
			P50    *float64 `json:"p50"`
			P90    *float64 `json:"p90"`
		} `json:"next"`
		Outcomes []struct {
			State  string  `json:"state"`
			Status string  `json:"status"`
			Chance float64 `json:"chance"`
		} `json:"outcomes"`
	}
	if err := json.Unmarshal(raw, &answer); err != nil {
		return err
	}
	c.printf("In %s for %s; %d visits of it have ended\n", answer.State, span(answer.Spent), answer.Sample)
	c.printf("Ended in %s (p50), %s (p90)\n\n", spanOrDash(answer.P50), spanOrDash(answer.P90))
	table := c.table(2)
	table.row("NEXT\tCHANCE\t\tP50\tP90")
	for _, n := range answer.Next {
		table.row("%s\t%s\t%s\t%s\t%s", n.State, percent(&n.Chance), bar(n.Chance, 1), spanOrDash(n.P50), spanOrDash(n.P90))
	}
	if err := table.Flush(); err != nil {
		return err
	}
	c.printf("\n")
	table = c.table(2)
	table.row("OUTCOME\tSTATUS\tCHANCE\t")
	for _, o := range answer.Outcomes {
		table.row("%s\t%s\t%s\t%s", o.State, o.Status, percent(&o.Chance), bar(o.Chance, 1))
	}
	return table.Flush()
}
