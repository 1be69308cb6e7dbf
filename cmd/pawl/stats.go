package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// statsCommand prints the statistics of a workflow.
type statsCommand struct {
	clientFlags
	Workflow string `arg:"" help:"Name of the workflow."`
	From     string `placeholder:"DAY" help:"First day that counts, in UTC, such as 2026-03-01. Default: 27 days before --to."`
	To       string `placeholder:"DAY" help:"Last day that counts. Default: today."`
	By       string `enum:",version,day" default:"" help:"Count for each version, or for each day."`
}

// statsAnswer are the statistics as the API shows them.
type statsAnswer struct {
	AsOf      *string `json:"as_of"`
	From      string  `json:"from"`
	To        string  `json:"to"`
	Instances []struct {
		Version   int    `json:"version"`
		State     string `json:"state"`
		Status    string `json:"status"`
		Instances int64  `json:"instances"`
	} `json:"instances"`
	States []struct {
		Version  int      `json:"version"`
		Day      string   `json:"day"`
		State    string   `json:"state"`
		Visits   int64    `json:"visits"`
		P50      float64  `json:"p50"`
		P90      float64  `json:"p90"`
		P99      float64  `json:"p99"`
		Mean     float64  `json:"mean"`
		Leavings int64    `json:"leavings"`
		DropOff  *float64 `json:"drop_off"`
	} `json:"states"`
	Edges []struct {
		Version int     `json:"version"`
		Day     string  `json:"day"`
		From    *string `json:"from"`
		Event   *string `json:"event"`
		To      string  `json:"to"`
		Steps   int64   `json:"steps"`
	} `json:"edges"`
	Hotspots []struct {
		State    string   `json:"state"`
		Share    float64  `json:"share"`
		Now      *float64 `json:"now"`
		Before   *float64 `json:"before"`
		Slowdown *float64 `json:"slowdown"`
	} `json:"hotspots"`
	Tasks []struct {
		Topic       *string  `json:"topic"`
		Connection  *string  `json:"connection"`
		Tasks       int64    `json:"tasks"`
		Open        int64    `json:"open"`
		ErrorRate   *float64 `json:"error_rate"`
		UnknownRate *float64 `json:"unknown_rate"`
	} `json:"tasks"`
	TasksComplete bool `json:"tasks_complete"`
	Refusals      []struct {
		Event    string `json:"event"`
		Reason   string `json:"reason"`
		Commands int64  `json:"commands"`
	} `json:"refusals"`
	Idempotency struct {
		New       int64 `json:"new"`
		Replayed  int64 `json:"replayed"`
		Collision int64 `json:"collision"`
	} `json:"idempotency"`
}

func (s *statsCommand) Run(c *console) error {
	query := url.Values{}
	for name, value := range map[string]string{"from": s.From, "to": s.To, "by": s.By} {
		if value != "" {
			query.Set(name, value)
		}
	}
	var raw json.RawMessage
	path := "/v1/workflows/" + url.PathEscape(s.Workflow) + "/stats"
	if _, err := s.do(c, call{method: http.MethodGet, path: path, query: query}, &raw); err != nil {
		return err
	}
	if s.JSON {
		return c.printJSON(raw)
	}
	var answer statsAnswer
	if err := json.Unmarshal(raw, &answer); err != nil {
		return err
	}
	return answer.print(c, s.Workflow)
}

func (a statsAnswer) print(c *console, workflow string) error {
	c.printf("%s, %s to %s (UTC), as of %s\n", workflow, a.From, a.To, orDash(a.AsOf))
	var most, steps int64
	for _, i := range a.Instances {
		most = max(most, i.Instances)
	}
	for _, e := range a.Edges {
		steps = max(steps, e.Steps)
	}
	section := func(title, head string, rows int, row func(table table, i int)) error {
		var heads []any
		for name := range strings.SplitSeq(head, ",") {
			heads = append(heads, name)
		}
		if rows == 0 {
			return nil
		}
		c.printf("\n%s\n", title)
		table := c.table(2)
		table.row(strings.Repeat("%s\t", len(heads)-1)+"%s", heads...)
		for i := range rows {
			row(table, i)
		}
		return table.Flush()
	}
	err := section("Instances now", "STATE,STATUS,INSTANCES,", len(a.Instances), func(table table, n int) {
		i := a.Instances[n]
		table.row("%s\t%s\t%d\t%s", within(i.State, i.Version, ""), i.Status, i.Instances, bar(float64(i.Instances), float64(most)))
	})
	if err == nil {
		err = section("Time in each state", "STATE,VISITS,P50,P90,P99,MEAN,LEFT,DROPPED OFF", len(a.States), func(table table, n int) {
			s := a.States[n]
			table.row("%s\t%d\t%s\t%s\t%s\t%s\t%d\t%s", within(s.State, s.Version, s.Day), s.Visits, span(s.P50), span(s.P90), span(s.P99), span(s.Mean),
				s.Leavings, percent(s.DropOff))
		})
	}
	if err == nil {
		err = section("Where the time goes", "STATE,SHARE,,NOW,FOUR WEEKS,SLOWER BY", len(a.Hotspots), func(table table, n int) {
			h := a.Hotspots[n]
			slower := "-"
			if h.Slowdown != nil {
				slower = fmt.Sprintf("%.2f×", *h.Slowdown)
			}
			table.row("%s\t%s\t%s\t%s\t%s\t%s", h.State, percent(&h.Share), bar(h.Share, 1), spanOrDash(h.Now), spanOrDash(h.Before), slower)
		})
	}
	if err == nil {
		err = section("Steps", "FROM,EVENT,TO,STEPS,", len(a.Edges), func(table table, n int) {
			e := a.Edges[n]
			table.row("%s\t%s\t%s\t%d\t%s", within(orDash(e.From), e.Version, e.Day), orDash(e.Event), e.To, e.Steps, bar(float64(e.Steps), float64(steps)))
		})
	}
	if err == nil {
		title := "Tasks"
		if !a.TasksComplete {
			title = "Tasks, the newest only"
		}
		err = section(title, "TOPIC,CONNECTION,TASKS,OPEN,ERROR,UNKNOWN", len(a.Tasks), func(table table, n int) {
			t := a.Tasks[n]
			table.row("%s\t%s\t%d\t%d\t%s\t%s", orDash(t.Topic), orDash(t.Connection), t.Tasks, t.Open, percent(t.ErrorRate), percent(t.UnknownRate))
		})
	}
	if err == nil {
		err = section("Refused commands", "EVENT,REASON,COMMANDS", len(a.Refusals), func(table table, n int) {
			r := a.Refusals[n]
			table.row("%s\t%s\t%d", r.Event, r.Reason, r.Commands)
		})
	}
	c.printf("\nIdempotency keys: %d new, %d replayed, %d used for another request\n", a.Idempotency.New, a.Idempotency.Replayed, a.Idempotency.Collision)
	return err
}

// within names a state, with the version or the day that its numbers are of.
func within(state string, version int, day string) string {
	switch {
	case version != 0:
		return fmt.Sprintf("%s, version %d", state, version)
	case day != "":
		return day + " " + state
	}
	return state
}

// barLength is the length of the longest bar.
const barLength = 20

// bar draws a part of the most. What is not 0 has a mark.
func bar(part, most float64) string {
	if part <= 0 || most <= 0 {
		return ""
	}
	return strings.Repeat("█", max(int(part/most*barLength+0.5), 1))
}

// span words a number of seconds with three digits or so.
func span(seconds float64) string {
	d := time.Duration(min(seconds, 9e9) * float64(time.Second))
	switch {
	case d >= 48*time.Hour:
		return fmt.Sprintf("%.1fd", d.Hours()/24)
	case d >= time.Hour:
		return strings.TrimSuffix(d.Round(time.Minute).String(), "0s")
	case d >= 10*time.Second:
		return d.Round(100 * time.Millisecond).String()
	default:
		return d.Round(time.Millisecond).String()
	}
}

func spanOrDash(seconds *float64) string {
	if seconds == nil {
		return "-"
	}
	return span(*seconds)
}

func percent(share *float64) string {
	if share == nil {
		return "-"
	}
	return fmt.Sprintf("%.1f %%", *share*100)
}
