-- name: TaskLanes :many
select * from pawl.task_lanes(p_after => @after::text, p_looks => @looks::integer);

-- name: TaskClaim :many
select *
from pawl.task_claim(
  p_tenants => @tenants::text[], p_connections => @connections::text[], p_limits => @limits::integer[], p_claimer => @claimer::text);

-- name: TaskSettle :many
select *
from pawl.task_settle(p_tenants => @tenants::text[], p_ids => @ids::uuid[], p_leases => @leases::uuid[], p_reports => @reports::jsonb[]);

-- name: TaskSweep :one
-- One day if there is nothing to wait for.
select s.looked::integer as looked, coalesce(extract(epoch from s.next_in), 86400)::float8 as next_seconds
from pawl.task_sweep(p_limit => @max_looks::integer) s;

-- name: WorkClaims :many
select * from pawl.work_claims(p_claims => @claims::jsonb);

-- name: TaskRetry :one
select pawl.task_retry(
  p_tenant => @tenant::text, p_id => @id::uuid, p_reason => @reason::text, p_actor => @actor::text, p_caller => @caller::jsonb)::boolean;

-- name: TaskResolve :one
select pawl.task_resolve(
  p_tenant => @tenant::text, p_id => @id::uuid, p_outcome => @outcome::text, p_result => @result::jsonb, p_reason => @reason::text,
  p_actor => @actor::text, p_caller => @caller::jsonb)::boolean;

-- name: CompensationMark :one
select c.*
from pawl.compensation_mark(
  p_tenant => @tenant::text, p_instance_id => @instance_id::uuid, p_name => @name::text, p_mark => @mark::text, p_reason => @reason::text,
  p_actor => @actor::text, p_caller => @caller::jsonb) c;

-- name: TenantOfTask :one
select pawl.tenant_of_task(@id::uuid) as tenant;

-- name: GetTask :one
select t.* from pawl.task_row t where t.tenant_id = @tenant_id and t.id = @id;

-- ListTasks must be planned for its arguments.
-- name: ListTasks :many
select t.*
from pawl.task_row t
where t.tenant_id = @tenant_id
  and (sqlc.narg('before_id')::uuid is null or t.id < sqlc.narg('before_id'))
  and (sqlc.narg('status')::text is null or t.status = sqlc.narg('status'))
  and (sqlc.narg('topic')::text is null or t.topic = sqlc.narg('topic'))
  and (sqlc.narg('workflow')::text is null or t.workflow = sqlc.narg('workflow'))
  and (sqlc.narg('instance_id')::uuid is null or t.instance_id = sqlc.narg('instance_id'))
  and (sqlc.narg('within')::text[] is null or t.workflow = any (sqlc.narg('within')))
order by t.id desc
limit @row_limit;

-- ListAttempts reads the last attempts of a task, the oldest first.
-- name: ListAttempts :many
select a.*
from (
  select a.* from pawl.task_attempt a
  where a.tenant_id = @tenant_id and a.task_id = @task_id
  order by a.number desc
  limit @row_limit) a
order by a.number;

-- name: ListCompensations :many
select c.*
from pawl.compensation c
where c.tenant_id = @tenant_id and c.instance_id = @instance_id
order by c.number desc;

-- name: TimelinePage :many
select m.*
from pawl.timeline_page(
  @tenant::text, @instance::uuid, sqlc.narg(at)::timestamptz, sqlc.narg(version)::bigint, sqlc.narg(rank)::integer,
  sqlc.narg(key)::text, @step::bigint, @told::bigint, @told_to::uuid, @row_limit::integer) m;
