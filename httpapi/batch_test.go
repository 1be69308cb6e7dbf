package httpapi_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
)

// command returns a command of a batch, given its members as name, value, … It has a new key
// unless the members have one.
func command(op string, members ...any) map[string]any {
	c := map[string]any{"op": op, "key": newKey()}
	for i := 0; i < len(members); i += 2 {
		c[members[i].(string)] = members[i+1]
	}
	return c
}

// batch sends commands as one batch, which must be answered with 200.
func (a *api) batch(commands ...map[string]any) answer {
	a.t.Helper()
	return a.do(http.MethodPost, "/v1/batch", jsonText(a.t, map[string]any{"commands": commands})).want(http.StatusOK)
}

func TestBatch(t *testing.T) {
	t.Parallel()
	a := start(t)
	a.register(counter)
	a.register(booking)
	a.register(careful)
	id, other := a.create("counter", `{"context": {"sum": 0}}`), a.create("careful", "")
	held := a.post("/v1/workflows/counter/instances", newKey(), `{"business_key": "held"}`).want(http.StatusCreated).at("id")
	by := func(n int) map[string]any { return map[string]any{"by": n} }
	commands := []map[string]any{
		command("fire", "instance_id", id, "event", "add", "payload", by(1)),
		command("create", "workflow", "counter", "context", by(7), "business_key", "b", "correlation_id", "c", "reason", "why"),
		command("fire", "instance_id", id, "event", "nonsense"),
		command("fire", "instance_id", id, "event", "add", "payload", by(2), "if_match", 2),
		command("fire", "instance_id", id, "event", "add", "payload", by(4), "if_match", 2),
		command("create", "workflow", "counter", "business_key", "held"),
		command("create", "workflow", "counter", "business_key", "b"), // The business key of the create above.
		command("create", "workflow", "nobody"),
		command("create", "workflow", "booking", "context", map[string]any{"price": -1}),
		command("fire", "instance_id", "nobody", "event", "add"),
		command("fire", "instance_id", other, "event", "go"),
		command("fire", "instance_id", id, "event", "stop", "reason", "enough"),
		command("fire", "instance_id", id, "event", "stop"),
		command("create", "workflow", "counter", "context", map[string]any{"a": strings.Repeat("x", 65536)}),
		command("create", "workflow", "booking", "context", map[string]any{"price": 1}, "expires_in", "5m"),
	}
	r := a.batch(commands...)
	r.wantAt("results.0.status", "200", "results.0.instance.version", "2", "results.0.instance.context.sum", "1", "results.0.replayed", "false",
		"results.0.problem", missing,
		"results.1.status", "201", "results.1.instance.context.by", "7", "results.1.instance.business_key", "b",
		"results.1.instance.correlation_id", "c",
		"results.2.problem.code", "unknown-event", "results.2.instance", missing,
		"results.3.instance.version", "3", "results.3.instance.context.sum", "3",
		"results.4.status", "412", "results.4.problem.code", "version-mismatch", "results.4.problem.version", "3",
		"results.4.problem.expected", `"2"`,
		"results.5.problem.code", "instance-exists", "results.5.problem.instance_id", held,
		"results.6.problem.code", "instance-exists", "results.6.problem.instance_id", r.at("results.1.instance.id"),
		"results.7.problem.code", "workflow-not-found",
		"results.8.problem.code", "invalid-context", "results.8.problem.errors.0.pointer", "/commands/8/context/price",
		"results.9.problem.code", "instance-not-found",
		"results.10.problem.code", "precondition-required",
		"results.11.status", "200", "results.11.instance.state", "OFF",
		"results.12.problem.code", "transition-not-allowed", "results.12.problem.allowed_events", "[]",
		"results.13.status", "413", "results.13.problem.code", "too-large",
		"results.14.status", "201", "results.15", missing)
	for i, status := range r.each("results", "status") {
		if problem := r.at(fmt.Sprintf("results.%d.problem.status", i)); problem != missing && problem != status {
			t.Errorf("result %d has the status %s, its problem %s", i, status, problem)
		}
		if id := r.at(fmt.Sprintf("results.%d.problem.request_id", i)); id != missing && id != r.header.Get("X-Request-ID") {
			t.Errorf("result %d has the request id %s", i, id)
		}
	}
	a.get("/v1/instances/"+id).wantAt("version", "4", "context.sum", "3")
	a.get("/v1/instances/"+id+"/history").wantAt("items.3.reason", "enough")
	a.get("/v1/instances/"+r.at("results.1.instance.id")+"/history").wantAt("items.0.reason", "why")

	// Sent again, the recorded decisions are replayed and the other commands are decided again.
	again := a.batch(commands...)
	replayed := map[string]bool{"0": true, "1": true, "3": true, "11": true, "12": true, "14": true}
	for i := range commands {
		n := fmt.Sprint(i)
		again.wantAt("results."+n+".replayed", fmt.Sprint(replayed[n]), "results."+n+".instance", r.at("results."+n+".instance"))
		if replayed[n] {
			again.wantAt("results."+n+".status", r.at("results."+n+".status"))
		}
	}
	a.get("/v1/instances/"+id).wantAt("version", "4")
}

// Commands for the same instance, and commands with the same key, are carried out in order.
func TestBatchOrder(t *testing.T) {
	t.Parallel()
	a := start(t)
	a.register(counter)
	ids := []string{a.create("counter", `{"context": {"sum": 0}}`), a.create("counter", `{"context": {"sum": 0}}`)}
	var commands []map[string]any
	for i := range 60 {
		commands = append(commands, command("fire", "instance_id", ids[i%2], "event", "add", "payload", map[string]any{"by": i}, "if_match", i/2+1))
	}
	r := a.batch(commands...)
	for i := range commands {
		n := fmt.Sprint("results.", i)
		r.wantAt(n+".status", "200", n+".instance.id", ids[i%2], n+".instance.version", fmt.Sprint(i/2+2))
	}

	id, key := ids[0], newKey()
	by := func(n int) map[string]any { return map[string]any{"by": n} }
	a.batch(
		command("fire", "key", key, "instance_id", id, "event", "add", "payload", by(1)),
		command("fire", "key", key, "instance_id", id, "event", "add", "payload", by(1)),
		command("fire", "key", key, "instance_id", id, "event", "add", "payload", by(2)),
		command("fire", "key", key, "instance_id", ids[1], "event", "add", "payload", by(1)),
		command("create", "key", key, "workflow", "counter"),
	).wantAt("results.0.status", "200", "results.0.replayed", "false", "results.1.status", "200", "results.1.replayed", "true",
		"results.2.problem.code", "idempotency-key-reuse", "results.3.problem.code", "idempotency-key-reuse",
		"results.4.problem.code", "idempotency-key-reuse")
	for range 10 { // Also a create and a fire with the same key.
		key := newKey()
		a.batch(
			command("create", "key", key, "workflow", "counter"),
			command("fire", "key", key, "instance_id", id, "event", "add", "payload", by(1)),
			command("create", "key", key, "workflow", "counter"),
		).wantAt("results.0.status", "201", "results.0.replayed", "false", "results.1.status", "422", "results.2.status", "201", "results.2.replayed", "true")
	}
	a.post("/v1/workflows/counter/instances", key, "").want(http.StatusUnprocessableEntity, "idempotency-key-reuse")
}

// A malformed batch is refused as a whole; a malformed command fails alone.
func TestBatchMalformed(t *testing.T) {
	t.Parallel()
	a := start(t)
	a.register(counter)
	id := a.create("counter", `{"context": {"sum": 0}}`)
	good := jsonText(t, command("fire", "instance_id", id, "event", "stop"))
	for body, pointer := range map[string]string{
		`{}`:                 "/commands",
		`{"commands": []}`:   "/commands",
		`{"commands": null}`: "/commands",
		`{"commands": {}}`:   "/commands",
		`[` + good + `]`:     "",
		`{"commands": [` + good + `], "more": 1}`:                                             "/more",
		`{"commands": [` + good + `, null]}`:                                                  "/commands/1",
		`{"commands": [` + good + `, 1]}`:                                                     "/commands/1",
		`{"commands": [` + good + `, {"op": "fire", "key": 1}]}`:                              "/commands/1/key",
		`{"commands": [` + good + `, {"op": "fire", "key": "k", "state": "OFF"}]}`:            "/commands/1/state",
		`{"commands": [` + good + `, {"op": "fire", "key": "k", "if_match": 1.5}]}`:           "/commands/1/if_match",
		`{"commands": [` + good + `, {"op": "fire", "key": "k", "payload": {"a":"\u0000"}}]}`: "/commands/1/payload/a",
		`{"commands": [` + strings.Repeat(good+",", 1000) + good + `]}`:                       "/commands",
	} {
		r := a.do(http.MethodPost, "/v1/batch", body)
		if r.status != http.StatusBadRequest || !strings.HasPrefix(r.at("errors.0.pointer"), pointer) {
			t.Errorf("%.80s: got %d %s", body, r.status, r.body)
		}
	}
	a.get("/v1/instances/"+id).wantAt("version", "1")

	add := map[string]any{"by": 1}
	for name, test := range map[string]struct {
		command     map[string]any
		status      string
		code, fault string
	}{
		"no op":             {map[string]any{"key": "k"}, "400", "malformed-request", "/op"},
		"unknown op":        {command("delete"), "400", "malformed-request", "/op"},
		"no key":            {map[string]any{"op": "fire", "instance_id": id, "event": "stop"}, "400", "idempotency-key-required", ""},
		"empty key":         {command("fire", "key", "", "instance_id", id, "event", "stop"), "400", "idempotency-key-invalid", ""},
		"bad key":           {command("fire", "key", "a b", "instance_id", id, "event", "stop"), "400", "idempotency-key-invalid", ""},
		"no instance":       {command("fire", "event", "stop"), "400", "malformed-request", "/instance_id"},
		"bad instance":      {command("fire", "instance_id", " "+id, "event", "stop"), "404", "instance-not-found", ""},
		"long event":        {command("fire", "instance_id", id, "event", strings.Repeat("x", 256)), "400", "malformed-request", "/event"},
		"no event":          {command("fire", "instance_id", id), "400", "malformed-request", "/event"},
		"fire: workflow":    {command("fire", "instance_id", id, "event", "stop", "workflow", "counter"), "400", "malformed-request", "/workflow"},
		"fire: context":     {command("fire", "instance_id", id, "event", "stop", "context", add), "400", "malformed-request", "/context"},
		"fire: if_match 0":  {command("fire", "instance_id", id, "event", "stop", "if_match", 0), "400", "malformed-request", "/if_match"},
		"fire: payload":     {command("fire", "instance_id", id, "event", "stop", "payload", 1), "400", "malformed-request", "/payload"},
		"fire: reason":      {command("fire", "instance_id", id, "event", "stop", "reason", strings.Repeat("x", 1001)), "400", "malformed-request", "/reason"},
		"no workflow":       {command("create"), "400", "malformed-request", "/workflow"},
		"create: event":     {command("create", "workflow", "counter", "event", "stop"), "400", "malformed-request", "/event"},
		"create: payload":   {command("create", "workflow", "counter", "payload", add), "400", "malformed-request", "/payload"},
		"create: if_match":  {command("create", "workflow", "counter", "if_match", 1), "400", "malformed-request", "/if_match"},
		"create: lifetime":  {command("create", "workflow", "counter", "expires_in", "x"), "400", "malformed-request", "/expires_in"},
		"create: ttl":       {command("create", "workflow", "counter", "expires_in", "1m"), "400", "malformed-request", "/expires_in"},
		"create: empty key": {command("create", "workflow", "counter", "business_key", ""), "400", "malformed-request", "/business_key"},
	} {
		t.Run(name, func(t *testing.T) {
			a := a.on(t)
			r := a.batch(command("fire", "instance_id", id, "event", "add", "payload", add), test.command,
				command("fire", "instance_id", id, "event", "add", "payload", add))
			r.wantAt("results.0.status", "200", "results.2.status", "200",
				"results.1.status", test.status, "results.1.problem.code", test.code)
			if test.fault != "" {
				r.wantAt("results.1.problem.errors.0.pointer", "/commands/1"+test.fault)
			}
		})
	}
}

func TestBatchOfAThousand(t *testing.T) {
	t.Parallel()
	a := start(t)
	a.register(counter)
	commands := make([]map[string]any, 1000)
	for i := range commands {
		commands[i] = command("create", "workflow", "counter", "context", map[string]any{"n": i})
	}
	r := a.batch(commands...)
	for i, n := range r.each("results", "instance.context.n") {
		if n != fmt.Sprint(i) {
			t.Fatalf("result %d is that of command %s", i, n)
		}
	}
	if got := a.count("pawl.instance"); got != 1000 {
		t.Errorf("there are %d instances", got)
	}
}
