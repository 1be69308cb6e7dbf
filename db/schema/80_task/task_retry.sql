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
begin
  p_caller := pawl_private.operating(p_tenant, p_actor, p_reason, p_caller);
  select l.* into strict v_locked from pawl_private.lock_task(p_tenant, p_id) l;
  return pawl_private.reopen_task(v_locked.task, v_locked.instance, 'retry', p_reason, p_caller);
end
$$;
