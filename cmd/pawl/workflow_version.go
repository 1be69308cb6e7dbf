package main

import (
	"fmt"
	"net/http"
	"net/url"
)

type workflowRetire struct {
	clientFlags
	Name    string `arg:"" help:"The workflow."`
	Version int    `arg:"" name:"number" help:"The version, which no instance may be on."`
}

func (w *workflowRetire) Run(c *console) error {
	path := fmt.Sprintf("/v1/workflows/%s/versions/%d", url.PathEscape(w.Name), w.Version)
	if _, err := w.do(c, call{method: http.MethodDelete, path: path}, nil); err != nil {
		return err
	}
	c.printf("%s: version %d retired\n", w.Name, w.Version)
	return nil
}

type workflowMigrate struct {
	clientFlags
	Name   string            `arg:"" help:"The workflow."`
	From   int               `required:"" help:"The version that the instances have."`
	To     int               `required:"" help:"The version that they get."`
	Map    map[string]string `placeholder:"STATE=STATE" help:"Where instances in a state go, if not to the state of the same name."`
	State  []string          `help:"Only instances in this state."`
	Reason string            `help:"Why, for history."`
	DryRun bool              `help:"Only say what would happen."`
}

// migrationAnswer is what the service says of a migration.
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

func (w *workflowMigrate) Run(c *console) error {
	body := map[string]any{"from": w.From, "to": w.To, "dry_run": w.DryRun}
	if len(w.Map) > 0 {
		body["state_map"] = w.Map
	}
	if len(w.State) > 0 {
		body["filter"] = map[string]any{"states": w.State}
	}
	if w.Reason != "" {
		body["reason"] = w.Reason
	}
	var answer migrationAnswer
	path := "/v1/workflows/" + url.PathEscape(w.Name) + "/migrate"
	if _, err := w.do(c, call{method: http.MethodPost, path: path, body: body}, &answer); err != nil || w.JSON {
		if err == nil {
			err = c.printJSON(answer)
		}
		return err
	}
	for _, m := range answer.Moves {
		c.printf("%s to %s: %d\n", m.From, m.To, m.Count)
	}
	for _, i := range answer.Left {
		c.printf("%s stays in %s: %s\n", i.ID, i.State, i.Reason)
	}
	verb := "migrated"
	if w.DryRun {
		verb = "would migrate"
	}
	c.printf("%d of %d instances %s\n", answer.Migrated, answer.Total, verb)
	return nil
}
