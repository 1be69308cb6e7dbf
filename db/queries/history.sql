-- name: ListHistory :many
select h.*
from pawl.history_page(@tenant_id::text, @instance_id::uuid, @after_version::bigint, @row_limit::integer, @bytes::bigint) h
order by h.version;

-- ListTraceparents reads the traceparents of an instance's first steps, and nothing that may be large.
-- name: ListTraceparents :many
select h.version::bigint as version, h.traceparent::text as traceparent
from pawl.history h
where h.tenant_id = @tenant_id and h.instance_id = @instance_id and h.traceparent <> ''
order by h.version
limit @row_limit;

-- PreviousTraces reads the traceparent of the last step before each of some steps that has another one.
-- name: PreviousTraces :many
select c.ordinal::bigint as ordinal, p.traceparent::text as traceparent
from (
  select
    unnest(@tenants::text[]) as tenant, unnest(@ids::uuid[]) as id, unnest(@versions::bigint[]) as version,
    unnest(@traceparents::text[]) as traceparent, generate_subscripts(@tenants::text[], 1) as ordinal
) c
cross join lateral (
  select h.traceparent
  from pawl.history h
  where h.tenant_id = c.tenant and h.instance_id = c.id and h.version < c.version and h.version >= c.version - 50
    and h.traceparent <> c.traceparent
  order by h.version desc
  limit 1
) p;
