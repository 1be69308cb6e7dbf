package main

import (
	"encoding/json"
	"net/url"
)

// stepAnswer is a step of an instance as the API shows it.
type stepAnswer struct {
	Version int64           `json:"version"`
	Kind    string          `json:"kind"`
	Event   *string         `json:"event"`
	From    *string         `json:"from"`
	To      string          `json:"to"`
	Actor   string          `json:"actor"`
	Reason  *string         `json:"reason"`
	Key     *string         `json:"key"`
	At      string          `json:"at"`
	Context json.RawMessage `json:"context"`
	Payload json.RawMessage `json:"payload"`
}

// instanceHistory prints all steps of an instance.
type instanceHistory struct{ oneInstance }

func (i *instanceHistory) Run(c *console) error {
	if i.JSON {
		items, err := pages[json.RawMessage](c, &i.clientFlags, i.path()+"/history", url.Values{}, 0)
		if err != nil {
			return err
		}
		return c.printJSON(items)
	}
	items, err := pages[stepAnswer](c, &i.clientFlags, i.path()+"/history", url.Values{}, 0)
	if err != nil {
		return err
	}
	table := c.table(2)
	table.row("VERSION\tAT\tKIND\tEVENT\tFROM\tTO\tACTOR\tREASON")
	for _, s := range items {
		table.row("%d\t%s\t%s\t%s\t%s\t%s\t%s\t%s", s.Version, s.At,
			s.Kind, orDash(s.Event), orDash(s.From), s.To, s.Actor, orDash(s.Reason))
	}
	return table.Flush()
}
