package db

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pawl-fsm/pawl/db/schema"
)

// A Privilege is a set of least privileges that a role can be granted.
type Privilege string

const (
	// Service is what `pawl serve` needs: to call the functions of schema pawl and to read its
	// tables. It can neither write a table nor create one.
	Service Privilege = "service"
	// Caller is what an application needs that moves instances in its own transactions: to call
	// create_one and fire_one. It can read no table.
	Caller Privilege = "caller"
)

// Grants returns the SQL that gives a role a privilege. The functions of each privilege are data of
// the schema's source: see the grants.sql of each module in db/schema.
func Grants(role string, p Privilege) (string, error) {
	granted := schema.Grants()[string(p)]
	if len(granted) == 0 {
		return "", fmt.Errorf("grants: unknown privilege %q: want %q or %q", p, Service, Caller)
	}
	name := pgx.Identifier{role}.Sanitize()
	var b strings.Builder
	fmt.Fprintf(&b, "grant usage on schema pawl to %s;\n", name)
	if p == Service {
		fmt.Fprintf(&b, "grant select on all tables in schema pawl to %s;\n", name)
	}
	for _, f := range granted {
		fmt.Fprintf(&b, "grant execute on function %s to %s;\n", f, name)
	}
	return b.String(), nil
}

// Grant applies what [Grants] returns. The role of the DSN must own the schema.
func Grant(ctx context.Context, dsn, role string, p Privilege) error {
	sql, err := Grants(role, p)
	if err != nil {
		return err
	}
	conn, err := connect(ctx, dsn)
	if err != nil {
		return fmt.Errorf("grant: %w", err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	if _, err := conn.Exec(ctx, sql); err != nil {
		return fmt.Errorf("grant: %w", err)
	}
	return nil
}
