package main_test

import (
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// fitCommands are commands that need the schema of this build, and the privileges of the service.
var fitCommands = [][]string{
	{"serve", "--listen", "127.0.0.1:0"},
	{"serve", "--no-api"},
	{"outbox", "status"},
	{"outbox", "delete", "nobody"},
	{"instance", "archive", "--older-than", "1d"},
	{"workflow", "migration", flight, "--against"},
}

// asVersion changes the version that the schema tells.
func asVersion(t *testing.T, dsn, version string) {
	t.Helper()
	bounded.Exec(t, dialDSN(t, dsn), "create or replace function pawl.schema_version() returns integer language sql stable as 'select "+version+"'")
}

// A database that is not fit is refused at the start, in one line that says what to do.
func TestStartOnAnUnfitDatabase(t *testing.T) {
	t.Parallel()
	empty, older, newer := dbtest.Empty(t), dbtest.NewDSN(t), dbtest.NewDSN(t)
	asVersion(t, older, "0")
	asVersion(t, newer, "99")
	change := func(how func(*url.URL)) string {
		u, err := url.Parse(dbtest.NewDSN(t))
		if err != nil {
			t.Fatal(err)
		}
		how(u)
		return u.String()
	}
	for dsn, words := range map[string][]string{
		empty: {"no schema of pawl", "run 'pawl migrate up'"},
		older: {"version 0", "needs version 1", "run 'pawl migrate up'"},
		newer: {"version 99", "newer pawl"},
		change(func(u *url.URL) { u.Path = "/nothing" }):                            {"does not exist", "create the database"},
		change(func(u *url.URL) { u.User = url.UserPassword("nobody", "hunter2") }): {"nobody", "name another role"},
		"postgres://nobody@127.0.0.1:1/nothing":                                     {"refused", "see that the server runs"},
	} {
		for _, args := range fitCommands {
			if line := wantLine(t, nil, 1, words, with(dsn, args)...); strings.Contains(line, "hunter2") {
				t.Errorf("the line gives away the password: %s", line)
			}
		}
	}
}

// The readiness probe reports a change of the schema under a running service.
func TestReadinessFollowsTheSchema(t *testing.T) {
	t.Parallel()
	dsn := dbtest.NewDSN(t)
	role := serviceRole(t, dsn)
	p := start(t, []string{"DATABASE_URL=" + role}, "serve", "--no-workers")
	u, err := url.Parse(role)
	if err != nil {
		t.Fatal(err)
	}
	ready := func(status int, words ...string) {
		t.Helper()
		a := mustSend(t, status, http.MethodGet, p.url+"/readyz", "")
		for _, word := range words {
			if a.member("code") != "unavailable" || !strings.Contains(a.member("detail").(string), word) {
				t.Errorf("/readyz says %s, want %s", a.body, word)
			}
		}
	}
	conn := dialDSN(t, dsn)
	ready(http.StatusOK)
	asVersion(t, dsn, "0")
	ready(http.StatusServiceUnavailable, "version 0", "pawl migrate up")
	asVersion(t, dsn, "99")
	ready(http.StatusServiceUnavailable, "version 99", "newer pawl")
	asVersion(t, dsn, "1")
	ready(http.StatusOK)
	bounded.Exec(t, conn, "revoke select on pawl.timer from "+u.User.Username())
	ready(http.StatusServiceUnavailable, "select on pawl.timer", "pawl migrate grants")
	bounded.Exec(t, conn, "grant select on pawl.timer to "+u.User.Username())
	ready(http.StatusOK)
	mustPawl(t, []string{"DATABASE_URL=" + dsn}, "migrate", "down", "--yes")
	ready(http.StatusServiceUnavailable, "no schema of pawl", "pawl migrate up")
}

// One line of the log says what has started. If callers are not authenticated, there is a warning.
func TestStartIsLogged(t *testing.T) {
	t.Parallel()
	env := []string{"DATABASE_URL=" + dbtest.NewDSN(t)}
	warning := "whoever reaches this address"
	for _, c := range []struct {
		args   []string
		line   string
		warned bool
	}{
		{[]string{"--listen", "127.0.0.1:0"}, "schema_version=1 listen=127.0.0.1:0 auth=none workers=true sinks=none", true},
		{[]string{"--listen", ":0", "--no-workers", "--auth", "none"}, "schema_version=1 listen=:0 auth=none workers=false sinks=none", true},
		{[]string{"--listen", ":0", "--tokens", writeFile(t, "tokens.json", `[{"sha256": "`+strings.Repeat("0", 64)+`", "subject": "x", "scopes": ["read"]}]`)}, "schema_version=1 listen=:0 auth=tokens workers=true sinks=none", false},
		{[]string{"--no-api", "--sink", "stdout:?consumer=one", "--sink", "stdout:?consumer=two"}, `schema_version=1 listen=none auth=none workers=true sinks="sink one,sink two"`, false},
	} {
		p := bounded.Start(t, bounded.Program{Path: program, Args: append([]string{"serve"}, c.args...), Env: env, Ready: started})
		p.Signal(t, syscall.SIGTERM)
		if err := p.Wait(t); err != nil {
			t.Errorf("%v: after SIGTERM: %v", c.args, err)
		}
		log := p.Output.String()
		if !regexp.MustCompile(`level=INFO msg=starting version=\S+ `+regexp.QuoteMeta(c.line)+"\n").MatchString(log) || strings.Contains(log, warning) != c.warned {
			t.Errorf("%v: the log is\n%s", c.args, log)
		}
	}
}

// serve logs JSON unless it is told otherwise, since programs read its log; dev logs text, since people do.
func TestLogFormat(t *testing.T) {
	t.Parallel()
	env := []string{"DATABASE_URL=" + dbtest.NewDSN(t), "PAWL_LOG_FORMAT="}
	json, text := `\{"time":"[^"]+","level":"INFO","msg":"%s",`, `level=INFO msg=%s `
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"serve"}, fmt.Sprintf(json, "serving")},
		{[]string{"--log-format", "text", "serve"}, fmt.Sprintf(text, "serving")},
		{[]string{"dev"}, fmt.Sprintf(text, "starting")},
		{[]string{"--log-format", "json", "dev"}, fmt.Sprintf(json, "starting")},
	} {
		bounded.Start(t, bounded.Program{
			Path: program, Args: append(c.args, "--listen", "127.0.0.1:0"), Env: env, Ready: regexp.MustCompile(`(?m)^(time=\S+ )?` + c.want),
		}).Kill(t)
	}
}
