package httpapi_test

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/subscription"
	"github.com/pawl-fsm/pawl/httpapi"
)

const (
	subscriptions = "/v1/subscriptions"
	// endpoint has a public address. Nothing is sent to it, since no worker runs here.
	endpoint = "https://93.184.215.14/hook"
)

func secretOf(bytes int) string {
	return "whsec_" + base64.StdEncoding.EncodeToString(make([]byte, bytes))
}

func TestSubscriptions(t *testing.T) {
	t.Parallel()
	a := start(t)
	a.register(booking)
	body := `{"url": "` + endpoint + `", "filter": {"workflows": ["booking"], "events": ["reserve", "ttl"], "states": ["PAID"], "terminal_only": true}}`
	made := a.do(http.MethodPost, subscriptions, body, "X-Actor", "dora").want(http.StatusCreated).wantAt(
		"url", endpoint, "filter", `{"events":["reserve","ttl"],"states":["PAID"],"terminal_only":true,"workflows":["booking"]}`,
		"disabled", "false", "disabled_at", "null", "failures", "0", "rests_until", "null", "created_by", "dora")
	id, secret := made.at("id"), made.at("secret")
	made.wantHeader("Location", subscriptions+"/"+id)
	if key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(secret, "whsec_")); err != nil || len(key) != 32 {
		t.Errorf("the secret is %s", secret)
	}
	a.get(subscriptions+"/"+id).want(http.StatusOK).wantAt("id", id, "secret", missing)
	// Without a filter the subscription gets every step.
	other := a.do(http.MethodPost, subscriptions, `{"url": "http://93.184.215.14:8080/", "secret": "`+secretOf(24)+`"}`).
		want(http.StatusCreated).wantAt("secret", secretOf(24), "filter", `{"events":[],"states":[],"terminal_only":false,"workflows":[]}`)
	page := a.get(subscriptions+"?limit=1").want(http.StatusOK).wantAt("items.0.id", other.at("id"), "items.1", missing, "items.0.secret", missing)
	a.get(subscriptions+"?limit=1&cursor="+page.at("next_cursor")).want(http.StatusOK).wantAt("items.0.id", id, "next_cursor", "null")
	a.get(subscriptions+"?cursor=nonsense").want(http.StatusBadRequest, "malformed-request")

	one := subscriptions + "/" + id
	a.do(http.MethodPatch, one, `{"disabled": true}`).want(http.StatusOK).
		wantAt("disabled", "true", "disabled_reason", "it was disabled through the API", "url", endpoint, "filter.workflows", `["booking"]`)
	a.post(one+"/test", "", "").want(http.StatusConflict, "delivery-conflict")
	a.do(http.MethodPatch, one, `{"disabled": false, "url": "https://93.184.215.14/2", "filter": {"states": ["CANCELLED"]}}`).want(http.StatusOK).
		wantAt("disabled", "false", "disabled_reason", "null", "url", "https://93.184.215.14/2",
			"filter", `{"events":[],"states":["CANCELLED"],"terminal_only":false,"workflows":[]}`)
	a.do(http.MethodPatch, one, `{}`).want(http.StatusOK).wantAt("filter.states", `["CANCELLED"]`)
	a.do(http.MethodPatch, one, `{"filter": {"types": ["pawl.finding.opened", "pawl.instance.created"]}}`).want(http.StatusOK).
		wantAt("filter.types", `["pawl.finding.opened","pawl.instance.created"]`)
	a.do(http.MethodPatch, one, `{"filter": {"types": []}}`).want(http.StatusOK).
		wantAt("filter", `{"events":[],"states":[],"terminal_only":false,"workflows":[]}`)
	a.do(http.MethodPatch, one, `{"filter": {"types": ["pawl.subscription.test"]}}`).want(http.StatusBadRequest, "malformed-request")
	a.do(http.MethodPatch, one, `{"filter": {"states": ["CANCELLED"]}}`).want(http.StatusOK)
	a.do(http.MethodPatch, one, `{"secret": "x"}`).want(http.StatusBadRequest, "malformed-request")
	a.do(http.MethodPatch, one, ``).want(http.StatusBadRequest, "malformed-request")

	rotated := a.post(one+"/rotate-secret", "", "").want(http.StatusOK)
	if rotated.at("secret") == secret || rotated.at("previous_secret_until") == "null" {
		t.Errorf("rotated to %s", rotated.body)
	}
	a.post(one+"/rotate-secret", "", `{"secret": "`+secretOf(64)+`"}`).want(http.StatusOK).wantAt("secret", secretOf(64))
	a.post(one+"/test", "", "").want(http.StatusAccepted).wantAt(
		"subscription_id", id, "instance_id", "null", "version", "null", "type", subscription.TestDeliveryType, "status", "pending", "attempts", "0")

	a.do(http.MethodDelete, one, "").want(http.StatusNoContent)
	for _, target := range []string{one, subscriptions + "/nonsense", subscriptions + "/00000000-0000-0000-0000-000000000000"} {
		a.get(target).want(http.StatusNotFound, "not-found")
		a.do(http.MethodDelete, target, "").want(http.StatusNotFound, "not-found")
		a.do(http.MethodPatch, target, `{}`).want(http.StatusNotFound, "not-found")
		a.post(target+"/test", "", "").want(http.StatusNotFound, "not-found")
		a.post(target+"/rotate-secret", "", "").want(http.StatusNotFound, "not-found")
	}
}

func TestSubscriptionsThatWillNotDo(t *testing.T) {
	t.Parallel()
	a := start(t)
	a.register(booking)
	a.register(counter)
	for _, url := range []string{
		"", "nonsense", "/hook", "ftp://example.com", "https://", "https://:443", "https://bob:pass@93.184.215.14/", "https://93.184.215.14/#x",
		"https://93.184.215.14:0/", "https://93.184.215.14:70000/", "https://93.184.215.14:x/", "https://93.184.215.14/ü\\u0000",
		"http://127.0.0.1/", "http://localhost:8080/", "http://[::1]/", "http://[::ffff:10.0.0.1]/", "http://10.1.2.3/", "http://192.168.0.1/",
		"http://169.254.169.254/latest/meta-data", "http://168.63.129.16/", "http://0.0.0.0/", "http://[fe80::1%25eth0]/", "http://[fd00::1]/", "http://[64:ff9b::7f00:1]/",
		"http://100.64.0.1/", "https://93.184.215.14/" + strings.Repeat("x", 2048),
	} {
		a.do(http.MethodPost, subscriptions, `{"url": "`+url+`"}`).want(http.StatusBadRequest, "malformed-request")
	}
	for _, secret := range []string{
		"", "whsec_", "secret", secretOf(23), secretOf(65), strings.TrimPrefix(secretOf(32), "whsec_"), "whsec_" + strings.Repeat("!", 40),
	} {
		a.do(http.MethodPost, subscriptions, `{"url": "`+endpoint+`", "secret": "`+secret+`"}`).
			want(http.StatusBadRequest, "malformed-request").wantAt("errors.0.pointer", "/secret")
	}
	for filter, pointer := range map[string]string{
		`{"workflows": ["nobody"]}`:                              "/filter/workflows/0",
		`{"workflows": ["booking", "nobody"]}`:                   "/filter/workflows/1",
		`{"states": ["PAID", "PIAD"]}`:                           "/filter/states/1",
		`{"workflows": ["counter"], "states": ["PAID"]}`:         "/filter/states/0",
		`{"events": ["explode"]}`:                                "/filter/events/0",
		`{"workflows": ["counter"], "events": ["reserve"]}`:      "/filter/events/0",
		`{"events": ["` + strings.Repeat("x", 256) + `"]}`:       "/filter/events/0",
		`{"states": [` + strings.Repeat(`"x",`, 100) + `"x"]}`:   "/filter/states",
		`{"workflows": ["b"], "events": ["c"], "states": ["d"]}`: "/filter/workflows/0",
	} {
		a.do(http.MethodPost, subscriptions, `{"url": "`+endpoint+`", "filter": `+filter+`}`).
			want(http.StatusBadRequest, "malformed-request").wantAt("errors.0.pointer", pointer)
	}
	// All faults are listed.
	r := a.do(http.MethodPost, subscriptions, `{"url": "http://10.0.0.1", "secret": "x", "filter": {"states": ["X"]}}`).want(http.StatusBadRequest)
	if got := fmt.Sprint(r.each("errors", "pointer")); got != "[/url /filter/states/0 /secret]" {
		t.Errorf("the faults are at %s", got)
	}
	for _, body := range []string{``, `{}`, `{"url": 1}`, `{"url": "` + endpoint + `", "filter": {"colour": "red"}}`, `{"url": "` + endpoint + `", "more": 1}`} {
		a.do(http.MethodPost, subscriptions, body).want(http.StatusBadRequest, "malformed-request")
	}
	if n := a.count("pawl.subscription"); n != 0 {
		t.Errorf("%d subscriptions were made", n)
	}
	development := a.another(setup{fsm: fsm.Config{Webhooks: fsm.WebhookPolicy{AllowPrivate: true}}})
	development.do(http.MethodPost, subscriptions, `{"url": "http://127.0.0.1:9/"}`).want(http.StatusCreated)
}

func TestWebhookScopes(t *testing.T) {
	t.Parallel()
	a := startWith(t, setup{http: httpapi.Config{Tokens: []httpapi.Token{
		{SHA256: sum("writer"), Subject: "wilma"},
		{SHA256: sum("deliverer"), Subject: "dora", Scopes: []httpapi.Scope{httpapi.ScopeDeliver}},
		{SHA256: sum("stranger"), Subject: "sam", Tenant: "elsewhere", Scopes: tenantScopes},
	}}})
	as := func(token string) []string { return []string{"Authorization", "Bearer " + token} }
	body := `{"url": "` + endpoint + `"}`
	a.post(subscriptions, "", body, as("writer")...).want(http.StatusForbidden, "forbidden")
	id := a.post(subscriptions, "", body, as("deliverer")...).want(http.StatusCreated).wantAt("created_by", "dora").at("id")
	a.get(subscriptions+"/"+id, as("writer")...).want(http.StatusForbidden, "forbidden")
	delivery := a.post(subscriptions+"/"+id+"/test", "", "", as("deliverer")...).want(http.StatusAccepted).at("id")
	a.post("/v1/deliveries/replay", "", "", as("writer")...).want(http.StatusForbidden, "forbidden")
	a.post("/v1/deliveries/replay", "", "", as("deliverer")...).want(http.StatusOK)
	// Another tenant can neither see nor change it.
	a.get(subscriptions+"/"+id, as("stranger")...).want(http.StatusNotFound, "not-found")
	a.do(http.MethodDelete, subscriptions+"/"+id, "", as("stranger")...).want(http.StatusNotFound, "not-found")
	a.post("/v1/deliveries/"+delivery+"/replay", "", "", as("stranger")...).want(http.StatusNotFound, "not-found")
	for _, list := range []string{subscriptions, "/v1/deliveries"} {
		a.get(list, as("stranger")...).want(http.StatusOK).wantAt("items", "[]")
	}
}
