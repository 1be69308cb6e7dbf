package httpapi_test

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/httpapi"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// patient waits for a call and for work at a time, has timers and guards, and is within a compound state.
const patient = `{
	"name": "patient", "initial": "WARD.BED", "ttl": {"after": "48h", "target": "GONE"}, "timezone": "UTC",
	"states": {
		"WARD": {"initial": "BED", "on": {"leave": [{"target": "GONE"}]}, "states": {"BED": {
			"stuck_after": "2h",
			"on": {
				"heal": [{"target": "HEALED", "guard": "$.context.fever < 38"}, {"target": "GONE", "guard": "$.context.fever > 42"}],
				"when": [{"target": "GONE", "guard": "$.now.datetime() < \"2026-01-01T00:00:00\".datetime()"}]
			},
			"after": {"10m": [{"target": "GONE", "guard": "$.context.fever > 42"}], "90m": [{"target": "HEALED"}]},
			"invoke": {
				"scan": {"http": {"connection": "lab", "method": "POST", "path": "/planted-path", "headers": {"X-Planted": "planted-header"}, "body": {"b": "planted-body"}},
					"deadline": "4h", "done": [{"target": "HEALED"}], "error": [{"target": "GONE"}], "unknown": [{"target": "GONE"}]},
				"feed": {"work": {"topic": "pack", "input": {"planted": "$.context.secret"}}, "deadline": "3h", "retry": {"max": 3, "base": "1s", "cap": "1m"},
					"done": [{"target": "HEALED"}], "error": [{"target": "GONE"}], "unknown": [{"target": "GONE"}]}
			}
		}}},
		"HEALED": {"type": "final"}, "GONE": {"type": "final", "outcome": "failed"}
	}
}`

// within returns the answer with one of its members as the body.
func (r answer) within(member string) answer {
	r.body = []byte(r.at(member))
	return r
}

// patients registers the workflow patient.
func (a *api) patients() {
	a.t.Helper()
	bounded.Exec(a.t, a.pool, "select pawl.register_workflow($1::jsonb)", patient)
}

// delivers writes a delivery of a step, as the router would.
func (a *api) delivers(instance, subscription, status string, version int) {
	a.t.Helper()
	bounded.Exec(a.t, a.pool, `
		insert into pawl.delivery (tenant_id, id, subscription_id, callback, instance_id, version, type, status, attempts, next_attempt_at, last_status, last_error, last_response, created_at)
		select 'default', pawl_private.uuid_v7(clock_timestamp()), $2, $1::uuid = $2::uuid, $1, $4, 'pawl.instance.transitioned', $3, 3,
			case $3 when 'pending' then pawl.now() end, 500, 'the endpoint answered 500', 'planted-response', pawl.now()`,
		instance, subscription, status, version)
}

func TestDiagnostics(t *testing.T) {
	t.Parallel()
	a := start(t)
	a.patients()
	const trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	id := a.create("patient", `{"context": {"fever": 40}, "business_key": "p-1", "correlation_id": "c-1", "reason": "fell ill"}`, "traceparent", trace)
	a.post("/v1/instances/"+id+"/actions/heal", "a-key", "").want(http.StatusConflict, "guard-rejected")
	a.says(a.claim(10, 1), 0, "fail", `, "error": "no spoon", "retryable": true`).want(http.StatusOK)
	bounded.Exec(t, a.pool, `insert into pawl.connection (tenant_id, name, version, base_url, auth, headers, concurrency, failures, circuit_open_until, created_at, created_by, updated_at)
		values ('default', 'lab', 1, 'https://lab.example/base', '{"type": "none"}', '{}', 8, 5, '2100-01-01', now(), 'tester', now())`)
	sub := a.do(http.MethodPost, subscriptions, `{"url": "https://93.184.215.14:8443/hook?k=v"}`).want(http.StatusCreated).at("id")
	a.delivers(id, sub, "pending", 1)
	bounded.Exec(t, a.pool, `
		insert into pawl.finding (tenant_id, id, kind, instance_id, workflow, state, visit_version, since, opened_at, detail)
		values ('default', pawl_private.uuid_v7(clock_timestamp()), 'slow', $1, 'patient', 'WARD.BED', 1, pawl.now(), pawl.now(), '{"threshold": "stuck_after"}')`, id)
	bounded.Exec(t, a.pool, `
		insert into pawl.delivery (tenant_id, id, subscription_id, callback, instance_id, finding_id, seq, type, status, attempts, created_at)
		select f.tenant_id, pawl_private.uuid_v7(clock_timestamp()), $1, false, f.instance_id, f.id, f.seq, 'pawl.finding.opened', 'pending', 0, pawl.now() from pawl.finding f`, sub)

	digest := sha256.Sum256([]byte("a-key"))
	r := a.get("/v1/instances/"+id+"/diagnostics").want(http.StatusOK).wantHeader("ETag", "")
	r.wantAt(
		"instance.id", id, "instance.state", "WARD.BED", "instance.status", "active", "instance.version", "1", "instance.business_key", "p-1",
		"instance.correlation_id", "c-1", "instance.context", missing, "instance.error", "null",
		"definition.latest_version", "1", "definition.latest_has_state", "true", "definition.within", `["WARD"]`, "definition.stuck_after", "2h",
		"definition.protected", "false", "definition.undoing", "null",
		"definition.tasks", `[{"connection":null,"deadline":"3h","name":"feed","topic":"pack"},{"connection":"lab","deadline":"4h","name":"scan","topic":null}]`,
		"actions.0.event", "heal", "actions.0.targets", `["HEALED","GONE"]`, "actions.0.guard_holds", "false", "actions.0.permitted", "true",
		"actions.1.event", "leave", "actions.1.guard_holds", "true",
		// A guard that raises hides no other.
		"actions.2.event", "when", "actions.2.guard_holds", "null", "actions.3", missing,
		"timers.0.event", "after:10m", "timers.0.refused", "false", "timers.0.last_error", "null", "timers.1.event", "after:90m", "timers.2.event", "ttl",
		"timers.3", missing,
		"tasks.2", missing,
		"connections", `[{"failures":5,"missing":false,"name":"lab","rests_until":"2100-01-01T00:00:00.000000Z","secret_missing":false}]`,
		"undoing", missing, "compensations", "[]",
		"deliveries.0.host", "93.184.215.14:8443", "deliveries.0.subscription_id", sub, "deliveries.0.status", "pending", "deliveries.0.attempts", "3",
		"deliveries.0.last_status", "500", "deliveries.0.last_error", "the endpoint answered 500", "deliveries.0.version", "1",
		"deliveries.1.type", "pawl.finding.opened", "deliveries.1.version", "null", "deliveries.2", missing,
		"refusals.0.code", "guard-rejected", "refusals.0.event", "heal", "refusals.0.version", "1",
		"refusals.0.key_digest", hex.EncodeToString(digest[:]), "refusals.1", missing,
		"findings.0.kind", "slow", "findings.0.closed_at", "null", "findings.1", missing,
		"steps.0.version", "1", "steps.0.kind", "created", "steps.0.to", "WARD.BED", "steps.0.reason", "fell ill", "steps.0.trace_id", trace[3:35], "steps.1", missing,
		"trace_ids", `["`+trace[3:35]+`"]`, "truncated", "[]", "withheld", "[]",
	)
	// The newest task is first; they were made at once.
	tasks := map[string]int{r.at("tasks.0.name"): 0, r.at("tasks.1.name"): 1}
	feed := fmt.Sprintf("tasks.%d.", tasks["feed"])
	r.wantAt(fmt.Sprintf("tasks.%d.status", tasks["scan"]), "pending", feed+"status", "sent", feed+"error", "no spoon", feed+"attempt", "1", feed+"attempts.0.attempt", "1", feed+"attempts.0.result", "failed",
		feed+"attempts.0.error", "no spoon", feed+"attempts.0.worker", "w", feed+"worker", "null", feed+"topic", "pack")
	var guards []string
	for i, event := range r.within("definition").each("transitions", "event") {
		guards = append(guards, event+" "+r.at(fmt.Sprintf("definition.transitions.%d.guard", i)))
	}
	for _, want := range []string{"heal $.context.fever < 38", "heal $.context.fever > 42", "leave null", "after:90m null", "done:scan null", "ttl null"} {
		if !slices.Contains(guards, want) {
			t.Errorf("what leads out of the state lacks %q: %q", want, guards)
		}
	}

	// A deadline comes, and its guard does not hold.
	dbtest.Advance(t, a.pool, 11*time.Minute)
	bounded.Exec(t, a.pool, "select pawl.fire_timers(100)")
	a.get("/v1/instances/"+id+"/diagnostics").wantAt("timers.0.event", "after:10m", "timers.0.refused", "true", "timers.1.refused", "false")
	// There is a newer version, which does not have the state.
	bounded.Exec(t, a.pool, "select pawl.register_workflow(replace($1, 'BED', 'COT')::jsonb)", patient)
	bounded.Exec(t, a.pool, "delete from pawl.connection")
	a.get("/v1/instances/"+id+"/diagnostics").wantAt("definition.latest_version", "2", "definition.latest_has_state", "false", "connections.0.missing", "true")
	a.fire(id, "leave", "").want(http.StatusOK)
	a.get("/v1/instances/"+id+"/diagnostics").wantAt("instance.status", "failed", "instance.error.event", "leave", "actions", "[]", "timers", "[]",
		"definition.transitions", "[]", "steps.0.event", "leave", "steps.1.version", "1")

	// An override to a state has no event.
	a.post("/v1/instances/"+id+"/override", newKey(), `{"to": "HEALED", "reason": "a test"}`, "If-Match", `"2"`).want(http.StatusConflict, "transition-not-allowed")
	a.get("/v1/instances/"+id+"/diagnostics").wantAt("refusals.0.code", "transition-not-allowed", "refusals.0.event", "null", "refusals.0.version", "2", "refusals.1.event", "heal")

	a.get("/v1/instances/00000000-0000-7000-8000-000000000000/diagnostics").want(http.StatusNotFound, "instance-not-found")
	a.get("/v1/instances/odd/diagnostics").want(http.StatusNotFound, "instance-not-found")
	a.get("/v1/instances/"+id+"/diagnostics?odd=1").want(http.StatusBadRequest, "malformed-request")
	// A purge leaves nothing to diagnose.
	bounded.Exec(t, a.pool, "delete from pawl.instance where id = $1", id)
	a.get("/v1/instances/"+id+"/diagnostics").want(http.StatusNotFound, "instance-not-found")
}

// What is undone, and what stands in the way, is shown.
func TestDiagnosticsOfUndoing(t *testing.T) {
	t.Parallel()
	a := start(t)
	a.parcels()
	id := a.create("parcel", `{"context": {"sku": "A-17"}}`)
	a.says(a.claim(10, 1), 0, "complete", `, "result": {"parcel": "P-9"}`).want(http.StatusOK)
	a.fire(id, "undo", "").want(http.StatusOK)
	bounded.Exec(t, a.pool, "select pawl.task_sweep(100)")
	a.get("/v1/instances/"+id+"/diagnostics").want(http.StatusOK).wantAt("instance.state", "UNDOING", "definition.undoing", "stop",
		"undoing.tried", "0", "undoing.problem", "null", "compensations.0.name", "pack", "compensations.0.status", "registered",
		"tasks.0.compensation", "true", "tasks.0.topic", "unpack", "tasks.0.status", "pending", "tasks.1.compensation", "false", "tasks.1.status", "done")
}

// A delivery of a finding about the instance is shown as that of a step is, in the order of both.
func TestDiagnosticsOfToldFindings(t *testing.T) {
	t.Parallel()
	a := start(t)
	a.patients()
	id := a.create("patient", `{"context": {"fever": 40}}`)
	sub := a.do(http.MethodPost, subscriptions, `{"url": "`+endpoint+`"}`).want(http.StatusCreated).at("id")
	finding := bounded.Value[string](t, a.pool, `
		insert into pawl.finding (tenant_id, id, kind, instance_id, workflow, state, visit_version, since, opened_at, detail)
		values ('default', pawl_private.uuid_v7(clock_timestamp()), 'slow', $1, 'patient', 'WARD.BED', 1, pawl.now(), pawl.now(), '{}')
		returning id::text`, id)
	bounded.Exec(t, a.pool, `
		insert into pawl.delivery (tenant_id, id, subscription_id, callback, instance_id, version, finding_id, seq, type, status, attempts, created_at)
		select 'default', pawl_private.uuid_v7(clock_timestamp()), $2, false, $1, case when seq <> 2 then seq end, case when seq = 2 then $3::uuid end, seq,
			case when seq = 2 then 'pawl.finding.opened' else 'pawl.instance.transitioned' end, 'dead', 3, pawl.now()
		from generate_series(1, 3) seq`, id, sub, finding)
	bounded.Exec(t, a.pool, `
		insert into pawl.delivery (tenant_id, id, subscription_id, callback, instance_id, finding_id, seq, type, status, attempts, next_attempt_at, created_at)
		values ('default', pawl_private.uuid_v7(clock_timestamp()), gen_random_uuid(), false, $1, $2, 2, 'pawl.finding.opened', 'pending', 0, pawl.now(), pawl.now())`, id, finding)
	a.get("/v1/instances/"+id+"/diagnostics").want(http.StatusOK).wantAt(
		"deliveries.0.status", "pending", "deliveries.0.version", "null", "deliveries.0.finding_id", finding, "deliveries.0.type", "pawl.finding.opened",
		"deliveries.1.version", "3", "deliveries.1.finding_id", missing, "deliveries.2.version", "null", "deliveries.2.finding_id", finding, "deliveries.3.version", "1",
		"deliveries.4", missing)
}

// What is secret, or a payload, is in no part of the answer, wherever it may stand.
func TestDiagnosticsKeepSecrets(t *testing.T) {
	t.Parallel()
	a := start(t)
	a.patients()
	id := a.post("/v1/workflows/patient/instances", "planted-key", `{"context": {"fever": 40, "secret": "planted-context"}, "callback_url": "https://93.184.215.14:8443/planted-callback?t=planted-query", "callback_secret": "`+secretOf(24)+`"}`).want(http.StatusCreated).at("id")
	a.create("patient", `{"context": {"fever": 40, "secret": "planted-other"}}`)
	a.post("/v1/instances/"+id+"/actions/heal", "planted-refused-key", `{"payload": {"x": "planted-payload"}}`).want(http.StatusConflict)
	claim := a.claim(10, 2)
	mine := 0
	if claim.at("tasks.0.instance_id") != id {
		mine = 1
	}
	a.says(claim, mine, "heartbeat", `, "progress": {"x": "planted-progress"}`).want(http.StatusOK)
	bounded.Exec(t, a.pool, `insert into pawl.connection (tenant_id, name, version, base_url, auth, secret, headers, concurrency, finding, circuit_open_until, created_at, created_by, updated_at)
		values ('default', 'lab', 1, 'https://planted-lab.example/planted-base', '{"type": "bearer"}', 'planted-bearer', '{"X-Planted": "planted-connection-header"}', 8, 'planted-finding', '2100-01-01', now(), 'tester', now())`)
	made := a.do(http.MethodPost, subscriptions, `{"url": "https://93.184.215.14/planted-hook?token=planted-token"}`).want(http.StatusCreated)
	a.delivers(id, made.at("id"), "dead", 1)
	a.delivers(id, id, "pending", 1)
	bounded.Exec(t, a.pool, "update pawl.subscription set finding = 'planted-subscription-finding'")
	bounded.Exec(t, a.pool, `update pawl.task set result = '{"body": "planted-result", "headers": {"X": "planted-answer-header"}}', attempts = attempts`)

	r := a.get("/v1/instances/" + id + "/diagnostics").want(http.StatusOK)
	// The parts that have them are there.
	r.wantAt("deliveries.0.host", "93.184.215.14:8443", "deliveries.0.subscription_id", "null", "deliveries.1.host", "93.184.215.14", "deliveries.1.secret_missing", "true",
		"connections.0.secret_missing", "true", "refusals.0.event", "heal", "tasks.1.attempts", r.at("tasks.1.attempts"))
	for _, secret := range []string{"planted", made.at("secret"), secretOf(24), claim.at(fmt.Sprintf("tasks.%d.lease", mine)), "whsec_"} {
		if strings.Contains(strings.ToLower(string(r.body)), strings.ToLower(secret)) {
			t.Errorf("%s is shown:\n%s", secret, r.body)
		}
	}
	// They are where they were planted.
	for _, table := range []string{"instance", "history", "task", "connection", "subscription", "delivery", "idempotency_key", "workflow_task", "callback"} {
		if n := bounded.Value[int](t, a.pool, "select count(*) from pawl."+table+" t where to_jsonb(t)::text ~ 'planted'"); n == 0 {
			t.Errorf("nothing is planted in %s", table)
		}
	}
}

// Each part has a limit, whatever the instance has, and says if it has more.
func TestDiagnosticsAreBounded(t *testing.T) {
	t.Parallel()
	a := start(t)
	a.parcels()
	id := a.create("parcel", `{"context": {"sku": "A-17"}}`)
	bounded.Exec(t, a.pool, `
		insert into pawl.task (tenant_id, id, instance_id, workflow, workflow_version, position, state, name, topic, entered_version, status, deadline_at, created_at, ended_at, result)
		select 'default', pawl_private.uuid_v7(clock_timestamp()), $1, 'parcel', 1, 1, 'PACKING', 'pack', 'pack', 1, 'done', now(), now(), now(), '{}' from generate_series(1, 150)`, id)
	sub := a.do(http.MethodPost, subscriptions, `{"url": "`+endpoint+`"}`).want(http.StatusCreated).at("id")
	bounded.Exec(t, a.pool, `
		insert into pawl.delivery (tenant_id, id, subscription_id, callback, instance_id, version, seq, type, status, attempts, next_attempt_at, created_at)
		select 'default', pawl_private.uuid_v7(clock_timestamp()), $2, false, $1, n, n, 'pawl.instance.transitioned', case when n % 2 = 0 then 'pending' else 'dead' end, 1, null, now()
		from generate_series(1, 300) n`, id, sub)
	bounded.Exec(t, a.pool, `
		insert into pawl.finding (tenant_id, id, kind, instance_id, workflow, state, visit_version, since, cause_id, opened_at, closed_at, detail)
		select 'default', pawl_private.uuid_v7(clock_timestamp()), case when n <= 8 then 'slow' else 'delivery-dead' end, $1, 'parcel', 'PACKING', n, now(),
			case when n > 8 then gen_random_uuid() end, now(), case when n > 8 then now() end, '{}' from generate_series(1, 200) n order by n`, id)
	bounded.Exec(t, a.pool, `
		insert into pawl.history (tenant_id, instance_id, version, workflow, workflow_version, kind, event, from_state, to_state, status, context, actor, at, traceparent)
		select 'default', $1, n, 'parcel', 1, 'transition', 'e', 'PACKING', 'PACKING', 'active', '{}', 'tester', now(),
			format('00-%s-00f067aa0ba902b7-01', lpad(to_hex(n / 2), 32, '0')) from generate_series(2, 300) n`, id)
	bounded.Exec(t, a.pool, `
		insert into pawl.idempotency_key (tenant_id, key, fingerprint, decision, instance_id, version, expires_at, refusal)
		select 'default', 'k' || n, sha256('x'), 'guard-rejected', $1, 1, now() + n * interval '1 s', jsonb_build_object('event', 'e' || n, 'at', now())
		from generate_series(1, 300) n`, id)
	bounded.Exec(t, a.pool, `
		insert into pawl.compensation (tenant_id, instance_id, name, workflow, workflow_version, position, version, status)
		select 'default', $1, 'c' || n, 'parcel', 1, 1, 1, 'registered' from generate_series(1, 300) n`, id)
	open := bounded.Value[string](t, a.pool, "select id::text from pawl.task where ended_at is null")
	bounded.Exec(t, a.pool, `insert into pawl.task_attempt (tenant_id, task_id, number, kind, key, lease, started_at) select 'default', $1, n, 'work', 'k', gen_random_uuid(), now() from generate_series(1, 300) n`, open)
	bounded.Exec(t, a.pool, "update pawl.task set attempts = 300 where id = $1", open)

	r := a.get("/v1/instances/" + id + "/diagnostics").want(http.StatusOK)
	for part, want := range map[string]int{"tasks": 20, "deliveries": 40, "findings": 25, "steps": 20, "trace_ids": 11, "refusals": 20, "compensations": 20} {
		var items []json.RawMessage
		if err := json.Unmarshal([]byte(r.at(part)), &items); err != nil {
			t.Fatal(err)
		}
		if n := len(items); n != want {
			t.Errorf("%s has %d items, want %d", part, n, want)
		}
	}
	// The open task is the oldest, and is shown. So are the open findings of the latest visits.
	r.wantAt("tasks.0.id", open, "tasks.0.attempts.0.attempt", "300", "tasks.0.attempts.4.attempt", "296", "tasks.0.attempts.5", missing,
		"deliveries.0.version", "2", "deliveries.20.version", "299", "deliveries.20.status", "dead", "findings.0.version", "200", "findings.20.version", "8", "findings.24.version", "4",
		"steps.0.version", "300", "refusals.0.event", "e300", "compensations.0.name", "c300",
		"truncated", `["tasks","attempts","compensations","refusals","findings","steps","deliveries"]`)
}

// Deliveries are for callers who may deliver. Everything is for callers who may read the instance, and for nobody else.
func TestWhoMayDiagnose(t *testing.T) {
	t.Parallel()
	a := guarded(t, httpapi.Config{})
	a.do(http.MethodPut, "/v1/roles/other", `{"workflows": ["theirs"], "scopes": ["deliver"]}`, as("root", "default")...).want(http.StatusCreated)
	free := a.token("default", `{"subject": "fred", "scopes": ["read", "create", "fire", "deliver"]}`)
	id := a.create("mine", `{"context": {"sum": 0}}`, as(free)...)
	theirs := a.create("theirs", `{"context": {"sum": 0}}`, as(free)...)
	subscribe := func(workflows string) string {
		return a.do(http.MethodPost, subscriptions, `{"url": "`+endpoint+`", "filter": {"workflows": `+workflows+`}}`, as(free)...).want(http.StatusCreated).at("id")
	}
	narrow, wide := subscribe(`["mine"]`), subscribe(`[]`)
	a.delivers(id, narrow, "pending", 1)
	a.delivers(id, wide, "pending", 1)
	path := "/v1/instances/" + id + "/diagnostics"
	for name, c := range map[string]struct {
		token, withheld string
		shown           []string
		fires           string
	}{
		"all":            {free, "[]", []string{narrow, wide}, "true"},
		"deployment":     {"root", "[]", []string{narrow, wide}, "true"},
		"reader":         {a.token("default", `{"subject": "rita", "scopes": ["read"]}`), `["deliveries"]`, nil, "false"},
		"bound":          {a.token("default", `{"subject": "bea", "scopes": ["read", "deliver"], "workflows": ["mine"]}`), "[]", []string{narrow}, "false"},
		"delivers other": {a.token("default", `{"subject": "rob", "scopes": ["read"], "roles": ["other"]}`), `["deliveries"]`, nil, "false"},
	} {
		t.Run(name, func(t *testing.T) {
			r := a.on(t).get(path, as(c.token)...).want(http.StatusOK).wantAt("withheld", c.withheld, "actions.0.permitted", c.fires)
			if c.shown == nil {
				r.wantAt("deliveries", missing)
				return
			}
			got := r.each("deliveries", "subscription_id")
			slices.Sort(got)
			slices.Sort(c.shown)
			if !slices.Equal(got, c.shown) {
				t.Errorf("it sees deliveries for %v, want %v", got, c.shown)
			}
		})
	}
	dbtest.Tenants(t, a.pool, "elsewhere")
	const none = "0195a2f0-11c8-7a4e-9b6d-3f5e7a9c1d20"
	for name, token := range map[string]string{
		"another tenant":   a.token("elsewhere", `{"subject": "eve", "scopes": ["read", "deliver"]}`),
		"another workflow": a.token("default", `{"subject": "mia", "scopes": ["read", "deliver"], "workflows": ["mine"]}`),
	} {
		t.Run(name, func(t *testing.T) {
			a := a.on(t)
			foreign := a.get("/v1/instances/"+theirs+"/diagnostics", as(token)...).want(http.StatusNotFound, "instance-not-found")
			sameRefusal(t, foreign, a.get("/v1/instances/"+none+"/diagnostics", as(token)...))
		})
	}
	a.get(path, as(a.token("default", `{"subject": "max", "scopes": ["deliver", "operate"]}`))...).want(http.StatusForbidden, "forbidden")
	a.get(path).want(http.StatusUnauthorized, "unauthenticated")
}
