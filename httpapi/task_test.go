package httpapi_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/httpapi"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// parcel offers work of the topic pack, which is tried twice.
const parcel = `{
	"name": "parcel", "initial": "PACKING", "timezone": "UTC",
	"states": {
		"PACKING": {
			"invoke": {"pack": {
				"work": {"topic": "pack", "lease": "30s", "input": {"sku": "$.context.sku"}}, "deadline": "2h", "retry": {"max": 2, "base": "1s", "cap": "1m"},
				"done": [{"target": "PACKED", "assign": {"parcel": "$.payload.body.parcel"}}], "error": [{"target": "BROKEN"}], "unknown": [{"target": "REVIEW"}],
				"compensate": {"work": {"topic": "unpack", "input": {"parcel": "$.result.body.parcel"}}, "deadline": "1h"}
			}},
			"on": {"abort": [{"target": "ABORTED"}]}
		},
		"PACKED": {"on": {"undo": [{"target": "UNDOING"}], "end": [{"target": "DONE"}]}},
		"REVIEW": {"on": {"end": [{"target": "DONE"}]}},
		"ABORTED": {"on": {"end": [{"target": "DONE"}]}},
		"UNDOING": {"compensate": {"what": "all", "on_failure": "stop"}, "done": [{"target": "UNDONE"}], "error": [{"target": "STUCK"}]},
		"STUCK": {"on": {"again": [{"target": "UNDOING"}]}},
		"BROKEN": {"type": "final", "outcome": "failed"},
		"UNDONE": {"type": "final", "outcome": "cancelled"},
		"DONE": {"type": "final"}
	}
}`

// parcels registers the workflow parcel, under other names if they are given.
func (a *api) parcels(names ...string) {
	a.t.Helper()
	if names == nil {
		names = []string{"parcel"}
	}
	for _, name := range names {
		bounded.Exec(a.t, a.pool, "select pawl.register_workflow($1::jsonb)", strings.Replace(parcel, `"parcel", "initial"`, `"`+name+`", "initial"`, 1))
	}
}

// claim claims tasks of the topic pack, and wants some.
func (a *api) claim(max, want int, headers ...string) answer {
	a.t.Helper()
	r := a.post("/v1/work/pack/claim", newKey(), fmt.Sprintf(`{"worker": "w", "max": %d}`, max), headers...).want(http.StatusOK)
	if got := len(r.each("tasks", "id")); got != want {
		a.t.Fatalf("%d tasks were claimed, want %d: %s", got, want, r.body)
	}
	return r
}

// says sends what a worker says of the task i of a claim.
func (a *api) says(claim answer, i int, what, members string, headers ...string) answer {
	a.t.Helper()
	at := fmt.Sprintf("tasks.%d.", i)
	return a.do(http.MethodPost, "/v1/tasks/"+claim.at(at+"id")+"/"+what, `{"lease": "`+claim.at(at+"lease")+`"`+members+`}`, headers...)
}

func TestWork(t *testing.T) {
	t.Parallel()
	a := start(t)
	a.parcels()
	id := a.create("parcel", `{"context": {"sku": "A-17"}, "correlation_id": "c-1"}`, "traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")

	claim := a.claim(10, 1).wantAt("tasks.0.topic", "pack", "tasks.0.name", "pack", "tasks.0.instance_id", id, "tasks.0.workflow", "parcel",
		"tasks.0.attempt", "1", "tasks.0.input.sku", "A-17", "tasks.0.correlation_id", "c-1",
		"tasks.0.traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
	task := claim.at("tasks.0.id")
	a.claim(10, 0)
	a.get("/v1/tasks/"+task).want(http.StatusOK).wantAt("status", "sent", "worker", "w", "attempt", "1", "attempts.0.attempt", "1",
		"attempts.0.ended_at", "null", "state", "PACKING", "type", "work", "error", "null")

	a.says(claim, 0, "heartbeat", `, "progress": {"packed": 3}`).want(http.StatusOK).wantAt("cancel_requested", "false")
	a.get("/v1/tasks/"+task).wantAt("progress.packed", "3")

	a.says(claim, 0, "complete", `, "result": {"parcel": "P-9"}`).want(http.StatusOK).
		wantAt("state", "PACKED", "version", "2", "context.parcel", "P-9").wantHeader("ETag", `"2"`)
	a.says(claim, 0, "complete", `, "result": {"parcel": "P-9"}`).want(http.StatusOK).wantAt("version", "2")
	a.says(claim, 0, "complete", `, "result": {"parcel": "P-10"}`).want(http.StatusConflict, "task-ended")
	a.says(claim, 0, "heartbeat", ``).want(http.StatusConflict, "task-ended")
	a.says(claim, 0, "fail", `, "error": "no"`).want(http.StatusConflict, "task-ended")
	a.do(http.MethodPost, "/v1/tasks/"+task+"/resolve", `{"reason": "why", "outcome": "done"}`).want(http.StatusConflict, "task-ended")
	a.do(http.MethodPost, "/v1/tasks/"+task+"/retry", `{"reason": "why"}`).want(http.StatusConflict, "task-ended")
	a.get("/v1/tasks/"+task).want(http.StatusOK).wantAt("status", "done", "worker", "null", "attempts.0.result", "completed")
	a.get("/v1/instances/"+id+"/history").wantAt("items.1.kind", "result", "items.1.event", "done:pack", "items.1.actor", "task:pack")
}

// A worker says that it failed: the task is offered again while it may be, and then ends.
func TestFailedWork(t *testing.T) {
	t.Parallel()
	a := start(t)
	a.parcels()
	id := a.create("parcel", `{}`)
	claim := a.claim(1, 1)
	a.says(claim, 0, "fail", `, "error": "no paper", "retryable": true, "retry_in": "1ms"`).want(http.StatusOK).
		wantAt("error", "no paper", "worker", "null", "attempt", "1")
	// The same again is no second attempt.
	a.says(claim, 0, "fail", `, "error": "no paper", "retryable": true, "retry_in": "1ms"`).want(http.StatusOK)
	dbtest.Advance(t, a.pool, time.Second)
	second := a.claim(1, 1).wantAt("tasks.0.attempt", "2", "tasks.0.key", claim.at("tasks.0.key"))
	a.says(claim, 0, "complete", ``).want(http.StatusConflict, "lease-superseded")
	a.says(claim, 0, "heartbeat", ``).want(http.StatusConflict, "lease-superseded")
	a.says(claim, 0, "release", ``).want(http.StatusConflict, "lease-superseded")
	a.says(second, 0, "fail", `, "error": "no paper", "retryable": true`).want(http.StatusOK).wantAt("status", "error")
	a.get("/v1/instances/"+id).wantAt("state", "BROKEN", "version", "2")
	a.says(second, 0, "fail", `, "error": "no paper", "retryable": true`).want(http.StatusOK).wantAt("status", "error")
	a.says(second, 0, "fail", `, "error": "no ink", "retryable": true`).want(http.StatusConflict, "task-ended")

	id = a.create("parcel", `{}`)
	a.says(a.claim(1, 1), 0, "fail", `, "error": "busy", "retryable": true, "retry_in": "0s"`).want(http.StatusOK).wantAt("status", "sent")
	a.says(a.claim(1, 1), 0, "fail", `, "error": "lost it", "outcome": "unknown"`).want(http.StatusOK).wantAt("status", "unknown")
	a.get("/v1/instances/"+id).wantAt("state", "REVIEW")
}

// What the worker says of the outcome counts when there is no other attempt.
func TestFailedWorkEndsAsItsWorkerSays(t *testing.T) {
	t.Parallel()
	a := start(t)
	a.parcels()
	id := a.create("parcel", `{}`)
	first := a.claim(1, 1)
	a.says(first, 0, "fail", `, "error": "no answer", "retryable": true, "retry_in": "1ms", "outcome": "unknown"`).want(http.StatusOK).wantAt("status", "sent")
	a.says(first, 0, "fail", `, "error": "no ink", "outcome": "error"`).want(http.StatusConflict, "lease-superseded")
	dbtest.Advance(t, a.pool, time.Second)
	last := a.claim(1, 1)
	a.says(first, 0, "complete", ``).want(http.StatusConflict, "lease-superseded")
	a.says(last, 0, "fail", `, "error": "no answer", "retryable": true, "outcome": "unknown"`).want(http.StatusOK).wantAt("status", "unknown")
	a.get("/v1/instances/"+id).wantAt("state", "REVIEW")

	// The same again gets the same answer, whatever was refused meanwhile.
	a.says(last, 0, "complete", ``).want(http.StatusConflict, "task-ended")
	a.says(last, 0, "fail", `, "error": "no answer", "retryable": true, "outcome": "unknown"`).want(http.StatusOK).wantAt("status", "unknown")
}

// A task that was given back costs no attempt, however often that is said.
func TestReleasedWork(t *testing.T) {
	t.Parallel()
	a := start(t)
	a.parcels()
	a.create("parcel", `{}`)
	for range 5 {
		claim := a.claim(1, 1)
		a.says(claim, 0, "release", ``).want(http.StatusOK).wantAt("status", "pending", "worker", "null")
		a.says(claim, 0, "release", ``).want(http.StatusOK).wantAt("status", "pending")
		a.says(claim, 0, "heartbeat", ``).want(http.StatusConflict, "lease-superseded")
	}
	failing := a.claim(1, 1)
	a.says(failing, 0, "fail", `, "error": "e", "retryable": true, "retry_in": "1ms"`).want(http.StatusOK)
	dbtest.Advance(t, a.pool, time.Second)
	// The attempt that was given back is not counted, and the failure before it is.
	again := a.claim(1, 1)
	a.says(again, 0, "release", ``).want(http.StatusOK)
	a.says(again, 0, "release", ``).want(http.StatusOK)
	last := a.claim(1, 1)
	a.says(last, 0, "fail", `, "error": "e", "retryable": true`).want(http.StatusOK).wantAt("status", "error")
}

// A lease is as long as the claim wanted, also after a heartbeat.
func TestLeases(t *testing.T) {
	t.Parallel()
	a := start(t)
	a.parcels()
	at := time.Date(2026, 3, 1, 9, 0, 0, 0, time.UTC)
	dbtest.SetClock(t, a.pool, at)
	a.create("parcel", `{}`)
	declared := a.claim(1, 1).wantAt("tasks.0.lease_expires_at", "2026-03-01T09:00:30.000000Z", "tasks.0.deadline_at", "2026-03-01T11:00:00.000000Z")
	a.says(declared, 0, "release", ``).want(http.StatusOK)
	claim := a.post("/v1/work/pack/claim", newKey(), `{"worker": "w", "lease": "1h"}`).want(http.StatusOK).
		wantAt("tasks.0.lease_expires_at", "2026-03-01T10:00:00.000000Z")
	dbtest.SetClock(t, a.pool, at.Add(10*time.Minute))
	a.says(claim, 0, "heartbeat", ``).want(http.StatusOK).wantAt("lease_expires_at", "2026-03-01T10:10:00.000000Z")

	// A lease that ran out is good until another worker has the task.
	dbtest.SetClock(t, a.pool, at.Add(90*time.Minute))
	bounded.Exec(t, a.pool, "select pawl.task_sweep(10)")
	task := "/v1/tasks/" + claim.at("tasks.0.id")
	a.get(task).wantAt("worker", "null", "attempts.1.result", "expired")
	a.says(claim, 0, "heartbeat", ``).want(http.StatusOK).wantAt("lease_expires_at", "2026-03-01T11:00:00.000000Z", "cancel_requested", "false")
	a.get(task).wantAt("status", "sent", "worker", "w", "due_at", "null", "attempts.1.result", "null", "attempts.1.ended_at", "null", "attempts.1.error", "null")
	a.claim(1, 0)
	a.says(claim, 0, "complete", `, "result": {"parcel": "P"}`).want(http.StatusOK).wantAt("state", "PACKED")

	id := a.create("parcel", `{}`)
	first := a.claim(1, 1)
	dbtest.SetClock(t, a.pool, at.Add(92*time.Minute))
	bounded.Exec(t, a.pool, "select pawl.task_sweep(10)")
	second := a.claim(1, 1)
	a.says(first, 0, "heartbeat", ``).want(http.StatusConflict, "lease-superseded")
	a.says(first, 0, "complete", ``).want(http.StatusConflict, "lease-superseded")
	// The last attempt ran out, and nobody knows what became of it. A person has it tried again: an old lease does not.
	dbtest.SetClock(t, a.pool, at.Add(94*time.Minute))
	bounded.Exec(t, a.pool, "select pawl.task_sweep(10)")
	a.get("/v1/instances/"+id).wantAt("state", "REVIEW")
	a.says(second, 0, "heartbeat", ``).want(http.StatusConflict, "task-ended")
	a.do(http.MethodPost, "/v1/tasks/"+second.at("tasks.0.id")+"/retry", `{"reason": "it is safe"}`).want(http.StatusOK)
	a.says(second, 0, "heartbeat", ``).want(http.StatusConflict, "lease-superseded")
}

// A claim is repeated under its key until it is answered.
func TestClaimsAreRepeated(t *testing.T) {
	t.Parallel()
	a := start(t)
	a.parcels()
	for range 5 {
		a.create("parcel", `{}`)
	}
	repeat := func() answer {
		t.Helper()
		return a.post("/v1/work/pack/claim", "k", `{"worker": "w", "max": 2}`).want(http.StatusOK)
	}
	first := repeat()
	if again := repeat(); string(again.body) != string(first.body) {
		t.Errorf("the claim was answered with\n%s\nand then with\n%s", first.body, again.body)
	}
	// What was given back, or has ended, is no part of the answer any more.
	a.says(first, 0, "release", ``).want(http.StatusOK)
	if got, want := strings.Join(repeat().each("tasks", "id"), " "), first.at("tasks.1.id"); got != want {
		t.Errorf("the claim is answered with %s, want %s", got, want)
	}
	a.says(first, 1, "complete", ``).want(http.StatusOK)
	if got := len(repeat().each("tasks", "id")); got != 2 {
		t.Errorf("the key claims %d tasks, want 2", got)
	}
}

// claimLater sends a claim that waits, and returns channels for its answer and the function with which its client leaves.
func (a *api) claimLater(headers ...string) (got <-chan answer, leave context.CancelFunc) {
	a.t.Helper()
	ctx, leave := context.WithCancel(context.Background())
	answers := make(chan answer, 1)
	var waiting sync.WaitGroup
	waiting.Go(func() {
		r, err := http.NewRequestWithContext(ctx, http.MethodPost, a.url+"/v1/work/pack/claim", strings.NewReader(`{"worker": "w", "wait": "60s"}`))
		if err != nil {
			a.t.Error(err)
			return
		}
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("Idempotency-Key", newKey())
		for i := 0; i < len(headers); i += 2 {
			r.Header.Set(headers[i], headers[i+1])
		}
		res, err := a.client.Do(r)
		if err != nil {
			return // The client has left.
		}
		defer func() { _ = res.Body.Close() }()
		body, err := io.ReadAll(res.Body)
		if err != nil {
			a.t.Error(err)
		}
		answers <- answer{t: a.t, status: res.StatusCode, header: res.Header, body: body, request: "claim"}
	})
	a.t.Cleanup(func() {
		leave()
		bounded.Wait(a.t, "the claim", waiting.Wait)
	})
	return answers, leave
}

// Claims that wait are woken when a task is armed, on every replica, and each task is claimed once.
func TestClaimsWait(t *testing.T) {
	t.Parallel()
	a := startLive(t, httpapi.Config{})
	b := liveOn(t, dbtest.DSN(a.pool), httpapi.Config{})
	a.parcels()
	var claims []<-chan answer
	for range 3 {
		for _, replica := range []*api{a, b} {
			got, _ := replica.claimLater()
			claims = append(claims, got)
		}
	}
	for range claims {
		a.create("parcel", `{}`)
	}
	seen := map[string]bool{}
	for _, claim := range claims {
		seen[bounded.Receive(t, "a claim", claim).want(http.StatusOK).at("tasks.0.instance_id")] = true
	}
	if len(seen) != len(claims) {
		t.Errorf("%d tasks were claimed, want %d", len(seen), len(claims))
	}
	// It waits no longer than it wants.
	a.post("/v1/work/pack/claim", newKey(), `{"worker": "w", "wait": "10ms"}`).want(http.StatusOK).wantAt("tasks", "[]")
}

// A claim whose client has left takes nothing.
func TestClaimsAreLeft(t *testing.T) {
	t.Parallel()
	a := startLive(t, httpapi.Config{})
	a.parcels()
	for range 20 {
		_, leave := a.claimLater()
		leave()
	}
	a.create("parcel", `{}`)
	// What a claim took while its client left is given back.
	bounded.True(t, "the task to be free", func() bool {
		return len(a.post("/v1/work/pack/claim", newKey(), `{"worker": "w"}`).want(http.StatusOK).each("tasks", "id")) == 1
	})
	a.get("/v1/tasks").wantAt("items.0.worker", "w")
}

// A claim that waits ends when its token is revoked, and when the service shuts down.
func TestClaimsEnd(t *testing.T) {
	t.Parallel()
	draining, drain := context.WithCancel(context.Background())
	defer drain()
	a := startLive(t, withTokens(httpapi.Config{Heartbeat: 50 * time.Millisecond, Draining: draining}))
	a.token("default", `{"id": "left", "subject": "s", "scopes": ["work"]}`)
	token := a.token("default", `{"id": "bad", "subject": "s", "scopes": ["work"]}`)
	revoked, _ := a.claimLater(as(token)...)
	a.do(http.MethodDelete, "/v1/tokens/bad", "", as("root", "default")...).want(http.StatusNoContent)
	bounded.Receive(t, "the end of the claim", revoked).want(http.StatusUnauthorized, "unauthenticated")
	stays, _ := a.claimLater(as("root", "default")...)
	a.get("/v1/tasks", as("root", "default")...).want(http.StatusOK)
	drain()
	bounded.Receive(t, "the end of the claim", stays).want(http.StatusOK).wantAt("tasks", "[]")
}

func TestClaimsAreChecked(t *testing.T) {
	t.Parallel()
	a := start(t)
	for body, pointer := range map[string]string{
		`{"worker": ""}`: "/worker", `{"worker": "w", "max": 0}`: "/max", `{"worker": "w", "max": 101}`: "/max", `{"worker": "w", "lease": "2h"}`: "/lease",
		`{"worker": "w", "lease": "1ms"}`: "/lease", `{"worker": "w", "lease": "0s"}`: "/lease", `{"worker": "w", "wait": "61s"}`: "/wait", `{"worker": "w", "wait": "soon"}`: "/wait",
	} {
		a.post("/v1/work/pack/claim", newKey(), body).want(http.StatusBadRequest, "malformed-request").wantAt("errors.0.pointer", pointer)
	}
	a.post("/v1/work/7up/claim", newKey(), `{"worker": "w"}`).want(http.StatusBadRequest, "malformed-request").wantAt("errors.0.parameter", "topic")
	a.do(http.MethodPost, "/v1/work/pack/claim", `{"worker": "w"}`).want(http.StatusBadRequest, "idempotency-key-required")
	a.post("/v1/work/pack/claim", newKey(), `{"worker": "w", "wait": "0s"}`).want(http.StatusOK).wantAt("tasks", "[]")
	a.post("/v1/work/"+strings.Repeat("x", 64)+"/claim", newKey(), `{"worker": "w"}`).want(http.StatusOK).wantAt("tasks", "[]")
	a.post("/v1/work/"+strings.Repeat("x", 65)+"/claim", newKey(), `{"worker": "w"}`).want(http.StatusBadRequest, "malformed-request")

	a.parcels()
	a.create("parcel", `{}`)
	claim := a.claim(1, 1)
	task := "/v1/tasks/" + claim.at("tasks.0.id")
	for _, what := range []string{"heartbeat", "complete", "release", "fail"} {
		more := map[bool]string{true: `, "error": "e"`}[what == "fail"]
		a.do(http.MethodPost, task+"/"+what, `{"lease": ""`+more+`}`).want(http.StatusBadRequest, "malformed-request").wantAt("errors.0.pointer", "/lease")
		a.do(http.MethodPost, task+"/"+what, `{"lease": "x"`+more+`}`).want(http.StatusConflict, "lease-superseded")
		a.do(http.MethodPost, "/v1/tasks/0195a302-6b1d-7c52-9e0f-4a5b6c7d8e9f/"+what, `{"lease": "x"`+more+`}`).want(http.StatusNotFound, "not-found")
		a.do(http.MethodPost, "/v1/tasks/x/"+what, `{"lease": "x"`+more+`}`).want(http.StatusNotFound, "not-found")
	}
	a.says(claim, 0, "fail", `, "error": ""`).want(http.StatusBadRequest, "malformed-request").wantAt("errors.0.pointer", "/error")
	a.says(claim, 0, "fail", `, "error": "e", "outcome": "done"`).want(http.StatusBadRequest, "malformed-request").wantAt("errors.0.pointer", "/outcome")
	a.says(claim, 0, "fail", `, "error": "e", "retry_in": "1m"`).want(http.StatusBadRequest, "malformed-request").wantAt("errors.0.pointer", "/retry_in")
	a.says(claim, 0, "fail", `, "error": "e", "retryable": true, "retry_in": "25h"`).want(http.StatusBadRequest, "malformed-request").wantAt("errors.0.pointer", "/retry_in")
	a.says(claim, 0, "heartbeat", `, "progress": "`+strings.Repeat("x", 5000)+`"`).want(http.StatusRequestEntityTooLarge, "too-large")
	a.says(claim, 0, "complete", `, "result": "`+strings.Repeat("x", 70000)+`"`).want(http.StatusRequestEntityTooLarge, "too-large")
	a.says(claim, 0, "complete", ``).want(http.StatusOK).wantAt("state", "PACKED")
}

// What ends after its state was left is late, and moves nothing.
func TestLateWork(t *testing.T) {
	t.Parallel()
	a := start(t)
	a.parcels()
	id := a.create("parcel", `{}`)
	claim := a.claim(1, 1)
	a.fire(id, "abort", `{}`).want(http.StatusOK)
	a.says(claim, 0, "heartbeat", ``).want(http.StatusOK).wantAt("cancel_requested", "true")
	a.says(claim, 0, "complete", `, "result": {"parcel": "P"}`).want(http.StatusOK).wantAt("state", "ABORTED", "version", "2")
	if left := a.get("/v1/tasks/"+claim.at("tasks.0.id")).wantAt("status", "done").at("left_at"); left == "null" {
		t.Error("the task is not late")
	}

	// A task that nobody has claimed is cancelled.
	id = a.create("parcel", `{}`)
	a.fire(id, "abort", `{}`).want(http.StatusOK)
	a.claim(1, 0)
	a.get("/v1/tasks?instance_id="+id).wantAt("items.0.status", "cancelled")
}

func TestTaskList(t *testing.T) {
	t.Parallel()
	a := start(t)
	a.parcels("parcel", "letter")
	var ids []string
	for i := range 5 {
		ids = append(ids, a.create([]string{"parcel", "letter"}[i%2], `{}`))
	}
	a.says(a.claim(1, 1), 0, "complete", ``).want(http.StatusOK)
	if got, want := strings.Join(a.pages("/v1/tasks?limit=2", "instance_id", nil), " "), strings.Join([]string{ids[4], ids[3], ids[2], ids[1], ids[0]}, " "); got != want {
		t.Errorf("the list has %s, want %s", got, want)
	}
	for query, want := range map[string]int{
		"status=pending": 4, "status=done": 1, "topic=pack": 5, "topic=ship": 0, "workflow=letter": 2, "workflow=nothing": 0, "instance_id=" + ids[1]: 1,
		"workflow=parcel&status=pending": 2,
	} {
		if got := len(a.get("/v1/tasks?"+query).want(http.StatusOK).each("items", "id")); got != want {
			t.Errorf("%s: %d tasks, want %d", query, got, want)
		}
	}
	a.get("/v1/tasks?status=odd").want(http.StatusBadRequest, "malformed-request")
	a.get("/v1/tasks?instance_id=odd").want(http.StatusBadRequest, "malformed-request")
	a.get("/v1/tasks/odd").want(http.StatusNotFound, "not-found")
}

func TestOperateTasks(t *testing.T) {
	t.Parallel()
	a := start(t)
	a.parcels()
	id := a.create("parcel", `{}`)
	claim := a.claim(1, 1)
	task := "/v1/tasks/" + claim.at("tasks.0.id")
	a.do(http.MethodPost, task+"/retry", `{"reason": "why"}`).want(http.StatusConflict, "task-ended")
	a.says(claim, 0, "fail", `, "error": "lost it", "outcome": "unknown"`).want(http.StatusOK)
	a.do(http.MethodPost, task+"/retry", `{"reason": " "}`).want(http.StatusBadRequest, "malformed-request").wantAt("errors.0.pointer", "/reason")
	a.do(http.MethodPost, task+"/retry", `{"reason": "it is safe"}`).want(http.StatusOK).wantAt("status", "pending", "moves_instance", "true")
	again := a.claim(1, 1)
	// Its outcome moves the instance, so its worker is not told to stop.
	a.says(again, 0, "heartbeat", ``).want(http.StatusOK).wantAt("cancel_requested", "false")
	a.says(again, 0, "fail", `, "error": "lost it", "outcome": "unknown"`).want(http.StatusOK)

	a.do(http.MethodPost, task+"/resolve", `{"reason": "why", "outcome": "unknown"}`).want(http.StatusBadRequest, "malformed-request").wantAt("errors.0.pointer", "/outcome")
	a.do(http.MethodPost, task+"/resolve", `{"reason": "why", "outcome": "done", "result": "`+strings.Repeat("x", 70000)+`"}`).want(http.StatusRequestEntityTooLarge, "too-large")
	a.do(http.MethodPost, task+"/resolve", `{"reason": "it was found", "outcome": "done", "result": {"parcel": "P-1"}}`, "X-Actor", "dora").want(http.StatusOK).
		wantAt("status", "done", "moves_instance", "true")
	a.get("/v1/instances/"+id).wantAt("state", "PACKED", "context.parcel", "P-1")
	audit := a.get("/v1/audit?target=" + claim.at("tasks.0.id")).want(http.StatusOK)
	if got := strings.Join(audit.each("items", "action"), " "); got != "task.retry task.resolve" {
		t.Errorf("the audit has %s", got)
	}
	audit.wantAt("items.1.actor", "dora", "items.1.reason", "it was found")

	// The task of an instance that has moved on changes alone, and that of a final one is not tried again.
	id = a.create("parcel", `{}`)
	claim = a.claim(1, 1)
	task = "/v1/tasks/" + claim.at("tasks.0.id")
	a.says(claim, 0, "fail", `, "error": "lost it", "outcome": "unknown"`).want(http.StatusOK)
	a.fire(id, "end", `{}`).want(http.StatusOK)
	a.do(http.MethodPost, task+"/retry", `{"reason": "why"}`).want(http.StatusConflict, "transition-not-allowed")
	a.do(http.MethodPost, task+"/resolve", `{"reason": "it was found", "outcome": "done"}`).want(http.StatusOK).wantAt("status", "done", "moves_instance", "false")
	a.get("/v1/instances/"+id).wantAt("state", "DONE", "version", "3")
}

// A task that an operator had tried again, and that was done then, is as any that was done in time.
func TestRetriedWorkIsDoneOnce(t *testing.T) {
	t.Parallel()
	a := start(t)
	a.parcels()
	id := a.create("parcel", `{}`)
	claim := a.claim(1, 1)
	task := "/v1/tasks/" + claim.at("tasks.0.id")
	a.says(claim, 0, "fail", `, "error": "lost it", "outcome": "unknown"`).want(http.StatusOK)
	a.do(http.MethodPost, task+"/retry", `{"reason": "it is safe"}`).want(http.StatusOK).wantAt("status", "pending", "moves_instance", "true")
	a.says(a.claim(1, 1), 0, "complete", `, "result": {"parcel": "P-9"}`).want(http.StatusOK).wantAt("state", "PACKED")
	a.get(task).want(http.StatusOK).wantAt("status", "done", "left_at", "null")
	a.do(http.MethodPost, task+"/retry", `{"reason": "why"}`).want(http.StatusConflict, "task-ended")
	a.do(http.MethodPost, task+"/resolve", `{"reason": "why", "outcome": "error"}`).want(http.StatusConflict, "task-ended")
	a.get("/v1/instances/"+id).wantAt("state", "PACKED", "version", "3")
}

func TestCompensations(t *testing.T) {
	t.Parallel()
	a := start(t)
	a.parcels()
	id := a.create("parcel", `{"context": {"sku": "A"}}`)
	path := "/v1/instances/" + id + "/compensations"
	a.get(path).want(http.StatusOK).wantAt("items", "[]")
	a.says(a.claim(1, 1), 0, "complete", `, "result": {"parcel": "P-9"}`).want(http.StatusOK)
	a.get(path).want(http.StatusOK).wantAt("items.0.name", "pack", "items.0.status", "registered", "items.0.version", "2", "items.0.undoing_task_id", "null")
	a.do(http.MethodPost, path+"/fetch/skip", `{"reason": "why"}`).want(http.StatusNotFound, "not-found")

	a.fire(id, "undo", `{}`).want(http.StatusOK)
	undo := func() answer {
		t.Helper()
		return a.post("/v1/work/unpack/claim", newKey(), `{"worker": "w"}`).want(http.StatusOK).wantAt("tasks.0.name", "pack", "tasks.0.input.parcel", "P-9")
	}
	bounded.Exec(t, a.pool, "select pawl.task_sweep(10)")
	undoing := undo()
	a.do(http.MethodPost, path+"/pack/skip", `{"reason": "why"}`).want(http.StatusConflict, "task-ended")
	a.says(undoing, 0, "fail", `, "error": "it is gone"`).want(http.StatusOK).wantAt("compensation", "true")
	a.get("/v1/instances/"+id).wantAt("state", "STUCK")
	a.get(path).want(http.StatusOK).wantAt("items.0.status", "failed", "items.0.reason", "it is gone", "items.0.undoing_task_id", undoing.at("tasks.0.id"))

	a.do(http.MethodPost, path+"/pack/retry", `{"reason": "try again"}`).want(http.StatusOK).wantAt("status", "registered")
	a.do(http.MethodPost, path+"/pack/skip", `{"reason": "somebody did it"}`).want(http.StatusOK).wantAt("status", "skipped", "reason", "somebody did it")
	a.fire(id, "again", `{}`).want(http.StatusOK)
	bounded.Exec(t, a.pool, "select pawl.task_sweep(10)")
	a.get("/v1/instances/"+id).wantAt("state", "UNDONE")
	a.get("/v1/instances/0195a302-6b1d-7c52-9e0f-4a5b6c7d8e9f/compensations").want(http.StatusNotFound, "instance-not-found")
	a.do(http.MethodPost, "/v1/instances/0195a302-6b1d-7c52-9e0f-4a5b6c7d8e9f/compensations/pack/skip", `{"reason": "why"}`).want(http.StatusNotFound, "instance-not-found")
}

// A token that is bound to workflows works on their tasks alone, and one that is bound to events on the topics among them.
func TestBorderOfWork(t *testing.T) {
	t.Parallel()
	a := guarded(t, httpapi.Config{})
	a.parcels("parcel", "letter")
	home := as("root", "default")
	mine, theirs := a.create("parcel", `{}`, home...), a.create("letter", `{}`, home...)
	bound := as(a.token("default", `{"subject": "bea", "workflows": ["parcel"], "scopes": ["work", "read", "operate"]}`))
	a.do(http.MethodPut, "/v1/roles/packer", `{"events": ["pack"], "workflows": ["parcel"], "scopes": ["work"]}`, home...).want(http.StatusCreated)
	a.do(http.MethodPut, "/v1/roles/shipper", `{"events": ["ship"], "scopes": ["work"]}`, home...).want(http.StatusCreated)
	packer := as(a.token("default", `{"subject": "paul", "scopes": [], "roles": ["packer", "shipper"]}`))
	shipper := as(a.token("default", `{"subject": "sue", "scopes": [], "roles": ["shipper"]}`))

	for _, headers := range [][]string{bound, packer} {
		claim := a.claim(10, 1, headers...).wantAt("tasks.0.instance_id", mine)
		a.says(claim, 0, "heartbeat", ``, headers...).want(http.StatusOK)
		a.says(claim, 0, "release", ``, headers...).want(http.StatusOK)
	}
	a.post("/v1/work/pack/claim", newKey(), `{"worker": "w"}`, shipper...).want(http.StatusForbidden, "forbidden")
	a.post("/v1/work/ship/claim", newKey(), `{"worker": "w"}`, shipper...).want(http.StatusOK)

	claim := a.claim(10, 2, home...)
	for i := range 2 {
		foreign := claim.at(fmt.Sprintf("tasks.%d.instance_id", i)) == theirs
		for _, what := range []string{"heartbeat", "fail", "release", "complete"} {
			more := map[bool]string{true: `, "error": "e"`}[what == "fail"]
			a.says(claim, i, what, more, shipper...).want(http.StatusNotFound, "not-found")
			if foreign {
				a.says(claim, i, what, more, bound...).want(http.StatusNotFound, "not-found")
				a.says(claim, i, what, more, packer...).want(http.StatusNotFound, "not-found")
			}
		}
		task := "/v1/tasks/" + claim.at(fmt.Sprintf("tasks.%d.id", i))
		status := map[bool]int{true: http.StatusNotFound, false: http.StatusOK}[foreign]
		a.get(task, bound...).want(status)
		if foreign {
			a.do(http.MethodPost, task+"/resolve", `{"reason": "why", "outcome": "done"}`, bound...).want(http.StatusNotFound, "not-found")
		}
	}
	if got := strings.Join(a.get("/v1/tasks", bound...).want(http.StatusOK).each("items", "instance_id"), " "); got != mine {
		t.Errorf("the list has %s", got)
	}
	for _, what := range []string{"timeline", "compensations"} {
		a.get("/v1/instances/"+mine+"/"+what, bound...).want(http.StatusOK)
		a.get("/v1/instances/"+theirs+"/"+what, bound...).want(http.StatusNotFound, "instance-not-found")
	}
}

// The timeline has all that happened, in its order, however it is paged.
func TestTimeline(t *testing.T) {
	t.Parallel()
	a := start(t)
	a.parcels()
	at := time.Date(2026, 3, 1, 9, 0, 0, 0, time.UTC)
	tick := func() {
		at = at.Add(time.Minute)
		dbtest.SetClock(t, a.pool, at)
	}
	tick()
	id := a.create("parcel", `{"context": {"sku": "A"}}`, "X-Actor", "dora")
	tick()
	a.says(a.claim(1, 1), 0, "fail", `, "error": "no paper", "retryable": true, "retry_in": "1s"`).want(http.StatusOK)
	tick()
	claim := a.claim(1, 1)
	tick()
	a.says(claim, 0, "complete", `, "result": {"parcel": "P"}`).want(http.StatusOK)
	tick()
	a.fire(id, "undo", `{"reason": "why"}`).want(http.StatusOK)
	bounded.Exec(t, a.pool, "select pawl.task_sweep(10)")
	tick()
	undo := a.post("/v1/work/unpack/claim", newKey(), `{"worker": "v"}`).want(http.StatusOK)
	a.says(undo, 0, "complete", ``).want(http.StatusOK).wantAt("state", "UNDONE")
	// Deliveries tell of steps; many of one step.
	bounded.Exec(t, a.pool, `
		insert into pawl.delivery (tenant_id, id, subscription_id, callback, instance_id, version, type, status, attempts, last_status, created_at, delivered_at)
		select h.tenant_id, gen_random_uuid(), gen_random_uuid(), false, h.instance_id, h.version, 'pawl.instance.transitioned', 'delivered', 1, 204, h.at, h.at
		from pawl.history h, generate_series(1, 5)
		where h.instance_id = $1 and h.version in (2, 3)`, id)

	path := "/v1/instances/" + id + "/timeline"
	all := a.get(path).want(http.StatusOK).wantAt("next_cursor", "null")
	whole := all.each("items", "summary")
	var told []string
	for _, summary := range whole {
		if strings.HasPrefix(summary, "delivery") {
			summary = "delivery"
		}
		if n := len(told); n == 0 || told[n-1] != summary {
			told = append(told, summary)
		}
	}
	want := []string{
		"created in PACKING by dora", "task pack: done after 2 attempts", "task pack, attempt 1 by w: failed: no paper",
		"compensation of pack registered, now undone", "task pack, attempt 2 by w: completed", "done:pack: PACKING → PACKED by task:pack", "delivery",
		"undo: PACKED → UNDOING by anonymous", "compensation of pack: done after 1 attempt", "delivery", "compensation of pack, attempt 1 by v: completed",
		"compensated:pack in UNDOING by task:pack", "done:compensate: UNDOING → UNDONE by task:compensate",
	}
	if len(whole) != 11+10 {
		t.Errorf("there are %d items", len(whole))
	}
	if diff := cmp.Diff(want, told); diff != "" {
		t.Errorf("the timeline differs (-want +got):\n%s", diff)
	}
	all.wantAt("items.0.kind", "step", "items.0.version", "1", "items.0.step", "created", "items.2.attempt", "1", "items.2.failure", "no paper")
	for limit := 1; limit < 8; limit++ {
		if diff := cmp.Diff(whole, a.pages(fmt.Sprintf("%s?limit=%d", path, limit), "summary", nil)); diff != "" {
			t.Errorf("in pages of %d (-want +got):\n%s", limit, diff)
		}
	}
	a.get(path+"?cursor=x").want(http.StatusBadRequest, "malformed-request")
	a.get("/v1/instances/0195a302-6b1d-7c52-9e0f-4a5b6c7d8e9f/timeline").want(http.StatusNotFound, "instance-not-found")
}
