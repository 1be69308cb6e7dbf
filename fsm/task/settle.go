package task

import (
	"context"
	"encoding/json"
	"time"

	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/fsm"
)

// maxProgress is how many bytes the progress of a heartbeat may have, maxError how many characters an error, and MaxRetryIn
// the longest time after which a worker may want a task to be tried again.
const (
	maxProgress = 4 << 10
	maxError    = 1000
	MaxRetryIn  = 24 * time.Hour
)

// An Outcome says how a task ends.
type Outcome string

// The outcomes.
const (
	Done    Outcome = "done"
	Failed  Outcome = "error"
	Unknown Outcome = "unknown"
)

// A Failure says why an attempt failed.
type Failure struct {
	// Error is for people: 1 to maxError characters.
	Error string
	// Retryable: another attempt may succeed. RetryIn is when at the earliest; nil for the pause that the task declares.
	Retryable bool
	RetryIn   *time.Duration
	// Outcome is Failed, the default, or Unknown.
	Outcome Outcome
}

// report is what is reported of an attempt, as pawl.task_settle takes it.
type report struct {
	tenant    string
	id, lease uuid.UUID
	text      json.RawMessage
}

// released is the report of a worker that gives its task back.
var released = json.RawMessage(`{"result": "released"}`)

// Complete ends a task with a result, any JSON (nil is null), and moves its instance. It returns the instance as it is
// then, which has not moved if it has left the state of the task. The same result again has the same answer.
//
// If the instance refuses the outcome, the task has ended nevertheless, and keeps why.
// Kinds: NotFound; LeaseSuperseded; TaskEnded; TooLarge; GuardError; InstanceNotFound if it was purged; Unavailable.
func (s *Service) Complete(ctx context.Context, tenant string, id, lease uuid.UUID, result json.RawMessage) (fsm.Instance, error) {
	settled, err := s.report(ctx, tenant, id, lease, map[string]any{"result": "completed", "body": orNull(result)})
	if err != nil {
		return fsm.Instance{}, err
	}
	return s.fsm.Get(ctx, tenant, settled.InstanceID)
}

// Fail ends an attempt that failed.
// Kinds: Malformed, NotFound, LeaseSuperseded, TaskEnded, GuardError, Unavailable.
func (s *Service) Fail(ctx context.Context, tenant string, id, lease uuid.UUID, f Failure) (Task, error) {
	switch {
	case f.Error == "":
		return Task{}, fsm.MalformedAt("/error", "must have at least 1 character")
	case f.Outcome != "" && f.Outcome != Failed && f.Outcome != Unknown:
		return Task{}, fsm.MalformedAt("/outcome", "must be error or unknown")
	case f.RetryIn != nil && !f.Retryable:
		return Task{}, fsm.MalformedAt("/retry_in", "goes with retryable")
	case f.RetryIn != nil && *f.RetryIn > MaxRetryIn:
		return Task{}, fsm.MalformedAt("/retry_in", "must be at most 24h")
	}
	if err := fsm.CheckTexts(fsm.Text{Pointer: "/error", Value: f.Error, Max: maxError}); err != nil {
		return Task{}, err
	}
	report := map[string]any{"result": "failed", "error": f.Error, "retryable": f.Retryable}
	if f.RetryIn != nil {
		report["retry_in"] = f.RetryIn.Seconds()
	}
	if f.Outcome != "" {
		report["outcome"] = f.Outcome
	}
	return s.reported(ctx, tenant, id, lease, report)
}

// Release gives a task back. The attempt does not count.
// Kinds: NotFound, LeaseSuperseded, TaskEnded, Unavailable.
func (s *Service) Release(ctx context.Context, tenant string, id, lease uuid.UUID) (Task, error) {
	return s.reported(ctx, tenant, id, lease, map[string]any{"result": "released"})
}

// Heartbeat lets a lease begin anew, and returns when it is over. left is whether the instance has left the state of the
// task, and no operator has it tried again. The progress is any JSON of at most maxProgress bytes; nil leaves what is there.
// Kinds: NotFound, LeaseSuperseded, TaskEnded, TooLarge, Unavailable.
func (s *Service) Heartbeat(ctx context.Context, tenant string, id, lease uuid.UUID, progress json.RawMessage) (until time.Time, left bool, err error) {
	if len(progress) > maxProgress {
		return time.Time{}, false, fsm.Errorf(fsm.TooLarge, "the progress must have at most %d bytes", maxProgress)
	}
	report := map[string]any{"result": "heartbeat"}
	if progress != nil {
		report["progress"] = progress
	}
	settled, err := s.report(ctx, tenant, id, lease, report)
	if err != nil {
		return time.Time{}, false, err
	}
	return *settled.LeasedUntil, settled.Late, nil
}

// reported records what a worker says of its attempt, and returns the task as it then is.
func (s *Service) reported(ctx context.Context, tenant string, id, lease uuid.UUID, what map[string]any) (Task, error) {
	if _, err := s.report(ctx, tenant, id, lease, what); err != nil {
		return Task{}, err
	}
	return s.Get(ctx, tenant, id)
}

// report records what a worker says of its attempt.
func (s *Service) report(ctx context.Context, tenant string, id, lease uuid.UUID, what map[string]any) (queries.TaskSettled, error) {
	text, err := json.Marshal(what)
	if err != nil {
		return queries.TaskSettled{}, fsm.AsError(err)
	}
	a := s.settles.Do(ctx, tenant, report{tenant, id, lease, text})[0]
	if a.Err != nil {
		return queries.TaskSettled{}, a.Err
	}
	if code := a.Result.Code; code != "settled" && code != "repeated" {
		return a.Result, fsm.RefusalFor(code)
	}
	return a.Result, nil
}

// settle settles reports in one call.
func (s *Service) settle(ctx context.Context, q *queries.Queries, reports []report) ([]queries.TaskSettled, error) {
	p := queries.TaskSettleParams{}
	for _, r := range reports {
		p.Tenants, p.Ids, p.Leases, p.Reports = append(p.Tenants, r.tenant), append(p.Ids, r.id), append(p.Leases, r.lease), append(p.Reports, r.text)
	}
	rows, err := q.TaskSettle(ctx, p)
	if err != nil {
		return nil, err
	}
	results := make([]queries.TaskSettled, len(reports))
	var moved []uuid.UUID
	for _, r := range rows {
		results[r.Ordinal-1] = r
		// Only what has ended moves an instance.
		if ended := Outcome(r.Status); r.Code == "settled" && (ended == Done || ended == Failed || ended == Unknown) {
			moved = append(moved, r.InstanceID)
		}
	}
	s.fsm.NoteMoved(moved)
	return results, nil
}
