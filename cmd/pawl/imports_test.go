package main_test

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
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

	"httpapi/api":    {module + "httpapi", "github.com/labstack/echo", "net/http"},
	"internal/bench": {module + "httpapi", module + "cmd", "github.com/alecthomas/kong"},
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
	seen := 0
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
	if seen < 4 {
		t.Errorf("only %d packages were looked at", seen)
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
