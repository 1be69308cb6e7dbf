-- timeline_page reads a page of what happened to an instance: its steps, compensations, tasks with their attempts, and the
-- deliveries that tell of its steps.
--
-- The order is by time, then by the version of the step that something belongs to, then by rank: the step, what can be
-- undone, tasks, attempts, deliveries. The times of steps rise with their versions, and deliveries have those of their
-- steps. So steps and deliveries are read by their indexes, from where the page before has ended; of the others all
-- are read that the instance has.
-- p_at, p_version, p_rank, p_key: the last item of the page before; null for the first page
-- p_step:         the version of the last step before this page
-- p_told, p_to:   the version of the last step or delivery before this page, and the subscription of the delivery
-- Returns: up to p_limit rows, in order
create function pawl.timeline_page(
  p_tenant text, p_instance uuid, p_at timestamptz, p_version bigint, p_rank integer, p_key text, p_step bigint,
  p_told bigint, p_to uuid, p_limit integer
) returns setof pawl.moment
language sql stable
set search_path = pg_catalog, pg_temp
set jit = off
as $$
  with tasks as (
    select t.*,
      -- A compensation begins with the step of its time, and not with the one that it undoes.
      case
        when t.compensates is null then t.entered_version
        else (
          select h.version
          from pawl.history h
          where h.tenant_id = p_tenant and h.instance_id = p_instance and h.at <= t.created_at
          order by h.version desc
          limit 1)
      end as began
    from pawl.task t
    where t.tenant_id = p_tenant and t.instance_id = p_instance
  )
  select m.*
  from (
    (select h.at, h.version, 0, '', 'step', h.kind::text, h.event, h.from_state, h.to_state, h.actor::text, h.reason::text,
      null::text, null::uuid, null::boolean, null::integer, null::boolean, null::text, null::integer, null::text, null::text,
      null::timestamptz, null::uuid, null::uuid
    from pawl.history h
    where h.tenant_id = p_tenant and h.instance_id = p_instance and h.version > p_step
    order by h.version
    limit p_limit)
    union all
    (select d.created_at, d.version, 4, d.subscription_id::text, 'delivery', null, null, null, null, null, null,
      null, null, null, d.attempts, null, d.status, d.last_status, d.last_error, null, d.delivered_at, d.id,
      case when not d.callback then d.subscription_id end
    from pawl.delivery d
    where d.tenant_id = p_tenant and d.instance_id = p_instance and (d.version, d.subscription_id) > (p_told, p_to)
    order by d.version, d.subscription_id
    limit p_limit)
    union all
    select o.*
    from (
      select coalesce(
          (select min(a.started_at) from pawl.task_attempt a where a.tenant_id = c.tenant_id and a.task_id = c.task_id), h.at),
        c.version, 1, c.number::text, 'compensation', null, null, null, null, null, c.reason,
        c.name, c.task_id, null::boolean, null::integer, null::boolean, c.status, null::integer, null, null, null::timestamptz, null::uuid,
        null::uuid
      from pawl.compensation c
      join pawl.history h on h.tenant_id = c.tenant_id and h.instance_id = c.instance_id and h.version = c.version
      where c.tenant_id = p_tenant and c.instance_id = p_instance
      union all
      select t.created_at, t.began, 2, t.id::text, 'task', null, null, null, null, null, null,
        t.name, t.id, t.compensates is not null, t.attempts, null, t.status, (t.result ->> 'status')::integer,
        coalesce(t.problem, t.result ->> 'error'), coalesce(t.topic, t.connection), t.ended_at, null, null
      from tasks t
      union all
      select a.started_at, t.began, 3, a.task_id || ' ' || lpad(a.number::text, 9, '0'), 'attempt', null, null, null,
        null, null, null, t.name, t.id, t.compensates is not null, a.number, a.kind = 'reconcile', a.result, a.status, a.error, a.worker,
        a.ended_at, null, null
      from tasks t
      join pawl.task_attempt a on a.tenant_id = t.tenant_id and a.task_id = t.id
    ) o (at, version, rank, key)
    where p_at is null or (o.at, o.version, o.rank, o.key collate "C") > (p_at, p_version, p_rank, p_key)
  ) m (at, version, rank, key, kind, step, event, from_state, to_state, actor, reason, name, task_id, compensates, attempt, reconciling,
    status, http_status, failure, worker, ended_at, delivery_id, subscription_id)
  order by m.at, m.version, m.rank, m.key collate "C"
  limit p_limit
$$;
