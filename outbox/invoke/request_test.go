package invoke_test

import (
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/internal/bounded"
	"github.com/pawl-fsm/pawl/internal/seal"
	"github.com/pawl-fsm/pawl/internal/variable"
	"github.com/pawl-fsm/pawl/outbox/invoke"
)

// requesting is a workflow whose task has everything that a request can have.
const requesting = `{
  "name": "order", "initial": "CHARGING", "timezone": "UTC",
  "states": {
    "CHARGING": {"invoke": {"charge": {
        "http": {"connection": "psp", "method": "PUT", "path": "/orders/{$.context.order}/é ?#/{$.context.price}",
          "query": {"q": "$.context.order", "list": [1, "b c", null, true], "none": null, "object": {"a": 1}},
          "headers": {"X-Both": "task", "X-Task": "$.context.order", "X-Number": 1, "X-Idempotency-Key": "mine"},
          "body": {"amount": "$.context.price", "key": "$.task.key", "big": 12345678901234567890.10}},
        "idempotency": {"header": "Idempotency-Key", "window": "24h"}, "deadline": "1h",
        "done": [{"target": "DONE", "assign": {"result": "$.payload"}}], "error": [{"target": "FAILED", "assign": {"result": "$.payload"}}], "unknown": [{"target": "FAILED"}]}}},
    "DONE": {"type": "final"}, "FAILED": {"type": "final", "outcome": "failed"}
  }
}`

// The request has what the definition, the connection and the step say, and the handler sees what is kept of the answer.
func TestRequest(t *testing.T) {
	t.Parallel()
	p := newProvider(t, with(200, `{"id": 1.50}`, "Location", "/c1", "X-Request-Id", "r1", "Set-Cookie", "secret", "Retry-After", "7"))
	d := newDesk(t, "", p.URL+"/base/")
	d.register(requesting)
	trace := "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	id := bounded.Value[uuid.UUID](t, d.pool, `
		select (o.instance).id
		from pawl.create(
			p_tenants => '{default}', p_workflows => '{order}', p_contexts => array['{"order": "a/b ?ü%2F", "price": 5}'::jsonb],
			p_keys => '{""}', p_business_keys => '{""}', p_instance_correlation_ids => '{""}', p_lifetimes => '{null}', p_checked => '{*}',
			p_actors => '{test}', p_reasons => '{""}', p_correlation_ids => '{order-7}', p_traceparents => array[$1]) o`, trace)
	d.run()
	got := d.until(id, "DONE")
	task := d.task(id).String()
	r := p.asked()[0]
	if want := "/base/orders/a%2Fb%20%3F%C3%BC%252F/%C3%A9%20%3F%23/5?list=1&list=b+c&list=true&object=%7B%22a%22%3A+1%7D&q=a%2Fb+%3F%C3%BC%252F"; r.method != http.MethodPut || r.uri != want {
		t.Errorf("%s %s, want\nPUT %s", r.method, r.uri, want)
	}
	if want := fmt.Sprintf(`{"big": 12345678901234567890.10, "key": %q, "amount": 5}`, task); r.body != want {
		t.Errorf("the body is %s, want %s", r.body, want)
	}
	for name, want := range map[string]string{
		"Content-Type": "application/json", "User-Agent": "pawl-tasks/1", "Idempotency-Key": task, "X-Idempotency-Key": "mine", "X-Of": "connection",
		"X-Both": "task", "X-Number": "1", "X-Task": "a/b ?ü%2F", "Traceparent": trace, "X-Correlation-Id": "order-7", "Authorization": "", "Accept-Encoding": "",
	} {
		if got := strings.Join(r.header.Values(name), ", "); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
	headers, _ := json.Marshal(got.Headers)
	if want := `{"content-type":"application/json","location":"/c1","retry-after":"7","x-request-id":"r1"}`; string(headers) != want {
		t.Errorf("headers: %s, want %s", headers, want)
	}
	if body := bounded.Value[string](t, d.pool, "select context #>> '{result,body}' from pawl.instance"); body != `{"id": 1.50}` {
		t.Errorf("the body is %s", body)
	}
	if got.Task.String() != task || got.Attempt != 1 || got.Status == nil || *got.Status != 200 || got.Error != nil {
		t.Errorf("the payload is %+v", got)
	}
}

// The key goes out under the header that is declared for it, also if pawl has another use for that. What a definition says of
// itself counts.
func TestHeadersOfADefinition(t *testing.T) {
	t.Parallel()
	for _, header := range []string{"X-Correlation-Id", "Traceparent", "User-Agent", "Idempotency-Key"} {
		t.Run(header, func(t *testing.T) {
			t.Parallel()
			p := newProvider(t, ok)
			d := newDesk(t, "", p.URL)
			d.register(strings.NewReplacer(`"header": "Idempotency-Key"`, `"header": "`+header+`"`, `"X-Number": 1`, `"X-Number": 1, "User-Agent": "shop/2", "X-Correlation-Id": "cart"`).Replace(requesting))
			id := bounded.Value[uuid.UUID](t, d.pool, `select (pawl.create_one('order', '{"order": "a", "price": 5}', p_correlation_id => 'order-7')).id`)
			d.run()
			d.until(id, "DONE")
			wanted := map[string]string{"User-Agent": "shop/2", "X-Correlation-Id": "cart"}
			wanted[header] = d.task(id).String()
			for name, want := range wanted {
				if got := strings.Join(p.asked()[0].header.Values(name), ", "); got != want {
					t.Errorf("%s: %s, want %s", name, got, want)
				}
			}
		})
	}
}

// An attempt is one request: net/http, which repeats what it takes for harmless, is kept from that.
func TestAttemptIsOneRequest(t *testing.T) {
	t.Parallel()
	for _, method := range []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"} {
		for _, body := range []string{"", `, "body": {"a": 1}`} {
			t.Run(method+body, func(t *testing.T) {
				t.Parallel()
				p := newProvider(t, inTurn(ok, reset, ok))
				d := newDesk(t, "", p.URL)
				// The first call leaves a connection, whose reset looks to the second one as if it had been idle for too long.
				d.register(strings.NewReplacer(
					`"method": "POST"`, `"method": "`+method+`"`, `, "body": {"amount": "$.context.price"}`, body+`, "headers": {"X-Idempotency-Key": "k"}`,
				).Replace(fmt.Sprintf(workflow, `"idempotency": {"header": "Idempotency-Key", "window": "24h"}, "retry": {"max": 1, "base": "1ms", "cap": "1ms"},`)))
				d.run()
				d.until(d.create(), "DONE")
				d.until(d.create(), "UNKNOWN")
				d.until(d.create(), "DONE")
				list := p.asked()
				if len(list) != 3 || list[0].method != method {
					t.Errorf("%d requests with %s", len(list), list[0].method)
				}
				if body == "" && list[0].header.Get("Content-Type") != "" || (body == "") != (list[0].body == "") {
					t.Errorf("the body is %q, of type %q", list[0].body, list[0].header.Get("Content-Type"))
				}
				if te := list[0].header.Get("Transfer-Encoding"); te != "" {
					t.Errorf("the body is sent as %s", te)
				}
			})
		}
	}
}

// A connection authenticates, with a sealed secret or with one from the environment.
func TestAuthentication(t *testing.T) {
	t.Setenv("PAWL_CONNECTION_TEST", "from-env")
	keys, err := seal.Parse(seal.NewKey())
	if err != nil {
		t.Fatal(err)
	}
	p := newProvider(t, ok)
	d := newDesk(t, "", p.URL)
	d.run(func(c *invoke.Config) {
		c.Keys = keys
		c.Variables = variable.Policy{{Tenant: "default", Name: "PAWL_CONNECTION_*"}}
	})
	sealed := keys.Seal("s3cret", seal.Connection("default", "psp"))
	plain := "plain"
	for i, c := range []struct {
		auth         string
		secret       *string
		header, want string
	}{
		{`{"type": "none"}`, nil, "Authorization", ""},
		{`{"type": "bearer"}`, &sealed, "Authorization", "Bearer s3cret"},
		{`{"type": "bearer"}`, &plain, "Authorization", "Bearer plain"},
		{`{"type": "basic", "user": "me"}`, &sealed, "Authorization", "Basic bWU6czNjcmV0"},
		{`{"type": "header", "name": "X-Api-Key"}`, &sealed, "X-Api-Key", "s3cret"},
		{`{"type": "bearer", "env": "PAWL_CONNECTION_TEST"}`, nil, "Authorization", "Bearer from-env"},
	} {
		d.connect("psp", p.URL, c.auth, c.secret)
		d.until(d.create(), "DONE")
		if got := p.asked()[i].header.Get(c.header); got != c.want {
			t.Errorf("%s: %s: %q, want %q", c.auth, c.header, got, c.want)
		}
	}
}

// A connection whose secret cannot be had rests with a finding, and its tasks lose no attempt and no time.
func TestSecretThatCannotBeHad(t *testing.T) {
	t.Parallel()
	keys, err := seal.Parse(seal.NewKey())
	if err != nil {
		t.Fatal(err)
	}
	sealed := keys.Seal("s3cret", seal.Connection("default", "psp"))
	elsewhere := keys.Seal("s3cret", seal.Connection("default", "other"))
	broken := "a\nb"
	p := newProvider(t, ok)
	for finding, c := range map[string]struct {
		auth, ca string
		secret   *string
		keys     seal.Keys
	}{
		"which is not in PAWL_SECRET_KEY":                                            {`{"type": "bearer"}`, "", &sealed, seal.Keys{}},
		"the sealed secret is damaged, belongs to another row":                       {`{"type": "bearer"}`, "", &elsewhere, keys},
		"may not use the environment variable PAWL_SECRET":                           {`{"type": "bearer", "env": "PAWL_SECRET"}`, "", nil, keys},
		"the environment variable PAWL_CONNECTION_X is not set":                      {`{"type": "bearer", "env": "PAWL_CONNECTION_X"}`, "", nil, keys},
		"the secret cannot be sent: it must have 1 to 4096 visible ASCII characters": {`{"type": "bearer"}`, "", &broken, keys},
		"its tls.ca has no certificate that can be read":                             {`{"type": "none"}`, "rubbish", nil, keys},
	} {
		t.Run(finding, func(t *testing.T) {
			t.Parallel()
			d := newDesk(t, `"retry": {"max": 1, "base": "1ms", "cap": "1ms"},`, p.URL)
			d.connect("psp", p.URL, c.auth, c.secret, c.ca)
			var lines bounded.Lines
			d.run(func(i *invoke.Config) {
				i.Keys = c.keys
				i.Variables = variable.Policy{{Tenant: "default", Name: "PAWL_*"}}
				i.Logger = lines.Logger()
			})
			id := d.create()
			bounded.UntilSQL(t, d.pool, "select finding like '%' || $1 || '%' from pawl.connection", finding)
			if line := lines.Find(t, "a connection"); !strings.Contains(line, "a connection cannot be used, so its tasks wait") {
				t.Errorf("it logs %s", line)
			}
			if list := d.attempts(id); len(list) > 0 {
				t.Errorf("attempts: %q", list)
			}
			d.connect("psp", p.URL, `{"type": "none"}`, nil)
			d.until(id, "DONE")
		})
	}
}

// Tasks wait for a connection that there is not, which they and the log say, and go on when there is one.
func TestConnectionThatIsMissing(t *testing.T) {
	t.Parallel()
	p := newProvider(t, ok)
	d := newDesk(t, `"retry": {"max": 1, "base": "1ms", "cap": "1ms"},`, p.URL)
	bounded.Exec(t, d.pool, "select pawl.connection_delete('default', 'psp')")
	var lines bounded.Lines
	d.run(func(i *invoke.Config) { i.Logger = lines.Logger() })
	id := d.create()
	if line := lines.Find(t, "a connection"); !strings.Contains(line, "a connection cannot be used, so its tasks wait") || !strings.Contains(line, "there is no such connection") {
		t.Errorf("it logs %s", line)
	}
	const why = "select error from pawl.task_row where instance_id = $1"
	if got := bounded.Value[string](t, d.pool, why, id); got != "there is no connection psp" {
		t.Errorf("the task says %s", got)
	}
	if list := d.attempts(id); len(list) > 0 {
		t.Errorf("attempts: %q", list)
	}
	d.connect("psp", p.URL, `{"type": "none"}`, nil)
	d.until(id, "DONE")
	lines.Find(t, "a connection can be used again")
	if got := bounded.Value[*string](t, d.pool, why, id); got != nil {
		t.Errorf("the task, which is done, says %s", *got)
	}
}

// A connection's certificates are trusted for its service, and HTTP/2 is spoken.
func TestCertificate(t *testing.T) {
	t.Parallel()
	p := unstartedProvider(t, func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor != 2 {
			t.Errorf("the service is asked by %s", r.Proto)
		}
		ok(w, r)
	})
	p.EnableHTTP2 = true
	p.StartTLS()
	d := newDesk(t, "", p.URL)
	ca := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.Certificate().Raw}))
	d.connect("psp", p.URL, `{"type": "none"}`, nil, ca)
	d.run()
	d.until(d.create(), "DONE")
}
