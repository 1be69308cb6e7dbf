package main_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

const parcels = `name: parcels
initial: NEW
context_schema: { properties: { to: { $ref: 'pawl:address' } } }
states:
  NEW: { on: { move: MOVED } }
  MOVED: { type: final }
`

// A folder of schemas is registered by a service, and copied into a migration for a database that has none.
func TestSchemas(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	write := func(name, text string) string {
		file := filepath.Join(folder, name)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	address := write("address.yaml", "properties: { zip: { $ref: 'pawl:zip' } }\n")
	zip := write("zip.json", `{"type": "string", "minLength": 5}`)
	file := writeFile(t, "parcels.yaml", parcels)

	// Without a service.
	mustPawl(t, nil, "workflow", "validate", file)
	mustPawl(t, nil, "workflow", "validate", "--schemas", folder, file)
	misspelled := writeFile(t, "misspelled.yaml", strings.Replace(parcels, "pawl:address", "pawl:addrezz", 1))
	if _, stderr, code := pawl(t, nil, "workflow", "validate", "--schemas", folder, misspelled); code != 1 ||
		!strings.Contains(stderr, `misspelled.yaml:3:39: /context_schema/properties/to/$ref: there is no schema "addrezz"; did you mean "address"?`) {
		t.Errorf("exit code %d: %s", code, stderr)
	}
	if _, stderr, code := pawl(t, nil, "workflow", "migration", file); code != 1 || !strings.Contains(stderr, "refers to pawl:address: name the folder") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
	migration := mustPawl(t, nil, "workflow", "migration", "--schemas", folder, file)

	// With one. A schema is registered before those that refer to it.
	dsn := dbtest.NewDSN(t)
	env := []string{"PAWL_SERVER=" + start(t, []string{"DATABASE_URL=" + dsn}, "serve").url}
	if out := mustPawl(t, env, "workflow", "validate", "--schemas", folder, file); !strings.HasSuffix(out, "parcels.yaml: valid\n") {
		t.Error(out)
	}
	put := func(files ...string) string { return mustPawl(t, env, append([]string{"schema", "put"}, files...)...) }
	if out := put(address, zip); out != "zip: version 1 registered\naddress: version 1 registered\n" {
		t.Error(out)
	}
	if out := put(address, zip); out != "zip: version 1, unchanged\naddress: version 1, unchanged\n" {
		t.Error(out)
	}
	write("zip.json", `{"type": "string", "minLength": 6}`)
	if out := put(zip); out != "zip: version 2 registered\n" {
		t.Error(out)
	}
	if out := mustPawl(t, env, "schema", "list"); !strings.Contains(out, "\naddress  1 ") || !strings.Contains(out, "\nzip      2 ") {
		t.Error(out)
	}
	for version, want := range map[string]string{"1": `"minLength": 5`, "2": `"minLength": 6`} {
		if out := mustPawl(t, env, "schema", "show", "zip", "--schema-version", version); !strings.Contains(out, want) {
			t.Error(out)
		}
	}
	if out := mustPawl(t, env, "schema", "show", "zip"); !strings.Contains(out, `"minLength": 6`) {
		t.Error(out)
	}
	faulty := write("faulty.yaml", "type: object\nproperties: { zip: { $ref: 'pawl:zap' } }\n")
	if _, stderr, code := pawl(t, env, "schema", "put", faulty); code != 1 || !strings.Contains(stderr, `faulty.yaml:2:22: /properties/zip/$ref: there is no schema "zap"; did you mean "zip"?`) {
		t.Errorf("exit code %d: %s", code, stderr)
	}

	// The migration has the content that it was made of, whatever the service has meanwhile.
	conn := dialDSN(t, dsn)
	up, _, _ := strings.Cut(migration, "-- +goose Down")
	bounded.Exec(t, conn, up)
	if out := mustPawl(t, env, "workflow", "show", "parcels"); !strings.Contains(out, `"minLength": 5`) {
		t.Error(out)
	}
	if out := mustPawl(t, env, "workflow", "apply", file); out != "parcels: version 2 registered\n" {
		t.Error(out)
	}
	if out := mustPawl(t, env, "workflow", "apply", file); out != "parcels: version 2, unchanged\n" {
		t.Error(out)
	}
	if out := mustPawl(t, nil, "workflow", "migration", "--against", dsn, "--schemas", folder, file); !strings.Contains(out, "parcels: version 2 is this definition already") {
		t.Error(out)
	}
}
