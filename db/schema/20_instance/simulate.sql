-- simulate decides an event for an instance that does not exist. It writes nothing.
-- p_position: {state, context, version, created_at, state_changed_at, expires_at, memory}, as an outcome shows them.
--             Without a state, the instance is created with the context first. Without times, it has just been created
-- p_event:    null to decide no event; may be one of what became of a task, such as 'done:charge'
-- p_checked, p_actor, p_verified: as for fire. p_now: when it happens; null for now
-- Returns: one outcome, as preview does; none if the workflow has no such version or state
-- Raises:  PW400 malformed-request; what preview raises
create function pawl.simulate(
  p_workflow text, p_workflow_version integer, p_position jsonb, p_event text, p_payload jsonb, p_checked text,
  p_actor text default session_user, p_verified boolean default null, p_now timestamptz default null
) returns setof pawl.outcome
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz := coalesce(p_now, pawl.now());
  v_instance pawl.instance;
  v_macrostep pawl_private.macrostep;
  v_by_task boolean := coalesce(p_event ~ '^(done|error|unknown|compensated):', false);
begin
  v_instance := pawl_private.simulated(p_workflow, p_workflow_version, p_position, v_now);
  if v_instance.id is null then
    return;
  end if;
  if p_position ->> 'state' is null then
    v_macrostep := pawl_private.begin_macrostep(
      p_instance => v_instance, p_principal => pawl_private.principal(p_actor, p_verified, false), p_reason => null,
      p_now => v_now, p_setting => (select g from pawl.setting g));
    v_instance := coalesce(v_macrostep.instance, v_instance);
  end if;
  if p_event is not null and v_macrostep.refusal is null then
    return query select o.*
    from pawl.preview(
      p_tenant => 'simulation', p_ids => array[v_instance.id], p_events => array[p_event],
      p_payloads => array[p_payload], p_expected => array['*'], p_checked => array[p_checked],
      p_instances => array[v_instance], p_actor => p_actor, p_verified => case when v_by_task then true else p_verified end,
      p_now => v_now, p_by_task => v_by_task) o;
  else
    return query select
      1, coalesce(v_macrostep.refusal, 'applied'), false, v_instance, v_macrostep.events,
      case when v_macrostep.broken is not null then array[v_macrostep.broken] end, null::jsonb, d.event, d.due_at
    from (select) one
    left join lateral pawl_private.next_deadline(v_instance, 0) d on v_macrostep.refusal is null;
  end if;
end
$$;
