package main_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
	"unicode"

	"github.com/pawl-fsm/pawl/db/dbtest"
)

// planted is what a client of the service may have put in a reason, a name or a payload, and what a server that is no
// pawl may answer, to those who read it on a terminal or in the log of a pipeline.
const planted = "x\x1b[2J\x1b]0;title\x07\r\u009b31m\x7f\u202e\u2066\n::error file=a::b\n \t::set-output name=a::b\n##[error]c ##vso[task]d\n##teamcity[e]\n::stop-commands::f"

// commandLine is a line that GitHub Actions, Azure Pipelines or TeamCity would obey.
var commandLine = regexp.MustCompile(`(?m)^\s*::|##(vso|teamcity)?\[`)

func checkVisible(t *testing.T, what, text string) {
	t.Helper()
	if at := strings.IndexFunc(text, func(r rune) bool {
		return r != '\n' && r != '\t' && (unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r))
	}); at >= 0 {
		t.Errorf("%s prints %q", what, text[max(0, at-20):at+1])
	}
	if lines := commandLine.FindAllString(text, -1); lines != nil {
		t.Errorf("%s prints %q in\n%s", what, lines, text)
	}
}

// Whatever a server answers, no command writes a character that a terminal obeys, or a line that a pipeline does.
func TestOutputIsOnlyShown(t *testing.T) {
	t.Parallel()
	text := jsonString(t, planted)
	item := fmt.Sprintf(`{"id": %[1]s, "workflow": %[1]s, "state": %[1]s, "status": %[1]s, "version": 1, "context": {"a": %[1]s}, "actions": [%[1]s],
		"business_key": %[1]s, "correlation_id": %[1]s, "next_timeout": {"event": %[1]s, "due_at": %[1]s, "last_error": %[1]s}, "name": %[1]s, "created_by": %[1]s,
		"created_at": %[1]s, "state_changed_at": %[1]s, "url": %[1]s, "filter": {"workflows": [%[1]s], "events": [%[1]s], "states": [%[1]s]}, "disabled_reason": %[1]s,
		"type": %[1]s, "last_error": %[1]s, "event": %[1]s, "from": %[1]s, "to": %[1]s, "actor": %[1]s, "reason": %[1]s, "kind": %[1]s, "at": %[1]s,
		"targets": [%[1]s], "payload_schema": {"a": %[1]s}, "definition": {"a": %[1]s}, "schema": {"a": %[1]s}, "secret": %[1]s,
		"base_url": %[1]s, "auth": {"type": %[1]s, "user": %[1]s, "env": %[1]s}, "timeout": %[1]s, "rests_until": %[1]s, "finding": %[1]s}`, text)
	problem := fmt.Sprintf(`{"status": 409, "code": %[1]s, "detail": %[1]s, "request_id": %[1]s, "allowed_events": [%[1]s], "guards": [%[1]s],
		"errors": [{"pointer": %[1]s, "detail": %[1]s}, {"parameter": %[1]s, "detail": %[1]s}]}`, text)
	answers := map[string]http.HandlerFunc{
		"an item": func(w http.ResponseWriter, r *http.Request) {
			switch {
			case strings.HasSuffix(r.URL.Path, "/diagram"):
				w.Header().Set("Content-Type", "text/vnd.mermaid")
				_, _ = w.Write([]byte(planted))
			case strings.HasSuffix(r.URL.Path, "/events"):
				w.Header().Set("Content-Type", "text/event-stream")
				_, _ = fmt.Fprintf(w, "id: 1\ndata: %s\n\n", strings.ReplaceAll(item, "\n", ""))
			case strings.HasSuffix(r.URL.Path, "/history"), strings.HasSuffix(r.URL.Path, "/actions"), r.Method == http.MethodGet && strings.Count(r.URL.Path, "/") == 2:
				w.Header().Set("Content-Type", "application/json")
				_, _ = fmt.Fprintf(w, `{"items": [%s, %[1]s], "next_cursor": null}`, item)
			default:
				w.Header().Set("Content-Type", "application/json")
				_, _ = w.Write([]byte(item))
			}
		},
		"a problem": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/problem+json")
			w.WriteHeader(http.StatusConflict)
			_, _ = w.Write([]byte(problem))
		},
		"what is not pawl's": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/html; charset=\u009b31m")
			w.WriteHeader(http.StatusBadRequest)
			_, _ = w.Write([]byte(planted))
		},
	}
	commands := [][]string{
		{"instance", "list"},
		{"instance", "get", "i"},
		{"instance", "history", "i"},
		{"instance", "events", "i"},
		{"instance", "create", "w"},
		{"instance", "fire", "i", "e"},
		{"instance", "migrate", "w", "--from", "1", "--to", "2"},
		{"workflow", "list"},
		{"workflow", "show", "w"},
		{"workflow", "diagram", "w"},
		{"workflow", "retire", "w", "1"},
		{"workflow", "apply", flight},
		{"workflow", "validate", flight},
		{"workflow", "validate", "--format", "json", flight},
		{"workflow", "test", flight},
		{"workflow", "backtest", "flight-booking", flight},
		{"schema", "list"},
		{"schema", "show", "s"},
		{"subscription", "list"},
		{"subscription", "get", "s"},
		{"subscription", "create", "--url", "https://a.example"},
		{"subscription", "rotate-secret", "s"},
		{"subscription", "test", "s"},
		{"subscription", "enable", "s"},
		{"subscription", "delete", "s"},
		{"connection", "list"},
		{"connection", "show", "c"},
		{"connection", "put", "c", "--base-url", "https://a.example"},
		{"connection", "delete", "c"},
		{"outbox", "deliveries"},
		{"outbox", "replay"},
	}
	for name, answer := range answers {
		server := httptest.NewServer(answer)
		t.Cleanup(server.Close)
		for _, command := range commands {
			for _, more := range [][]string{nil, {"--json"}} {
				stdout, stderr, _ := pawl(t, nil, append(append(command, "--server", server.URL), more...)...)
				checkVisible(t, fmt.Sprintf("pawl %v %v for %s", command, more, name), stdout+stderr)
			}
		}
	}
	// JSON is still the same JSON.
	server := httptest.NewServer(answers["an item"])
	t.Cleanup(server.Close)
	if got := (answer{body: mustPawl(t, nil, "instance", "get", "i", "--json", "--server", server.URL)}).member("state"); got != planted {
		t.Errorf("the state is %q", got)
	}
	// An item of a table stays in its line.
	if lines := strings.Count(mustPawl(t, nil, "instance", "list", "--server", server.URL), "\n"); lines != 3 {
		t.Errorf("a table of two items has %d lines", lines)
	}
	// The annotations of faults are commands, and what is within them is not.
	file := writeFile(t, "fault.yaml", "name: fault\ninitial: "+jsonString(t, planted)+"\nstates: {}\n")
	stdout, _, _ := pawl(t, nil, "workflow", "validate", "--format", "github", file)
	if n := len(regexp.MustCompile(`(?m)^::error file=`).FindAllString(stdout, -1)); n == 0 || n != strings.Count(stdout, "\n") {
		t.Errorf("the annotations are\n%s", stdout)
	}
	checkVisible(t, "an annotation", strings.ReplaceAll(stdout, "::", ""))
}

// What a caller has sent to the service reaches the log of a process only as text, too.
func TestLogIsOnlyShown(t *testing.T) {
	t.Parallel()
	p := start(t, []string{"DATABASE_URL=" + dbtest.NewDSN(t), "PAWL_LOG_LEVEL=debug"}, "serve", "--sink", "stdout:?from=start")
	mustPawl(t, nil, "workflow", "apply", "--server", p.url, flight)
	mustSend(t, http.StatusNotFound, http.MethodGet, p.url+"/%1b%5b2J%0a::error::a%c2%9b", "")
	mustSend(t, http.StatusCreated, http.MethodPost, p.url+create, `{"context": {"flight_id": `+jsonString(t, planted)+`, "price": 1}}`, "Idempotency-Key", "k")
	p.Match(t, regexp.MustCompile(`"flight_id":"x`))
	checkVisible(t, "the log", p.Output.String())
}

func jsonString(t testing.TB, text string) string {
	t.Helper()
	encoded, err := json.Marshal(text)
	if err != nil {
		t.Fatal(err)
	}
	return string(encoded)
}
