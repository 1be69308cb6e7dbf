package fsm

import (
	"context"
	"slices"

	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/fsm/internal/database"
)

// maxTenants is how many tenants a call for all tenants looks at.
const maxTenants = 10_000

// TenantsFrom returns the ids of tenants in order, from one on; the empty id is before all. They are at most limit.
// Kinds: Unavailable.
func (s *Service) TenantsFrom(ctx context.Context, first string, limit int) (ids []string, err error) {
	err = s.db.Read(ctx, func(ctx context.Context, q *queries.Queries) (err error) {
		ids, err = q.ListTenantIDs(ctx, queries.ListTenantIDsParams{First: first, RowLimit: int32(limit)})
		return err
	})
	return ids, err
}

// SealCursor returns a cursor for a list that is made of the lists of several tenants. scope names the list with all its
// filters, and key is where it goes on. The key is protected against changes; it is not hidden.
// Kinds: Unavailable.
func (s *Service) SealCursor(ctx context.Context, scope, key string) (cursor string, err error) {
	return s.db.Seal(ctx, scope, key)
}

// UnsealCursor returns the key of a cursor that SealCursor has made for the scope.
// Kinds: Malformed (cursor), Unavailable.
func (s *Service) UnsealCursor(ctx context.Context, scope, cursor string) (key string, err error) {
	return s.db.Unseal(ctx, scope, cursor)
}

// TenantsOf returns the tenants that a name stands for: itself, or all tenants for Deployment.
// Kinds: TenantRequired if they are too many, Unavailable.
func (s *Service) TenantsOf(ctx context.Context, tenant string) ([]string, error) {
	if tenant != Deployment {
		return []string{tenant}, nil
	}
	ids, err := s.TenantsFrom(ctx, "", maxTenants+1)
	if err == nil && len(ids) > maxTenants {
		return nil, errManyTenants
	}
	return ids, err
}

var errManyTenants = Errorf(TenantRequired, "there are too many tenants to look at all of them; name one")

// TenantOf returns the tenant that has an instance.
// Kinds: InstanceNotFound, TenantRequired, Unavailable.
func (s *Service) TenantOf(ctx context.Context, id uuid.UUID) (string, error) {
	return FindTenant(ctx, s.db, NoInstance(), func(ctx context.Context, q *queries.Queries) (string, error) {
		return q.TenantOfInstance(ctx, id)
	})
}

// FindTenant returns the tenant that find finds, which is a query of pawl.tenant_of_instance or the like. absent is the
// error if no tenant has what is looked for.
func FindTenant(
	ctx context.Context, db *database.Client, absent error, find func(context.Context, *queries.Queries) (string, error),
) (tenant string, err error) {
	err = db.Read(ctx, func(ctx context.Context, q *queries.Queries) (err error) {
		tenant, err = find(ctx, q)
		return err
	})
	switch {
	case err != nil:
		return "", err
	case tenant == Deployment:
		return "", errManyTenants
	case tenant == "":
		return "", absent
	}
	return tenant, nil
}

// AreWithin reports whether the workflows that a filter names are all among those of a border. A filter that names none is
// for all workflows, and not within.
func AreWithin(named, border []string) bool {
	return len(named) > 0 && !slices.ContainsFunc(named, func(name string) bool { return !slices.Contains(border, name) })
}

// WorkflowsOf returns which workflows instances of a tenant are of. One that does not exist is missing.
// Kinds: Unavailable.
func (s *Service) WorkflowsOf(ctx context.Context, tenant string, ids ...uuid.UUID) (map[uuid.UUID]string, error) {
	workflows := make(map[uuid.UUID]string, len(ids))
	err := s.db.Read(ctx, func(ctx context.Context, q *queries.Queries) error {
		rows, err := q.WorkflowsOfInstances(ctx, queries.WorkflowsOfInstancesParams{TenantID: tenant, Ids: ids})
		for _, r := range rows {
			workflows[r.ID] = r.Workflow
		}
		return err
	})
	return workflows, err
}
