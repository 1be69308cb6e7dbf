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

// forbidden lists what a package, and the packages under it, must not import directly: other packages
// with those under them. A name with a $ behind it is that package alone.
var forbidden = map[string][]string{
	"db":         {module + "fsm", module + "httpapi", module + "outbox", module + "cmd"},
	"db/queries": {module + "fsm", module + "db/"},
	"fsm":        {module + "httpapi", module + "outbox", module + "cmd", "github.com/labstack/echo", "net/http"},
	// The rooms of fsm: it imports none of them but definition, and they do not import one another.
	"fsm$":             {module + "fsm/lifecycle", module + "fsm/live", module + "fsm/worker", module + "fsm/subscription"},
	"fsm/definition":   {module, "github.com/jackc/pgx"},
	"fsm/internal":     {module + "fsm$", module + "fsm/lifecycle", module + "fsm/live", module + "fsm/worker", module + "fsm/subscription"},
	"fsm/lifecycle":    {module + "fsm/live", module + "fsm/worker", module + "fsm/subscription"},
	"fsm/live":         {module + "fsm/lifecycle", module + "fsm/subscription"}, // The hub polls in the loop of fsm/worker.
	"fsm/worker":       {module + "fsm$", module + "fsm/lifecycle", module + "fsm/live", module + "fsm/subscription"},
	"fsm/subscription": {module + "fsm/lifecycle", module + "fsm/live", module + "fsm/worker"},
	"internal/address": {module, "github.com/jackc/pgx"},
	"httpapi":          {module + "db", module + "fsm/worker", module + "outbox", module + "cmd", "github.com/jackc/pgx"},
	"outbox":           {module + "httpapi", module + "cmd", "github.com/labstack/echo"},
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
	seen := map[string]bool{}
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
		for of, not := range forbidden {
			if !isOf(path, of) {
				continue
			}
			seen[of] = true
			for _, imported := range p.Imports {
				for _, other := range not {
					if isOf(imported, other) {
						t.Errorf("%s imports %s", path, imported)
					}
				}
			}
		}
	}
	for of := range forbidden {
		if !seen[of] {
			t.Errorf("there is no package %s", of)
		}
	}
}

// isOf says whether a package is the other one or under it, or is just that one if it has a $ behind it.
func isOf(path, other string) bool {
	if alone, exactly := strings.CutSuffix(other, "$"); exactly {
		return path == alone
	}
	other = strings.TrimSuffix(other, "/")
	return path == other || strings.HasPrefix(path, other+"/")
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
		case "httpapi/server.go", "httpapi/api.gen.go", "cmd/pawl/imports_test.go":
		default:
			t.Errorf("%s imports echo", file)
		}
	}
}
