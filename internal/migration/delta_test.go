package main

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/pawl-fsm/pawl/db"
	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

func TestMain(m *testing.M) { dbtest.Main(m) }

// A delta takes a database from the released functions to those of the source, and back. Roles keep
// what they could execute, also where a signature changes and Postgres wants another function.
func TestDelta(t *testing.T) {
	t.Parallel()
	ctx := bounded.Context(t)
	pool := dbtest.New(t)
	conn, err := pgx.Connect(ctx, dbtest.DSN(pool))
	if err != nil {
		t.Fatal(err)
	}
	source := mustFunctions(t, conn)

	// The release had another body of one function, another signature of a second, did not have a
	// third, and had one that is gone.
	role := pgx.Identifier{"delta of " + pool.Config().ConnConfig.Database}.Sanitize()
	bounded.Exec(t, conn, "create role "+role)
	t.Cleanup(func() { bounded.Exec(t, pool, "drop owned by "+role+"; drop role "+role) })
	bounded.Exec(t, conn, `
		create or replace function pawl_private.is_decision(p_code text) returns boolean
		language sql immutable as 'select true';
		drop function pawl.purge_keys;
		create function pawl.purge_keys(p_limit bigint) returns integer language sql as 'select 1';
		drop function pawl_private.rfc3339;
		create function pawl.gone() returns integer language sql as 'select 1;'`)
	grants, err := db.Grants(db.Role{Name: strings.Trim(role, `"`), Privilege: db.Service})
	if err != nil {
		t.Fatal(err)
	}
	bounded.Exec(t, conn, grants)
	bounded.Exec(t, conn, "revoke execute on all functions in schema pawl, pawl_private from public")
	released := mustFunctions(t, conn)

	text, err := delta(released, source)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"create or replace function pawl_private.is_decision", "drop function pawl.purge_keys(p_limit bigint);",
		"create function pawl.purge_keys", "create function pawl_private.rfc3339", "drop function pawl.gone();",
	} {
		if up, _, _ := strings.Cut(text, "-- +goose Down"); !strings.Contains(up, want) {
			t.Errorf("the delta lacks %q", want)
		}
	}
	if strings.Contains(text, "pawl.fire") {
		t.Error("the delta holds a function that did not change")
	}
	up, down := sections(text)
	may := "select has_function_privilege('" + strings.Trim(role, `"`) + "', (select oid from pg_proc where proname = 'purge_keys'), 'execute')"
	for _, step := range []struct {
		sql  string
		want map[string]function
	}{{up, source}, {down, released}} {
		bounded.Exec(t, conn, "begin; "+step.sql+"; commit")
		if diff := cmp.Diff(step.want, mustFunctions(t, conn), cmp.AllowUnexported(function{})); diff != "" {
			t.Errorf("the functions are others:\n%s", diff)
		}
		if !bounded.Value[bool](t, conn, may) {
			t.Error("the role may not execute the function any more, whose signature changed")
		}
	}
}

// The functions of a delta depend on each other in whatever way: a function in language sql may call
// one that comes later by its name, and only the defaults of the arguments may differ.
func TestDeltaOrderAndDefaults(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]string{
		"the source calls another function": `
			drop function pawl_private.decide, pawl.preview;
			create function pawl.preview(p_id uuid) returns integer language sql as 'select 1';`,
		"the release called another function": `
			create function pawl_private.decided(p_id uuid) returns integer language sql as 'select 1';
			create function pawl.decided(p_id uuid) returns integer language sql as 'select pawl_private.decided(p_id)';`,
		"the release had a default": `
			drop function pawl.purge_keys;
			create function pawl.purge_keys(p_limit integer default 1) returns integer language sql as 'select 1';`,
		"the release lacked a default": `
			drop function pawl.consumer_create;
			create function pawl.consumer_create(p_consumer text, p_from_start boolean) returns void
			language sql as 'select null::void';`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn, err := pgx.Connect(bounded.Context(t), dbtest.NewDSN(t))
			if err != nil {
				t.Fatal(err)
			}
			source := mustFunctions(t, conn)
			bounded.Exec(t, conn, change)
			bounded.Exec(t, conn, "revoke execute on all functions in schema pawl, pawl_private from public")
			released := mustFunctions(t, conn)
			text, err := delta(released, source)
			if err != nil {
				t.Fatal(err)
			}
			up, down := sections(text)
			for _, step := range []struct {
				sql  string
				want map[string]function
			}{{up, source}, {down, released}, {up, source}} {
				bounded.Exec(t, conn, "begin; "+step.sql+"; commit")
				if diff := cmp.Diff(step.want, mustFunctions(t, conn), cmp.AllowUnexported(function{})); diff != "" {
					t.Errorf("the functions are others:\n%s", diff)
				}
			}
		})
	}
}

// To all tools but goose, Down is a comment. So a delta that would end the comment is refused.
func TestDeltaThatEndsTheComment(t *testing.T) {
	t.Parallel()
	conn, err := pgx.Connect(bounded.Context(t), dbtest.NewDSN(t))
	if err != nil {
		t.Fatal(err)
	}
	source := mustFunctions(t, conn)
	bounded.Exec(t, conn, "create function pawl.gone() returns text language sql as $$ select '*/'::text $$")
	if _, err := delta(mustFunctions(t, conn), source); err == nil || !strings.Contains(err.Error(), "by hand") {
		t.Errorf("got %v", err)
	}
}

// sections returns the Up and the Down section of a migration, as goose runs them.
func sections(text string) (up, down string) {
	up, down, _ = strings.Cut(text, "-- +goose Down")
	return up, strings.Replace(down, "${PAWL:0:0}", "", 1)
}

// Without a change there is nothing to write, and the delta says so.
func TestDeltaOfNothing(t *testing.T) {
	t.Parallel()
	conn, err := pgx.Connect(bounded.Context(t), dbtest.NewDSN(t))
	if err != nil {
		t.Fatal(err)
	}
	all := mustFunctions(t, conn)
	text, err := delta(all, all)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(text, nothing) || strings.Contains(text, "create ") {
		t.Errorf("the delta of nothing is\n%s", text)
	}
}

func mustFunctions(t *testing.T, conn *pgx.Conn) map[string]function {
	t.Helper()
	all, err := functions(bounded.Context(t), conn)
	if err != nil {
		t.Fatal(err)
	}
	if len(all) < 50 {
		t.Fatalf("there are only %d functions", len(all))
	}
	return all
}
