-- delivery_due reads the deliveries that are to be sent now: callbacks by time, and for each subscription
-- those that have been due for longest. A disabled subscription, or one whose circuit is open, gets none;
-- one whose circuit is half-open gets one. The search goes through the subscriptions in their order,
-- after the given one; a subscription with nothing due costs one look. The pending deliveries of a deleted
-- subscription are returned whether they are due or not, to be abandoned.
-- p_each:   the most deliveries of one subscription that may be under way
-- p_flying, p_flying_subscriptions: the deliveries that are under way. A subscription with half of p_each
--           or more under way gets none.
-- Returns: up to p_limit deliveries; if fewer, all subscriptions after the given one were looked at
create function pawl.delivery_due(
  p_limit integer, p_each integer, p_flying uuid[], p_flying_subscriptions uuid[], p_after_tenant text,
  p_after_subscription uuid
) returns setof pawl.delivery
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
-- The planner is left one way to read: by an index, in its order.
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
set enable_incremental_sort = off
set jit = off
as $$
declare
  v_now timestamptz := pawl.now();
  v_left integer := p_limit;
  v_tenant text := p_after_tenant;
  v_id uuid := p_after_subscription;
  v_next record;
  v_health record;
  v_due timestamptz;
  v_each integer;
  v_read integer;
begin
  return query
  select d.*
  from pawl.delivery d
  where d.status = 'pending' and d.next_attempt_at is not null and d.callback
    and d.next_attempt_at <= v_now
    and d.id <> all (p_flying)
  order by d.next_attempt_at
  limit least(p_each, v_left / 2);
  get diagnostics v_read = row_count;
  v_left := v_left - v_read;

  while v_left > 0 loop
    select d.tenant_id, d.subscription_id, d.next_attempt_at
    into v_next
    from pawl.delivery d
    where (d.tenant_id, d.subscription_id) > (v_tenant, v_id)
      and d.status = 'pending' and d.next_attempt_at is not null and not d.callback
    order by d.tenant_id, d.subscription_id, d.next_attempt_at
    limit 1;
    exit when not found;
    v_tenant := v_next.tenant_id;
    v_id := v_next.subscription_id;
    select s.failures, s.circuit_open_until, s.disabled_at
    into v_health
    from pawl.subscription s
    where s.tenant_id = v_tenant and s.id = v_id;
    v_each := p_each;
    v_due := case when found then v_now else 'infinity' end;
    continue when v_next.next_attempt_at > v_due;
    if found then
      continue when v_health.disabled_at is not null or v_health.circuit_open_until > v_now;
      if pawl_private.circuit_open_for(v_health.failures, interval '1 second') is not null then
        v_each := 1;
      end if;
    end if;
    v_read := (select count(*) from unnest(p_flying_subscriptions) as f (id) where f.id = v_id);
    continue when v_read * 2 >= v_each;
    return query
    select d.*
    from pawl.delivery d
    where d.tenant_id = v_tenant and d.subscription_id = v_id
      and d.status = 'pending' and d.next_attempt_at is not null and not d.callback
      and d.next_attempt_at <= v_due
      and d.id <> all (p_flying)
    order by d.tenant_id, d.subscription_id, d.next_attempt_at, d.id
    limit least(v_each - v_read, v_left);
    get diagnostics v_read = row_count;
    v_left := v_left - v_read;
  end loop;
end
$$;
