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
		measures = append(measures, outbox.Measure{Name: name})
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
