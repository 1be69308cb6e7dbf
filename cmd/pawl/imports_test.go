package main_test

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/pawl-fsm/pawl/"

// forbidden lists what a package, and what is below it, must not import directly.
var forbidden = map[string][]string{
	"db":         {module + "fsm", module + "httpapi", module + "outbox", module + "cmd"},
	"db/queries": {module + "fsm", module + "db/"},
	"fsm":        {module + "httpapi", module + "outbox", module + "cmd", "github.com/labstack/echo", "net/http"},
	"httpapi":    {module + "db", module + "outbox", module + "cmd", "github.com/jackc/pgx"},
	"outbox":     {module + "httpapi", module + "cmd", "github.com/labstack/echo"},

	"httpapi/api":     {module + "httpapi", "github.com/labstack/echo", "net/http"},
	"internal/bench":  {module + "httpapi", module + "cmd", "github.com/alecthomas/kong"},
	"outbox/dispatch": {"github.com/jackc/pgx"},
	"outbox/sink":     {"github.com/jackc/pgx"},
}

// allowed lists all packages of pawl that a package may import directly, where that is few.
var allowed = map[string][]string{
	"internal/address": {},
	"outbox":           {"db/queries", "fsm"},
	"outbox/dispatch":  {"internal/address"},
	"outbox/sink":      {"outbox"},
	"outbox/webhook":   {"db/queries", "fsm", "internal/address", "outbox", "outbox/dispatch"},
}

// TestImports keeps dependencies pointing one way: cmd → httpapi, outbox → fsm → db/queries.
func TestImports(t *testing.T) {
	t.Parallel()
	list := exec.Command("go", "list", "-json=ImportPath,Imports", module+"...")
	list.Dir = "../.."
	out, err := list.Output()
	if err != nil {
		t.Fatal(err)
	}
	seen, found := 0, 0
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
		if only, few := allowed[path]; few {
			found++
			for _, imported := range p.Imports {
				if own, ours := strings.CutPrefix(imported, module); ours && !slices.Contains(only, own) {
					t.Errorf("%s imports %s", path, imported)
				}
			}
		}
		for above, not := range forbidden {
			if path != above && !strings.HasPrefix(path, above+"/") {
				continue
			}
			seen++
			for _, imported := range p.Imports {
				for _, prefix := range not {
					if imported == strings.TrimSuffix(prefix, "/") || strings.HasPrefix(imported, strings.TrimSuffix(prefix, "/")+"/") {
						t.Errorf("%s imports %s", path, imported)
					}
				}
			}
		}
	}
	if seen < 4 || found != len(allowed) {
		t.Errorf("only %d packages were looked at, and %d of %d", seen, found, len(allowed))
	}
}

// TestEchoStaysInOnePlace keeps a move away from echo small.
func TestEchoStaysInOnePlace(t *testing.T) {
	t.Parallel()
	grep := exec.Command("git", "grep", "-l", `"github.com/labstack/echo`, "--", "*.go")
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
