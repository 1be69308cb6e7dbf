package httpapi_test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/httpapi"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// Which texts are a token.
func TestTokenTexts(t *testing.T) {
	t.Parallel()
	a := guarded(t, httpapi.Config{})
	elsewhere := guarded(t, httpapi.Config{})
	replica := a.another(setup{http: withTokens(httpapi.Config{})})
	body := `{"id": "one", "subject": "s", "scopes": ["read"]}`
	token, foreign := a.token("default", body), elsewhere.token("default", body)
	if token == foreign || !strings.HasPrefix(token, "pawl_one_") {
		t.Fatalf("the tokens are %s and %s", token, foreign)
	}
	get := func(headers ...string) answer { return a.get("/v1/instances", headers...) }
	get(as(token)...).want(http.StatusOK)
	get("Authorization", "bearer "+token).want(http.StatusOK)
	for _, headers := range [][]string{
		as(foreign), as(token[:len(token)-1]), as(token + "0"), as(strings.ToUpper(token)), as("pawl_one"), as("pawl_one_"), as("pawl__" + token),
		{"Authorization", "Bearer  " + token},
		{"Authorization", "Bearer " + token + " "},
		{"Authorization", "Bearer " + token + ", Bearer " + token},
		{"Authorization", "Bearer " + token, "Authorization", "Bearer " + token},
		{"Authorization", "Basic " + token},
		{"X-Api-Key", token},
	} {
		if headers[1] == "Bearer "+token+" " && len(headers) == 2 {
			continue // net/http trims the value.
		}
		get(headers...).want(http.StatusUnauthorized, "unauthenticated")
	}
	a.get("/v1/instances?access_token="+token).want(http.StatusUnauthorized, "unauthenticated")
	a.get("/v1/instances?access_token="+token, as(token)...).want(http.StatusBadRequest, "malformed-request")

	// A token that another replica has revoked, or whose time has come, is refused by the next request.
	replica.get("/v1/instances", as(token)...).want(http.StatusOK)
	replica.do(http.MethodDelete, "/v1/tokens/one", "", as("root", "default")...).want(http.StatusNoContent)
	get(as(token)...).want(http.StatusUnauthorized, "unauthenticated")
	replica.get("/v1/instances", as(token)...).want(http.StatusUnauthorized, "unauthenticated")
	end := time.Now().Add(time.Hour).UTC().Truncate(time.Second)
	short := a.token("default", `{"subject": "s", "scopes": ["read"], "expires_at": "`+end.Format(time.RFC3339)+`"}`)
	dbtest.SetClock(t, a.pool, end.Add(-time.Second))
	get(as(short)...).want(http.StatusOK)
	dbtest.SetClock(t, a.pool, end)
	get(as(short)...).want(http.StatusUnauthorized, "unauthenticated")
}

// What an administrator may not give.
func TestEscalation(t *testing.T) {
	t.Parallel()
	a := guarded(t, httpapi.Config{})
	a.do(http.MethodPut, "/v1/tenants/elsewhere", `{}`, as("root")...).want(http.StatusCreated)
	a.do(http.MethodPut, "/v1/roles/held", `{"scopes": ["admin", "read"], "workflows": ["mine"]}`, as("root", "default")...).want(http.StatusCreated)
	admin := a.token("default", `{"subject": "admin", "scopes": ["admin"]}`)
	bound := a.token("default", `{"subject": "bound", "scopes": ["admin"], "workflows": ["mine"]}`)
	byRole := a.token("default", `{"subject": "role", "scopes": [], "roles": ["held"]}`)
	create := func(body string, headers []string) answer { return a.post("/v1/tokens", "", body, headers...) }
	role := func(name, body string, headers []string) answer {
		return a.do(http.MethodPut, "/v1/roles/"+name, body, headers...)
	}
	for _, token := range []string{admin, bound, byRole} {
		create(`{"subject": "x", "scopes": ["deploy"], "workflows": ["mine"]}`, as(token)).want(http.StatusBadRequest, "malformed-request")
		role("x", `{"scopes": ["deploy"], "workflows": ["mine"]}`, as(token)).want(http.StatusBadRequest, "malformed-request")
		create(`{"subject": "x", "scopes": ["read"], "workflows": ["mine"]}`, as(token, "elsewhere")).want(http.StatusForbidden, "forbidden")
		create(`{"subject": "x", "scopes": ["read"], "workflows": ["mine"]}`, as(token, "*")).want(http.StatusForbidden, "forbidden")
		a.do(http.MethodPut, "/v1/tenants/mine", `{}`, as(token)...).want(http.StatusForbidden, "forbidden")
		create(`{"subject": "x", "scopes": ["read", "operate"], "workflows": ["mine"]}`, as(token)).want(http.StatusCreated)
	}
	// Neither the token's workflows nor those of a role are exceeded, and a role that one holds is not widened.
	for _, token := range []string{bound, byRole} {
		for _, workflows := range []string{`[]`, `["theirs"]`, `["mine", "theirs"]`} {
			create(`{"subject": "x", "scopes": ["read"], "workflows": `+workflows+`}`, as(token)).want(http.StatusForbidden, "forbidden")
			role("held", `{"scopes": ["admin"], "workflows": `+workflows+`}`, as(token)).want(http.StatusForbidden, "forbidden")
			role("new", `{"scopes": ["admin"], "workflows": `+workflows+`}`, as(token)).want(http.StatusForbidden, "forbidden")
		}
	}
	a.get("/v1/roles/held", as(admin)...).want(http.StatusOK).wantAt("workflows", `["mine"]`, "scopes", `["admin","read"]`)
}

// A stream and a long poll end after their token was revoked.
func TestRevokedWhileWaiting(t *testing.T) {
	t.Parallel()
	a := guard(startLive(t, withTokens(httpapi.Config{Heartbeat: 50 * time.Millisecond})))
	id := a.create("mine", "", as("root", "default")...)
	token := a.token("default", `{"id": "gone", "subject": "s", "scopes": ["read"]}`)
	a.do(http.MethodPut, "/v1/roles/reader", `{"scopes": ["read"]}`, as("root", "default")...).want(http.StatusCreated)
	byRole := a.token("default", `{"subject": "s", "scopes": [], "roles": ["reader"]}`)
	kept := a.stream("/v1/events", "", as("root", "default")...)
	var streams []*streamed
	var polls []<-chan answer
	for _, token := range []string{token, byRole} {
		streams = append(streams, a.stream("/v1/events", "", as(token)...), a.stream("/v1/instances/"+id+"/events", "", as(token)...))
		polls = append(polls, a.later("/v1/instances/"+id+"?until=final", append(as(token), "Prefer", "wait=60")...))
	}
	a.do(http.MethodDelete, "/v1/tokens/gone", "", as("root", "default")...).want(http.StatusNoContent)
	a.do(http.MethodPut, "/v1/roles/reader", `{"scopes": ["audit"]}`, as("root", "default")...).want(http.StatusOK)
	for _, s := range streams {
		e, ok := s.next()
		if !ok || e.kind != "error" || !strings.Contains(e.data, `"code":"unauthenticated"`) {
			t.Errorf("the stream ends with %v", e)
		}
		s.wantEnd()
	}
	for _, p := range polls {
		bounded.Receive(t, "the poll", p).want(http.StatusUnauthorized, "unauthenticated")
	}
	// Others go on.
	a.fire(id, "stop", "", as("root", "default")...).want(http.StatusOK)
	kept.want("transition 2 OFF")
}

// The use of a token is noted, also behind the request.
func TestTokenUseIsNoted(t *testing.T) {
	t.Parallel()
	a := guarded(t, httpapi.Config{})
	token := a.token("default", `{"id": "used", "subject": "s", "scopes": ["read"]}`)
	a.get("/v1/tokens/used", as("root", "default")...).want(http.StatusOK).wantAt("last_used_at", "null")
	a.get("/v1/instances", as(token)...).want(http.StatusOK)
	bounded.UntilSQL(t, a.pool, "select last_used_at is not null from pawl.token where id = 'used'")
}
