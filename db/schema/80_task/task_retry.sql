-- task_retry has a task that ended as unknown, error or late tried again, from the beginning and with its whole deadline.
-- Its outcome moves the instance if that is still in the state that started the task, or in the one that the outcome before
-- led to. Otherwise it only changes the task.
-- Returns: whether the outcome will move the instance
-- Raises:  what pawl_private.operating raises; PW40K task-not-found; PW409 instance-final; PW40D task-ended if it was done in time, was cancelled, or is under way
-- Locks:   instance (for no key update), then task
-- Writes:  task, audit
create function pawl.task_retry(
  p_tenant text, p_id uuid, p_reason text, p_actor text default session_user, p_caller jsonb default null
) returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_locked record;
  v_task pawl.task;
  v_spec pawl.workflow_task;
  v_stays text;
  v_now timestamptz;
begin
  p_caller := pawl_private.operating(p_tenant, p_actor, p_reason, p_caller);
  select l.* into strict v_locked from pawl_private.lock_task(p_tenant, p_id) l;
  v_task := v_locked.task;
  v_now := pawl.now();
  if (v_locked.instance).id is null or (v_locked.instance).status <> 'active' then
    perform pawl_private.raise_condition('instance-final', 'the instance is final, so that its tasks are not tried again');
  elsif v_task.ended_at is null then
    perform pawl_private.raise_condition('task-open', null);
  elsif v_task.status = 'cancelled' or v_task.status = 'done' and v_task.left_at is null then
    perform pawl_private.raise_condition('task-ended', format('the task was %s', v_task.status));
  elsif v_task.compensates is not null then
    perform pawl_private.raise_condition('task-ended', 'a compensation is tried again by its name: see compensations of the instance');
  end if;
  v_stays := pawl_private.task_stays(v_task, v_locked.instance);
  v_spec := pawl_private.task_spec(v_task);
  update pawl.task t
  set
    status = 'pending', connection = v_spec.connection, ended_at = null, problem = null, tries = 0, checks = 0, sent_at = null,
    key_number = t.key_number + case when t.connection is not null and (t.status = 'error' or exists (
      select from pawl.compensation c where c.tenant_id = t.tenant_id and c.task_id = t.id and c.status = 'undone')) then 1 else 0 end,
    left_at = case when v_stays = 'own' then null else coalesce(t.left_at, v_now) end, reopened = true, due_at = v_now,
    look_at = v_now + v_spec.deadline, deadline_at = v_now + v_spec.deadline
  where t.tenant_id = p_tenant and t.id = p_id;
  perform pawl_private.task_notify(p_tenant, v_task.topic);
  perform pawl_private.audit(
    p_tenant => p_tenant, p_caller => p_caller, p_action => 'task.retry',
    p_target => p_id::text, p_reason => p_reason, p_before => pawl_private.task_digest(v_task));
  return v_stays <> 'elsewhere';
end
$$;
