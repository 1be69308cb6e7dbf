package db

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pawl-fsm/pawl/db/schema"
)

// A Privilege is a set of least privileges that a role can be granted. What belongs to each is data of the schema's
// source: see the grants.sql of each module in db/schema.
type Privilege string

const (
	// Service is what `pawl serve` needs: API, Worker and Reader. It can neither write a table nor create one.
	Service Privilege = "service"
	// API is what requests need: `pawl serve --no-workers`.
	API Privilege = "api"
	// Worker is what the background work needs: `pawl serve --no-api`.
	Worker Privilege = "worker"
	// Reader is for support: it reads the tables, but no secrets.
	Reader Privilege = "reader"
	// Caller is what an application needs that moves instances in its own transactions. It can read no table.
	Caller Privilege = "caller"
	// Operator is a Caller that may force instances, too.
	Operator Privilege = "operator"
)

// Parts returns the privileges that a privilege is made of, or nil for one that does not exist.
func (p Privilege) Parts() []string {
	switch p {
	case Service:
		return []string{string(API), string(Worker), string(Reader)}
	case API, Worker, Reader, Caller, Operator:
		return []string{string(p)}
	default:
		return nil
	}
}

// bound reports whether roles with the privilege act for one tenant.
func (p Privilege) bound() bool { return p == Caller || p == Operator }

// A Role is a role of the database with a privilege.
type Role struct {
	Name      string
	Privilege Privilege
	// Tenant is the tenant that a Caller or Operator acts for, or "*" for all. Other roles have none.
	Tenant string
	// Subject is the actor of all that a Caller or Operator does. Without one it may name any actor.
	Subject string
}

// Grants returns the SQL that gives a role its privilege, and binds it to its tenant and subject.
func Grants(r Role) (string, error) {
	parts := r.Privilege.Parts()
	if parts == nil {
		return "", fmt.Errorf("grants: unknown privilege %q: want service, api, worker, reader, caller or operator", r.Privilege)
	}
	if r.Privilege.bound() && r.Tenant == "" {
		return "", errors.New("grants: name the tenant that the role acts for with --tenant, or --tenant '*' for all")
	}
	if !r.Privilege.bound() && (r.Tenant != "" || r.Subject != "") {
		return "", errors.New("grants: only the privileges caller and operator have a tenant and a subject")
	}
	name := pgx.Identifier{r.Name}.Sanitize()
	granted := schema.Joined(parts...)
	var b strings.Builder
	fmt.Fprintf(&b, "grant usage on schema pawl to %s;\n", name)
	for _, relation := range granted.Relations {
		columns := ""
		if relation.Columns != nil {
			columns = " (" + strings.Join(relation.Columns, ", ") + ")"
		}
		fmt.Fprintf(&b, "grant select%s on %s to %s;\n", columns, relation.Name, name)
	}
	for _, f := range granted.Functions {
		fmt.Fprintf(&b, "grant execute on function %s to %s;\n", f, name)
	}
	switch r.Privilege {
	case Caller, Operator:
		fmt.Fprintf(&b, "select pawl_private.bind_role(%s, %s, %s);\n", literal(r.Name), literal(r.Tenant), literal(r.Subject))
	case Service, API:
		// Its functions take the tenant and the actor from the request.
		fmt.Fprintf(&b, "select pawl_private.bind_role(%s, '*', null);\n", literal(r.Name))
	}
	return b.String(), nil
}

// literal writes a text as SQL, whatever standard_conforming_strings is; null for an empty one.
func literal(s string) string {
	if s == "" {
		return "null"
	}
	quoted := "'" + strings.ReplaceAll(s, "'", "''") + "'"
	if strings.Contains(s, `\`) {
		return " E" + strings.ReplaceAll(quoted, `\`, `\\`)
	}
	return quoted
}

// Grant applies what [Grants] returns. The role of the DSN must own the schema.
func Grant(ctx context.Context, dsn string, r Role) error {
	sql, err := Grants(r)
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
