package main_test

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// wantLine fails unless a command ends with a code, prints nothing on standard output, and prints one
// line on standard error that has all of the words. It returns the line.
func wantLine(t *testing.T, env []string, code int, words []string, args ...string) string {
	t.Helper()
	stdout, stderr, got := pawl(t, env, args...)
	if got != code || stdout != "" || !strings.HasPrefix(stderr, "pawl: ") || strings.Count(stderr, "\n") != 1 {
		t.Errorf("pawl %q: exit code %d, want %d and one line: %s%s", args, got, code, stdout, stderr)
	}
	for _, word := range words {
		if !strings.Contains(stderr, word) {
			t.Errorf("pawl %q: there is no %s in %s", args, word, stderr)
		}
	}
	return stderr
}

// An empty argument, which a script passes for a variable that is not set, is refused.
func TestEmptyArguments(t *testing.T) {
	t.Parallel()
	var asked atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write([]byte(`{"items": []}`))
	}))
	t.Cleanup(server.Close)
	env := []string{"PAWL_SERVER=" + server.URL, "DATABASE_URL=postgres://127.0.0.1:1/x"}
	for _, c := range []struct {
		what string
		args []string
	}{
		{"<id>", []string{"outbox", "replay", ""}},
		{"<id>", []string{"outbox", "replay", "--json", ""}},
		{"--subscription", []string{"outbox", "replay", "--subscription", ""}},
		{"--subscription", []string{"outbox", "replay", "--subscription="}},
		{"--subscription", []string{"outbox", "deliveries", "--subscription", ""}},
		{"<consumer>", []string{"outbox", "delete", ""}},
		{"--workflow", []string{"subscription", "create", "http://example.com", "--workflow", ""}},
		{"--workflow", []string{"subscription", "create", "http://example.com", "--workflow="}},
		{"--workflow", []string{"subscription", "create", "http://example.com", "--workflow", "a", "--workflow", ""}},
		{"--workflow", []string{"subscription", "create", "http://example.com", "--workflow", "a,,b"}},
		{"--event", []string{"subscription", "create", "http://example.com", "--event", "a,"}},
		{"--state", []string{"subscription", "create", "http://example.com", "--state", ","}},
		{"<url>", []string{"subscription", "create", ""}},
		{"<id>", []string{"subscription", "delete", ""}},
		{"<id>", []string{"instance", "get", ""}},
		{"<event>", []string{"instance", "fire", "x", ""}},
		{"--key", []string{"instance", "fire", "x", "go", "--key", ""}},
		{"--context", []string{"instance", "create", "flight-booking", "--context", ""}},
		{"--state", []string{"instance", "list", "--state", ""}},
		{"--workflow", []string{"instance", "archive", "--older-than", "1d", "--workflow", ""}},
		{"--tenant", []string{"instance", "archive", "--older-than", "1d", "--tenant", ""}},
		{"--output", []string{"instance", "archive", "--older-than", "1d", "--output", ""}},
		{"<name>", []string{"workflow", "show", ""}},
		{"--state", []string{"instance", "migrate", "w", "--from=1", "--to=2", "--state", ""}},
		{"--map", []string{"instance", "migrate", "w", "--from=1", "--to=2", "--map", ""}},
		{"--role", []string{"migrate", "grants", "--role", ""}},
		{"--sink", []string{"serve", "--sink", ""}},
	} {
		wantLine(t, env, 2, []string{c.what, "empty"}, c.args...)
	}
	if n := asked.Load(); n > 0 {
		t.Errorf("%d requests were sent", n)
	}
	// An environment variable that is set to nothing counts as not given.
	mustPawl(t, append(env, "PAWL_TOKEN=", "PAWL_ACTOR="), "subscription", "list")
	mustPawl(t, append(env, "PAWL_SUBSCRIPTION_SECRET="), "subscription", "create", "http://example.com", "--workflow", "a,b")
	mustPawl(t, append(env, "PAWL_SINKS=", "PAWL_WEBHOOK_SECRET="), "migrate", "print")
}

// databaseCommands are commands that open a database themselves and do not serve.
var databaseCommands = [][]string{
	{"migrate", "set", "--context-limit", "100"},
	{"migrate", "grants", "--role", "pawl", "--apply"},
	{"outbox", "status"},
	{"outbox", "delete", "nobody"},
	{"instance", "archive", "--older-than", "1d"},
	{"workflow", "migration", flight, "--against"},
}

// with returns a command with the address of a database.
func with(dsn string, args []string) []string {
	if args[len(args)-1] == "--against" {
		return append(slices.Clone(args), dsn)
	}
	return append(slices.Clone(args), "--database-url", dsn)
}

// If the database cannot be reached, the error is one line that says so once.
func TestDatabaseThatIsAway(t *testing.T) {
	t.Parallel()
	commands := append(slices.Clone(databaseCommands),
		[]string{"migrate", "up"}, []string{"migrate", "down"}, []string{"migrate", "status"}, []string{"dev"}, []string{"serve", "--listen", "127.0.0.1:0"}, []string{"bench"})
	for _, args := range commands {
		for dsn, word := range map[string]string{"postgres://u:hunter2@127.0.0.1:1/x": "refused", "postgres://u:hunter2@nowhere.invalid/x": "lookup nowhere.invalid"} {
			line := wantLine(t, nil, 1, nil, with(dsn, args)...)
			if strings.Count(line, word) != 1 || strings.Contains(line, "\t") || strings.Contains(line, "hunter2") {
				t.Errorf("pawl %v: %s", args, line)
			}
		}
	}
}

// If the schema or a privilege is missing, the error says what to do.
func TestDatabaseThatRefuses(t *testing.T) {
	t.Parallel()
	empty := dbtest.Empty(t)
	for _, args := range databaseCommands {
		wantLine(t, nil, 1, []string{"run 'pawl migrate up'"}, with(empty, args)...)
	}
	dsn := dbtest.NewDSN(t)
	service := serviceRole(t, dsn)
	for _, args := range [][]string{{"outbox", "delete", "nobody"}, {"migrate", "set", "--context-limit", "100"}} {
		line := wantLine(t, nil, 1, []string{"permission denied", "needs the schema's owner"}, with(service, args)...)
		if strings.Contains(line, "SQLSTATE") || strings.Contains(line, "ERROR") {
			t.Error(line)
		}
	}
	conn := dialDSN(t, dsn)
	u, err := url.Parse(service)
	if err != nil {
		t.Fatal(err)
	}
	bounded.Exec(t, conn, "revoke execute on function pawl.consumer_status from "+u.User.Username())
	for _, args := range fitCommands {
		wantLine(t, nil, 1, []string{"lacks the privilege execute on pawl.consumer_status", "pawl migrate grants"}, with(service, args)...)
	}
}

// A flag that is no time is refused before a request is sent.
func TestTimes(t *testing.T) {
	t.Parallel()
	away := []string{"PAWL_SERVER=http://127.0.0.1:1"}
	for _, flags := range []string{"--after=yesterday", "--after=2026-01-01", "--before=2026-01-01T10:00:00"} {
		wantLine(t, away, 2, []string{flags[:strings.Index(flags, "=")], "RFC 3339", "2026-03-01T09:30:00Z"}, "outbox", "replay", flags)
	}
	for _, args := range [][]string{{"get", "x", "--at=now"}, {"list", "--created-after=yesterday"}, {"list", "--created-before=2026-01-01"}} {
		wantLine(t, away, 2, []string{"RFC 3339", "2026-03-01T09:30:00Z"}, append([]string{"instance"}, args...)...)
	}
	wantLine(t, away, 1, []string{"refused"}, "outbox", "replay", "--after", "2026-01-01T10:00:00.5+01:00")
}

// clientCommands are clients of the HTTP API.
var clientCommands = [][]string{
	{"subscription", "list"},
	{"subscription", "get", "x"},
	{"subscription", "create", "http://example.com"},
	{"outbox", "deliveries"},
	{"outbox", "replay"},
	{"instance", "list"},
	{"instance", "history", "x"},
	{"instance", "accepted-events", "x"},
	{"instance", "get", "x"},
	{"instance", "watch", "x"},
	{"instance", "create", "flight-booking"},
	{"workflow", "list"},
	{"workflow", "show", "flight-booking"},
	{"workflow", "diagram", "flight-booking"},
	{"workflow", "retire", "flight-booking", "1"},
}

// If a request is refused, only the reason is printed.
func TestFailedRequests(t *testing.T) {
	t.Parallel()
	problem := `{"status": 401, "code": "unauthenticated", "detail": "who is there?", "request_id": "r"}`
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/problem+json")
		w.WriteHeader(http.StatusUnauthorized)
		_, _ = w.Write([]byte(problem))
	}))
	t.Cleanup(server.Close)
	for _, args := range clientCommands {
		wantLine(t, nil, 1, []string{"401 unauthenticated: who is there?"}, append(slices.Clone(args), "--server", server.URL)...)
		if args[1] != "diagram" {
			wantLine(t, nil, 1, []string{"401 unauthenticated: who is there?"}, append(slices.Clone(args), "--server", server.URL, "--json")...)
		}
	}
	for _, address := range []string{"nonsense", "127.0.0.1:8080", "ftp://127.0.0.1", "http://", "http:/127.0.0.1"} {
		for _, args := range append(slices.Clone(clientCommands), []string{"workflow", "validate", flight}, []string{"workflow", "diff", "a", "b"}) {
			wantLine(t, nil, 2, []string{"--server", "http://127.0.0.1:8080"}, append(slices.Clone(args), "--server", address)...)
		}
		mustPawl(t, []string{"PAWL_SERVER=" + address}, "migrate", "print") // It sends no request.
	}
}

// An answer that is not pawl's is reported as such.
func TestServerThatIsNotPawl(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		status          int
		kind, body, say string
	}{
		{http.StatusOK, "text/html; charset=utf-8", "<html>hello</html>", "200 OK with text/html"},
		{http.StatusOK, "", "", "200 OK"},
		{http.StatusNotFound, "text/plain", "404 page not found\n", "404 Not Found with text/plain"},
		{http.StatusBadRequest, "application/json", `{"error": "no"}`, "400 Bad Request with application/json"},
	} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header()["Content-Type"] = nil
			if c.kind != "" {
				w.Header().Set("Content-Type", c.kind)
			}
			w.WriteHeader(c.status)
			_, _ = w.Write([]byte(c.body))
		}))
		t.Cleanup(server.Close)
		for _, args := range clientCommands {
			wantLine(t, nil, 1, []string{server.URL + " does not answer as pawl does: " + c.say}, append(slices.Clone(args), "--server", server.URL)...)
		}
		if stdout, stderr, code := pawl(t, []string{"PAWL_SERVER=" + server.URL}, "workflow", "validate", flight); code != 1 || stdout != "" ||
			!strings.Contains(stderr, server.URL+" does not answer") || strings.Count(stderr, "\n") != 1 {
			t.Errorf("exit code %d: %s%s", code, stdout, stderr)
		}
		wantLine(t, []string{"PAWL_SERVER=" + server.URL}, 2, []string{server.URL}, "workflow", "diff", "a", "b")
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write([]byte("{}"))
	}))
	t.Cleanup(server.Close)
	wantLine(t, nil, 1, []string{server.URL + " does not answer as pawl does: 200 OK with application/json"}, "instance", "watch", "x", "--server", server.URL)
}

// An answer of a proxy with 503 is no problem of pawl's, and is tried again all the same.
func TestProxyThatIsBusy(t *testing.T) {
	t.Parallel()
	var asked atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if asked.Add(1) == 1 {
			http.Error(w, "busy", http.StatusServiceUnavailable)
			return
		}
		w.Header().Set("Content-Type", "application/json; charset=utf-8")
		_, _ = w.Write([]byte(`{"items": []}`))
	}))
	t.Cleanup(server.Close)
	mustPawl(t, nil, "subscription", "list", "--server", server.URL)
}

// The message for a bad secret advises to leave it out only where a new one is made then.
func TestBadSecrets(t *testing.T) {
	t.Parallel()
	p := start(t, []string{"DATABASE_URL=" + dbtest.NewDSN(t), "PAWL_WEBHOOK_ALLOW_PRIVATE=true"}, "serve")
	env := []string{"PAWL_SERVER=" + p.url}
	mustPawl(t, env, "workflow", "apply", flight)
	const must, leave = "must be whsec_ and 24 to 64 bytes in base64", "leave it out"
	for _, c := range []struct {
		code, leaves int
		args         []string
	}{
		{1, 1, []string{"subscription", "create", "http://127.0.0.1:1/", "--secret=x"}},
		{1, 0, []string{"instance", "create", "flight-booking", "--callback-url=http://127.0.0.1:1/", "--callback-secret=x"}},
		{2, 0, []string{"serve", "--database-url=postgres://127.0.0.1:1/x", "--webhook-secret=x"}},
	} {
		_, stderr, code := pawl(t, env, c.args...)
		if code != c.code || !strings.Contains(stderr, must) || strings.Count(stderr, leave) != c.leaves {
			t.Errorf("pawl %v: exit code %d: %s", c.args, code, stderr)
		}
	}
}
