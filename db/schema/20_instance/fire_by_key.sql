-- fire_by_key is fire_one for the instance that holds a business key.
-- p_start: null, or a JSON object: if no instance holds the key, one is created and the event fired at it, or neither.
--          Its members `context`, `correlation_id` and `expires_in`, an interval, are those of the new instance
-- Returns: the instance after the step
-- Raises:  what pawl_private.bound_actor raises; PW400, PW404, PW409, PW40G, PW40W, PW412, PW413, PW422, PW42G, PW42K, PW428: see
--          pawl_private.condition; the detail is JSON. What fire_by_keys raises
-- Locks:   instance (for no key update), then idempotency_key
-- Writes:  idempotency_key, instance, history, timer
create function pawl.fire_by_key(
  p_workflow text,
  p_business_key text,
  p_event text,
  p_payload jsonb default '{}',
  p_key text default null,
  p_expected_version bigint default null,
  p_tenant text default 'default',
  p_actor text default session_user,
  p_correlation_id text default null,
  p_start jsonb default null,
  p_traceparent text default null
) returns pawl.instance
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_outcome pawl.outcome;
  v_actor text;
begin
  perform pawl_private.refuse_malformed(coalesce(
    pawl_private.command_fault(
      p_tenant => p_tenant, p_actor => p_actor, p_key => p_key, p_business_key => p_business_key,
      p_correlation_id => p_correlation_id),
    case when coalesce(p_business_key, '') = '' then 'the business key must not be empty' end,
    pawl_private.start_fault(p_start)));
  v_actor := pawl_private.bound_actor(p_tenant, p_actor);
  select * into strict v_outcome from pawl.fire_by_keys(
    p_tenants => array[p_tenant], p_workflows => array[p_workflow], p_business_keys => array[p_business_key],
    p_events => array[p_event], p_payloads => array[p_payload], p_keys => array[coalesce(p_key, '')],
    p_expected => array[coalesce('{' || p_expected_version || '}', '')], p_checked => array['*'],
    p_starts => array[p_start], p_starts_checked => array['*'], p_actors => array[v_actor], p_reasons => array[''],
    p_correlation_ids => array[coalesce(p_correlation_id, '')], p_traceparents => array[pawl_private.own_traceparent(p_traceparent)]);
  if v_outcome.code = 'version-mismatch' and (v_outcome.instance).version is null then
    perform pawl_private.raise_condition(
      'version-mismatch', 'no instance holds this business key, so none is at the expected version',
      jsonb_build_object('expected', p_expected_version, 'event', p_event));
  elsif v_outcome.code not in ('applied', 'created') then
    perform pawl_private.refuse(
      p_outcome => v_outcome, p_id => null, p_event => p_event, p_expected => p_expected_version);
  end if;
  return v_outcome.instance;
end
$$;

-- start_fault says what is wrong with the start of a fire by business key, or null.
create function pawl_private.start_fault(p_start jsonb) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_lifetime interval;
begin
  if p_start is null then
    return null;
  elsif jsonb_typeof(p_start) <> 'object' then
    return 'the start must be a JSON object';
  elsif p_start - '{context,correlation_id,expires_in}'::text[] <> '{}' then
    return 'the start may have no other members than context, correlation_id and expires_in';
  elsif jsonb_typeof(p_start -> 'correlation_id') <> 'string' or jsonb_typeof(p_start -> 'expires_in') <> 'string' then
    return 'correlation_id and expires_in of the start must be strings';
  elsif p_start ->> 'correlation_id' collate "C" !~ '^[!-~]{1,255}$' then
    return 'the correlation id of the start must have 1 to 255 visible ASCII characters';
  end if;
  begin
    v_lifetime := (p_start ->> 'expires_in')::interval;
  exception when data_exception then
    v_lifetime := '0';
  end;
  -- The sum of a time and a longer one may be no time that PostgreSQL can store.
  if v_lifetime not between interval '1 microsecond' and interval '3650 days' then
    return 'expires_in of the start must be an interval, more than 0 and at most 3650 days';
  end if;
  return null;
end
$$;
