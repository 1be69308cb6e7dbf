package main_test

import (
	"encoding/json"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/pawl-fsm/pawl/internal/bounded"
)

const module = "github.com/pawl-fsm/pawl/"

// allowed lists the packages of pawl that each package may import directly, so that arrows point one way:
// cmd → httpapi, outbox → fsm → db/queries. A package that is missing here fails the test: its place is
// decided when it is made.
var allowed = map[string][]string{
	"db":         {"db/schema", "db/session"},
	"db/schema":  {},
	"db/queries": {},
	"db/session": {"db/queries"},
	"db/localpg": {},

	"fsm":                   {"db/queries", "db/schema", "db/session", "fsm/definition", "fsm/internal/database", "fsm/internal/gate", "internal/address", "internal/seal", "internal/variable"},
	"fsm/definition":        {"fsm/internal/gate"},
	"fsm/access":            {"db/queries", "fsm", "fsm/internal/database"},
	"fsm/internal/database": {"db/queries", "db/session", "fsm/internal/gate"},
	"fsm/internal/gate":     {},
	"fsm/internal/final":    {"db/queries", "fsm/internal/database"},
	"fsm/bulk":              {"db/queries", "db/session", "fsm", "fsm/definition", "fsm/internal/database", "fsm/worker"},
	"fsm/connection":        {"db/queries", "fsm", "fsm/definition", "fsm/internal/database", "internal/seal"},
	"fsm/diagnosis":         {"db/queries", "fsm", "fsm/finding", "fsm/internal/database", "fsm/task"}, // It shows their kinds.
	"fsm/finding":           {"db/queries", "fsm", "fsm/internal/database"},
	"fsm/lifecycle":         {"db/queries", "db/session", "fsm", "fsm/definition", "fsm/internal/database", "fsm/internal/final", "fsm/internal/gate"},
	"fsm/live":              {"db/queries", "db/session", "fsm", "fsm/internal/database", "fsm/worker"}, // The hub polls in the worker's loop.
	"fsm/rotation":          {"db/queries", "fsm", "internal/seal"},
	"fsm/subscription":      {"db/queries", "fsm", "fsm/internal/database", "internal/address", "internal/seal"},
	"fsm/task":              {"db/queries", "fsm", "fsm/internal/database", "fsm/live"}, // The hub wakes the claims that wait.
	"fsm/worker":            {"db/queries", "db/session", "fsm/internal/database", "fsm/internal/final"},

	"httpapi":     {"fsm", "fsm/access", "fsm/bulk", "fsm/connection", "fsm/definition", "fsm/diagnosis", "fsm/finding", "fsm/lifecycle", "fsm/live", "fsm/subscription", "fsm/task", "httpapi/api", "insight"},
	"httpapi/api": {"fsm"},

	"insight": {"db/queries", "db/session", "fsm", "outbox"},

	"outbox":          {"db/queries", "db/session", "fsm", "fsm/access", "fsm/finding"},
	"outbox/dispatch": {"internal/address"},
	"outbox/invoke":   {"db/queries", "db/session", "fsm", "fsm/connection", "fsm/worker", "internal/address", "internal/seal", "internal/variable", "outbox", "outbox/dispatch"},
	"outbox/sink":     {"outbox"},
	"outbox/webhook":  {"db/queries", "db/session", "fsm", "fsm/subscription", "internal/address", "internal/seal", "outbox", "outbox/dispatch"},

	"internal/address":   {},
	"internal/bench":     {"db", "db/localpg", "db/queries", "fsm", "fsm/finding", "fsm/lifecycle", "fsm/live", "insight", "outbox"},
	"internal/dashboard": {"db/localpg"},
	"internal/matrix":    {"db/localpg"},
	"internal/seal":      {},
	"internal/migration": {"db", "db/localpg", "db/schema"},
	"internal/oidc":      {},
	"internal/telemetry": {"fsm", "outbox"},
	"internal/variable":  {},

	"internal/torture":       {"db/localpg", "internal/torture/check"},
	"internal/torture/check": {},

	"examples/document-processing": {},
	"examples/flight-booking":      {},
	"examples/export-job":          {"examples/worker/loop"},
	"examples/payment":             {},
	"examples/trip-saga":           {},
	"examples/webhook-receiver":    {"db"},
	"examples/worker":              {"examples/worker/loop"},
	"examples/worker/loop":         {},

	"cmd/pawl": {
		"db", "db/localpg", "db/schema", "db/session", "examples/flight-booking", "fsm", "fsm/access", "fsm/bulk", "fsm/definition", "fsm/finding", "fsm/lifecycle", "fsm/live", "fsm/rotation", "fsm/worker",
		"httpapi", "httpapi/api", "internal/bench", "internal/oidc", "internal/telemetry", "insight", "outbox", "outbox/invoke", "outbox/sink", "outbox/webhook",
	},

	// For tests only.
	"db/dbtest":         {"db", "db/localpg", "db/queries", "internal/bounded"},
	"docs":              {},
	"examples/story":    {"fsm", "httpapi", "internal/bounded"},
	"fsm/fsmtest":       {"db", "db/dbtest", "fsm", "fsm/lifecycle", "internal/bounded"},
	"internal/bounded":  {"db/queries"},
	"outbox/outboxtest": {"db/dbtest", "db/queries", "fsm", "fsm/access", "internal/bounded", "outbox"},

	"internal/telemetry/telemetrytest": {},
}

// foreign lists what a package, and the packages under it, must not import of others.
var foreign = map[string][]string{
	"db":              {"go.opentelemetry.io"},
	"fsm":             {"github.com/labstack/echo", "go.opentelemetry.io", "net/http"},
	"fsm/definition":  {"github.com/jackc/pgx"},
	"httpapi":         {"github.com/jackc/pgx", "go.opentelemetry.io"},
	"insight":         {"github.com/labstack/echo", "go.opentelemetry.io", "net/http"},
	"httpapi/api":     {"github.com/labstack/echo", "net/http"},
	"internal/bench":  {"github.com/alecthomas/kong"},
	"outbox":          {"github.com/labstack/echo", "go.opentelemetry.io"},
	"outbox/dispatch": {"github.com/jackc/pgx"},
	"outbox/sink":     {"github.com/jackc/pgx"},
}

func TestImports(t *testing.T) {
	t.Parallel()
	list := bounded.Command(t, "go", "list", "-json=ImportPath,Imports", module+"...")
	list.Dir = "../.."
	out, err := list.Output()
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	// bounded: the decoder comes to the end of the text
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p struct {
			ImportPath string
			Imports    []string
		}
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		path := strings.TrimPrefix(p.ImportPath, module)
		seen[path] = true
		only, known := allowed[path]
		if !known {
			t.Errorf("%s has no place: say in the list above what it may import", path)
		}
		for _, imported := range p.Imports {
			if own, ours := strings.CutPrefix(imported, module); ours && !slices.Contains(only, own) {
				t.Errorf("%s imports %s", path, own)
			}
			for of, not := range foreign {
				if (path == of || strings.HasPrefix(path, of+"/")) && slices.ContainsFunc(not, func(other string) bool {
					return imported == other || strings.HasPrefix(imported, other+"/")
				}) {
					t.Errorf("%s imports %s", path, imported)
				}
			}
		}
	}
	for path := range allowed {
		if !seen[path] {
			t.Errorf("there is no package %s", path)
		}
	}
}

// TestServersOfTestsStayOut keeps the servers that tests run out of the program.
func TestServersOfTestsStayOut(t *testing.T) {
	t.Parallel()
	list := bounded.Command(t, "go", "list", "-deps", ".")
	out, err := list.Output()
	if err != nil {
		t.Fatal(err)
	}
	for imported := range strings.FieldsSeq(string(out)) {
		for _, server := range []string{"github.com/zitadel/", "github.com/twmb/franz-go/pkg/kfake", "github.com/Shopify/toxiproxy", "github.com/testcontainers/"} {
			if strings.HasPrefix(imported, server) {
				t.Errorf("the program has %s", imported)
			}
		}
	}
	if !strings.Contains(string(out), "github.com/coreos/go-oidc/") {
		t.Error("the list is not that of the program")
	}
}

// TestEchoStaysInOnePlace keeps a move away from echo small.
func TestEchoStaysInOnePlace(t *testing.T) {
	t.Parallel()
	grep := bounded.Command(t, "git", "grep", "-l", `"github.com/labstack/echo`, "--", "*.go")
	grep.Dir = "../.."
	out, err := grep.Output()
	if err != nil {
		t.Skipf("git cannot tell: %v", err)
	}
	for file := range strings.FieldsSeq(string(out)) {
		switch file {
		case "httpapi/server.go", "httpapi/server.gen.go", "cmd/pawl/imports_test.go":
		default:
			t.Errorf("%s imports echo", file)
		}
	}
}
