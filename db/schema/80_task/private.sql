-- task_key is the key that a task's calls carry. A fresh key has a number.
create function pawl_private.task_key(p_task pawl.task) returns text
language plpgsql immutable parallel safe -- A function in SQL that is not put in place is planned at each call.
as $$
begin
  return p_task.id || case when p_task.key_number > 1 then '-' || p_task.key_number else '' end;
end
$$;

-- task_spec is the declaration of a task.
create function pawl_private.task_spec(p_task pawl.task) returns pawl.workflow_task
language plpgsql stable
as $$
declare
  v_spec pawl.workflow_task;
begin
  select w.* into strict v_spec
  from pawl.workflow_task w
  where w.workflow = p_task.workflow and w.workflow_version = p_task.workflow_version and w.position = p_task.position;
  return v_spec;
end
$$;

-- task_notify wakes those who carry tasks out. The payload is 'http' or 'work:TENANT/TOPIC'.
create function pawl_private.task_notify(p_tenant text, p_topic text) returns void
language sql volatile
as $$ select pg_notify('pawl_task', left(case when p_topic is null then 'http' else 'work:' || p_tenant || '/' || p_topic end, 500)) $$;

-- task_step is the step that the input of a task is made from.
create function pawl_private.task_step(p_task pawl.task) returns pawl.history
language plpgsql stable
as $$
declare
  v_step pawl.history;
begin
  select h.* into strict v_step
  from pawl.history h
  where h.tenant_id = p_task.tenant_id and h.instance_id = p_task.instance_id and h.version = p_task.entered_version;
  return v_step;
end
$$;

-- task_traceparent is the traceparent of the step that has caused a task: of the one that entered the state or, of a
-- compensation, of the last one. Attempts and the result are in its trace.
-- Returns: an empty text if it has none
create function pawl_private.task_traceparent(p_task pawl.task) returns text
language plpgsql stable
as $$
begin
  return pawl_private.traceparent_of(
    p_task.tenant_id, p_task.instance_id, case when p_task.compensates is null then p_task.entered_version end);
end
$$;

-- task_document is what the values and guards of a task read: the instance as the history row left it that entered the
-- state, with the time of that row, and the task. Of a compensation it is the row of the step that it undoes, and the
-- result of the task that did it. p_step: of task_step
create function pawl_private.task_document(p_task pawl.task, p_step pawl.history) returns jsonb
language plpgsql stable
as $$
declare
  v_instance pawl.instance;
  v_document jsonb;
begin
  select a.* into strict v_instance
  from pawl.instance_at a
  where a.tenant_id = p_task.tenant_id and a.id = p_task.instance_id and a.version = p_task.entered_version;
  v_document := pawl_private.document(
    p_instance => v_instance, p_payload => coalesce(p_step.payload, '{}'), p_now => p_step.at, p_event => p_step.event,
    p_principal => coalesce(p_step.principal, pawl_private.principal(p_step.actor, true, false)));
  v_document := v_document || jsonb_build_object('task', jsonb_build_object(
    'id', p_task.id, 'key', pawl_private.task_key(p_task), 'name', p_task.name, 'workflow', p_task.workflow, 'state', p_task.state));
  if p_task.compensates is not null then
    v_document := v_document || jsonb_build_object('result', (
      select t.result
      from pawl.compensation c
      join pawl.task t on t.tenant_id = c.tenant_id and t.id = c.task_id
      where c.tenant_id = p_task.tenant_id and c.instance_id = p_task.instance_id and c.number = p_task.compensates));
  end if;
  return v_document;
end
$$;

-- task_request computes the request of a task. p_request: as of compiled_request
-- Returns: {method, path, query, headers, body}; path: an array of texts and, for what was interpolated, of arrays of one
--          text each
-- Raises:  22023 with the pointer
create function pawl_private.task_request(p_document jsonb, p_request jsonb) returns jsonb
language plpgsql stable
as $$
declare
  v_part jsonb;
  v_value jsonb;
  v_path jsonb := '[]';
begin
  for v_part in select e from jsonb_array_elements(p_request -> 'path') e loop
    if jsonb_typeof(v_part) = 'array' then
      v_value := pawl_private.value(p_document, v_part -> 0);
      if v_value is null or jsonb_typeof(v_value) not in ('string', 'number', 'boolean') then
        raise exception 'a part of the path has the value %, which is no text and no number', coalesce(v_value::text, 'nothing')
          using errcode = 'invalid_parameter_value';
      elsif v_value = '""' then
        raise exception 'a part of the path is empty' using errcode = 'invalid_parameter_value';
      elsif v_value in ('"."', '".."') then
        raise exception 'a part of the path has the value %, which leads elsewhere', v_value using errcode = 'invalid_parameter_value';
      end if;
      v_part := jsonb_build_array(v_value #>> '{}');
    end if;
    v_path := v_path || jsonb_build_array(v_part);
  end loop;
  return jsonb_build_object(
    'method', p_request ->> 'method', 'path', v_path,
    'query', case when p_request ? 'query' then pawl_private.value(p_document, p_request -> 'query') end,
    'headers', case when p_request ? 'headers' then pawl_private.value(p_document, p_request -> 'headers') end)
    || case when p_request ? 'body' then jsonb_build_object('body', pawl_private.value(p_document, p_request -> 'body')) else '{}' end;
end
$$;

-- task_retains says whether a task of an instance is open.
create function pawl_private.task_retains(p_tenant text, p_id uuid) returns boolean
language plpgsql stable -- As instance_retains.
as $$
begin
  return exists (
    select from pawl.task t where t.tenant_id = p_tenant and t.instance_id = p_id and t.ended_at is null);
end
$$;
