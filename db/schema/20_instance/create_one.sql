-- create_one starts one instance inside the caller's own transaction. A key is needed only to make a
-- retry of the whole transaction safe. The caller vouches for the context: the service checks JSON
-- Schemas, the database does not.
-- p_traceparent: a W3C trace context. History records a span of the step's own in that trace; an invalid one is ignored
-- Returns: the instance
-- Raises:  what pawl_private.bound_actor raises; PW400, PW40W, PW40E, PW413, PW42G, PW42K: see pawl_private.condition; the detail is JSON.
--          What create raises
-- Locks:   idempotency_key, then instance
-- Writes:  idempotency_key, instance, history, timer
create function pawl.create_one(
  p_workflow text,
  p_context jsonb default '{}',
  p_key text default null,
  p_tenant text default 'default',
  p_business_key text default null,
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
    p_tenant => p_tenant, p_actor => p_actor, p_key => p_key, p_business_key => p_business_key,
    p_correlation_id => p_correlation_id));
  v_actor := pawl_private.bound_actor(p_tenant, p_actor);
  select * into strict v_outcome from pawl.create(
    p_tenants => array[p_tenant], p_workflows => array[p_workflow], p_contexts => array[p_context],
    p_keys => array[coalesce(p_key, '')], p_business_keys => array[coalesce(p_business_key, '')],
    p_instance_correlation_ids => array[coalesce(p_correlation_id, '')], p_lifetimes => array[null::interval],
    p_checked => array['*'], p_actors => array[v_actor], p_reasons => array[''], p_correlation_ids => array[''],
    p_traceparents => array[pawl_private.own_traceparent(p_traceparent)]);
  if v_outcome.code <> 'applied' then
    perform pawl_private.refuse(p_outcome => v_outcome, p_id => null, p_event => null, p_expected => null);
  end if;
  return v_outcome.instance;
end
$$;
