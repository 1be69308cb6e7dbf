-- name: GetInstances :many
select sqlc.embed(i), s.events as actions
from pawl.instance i
join pawl.workflow_state s
  on s.workflow = i.workflow and s.workflow_version = i.workflow_version and s.state = i.state
where i.tenant_id = @tenant_id and i.id = any (@ids::uuid[]);

-- name: GetInstanceVersion :one
select sqlc.embed(i), s.events as actions
from pawl.instance_at i
join pawl.workflow_state s
  on s.workflow = i.workflow and s.workflow_version = i.workflow_version and s.state = i.state
where i.tenant_id = @tenant_id and i.id = @id and i.version = @version;

-- GetInstanceVersionAt says which version an instance was at.
-- name: GetInstanceVersionAt :one
select h.version
from pawl.history h
where h.tenant_id = @tenant_id and h.instance_id = @id and h.at <= @at
order by h.version desc
limit 1;

-- ListInstances reads the newest first. Bounds on created_at are bounds on the id too,
-- which the primary key answers.
-- name: ListInstances :many
select sqlc.embed(i), s.events as actions
from pawl.instance i
join pawl.workflow_state s
  on s.workflow = i.workflow and s.workflow_version = i.workflow_version and s.state = i.state
where i.tenant_id = @tenant_id
  and (sqlc.narg('before_id')::uuid is null or i.id < sqlc.narg('before_id'))
  and i.workflow <> '' -- The condition of instance_workflow_idx.
  and (sqlc.narg('workflow')::text is null or i.workflow = sqlc.narg('workflow'))
  and (sqlc.narg('state')::text is null or i.state = sqlc.narg('state'))
  and (sqlc.narg('status')::text is null or i.status = sqlc.narg('status'))
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
    or i.status = 'active' and i.state_changed_at <= pawl.now() - sqlc.narg('stuck_for')::interval
  )
order by i.id desc
limit @row_limit;

-- ListActions reads the events that a state accepts, with the schema of their payload.
-- name: ListActions :many
select
  t.event,
  (array_agg(t.payload_schema))[1]::jsonb as payload_schema,
  array_agg(t.target order by t.position)::text[] as targets
from pawl.workflow_transition t
where t.workflow = @workflow and t.workflow_version = @workflow_version and t.source = @state
  and t.event not like '%:%'
group by t.event
order by t.event collate "C";

-- name: GuardHolds :many
select g.event::text as event, g.holds::boolean as holds
from pawl.instance i
cross join lateral pawl.guard_holds(i, @events::text[], @payload::jsonb) g
where i.tenant_id = @tenant_id and i.id = @id;
