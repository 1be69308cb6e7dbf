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
      when v_task.tries < (v_spec ->> 'max')::integer and (v_result <> 'failed' or coalesce((p_report ->> 'retryable')::boolean, false))
        then 'retry'
      when v_result = 'failed' then coalesce(p_report ->> 'outcome', 'error')
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
