-- own_steps reads the steps that no request to a process has made, and so no process has a span of: those of timers, of tasks,
-- of the healer and of SQL callers. A process that exports spans follows the log with it.
-- p_after: the position up to which it was read; null to begin: with the steps of the last 30 seconds, at most p_limit
-- p_limit: how many positions it reads at most
-- Returns: until: the position up to which it has read. steps: the steps that are sampled, in the order of position, each an
--          object with tenant, instance, version, workflow, kind, event, at, traceparent and parent. Of several steps of
--          one command it is the first. parent: of what a task brought, the traceparent of the last step before it in the same
--          trace, within 50; else null
create function pawl.own_steps(p_after bigint, p_limit integer, out until bigint, out steps jsonb)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
-- The planner is left one way to read: by an index.
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
declare
  v_after bigint;
begin
  select e.position, coalesce(p_after, e.position - greatest(coalesce(p_limit, 0), 0)) into strict until, v_after from pawl.log_head e;
  if v_after < until then
    until := least(until, v_after + greatest(coalesce(p_limit, 0), 0));
  end if;
  select coalesce(jsonb_agg(jsonb_build_object(
    'tenant', h.tenant_id, 'instance', h.instance_id, 'version', h.version, 'workflow', h.workflow, 'kind', h.kind, 'event', h.event,
    'at', h.at, 'traceparent', h.traceparent, 'parent', p.traceparent) order by l.position), '[]')
  into strict steps
  from (
    select l.* from pawl.log l where l.position > v_after and l.position <= own_steps.until order by l.position
  ) l
  cross join lateral (
    select h.*, h.kind in ('result', 'compensated') or h.actor like 'task:%' and h.key like 'task:%' and u.keyless as by_task,
      h.actor = 'healer' and h.key like 'heal:%' and u.keyless as by_healer
    from pawl.history h
    -- Callers may use such names, and such keys. But their keys are recorded.
    cross join lateral (
      select not exists (
        select from pawl.idempotency_key k where k.tenant_id = h.tenant_id and k.key = h.key and k.instance_id = h.instance_id
      ) as keyless
    ) u
    where h.tenant_id = l.tenant_id and h.instance_id = l.instance_id and h.version = l.version
    limit 1
  ) h
  left join lateral (
    select b.traceparent
    from pawl.history b
    where b.tenant_id = l.tenant_id and b.instance_id = l.instance_id and b.version < l.version and b.version >= l.version - 50
      and h.by_task and substr(b.traceparent, 4, 32) = substr(h.traceparent, 4, 32) and b.traceparent <> h.traceparent
    order by b.version desc
    limit 1
  ) p on true
  where substr(h.traceparent, 55, 1) ~ '[13579bdf]' and (p_after is not null or h.at >= pawl.now() - interval '30 seconds')
    and (h.kind in ('timeout', 'expired') or h.by_task or h.by_healer or h.kind in ('created', 'transition') and h.database_user is not null)
    and not exists (
      select from pawl.history b
      where b.tenant_id = l.tenant_id and b.instance_id = l.instance_id and b.version = l.version - 1 and b.traceparent = h.traceparent);
end
$$;
