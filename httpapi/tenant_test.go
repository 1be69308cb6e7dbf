package httpapi_test

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"testing"

	"github.com/pawl-fsm/pawl/httpapi"
)

// allPages reads a list over all tenants, a page of n items at a time, and returns tenant and value of each item.
func (a *api) allPages(list, value string, n int) (got []string) {
	a.t.Helper()
	// bounded: the list has at most 50 pages
	for cursor, pages := "", 0; ; pages++ {
		if pages > 50 {
			a.t.Fatal("the list does not end")
		}
		query := url.Values{"limit": {fmt.Sprint(n)}}
		if cursor != "" {
			query.Set("cursor", cursor)
		}
		r := a.get(list+"?"+query.Encode(), as("root", "*")...).want(http.StatusOK)
		tenants, values := r.each("items", "tenant"), r.each("items", value)
		if len(tenants) > n {
			a.t.Fatalf("a page of %d has %d items", n, len(tenants))
		}
		for i := range tenants {
			got = append(got, tenants[i]+" "+values[i])
		}
		if cursor = r.at("next_cursor"); cursor == "null" {
			return got
		}
	}
}

// A caller of the deployment reads over all tenants, and by id without naming one.
func TestAllTenants(t *testing.T) {
	t.Parallel()
	a := guard(startLive(t, withTokens(httpapi.Config{})))
	var instances, subscriptions, tokens, roles []string
	stream := a.stream("/v1/events?from=start", "", as("root", "*")...)
	ids := map[string]string{}
	for _, tenant := range []string{"a", "b", "c", "default"} {
		if tenant != "default" {
			a.do(http.MethodPut, "/v1/tenants/"+tenant, `{}`, as("root")...).want(http.StatusCreated)
		}
		if tenant == "b" {
			continue // An empty one.
		}
		h := as("root", tenant)
		first, second := a.create("mine", "", h...), a.create("theirs", "", h...)
		ids[tenant] = first
		instances = append(instances, tenant+" "+second, tenant+" "+first)
		sub := a.post("/v1/subscriptions", "", `{"url": "https://example.com/"}`, h...).want(http.StatusCreated).at("id")
		a.get("/v1/subscriptions/"+sub, as("root")...).want(http.StatusOK).wantAt("id", sub)
		subscriptions = append(subscriptions, tenant+" "+sub)
		a.token(tenant, `{"id": "t-`+tenant+`", "subject": "s", "scopes": ["read"]}`)
		tokens = append(tokens, tenant+" t-"+tenant)
		a.do(http.MethodPut, "/v1/roles/r", `{"scopes": ["read"]}`, h...).want(http.StatusCreated)
		roles = append(roles, tenant+" r")
	}
	a.token("*", `{"id": "zz", "subject": "s", "scopes": ["read"]}`)
	tokens = append([]string{"* zz"}, tokens...)
	for _, n := range []int{1, 2, 3, 100} {
		for list, want := range map[string][]string{"/v1/instances": instances, "/v1/subscriptions": subscriptions, "/v1/tokens": tokens} {
			if got := a.allPages(list, "id", n); !slices.Equal(got, want) {
				t.Errorf("%s by %d: %v, want %v", list, n, got, want)
			}
		}
		if got := a.allPages("/v1/roles", "name", n); !slices.Equal(got, roles) {
			t.Errorf("roles by %d: %v, want %v", n, got, roles)
		}
	}
	// A cursor that lies between two tenants belongs to its list and to its filters, as any other does.
	between := a.get("/v1/instances?limit=2", as("root", "*")...).want(http.StatusOK).at("next_cursor")
	a.get("/v1/instances?limit=1&cursor="+between, as("root", "*")...).want(http.StatusOK).wantAt("items.0.tenant", "c")
	for _, other := range []string{"/v1/tokens?", "/v1/instances?status=active&", "/v1/workflows/mine/instances?", "/v1/instances?sort=created_at&"} {
		a.get(other+"cursor="+between, as("root", "*")...).want(http.StatusBadRequest, "malformed-request").wantAt("errors.0.parameter", "cursor")
	}
	a.get("/v1/instances?cursor="+between, as("root", "c")...).want(http.StatusBadRequest, "malformed-request")
	for _, cursor := range []string{"x", "!.x", "YQ.x", "YQ.", "Yw."} {
		a.get("/v1/instances?cursor="+cursor, as("root", "*")...).want(http.StatusBadRequest, "malformed-request")
	}
	a.get("/v1/instances", as("root", "a")...).want(http.StatusOK).wantAt("items.0.tenant", missing)
	a.get("/v1/deliveries", as("root", "*")...).want(http.StatusOK)
	a.get("/v1/workflows/mine/stats", as("root", "a")...).want(http.StatusOK)
	a.get("/v1/workflows/mine/stats", as("root", "*")...).want(http.StatusBadRequest, "tenant-required") // No number is that of all.

	for tenant, id := range ids {
		a.get("/v1/instances/"+id, as("root")...).want(http.StatusOK).wantAt("id", id)
		a.get("/v1/instances/"+id+"/history", as("root")...).want(http.StatusOK).wantAt("items.0.version", "1")
		a.get("/v1/instances/"+id+"/actions", as("root", "*")...).want(http.StatusOK)
		a.get("/v1/tokens/t-"+tenant, as("root", "*")...).want(http.StatusOK).wantAt("tenant", tenant)
		a.fire(id, "stop", "", as("root")...).want(http.StatusBadRequest, "tenant-required")
	}
	for _, path := range []string{"", "/history", "/actions", "/events"} {
		a.get("/v1/instances/0195a2f0-11c8-7a4e-9b6d-3f5e7a9c1d20"+path, as("root")...).want(http.StatusNotFound, "instance-not-found")
	}
	for range instances {
		e, ok := stream.next()
		if !ok {
			t.Fatal("the stream of all tenants ends")
		}
		r := answer{t: t, body: []byte(e.data)}
		if entry := r.at("tenant") + " " + r.at("instance_id"); !slices.Contains(instances, entry) {
			t.Errorf("the stream has %s", entry)
		}
	}

	// Workflows are everybody's: without a tenant, what is done for instances is done for those of all tenants.
	a.get("/v1/workflows/mine", as("root")...).want(http.StatusOK).wantAt("versions.0.instances.ON", "3")
	a.get("/v1/workflows/mine", as("root", "a")...).want(http.StatusOK).wantAt("versions.0.instances.ON", "1")
	a.post("/v1/workflows/mine/backtest", "", `{"version": 1}`, as("root")...).want(http.StatusOK).wantAt("instances", "3", "same", "3")
	a.post("/v1/workflows/mine/backtest", "", `{"version": 1}`, as("root", "a")...).want(http.StatusOK).wantAt("instances", "1")
	changed := named("mine")[:len(named("mine"))-1] + `, "description": "changed"}`
	a.do(http.MethodPut, "/v1/workflows/mine", changed, as("root")...).want(http.StatusCreated)
	migrate := func(headers ...string) answer {
		return a.post("/v1/workflows/mine/migrate", "", `{"from": 1, "to": 2}`, headers...).want(http.StatusOK)
	}
	migrate(as("root", "a")...).wantAt("migrated", "1")
	migrate(as("root")...).wantAt("migrated", "2")
	migrate(as("root")...).wantAt("migrated", "0")
}
