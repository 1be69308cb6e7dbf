-- task_is_told says whether those who carry tasks of a topic, or of a connection, out have been told of a task that is still to
-- be claimed. Then they look again when they have claimed it, and need not be told once more. Transactions that notify commit
-- one after another: if each step that arms a task notified, a slow disk would let through one at a time.
create function pawl_private.task_is_told(p_tenant text, p_topic text, p_connection text, p_at timestamptz) returns boolean
language plpgsql volatile -- It sees what was committed a moment ago.
-- The planner is left one way to read: by the index of the topic or of the lane.
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set enable_incremental_sort = off
set jit = off
as $$
begin
  if p_topic is not null then
    perform from pawl.task t
    where t.tenant_id = p_tenant and t.topic = p_topic and t.topic is not null and t.due_at is not null and t.due_at <= p_at
    order by t.tenant_id desc, t.topic desc, t.due_at desc
    limit 1;
  else
    perform from pawl.task t
    where t.tenant_id = p_tenant and t.connection = p_connection and t.connection is not null and t.due_at is not null and t.due_at <= p_at
    order by t.tenant_id desc, t.connection desc, t.due_at desc
    limit 1;
  end if;
  return found;
end
$$;

-- arm_task adds a pending task.
-- p_compensates: the number of the compensation that it carries out; null for the task of a state
-- Writes: task
create function pawl_private.arm_task(
  p_instance pawl.instance, p_spec pawl.workflow_task, p_entered_version bigint, p_at timestamptz, p_compensates bigint default null
) returns uuid
language plpgsql volatile
as $$
declare
  v_id uuid := pawl_private.uuid_v7(p_at);
  v_told boolean := pawl_private.task_is_told(p_instance.tenant_id, p_spec.topic, p_spec.connection, p_at);
begin
  insert into pawl.task (
    tenant_id, id, instance_id, workflow, workflow_version, position, state, name, connection, topic, compensates,
    entered_version, status, due_at, look_at, deadline_at, created_at)
  values (
    p_instance.tenant_id, v_id, p_instance.id, p_spec.workflow, p_spec.workflow_version, p_spec.position, p_instance.state,
    p_spec.name, p_spec.connection, p_spec.topic, p_compensates, p_entered_version, 'pending', p_at,
    p_at + p_spec.deadline, p_at + p_spec.deadline, p_at);
  if not v_told then
    perform pawl_private.task_notify(p_instance.tenant_id, p_spec.topic);
  end if;
  return v_id;
end
$$;

-- move_tasks does what a step does with tasks: it cancels or leaves those of the state that was left, arms those of the
-- state that was entered, and registers the compensation of the transition.
-- p_moves: whether a state was left or entered. p_event, p_version: of the transition's step
-- Locks:  task
-- Writes: task, compensation, undoing
create function pawl_private.move_tasks(
  p_instance pawl.instance, p_at timestamptz, p_moves boolean, p_compensation integer default null, p_event text default null,
  p_version bigint default null
) returns void
language plpgsql volatile
as $$
declare
  v_spec pawl.workflow_task;
  v_undoing text;
begin
  if p_compensation is not null then
    insert into pawl.compensation (tenant_id, instance_id, name, workflow, workflow_version, position, version, status)
    values (
      p_instance.tenant_id, p_instance.id, p_event, p_instance.workflow, p_instance.workflow_version, p_compensation,
      p_version, 'registered');
  end if;
  if not p_moves then
    return;
  end if;
  update pawl.task t
  set
    left_at = p_at,
    reopened = false,
    status = case t.status when 'pending' then 'cancelled' else t.status end,
    due_at = case when t.status <> 'pending' then t.due_at end,
    look_at = case when t.status <> 'pending' then t.look_at end,
    ended_at = case t.status when 'pending' then p_at end
  where t.tenant_id = p_instance.tenant_id and t.instance_id = p_instance.id and t.ended_at is null and t.left_at is null;
  delete from pawl.undoing u where u.tenant_id = p_instance.tenant_id and u.instance_id = p_instance.id;
  if p_instance.status <> 'active' then
    return;
  end if;
  for v_spec in
    select w.*
    from pawl.workflow_task w
    where w.workflow = p_instance.workflow and w.workflow_version = p_instance.workflow_version and w.state = p_instance.state
    order by w.position
  loop
    perform pawl_private.arm_task(p_instance, v_spec, p_instance.version, p_at);
  end loop;
  select s.undoing into strict v_undoing
  from pawl.workflow_state s
  where s.workflow = p_instance.workflow and s.workflow_version = p_instance.workflow_version and s.state = p_instance.state;
  if v_undoing is not null then
    -- Steps that could not be undone before are tried again.
    update pawl.compensation c
    set status = 'registered', undone_by = null
    where c.tenant_id = p_instance.tenant_id and c.instance_id = p_instance.id and c.status = 'failed';
    insert into pawl.undoing (tenant_id, instance_id, due_at) values (p_instance.tenant_id, p_instance.id, p_at);
    perform pawl_private.task_notify(p_instance.tenant_id, null);
  end if;
end
$$;
