package main

import (
	"encoding/json"
	"net/http"
	"net/url"
)

// instanceCompensation is `pawl instance compensation`.
type instanceCompensation struct {
	List  compensationList  `cmd:"" help:"List what can be undone of an instance, was undone, or could not be; newest first."`
	Retry compensationRetry `cmd:"" help:"Let a compensation that failed be tried again when the instance next enters an undoing state."`
	Skip  compensationSkip  `cmd:"" help:"Pass over a compensation, as if a person had undone it."`
}

// compensationAnswer is a compensation as the API shows it. raw is the whole answer.
type compensationAnswer struct {
	raw       json.RawMessage
	Name      string  `json:"name"`
	Version   int64   `json:"version"`
	Status    string  `json:"status"`
	Reason    *string `json:"reason"`
	TaskID    *string `json:"task_id"`
	UndoingID *string `json:"undoing_task_id"`
}

// UnmarshalJSON keeps the whole answer for --json.
func (a *compensationAnswer) UnmarshalJSON(data []byte) error {
	type plain compensationAnswer
	a.raw = append(json.RawMessage{}, data...)
	return json.Unmarshal(data, (*plain)(a))
}

// MarshalJSON returns the whole answer.
func (a compensationAnswer) MarshalJSON() ([]byte, error) { return a.raw, nil }

// compensationList prints the compensations of an instance.
type compensationList struct{ oneInstance }

func (l *compensationList) Run(c *console) error {
	var answer struct {
		Items []compensationAnswer `json:"items"`
	}
	if _, err := l.do(c, call{method: http.MethodGet, path: l.path() + "/compensations"}, &answer); err != nil {
		return err
	}
	if l.JSON {
		return c.printJSON(answer.Items)
	}
	table := c.table(2)
	table.row("NAME\tVERSION\tSTATUS\tTASK\tUNDONE BY\tREASON")
	for _, a := range answer.Items {
		table.row("%s\t%d\t%s\t%s\t%s\t%s", a.Name, a.Version, a.Status, orDash(a.TaskID), orDash(a.UndoingID), orDash(a.Reason))
	}
	return table.Flush()
}

// markedCompensation has the arguments of a command that marks a compensation.
type markedCompensation struct {
	oneInstance
	Name   string `arg:"" help:"Name of the task or the event that is undone."`
	Reason string `required:"" help:"Why, for the audit."`
}

// mark marks the compensation and prints it.
func (m *markedCompensation) mark(c *console, what string) error {
	var answer compensationAnswer
	if _, err := m.do(c, call{
		method: http.MethodPost, path: m.path() + "/compensations/" + url.PathEscape(m.Name) + "/" + what,
		body: map[string]any{"reason": m.Reason},
	}, &answer); err != nil {
		return err
	}
	if m.JSON {
		return c.printJSON(answer)
	}
	c.printf("%s of version %d is %s\n", answer.Name, answer.Version, answer.Status)
	return nil
}

// compensationRetry lets a compensation be tried again.
type compensationRetry struct{ markedCompensation }

func (r *compensationRetry) Run(c *console) error { return r.mark(c, "retry") }

// compensationSkip passes over a compensation.
type compensationSkip struct{ markedCompensation }

func (s *compensationSkip) Run(c *console) error { return s.mark(c, "skip") }
