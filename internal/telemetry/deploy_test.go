package telemetry_test

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.yaml.in/yaml/v4"

	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/internal/bounded"
	"github.com/pawl-fsm/pawl/internal/telemetry"
	"github.com/pawl-fsm/pawl/outbox"
)

const (
	rules     = "../../deploy/prometheus/rules.yaml"
	dashboard = "../../deploy/grafana/dashboard.json"
	manual    = "../../docs/operating.md"
)

// everything is /metrics of a leader that has done everything once.
func everything(t *testing.T) string {
	t.Helper()
	m := start(t, telemetry.Config{})
	pool, err := pgxpool.New(t.Context(), "postgres://127.0.0.1:1/x") // It does not connect.
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	if err := m.Show(telemetry.Pools{"commands": pool}); err != nil {
		t.Fatal(err)
	}
	if err := m.Queues(func() map[string]int { return map[string]int{"fire": 0} }); err != nil {
		t.Fatal(err)
	}
	var measures []outbox.Measure
	for _, name := range []string{"timers_due", "timers_late", "timers_failing", "consumer_steps", "consumer_behind", "deliveries_due", "deliveries_late", "deliveries_dead", "tasks", "findings"} {
		m := outbox.Measure{Name: name}
		switch {
		case strings.HasPrefix(name, "consumer"):
			m.Label = "webhooks"
		case name == "tasks":
			m.Label, m.Status = "pack", "pending"
		case name == "findings":
			m.Label = "slow"
		}
		measures = append(measures, m)
	}
	backlog, err := m.NewBacklog(func(context.Context) ([]outbox.Measure, error) { return measures, nil })
	if err != nil {
		t.Fatal(err)
	}
	bounded.Run(t, "the backlog", backlog.Run)
	backlog.Leading(time.Now().Add(time.Hour))
	m.Request("GET", "/", "", 200, time.Second)
	p := m.Probe()
	p.Waited("fire", time.Second)
	p.Called("fire", 1, time.Second)
	p.Answered(fsm.Observation{Outcome: "applied", Key: "replayed", Age: time.Second})
	tracer := m.Tracer("commands")
	tracer.TraceQueryEnd(tracer.TraceQueryStart(t.Context(), nil, pgx.TraceQueryStartData{}), nil, pgx.TraceQueryEndData{})
	bounded.True(t, "the backlog", func() bool { return strings.Contains(scrape(t, m), "pawl_tasks") })
	return scrape(t, m)
}

var metricName = regexp.MustCompile(`\b(?:pawl|go|process)_[a-z_]+`)

// What rules, dashboard and manual name is there, and what is there is in the manual.
func TestMetricsAreThoseOfRulesAndDashboard(t *testing.T) {
	t.Parallel()
	metrics := map[string]bool{}
	families := map[string]bool{}
	for line := range strings.Lines(everything(t)) {
		if rest, ok := strings.CutPrefix(line, "# TYPE "); ok {
			families[strings.Fields(rest)[0]] = true
			continue
		}
		metrics[metricName.FindString(line)] = true
	}
	for _, file := range []string{rules, dashboard, manual} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if file == manual {
			_, rest, _ := strings.Cut(string(text), "### Metrics\n")
			section, _, found := strings.Cut(rest, "### Traces\n")
			if !found {
				t.Fatal("the manual has no section on metrics")
			}
			text = []byte(section)
		}
		for _, name := range metricName.FindAllString(string(text), -1) {
			if !metrics[name] && !families[name] && strings.HasPrefix(name, "pawl_") {
				t.Errorf("%s names %s, which is not in /metrics", file, name)
			}
		}
		if file != manual {
			continue
		}
		for name := range families {
			if strings.HasPrefix(name, "pawl_") && !strings.Contains(string(text), "`"+name+"`") {
				t.Errorf("%s does not name %s", file, name)
			}
		}
	}
}

var (
	// selector is a metric with what is asked of its labels.
	selector = regexp.MustCompile(`\b((?:pawl|go|process)_[a-z_]+)(?:\{((?:[^"}]|"[^"]*")*)\})?`)
	// matcher is what is asked of one label.
	matcher = regexp.MustCompile(`([a-z_]+)\s*(?:=~|!~|!=|=)\s*"[^"]*"`)
	// grouping is what series are put together or matched by, and shown is a label in a legend or a text.
	grouping = regexp.MustCompile(`\b(?:by|on|without|ignoring)\s*\(([a-z_, ]*)\)`)
	shown    = regexp.MustCompile(`\{\{\s*(?:\$labels\.)?([a-z_]+)\s*\}\}`)
)

// Each query of the rules and the dashboard asks for labels that its metrics have, and each legend and text shows labels that
// the query leaves. Prometheus adds instance and job.
func TestLabelsAreThoseOfRulesAndDashboard(t *testing.T) {
	t.Parallel()
	exposed := map[string]map[string]bool{}
	for line := range strings.Lines(everything(t)) {
		if m := selector.FindStringSubmatch(line); m != nil && !strings.HasPrefix(line, "#") {
			if exposed[m[1]] == nil {
				exposed[m[1]] = map[string]bool{"instance": true, "job": true}
			}
			for _, label := range matcher.FindAllStringSubmatch(m[2], -1) {
				exposed[m[1]][label[1]] = true
			}
		}
	}
	type query struct{ at, expr, text string }
	var queries []query
	var alerts struct {
		Groups []struct {
			Rules []struct {
				Alert, Expr string
				Annotations map[string]string
			}
		}
	}
	var board struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr, LegendFormat string }
		}
	}
	read := func(file string, unmarshal func([]byte, any) error, into any) {
		text, err := os.ReadFile(file)
		if err == nil {
			err = unmarshal(text, into)
		}
		if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
	}
	read(rules, func(text []byte, into any) error { return yaml.Unmarshal(text, into) }, &alerts)
	read(dashboard, json.Unmarshal, &board)
	for _, group := range alerts.Groups {
		for _, r := range group.Rules {
			queries = append(queries, query{r.Alert, r.Expr, r.Annotations["summary"] + r.Annotations["description"]})
		}
	}
	for _, panel := range board.Panels {
		for _, target := range panel.Targets {
			queries = append(queries, query{panel.Title, target.Expr, target.LegendFormat})
		}
	}
	if len(queries) < 30 {
		t.Fatalf("there are only %d queries", len(queries))
	}
	for _, q := range queries {
		left := map[string]bool{}
		for _, m := range selector.FindAllStringSubmatch(q.expr, -1) {
			labels := exposed[m[1]]
			if labels == nil {
				t.Errorf("%s: there is no metric %s", q.at, m[1])
			}
			for label := range labels {
				left[label] = true
			}
			for _, asked := range matcher.FindAllStringSubmatch(m[2], -1) {
				if !labels[asked[1]] {
					t.Errorf("%s: %s has no label %s", q.at, m[1], asked[1])
				}
			}
		}
		if len(left) == 0 {
			t.Errorf("%s: %s names no metric", q.at, q.expr)
		}
		grouped := map[string]bool{}
		for _, m := range grouping.FindAllStringSubmatch(q.expr, -1) {
			for label := range strings.FieldsFuncSeq(m[1], func(r rune) bool { return r == ',' || r == ' ' }) {
				grouped[label] = true
				if !left[label] {
					t.Errorf("%s: no metric of %s has a label %s", q.at, q.expr, label)
				}
			}
		}
		aggregated := len(grouped) > 0 || strings.Contains(q.expr, "sum(") || strings.Contains(q.expr, "max(")
		for _, m := range shown.FindAllStringSubmatch(q.text, -1) {
			if aggregated && !grouped[m[1]] || !left[m[1]] {
				t.Errorf("%s: %q shows %s, which %s does not leave", q.at, q.text, m[1], q.expr)
			}
		}
	}
}

func TestAlertRules(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(rules)
	if err != nil {
		t.Fatal(err)
	}
	var document struct {
		Groups []struct {
			Name  string
			Rules []struct {
				Alert, Expr, For    string
				Labels, Annotations map[string]string
			}
		}
	}
	if err := yaml.Unmarshal(text, &document); err != nil || len(document.Groups) == 0 {
		t.Fatal(err)
	}
	for _, r := range document.Groups[0].Rules {
		if r.Alert == "" || r.Expr == "" || r.For == "" || r.Labels["severity"] == "" || r.Annotations["summary"] == "" || r.Annotations["description"] == "" {
			t.Errorf("the rule %+v lacks something", r)
		}
	}
	var panels struct{ Panels []json.RawMessage }
	if text, err = os.ReadFile(dashboard); err != nil || json.Unmarshal(text, &panels) != nil || len(panels.Panels) == 0 {
		t.Errorf("the dashboard is no JSON: %v", err)
	}
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		t.Skip("promtool is not on PATH: `sh .ci/setup --more` installs it")
	}
	if out, err := bounded.Command(t, promtool, "check", "rules", rules).CombinedOutput(); err != nil {
		t.Errorf("promtool: %v\n%s", err, out)
	}
}
