package httpapi_test

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/db"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/fsmtest"
	"github.com/pawl-fsm/pawl/httpapi"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// withoutLookUps runs what must be done without looking callers up.
func (a *api) withoutLookUps(run func()) {
	a.t.Helper()
	const principals = "pawl.principals(text[], text[], text[], jsonb)"
	bounded.Exec(a.t, a.pool, "alter function "+principals+" rename to away")
	run()
	bounded.Exec(a.t, a.pool, "alter function pawl.away(text[], text[], text[], jsonb) rename to principals")
}

// use notes that all tokens were used. Those whose use is still to be noted are not remembered.
func (a *api) use() {
	a.t.Helper()
	bounded.Exec(a.t, a.pool, "update pawl.token set last_used_at = now()")
}

// commands are requests with commands for the workflow mine, by name. Those that fire do so at an instance.
func commands(id string) map[string]func(a *api, headers ...string) answer {
	fire := fmt.Sprintf(`{"op": "fire", "instance_id": %q, "event": "set", "key": "KEY"}`, id)
	return map[string]func(a *api, headers ...string) answer{
		"fire": func(a *api, headers ...string) answer { return a.fire(id, "set", "", headers...) },
		"create": func(a *api, headers ...string) answer {
			return a.post("/v1/workflows/mine/instances", newKey(), "", headers...)
		},
		"fire by key": func(a *api, headers ...string) answer {
			return a.post("/v1/workflows/mine/keys/held/actions/set", newKey(), "", headers...)
		},
		"batch": func(a *api, headers ...string) answer {
			return a.post("/v1/batch", "", `{"commands": [`+strings.Replace(fire, "KEY", newKey(), 1)+`]}`, headers...)
		},
	}
}

// wantDone wants a request to be carried out, as all of its commands.
func (r answer) wantDone() {
	r.t.Helper()
	if r.status != http.StatusOK && r.status != http.StatusCreated || strings.Contains(string(r.body), `"problem"`) {
		r.t.Errorf("%s: got %d %s", r.request, r.status, r.body)
	}
}

// held creates an instance of the workflow mine with the business key held.
func (a *api) held(tenant string) string {
	a.t.Helper()
	return a.create("mine", `{"business_key": "held"}`, as("root", tenant)...)
}

// A caller that is known is let in to commands without a look-up, and to nothing else.
func TestKnownCallersAreNotLookedUp(t *testing.T) {
	t.Parallel()
	a := guarded(t, httpapi.Config{})
	id := a.held("default")
	token := a.token("default", `{"subject": "s", "scopes": ["create", "fire", "read"]}`)
	a.use()
	for _, headers := range [][]string{as(token), as("root", "default")} {
		a.fire(id, "set", "", headers...).wantDone()
		a.withoutLookUps(func() {
			for _, command := range commands(id) {
				command(a, headers...).wantDone()
			}
			a.get("/v1/instances/"+id, headers...).want(http.StatusInternalServerError)
			a.post("/v1/instances/"+id+"/actions/set?dry_run=true", "", "", headers...).want(http.StatusInternalServerError)
		})
	}
}

// Whatever changes for a caller that is known counts for its next command, on each replica.
func TestChangesCountForKnownCallers(t *testing.T) {
	t.Parallel()
	a := guarded(t, httpapi.Config{})
	replica := a.another(setup{http: withTokens(httpapi.Config{})})
	put := func(target, body string, headers ...string) func(tenant string) {
		return func(tenant string) {
			replica.do(http.MethodPut, strings.ReplaceAll(target, "TENANT", tenant), body, append(headers, "X-Pawl-Tenant", tenant)...).want(http.StatusOK)
		}
	}
	sql := func(statement string) func(tenant string) {
		return func(tenant string) { bounded.Exec(t, a.pool, statement+" where tenant_id = $1", tenant) }
	}
	for name, c := range map[string]struct {
		change func(tenant string)
		status string
		spared string // A command that is not concerned.
	}{
		"revoked": {func(tenant string) {
			replica.do(http.MethodDelete, "/v1/tokens/"+tenant, "", as("root", tenant)...).want(http.StatusNoContent)
		}, "401", ""},
		"role-narrowed": {put("/v1/roles/worker", `{"scopes": ["read"]}`, as("root")...), "403", ""},
		"role-deleted": {func(tenant string) {
			replica.do(http.MethodDelete, "/v1/roles/worker", "", as("root", tenant)...).want(http.StatusNoContent)
		}, "403", ""},
		"role-elsewhere": {
			put("/v1/roles/worker", `{"scopes": ["create", "fire"], "workflows": ["theirs"]}`, as("root")...), "404", "",
		},
		"event-taken": {
			put("/v1/roles/worker", `{"scopes": ["create", "fire"], "events": ["stop"]}`, as("root")...), "403", "create",
		},
		"disabled": {func(tenant string) {
			replica.do(http.MethodPut, "/v1/tenants/"+tenant, `{"disabled": true}`, as("root")...).want(http.StatusOK)
		}, "403", ""},
		"expired":  {sql("update pawl.token set created_at = now() - interval '2 hours', expires_at = now() - interval '1 hour'"), "401", ""},
		"deleted":  {sql("delete from pawl.token"), "401", ""},
		"replaced": {sql("update pawl.token set sha256 = sha256('another')"), "401", ""},
		"bound":    {sql("update pawl.token set workflows = '{theirs}'"), "404", ""},
	} {
		a.do(http.MethodPut, "/v1/tenants/"+name, `{}`, as("root")...).want(http.StatusCreated)
		a.do(http.MethodPut, "/v1/roles/worker", `{"scopes": ["create", "fire"]}`, as("root", name)...).want(http.StatusCreated)
		id := a.held(name)
		token := a.token(name, fmt.Sprintf(`{"id": %q, "subject": "s", "scopes": [], "roles": ["worker"]}`, name))
		for command, send := range commands(id) {
			a.use()
			send(a, as(token)...).wantDone()
			send(replica, as(token)...).wantDone()
			a.withoutLookUps(func() {
				send(a, as(token)...).wantDone()
				send(replica, as(token)...).wantDone()
			})
			before := a.count("pawl.history")
			c.change(name)
			for _, on := range []*api{a, replica} {
				r := send(on, as(token)...)
				status := r.statusText()
				if command == "batch" && r.status == http.StatusOK {
					status = r.at("results.0.status")
				}
				switch {
				case command == c.spared:
					r.want(http.StatusCreated)
				case status != c.status:
					t.Errorf("%s, %s: got %d %s, want %s", name, command, r.status, r.body, c.status)
				case a.count("pawl.history") != before:
					t.Errorf("%s, %s: a step was made", name, command)
				}
			}
			// As it was, for the next command.
			bounded.Exec(t, a.pool, `delete from pawl.token where id = $1`, name)
			a.do(http.MethodPut, "/v1/roles/worker", `{"scopes": ["create", "fire"]}`, as("root", name)...)
			a.do(http.MethodPut, "/v1/tenants/"+name, `{"disabled": false}`, as("root")...).want(http.StatusOK)
			token = a.token(name, fmt.Sprintf(`{"id": %q, "subject": "s", "scopes": [], "roles": ["worker"]}`, name))
		}
	}
}

// What a known caller may do more counts at once, too.
func TestWideningCountsForKnownCallers(t *testing.T) {
	t.Parallel()
	a := guarded(t, httpapi.Config{})
	replica := a.another(setup{http: withTokens(httpapi.Config{})})
	id := a.held("default")
	role := func(body string) {
		replica.do(http.MethodPut, "/v1/roles/worker", body, as("root", "default")...)
	}
	role(`{"scopes": ["fire"], "workflows": ["theirs"]}`)
	token := a.token("default", `{"subject": "s", "scopes": [], "roles": ["worker"]}`)
	other := a.create("theirs", "", as("root", "default")...)
	for _, command := range commands(id) {
		for _, narrow := range []string{
			`{"scopes": ["fire"], "workflows": ["theirs"]}`, `{"scopes": ["create", "fire"], "events": ["stop"], "workflows": ["theirs"]}`,
			`{"scopes": ["create"], "workflows": ["theirs"]}`, `{"scopes": ["read"]}`,
		} {
			role(narrow)
			a.use()
			a.fire(other, "set", "", as(token)...)
			role(`{"scopes": ["create", "fire"]}`)
			command(a, as(token)...).wantDone()
		}
	}
}

// A token that was revoked is refused for that, whatever else is wrong with the request.
func TestRevokedCallersLearnNothing(t *testing.T) {
	t.Parallel()
	a := guarded(t, httpapi.Config{})
	id := a.held("default")
	for name, send := range map[string]func(headers []string) answer{
		"no JSON":         func(h []string) answer { return a.fire(id, "set", `{`, h...) },
		"no key":          func(h []string) answer { return a.post("/v1/instances/"+id+"/actions/set", "", "", h...) },
		"parameter":       func(h []string) answer { return a.post("/v1/instances/"+id+"/actions/set?x=1", newKey(), "", h...) },
		"content type":    func(h []string) answer { return a.fire(id, "set", `{}`, append(h, "Content-Type", "text/plain")...) },
		"accept":          func(h []string) answer { return a.fire(id, "set", ``, append(h, "Accept", "text/plain")...) },
		"no id":           func(h []string) answer { return a.fire("x", "set", ``, h...) },
		"no instance":     func(h []string) answer { return a.fire(uuid.NewString(), "set", ``, h...) },
		"no event":        func(h []string) answer { return a.fire(id, "nonsense", ``, h...) },
		"payload":         func(h []string) answer { return a.fire(id, "set", `{"payload": 1}`, h...) },
		"other tenant":    func(h []string) answer { return a.fire(id, "set", ``, append(h, "X-Pawl-Tenant", "x")...) },
		"empty batch":     func(h []string) answer { return a.post("/v1/batch", "", `{"commands": []}`, h...) },
		"batch of faults": func(h []string) answer { return a.post("/v1/batch", "", `{"commands": [{"op": "fire"}]}`, h...) },
		"batch of no workflows": func(h []string) answer {
			return a.post("/v1/batch", "", `{"commands": [{"op": "create", "workflow": "none", "key": "`+newKey()+`"}]}`, h...)
		},
		"batch of payloads": func(h []string) answer {
			return a.post("/v1/batch", "", `{"commands": [{"op": "fire", "instance_id": "`+id+`", "event": "set", "payload": 1, "key": "`+newKey()+`"}]}`, h...)
		},
	} {
		token := a.token("default", `{"id": "gone", "subject": "s", "scopes": ["create", "fire"]}`)
		a.use()
		a.fire(id, "set", "", as(token)...).wantDone()
		a.do(http.MethodDelete, "/v1/tokens/gone", "", as("root", "default")...).want(http.StatusNoContent)
		if r := send(as(token)); r.status != http.StatusUnauthorized {
			t.Errorf("%s: got %d %s", name, r.status, r.body)
		}
		bounded.Exec(t, a.pool, "delete from pawl.token")
	}
}

// Callers that fire all the time beside a revocation: nothing that begins when it is known to be done is carried out.
func TestRevocationBesideCommands(t *testing.T) {
	t.Parallel()
	a := guarded(t, httpapi.Config{})
	replica := a.another(setup{http: withTokens(httpapi.Config{})})
	token := a.token("default", `{"id": "gone", "subject": "s", "scopes": ["fire"]}`)
	a.use()
	var revoked atomic.Bool
	var fired atomic.Int64
	var callers sync.WaitGroup
	for n := range 64 {
		id := a.create("mine", "", as("root", "default")...)
		on := []*api{a, replica}[n%2]
		callers.Go(func() {
			for {
				late := revoked.Load()
				switch r, err := on.try(http.MethodPost, "/v1/instances/"+id+"/actions/set", "", append(as(token), "Idempotency-Key", newKey())...); {
				case err != nil:
					t.Error(err)
					return
				case r.status == http.StatusUnauthorized:
					return
				case r.status != http.StatusOK || late:
					t.Errorf("after the revocation (%v): %d %s", late, r.status, r.body)
					return
				}
				fired.Add(1)
			}
		})
	}
	bounded.True(t, "the callers fire", func() bool { return fired.Load() > 200 })
	// What changes for others disturbs them not.
	for range 5 {
		replica.do(http.MethodPut, "/v1/roles/other", `{"scopes": ["read"]}`, as("root", "default")...)
	}
	before := fired.Load()
	bounded.True(t, "the callers go on", func() bool { return fired.Load() > before+200 })
	replica.do(http.MethodDelete, "/v1/tokens/gone", "", as("root", "default")...).want(http.StatusNoContent)
	revoked.Store(true)
	bounded.Wait(t, "the callers", callers.Wait)
	if steps := bounded.Value[int64](t, a.pool, "select count(*) from pawl.history where event = 'set'"); steps != fired.Load() {
		t.Errorf("%d steps were made, %d were answered", steps, fired.Load())
	}
}

// A change between two calls of one batch: what is done stays done, and what follows is decided by what holds now.
func TestChangeWithinABatch(t *testing.T) {
	t.Parallel()
	a := guard(startWith(t, setup{
		http: withTokens(httpapi.Config{}), fsm: fsm.Config{CallTimeout: bounded.Limit},
		db: db.Config{LockTimeout: time.Minute, StatementTimeout: time.Minute},
	}))
	id := a.held("default")
	other := a.create("mine", "", as("root", "default")...)
	bounded.Exec(t, a.pool, "select pawl.role_put('default', 'worker', '{fire}', '{}', '{}')")
	for name, c := range map[string]struct {
		change string
		status string
	}{
		"something else": {"select pawl.role_put('default', 'other', '{read}', '{}', '{}')", "200"},
		"the events":     {"select pawl.role_put('default', 'worker', '{fire}', '{}', '{stop}')", "403"},
		"the token":      {"select pawl.token_revoke('default', 'caller')", "401"},
	} {
		token := a.token("default", `{"id": "caller", "subject": "s", "scopes": [], "roles": ["worker"]}`)
		a.use()
		a.fire(other, "set", "", as(token)...).wantDone()
		release := fsmtest.Hold(t, a.pool, uuid.MustParse(other))
		got := make(chan answer, 1)
		body := fmt.Sprintf(`{"commands": [{"op": "fire", "instance_id": %q, "event": "set", "key": %q},
			{"op": "fire", "workflow": "mine", "business_key": "held", "event": "set", "key": %q}]}`, other, newKey(), newKey())
		go func() {
			r, err := a.try(http.MethodPost, "/v1/batch", body, as(token)...)
			if err != nil {
				t.Error(err)
			}
			got <- r
		}()
		bounded.UntilBlocked(t, a.pool, 1)
		bounded.Exec(t, a.pool, c.change)
		release()
		r := bounded.Receive(t, "the batch", got).want(http.StatusOK)
		if first, second := r.at("results.0.status"), r.at("results.1.status"); first != "200" || second != c.status {
			t.Errorf("%s: got %s and %s, want 200 and %s\n%s", name, first, second, c.status, r.body)
		}
		r.wantAt("results.0.replayed", "false", "results.1.replayed", "false")
		bounded.Exec(t, a.pool, "delete from pawl.token")
		bounded.Exec(t, a.pool, "select pawl.role_put('default', 'worker', '{fire}', '{}', '{}')")
	}
	a.get("/v1/instances/"+id, as("root", "default")...).wantAt("version", "2")
}

// The body of a request is given back to the tenant that it was taken for, although the caller is then found to be nobody.
func TestBodiesAreGivenBack(t *testing.T) {
	t.Parallel()
	a := guarded(t, httpapi.Config{MaxHeld: 1 << 20})
	id := a.held("default")
	body := `{"payload": {"a": "` + strings.Repeat("x", 200<<10) + `"}}`
	for range 10 {
		token := a.token("default", `{"id": "gone", "subject": "s", "scopes": ["fire"]}`)
		a.use()
		a.fire(id, "set", "", as(token)...).wantDone()
		bounded.Exec(t, a.pool, "delete from pawl.token")
		a.fire(id, "set", body, as(token)...).want(http.StatusUnauthorized, "unauthenticated")
	}
	a.fire(id, "set", body, as("root", "default")...).want(http.StatusRequestEntityTooLarge, "too-large")
}
