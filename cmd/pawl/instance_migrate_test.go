package main_test

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pawl-fsm/pawl/db/dbtest"
)

// Live instances are migrated where their state exists, and then their old version can be retired.
func TestMigrateAndRetire(t *testing.T) {
	t.Parallel()
	p := start(t, []string{"DATABASE_URL=" + dbtest.NewDSN(t)}, "serve")
	definition, err := os.ReadFile(flight)
	if err != nil {
		t.Fatal(err)
	}
	second := filepath.Join(t.TempDir(), "second.yaml")
	if err := os.WriteFile(second, []byte(strings.ReplaceAll(string(definition), "QUOTED", "OFFERED")), 0o600); err != nil {
		t.Fatal(err)
	}
	env := []string{"PAWL_SERVER=" + p.url, "PAWL_ACTOR=operator"}
	mustPawl(t, env, "workflow", "apply", flight)
	a := mustSend(t, http.StatusCreated, http.MethodPost, p.url+create, quote, "Idempotency-Key", "c")
	mustPawl(t, env, "workflow", "apply", second)

	retire, migrate := []string{"workflow", "retire", "flight-booking", "1"}, []string{"instance", "migrate", "flight-booking", "--from=1", "--to=2"}
	if _, stderr, code := pawl(t, env, retire...); code != 1 || !strings.Contains(stderr, "409 workflow-conflict") {
		t.Errorf("a version in use: exit code %d: %s", code, stderr)
	}
	id := a.member("id").(string)
	if out := mustPawl(t, env, append(migrate, "--dry-run")...); out != id+" stays in QUOTED: state-unknown\n0 of 1 instances would migrate\n" {
		t.Errorf("dry run: %s", out)
	}
	if out := mustPawl(t, env, append(migrate, "--map=QUOTED=OFFERED", "--state=QUOTED", "--reason=renamed")...); out != "QUOTED to OFFERED: 1\n1 of 1 instances migrated\n" {
		t.Errorf("migrate: %s", out)
	}
	if out := mustPawl(t, env, "instance", "migrate", "flight-booking", "--from=1", "--to=2", "--json"); !strings.Contains(out, `"total": 0`) {
		t.Errorf("again: %s", out)
	}
	if out := mustPawl(t, env, retire...); out != "flight-booking: version 1 retired\n" {
		t.Errorf("retire: %s", out)
	}
}
