package main

import (
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/access"
)

// roleCommand is `pawl role`.
type roleCommand struct {
	Put    rolePut    `cmd:"" help:"Make a role of a tenant, or replace it."`
	List   roleList   `cmd:"" help:"List the roles of a tenant."`
	Delete roleDelete `cmd:"" help:"Delete a role."`
}

// rolePut makes or replaces a role.
type rolePut struct {
	tenantFlags
	Name     string   `arg:"" name:"name" help:"Its name, as tokens and the claims of the identity provider have it."`
	Scope    []string `required:"" help:"What it allows: read, create, fire, work, deploy, connect, deliver, operate, audit, admin; may be repeated."`
	Workflow []string `help:"Only for this workflow; may be repeated."`
	Event    []string `help:"Only this event may be fired; may be repeated."`
}

func (r *rolePut) Run(c *console) error {
	return r.withAccess(c, func(s *access.Service) error {
		_, created, err := s.PutRole(c, access.Role{Tenant: r.Tenant, Name: r.Name, Scopes: r.Scope, Workflows: r.Workflow, Events: r.Event}, nil)
		switch {
		case err != nil:
			return err
		case created:
			c.printf("made %s\n", r.Name)
		default:
			c.printf("replaced %s\n", r.Name)
		}
		return nil
	})
}

// roleList lists roles.
type roleList struct{ tenantFlags }

func (r *roleList) Run(c *console) error {
	return r.withAccess(c, func(s *access.Service) error {
		read := func(page fsm.Page) (fsm.List[access.Role], error) { return s.Roles(c, r.Tenant, page) }
		return printAll(c, "NAME\tSCOPES\tWORKFLOWS\tEVENTS\tUPDATED", read, func(t table, r access.Role) {
			t.row("%s\t%s\t%s\t%s\t%s", r.Name, namesOr(r.Scopes), namesOr(r.Workflows), namesOr(r.Events), whenOr(&r.UpdatedAt, ""))
		})
	})
}

// roleDelete deletes a role.
type roleDelete struct {
	tenantFlags
	Name string `arg:"" name:"name" help:"Name of the role."`
}

func (r *roleDelete) Run(c *console) error {
	return r.withAccess(c, func(s *access.Service) error {
		if err := s.DeleteRole(c, r.Tenant, r.Name, nil); err != nil {
			return err
		}
		c.printf("deleted %s\n", r.Name)
		return nil
	})
}
