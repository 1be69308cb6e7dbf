package live

import (
	"context"
	"errors"
	"math/rand/v2"

	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/fsm"
)

// Await waits until done returns true for an instance, until the instance is final and so moves no more, or
// until the context ends. It returns the instance as it is then.
// Kinds: InstanceNotFound, Unavailable.
func (s *Service) Await(ctx context.Context, tenant string, id uuid.UUID, done func(fsm.Instance) bool) (fsm.Instance, error) {
	// The waiter is older than the first read, so no step after that read is missed.
	waiter := s.hub.Instance(id)
	defer waiter.Close()
	for waited := false; ; waited = true {
		i, err := s.fsm.Get(context.WithoutCancel(ctx), tenant, id)
		switch {
		case ctx.Err() != nil:
			return i, err
		case waited && errors.Is(err, fsm.Unavailable):
			// Many may have been woken at once, or the database is away for a short time.
			s.hub.wait(ctx, waiter, s.hub.config.Poll/2+rand.N(s.hub.config.Poll))
			continue
		case err != nil || done(i) || i.Status != fsm.Active:
			return i, err
		}
		s.hub.wait(ctx, waiter, 0)
	}
}

// States returns the states that Await's callers may wait for, by their paths, sorted: the atomic and final
// states of a version of a workflow, and the compound states around them, such as CHECKOUT around
// CHECKOUT.PAYMENT. It returns none if there is no such version.
// Kinds: Unavailable.
func (s *Service) States(ctx context.Context, workflow string, version int) ([]string, error) {
	var states []string
	err := s.db.Read(ctx, func(ctx context.Context, q *queries.Queries) error {
		rows, err := q.ListStates(ctx, queries.ListStatesParams{Workflow: workflow, WorkflowVersion: int32(version)})
		for _, r := range rows {
			states = append(states, r.State)
		}
		return err
	})
	return fsm.WithCompounds(states), err
}
