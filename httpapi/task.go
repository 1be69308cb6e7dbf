package httpapi

import (
	"context"

	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/task"
	"github.com/pawl-fsm/pawl/httpapi/api"
)

// taskOf converts a task to the form of the contract.
func taskOf(t task.Task) api.Task {
	out := api.Task{
		ID: t.ID.String(), InstanceID: t.InstanceID.String(), Workflow: t.Workflow, WorkflowVersion: t.WorkflowVersion, State: t.State,
		Name: t.Name, Compensation: t.Compensation, Type: api.TaskTypeHTTP, Topic: t.Topic, Connection: t.Connection,
		Status: api.TaskStatus(t.Status), Error: t.Error, Attempt: t.Attempts, Key: t.Key, Worker: t.Worker, Progress: t.Progress,
		DueAt: (*api.Timestamp)(t.DueAt), LeaseExpiresAt: (*api.Timestamp)(t.LeaseExpiresAt), DeadlineAt: api.Timestamp(t.DeadlineAt),
		LeftAt: (*api.Timestamp)(t.LeftAt), CreatedAt: api.Timestamp(t.CreatedAt), EndedAt: (*api.Timestamp)(t.EndedAt),
	}
	if t.Topic != nil {
		out.Type = api.TaskTypeWork
	}
	return out
}

func listedTask(i item[task.Task]) api.Task {
	out := taskOf(i.value)
	out.Tenant = i.tenant
	return out
}

// ListTasks answers with a page of tasks, newest first.
func (s *server) ListTasks(ctx context.Context, in ListTasksRequestObject) (ListTasksResponseObject, error) {
	page, err := pageOf(in.Params.Limit, in.Params.Cursor)
	if err != nil {
		return nil, err
	}
	r := requestOf(ctx)
	filter := task.Filter{
		Status: task.Status(value(in.Params.Status)), Topic: value(in.Params.Topic), Workflow: value(in.Params.Workflow), Within: r.within(),
	}
	var ok bool
	if filter.InstanceID, ok = filterID(in.Params.InstanceID); !ok {
		return nil, malformed("instance_id", "must be a UUID")
	}
	list, err := listOf(ctx, s, page, false, func(tenant string, page fsm.Page) (fsm.List[task.Task], error) {
		return s.tasks.List(ctx, tenant, filter, page)
	})
	if err != nil {
		return nil, err
	}
	return ListTasks200JSONResponse{
		Body:    api.TaskList{Items: each(list.Items, listedTask), NextCursor: optional(list.Next)},
		Headers: ListTasks200ResponseHeaders{Link: r.nextLink(list.Next)},
	}, nil
}

// task returns the id of a task in the path. It refuses one behind the border, and makes a caller of the deployment act for
// the tenant that has it.
func (s *server) task(ctx context.Context, text string) (uuid.UUID, error) {
	id, err := resourceID(text, "task")
	if err != nil {
		return id, err
	}
	r := requestOf(ctx)
	if err := r.actForOwner(ctx, id, s.tasks.TenantOf); err != nil {
		return id, err
	}
	if r.within() == nil {
		return id, nil
	}
	t, err := s.tasks.Get(ctx, r.principal.tenant, id)
	if err == nil && !r.reaches(t.Workflow) {
		err = task.ErrNone
	}
	return id, err
}

// GetTask answers with a task and its attempts.
func (s *server) GetTask(ctx context.Context, in GetTaskRequestObject) (GetTaskResponseObject, error) {
	id, err := s.task(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	tenant := requestOf(ctx).principal.tenant
	t, err := s.tasks.Get(ctx, tenant, id)
	if err != nil {
		return nil, err
	}
	requestOf(ctx).concerns(t.Workflow, t.InstanceID)
	attempts, err := s.tasks.Attempts(ctx, tenant, id)
	if err != nil {
		return nil, err
	}
	out := taskOf(t)
	out.Attempts = each(attempts, func(a task.Attempt) api.TaskAttempt {
		return api.TaskAttempt{
			Attempt: a.Number, Reconciling: a.Reconciling, Key: a.Key, Worker: a.Worker, StartedAt: api.Timestamp(a.StartedAt),
			EndedAt: (*api.Timestamp)(a.EndedAt), Result: a.Result, Status: a.Status, Error: a.Error,
		}
	})
	return GetTask200JSONResponse(out), nil
}

// RetryTask makes a task pending again.
func (s *server) RetryTask(ctx context.Context, in RetryTaskRequestObject) (RetryTaskResponseObject, error) {
	id, err := s.task(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	p := requestOf(ctx).principal
	t, moves, err := s.tasks.Retry(ctx, p.tenant, id, value(in.Body).Reason, p.subject)
	if err != nil {
		return nil, err
	}
	out := taskOf(t)
	out.MovesInstance = &moves
	return RetryTask200JSONResponse(out), nil
}

// ResolveTask records what a person says of a task.
func (s *server) ResolveTask(ctx context.Context, in ResolveTaskRequestObject) (ResolveTaskResponseObject, error) {
	id, err := s.task(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	body, p := value(in.Body), requestOf(ctx).principal
	t, moves, err := s.tasks.Resolve(ctx, p.tenant, id, task.Outcome(body.Outcome), body.Result, body.Reason, p.subject)
	if err != nil {
		return nil, err
	}
	out := taskOf(t)
	out.MovesInstance = &moves
	return ResolveTask200JSONResponse(out), nil
}

// ListCompensations answers with the compensations of an instance.
func (s *server) ListCompensations(ctx context.Context, in ListCompensationsRequestObject) (ListCompensationsResponseObject, error) {
	id, err := s.instance(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	list, err := s.tasks.Compensations(ctx, requestOf(ctx).principal.tenant, id)
	if err != nil {
		return nil, err
	}
	return ListCompensations200JSONResponse{Items: each(list, compensationOf)}, nil
}

func compensationOf(c task.Compensation) api.Compensation {
	return api.Compensation{
		Name: c.Name, Version: c.Version, Status: api.CompensationStatus(c.Status), Reason: c.Reason, TaskID: textOf(c.TaskID),
		UndoingTaskID: textOf(c.UndoingTaskID),
	}
}

func (s *server) markCompensation(ctx context.Context, text, name string, mark task.Mark, body *api.CompensationRequest) (api.Compensation, error) {
	id, err := s.instance(ctx, text)
	if err != nil {
		return api.Compensation{}, err
	}
	if err := checkName("name", name); err != nil {
		return api.Compensation{}, err
	}
	p := requestOf(ctx).principal
	c, err := s.tasks.MarkCompensation(ctx, p.tenant, id, name, mark, value(body).Reason, p.subject)
	return compensationOf(c), err
}

// RetryCompensation lets a compensation that failed be tried again.
func (s *server) RetryCompensation(ctx context.Context, in RetryCompensationRequestObject) (RetryCompensationResponseObject, error) {
	c, err := s.markCompensation(ctx, in.ID, in.Name, task.MarkRetry, in.Body)
	if err != nil {
		return nil, err
	}
	return RetryCompensation200JSONResponse(c), nil
}

// SkipCompensation passes over a compensation.
func (s *server) SkipCompensation(ctx context.Context, in SkipCompensationRequestObject) (SkipCompensationResponseObject, error) {
	c, err := s.markCompensation(ctx, in.ID, in.Name, task.MarkSkip, in.Body)
	if err != nil {
		return nil, err
	}
	return SkipCompensation200JSONResponse(c), nil
}

// ListTimeline answers with a page of what happened to an instance, oldest first.
func (s *server) ListTimeline(ctx context.Context, in ListTimelineRequestObject) (ListTimelineResponseObject, error) {
	id, err := s.instance(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	page, err := pageOf(in.Params.Limit, in.Params.Cursor)
	if err != nil {
		return nil, err
	}
	r := requestOf(ctx)
	list, err := s.tasks.Timeline(ctx, r.principal.tenant, id, page)
	if err != nil {
		return nil, err
	}
	return ListTimeline200JSONResponse{
		Body: api.Timeline{
			Items:      each(list.Items, timelineItem),
			NextCursor: optional(list.Next),
		},
		Headers: ListTimeline200ResponseHeaders{Link: r.nextLink(list.Next)},
	}, nil
}
