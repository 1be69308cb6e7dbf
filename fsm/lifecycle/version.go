package lifecycle

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/fsm"
)

// WorkflowVersion is one version of a workflow and how many instances use it.
type WorkflowVersion struct {
	Version  int
	Checksum string // See Workflow.Checksum.
	// CreatedAt and CreatedBy are when and by which actor it was registered.
	CreatedAt time.Time
	CreatedBy string
	// Instances counts a tenant's instances by state, final ones included. A state without instances is
	// left out.
	Instances map[string]int64
}

// Versions returns all versions of a workflow, the latest first. It counts the tenant's instances of
// the workflow, or those of all tenants for fsm.Deployment, which takes seconds for millions of them.
// Kinds: WorkflowNotFound, TenantRequired, Unavailable.
func (s *Service) Versions(ctx context.Context, tenant, name string) ([]WorkflowVersion, error) {
	missing := fsm.NoWorkflow(name, 0)
	if containsNUL(name) || containsNUL(tenant) {
		return nil, missing
	}
	tenants, err := s.fsm.TenantsOf(ctx, tenant)
	if err != nil {
		return nil, err
	}
	var rows []queries.ListVersionsRow
	err = s.db.Linger(ctx, pgx.TxOptions{AccessMode: pgx.ReadOnly}, "10s", func(q *queries.Queries) (err error) {
		rows, err = q.ListVersions(ctx, queries.ListVersionsParams{Tenants: tenants, Name: name})
		if err == nil && len(rows) == 0 {
			return missing
		}
		return err
	})
	if err != nil {
		return nil, fsm.AsError(err)
	}
	versions := make([]WorkflowVersion, len(rows))
	for i, r := range rows {
		versions[i] = WorkflowVersion{
			Version: int(r.Version), Checksum: r.Checksum, CreatedAt: r.CreatedAt, CreatedBy: r.CreatedBy,
		}
		if err := json.Unmarshal(r.Instances, &versions[i].Instances); err != nil {
			return nil, &fsm.Error{Kind: fsm.Internal, Cause: err}
		}
	}
	return versions, nil
}

// Retire deletes a version of a workflow. No instance of any tenant may use it, not even a final one.
// Commands wait while the workflow's instances are counted. The number of the latest version is given again
// after its retirement, unless instances were migrated away from it: their history names it.
// Kinds: WorkflowNotFound, WorkflowConflict if instances use the version, Unavailable.
func (s *Service) Retire(ctx context.Context, name string, version int) error {
	if version < 1 { // GetWorkflow takes 0 for the latest.
		return fsm.NoVersion(name, version)
	}
	w, err := s.GetWorkflow(ctx, name, version)
	if err != nil {
		return err
	}
	err = s.db.ChangeAll(ctx, "30s", func(q *queries.Queries) error {
		retired, err := q.RetireWorkflow(ctx, queries.RetireWorkflowParams{
			Name: name, Checksum: w.Checksum, Version: int32(w.Version), Caller: fsm.CallerJSON(ctx),
		})
		if err == nil && !retired {
			return fsm.Errorf(fsm.WorkflowNotFound, "somebody else has retired version %d of workflow %q", version, name)
		}
		return err
	})
	if err != nil {
		return fsm.AsError(err)
	}
	return nil
}

// An Indexing says how far the instances of a workflow are indexed by its latest version's search attributes.
type Indexing struct {
	// Indexed of Total instances are indexed, of all tenants.
	Indexed, Total int64
	// Complete: all are.
	Complete bool
}

// reindexed is how many instances one statement of Reindex looks at, while nothing is folded.
const reindexed = 1000

// Reindex indexes instances of a workflow by the search attributes of its latest version, as many as take half a second,
// and says how far it has come. What is done is kept: whoever calls it again goes on, until Indexing.Complete.
// Kinds: WorkflowNotFound, Unavailable.
func (s *Service) Reindex(ctx context.Context, name string) (i Indexing, err error) {
	end := time.Now().Add(500 * time.Millisecond)
	for !i.Complete && time.Now().Before(end) { // bounded: by the clock
		err = s.db.Change(ctx, func(ctx context.Context, q *queries.Queries) error {
			r, err := q.ReindexWorkflow(ctx, queries.ReindexWorkflowParams{Workflow: name, RowLimit: reindexed})
			i = Indexing{Indexed: r.Indexed, Total: r.Total, Complete: r.Complete}
			return err
		})
		switch {
		case errors.Is(err, fsm.WorkflowNotFound):
			return Indexing{}, fsm.NoWorkflow(name, 0)
		case err != nil:
			return Indexing{}, err
		}
	}
	return i, nil
}
