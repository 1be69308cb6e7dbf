package main_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/pawl-fsm/pawl/db/dbtest"
)

// TestClient uses the commands that are clients of the HTTP API.
func TestClient(t *testing.T) {
	t.Parallel()
	p := start(t, []string{"DATABASE_URL=" + dbtest.NewDSN(t)}, "serve")
	env := []string{"PAWL_SERVER=" + p.url, "PAWL_ACTOR=carla"}

	if out := mustPawl(t, []string{"PAWL_SERVER="}, "workflow", "validate", flight); !strings.Contains(out, "but for its guards") {
		t.Errorf("validate without a server says %s", out)
	}
	faulty := filepath.Join(t.TempDir(), "faulty.yaml")
	text := "name: faulty\ninitial: A\nstates:\n  A: { on: { go: { target: NOWHERE, guard: '$.a ==' } }, after: { soon: B } }\n  B: {}\n"
	if err := os.WriteFile(faulty, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	_, stderr, code := pawl(t, env, "workflow", "validate", flight, faulty)
	for _, want := range []string{"/states/A/on/go/target", "/states/A/after/soon", "/states/B", "/states: no state is final"} {
		if code != 1 || !strings.Contains(stderr, want) {
			t.Errorf("exit code %d, no %q in %s", code, want, stderr)
		}
	}
	badGuard := filepath.Join(t.TempDir(), "guard.json")
	text = `{"name": "guard", "initial": "A", "states": {"A": {"on": {"go": {"target": "B", "guard": "$.a =="}}}, "B": {"type": "final"}}}`
	if err := os.WriteFile(badGuard, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, stderr, code := pawl(t, env, "workflow", "validate", badGuard); code != 1 || !strings.Contains(stderr, "/states/A/on/go/guard: is no SQL/JSON path") {
		t.Errorf("exit code %d: %s", code, stderr)
	}

	if out := mustPawl(t, env, "workflow", "apply", flight); !strings.Contains(out, "version 1 registered") {
		t.Error(out)
	}
	if out := mustPawl(t, env, "workflow", "apply", flight); !strings.Contains(out, "version 1, unchanged") {
		t.Error(out)
	}
	if out := mustPawl(t, env, "workflow", "list"); !strings.Contains(out, "flight-booking  1") {
		t.Error(out)
	}
	shown := mustPawl(t, env, "workflow", "show", "flight-booking")
	again := filepath.Join(t.TempDir(), "shown.json")
	if err := os.WriteFile(again, []byte(shown), 0o600); err != nil {
		t.Fatal(err)
	}
	if out := mustPawl(t, env, "workflow", "apply", again); !strings.Contains(out, "version 1, unchanged") {
		t.Errorf("what show prints is another version: %s", out)
	}

	var created struct {
		ID      string
		Context json.RawMessage
	}
	out := mustPawl(t, env, "instance", "create", "flight-booking", "--json",
		"--context", "{flight_id: LH454, price: 9007199254740993}", "--business-key", "order-7", "--correlation-id", "trip-3", "--key", "k1")
	if err := json.Unmarshal([]byte(out), &created); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(created.Context), "9007199254740993") {
		t.Errorf("digits are lost: %s", created.Context)
	}
	if _, stderr, code := pawl(t, env, "instance", "fire", created.ID, "reserve", "--payload", "{price: 1}"); code != 1 ||
		!strings.Contains(stderr, "409 guard-rejected") || !strings.Contains(stderr, "it accepts: cancel, reserve") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
	if out := mustPawl(t, env, "instance", "fire", created.ID, "reserve", "--dry-run", "--payload", "{price: 9007199254740993}"); !strings.Contains(out, "RESERVED") {
		t.Error(out)
	}
	if out := mustPawl(t, env, "instance", "fire", created.ID, "reserve", "--if-match", "1", "--payload", "{price: 9007199254740993}", "--reason", "by phone"); !strings.Contains(out, "version        2\n") {
		t.Error(out)
	}
	out = mustPawl(t, env, "instance", "get", created.ID)
	if !regexp.MustCompile(`(?s)state +RESERVED \(active\)
since +\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z
.*business key +order-7
correlation id +trip-3
deadline +\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z by after:15m
$`).MatchString(out) {
		t.Error(out)
	}
	if out := mustPawl(t, env, "instance", "get", created.ID, "--at-version", "1"); !strings.Contains(out, "QUOTED (active)") {
		t.Error(out)
	}
	if out := mustPawl(t, env, "instance", "history", created.ID); !strings.Contains(out, "carla") || !strings.Contains(out, "by phone") {
		t.Error(out)
	}
	if out := mustPawl(t, env, "instance", "accepted-events", created.ID, "--evaluate"); !strings.Contains(out, "pay") {
		t.Error(out)
	}
	byKey := []string{"instance", "fire-by-key", "flight-booking", "order/8", "reserve", "--payload", "{price: 2}"}
	if _, stderr, code := pawl(t, env, byKey...); code != 1 || !strings.Contains(stderr, "404 instance-not-found") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
	byKey = append(byKey, "--start", "{context: {flight_id: LH8, price: 2}}", "--key", "k8")
	if out := mustPawl(t, env, append(byKey, "--dry-run")...); !strings.Contains(out, "RESERVED") {
		t.Error(out)
	}
	for range 2 { // The second time it is a replay.
		if out := mustPawl(t, env, byKey...); !regexp.MustCompile(`(?s)RESERVED.*version +2\n.*business key +order/8\n`).MatchString(out) {
			t.Error(out)
		}
	}
	if out := mustPawl(t, env, "instance", "fire-by-key", "flight-booking", "order/8", "cancel", "--if-match", "2"); !strings.Contains(out, "CANCELLED") {
		t.Error(out)
	}
	for i := range 3 {
		mustPawl(t, env, "instance", "create", "flight-booking", "--context", fmt.Sprintf("{flight_id: LH%d, price: 1}", i))
	}
	var listed []struct{ ID string }
	if err := json.Unmarshal([]byte(mustPawl(t, env, "instance", "list", "--limit", "0", "--json")), &listed); err != nil || len(listed) != 5 {
		t.Errorf("%d instances are listed (%v), want 5", len(listed), err)
	}
	if out := mustPawl(t, env, "instance", "list", "--state", "RESERVED"); !strings.Contains(out, created.ID) || strings.Count(out, "\n") != 2 {
		t.Error(out)
	}
	out = mustPawl(t, env, "instance", "list", "--state=RESERVED,PAID", "--state=QUOTED", "--status=active", "--sort=created_at", "--limit=1")
	if !strings.Contains(out, created.ID) {
		t.Error(out)
	}
	if out := mustPawl(t, env, "instance", "list", "--timer=failing"); strings.Count(out, "\n") != 1 {
		t.Error(out)
	}
	if _, stderr, code := pawl(t, env, "instance", "list", "--state=RESERVD"); code != 1 || !strings.Contains(stderr, `did you mean "RESERVED"?`) {
		t.Errorf("exit code %d: %s", code, stderr)
	}
	if _, stderr, code := pawl(t, []string{"PAWL_SERVER=http://127.0.0.1:1"}, "instance", "get", created.ID); code != 1 || stderr == "" {
		t.Errorf("exit code %d without a service: %s", code, stderr)
	}
}

// Times are printed as the service writes them, always with six decimals, so that they line up in a
// column.
func TestTimesKeepTheirDecimals(t *testing.T) {
	t.Parallel()
	service := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		const step = `{"version": 1, "kind": "created", "to": "A", "status": "completed", "actor": "x", "at": "2026-03-01T09:30:00.120000Z"}`
		if strings.HasSuffix(r.URL.Path, "/events") {
			w.Header().Set("Content-Type", "text/event-stream")
			_, _ = fmt.Fprintf(w, "id: 1\nevent: created\ndata: %s\n\n", step)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = fmt.Fprintf(w, `{"items": [%s], "next_cursor": null}`, step)
	}))
	t.Cleanup(service.Close)
	for _, command := range []string{"history", "watch"} {
		if out := mustPawl(t, []string{"PAWL_SERVER=" + service.URL}, "instance", command, "x"); !strings.Contains(out, " 2026-03-01T09:30:00.120000Z ") &&
			!strings.HasPrefix(out, "2026-03-01T09:30:00.120000Z ") {
			t.Errorf("%s prints %s", command, out)
		}
	}
}
