package fsm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pawl-fsm/pawl/db/queries"
)

// WorkflowVersion is one version of a workflow and what it is used for.
type WorkflowVersion struct {
	Version   int
	Checksum  string // See Workflow.Checksum.
	CreatedAt time.Time
	CreatedBy string
	// Instances counts those of a tenant by state, finished ones too; states without any
	// are left out.
	Instances map[string]int64
}

// Versions returns all versions of a workflow, the latest first. It counts the tenant's
// instances of the workflow, which for millions takes seconds.
// Kinds: WorkflowNotFound, Unavailable.
func (s *Service) Versions(ctx context.Context, tenant, name string) ([]WorkflowVersion, error) {
	var rows []queries.ListVersionsRow
	err := notFound(pgx.ErrNoRows, WorkflowNotFound, "there is no such workflow")
	if !containsNUL(name) && !containsNUL(tenant) {
		err = s.patient(ctx, pgx.TxOptions{AccessMode: pgx.ReadOnly}, "10s", func(q *queries.Queries) (err error) {
			rows, err = q.ListVersions(ctx, queries.ListVersionsParams{TenantID: tenant, Name: name})
			if err == nil && len(rows) == 0 {
				return notFound(pgx.ErrNoRows, WorkflowNotFound, "there is no such workflow")
			}
			return err
		})
	}
	if err != nil {
		return nil, AsError(err)
	}
	versions := make([]WorkflowVersion, len(rows))
	for i, r := range rows {
		versions[i] = WorkflowVersion{
			Version: int(r.Version), Checksum: r.Checksum, CreatedAt: r.CreatedAt, CreatedBy: r.CreatedBy,
		}
		if err := json.Unmarshal(r.Instances, &versions[i].Instances); err != nil {
			return nil, &Error{Kind: Internal, cause: err}
		}
	}
	return versions, nil
}

// Retire removes a version of a workflow that no instance uses, of whatever tenant and
// finished or not. Commands wait while the workflow's instances are counted. If it was the
// latest, its number is given again, unless instances were migrated away from it, whose
// history names it.
// Kinds: WorkflowNotFound, WorkflowConflict if instances use it, Unavailable.
func (s *Service) Retire(ctx context.Context, name string, version int) error {
	if version < 1 { // GetWorkflow takes 0 for the latest.
		return errorf(WorkflowNotFound, "there is no such workflow, or no such version of it")
	}
	w, err := s.GetWorkflow(ctx, name, version)
	if err != nil {
		return err
	}
	err = s.patient(ctx, pgx.TxOptions{}, "30s", func(q *queries.Queries) error {
		retired, err := q.RetireWorkflow(ctx, queries.RetireWorkflowParams{
			Name: name, Checksum: w.Checksum, Version: int32(w.Version),
		})
		if err == nil && !retired {
			return errorf(WorkflowNotFound, "somebody else has retired this version")
		}
		return err
	})
	if err != nil {
		return AsError(err)
	}
	return s.validate(ctx, name)
}

// MigrateCommand asks for a tenant's active instances of one version of a workflow to be
// moved to another.
type MigrateCommand struct {
	Tenant   string // Default DefaultTenant.
	Workflow string
	From, To int
	// StateMap says where instances in a state of From go: to an active state of To. Those
	// in other states keep their state's name.
	StateMap map[string]string
	// States and IDs choose among the instances; nil for all.
	States []string
	IDs    []uuid.UUID
	// DryRun says what would happen, and writes nothing.
	DryRun bool
	// Batch is how many instances are moved in one transaction, behind which their commands
	// wait. Default 500.
	Batch int
	Origin
}

// Migration is what a migration came to, or would come to.
type Migration struct {
	// Total counts the active instances that were to be moved, and Migrated those that were,
	// or in a dry run would be.
	Total, Migrated int
	// Moves counts the migrated by their states, in the order of these.
	Moves []Move
	// Left lists the others, the first MaxLeft of them.
	Left []LeftInstance
}

// MaxLeft is how many instances a Migration lists.
const MaxLeft = 1000

// Move counts instances that went from one state to another, or kept their state.
type Move struct {
	From, To string
	Count    int
}

// LeftInstance is an instance that stayed at its version.
type LeftInstance struct {
	ID    uuid.UUID
	State string
	// Reason is "state-unknown" if the other version has no such state, "state-final" if it
	// is final there, "unsettled" if eventless transitions would come to no rest there, or
	// "busy" if commands or other transactions held the instance each
	// time it was tried.
	Reason string
}

// Migrate moves live instances to another version of their workflow, a batch at a time, and
// waits for none: those that somebody holds are tried again afterwards. Their context stays
// as it is, and is not checked. A state that keeps its name keeps the time that was spent
// in it, so that the new version's timeouts count from there; one that StateMap names is
// entered anew. The lifetime stays, if both versions have one.
//
// It may be broken off and begun again at any time, since what is moved is moved. With an
// error it returns what was done until then, of which the last batch may be missing. While
// one migration of a tenant's workflow is under way, and until a minute after its last
// batch if it is broken off, another between other versions is refused.
//
// Kinds: Malformed with every fault of the map or the filter, WorkflowNotFound,
// WorkflowConflict, Unavailable.
func (s *Service) Migrate(ctx context.Context, c MigrateCommand) (Migration, error) {
	m := migration{service: s, moves: map[[2]string]int{}}
	err := m.run(ctx, c)
	for _, at := range slices.SortedFunc(maps.Keys(m.moves), func(a, b [2]string) int { return slices.Compare(a[:], b[:]) }) {
		m.Moves = append(m.Moves, Move{From: at[0], To: at[1], Count: m.moves[at]})
	}
	return m.Migration, err
}

type migration struct {
	Migration
	service *Service
	moves   map[[2]string]int
}

func (m *migration) run(ctx context.Context, c MigrateCommand) error {
	params, err := c.params()
	if err != nil {
		return err
	}
	busy, err := m.pass(ctx, params, c.IDs)
	// Whoever holds an instance is done with it soon, as a rule.
	const rounds = 6
	for round := 1; round < rounds && len(busy) > 0 && err == nil; round++ {
		select {
		case <-time.After(time.Duration(round*round) * 10 * time.Millisecond):
		case <-ctx.Done():
		}
		ids := make([]uuid.UUID, len(busy))
		for i, b := range busy {
			ids[i] = b.ID
		}
		busy, err = m.pass(ctx, params, ids)
	}
	for _, b := range busy {
		m.leave(b)
	}
	return err
}

func (c *MigrateCommand) params() (queries.MigrateInstancesParams, error) {
	if c.Batch <= 0 {
		c.Batch = 500
	}
	if err := c.Origin.normalise(&c.Tenant); err != nil {
		return queries.MigrateInstancesParams{}, err
	}
	var texts []boundedText
	for from, to := range c.StateMap {
		texts = append(texts, boundedText{"/state_map", from, maxStatePath}, boundedText{"/state_map" + pointer(from), to, maxStatePath})
	}
	for i, state := range c.States {
		texts = append(texts, boundedText{fmt.Sprintf("/filter/states/%d", i), state, maxStatePath})
	}
	if err := checkTexts(texts...); err != nil {
		return queries.MigrateInstancesParams{}, err
	}
	if containsNUL(c.Workflow) || min(c.From, c.To) < 1 || max(c.From, c.To) > 1<<31-1 {
		return queries.MigrateInstancesParams{}, errorf(WorkflowNotFound, "there is no such workflow, or no such version of it")
	}
	states := rawJSON(emptyJSON)
	if len(c.StateMap) > 0 {
		var err error
		if states, err = json.Marshal(c.StateMap); err != nil {
			return queries.MigrateInstancesParams{}, &Error{Kind: Internal, cause: err}
		}
	}
	return queries.MigrateInstancesParams{
		Tenant: c.Tenant, Workflow: c.Workflow, FromVersion: int32(c.From), ToVersion: int32(c.To), StateMap: states,
		RowLimit: int32(min(c.Batch, 1<<31-1)), Actor: c.Actor, DryRun: c.DryRun, States: c.States, Reason: c.Reason,
		CorrelationID: c.CorrelationID, Traceparent: c.Traceparent,
	}, nil
}

// pass goes once through the instances, or through those given, and returns those that
// somebody held.
func (m *migration) pass(ctx context.Context, p queries.MigrateInstancesParams, ids []uuid.UUID) (busy []LeftInstance, err error) {
	options := pgx.TxOptions{}
	if p.DryRun {
		options.AccessMode = pgx.ReadOnly
	}
	p.Ids = ids
	for {
		var rows []queries.MigrateInstancesRow
		err := m.service.patient(ctx, options, "30s", func(q *queries.Queries) (err error) {
			rows, err = q.MigrateInstances(ctx, p)
			return migrationFault(err)
		})
		if err != nil {
			return busy, AsError(err)
		}
		for _, r := range rows {
			switch r.Outcome {
			case "gone": // It ended, or somebody moved it: it was not to be moved.
				continue
			case "migrated", "would-migrate":
				m.Total++
				m.Migrated++
				m.moves[[2]string{r.FromState, r.ToState}]++
			case "busy":
				busy = append(busy, LeftInstance{ID: r.ID, State: r.FromState, Reason: r.Outcome})
			default:
				m.leave(LeftInstance{ID: r.ID, State: r.FromState, Reason: r.Outcome})
			}
		}
		if len(rows) < int(p.RowLimit) {
			return busy, nil
		}
		p.After = &rows[len(rows)-1].ID
	}
}

func (m *migration) leave(i LeftInstance) {
	m.Total++
	if len(m.Left) < MaxLeft {
		m.Left = append(m.Left, i)
	}
}

// migrationFault is what the function refuses as an *Error.
func migrationFault(err error) error {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	switch {
	case ok && pg.Code == "PW404":
		return &Error{Kind: WorkflowNotFound, Message: pg.Message, cause: err}
	case ok && pg.Code == "PW422":
		var detail struct {
			Errors []struct{ Pointer, Detail string }
		}
		e := &Error{Kind: Malformed, Message: pg.Message, cause: err}
		if json.Unmarshal([]byte(pg.Detail), &detail) == nil {
			for _, f := range detail.Errors {
				if strings.HasPrefix(f.Pointer, "/states/") {
					f.Pointer = "/filter" + f.Pointer // The function takes the states of the filter as an argument of its own.
				}
				e.Faults = append(e.Faults, Fault{Pointer: f.Pointer, Detail: f.Detail})
			}
		}
		return e
	default:
		return err
	}
}
