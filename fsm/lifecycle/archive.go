package lifecycle

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/internal/final"
)

// ArchiveCommand asks for final instances to be written somewhere else and, with Purge, to be purged.
type ArchiveCommand struct {
	// Tenant and Workflows choose among the instances. Default: all of them.
	Tenant    string
	Workflows []string
	// OlderThan is for how long the instances must have been final, by the database's clock. It must be
	// positive.
	OlderThan time.Duration
	// Limit is how many instances to write at most. Default: all of them.
	Limit int
	// Write gets the instances one by one: by tenant, workflow and status, the oldest first. It is
	// required.
	Write func(Archived) error
	// Purge also purges the instances that were written.
	Purge bool
	// Flush makes what was written durable, before it is purged. It is required with Purge.
	Flush func() error
	// Batch is how many instances are read, and purged, at once. Default 200.
	Batch int
}

// Archived is an instance with its history.
type Archived struct {
	// Tenant is the one that the instance belongs to.
	Tenant string
	fsm.Instance
	// History has all of its steps, in order.
	History []fsm.Step
}

// Archive counts what an ArchiveCommand did.
type Archive struct {
	// Written and Purged count instances. An instance that was written and not purged is still replayed by
	// a key, or was locked by another transaction.
	Written, Purged int
}

// Archive writes final instances and, with Purge, purges them as worker.InstancePurger does. A batch is
// purged after all of it was written and flushed. A final instance does not change, so what is purged is what
// was written.
//
// It may be broken off at any time: the next Archive writes again what was not purged. With an error it
// returns what was done until then, in which the purge of the last batch may be missing. It keeps a batch of
// instances, and one whole history, in memory. Without Purge it writes nothing to the database.
//
// Kinds: Malformed, Unavailable. The errors of Write and Flush are returned too, that of Write wrapped.
func (s *Service) Archive(ctx context.Context, c ArchiveCommand) (Archive, error) {
	var a Archive
	if c.Batch <= 0 {
		c.Batch = 200
	}
	if c.OlderThan <= 0 || c.Limit < 0 {
		return a, fsm.Errorf(fsm.Malformed, "the age must be positive, and the limit not negative")
	}
	for _, text := range append([]string{c.Tenant}, c.Workflows...) {
		if err := fsm.CheckTexts(fsm.Text{Value: text, Max: 255}); err != nil {
			return a, err
		}
	}
	pass := final.Pass{Tenant: c.Tenant, OlderThan: c.OlderThan}
	if len(c.Workflows) > 0 {
		pass.Workflows = c.Workflows
	}
	for {
		limit := c.Batch
		if c.Limit > 0 {
			limit = min(c.Batch, c.Limit-a.Written)
		}
		var page final.Page
		err := s.db.Read(ctx, func(ctx context.Context, q *queries.Queries) (err error) {
			page, err = pass.Next(ctx, q, limit)
			return err
		})
		if err != nil {
			return a, err
		}
		if page.IDs, err = s.archivePage(ctx, page, c.Write); err != nil {
			return a, err
		}
		a.Written += len(page.IDs)
		if len(page.IDs) > 0 && c.Purge {
			if err := c.Flush(); err != nil {
				return a, err
			}
			purged, err := page.Purge(ctx, s.db.Pool())
			if err != nil {
				return a, fsm.AsError(err)
			}
			a.Purged += len(purged)
		}
		if page.Last || c.Limit > 0 && a.Written >= c.Limit {
			return a, nil
		}
	}
}

// archivePage writes the instances of a page, and returns those that were still there.
func (s *Service) archivePage(ctx context.Context, page final.Page, write func(Archived) error) (written []uuid.UUID, err error) {
	slices.SortFunc(page.IDs, func(a, b uuid.UUID) int { return slices.Compare(a[:], b[:]) })
	// Contexts may be large: read a few at a time.
	for ids := range slices.Chunk(page.IDs, 20) {
		var rows []queries.GetInstancesRow
		err = s.db.Read(ctx, func(ctx context.Context, q *queries.Queries) (err error) {
			rows, err = q.GetInstances(ctx, queries.GetInstancesParams{
				Tenants: slices.Repeat([]string{page.Tenant}, len(ids)), Ids: ids,
			})
			return err
		})
		if err != nil {
			return written, err
		}
		slices.SortFunc(rows, func(a, b queries.GetInstancesRow) int { return slices.Compare(a.ID[:], b.ID[:]) })
		for _, row := range rows {
			i := Archived{Tenant: page.Tenant, Instance: fsm.InstanceOfRow(row)}
			if i.History, err = s.steps(ctx, page.Tenant, i.ID); err != nil {
				return written, err
			}
			if int64(len(i.History)) != i.Version {
				continue // Another process has purged it meanwhile.
			}
			if err := write(i); err != nil {
				return written, fmt.Errorf("archive: %w", err)
			}
			written = append(written, i.ID)
		}
	}
	return written, nil
}

// steps reads the whole history of an instance.
func (s *Service) steps(ctx context.Context, tenant string, id uuid.UUID) (steps []fsm.Step, err error) {
	p := queries.ListHistoryParams{TenantID: tenant, InstanceID: id, RowLimit: fsm.MaxLimit, Bytes: fsm.PageBytes}
	for {
		var rows []queries.History
		err := s.db.Read(ctx, func(ctx context.Context, q *queries.Queries) (err error) {
			rows, err = q.ListHistory(ctx, p)
			return err
		})
		if err != nil {
			return nil, err
		}
		if len(rows) == 0 {
			return steps, nil
		}
		for _, row := range rows {
			steps = append(steps, fsm.StepOf(row))
			p.AfterVersion = row.Version
		}
	}
}
