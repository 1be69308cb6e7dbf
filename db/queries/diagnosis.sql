-- DiagnosedInstance reads an instance, its state in its own version of the workflow, the latest version, and its timer. It
-- and the queries below are for package fsm/diagnosis, which calls them in one transaction that sees one snapshot. Each of them
-- reads a bounded number of rows, by an index, and none a context or a payload.
-- name: DiagnosedInstance :one
select
  i.id, i.workflow, i.workflow_version, i.state, i.status, i.version, i.business_key, i.correlation_id, i.created_at,
  i.state_changed_at, i.expires_at, i.error, pawl.now()::timestamptz as now,
  s.lineage::text[] as lineage, s.protected, s.stuck_after, s.undoing,
  l.version as latest_version,
  exists (
    select from pawl.workflow_state n
    where n.workflow = i.workflow and n.workflow_version = l.version and n.state = i.state
  ) as latest_has_state,
  coalesce(case when t.failed_version = t.armed_version and t.failed_version = i.version then t.last_error end, '')::text as timer_error,
  coalesce(t.queued_version = t.armed_version, false)::boolean as timer_slow
from pawl.instance i
join pawl.workflow_state s
  on s.workflow = i.workflow and s.workflow_version = i.workflow_version and s.state = i.state
cross join lateral (
  select w.version from pawl.workflow w where w.name = i.workflow order by w.version desc limit 1
) l
left join pawl.timer t on t.tenant_id = i.tenant_id and t.instance_id = i.id
where i.tenant_id = @tenant_id and i.id = @id;

-- DiagnosedEvents reads the events that a state accepts from callers, as ListActions does, without the schemas.
-- name: DiagnosedEvents :many
select t.event, array_agg(t.target order by t.position)::text[] as targets
from pawl.workflow_transition t
where t.workflow = @workflow and t.workflow_version = @workflow_version and t.source = @state
  and t.event <> 'ttl' and t.event not like '%:%' -- The engine's own.
group by t.event
order by t.event collate "C"
limit @row_limit;

-- DiagnosedTransitions reads what leads out of a state, with the guards as the definition words them.
-- name: DiagnosedTransitions :many
select
  t.event, t.target, coalesce(left(t.guard_text, @guard_limit::integer), '')::text as guard,
  coalesce(length(t.guard_text) > @guard_limit, false)::boolean as cut, t.internal
from pawl.workflow_transition t
where t.workflow = @workflow and t.workflow_version = @workflow_version and t.source = @state
order by t.event collate "C", t.position
limit @row_limit;

-- DiagnosedDeclarations reads the tasks that a state starts. Nothing of what they send is read.
-- name: DiagnosedDeclarations :many
select t.name, t.connection, t.topic, t.deadline
from pawl.workflow_task t
where t.workflow = @workflow and t.workflow_version = @workflow_version and t.state = @state::text
order by t.name collate "C"
limit @row_limit;

-- DiagnosedDeadlines reads the deadlines of an instance, as pawl.next_timeout does, and says which of them have come and
-- were refused.
-- name: DiagnosedDeadlines :many
select d.event::text as event, d.due_at::timestamptz as due_at, d.refused::boolean as refused
from pawl.instance i
left join pawl.timer t on t.tenant_id = i.tenant_id and t.instance_id = i.id
cross join lateral (
  select u.event, u.due_at, u.position, u.position <= case when t.armed_version = i.version then t.tried else 0 end as refused
  from (
    select a.event, a.due_at, row_number() over (order by a.due_at, a.place) as position
    from (
      select s.timeout_events[o.place] as event, i.state_changed_at + o.timeout as due_at, o.place
      from pawl.workflow_state s
      cross join lateral unnest(s.timeouts) with ordinality as o (timeout, place)
      where s.workflow = i.workflow
        and s.workflow_version = i.workflow_version
        and s.state = i.state
      union all
      select m.key, (m.value ->> 'at')::timestamptz, (m.value ->> 'place')::bigint
      from jsonb_each(i.memory -> 'due') m
    ) a
  ) u
  union all
  select 'ttl'::text, i.expires_at, null::bigint, false
  where i.expires_at is not null
) d
where i.tenant_id = @tenant_id and i.id = @id and i.status = 'active'
order by d.due_at, d.position
limit @row_limit;

-- DiagnosedTasks looks at the newest tasks of an instance, and reads those that are open, and then those that have ended,
-- each with the newest first.
-- name: DiagnosedTasks :many
select
  t.id, t.state, t.name, t.compensation, t.topic, t.connection, t.status, coalesce(t.error, '')::text as error, t.attempts, coalesce(t.worker, '')::text as worker,
  t.due_at, t.leased_until, t.deadline_at, t.left_at, t.created_at, t.ended_at
from (
  select n.id
  from (
    select n.id, n.ended_at
    from pawl.task n
    where n.tenant_id = @tenant_id and n.instance_id = @instance_id
    order by n.id desc
    limit @looks
  ) n
  order by n.ended_at is not null, n.id desc
  limit @row_limit
) n
cross join lateral (select t.* from pawl.task_row t where t.tenant_id = @tenant_id and t.id = n.id limit 1) t
order by t.ended_at is not null, t.id desc;

-- DiagnosedAttempts reads the last attempts of some tasks, the newest first.
-- name: DiagnosedAttempts :many
select a.task_id, a.number, a.kind, a.worker, a.started_at, a.ended_at, a.result, a.status, a.error
from unnest(@tasks::uuid[]) as t (id)
cross join lateral (
  select a.*
  from pawl.task_attempt a
  where a.tenant_id = @tenant_id and a.task_id = t.id
  order by a.number desc
  limit @row_limit
) a
order by a.task_id, a.number desc;

-- DiagnosedConnections reads the circuits of some connections.
-- name: DiagnosedConnections :many
select c.name, c.failures, c.circuit_open_until, (c.finding is not null)::boolean as resting
from pawl.connection_row c
where c.tenant_id = @tenant_id and c.name = any (@names::text[])
order by c.name;

-- DiagnosedUndoing reads how far the undoing of an instance is, if it is in a state that undoes steps.
-- name: DiagnosedUndoing :one
select u.due_at, u.tried, u.problem from pawl.undoing u where u.tenant_id = @tenant_id and u.instance_id = @instance_id;

-- DiagnosedCompensations reads what can be undone of an instance, or was, the newest first.
-- name: DiagnosedCompensations :many
select c.name, c.version, c.status, c.reason, c.task_id, c.undone_by
from pawl.compensation c
where c.tenant_id = @tenant_id and c.instance_id = @instance_id
order by c.number desc
limit @row_limit;

-- DiagnosedDeliveries reads the deliveries of an instance that are pending, by subscription and in their order, and its dead
-- letters, the newest first. Both are of steps and of findings.
-- name: DiagnosedDeliveries :many
select
  d.id, d.subscription_id, d.callback, d.version, d.finding_id, d.type, d.status, d.attempts, d.next_attempt_at, d.last_status, d.last_error,
  d.created_at, s.url, s.disabled_at, coalesce(s.failures, 0)::integer as failures, s.circuit_open_until,
  (s.finding is not null)::boolean as resting
from (
  (
    select 1 as part, row_number() over (order by p.tenant_id, p.instance_id, p.subscription_id, p.seq) as place, p.id
    from pawl.delivery p
    where p.tenant_id = @tenant_id and p.instance_id = @instance_id and p.status = 'pending'
    order by p.tenant_id, p.instance_id, p.subscription_id, p.seq
    limit @row_limit
  )
  union all
  (
    select 2, row_number() over (order by p.tenant_id desc, p.instance_id desc, p.seq desc), p.id
    from pawl.delivery p
    where p.tenant_id = @tenant_id and p.instance_id = @instance_id and p.status = 'dead'
    order by p.tenant_id desc, p.instance_id desc, p.seq desc
    limit @row_limit
  )
) n
cross join lateral (select d.* from pawl.delivery d where d.tenant_id = @tenant_id and d.id = n.id limit 1) d
left join pawl.subscription_row s on s.tenant_id = d.tenant_id and s.id = d.subscription_id and not d.callback
order by n.part, n.place;

-- name: CallbackHost :one
select coalesce(pawl.callback_host(@tenant::text, @instance::uuid), '')::text as host;

-- DiagnosedRefusals reads the last refusals that are recorded for an instance under a key. Of the key a digest is read.
-- name: DiagnosedRefusals :many
select
  (case when k.refusal ? 'invariant' then 'invariant-broken' else k.decision end)::text as code,
  coalesce(k.refusal ->> 'event', '')::text as event,
  (k.refusal ->> 'at')::timestamptz as at,
  k.version,
  encode(sha256(convert_to(k.key, 'UTF8')), 'hex')::text as key_digest
from pawl.idempotency_key k
where k.tenant_id = @tenant_id and k.instance_id = @instance_id and k.decision <> 'applied' and k.refusal is not null
order by k.expires_at desc
limit @row_limit;

-- DiagnosedFindings reads the newest findings of an instance, and of each kind the open ones of the latest steps.
-- name: DiagnosedFindings :many
select f.*
from pawl.finding f
where f.tenant_id = @tenant_id and f.id = any (array(
  (
    select n.id
    from pawl.finding n
    where n.tenant_id = @tenant_id and n.instance_id = @instance_id::uuid
    order by n.id desc
    limit @row_limit
  )
  union
  select o.id
  from unnest(@kinds::text[]) as k (kind)
  cross join lateral (
    select o.id
    from pawl.finding o
    where o.tenant_id = @tenant_id and o.instance_id = @instance_id::uuid and o.kind = k.kind and o.closed_at is null
    order by o.visit_version desc
    limit @open_limit
  ) o
))
order by f.id desc;

-- DiagnosedSteps reads the last steps of an instance, the newest first.
-- name: DiagnosedSteps :many
select
  h.version, h.workflow_version, h.kind, h.event, h.internal, h.from_state, h.to_state, h.status, h.actor, h.reason, h.correlation_id,
  h.traceparent, h.at
from pawl.history h
where h.tenant_id = @tenant_id and h.instance_id = @instance_id
order by h.version desc
limit @row_limit;
