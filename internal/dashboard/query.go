package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// A dashboard is what is used of one of Grafana's.
type dashboard struct {
	Title  string
	Panels []*panel
}

// A panel is a part of a dashboard. Its type row is a headline.
type panel struct {
	Title, Type string
	GridPos     struct{ X, Y, W, H int }
	FieldConfig struct{ Defaults struct{ Unit string } }
	Targets     []struct{ Expr, LegendFormat string }
	// lines are what the panel shows.
	lines []line
}

// A line is a series with its name in the legend.
type line struct {
	name   string
	points []point
}

type point struct {
	at    time.Time
	value float64
}

// A prometheus answers queries, and scrapes at an interval.
type prometheus struct {
	url      string
	interval time.Duration
}

// fill asks for what the panels show between two times. It returns an error for each query that shows nothing.
func (p prometheus) fill(ctx context.Context, board *dashboard, from, to time.Time) (faults []error) {
	for _, panel := range board.Panels {
		for _, target := range panel.Targets {
			lines, err := p.lines(ctx, target.Expr, target.LegendFormat, panel.points(), from, to)
			if err == nil && len(lines) == 0 {
				err = fmt.Errorf("%s shows nothing", target.Expr)
			}
			if err != nil {
				faults = append(faults, fmt.Errorf("panel %q: %w", panel.Title, err))
			}
			panel.lines = append(panel.lines, lines...)
		}
	}
	return faults
}

// lines asks for the series of an expression, with about so many points each. Grafana's variables have the values that Grafana
// gives them: the interval is the time between two points, and no shorter than that of the scrapes; the interval for rates
// is longer by a scrape, and has four scrapes at least
// (grafana.com/docs/grafana/latest/datasources/prometheus/template-variables).
func (p prometheus) lines(ctx context.Context, expr, legend string, points int, from, to time.Time) (lines []line, err error) {
	step := max(to.Sub(from)/time.Duration(points), p.interval).Round(time.Second)
	for name, value := range map[string]time.Duration{"$__rate_interval": max(step+p.interval, 4*p.interval), "$__interval": step, "$__range": to.Sub(from)} {
		expr = strings.ReplaceAll(expr, name, fmt.Sprintf("%ds", int(value.Seconds())))
	}
	seconds := func(t time.Time) string { return strconv.FormatInt(t.Unix(), 10) }
	var data struct {
		Result []struct {
			Metric map[string]string
			Values [][2]any
		}
	}
	query := url.Values{"query": {expr}, "start": {seconds(from)}, "end": {seconds(to)}, "step": {seconds(time.Unix(0, 0).Add(step))}}
	if err := p.get(ctx, "/api/v1/query_range?"+query.Encode(), &data); err != nil {
		return nil, err
	}
	for _, series := range data.Result {
		l := line{name: variable.ReplaceAllStringFunc(legend, func(name string) string {
			return series.Metric[strings.TrimSpace(strings.Trim(name, "{}"))]
		})}
		for _, pair := range series.Values {
			at, _ := pair[0].(float64)
			text, _ := pair[1].(string)
			value, err := strconv.ParseFloat(text, 64)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", expr, err)
			}
			if !math.IsNaN(value) && !math.IsInf(value, 0) {
				l.points = append(l.points, point{time.UnixMilli(int64(at * 1000)), value})
			}
		}
		if len(l.points) > 0 {
			lines = append(lines, l)
		}
	}
	return lines, nil
}

// variable is a label in a legend.
var variable = regexp.MustCompile(`{{[^}]*}}`)

// rules prints the alerts, and returns an error for each rule that cannot be evaluated.
func (p prometheus) rules(ctx context.Context, out io.Writer) (faults []error, err error) {
	var data struct {
		Groups []struct {
			Rules []struct{ Name, State, Health, LastError string }
		}
	}
	if err := p.get(ctx, "/api/v1/rules", &data); err != nil {
		return nil, err
	}
	for _, group := range data.Groups {
		for _, r := range group.Rules {
			fmt.Fprintf(out, "%-24s %s\n", r.Name, r.State)
			if r.Health != "ok" {
				faults = append(faults, fmt.Errorf("rule %s: %s %s", r.Name, r.Health, r.LastError))
			}
		}
	}
	return faults, nil
}

// get reads an answer of the API.
func (p prometheus) get(ctx context.Context, path string, data any) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, p.url+path, nil)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	answer := struct {
		Error string
		Data  any
	}{Data: data}
	if err := json.NewDecoder(response.Body).Decode(&answer); err != nil {
		return fmt.Errorf("prometheus: %s: %w", response.Status, err)
	}
	if answer.Error != "" {
		return fmt.Errorf("prometheus: %s", answer.Error)
	}
	return nil
}
