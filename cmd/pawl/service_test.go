package main_test

import (
	"fmt"
	"net/url"
	"regexp"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// process is a running `pawl serve` or `pawl dev`.
type process struct {
	*bounded.Process
	url string // "nowhere" if it has no API
}

var started = regexp.MustCompile(`pawl listens on (http://\S+)\s|msg=serving address=(\S+)\s|msg="working, without an API"`)

// start runs `pawl dev` or `pawl serve` on a free port and returns when it serves. It is killed when the
// test ends.
func start(t testing.TB, env []string, args ...string) *process {
	t.Helper()
	p := &process{url: "nowhere"}
	p.Process = bounded.Start(t, bounded.Program{Path: program, Args: append(args, "--listen", "127.0.0.1:0"), Env: env, Ready: started})
	switch dev, serve := p.Ready[1], p.Ready[2]; {
	case dev != "":
		p.url = dev
	case serve != "":
		p.url = "http://" + serve
	}
	return p
}

// serviceRole makes a login role with the privileges of the service, and returns the address of the
// database for it.
func serviceRole(t *testing.T, dsn string) string {
	t.Helper()
	return loginRole(t, dsn, "service")
}

// loginRole is serviceRole for any privilege that `pawl migrate grants` knows, with more flags of it.
func loginRole(t *testing.T, dsn, privilege string, flags ...string) string {
	t.Helper()
	owner, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = owner.Close(bounded.Context(t)) }()
	role := "pawl_" + privilege + "_" + strings.ReplaceAll(owner.Config().Database, "-", "_")
	bounded.Exec(t, owner, fmt.Sprintf("create role %s login password 'secret'", role))
	t.Cleanup(func() {
		ctx := bounded.Context(t)
		conn, err := pgx.Connect(ctx, dsn)
		if err != nil {
			return
		}
		defer func() { _ = conn.Close(ctx) }()
		if _, err := conn.Exec(ctx, fmt.Sprintf("drop owned by %[1]s; drop role %[1]s", role)); err != nil {
			t.Error(err)
		}
	})
	args := append([]string{"migrate", "grants", "--role", role, "--privilege", privilege, "--apply"}, flags...)
	mustPawl(t, []string{"DATABASE_URL=" + dsn}, args...)
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword(role, "secret")
	return u.String()
}

// dialDSN connects to a database until the test ends.
func dialDSN(t testing.TB, dsn string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(bounded.Context(t)) })
	return conn
}
