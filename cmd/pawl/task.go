package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
)

// taskCommand is `pawl task`.
type taskCommand struct {
	List    taskList    `cmd:"" help:"List tasks, newest first."`
	Show    taskShow    `cmd:"" help:"Show a task with its attempts."`
	Retry   taskRetry   `cmd:"" help:"Try a task again that ended as error or unknown."`
	Resolve taskResolve `cmd:"" help:"Say how a task ended that nobody knew of."`
}

// taskAnswer is a task as the API shows it. raw is the whole answer.
type taskAnswer struct {
	raw          json.RawMessage
	ID           string          `json:"id"`
	InstanceID   string          `json:"instance_id"`
	Workflow     string          `json:"workflow"`
	State        string          `json:"state"`
	Name         string          `json:"name"`
	Compensation bool            `json:"compensation"`
	Topic        *string         `json:"topic"`
	Connection   *string         `json:"connection"`
	Status       string          `json:"status"`
	Error        *string         `json:"error"`
	Attempt      int             `json:"attempt"`
	Key          string          `json:"key"`
	Worker       *string         `json:"worker"`
	Progress     json.RawMessage `json:"progress"`
	DueAt        *string         `json:"due_at"`
	LeaseUntil   *string         `json:"lease_expires_at"`
	DeadlineAt   string          `json:"deadline_at"`
	LeftAt       *string         `json:"left_at"`
	EndedAt      *string         `json:"ended_at"`
	Moves        *bool           `json:"moves_instance"`
	Attempts     []struct {
		Attempt     int     `json:"attempt"`
		Reconciling bool    `json:"reconciling"`
		Worker      *string `json:"worker"`
		StartedAt   string  `json:"started_at"`
		EndedAt     *string `json:"ended_at"`
		Result      *string `json:"result"`
		Status      *int    `json:"status"`
		Error       *string `json:"error"`
	} `json:"attempts"`
}

// UnmarshalJSON keeps the whole answer for --json.
func (t *taskAnswer) UnmarshalJSON(data []byte) error {
	type plain taskAnswer
	t.raw = append(json.RawMessage{}, data...)
	return json.Unmarshal(data, (*plain)(t))
}

// MarshalJSON returns the whole answer.
func (t taskAnswer) MarshalJSON() ([]byte, error) { return t.raw, nil }

// what says what the task is, such as `work of pack`.
func (t *taskAnswer) what() string {
	what := "call of " + orDash(t.Connection)
	if t.Topic != nil {
		what = "work of " + *t.Topic
	}
	if t.Compensation {
		what = "compensation, " + what
	}
	return what
}

// printTask prints a task, as lines or as JSON.
func (c *console) printTask(t taskAnswer, asJSON bool) error {
	if asJSON {
		return c.printJSON(t)
	}
	lines := [][2]string{
		{"id", t.ID},
		{"task", t.Name + " (" + t.what() + ")"},
		{"instance", t.InstanceID + " of " + t.Workflow},
		{"state", t.State},
		{"status", t.Status},
		{"attempts", strconv.Itoa(t.Attempt)},
		{"key", t.Key},
		{"deadline", t.DeadlineAt},
	}
	for _, optional := range []struct {
		name string
		text *string
	}{
		{"error", t.Error}, {"next attempt", t.DueAt}, {"worker", t.Worker}, {"lease until", t.LeaseUntil}, {"state left", t.LeftAt}, {"ended", t.EndedAt},
	} {
		if optional.text != nil {
			lines = append(lines, [2]string{optional.name, *optional.text})
		}
	}
	if len(t.Progress) > 0 && string(t.Progress) != "null" {
		lines = append(lines, [2]string{"progress", string(t.Progress)})
	}
	if t.Moves != nil {
		lines = append(lines, [2]string{"moves instance", map[bool]string{true: "yes", false: "no, only the task changes"}[*t.Moves]})
	}
	return c.printLines(lines)
}

// taskList prints the tasks that its flags choose.
type taskList struct {
	clientFlags
	Status   string `enum:",pending,sent,reconciling,done,error,unknown,cancelled" default:"" help:"Only tasks with this status: pending, sent, reconciling, done, error, unknown or cancelled."`
	Topic    string `help:"Only tasks of this topic."`
	Workflow string `help:"Only tasks of this workflow."`
	Instance string `help:"Only tasks of this instance."`
	Limit    int    `default:"50" help:"Largest number of tasks; 0 for all."`
}

func (t *taskList) Run(c *console) error {
	query := parameters(map[string]string{
		"status": t.Status, "topic": t.Topic, "workflow": t.Workflow, "instance_id": t.Instance,
	})
	items, err := pages[taskAnswer](c, &t.clientFlags, "/v1/tasks", query, t.Limit)
	if err != nil {
		return err
	}
	if t.JSON {
		return c.printJSON(items)
	}
	table := c.table(2)
	table.row("ID\tINSTANCE\tTASK\tWHAT\tSTATUS\tATTEMPTS\tERROR")
	for _, item := range items {
		table.row("%s\t%s\t%s\t%s\t%s\t%d\t%s", item.ID, item.InstanceID, item.Name, item.what(), item.Status, item.Attempt, orDash(item.Error))
	}
	return table.Flush()
}

// oneTask has the arguments of a command for one task.
type oneTask struct {
	clientFlags
	ID string `arg:"" help:"Id of the task."`
}

func (o *oneTask) path() string { return "/v1/tasks/" + url.PathEscape(o.ID) }

// show sends a request and prints the task that is its answer.
func (o *oneTask) show(c *console, request call) error {
	var answer taskAnswer
	if _, err := o.do(c, request, &answer); err != nil {
		return err
	}
	if err := c.printTask(answer, o.JSON); err != nil || o.JSON || len(answer.Attempts) == 0 {
		return err
	}
	c.print("\n")
	table := c.table(2)
	table.row("ATTEMPT\tSTARTED\tENDED\tBY\tRESULT\tERROR")
	for _, a := range answer.Attempts {
		number, result := strconv.Itoa(a.Attempt), orDash(a.Result)
		if a.Reconciling {
			number += " (question)"
		}
		if a.Status != nil {
			result = fmt.Sprintf("%s %d", result, *a.Status)
		}
		table.row("%s\t%s\t%s\t%s\t%s\t%s", number, a.StartedAt, orDash(a.EndedAt), orDash(a.Worker), result, orDash(a.Error))
	}
	return table.Flush()
}

// taskShow prints a task.
type taskShow struct{ oneTask }

func (t *taskShow) Run(c *console) error {
	return t.show(c, call{method: http.MethodGet, path: t.path()})
}

// taskRetry makes a task pending again.
type taskRetry struct {
	oneTask
	Reason string `required:"" help:"Why, for the audit."`
}

func (t *taskRetry) Run(c *console) error {
	return t.show(c, call{method: http.MethodPost, path: t.path() + "/retry", body: map[string]any{"reason": t.Reason}})
}

// taskResolve records how a task ended.
type taskResolve struct {
	oneTask
	Outcome string `required:"" enum:"done,error" help:"How it ended: done or error."`
	Result  string `placeholder:"JSON|@FILE|-" help:"Result: JSON or YAML, @FILE to read it from a file, or - for standard input."`
	Reason  string `required:"" help:"Why that is known, for the audit."`
}

func (t *taskResolve) Run(c *console) error {
	result, err := c.input(t.Result)
	if err != nil {
		return err
	}
	body := members(map[string]string{"outcome": t.Outcome, "reason": t.Reason}, "result", result)
	return t.show(c, call{method: http.MethodPost, path: t.path() + "/resolve", body: body})
}
