package main_test

import (
	"strings"
	"testing"

	"github.com/pawl-fsm/pawl/db/dbtest"
)

// A connection is made, shown, replaced and deleted with the privileges of the service.
func TestConnectionCommands(t *testing.T) {
	t.Parallel()
	p := start(t, []string{"DATABASE_URL=" + serviceRole(t, dbtest.NewDSN(t)), "PAWL_CONNECTION_ENV=default:TOKEN_*"}, "serve")
	server := []string{"PAWL_SERVER=" + p.url}
	put := func(more ...string) []string {
		return append([]string{"connection", "put", "psp", "--base-url", "https://93.184.215.14/v1"}, more...)
	}
	shows := func(out string, parts ...string) {
		t.Helper()
		for _, part := range parts {
			if !strings.Contains(out, part) {
				t.Errorf("%q is missing in\n%s", part, out)
			}
		}
	}
	refuses := func(env []string, want string, args ...string) {
		t.Helper()
		if _, stderr, code := pawl(t, append(server, env...), args...); code == 0 || !strings.Contains(stderr, want) {
			t.Errorf("pawl %v: exit code %d, want %q in\n%s", args, code, want, stderr)
		}
	}
	file := "@" + writeFile(t, "password", "hunter2\n")
	shows(mustPawl(t, server, put("--auth", "basic", "--user", "ann", "--secret", file, "--header", "X-A=b=c;d", "--header", "X-B=e", "--timeout", "90s", "--concurrency", "4")...),
		"name         psp\n", "auth         basic ann\n", "timeout      1m30s\n", "concurrency  4\n", "version      1\n", "health       circuit closed\n")
	shows(mustPawl(t, server, "connection", "show", "psp", "--json"), `"X-A": "b=c;d"`, `"X-B": "e"`)
	refuses(nil, "/auth/secret: is missing", put("--auth", "bearer")...)
	refuses(nil, "--secret must not be on the command line", put("--auth", "bearer", "--secret", "hunter2")...)
	refuses([]string{"PAWL_CONNECTION_SECRET=x"}, "not both", put("--auth", "bearer", "--env", "TOKEN_PSP")...)
	refuses(nil, "names a variable that the operator does not allow", put("--auth", "bearer", "--env", "PAWL_CONNECTION_PSP")...)
	refuses(nil, "412 version-mismatch", put("--if-match", "7")...)

	// A definition may name a connection that there is not. Who asks the service is warned.
	calls := writeFile(t, "calls.yaml", `
name: calls
initial: A
states:
  A:
    invoke:
      a: { http: { connection: psp, method: POST, path: /a }, idempotency: {}, deadline: 1h, done: B, error: B, unknown: B }
      b: { http: { connection: crm, method: POST, path: /b }, idempotency: {}, deadline: 1h, done: B, error: B, unknown: B }
  B: { type: final }
`)
	const warning = "/states/A/invoke/b/http/connection: there is no connection crm: tasks wait until there is one (unknown-connection)\n"
	_, stderr, code := pawl(t, server, "workflow", "validate", calls)
	if code != 0 || strings.Count(stderr, "warning") != 1 || !strings.HasSuffix(stderr, warning) || !strings.Contains(stderr, "calls.yaml:8:20: warning") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
	if _, stderr, code := pawl(t, nil, "workflow", "validate", calls); code != 0 || stderr != "" {
		t.Errorf("without a service: exit code %d: %s", code, stderr)
	}
	mustPawl(t, server, "workflow", "apply", calls)
	refuses(nil, "no such file", put("--ca", "nowhere.pem")...)
	shows(mustPawl(t, server, put("--auth", "header", "--header-name", "X-Key", "--env", "TOKEN_PSP", "--if-match", "1")...), "auth         header X-Key from TOKEN_PSP\n", "timeout      that of the task\n", "version      2\n")
	shows(mustPawl(t, server, "connection", "list"), "psp   https://93.184.215.14/v1  header X-Key from TOKEN_PSP  circuit closed")
	refuses(nil, "412 version-mismatch", "connection", "delete", "psp", "--if-match", "1")
	mustPawl(t, server, "connection", "delete", "psp", "--if-match", "2")
	refuses(nil, "404 not-found", "connection", "show", "psp")
}
