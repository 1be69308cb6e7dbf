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
      if v_value is null or jsonb_typeof(v_value) not in ('string', 'number', 'boolean') or v_value #>> '{}' in ('', '.', '..') then
        raise exception 'a part of the path has the value %, which is no text and no number', coalesce(v_value::text, 'nothing')
          using errcode = 'invalid_parameter_value';
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
begin
  insert into pawl.task (
    tenant_id, id, instance_id, workflow, workflow_version, position, state, name, connection, topic, compensates,
    entered_version, status, due_at, look_at, deadline_at, created_at)
  values (
    p_instance.tenant_id, v_id, p_instance.id, p_spec.workflow, p_spec.workflow_version, p_spec.position, p_instance.state,
    p_spec.name, p_spec.connection, p_spec.topic, p_compensates, p_entered_version, 'pending', p_at,
    p_at + p_spec.deadline, p_at + p_spec.deadline, p_at);
  perform pawl_private.task_notify(p_instance.tenant_id, p_spec.topic);
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

-- holds_or_not evaluates a guard on the answer to a call. A guard that raises does not hold.
create function pawl_private.holds_or_not(p_document jsonb, p_guard jsonb) returns boolean
language plpgsql stable
as $$
begin
  return coalesce(pawl_private.holds(p_document, p_guard), false);
exception when data_exception or undefined_object or feature_not_supported or program_limit_exceeded then
  return false;
end
$$;

-- key_holds_until is until when an attempt whose outcome is ambiguous may be tried again under the same key. After that the
-- service may have forgotten the key. Null if nothing was sent that may have had an effect, or if there is no key.
create function pawl_private.key_holds_until(p_task pawl.task, p_spec jsonb) returns timestamptz
language plpgsql stable
as $$
begin
  return case when p_task.tries > 0 then p_task.sent_at + pawl_private.duration(p_spec ->> 'window') end;
end
$$;

-- backoff is how long to wait before the next attempt: a random part of what doubles with each try (full jitter), but at
-- least what the other side has asked for.
create function pawl_private.backoff(p_spec jsonb, p_tries integer, p_asked interval) returns interval
language plpgsql volatile
as $$
begin
  return greatest(
    random() * least(pawl_private.duration(p_spec ->> 'cap'), pawl_private.duration(p_spec ->> 'base') * 2 ^ least(greatest(p_tries - 1, 0), 30)),
    least(coalesce(p_asked, interval '0'), interval '1 day'));
end
$$;

-- report_seconds reads a member of a report that is a number of seconds. It has bounds, so that times stay in range. Null
-- if there is none.
create function pawl_private.report_seconds(p_report jsonb, p_name text) returns interval
language plpgsql immutable parallel safe
as $$
begin
  return case when p_report ->> p_name is not null then
    make_interval(secs => least(greatest((p_report ->> p_name)::float8, 0), 31536000))
  end;
end
$$;

-- task_result is the payload of what became of a task. p_status: of the answer; null without one
create function pawl_private.task_result(p_task pawl.task, p_status integer, p_headers jsonb, p_body jsonb, p_error jsonb) returns jsonb
language plpgsql immutable parallel safe
as $$
begin
  return jsonb_build_object(
    'task', p_task.id, 'name', p_task.name, 'attempt', p_task.attempts, 'status', p_status, 'headers', coalesce(p_headers, '{}'),
    'body', coalesce(p_body, 'null'), 'error', p_error);
end
$$;

-- task_decide decides what becomes of a task after an attempt. It only reads.
-- p_kind:   of the attempt: call, reconcile or work; null if there was none
-- p_report: see pawl.task_settle. Its result may also be 'expired': the lease ran out, 'overdue': the deadline has passed,
--           or 'impossible': what it sends cannot be computed
-- Returns: the task as it will be. Its result and ended_at are set if it ends
create function pawl_private.task_decide(
  p_task pawl.task, p_spec pawl.workflow_task, p_kind text, p_report jsonb, p_now timestamptz
) returns pawl.task
language plpgsql volatile
as $$
declare
  v_task pawl.task := p_task;
  v_spec jsonb := p_spec.spec;
  v_reconcile jsonb := p_spec.spec -> 'reconcile';
  v_result text := p_report ->> 'result';
  v_status integer := (p_report ->> 'status')::integer;
  v_asked interval := pawl_private.report_seconds(p_report, 'retry_after');
  v_body jsonb := p_report -> 'body';
  v_answer jsonb;
  v_verdict text;
  v_next interval;
begin
  v_task.leased_until := null;
  v_task.look_at := v_task.deadline_at;
  v_task.due_at := null;
  if p_task.leased_until is not null or v_result <> 'expired' then
    v_task.tried_at := p_now;
  end if;

  if v_result in ('overdue', 'impossible') then
    v_verdict := case when v_task.status = 'pending' then 'error' else 'unknown' end;
  elsif v_result in ('postponed', 'released') then
    -- There was no attempt.
    v_task.due_at := p_now + coalesce(pawl_private.report_seconds(p_report, 'seconds'), interval '0');
    v_task.tried_at := p_task.tried_at;
    if p_kind = 'reconcile' then
      v_task.checks := greatest(v_task.checks - 1, 0);
      return v_task;
    end if;
    v_task.tries := greatest(v_task.tries - 1, 0);
    if v_task.status = 'sent' and v_task.tries = 0 then
      v_task.status := 'pending';
      v_task.sent_at := null;
    end if;
    return v_task;
  elsif v_task.topic is not null then
    v_verdict := case
      when v_result = 'completed' then 'done'
      when v_result = 'failed' and p_report ->> 'outcome' is not null then p_report ->> 'outcome'
      when v_result = 'failed' and not coalesce((p_report ->> 'retryable')::boolean, false) then 'error'
      when v_task.tries < (v_spec ->> 'max')::integer then 'retry'
      when v_result = 'failed' then 'error'
      else 'unknown'
    end;
    if v_verdict = 'retry' then
      v_task.status := case when v_result = 'failed' then v_task.status else 'sent' end;
      v_task.due_at := p_now + case
        when p_report ->> 'retry_in' is not null then pawl_private.report_seconds(p_report, 'retry_in')
        when v_result = 'expired' then interval '0'
        else pawl_private.backoff(v_spec, v_task.tries, null)
      end;
      return v_task;
    end if;
  elsif p_kind = 'reconcile' then
    if v_result = 'answered' and v_status not between 500 and 599 and v_status not in (408, 425, 429) then
      v_answer := pawl_private.task_document(p_task, pawl_private.task_step(p_task)) || jsonb_build_object(
        'status', v_status, 'headers', coalesce(p_report -> 'headers', '{}'), 'body', v_body);
      v_verdict := case
        when pawl_private.holds_or_not(v_answer, v_reconcile -> 'done') then 'done'
        when v_reconcile ? 'failed' and pawl_private.holds_or_not(v_answer, v_reconcile -> 'failed') then 'error'
        when v_reconcile ? 'absent' and pawl_private.holds_or_not(v_answer, v_reconcile -> 'absent') then 'absent'
      end;
    end if;
    v_task.tried_at := p_task.tried_at; -- That of the call, whose effect is looked for.
    if v_verdict = 'done' then
      begin
        v_body := coalesce(pawl_private.value(v_answer, v_reconcile -> 'result'), 'null');
      exception when data_exception or undefined_object or feature_not_supported or program_limit_exceeded then
        p_report := p_report || jsonb_build_object('error', left('result: ' || sqlerrm, 1000));
        v_body := 'null';
      end;
    elsif v_verdict = 'absent' and p_now >= p_task.tried_at + pawl_private.duration(v_reconcile ->> 'absent_after') then
      -- It had no effect, and can have none any more. It begins again, under a fresh key.
      v_task.status := 'pending';
      v_task.connection := p_spec.connection;
      v_task.key_number := p_task.key_number + 1;
      v_task.tries := 0;
      v_task.checks := 0;
      v_task.sent_at := null;
      v_task.due_at := p_now;
      return v_task;
    elsif v_verdict is distinct from 'error' then
      v_next := pawl_private.duration(coalesce(v_reconcile -> 'every' ->> p_task.checks, v_reconcile -> 'every' ->> -1));
      if v_verdict = 'absent' then
        -- An effect may still appear. So it is looked for as before, and when it has been absent for long enough.
        v_next := least(v_next, p_task.tried_at + pawl_private.duration(v_reconcile ->> 'absent_after') - p_now);
      end if;
      v_task.due_at := p_now + greatest(v_next, v_asked);
      return v_task;
    end if;
  else
    v_verdict := case
      when v_result = 'refused' then 'again'
      when v_result in ('lost', 'expired') then 'ambiguous'
      when v_status in (429, 503) then 'again'
      when v_status >= 500 or v_status in (408, 425) then 'ambiguous'
      when not v_spec ? 'success' then case when v_status between 200 and 299 then 'done' else 'error' end
      when pawl_private.holds_or_not(
        pawl_private.task_document(p_task, pawl_private.task_step(p_task)) || jsonb_build_object(
          'status', v_status, 'headers', coalesce(p_report -> 'headers', '{}'), 'body', v_body),
        v_spec -> 'success') then 'done'
      else 'error'
    end;
    if v_verdict = 'again' then
      v_task.tries := greatest(v_task.tries - 1, 0);
      if v_task.tries = 0 then
        v_task.status := 'pending';
        v_task.sent_at := null;
      end if;
      v_task.due_at := p_now + pawl_private.backoff(v_spec, least(v_task.attempts, 30), v_asked);
      return v_task;
    elsif v_verdict = 'ambiguous' then
      if v_spec ? 'header' and v_task.tries < (v_spec ->> 'max')::integer then
        v_next := pawl_private.backoff(v_spec, v_task.tries, v_asked);
        if p_now + v_next + pawl_private.duration(v_spec ->> 'timeout') < pawl_private.key_holds_until(v_task, v_spec) then
          v_task.status := 'sent';
          v_task.due_at := p_now + v_next;
          return v_task;
        end if;
      end if;
      if v_reconcile is not null then
        v_task.status := 'reconciling';
        v_task.connection := v_reconcile ->> 'connection';
        v_task.checks := 0;
        v_task.due_at := p_now + pawl_private.duration(v_reconcile -> 'every' ->> 0);
        return v_task;
      end if;
      v_verdict := 'unknown';
    end if;
  end if;

  v_task.status := v_verdict;
  v_task.look_at := null;
  v_task.ended_at := p_now;
  if pawl_private.is_too_deep(jsonb_build_object('body', v_body)) then
    -- No guard and no context takes it. What happened, happened.
    v_body := 'null';
    p_report := p_report || '{"error": "too-deep"}';
  end if;
  v_task.result := pawl_private.task_result(p_task, v_status, p_report -> 'headers', v_body, p_report -> 'error');
  return v_task;
end
$$;

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
        p_traceparents => array(
          select coalesce(h.traceparent, '')
          from unnest(p_tasks) with ordinality as t
          left join lateral (
            select h.traceparent
            from pawl.history h
            where h.tenant_id = t.tenant_id and h.instance_id = t.instance_id and h.version = t.entered_version
            limit 1
          ) h on true
          order by t.ordinality),
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
      set result_version = v_versions[v_i], reopened = false, problem = null
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
    p_actors => array['task:' || p_task.name], p_reasons => '{""}', p_correlation_ids => '{""}', p_traceparents => '{""}',
    p_verified => true, p_history_keys => array['task:' || p_task.id]) o;
  if v_outcome.code = 'applied' then
    update pawl.task t set result_version = (v_outcome.instance).version where t.tenant_id = p_task.tenant_id and t.id = p_task.id;
  end if;
  return v_outcome.code = 'applied';
exception when data_exception or undefined_object or feature_not_supported or program_limit_exceeded or raise_exception then
  return false;
end
$$;

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
    p_correlation_ids => '{""}', p_traceparents => '{""}', p_verified => true, p_kind => 'result') o;
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
      when v_task.lease = p_leases[v_i] and v_attempt.result = v_result
        and (v_result <> 'completed' or v_task.result -> 'body' = coalesce(v_report -> 'body', 'null')) then 'repeated'
      when v_task.ended_at is not null then 'task-ended'
      -- A lease that ran out still holds. One that was given back, or whose attempt has failed, does not.
      when v_task.lease is null or v_task.lease is distinct from p_leases[v_i] or v_attempt.result <> 'expired'
        or v_result = 'heartbeat' and v_task.leased_until is null then 'lease-superseded'
      when v_result = 'completed' and octet_length((v_report -> 'body')::text) > (select g.payload_limit from pawl.setting g)
        then 'payload-too-large'
      else 'settled'
    end;
    v_codes := v_codes || v_code;
    if v_code = 'settled' and v_result = 'heartbeat' then
      v_lease := coalesce(pawl_private.report_seconds(v_report, 'lease'), v_task.leased_for);
      update pawl.task t
      set leased_until = least(v_now + v_lease, t.deadline_at), look_at = least(v_now + v_lease, t.deadline_at), leased_for = v_lease,
        progress = coalesce(v_report -> 'progress', t.progress)
      where t.tenant_id = v_task.tenant_id and t.id = v_task.id;
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
      -- What comes too late is kept with its attempt.
      update pawl.task_attempt a
      set error = left(concat_ws('; ', a.error, 'late: ' || v_result, 'status ' || (v_report ->> 'status')), 1000)
      where a.tenant_id = v_task.tenant_id and a.task_id = v_task.id and a.lease = p_leases[v_i] and coalesce(a.error, '') not like '%late: %';
    end if;
  end loop;
  return query select
    c.ordinal::integer, c.code, c.tenant, c.id, coalesce(t.instance_id, '00000000-0000-0000-0000-000000000000'),
    coalesce(t.status, ''), t.left_at is not null, t.leased_until, t.problem
  from unnest(p_tenants, p_ids, v_codes) with ordinality as c (tenant, id, code, ordinal)
  left join lateral (
    select t.* from pawl.task t where t.tenant_id = c.tenant and t.id = c.id limit 1
  ) t on true;
end
$$;

-- register_compensation registers that a task may have done what its compensation undoes. If an earlier effect of the task
-- was undone, or there was none, the new one comes after what has been done since.
-- Writes: compensation
create function pawl_private.register_compensation(p_task pawl.task, p_spec pawl.workflow_task) returns void
language plpgsql volatile
as $$
begin
  if p_spec.compensation is not null then
    insert into pawl.compensation as c (tenant_id, instance_id, name, workflow, workflow_version, position, task_id, version, status)
    values (
      p_task.tenant_id, p_task.instance_id, p_task.name, p_task.workflow, p_task.workflow_version, p_spec.compensation, p_task.id,
      p_task.entered_version, 'registered')
    on conflict (tenant_id, task_id) do update
    set status = 'registered', number = default, undone_by = null, reason = null
    where c.status in ('void', 'undone', 'skipped');
  end if;
end
$$;

-- lock_claim_key lets the same claim, sent twice at a time, be carried out once.
-- Locks:  claim_key
-- Writes: claim_key
create function pawl_private.lock_claim_key(p_tenant text, p_key text, p_now timestamptz) returns void
language plpgsql volatile
as $$
begin
  insert into pawl_private.claim_key (tenant_id, key, claimed_at)
  values (p_tenant, p_key, p_now)
  on conflict on constraint claim_key_pkey do update set claimed_at = excluded.claimed_at;
end
$$;

-- begin_attempt claims a task: it records that it is sent.
-- p_for: for how long the lease holds
-- Returns: the task as it became
-- Writes:  task, task_attempt, compensation
create function pawl_private.begin_attempt(
  p_task pawl.task, p_spec pawl.workflow_task, p_worker text, p_claim_key text, p_for interval, p_now timestamptz
) returns pawl.task
language plpgsql volatile
as $$
declare
  v_task pawl.task;
  v_reconciles boolean := p_task.status = 'reconciling';
begin
  update pawl.task t
  set
    status = case when v_reconciles then 'reconciling' else 'sent' end,
    attempts = t.attempts + 1,
    tries = t.tries + case when v_reconciles then 0 else 1 end,
    checks = t.checks + case when v_reconciles then 1 else 0 end,
    sent_at = coalesce(t.sent_at, p_now),
    due_at = null,
    lease = gen_random_uuid(),
    leased_until = p_now + p_for,
    leased_for = p_for,
    look_at = case when t.topic is null then p_now + p_for else least(p_now + p_for, t.deadline_at) end,
    worker = left(p_worker, 255),
    claim_key = nullif(p_claim_key, '')
  where t.tenant_id = p_task.tenant_id and t.id = p_task.id
  returning t.* into strict v_task;
  insert into pawl.task_attempt (tenant_id, task_id, number, kind, key, lease, worker, started_at)
  values (
    v_task.tenant_id, v_task.id, v_task.attempts,
    case when v_reconciles then 'reconcile' when v_task.topic is not null then 'work' else 'call' end,
    pawl_private.task_key(v_task), v_task.lease, v_task.worker, p_now);
  if not v_reconciles then
    perform pawl_private.register_compensation(v_task, p_spec);
  end if;
  return v_task;
end
$$;

-- task_cannot notes that a task's request or input cannot be made. task_sweep ends it.
-- Writes: task
create function pawl_private.task_cannot(p_task pawl.task, p_error text, p_now timestamptz) returns void
language sql volatile
as $$
  update pawl.task t
  set due_at = null, look_at = p_now, problem = left('input: ' || p_error, 1000)
  where t.tenant_id = p_task.tenant_id and t.id = p_task.id
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

-- task_retains says whether a task of an instance is open.
create function pawl_private.task_retains(p_tenant text, p_id uuid) returns boolean
language plpgsql stable -- As instance_retains.
as $$
begin
  return exists (
    select from pawl.task t where t.tenant_id = p_tenant and t.instance_id = p_id and t.ended_at is null);
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
-- Returns: the caller for the audit
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
  return coalesce(p_caller, jsonb_build_object('actor', v_actor));
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

-- work_claim claims tasks of a topic, the longest due first. A claim with a key under which tasks are leased returns these
-- once more, and no others.
-- p_lease:  for how long the lease holds; null for what each task declares
-- p_key:    '' or null for none
-- p_within: the workflows whose tasks it may claim; null for all
-- p_holds:  whether to lock their instances too, for a caller who settles them in the same transaction: so no step waits for
--           a task whose holder waits for the step's instance
-- Locks:    claim_key, instance (if p_holds, for no key update, those that are not locked), task (those that are not locked)
-- Writes:   claim_key, task, task_attempt, compensation
create function pawl_private.work_claim(
  p_tenant text, p_topic text, p_worker text, p_max integer, p_lease interval default null, p_key text default null,
  p_within text[] default null, p_holds boolean default false
) returns setof pawl.work
language plpgsql volatile
set search_path = pg_catalog, pg_temp
-- The planner is left one way to read: by the index of the topic, in its order.
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set enable_incremental_sort = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
as $$
declare
  v_now timestamptz := pawl.now();
  v_task pawl.task;
  v_spec pawl.workflow_task;
  v_input jsonb;
  v_step pawl.history;
  v_repeats boolean := false;
begin
  if p_max not between 1 and 100 or p_max is null then
    perform pawl_private.refuse_malformed('a claim takes 1 to 100 tasks');
  elsif p_lease not between interval '1 second' and interval '1 hour' then
    perform pawl_private.refuse_malformed('a lease holds for 1s to 1h');
  elsif length(p_key) > 255 then
    perform pawl_private.refuse_malformed('a key has at most 255 characters');
  end if;
  if p_key <> '' then
    perform pawl_private.lock_claim_key(p_tenant, p_key, v_now);
    v_repeats := exists (
      select from pawl.task t
      where t.tenant_id = p_tenant and t.claim_key = p_key and t.topic = p_topic and t.leased_until is not null);
    if v_repeats then
      perform pawl_private.commit_synchronously();
    end if;
  end if;
  for v_task in
    (
      select t.*
      from pawl.task t
      where v_repeats and t.tenant_id = p_tenant and t.claim_key = p_key and t.topic = p_topic and t.leased_until is not null
    )
    union all
    (
      select d.*
      from (
        select t.*
        from pawl.task t
        where not v_repeats and not p_holds and t.tenant_id = p_tenant and t.topic = p_topic and t.topic is not null
          and t.due_at is not null and t.due_at <= v_now and t.deadline_at > v_now
          and (p_within is null or t.workflow = any (p_within))
        order by t.tenant_id, t.topic, t.due_at
        limit p_max
        for update skip locked
      ) d
    )
    union all
    (
      select d.*
      from (
        select t.*
        from pawl.task t
        join pawl.instance i on i.tenant_id = t.tenant_id and i.id = t.instance_id
        where not v_repeats and p_holds and t.tenant_id = p_tenant and t.topic = p_topic and t.topic is not null
          and t.due_at is not null and t.due_at <= v_now and t.deadline_at > v_now
          and (p_within is null or t.workflow = any (p_within))
        order by t.tenant_id, t.topic, t.due_at
        limit p_max
        for no key update of i skip locked
        for update of t skip locked
      ) d
    )
  loop
    v_spec := pawl_private.task_spec(v_task);
    v_step := pawl_private.task_step(v_task);
    begin
      v_input := pawl_private.value(pawl_private.task_document(v_task, v_step), v_spec.spec -> 'input');
    exception when data_exception or undefined_object or feature_not_supported or program_limit_exceeded then
      perform pawl_private.task_cannot(v_task, sqlerrm, v_now);
      continue;
    end;
    if not v_repeats then
      v_task := pawl_private.begin_attempt(
        v_task, v_spec, p_worker, p_key, coalesce(p_lease, pawl_private.duration(v_spec.spec ->> 'lease')), v_now);
    end if;
    return query select
      v_task.id, v_task.topic, v_task.name, v_task.instance_id, v_task.workflow, v_task.attempts, pawl_private.task_key(v_task),
      coalesce(v_input, '{}'), v_task.lease, least(v_task.leased_until, v_task.deadline_at), v_task.deadline_at,
      v_step.correlation_id::text, v_step.traceparent;
  end loop;
end
$$;
