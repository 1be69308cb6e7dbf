-- name: ConnectionPut :one
select * from pawl.connection_put(
  @tenant::text, @name::text, @base_url::text, @auth::jsonb, sqlc.narg('secret')::text, @headers::jsonb,
  sqlc.narg('timeout')::interval, @concurrency::integer, sqlc.narg('tls_ca')::text, @expected::text, @caller::jsonb);

-- name: ConnectionDelete :one
select pawl.connection_delete(@tenant::text, @name::text, @expected::text, @caller::jsonb)::boolean as deleted;

-- name: GetConnection :one
select * from pawl.connection_row where tenant_id = @tenant_id and name = @name;

-- name: ListConnections :many
select c.*
from pawl.connection_row c
where c.tenant_id = @tenant_id and c.name > @after::text
order by c.name
limit @row_limit;

-- name: ConnectionEndpoints :many
select * from pawl.connection_endpoints(@tenants::text[], @names::text[]);

-- name: ConnectionReport :exec
select pawl.connection_report(@tenants::text[], @names::text[], @succeeded::boolean[], @rest::interval);

-- name: ConnectionFinding :exec
select pawl.connection_finding(@tenants::text[], @names::text[], @findings::text[], @rest::interval);
