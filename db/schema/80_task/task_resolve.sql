-- task_resolve writes down what happened, as a person has found out, of a task that ended as unknown, error or late, or that
-- is still open. The outcome moves the instance if that is still in the state that started the task, or in the one that the
-- outcome before led to. Otherwise it only changes the task.
-- p_outcome: done or error. p_result: what the definition reads as $.payload.body
-- Returns: whether it moved the instance
-- Raises:  what pawl_private.operating raises; PW40K task-not-found; PW40D task-ended if it was cancelled, was done and moved the instance, or
--          undoes a step that is undone or that a later task undoes; PW400; PW413
-- Locks:   instance (for no key update), then task
-- Writes:  task, audit, what fire writes
create function pawl.task_resolve(
  p_tenant text, p_id uuid, p_outcome text, p_result jsonb, p_reason text, p_actor text default session_user,
  p_caller jsonb default null
) returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_locked record;
  v_task pawl.task;
  v_before pawl.task;
  v_stays text;
  v_moved boolean := false;
  v_now timestamptz;
begin
  p_caller := pawl_private.operating(p_tenant, p_actor, p_reason, p_caller);
  perform pawl_private.refuse_malformed(case
    when p_outcome not in ('done', 'error') or p_outcome is null then 'the outcome is done or error'
    when pawl_private.is_too_deep(jsonb_build_object('body', p_result)) then 'a result is a JSON value, nested at most 63 deep'
  end);
  if octet_length(p_result::text) > (select g.payload_limit from pawl.setting g) then
    perform pawl_private.raise_condition('payload-too-large', 'the result is larger than the limit of payloads');
  end if;
  select l.* into strict v_locked from pawl_private.lock_task(p_tenant, p_id) l;
  v_task := v_locked.task;
  v_before := v_task;
  v_now := pawl.now();
  if v_task.status = 'cancelled' or v_task.status = 'done' and v_task.left_at is null and v_task.problem is null then
    perform pawl_private.raise_condition('task-ended', format('the task was %s', v_task.status));
  elsif v_task.compensates is not null and not exists (
    select from pawl.compensation c
    where c.tenant_id = p_tenant and c.instance_id = v_task.instance_id and c.number = v_task.compensates
      and c.status <> 'undone' and coalesce(c.undone_by, p_id) = p_id
  ) then
    perform pawl_private.raise_condition('task-ended', 'the step is undone, or another task undoes it: see compensations of the instance');
  end if;
  v_stays := case
    when v_task.ended_at is not null then pawl_private.task_stays(v_task, v_locked.instance)
    when v_task.left_at is null then 'own'
    when v_task.reopened then pawl_private.task_stays(v_task, v_locked.instance)
    else 'elsewhere'
  end;
  v_task.status := p_outcome;
  v_task.due_at := null;
  v_task.look_at := null;
  v_task.leased_until := null;
  v_task.problem := null;
  v_task.ended_at := v_now;
  v_task.result := pawl_private.task_result(v_task, null, null, p_result, to_jsonb(case p_outcome when 'error' then p_reason end));
  perform pawl_private.keep_task(v_task);
  update pawl.task t set lease = null where t.tenant_id = p_tenant and t.id = p_id;
  update pawl.task_attempt a
  set ended_at = v_now, result = 'resolved'
  where a.tenant_id = p_tenant and a.task_id = p_id and a.number = v_task.attempts and a.ended_at is null;
  perform pawl_private.register_compensation(v_task, pawl_private.task_spec(v_task)) where p_outcome = 'done' and v_before.status <> 'done';
  if v_task.compensates is not null then
    if p_outcome = 'done' and exists (
      select from pawl.undoing u where u.tenant_id = p_tenant and u.instance_id = v_task.instance_id
    ) then
      perform pawl_private.fire_outcomes(array[v_task], array['compensated:' || v_task.name], 'compensated');
      v_moved := exists (select from pawl.task t where t.tenant_id = p_tenant and t.id = p_id and t.problem is null);
    end if;
  elsif v_stays <> 'elsewhere' and (v_locked.instance).status = 'active' then
    v_task.left_at := case v_stays when 'own' then null else coalesce(v_task.left_at, v_now) end;
    v_task.reopened := true;
    perform pawl_private.fire_outcomes(array[v_task], array[pawl_private.outcome_event(v_task, p_outcome)], 'result');
    v_moved := exists (select from pawl.task t where t.tenant_id = p_tenant and t.id = p_id and t.problem is null);
  end if;
  perform pawl_private.task_ended(v_task, v_now);
  perform pawl_private.audit(
    p_tenant => p_tenant, p_caller => p_caller, p_action => 'task.resolve',
    p_target => p_id::text, p_reason => p_reason, p_before => pawl_private.task_digest(v_before),
    p_after => pawl_private.task_digest(v_task));
  return v_moved;
end
$$;
