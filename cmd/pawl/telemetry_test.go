package main_test

import (
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// metricsOf reads /metrics at an address.
func metricsOf(t *testing.T, url string) string {
	t.Helper()
	in, err := http.NewRequestWithContext(bounded.Context(t), http.MethodGet, url+"/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	out, err := http.DefaultClient.Do(in)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Body.Close()
	text, err := io.ReadAll(out.Body)
	if err != nil || out.StatusCode != http.StatusOK {
		t.Fatalf("%d %v %s", out.StatusCode, err, text)
	}
	return string(text)
}

// wantMetric waits for a line of /metrics.
func wantMetric(t *testing.T, url, line string) {
	t.Helper()
	pattern := regexp.MustCompile(`(?m)^` + line + `$`)
	bounded.True(t, line, func() bool { return pattern.MatchString(metricsOf(t, url)) })
}

// metricsAddress is where a process serves metrics alone.
func metricsAddress(t *testing.T, p *process) string {
	t.Helper()
	return "http://" + p.Match(t, regexp.MustCompile(`msg="serving metrics" address=(\S+)\s`))[1]
}

// A process tells what it does, and nothing that callers have made up.
func TestMetrics(t *testing.T) {
	t.Parallel()
	p := start(t, []string{"DATABASE_URL=" + dbtest.NewDSN(t)}, "dev")
	env := []string{"PAWL_SERVER=" + p.url}
	created := mustPawl(t, env, "instance", "create", "flight-booking", "--context", "{flight_id: LH454, price: 420}", "--key", "hunter2-create", "--json")
	id := regexp.MustCompile(`"id": "([^"]+)"`).FindStringSubmatch(created)[1]
	for range 2 {
		mustPawl(t, env, "instance", "fire", id, "reserve", "--payload", "{price: 420, seat: 12A}", "--key", "hunter2")
	}
	_, _, _ = pawl(t, env, "instance", "fire", id, "hunter2")
	_, _, _ = pawl(t, env, "instance", "create", "hunter2")
	for _, line := range []string{
		`pawl_commands_total{event="_create",outcome="applied",workflow="flight-booking"} 1`,
		`pawl_commands_total{event="reserve",outcome="applied",workflow="flight-booking"} 2`,
		`pawl_commands_total{event="_other",outcome="unknown-event",workflow="flight-booking"} 1`,
		`pawl_commands_total{event="_other",outcome="workflow-not-found",workflow="_other"} 1`,
		`pawl_idempotency_total{result="new"} 2`,
		`pawl_idempotency_total{result="replayed"} 1`,
		`pawl_idempotency_replay_age_seconds_count 1`,
		`pawl_requests_total{method="POST",route="/v1/instances/{id}/actions/{event}",status="200"} 2`,
		`pawl_requests_total{method="POST",route="/v1/instances/{id}/actions/{event}",status="422"} 1`,
		`pawl_request_duration_seconds_count{method="POST",route="/v1/instances/{id}/actions/{event}"} 3`,
	} {
		wantMetric(t, p.url, regexp.QuoteMeta(line))
	}
	for _, pattern := range []string{
		`pawl_queue_depth{queue="fire"} 0`, `pawl_queue_wait_seconds_count{queue="fire"} 3`, `pawl_batch_size_count{queue="create"} \d+`,
		`pawl_database_call_duration_seconds_count{pool="commands",result="answer"} \d+`, `pawl_pool_connections{pool="commands",state="max"} 20`,
		`go_goroutines \d+`, `process_resident_memory_bytes \S+`,
		`pawl_leading 1`, `pawl_timers_due 0`, `pawl_timers_late_seconds 0`, `pawl_deliveries_dead 0`, `pawl_findings{kind="slow"} 0`, `pawl_findings{kind="orphaned"} 0`, `pawl_consumer_behind_seconds{consumer="webhooks"} \S+`,
	} {
		wantMetric(t, p.url, pattern)
	}
	if text := metricsOf(t, p.url); strings.Contains(text, "hunter2") || strings.Contains(text, id) || strings.Contains(text, "otel_") || strings.Contains(text, "tenant=") {
		t.Errorf("the metrics have what they must not have:\n%s", text)
	}
}

// Callers who invent events, workflows, routes and methods fill no more than their share of /metrics. Nothing is left
// uncounted, and what was counted before goes on.
func TestFloodOfLabels(t *testing.T) {
	t.Parallel()
	p := start(t, []string{"DATABASE_URL=" + dbtest.NewDSN(t)}, "serve")
	mustPawl(t, []string{"PAWL_SERVER=" + p.url}, "workflow", "apply", writeFile(t, "noted.json",
		`{"name": "noted", "initial": "ON", "states": {"ON": {"on": {"note.*": "ON", "stop": "OFF"}}, "OFF": {"type": "final"}}}`))
	sent := 0
	batch := func(n int, command func(int) string) (ids []string) {
		t.Helper()
		commands := make([]string, n)
		for i := range commands {
			commands[i] = command(i)
		}
		// A busy service may put some off.
		a := bounded.Until(t, "the batch", func() answer {
			sent += n
			return mustSend(t, http.StatusOK, http.MethodPost, p.url+"/v1/batch", `{"commands": [`+strings.Join(commands, ",")+`]}`)
		}, func(a answer) bool { return !strings.Contains(a.body, `"status":503`) })
		for _, m := range regexp.MustCompile(`"id":\s*"([^"]+)"`).FindAllStringSubmatch(a.body, -1) {
			ids = append(ids, m[1])
		}
		return ids
	}
	const n, rounds = 1000, 4
	ids := batch(n, func(i int) string { return fmt.Sprintf(`{"op": "create", "key": "c%d", "workflow": "noted"}`, i) })
	if len(ids) != n {
		t.Fatalf("%d instances are created", len(ids))
	}
	fire := func(i, round int, event string) string {
		return fmt.Sprintf(`{"op": "fire", "key": "f%d-%d", "instance_id": %q, "event": %q}`, round, i, ids[i], event)
	}
	for round := range rounds {
		batch(n, func(i int) string {
			return fire(i, round, fmt.Sprintf("note.%s-%d-%d", strings.Repeat("x", 40), round, i))
		})
	}
	batch(n, func(i int) string { return fire(i, rounds, fmt.Sprintf("invented-%d", i)) })
	batch(n, func(i int) string {
		return fmt.Sprintf(`{"op": "create", "key": "w%d", "workflow": "invented-%d"}`, i, i)
	})
	for i := range 50 {
		for _, method := range []string{http.MethodGet, fmt.Sprintf("INVENTED%d", i)} {
			in, err := http.NewRequestWithContext(bounded.Context(t), method, fmt.Sprintf("%s/invented-%d", p.url, i), nil)
			if err != nil {
				t.Fatal(err)
			}
			out, err := http.DefaultClient.Do(in)
			if err != nil {
				t.Fatal(err)
			}
			_ = out.Body.Close()
		}
	}
	batch(n, func(i int) string { return fire(i, rounds+1, "stop") })
	text := metricsOf(t, p.url)
	if len(text) >= 1_000_000 {
		t.Errorf("/metrics has %d bytes", len(text))
	}
	if strings.Contains(strings.ToLower(text), "invented") {
		t.Error("/metrics has what callers have invented")
	}
	total, own, counts := 0, 0, map[string]int{}
	for _, m := range regexp.MustCompile(`(?m)^pawl_(?:commands|requests)_total\{(.*)\} (\d+)$`).FindAllStringSubmatch(text, -1) {
		count, err := strconv.Atoi(m[2])
		if err != nil {
			t.Fatal(err)
		}
		counts[m[1]] = count
		if strings.Contains(m[1], "event=") {
			total += count
		}
		if strings.Contains(m[1], `event="note.`) {
			own++
		}
	}
	if total != sent {
		t.Errorf("%d commands are counted, want %d", total, sent)
	}
	if own == 0 || own == n*rounds {
		t.Errorf("%d of %d events by a pattern have series of their own: the test shows less than it says", own, n*rounds)
	}
	for labels, want := range map[string]int{
		`event="_other",outcome="unknown-event",workflow="noted"`:       n,
		`event="_other",outcome="workflow-not-found",workflow="_other"`: n,
		`event="_create",outcome="applied",workflow="noted"`:            n,
		`method="GET",route="_other",status="404"`:                      50,
		`method="_other",route="_other",status="404"`:                   50,
	} {
		if counts[labels] < want {
			t.Errorf("%d of %s, want %d", counts[labels], labels, want)
		}
	}
}

// The numbers of the deployment are those of one process. When it ends, another has them.
func TestOneProcessHasTheBacklog(t *testing.T) {
	t.Parallel()
	env := []string{"DATABASE_URL=" + dbtest.NewDSN(t), "PAWL_METRICS_LISTEN=127.0.0.1:0"}
	// One of them has no API.
	replicas := []*process{start(t, env, "serve"), start(t, env, "serve", "--no-api")}
	urls := []string{metricsAddress(t, replicas[0]), metricsAddress(t, replicas[1])}
	shows := func(i int) bool { return strings.Contains(metricsOf(t, urls[i]), "\npawl_timers_due") }
	leader := bounded.Until(t, "a leader to show the backlog", func() int {
		for i := range urls {
			if shows(i) {
				return i
			}
		}
		return -1
	}, func(i int) bool { return i >= 0 })
	other := 1 - leader
	wantMetric(t, urls[other], "pawl_leading 0")
	if shows(other) {
		t.Error("both processes show the backlog")
	}
	replicas[leader].Signal(t, syscall.SIGTERM)
	if err := replicas[leader].Wait(t); err != nil {
		t.Errorf("after SIGTERM: %v", err)
	}
	bounded.True(t, "the other process to show the backlog", func() bool { return shows(other) })
}

// At the address of the API metrics are for the deployment alone; the address of their own is open, and has nothing else.
func TestMetricsAreClosedByDefault(t *testing.T) {
	t.Parallel()
	text := ""
	for i, token := range []struct{ tenant, scope string }{{"*", "read"}, {"default", "read"}, {"*", "fire"}} {
		text += fmt.Sprintf(`, {"sha256": "%s", "subject": "x", "tenant": %q, "scopes": [%q]}`, fmt.Sprintf("%x", sha256.Sum256([]byte(fmt.Sprint("token-", i)))), token.tenant, token.scope)
	}
	p := start(t, []string{"DATABASE_URL=" + dbtest.NewDSN(t)}, "serve", "--tokens", writeFile(t, "tokens.json", "["+text[2:]+"]"), "--metrics-listen", "127.0.0.1:0")
	status := func(url, token string) int {
		in, err := http.NewRequestWithContext(bounded.Context(t), http.MethodGet, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		if token != "" {
			in.Header.Set("Authorization", "Bearer "+token)
		}
		out, err := http.DefaultClient.Do(in)
		if err != nil {
			t.Fatal(err)
		}
		_ = out.Body.Close()
		return out.StatusCode
	}
	own := metricsAddress(t, p)
	for _, c := range []struct {
		url, token string
		want       int
	}{
		{p.url + "/metrics", "", 401},
		{p.url + "/metrics", "token-0", 200},
		{p.url + "/metrics", "token-1", 403},
		{p.url + "/metrics", "token-2", 403},
		{own + "/metrics", "", 200},
		{own + "/v1/instances", "token-0", 404},
		{own + "/debug/pprof/", "", 404},
	} {
		if got := status(c.url, c.token); got != c.want {
			t.Errorf("%s with %q: %d, want %d", c.url, c.token, got, c.want)
		}
	}
}
