-- task_stays says where an instance is with regard to a task that has ended: 'own' in the stay in the state that started
-- it, 'outcome' in the stay in the state that its outcome led to, or 'elsewhere'.
create function pawl_private.task_stays(p_task pawl.task, p_instance pawl.instance) returns text
language plpgsql stable
as $$
begin
  return case
    when p_task.result_version is null and p_task.left_at is null and p_instance.state = p_task.state then 'own'
    when exists (
      select from pawl.history h
      where h.tenant_id = p_task.tenant_id and h.instance_id = p_task.instance_id and h.version = p_task.result_version
        and h.to_state = p_instance.state and coalesce(h.entered_at, h.at) = p_instance.state_changed_at
    ) then case when p_instance.state = p_task.state then 'own' else 'outcome' end
    else 'elsewhere'
  end;
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
  return coalesce(case when pawl_private.is_service() then p_caller end, jsonb_build_object('actor', v_actor));
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
