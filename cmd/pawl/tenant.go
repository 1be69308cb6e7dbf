package main

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/access"
)

// tenantCommand is `pawl tenant`.
type tenantCommand struct {
	Create  tenantCreate  `cmd:"" help:"Make a tenant."`
	List    tenantList    `cmd:"" help:"List the tenants."`
	Limit   tenantLimit   `cmd:"" help:"Replace the limits of a tenant."`
	Disable tenantDisable `cmd:"" help:"Refuse the callers of a tenant, and let its timers and deliveries wait."`
	Enable  tenantEnable  `cmd:"" help:"Go on with a disabled tenant where it was."`
}

// limitFlags are the limits of a tenant.
type limitFlags struct {
	RequestsPerSecond *int64 `placeholder:"N" help:"Requests per second to each replica."`
	Queue             *int64 `placeholder:"N" help:"Commands that may wait in a replica."`
	OpenInstances     *int64 `placeholder:"N" help:"Active instances; counted some seconds late."`
	Subscriptions     *int64 `placeholder:"N" help:"Subscriptions."`
	Streams           *int64 `placeholder:"N" help:"Open streams of a replica."`
	StorageBytes      *int64 `placeholder:"N" help:"Bytes of contexts and payloads that are kept; counted some seconds late."`
	WebhookAttempts   *int64 `placeholder:"N" help:"Deliveries that are under way at a time."`
}

// tenantCreate makes a tenant.
type tenantCreate struct {
	ownerFlags
	limitFlags
	ID string `arg:"" name:"id" help:"Its id, of 1 to 63 characters."`
}

func (t *tenantCreate) Run(c *console) error {
	return t.withAccess(c, func(s *access.Service) error {
		if _, err := s.GetTenant(c, t.ID); err == nil {
			return fmt.Errorf("the tenant %s exists: pawl tenant limit changes it", t.ID)
		}
		limits := fsm.TenantLimits(t.limitFlags)
		_, _, err := s.PutTenant(c, t.ID, &limits, nil)
		if err != nil {
			return err
		}
		c.printf("made %s\n", t.ID)
		return nil
	})
}

// tenantList lists tenants.
type tenantList struct{ ownerFlags }

func (t *tenantList) Run(c *console) error {
	return t.withAccess(c, func(s *access.Service) error {
		read := func(page fsm.Page) (fsm.List[access.Tenant], error) { return s.Tenants(c, page) }
		return printAll(c, "ID\tLIMITS\tCREATED\tSTATUS", read, func(table table, t access.Tenant) {
			status := "enabled"
			if t.DisabledAt != nil {
				status = "disabled since " + whenOr(t.DisabledAt, "")
			}
			table.row("%s\t%s\t%s\t%s", t.ID, limitsText(t.Limits), whenOr(&t.CreatedAt, ""), status)
		})
	})
}

// limitsText words limits as name=value.
func limitsText(l fsm.TenantLimits) string {
	text, err := json.Marshal(l)
	if err != nil {
		return "-"
	}
	byName := map[string]int64{}
	if json.Unmarshal(text, &byName) != nil || len(byName) == 0 {
		return "-"
	}
	var parts []string
	for name, n := range byName {
		parts = append(parts, fmt.Sprintf("%s=%d", name, n))
	}
	slices.Sort(parts)
	return strings.Join(parts, ",")
}

// tenantLimit replaces the limits of a tenant.
type tenantLimit struct {
	ownerFlags
	limitFlags
	ID string `arg:"" name:"id" help:"Id of the tenant."`
}

// Help is printed below the help of the command.
func (t *tenantLimit) Help() string {
	return "A limit that is not given is the deployment's again."
}

func (t *tenantLimit) Run(c *console) error {
	limits := fsm.TenantLimits(t.limitFlags)
	return t.change(c, t.ID, &limits, nil)
}

// change changes a tenant that exists.
func (o ownerFlags) change(c *console, id string, limits *fsm.TenantLimits, disabled *bool) error {
	return o.withAccess(c, func(s *access.Service) error {
		if _, err := s.GetTenant(c, id); err != nil {
			return err
		}
		changed, _, err := s.PutTenant(c, id, limits, disabled)
		if err != nil {
			return err
		}
		status := "enabled"
		if changed.DisabledAt != nil {
			status = "disabled"
		}
		c.printf("%s  %s  limits %s\n", changed.ID, status, limitsText(changed.Limits))
		return nil
	})
}

// tenantDisable disables a tenant.
type tenantDisable struct {
	ownerFlags
	ID string `arg:"" name:"id" help:"Id of the tenant."`
}

func (t *tenantDisable) Run(c *console) error {
	disabled := true
	return t.change(c, t.ID, nil, &disabled)
}

// tenantEnable enables a tenant.
type tenantEnable struct {
	ownerFlags
	ID string `arg:"" name:"id" help:"Id of the tenant."`
}

func (t *tenantEnable) Run(c *console) error {
	disabled := false
	return t.change(c, t.ID, nil, &disabled)
}
