// Package final goes through the final instances of a database and purges them, for the worker that
// keeps to retention and for the archive.
//
// A [Pass] reads pages by the key (tenant, workflow, status, id), and stands at the beginning again
// when it has ended. An instance is purged with its history, its expired keys and everything else that
// belongs to it, in one transaction. What is locked, and what a key still replays, stays: it is for the
// next pass. Several passes may run at once, in any number of processes.
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
	// Tenant and Workflows choose among the instances; empty for all of them.
	Tenant    string
	Workflows []string
	// OlderThan is for how long an instance has been final, at least. 0: the retention.
	OlderThan time.Duration

	at queries.FinalInstancesRow
}

// A Page is a part of a Pass: instances of one tenant.
type Page struct {
	Tenant string
	IDs    []uuid.UUID
	// Last: the pass has ended, and the next page is its first again.
	Last bool

	before time.Time
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
	return Page{Tenant: row.AtTenant, IDs: row.Ids, Last: row.AtTenant == "", before: row.Before}, nil
}

// Purge purges those instances of the page that are not locked or replayed, and returns them. An
// instance is purged at once, however long its history is, so that the statement has more time than a
// command's. It returns the driver's error.
func (p Page) Purge(ctx context.Context, pool *pgxpool.Pool) (purged []uuid.UUID, err error) {
	err = database.Transact(ctx, pool, pgx.TxOptions{}, "30s", func(q *queries.Queries) error {
		purged, err = q.PurgeInstances(ctx, queries.PurgeInstancesParams{Tenant: p.Tenant, Ids: p.IDs, Before: p.before})
		return err
	})
	return purged, err
}
