package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
)

// workflowBacktest re-runs recorded histories under another definition.
type workflowBacktest struct {
	clientFlags
	Name   string `arg:"" help:"Name of the workflow whose histories are re-run."`
	File   string `type:"existingfile" placeholder:"FILE" xor:"candidate" required:"" help:"File with the other definition, in YAML or JSON."`
	At     int    `name:"workflow-version" placeholder:"N" xor:"candidate" required:"" help:"Number of a registered version that is the other definition."`
	Sample int    `default:"1000" help:"Number of instances whose histories are re-run, newest first; at most 10,000."`
}

// Help is printed below the help of the command.
func (w *workflowBacktest) Help() string {
	return "Each recorded event is decided again with its payload at its time. Of each instance that would have gone another " +
		"way the first difference is printed. Nothing is written.\n\n" +
		"The exit code is 0 if there is no difference, 1 if there is one, and 2 if the back-test failed."
}

// backtestStep is a recorded step, and its outcome under the other definition.
type backtestStep struct {
	Event   *string `json:"event"`
	From    *string `json:"from"`
	To      string  `json:"to"`
	Outcome string  `json:"outcome"`
	WouldBe *string `json:"would_be"`
}

// String returns the step in one line.
func (s backtestStep) String() string {
	line := fmt.Sprintf("%s from %s to %s: %s", orDash(s.Event), orDash(s.From), s.To, s.Outcome)
	if s.WouldBe != nil {
		line += " " + *s.WouldBe
	}
	return line
}

// backtestAnswer is the result of a back-test as the API shows it.
type backtestAnswer struct {
	Version    *int `json:"version"`
	Instances  int  `json:"instances"`
	Same       int  `json:"same"`
	Different  int  `json:"different"`
	Incomplete int  `json:"incomplete"`
	Unfinished bool `json:"unfinished,omitempty"`
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
			c.printFaults(w.File, err)
			return undecided{errors.New("the definition cannot be used: mend the faults above")}
		}
		body["definition"] = definition
	} else {
		body["version"] = w.At
	}
	var answer backtestAnswer
	path := "/v1/workflows/" + url.PathEscape(w.Name) + "/backtest"
	if _, err := w.do(c, call{method: http.MethodPost, path: path, body: body}, &answer); err != nil {
		return undecided{err}
	}
	if w.JSON {
		if err := c.printJSON(answer); err != nil {
			return undecided{err}
		}
	} else {
		w.print(c, answer)
	}
	switch {
	case answer.Different > 0:
		return errReported
	case answer.Unfinished:
		return undecided{errors.New("the time was up before all instances were re-run: give a smaller --sample")}
	}
	return nil
}

// definition reads the file. It must define the workflow of that name.
func (w *workflowBacktest) definition() (json.RawMessage, error) {
	definition, model, err := readDefinition(w.File)
	if err == nil && model.Name != w.Name {
		err = fmt.Errorf("the file defines %s, not %s", model.Name, w.Name)
	}
	return definition, err
}

// print prints each kind of difference with its examples.
func (w *workflowBacktest) print(c *console, answer backtestAnswer) {
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
	c.printf("%d instances: %d the same, %d different, %d incomplete\n", answer.Instances, answer.Same, answer.Different, answer.Incomplete)
}
