package httpapi_test

import (
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"testing"

	"github.com/pawl-fsm/pawl/db"
	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/access"
	"github.com/pawl-fsm/pawl/httpapi"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// audited is a service whose auditor runs until stop is called. Its tokens are those of two tenants and of the deployment.
func audited(t *testing.T) (a *api, stop func()) {
	t.Helper()
	pool := dbtest.New(t)
	own, err := db.Open(t.Context(), dbtest.DSN(pool), db.Config{})
	if err != nil {
		t.Fatal(err)
	}
	service := fsm.New(own, fsm.Config{})
	t.Cleanup(func() {
		service.Close()
		own.Close()
	})
	auditor := access.NewAuditor(service, slog.New(slog.DiscardHandler))
	for _, tenant := range []string{"acme", "other"} {
		bounded.Exec(t, pool, "select pawl.tenant_put($1)", tenant)
	}
	token := func(name, tenant string, workflows []string, scopes ...httpapi.Scope) httpapi.Token {
		return httpapi.Token{SHA256: sum(name), Subject: name, Tenant: tenant, Scopes: scopes, Workflows: workflows}
	}
	a = serveHandler(t, httpapi.ServicesOf(service, nil), setup{http: httpapi.Config{Auditor: auditor, Tokens: []httpapi.Token{
		token("anna", "acme", nil, httpapi.ScopeAudit, httpapi.ScopeAdmin),
		token("otto", "other", nil, httpapi.ScopeAudit),
		token("rita", "acme", nil, httpapi.ScopeRead),
		token("carl", "acme", nil, httpapi.ScopeCreate),
		token("bob", "acme", []string{"door"}, httpapi.ScopeAudit),
		token("dora", fsm.Deployment, nil, httpapi.ScopeAudit, httpapi.ScopeDeploy),
	}}})
	a.pool = pool
	stop = bounded.Run(t, "the auditor", auditor.Run)
	return a, stop
}

func bearer(name string) []string { return []string{"Authorization", "Bearer " + name} }

func TestAudit(t *testing.T) {
	t.Parallel()
	a, stop := audited(t)
	for i := range 3 {
		a.do(http.MethodPost, "/v1/tokens", fmt.Sprintf(`{"id": "t%d", "subject": "s", "scopes": ["read"]}`, i), bearer("anna")...).want(http.StatusCreated)
	}
	a.do(http.MethodDelete, "/v1/tokens/t1", "", bearer("anna")...).want(http.StatusNoContent)
	a.do(http.MethodPut, "/v1/workflows/counter", counter, bearer("dora")...).want(http.StatusCreated)
	// What fails leaves no row of an act.
	a.do(http.MethodPost, "/v1/tokens", `{"id": "t0", "subject": "s", "scopes": ["read"]}`, bearer("anna")...).want(http.StatusConflict, "token-exists")
	a.do(http.MethodPut, "/v1/workflows/broken", `{"workflow": "broken"}`, bearer("dora")...).want(http.StatusUnprocessableEntity, "invalid-definition")
	stop() // Reads are not written down from now on.

	all := a.get("/v1/audit", bearer("anna")...).want(http.StatusOK)
	all.wantAt("items.0.action", "token.create", "items.0.target", "t0", "items.0.actor", "anna", "items.0.outcome", "done",
		"items.0.tenant", "acme", "items.0.count", "1", "items.0.before", "null", "items.0.after.subject", "s",
		"items.0.address", "127.0.0.1", "items.0.unauthenticated", "false",
		"items.3.action", "token.revoke", "items.4", missing, "next_cursor", "null")
	if text := string(all.body); strings.Contains(text, "sha256") || strings.Contains(text, "pawl_") {
		t.Errorf("the audit shows what identifies a token: %s", text)
	}
	a.get("/v1/audit?action=token.create", bearer("anna")...).wantAt("items.2.target", "t2", "items.3", missing)
	a.get("/v1/audit?target=t1", bearer("anna")...).wantAt("items.0.action", "token.create", "items.1.action", "token.revoke", "items.2", missing)
	a.get("/v1/audit?target=t1&action=token.revoke&actor=anna&outcome=done", bearer("anna")...).wantAt("items.0.target", "t1", "items.1", missing)
	for _, none := range []string{"actor=rita", "outcome=forbidden", "from=2099-01-01T00:00:00Z", "to=2020-01-01T00:00:00Z", "after=99999"} {
		a.get("/v1/audit?"+none, bearer("anna")...).wantAt("items", "[]", "next_cursor", "null")
	}
	for _, empty := range []string{"actor", "action", "target", "outcome", "from"} { // They would choose all rows.
		a.get("/v1/audit?"+empty+"=", bearer("anna")...).want(http.StatusBadRequest, "malformed-request").wantAt("errors.0.parameter", empty)
	}
	a.get("/v1/audit?from=2020-01-01T00:00:00Z&to=2099-01-01T00:00:00Z", bearer("anna")...).wantAt("items.3.action", "token.revoke")
	a.get("/v1/audit?after="+all.at("items.1.seq"), bearer("anna")...).wantAt("items.0.target", "t2", "items.1.action", "token.revoke", "items.2", missing)
	for _, bad := range []string{"after=-1", "after=x", "from=yesterday", "limit=0", "cursor=x", "more=1"} {
		a.get("/v1/audit?"+bad, bearer("anna")...).want(http.StatusBadRequest, "malformed-request")
	}

	// By pages, and a cursor belongs to its filter.
	page := a.get("/v1/audit?limit=3", bearer("anna")...).wantAt("items.3", missing)
	cursor := page.at("next_cursor")
	a.get("/v1/audit?limit=3&cursor="+cursor, bearer("anna")...).wantAt("items.0.action", "token.revoke", "items.1", missing, "next_cursor", "null")
	a.get("/v1/audit?limit=3&actor=anna&cursor="+cursor, bearer("anna")...).want(http.StatusBadRequest, "malformed-request")

	// Nobody sees another tenant's rows, and the deployment sees all of them.
	a.get("/v1/audit", bearer("otto")...).wantAt("items", "[]")
	a.get("/v1/audit", append(bearer("otto"), "X-Pawl-Tenant", "acme")...).want(http.StatusForbidden, "forbidden")
	a.get("/v1/audit", bearer("rita")...).want(http.StatusForbidden, "forbidden")
	a.get("/v1/audit", bearer("dora")...).want(http.StatusBadRequest, "tenant-required")
	a.get("/v1/audit", append(bearer("dora"), "X-Pawl-Tenant", "acme")...).wantAt("items.3.action", "token.revoke", "items.4", missing)
	a.get("/v1/audit?action=workflow.register", append(bearer("dora"), "X-Pawl-Tenant", "*")...).
		wantAt("items.0.actor", "dora", "items.0.tenant", "*", "items.0.target", "counter 1", "items.1", missing)
	a.get("/v1/audit?actor=anna", append(bearer("dora"), "X-Pawl-Tenant", "*")...).wantAt("items.3.action", "token.revoke", "items.4", missing)
}

// Who is bound to workflows sees what is about them, and about their instances.
func TestAuditOfWorkflows(t *testing.T) {
	t.Parallel()
	a, stop := audited(t)
	stop()
	ids := map[string]string{}
	for _, workflow := range []string{"door", "gate"} {
		definition := fmt.Sprintf(`{"name": %q, "initial": "SHUT", "states": {"SHUT": {"on": {"remove": "GONE"}}, "GONE": {"type": "final"}}}`, workflow)
		a.do(http.MethodPut, "/v1/workflows/"+workflow, definition, bearer("dora")...).want(http.StatusCreated)
		ids[workflow] = bounded.Value[string](t, a.pool, "select (pawl.create_one($1, p_tenant => 'acme')).id::text", workflow)
		bounded.Exec(t, a.pool, "select pawl_private.audit(p_tenant => 'acme', p_caller => null, p_action => 'instance.override', p_target => $1)", ids[workflow])
		bounded.Exec(t, a.pool, "select pawl_private.audit(p_tenant => 'acme', p_caller => null, p_action => 'workflow.test', p_target => $1)", workflow+" 1")
	}
	bounded.Exec(t, a.pool, "select pawl_private.audit(p_tenant => 'acme', p_caller => null, p_action => 'token.create', p_target => 'door')")
	a.get("/v1/audit", bearer("bob")...).want(http.StatusOK).
		wantAt("items.0.target", ids["door"], "items.1.target", "door 1", "items.2", missing)
	a.get("/v1/audit", bearer("anna")...).wantAt("items.4.action", "token.create")
}

// A page looks at a bounded number of rows, so that a filter that chooses few of many leads to pages without rows.
func TestAuditPagesAreBounded(t *testing.T) {
	t.Parallel()
	a, stop := audited(t)
	stop()
	bounded.Exec(t, a.pool, `
		select count(pawl_private.audit(
			p_tenant => 'acme', p_caller => jsonb_build_object('actor', 'eve'), p_action => 'x.y', p_target => n::text,
			p_reason => case n when 6000 then 'the one' end, p_outcome => case n when 6000 then 'rare' else 'done' end))
		from generate_series(1, 6000) n`)
	for _, filter := range []string{"outcome=rare", "outcome=rare&actor=eve", "outcome=rare&action=x.y"} {
		first := a.get("/v1/audit?"+filter, bearer("anna")...).want(http.StatusOK).wantAt("items", "[]")
		a.get("/v1/audit?"+filter+"&cursor="+first.at("next_cursor"), bearer("anna")...).
			wantAt("items.0.reason", "the one", "items.1", missing, "next_cursor", "null")
	}
	a.get("/v1/audit?outcome=rare&target=6000", bearer("anna")...).wantAt("items.0.reason", "the one", "next_cursor", "null")
	// Documents of more than a mebibyte make more pages.
	bounded.Exec(t, a.pool, `
		select count(pawl_private.audit(
			p_tenant => 'other', p_caller => null, p_action => 'x.y', p_target => n::text, p_after => jsonb_build_object('x', repeat('x', 16000))))
		from generate_series(1, 100) n`)
	seen, cursor := 0, ""
	for range 3 {
		page := a.get("/v1/audit?limit=100"+cursor, bearer("otto")...).want(http.StatusOK)
		seen += strings.Count(string(page.body), `"x.y"`)
		cursor = "&cursor=" + page.at("next_cursor")
		if cursor == "&cursor=null" {
			break
		}
	}
	if seen != 100 || cursor != "&cursor=null" {
		t.Errorf("%d rows in three pages, the next is %s", seen, cursor)
	}
}

// A command of a batch that is refused is written down as a request is.
func TestRefusedCommandsAreWrittenDown(t *testing.T) {
	t.Parallel()
	a, stop := audited(t)
	a.do(http.MethodPut, "/v1/workflows/counter", counter, bearer("dora")...).want(http.StatusCreated)
	for range 3 { // The caller is known from the second one on.
		a.post("/v1/batch", "", jsonText(t, map[string]any{"commands": []map[string]any{
			command("fire", "instance_id", "01a1fcd7-ff39-747e-a6b5-6e2ff2d8f87b", "event", "add"),
			command("create", "workflow", "counter"),
			command("create", "workflow", "none"),
			command("fire", "workflow", "counter", "business_key", "b", "event", "add"),
		}}), bearer("carl")...).want(http.StatusOK).wantAt(
			"results.0.status", "403", "results.1.status", "201", "results.2.status", "404", "results.3.status", "403")
	}
	stop()
	if got := bounded.Value[string](t, a.pool, `
		select concat_ws(' ', tenant_id, actor, action, outcome, min(reason), sum(count)) from pawl.audit where actor = 'carl'
		group by tenant_id, actor, action, outcome`); got != `acme carl runBatch forbidden firing an event needs a token with the scope "fire" 6` {
		t.Errorf("got: %s", got)
	}
}

func TestRefusalsAreWrittenDown(t *testing.T) {
	t.Parallel()
	a, stop := audited(t)
	for range 1000 {
		a.get("/v1/instances", bearer("nonsense")...).want(http.StatusUnauthorized, "unauthenticated")
	}
	a.get("/v1/audit", append(bearer("rita"), "X-Request-ID", "r-1")...).want(http.StatusForbidden, "forbidden")
	a.get("/v1/audit", append(bearer("otto"), "X-Pawl-Tenant", "acme")...).want(http.StatusForbidden, "forbidden")
	a.do(http.MethodPost, "/v1/tokens", `{}`, append(bearer("dora"), "X-Pawl-Tenant", "acme")...).want(http.StatusForbidden, "forbidden")
	a.get("/v1/instances", append(bearer("dora"), "X-Pawl-Tenant", "nowhere")...).want(http.StatusForbidden)
	a.get("/v1/workflows/none", bearer("rita")...).want(http.StatusNotFound)
	a.get("/v1/audit", bearer("otto")...).want(http.StatusOK)
	stop() // It writes what waits.

	if got, want := bounded.Column[string](t, a.pool, `
		select concat_ws(' ', tenant_id, actor, action, outcome, sum(count), min(request_id) filter (where actor = 'rita'))
		from pawl.audit where action in ('listInstances', 'listAudit', 'createToken', 'getWorkflow', 'audit.read')
		group by tenant_id, actor, action, outcome order by tenant_id, actor, action`), []string{
		"* dora listInstances unknown-tenant 1",
		"* unknown listInstances unauthenticated 1000",
		"acme dora createToken forbidden 1",
		"acme rita listAudit forbidden 1 r-1",
		"other otto audit.read done 1",
		"other otto listAudit forbidden 1",
	}; strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got:\n%s", strings.Join(got, "\n"))
	}
	// Ten rows a second. The thousand requests took far less than 30 s, which would be 300 rows.
	if rows := bounded.Value[int](t, a.pool, "select count(*) from pawl.audit where actor = 'unknown'"); rows > 300 {
		t.Errorf("%d rows for 1,000 refusals", rows)
	}
	if bounded.Value[bool](t, a.pool, "select bool_or(token_id is not null or address is null) from pawl.audit where actor = 'unknown'") {
		t.Error("a row of an unknown caller has a token, or no address")
	}
}

// Without authentication everybody sees what everybody may do, and the row says that the actor is not known to be true.
func TestAuditWithoutAuthentication(t *testing.T) {
	t.Parallel()
	a := start(t)
	a.do(http.MethodPut, "/v1/workflows/counter", counter, "X-Actor", "mallory", "X-Request-ID", "r-7").want(http.StatusCreated)
	a.get("/v1/audit").want(http.StatusOK).wantAt("items.0.action", "workflow.register", "items.0.tenant", "*", "items.0.actor", "mallory",
		"items.0.unauthenticated", "true", "items.0.token_id", "null", "items.0.request_id", "r-7", "items.1", missing)
	a.get("/v1/audit", "X-Pawl-Tenant", fsm.DefaultTenant).wantAt("items", "[]")
}
