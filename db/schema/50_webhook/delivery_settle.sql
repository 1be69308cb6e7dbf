-- delivery_settle records the results of attempts, in the order in which the attempts ended. p_results:
--   delivered  the endpoint accepted it
--   retry      the attempt failed; the next is due after p_delays
--   dead       the attempt failed, and was the last
--   gone       the endpoint answered 410: it is dead, and its subscription is disabled
--   postponed  there was no attempt; it is due after p_delays. Without an error, the one before stays
--   abandoned  there was no attempt, and there will be none: it is dead, or delivered as it was before a replay
-- p_pauses: for how long the endpoint asked not to be called; null if it did not
-- p_rest:   for how long an endpoint's circuit opens the first time
-- Returns: whether p_leader still leads in p_term; if not, nothing is changed
-- Raises:  22023 a result that is none of these
-- Locks:   consumer
-- Writes:  delivery, subscription, callback
create function pawl.delivery_settle(
  p_leader text, p_term bigint, p_tenants text[], p_ids uuid[], p_results text[], p_delays interval[], p_pauses interval[],
  p_statuses integer[], p_errors text[], p_responses text[], p_rest interval
) returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
-- The planner is left one way to find the first row, by an index, and one to reach a row, by its key.
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set enable_incremental_sort = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
as $$
declare
  v_now timestamptz;
  v_tenants text[];
  v_subscriptions uuid[];
  v_instances uuid[];
  v_attempt record;
  v_delivery record;
begin
  if not p_results <@ '{delivered,retry,dead,gone,postponed,abandoned}' then
    raise exception 'unknown result of a delivery in %', p_results using errcode = '22023';
  end if;
  perform from pawl.consumer c where c.name = 'webhooks' and c.leader = p_leader and c.term = p_term for no key update;
  if not found then
    return false;
  end if;
  v_now := pawl.now();

  -- Most attempts succeed. Rows are looked up without their status: with it, other indexes would look
  -- as good as the primary key's.
  with settled as (
    update pawl.delivery d
    set status = 'delivered', attempts = case when d.replayed then 1 else d.attempts + 1 end, replayed = false,
      next_attempt_at = null, last_status = r.status, last_error = null,
      last_response = nullif(r.response, ''), delivered_at = v_now
    from (
      select p.place, r.status, r.response
      from unnest(p_tenants, p_ids, p_results, p_statuses, p_responses) as r (tenant_id, id, result, status, response)
      cross join lateral (
        select d.ctid as place, d.status from pawl.delivery d where d.tenant_id = r.tenant_id and d.id = r.id limit 1
      ) p
      where r.result = 'delivered' and p.status = 'pending'
    ) r
    where d.ctid = r.place
    returning d.tenant_id, d.subscription_id, d.instance_id
  )
  select array_agg(d.tenant_id::text), array_agg(d.subscription_id), array_agg(d.instance_id)
  into v_tenants, v_subscriptions, v_instances
  from settled d;
  delete from pawl.callback b
  using unnest(v_tenants, v_subscriptions, v_instances) as c (tenant_id, subscription_id, instance_id)
  where c.subscription_id = c.instance_id and b.tenant_id = c.tenant_id and b.instance_id = c.instance_id;
  update pawl.subscription s
  set failures = 0, circuit_open_until = null
  from (select distinct c.tenant_id, c.id from unnest(v_tenants, v_subscriptions) as c (tenant_id, id)) c
  where s.tenant_id = c.tenant_id and s.id = c.id and (s.failures > 0 or s.circuit_open_until is not null);

  -- The others one by one.
  for v_attempt in
    select *
    from unnest(p_tenants, p_ids, p_results, p_delays, p_pauses, p_statuses, p_errors, p_responses)
      with ordinality as r (tenant_id, id, result, delay, pause, status, error, response, place)
    where r.result <> 'delivered'
  loop
    select d.subscription_id, d.instance_id, d.seq, d.callback, d.status
    into v_delivery
    from pawl.delivery d
    where d.tenant_id = v_attempt.tenant_id and d.id = v_attempt.id;
    continue when not found or v_delivery.status <> 'pending';
    update pawl.delivery d
    set
      status = case
        when v_attempt.result in ('retry', 'postponed') then 'pending'
        when v_attempt.result = 'abandoned' and d.delivered_at is not null and d.replayed then 'delivered'
        else 'dead'
      end,
      attempts = case
        when v_attempt.result in ('postponed', 'abandoned') then d.attempts
        when d.replayed then 1
        else d.attempts + 1
      end,
      replayed = d.replayed and v_attempt.result = 'postponed',
      next_attempt_at = case when v_attempt.result in ('retry', 'postponed') then v_now + v_attempt.delay end,
      last_status = case when v_attempt.result in ('postponed', 'abandoned') then d.last_status else nullif(v_attempt.status, 0) end,
      last_error = case
        when v_attempt.result = 'postponed' then coalesce(nullif(v_attempt.error, ''), d.last_error)
        else nullif(v_attempt.error, '')
      end,
      last_response = case when v_attempt.result in ('postponed', 'abandoned') then d.last_response else nullif(v_attempt.response, '') end
    where d.tenant_id = v_attempt.tenant_id and d.id = v_attempt.id;
    continue when v_delivery.callback;
    if v_attempt.result = 'retry' then
      update pawl.delivery d
      set next_attempt_at = null
      where d.tenant_id = v_attempt.tenant_id and d.subscription_id = v_delivery.subscription_id
        and d.instance_id = v_delivery.instance_id and d.seq > v_delivery.seq
        and d.status = 'pending' and d.next_attempt_at is not null;
    else
      v_tenants := v_tenants || v_attempt.tenant_id;
      v_subscriptions := v_subscriptions || v_delivery.subscription_id;
      v_instances := v_instances || v_delivery.instance_id;
    end if;

    case v_attempt.result
    when 'retry', 'dead' then
      -- Attempts that were under way when the circuit opened do not keep it open for longer.
      update pawl.subscription s
      set failures = s.failures + 1,
        circuit_open_until = greatest(
          v_now + pawl_private.circuit_open_for(s.failures + 1, p_rest), v_now + v_attempt.pause, s.circuit_open_until)
      where s.tenant_id = v_attempt.tenant_id and s.id = v_delivery.subscription_id
        and (s.circuit_open_until is null or s.circuit_open_until <= v_now or s.circuit_open_until < v_now + v_attempt.pause);
    when 'gone' then
      update pawl.subscription s
      set disabled_at = v_now, disabled_reason = 'the endpoint answered 410 Gone'
      where s.tenant_id = v_attempt.tenant_id and s.id = v_delivery.subscription_id and s.disabled_at is null;
    else
      null;
    end case;
  end loop;

  -- Deliveries that waited for a settled one are due now.
  update pawl.delivery d
  set next_attempt_at = v_now
  from (
    select w.place
    from unnest(v_tenants, v_subscriptions, v_instances) as c (tenant_id, subscription_id, instance_id)
    cross join lateral (
      select d.next_attempt_at
      from pawl.delivery d
      where d.tenant_id = c.tenant_id and d.subscription_id = c.subscription_id and d.instance_id = c.instance_id
        and d.status = 'pending'
      order by d.tenant_id, d.instance_id, d.subscription_id, d.seq
      limit 1
    ) f
    cross join lateral (
      select d.ctid as place
      from pawl.delivery d
      where d.tenant_id = c.tenant_id and d.subscription_id = c.subscription_id and d.instance_id = c.instance_id
        and d.status = 'pending' and d.next_attempt_at is null
      order by d.tenant_id, d.instance_id, d.subscription_id, d.seq
    ) w
    where f.next_attempt_at is null
  ) w
  where d.ctid = w.place;
  return true;
end
$$;
