package invoke_test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/pawl-fsm/pawl/internal/bounded"
)

// What a provider does decides what becomes of a task: each row is a kind of answer, with what the definition says of
// repeating.
func TestOutcomes(t *testing.T) {
	t.Parallel()
	flood := func(status int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(status)
			for range 100 {
				_, _ = io.WriteString(w, strings.Repeat("x", 10000))
			}
		}
	}
	short := rawly("HTTP/1.1 200 OK\r\nContent-Length: 100\r\nContent-Type: application/json\r\n\r\n{\"id\"")
	for name, c := range map[string]struct {
		members  string
		handler  http.HandlerFunc
		state    string
		attempts []string
		body     any
	}{
		"success":             {"", ok, "DONE", []string{"call answered 200"}, map[string]any{"id": "c1"}},
		"no body":             {"", with(204, ""), "DONE", []string{"call answered 204"}, nil},
		"refusal":             {retried + keyed, with(402, `{"why": "broke"}`), "FAILED", []string{"call answered 402"}, map[string]any{"why": "broke"}},
		"conflict":            {retried + keyed, with(409, "1"), "FAILED", []string{"call answered 409"}, 1.0},
		"redirect":            {retried + keyed, with(302, "", "Location", "/elsewhere"), "FAILED", []string{"call answered 302"}, nil},
		"success by guard":    {`"success": "$.body.id == \"c1\"",`, with(404, `{"id": "c1"}`), "DONE", []string{"call answered 404"}, map[string]any{"id": "c1"}},
		"no success by guard": {`"success": "$.body.id == \"c2\"",`, ok, "FAILED", []string{"call answered 200"}, map[string]any{"id": "c1"}},

		"503 is no attempt":   {`"retry": {"max": 1, "base": "1ms", "cap": "1ms"},`, inTurn(with(503, ""), with(503, ""), ok), "DONE", []string{"call answered 503", "call answered 503", "call answered 200"}, map[string]any{"id": "c1"}},
		"503 that ends early": {`"retry": {"max": 1, "base": "1ms", "cap": "1ms"},`, inTurn(rawly("HTTP/1.1 503 No\r\nContent-Length: 9\r\n\r\n"), ok), "DONE", []string{"call answered 503 the connection was closed before there was an answer", "call answered 200"}, map[string]any{"id": "c1"}},
		"500 without a key":   {retried, with(500, `"no"`), "UNKNOWN", []string{"call answered 500"}, "no"},
		"500 with a key":      {retried + keyed, inTurn(with(500, ""), ok), "DONE", []string{"call answered 500", "call answered 200"}, map[string]any{"id": "c1"}},
		"500 for ever":        {retried + keyed, with(500, ""), "UNKNOWN", []string{"call answered 500", "call answered 500", "call answered 500"}, nil},

		"reset without a key": {retried, reset, "UNKNOWN", []string{"call lost the connection was closed before there was an answer"}, nil},
		"reset with a key":    {retried + keyed, inTurn(reset, ok), "DONE", []string{"call lost the connection was closed before there was an answer", "call answered 200"}, map[string]any{"id": "c1"}},
		"no HTTP":             {retried, rawly("220 mail ESMTP\r\n"), "UNKNOWN", []string{"call lost the connection failed, or the answer was no HTTP"}, nil},
		"half an answer":      {retried, short, "UNKNOWN", []string{"call lost the answer ended early: the connection was closed before there was an answer"}, nil},
		"half, with a key":    {retried + keyed, inTurn(short, ok), "DONE", []string{"call lost the answer ended early: the connection was closed before there was an answer", "call answered 200"}, map[string]any{"id": "c1"}},

		"flood of success": {retried, flood(200), "DONE", []string{"call answered 200 too-large"}, nil},
		"flood of refusal": {retried, flood(400), "FAILED", []string{"call answered 400 too-large"}, nil},
		"a text":           {"", with(200, "yes", "Content-Type", "text/plain"), "DONE", []string{"call answered 200"}, "yes"},
		"JSON as a text":   {"", with(200, `{"id": 1}`, "Content-Type", "text/plain"), "DONE", []string{"call answered 200"}, `{"id": 1}`},
		"a kind of JSON":   {"", with(200, `{"id": 1}`, "Content-Type", "application/problem+json; charset=utf-8"), "DONE", []string{"call answered 200"}, map[string]any{"id": 1.0}},
		"rubbish":          {"", with(200, `{"id": `), "DONE", []string{"call answered 200"}, `{"id": `},
		"bytes":            {"", with(200, "a\x00\xffb"), "DONE", []string{"call answered 200"}, "a\uFFFD\uFFFDb"},
		"NUL in JSON":      {"", with(200, `{"a\u0000": "b\u0000", "c": "\ud800"}`), "DONE", []string{"call answered 200"}, map[string]any{"a\uFFFD": "b\uFFFD", "c": "\uFFFD"}},
		"a large number":   {"", with(200, `[1e999999999999999999999]`), "DONE", []string{"call answered 200"}, `[1e999999999999999999999]`},
		"a small number":   {"", with(200, `[1e-00000000099999]`), "DONE", []string{"call answered 200"}, `[1e-00000000099999]`},
		"deep JSON":        {"", with(200, strings.Repeat("[", 59)+strings.Repeat("]", 59)), "DONE", []string{"call answered 200"}, nested(59)},
		"deeper JSON":      {"", with(200, strings.Repeat("[", 20000)+strings.Repeat("]", 20000)), "DONE", []string{"call answered 200"}, strings.Repeat("[", 20000) + strings.Repeat("]", 20000)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newProvider(t, c.handler)
			d := newDesk(t, c.members, p.URL)
			d.run()
			id := d.create()
			got := d.until(id, c.state)
			if list := d.attempts(id); !slices.Equal(list, c.attempts) {
				t.Errorf("attempts: %q\nwant:     %q", list, c.attempts)
			}
			if fmt.Sprint(got.Body) != fmt.Sprint(c.body) {
				t.Errorf("the body is %v, want %v", got.Body, c.body)
			}
			if len(p.asked()) != len(c.attempts) {
				t.Errorf("the provider was asked %d times in %d attempts", len(p.asked()), len(c.attempts))
			}
			for _, r := range p.asked() {
				if want := d.task(id).String(); strings.Contains(c.members, "idempotency") && r.key != want {
					t.Errorf("an attempt has the key %q, want %s", r.key, want)
				}
			}
		})
	}
}

// nested returns lists in lists.
func nested(n int) any {
	list := []any{}
	for range n - 1 {
		list = []any{list}
	}
	return list
}

// A provider that is reset before it has read anything may have got the request, for all that the caller knows.
func TestResetBeforeReading(t *testing.T) {
	t.Parallel()
	for members, want := range map[string]string{retried: "UNKNOWN", retried + keyed: "DONE"} {
		p := unstartedProvider(t, ok)
		_ = p.Listener.Close()
		p.Listener = newResetListener(t, 1)
		p.Start()
		d := newDesk(t, members, p.URL)
		d.run()
		id := d.create()
		d.until(id, want)
		if list := d.attempts(id); list[0] != "call lost the connection was closed before there was an answer" {
			t.Errorf("attempts: %q", list)
		}
	}
}

// While nothing can be sent, a task is tried again, whatever its definition says of repeating: nothing can have happened.
func TestNothingWasSent(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := "http://" + listener.Addr().String()
	_ = listener.Close()
	secret := unstartedProvider(t, ok)
	secret.StartTLS()
	plain := newProvider(t, func(http.ResponseWriter, *http.Request) { t.Error("a service was asked that does not speak TLS") })
	for base, want := range map[string]string{
		closed:                   "call refused the connection was refused",
		"http://a.invalid":       "call refused the host's name does not resolve",
		"http://169.254.169.254": "call refused the host has an address that must not be connected to",
		secret.URL:               "call refused the endpoint's certificate is signed by an unknown authority",
		strings.Replace(plain.URL, "http://", "https://", 1): "call refused the endpoint does not speak TLS",
	} {
		t.Run(want, func(t *testing.T) {
			t.Parallel()
			d := newDesk(t, `"retry": {"max": 1, "base": "1ms", "cap": "1ms"},`, base)
			d.run()
			id := d.create()
			bounded.UntilSQL(t, d.pool, "select count(*) > 2 from pawl.task_attempt where result = 'refused'")
			if got := bounded.Value[string](t, d.pool, "select status from pawl.task"); got != "pending" && got != "sent" {
				t.Errorf("the task is %s", got)
			}
			if list := d.attempts(id); list[0] != want || list[1] != want {
				t.Errorf("attempts: %q, want %q", list, want)
			}
			p := newProvider(t, ok)
			d.connect("psp", p.URL, `{"type": "none"}`, nil)
			d.until(id, "DONE")
		})
	}
}
