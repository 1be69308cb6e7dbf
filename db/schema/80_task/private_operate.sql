-- task_stays says where an instance is with regard to a task that has ended: 'own' in the stay in the state that started
-- it, 'outcome' in the stay in the state that its outcome led to, or 'elsewhere'.
create function pawl_private.task_stays(p_task pawl.task, p_instance pawl.instance) returns text
language plpgsql stable
as $$
begin
  return coalesce((
    select case when p_instance.state = p_task.state then 'own' else 'outcome' end
    from pawl.history h
    where h.tenant_id = p_task.tenant_id and h.instance_id = p_task.instance_id
      and h.version = case when p_task.result_version is null and p_task.left_at is null then p_task.entered_version else p_task.result_version end
      and h.to_state = p_instance.state and coalesce(h.entered_at, h.at) = p_instance.state_changed_at
  ), 'elsewhere');
end
$$;

-- operating checks what an operator gives with each act on a task, and for whom the session may act.
-- Returns: the caller for the audit: p_caller only if the session is one of the service
-- Raises:  PW400; what pawl_private.bound_actor raises
create function pawl_private.operating(p_tenant text, p_actor text, p_reason text, p_caller jsonb) returns jsonb
language plpgsql stable
as $$
declare
  v_actor text;
begin
  perform pawl_private.refuse_malformed(pawl_private.force_fault(
    p_tenant => p_tenant, p_actor => p_actor, p_key => null, p_correlation_id => null, p_reason => p_reason, p_expected => null));
  v_actor := pawl_private.bound_actor(p_tenant, p_actor);
  return coalesce(case when pawl_private.is_service() then p_caller end, pawl_private.session_caller(v_actor));
end
$$;

-- lock_task locks the instance of a task, and then the task, for an operator.
-- Raises: PW40K task-not-found
create function pawl_private.lock_task(p_tenant text, p_id uuid, out task pawl.task, out instance pawl.instance)
language plpgsql volatile
as $$
begin
  select t.* into task from pawl.task t where t.tenant_id = p_tenant and t.id = p_id;
  if not found then
    perform pawl_private.raise_condition('task-not-found', null);
  end if;
  select i.* into instance from pawl.instance i where i.tenant_id = p_tenant and i.id = task.instance_id for no key update;
  select t.* into strict task from pawl.task t where t.tenant_id = p_tenant and t.id = p_id for update;
end
$$;

-- task_digest is a task for the audit.
create function pawl_private.task_digest(p_task pawl.task) returns jsonb
language sql stable
as $$
  select jsonb_build_object(
    'instance', p_task.instance_id, 'workflow', p_task.workflow, 'state', p_task.state, 'name', p_task.name, 'status', p_task.status,
    'attempts', p_task.attempts)
$$;

-- reopen_task has a task that has ended go on, with its whole deadline. The caller holds the locks of its instance and of
-- the task.
-- p_how:   retry: it is tried again, from the beginning; reconcile: what became of its last attempt is asked. A task for
--          which that is asked already is asked at once
-- Returns: whether the outcome will move the instance
-- Raises:  PW409 instance-final; PW40D task-ended, task-open
-- Writes:  task, audit
create function pawl_private.reopen_task(p_task pawl.task, p_instance pawl.instance, p_how text, p_reason text, p_caller jsonb)
returns boolean
language plpgsql volatile
as $$
declare
  v_spec pawl.workflow_task;
  v_stays text;
  v_now timestamptz := pawl.now();
  v_waits boolean := p_how = 'reconcile' and p_task.status = 'reconciling' and p_task.due_at is not null;
begin
  if p_instance.id is null or p_instance.status <> 'active' then
    perform pawl_private.raise_condition('instance-final', 'the instance is final, so that its tasks are not tried again');
  elsif p_task.ended_at is null and not v_waits then
    perform pawl_private.raise_condition('task-open', null);
  elsif p_task.status = 'cancelled' or p_task.status = 'done' and p_task.left_at is null and (p_how = 'retry' or p_task.problem is null) then
    perform pawl_private.raise_condition('task-ended', format('the task was %s', p_task.status));
  elsif p_task.compensates is not null then
    perform pawl_private.raise_condition('task-ended', 'a compensation is tried again by its name: see compensations of the instance');
  elsif p_how = 'reconcile' and p_task.sent_at is null then
    perform pawl_private.raise_condition('task-ended', 'nothing was sent, so that there is nothing to ask');
  end if;
  v_stays := pawl_private.task_stays(p_task, p_instance);
  if v_waits then
    update pawl.task t set due_at = v_now where t.tenant_id = p_task.tenant_id and t.id = p_task.id;
  else
    v_spec := pawl_private.task_spec(p_task);
    update pawl.task t
    set
      status = case p_how when 'retry' then 'pending' else 'reconciling' end,
      connection = case p_how when 'retry' then v_spec.connection else v_spec.spec -> 'reconcile' ->> 'connection' end,
      ended_at = null, problem = null, tries = case p_how when 'retry' then 0 else t.tries end, checks = 0,
      sent_at = case p_how when 'retry' then null else t.sent_at end,
      key_number = t.key_number + case when p_how = 'retry' and t.connection is not null and (t.status = 'error' or exists (
        select from pawl.compensation c where c.tenant_id = t.tenant_id and c.task_id = t.id and c.status = 'undone')) then 1 else 0 end,
      left_at = case when v_stays = 'own' then null else coalesce(t.left_at, v_now) end, reopened = true, due_at = v_now,
      look_at = v_now + v_spec.deadline, deadline_at = v_now + v_spec.deadline
    where t.tenant_id = p_task.tenant_id and t.id = p_task.id;
  end if;
  perform pawl_private.task_notify(p_task.tenant_id, p_task.topic);
  perform pawl_private.audit(
    p_tenant => p_task.tenant_id, p_caller => p_caller, p_action => 'task.' || p_how, p_target => p_task.id::text, p_reason => p_reason,
    p_before => pawl_private.task_digest(p_task));
  return v_stays <> 'elsewhere';
end
$$;
