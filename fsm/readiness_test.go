package fsm_test

import (
	"errors"
	"net/url"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pawl-fsm/pawl/db"
	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/fsmtest"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// wantUnfit fails the test unless the error is Unavailable and its message is one line with the given
// words.
func wantUnfit(t *testing.T, err error, words ...string) {
	t.Helper()
	e, ok := errors.AsType[*fsm.Error](err)
	if !ok || e.Kind != fsm.Unavailable || strings.Contains(e.Message, "\n") {
		t.Errorf("got %v, want unavailable and one line", err)
		return
	}
	for _, word := range words {
		if !strings.Contains(e.Message, word) {
			t.Errorf("the message is %q, want %q in it", e.Message, word)
		}
	}
}

// A running service notices a change of the schema, and recovers when the schema is as before.
func TestPing(t *testing.T) {
	t.Parallel()
	dsn := dbtest.Empty(t)
	pool := fsmtest.Open(t, dsn, db.Config{MaxConns: 1}) // With one connection, every call uses the same prepared statements.
	s := fsm.New(pool, fsm.Config{})
	t.Cleanup(s.Close)
	owner, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = owner.Close(bounded.Context(t)) })
	ready := func() {
		t.Helper()
		for range 7 { // Often enough for a generic plan.
			if err := s.Ping(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	wantUnfit(t, s.Ping(t.Context()), "no schema", "pawl migrate up")
	if err := db.Up(t.Context(), dsn); err != nil {
		t.Fatal(err)
	}
	ready()
	version := func(n string) {
		bounded.Exec(t, owner, "create or replace function pawl.schema_version() returns integer language sql stable as 'select "+n+"'")
	}
	version("99")
	wantUnfit(t, s.Ping(t.Context()), "version 99", "newer pawl")
	version("0")
	wantUnfit(t, s.Ping(t.Context()), "version 0", "pawl migrate up")
	version("1")
	ready()
	bounded.Exec(t, owner, "alter function pawl.schema_version rename to something")
	wantUnfit(t, s.Ping(t.Context()), "version 0", "pawl migrate up") // A schema without a version counts as version 0.
	bounded.Exec(t, owner, "alter function pawl.something rename to schema_version")
	ready()
	if err := db.Down(t.Context(), dsn); err != nil {
		t.Fatal(err)
	}
	wantUnfit(t, s.Ping(t.Context()), "no schema", "pawl migrate up")
	if err := db.Up(t.Context(), dsn); err != nil {
		t.Fatal(err)
	}
	ready()
}

// Each privilege that the service needs is reported if it is not granted.
func TestPrivilegesThatAreMissing(t *testing.T) {
	t.Parallel()
	dsn := dbtest.NewDSN(t)
	owner, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	role := "unfit of " + owner.Config().Database
	quoted := pgx.Identifier{role}.Sanitize()
	bounded.Exec(t, owner, "create role "+quoted)
	t.Cleanup(func() {
		bounded.Exec(t, owner, "reset role; drop owned by "+quoted+"; drop role "+quoted)
		_ = owner.Close(bounded.Context(t))
	})
	as := func(sql string) error {
		t.Helper()
		bounded.Exec(t, owner, "reset role; "+sql+"; set role "+quoted)
		return fsm.CheckSchema(t.Context(), owner, db.Service.Parts()...)
	}
	wantUnfit(t, as("select 1"), "privileges", "usage on schema pawl", "pawl migrate grants")
	grants, err := db.Grants(db.Role{Name: role, Privilege: db.Service})
	if err != nil {
		t.Fatal(err)
	}
	if err := as(grants); err != nil {
		t.Error(err)
	}
	for _, grant := range strings.Split(strings.TrimSpace(grants), ";\n") {
		grant = strings.TrimSuffix(grant, ";")
		if strings.HasPrefix(grant, "select pawl_private.bind_role(") {
			continue
		}
		what, _, _ := strings.Cut(strings.TrimPrefix(grant, "grant "), " to "+quoted)
		what = strings.Replace(what, "on function ", "on ", 1)
		if columns, relation, some := strings.Cut(what, ") on "); some {
			_, columns, _ = strings.Cut(columns, "(")
			what = "select on " + relation + "." + strings.Split(columns, ", ")[0]
		}
		wantUnfit(t, as(strings.NewReplacer("grant ", "revoke ", " to "+quoted, " from "+quoted).Replace(grant)), what)
		if err := as(grant); err != nil {
			t.Errorf("after %s: %v", grant, err)
		}
	}
	wantUnfit(t, as("revoke select on pawl.history from "+quoted), "the privilege select on pawl.history:")
}

// If the server refuses the connection, the message says why, but names neither the server nor the
// role.
func TestServerThatRefuses(t *testing.T) {
	t.Parallel()
	server := dbtest.Private(t, nil)
	if err := db.Up(t.Context(), server.DSN()); err != nil {
		t.Fatal(err)
	}
	owner, err := pgx.Connect(t.Context(), server.DSN())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = owner.Close(bounded.Context(t)) })
	// The setting names the folder, which the server may read and this process need not write.
	bounded.Exec(t, owner, `
		create role clerk login password 'right';
		copy (select 'local all clerk scram-sha-256' union all select 'local all all trust') to program 'cat > pg_hba.conf';
		select pg_reload_conf()`)
	with := func(change func(*url.URL)) error {
		t.Helper()
		u, err := url.Parse(server.DSN())
		if err != nil {
			t.Fatal(err)
		}
		change(u)
		pool := fsmtest.Open(t, u.String(), db.Config{})
		return fsm.CheckSchema(t.Context(), pool)
	}
	wrong := func(u *url.URL) { u.User = url.UserPassword("clerk", "wrong") }
	bounded.True(t, "the server to ask for passwords", func() bool {
		e, _ := errors.AsType[*fsm.Error](with(wrong))
		return e != nil && !strings.Contains(e.Message, "privileges")
	})
	wantUnfit(t, with(wrong), "refuses the service's role or its password")
	wantUnfit(t, with(func(u *url.URL) { u.User = url.User("nobody") }), "refuses the service's role")
	wantUnfit(t, with(func(u *url.URL) { u.Path = "/nothing" }), "no database of the name")
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	err = with(func(*url.URL) {})
	wantUnfit(t, err, "the database did not answer")
}
