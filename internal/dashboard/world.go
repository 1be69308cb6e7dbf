package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/pawl-fsm/pawl/db/localpg"
)

// A world is what is measured, and what measures it.
type world struct {
	program  string
	dsn      string
	replicas []string // Their URLs.
	// prometheus is its URL.
	prometheus string
	services   *httptest.Server
	// ends stop what was started, the last first.
	ends []func()
}

// starting is how long a program may take until it answers.
const starting = 30 * time.Second

// begin starts a world. What it has started is stopped if it fails.
func begin(ctx context.Context, program, rules string, interval time.Duration) (w *world, err error) {
	w = &world{program: program}
	defer func() {
		if err != nil {
			w.end()
		}
	}()
	dir, err := os.MkdirTemp("", "pawl-dashboard-")
	if err != nil {
		return w, err
	}
	w.ends = append(w.ends, func() { _ = os.RemoveAll(dir) })
	server, err := localpg.Start(ctx, localpg.Config{})
	if err != nil {
		return w, err
	}
	w.ends = append(w.ends, func() { _ = server.Stop(context.WithoutCancel(ctx)) })
	w.dsn = server.DSN()
	if err := w.pawl(ctx, "migrate", "up"); err != nil {
		return w, err
	}
	w.services = httptest.NewServer(http.HandlerFunc(serve))
	w.ends = append(w.ends, w.services.Close)

	var targets []string
	for range 2 {
		api, metrics := port(), port()
		err := w.start(ctx, w.program, []string{"DATABASE_URL=" + w.dsn, "PAWL_LOG_LEVEL=error"}, "serve", "--listen", api, "--metrics-listen", metrics,
			"--webhook-allow-private", "--webhook-max-attempts", "2", "--webhook-backoff-base", "1s")
		if err != nil {
			return w, err
		}
		if err := ready(ctx, "http://"+api+"/readyz"); err != nil {
			return w, err
		}
		w.replicas, targets = append(w.replicas, "http://"+api), append(targets, metrics)
	}
	return w, w.watch(ctx, dir, rules, interval, targets)
}

// watch starts a Prometheus that scrapes targets.
func (w *world) watch(ctx context.Context, dir, rules string, interval time.Duration, targets []string) error {
	program, err := exec.LookPath("prometheus")
	if err != nil {
		return errors.New("prometheus is not on PATH: `sh .ci/setup --more` installs it")
	}
	if rules, err = filepath.Abs(rules); err != nil {
		return err
	}
	config, err := json.Marshal(map[string]any{ // JSON is YAML.
		"global":         map[string]string{"scrape_interval": interval.String(), "evaluation_interval": interval.String()},
		"rule_files":     []string{rules},
		"scrape_configs": []map[string]any{{"job_name": "pawl", "static_configs": []map[string]any{{"targets": targets}}}},
	})
	if err != nil {
		return err
	}
	file := filepath.Join(dir, "prometheus.yaml")
	if err := os.WriteFile(file, config, 0o600); err != nil {
		return err
	}
	address := port()
	w.prometheus = "http://" + address
	err = w.start(ctx, program, nil, "--config.file="+file, "--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address="+address, "--log.level=error")
	if err != nil {
		return err
	}
	return ready(ctx, w.prometheus+"/-/ready")
}

// end stops everything.
func (w *world) end() {
	for i := len(w.ends) - 1; i >= 0; i-- {
		w.ends[i]()
	}
	w.ends = nil
}

// start starts a program, which is told to stop at the end.
func (w *world) start(ctx context.Context, program string, env []string, args ...string) error {
	cmd := exec.CommandContext(context.WithoutCancel(ctx), program, args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return err
	}
	w.ends = append(w.ends, func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
	})
	return nil
}

// pawl runs a command to its end.
func (w *world) pawl(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, w.program, args...)
	cmd.Env = append(os.Environ(), "DATABASE_URL="+w.dsn)
	if len(w.replicas) > 0 {
		cmd.Env = append(cmd.Env, "PAWL_SERVER="+w.replicas[0])
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("pawl %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}

// port returns an address of this machine that nobody listens on.
func port() string {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "127.0.0.1:0" // What is to listen there will say why it cannot.
	}
	defer func() { _ = listener.Close() }()
	return listener.Addr().String()
}

// ready waits until a URL answers 200.
func ready(ctx context.Context, url string) error {
	ctx, cancel := context.WithTimeout(ctx, starting)
	defer cancel()
	for {
		if status, _, err := send(ctx, http.MethodGet, url, "", ""); err == nil && status == http.StatusOK {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s does not answer", url)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// send sends a request, with a key unless that is empty, and returns the answer.
func send(ctx context.Context, method, url, key, body string) (status int, answer []byte, err error) {
	request, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader([]byte(body)))
	if err != nil {
		return 0, nil, err
	}
	if body != "" {
		request.Header.Set("Content-Type", "application/json")
	}
	if key != "" {
		request.Header.Set("Idempotency-Key", key)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return 0, nil, err
	}
	defer response.Body.Close()
	answer, err = io.ReadAll(response.Body)
	return response.StatusCode, answer, err
}

// served counts what the stub was asked.
var served struct {
	sync.Mutex
	n int
}

// serve is a stub of all services. It books and cancels, but has no limousines, and does not answer each tenth booking. /broken
// is always broken.
func serve(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body) // Without a body there is no limousine.
	served.Lock()
	served.n++
	tenth := served.n%10 == 0
	served.Unlock()
	switch {
	case strings.HasPrefix(r.URL.Path, "/broken"):
		w.WriteHeader(http.StatusInternalServerError)
	case strings.HasPrefix(r.URL.Path, "/car") && bytes.Contains(body, []byte("limousine")):
		w.WriteHeader(http.StatusConflict)
	case tenth && r.Method == http.MethodPost && strings.HasPrefix(r.URL.Path, "/car"):
		w.WriteHeader(http.StatusServiceUnavailable)
	default:
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"reference": "r-1"}`)
	}
}
