package main_test

import (
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// What a file of the command line may import of this project, by the kind of its commands. A file that
// is not named here holds clients of the HTTP API, or what all commands share.
var (
	// public are the packages that every file may import: what a client of the API needs.
	public = []string{"fsm/definition", "httpapi/api"}
	// serving are the files of the commands that run the service. They may import everything.
	serving = []string{"auth.go", "serve.go", "dev.go", "invoke.go", "oidc.go", "sink.go", "telemetry.go", "web.go", "webhook.go", "workflow_scenario_service.go"}
	// database lists the files of the commands that open the database themselves, database.go, which
	// opens it for them, and error.go, which explains its errors. They may import everything but the
	// HTTP server.
	database = []string{"audit_purge.go", "database.go", "error.go", "instance_archive.go", "migrate.go", "outbox.go", "role.go", "secret.go", "tenant.go", "token.go", "workflow_migration.go"}
	// single are imports that one file has beyond its kind.
	single = map[string][]string{
		"main.go":  {"internal/bench"}, // The names of the measurements, for the help.
		"bench.go": {"internal/bench"},
	}
)

// TestClientsDoNotImportTheServer looks at each file: a command that is a client of the HTTP API uses
// nothing of the service but the types of its contract and the language of definitions.
func TestClientsDoNotImportTheServer(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	needed := map[string]bool{}
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") || slices.Contains(serving, file) {
			continue
		}
		for _, imported := range importsOf(t, file) {
			// Whoever imports the driver works on a database.
			local, ours := strings.CutPrefix(imported, module)
			driver := strings.HasPrefix(imported, "github.com/jackc/pgx/")
			switch {
			case !ours && !driver || slices.Contains(public, local):
			case slices.Contains(single[file], local):
				needed[file+" "+local] = true
			case slices.Contains(database, file) && local != "httpapi":
			default:
				t.Errorf("%s imports %s, which its kind of command must not", file, imported)
			}
		}
	}
	for file, imports := range single {
		for _, imported := range imports {
			if !needed[file+" "+imported] {
				t.Errorf("%s does not import %s: delete it from the list", file, imported)
			}
		}
	}
	for _, file := range slices.Concat(serving, database) {
		if _, err := os.Stat(file); err != nil {
			t.Errorf("the lists name a file that is missing: %v", err)
		}
	}
}

// importsOf returns the import paths of a file.
func importsOf(t *testing.T, file string) (paths []string) {
	t.Helper()
	parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
	if err != nil {
		t.Fatal(err)
	}
	for _, spec := range parsed.Imports {
		imported, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			t.Fatal(err)
		}
		paths = append(paths, imported)
	}
	return paths
}
