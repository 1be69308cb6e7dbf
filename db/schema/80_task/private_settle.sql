-- keep_task writes a task as task_decide has returned it.
-- Writes: task
create function pawl_private.keep_task(p_task pawl.task) returns void
language plpgsql volatile
as $$
begin
  update pawl.task t
  set status = p_task.status, connection = p_task.connection, tries = p_task.tries, key_number = p_task.key_number, checks = p_task.checks,
    sent_at = p_task.sent_at, tried_at = p_task.tried_at, due_at = p_task.due_at, look_at = p_task.look_at,
    leased_until = p_task.leased_until, result = p_task.result, ended_at = p_task.ended_at, problem = p_task.problem
  where t.tenant_id = p_task.tenant_id and t.id = p_task.id;
end
$$;

-- outcome_event is the event that the outcome of a task fires, in the state that it is fired in; null if there is none: the
-- state was left, and no operator has the task tried again in a state that its outcome led to.
create function pawl_private.outcome_event(p_task pawl.task, p_outcome text) returns text
language plpgsql stable
as $$
declare
  v_event text := p_outcome || ':' || p_task.name;
  v_instance pawl.instance;
begin
  if p_task.left_at is null then
    return v_event;
  elsif not p_task.reopened then
    return null;
  end if;
  select i.* into v_instance from pawl.instance i where i.tenant_id = p_task.tenant_id and i.id = p_task.instance_id;
  return case pawl_private.task_stays(p_task, v_instance)
    when 'own' then v_event
    when 'outcome' then v_event || '@' || p_task.state
  end;
end
$$;

-- fire_outcomes moves instances by what became of tasks. The caller holds the locks of the instances, each of which has
-- one task at most in a call. If a step is refused, the event of 'unknown' is fired instead, and the task keeps the problem;
-- its status still says what happened outside. If that is refused, too, the instance stays where it is.
-- p_kind: of the steps in history
-- Writes: what fire writes, task
create function pawl_private.fire_outcomes(p_tasks pawl.task[], p_events text[], p_kind text) returns void
language plpgsql volatile
as $$
declare
  v_size integer := coalesce(cardinality(p_tasks), 0);
  v_codes text[] := array_fill(''::text, array[v_size]);
  v_versions bigint[] := array_fill(null::bigint, array[v_size]);
  v_outcome pawl.outcome;
  v_task pawl.task;
begin
  if v_size = 0 then
    return;
  end if;
  begin
    for v_outcome in
      select o.*
      from pawl.fire(
        p_tenants => array(select t.tenant_id::text from unnest(p_tasks) t), p_ids => array(select t.instance_id from unnest(p_tasks) t),
        p_events => p_events, p_payloads => array(select t.result::jsonb from unnest(p_tasks) t),
        p_keys => array_fill(''::text, array[v_size]), p_expected => array_fill('*'::text, array[v_size]),
        p_checked => array_fill('*'::text, array[v_size]), p_actors => array(select 'task:' || t.name from unnest(p_tasks) t),
        p_reasons => array_fill(''::text, array[v_size]), p_correlation_ids => array_fill(''::text, array[v_size]),
        p_traceparents => array(select pawl_private.own_traceparent(pawl_private.task_traceparent(t)) from unnest(p_tasks) t),
        p_verified => true, p_history_keys => array(select 'task:' || t.id from unnest(p_tasks) t), p_kind => p_kind) o
    loop
      v_codes[v_outcome.ordinal] := v_outcome.code;
      v_versions[v_outcome.ordinal] := (v_outcome.instance).version;
    end loop;
  exception when data_exception or undefined_object or feature_not_supported or program_limit_exceeded or raise_exception then
    if v_size > 1 then
      for v_i in 1 .. v_size loop
        perform pawl_private.fire_outcomes(p_tasks[v_i:v_i], p_events[v_i:v_i], p_kind);
      end loop;
      return;
    end if;
    v_codes[1] := 'guard-error';
  end;
  for v_i in 1 .. v_size loop
    v_task := p_tasks[v_i];
    if v_codes[v_i] = 'applied' then
      update pawl.task t
      set result_version = v_versions[v_i], reopened = false, problem = null, left_at = case p_kind when 'result' then null else t.left_at end
      where t.tenant_id = v_task.tenant_id and t.id = v_task.id;
      if v_task.status = 'done' and p_kind = 'result' then
        update pawl.compensation c set version = v_versions[v_i] where c.tenant_id = v_task.tenant_id and c.task_id = v_task.id;
      end if;
    elsif p_events[v_i] not like 'unknown:%' and p_kind = 'result' then
      v_task.result := v_task.result || jsonb_build_object('error', v_codes[v_i]);
      v_task.problem := v_codes[v_i];
      perform pawl_private.keep_task(v_task);
      perform pawl_private.fire_outcomes(array[v_task], array['unknown' || substr(p_events[v_i], position(':' in p_events[v_i]))], p_kind);
      update pawl.task t set problem = v_codes[v_i] where t.tenant_id = v_task.tenant_id and t.id = v_task.id;
    else
      update pawl.task t set problem = v_codes[v_i] where t.tenant_id = v_task.tenant_id and t.id = v_task.id;
    end if;
  end loop;
end
$$;

-- fire_late fires the event that a definition names for a task that was done after its state was left, or may have been.
-- Returns: whether the present state accepted it
create function pawl_private.fire_late(p_task pawl.task, p_event text) returns boolean
language plpgsql volatile
as $$
declare
  v_outcome pawl.outcome;
begin
  select o.* into v_outcome
  from pawl.fire(
    p_tenants => array[p_task.tenant_id::text], p_ids => array[p_task.instance_id], p_events => array[p_event],
    p_payloads => array[p_task.result::jsonb], p_keys => '{""}', p_expected => '{*}', p_checked => '{*}',
    p_actors => array['task:' || p_task.name], p_reasons => '{""}', p_correlation_ids => '{""}',
    p_traceparents => array[pawl_private.own_traceparent(pawl_private.task_traceparent(p_task))],
    p_verified => true, p_history_keys => array['task:' || p_task.id]) o;
  if v_outcome.code = 'applied' then
    update pawl.task t set result_version = (v_outcome.instance).version where t.tenant_id = p_task.tenant_id and t.id = p_task.id;
  end if;
  return v_outcome.code = 'applied';
exception when data_exception or undefined_object or feature_not_supported or program_limit_exceeded or raise_exception then
  return false;
end
$$;

-- task_ended does what the end of a task brings, beside the step of its outcome: of a compensation, the step that it
-- undoes is noted; then undoing goes on.
-- Writes: what undo_next writes
create function pawl_private.task_ended(p_task pawl.task, p_now timestamptz) returns void
language plpgsql volatile
as $$
begin
  if p_task.compensates is not null then
    update pawl.compensation c
    set
      status = case p_task.status when 'done' then 'undone' when 'cancelled' then 'registered' else 'failed' end,
      reason = case when p_task.status <> 'done' then left(coalesce(p_task.result ->> 'error', 'the compensation ended as ' || p_task.status), 1000) end
    where c.tenant_id = p_task.tenant_id and c.instance_id = p_task.instance_id and c.number = p_task.compensates
      and c.status not in ('skipped', 'undone');
  end if;
  perform pawl_private.undo_next(p_task.tenant_id, p_task.instance_id, p_now);
end
$$;

-- settle_task decides what a report makes of one task, and writes it. The caller holds the instance's lock.
-- p_kind:  of the attempt
-- Returns: the task as it became, and the event that its end fires; null if it fires none, or goes on
-- Writes:  task, task_attempt
create function pawl_private.settle_task(
  p_task pawl.task, p_kind text, p_report jsonb, p_now timestamptz, out task pawl.task, out event text
)
language plpgsql volatile
as $$
declare
  v_spec pawl.workflow_task := pawl_private.task_spec(p_task);
begin
  task := pawl_private.task_decide(p_task => p_task, p_spec => v_spec, p_kind => p_kind, p_report => p_report, p_now => p_now);
  if p_task.left_at is not null and not p_task.reopened and task.status = 'pending' and task.ended_at is null then
    -- Its state was left meanwhile, and it surely had no effect.
    task.status := 'cancelled';
    task.due_at := null;
    task.look_at := null;
    task.ended_at := p_now;
  end if;
  perform pawl_private.keep_task(task);
  update pawl.task_attempt a
  set ended_at = p_now, result = p_report ->> 'result', status = (p_report ->> 'status')::integer, error = left(p_report ->> 'error', 1000)
  where a.tenant_id = p_task.tenant_id and a.task_id = p_task.id and a.number = p_task.attempts
    and (a.ended_at is null or a.result = 'expired' and p_report ->> 'result' not in ('expired', 'overdue', 'impossible'));
  if task.ended_at is null then
    perform pawl_private.task_notify(task.tenant_id, task.topic) where task.due_at <= p_now;
  elsif task.status <> 'cancelled' then
    event := case
      when task.compensates is null then pawl_private.outcome_event(task, task.status)
      when task.status = 'done' and exists (
        select from pawl.undoing u where u.tenant_id = task.tenant_id and u.instance_id = task.instance_id
      ) then 'compensated:' || task.name
    end;
  end if;
end
$$;

-- is_said says whether an attempt was reported with an error. What came too late was added to it.
create function pawl_private.is_said(p_kept text, p_error text) returns boolean
language plpgsql immutable parallel safe
as $$
begin
  p_error := left(p_error, 1000);
  return p_kept is not distinct from p_error or starts_with(p_kept, concat_ws('; ', p_error, 'late: '));
end
$$;

-- settle_tasks settles reports of tasks, as pawl.task_settle does. It locks the instances first. A heartbeat moves nothing,
-- and so locks no instance.
-- p_leases: null for task_sweep, which settles what it must look at, whatever the lease is
-- Returns: one row per report, in no order. code may also be 'too-early', for task_sweep
create function pawl_private.settle_tasks(p_tenants text[], p_ids uuid[], p_leases uuid[], p_reports jsonb[])
returns setof pawl.task_settled
language plpgsql volatile
as $$
declare
  v_now timestamptz;
  v_task pawl.task;
  v_attempt pawl.task_attempt;
  v_settled record;
  v_report jsonb;
  v_result text;
  v_lease interval;
  v_code text;
  v_codes text[] := '{}';
  v_firing pawl.task[] := '{}';
  v_events text[] := '{}';
  v_undone pawl.task[] := '{}';
  v_over pawl.task[] := '{}';
  v_ended uuid[] := '{}';
  v_one pawl.task;
  v_last integer := coalesce(cardinality(p_ids), 0);
  v_instances uuid[] := array(
    select (select t.instance_id from pawl.task t where t.tenant_id = c.tenant and t.id = c.id)
    from unnest(p_tenants, p_ids) with ordinality as c (tenant, id, ordinal)
    order by c.ordinal);
begin
  perform i.found
  from (
    select distinct c.instance_id, c.tenant
    from unnest(p_tenants, v_instances, p_reports) as c (tenant, instance_id, report)
    where c.instance_id is not null and c.report ->> 'result' <> 'heartbeat'
    order by c.instance_id, c.tenant
  ) c
  cross join lateral (
    select true as found
    from pawl.instance i
    where i.tenant_id = c.tenant and i.id = c.instance_id
    limit 1
    for no key update
  ) i;
  v_now := pawl.now();

  for v_i in 1 .. v_last + 1 loop
    if v_i > v_last or v_instances[v_i] = any (v_ended) then
      -- The instances of the tasks so far are moved before the next task of one of them is decided.
      perform pawl_private.fire_outcomes(v_firing, v_events, 'result');
      perform pawl_private.fire_outcomes(v_undone, array(select 'compensated:' || u.name from unnest(v_undone) u), 'compensated');
      foreach v_one in array v_over loop
        if v_one.left_at is not null and not v_one.reopened and v_one.compensates is null and v_one.status in ('done', 'unknown')
          and not exists (select from pawl.undoing u where u.tenant_id = v_one.tenant_id and u.instance_id = v_one.instance_id) then
          perform pawl_private.fire_late(v_one, w.spec ->> 'late')
          from pawl_private.task_spec(v_one) w
          where w.spec ? 'late';
        end if;
        perform pawl_private.task_ended(v_one, v_now);
      end loop;
      v_firing := '{}';
      v_events := '{}';
      v_undone := '{}';
      v_over := '{}';
      v_ended := '{}';
    end if;
    exit when v_i > v_last;
    v_report := p_reports[v_i];
    v_result := v_report ->> 'result';
    select t.* into v_task from pawl.task t where t.tenant_id = p_tenants[v_i] and t.id = p_ids[v_i] for update;
    if not found then
      v_codes := v_codes || 'task-not-found'::text;
      continue;
    end if;
    select a.* into v_attempt
    from pawl.task_attempt a
    where a.tenant_id = v_task.tenant_id and a.task_id = v_task.id and a.number = v_task.attempts;
    v_code := case
      when p_leases is null then case
        when v_task.ended_at is not null then 'task-ended'
        when v_task.look_at > v_now then 'too-early'
        else 'settled'
      end
      when v_task.lease = p_leases[v_i] and v_attempt.result = v_result and case v_result
        when 'completed' then v_task.result -> 'body' = coalesce(v_report -> 'body', 'null')
        when 'failed' then pawl_private.is_said(v_attempt.error, v_report ->> 'error')
        else true
      end then 'repeated'
      when v_task.ended_at is not null then 'task-ended'
      -- A lease that ran out still holds. One that was given back, or whose attempt has failed, does not.
      when v_task.lease is null or v_task.lease is distinct from p_leases[v_i] or v_attempt.result <> 'expired'
        or v_result = 'heartbeat' and v_task.leased_until is null and v_task.status <> 'sent' then 'lease-superseded'
      when v_result = 'completed' and octet_length((v_report -> 'body')::text) > (select g.payload_limit from pawl.setting g)
        then 'payload-too-large'
      else 'settled'
    end;
    v_codes := v_codes || v_code;
    if v_code = 'settled' and v_result = 'heartbeat' then
      v_lease := coalesce(pawl_private.report_seconds(v_report, 'lease'), v_task.leased_for);
      update pawl.task t
      set leased_until = least(v_now + v_lease, t.deadline_at), look_at = least(v_now + v_lease, t.deadline_at), leased_for = v_lease,
        progress = coalesce(v_report -> 'progress', t.progress), due_at = null
      where t.tenant_id = v_task.tenant_id and t.id = v_task.id;
      if v_attempt.result = 'expired' then
        -- A lease that ran out, and that nobody has superseded, holds again.
        update pawl.task_attempt a
        set ended_at = null, result = null, error = null
        where a.tenant_id = v_task.tenant_id and a.task_id = v_task.id and a.number = v_task.attempts;
      end if;
    elsif v_code = 'settled' then
      select s.* into v_settled from pawl_private.settle_task(v_task, v_attempt.kind, v_report, v_now) s;
      v_task := v_settled.task;
      if v_task.ended_at is not null then
        v_over := v_over || v_task;
        v_ended := v_ended || v_task.instance_id;
        if v_settled.event like 'compensated:%' then
          v_undone := v_undone || v_task;
        elsif v_settled.event is not null then
          v_firing := v_firing || v_task;
          v_events := v_events || v_settled.event;
        end if;
      end if;
    elsif v_code in ('task-ended', 'lease-superseded') and v_result <> 'heartbeat' and p_leases is not null then
      -- What comes too late is kept with its attempt. To one that was completed it would add an error that it did not have.
      update pawl.task_attempt a
      set error = left(concat_ws('; ', a.error, 'late: ' || v_result, 'status ' || (v_report ->> 'status')), 1000)
      where a.tenant_id = v_task.tenant_id and a.task_id = v_task.id and a.lease = p_leases[v_i]
        and a.result is distinct from 'completed' and coalesce(a.error, '') not like '%late: %';
    end if;
  end loop;
  return query select
    c.ordinal::integer, c.code, c.tenant, c.id, coalesce(t.instance_id, '00000000-0000-0000-0000-000000000000'),
    coalesce(t.status, ''), t.left_at is not null and not t.reopened, t.leased_until
  from unnest(p_tenants, p_ids, v_codes) with ordinality as c (tenant, id, code, ordinal)
  left join lateral (
    select t.* from pawl.task t where t.tenant_id = c.tenant and t.id = c.id limit 1
  ) t on true;
end
$$;

-- settle_work settles one task for a SQL caller.
-- Returns: the instance as it became; null if it was purged
-- Raises:  PW40K task-not-found, PW40S lease-superseded, PW40D task-ended
create function pawl_private.settle_work(p_tenant text, p_id uuid, p_lease uuid, p_report jsonb) returns pawl.instance
language plpgsql volatile
as $$
declare
  v_settled pawl.task_settled;
  v_instance pawl.instance;
begin
  if not exists (select from pawl.task t where t.tenant_id = p_tenant and t.id = p_id and t.topic is not null) then
    perform pawl_private.raise_condition('task-not-found', null);
  end if;
  select s.* into strict v_settled from pawl_private.settle_tasks(array[p_tenant], array[p_id], array[p_lease], array[p_report]) s;
  if v_settled.code not in ('settled', 'repeated') then
    perform pawl_private.raise_condition(v_settled.code, null);
  end if;
  select i.* into v_instance from pawl.instance i where i.tenant_id = p_tenant and i.id = v_settled.instance_id;
  return v_instance;
end
$$;

-- sweep_instance settles what task_sweep has found of one instance, or lets its undoing go on. What raises, such as a step that
-- takes longer than a statement may, is put off with its problem, so that it holds up no other.
-- p_ids, p_reports: of tasks; null if undoing is to go on
-- Returns: 'swept', 'put-off', 'busy' if another transaction holds the instance, or 'timed-out': it was put off, and the
--          statement has no time left
-- Locks:   instance (for no key update, unless it is locked), undoing, compensation, task
create function pawl_private.sweep_instance(p_tenant text, p_instance_id uuid, p_ids uuid[], p_reports jsonb[], p_now timestamptz)
returns text
language plpgsql volatile
as $$
declare
  v_problem text;
  v_result text := 'put-off';
begin
  perform from pawl.instance i where i.tenant_id = p_tenant and i.id = p_instance_id for no key update skip locked;
  if not found then
    return 'busy';
  end if;
  begin
    if p_ids is null then
      perform pawl_private.undo_next(p_tenant, p_instance_id, p_now);
    else
      perform pawl_private.settle_tasks(array_fill(p_tenant, array[cardinality(p_ids)]), p_ids, null, p_reports);
    end if;
    return 'swept';
  exception
    when query_canceled then
      v_problem := sqlerrm;
      v_result := 'timed-out';
    when others then
      v_problem := sqlerrm;
  end;
  if p_ids is null then
    perform pawl_private.put_off_undoing(p_tenant, p_instance_id, v_problem, p_now);
  else
    update pawl.task t
    set problem = case when t.problem like 'input: %' then t.problem else left(v_problem, 1000) end, look_at = p_now + interval '1 minute'
    where t.tenant_id = p_tenant and t.id = any (p_ids) and t.ended_at is null;
  end if;
  return v_result;
end
$$;
