package main

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/examples/story"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// pawl and worker are the paths of the programs.
var pawl, worker string

func TestMain(m *testing.M) {
	programs, remove := bounded.Build("../../cmd/pawl", ".")
	pawl, worker = programs[0], programs[1]
	code := m.Run()
	remove()
	dbtest.Exit(code)
}

// A worker works longer than its lease, which its heartbeats extend, and is killed in the middle. When the lease has run out
// another one gets the task, and there is one file.
func TestWorkerCrashes(t *testing.T) {
	t.Parallel()
	crash := bounded.NewGate(t, "the third page")
	var asked atomic.Int32
	all := orders(0)
	stub := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("page") == "3" && asked.Add(1) == 1 {
			crash.Pass()
		}
		all.ServeHTTP(w, r)
	}))
	t.Cleanup(stub.Close)
	text, err := os.ReadFile("workflow.yaml")
	if err != nil {
		t.Fatal(err)
	}
	const lease = "lease: 30s"
	if strings.Count(string(text), lease) != 1 {
		t.Fatalf("the definition has %q not once", lease)
	}
	file := filepath.Join(t.TempDir(), "workflow.yaml")
	if err := os.WriteFile(file, []byte(strings.Replace(string(text), lease, "lease: 1s", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	s := story.Serve(t, pawl, dbtest.NewDSN(t))
	s.Pawl("workflow", "apply", file)
	dir := t.TempDir()
	hire := func(name string) *bounded.Process {
		return bounded.Start(t, bounded.Program{
			Path: worker, Env: []string{"PAWL_SERVER=" + s.URL().String(), "PAWL_WORKER=" + name, "ORDERS_URL=" + stub.URL, "EXPORT_DIR=" + dir},
		})
	}
	one := hire("one")
	job := s.Do(http.MethodPost, "/v1/workflows/export-job/instances", `{"context": {"month": "2026-02"}}`, "Idempotency-Key", "job").
		Want(t, http.StatusCreated).Header.Get("Location")
	crash.Reached()

	task := func() map[string]any {
		list := s.Do(http.MethodGet, "/v1/tasks?instance_id="+job[strings.LastIndex(job, "/")+1:], nil).Want(t, http.StatusOK).Body["items"].([]any)
		return list[0].(map[string]any)
	}
	begun := at(t, task()["created_at"])
	beating := bounded.Until(t, "a lease that was extended", task, func(task map[string]any) bool {
		return task["lease_expires_at"] != nil && at(t, task["lease_expires_at"]).After(begun.Add(3*time.Second))
	})
	if progress, worker := fmt.Sprint(beating["progress"]), beating["worker"]; progress != "map[orders:200]" || worker != "one" {
		t.Errorf("%v is at %s, want one at 200 orders", worker, progress)
	}
	one.Kill(t)
	crash.Open()
	hire("two")

	done := s.Await(job, "READY").WantMember(t, "500", "context", "orders")
	whole := s.Do(http.MethodGet, fmt.Sprint("/v1/tasks/", task()["id"]), nil).Want(t, http.StatusOK)
	var attempts []string
	for _, a := range whole.Body["attempts"].([]any) {
		attempt := a.(map[string]any)
		attempts = append(attempts, fmt.Sprint(attempt["worker"], " ", attempt["result"]))
	}
	if !slices.Equal(attempts, []string{"one expired", "two completed"}) {
		t.Errorf("the attempts are %q", attempts)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.csv"))
	name := done.Body["context"].(map[string]any)["file"]
	if err != nil || len(files) != 1 || filepath.Base(files[0]) != name {
		t.Fatalf("the files are %q, want %s (%v)", files, name, err)
	}
	exported, err := os.ReadFile(files[0])
	if lines := strings.Split(strings.TrimSpace(string(exported)), "\n"); err != nil || len(lines) != 500 || lines[499] != "2026-02/500,500" {
		t.Errorf("the file has %d lines (%v):\n%s", len(lines), err, exported)
	}
	if n := len(s.Do(http.MethodGet, job+"/history", nil).Want(t, http.StatusOK).Body["items"].([]any)); n != 2 {
		t.Errorf("the history has %d steps, want the creation and one result", n)
	}
}

func at(t *testing.T, text any) time.Time {
	t.Helper()
	at, err := time.Parse(time.RFC3339, fmt.Sprint(text))
	if err != nil {
		t.Fatal(err)
	}
	return at
}
