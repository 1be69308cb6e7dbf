package main

import (
	"encoding/json"
	"net/url"
)

// instanceTimeline prints what happened to an instance, oldest first.
type instanceTimeline struct{ oneInstance }

func (i *instanceTimeline) Run(c *console) error {
	items, err := pages[json.RawMessage](c, &i.clientFlags, i.path()+"/timeline", url.Values{}, 0)
	if err != nil {
		return err
	}
	if i.JSON {
		return c.printJSON(items)
	}
	table := c.table(2)
	table.row("AT\tENDED\tVERSION\tWHAT")
	for _, raw := range items {
		var item struct {
			At      string       `json:"at"`
			EndedAt *string      `json:"ended_at"`
			Version *json.Number `json:"version"`
			Summary string       `json:"summary"`
		}
		if err := json.Unmarshal(raw, &item); err != nil {
			return err
		}
		table.row("%s\t%s\t%s\t%s", item.At, orDash(item.EndedAt), orDash((*string)(item.Version)), item.Summary)
	}
	return table.Flush()
}
