package task

import (
	"context"
	"encoding/json"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/internal/database"
	"github.com/pawl-fsm/pawl/fsm/live"
)

// A Status is where a task is in its life.
type Status string

// A Task is work that an instance has asked for.
type Task struct {
	ID, InstanceID  uuid.UUID
	Workflow        string
	WorkflowVersion int
	// State is the state that declares it; of a compensation, the undoing state.
	State string
	// Name is its name in the definition; of a compensation, the name of what it undoes.
	Name         string
	Compensation bool
	// Topic is nil for a call, and Connection for work.
	Topic, Connection *string
	Status            Status
	// Error says why the last attempt or the task failed; nil if nothing has.
	Error *string
	// Attempts counts the attempts, and Key is that of the last ones.
	Attempts int
	Key      string
	// Worker is who has the lease; nil if nobody has.
	Worker   *string
	Progress json.RawMessage
	// DueAt is when the next attempt is due, and LeaseExpiresAt when the lease is over; nil if there is none.
	DueAt, LeaseExpiresAt *time.Time
	DeadlineAt            time.Time
	// LeftAt is when the instance left its state while it was open; nil if it has not.
	LeftAt    *time.Time
	CreatedAt time.Time
	EndedAt   *time.Time
}

// An Attempt is one of a task, or a question about one.
type Attempt struct {
	Number      int
	Reconciling bool
	Key         string
	// Worker is the worker, or the process that sent the call.
	Worker    *string
	StartedAt time.Time
	// EndedAt and Result are nil while it is under way. Status is that of the answer, and Error says why it failed; nil if
	// there is none.
	EndedAt *time.Time
	Result  *string
	Status  *int
	Error   *string
}

// Service lets workers have tasks, and shows tasks. It may be used by several goroutines at once.
type Service struct {
	fsm     *fsm.Service
	db      *database.Client
	hub     *live.Hub
	began   time.Time
	claims  *fsm.Batch[ClaimCommand, []Work]
	settles *fsm.Batch[report, queries.TaskSettled]

	mu    sync.Mutex
	lines map[lineName]*line
}

// New returns a Service on the database of an fsm.Service. The hub is of the same database, and wakes the claims that
// wait. Without one (nil) they look once a second.
func New(service *fsm.Service, hub *live.Hub) *Service {
	db := service.Database()
	if hub == nil {
		hub = live.NewHub(db.Pool(), live.HubConfig{})
	}
	s := &Service{fsm: service, db: db, hub: hub, began: time.Now(), lines: map[lineName]*line{}}
	s.claims = fsm.NewBatch(service, "claim", func(c ClaimCommand) string { return "key " + c.Key }, claim)
	s.settles = fsm.NewBatch(service, "settle", func(r report) string { return "task " + r.id.String() }, s.settle)
	return s
}

const noTask = "there is no such task"

// ErrNone is the error for a task that does not exist.
var ErrNone error = fsm.Errorf(fsm.NotFound, noTask)

// TenantOf returns the tenant that has a task.
// Kinds: NotFound, TenantRequired, Unavailable.
func (s *Service) TenantOf(ctx context.Context, id uuid.UUID) (string, error) {
	return fsm.FindTenant(ctx, s.db, ErrNone, func(ctx context.Context, q *queries.Queries) (string, error) {
		return q.TenantOfTask(ctx, id)
	})
}

// Get returns a task.
// Kinds: NotFound, Unavailable.
func (s *Service) Get(ctx context.Context, tenant string, id uuid.UUID) (Task, error) {
	var row queries.TaskRow
	err := s.db.Read(ctx, func(ctx context.Context, q *queries.Queries) (err error) {
		row, err = q.GetTask(ctx, queries.GetTaskParams{TenantID: tenant, ID: id})
		return fsm.IfNoRows(err, fsm.NotFound, noTask)
	})
	return taskOf(row), err
}

func taskOf(t queries.TaskRow) Task {
	return Task{
		ID: t.ID, InstanceID: t.InstanceID, Workflow: t.Workflow, WorkflowVersion: int(t.WorkflowVersion), State: t.State, Name: t.Name,
		Compensation: t.Compensation, Topic: t.Topic, Connection: t.Connection, Status: Status(t.Status), Error: t.Error,
		Attempts: int(t.Attempts), Key: t.Key, Worker: t.Worker, Progress: t.Progress, DueAt: t.DueAt, LeaseExpiresAt: t.LeasedUntil,
		DeadlineAt: t.DeadlineAt, LeftAt: t.LeftAt, CreatedAt: t.CreatedAt, EndedAt: t.EndedAt,
	}
}

// A Filter chooses tasks. A zero member chooses all of them.
type Filter struct {
	Status          Status
	Topic, Workflow string
	InstanceID      uuid.UUID
	// Within, if not nil, are the workflows whose tasks are chosen.
	Within []string
}

// List returns tasks, the newest first. A cursor is valid only with the filter that it was given for.
// Kinds: Malformed (limit or cursor), Unavailable.
func (s *Service) List(ctx context.Context, tenant string, f Filter, page fsm.Page) (fsm.List[Task], error) {
	if err := fsm.CheckTexts(
		fsm.Text{Value: string(f.Status), Max: 255}, fsm.Text{Value: f.Topic, Max: 255}, fsm.Text{Value: f.Workflow, Max: 255},
	); err != nil {
		return fsm.List[Task]{}, err
	}
	scope, err := json.Marshal(f)
	if err != nil {
		return fsm.List[Task]{}, fsm.AsError(err)
	}
	items, next, err := database.List(ctx, s.db, database.Listing[queries.TaskRow, Task]{
		Scope: "tasks " + tenant + " " + string(scope),
		Rows: func(ctx context.Context, db queries.DBTX, after string, limit int32) ([]queries.TaskRow, error) {
			before, err := database.OptionalID(after)
			if err != nil {
				return nil, err
			}
			return database.Planned(db).ListTasks(ctx, queries.ListTasksParams{
				TenantID: tenant, BeforeID: before, Status: database.Optional(string(f.Status)), Topic: database.Optional(f.Topic),
				Workflow: database.Optional(f.Workflow), InstanceID: database.Optional(f.InstanceID), Within: f.Within, RowLimit: limit,
			})
		},
		Item: taskOf,
		Key:  func(t Task) string { return t.ID.String() },
	}, page.Limit, page.Cursor)
	return fsm.List[Task]{Items: items, Next: next}, err
}

// maxAttempts is how many attempts are shown of a task.
const maxAttempts = 200

// Attempts returns the attempts of a task, the oldest first; of many the last ones.
// Kinds: Unavailable.
func (s *Service) Attempts(ctx context.Context, tenant string, id uuid.UUID) ([]Attempt, error) {
	var attempts []Attempt
	err := s.db.Read(ctx, func(ctx context.Context, q *queries.Queries) error {
		rows, err := q.ListAttempts(ctx, queries.ListAttemptsParams{TenantID: tenant, TaskID: id, RowLimit: maxAttempts})
		attempts = make([]Attempt, len(rows))
		for i, a := range rows {
			attempts[i] = Attempt{
				Number: int(a.Number), Reconciling: a.Kind == "reconcile", Key: a.Key, Worker: a.Worker, StartedAt: a.StartedAt, EndedAt: a.EndedAt,
				Result: a.Result, Status: database.Int(a.Status), Error: a.Error,
			}
		}
		return err
	})
	return attempts, err
}
