-- simulate_timeout makes the next step that a timer or the lifetime makes by p_until, of an instance that does not
-- exist. It writes nothing. Deadlines are tried in their order, each at its time, but not before p_now.
-- p_position: as for simulate, with a state; and tried: how many timeouts of the state were refused, 0 if it is left
--             out
-- Returns: one row: the event and the time of the step, its outcome, and tried for the position after it. Without such
--          a step the outcome's code is 'none', and tried counts the timeouts that were refused. No row if the workflow
--          has no such version or state
-- Raises:  PW400 malformed-request; what preview raises
create function pawl.simulate_timeout(
  p_workflow text, p_workflow_version integer, p_position jsonb, p_now timestamptz, p_until timestamptz
) returns table (event text, at timestamptz, tried integer, outcome pawl.outcome)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_instance pawl.instance;
  v_deadline record;
begin
  v_instance := pawl_private.simulated(p_workflow, p_workflow_version, p_position, p_now);
  if v_instance.id is null then
    return;
  end if;
  tried := coalesce((p_position ->> 'tried')::integer, 0);
  loop
    select d.* into v_deadline from pawl_private.next_deadline(v_instance, tried) d;
    if not found or v_deadline.due_at > p_until then
      event := '';
      at := p_until;
      outcome := jsonb_populate_record(null::pawl.outcome, '{"ordinal": 1, "code": "none", "replayed": false}');
      outcome.instance := v_instance;
      outcome.timeout_event := v_deadline.event;
      outcome.timeout_due_at := v_deadline.due_at;
      return next;
      return;
    end if;
    event := v_deadline.event;
    at := greatest(v_deadline.due_at, p_now);
    select o.*
    into outcome
    from pawl.preview(
      p_tenant => 'simulation', p_ids => array[v_instance.id], p_events => array[event],
      p_payloads => array[pawl_private.timer_payload(event, v_deadline.due_at, v_instance.memory, at)], p_expected => array['*'],
      p_checked => array['*'], p_instances => array[v_instance], p_actor => 'pawl', p_now => at, p_by_timer => true) o;
    if (outcome).code not in ('guard-rejected', 'invariant-broken', 'transition-not-allowed') or v_deadline.tried is null then
      -- Behind an internal step the timeouts that were refused stay so.
      tried := case when (outcome).code = 'applied' and ((outcome).instance).state_changed_at >= at then 0 else tried end;
      return next;
      return;
    end if;
    if event like 'every:%' then
      v_instance := pawl_private.passed_over(v_instance, event, at);
    else
      tried := v_deadline.tried;
    end if;
  end loop;
end
$$;
