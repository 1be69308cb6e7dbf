package main_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/pawl-fsm/pawl/db/dbtest"
)

const parcel = "../../examples/worker/workflow.yaml"

// A worker that is a shell script, and the operator who looks after it.
func TestWorkOnTheCommandLine(t *testing.T) {
	t.Parallel()
	p := start(t, []string{"DATABASE_URL=" + dbtest.NewDSN(t)}, "serve")
	env := []string{"PAWL_SERVER=" + p.url, "PAWL_ACTOR=olga", "PAWL_WORKER=script"}
	mustPawl(t, env, "workflow", "apply", parcel)

	want := func(code int, text string, args ...string) string {
		t.Helper()
		out, stderr, got := pawl(t, env, args...)
		if got != code || !strings.Contains(out+stderr, text) {
			t.Errorf("%v: exit code %d, want %d; no %q in\n%s%s", args, got, code, text, out, stderr)
		}
		return out
	}
	var task struct{ ID, Lease, Key string }
	claim := func() {
		t.Helper()
		out := want(0, `"topic":"pack"`, "work", "claim", "pack", "--wait", "30s")
		if err := json.Unmarshal([]byte(out), &task); err != nil || strings.Count(out, "\n") != 1 {
			t.Fatalf("%v: %s", err, out)
		}
	}
	created := func() (id string) {
		t.Helper()
		var instance struct{ ID string }
		if err := json.Unmarshal([]byte(mustPawl(t, env, "instance", "create", "parcel", "--context", "{sku: A-17}", "--json")), &instance); err != nil {
			t.Fatal(err)
		}
		return instance.ID
	}
	want(1, "", "work", "claim", "pack")
	want(2, "malformed-request", "work", "claim", "pack", "--max", "101")
	want(2, "the topic is no name", "work", "claim", "7up")

	id := created()
	claim()
	want(0, "the lease is over at", "work", "heartbeat", task.ID, task.Lease, "--progress", "{packed: 1}")
	want(2, "not-found", "work", "heartbeat", id, task.Lease)
	want(0, "status", "work", "release", task.ID, task.Lease)
	first := task.Lease
	claim()
	want(1, "lease-superseded", "work", "complete", task.ID, first, "--result", "{parcel: P-1}")
	want(0, "no paper", "work", "fail", task.ID, task.Lease, "--error", "no paper", "--retryable", "--retry-in", "1ms")
	claim()
	want(0, "PACKED (completed)", "work", "complete", task.ID, task.Lease, "--result", "{parcel: P-1}")
	want(1, "task-ended", "work", "heartbeat", task.ID, task.Lease)
	out := want(0, "done:pack: PACKING → PACKED by task:pack", "instance", "timeline", id)
	for _, line := range []string{"created in PACKING by olga", "task pack: done after 3 attempts", "task pack, attempt 2 by script: failed: no paper"} {
		if !strings.Contains(out, line) {
			t.Errorf("no %q in\n%s", line, out)
		}
	}
	want(0, `"kind": "attempt"`, "instance", "timeline", id, "--json")

	id = created()
	claim()
	want(0, "unknown", "work", "fail", task.ID, task.Lease, "--error", "the belt stopped", "--outcome", "unknown")
	want(0, "the belt stopped", "task", "list", "--status", "unknown")
	out = want(0, "attempts", "task", "show", task.ID)
	for _, text := range []string{"work of pack", "unknown", "script", "the belt stopped"} {
		if !strings.Contains(out, text) {
			t.Errorf("no %q in\n%s", text, out)
		}
	}
	want(2, "--reason", "task", "retry", task.ID)
	want(0, "moves instance yes", "task", "retry", task.ID, "--reason", "it is on the belt")
	want(1, "task-ended", "task", "retry", task.ID, "--reason", "it is on the belt")
	want(0, "moves instance yes", "task", "resolve", task.ID, "--outcome", "done", "--result", "{parcel: P-2}", "--reason", "found it")
	want(0, "PACKED", "instance", "get", id)
	want(0, "NAME", "instance", "compensation", "list", id)
	want(1, "not-found", "instance", "compensation", "skip", id, "pack", "--reason", "why")
	want(1, "not-found", "instance", "compensation", "retry", id, "pack", "--reason", "why")
}
