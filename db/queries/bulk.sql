-- name: BulkCreate :one
select b.*
from pawl.bulk_create(
  @tenant::text, @id::uuid, @action::text, sqlc.narg(filter)::jsonb, sqlc.narg(choice)::jsonb, sqlc.narg(ids)::uuid[],
  @params::jsonb, @reason::text, sqlc.narg(rate)::integer, @dry_run::boolean, @counted::bigint, @key::text,
  @actor::text, @verified::boolean, @correlation_id::text, @traceparent::text,
  sqlc.narg(caller)::jsonb) b;

-- name: BulkControl :one
select b.* from pawl.bulk_control(@tenant::text, @id::uuid, @control::text, sqlc.narg(caller)::jsonb) b;

-- name: BulkCheck :exec
select pawl.bulk_check(@tenant::text, @id::uuid, @checks::jsonb);

-- BulkStep has an empty tenant if there is nothing to check.
-- name: BulkStep :one
select
  s.looked_at::integer as looked_at,
  s.moved::uuid[] as moved,
  -- One day if there is no bulk.
  coalesce(extract(epoch from s.next_in), 86400)::float8 as next_seconds,
  coalesce(s.tenant, '')::text as tenant,
  coalesce(s.bulk, '00000000-0000-0000-0000-000000000000')::uuid as bulk,
  s.unchecked::jsonb as unchecked
from pawl.bulk_step(@batch::integer) s;

-- name: BulkPurge :one
select pawl.bulk_purge(@age::interval, @row_limit::integer)::bigint;

-- name: GetBulk :one
select b.* from pawl.bulk_report b where b.tenant_id = @tenant_id and b.id = @id
  and (sqlc.narg('within')::text[] is null or b.workflows <@ sqlc.narg('within'));

-- name: ListBulks :many
select b.*
from pawl.bulk_report b
where b.tenant_id = @tenant_id and (sqlc.narg('before_id')::uuid is null or b.id < sqlc.narg('before_id'))
  and (sqlc.narg('within')::text[] is null or b.workflows <@ sqlc.narg('within'))
  and (sqlc.narg('status')::text is null or b.status = sqlc.narg('status'))
order by b.id desc
limit @row_limit;

-- ListBulkItems reads the items that have an outcome. It must be planned for its arguments.
-- name: ListBulkItems :many
select t.instance_id, t.outcome::text as outcome, t.problem, t.at::timestamptz as at
from pawl.bulk_item t
where t.tenant_id = @tenant_id and t.bulk_id = @bulk_id and t.outcome is not null
  and (sqlc.narg('outcome')::text is null or t.outcome = sqlc.narg('outcome'))
  and (sqlc.narg('after_id')::uuid is null or t.instance_id > sqlc.narg('after_id'))
order by t.instance_id
limit @row_limit;

-- ListEvents reads the events and patterns that some version of the workflows has transitions for; of all workflows if
-- there are none.
-- name: ListEvents :many
select distinct t.event
from pawl.workflow_transition t
where t.event not like ':%' and t.event not like '%:%' and (@workflows::text[] = '{}' or t.workflow = any (@workflows::text[]))
limit @row_limit;

-- name: TenantOfBulk :one
select pawl.tenant_of_bulk(@id::uuid) as tenant;
