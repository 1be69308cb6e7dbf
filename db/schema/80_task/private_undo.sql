-- fire_undone fires the event that ends the undoing of steps.
-- p_outcome: done or error. p_refused: why done was refused; null if it was not
-- Returns: null, or why the step was refused
-- Writes: what fire writes
create function pawl_private.fire_undone(p_tenant text, p_instance_id uuid, p_outcome text, p_refused text) returns text
language plpgsql volatile
as $$
declare
  v_last pawl.compensation;
  v_steps jsonb;
  v_code text;
begin
  select c.* into v_last
  from pawl.compensation c
  where c.tenant_id = p_tenant and c.instance_id = p_instance_id and (p_outcome = 'done' or c.status = 'failed')
  order by c.number
  limit 1;
  select coalesce(jsonb_agg(jsonb_build_object('name', c.name, 'status', c.status) order by c.number), '[]') into v_steps
  from pawl.compensation c
  where c.tenant_id = p_tenant and c.instance_id = p_instance_id;
  select o.code into strict v_code
  from pawl.fire(
    p_tenants => array[p_tenant], p_ids => array[p_instance_id], p_events => array[p_outcome || ':compensate'],
    p_payloads => array[jsonb_build_object(
      'name', 'compensate', 'task', v_last.undone_by, 'error', coalesce(p_refused, v_last.reason), 'steps', v_steps)],
    p_keys => '{""}', p_expected => '{*}', p_checked => '{*}', p_actors => '{task:compensate}', p_reasons => '{""}',
    p_correlation_ids => '{""}',
    p_traceparents => array[pawl_private.own_traceparent(pawl_private.traceparent_of(p_tenant, p_instance_id, null))], p_verified => true, p_kind => 'result') o;
  return nullif(v_code, 'applied');
exception when data_exception or undefined_object or feature_not_supported or program_limit_exceeded or raise_exception then
  return 'guard-error';
end
$$;

-- put_off_undoing notes why the undoing of steps cannot go on, and has task_sweep look at it again: after a second first, and
-- then after twice as long each time, up to an hour.
-- Writes: undoing
create function pawl_private.put_off_undoing(p_tenant text, p_instance_id uuid, p_problem text, p_now timestamptz) returns void
language sql volatile
as $$
  update pawl.undoing u
  set problem = left(p_problem, 1000), tried = u.tried + 1,
    due_at = p_now + least(interval '1 second' * 2 ^ least(u.tried, 12), interval '1 hour')
  where u.tenant_id = p_tenant and u.instance_id = p_instance_id
$$;

-- undo_next goes on with undoing the steps of an instance that is in a state that undoes them. It waits while a task is
-- under way, and then takes the newest step that is not undone. When none is left, the state's done or error is fired. If
-- done is refused, error is fired. If that is refused, too, task_sweep tries again later.
-- The caller holds the instance's lock.
-- Locks:  undoing, compensation, task
-- Writes: undoing, compensation, task, what fire writes
create function pawl_private.undo_next(p_tenant text, p_instance_id uuid, p_now timestamptz) returns void
language plpgsql volatile
as $$
declare
  v_instance pawl.instance;
  v_on_failure text;
  v_step pawl.compensation;
  v_task pawl.task;
  v_spec pawl.workflow_task;
  v_failed boolean;
  v_problem text;
  v_at timestamptz;
begin
  update pawl.undoing u set due_at = null where u.tenant_id = p_tenant and u.instance_id = p_instance_id;
  if not found then
    return;
  end if;
  select i.* into strict v_instance from pawl.instance i where i.tenant_id = p_tenant and i.id = p_instance_id;
  select s.undoing into strict v_on_failure
  from pawl.workflow_state s
  where s.workflow = v_instance.workflow and s.workflow_version = v_instance.workflow_version and s.state = v_instance.state;
  loop
    if exists (
      select from pawl.task t where t.tenant_id = p_tenant and t.instance_id = p_instance_id and t.ended_at is null
    ) then
      return;
    end if;
    v_failed := exists (
      select from pawl.compensation c where c.tenant_id = p_tenant and c.instance_id = p_instance_id and c.status = 'failed');
    v_step := null;
    if not v_failed or v_on_failure = 'continue' then
      select c.* into v_step
      from pawl.compensation c
      where c.tenant_id = p_tenant and c.instance_id = p_instance_id and c.status = 'registered'
      order by c.number desc
      limit 1
      for update;
    end if;
    exit when v_step.number is null;
    select w.* into strict v_spec
    from pawl.workflow_task w
    where w.workflow = v_step.workflow and w.workflow_version = v_step.workflow_version and w.position = v_step.position;
    if v_step.task_id is not null then
      select t.* into strict v_task from pawl.task t where t.tenant_id = p_tenant and t.id = v_step.task_id;
      if v_task.status in ('error', 'cancelled') then
        update pawl.compensation c set status = 'void'
        where c.tenant_id = p_tenant and c.instance_id = p_instance_id and c.number = v_step.number;
        continue;
      elsif v_task.status = 'unknown' and v_spec.spec ->> 'if_unknown' = 'park' then
        update pawl.compensation c set status = 'failed', reason = 'it is unknown whether there is an effect to undo'
        where c.tenant_id = p_tenant and c.instance_id = p_instance_id and c.number = v_step.number;
        continue;
      end if;
    end if;
    -- It begins after the step that it follows, which was made after p_now was read.
    select greatest(h.at, p_now) into strict v_at
    from pawl.history h
    where h.tenant_id = p_tenant and h.instance_id = p_instance_id and h.version = v_instance.version;
    update pawl.compensation c
    set undone_by = pawl_private.arm_task(v_instance, v_spec, v_step.version, v_at, v_step.number)
    where c.tenant_id = p_tenant and c.instance_id = p_instance_id and c.number = v_step.number;
    return;
  end loop;

  v_problem := pawl_private.fire_undone(p_tenant, p_instance_id, case when v_failed then 'error' else 'done' end, null);
  if v_problem is not null and not v_failed then
    v_problem := pawl_private.fire_undone(p_tenant, p_instance_id, 'error', v_problem);
  end if;
  if v_problem is not null then
    perform pawl_private.put_off_undoing(p_tenant, p_instance_id, v_problem, p_now);
  end if;
end
$$;
