-- simulate decides an event for an instance that does not exist, in the given state, at the given
-- version, with the given context. It writes nothing.
-- p_state:   null to create the instance with the context first
-- p_event:   null to decide no event
-- p_checked: as for fire
-- Returns: one outcome, as preview does; none if the workflow has no such version or state
-- Raises:  PW400 malformed-request; what preview raises
create function pawl.simulate(
  p_workflow text, p_workflow_version integer, p_state text, p_version bigint, p_context jsonb,
  p_event text, p_payload jsonb, p_checked text
) returns setof pawl.outcome
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz := pawl.now();
  v_instance pawl.instance;
  v_macrostep pawl_private.macrostep;
begin
  perform pawl_private.refuse_malformed(case
    when jsonb_typeof(p_context) is distinct from 'object' then 'the context must be a JSON object'
    when p_version not between 1 and 1000000000000000 or p_version is null then 'the version must be from 1 to 10^15'
  end);
  select (pawl_private.instance_row(
    p_tenant_id => 'simulation', p_id => '00000000-0000-0000-0000-000000000000', p_workflow => s.workflow,
    p_workflow_version => s.workflow_version, p_state => s.state, p_status => s.status, p_version => p_version,
    p_context => p_context, p_created_at => v_now, p_state_changed_at => v_now, p_expires_at => v_now + w.ttl)).*
  into v_instance
  from pawl.workflow w
  join pawl.workflow_state s on s.workflow = w.name and s.workflow_version = w.version
  where w.name = p_workflow and w.version = p_workflow_version and s.state = coalesce(p_state, w.initial);
  if not found then
    return;
  end if;
  if p_state is null then
    v_macrostep := pawl_private.begin_macrostep(
      p_instance => v_instance, p_reason => null, p_now => v_now, p_setting => (select g from pawl.setting g));
    v_instance := coalesce(v_macrostep.instance, v_instance);
  end if;
  if p_event is not null and v_macrostep.refusal is null then
    return query select o.*
    from pawl.preview(
      p_tenant => 'simulation', p_ids => array[v_instance.id], p_events => array[p_event],
      p_payloads => array[p_payload], p_expected => array['*'], p_checked => array[p_checked],
      p_instances => array[v_instance]) o;
  else
    return query select
      1, coalesce(v_macrostep.refusal, 'applied'), false, v_instance, v_macrostep.events, null::text[], null::jsonb,
      null::text, null::timestamptz;
  end if;
end
$$;
