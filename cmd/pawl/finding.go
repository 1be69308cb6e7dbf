package main

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"
)

// findingsCommand is `pawl findings`.
type findingsCommand struct {
	clientFlags
	Kind     string `enum:",orphaned,slow,timer-failing,connection-missing,task-late,task-dead,delivery-dead,heal-failed,healing-paused" default:"" help:"Only findings of this kind: orphaned, slow, timer-failing, connection-missing, task-late, task-dead, delivery-dead, heal-failed or healing-paused."`
	Workflow string `help:"Only findings of this workflow."`
	State    string `help:"Only findings of instances that were in this state."`
	Instance string `help:"Only findings of this instance."`
	All      bool   `help:"Those that are closed, too."`
	Limit    int    `default:"50" help:"Largest number of findings; 0 for all."`
}

// findingAnswer is a finding as the API shows it. raw is the whole answer.
type findingAnswer struct {
	raw        json.RawMessage
	ID         string         `json:"id"`
	Kind       string         `json:"kind"`
	InstanceID *string        `json:"instance_id"`
	Workflow   string         `json:"workflow"`
	State      *string        `json:"state"`
	OpenedAt   string         `json:"opened_at"`
	ClosedAt   *string        `json:"closed_at"`
	Detail     map[string]any `json:"detail"`
}

// UnmarshalJSON keeps the whole answer for --json.
func (f *findingAnswer) UnmarshalJSON(data []byte) error {
	type plain findingAnswer
	f.raw = append(json.RawMessage{}, data...)
	return json.Unmarshal(data, (*plain)(f))
}

// MarshalJSON returns the whole answer.
func (f findingAnswer) MarshalJSON() ([]byte, error) { return f.raw, nil }

// detail is what is known beside, such as `task=pack`, in the order of the names.
func (f *findingAnswer) detail() string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(f.Detail)) {
		text, err := json.Marshal(f.Detail[name])
		if err == nil {
			parts = append(parts, name+"="+strings.Trim(string(text), `"`))
		}
	}
	if parts == nil {
		return "-"
	}
	return strings.Join(parts, " ")
}

func (f *findingsCommand) Run(c *console) error {
	filter := map[string]string{
		"kind": f.Kind, "workflow": f.Workflow, "state": f.State, "instance_id": f.Instance, "open": "true",
	}
	if f.All {
		filter["open"] = ""
	}
	items, err := pages[findingAnswer](c, &f.clientFlags, "/v1/findings", parameters(filter), f.Limit)
	if err != nil {
		return err
	}
	if f.JSON {
		return c.printJSON(items)
	}
	table := c.table(2)
	table.row("KIND\tINSTANCE\tWORKFLOW\tSTATE\tOPENED\tCLOSED\tDETAIL")
	for _, item := range items {
		table.row("%s\t%s\t%s\t%s\t%s\t%s\t%s", item.Kind, orDash(item.InstanceID), item.Workflow, orDash(item.State), item.OpenedAt, orDash(item.ClosedAt), item.detail())
	}
	return table.Flush()
}
