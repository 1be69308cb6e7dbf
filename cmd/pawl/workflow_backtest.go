package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
)

type workflowBacktest struct {
	clientFlags
	Name   string `arg:"" help:"The workflow, whose instances are replayed."`
	File   string `type:"existingfile" placeholder:"FILE" xor:"candidate" required:"" help:"The candidate: a definition in YAML or JSON."`
	At     int    `name:"workflow-version" placeholder:"N" xor:"candidate" required:"" help:"The candidate: a registered version."`
	Sample int    `default:"1000" help:"How many instances to replay, the newest first; at most 10,000."`
}

// Help says more than the line in the list of commands.
func (w *workflowBacktest) Help() string {
	return "Each recorded event is decided with its payload at its time, as firing it would. Of each instance that would " +
		"have gone another way the first difference is told. Nothing is written.\n\n" +
		"The exit code is 0 if there is no difference, 1 if there is one, and 2 if that cannot be told."
}

// backtestStep is a step and what it would have come to.
type backtestStep struct {
	Event   *string `json:"event"`
	From    *string `json:"from"`
	To      string  `json:"to"`
	Outcome string  `json:"outcome"`
	WouldBe *string `json:"would_be"`
}

func (s backtestStep) String() string {
	text := fmt.Sprintf("%s from %s to %s: %s", text(s.Event), text(s.From), s.To, s.Outcome)
	if s.WouldBe != nil {
		text += " " + *s.WouldBe
	}
	return text
}

// backtestAnswer is what the service says of a back-test.
type backtestAnswer struct {
	Version    *int `json:"version"`
	Instances  int  `json:"instances"`
	Same       int  `json:"same"`
	Different  int  `json:"different"`
	Incomplete int  `json:"incomplete"`
	Summary    []struct {
		backtestStep
		Count    int      `json:"count"`
		Examples []string `json:"examples"`
	} `json:"summary"`
	Differences []struct {
		InstanceID      string `json:"instance_id"`
		WorkflowVersion int    `json:"workflow_version"`
		Version         int64  `json:"version"`
		backtestStep
		Guards []string `json:"guards,omitempty"`
		Errors []struct {
			Pointer string `json:"pointer"`
			Detail  string `json:"detail"`
		} `json:"errors,omitempty"`
		Detail string `json:"detail"`
	} `json:"differences"`
}

func (w *workflowBacktest) Run(c *console) error {
	body := map[string]any{"sample": w.Sample}
	if w.File != "" {
		definition, err := w.definition()
		if err != nil {
			c.complain(w.File, err)
			return trouble{errors.New("there is nothing to replay against")}
		}
		body["definition"] = definition
	} else {
		body["version"] = w.At
	}
	var answer backtestAnswer
	path := "/v1/workflows/" + url.PathEscape(w.Name) + "/backtest"
	if _, err := w.do(c, call{method: http.MethodPost, path: path, body: body}, &answer); err != nil {
		return trouble{err}
	}
	if w.JSON {
		if err := c.printJSON(answer); err != nil {
			return trouble{err}
		}
	} else {
		w.say(c, answer)
	}
	if answer.Different > 0 {
		return errSaid
	}
	return nil
}

// definition reads the file, whose name member must be the workflow's, if there is one.
func (w *workflowBacktest) definition() (json.RawMessage, error) {
	definition, model, err := readDefinition(w.File)
	if err == nil && model.Name != w.Name {
		err = fmt.Errorf("it defines %s, not %s", model.Name, w.Name)
	}
	return definition, err
}

func (w *workflowBacktest) say(c *console, answer backtestAnswer) {
	for _, g := range answer.Summary {
		c.printf("%d × %s\n", g.Count, g.backtestStep)
		for _, id := range g.Examples {
			c.printf("    %s", id)
			for _, d := range answer.Differences {
				if d.InstanceID != id {
					continue
				}
				c.printf(", version %d: %s", d.Version, d.Detail)
				for _, e := range d.Errors {
					c.printf("; %s: %s", e.Pointer, e.Detail)
				}
				for _, guard := range d.Guards {
					c.printf("; %s", guard)
				}
			}
			c.printf("\n")
		}
	}
	c.printf("%d replayed: %d the same, %d different, %d incomplete\n", answer.Instances, answer.Same, answer.Different, answer.Incomplete)
}
