package invoke_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/internal/address"
	"github.com/pawl-fsm/pawl/internal/bounded"
	"github.com/pawl-fsm/pawl/outbox/invoke"
)

// workflow has one task, and a state for each of its outcomes. What is given are members of the task.
const workflow = `{
  "name": "order", "initial": "CHARGING", "timezone": "UTC",
  "states": {
    "CHARGING": {"invoke": {"charge": {
        "http": {"connection": "psp", "method": "POST", "path": "/charges", "body": {"amount": "$.context.price"}},
        "deadline": "1h", %s
        "done": [{"target": "DONE", "assign": {"result": "$.payload"}}],
        "error": [{"target": "FAILED", "assign": {"result": "$.payload"}}],
        "unknown": [{"target": "UNKNOWN", "assign": {"result": "$.payload"}}]}},
      "on": {"leave": [{"target": "LEFT"}]}},
    "LEFT": {"on": {"end": [{"target": "DONE"}]}},
    "DONE": {"type": "final"}, "FAILED": {"type": "final", "outcome": "failed"}, "UNKNOWN": {"type": "final", "outcome": "failed"}
  }
}`

const (
	// keyed lets the provider tell attempts of one task.
	keyed = `"idempotency": {"header": "Idempotency-Key", "window": "24h"},`
	// retried are three attempts, soon after one another.
	retried = `"retry": {"max": 3, "base": "1ms", "cap": "10ms"},`
	// looked looks what became of a charge.
	looked = `"reconcile": {
		"http": {"connection": "psp", "method": "GET", "path": "/charges", "query": {"key": "$.task.key"}}, "every": ["1s"],
		"done": "$.body.paid == true", "absent": "$.body.paid == false", "result": "$.body", "absent_after": "%s"},`
)

// private allows the addresses of the test's providers.
var private = address.Policy{AllowPrivate: true}

// A desk is a database with a workflow and a connection.
type desk struct {
	t    testing.TB
	pool *pgxpool.Pool
}

// newDesk makes a desk with the workflow, whose task has these members, and with a connection to a base URL.
func newDesk(t testing.TB, members, base string) *desk {
	t.Helper()
	d := &desk{t, dbtest.New(t)}
	d.register(fmt.Sprintf(workflow, members))
	d.connect("psp", base, `{"type": "none"}`, nil)
	return d
}

func (d *desk) register(definition string) {
	d.t.Helper()
	bounded.Exec(d.t, d.pool, "select pawl.register_workflow($1)", definition)
}

// connect puts a connection. ca may be empty.
func (d *desk) connect(name, base, auth string, secret *string, ca ...string) {
	d.t.Helper()
	d.connectOf("default", name, base, auth, secret, ca...)
}

func (d *desk) connectOf(tenant, name, base, auth string, secret *string, ca ...string) {
	d.t.Helper()
	bounded.Exec(d.t, d.pool, `
		select pawl.connection_put(p_tenant => $1, p_name => $2, p_base_url => $3, p_auth => $4, p_secret => $5,
			p_headers => '{"X-Of": "connection", "X-Both": "connection"}', p_timeout => null, p_concurrency => 32, p_tls_ca => nullif($6, ''))`,
		tenant, name, base, auth, secret, strings.Join(ca, ""))
}

// run runs an invoker until the test ends, or stop is called.
func (d *desk) run(configure ...func(*invoke.Config)) (stop func()) {
	d.t.Helper()
	return runOn(d.t, d.pool, configure...)
}

func runOn(t testing.TB, pool *pgxpool.Pool, configure ...func(*invoke.Config)) (stop func()) {
	t.Helper()
	config := invoke.Config{Policy: private, Poll: 5 * time.Millisecond, Rest: 10 * time.Millisecond}
	for _, c := range configure {
		c(&config)
	}
	return bounded.Run(t, "the invoker", invoke.New(pool, config).Run)
}

// create creates an instance.
func (d *desk) create() uuid.UUID {
	d.t.Helper()
	return bounded.Value[uuid.UUID](d.t, d.pool, `select (pawl.create_one('order', '{"price": 5}')).id`)
}

// payload is what a handler of a task's outcome saw.
type payload struct {
	Task    uuid.UUID
	Attempt int
	Status  *int
	Headers map[string]string
	Body    any
	Error   *string
}

// until waits for an instance to come to a state, and returns the payload of the outcome that led there.
func (d *desk) until(id uuid.UUID, state string) (p payload) {
	d.t.Helper()
	got := bounded.Until(d.t, "the instance to come to "+state, func() string { return d.state(id) }, func(now string) bool { return now != "CHARGING" })
	if got != state {
		d.t.Fatalf("the instance came to %s, want %s; attempts: %v; result: %s", got, state, d.attempts(id), d.result(id))
	}
	if err := json.Unmarshal([]byte(d.result(id)), &p); err != nil {
		d.t.Fatal(err)
	}
	return p
}

func (d *desk) state(id uuid.UUID) string {
	d.t.Helper()
	return bounded.Value[string](d.t, d.pool, "select state from pawl.instance where id = $1", id)
}

func (d *desk) result(id uuid.UUID) string {
	d.t.Helper()
	return bounded.Value[string](d.t, d.pool, "select coalesce(context -> 'result', '{}')::text from pawl.instance where id = $1", id)
}

// attempts lists the attempts of an instance's task as "kind result status error".
func (d *desk) attempts(id uuid.UUID) []string {
	d.t.Helper()
	return bounded.Column[string](d.t, d.pool, `
		select concat_ws(' ', a.kind, coalesce(a.result, 'under way'), a.status, a.error)
		from pawl.task t join pawl.task_attempt a on a.tenant_id = t.tenant_id and a.task_id = t.id
		where t.instance_id = $1
		order by a.number`, id)
}

// task is the id of an instance's task.
func (d *desk) task(id uuid.UUID) uuid.UUID {
	d.t.Helper()
	return bounded.Value[uuid.UUID](d.t, d.pool, "select id from pawl.task where instance_id = $1", id)
}
