package main_test

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// program is the path of the command line, which is built once.
var program string

func TestMain(m *testing.M) {
	programs, remove := bounded.Build(".")
	program = programs[0]
	code := m.Run()
	remove()
	dbtest.Exit(code)
}

// pawl runs a command and returns when it has ended.
func pawl(t testing.TB, env []string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var out, errs bytes.Buffer
	cmd := bounded.Command(t, program, args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// mustPawl runs a command that must succeed, and returns its standard output.
func mustPawl(t testing.TB, env []string, args ...string) string {
	t.Helper()
	stdout, stderr, code := pawl(t, env, args...)
	if code != 0 {
		t.Fatalf("pawl %s: exit code %d: %s", strings.Join(args, " "), code, stderr)
	}
	return stdout
}

const (
	flight = "../../examples/flight-booking/workflow.yaml"
	create = "/v1/workflows/flight-booking/instances"
	quote  = `{"context": {"flight_id": "LH454", "price": 420}}`
	accept = `{"payload": {"price": 420, "seat": "12A"}}`
)

// TestUsage shows that the help names the environment variables, and that wrong arguments are refused.
func TestUsage(t *testing.T) {
	t.Parallel()
	help := mustPawl(t, nil, "serve", "--help")
	for _, name := range []string{"DATABASE_URL", "PAWL_LISTEN", "PAWL_GUARD_TIMEOUT", "PAWL_LOCK_TIMEOUT", "PAWL_TENANT", "PAWL_LOG_LEVEL", "PAWL_API", "PAWL_WORKERS"} {
		if !strings.Contains(help, "$"+name) {
			t.Errorf("serve --help does not show %s", name)
		}
	}
	mustPawl(t, nil, "--version")
	for _, args := range [][]string{{}, {"nonsense"}, {"serve", "--nonsense"}, {"instance", "fire", "x"}} {
		if _, stderr, code := pawl(t, []string{"DATABASE_URL=postgres:///x"}, args...); code != 2 || stderr == "" {
			t.Errorf("pawl %v: exit code %d: %s", args, code, stderr)
		}
	}
	if _, stderr, code := pawl(t, []string{"DATABASE_URL="}, "serve"); code != 2 || !strings.Contains(stderr, "database-url") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
}
