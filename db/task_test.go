package db_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/db"
	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// taskWorkflow calls a service, offers work, and undoes both.
const taskWorkflow = `{
  "name": "trip", "initial": "CHARGING", "timezone": "UTC",
  "states": {
    "CHARGING": {
      "invoke": {"charge": {
        "http": {"connection": "psp", "method": "POST", "path": "/v1/{$.context.order}/charges", "query": {"a": 1}, "body": {"amount": "$.context.price", "key": "$.task.key"}},
        "idempotency": {"header": "Idempotency-Key", "window": "24h"}, "deadline": "15m", "retry": {"max": 2, "base": "1s", "cap": "1m"},
        "reconcile": {
          "http": {"method": "GET", "connection": "psp", "path": "/v1/charges", "query": {"key": "$.task.key"}},
          "every": ["5s", "30s"], "done": "$.body.paid == true", "failed": "$.body.failed == true", "absent": "$.status == 404", "absent_after": "1m"},
        "done": [{"target": "PACKING", "assign": {"charge": "$.payload.body.id"}}],
        "error": [{"guard": "$.payload.status == 402", "target": "DECLINED"}, {"target": "UNDOING"}],
        "unknown": [{"target": "REVIEW"}],
        "late": {"event": "refund"},
        "compensate": {"http": {"connection": "psp", "method": "POST", "path": "/v1/refunds", "body": {"charge": "$.result.body.id"}}, "deadline": "24h"}
      }},
      "on": {"abort": [{"target": "UNDOING"}], "skip": [{"target": "REVIEW"}]}
    },
    "PACKING": {
      "invoke": {"pack": {"work": {"topic": "pack", "lease": "60s", "input": {"charge": "$.context.charge"}}, "deadline": "2h", "retry": {"max": 2, "base": "1s", "cap": "1m"},
        "done": [{"target": "PACKED"}], "error": [{"target": "UNDOING"}], "unknown": [{"target": "REVIEW"}]}},
      "on": {"abort": [{"target": "UNDOING"}]}
    },
    "PACKED": {"on": {"pay": [{"target": "PAID", "compensate": {"work": {"topic": "unpay", "input": {"price": "$.context.price"}}, "deadline": "1h"}}]}},
    "PAID": {"on": {"abort": [{"target": "UNDOING"}], "end": [{"target": "DONE"}]}},
    "UNDOING": {"compensate": {"what": "all", "on_failure": "stop"}, "done": [{"target": "CANCELLED"}], "error": [{"target": "STUCK"}]},
    "STUCK": {"on": {"again": [{"target": "UNDOING"}]}},
    "REVIEW": {"on": {"refund": [{"target": "REVIEW", "assign": {"refund": "$.payload.body.id"}}], "end": [{"target": "DONE"}]}},
    "DECLINED": {"type": "final", "outcome": "failed"},
    "CANCELLED": {"type": "final", "outcome": "cancelled"},
    "DONE": {"type": "final"}
  }
}`

type taskBench struct {
	t    *testing.T
	pool *pgxpool.Pool
	id   uuid.UUID
}

// startTasks starts an instance of taskWorkflow.
func startTasks(t *testing.T) *taskBench {
	t.Helper()
	return startOf(t, "trip", taskWorkflow, `{"price": 5, "order": "a/b"}`)
}

// startWith starts an instance of a workflow that is named t.
func startWith(t *testing.T, definition string) *taskBench {
	t.Helper()
	return startOf(t, "t", definition, `{"refuse": 0}`)
}

func startOf(t *testing.T, name, definition, context string) *taskBench {
	t.Helper()
	b := &taskBench{t: t, pool: dbtest.New(t)}
	bounded.Exec(t, b.pool, "select pawl.register_workflow($1)", definition)
	b.id = bounded.Value[uuid.UUID](t, b.pool, "select (pawl.create_one($1, $2)).id", name, context)
	return b
}

func (b *taskBench) fire(event string) {
	b.t.Helper()
	bounded.Exec(b.t, b.pool, "select pawl.fire_one($1, $2)", b.id, event)
}

// claim claims the calls that are due, and returns what is to be called as JSON.
func (b *taskBench) claim() []map[string]any {
	b.t.Helper()
	text := bounded.Value[[]byte](b.t, b.pool,
		"select coalesce(jsonb_agg(to_jsonb(c)), '[]') from pawl.task_claim('{default}', '{psp}', '{10}', 'test') c")
	var calls []map[string]any
	if err := json.Unmarshal(text, &calls); err != nil {
		b.t.Fatal(err)
	}
	return calls
}

// one claims the one call that is due.
func (b *taskBench) one() map[string]any {
	b.t.Helper()
	calls := b.claim()
	if len(calls) != 1 {
		b.t.Fatalf("%d calls are due, want 1: %v", len(calls), calls)
	}
	return calls[0]
}

func (b *taskBench) settle(call map[string]any, report string) string {
	b.t.Helper()
	return bounded.Value[string](b.t, b.pool, "select s.code from pawl.task_settle('{default}', array[$1::uuid], array[$2::uuid], array[$3::jsonb]) s",
		call["task_id"], call["lease"], report)
}

func (b *taskBench) work(topic string) map[string]any {
	b.t.Helper()
	text := bounded.Value[[]byte](b.t, b.pool, "select to_jsonb(w) || jsonb_build_object('task_id', w.id) from pawl.claim_work($1) w", topic)
	var work map[string]any
	if err := json.Unmarshal(text, &work); err != nil {
		b.t.Fatal(err)
	}
	return work
}

func (b *taskBench) sweep() {
	b.t.Helper()
	bounded.Exec(b.t, b.pool, "select pawl.task_sweep(100)")
}

func (b *taskBench) wantState(state string) {
	b.t.Helper()
	if got := bounded.Value[string](b.t, b.pool, "select state from pawl.instance where id = $1", b.id); got != state {
		b.t.Fatalf("the state is %s, want %s; tasks: %s; undoing: %s", got, state, b.tasks(), bounded.Value[string](b.t, b.pool,
			"select coalesce((select u.problem from pawl.undoing u where u.instance_id = $1), '')", b.id))
	}
}

// tasks lists the tasks of the instance with their status.
func (b *taskBench) tasks() string {
	b.t.Helper()
	return bounded.Value[string](b.t, b.pool, `
		select coalesce(string_agg(t.name || ' ' || t.status || case when t.left_at is not null then ' left' else '' end || coalesce(' ' || t.problem, ''), ', ' order by t.id), '')
		from pawl.task t where t.instance_id = $1`, b.id)
}

func (b *taskBench) wantTasks(want string) {
	b.t.Helper()
	if got := b.tasks(); got != want {
		b.t.Fatalf("tasks: %s\nwant:  %s", got, want)
	}
}

func (b *taskBench) advance(d time.Duration) {
	b.t.Helper()
	dbtest.Advance(b.t, b.pool, d)
}

const answered = `{"result": "answered", "status": 200, "headers": {}, "body": {"id": "c1"}}`

func TestTaskIsDoneAndUndone(t *testing.T) {
	t.Parallel()
	b := startTasks(t)
	call := b.one()
	if call["method"] != "POST" || call["idempotency_header"] != "Idempotency-Key" || call["key"] != call["task_id"] {
		t.Fatalf("call %v", call)
	}
	if path, _ := json.Marshal(call["path"]); string(path) != `["/v1/",["a/b"],"/charges"]` {
		t.Fatalf("path %s", path)
	}
	if len(b.claim()) != 0 {
		t.Fatal("it was claimed twice")
	}
	if code := b.settle(call, answered); code != "settled" {
		t.Fatal(code)
	}
	b.wantState("PACKING")
	if code := b.settle(call, answered); code != "repeated" {
		t.Fatal(code)
	}
	work := b.work("pack")
	if input, _ := json.Marshal(work["input"]); string(input) != `{"charge":"c1"}` {
		t.Fatalf("input %s", input)
	}
	bounded.Exec(t, b.pool, "select pawl.complete_work($1, $2, '{\"x\": 1}')", work["id"], work["lease"])
	b.wantState("PACKED")
	b.fire("pay")
	b.fire("abort")
	b.wantState("UNDOING")
	b.sweep()
	b.wantTasks("charge done, pack done, pay pending")
	work = b.work("unpay")
	bounded.Exec(t, b.pool, "select pawl.complete_work($1, $2)", work["id"], work["lease"])
	b.wantState("UNDOING")
	call = b.one()
	if body, _ := json.Marshal(call["body"]); string(body) != `{"charge":"c1"}` {
		t.Fatalf("body of the refund: %s", body)
	}
	b.settle(call, answered)
	b.wantState("CANCELLED")
	got := bounded.Value[string](t, b.pool, `
		select string_agg(kind || ' ' || coalesce(event, '-') || ' ' || to_state, E'\n' order by version) from pawl.history where instance_id = $1`, b.id)
	if want := strings.Join([]string{
		"created - CHARGING", "result done:charge PACKING", "result done:pack PACKED", "transition pay PAID", "transition abort UNDOING",
		"compensated compensated:pay UNDOING", "compensated compensated:charge UNDOING", "result done:compensate CANCELLED",
	}, "\n"); got != want {
		t.Errorf("the history is\n%s\nwant\n%s", got, want)
	}
}

func TestAmbiguousTaskIsReconciled(t *testing.T) {
	t.Parallel()
	b := startTasks(t)
	b.settle(b.one(), `{"result": "lost", "error": "timeout"}`)
	b.wantTasks("charge sent")
	b.advance(2 * time.Second)
	again := b.one()
	if again["key"] != again["task_id"] || again["reconciling"] != false {
		t.Fatalf("%v", again)
	}
	b.settle(again, `{"result": "answered", "status": 500, "body": null}`)
	b.wantTasks("charge reconciling")
	b.advance(5 * time.Second)
	look := b.one()
	if look["reconciling"] != true || look["method"] != "GET" {
		t.Fatalf("%v", look)
	}
	b.settle(look, `{"result": "answered", "status": 404, "body": null}`)
	b.wantTasks("charge reconciling")
	b.advance(time.Minute)
	b.settle(b.one(), `{"result": "answered", "status": 404, "body": null}`)
	b.wantTasks("charge pending")
	fresh := b.one()
	if fresh["key"] != fresh["task_id"].(string)+"-2" {
		t.Fatalf("key %v", fresh["key"])
	}
	b.settle(fresh, `{"result": "lost", "error": "timeout"}`)
	b.advance(2 * time.Second)
	b.settle(b.one(), `{"result": "lost", "error": "timeout"}`)
	b.advance(5 * time.Second)
	b.settle(b.one(), `{"result": "answered", "status": 200, "body": {"paid": true, "id": "c9"}}`)
	b.wantState("PACKING")
}

func TestLateTask(t *testing.T) {
	t.Parallel()
	b := startTasks(t)
	call := b.one()
	b.fire("skip")
	b.settle(call, answered)
	b.wantTasks("charge done left")
	if got := bounded.Value[string](t, b.pool, "select context ->> 'refund' from pawl.instance where id = $1", b.id); got != "c1" {
		t.Fatal(got)
	}
}

func TestUnsentTaskIsCancelled(t *testing.T) {
	t.Parallel()
	b := startTasks(t)
	b.fire("abort")
	b.wantTasks("charge cancelled left")
	b.sweep()
	b.wantState("CANCELLED")
}

func TestUndoingWaitsAndParks(t *testing.T) {
	t.Parallel()
	b := startTasks(t)
	call := b.one()
	b.fire("abort")
	b.sweep()
	b.wantState("UNDOING")
	b.settle(call, answered)
	b.wantTasks("charge done left, charge pending")
	b.settle(b.one(), `{"result": "answered", "status": 400, "body": null}`)
	b.wantState("STUCK")
	b.fire("again")
	b.sweep()
	b.settle(b.one(), answered)
	b.wantState("CANCELLED")
}

func TestTaskOverdue(t *testing.T) {
	t.Parallel()
	b := startTasks(t)
	b.one()
	b.advance(30 * time.Second)
	b.sweep()
	b.wantTasks("charge sent")
	b.advance(15 * time.Minute)
	b.sweep()
	b.wantState("REVIEW")
	id := bounded.Value[uuid.UUID](t, b.pool, "select id from pawl.task where instance_id = $1", b.id)
	if !bounded.Value[bool](t, b.pool, "select pawl.task_resolve('default', $1, 'done', '{\"id\": \"c7\"}', 'the provider says so')", id) {
		t.Fatal("it moved nothing")
	}
	b.wantState("PACKING")
}

func TestOverdueTaskIsTriedAgain(t *testing.T) {
	t.Parallel()
	b := startTasks(t)
	b.one()
	b.advance(16 * time.Minute)
	b.sweep()
	b.wantState("REVIEW")
	id := bounded.Value[uuid.UUID](t, b.pool, "select id from pawl.task where instance_id = $1", b.id)
	if !bounded.Value[bool](t, b.pool, "select pawl.task_retry('default', $1, 'again')", id) {
		t.Fatal("it would move nothing")
	}
	b.settle(b.one(), answered)
	b.wantState("PACKING")
}

func TestZombieWorker(t *testing.T) {
	t.Parallel()
	b := startTasks(t)
	b.settle(b.one(), answered)
	first := b.work("pack")
	b.advance(61 * time.Second)
	b.sweep()
	second := b.work("pack")
	if code := b.settle(first, `{"result": "completed", "body": {}}`); code != "lease-superseded" {
		t.Fatal(code)
	}
	b.advance(61 * time.Second)
	b.sweep()
	b.wantState("REVIEW")
	if code := b.settle(second, `{"result": "completed", "body": {}}`); code != "task-ended" {
		t.Fatal(code)
	}
}

// Workers and operators of a role act for the tenant that it is bound to, whatever caller they name, and under its subject.
func TestTasksOfBoundRoles(t *testing.T) {
	t.Parallel()
	b := startTasks(t)
	b.settle(b.one(), `{"result": "answered", "status": 500, "body": null}`)
	b.advance(20 * time.Minute)
	b.sweep()
	b.wantState("REVIEW")
	id := bounded.Value[uuid.UUID](t, b.pool, "select id from pawl.task where instance_id = $1", b.id)
	bounded.Exec(t, b.pool, "select pawl.tenant_put('acme')")
	acme := loginAs(t, b.pool, db.Role{Name: "acme", Privilege: db.Operator, Tenant: "acme"})
	for _, sql := range []string{
		`select pawl.task_retry('default', $1, 'why', p_caller => '{"actor": "somebody"}')`,
		`select pawl.task_resolve('default', $1, 'done', '{}', 'why', p_caller => '{"actor": "somebody"}')`,
		`select pawl.compensation_mark('default', $1, 'charge', 'skip', 'why', p_caller => '{"actor": "somebody"}')`,
		`select pawl.complete_work($1, $1)`,
		`select pawl.fail_work($1, $1, 'error')`,
		`select pawl.release_work($1, $1)`,
		`select pawl.heartbeat_work($1, $1)`,
	} {
		wantDenied(t, acme, "acme only", sql, id)
	}
	wantDenied(t, acme, "acme only", "select pawl.claim_work('pack')")
	ann := loginAs(t, b.pool, db.Role{Name: "ann", Privilege: db.Operator, Tenant: tenant, Subject: "ann"})
	bounded.Exec(t, ann, `select pawl.task_retry('default', $1, 'why', 'somebody', '{"actor": "somebody", "token": "t1"}')`, id)
	if got := bounded.Value[string](t, b.pool, "select concat_ws(' ', actor, token_id) from pawl.audit where action = 'task.retry'"); got != "ann" {
		t.Errorf("the audit names %s", got)
	}
}
