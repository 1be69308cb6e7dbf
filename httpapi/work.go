package httpapi

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/fsm/definition"
	"github.com/pawl-fsm/pawl/fsm/task"
	"github.com/pawl-fsm/pawl/httpapi/api"
)

// worksOn returns the workflows whose tasks of a topic the caller may work on, nil for all. A grant that names events is
// for the topics among them. ok is false if no grant is for the topic.
func (p *principal) worksOn(topic string) (workflows []string, ok bool) {
	on := principal{grants: slices.DeleteFunc(slices.Clone(p.grants), func(g grant) bool { return !admits(g.events, topic) })}
	workflows, all := on.workflows(ScopeWork)
	return workflows, all || len(workflows) > 0
}

// delayAt parses an optional duration of the body that is at most most, and may be no time at all.
func delayAt(pointer string, text *string, most time.Duration) (time.Duration, error) {
	if text == nil {
		return 0, nil
	}
	d, err := definition.ParseDelay(*text)
	if err != nil {
		return 0, malformedAt(pointer, err.Error(), err.Error())
	}
	if d > most {
		detail := fmt.Sprintf("must be at most %s", definition.FormatDuration(most))
		return 0, malformedAt(pointer, pointer+" "+detail, detail)
	}
	return d, nil
}

// ClaimWork gives a worker tasks, and waits for some.
func (s *server) ClaimWork(ctx context.Context, in ClaimWorkRequestObject) (ClaimWorkResponseObject, error) {
	if in.Body == nil {
		return nil, errNoBody
	}
	r, body := requestOf(ctx), in.Body
	c := task.ClaimCommand{Tenant: r.principal.tenant, Topic: in.Topic, Worker: body.Worker, Max: 1, Key: r.key}
	if body.Max != nil {
		c.Max = *body.Max
	}
	var err error
	if c.Lease, err = durationAt("/lease", body.Lease); err != nil {
		return nil, err
	}
	wait, err := delayAt("/wait", body.Wait, maxWait)
	if err != nil {
		return nil, err
	}
	var known bool
	if c.Within, known = r.principal.worksOn(c.Topic); !known {
		return nil, forbidden("your grants do not allow this topic")
	}
	claim, err := s.tasks.Claim(ctx, c)
	if err != nil {
		return nil, err
	}
	defer claim.Close()
	var work []task.Work
	err = s.lasting(ctx, wait, func(while context.Context) (done bool, err error) {
		work, err = claim.Await(while)
		return len(work) > 0, err
	})
	if err != nil {
		return nil, err
	}
	return ClaimWork200JSONResponse{Tasks: each(work, workOf)}, nil
}

func workOf(w task.Work) api.Work {
	return api.Work{
		ID: w.ID.String(), Topic: w.Topic, Name: w.Name, InstanceID: w.InstanceID.String(), Workflow: w.Workflow, Attempt: w.Attempt,
		Key: w.Key, Input: w.Input, Lease: w.Lease.String(), LeaseExpiresAt: api.Timestamp(w.LeaseExpiresAt),
		DeadlineAt: api.Timestamp(w.DeadlineAt), CorrelationID: w.CorrelationID, Traceparent: w.Traceparent,
	}
}

// leased returns the id of a task in the path that the caller may work on, and the lease of the body. A text that is no
// lease was given to nobody.
func (s *server) leased(ctx context.Context, text, lease string) (id, of uuid.UUID, err error) {
	if id, err = resourceID(text, "task"); err != nil {
		return id, of, err
	}
	if lease == "" {
		return id, of, malformedAt("/lease", "the lease is missing", "must be the lease of the claim")
	}
	of, _ = parseUUID(lease)
	p := &requestOf(ctx).principal
	if p.mayAll(ScopeWork) {
		return id, of, nil
	}
	t, err := s.tasks.Get(ctx, p.tenant, id)
	if err != nil {
		return id, of, err
	}
	if !p.may(ScopeWork, t.Workflow, value(t.Topic)) {
		return id, of, task.ErrNone
	}
	return id, of, nil
}

// HeartbeatTask extends a lease.
func (s *server) HeartbeatTask(ctx context.Context, in HeartbeatTaskRequestObject) (HeartbeatTaskResponseObject, error) {
	body := value(in.Body)
	id, lease, err := s.leased(ctx, in.ID, body.Lease)
	if err != nil {
		return nil, err
	}
	until, left, err := s.tasks.Heartbeat(ctx, requestOf(ctx).principal.tenant, id, lease, body.Progress)
	if err != nil {
		return nil, err
	}
	return HeartbeatTask200JSONResponse{LeaseExpiresAt: api.Timestamp(until), CancelRequested: left}, nil
}

// CompleteTask ends a task with its result, and answers with the instance.
func (s *server) CompleteTask(ctx context.Context, in CompleteTaskRequestObject) (CompleteTaskResponseObject, error) {
	body := value(in.Body)
	id, lease, err := s.leased(ctx, in.ID, body.Lease)
	if err != nil {
		return nil, err
	}
	i, err := s.tasks.Complete(ctx, requestOf(ctx).principal.tenant, id, lease, body.Result)
	if err != nil {
		return nil, err
	}
	requestOf(ctx).concerns(i.Workflow, i.ID)
	return CompleteTask200JSONResponse{Body: api.InstanceOf(i), Headers: CompleteTask200ResponseHeaders{ETag: etag(i.Version)}}, nil
}

// FailTask ends an attempt.
func (s *server) FailTask(ctx context.Context, in FailTaskRequestObject) (FailTaskResponseObject, error) {
	body := value(in.Body)
	id, lease, err := s.leased(ctx, in.ID, body.Lease)
	if err != nil {
		return nil, err
	}
	f := task.Failure{Error: body.Error, Retryable: value(body.Retryable), Outcome: task.Outcome(value(body.Outcome))}
	if body.RetryIn != nil {
		in, err := delayAt("/retry_in", body.RetryIn, task.MaxRetryIn)
		if err != nil {
			return nil, err
		}
		f.RetryIn = &in
	}
	t, err := s.tasks.Fail(ctx, requestOf(ctx).principal.tenant, id, lease, f)
	if err != nil {
		return nil, err
	}
	requestOf(ctx).concerns(t.Workflow, t.InstanceID)
	return FailTask200JSONResponse(taskOf(t)), nil
}

// ReleaseTask gives a task back.
func (s *server) ReleaseTask(ctx context.Context, in ReleaseTaskRequestObject) (ReleaseTaskResponseObject, error) {
	id, lease, err := s.leased(ctx, in.ID, value(in.Body).Lease)
	if err != nil {
		return nil, err
	}
	t, err := s.tasks.Release(ctx, requestOf(ctx).principal.tenant, id, lease)
	if err != nil {
		return nil, err
	}
	return ReleaseTask200JSONResponse(taskOf(t)), nil
}
