-- fire_one moves one instance inside the caller's own transaction, so that the step and the caller's
-- business rows commit together or not at all. The caller vouches for the payload's schema, as with
-- create_one.
-- p_traceparent: a W3C trace context. History records a span of the step's own in that trace; an invalid one is ignored
-- Returns: the instance after the step
-- Raises:  what pawl_private.bound_actor raises; PW400, PW404, PW409, PW40G, PW412, PW413, PW422, PW42G, PW42K, PW428: see
--          pawl_private.condition; the detail is JSON. What fire raises
-- Locks:   instance (for no key update), then idempotency_key
-- Writes:  idempotency_key, instance, history, timer
create function pawl.fire_one(
  p_id uuid,
  p_event text,
  p_payload jsonb default '{}',
  p_key text default null,
  p_expected_version bigint default null,
  p_tenant text default 'default',
  p_actor text default session_user,
  p_correlation_id text default null,
  p_traceparent text default null
) returns pawl.instance
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_outcome pawl.outcome;
  v_actor text;
begin
  perform pawl_private.refuse_malformed(pawl_private.command_fault(
    p_tenant => p_tenant, p_actor => p_actor, p_key => p_key, p_correlation_id => p_correlation_id));
  v_actor := pawl_private.bound_actor(p_tenant, p_actor);
  select * into strict v_outcome from pawl.fire(
    p_tenants => array[p_tenant], p_ids => array[p_id], p_events => array[p_event], p_payloads => array[p_payload],
    p_keys => array[coalesce(p_key, '')], p_expected => array[coalesce('{' || p_expected_version || '}', '')],
    p_checked => array['*'], p_actors => array[v_actor], p_reasons => array[''],
    p_correlation_ids => array[coalesce(p_correlation_id, '')], p_traceparents => array[pawl_private.own_traceparent(p_traceparent)]);
  if v_outcome.code <> 'applied' then
    perform pawl_private.refuse(
      p_outcome => v_outcome, p_id => p_id, p_event => p_event, p_expected => p_expected_version);
  end if;
  return v_outcome.instance;
end
$$;
