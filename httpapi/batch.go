package httpapi

import (
	"context"
	"fmt"
	"net/http"
	"unicode/utf8"

	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/httpapi/api"
)

// maxCommands is the limit on the commands of a batch.
const maxCommands = 1000

// smallBatch is how many commands a batch may have that does not wait for its tenant's turn. A larger one keeps all
// callers of the database busy, and the contexts of its results in memory. So few of them are carried out at a time.
const smallBatch = 100

// RunBatch carries out up to maxCommands commands, each with its own key. The result at a
// position belongs to the command at that position; a refusal fails its command alone.
func (s *server) RunBatch(ctx context.Context, in RunBatchRequestObject) (RunBatchResponseObject, error) {
	if in.Body == nil || len(in.Body.Commands) == 0 || len(in.Body.Commands) > maxCommands {
		return nil, malformedAt("/commands", "the number of commands is out of range", fmt.Sprintf("must be an array of 1 to %d commands", maxCommands))
	}
	r := requestOf(ctx)
	if len(in.Body.Commands) > smallBatch {
		leave, err := s.batches.Enter(ctx)
		if err != nil {
			return nil, err
		}
		defer leave()
	}
	results := make([]api.BatchResult, len(in.Body.Commands))
	open := make([]int, len(results))
	for i := range open {
		open[i] = i
	}
	for {
		var err error
		switch open, err = s.runCommands(ctx, in.Body.Commands, open, results); {
		case err != nil:
			return nil, err
		case len(open) == 0:
			return RunBatch200JSONResponse{Results: results}, nil
		case len(open) == len(results):
			return nil, fsm.ErrPrincipalChanged
		}
		if ctx, err = s.lookUp(r); err != nil {
			for _, i := range open {
				results[i] = s.refused(ctx, i, err)
			}
			return RunBatch200JSONResponse{Results: results}, nil
		}
	}
}

// runCommands carries out those of the commands that are still open, and fills in their results. It returns the positions of
// those that stay open, since the caller must be looked up first.
func (s *server) runCommands(ctx context.Context, all []api.Command, open []int, results []api.BatchResult) (left []int, err error) {
	r := requestOf(ctx)
	var commands []fsm.Command
	var positions []int
	workflows, err := s.workflowsIn(ctx, all)
	if err != nil {
		return nil, err
	}
	for _, i := range open {
		command, err := r.command(all[i], workflows)
		switch {
		case err != nil && r.admission != nil:
			return open, nil
		case err != nil:
			results[i] = s.refused(ctx, i, err)
		default:
			commands, positions = append(commands, command), append(positions, i)
		}
	}
	for n, reply := range s.service.Do(ctx, commands) {
		i := positions[n]
		switch {
		case reply.Err != nil && r.doubts(reply.Err):
			left = append(left, i)
		case reply.Err != nil:
			results[i] = s.refused(ctx, i, reply.Err)
		default:
			instance := api.InstanceOf(reply.Instance)
			results[i] = api.BatchResult{Status: http.StatusOK, Replayed: reply.Replayed, Instance: &instance}
			if reply.Created {
				results[i].Status = http.StatusCreated
			}
		}
	}
	return left, nil
}

// workflowsIn reads the workflows of the instances that commands fire at, if the caller may not fire at all of them.
func (s *server) workflowsIn(ctx context.Context, commands []api.Command) (map[uuid.UUID]string, error) {
	r := requestOf(ctx)
	if r.principal.mayAll(ScopeFire) || !r.principal.has(ScopeFire) {
		return nil, nil
	}
	var ids []uuid.UUID
	for _, c := range commands {
		if c.InstanceID == nil {
			continue
		}
		if id, err := instanceID(*c.InstanceID); err == nil {
			ids = append(ids, id)
		}
	}
	if len(ids) == 0 {
		return nil, nil
	}
	return s.service.WorkflowsOf(ctx, r.principal.tenant, ids...)
}

// refused returns the result of a command that failed. The pointers of its faults are
// relative to the command, so they get the command's place in the body in front.
func (s *server) refused(ctx context.Context, i int, err error) api.BatchResult {
	p, headers := problemOf(ctx, err)
	s.noteRefusal(requestOf(ctx), p)
	for n, f := range p.Errors {
		if f.Pointer != nil {
			pointer := fmt.Sprintf("/commands/%d%s", i, *f.Pointer)
			p.Errors[n].Pointer = &pointer
		}
	}
	return api.BatchResult{Status: p.Status, Replayed: headers.Get("Idempotent-Replayed") != "", Problem: &p}
}

// command checks and converts one command of a batch.
func (r *request) command(c api.Command, workflows map[uuid.UUID]string) (fsm.Command, error) {
	if c.Key == nil {
		return nil, &problemError{code: api.ProblemCodeIdempotencyKeyRequired, detail: "each command of a batch needs a key of its own"}
	}
	if err := fsm.CheckKey(*c.Key); err != nil {
		return nil, err
	}
	fault := func(member, detail string) error {
		return malformedAt("/"+member, "the command is not well formed", detail)
	}
	switch c.Op {
	case api.CommandOpCreate:
		for member, given := range map[string]bool{
			"instance_id": c.InstanceID != nil, "event": c.Event != nil, "payload": c.Payload != nil, "if_match": c.IfMatch != nil,
			"start": c.Start != nil,
		} {
			if given {
				return nil, fault(member, "is not a member of a create command")
			}
		}
		if c.Workflow == nil {
			return nil, fault("workflow", "is missing")
		}
		if err := r.checkCreate(*c.Workflow); err != nil {
			return nil, err
		}
		return r.createCommand(*c.Workflow, *c.Key, api.CreateRequest{
			BusinessKey: c.BusinessKey, Context: c.Context, CorrelationID: c.CorrelationID, ExpiresIn: c.ExpiresIn,
			CallbackURL: c.CallbackURL, CallbackSecret: c.CallbackSecret, Reason: c.Reason,
		})
	case api.CommandOpFire:
		for member, given := range map[string]bool{
			"context": c.Context != nil, "correlation_id": c.CorrelationID != nil, "expires_in": c.ExpiresIn != nil, "callback_url": c.CallbackURL != nil,
			"callback_secret": c.CallbackSecret != nil,
		} {
			if given {
				return nil, fault(member, "is not a member of a fire command")
			}
		}
		switch {
		case c.InstanceID == nil && c.BusinessKey == nil:
			return nil, fault("instance_id", "is missing; a business_key with a workflow is the other way to name the instance")
		case c.Event == nil || *c.Event == "":
			return nil, fault("event", "is missing")
		case utf8.RuneCountInString(*c.Event) > maxName:
			return nil, fault("event", fmt.Sprintf("must have at most %d characters", maxName))
		case c.IfMatch != nil && *c.IfMatch < 1:
			return nil, fault("if_match", "must be at least 1")
		}
		var expect fsm.Expect
		if c.IfMatch != nil {
			expect = fsm.ExpectVersion(*c.IfMatch)
		}
		if c.InstanceID == nil {
			return r.batchedFireByKey(c, expect)
		}
		for member, given := range map[string]bool{
			"workflow": c.Workflow != nil, "business_key": c.BusinessKey != nil, "start": c.Start != nil,
		} {
			if given {
				return nil, fault(member, "does not go with instance_id")
			}
		}
		id, err := instanceID(*c.InstanceID)
		if err != nil {
			return nil, err
		}
		if !r.principal.mayAll(ScopeFire) {
			// Without a workflow there is no such instance, and no grant names the empty one.
			if err := r.checkFire(workflows[id], *c.Event, fsm.NoInstance()); err != nil {
				return nil, err
			}
		}
		command := r.fireCommand(id, *c.Event, *c.Key, c.Payload, c.Reason)
		command.Expect = expect
		return command, nil
	default:
		return nil, fault("op", "must be create or fire")
	}
}

// batchedFireByKey converts a fire by business key.
func (r *request) batchedFireByKey(c api.Command, expect fsm.Expect) (fsm.Command, error) {
	businessKey, err := textAt("/business_key", c.BusinessKey)
	if err == nil {
		err = fsm.CheckTexts(fsm.Text{Pointer: "/business_key", Value: businessKey, Max: maxName})
	}
	if err != nil {
		return nil, err
	}
	if c.Workflow == nil {
		return nil, malformedAt("/workflow", "the command is not well formed", "is missing")
	}
	if err := r.checkFireByKey(*c.Workflow, *c.Event, c.Start != nil); err != nil {
		return nil, err
	}
	command, err := r.fireByKeyCommand(
		*c.Workflow, businessKey, *c.Event, *c.Key, api.FireByKeyRequest{Payload: c.Payload, Start: c.Start, Reason: c.Reason})
	command.Expect = expect
	return command, err
}
