package main_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pawl-fsm/pawl/db"
	"github.com/pawl-fsm/pawl/db/localpg"
)

// BenchmarkThroughput drives transitions over HTTP, from this process to a `pawl serve` on
// loopback, in a closed loop with a guard, an assign and a new key each, and runs
// `pgbench -N` (one update and one insert) with as many clients on the same server right
// after. What counts are the ratios within a run. `make bench` runs it.
func BenchmarkThroughput(b *testing.B) {
	const (
		instances = 20_000
		perBatch  = 500
		duration  = 5 * time.Second
	)
	server, err := localpg.Start(b.Context(), localpg.Config{Settings: map[string]string{
		"max_connections": "400", "shared_buffers": "1GB", "max_wal_size": "4GB",
	}})
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = server.Stop(b.Context()) }()
	if err := db.Up(b.Context(), server.DSN()); err != nil {
		b.Fatal(err)
	}
	p := start(b, []string{"DATABASE_URL=" + server.DSN()}, "serve")
	pgbench, err := server.Binaries().Path("pgbench")
	if err == nil {
		if out, err := exec.Command(pgbench, "--initialize", "--quiet", "--scale", "10", server.DSN()).CombinedOutput(); err != nil {
			b.Fatalf("pgbench: %v: %s", err, out)
		}
	}
	mustPawl(b, nil, "workflow", "apply", "--server", p.url, "testdata/bench.yaml")
	ids := make([]string, 0, instances)
	for len(ids) < instances {
		commands := make([]map[string]any, perBatch)
		for i := range commands {
			commands[i] = map[string]any{
				"op": "create", "key": fmt.Sprintf("create-%d", len(ids)+i), "workflow": "bench", "context": map[string]int{"n": 1},
			}
		}
		body, err := json.Marshal(map[string]any{"commands": commands})
		if err != nil {
			b.Fatal(err)
		}
		var answer struct {
			Results []struct{ Instance struct{ ID string } }
		}
		a := mustSend(b, http.StatusOK, http.MethodPost, p.url+"/v1/batch", string(body))
		if err := json.Unmarshal([]byte(a.body), &answer); err != nil {
			b.Fatal(err)
		}
		for _, r := range answer.Results {
			ids = append(ids, r.Instance.ID)
		}
	}

	for _, connections := range []int{1, 8, 64, 256} {
		b.Run(fmt.Sprintf("connections=%d", connections), func(b *testing.B) {
			for b.Loop() {
				latencies := fireFor(b, p.url, ids, connections, duration)
				slices.Sort(latencies)
				rate := float64(len(latencies)) / duration.Seconds()
				b.ReportMetric(rate, "transitions/s")
				b.ReportMetric(float64(latencies[len(latencies)/2].Microseconds())/1000, "p50-ms")
				b.ReportMetric(float64(latencies[len(latencies)*99/100].Microseconds())/1000, "p99-ms")
				if pgbench != "" {
					reference := pgbenchRate(b, pgbench, server.DSN(), connections, duration)
					b.ReportMetric(reference, "pgbench-N/s")
					b.ReportMetric(rate/reference, "ratio")
				}
				b.ReportMetric(0, "ns/op")
			}
		})
	}
	if status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.Process.Pid)); err == nil {
		b.Logf("the service: %s", regexp.MustCompile(`VmHWM:.*`).Find(status))
	}
}

// fireFor moves instances for a while and returns how long each request took.
func fireFor(b *testing.B, url string, ids []string, connections int, d time.Duration) []time.Duration {
	client := http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: connections}}
	defer client.CloseIdleConnections()
	run := strconv.FormatInt(time.Now().UnixNano(), 36)
	all := make([][]time.Duration, connections)
	deadline := time.Now().Add(d)
	var clients sync.WaitGroup
	for c := range connections {
		clients.Go(func() {
			for i := 0; time.Now().Before(deadline); i++ {
				id := ids[(c+i*connections)%len(ids)]
				req, err := http.NewRequestWithContext(b.Context(), http.MethodPost, url+"/v1/instances/"+id+"/actions/go",
					strings.NewReader(`{"payload": {"n": 1}}`))
				if err != nil {
					b.Error(err)
					return
				}
				req.Header.Set("Content-Type", "application/json")
				req.Header.Set("Idempotency-Key", fmt.Sprintf("%s-%d-%d", run, c, i))
				began := time.Now()
				res, err := client.Do(req)
				if err != nil {
					b.Error(err)
					return
				}
				text, err := io.ReadAll(res.Body)
				_ = res.Body.Close()
				if err != nil || res.StatusCode != http.StatusOK {
					b.Errorf("status %d (%v): %s", res.StatusCode, err, text)
					return
				}
				all[c] = append(all[c], time.Since(began))
			}
		})
	}
	clients.Wait()
	return slices.Concat(all...)
}

var tps = regexp.MustCompile(`tps = ([0-9.]+) \(without`)

func pgbenchRate(b *testing.B, pgbench, dsn string, clients int, d time.Duration) float64 {
	out, err := exec.Command(pgbench, "--no-vacuum", "--skip-some-updates", "--protocol", "prepared",
		"--client", strconv.Itoa(clients), "--jobs", "2", "--time", strconv.Itoa(int(d.Seconds())), dsn).CombinedOutput()
	if err != nil {
		b.Fatalf("pgbench: %v: %s", err, out)
	}
	m := tps.FindSubmatch(out)
	if m == nil {
		b.Fatalf("pgbench says %s", out)
	}
	rate, err := strconv.ParseFloat(string(m[1]), 64)
	if err != nil {
		b.Fatal(err)
	}
	return rate
}
