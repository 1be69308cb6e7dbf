package lifecycle

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/definition"
	"github.com/pawl-fsm/pawl/fsm/internal/database"
)

// Workflow is one registered version of a workflow.
type Workflow struct {
	Name string
	// Version is 1, 2, 3 …; 0 never occurs.
	Version int
	// Checksum is the SHA-256 of the canonical definition's jsonb text, in hexadecimal.
	Checksum string
	// Definition is canonical, as JSON.
	Definition json.RawMessage
	// CreatedAt and CreatedBy are when and by which actor it was registered. After a dry run that would
	// register it they are zero.
	CreatedAt time.Time
	CreatedBy string
}

func workflowOf(w queries.Workflow) Workflow {
	return Workflow{
		Name: w.Name, Version: int(w.Version), Checksum: w.Checksum, Definition: w.Definition,
		CreatedAt: w.CreatedAt, CreatedBy: w.CreatedBy,
	}
}

// Model reads the definition. Faults do not count: what is registered runs, even if it was registered
// through SQL with faults that Register refuses.
// Kinds: Internal.
func (w Workflow) Model() (*definition.Definition, error) {
	d, err := definition.ParseStored(w.Definition)
	if err != nil {
		return nil, &fsm.Error{Kind: fsm.Internal, Cause: fmt.Errorf("workflow %s, version %d: %w", w.Name, w.Version, err)}
	}
	return d, nil
}

// Registration is the result of Register.
type Registration struct {
	Workflow
	// Created is false if the latest version has the same content already, and in a dry run.
	Created bool
}

// A Confirmation says that a caller means what loses data.
type Confirmation string

// ShortenRetention confirms that final instances are kept for a shorter time, and that older ones are purged at once.
const ShortenRetention Confirmation = "shorten-retention"

// Register checks a definition and makes it the next version of the workflow with the given name,
// unless the latest version has the same content. If name is empty, the definition's own is taken; an empty
// actor is "anonymous". A dry run does all of that and rolls it back.
//
// A version that keeps final instances for a shorter time than the latest one is a WorkflowConflict, unless
// ShortenRetention is among the confirmations. A retention below the service's floor is a fault.
//
// Kinds: Malformed, TooLarge, InvalidDefinition with every fault, WorkflowConflict, Unavailable.
func (s *Service) Register(
	ctx context.Context, name string, data []byte, actor string, dryRun bool, confirmed ...Confirmation,
) (Registration, error) {
	if actor == "" {
		actor = "anonymous"
	}
	if err := fsm.CheckTexts(fsm.Text{Value: actor, Max: 255}); err != nil {
		return Registration{}, err
	}
	// With the connections of changes, so that reads do not hold it up.
	def, canonical, err := readDefinition(ctx, s.db.Change, name, data)
	if err != nil {
		return Registration{}, err
	}
	var version *int32
	if v := int32(def.Version); v != 0 { // It was read as at most 1<<31-1.
		version = &v
	}

	var registered Registration
	errDryRun := errors.New("dry run")
	// The engine checks the definition again. That takes time if it is large.
	err = s.db.ChangeAll(ctx, "30s", func(q *queries.Queries) error {
		p := queries.RegisterWorkflowParams{
			Definition: canonical, Actor: actor, Version: version, Caller: fsm.CallerJSON(ctx),
			RetentionFloor: pgtype.Interval{Microseconds: s.fsm.RetentionFloor().Microseconds(), Valid: s.fsm.RetentionFloor() > 0},
		}
		if slices.Contains(confirmed, ShortenRetention) {
			confirm := string(ShortenRetention)
			p.Confirm = &confirm
		}
		row, err := q.RegisterWorkflow(ctx, p)
		if err != nil {
			return err
		}
		w, err := q.GetWorkflowVersion(ctx, queries.GetWorkflowVersionParams{Name: def.Name, Version: row.Version})
		if err != nil {
			return err
		}
		registered = Registration{Workflow: workflowOf(w), Created: row.Created}
		if dryRun {
			if row.Created {
				registered.CreatedAt, registered.CreatedBy = time.Time{}, ""
			}
			registered.Created = false
			return errDryRun
		}
		return nil
	})
	switch {
	case errors.Is(err, errDryRun):
		return registered, nil
	case err != nil:
		return Registration{}, fsm.AsError(err)
	}
	return registered, nil
}

// readDefinition checks a definition as far as it can be checked before it is stored, and returns it
// with its canonical form.
func readDefinition(ctx context.Context, call caller, name string, data []byte) (*definition.Definition, json.RawMessage, error) {
	limits, err := limitsOf(ctx, call)
	if err != nil {
		return nil, nil, fsm.AsError(err)
	}
	draft, err := definition.ReadWith(data, name, limits, lookup(ctx, call, limits))
	if err != nil {
		return nil, nil, fsm.AsError(err)
	}
	if len(draft.Paths) > 0 {
		err := call(ctx, func(ctx context.Context, q *queries.Queries) error { return checkPaths(ctx, q, draft) })
		if err != nil {
			return nil, nil, fsm.AsError(err)
		}
	}
	if err := draft.Err(); err != nil {
		return nil, nil, fsm.AsError(err)
	}
	canonical, err := json.Marshal(&draft.Definition)
	if err != nil {
		return nil, nil, &fsm.Error{Kind: fsm.Internal, Cause: err}
	}
	if len(canonical) > limits.Bytes && len(draft.Definition.Schemas) > 0 {
		return nil, nil, fsm.Errorf(fsm.TooLarge, "a definition must have at most %d bytes, with the schemas of the deployment that it refers to", limits.Bytes)
	}
	return &draft.Definition, canonical, nil
}

// checkPaths adds a fault for each guard and assign that PostgreSQL cannot parse, or not in the time that a
// statement has. Only regular expressions take long.
func checkPaths(ctx context.Context, q *queries.Queries, draft *definition.Draft) error {
	all := slices.Concat(slices.Collect(maps.Values(draft.Paths))...)
	slices.Sort(all)
	rows, err := q.JSONPathErrors(ctx, slices.Compact(all))
	wrong := map[string]string{}
	for _, row := range rows {
		wrong[row.Path] = row.Error
	}
	if database.IsCode(err, database.QueryCanceled) {
		for at, paths := range draft.Paths {
			if strings.Contains(strings.Join(paths, " "), "like_regex") {
				draft.Fault(at, "the regular expressions here, and those of other guards and assigns, take too long to parse; make them simpler")
				err = nil
			}
		}
		return err
	}
	for at, paths := range draft.Paths {
		for _, path := range paths {
			if detail := wrong[path]; detail != "" {
				draft.Fault(at, "is no SQL/JSON path that can be used: "+detail)
			}
		}
	}
	return err
}

// GetWorkflow returns a version of a workflow, or the latest one for version 0.
// Kinds: WorkflowNotFound, Unavailable.
func (s *Service) GetWorkflow(ctx context.Context, name string, version int) (Workflow, error) {
	w, err := readVersion(ctx, s, name, version, fsm.NoWorkflow(name, version), (*queries.Queries).GetWorkflow,
		func(q *queries.Queries, ctx context.Context, name string, version int32) (queries.Workflow, error) {
			return q.GetWorkflowVersion(ctx, queries.GetWorkflowVersionParams{Name: name, Version: version})
		})
	return workflowOf(w), err
}

// readVersion reads a version of what has a name, or the latest one for version 0. absent is the error if there is
// none.
func readVersion[Row any](
	ctx context.Context, s *Service, name string, version int, absent error,
	latest func(*queries.Queries, context.Context, string) (Row, error),
	numbered func(*queries.Queries, context.Context, string, int32) (Row, error),
) (row Row, err error) {
	if containsNUL(name) || version < 0 || version > 1<<31-1 {
		return row, absent
	}
	err = s.db.Read(ctx, func(ctx context.Context, q *queries.Queries) (err error) {
		if version == 0 {
			row, err = latest(q, ctx, name)
		} else {
			row, err = numbered(q, ctx, name, int32(version))
		}
		if errors.Is(err, pgx.ErrNoRows) {
			return absent
		}
		return err
	})
	return row, err
}

// ListWorkflows returns the latest version of each workflow, by name. within, if not nil, has the names to choose among.
// Kinds: Malformed (limit or cursor), Unavailable.
func (s *Service) ListWorkflows(ctx context.Context, within []string, page fsm.Page) (fsm.List[Workflow], error) {
	items, next, err := database.List(ctx, s.db, database.Listing[queries.Workflow, Workflow]{
		Scope: "workflows",
		Rows: func(ctx context.Context, db queries.DBTX, after string, limit int32) ([]queries.Workflow, error) {
			return queries.New(db).ListWorkflows(ctx, queries.ListWorkflowsParams{
				After: after, RowLimit: limit, Bytes: fsm.PageBytes, Workflows: within,
			})
		},
		Bytes: func(w queries.Workflow) int { return len(w.Definition) },
		Item:  workflowOf,
		Key:   func(w Workflow) string { return w.Name },
	}, page.Limit, page.Cursor)
	return fsm.List[Workflow]{Items: items, Next: next}, err
}

// containsNUL reports whether a text has a NUL. PostgreSQL cannot store one, so nothing has such a name.
func containsNUL(text string) bool { return strings.ContainsRune(text, 0) }
