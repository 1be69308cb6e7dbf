package httpapi

import (
	"context"
	"time"

	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/access"
	"github.com/pawl-fsm/pawl/httpapi/api"
)

// tokenOf converts a token to the form of the contract.
func tokenOf(t access.Token) api.BearerToken {
	return api.BearerToken{
		ID: t.ID, Tenant: t.Tenant, Token: optional(t.Text), Name: t.Name, Subject: t.Subject, Scopes: each(t.Scopes, as[api.ScopeName]), Roles: t.Roles,
		Workflows: t.Workflows, CreatedAt: api.Timestamp(t.CreatedAt), CreatedBy: t.CreatedBy, ExpiresAt: (*api.Timestamp)(t.ExpiresAt),
		RevokedAt: (*api.Timestamp)(t.RevokedAt), LastUsedAt: (*api.Timestamp)(t.LastUsedAt),
	}
}

// CreateToken makes a token of the tenant and answers with its text.
func (s *server) CreateToken(ctx context.Context, in CreateTokenRequestObject) (CreateTokenResponseObject, error) {
	if in.Body == nil {
		return nil, errNoBody
	}
	r := requestOf(ctx)
	created, err := s.access.CreateToken(ctx, access.Token{
		Tenant: r.principal.tenant, ID: value(in.Body.ID), Name: in.Body.Name, Subject: in.Body.Subject, Scopes: each(in.Body.Scopes, as[string]),
		Roles: in.Body.Roles, Workflows: in.Body.Workflows, ExpiresAt: (*time.Time)(in.Body.ExpiresAt),
	}, r.within())
	if err != nil {
		return nil, err
	}
	return CreateToken201JSONResponse{
		Body: tokenOf(created), Headers: CreateToken201ResponseHeaders{Location: "/v1/tokens/" + created.ID},
	}, nil
}

// ListTokens answers with a page of the tenant's tokens.
func (s *server) ListTokens(ctx context.Context, in ListTokensRequestObject) (ListTokensResponseObject, error) {
	page, err := pageOf(in.Params.Limit, in.Params.Cursor)
	if err != nil {
		return nil, err
	}
	list, err := listOf(ctx, s, page, true, func(tenant string, page fsm.Page) (fsm.List[access.Token], error) {
		return s.access.Tokens(ctx, tenant, page)
	})
	if err != nil {
		return nil, err
	}
	return ListTokens200JSONResponse{
		Body:    api.TokenList{Items: each(list.Items, func(i item[access.Token]) api.BearerToken { return tokenOf(i.value) }), NextCursor: optional(list.Next)},
		Headers: ListTokens200ResponseHeaders{Link: requestOf(ctx).nextLink(list.Next)},
	}, nil
}

// GetSelf answers with who the caller is and what it may do.
func (s *server) GetSelf(ctx context.Context, _ GetSelfRequestObject) (GetSelfResponseObject, error) {
	p := requestOf(ctx).principal
	out := api.Caller{Tenant: p.home, Subject: p.subject, TokenID: optional(p.tokenID), Authenticated: !p.open, Grants: []api.Grant{}}
	for _, g := range p.grants {
		out.Grants = append(out.Grants, api.Grant{
			Scopes:    each(g.scopes, as[api.ScopeName]),
			Workflows: append([]string{}, g.workflows...), Events: append([]string{}, g.events...),
		})
	}
	return GetSelf200JSONResponse(out), nil
}

// GetToken answers with one token.
func (s *server) GetToken(ctx context.Context, in GetTokenRequestObject) (GetTokenResponseObject, error) {
	token, err := s.access.GetToken(ctx, requestOf(ctx).principal.tenant, in.ID)
	if err != nil {
		return nil, err
	}
	return GetToken200JSONResponse(tokenOf(token)), nil
}

// RevokeToken refuses a token from now on.
func (s *server) RevokeToken(ctx context.Context, in RevokeTokenRequestObject) (RevokeTokenResponseObject, error) {
	r := requestOf(ctx)
	if err := s.access.RevokeToken(ctx, r.principal.tenant, in.ID, r.within()); err != nil {
		return nil, err
	}
	return RevokeToken204Response{}, nil
}

// roleOf converts a role to the form of the contract.
func roleOf(r access.Role) api.Role {
	return api.Role{
		Name: r.Name, Tenant: r.Tenant, Scopes: each(r.Scopes, as[api.ScopeName]), Workflows: r.Workflows, Events: r.Events,
		CreatedAt: api.Timestamp(r.CreatedAt), CreatedBy: r.CreatedBy, UpdatedAt: api.Timestamp(r.UpdatedAt),
	}
}

// PutRole makes a role of the tenant, or replaces it.
func (s *server) PutRole(ctx context.Context, in PutRoleRequestObject) (PutRoleResponseObject, error) {
	if in.Body == nil {
		return nil, errNoBody
	}
	r := requestOf(ctx)
	role, created, err := s.access.PutRole(ctx, access.Role{
		Tenant: r.principal.tenant, Name: in.Name, Scopes: each(in.Body.Scopes, as[string]), Workflows: in.Body.Workflows, Events: in.Body.Events,
	}, r.within())
	switch {
	case err != nil:
		return nil, err
	case created:
		return PutRole201JSONResponse{Body: roleOf(role), Headers: PutRole201ResponseHeaders{Location: "/v1/roles/" + role.Name}}, nil
	}
	return PutRole200JSONResponse(roleOf(role)), nil
}

// ListRoles answers with a page of the tenant's roles.
func (s *server) ListRoles(ctx context.Context, in ListRolesRequestObject) (ListRolesResponseObject, error) {
	page, err := pageOf(in.Params.Limit, in.Params.Cursor)
	if err != nil {
		return nil, err
	}
	list, err := listOf(ctx, s, page, true, func(tenant string, page fsm.Page) (fsm.List[access.Role], error) {
		return s.access.Roles(ctx, tenant, page)
	})
	if err != nil {
		return nil, err
	}
	return ListRoles200JSONResponse{
		Body:    api.RoleList{Items: each(list.Items, func(i item[access.Role]) api.Role { return roleOf(i.value) }), NextCursor: optional(list.Next)},
		Headers: ListRoles200ResponseHeaders{Link: requestOf(ctx).nextLink(list.Next)},
	}, nil
}

// GetRole answers with one role.
func (s *server) GetRole(ctx context.Context, in GetRoleRequestObject) (GetRoleResponseObject, error) {
	role, err := s.access.GetRole(ctx, requestOf(ctx).principal.tenant, in.Name)
	if err != nil {
		return nil, err
	}
	return GetRole200JSONResponse(roleOf(role)), nil
}

// DeleteRole deletes a role.
func (s *server) DeleteRole(ctx context.Context, in DeleteRoleRequestObject) (DeleteRoleResponseObject, error) {
	r := requestOf(ctx)
	if err := s.access.DeleteRole(ctx, r.principal.tenant, in.Name, r.within()); err != nil {
		return nil, err
	}
	return DeleteRole204Response{}, nil
}

// tenantOf converts a tenant to the form of the contract.
func tenantOf(t access.Tenant) api.Tenant {
	return api.Tenant{
		ID: t.ID, Limits: t.Limits, Disabled: t.DisabledAt != nil, DisabledAt: (*api.Timestamp)(t.DisabledAt),
		CreatedAt: api.Timestamp(t.CreatedAt), CreatedBy: t.CreatedBy,
	}
}

// PutTenant makes a tenant, or changes it.
func (s *server) PutTenant(ctx context.Context, in PutTenantRequestObject) (PutTenantResponseObject, error) {
	if in.Body == nil {
		return nil, errNoBody
	}
	tenant, created, err := s.access.PutTenant(ctx, in.ID, in.Body.Limits, in.Body.Disabled)
	switch {
	case err != nil:
		return nil, err
	case created:
		return PutTenant201JSONResponse{Body: tenantOf(tenant), Headers: PutTenant201ResponseHeaders{Location: "/v1/tenants/" + tenant.ID}}, nil
	}
	return PutTenant200JSONResponse(tenantOf(tenant)), nil
}

// ListTenants answers with a page of all tenants.
func (s *server) ListTenants(ctx context.Context, in ListTenantsRequestObject) (ListTenantsResponseObject, error) {
	page, err := pageOf(in.Params.Limit, in.Params.Cursor)
	if err != nil {
		return nil, err
	}
	list, err := s.access.Tenants(ctx, page)
	if err != nil {
		return nil, err
	}
	return ListTenants200JSONResponse{
		Body:    api.TenantList{Items: each(list.Items, tenantOf), NextCursor: optional(list.Next)},
		Headers: ListTenants200ResponseHeaders{Link: requestOf(ctx).nextLink(list.Next)},
	}, nil
}

// GetTenant answers with one tenant.
func (s *server) GetTenant(ctx context.Context, in GetTenantRequestObject) (GetTenantResponseObject, error) {
	tenant, err := s.access.GetTenant(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	return GetTenant200JSONResponse(tenantOf(tenant)), nil
}
