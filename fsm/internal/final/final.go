// Package final goes through the final instances of a database and purges them. Package worker does so
// by the retention of workflows, and package lifecycle for the archive.
//
// A [Pass] reads pages in the order of tenant, workflow, status and id. When it has ended, its next page
// is the first one again. An instance is purged with its history, its expired keys and everything else
// that belongs to it, in one transaction. An instance that is locked, or that a key still replays, stays
// until a later pass. Several passes may run at once, in any number of processes.
//
// It may import db/queries, pgx and fsm/internal/database.
package final

import (
	"context"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/fsm/internal/database"
)

// A Pass goes through final instances. Its zero value goes through those that are older than the
// retention of their workflow's latest version.
type Pass struct {
	// Tenant and Workflows choose among the instances. Default: all of them.
	Tenant    string
	Workflows []string
	// OlderThan is for how long an instance must have been final. Default: the retention of its workflow.
	OlderThan time.Duration

	at queries.FinalInstancesRow
}

// A Page is a part of a Pass.
type Page struct {
	// IDs are those of the instances, all of one Tenant.
	Tenant string
	IDs    []uuid.UUID
	// Last: the pass has ended, and the next page is its first one again.
	Last bool

	before time.Time
	early  bool
}

// Next reads the next page, of at most limit instances. It returns the driver's error.
func (p *Pass) Next(ctx context.Context, q *queries.Queries, limit int) (Page, error) {
	row, err := q.FinalInstances(ctx, queries.FinalInstancesParams{
		RowLimit: int32(min(limit, 1<<31-1)),
		Age:      pgtype.Interval{Microseconds: p.OlderThan.Microseconds(), Valid: p.OlderThan > 0},
		Tenant:   database.Optional(p.Tenant), Workflows: p.Workflows,
		AtTenant: p.at.AtTenant, AtWorkflow: p.at.AtWorkflow, AtStatus: p.at.AtStatus, AtID: p.at.AtID,
	})
	if err != nil {
		return Page{}, err
	}
	p.at = row
	return Page{Tenant: row.AtTenant, IDs: row.Ids, Last: row.AtTenant == "", before: row.Before, early: p.OlderThan > 0}, nil
}

// Purge purges the instances of the page that are neither locked nor still replayed by a key, and returns
// their ids. The whole history of an instance is purged by one statement. So the statement has 30 s, which is
// more than a command has. The error is the driver's.
func (p Page) Purge(ctx context.Context, pool *pgxpool.Pool) (purged []uuid.UUID, err error) {
	err = database.Transact(ctx, pool, pgx.TxOptions{}, "30s", func(q *queries.Queries) error {
		if p.early {
			purged, err = q.PurgeArchived(ctx, queries.PurgeArchivedParams{Tenant: p.Tenant, Ids: p.IDs, Before: p.before})
			return err
		}
		purged, err = q.PurgeInstances(ctx, queries.PurgeInstancesParams{Tenant: p.Tenant, Ids: p.IDs, Before: p.before})
		return err
	})
	return purged, err
}
