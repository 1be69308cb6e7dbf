package definition_test

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pawl-fsm/pawl/fsm/definition"
	"github.com/pawl-fsm/pawl/fsm/fsmtest"
)

var update = flag.Bool("update", false, "write the golden files")

// nasty has what means something to the languages of diagrams, wherever a definition may
// have it.
const nasty = `{
  "name": "nasty", "initial": "direction-TB", "ttl": {"after": "90m", "target": "end", "sliding": true}, "cancel": "a_b",
  "states": {
    "direction-TB": {"on": {
      "state": [
        {"target": "a-b", "guard": "$.payload.a == \"x; y: \\\"{z}\\\" & <b>&amp;</b> #35; %% \\n\" && $.context.\"$$x$$\" == '*c*'"},
        {"target": "a.b", "guard": "exists($.context.list[*] ? (@._a_ >= 1))\n  && $.payload.way == \"direction TB\"\r\n"},
        "a_b"
      ],
      "note.left-of": "direction-TB"
    }, "after": {"90s": {"target": "end", "guard": "$[0](1) == \"--> end\""}, "1d": "end"}},
    "a-b": {"protected": true, "on": {"go": "a.b"}}, "a.b": {"on": {"go": "a_b"}}, "a_b": {"on": {"default": "end"}},
    "end": {"type": "final", "outcome": "failed"}
  }
}`

// support has what a real process has: timers of its compound states, a pause, finals within, patterns, invariants.
const support = `{
  "name": "support", "description": "Tickets: \"paused\" while the customer is asked.", "initial": "OPEN",
  "invariant": {"absent": "$.context.broken"},
  "states": {
    "OPEN": {
      "description": "Somebody works on it.", "initial": "TRIAGE", "done": [{"guard": {"equal": ["$.context.level", 2]}, "target": "PAUSED"}, "CLOSED"],
      "invariant": "$.context.level > 0",
      "after": [{"in": "4h", "target": "CLOSED", "description": "Nobody answered."}, {"at": "$.context.due_at", "assign": {"late": true}}],
      "every": {"in": "1d", "assign": {"reminders": "$.context.reminders + 1"}},
      "on": {"ask": "PAUSED", "*": {"description": "Kept; for the record.", "assign": {"last": "$.event"}}, "note.*": {"guard": {"in": ["$.payload.kind", ["a", "b"]]}, "assign": {"notes": {"$append": ["$.context.notes", "$.payload.text"]}}}},
      "states": {
        "TRIAGE": {"on": {"assign": "WORK"}},
        "WORK": {"on": {"solve": "SOLVED", "start": {"rearm": true}}, "after": {"1mo": {"target": "TRIAGE"}}},
        "SOLVED": {"type": "final"}
      }
    },
    "PAUSED": {"on": {"answer": {"target": "OPEN", "resume": "timers"}, "reopen": {"target": "OPEN", "resume": true}}},
    "CLOSED": {"type": "final", "description": "Over & done."}
  }
}`

var supportPath = []definition.Visit{
	step(1, "created", "", "", "OPEN.TRIAGE"),
	step(2, "transition", "assign", "OPEN.TRIAGE", "OPEN.WORK"),
	step(3, "transition", "note.add", "OPEN.WORK", "OPEN.WORK"),
	step(4, "timeout", "every:24h@OPEN", "OPEN.WORK", "OPEN.WORK"),
	step(5, "transition", "ask", "OPEN.WORK", "PAUSED"),
	step(6, "transition", "answer", "PAUSED", "OPEN.WORK"),
	step(7, "transition", "solve", "OPEN.WORK", "OPEN.SOLVED"),
	step(8, "transition", "done", "OPEN.SOLVED", "PAUSED"),
	step(9, "transition", "reopen", "PAUSED", "OPEN.TRIAGE"),
	step(10, "transition", "noted", "OPEN.TRIAGE", "OPEN.TRIAGE"),
	step(11, "timeout", "after:4h@OPEN", "OPEN.TRIAGE", "CLOSED"),
}

var tripPath = []definition.Visit{
	step(1, "created", "", "", "OPEN"),
	step(2, "transition", "book", "OPEN", "HOTEL"),
	step(3, "result", "done:hotel", "HOTEL", "FLIGHT"),
	step(4, "transition", "booked", "FLIGHT", "DONE"),
	step(5, "transition", "revoke", "DONE", "UNDOING"),
	step(6, "compensated", "compensated:booked", "UNDOING", "UNDOING"),
	step(7, "compensated", "compensated:hotel", "UNDOING", "UNDOING"),
	step(8, "result", "done:compensate", "UNDOING", "CANCELLED"),
}

func parse(t testing.TB, text string) *definition.Definition {
	t.Helper()
	d, err := definition.Parse([]byte(text), "", definition.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// step is a step of a path; an empty event or state stands for none.
func step(version int64, kind, event, from, to string) definition.Visit {
	s := definition.Visit{Version: version, Kind: kind, To: to}
	if event != "" {
		s.Event = &event
	}
	if from != "" {
		s.From = &from
	}
	return s
}

var flightPath = []definition.Visit{
	step(1, "created", "", "", "QUOTED"),
	step(2, "transition", "reserve", "QUOTED", "RESERVED"),
	step(3, "transition", "pay", "RESERVED", "PAYMENT_MISMATCH"),
	step(4, "expired", "ttl", "PAYMENT_MISMATCH", "EXPIRED"),
}

var shopPath = []definition.Visit{
	step(1, "created", "", "", "ORDER.CART"),
	step(2, "transition", "checkout", "ORDER.CART", "ORDER.PAYMENT.CHECK"),
	step(3, "transition", "", "ORDER.PAYMENT.CHECK", "DONE"),
}

var nastyPath = []definition.Visit{
	step(1, "created", "", "", "gone"), // In an older version.
	step(2, "transition", "go", "gone", "gone"),
	step(3, "migrated", "", "gone", "direction-TB"),
	step(4, "transition", "note.left-of", "direction-TB", "direction-TB"),
	step(5, "transition", "note.left-of", "direction-TB", "direction-TB"),
	step(6, "transition", "note.left-of", "direction-TB", "direction-TB"),
	step(7, "transition", "note.left-of", "direction-TB", "direction-TB"),
	step(8, "forced", "", "direction-TB", "a-b"),
	step(9, "transition", "go", "a-b", "a.b"),
	step(10, "transition", "old", "a.b", "direction-TB"),
	step(11, "forced", "", "direction-TB", "a-b"),
	step(12, "forced", "go", "a-b", "a.b"),
	step(13, "forced", "", "a.b", "direction-TB"),
	step(14, "cancelled", "", "direction-TB", "a_b"),
	step(15, "forced", "", "a_b", "direction-TB"),
	step(16, "timeout", "after:1m30s", "direction-TB", "end"),
}

func TestDiagram(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		d      *definition.Definition
		path   []definition.Visit
		format definition.DiagramFormat
	}{
		{"flight-booking.mmd", parse(t, fsmtest.FlightBooking), nil, definition.Mermaid},
		{"flight-booking.dot", parse(t, fsmtest.FlightBooking), nil, definition.DOT},
		{"flight-booking-path.mmd", parse(t, fsmtest.FlightBooking), flightPath, definition.Mermaid},
		{"flight-booking-path.dot", parse(t, fsmtest.FlightBooking), flightPath, definition.DOT},
		{"shop-path.mmd", parse(t, fsmtest.Shop), shopPath, definition.Mermaid},
		{"shop-path.dot", parse(t, fsmtest.Shop), shopPath, definition.DOT},
		{"support.mmd", parse(t, support), nil, definition.Mermaid},
		{"support.dot", parse(t, support), nil, definition.DOT},
		{"support-path.mmd", parse(t, support), supportPath, definition.Mermaid},
		{"support-path.dot", parse(t, support), supportPath, definition.DOT},
		{"trip.mmd", parse(t, fsmtest.Trip), nil, definition.Mermaid},
		{"trip.dot", parse(t, fsmtest.Trip), nil, definition.DOT},
		{"trip-path.mmd", parse(t, fsmtest.Trip), tripPath, definition.Mermaid},
		{"trip-path.dot", parse(t, fsmtest.Trip), tripPath, definition.DOT},
		{"nasty.mmd", parse(t, nasty), nil, definition.Mermaid},
		{"nasty.dot", parse(t, nasty), nil, definition.DOT},
		{"nasty-path.mmd", parse(t, nasty), nastyPath, definition.Mermaid},
		{"nasty-path.dot", parse(t, nasty), nastyPath, definition.DOT},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			var got string
			for range 5 { // Maps have no order.
				again, err := c.d.Diagram(c.format, c.path)
				if err != nil {
					t.Fatal(err)
				}
				if got != "" && again != got {
					t.Fatalf("one definition has two diagrams:\n%s", cmp.Diff(got, again))
				}
				got = again
			}
			file := filepath.Join("testdata", c.name)
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("%s:\n%s", file, diff)
			}
			if c.format == definition.Mermaid {
				checkMermaid(t, got)
			} else {
				checkDOT(t, got)
			}
		})
	}
}

// checkMermaid looks for what would end a label, or begin something else in it, as
// stateDiagram.jison of Mermaid reads it.
func checkMermaid(t *testing.T, text string) {
	t.Helper()
	for line := range strings.Lines(text) {
		_, label, found := strings.Cut(strings.TrimSuffix(line, "\n"), ": ")
		if !found || strings.Contains(line, "classDef") {
			continue
		}
		for i, r := range label {
			switch {
			case r == ';' && !strings.Contains(label[:i], "#"), strings.ContainsRune("\":{}%&<>\\`*\t", r):
				t.Errorf("%q is in the label of %s", r, line)
			}
		}
		if strings.Contains(strings.ToLower(label), "direction tb") || strings.Contains(label, "$$") {
			t.Errorf("the label is a statement of its own: %s", line)
		}
	}
}

// checkDOT reads quoted strings as Graphviz does, and looks for what is outside of them and
// no attribute.
func checkDOT(t *testing.T, text string) {
	t.Helper()
	for line := range strings.Lines(text) {
		quoted := false
		for i := 0; i < len(line); i++ {
			switch {
			case quoted && line[i] == '\\':
				i++
			case line[i] == '"':
				quoted = !quoted
			case !quoted && strings.IndexByte("$<?'&:", line[i]) >= 0:
				t.Errorf("%q is outside of quotes: %s", line[i], line)
			}
		}
		if quoted {
			t.Errorf("a quote is not closed: %s", line)
		}
	}
}

func TestDiagramFormat(t *testing.T) {
	t.Parallel()
	if _, err := parse(t, nasty).Diagram("svg", nil); err == nil || !strings.Contains(err.Error(), `"svg"`) || definition.DiagramFormat("svg").Known() {
		t.Errorf("an unknown format is %v", err)
	}
}

// A step without a kind marks where the instance is, and no edge.
func TestDiagramOfACutPath(t *testing.T) {
	t.Parallel()
	text, err := parse(t, fsmtest.FlightBooking).Diagram(definition.Mermaid, []definition.Visit{flightPath[0], {To: "PAID"}})
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(text, "class s_PAID current") || strings.Count(text, "✓") != 1 {
		t.Error(text)
	}
}
