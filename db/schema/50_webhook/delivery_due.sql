-- delivery_due reads the deliveries of lanes that are to be sent now: of each lane those that have been due for
-- longest. The pending deliveries of a deleted subscription are returned whether they are due or not, to be
-- abandoned.
-- p_subscriptions: the nil UUID stands for the callbacks of the tenant
-- p_limits:        the most deliveries of each lane
-- p_flying:        the deliveries that are under way, which are not returned
-- Returns: the deliveries, lane by lane
create function pawl.delivery_due(p_tenants text[], p_subscriptions uuid[], p_limits integer[], p_flying uuid[])
returns setof pawl.delivery
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
  v_due timestamptz;
begin
  for lane in 1..coalesce(cardinality(p_tenants), 0) loop
    if p_subscriptions[lane] = '00000000-0000-0000-0000-000000000000' then
      return query
      select d.*
      from pawl.delivery d
      where d.tenant_id = p_tenants[lane] and d.status = 'pending' and d.next_attempt_at is not null and d.callback
        and d.next_attempt_at <= v_now
        and d.id <> all (p_flying)
      order by d.tenant_id, d.next_attempt_at
      limit p_limits[lane];
      continue;
    end if;
    perform from pawl.subscription s where s.tenant_id = p_tenants[lane] and s.id = p_subscriptions[lane];
    v_due := case when found then v_now else 'infinity' end;
    return query
    select d.*
    from pawl.delivery d
    where d.tenant_id = p_tenants[lane] and d.subscription_id = p_subscriptions[lane]
      and d.status = 'pending' and d.next_attempt_at is not null and not d.callback
      and d.next_attempt_at <= v_due
      and d.id <> all (p_flying)
    order by d.tenant_id, d.subscription_id, d.next_attempt_at, d.seq
    limit p_limits[lane];
  end loop;
end
$$;
