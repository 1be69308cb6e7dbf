package task

import (
	"context"
	"encoding/json"

	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/fsm"
)

// Retry makes a task pending again that ended as error, unknown or late. moves is whether its outcome will move the
// instance. The audit tells of it.
// Kinds: Malformed (reason), NotFound, TaskEnded, TransitionNotAllowed if the instance is final, Unavailable.
func (s *Service) Retry(ctx context.Context, tenant string, id uuid.UUID, reason, actor string) (t Task, moves bool, err error) {
	if err := fsm.CheckReason(reason); err != nil {
		return Task{}, false, err
	}
	return s.operate(ctx, tenant, id, func(ctx context.Context, q *queries.Queries) (bool, error) {
		return q.TaskRetry(ctx, queries.TaskRetryParams{Tenant: tenant, ID: id, Reason: reason, Actor: actor, Caller: fsm.CallerJSON(ctx)})
	})
}

// Resolve records how a task ended, with a result, any JSON (nil is null). moves is whether that has moved the instance. The
// audit tells of it.
// Kinds: Malformed (reason, outcome or result), NotFound, TaskEnded, GuardError, Unavailable.
func (s *Service) Resolve(
	ctx context.Context, tenant string, id uuid.UUID, outcome Outcome, result json.RawMessage, reason, actor string,
) (t Task, moves bool, err error) {
	if outcome != Done && outcome != Failed {
		return Task{}, false, fsm.MalformedAt("/outcome", "must be done or error")
	}
	if err := fsm.CheckReason(reason); err != nil {
		return Task{}, false, err
	}
	return s.operate(ctx, tenant, id, func(ctx context.Context, q *queries.Queries) (bool, error) {
		return q.TaskResolve(ctx, queries.TaskResolveParams{
			Tenant: tenant, ID: id, Outcome: string(outcome), Result: orNull(result), Reason: reason, Actor: actor, Caller: fsm.CallerJSON(ctx),
		})
	})
}

// operate makes a call and reads the task that it changed.
func (s *Service) operate(
	ctx context.Context, tenant string, id uuid.UUID, call func(context.Context, *queries.Queries) (bool, error),
) (t Task, moves bool, err error) {
	err = s.db.Change(ctx, func(ctx context.Context, q *queries.Queries) (err error) {
		moves, err = call(ctx, q)
		return err
	})
	if err != nil {
		return Task{}, false, err
	}
	t, err = s.Get(ctx, tenant, id)
	if moves {
		s.fsm.NoteMoved([]uuid.UUID{t.InstanceID})
	}
	return t, moves, err
}

// orNull returns a document, or the JSON null if there is none.
func orNull(document json.RawMessage) json.RawMessage {
	if document == nil {
		return json.RawMessage("null")
	}
	return document
}

// A Compensation is a step that can be undone.
type Compensation struct {
	// Name is that of the task or the event that it undoes.
	Name string
	// Version is that of the instance after the step that it undoes.
	Version int64
	// Status is registered, undone, failed, skipped or void.
	Status string
	// Reason says why it failed or was skipped; nil otherwise.
	Reason *string
	// TaskID is the task that it undoes; nil if it undoes a transition. UndoingTaskID is the last task that undoes it; nil
	// if there was none yet.
	TaskID, UndoingTaskID *uuid.UUID
}

func compensationOf(c queries.Compensation) Compensation {
	return Compensation{
		Name: c.Name, Version: c.Version, Status: c.Status, Reason: c.Reason, TaskID: c.TaskID, UndoingTaskID: c.UndoneBy,
	}
}

// Compensations returns the compensations of an instance, the newest first.
// Kinds: InstanceNotFound, Unavailable.
func (s *Service) Compensations(ctx context.Context, tenant string, instance uuid.UUID) ([]Compensation, error) {
	if _, err := s.fsm.Get(ctx, tenant, instance); err != nil {
		return nil, err
	}
	var list []Compensation
	err := s.db.Read(ctx, func(ctx context.Context, q *queries.Queries) error {
		rows, err := q.ListCompensations(ctx, queries.ListCompensationsParams{TenantID: tenant, InstanceID: instance})
		list = make([]Compensation, len(rows))
		for i, c := range rows {
			list[i] = compensationOf(c)
		}
		return err
	})
	return list, err
}

// A Mark is what an operator wants of a compensation.
type Mark string

// The marks.
const (
	// MarkRetry: one that failed is tried again when the instance next enters an undoing state.
	MarkRetry Mark = "retry"
	// MarkSkip: it is passed over.
	MarkSkip Mark = "skip"
)

// MarkCompensation marks the newest compensation with a name that is not undone. The audit tells of it.
// Kinds: Malformed (reason), InstanceNotFound, NotFound, TaskEnded, Unavailable.
func (s *Service) MarkCompensation(ctx context.Context, tenant string, instance uuid.UUID, name string, mark Mark, reason, actor string) (Compensation, error) {
	if err := fsm.CheckReason(reason); err != nil {
		return Compensation{}, err
	}
	if _, err := s.fsm.Get(ctx, tenant, instance); err != nil {
		return Compensation{}, err
	}
	var row queries.Compensation
	err := s.db.Change(ctx, func(ctx context.Context, q *queries.Queries) (err error) {
		row, err = q.CompensationMark(ctx, queries.CompensationMarkParams{
			Tenant: tenant, InstanceID: instance, Name: name, Mark: string(mark), Reason: reason, Actor: actor, Caller: fsm.CallerJSON(ctx),
		})
		return err
	})
	return compensationOf(row), err
}
