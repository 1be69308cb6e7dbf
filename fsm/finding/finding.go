package finding

import (
	"context"
	"encoding/json"
	"time"

	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/internal/database"
)

// A Kind says what is wrong.
type Kind string

// The kinds of findings.
const (
	// Orphaned: nothing will ever move the instance.
	Orphaned Kind = "orphaned"
	// Slow: the instance has been in its state for too long.
	Slow Kind = "slow"
	// TimerFailing: the step of a deadline cannot be made.
	TimerFailing Kind = "timer-failing"
	// ConnectionMissing: a task waits for a connection that there is not.
	ConnectionMissing Kind = "connection-missing"
	// TaskLate: a task was done, or may have been, after its state was left, and no step says so.
	TaskLate Kind = "task-late"
	// TaskDead: a task ended and made no step, and its state was not left.
	TaskDead Kind = "task-dead"
	// DeliveryDead: a delivery is a dead letter.
	DeliveryDead Kind = "delivery-dead"
	// HealFailed: the healer has made its attempts, and the instance is still stuck.
	HealFailed Kind = "heal-failed"
	// HealingPaused: so many instances of a workflow are stuck that none is healed.
	HealingPaused Kind = "healing-paused"
)

// Kinds are all kinds.
var Kinds = []Kind{Orphaned, Slow, TimerFailing, ConnectionMissing, TaskLate, TaskDead, DeliveryDead, HealFailed, HealingPaused}

// KindNames returns the names of all kinds.
func KindNames() []string {
	names := make([]string, len(Kinds))
	for i, kind := range Kinds {
		names[i] = string(kind)
	}
	return names
}

// A Finding is one thing that is, or was, wrong.
type Finding struct {
	ID   uuid.UUID
	Kind Kind
	// InstanceID is nil of HealingPaused, and so are State, Version and Since.
	InstanceID *uuid.UUID
	Workflow   string
	// State is what the instance was in when the finding was opened.
	State *string
	// Version is the step that began the visit of the state; of TaskLate the step that started the task, of DeliveryDead
	// the one that the delivery tells of.
	Version *int64
	// Since is when the instance came into the state.
	Since    *time.Time
	OpenedAt time.Time
	// ClosedAt is nil while the finding is open.
	ClosedAt *time.Time
	// Detail is a JSON object with what else is known. It has no payload and no context.
	Detail json.RawMessage
}

// Service shows findings. It may be used by several goroutines at once.
type Service struct {
	db *database.Client
}

// New returns a Service on the database of an fsm.Service.
func New(service *fsm.Service) *Service { return &Service{db: service.Database()} }

// A Filter chooses findings. A zero member chooses all of them.
type Filter struct {
	Kind            Kind
	Workflow, State string
	InstanceID      uuid.UUID
	// Open, if not nil, chooses the open ones or the closed ones.
	Open *bool
	// Within, if not nil, are the workflows whose findings are chosen.
	Within []string
}

// List returns findings of a tenant, the newest first. A cursor is valid only with the filter that it was given for.
// Kinds: Malformed (limit or cursor), Unavailable.
func (s *Service) List(ctx context.Context, tenant string, f Filter, page fsm.Page) (fsm.List[Finding], error) {
	if err := fsm.CheckTexts(
		fsm.Text{Value: string(f.Kind), Max: 255}, fsm.Text{Value: f.Workflow, Max: 255}, fsm.Text{Value: f.State, Max: 255},
	); err != nil {
		return fsm.List[Finding]{}, err
	}
	scope, err := json.Marshal(f)
	if err != nil {
		return fsm.List[Finding]{}, fsm.AsError(err)
	}
	items, next, err := database.List(ctx, s.db, database.Listing[queries.Finding, Finding]{
		Scope: "findings " + tenant + " " + string(scope),
		Rows: func(ctx context.Context, db queries.DBTX, after string, limit int32) ([]queries.Finding, error) {
			before, err := database.OptionalID(after)
			if err != nil {
				return nil, err
			}
			return database.Planned(db).ListFindings(ctx, queries.ListFindingsParams{
				TenantID: tenant, BeforeID: before, Kind: database.Optional(string(f.Kind)), Workflow: database.Optional(f.Workflow),
				State: database.Optional(f.State), InstanceID: database.Optional(f.InstanceID), Open: f.Open, Within: f.Within, RowLimit: limit,
			})
		},
		Item: Of,
		Key:  func(f Finding) string { return f.ID.String() },
	}, page.Limit, page.Cursor)
	return fsm.List[Finding]{Items: items, Next: next}, err
}

// Of returns the finding of a row.
func Of(f queries.Finding) Finding {
	return Finding{
		ID: f.ID, Kind: Kind(f.Kind), InstanceID: f.InstanceID, Workflow: f.Workflow, State: f.State, Version: f.VisitVersion,
		Since: f.Since, OpenedAt: f.OpenedAt, ClosedAt: f.ClosedAt, Detail: f.Detail,
	}
}

// maxCounted is how many findings of a kind are counted.
const maxCounted = 10_000

// Counts returns how many findings of each kind are open in the whole deployment, up to 10,000 of each.
// Kinds: Unavailable.
func (s *Service) Counts(ctx context.Context) (map[Kind]int64, error) {
	counts := make(map[Kind]int64, len(Kinds))
	err := s.db.Read(ctx, func(ctx context.Context, q *queries.Queries) error {
		rows, err := q.CountFindings(ctx, queries.CountFindingsParams{Kinds: KindNames(), Most: maxCounted})
		for _, row := range rows {
			counts[Kind(row.Kind)] = row.Findings
		}
		return err
	})
	return counts, err
}
