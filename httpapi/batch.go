package httpapi

import (
	"context"
	"fmt"
	"net/http"
	"unicode/utf8"

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
	var commands []fsm.Command
	var positions []int
	for i, c := range in.Body.Commands {
		command, err := r.command(c)
		if err != nil {
			results[i] = refused(ctx, i, err)
			continue
		}
		commands, positions = append(commands, command), append(positions, i)
	}
	for i, reply := range s.service.Do(ctx, commands) {
		result := &results[positions[i]]
		if reply.Err != nil {
			*result = refused(ctx, positions[i], reply.Err)
			continue
		}
		instance := api.InstanceOf(reply.Instance)
		*result = api.BatchResult{Status: http.StatusOK, Replayed: reply.Replayed, Instance: &instance}
		if _, created := commands[i].(fsm.CreateCommand); created {
			result.Status = http.StatusCreated
		}
	}
	return RunBatch200JSONResponse{Results: results}, nil
}

// refused returns the result of a command that failed. The pointers of its faults are
// relative to the command, so they get the command's place in the body in front.
func refused(ctx context.Context, i int, err error) api.BatchResult {
	p, headers := problemOf(ctx, err)
	for n, f := range p.Errors {
		if f.Pointer != nil {
			pointer := fmt.Sprintf("/commands/%d%s", i, *f.Pointer)
			p.Errors[n].Pointer = &pointer
		}
	}
	return api.BatchResult{Status: p.Status, Replayed: headers.Get("Idempotent-Replayed") != "", Problem: &p}
}

// command checks and converts one command of a batch.
func (r *request) command(c api.Command) (fsm.Command, error) {
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
		} {
			if given {
				return nil, fault(member, "is not a member of a create command")
			}
		}
		if c.Workflow == nil {
			return nil, fault("workflow", "is missing")
		}
		return r.createCommand(*c.Workflow, *c.Key, api.CreateRequest{
			BusinessKey: c.BusinessKey, Context: c.Context, CorrelationID: c.CorrelationID, ExpiresIn: c.ExpiresIn,
			CallbackURL: c.CallbackURL, CallbackSecret: c.CallbackSecret, Reason: c.Reason,
		})
	case api.CommandOpFire:
		for member, given := range map[string]bool{
			"workflow": c.Workflow != nil, "context": c.Context != nil, "business_key": c.BusinessKey != nil,
			"correlation_id": c.CorrelationID != nil, "expires_in": c.ExpiresIn != nil, "callback_url": c.CallbackURL != nil,
			"callback_secret": c.CallbackSecret != nil,
		} {
			if given {
				return nil, fault(member, "is not a member of a fire command")
			}
		}
		switch {
		case c.InstanceID == nil:
			return nil, fault("instance_id", "is missing")
		case c.Event == nil || *c.Event == "":
			return nil, fault("event", "is missing")
		case utf8.RuneCountInString(*c.Event) > maxName:
			return nil, fault("event", fmt.Sprintf("must have at most %d characters", maxName))
		case c.IfMatch != nil && *c.IfMatch < 1:
			return nil, fault("if_match", "must be at least 1")
		}
		id, err := instanceID(*c.InstanceID)
		if err != nil {
			return nil, err
		}
		command := r.fireCommand(id, *c.Event, *c.Key, c.Payload, c.Reason)
		if c.IfMatch != nil {
			command.Expect = fsm.ExpectVersion(*c.IfMatch)
		}
		return command, nil
	default:
		return nil, fault("op", "must be create or fire")
	}
}
