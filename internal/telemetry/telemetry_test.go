package telemetry_test

import (
	"context"
	"fmt"
	"net/http/httptest"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/internal/bounded"
	"github.com/pawl-fsm/pawl/internal/telemetry"
	"github.com/pawl-fsm/pawl/outbox"
)

func start(t testing.TB, config telemetry.Config) *telemetry.Telemetry {
	t.Helper()
	m, err := telemetry.New(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close(context.Background()) })
	return m
}

// scrape returns what /metrics answers with.
func scrape(t testing.TB, m *telemetry.Telemetry) string {
	t.Helper()
	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	if w.Code != 200 || !strings.HasPrefix(w.Header().Get("Content-Type"), "text/plain; version=0.0.4") {
		t.Fatalf("%d %s\n%s", w.Code, w.Header().Get("Content-Type"), w.Body)
	}
	return w.Body.String()
}

// sum adds up the series of a family whose labels have all of the given ones.
func sum(t testing.TB, text, family string, labels ...string) (total float64) {
	t.Helper()
line:
	for line := range strings.Lines(text) {
		m := regexp.MustCompile(`^` + family + `(?:\{(.*)\})? (\S+)\n$`).FindStringSubmatch(line)
		if m == nil {
			continue
		}
		for _, label := range labels {
			if !strings.Contains(","+m[1]+",", ","+label+",") {
				continue line
			}
		}
		n, err := strconv.ParseFloat(m[2], 64)
		if err != nil {
			t.Fatal(err)
		}
		total += n
	}
	return total
}

// large makes the metrics of a large deployment: each of 200 workflows has 20 events, each of which was applied, replayed as
// applied, and refused in two ways; and each of 150 routes was answered with 6 statuses.
func large(m *telemetry.Telemetry) (commands int) {
	answered := m.Probe().Answered
	for w := range 200 {
		for e := range 20 {
			for _, outcome := range []string{"applied", "guard-rejected", "transition-not-allowed"} {
				answered(fsm.Observation{
					Tenant: "t", Workflow: fmt.Sprintf("workflow-number-%d", w), Event: fmt.Sprintf("event-number-%d", e), Outcome: outcome, Key: "new",
				})
				commands++
			}
		}
	}
	for r := range 150 {
		for _, status := range []int{200, 400, 401, 403, 404, 503} {
			m.Request("POST", fmt.Sprintf("/v1/instances/{id}/compensations/{name}/%d", r), "t", status, time.Second)
		}
	}
	return commands
}

// A large deployment, and callers who invent events, stay below a megabyte, and nothing is left uncounted.
func TestSizeIsBounded(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		config telemetry.Config
		flood  bool
	}{"": {}, "flood": {flood: true}, "tenants": {config: telemetry.Config{Tenants: []string{"t", "u"}}, flood: true}} {
		t.Run(name, func(t *testing.T) {
			m := start(t, c.config)
			answered := m.Probe().Answered
			commands := large(m)
			if !c.flood {
				if text := scrape(t, m); sum(t, text, "pawl_commands_total", `event="_other"`) > 0.75*float64(commands) {
					t.Error("more than three quarters of the commands of a large deployment are folded")
				}
			}
			if c.flood {
				for i := range 20_000 {
					hostile := fmt.Sprintf("%d\"\\\n%s", i, strings.Repeat("é", 60))
					answered(fsm.Observation{Tenant: hostile, Workflow: hostile, Event: hostile, Outcome: "applied", Key: "new"})
					m.Request("GET", hostile, hostile, 200, time.Second)
					commands++
				}
			}
			text := scrape(t, m)
			if len(text) >= 1_000_000 {
				t.Errorf("/metrics has %d bytes", len(text))
			}
			if got := sum(t, text, "pawl_commands_total"); got != float64(commands) {
				t.Errorf("%v commands are counted, want %d", got, commands)
			}
			if got := sum(t, text, "pawl_idempotency_total", `result="new"`); got != float64(commands) {
				t.Errorf("%v new keys are counted, want %d", got, commands)
			}
			if strings.Contains(text, "otel_") {
				t.Error("there are series of OpenTelemetry itself")
			}
			t.Logf("%d bytes", len(text))
		})
	}
}

// Who fires many events of a pattern at one workflow does not use up what the events of others need. A text that is no
// name is no label, though a pattern may admit it.
func TestOneWorkflowLeavesRoom(t *testing.T) {
	t.Parallel()
	m := start(t, telemetry.Config{})
	for i := range 20_000 {
		m.Probe().Answered(fsm.Observation{Workflow: "notes", Event: fmt.Sprint("note.", i), Outcome: "applied"})
	}
	for i := range 100 {
		m.Probe().Answered(fsm.Observation{Workflow: "orders", Event: fmt.Sprint("event", i), Outcome: "applied"})
	}
	m.Probe().Answered(fsm.Observation{Workflow: "orders", Event: "note.Jane Doe", Outcome: "refused"})
	text := scrape(t, m)
	if strings.Contains(text, "Jane") || sum(t, text, "pawl_commands_total", `outcome="refused"`, `event="_other"`) != 1 {
		t.Error("an event that no definition can declare is a label")
	}
	if n := sum(t, text, "pawl_commands_total", `workflow="orders"`, `event="_other"`, `outcome="applied"`); n != 0 {
		t.Errorf("%v commands of the other workflow are folded", n)
	}
	if n := sum(t, text, "pawl_commands_total", `workflow="notes"`); n != 20_000 {
		t.Errorf("%v commands are counted, want 20,000", n)
	}
}

// Tenants are a label only if they are listed, and the others are one.
func TestTenantsAreListed(t *testing.T) {
	t.Parallel()
	for _, listed := range [][]string{nil, {"acme"}} {
		m := start(t, telemetry.Config{Tenants: listed})
		for _, tenant := range []string{"acme", "secret-customer"} {
			m.Probe().Answered(fsm.Observation{Tenant: tenant, Workflow: "w", Event: "e", Outcome: "applied"})
			m.Request("GET", "/v1/instances", tenant, 200, time.Second)
		}
		text := scrape(t, m)
		if strings.Contains(text, "secret-customer") || strings.Contains(text, `tenant="acme"`) != (listed != nil) || strings.Contains(text, `tenant=`) != (listed != nil) {
			t.Errorf("with %v the metrics are\n%s", listed, text)
		}
		if listed != nil {
			for _, family := range []string{"pawl_commands_total", "pawl_requests_total"} {
				if sum(t, text, family, `tenant="acme"`) != 1 || sum(t, text, family, `tenant="_other"`) != 1 {
					t.Errorf("with %v the metrics are\n%s", listed, text)
				}
			}
		}
	}
}

// Only a leader shows the numbers of the deployment, and only for as long as it surely leads.
func TestBacklogIsTheLeaders(t *testing.T) {
	t.Parallel()
	m := start(t, telemetry.Config{})
	measures := []outbox.Measure{{Name: "timers_due", Value: 7}, {Name: "consumer_behind", Label: "webhooks", Value: 3}, {Name: "findings", Label: "slow", Value: 5}}
	for i := range 150 {
		measures = append(measures, outbox.Measure{Name: "tasks", Label: fmt.Sprint("topic-", i), Status: "pending", Value: float64(200 - i)})
	}
	backlog, err := m.NewBacklog(func(context.Context) ([]outbox.Measure, error) { return measures, nil })
	if err != nil {
		t.Fatal(err)
	}
	bounded.Run(t, "the backlog", backlog.Run)
	shows := func() bool { return strings.Contains(scrape(t, m), "pawl_timers_due") }
	if shows() || !strings.Contains(scrape(t, m), "pawl_leading 0") {
		t.Error("a process that does not lead shows the backlog")
	}
	backlog.Leading(time.Now().Add(time.Hour))
	bounded.True(t, "the backlog to be shown", shows)
	text := scrape(t, m)
	if sum(t, text, "pawl_consumer_behind_seconds", `consumer="webhooks"`) != 3 || sum(t, text, "pawl_findings", `kind="slow"`) != 5 || sum(t, text, "pawl_leading") != 1 {
		t.Errorf("the metrics are\n%s", text)
	}
	// 100 topics have series of their own, and none is lost.
	if n := strings.Count(text, "\npawl_tasks{"); n != 101 || sum(t, text, "pawl_tasks") != 150*200-150*149/2 {
		t.Errorf("tasks have %d series, with %v tasks", n, sum(t, text, "pawl_tasks"))
	}
	// It was paused, say, and could not renew the lease.
	backlog.Leading(time.Now().Add(-time.Millisecond))
	if shows() || sum(t, scrape(t, m), "pawl_leading") != 0 {
		t.Error("a leader whose lease has ended shows the backlog")
	}
	backlog.Leading(time.Now().Add(time.Hour))
	if !shows() {
		t.Error("the leader does not show the backlog")
	}
	backlog.Leading(time.Time{})
	if shows() {
		t.Error("a former leader shows the backlog")
	}
}

// A variable that says something else than what can be done is named.
func TestVariablesOfOTLP(t *testing.T) {
	t.Parallel()
	for name, value := range map[string]string{
		"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL": "http/json",
		"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "localhost:1", "OTEL_EXPORTER_OTLP_ENDPOINT": "127.0.0.1:1", "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http:///v1",
	} {
		env := map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}
		env[name] = value
		if _, err := telemetry.New(t.Context(), telemetry.Config{Getenv: func(name string) string { return env[name] }}); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s=%s: %v", name, value, err)
		}
	}
}

// BenchmarkScrape is the time for /metrics of a large deployment.
func BenchmarkScrape(b *testing.B) {
	m := start(b, telemetry.Config{})
	large(m)
	for b.Loop() {
		b.ReportMetric(float64(len(scrape(b, m))), "bytes")
	}
}
