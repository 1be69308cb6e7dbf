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

	"fsm":                   {"db/queries", "db/schema", "db/session", "fsm/definition", "fsm/internal/database", "fsm/internal/gate", "internal/address"},
	"fsm/definition":        {"fsm/internal/gate"},
	"fsm/internal/database": {"db/queries", "db/session", "fsm/internal/gate"},
	"fsm/internal/gate":     {},
	"fsm/internal/final":    {"db/queries", "fsm/internal/database"},
	"fsm/lifecycle":         {"db/queries", "db/session", "fsm", "fsm/definition", "fsm/internal/database", "fsm/internal/final", "fsm/internal/gate"},
	"fsm/live":              {"db/queries", "db/session", "fsm", "fsm/internal/database", "fsm/worker"}, // The hub polls in the worker's loop.
	"fsm/subscription":      {"db/queries", "fsm", "fsm/internal/database", "internal/address"},
	"fsm/worker":            {"db/queries", "db/session", "fsm/internal/database", "fsm/internal/final"},

	"httpapi":     {"fsm", "fsm/definition", "fsm/lifecycle", "fsm/live", "fsm/subscription", "httpapi/api"},
	"httpapi/api": {"fsm"},

	"outbox":          {"db/queries", "db/session", "fsm"},
	"outbox/dispatch": {"internal/address"},
	"outbox/sink":     {"outbox"},
	"outbox/webhook":  {"db/queries", "db/session", "fsm", "fsm/subscription", "internal/address", "outbox", "outbox/dispatch"},

	"internal/address":   {},
	"internal/bench":     {"db", "db/localpg", "fsm/live", "outbox"},
	"internal/matrix":    {"db/localpg"},
	"internal/migration": {"db", "db/localpg", "db/schema"},

	"internal/torture":       {"db/localpg", "internal/torture/check"},
	"internal/torture/check": {},

	"examples/document-processing": {},
	"examples/flight-booking":      {},
	"examples/webhook-receiver":    {"db"},

	"cmd/pawl": {
		"db", "db/localpg", "db/schema", "db/session", "examples/flight-booking", "fsm", "fsm/definition", "fsm/lifecycle", "fsm/live", "fsm/worker",
		"httpapi", "httpapi/api", "internal/bench", "outbox", "outbox/sink", "outbox/webhook",
	},

	// For tests only.
	"db/dbtest":         {"db", "db/localpg", "internal/bounded"},
	"docs":              {},
	"examples/story":    {"fsm", "httpapi", "internal/bounded"},
	"fsm/fsmtest":       {"db", "db/dbtest", "fsm", "fsm/lifecycle", "internal/bounded"},
	"internal/bounded":  {"db/queries"},
	"outbox/outboxtest": {"db/dbtest", "db/queries", "fsm", "internal/bounded", "outbox"},
}

// foreign lists what a package, and the packages under it, must not import of others.
var foreign = map[string][]string{
	"fsm":             {"github.com/labstack/echo", "net/http"},
	"fsm/definition":  {"github.com/jackc/pgx"},
	"httpapi":         {"github.com/jackc/pgx"},
	"httpapi/api":     {"github.com/labstack/echo", "net/http"},
	"internal/bench":  {"github.com/alecthomas/kong"},
	"outbox":          {"github.com/labstack/echo"},
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
