package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
)

// instanceDiagnose prints what is known of an instance: a page for people, or the answer as JSON.
type instanceDiagnose struct{ oneInstance }

// diagnosisAnswer has what the page shows.
type diagnosisAnswer struct {
	AsOf     string `json:"as_of"`
	Instance struct {
		ID              string          `json:"id"`
		Workflow        string          `json:"workflow"`
		WorkflowVersion int             `json:"workflow_version"`
		State           string          `json:"state"`
		Status          string          `json:"status"`
		Version         int64           `json:"version"`
		BusinessKey     *string         `json:"business_key"`
		CorrelationID   *string         `json:"correlation_id"`
		ChangedAt       string          `json:"state_changed_at"`
		ExpiresAt       *string         `json:"expires_at"`
		Error           json.RawMessage `json:"error"`
	} `json:"instance"`
	Definition struct {
		LatestVersion  int     `json:"latest_version"`
		LatestHasState bool    `json:"latest_has_state"`
		Protected      bool    `json:"protected"`
		StuckAfter     *string `json:"stuck_after"`
		Transitions    []struct {
			Event  string  `json:"event"`
			Target string  `json:"target"`
			Guard  *string `json:"guard"`
		} `json:"transitions"`
	} `json:"definition"`
	Actions []struct {
		Event      string   `json:"event"`
		Targets    []string `json:"targets"`
		GuardHolds *bool    `json:"guard_holds"`
		Permitted  bool     `json:"permitted"`
	} `json:"actions"`
	Timers []struct {
		Event     string  `json:"event"`
		DueAt     string  `json:"due_at"`
		Refused   bool    `json:"refused"`
		LastError *string `json:"last_error"`
		Slow      bool    `json:"slow"`
	} `json:"timers"`
	Tasks []struct {
		ID         string  `json:"id"`
		Name       string  `json:"name"`
		Status     string  `json:"status"`
		Topic      *string `json:"topic"`
		Connection *string `json:"connection"`
		Attempt    int     `json:"attempt"`
		Error      *string `json:"error"`
		DueAt      *string `json:"due_at"`
		DeadlineAt string  `json:"deadline_at"`
		Attempts   []struct {
			Attempt   int     `json:"attempt"`
			StartedAt string  `json:"started_at"`
			Result    *string `json:"result"`
			Status    *int    `json:"status"`
			Error     *string `json:"error"`
		} `json:"attempts"`
	} `json:"tasks"`
	Connections []struct {
		Name          string  `json:"name"`
		Missing       bool    `json:"missing"`
		Failures      int     `json:"failures"`
		RestsUntil    *string `json:"rests_until"`
		SecretMissing bool    `json:"secret_missing"`
	} `json:"connections"`
	Undoing *struct {
		DueAt   *string `json:"due_at"`
		Tried   int     `json:"tried"`
		Problem *string `json:"problem"`
	} `json:"undoing"`
	Compensations []compensationAnswer `json:"compensations"`
	Deliveries    []struct {
		Status         string  `json:"status"`
		SubscriptionID *string `json:"subscription_id"`
		Host           *string `json:"host"`
		Version        *int64  `json:"version"`
		FindingID      *string `json:"finding_id"`
		Attempts       int     `json:"attempts"`
		NextAttemptAt  *string `json:"next_attempt_at"`
		LastError      *string `json:"last_error"`
		RestsUntil     *string `json:"rests_until"`
	} `json:"deliveries"`
	Refusals []struct {
		At      string  `json:"at"`
		Code    string  `json:"code"`
		Event   *string `json:"event"`
		Version int64   `json:"version"`
	} `json:"refusals"`
	Findings []findingAnswer `json:"findings"`
	Steps    []struct {
		Version int64   `json:"version"`
		At      string  `json:"at"`
		Kind    string  `json:"kind"`
		Event   *string `json:"event"`
		From    *string `json:"from"`
		To      string  `json:"to"`
		Actor   string  `json:"actor"`
		TraceID *string `json:"trace_id"`
	} `json:"steps"`
	Truncated []string `json:"truncated"`
	Withheld  []string `json:"withheld"`
}

func (i *instanceDiagnose) Run(c *console) error {
	var raw json.RawMessage
	if _, err := i.do(c, call{method: http.MethodGet, path: i.path() + "/diagnostics"}, &raw); err != nil {
		return err
	}
	if i.JSON {
		return c.printJSON(raw)
	}
	var answer diagnosisAnswer
	if err := json.Unmarshal(raw, &answer); err != nil {
		return err
	}
	return answer.print(c)
}

// print prints the page. Sections that have nothing are left out.
func (d *diagnosisAnswer) print(c *console) error {
	if err := c.printLines(d.summary()); err != nil {
		return err
	}
	for _, s := range []section{d.findings(), d.events(), d.transitions(), d.timers(), d.tasks(), d.attempts(), d.connections(), d.undoing(), d.deliveries(), d.refusals(), d.steps()} {
		if err := s.print(c); err != nil {
			return err
		}
	}
	if len(d.Truncated) > 0 {
		c.printf("\nThere are more of these than are shown: %s\n", strings.Join(d.Truncated, ", "))
	}
	if len(d.Withheld) > 0 {
		c.printf("\nNot shown to this caller: %s\n", strings.Join(d.Withheld, ", "))
	}
	return nil
}

// A section is a table with a title. Each row has a text for each column.
type section struct {
	title string
	head  []any
	rows  [][]any
}

func (s *section) add(columns ...any) { s.rows = append(s.rows, columns) }

func (s section) print(c *console) error {
	if len(s.rows) == 0 {
		return nil
	}
	c.printf("\n%s\n", s.title)
	table := c.table(2)
	for _, row := range append([][]any{s.head}, s.rows...) {
		table.row("  "+strings.TrimSuffix(strings.Repeat("%v\t", len(row)), "\t"), row...)
	}
	return table.Flush()
}

func (d *diagnosisAnswer) summary() [][2]string {
	i := d.Instance
	version := fmt.Sprintf("%s, version %d", i.Workflow, i.WorkflowVersion)
	if d.Definition.LatestVersion > i.WorkflowVersion {
		version += fmt.Sprintf("; version %d is newer, and ", d.Definition.LatestVersion)
		if d.Definition.LatestHasState {
			version += "has the state"
		} else {
			version += "lacks the state"
		}
	}
	state := fmt.Sprintf("%s (%s)", i.State, i.Status)
	if d.Definition.Protected {
		state += ", protected"
	}
	lines := [][2]string{
		{"instance", i.ID}, {"workflow", version}, {"state", state}, {"since", i.ChangedAt}, {"read at", d.AsOf}, {"version", fmt.Sprint(i.Version)},
	}
	for _, optional := range []struct {
		name string
		text *string
	}{
		{"business key", i.BusinessKey}, {"correlation id", i.CorrelationID}, {"expires at", i.ExpiresAt}, {"stuck after", d.Definition.StuckAfter},
	} {
		if optional.text != nil {
			lines = append(lines, [2]string{optional.name, *optional.text})
		}
	}
	if len(i.Error) > 0 && string(i.Error) != "null" {
		lines = append(lines, [2]string{"error", string(i.Error)})
	}
	return lines
}

func (d *diagnosisAnswer) findings() section {
	s := section{title: "FINDINGS", head: []any{"KIND", "STATE", "OPENED", "CLOSED", "DETAIL"}}
	for _, f := range d.Findings {
		s.add(f.Kind, orDash(f.State), f.OpenedAt, orDash(f.ClosedAt), f.detail())
	}
	return s
}

func (d *diagnosisAnswer) events() section {
	s := section{title: "ACCEPTED EVENTS", head: []any{"EVENT", "TARGETS", "GUARD HOLDS", "PERMITTED"}}
	for _, a := range d.Actions {
		holds := "unknown"
		if a.GuardHolds != nil {
			holds = yesOrNo(*a.GuardHolds)
		}
		s.add(a.Event, strings.Join(a.Targets, ", "), holds, yesOrNo(a.Permitted))
	}
	return s
}

func yesOrNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func (d *diagnosisAnswer) transitions() section {
	s := section{title: "WAYS OUT OF THE STATE", head: []any{"EVENT", "TARGET", "GUARD"}}
	for _, t := range d.Definition.Transitions {
		s.add(t.Event, t.Target, orDash(t.Guard))
	}
	return s
}

func (d *diagnosisAnswer) timers() section {
	s := section{title: "DEADLINES", head: []any{"EVENT", "DUE AT", ""}}
	for _, t := range d.Timers {
		what := ""
		switch {
		case t.Refused:
			what = "came, and its guards did not hold"
		case t.LastError != nil:
			what = "fails: " + *t.LastError
		case t.Slow:
			what = "waits for its turn among slow guards"
		}
		s.add(t.Event, t.DueAt, what)
	}
	return s
}

func (d *diagnosisAnswer) tasks() section {
	s := section{title: "TASKS", head: []any{"ID", "NAME", "FOR", "STATUS", "ATTEMPTS", "DUE AT", "DEADLINE", "ERROR"}}
	for _, t := range d.Tasks {
		of := "topic " + orDash(t.Topic)
		if t.Connection != nil {
			of = "connection " + *t.Connection
		}
		s.add(t.ID, t.Name, of, t.Status, t.Attempt, orDash(t.DueAt), t.DeadlineAt, orDash(t.Error))
	}
	return s
}

func (d *diagnosisAnswer) attempts() section {
	s := section{title: "LAST ATTEMPTS", head: []any{"TASK", "ATTEMPT", "STARTED", "RESULT", "STATUS", "ERROR"}}
	for _, t := range d.Tasks {
		for _, a := range t.Attempts {
			status := "-"
			if a.Status != nil {
				status = fmt.Sprint(*a.Status)
			}
			s.add(t.Name, a.Attempt, a.StartedAt, orDash(a.Result), status, orDash(a.Error))
		}
	}
	return s
}

func (d *diagnosisAnswer) connections() section {
	s := section{title: "CONNECTIONS", head: []any{"NAME", "FAILURES", "RESTS UNTIL", ""}}
	for _, n := range d.Connections {
		what := ""
		switch {
		case n.Missing:
			what = "does not exist"
		case n.SecretMissing:
			what = "its secret cannot be had"
		}
		s.add(n.Name, n.Failures, orDash(n.RestsUntil), what)
	}
	return s
}

func (d *diagnosisAnswer) undoing() section {
	s := section{title: "COMPENSATIONS", head: []any{"NAME", "VERSION", "STATUS", "REASON"}}
	if u := d.Undoing; u != nil {
		s.title += ": undoing goes on"
		switch {
		case u.Problem != nil:
			s.title = fmt.Sprintf("COMPENSATIONS: undoing has failed %d times: %s", u.Tried, oneLine(*u.Problem))
		case u.DueAt == nil:
			s.title += " when a task has ended"
		}
	}
	for _, m := range d.Compensations {
		s.add(m.Name, m.Version, m.Status, orDash(m.Reason))
	}
	return s
}

func (d *diagnosisAnswer) deliveries() section {
	s := section{title: "DELIVERIES", head: []any{"STATUS", "TO", "HOST", "ABOUT", "ATTEMPTS", "NEXT ATTEMPT", "RESTS UNTIL", "ERROR"}}
	for _, m := range d.Deliveries {
		to := "callback"
		if m.SubscriptionID != nil {
			to = *m.SubscriptionID
		}
		about := "finding"
		if m.Version != nil {
			about = fmt.Sprintf("step %d", *m.Version)
		}
		s.add(m.Status, to, orDash(m.Host), about, m.Attempts, orDash(m.NextAttemptAt), orDash(m.RestsUntil), orDash(m.LastError))
	}
	return s
}

func (d *diagnosisAnswer) refusals() section {
	s := section{title: "REFUSED COMMANDS", head: []any{"AT", "EVENT", "VERSION", "CODE"}}
	for _, f := range d.Refusals {
		s.add(f.At, orDash(f.Event), f.Version, f.Code)
	}
	return s
}

func (d *diagnosisAnswer) steps() section {
	s := section{title: "LAST STEPS", head: []any{"VERSION", "AT", "KIND", "EVENT", "FROM", "TO", "ACTOR", "TRACE"}}
	for _, h := range d.Steps {
		s.add(h.Version, h.At, h.Kind, orDash(h.Event), orDash(h.From), h.To, h.Actor, orDash(h.TraceID))
	}
	return s
}
