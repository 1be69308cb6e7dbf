package httpapi_test

import (
	"bytes"
	"fmt"
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

// sameOutcome stops the test unless an answer is the replay of another: it has the same
// status, body and headers, except for the id of the request.
func sameOutcome(t testing.TB, first, again answer) {
	t.Helper()
	first.wantHeader("Idempotent-Replayed", "")
	again.wantHeader("Idempotent-Replayed", "true")
	type outcome struct {
		Status                      int
		Body, ETag, Location, Media string
	}
	of := func(r answer) outcome {
		body := string(r.body)
		if r.status >= 400 {
			body = strings.ReplaceAll(body, r.at("request_id"), "")
		}
		return outcome{r.status, body, r.header.Get("ETag"), r.header.Get("Location"), r.header.Get("Content-Type")}
	}
	if diff := cmp.Diff(of(first), of(again)); diff != "" {
		t.Fatalf("%s: the replay differs (-first +again):\n%s", first.request, diff)
	}
}

// A replay gets the status, body, ETag and Location of the first answer, even after the
// instance has moved.
func TestReplay(t *testing.T) {
	t.Parallel()
	a := start(t)
	a.register(booking)
	instances := "/v1/workflows/booking/instances"

	t.Run("create", func(t *testing.T) {
		a := a.on(t)
		key := newKey()
		first := a.post(instances, key, `{"context": {"price": 10}}`).want(http.StatusCreated)
		first.wantHeader("ETag", `"1"`).wantHeader("Location", "/v1/instances/"+first.at("id"))
		sameOutcome(t, first, a.post(instances, key, `{"context": {"price": 10}}`))
		a.fire(first.at("id"), "cancel", "").want(http.StatusOK)
		sameOutcome(t, first, a.post(instances, key, `{"context": {"price": 10}}`))
	})
	t.Run("create after a new version of the workflow", func(t *testing.T) {
		a := a.on(t)
		key := newKey()
		a.register(`{"name": "changing", "initial": "A", "states": {"A": {"on": {"go": "B"}}, "B": {"type": "final"}}}`)
		first := a.post("/v1/workflows/changing/instances", key, "").want(http.StatusCreated)
		a.register(`{"name": "changing", "initial": "X", "context_schema": {"required": ["x"]},
			"states": {"X": {"on": {"go": "Y"}}, "Y": {"type": "final"}}}`)
		sameOutcome(t, first, a.post("/v1/workflows/changing/instances", key, ""))
	})
	t.Run("fire, though the instance has moved on and If-Match is stale", func(t *testing.T) {
		a := a.on(t)
		id := a.create("booking", `{"context": {"price": 10}}`)
		reserve := "/v1/instances/" + id + "/actions/reserve"
		key := newKey()
		first := a.post(reserve, key, `{"payload": {"price": 10, "seat": "12A"}}`, "If-Match", `"1"`).want(http.StatusOK)
		first.wantAt("version", "2", "state", "RESERVED", "context.seat", "12A").wantHeader("ETag", `"2"`)
		a.fire(id, "cancel", "").want(http.StatusOK).wantAt("status", "cancelled")
		sameOutcome(t, first, a.post(reserve, key, `{"payload": {"price": 10, "seat": "12A"}}`, "If-Match", `"1"`))
		// If-Match is not part of the content.
		sameOutcome(t, first, a.post(reserve, key, `{"payload": {"price": 10, "seat": "12A"}}`))
		sameOutcome(t, first, a.post(reserve, key, `{"payload": {"price": 10, "seat": "12A"}}`, "If-Match", `W/"9"`))
		a.get("/v1/instances/"+id).wantAt("version", "3", "state", "CANCELLED")
	})
	t.Run("refusals that the machine decided", func(t *testing.T) {
		a := a.on(t)
		id := a.create("booking", `{"context": {"price": 10}}`)
		actions := "/v1/instances/" + id + "/actions/"
		rejected, notAllowed := newKey(), newKey()
		guard := a.post(actions+"reserve", rejected, `{"payload": {"price": 11}}`).want(http.StatusConflict, "guard-rejected")
		state := a.post(actions+"pay", notAllowed, "").want(http.StatusConflict, "transition-not-allowed")
		a.fire(id, "reserve", `{"payload": {"price": 10}}`).want(http.StatusOK)
		sameOutcome(t, guard, a.post(actions+"reserve", rejected, `{"payload": {"price": 11}}`))
		sameOutcome(t, state, a.post(actions+"pay", notAllowed, ""))
	})
	t.Run("minimal", func(t *testing.T) {
		a := a.on(t)
		key, prefer := newKey(), []string{"Prefer", "return=minimal"}
		first := a.post(instances, key, `{"context": {"price": 1}}`, prefer...).want(http.StatusCreated)
		sameOutcome(t, first, a.post(instances, key, `{"context": {"price": 1}}`, prefer...))
		fire, key := first.header.Get("Location")+"/actions/cancel", newKey()
		first = a.post(fire, key, "", prefer...).want(http.StatusNoContent).wantHeader("ETag", `"2"`)
		sameOutcome(t, first, a.post(fire, key, "", prefer...))
		// Prefer is not part of the content.
		a.post(fire, key, "").want(http.StatusOK).wantAt("state", "CANCELLED").wantHeader("Idempotent-Replayed", "true")
	})
}

// The same key with another payload, event, instance, route or subject is 422.
func TestKeyOfAnotherRequest(t *testing.T) {
	t.Parallel()
	a := start(t)
	a.register(booking)
	a.register(counter)
	id, other := a.create("counter", `{"context": {"sum": 0}}`), a.create("counter", `{"context": {"sum": 0}}`)
	key := newKey()
	add := "/v1/instances/" + id + "/actions/add"
	a.post(add, key, `{"payload": {"by": 1}}`).want(http.StatusOK)
	instances, created := a.count("pawl.instance"), newKey()
	create := `{"context": {"n": 1}, "business_key": "b", "correlation_id": "c"}`
	a.post("/v1/workflows/counter/instances", created, create).want(http.StatusCreated)

	for name, r := range map[string]func(a *api) answer{
		"payload": func(a *api) answer { return a.post(add, key, `{"payload": {"by": 2}}`) },
		"digits":  func(a *api) answer { return a.post(add, key, `{"payload": {"by": 1.0}}`) },
		"event":   func(a *api) answer { return a.post("/v1/instances/"+id+"/actions/set", key, `{"payload": {"by": 1}}`) },
		"unknown": func(a *api) answer { return a.post("/v1/instances/"+id+"/actions/x", key, `{"payload": {"by": 1}}`) },
		"instance": func(a *api) answer {
			return a.post("/v1/instances/"+other+"/actions/add", key, `{"payload": {"by": 1}}`)
		},
		"route": func(a *api) answer { return a.post("/v1/workflows/counter/instances", key, `{"context": {"by": 1}}`) },
		"fire under the key of a create": func(a *api) answer {
			return a.post(add, created, `{"payload": {"by": 1}}`)
		},
		"workflow": func(a *api) answer { return a.post("/v1/workflows/booking/instances", created, create) },
		"context": func(a *api) answer {
			return a.post("/v1/workflows/counter/instances", created, strings.Replace(create, "1", "2", 1))
		},
		"business_key": func(a *api) answer {
			return a.post("/v1/workflows/counter/instances", created, strings.Replace(create, `"b"`, `"d"`, 1))
		},
		"correlation_id in the body": func(a *api) answer {
			return a.post("/v1/workflows/counter/instances", created, strings.Replace(create, `"c"`, `"d"`, 1))
		},
	} {
		t.Run(name, func(t *testing.T) {
			r(a.on(t)).want(http.StatusUnprocessableEntity, "idempotency-key-reuse").wantHeader("Idempotent-Replayed", "")
		})
	}
	t.Run("expires_in", func(t *testing.T) {
		a, key := a.on(t), newKey()
		target := "/v1/workflows/booking/instances"
		first := a.post(target, key, `{"context": {"price": 1}, "expires_in": "60s"}`).want(http.StatusCreated)
		sameOutcome(t, first, a.post(target, key, `{"context": {"price": 1}, "expires_in": "1m"}`))
		a.post(target, key, `{"context": {"price": 1}, "expires_in": "61s"}`).want(http.StatusUnprocessableEntity, "idempotency-key-reuse")
		a.post(target, key, `{"context": {"price": 1}}`).want(http.StatusUnprocessableEntity, "idempotency-key-reuse")
	})
	t.Run("subject", func(t *testing.T) {
		b := a.on(t).another(setup{http: httpapi.Config{Tokens: []httpapi.Token{
			{SHA256: sum("ada"), Subject: "ada", Scopes: tenantScopes}, {SHA256: sum("bob"), Subject: "bob", Scopes: tenantScopes},
		}}})
		key, body := newKey(), `{"payload": {"by": 0}}`
		b.post(add, key, body, "Authorization", "Bearer ada").want(http.StatusOK)
		b.post(add, key, body, "Authorization", "Bearer bob").want(http.StatusUnprocessableEntity, "idempotency-key-reuse")
		b.post(add, key, body, "Authorization", "Bearer ada").want(http.StatusOK).wantHeader("Idempotent-Replayed", "true")
	})
	a.get("/v1/instances/"+id).wantAt("version", "3", "context.sum", "1")
	a.get("/v1/instances/"+other).wantAt("version", "1")
	if got := a.count("pawl.instance"); got != instances+2 {
		t.Errorf("there are %d instances, want %d", got, instances+2)
	}
}

// Reformatted JSON and another reason are the same request.
func TestSameRequest(t *testing.T) {
	t.Parallel()
	a := start(t)
	a.register(counter)
	id := a.create("counter", `{"context": {"sum": 0}}`)
	set, instances := "/v1/instances/"+id+"/actions/set", "/v1/workflows/counter/instances"

	for name, bodies := range map[string][]string{
		"order and spaces": {`{"payload": {"a": 1, "b": [true, null]}}`, "{ \"payload\":\n{\"b\":[true,null],\t\"a\":1} }"},
		"escapes":          {`{"payload": {"a": "é/😀"}}`, `{"payload": {"\u0061": "\u00e9\/\ud83d\ude00"}}`},
		"digits":           {`{"payload": {"a": 9007199254740993}}`, `{"payload":{"a":9007199254740993}}`},
		"exponent":         {`{"payload": {"a": 100}}`, `{"payload": {"a": 1e2}}`},
		"reason":           {`{"payload": {"a": 3}, "reason": "because"}`, `{"payload": {"a": 3}, "reason": "why not"}`, `{"payload": {"a": 3}}`},
		"no body":          {``, `{}`, `{"payload": {}}`},
	} {
		t.Run(name, func(t *testing.T) {
			a, key := a.on(t), newKey()
			first := a.post(set, key, bodies[0]).want(http.StatusOK)
			for _, body := range bodies[1:] {
				sameOutcome(t, first, a.post(set, key, body))
			}
		})
	}
	t.Run("neighbours beyond 2^53", func(t *testing.T) {
		a, key := a.on(t), newKey()
		a.post(set, key, `{"payload": {"a": 9007199254740993}}`).want(http.StatusOK).wantAt("context.a", "9007199254740993")
		a.post(set, key, `{"payload": {"a": 9007199254740992}}`).want(http.StatusUnprocessableEntity, "idempotency-key-reuse")
	})
	t.Run("headers", func(t *testing.T) {
		a, key := a.on(t), newKey()
		first := a.post(instances, key, "", "X-Correlation-ID", "one", "X-Actor", "me").want(http.StatusCreated)
		sameOutcome(t, first, a.post(instances, key, `{}`, "X-Correlation-ID", "two", "X-Actor", "you"))
	})
	t.Run("forms of the key", func(t *testing.T) {
		a, key := a.on(t), newKey()
		first := a.post(instances, key, "").want(http.StatusCreated)
		sameOutcome(t, first, a.post(instances, `"`+key+`"`, ""))
		sameOutcome(t, first, a.do(http.MethodPost, instances, "", "X-Idempotency-Key", key))
		sameOutcome(t, first, a.do(http.MethodPost, instances, "", "X-Idempotency-Key", `"`+key+`"`))
		escaped := a.post(instances, key+`"\`, "").want(http.StatusCreated)
		sameOutcome(t, escaped, a.post(instances, `"`+key+`\"\\"`, ""))
	})
}

// 100 concurrent identical requests have one effect and get equal answers.
func TestConcurrentIdenticalRequests(t *testing.T) {
	t.Parallel()
	a := start(t)
	b := a.another(setup{})
	a.register(counter)
	id := a.create("counter", `{"context": {"sum": 0}}`)

	for name, command := range map[string]func(a *api, key string) answer{
		"create": func(a *api, key string) answer {
			return a.post("/v1/workflows/counter/instances", key, `{"context": {"n": 1}, "business_key": "only"}`)
		},
		"fire": func(a *api, key string) answer {
			return a.post("/v1/instances/"+id+"/actions/add", key, `{"payload": {"by": 1}}`)
		},
	} {
		t.Run(name, func(t *testing.T) {
			steps := a.count("pawl.history")
			key := newKey()
			answers := together(t, 100, func(i int) answer { return command([]*api{a, b}[i%2].on(t), key) })
			firsts := 0
			for _, r := range answers {
				if r.header.Get("Idempotent-Replayed") == "" {
					firsts++
				}
				if r.status != answers[0].status || !bytes.Equal(r.body, answers[0].body) ||
					r.header.Get("ETag") != answers[0].header.Get("ETag") ||
					r.header.Get("Location") != answers[0].header.Get("Location") {
					t.Errorf("got %d %s\nand %d %s", answers[0].status, answers[0].body, r.status, r.body)
				}
			}
			if answers[0].status >= 300 {
				t.Errorf("got %d %s", answers[0].status, answers[0].body)
			}
			// The first command may be answered after a replay of it.
			if firsts != 1 {
				t.Errorf("%d answers are no replay, want 1", firsts)
			}
			if got := a.count("pawl.history"); got != steps+1 {
				t.Errorf("%d steps were made, want 1", got-steps)
			}
		})
	}
}

// together calls f n times concurrently and returns the results.
func together[T any](t testing.TB, n int, f func(i int) T) []T {
	t.Helper()
	results := make([]T, n)
	var begin, done sync.WaitGroup
	begin.Add(1)
	for i := range n {
		done.Go(func() {
			begin.Wait()
			results[i] = f(i)
		})
	}
	begin.Done()
	bounded.Wait(t, "concurrent calls", done.Wait)
	return results
}

// A command that was rolled back leaves no key. fault_test.go has the commands whose answer is
// lost.
func TestRolledBackCommandLeavesNoKey(t *testing.T) {
	t.Parallel()
	a := start(t)
	a.register(counter)
	id := a.create("counter", `{"context": {"sum": 0}}`)
	// Each insert into history fails at the commit.
	bounded.Exec(a.t, a.pool, `create function public.fail() returns trigger language plpgsql as
		$$ begin raise exception 'no' using errcode = '53100'; end $$`)
	bounded.Exec(a.t, a.pool, `create constraint trigger fail after insert on pawl.history deferrable initially deferred
		for each row execute function public.fail()`)
	key, keys := newKey(), a.count("pawl.idempotency_key")
	add := "/v1/instances/" + id + "/actions/add"
	a.post(add, key, `{"payload": {"by": 1}}`).want(http.StatusServiceUnavailable, "unavailable").wantHeader("Retry-After", "1")
	if got := a.count("pawl.idempotency_key"); got != keys {
		t.Errorf("%d keys were left behind", got-keys)
	}
	a.get("/v1/instances/"+id).wantAt("version", "1")
	bounded.Exec(a.t, a.pool, "drop trigger fail on pawl.history")
	a.post(add, key, `{"payload": {"by": 2}}`).want(http.StatusOK).wantHeader("Idempotent-Replayed", "").wantAt("context.sum", "2")
}

// These errors are not recorded: afterwards the key may be used for another request.
func TestWhatIsNotRecorded(t *testing.T) {
	t.Parallel()
	a := start(t)
	a.register(booking)
	a.register(careful)
	a.register(touchy)
	price := `{"context": {"price": 1}}`
	id, strict, moody := a.create("booking", price), a.create("careful", ""), a.create("touchy", "")
	a.post("/v1/workflows/booking/instances", newKey(), `{"context": {"price": 1}, "business_key": "taken"}`).want(http.StatusCreated)
	books, actions := "/v1/workflows/booking/instances", "/v1/instances/"+id+"/actions/"

	for _, test := range []struct {
		status             int
		code, target, body string
		headers            []string
	}{
		{400, "malformed-request", actions + "cancel", `{"nonsense": 1}`, nil},
		{400, "malformed-request", actions + "cancel", `{"payload": 1}`, nil},
		{400, "malformed-request", actions + "cancel", ``, []string{"If-Match", "1"}},
		{404, "instance-not-found", "/v1/instances/0195a2f4-7c31-7e0b-9d52-6f1a3b8c4d5e/actions/cancel", ``, nil},
		{404, "workflow-not-found", "/v1/workflows/none/instances", ``, nil},
		{406, "not-acceptable", books, price, []string{"Accept", "text/html"}},
		{409, "instance-exists", books, `{"context": {"price": 1}, "business_key": "taken"}`, nil},
		{412, "version-mismatch", actions + "cancel", ``, []string{"If-Match", `"9"`}},
		{413, "too-large", actions + "cancel", `{"payload": {"a": "` + strings.Repeat("x", 65536) + `"}}`, nil},
		{415, "unsupported-media-type", books, price, []string{"Content-Type", "text/plain"}},
		{422, "invalid-context", books, `{"context": {"price": -1}}`, nil},
		{422, "invalid-payload", actions + "reserve", `{"payload": {"seat": 1}}`, nil},
		{422, "unknown-event", actions + "nonsense", ``, nil},
		{422, "guard-error", "/v1/instances/" + moody + "/actions/when", raises, nil},
		{428, "precondition-required", "/v1/instances/" + strict + "/actions/go", ``, nil},
	} {
		t.Run(fmt.Sprint(test.status, " ", test.code), func(t *testing.T) {
			a, key := a.on(t), newKey()
			for range 2 {
				a.post(test.target, key, test.body, test.headers...).want(test.status, test.code).wantHeader("Idempotent-Replayed", "")
			}
			a.post(books, key, price).want(http.StatusCreated).wantHeader("Idempotent-Replayed", "")
		})
	}
	t.Run("401 and 403", func(t *testing.T) {
		b := a.another(setup{http: httpapi.Config{Tokens: []httpapi.Token{
			{SHA256: sum("reader"), Subject: "r", Scopes: []httpapi.Scope{httpapi.ScopeRead}}, {SHA256: sum("writer"), Subject: "w"},
		}}}).on(t)
		key := newKey()
		b.post(books, key, price).want(http.StatusUnauthorized)
		b.post(books, key, price, "Authorization", "Bearer reader").want(http.StatusForbidden)
		b.post(books, key, price, "Authorization", "Bearer writer").want(http.StatusCreated).wantHeader("Idempotent-Replayed", "")
	})
	t.Run("429", func(t *testing.T) {
		b := a.another(setup{http: httpapi.Config{RateLimit: 0.001}}).on(t)
		key := newKey()
		b.get("/v1/workflows").want(http.StatusOK)
		b.post(books, key, price).want(http.StatusTooManyRequests)
		a.on(t).post(books, key, price).want(http.StatusCreated).wantHeader("Idempotent-Replayed", "")
	})
	t.Run("500", func(t *testing.T) {
		a, key := a.on(t), newKey()
		bounded.Exec(a.t, a.pool, "alter table pawl.timer rename to elsewhere")
		a.post(books, key, price).want(http.StatusInternalServerError, "internal")
		bounded.Exec(a.t, a.pool, "alter table pawl.elsewhere rename to timer")
		a.post(books, key, price).want(http.StatusCreated).wantHeader("Idempotent-Replayed", "")
	})
}

// Two tenants use one key independently, and an expired key may be used for a new request.
func TestTenantsAndTimeToLive(t *testing.T) {
	t.Parallel()
	a := start(t)
	a.register(counter)
	b := a.another(setup{http: httpapi.Config{Tenant: "other"}})
	target, key := "/v1/workflows/counter/instances", newKey()
	body := `{"business_key": "same"}`
	ours, theirs := a.post(target, key, body).want(http.StatusCreated), b.post(target, key, body).want(http.StatusCreated)
	theirs.wantHeader("Idempotent-Replayed", "")
	if ours.at("id") == theirs.at("id") {
		t.Error("two tenants share an instance")
	}
	sameOutcome(t, ours, a.post(target, key, body))
	sameOutcome(t, theirs, b.post(target, key, body))
	for _, path := range []string{"", "/actions", "/history"} {
		b.get("/v1/instances/"+ours.at("id")+path).want(http.StatusNotFound, "instance-not-found")
	}
	b.fire(ours.at("id"), "stop", "").want(http.StatusNotFound, "instance-not-found")
	if ids := b.get("/v1/instances").each("items", "id"); len(ids) != 1 || ids[0] != theirs.at("id") {
		t.Errorf("the other tenant sees %v", ids)
	}

	key = newKey()
	dbtest.Advance(t, a.pool, 0)
	first := a.post(target, key, "").want(http.StatusCreated)
	dbtest.Advance(t, a.pool, 24*time.Hour-time.Second)
	sameOutcome(t, first, a.post(target, key, ""))
	dbtest.Advance(t, a.pool, time.Second)
	second := a.post(target, key, `{"context": {"n": 2}}`).want(http.StatusCreated).wantHeader("Idempotent-Replayed", "")
	if first.at("id") == second.at("id") {
		t.Error("a key past its time to live is not new")
	}
}

func TestKeyRefused(t *testing.T) {
	t.Parallel()
	a := start(t)
	a.register(counter)
	id := a.create("counter", "")
	for _, target := range []string{"/v1/workflows/counter/instances", "/v1/instances/" + id + "/actions/stop"} {
		a.post(target, "", "").want(http.StatusBadRequest, "idempotency-key-required")
		for name, headers := range map[string][]string{
			"empty":             {"Idempotency-Key", ""},
			"empty, quoted":     {"Idempotency-Key", `""`},
			"256 characters":    {"Idempotency-Key", strings.Repeat("k", 256)},
			"a space":           {"Idempotency-Key", "a b"},
			"a space, quoted":   {"Idempotency-Key", `"a b"`},
			"not ASCII":         {"Idempotency-Key", "schlüssel"},
			"a tab":             {"Idempotency-Key", "a\tb"},
			"repeated":          {"Idempotency-Key", "a", "Idempotency-Key", "a"},
			"under both names":  {"Idempotency-Key", "a", "X-Idempotency-Key", "a"},
			"not closed":        {"Idempotency-Key", `"a`},
			"more than a quote": {"Idempotency-Key", `"a"b`},
			"a bad escape":      {"Idempotency-Key", `"a\b"`},
			"half an escape":    {"Idempotency-Key", `"a\`},
		} {
			if r := a.do(http.MethodPost, target, "", headers...); r.status != 400 || r.at("code") != "idempotency-key-invalid" {
				t.Errorf("%s: got %d %s", name, r.status, r.body)
			}
		}
	}
	longest := strings.Repeat("~", 255)
	first := a.post("/v1/workflows/counter/instances", longest, "").want(http.StatusCreated)
	sameOutcome(t, first, a.post("/v1/workflows/counter/instances", `"`+longest+`"`, ""))
	a.get("/v1/instances/"+first.at("id")+"/history").wantAt("items.0.key", longest)
}
