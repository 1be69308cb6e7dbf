-- ListVersions reads the versions of a workflow, the latest first, and how many of some tenants'
-- instances are in each state. It reads all of the tenants' instances of the workflow, by an index.
-- name: ListVersions :many
select
  w.version,
  w.checksum,
  w.created_at,
  w.created_by,
  coalesce(c.instances, '{}')::jsonb as instances
from pawl.workflow w
left join (
  select s.workflow_version, jsonb_object_agg(s.state, s.instances) as instances
  from (
    select i.workflow_version, i.state, count(*) as instances
    from pawl.instance i
    where i.tenant_id = any (@tenants::text[])
      and i.workflow = @name
      and i.workflow <> '' -- The condition of the index.
    group by i.workflow_version, i.state
  ) s
  group by s.workflow_version
) c on c.workflow_version = w.version
where w.name = @name
order by w.version desc;

-- name: RetireWorkflow :one
select pawl.retire_workflow(@name::text, @checksum::text, @version::integer, @caller::jsonb)::boolean as retired;

-- name: MigrateInstances :many
select
  m.id::uuid as id,
  coalesce(m.from_state, '')::text as from_state,
  coalesce(m.to_state, '')::text as to_state,
  m.result::text as result
from pawl.migrate_instances(
  @tenant::text, @workflow::text, @from_version::integer, @to_version::integer, @state_map::jsonb,
  sqlc.narg('after')::uuid, @row_limit::integer, @actor::text, @dry_run::boolean, sqlc.narg('states')::text[],
  sqlc.narg('ids')::uuid[], @reason::text, @correlation_id::text, @traceparent::text,
  @caller::jsonb) m
order by m.id;
