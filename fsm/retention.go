package fsm

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/db/queries"
)

// RemoverConfig tunes a Remover. Its zero value works.
type RemoverConfig struct {
	// Batch is how many instances are removed at once, or fewer if they have more than 20
	// steps each. Default 200: some tens of milliseconds of the database's time.
	Batch int
	// Pause is the time between batches. Default 25 ms.
	Pause time.Duration
	// Interval is the time between passes, give or take a quarter, so that replicas that were
	// started together do not look together. Default 1 min.
	Interval time.Duration
	// Logger is told when instances cannot be removed, and when they can again. Default:
	// nobody.
	Logger *slog.Logger
}

func (c RemoverConfig) withDefaults() RemoverConfig {
	if c.Batch <= 0 {
		c.Batch = 200
	}
	if c.Pause <= 0 {
		c.Pause = 25 * time.Millisecond
	}
	if c.Interval <= 0 {
		c.Interval = time.Minute
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

// Remover removes final instances that are older than the retention of their workflow's
// latest version, each with its history and its expired keys. What a key still replays
// stays until the key has expired. Any number of Removers may share a database: each passes
// over what another, or a command, holds.
type Remover struct {
	pool    *pgxpool.Pool
	queries *queries.Queries
	config  RemoverConfig
	pass    queries.FinalInstancesParams
}

// NewRemover returns a Remover on a pool, of which it takes one connection at a time.
func NewRemover(pool *pgxpool.Pool, config RemoverConfig) *Remover {
	config = config.withDefaults()
	return &Remover{
		pool: pool, queries: queries.New(pool), config: config,
		pass: queries.FinalInstancesParams{RowLimit: rowLimit(config.Batch)},
	}
}

// Run removes instances until the context ends, and returns nil then. A database that is
// away is asked again after Interval.
func (r *Remover) Run(ctx context.Context) error {
	return repeat(ctx, r.config.Logger, "removing old instances", r.step)
}

func (r *Remover) step(ctx context.Context) (wait time.Duration, err error) {
	interval := r.config.Interval*3/4 + rand.N(r.config.Interval/2+1)
	page, err := nextPage(ctx, r.queries, &r.pass)
	if err != nil {
		return interval, err
	}
	if len(page.Ids) > 0 {
		// What cannot be removed is for the next pass: others are behind it.
		removed, err := removeInstances(ctx, r.pool, page)
		if err != nil {
			return r.config.Pause, err
		}
		r.config.Logger.DebugContext(ctx, "instances", "looked_at", len(page.Ids), "removed", len(removed))
	}
	if page.AtTenant == "" {
		return interval, nil
	}
	return r.config.Pause, nil
}

func rowLimit(n int) int32 { return int32(min(n, 1<<31-1)) }

// nextPage reads a page of a pass and moves the pass behind it.
func nextPage(ctx context.Context, q *queries.Queries, pass *queries.FinalInstancesParams) (queries.FinalInstancesRow, error) {
	page, err := q.FinalInstances(ctx, *pass)
	if err == nil {
		pass.AtTenant, pass.AtWorkflow, pass.AtStatus, pass.AtID = page.AtTenant, page.AtWorkflow, page.AtStatus, page.AtID
	}
	return page, err
}

// removeInstances removes those of a page that it can, and returns them. An instance with a
// long history, which goes at once, has more time than a command.
func removeInstances(ctx context.Context, pool *pgxpool.Pool, page queries.FinalInstancesRow) (removed []uuid.UUID, err error) {
	err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "set local statement_timeout = '30s'"); err != nil {
			return err
		}
		removed, err = queries.New(tx).RemoveInstances(ctx, queries.RemoveInstancesParams{
			Tenant: page.AtTenant, Ids: page.Ids, Before: page.Before,
		})
		return err
	})
	return removed, err
}

// ArchiveCommand asks for final instances to be written somewhere else, and removed if
// wanted.
type ArchiveCommand struct {
	// Tenant and Workflows choose among the instances; empty for all.
	Tenant    string
	Workflows []string
	// OlderThan is for how long they have been final, at least.
	OlderThan time.Duration
	// Limit is how many to write; 0 for all.
	Limit int
	// Write gets the instances one by one, by tenant, workflow and status, the oldest first.
	Write func(Archived) error
	// Remove also removes what is written.
	Remove bool
	// Flush makes sure of what was written, before it is removed.
	Flush func() error
	// Batch is how many instances are read, and removed, at once. Default 200.
	Batch int
}

// Archived is an instance with everything that belongs to it.
type Archived struct {
	Tenant string
	Instance
	// History has all of its steps, in order.
	History []Step
}

// Archive is what an ArchiveCommand came to.
type Archive struct {
	// Written and Removed count instances. What was written and not removed is named by a key
	// that lives, or was held by somebody.
	Written, Removed int
}

// Archive writes final instances, and with Remove removes them as Remover does. A batch is
// removed after all of it was written and flushed, and what was written is what is removed,
// since a final instance does not change. It may be broken off at any time: what was not
// removed is written again by the next Archive. With an error it returns what was done until
// then, of which the removal of the last batch may be missing.
//
// A batch of instances and the longest history are kept in memory. Without Remove nothing is
// written to the database.
//
// Kinds: Malformed, Unavailable; and what Write and Flush return.
func (s *Service) Archive(ctx context.Context, c ArchiveCommand) (Archive, error) {
	var a Archive
	if c.Batch <= 0 {
		c.Batch = 200
	}
	if c.OlderThan <= 0 || c.Limit < 0 {
		return a, errorf(Malformed, "the age must be positive, and the limit not negative")
	}
	for _, text := range append([]string{c.Tenant}, c.Workflows...) {
		if err := checkText("", text, 255); err != nil {
			return a, err
		}
	}
	pass := queries.FinalInstancesParams{
		Age:    pgtype.Interval{Microseconds: c.OlderThan.Microseconds(), Valid: true},
		Tenant: optional(c.Tenant),
	}
	if len(c.Workflows) > 0 {
		pass.Workflows = c.Workflows
	}
	for {
		pass.RowLimit = rowLimit(c.Batch)
		if c.Limit > 0 {
			pass.RowLimit = rowLimit(min(c.Batch, c.Limit-a.Written))
		}
		var page queries.FinalInstancesRow
		err := s.read(ctx, func(ctx context.Context, q *queries.Queries) (err error) {
			page, err = nextPage(ctx, q, &pass)
			return err
		})
		if err != nil {
			return a, err
		}
		if page.Ids, err = s.archivePage(ctx, page, c.Write); err != nil {
			return a, err
		}
		a.Written += len(page.Ids)
		if len(page.Ids) > 0 && c.Remove {
			if err := c.Flush(); err != nil {
				return a, err
			}
			removed, err := removeInstances(ctx, s.pool, page)
			if err != nil {
				return a, AsError(err)
			}
			a.Removed += len(removed)
		}
		if page.AtTenant == "" || c.Limit > 0 && a.Written >= c.Limit {
			return a, nil
		}
	}
}

// archivePage writes the instances of a page, and returns those that were still there.
func (s *Service) archivePage(ctx context.Context, page queries.FinalInstancesRow, write func(Archived) error) (written []uuid.UUID, err error) {
	var rows []queries.GetInstancesRow
	if len(page.Ids) > 0 {
		err := s.read(ctx, func(ctx context.Context, q *queries.Queries) (err error) {
			rows, err = q.GetInstances(ctx, queries.GetInstancesParams{TenantID: page.AtTenant, Ids: page.Ids})
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	slices.SortFunc(rows, func(a, b queries.GetInstancesRow) int { return slices.Compare(a.Instance.ID[:], b.Instance.ID[:]) })
	for _, row := range rows {
		i := Archived{Tenant: page.AtTenant, Instance: instanceOf(row.Instance, row.Actions)}
		if i.History, err = s.steps(ctx, page.AtTenant, i.ID); err != nil {
			return written, err
		}
		if int64(len(i.History)) != i.Version {
			continue // Somebody has removed it meanwhile.
		}
		if err := write(i); err != nil {
			return written, fmt.Errorf("archive: %w", err)
		}
		written = append(written, i.ID)
	}
	return written, nil
}

// steps reads the history of an instance.
func (s *Service) steps(ctx context.Context, tenant string, id uuid.UUID) (steps []Step, err error) {
	p := queries.ListHistoryParams{TenantID: tenant, InstanceID: id, RowLimit: MaxLimit}
	for {
		var rows []queries.History
		err := s.read(ctx, func(ctx context.Context, q *queries.Queries) (err error) {
			rows, err = q.ListHistory(ctx, p)
			return err
		})
		if err != nil {
			return nil, err
		}
		for _, row := range rows {
			steps = append(steps, stepOf(row))
			p.AfterVersion = row.Version
		}
		if len(rows) < MaxLimit {
			return steps, nil
		}
	}
}
