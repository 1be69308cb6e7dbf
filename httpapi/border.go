package httpapi

import (
	"context"
	"errors"
	"slices"

	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/subscription"
	"github.com/pawl-fsm/pawl/httpapi/api"
)

// The border of a caller is made of its tenant and of the workflows that its grants with the scopes of the operation
// name. What lies behind it is to the caller as if it did not exist. A caller without such a list of workflows is looked
// up nothing for: the engine keeps tenants apart.

func forbidden(detail string) error {
	return &problemError{code: api.ProblemCodeForbidden, detail: detail}
}

// within returns the workflows that the caller may reach by the operation; nil for all.
func (r *request) within() []string {
	names, all := r.principal.workflows(r.op.admission.scopes...)
	if all {
		return nil
	}
	return names
}

// narrowed returns those of the named workflows that the caller may reach, or all that it may reach if none is named.
// Nil stands for all workflows.
func (r *request) narrowed(named []string) []string {
	within := r.within()
	switch {
	case within == nil:
		return named
	case len(named) == 0:
		return within
	}
	reached := []string{""} // No workflow has the empty name; an empty list would stand for all.
	for _, name := range named {
		if r.reaches(name) {
			reached = append(reached, name)
		}
	}
	return reached
}

// reaches reports whether the caller may reach a workflow by the operation.
func (r *request) reaches(workflow string) bool {
	return r.principal.mayReach(workflow, r.op.admission.scopes...)
}

// checkWorkflow refuses a workflow behind the border. Version 0 stands for the latest one.
func (r *request) checkWorkflow(name string, version int) error {
	if !r.reaches(name) {
		return fsm.NoWorkflow(name, version)
	}
	return nil
}

// checkCreate refuses the creation of an instance that the caller may not create.
func (r *request) checkCreate(workflow string) error {
	switch {
	case !r.principal.has(ScopeCreate):
		return forbidden(`creating an instance needs a token with the scope "create"`)
	case !r.principal.mayReach(workflow, ScopeCreate):
		return fsm.NoWorkflow(workflow, 0)
	}
	return nil
}

// checkFire refuses an event that the caller may not fire at instances of a workflow. absent is the error for a
// workflow behind the border.
func (r *request) checkFire(workflow, event string, absent error) error {
	switch {
	case !r.principal.has(ScopeFire):
		return forbidden(`firing an event needs a token with the scope "fire"`)
	case !r.principal.mayReach(workflow, ScopeFire):
		return absent
	case !r.principal.may(ScopeFire, workflow, event):
		return forbidden("your grants do not allow this event; GET …/actions says which ones they permit")
	}
	return nil
}

// checkFireByKey refuses a fire by business key, and the creation that it may be.
func (r *request) checkFireByKey(workflow, event string, starts bool) error {
	if !starts {
		return r.checkFire(workflow, event, fsm.NoHolder())
	}
	if !r.principal.has(ScopeCreate) {
		return r.checkCreate(workflow)
	}
	if err := r.checkFire(workflow, event, fsm.NoWorkflow(workflow, 0)); err != nil {
		return err
	}
	if !r.principal.mayReach(workflow, ScopeCreate) {
		return forbidden(`your grants with the scope "create" are not for this workflow`)
	}
	return nil
}

// actForOwner makes a caller of the deployment that has named no tenant act for the one that has a resource.
func (r *request) actForOwner(ctx context.Context, id uuid.UUID, tenantOf func(context.Context, uuid.UUID) (string, error)) error {
	if r.principal.tenant != fsm.Deployment {
		return nil
	}
	owner, err := tenantOf(ctx, id)
	if err == nil {
		r.principal.tenant = owner
	}
	return err
}

// instance returns the id of an instance in the path. It refuses one behind the border, and makes a caller of the
// deployment act for the tenant that has it.
func (s *server) instance(ctx context.Context, text string) (uuid.UUID, error) {
	id, err := instanceID(text)
	if err != nil {
		return id, err
	}
	r := requestOf(ctx)
	if err := r.actForOwner(ctx, id, s.service.TenantOf); err != nil {
		return id, err
	}
	if r.within() == nil {
		return id, nil
	}
	_, err = s.workflowOf(ctx, id)
	return id, err
}

// workflowOf reads the workflow of an instance that the caller may reach.
func (s *server) workflowOf(ctx context.Context, id uuid.UUID) (string, error) {
	r := requestOf(ctx)
	workflows, err := s.service.WorkflowsOf(ctx, r.principal.tenant, id)
	if err != nil {
		return "", err
	}
	workflow, known := workflows[id]
	if !known || !r.reaches(workflow) {
		return "", fsm.NoInstance()
	}
	return workflow, nil
}

// checkFireAt refuses an event that the caller may not fire at an instance.
func (s *server) checkFireAt(ctx context.Context, id uuid.UUID, event string) error {
	r := requestOf(ctx)
	if r.principal.mayAll(ScopeFire) {
		return nil
	}
	workflow, err := s.workflowOf(ctx, id)
	if err != nil {
		return err
	}
	return r.checkFire(workflow, event, fsm.NoInstance())
}

// subscription returns the id of a subscription in the path. It refuses one behind the border, and makes a caller of the
// deployment act for the tenant that has it.
func (s *server) subscription(ctx context.Context, text string) (uuid.UUID, error) {
	id, err := resourceID(text, "subscription")
	if err != nil {
		return id, err
	}
	r := requestOf(ctx)
	if err := r.actForOwner(ctx, id, s.subscriptions.TenantOf); err != nil {
		return id, err
	}
	within := r.within()
	if within == nil {
		return id, nil
	}
	found, err := s.subscriptions.GetSubscription(ctx, r.principal.tenant, id)
	if err == nil && !found.Within(within) {
		err = subscription.ErrNone
	}
	return id, err
}

// checkFilter refuses a filter of a subscription that reaches behind the border.
func (r *request) checkFilter(f subscription.Filter) error {
	if within := r.within(); within != nil && !f.Within(within) {
		return forbidden("your grants are for some workflows: name some of them, and no others, in /filter/workflows")
	}
	return nil
}

// readmit looks again whether the caller of a request that lasts is still allowed it: its token is live, and its grants
// are what they were. While the database is away it assumes so.
func (s *server) readmit(ctx context.Context) error {
	if s.auth == nil {
		return nil
	}
	r := requestOf(ctx)
	p, _, err := s.principalOf(ctx, r.header, false)
	switch {
	case ctx.Err() != nil, err != nil && errors.Is(err, fsm.Unavailable):
		return nil
	case err != nil:
		refusal, _ := problemOf(ctx, err)
		return unauthenticated("the token no longer allows this: " + refusal.Detail)
	case !p.has(r.op.admission.scopes...):
		return unauthenticated("the token no longer has the scope that this needs")
	}
	was, now := r.within(), (&request{op: r.op, principal: p}).within()
	if (was == nil) != (now == nil) || !slices.Equal(was, now) {
		return unauthenticated("the workflows that the token is for have changed; send the request again")
	}
	return nil
}
