-- name: Principals :many
select * from pawl.principals(@tokens::text[], @homes::text[], @tenants::text[], @roles::jsonb);

-- name: TokenUsed :exec
select pawl.token_used(@id::text);

-- name: TokenCreate :one
select * from pawl.token_create(
  @tenant::text, @id::text, @sha256::bytea, @subject::text, @scopes::text[], @roles::text[], @workflows::text[],
  sqlc.narg('name')::text, sqlc.narg('expires_at')::timestamptz, @within::text[], @caller::jsonb);

-- name: TokenRevoke :one
select * from pawl.token_revoke(@tenant::text, @id::text, @within::text[], @caller::jsonb);

-- name: GetToken :one
select * from pawl.token where id = @id and (@tenant_id::text = '*' or tenant_id = @tenant_id::text);

-- name: ListTokens :many
select t.*
from pawl.token t
where t.tenant_id = @tenant_id and t.id > @after::text
order by t.id
limit @row_limit;

-- name: RolePut :one
select pawl.role_put(
  @tenant::text, @name::text, @scopes::text[], @workflows::text[], @events::text[], @within::text[], @caller::jsonb
)::boolean as created;

-- name: RoleDelete :one
select pawl.role_delete(@tenant::text, @name::text, @within::text[], @caller::jsonb)::boolean as deleted;

-- name: GetRole :one
select * from pawl.role where tenant_id = @tenant_id and name = @name;

-- name: ListRoles :many
select r.*
from pawl.role r
where r.tenant_id = @tenant_id and r.name > @after::text
order by r.name
limit @row_limit;

-- name: TenantPut :one
select pawl.tenant_put(@id::text, sqlc.narg('limits')::jsonb, sqlc.narg('disabled')::boolean, @caller::jsonb)::boolean as created;

-- name: GetTenant :one
select * from pawl.tenant where id = @id;

-- name: ListTenants :many
select t.*
from pawl.tenant t
where t.id > @after::text
order by t.id
limit @row_limit;

-- ListTenantIDs reads the ids of tenants, from one on.
-- name: ListTenantIDs :many
select t.id from pawl.tenant t where t.id >= @first::text order by t.id limit @row_limit;
