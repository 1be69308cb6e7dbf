package bulk

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/internal/database"
)

// An Action is what a bulk does with each instance.
type Action string

// The actions.
const (
	// Fire fires an event. The parameters are the event and its payload.
	Fire Action = "fire"
	// Override makes a step that the definition does not allow. The parameters are those of fsm.OverrideCommand: to, and
	// perhaps a context_patch, or event, payload, bypass and target. It needs a reason.
	Override Action = "override"
	// Cancel moves instances to the state that their definition names for cancels. It needs a reason.
	Cancel Action = "cancel"
	// Retry makes failing timers due at once. Only instances with one are chosen.
	Retry Action = "retry"
	// Migrate moves active instances to another version of their workflow. The parameters are the versions, to and
	// perhaps from, and a state_map, as of lifecycle.MigrateCommand.
	Migrate Action = "migrate"
	// Replay makes settled deliveries of the instances pending again: those with the status that the parameters name,
	// dead or delivered, of the subscription_id if they name one. By default these are the dead letters.
	Replay Action = "replay"
	// Archive removes final instances, with their history. It writes no file.
	Archive Action = "archive"
)

// Actions returns all actions.
func Actions() []Action { return []Action{Fire, Override, Cancel, Retry, Migrate, Replay, Archive} }

// A Status is where a bulk is: queued, running, paused, done, or stopped, which is final.
type Status string

// The statuses.
const (
	Queued  Status = "queued"
	Running Status = "running"
	Paused  Status = "paused"
	Stopped Status = "stopped"
	Done    Status = "done"
)

// An Outcome says what has become of an instance.
type Outcome string

// The outcomes.
const (
	// Applied: the action was carried out; in a dry run, it would have been.
	Applied Outcome = "applied"
	// Refused: the instance refuses the action, or does not exist.
	Refused Outcome = "refused"
	// Skipped: the filter does not choose the instance any more, or there was nothing to do.
	Skipped Outcome = "skipped"
	// Failed: the action could not be decided, since a guard raises or takes too long, or another transaction held the
	// instance.
	Failed Outcome = "failed"
)

const (
	// MaxIDs is how many instances a bulk may name.
	MaxIDs = 10_000
	// MaxRate is the largest rate, in instances a second.
	MaxRate = 1_000_000
	// MaxUnconfirmed is how many index entries the filter of a bulk may have without a confirmation.
	MaxUnconfirmed = 1000
)

// Service submits bulks and shows them. It may be used by several goroutines at once.
type Service struct {
	fsm *fsm.Service
	db  *database.Client
}

// New returns a Service on the database of an fsm.Service.
func New(service *fsm.Service) *Service { return &Service{fsm: service, db: service.Database()} }

// A Bulk is one action on many instances.
type Bulk struct {
	ID     uuid.UUID
	Action Action
	// Filter is what the submission asked for; nil if it named instances.
	Filter json.RawMessage
	// Params are the parameters of the action.
	Params json.RawMessage
	// Workflows are those that its instances must have; nil for any.
	Workflows []string
	Reason    *string
	// Rate is the largest number of instances a second; nil for no limit.
	Rate   *int
	DryRun bool
	Status Status
	Actor  string
	// CreatedAt is when it was submitted, StartedAt when it first did something, and FinishedAt when it was done or
	// stopped.
	CreatedAt             time.Time
	StartedAt, FinishedAt *time.Time
	// Estimate is how many instances there were to look at when it was submitted: exact for ids and up to 1,000, and
	// else what the planner of the database expects.
	Estimate int64
	// Open counts the instances that are known and have no outcome yet: those of the ids, those that were locked, and
	// those that are to be tried again.
	Open int64
	// The counts of items by outcome.
	Applied, Refused, Skipped, Failed int64
	// PerSecond is how many instances it deals with in a second; nil before it has begun.
	PerSecond *float64
	// ETA is when it ends if the estimate is right and the pace stays; nil unless it runs.
	ETA *time.Time
	// Replayed: the submission was repeated under its key.
	Replayed bool
}

func bulkOf(b queries.BulkReport) Bulk {
	out := Bulk{
		ID: b.ID, Action: Action(b.Action), Filter: b.Filter, Params: b.Params, Workflows: b.Workflows, Reason: b.Reason, DryRun: b.DryRun,
		Status: Status(b.Status), Actor: b.Actor, CreatedAt: b.CreatedAt, StartedAt: b.StartedAt, FinishedAt: b.FinishedAt,
		Estimate: b.Estimate, Open: b.Open, Applied: b.Applied, Refused: b.Refused, Skipped: b.Skipped, Failed: b.Failed,
		PerSecond: b.PerSecond, ETA: b.Eta,
	}
	if b.Rate != nil {
		rate := int(*b.Rate)
		out.Rate = &rate
	}
	return out
}

// An Item is what has become of one instance.
type Item struct {
	InstanceID uuid.UUID
	Outcome    Outcome
	// Problem says why the action was not applied: an object with a code and a detail, as the problems of the API;
	// nil if it was.
	Problem json.RawMessage
	At      time.Time
}

const noBulk = "there is no such bulk"

// ifMissing turns the absence of a row into a NotFound error.
func ifMissing(err error) error { return fsm.IfNoRows(err, fsm.NotFound, noBulk) }

// TenantOf returns the tenant that has a bulk.
// Kinds: NotFound, TenantRequired, Unavailable.
func (s *Service) TenantOf(ctx context.Context, id uuid.UUID) (string, error) {
	return fsm.FindTenant(ctx, s.db, fsm.Errorf(fsm.NotFound, noBulk), func(ctx context.Context, q *queries.Queries) (string, error) {
		return q.TenantOfBulk(ctx, id)
	})
}

// Get returns a bulk. within are the workflows that the reader may see, nil for all: a bulk that may be for others does
// not exist for it.
// Kinds: NotFound, Unavailable.
func (s *Service) Get(ctx context.Context, tenant string, within []string, id uuid.UUID) (Bulk, error) {
	var row queries.BulkReport
	err := s.db.Read(ctx, func(ctx context.Context, q *queries.Queries) (err error) {
		row, err = q.GetBulk(ctx, queries.GetBulkParams{TenantID: tenant, ID: id, Within: within})
		return ifMissing(err)
	})
	return bulkOf(row), err
}

// List returns a tenant's bulks, the newest first; with a status only those that have it. within: as for Get.
// Kinds: Malformed (limit or cursor), Unavailable.
func (s *Service) List(ctx context.Context, tenant string, within []string, status Status, page fsm.Page) (fsm.List[Bulk], error) {
	items, next, err := database.List(ctx, s.db, database.Listing[queries.BulkReport, Bulk]{
		Scope: fmt.Sprintf("bulks %s %q %s", tenant, within, status),
		Rows: func(ctx context.Context, db queries.DBTX, after string, limit int32) ([]queries.BulkReport, error) {
			before, err := database.OptionalID(after)
			if err != nil {
				return nil, err
			}
			return database.Planned(db).ListBulks(ctx, queries.ListBulksParams{
				TenantID: tenant, BeforeID: before, Status: database.Optional(string(status)), Within: within, RowLimit: limit,
			})
		},
		Item: bulkOf,
		Key:  func(b Bulk) string { return b.ID.String() },
	}, page.Limit, page.Cursor)
	return fsm.List[Bulk]{Items: items, Next: next}, err
}

// Items returns the instances that a bulk has dealt with, in the order of their ids; with an outcome only those that
// have it. A bulk that does not exist has none. Kinds: Malformed (limit or cursor), Unavailable.
func (s *Service) Items(ctx context.Context, tenant string, id uuid.UUID, outcome Outcome, page fsm.Page) (fsm.List[Item], error) {
	items, next, err := database.List(ctx, s.db, database.Listing[queries.ListBulkItemsRow, Item]{
		Scope: fmt.Sprintf("bulk items %s %s %s", tenant, id, outcome),
		Rows: func(ctx context.Context, db queries.DBTX, after string, limit int32) ([]queries.ListBulkItemsRow, error) {
			afterID, err := database.OptionalID(after)
			if err != nil {
				return nil, err
			}
			return database.Planned(db).ListBulkItems(ctx, queries.ListBulkItemsParams{
				TenantID: tenant, BulkID: id, Outcome: database.Optional(string(outcome)), AfterID: afterID, RowLimit: limit,
			})
		},
		Item: func(r queries.ListBulkItemsRow) Item {
			return Item{InstanceID: r.InstanceID, Outcome: Outcome(r.Outcome), Problem: r.Problem, At: r.At}
		},
		Key: func(i Item) string { return i.InstanceID.String() },
	}, page.Limit, page.Cursor)
	return fsm.List[Item]{Items: items, Next: next}, err
}

// A Control changes the status of a bulk.
type Control string

// The controls. What has no effect, such as to pause a bulk that is paused, is no error.
const (
	Pause  Control = "pause"
	Resume Control = "resume"
	// Stop ends a bulk for good.
	Stop Control = "stop"
	// TryAgain deals once more with the instances that were refused or failed.
	TryAgain Control = "retry"
)

// Control pauses, resumes, stops or retries a bulk.
// Kinds: NotFound; BulkConflict if it has ended; Unavailable.
func (s *Service) Control(ctx context.Context, tenant string, id uuid.UUID, control Control) (Bulk, error) {
	var row queries.BulkReport
	err := s.db.ChangeAll(ctx, "", func(q *queries.Queries) (err error) {
		row, err = q.BulkControl(ctx, queries.BulkControlParams{
			Tenant: tenant, ID: id, Control: string(control), Caller: fsm.CallerJSON(ctx),
		})
		return ifMissing(err)
	})
	if err != nil {
		return Bulk{}, fsm.AsError(err)
	}
	return bulkOf(row), nil
}

// quoted lists texts for a message.
func quoted[T ~string](texts []T) string {
	out := make([]string, len(texts))
	for i, t := range texts {
		out[i] = string(t)
	}
	return strings.Join(slices.Sorted(slices.Values(out)), ", ")
}
