package main

import (
	"encoding/json"
	"net/http"
	"net/url"
	"strconv"
	"strings"
)

// instanceAcceptedEvents prints the events that the state of an instance has a transition for.
type instanceAcceptedEvents struct {
	oneInstance
	Evaluate bool `help:"Show whether a guard holds for an empty payload, too."`
}

func (i *instanceAcceptedEvents) Run(c *console) error {
	var answer struct {
		Items []struct {
			Event         string          `json:"event"`
			Description   *string         `json:"description"`
			Targets       []string        `json:"targets"`
			GuardHolds    *bool           `json:"guard_holds"`
			PayloadSchema json.RawMessage `json:"payload_schema"`
		} `json:"items"`
	}
	query := url.Values{}
	if i.Evaluate {
		query.Set("evaluate", "true")
	}
	if _, err := i.do(c, call{method: http.MethodGet, path: i.path() + "/actions", query: query}, &answer); err != nil {
		return err
	}
	if i.JSON {
		return c.printJSON(answer.Items)
	}
	table := c.table(2)
	table.row("EVENT\tLEADS TO\tGUARD HOLDS\tPAYLOAD SCHEMA\tDESCRIPTION")
	for _, a := range answer.Items {
		holds := "-"
		if a.GuardHolds != nil {
			holds = strconv.FormatBool(*a.GuardHolds)
		}
		description := ""
		if a.Description != nil {
			description = strings.Join(strings.Fields(*a.Description), " ")
		}
		table.row("%s\t%s\t%s\t%s\t%s", a.Event, strings.Join(a.Targets, ", "), holds, a.PayloadSchema, description)
	}
	return table.Flush()
}
