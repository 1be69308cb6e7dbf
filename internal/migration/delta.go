package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pawl-fsm/pawl/db"
	"github.com/pawl-fsm/pawl/db/schema"
)

// A function is a function of pawl's schemas, as a database has it.
type function struct {
	name       string // With its schema.
	identity   string // Its name and arguments, as `drop function` takes them.
	definition string // As Postgres writes it: a create or replace statement.
}

// nothing is the comment in a delta without functions.
const nothing = "-- No function differs."

// bothSchemas returns the functions that the migrations make and those that the source makes, by
// their signatures.
func bothSchemas(ctx context.Context, dsn string) (released, source map[string]function, err error) {
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	if err := db.Up(ctx, dsn); err != nil {
		return nil, nil, err
	}
	if released, err = functions(ctx, conn); err != nil {
		return nil, nil, err
	}
	for _, sql := range []string{schema.Down, schema.Source()} {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return nil, nil, fmt.Errorf("load db/schema: %w", err)
		}
	}
	source, err = functions(ctx, conn)
	return released, source, err
}

// functions returns the functions of pawl's schemas in a database, by their signatures with the results.
func functions(ctx context.Context, conn *pgx.Conn) (map[string]function, error) {
	rows, err := conn.Query(ctx, `
		select format('%s.%s(%s) returns %s', n.nspname, p.proname, pg_get_function_arguments(p.oid),
				pg_get_function_result(p.oid)),
			format('%s.%s', n.nspname, p.proname),
			format('%s.%s(%s)', n.nspname, p.proname, pg_get_function_identity_arguments(p.oid)),
			pg_get_functiondef(p.oid)
		from pg_proc p join pg_namespace n on n.oid = p.pronamespace
		where n.nspname in ('pawl', 'pawl_private')`)
	if err != nil {
		return nil, err
	}
	all := map[string]function{}
	var signature string
	var f function
	_, err = pgx.ForEachRow(rows, []any{&signature, &f.name, &f.identity, &f.definition}, func() error {
		all[signature] = f
		return nil
	})
	return all, err
}

// delta writes the migration from the released functions to those of the source. A function whose
// signature stays is replaced; one whose signature changes is dropped and created, since Postgres
// would keep both, or refuse to replace it. The defaults of the arguments belong to the signature:
// replacing a function cannot take one away.
func delta(released, source map[string]function) (string, error) {
	texts, err := schema.Functions()
	if err != nil {
		return "", err
	}
	var dropUp, createUp, dropDown, createDown, renewed []string
	for _, signature := range slices.Sorted(maps.Keys(released)) {
		old := released[signature]
		if now, kept := source[signature]; !kept {
			dropUp = append(dropUp, drop(old))
			renewed = append(renewed, old.name)
			createDown = append(createDown, statement(old.definition))
		} else if now.definition != old.definition {
			createDown = append(createDown, statement(old.definition))
		}
	}
	for _, signature := range slices.Sorted(maps.Keys(source)) {
		now := source[signature]
		old, kept := released[signature]
		if kept && old.definition == now.definition {
			continue
		}
		text, known := texts[now.name]
		if !known {
			return "", fmt.Errorf("%s is in no file of db/schema", now.name)
		}
		if kept {
			createUp = append(createUp, strings.Replace(text.Text, "\ncreate function", "\ncreate or replace function", 1))
		} else {
			createUp = append(createUp, text.Text)
			dropDown = append(dropDown, drop(now))
		}
	}
	var up strings.Builder
	if len(dropUp)+len(createUp) == 0 {
		up.WriteString(nothing + "\n\n")
	}
	var statements strings.Builder
	for _, s := range dropUp {
		statements.WriteString(s)
	}
	for _, s := range createUp {
		statements.WriteString(schema.Annotate(s) + "\n")
	}
	up.WriteString(keepingGrants(renewed, inAnyOrder(statements.String())))
	down := keepingGrants(renewed, inAnyOrder(strings.Join(append(dropDown, createDown...), "")))
	if !schema.Commentable(down) {
		return "", errors.New("a released function has /* or */ in its text, which the commented Down section cannot hold: write this migration by hand")
	}
	return schema.Migration(up.String(), down), nil
}

// inAnyOrder lets a function in language sql be created before those that it calls: only what the
// database holds says what an older one called.
func inAnyOrder(statements string) string {
	if statements == "" {
		return ""
	}
	return "set local check_function_bodies = off;\n\n" + statements
}

// keepingGrants wraps statements that drop functions and create others of the same names, so that
// the roles that could execute a function can execute its successor.
func keepingGrants(names []string, statements string) string {
	if len(names) == 0 {
		return statements + schema.Closing + "\n"
	}
	return fmt.Sprintf(`create temporary table kept_grant on commit drop as
select distinct format('%%I.%%I', n.nspname, p.proname) as function, a.grantee::regrole as role
from pg_proc p
join pg_namespace n on n.oid = p.pronamespace
cross join aclexplode(p.proacl) a
where format('%%s.%%s', n.nspname, p.proname) = any ('{%s}') and a.grantee <> 0 and a.grantee <> p.proowner;

%s%s
-- +goose StatementBegin
do $$
declare
  v_grant record;
begin
  for v_grant in select g.* from kept_grant g where to_regproc(g.function) is not null loop
    execute format('grant execute on function %%s to %%s', v_grant.function, v_grant.role);
  end loop;
end
$$;
-- +goose StatementEnd

`, strings.Join(names, ","), statements, schema.Closing)
}

// drop is the statement that drops a function.
func drop(f function) string { return "drop function " + f.identity + ";\n\n" }

// statement marks a definition that Postgres wrote for goose.
func statement(definition string) string {
	return "-- +goose StatementBegin\n" + strings.TrimRight(definition, "\n") + ";\n-- +goose StatementEnd\n\n"
}
