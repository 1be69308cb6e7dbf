package main

import (
	"net/http"
	"net/url"
)

// instanceMigrate moves live instances to another version of their workflow.
type instanceMigrate struct {
	clientFlags
	Workflow string            `arg:"" help:"Name of the workflow."`
	From     int               `required:"" help:"Version that the instances have."`
	To       int               `required:"" help:"Version that they get."`
	Map      map[string]string `placeholder:"STATE=STATE" help:"New state of the instances in a state, if it is not the state of the same name; may be repeated."`
	State    []string          `help:"Only instances in this state; may be repeated."`
	Reason   string            `help:"Reason, for the history."`
	DryRun   bool              `help:"Show what would be migrated, and change nothing."`
}

// migrationAnswer is the result of an instance migration as the API shows it.
type migrationAnswer struct {
	Total    int `json:"total"`
	Migrated int `json:"migrated"`
	Moves    []struct {
		From  string `json:"from"`
		To    string `json:"to"`
		Count int    `json:"count"`
	} `json:"moves"`
	Left []struct {
		ID     string `json:"id"`
		State  string `json:"state"`
		Reason string `json:"reason"`
	} `json:"left"`
}

func (i *instanceMigrate) Run(c *console) error {
	body := map[string]any{"from": i.From, "to": i.To, "dry_run": i.DryRun}
	if len(i.Map) > 0 {
		body["state_map"] = i.Map
	}
	if len(i.State) > 0 {
		body["filter"] = map[string]any{"states": i.State}
	}
	if i.Reason != "" {
		body["reason"] = i.Reason
	}
	var answer migrationAnswer
	path := "/v1/workflows/" + url.PathEscape(i.Workflow) + "/migrate"
	if _, err := i.do(c, call{method: http.MethodPost, path: path, body: body}, &answer); err != nil || i.JSON {
		if err == nil {
			err = c.printJSON(answer)
		}
		return err
	}
	for _, m := range answer.Moves {
		c.printf("%s to %s: %d\n", m.From, m.To, m.Count)
	}
	for _, left := range answer.Left {
		c.printf("%s stays in %s: %s\n", left.ID, left.State, left.Reason)
	}
	verb := "migrated"
	if i.DryRun {
		verb = "would migrate"
	}
	c.printf("%d of %d instances %s\n", answer.Migrated, answer.Total, verb)
	return nil
}
