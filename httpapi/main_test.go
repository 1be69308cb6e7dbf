package httpapi_test

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.uber.org/goleak"

	"github.com/pawl-fsm/pawl/db"
	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/live"
	"github.com/pawl-fsm/pawl/httpapi"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

var update = flag.Bool("update", false, "write the golden files")

func TestMain(m *testing.M) {
	flag.Parse()
	for _, diagram := range []string{"text/vnd.mermaid", "text/vnd.graphviz", "text/event-stream"} {
		openapi3filter.RegisterBodyDecoder(diagram, openapi3filter.PlainBodyDecoder)
	}
	goleak.VerifyTestMain(m, dbtest.IgnoreServer(), goleak.Cleanup(dbtest.Exit))
}

// An api is a client of a running service. It checks every answer against the contract; see
// check.
type api struct {
	t      testing.TB
	url    string
	client *http.Client
	// pool connects as the owner of the schema, to set the clock and to prepare data.
	pool *pgxpool.Pool
}

// A setup configures a service. The zero value is the default service.
type setup struct {
	http httpapi.Config
	fsm  fsm.Config
	db   db.Config
	// wrap, if set, wraps the handler.
	wrap func(http.Handler) http.Handler
}

// start starts a service on a database of its own.
func start(t testing.TB) *api {
	t.Helper()
	return startWith(t, setup{})
}

func startWith(t testing.TB, s setup) *api {
	t.Helper()
	pool := dbtest.New(t)
	a := serve(t, dbtest.DSN(pool), s)
	a.pool = pool
	return a
}

// another starts a second service on the same database, with a pool of its own.
func (a *api) another(s setup) *api {
	a.t.Helper()
	b := serve(a.t, dbtest.DSN(a.pool), s)
	b.pool = a.pool
	return b
}

func serve(t testing.TB, dsn string, s setup) *api {
	t.Helper()
	pool, err := db.Open(t.Context(), dsn, s.db)
	if err != nil {
		t.Fatal(err)
	}
	for _, token := range s.http.Tokens {
		if token.Tenant != "" && token.Tenant != fsm.Deployment {
			bounded.Exec(t, pool, "select pawl.tenant_put($1)", token.Tenant)
		}
	}
	notifier := live.NewNotifier(pool, nil)
	s.fsm.Moved = notifier.Moved
	s.fsm.UnverifiedActors = len(s.http.Tokens) == 0 && !s.http.DatabaseTokens // As pawl serve does.
	service := fsm.New(pool, s.fsm)
	t.Cleanup(func() {
		service.Close()
		notifier.Close()
		pool.Close()
	})
	return serveHandler(t, httpapi.ServicesOf(service, nil), s)
}

func serveHandler(t testing.TB, services httpapi.Services, s setup) *api {
	t.Helper()
	config := s.http
	if config.Logger == nil {
		config.Logger = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelError}))
	}
	if config.Metrics == nil {
		config.Metrics = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
			_, _ = io.WriteString(w, "pawl_requests_total 1\n")
		})
	}
	handler, err := httpapi.New(services, config)
	if err != nil {
		t.Fatal(err)
	}
	if s.wrap != nil {
		handler = s.wrap(handler)
	}
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	return &api{t: t, url: server.URL, client: server.Client()}
}

// on returns a client of the same service that reports to a subtest.
func (a *api) on(t testing.TB) *api {
	b := *a
	b.t = t
	return &b
}

// An answer is a response with its body.
type answer struct {
	t       testing.TB
	request string // For failure messages.
	status  int
	header  http.Header
	body    []byte
}

// do sends a request. headers are pairs of name and value. A body is sent unchanged, as
// application/json unless the headers have another Content-Type.
func (a *api) do(method, target, body string, headers ...string) answer {
	a.t.Helper()
	r, err := a.try(method, target, body, headers...)
	if err != nil {
		a.t.Fatalf("%s %s: %v", method, target, err)
	}
	return r
}

// try is like do, but returns an error if there is no answer.
func (a *api) try(method, target, body string, headers ...string) (answer, error) {
	a.t.Helper()
	var content io.Reader
	if body != "" {
		content = strings.NewReader(body)
	}
	ctx, cancel := context.WithTimeout(a.t.Context(), bounded.Limit)
	defer cancel()
	in, err := http.NewRequestWithContext(ctx, method, a.url, content)
	if err != nil {
		return answer{}, err
	}
	// Opaque sends the target unchanged, where http.NewRequest would normalise it.
	in.URL = &url.URL{Scheme: in.URL.Scheme, Host: in.URL.Host, Opaque: target}
	if strings.HasPrefix(target, "//") {
		in.URL.Opaque = a.url + target
	}
	given := false
	for i := 0; i < len(headers); i += 2 {
		if headers[i] == "Content-Type" {
			if given = true; headers[i+1] == "" {
				continue
			}
		}
		in.Header[headers[i]] = append(in.Header[headers[i]], headers[i+1])
	}
	if body != "" && !given {
		in.Header.Set("Content-Type", "application/json")
	}
	out, err := a.client.Do(in)
	if err != nil {
		return answer{}, err
	}
	defer out.Body.Close()
	got, err := io.ReadAll(out.Body)
	if err != nil {
		return answer{}, err
	}
	r := answer{t: a.t, request: method + " " + target, status: out.StatusCode, header: out.Header, body: got}
	a.check(method, target, r)
	return r, nil
}

func (a *api) get(target string, headers ...string) answer {
	a.t.Helper()
	return a.do(http.MethodGet, target, "", headers...)
}

var keys atomic.Int64

// newKey returns an idempotency key that is not used elsewhere in the suite.
func newKey() string { return fmt.Sprintf("key-%d", keys.Add(1)) }

// register registers a definition under the name that it contains.
func (a *api) register(definition string) {
	a.t.Helper()
	var document struct{ Name string }
	if err := json.Unmarshal([]byte(definition), &document); err != nil {
		a.t.Fatal(err)
	}
	// A machine that runs all tests at once may be too slow for the first call: the answer says to try again.
	bounded.Until(a.t, "the registration", func() answer { return a.do(http.MethodPut, "/v1/workflows/"+document.Name, definition) },
		func(r answer) bool { return r.status != http.StatusServiceUnavailable }).want(http.StatusCreated)
}

// post sends a POST with an idempotency key, or without one for an empty key.
func (a *api) post(target, key, body string, headers ...string) answer {
	a.t.Helper()
	if key != "" {
		headers = append(headers, "Idempotency-Key", key)
	}
	return a.do(http.MethodPost, target, body, headers...)
}

// create creates an instance with a new key and returns its id.
func (a *api) create(workflow, body string, headers ...string) string {
	a.t.Helper()
	return a.post("/v1/workflows/"+workflow+"/instances", newKey(), body, headers...).want(http.StatusCreated).at("id")
}

// fire fires an event with a new key.
func (a *api) fire(id, event, body string, headers ...string) answer {
	a.t.Helper()
	return a.post("/v1/instances/"+id+"/actions/"+event, newKey(), body, headers...)
}

// count returns the number of rows of a table.
func (a *api) count(table string) int {
	a.t.Helper()
	return bounded.Value[int](a.t, a.pool, "select count(*) from "+table)
}

// want stops the test unless the answer has the status and, if given, the problem code.
func (r answer) want(status int, code ...string) answer {
	r.t.Helper()
	if r.status != status || len(code) > 0 && r.at("code") != code[0] {
		r.t.Fatalf("%s: got %d, want %d %v\n%s", r.request, r.status, status, code, r.body)
	}
	return r
}

// wantHeader compares a header. The value "" means that the header must be absent.
func (r answer) wantHeader(name, value string) answer {
	r.t.Helper()
	if got := strings.Join(r.header.Values(name), ", "); got != value {
		r.t.Errorf("%s: %s is %q, want %q", r.request, name, got, value)
	}
	return r
}

// wantAt compares values of the body. pairs are path, value, path, value, …
func (r answer) wantAt(pairs ...string) answer {
	r.t.Helper()
	for i := 0; i < len(pairs); i += 2 {
		if got := r.at(pairs[i]); got != pairs[i+1] {
			r.t.Errorf("%s: %s is %s, want %s\n%s", r.request, pairs[i], got, pairs[i+1], r.body)
		}
	}
	return r
}

const missing = "(missing)"

// at returns the value at a path of the body, such as items.0.state: a string unchanged, any
// other value as JSON.
func (r answer) at(path string) string {
	r.t.Helper()
	return r.textAt(r.json(), path)
}

func (r answer) textAt(v any, path string) string {
	r.t.Helper()
	for name := range strings.SplitSeq(path, ".") {
		switch parent := v.(type) {
		case map[string]any:
			child, known := parent[name]
			if !known {
				return missing
			}
			v = child
		case []any:
			i, err := strconv.Atoi(name)
			if err != nil || i >= len(parent) {
				return missing
			}
			v = parent[i]
		default:
			return missing
		}
	}
	if text, ok := v.(string); ok {
		return text
	}
	return jsonText(r.t, v)
}

// json decodes the body and keeps the digits of its numbers.
func (r answer) json() (v any) {
	r.t.Helper()
	d := json.NewDecoder(bytes.NewReader(r.body))
	d.UseNumber()
	if err := d.Decode(&v); err != nil {
		r.t.Fatalf("%s: %v in %q", r.request, err, r.body)
	}
	return v
}

// each returns the value at a path of each element of a list.
func (r answer) each(list, path string) []string {
	r.t.Helper()
	body, _ := r.json().(map[string]any)
	items, ok := body[list].([]any)
	if !ok {
		r.t.Fatalf("%s: there is no list %s in %s", r.request, list, r.body)
	}
	values := make([]string, len(items))
	for i, item := range items {
		values[i] = r.textAt(item, path)
	}
	return values
}
