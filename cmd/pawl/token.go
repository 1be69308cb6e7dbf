package main

import (
	"strings"
	"time"

	"github.com/pawl-fsm/pawl/db"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/access"
)

// withAccess calls f with the tokens, roles and tenants of a database. The role of the URL owns the schema, or has the
// privilege api.
func (o ownerFlags) withAccess(c *console, f func(*access.Service) error) error {
	pool, err := openDatabase(c, o.DatabaseURL, db.Config{MaxConns: 2}, db.API)
	if err != nil {
		return err
	}
	defer pool.Close()
	service := fsm.New(pool, fsm.Config{})
	defer service.Close()
	return f(access.New(service))
}

// tenantFlags choose the database, and the tenant whose tokens or roles a command is about.
type tenantFlags struct {
	ownerFlags
	Tenant string `default:"default" help:"The tenant; '*' for the deployment, which deploys workflows and manages tenants."`
}

// tokenCommand is `pawl token`.
type tokenCommand struct {
	Create tokenCreate `cmd:"" help:"Make a token and print it, this time only."`
	List   tokenList   `cmd:"" help:"List the tokens of a tenant."`
	Revoke tokenRevoke `cmd:"" help:"Refuse a token from now on."`
}

// tokenCreate makes a token.
type tokenCreate struct {
	tenantFlags
	Subject   string        `required:"" help:"The actor of what its bearer does."`
	Scope     []string      `help:"What it may do: read, create, fire, work, deploy, connect, deliver, operate, audit, admin; may be repeated."`
	Role      []string      `help:"A role of the tenant, which adds to the scopes; may be repeated."`
	Workflow  []string      `help:"Only this workflow; may be repeated."`
	ID        string        `help:"Its id, of lower-case letters, digits and hyphens; by default one that is made up."`
	Name      string        `help:"What it is for."`
	ExpiresIn time.Duration `placeholder:"DURATION" help:"When it ends, such as 720h; by default never."`
}

func (t *tokenCreate) Run(c *console) error {
	token := access.Token{
		Tenant: t.Tenant, ID: t.ID, Subject: t.Subject, Scopes: t.Scope, Roles: t.Role, Workflows: t.Workflow,
	}
	if t.Name != "" {
		token.Name = &t.Name
	}
	if t.ExpiresIn != 0 {
		end := time.Now().Add(t.ExpiresIn)
		token.ExpiresAt = &end
	}
	return t.withAccess(c, func(s *access.Service) error {
		created, err := s.CreateToken(c, token, nil)
		if err != nil {
			return err
		}
		c.printf("%s\n", created.Text)
		return nil
	})
}

// tokenList lists tokens.
type tokenList struct{ tenantFlags }

func (t *tokenList) Run(c *console) error {
	return t.withAccess(c, func(s *access.Service) error {
		read := func(page fsm.Page) (fsm.List[access.Token], error) { return s.Tokens(c, t.Tenant, page) }
		const header = "ID\tSUBJECT\tSCOPES\tROLES\tWORKFLOWS\tEXPIRES\tLAST USED\tSTATUS"
		return printAll(c, header, read, func(table table, t access.Token) {
			status := "active"
			switch {
			case t.RevokedAt != nil:
				status = "revoked"
			case t.ExpiresAt != nil && t.ExpiresAt.Before(time.Now()):
				status = "expired"
			}
			table.row("%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s", t.ID, t.Subject, namesOr(t.Scopes), namesOr(t.Roles), namesOr(t.Workflows),
				whenOr(t.ExpiresAt, "never"), whenOr(t.LastUsedAt, "never"), status)
		})
	})
}

// tokenRevoke revokes a token.
type tokenRevoke struct {
	tenantFlags
	ID string `arg:"" name:"id" help:"Id of the token: what stands between pawl_ and the next underscore."`
}

func (t *tokenRevoke) Run(c *console) error {
	return t.withAccess(c, func(s *access.Service) error {
		if err := s.RevokeToken(c, t.Tenant, t.ID, nil); err != nil {
			return err
		}
		c.printf("revoked %s\n", t.ID)
		return nil
	})
}

// printAll prints a list as a table: its header, and a row for each item of all pages.
func printAll[T any](c *console, header string, read func(fsm.Page) (fsm.List[T], error), row func(table, T)) error {
	table := c.table(2)
	table.row(header)
	page := fsm.Page{Limit: 200}
	for {
		list, err := read(page)
		if err != nil {
			return err
		}
		for _, item := range list.Items {
			row(table, item)
		}
		if list.Next == "" {
			return table.Flush()
		}
		page.Cursor = list.Next
	}
}

// namesOr joins names, and is a dash for none.
func namesOr(names []string) string {
	if len(names) == 0 {
		return "-"
	}
	return strings.Join(names, ",")
}

// whenOr writes a time, or something else for none.
func whenOr(t *time.Time, otherwise string) string {
	if t == nil {
		return otherwise
	}
	return t.UTC().Format(time.RFC3339)
}
