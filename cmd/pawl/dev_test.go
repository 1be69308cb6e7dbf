package main_test

import (
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// TestDev starts in an empty folder, runs the commands that dev prints, and starts again after the
// process was killed.
func TestDev(t *testing.T) {
	t.Parallel()
	if os.Getenv("PAWL_TEST_DATABASE_URL") != "" {
		t.Log("dev runs a Postgres of its own all the same")
	}
	dbtest.Private(t, nil) // It skips the test without server binaries.
	dir, err := os.MkdirTemp("", "pawl-dev-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	none := []string{"DATABASE_URL=", "PAWL_DATABASE_URL="}
	first := start(t, none, "dev", "--data-dir", filepath.Join(dir, "data"))
	booking := mustSend(t, http.StatusCreated, http.MethodPost, first.url+create, quote, "Idempotency-Key", "quote-1").
		header.Get("Location")
	runPrintedLines(t, first)

	first.Kill(t)
	_ = first.Wait(t)
	second := start(t, none, "dev", "--data-dir", filepath.Join(dir, "data"))
	mustSend(t, http.StatusOK, http.MethodGet, second.url+booking, "")
	if v := mustSend(t, http.StatusOK, http.MethodGet, second.url+"/v1/workflows/flight-booking", "").member("version"); v != float64(1) {
		t.Errorf("the example is at version %v after the second start, want 1", v)
	}
	// If the schema is that of a build that cannot be upgraded, the error says which folder to remove.
	dsn := second.Match(t, regexp.MustCompile(`its database is (\S+)\n`))[1]
	bounded.Exec(t, dialDSN(t, dsn), "drop table pawl.goose_db_version; drop function pawl.schema_version")
	second.Signal(t, syscall.SIGTERM)
	if err := second.Wait(t); err != nil {
		t.Errorf("after SIGTERM: %v", err)
	}
	_, stderr, code := pawl(t, none, "dev", "--data-dir", filepath.Join(dir, "data"))
	if code != 1 || !strings.Contains(stderr, "pawl: migrate: a development build") || !strings.Contains(stderr, "or remove the folder "+filepath.Join(dir, "data")) {
		t.Errorf("exit code %d: %s", code, stderr)
	}
}

// pawl dev makes the tenant that it is for. The next start changes nothing.
func TestDevMakesItsTenant(t *testing.T) {
	t.Parallel()
	dsn := dbtest.NewDSN(t)
	env, conn := []string{"DATABASE_URL=" + dsn}, dialDSN(t, dsn)
	for range 2 {
		p := start(t, env, "dev", "--tenant", "acme")
		mustSend(t, http.StatusCreated, http.MethodPost, p.url+create, quote, "Idempotency-Key", "quote-1")
		p.Kill(t)
		_ = p.Wait(t)
		if n := bounded.Value[int](t, conn, "select count(*) from pawl.audit where action = 'tenant.put' and target = 'acme'"); n != 1 {
			t.Errorf("the audit has %d changes of the tenant", n)
		}
	}
}

// pawl dev listens only after it has registered its example.
func TestDevRegistersItsExampleBeforeItListens(t *testing.T) {
	t.Parallel()
	dsn := dbtest.NewDSN(t)
	conn, address := dialDSN(t, dsn), "127.0.0.1:"+bounded.Port(t)
	tx, err := conn.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	bounded.Exec(t, tx, "lock table pawl.workflow in share mode") // Registrations wait for this lock.
	p := bounded.Start(t, bounded.Program{Path: program, Args: []string{"dev", "--listen", address}, Env: []string{"DATABASE_URL=" + dsn}})
	bounded.UntilBlocked(t, dialDSN(t, dsn), 1)
	if a, err := send(t.Context(), http.MethodGet, "http://"+address+"/readyz", ""); err == nil {
		t.Errorf("without its example it answers %d %s", a.status, a.body)
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.Match(t, started)
	mustSend(t, http.StatusOK, http.MethodGet, "http://"+address+"/v1/workflows/flight-booking", "")
}

// runPrintedLines runs the curl commands that dev prints.
func runPrintedLines(t *testing.T, p *process) {
	t.Helper()
	if _, err := exec.LookPath("curl"); err != nil {
		t.Log("there is no curl to run the printed lines with")
		return
	}
	lines := p.Match(t, regexp.MustCompile(`(?m)^(  curl .*)\n(?:.*\n)*?(  curl .*)\n(?:.*\n)*?(  curl .*)\n`))[1:]
	for _, line := range lines {
		out, err := bounded.Command(t, "sh", "-ec", strings.Replace(line, "curl ", "curl -fsS ", 1)).CombinedOutput()
		if err != nil || !strings.Contains(string(out), "flight-booking") {
			t.Errorf("%s: %v: %s", line, err, out)
		}
	}
}
