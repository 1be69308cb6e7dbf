-- heal_act does what a state does about an instance that is stuck. What raises is undone, and counts as refused. The caller
-- holds the instance's lock.
-- p_on_stuck: as in pawl.workflow_state. p_task: the task to retry or to reconcile; null for an event
-- Returns: outcome: applied, or the problem that it was refused with; null if the statement timeout came, and others may have
--          used up its time. version: the instance's after it
-- Raises:  what another try may cure: a deadlock, a lock that was not to be had, the end of the session
-- Writes:  what fire and reopen_task write
create function pawl_private.heal_act(
  p_finding pawl.finding, p_instance pawl.instance, p_on_stuck jsonb, p_task pawl.task, p_attempt integer, p_alone boolean,
  out outcome text, out version bigint
)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_fired pawl.outcome;
  v_state text;
  v_reason text := format('%s, attempt %s of %s', p_finding.kind, p_attempt, p_on_stuck ->> 'max');
begin
  outcome := 'applied';
  version := p_instance.version;
  if p_on_stuck ? 'event' then
    select f.* into strict v_fired
    from pawl.fire(
      p_tenants => array[p_instance.tenant_id::text], p_ids => array[p_instance.id], p_events => array[p_on_stuck ->> 'event'],
      p_payloads => array['{}'::jsonb], p_keys => '{""}', p_expected => '{*}', p_checked => '{*}', p_actors => '{healer}',
      p_reasons => array[v_reason], p_correlation_ids => '{""}',
      p_traceparents => array[pawl_private.next_traceparent(
        pawl_private.traceparent_of(p_instance.tenant_id, p_instance.id, p_instance.version))],
      p_verified => true, p_history_keys => array['heal:' || p_finding.id]) f;
    outcome := coalesce((select c.problem from pawl_private.condition c where c.outcome = v_fired.code), v_fired.code);
    version := case v_fired.code when 'applied' then (v_fired.instance).version else p_instance.version end;
  else
    perform pawl_private.reopen_task(
      p_task => p_task, p_instance => p_instance, p_how => case when p_on_stuck ? 'retry' then 'retry' else 'reconcile' end,
      p_reason => v_reason, p_caller => '{"actor": "healer"}');
  end if;
exception
when query_canceled then
  if not pawl_private.timed_out() then
    raise;
  end if;
  outcome := case when p_alone then 'guard-error' end;
  version := p_instance.version;
when others then
  v_state := sqlstate;
  if v_state ~ '^(08|25|40|531|533|534|55|57|58)' then
    raise;
  end if;
  version := p_instance.version;
  outcome := case
    when v_state ~ '^(22|54)' or v_state in ('42704', '0A000') then 'guard-error'
    else coalesce((select c.problem from pawl_private.condition c where c.sqlstate = v_state limit 1), 'internal')
  end;
end
$$;

-- heal_instance looks at a finding that is due, and does what is to be done about its instance.
-- p_alone: whether the statement has tried nothing before
-- Returns: outcome: of the attempt; null if there was none. failed: a finding heal-failed was opened. next_at: when to look at
--          the finding again; null for never. timed_out: the statement has no time left
-- Raises:  what heal_act raises
-- Locks:   instance (for no key update, unless it is locked), then what a step or reopen_task locks
-- Writes:  healing, finding, what heal_act writes
create function pawl_private.heal_instance(
  p_finding pawl.finding, p_now timestamptz, p_alone boolean,
  out outcome text, out failed boolean, out next_at timestamptz, out timed_out boolean
)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
as $$
declare
  v_instance pawl.instance;
  v_on_stuck jsonb;
  v_healing pawl_private.healing;
  v_task pawl.task;
  v_attempts integer := 0;
  v_space interval;
  v_version bigint;
begin
  failed := false;
  timed_out := false;
  select i.* into v_instance
  from pawl.instance i
  where i.tenant_id = p_finding.tenant_id and i.id = p_finding.instance_id
  for no key update skip locked;
  if not found or v_instance.status <> 'active' or v_instance.state <> p_finding.state or v_instance.state_changed_at <> p_finding.since then
    -- It is busy, or has made a step: then the fold closes the finding.
    next_at := p_now + interval '5 seconds';
    return;
  end if;
  select s.on_stuck into v_on_stuck
  from pawl.workflow_state s
  where s.workflow = v_instance.workflow and s.workflow_version = v_instance.workflow_version and s.state = v_instance.state;
  if v_on_stuck is null or v_on_stuck ? 'event' and p_finding.kind = 'task-dead' then
    return;
  end if;
  v_space := coalesce((
    select p.threshold
    from pawl_private.stuck_place p
    where p.tenant_id = p_finding.tenant_id and p.workflow = p_finding.workflow and p.state = p_finding.state), interval '1 minute');
  select h.* into v_healing
  from pawl_private.healing h
  where h.tenant_id = p_finding.tenant_id and h.instance_id = p_finding.instance_id;
  if v_healing.version >= p_finding.visit_version then
    v_attempts := v_healing.attempts;
    if p_now < v_healing.tried_at + v_space then
      next_at := v_healing.tried_at + v_space;
      return;
    end if;
  end if;
  if not v_on_stuck ? 'event' then
    select t.* into v_task
    from pawl.task t
    where t.tenant_id = p_finding.tenant_id and t.instance_id = p_finding.instance_id and t.state = p_finding.state
      and t.name = coalesce(v_on_stuck ->> 'retry', v_on_stuck ->> 'reconcile') and t.compensates is null
    order by t.entered_version desc
    limit 1
    for update; -- A claim may hold it, and waits for nothing that is held here.
    if not found or v_task.status = 'cancelled' or v_task.result_version is not null or v_task.left_at is not null
      or v_task.ended_at is null and not (v_on_stuck ? 'reconcile' and v_task.status = 'reconciling' and v_task.due_at is not null) then
      -- It is under way.
      next_at := p_now + v_space;
      return;
    end if;
  end if;
  if v_attempts >= (v_on_stuck ->> 'max')::integer then
    insert into pawl.finding (tenant_id, id, kind, instance_id, workflow, state, visit_version, since, opened_at, detail)
    values (
      p_finding.tenant_id, pawl_private.uuid_v7(p_now), 'heal-failed', p_finding.instance_id, p_finding.workflow, p_finding.state,
      p_finding.visit_version, p_finding.since, p_now,
      v_on_stuck - 'max' || jsonb_build_object('attempts', v_attempts, 'outcome', v_healing.outcome))
    on conflict do nothing;
    failed := found;
    return;
  end if;
  select a.* into strict outcome, v_version
  from pawl_private.heal_act(p_finding, v_instance, v_on_stuck, v_task, v_attempts + 1, p_alone) a;
  if outcome is null then
    timed_out := true;
    next_at := p_finding.heal_at;
    return;
  end if;
  insert into pawl_private.healing as h (tenant_id, instance_id, attempts, version, tried_at, outcome)
  values (p_finding.tenant_id, p_finding.instance_id, v_attempts + 1, v_version, p_now, outcome)
  on conflict on constraint healing_pkey do update
  set attempts = excluded.attempts, version = excluded.version, tried_at = excluded.tried_at, outcome = excluded.outcome;
  timed_out := pawl_private.timed_out();
  next_at := p_now + v_space;
end
$$;

-- heal_paused says whether the healing of a workflow rests, since too many of its instances are stuck. It opens and closes the
-- finding that says so.
-- Returns: paused; counted: how many stuck instances were counted, up to the bound that decides; opened: whether it began
-- Writes:  finding
create function pawl_private.heal_paused(p_tenant text, p_workflow text, p_now timestamptz, out paused boolean, out counted bigint, out opened boolean)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set enable_hashagg = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
as $$
declare
  v_open bigint;
  v_bound bigint;
  v_pause uuid;
begin
  opened := false;
  select coalesce(sum(c.instances), 0) into v_open
  from pawl.instance_count c
  where c.tenant_id = p_tenant and c.workflow = p_workflow and c.status = 'active';
  select f.id into v_pause
  from pawl.finding f
  where f.tenant_id = p_tenant and f.workflow = p_workflow and f.closed_at is null and f.kind = 'healing-paused';
  v_bound := case when v_pause is null then greatest(20, v_open / 20 + 1) else greatest(10, (v_open + 39) / 40) end;
  select count(*) into counted
  from (
    select
    from pawl.finding f
    where f.tenant_id = p_tenant and f.workflow = p_workflow and f.closed_at is null and f.kind in ('orphaned', 'slow', 'task-dead')
    group by f.instance_id
    limit v_bound
  ) s;
  paused := counted >= v_bound;
  if paused and v_pause is null then
    insert into pawl.finding (tenant_id, id, kind, workflow, opened_at, detail)
    values (
      p_tenant, pawl_private.uuid_v7(p_now), 'healing-paused', p_workflow, p_now,
      jsonb_build_object('open', v_open, 'stuck_at_least', counted, 'resumes_below', greatest(10, (v_open + 39) / 40)));
    opened := true;
  elsif not paused and v_pause is not null then
    update pawl.finding f set closed_at = greatest(f.opened_at, p_now) where f.tenant_id = p_tenant and f.id = v_pause;
  end if;
end
$$;

-- heal_workflow looks at the findings of a workflow that are due.
-- Returns: looked: how many rows were read, about; attempts, applied: how many were made, and were not refused; opened: how many
--          findings were opened. more: whether more may be due, since the limit or the statement timeout came
-- Raises:  what heal_act raises
-- Writes:  finding, what heal_instance writes
create function pawl_private.heal_workflow(
  p_tenant text, p_workflow text, p_limit integer, p_now timestamptz, p_alone boolean,
  out looked bigint, out attempts bigint, out applied bigint, out opened bigint, out more boolean
)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set jit = off
as $$
declare
  v_finding pawl.finding;
  v_paused record;
  v_healed record;
  v_seen integer := 0;
begin
  looked := 5; attempts := 0; applied := 0; opened := 0; more := false;
  if not exists (
    select from pawl.workflow_state s where s.workflow = p_workflow and s.on_stuck is not null
    union all
    select from pawl.finding f
    where f.tenant_id = p_tenant and f.workflow = p_workflow and f.closed_at is null and f.kind = 'healing-paused'
  ) then
    return;
  end if;
  select * into v_paused from pawl_private.heal_paused(p_tenant, p_workflow, p_now);
  looked := looked + v_paused.counted / 10;
  opened := v_paused.opened::integer;
  if v_paused.paused then
    return;
  end if;
  for v_finding in
    select f.*
    from pawl.finding f
    where f.tenant_id = p_tenant and f.workflow = p_workflow and f.closed_at is null and f.kind in ('orphaned', 'slow', 'task-dead')
      and f.heal_at is not null and f.heal_at <= p_now
    order by f.heal_at
    limit p_limit
  loop
    v_seen := v_seen + 1;
    select * into v_healed from pawl_private.heal_instance(v_finding, p_now, p_alone and attempts = 0);
    opened := opened + v_healed.failed::integer;
    attempts := attempts + (v_healed.outcome is not null)::integer;
    applied := applied + (v_healed.outcome is not distinct from 'applied')::integer;
    update pawl.finding f
    set heal_at = v_healed.next_at
    where f.ctid = any (array(
        select o.ctid from pawl.finding o where o.tenant_id = v_finding.tenant_id and o.id = v_finding.id for no key update skip locked))
      and f.heal_at is distinct from v_healed.next_at;
    if v_healed.timed_out then
      more := true;
      exit;
    end if;
  end loop;
  more := more or v_seen >= p_limit;
  looked := looked + v_seen;
end
$$;
