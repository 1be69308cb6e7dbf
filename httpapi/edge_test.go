package httpapi_test

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"

	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/httpapi"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

const order = `{"name":"order","initial":"new","states":{"new":{"on":{"pay":"paid"}},"paid":{"type":"final"}}}`

// A web page of another site can change nothing, by any operation, whether or not its request needs a preflight.
func TestForeignPages(t *testing.T) {
	t.Parallel()
	a := start(t)
	pages := map[string][]string{
		"another site":              {"Sec-Fetch-Site", "cross-site", "Origin", "https://evil.example"},
		"another origin of a site":  {"Sec-Fetch-Site", "same-site", "Origin", "http://evil.localhost"},
		"an old browser":            {"Origin", "https://evil.example"},
		"a sandboxed frame":         {"Origin", "null"},
		"another port of this host": {"Origin", "http://127.0.0.1:1"},
	}
	everyOperation(t, func(t *testing.T, id, method, target string) {
		if id == "streamEvents" {
			return // It is refused nobody, and would not end.
		}
		a := a.on(t)
		for page, headers := range pages {
			switch r := a.do(method, target, "", headers...); {
			case method == http.MethodGet && r.status == http.StatusForbidden:
				t.Errorf("%s: a read for %s is refused", target, page)
			case method != http.MethodGet:
				r.want(http.StatusForbidden, "forbidden")
			}
			a.do(method, target, "", headers...).wantHeader("Access-Control-Allow-Origin", "")
		}
	})
	a.register(order)
	for name, headers := range pages {
		for _, kind := range []string{"", "text/plain", "application/json"} {
			a.post("/v1/workflows/order/instances", newKey(), `{}`, append(headers, "Content-Type", kind)...).want(http.StatusForbidden, "forbidden")
			a.post("/v1/subscriptions", "", `{"url":"https://93.184.215.14/"}`, append(headers, "Content-Type", kind)...).want(http.StatusForbidden, "forbidden")
		}
		if n := a.count("pawl.instance") + a.count("pawl.subscription"); n != 0 {
			t.Fatalf("%s has made %d rows", name, n)
		}
	}
	for _, own := range [][]string{nil, {"Sec-Fetch-Site", "same-origin"}, {"Sec-Fetch-Site", "none"}, {"Origin", a.url}} {
		a.post("/v1/workflows/order/instances", newKey(), `{}`, own...).want(http.StatusCreated)
	}
}

// A body without a media type, which a page may send without a preflight, is refused by every operation that reads one.
func TestBodyWithoutType(t *testing.T) {
	t.Parallel()
	a := start(t)
	everyOperation(t, func(t *testing.T, id, method, target string) {
		if _, _, op := operationOf(method, target); op.RequestBody == nil {
			return
		}
		a.on(t).do(method, target, `{}`, "Idempotency-Key", newKey(), "Content-Type", "").want(http.StatusUnsupportedMediaType, "unsupported-media-type")
	})
}

// Pages of the origins that are named may call the service, and no others.
func TestCORS(t *testing.T) {
	t.Parallel()
	const origin, other = "https://app.example", "https://app.example.evil.example"
	a := startWith(t, setup{http: httpapi.Config{CORSOrigins: []string{"http://localhost:3000", origin}, Tokens: []httpapi.Token{
		{SHA256: sum("secret"), Subject: "s", Tenant: "*", Scopes: httpapi.Scopes()},
	}}})
	asked := []string{"Access-Control-Request-Method", "PUT", "Access-Control-Request-Headers", "authorization,content-type", "Sec-Fetch-Site", "cross-site"}
	target := "/v1/workflows/order"
	a.do(http.MethodOptions, target, "", append(asked, "Origin", origin)...).want(http.StatusNoContent).
		wantHeader("Access-Control-Allow-Origin", origin).wantHeader("Access-Control-Allow-Methods", "GET, HEAD, OPTIONS, PUT").
		wantHeader("Access-Control-Allow-Credentials", "").wantHeader("Vary", "Origin")
	if allowed := a.do(http.MethodOptions, target, "", append(asked, "Origin", origin)...).header.Get("Access-Control-Allow-Headers"); !strings.Contains(allowed, "Authorization") || !strings.Contains(allowed, "Idempotency-Key") {
		t.Errorf("pages may send %q", allowed)
	}
	token := []string{"Authorization", "Bearer secret", "Sec-Fetch-Site", "cross-site"}
	a.do(http.MethodPut, target, order, append(token, "Origin", origin)...).want(http.StatusCreated).
		wantHeader("Access-Control-Allow-Origin", origin).
		wantHeader("Access-Control-Expose-Headers", "ETag, Location, Idempotent-Replayed, Retry-After, X-Request-ID")
	// A page can read why it was refused.
	a.get(target, "Origin", origin).want(http.StatusUnauthorized).wantHeader("Access-Control-Allow-Origin", origin)
	for _, foreign := range []string{other, "null", "https://app.example:443", "http://app.example", "*", ""} {
		a.do(http.MethodOptions, target, "", append(asked, "Origin", foreign)...).want(http.StatusNoContent).
			wantHeader("Access-Control-Allow-Origin", "").wantHeader("Access-Control-Allow-Methods", "").wantHeader("Vary", "Origin")
		a.do(http.MethodPut, target, order, append(token, "Origin", foreign)...).want(http.StatusForbidden, "forbidden").
			wantHeader("Access-Control-Allow-Origin", "")
	}
	a.get(target, append(token, "Origin", origin, "Origin", other)...).want(http.StatusOK).wantHeader("Access-Control-Allow-Origin", "")
	a.get("/v1/workflows/order/diagram", append(token, "Origin", origin)...).wantHeader("Vary", "Origin, Accept")
	for _, bad := range []string{"*", "null", "app.example", "https://app.example/", "https://*.example", "https://App.example", ""} {
		if _, err := httpapi.New(httpapi.Services{}, httpapi.Config{CORSOrigins: []string{bad}}); err == nil {
			t.Errorf("the origin %q is accepted", bad)
		}
	}
}

// misdirect sends a GET for another host. The answer of any path may be 421, which no operation lists.
func (a *api) misdirect(host, target string) answer {
	a.t.Helper()
	ctx, cancel := context.WithTimeout(a.t.Context(), bounded.Limit)
	defer cancel()
	in, err := http.NewRequestWithContext(ctx, http.MethodGet, a.url+target, nil)
	if err != nil {
		a.t.Fatal(err)
	}
	in.Host = host
	out, err := a.client.Do(in)
	if err != nil {
		a.t.Fatal(err)
	}
	defer out.Body.Close()
	body, err := io.ReadAll(out.Body)
	if err != nil {
		a.t.Fatal(err)
	}
	r := answer{t: a.t, request: "GET " + target + " of " + host, status: out.StatusCode, header: out.Header, body: body}
	if r.status == http.StatusMisdirectedRequest {
		a.checkProblem(r, false)
	}
	return r
}

// A page whose name resolves to the service's address (DNS rebinding) reads nothing.
func TestHosts(t *testing.T) {
	t.Parallel()
	open := start(t)
	loopback := open.another(setup{http: httpapi.Config{OnLoopback: true}})
	named := open.another(setup{http: httpapi.Config{AllowedHosts: []string{"Flows.example", "other.example:8443"}}})
	_, port, _ := strings.Cut(strings.TrimPrefix(loopback.url, "http://"), ":")
	for _, c := range []struct {
		host            string
		loopback, named bool
	}{
		{"127.0.0.1:" + port, true, true},
		{"127.0.0.1:1", true, true}, // A forwarded port.
		{"127.0.0.2", true, true},
		{"[::1]:80", true, true},
		{"::1", true, true},
		{"localhost", true, true},
		{"LOCALHOST.:80", true, true},
		{"pawl.localhost:80", true, true},
		{"flows.example", false, true},
		{"FLOWS.example.:8080", false, true},
		{"other.example:8443", false, true},
		{"other.example", false, false},
		{"other.example:80", false, false},
		{"evil.example", false, false},
		{"evil.example:" + port, false, false},
		{"127.0.0.1.evil.example", false, false},
		{"localhost.evil.example", false, false},
		{"evillocalhost", false, false},
		{"flows.example.evil.example", false, false},
		{"192.0.2.1", false, false},
		{"0.0.0.0", false, false},
	} {
		for _, target := range []string{"/v1/instances", "/healthz", "/nowhere"} {
			for a, admitted := range map[*api]bool{open: true, loopback: c.loopback, named: c.named} {
				if r := a.misdirect(c.host, target); !admitted {
					r.want(http.StatusMisdirectedRequest, "misdirected-request")
				} else if r.status == http.StatusMisdirectedRequest {
					t.Errorf("%s: got %d", r.request, r.status)
				}
			}
		}
	}
}

// Every answer has the headers that keep a browser from doing something with it: also problems, streams and the answers to OPTIONS.
func TestSecurityHeaders(t *testing.T) {
	t.Parallel()
	a := start(t)
	check := func(t *testing.T, h http.Header, cache string) {
		for name, want := range map[string]string{
			"X-Content-Type-Options": "nosniff", "Cache-Control": cache, "Referrer-Policy": "no-referrer",
			"Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'", "Strict-Transport-Security": "",
		} {
			if got := strings.Join(h.Values(name), "|"); got != want {
				t.Errorf("%s is %q, want %q", name, got, want)
			}
		}
	}
	everyOperation(t, func(t *testing.T, id, method, target string) {
		if id == "streamEvents" {
			return // It would not end; its HEAD is below.
		}
		cache := "no-store"
		if id == "getContract" {
			cache = "max-age=300"
		}
		check(t, a.on(t).do(method, target, "").header, cache)
		check(t, a.on(t).do(http.MethodOptions, target, "").header, "no-store")
	})
	a.register(order)
	id := a.create("order", `{}`)
	check(t, a.get("/v1/instances/"+id).header, "no-store")
	check(t, a.get("/v1/instances/"+id, "If-None-Match", `"1"`).want(http.StatusNotModified).header, "no-store")
	check(t, a.do(http.MethodHead, "/v1/events", "").want(http.StatusOK).header, "no-store")
	check(t, a.get("/nowhere").header, "no-store")
	check(t, a.another(setup{http: httpapi.Config{OnLoopback: true}}).misdirect("evil.example", "/").header, "no-store")
}

// A caller cannot choose the address that it is recorded with.
func TestCallerAddress(t *testing.T) {
	t.Parallel()
	networks := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")}
	for _, c := range []struct {
		peer      string
		forwarded []string
		want      string
	}{
		{"192.0.2.1:1234", nil, "192.0.2.1"},
		{"192.0.2.1:1234", []string{"198.51.100.1"}, "192.0.2.1"},
		{"10.0.0.1:1234", nil, "10.0.0.1"},
		{"10.0.0.1:1234", []string{"198.51.100.1"}, "198.51.100.1"},
		{"10.0.0.1:1234", []string{"203.0.113.9, 198.51.100.1, 10.9.9.9"}, "198.51.100.1"},
		{"10.0.0.1:1234", []string{"203.0.113.9", "198.51.100.1", "10.9.9.9"}, "198.51.100.1"},
		{"10.0.0.1:1234", []string{"10.2.2.2, 10.9.9.9"}, "10.2.2.2"},
		{"10.0.0.1:1234", []string{"198.51.100.1, unknown"}, "10.0.0.1"},
		{"10.0.0.1:1234", []string{"unknown, 10.9.9.9"}, "10.9.9.9"},
		{"10.0.0.1:1234", []string{"198.51.100.1:555"}, "198.51.100.1"},
		{"10.0.0.1:1234", []string{"[2001:db8::1]:555"}, "2001:db8::1"},
		{"10.0.0.1:1234", []string{"[2001:db8::1], ::ffff:10.1.1.1"}, "2001:db8::1"},
		{"[::ffff:10.0.0.1]:1234", []string{"2001:db8::1"}, "2001:db8::1"},
		{"[fd00::1%eth0]:1234", []string{"2001:db8::1"}, "2001:db8::1"},
		{"[fe80::1%eth0]:1234", []string{"2001:db8::1"}, "fe80::1"},
		{"10.0.0.1:1234", []string{"198.51.100.1,, "}, "198.51.100.1"},
		{"@", []string{"198.51.100.1"}, ""},
	} {
		in := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", nil)
		in.RemoteAddr = c.peer
		for _, line := range c.forwarded {
			in.Header.Add("X-Forwarded-For", line)
		}
		if got := httpapi.CallerAddress(t, httpapi.Config{TrustedProxies: networks}, in); got != c.want {
			t.Errorf("%s with %q is %q, want %q", c.peer, c.forwarded, got, c.want)
		}
	}
}

// A token that may read sees no endpoint: its URL may have a secret of the receiver.
func TestReadersSeeNoEndpoints(t *testing.T) {
	t.Parallel()
	a := startWith(t, setup{fsm: fsm.Config{Webhooks: fsm.WebhookPolicy{Secret: "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"}}})
	a.register(order)
	const endpoint = "https://receiver.invalid/planted-endpoint"
	subscription := a.do(http.MethodPost, subscriptions, `{"url": "`+endpoint+`"}`).want(http.StatusCreated).at("id")
	id := a.create("order", `{"callback_url": "`+endpoint+`"}`)
	a.post(subscriptions+"/"+subscription+"/test", "", "").want(http.StatusAccepted)
	reader := a.another(setup{http: httpapi.Config{Tokens: []httpapi.Token{
		{SHA256: sum("reader"), Subject: "r", Scopes: []httpapi.Scope{httpapi.ScopeRead}}, {SHA256: sum("sender"), Subject: "s", Scopes: []httpapi.Scope{httpapi.ScopeDeliver}},
	}}})
	shown := 0
	for path, item := range contract().Paths.Map() {
		if item.Get == nil || strings.HasSuffix(path, "/events") {
			continue
		}
		target := strings.NewReplacer("subscriptions/{id}", "subscriptions/"+subscription, "{name}", "order", "{version}", "1", "{id}", id, "{code}", "internal").Replace(path)
		if strings.Contains(string(reader.get(target, "Authorization", "Bearer reader").body), "planted-endpoint") {
			t.Errorf("%s shows the endpoint", path)
		}
		shown += strings.Count(string(reader.get(target, "Authorization", "Bearer sender").body), "planted-endpoint")
	}
	if shown == 0 {
		t.Error("nobody is shown the endpoint")
	}
	from := reader.get("/v1/instances/"+id+"/history", "Authorization", "Bearer reader").want(http.StatusOK)
	if from.at("items.0.kind") != "created" {
		t.Errorf("the reader reads %s", from.body)
	}
}
