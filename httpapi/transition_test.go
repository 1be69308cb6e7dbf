package httpapi_test

import (
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/pawl-fsm/pawl/db"
)

// No operation sets the state of an instance; only events move it.
func TestStateCannotBeSet(t *testing.T) {
	t.Parallel()
	a := start(t)
	a.register(counter)
	id := a.create("counter", `{"context": {"sum": 0}}`)
	for _, method := range []string{http.MethodPut, http.MethodPatch, http.MethodPost, http.MethodDelete} {
		a.do(method, "/v1/instances/"+id, `{"state": "OFF"}`, "Idempotency-Key", newKey()).
			want(http.StatusMethodNotAllowed, "method-not-allowed").wantHeader("Allow", "GET, HEAD, OPTIONS")
	}
	a.fire(id, "stop", `{"state": "OFF"}`).want(http.StatusBadRequest, "malformed-request")
	a.post("/v1/workflows/counter/instances", newKey(), `{"state": "OFF"}`).want(http.StatusBadRequest, "malformed-request")
	a.get("/v1/instances/"+id).wantAt("state", "ON", "version", "1")
}

// Concurrent commands give a history that equals some serial order. The sum in the context
// shows what each command found.
func TestConcurrentCommandsAreSerial(t *testing.T) {
	t.Parallel()
	a := start(t)
	b := a.another(setup{})
	a.register(counter)
	id := a.create("counter", `{"context": {"sum": 0}}`)
	const commands = 100
	answers := together(t, commands, func(i int) answer {
		return []*api{a, b}[i%2].fire(id, "add", fmt.Sprintf(`{"payload": {"by": %d}}`, i+1))
	})
	history := a.get("/v1/instances/" + id + "/history?limit=200").want(http.StatusOK)
	versions, sums, payloads := history.each("items", "version"), history.each("items", "context.sum"), history.each("items", "payload.by")
	if len(versions) != commands+1 {
		t.Fatalf("there are %d steps, want %d", len(versions), commands+1)
	}
	sum, seen := 0, map[string]bool{}
	for i := range versions {
		if i > 0 {
			by, err := strconv.Atoi(payloads[i])
			if err != nil || seen[payloads[i]] {
				t.Fatalf("step %d has the payload %q, seen before: %v", i+1, payloads[i], seen[payloads[i]])
			}
			seen[payloads[i]] = true
			sum += by
		}
		if versions[i] != strconv.Itoa(i+1) || sums[i] != strconv.Itoa(sum) {
			t.Fatalf("step %d has version %s and sum %s, want sum %d", i+1, versions[i], sums[i], sum)
		}
	}
	for _, r := range answers {
		n, err := strconv.Atoi(r.want(http.StatusOK).at("version"))
		if err != nil {
			t.Fatal(err)
		}
		if r.at("context.sum") != sums[n-1] {
			t.Errorf("an answer at version %d has the sum %s, history has %s", n, r.at("context.sum"), sums[n-1])
		}
	}
	if times := history.each("items", "at"); !slices.IsSorted(times) {
		t.Errorf("time does not rise with the version: %v", times)
	}
}

// Of several concurrent commands with the same If-Match exactly one is applied.
func TestConcurrentExpectations(t *testing.T) {
	t.Parallel()
	a := start(t)
	a.register(counter)
	id := a.create("counter", `{"context": {"sum": 0}}`)
	statuses := map[int]int{}
	for _, r := range together(t, 30, func(int) answer { return a.fire(id, "add", `{"payload": {"by": 1}}`, "If-Match", `"1"`) }) {
		statuses[r.status]++
	}
	if statuses[200] != 1 || statuses[412] != 29 {
		t.Errorf("got %v, want one 200 and twenty-nine 412", statuses)
	}
	a.get("/v1/instances/"+id).wantAt("version", "2", "context.sum", "1")
}

// A refusal has the state, the accepted events and the version of the instance.
func TestRefusalsSayHowToGoOn(t *testing.T) {
	t.Parallel()
	a := start(t)
	a.register(booking)
	a.register(careful)
	id := a.create("booking", `{"context": {"price": 10}}`)
	a.fire(id, "pay", "").want(http.StatusConflict, "transition-not-allowed").wantAt(
		"state", "QUOTED", "instance_status", "active", "event", "pay", "allowed_events", `["cancel","reserve"]`, "version", "1")
	a.fire(id, "reserve", "").want(http.StatusConflict, "guard-rejected").wantAt(
		"state", "QUOTED", "event", "reserve", "guards", `["$.payload.price == $.context.price"]`, "version", "1",
		"allowed_events", `["cancel","reserve"]`)
	a.fire(id, "nonsense", "").want(http.StatusUnprocessableEntity, "unknown-event").wantAt(
		"state", "QUOTED", "event", "nonsense", "allowed_events", `["cancel","reserve"]`, "version", "1")
	a.fire(id, "cancel", "", "If-Match", `"7", W/"1"`).want(http.StatusPreconditionFailed, "version-mismatch").wantAt(
		"state", "QUOTED", "version", "1", "expected", `"7", W/"1"`)
	a.fire(id, "reserve", `{"payload": {"price": 10}}`).want(http.StatusOK)
	a.fire(id, "pay", `{"payload": {"amount": 0}}`).want(http.StatusConflict, "guard-rejected").wantAt(
		"guards", `["$.payload.amount == $.context.price","$.payload.amount > 0"]`, "version", "2")
	a.fire(id, "cancel", "").want(http.StatusOK)
	a.fire(id, "cancel", "").want(http.StatusConflict, "transition-not-allowed").wantAt(
		"state", "CANCELLED", "instance_status", "cancelled", "allowed_events", "[]", "version", "3")

	id = a.create("careful", "")
	problem := a.fire(id, "go", "").want(http.StatusPreconditionRequired, "precondition-required").wantAt("version", "1", "state", "A")
	if !strings.Contains(problem.at("detail"), `If-Match: "1"`) {
		t.Errorf("the problem does not say how to resubmit: %s", problem.body)
	}
	a.fire(id, "go", "", "If-Match", `"1"`).want(http.StatusOK)
	a.fire(id, "go", "", "If-Match", `*`).want(http.StatusOK)
}

// A guard that raises gets guard-error, changes nothing and does not affect the rest of its
// batch.
func TestGuardError(t *testing.T) {
	t.Parallel()
	a := start(t)
	a.register(touchy)
	id := a.create("touchy", "")
	for _, event := range []string{"when", "then"} {
		a.fire(id, event, raises).want(http.StatusUnprocessableEntity, "guard-error").wantAt("event", event, "state", "A")
		a.do(http.MethodPost, "/v1/instances/"+id+"/actions/"+event+"?dry_run=true", raises).
			want(http.StatusUnprocessableEntity, "guard-error").wantAt("event", event, "state", "A")
	}
	a.get("/v1/instances/"+id).wantAt("version", "1")
	a.fire(id, "when", holds).want(http.StatusOK)
	a.get("/v1/instances/" + id + "/actions?evaluate=true").want(http.StatusOK)

	t.Run("in a micro-batch", func(t *testing.T) {
		a := a.on(t)
		const n = 60
		ids := make([]string, n)
		for i := range ids {
			ids[i] = a.create("touchy", "")
		}
		for i, r := range together(t, n, func(i int) answer { return a.fire(ids[i], "when", []string{raises, holds, holds}[i%3]) }) {
			if i%3 == 0 {
				r.want(http.StatusUnprocessableEntity, "guard-error")
			} else {
				r.want(http.StatusOK).wantAt("version", "2")
			}
		}
	})
	t.Run("in a batch", func(t *testing.T) {
		a := a.on(t)
		ids := []string{a.create("touchy", ""), a.create("touchy", ""), a.create("touchy", "")}
		r := a.batch(
			command("fire", "instance_id", ids[0], "event", "when", "payload", map[string]any{"t": "2026-01-01T00:00:00Z"}),
			command("fire", "instance_id", ids[1], "event", "when", "payload", map[string]any{"t": "2026-01-01T00:00:00"}),
			command("fire", "instance_id", ids[1], "event", "when", "payload", map[string]any{"t": "2026-01-01T00:00:00+00:00"}),
			command("fire", "instance_id", ids[2], "event", "stop"),
		)
		// datetime() of PostgreSQL 15 does not parse "Z". In lax mode the result is empty.
		r.wantAt("results.1.status", "422", "results.1.problem.code", "guard-error",
			"results.2.status", "200", "results.2.instance.version", "2", "results.3.status", "200")
		if got := r.at("results.0.status"); got != "200" && got != "409" {
			t.Errorf("the neighbour got %s", r.body)
		}
	})
}

// A guard that exceeds its time limit gets guard-error.
func TestSlowGuard(t *testing.T) {
	t.Parallel()
	a := startWith(t, setup{db: db.Config{StatementTimeout: time.Second, LockTimeout: 100 * time.Millisecond}})
	a.register(touchy)
	id, other := a.create("touchy", ""), a.create("touchy", "")
	r := a.batch(
		command("fire", "instance_id", id, "event", "slow", "payload", map[string]any{"xs": make([]int, 2000)}),
		command("fire", "instance_id", other, "event", "stop"),
	)
	r.wantAt("results.0.problem.code", "guard-error", "results.0.problem.state", "A", "results.1.status", "200")
	xs := jsonText(t, map[string]any{"payload": map[string]any{"xs": make([]int, 2000)}})
	a.fire(id, "slow", xs).want(http.StatusUnprocessableEntity, "guard-error").wantAt("event", "slow", "state", "A")
	a.do(http.MethodPost, "/v1/instances/"+id+"/actions/slow?dry_run=true", xs).want(http.StatusUnprocessableEntity, "guard-error")
	a.get("/v1/instances/"+id).wantAt("version", "1")
	a.fire(id, "slow", `{"payload": {"xs": [-1]}}`).want(http.StatusOK)
}

// 401 and 404 come before 412, and 412 before the decision. If-Match may be * or a list, and a
// weak tag never matches.
func TestPreconditions(t *testing.T) {
	t.Parallel()
	a := start(t)
	a.register(counter)
	a.register(careful)
	id := a.create("counter", `{"context": {"sum": 0}}`)
	add := func(ifMatch ...string) answer {
		headers := []string{}
		for _, line := range ifMatch {
			headers = append(headers, "If-Match", line)
		}
		return a.fire(id, "add", `{"payload": {"by": 1}}`, headers...)
	}
	version := 1
	for _, ok := range []string{`"%d"`, `*`, `"0", "%d"`, `"%d","77"`, `W/"%[1]d", "%[1]d"`, ` "%d" `, `"x", "%d"`, `,"%d",`} {
		if strings.Contains(ok, "%") {
			ok = fmt.Sprintf(ok, version)
		}
		version++
		add(ok).want(http.StatusOK).wantAt("version", strconv.Itoa(version)).wantHeader("ETag", fmt.Sprintf(`"%d"`, version))
	}
	add(`"0"`, fmt.Sprintf(`"%d"`, version)).want(http.StatusOK) // Two header lines form one list.
	version++
	for _, stale := range []string{
		`"1"`, `W/"%d"`, `"0%d"`, `"x"`, `""`, `"99999999999999999999"`, `"-1"`, `"+%d"`, `"1", "2"`, `"%d "`, `"*"`,
	} {
		if strings.Contains(stale, "%") {
			stale = fmt.Sprintf(stale, version)
		}
		if r := add(stale); r.status != http.StatusPreconditionFailed {
			t.Errorf("If-Match: %s gets %d %s", stale, r.status, r.body)
		} else {
			r.wantAt("expected", stale, "version", strconv.Itoa(version))
		}
	}
	for _, bad := range []string{`%d`, `'%d'`, `"%d`, `"1" "%d"`, `*, "%d"`, `w/"%d"`, ``, `,`, `W/`, `**`} {
		if strings.Contains(bad, "%") {
			bad = fmt.Sprintf(bad, version)
		}
		if r := add(bad); r.status != http.StatusBadRequest || r.at("errors.0.parameter") != "If-Match" {
			t.Errorf("If-Match: %s gets %d %s", bad, r.status, r.body)
		}
	}

	stale, nobody := []string{"If-Match", `"99"`}, "/v1/instances/0195a2f4-7c31-7e0b-9d52-6f1a3b8c4d5e/actions/go"
	a.post(nobody, newKey(), "", stale...).want(http.StatusNotFound, "instance-not-found")
	a.post(nobody, newKey(), "").want(http.StatusNotFound, "instance-not-found") // 404 also comes before 428.
	a.post("/v1/instances/nobody/actions/go", newKey(), "", stale...).want(http.StatusNotFound, "instance-not-found")
	for _, event := range []string{"nonsense", "add", "stop"} {
		a.fire(id, event, "", stale...).want(http.StatusPreconditionFailed, "version-mismatch")
	}
	id = a.create("careful", "")
	a.fire(id, "go", "", stale...).want(http.StatusPreconditionFailed, "version-mismatch")
	a.fire(id, "nonsense", "").want(http.StatusPreconditionRequired, "precondition-required")
}

func TestDryRun(t *testing.T) {
	t.Parallel()
	a := start(t)
	a.register(booking)
	a.register(careful)
	id := a.create("booking", `{"context": {"price": 10}}`)
	before := []int{a.count("pawl.history"), a.count("pawl.idempotency_key")}
	dry := func(event, body string, headers ...string) answer {
		return a.do(http.MethodPost, "/v1/instances/"+id+"/actions/"+event+"?dry_run=true", body, headers...)
	}
	// The body is the instance as it would be. The tag is that of the unchanged instance.
	r := dry("reserve", `{"payload": {"price": 10, "seat": "1A"}}`).want(http.StatusOK)
	r.wantAt("state", "RESERVED", "version", "2", "context.seat", "1A", "actions", `["cancel","pay"]`).wantHeader("ETag", `"1"`)
	dry("reserve", "").want(http.StatusConflict, "guard-rejected")
	dry("pay", "").want(http.StatusConflict, "transition-not-allowed")
	dry("nonsense", "").want(http.StatusUnprocessableEntity, "unknown-event")
	dry("reserve", `{"payload": {"seat": 1}}`).want(http.StatusUnprocessableEntity, "invalid-payload").
		wantAt("errors.0.pointer", "/payload/seat")
	dry("cancel", "", "If-Match", `"2"`).want(http.StatusPreconditionFailed, "version-mismatch")
	dry("cancel", "", "If-Match", `"1"`, "Idempotency-Key", "not a key").want(http.StatusOK)
	if now := []int{a.count("pawl.history"), a.count("pawl.idempotency_key")}; !slices.Equal(now, before) {
		t.Errorf("a dry run wrote something: %v, before %v", now, before)
	}
	a.get("/v1/instances/"+id).wantAt("version", "1", "state", "QUOTED")
	id = a.create("careful", "")
	dry("go", "").want(http.StatusPreconditionRequired, "precondition-required")
	id = "0195a2f4-7c31-7e0b-9d52-6f1a3b8c4d5e"
	dry("go", "").want(http.StatusNotFound, "instance-not-found")
	a.post("/v1/instances/"+id+"/actions/go?dry_run=false", "", "").want(http.StatusBadRequest, "idempotency-key-required")
	a.post("/v1/instances/"+id+"/actions/go?dry_run=1", newKey(), "").want(http.StatusBadRequest, "malformed-request")
}
