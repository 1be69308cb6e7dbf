-- name: GetInstances :many
select i.*, s.events as actions
from pawl.instances(@tenants::text[], @ids::uuid[]) i
join pawl.workflow_state s
  on s.workflow = i.workflow and s.workflow_version = i.workflow_version and s.state = i.state;

-- GetInstanceVersion reads a past version. Its version of the workflow may have been retired.
-- name: GetInstanceVersion :one
select sqlc.embed(i), coalesce(s.events, '{}')::text[] as actions
from pawl.instance_at i
left join pawl.workflow_state s
  on s.workflow = i.workflow and s.workflow_version = i.workflow_version and s.state = i.state
where i.tenant_id = @tenant_id and i.id = @id and i.version = @version;

-- GetInstanceVersionAt says which version an instance was at.
-- name: GetInstanceVersionAt :one
select h.version
from pawl.history h
where h.tenant_id = @tenant_id and h.instance_id = @id and h.at <= @at
order by h.version desc
limit 1;

-- ListInstances reads the newest first. It reads a page for each status that the wanted instances can
-- have, by an index in the order of ids, and merges the pages. So a rare state is looked for only among
-- the instances of its status. Bounds on created_at become bounds on the id, and so does stuck_for: an
-- instance is created before it enters its state. The query must be planned for its arguments at each
-- call, so that conditions on arguments that are null vanish.
-- name: ListInstances :many
select sqlc.embed(i), s.events as actions
from (
  select c.id
  from (
    select distinct w.status
    from pawl.workflow_state w
    where (sqlc.narg('workflow')::text is null or w.workflow = sqlc.narg('workflow'))
      and (sqlc.narg('state')::text is null or w.state = sqlc.narg('state'))
      and (sqlc.narg('status')::text is null or w.status = sqlc.narg('status'))
      and (sqlc.narg('stuck_for')::interval is null or w.status = 'active')
  ) w
  cross join lateral (
    select i.id
    from pawl.instance i
    where i.tenant_id = @tenant_id
      and i.status = w.status
      and i.workflow <> '' -- The condition of the indexes.
      and (sqlc.narg('before_id')::uuid is null or i.id < sqlc.narg('before_id'))
      and (sqlc.narg('workflow')::text is null or i.workflow = sqlc.narg('workflow'))
      -- coalesce keeps from the planner how rare a state is: it would read all and sort.
      and (sqlc.narg('state')::text is null or coalesce(i.state = sqlc.narg('state'), false))
      and (sqlc.narg('business_key')::text is null or i.business_key = sqlc.narg('business_key'))
      and (sqlc.narg('correlation_id')::text is null or i.correlation_id = sqlc.narg('correlation_id'))
      and (
        sqlc.narg('created_after')::timestamptz is null
        or i.created_at > sqlc.narg('created_after') and i.id >= pawl.uuid_v7_floor(sqlc.narg('created_after'))
      )
      and (
        sqlc.narg('created_before')::timestamptz is null
        or i.created_at < sqlc.narg('created_before')
          and i.id < pawl.uuid_v7_floor(sqlc.narg('created_before')::timestamptz + interval '1 millisecond')
      )
      and (
        sqlc.narg('stuck_for')::interval is null
        or i.state_changed_at <= (select pawl.now() - sqlc.narg('stuck_for')::interval)
          and i.id < (select pawl.uuid_v7_floor(pawl.now() - sqlc.narg('stuck_for')::interval + interval '1 millisecond'))
      )
    order by i.id desc
    limit @row_limit
  ) c
  order by c.id desc
  limit @row_limit
) c
join pawl.instance i on i.tenant_id = @tenant_id and i.id = c.id
join pawl.workflow_state s
  on s.workflow = i.workflow and s.workflow_version = i.workflow_version and s.state = i.state
order by i.id desc;

-- ListActions reads the events that a state accepts from callers, with the schema of their
-- payload.
-- name: ListActions :many
select
  t.event,
  (array_agg(t.payload_schema))[1]::jsonb as payload_schema,
  array_agg(t.target order by t.position)::text[] as targets
from pawl.workflow_transition t
where t.workflow = @workflow and t.workflow_version = @workflow_version and t.source = @state
  and t.event <> 'ttl' and t.event not like '%:%' -- The engine's own.
group by t.event
order by t.event collate "C";

-- name: GuardHolds :many
select g.event::text as event, g.holds::boolean as holds
from pawl.instance i
cross join lateral pawl.guard_holds(i, @events::text[], @payload::jsonb) g
where i.tenant_id = @tenant_id and i.id = @id;
