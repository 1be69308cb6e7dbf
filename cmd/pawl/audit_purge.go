package main

import (
	"time"

	"github.com/pawl-fsm/pawl/fsm/access"
)

// auditPurge deletes rows of the audit, straight from the database.
type auditPurge struct {
	ownerFlags
	Before moment `required:"" help:"Delete the rows that were written before this time, such as 2026-03-01T00:00:00Z."`
}

// Help is printed below the help of the command.
func (a *auditPurge) Help() string {
	return "Each transaction that deletes rows, 5,000 at most, writes one with the action audit.purge. Rows that a sink with audit=true has yet to get are kept."
}

func (a *auditPurge) Run(c *console) error {
	before, err := time.Parse(time.RFC3339, string(a.Before))
	if err != nil {
		return err
	}
	return a.withAccess(c, func(s *access.Service) error {
		purged, kept, err := s.PurgeAudit(c, before)
		if err != nil {
			return asOwner(err)
		}
		c.printf("purged %d rows\n", purged)
		if kept > 0 {
			c.printf("kept %d rows that a sink has yet to get: 'pawl outbox status' shows which\n", kept)
		}
		return nil
	})
}
