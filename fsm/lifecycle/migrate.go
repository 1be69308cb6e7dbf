package lifecycle

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/definition"
)

// MigrateCommand asks for a tenant's active instances of one version of a workflow to be moved to
// another version.
type MigrateCommand struct {
	Tenant   string // Default fsm.DefaultTenant. fsm.Deployment stands for all tenants, one after the other.
	Workflow string
	// From and To are versions of the workflow.
	From, To int
	// StateMap maps states of From to states of To that are not final. An instance in another state
	// keeps its state.
	StateMap map[string]string
	// States and IDs choose among the instances: those that are in one of the states and have one of the
	// ids. Default: all of them.
	States []string
	IDs    []uuid.UUID
	// DryRun says what would happen, and writes nothing.
	DryRun bool
	// Batch is how many instances are moved in one transaction. Commands for these instances wait for
	// it. Default 500.
	Batch int
	fsm.Origin
}

// Migration is the result of an instance migration, or of its dry run.
type Migration struct {
	// Total counts the active instances that were chosen, and Migrated those that were moved, or that a dry
	// run would have moved.
	Total, Migrated int
	// Moves counts the migrated instances by the states before and after, sorted by these.
	Moves []Move
	// Left lists the instances that were not moved, at most MaxLeft of them.
	Left []LeftInstance
}

// MaxLeft is how many instances Migration.Left lists at most.
const MaxLeft = 1000

// Move counts the instances that went from one state to another, or kept their state.
type Move struct {
	From, To string
	Count    int
}

// LeftInstance is an instance that stayed on its version.
type LeftInstance struct {
	ID    uuid.UUID
	State string
	// Reason is "state-unknown" if the other version has no such state; "state-protected" if the StateMap would
	// have it leave or enter a protected state; "state-final" if the state is final there; "unsettled" if
	// eventless transitions there would not come to rest; "task-open" while a task of its state may have been sent,
	// since the other version would send it again; "busy" if another transaction held the instance each time that it
	// was tried.
	Reason string
}

// Migrate moves active instances to another version of their workflow, a batch at a time. It waits for
// no instance: one that another transaction holds is tried again later. The context stays as it is and
// is not checked against a schema. A state that keeps its name keeps the time that the instance has
// spent in it, so that the new version's timeouts count from there; a state that StateMap names is
// entered anew. The lifetime stays, if both versions have one.
//
// A migration may be broken off and started again at any time: what is moved stays moved. With an error
// Migrate returns what was done until then, in which the last batch may be missing. While a migration of a
// tenant's workflow is under way, another one between other versions is refused. A migration that is broken
// off counts as under way until a minute after its last batch.
//
// Kinds: Malformed with every fault of the map or the filter, WorkflowNotFound, WorkflowConflict,
// TenantRequired, Unavailable.
func (s *Service) Migrate(ctx context.Context, c MigrateCommand) (Migration, error) {
	m := migration{service: s, moves: map[[2]string]int{}}
	err := m.run(ctx, c)
	for _, at := range slices.SortedFunc(maps.Keys(m.moves), func(a, b [2]string) int { return slices.Compare(a[:], b[:]) }) {
		m.Moves = append(m.Moves, Move{From: at[0], To: at[1], Count: m.moves[at]})
	}
	return m.Migration, err
}

// migration is a Migration under way.
type migration struct {
	Migration
	service *Service
	moves   map[[2]string]int // By the states from and to.
}

func (m *migration) run(ctx context.Context, c MigrateCommand) error {
	params, err := c.params()
	if err != nil {
		return err
	}
	tenants, err := m.service.fsm.TenantsOf(ctx, params.Tenant)
	if err != nil {
		return err
	}
	for _, params.Tenant = range tenants {
		if err := m.migrate(ctx, params, c.IDs); err != nil {
			return err
		}
	}
	return nil
}

// migrate moves the instances of one tenant.
func (m *migration) migrate(ctx context.Context, params queries.MigrateInstancesParams, chosen []uuid.UUID) error {
	busy, err := m.pass(ctx, params, chosen)
	// Other transactions are short, as a rule.
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

// params checks the command, and returns it as the engine's function takes it.
func (c *MigrateCommand) params() (queries.MigrateInstancesParams, error) {
	if c.Batch <= 0 {
		c.Batch = 500
	}
	if err := fsm.CheckOrigin(&c.Tenant, &c.Origin); err != nil {
		return queries.MigrateInstancesParams{}, err
	}
	var texts []fsm.Text
	for from, to := range c.StateMap {
		texts = append(texts,
			fsm.Text{Pointer: "/state_map", Value: from, Max: definition.MaxPathLength},
			fsm.Text{Pointer: "/state_map" + definition.Pointer(from), Value: to, Max: definition.MaxPathLength})
	}
	for i, state := range c.States {
		texts = append(texts, fsm.Text{Pointer: fmt.Sprintf("/filter/states/%d", i), Value: state, Max: definition.MaxPathLength})
	}
	if err := fsm.CheckTexts(texts...); err != nil {
		return queries.MigrateInstancesParams{}, err
	}
	if containsNUL(c.Workflow) {
		return queries.MigrateInstancesParams{}, fsm.NoWorkflow(c.Workflow, 0)
	}
	for _, version := range []int{c.From, c.To} {
		if version < 1 || version > 1<<31-1 {
			return queries.MigrateInstancesParams{}, fsm.NoVersion(c.Workflow, version)
		}
	}
	states := json.RawMessage(`{}`)
	if len(c.StateMap) > 0 {
		var err error
		if states, err = json.Marshal(c.StateMap); err != nil {
			return queries.MigrateInstancesParams{}, &fsm.Error{Kind: fsm.Internal, Cause: err}
		}
	}
	return queries.MigrateInstancesParams{
		Tenant: c.Tenant, Workflow: c.Workflow, FromVersion: int32(c.From), ToVersion: int32(c.To), StateMap: states,
		RowLimit: int32(min(c.Batch, 1<<31-1)), Actor: c.Actor, DryRun: c.DryRun, States: c.States, Reason: c.Reason,
		CorrelationID: c.CorrelationID, Traceparent: c.Traceparent,
	}, nil
}

// pass goes once through all chosen instances, or only through those with the ids if there are any. It
// returns those that another transaction held.
func (m *migration) pass(ctx context.Context, p queries.MigrateInstancesParams, ids []uuid.UUID) (busy []LeftInstance, err error) {
	p.Ids, p.Caller = ids, fsm.CallerJSON(ctx)
	for {
		var rows []queries.MigrateInstancesRow
		call := func(q *queries.Queries) (err error) {
			rows, err = q.MigrateInstances(ctx, p)
			return err
		}
		if p.DryRun {
			err = m.service.db.Linger(ctx, pgx.TxOptions{AccessMode: pgx.ReadOnly}, "30s", call)
		} else {
			err = m.service.db.ChangeAll(ctx, "30s", call)
		}
		if err != nil {
			return busy, fsm.AsError(err)
		}
		for _, r := range rows {
			switch r.Result {
			case "gone": // It has ended or was migrated by another command, so it is no longer chosen.
				continue
			case "migrated", "would-migrate":
				m.Total++
				m.Migrated++
				m.moves[[2]string{r.FromState, r.ToState}]++
			case "busy":
				busy = append(busy, LeftInstance{ID: r.ID, State: r.FromState, Reason: r.Result})
			default:
				m.leave(LeftInstance{ID: r.ID, State: r.FromState, Reason: r.Result})
			}
		}
		if len(rows) < int(p.RowLimit) {
			return busy, nil
		}
		p.After = &rows[len(rows)-1].ID
	}
}

// leave adds an instance that stays on its version.
func (m *migration) leave(i LeftInstance) {
	m.Total++
	if len(m.Left) < MaxLeft {
		m.Left = append(m.Left, i)
	}
}
