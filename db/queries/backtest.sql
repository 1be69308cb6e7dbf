-- name: Backtest :many
select
  b.id::uuid as id,
  b.steps::integer as steps,
  b.complete::boolean as complete,
  b.difference::jsonb as difference,
  b.checks::jsonb as checks
from pawl.backtest(
  @workflow::text, @ids::uuid[], sqlc.narg('version')::integer, sqlc.narg('definition')::jsonb, @tenant::text, @bytes::bigint) b;

-- NewestInstances reads ids as ListInstances does: a page of each tenant and status, merged.
-- name: NewestInstances :many
select c.tenant_id, c.id
from unnest(array['active', 'completed', 'failed', 'cancelled', 'expired']) as s (status)
cross join unnest(@tenants::text[]) as t (id)
cross join lateral (
  select i.tenant_id, i.id
  from pawl.instance i
  where i.tenant_id = t.id
    and i.workflow = @workflow
    and i.workflow <> '' -- The condition of the index.
    and i.status = s.status
    and (sqlc.narg('before_id')::uuid is null or i.id < sqlc.narg('before_id'))
  order by i.id desc
  limit @row_limit
) c
order by c.id desc
limit @row_limit;

-- ListDocuments reads what steps of an instance were given: the context of the first, the
-- payload of any other.
-- name: ListDocuments :many
select h.version, case when h.version = 1 then h.context else coalesce(h.payload, '{}') end::jsonb as document
from pawl.history h
where h.tenant_id = @tenant_id and h.instance_id = @instance_id and h.version = any (@versions::bigint[])
order by h.version;
