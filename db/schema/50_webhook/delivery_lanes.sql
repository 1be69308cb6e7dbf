-- delivery_lanes looks for what can be sent: for each tenant the callbacks, and those subscriptions that have
-- pending deliveries, in their order. Tenants are looked at in their order after p_after, until p_looks lanes
-- have been looked at. Of one tenant no more than p_each subscriptions are looked at: those after its place,
-- which is given in p_places for p_tenants. So neither many tenants nor many subscriptions of one make a call
-- slow.
-- p_rest: look only at what is left of p_tenants, the subscriptions after their places
-- A lane is ready if deliveries are due and its subscription is neither disabled nor has its circuit open. The
-- lane of a deleted subscription is ready too: its deliveries are to be abandoned. Of a disabled tenant only the lane of
-- its callbacks is returned, and it is not ready.
-- Returns: one row per lane that was looked at, the rows of a tenant one after another, its callbacks first
create function pawl.delivery_lanes(p_after text, p_tenants text[], p_places uuid[], p_rest boolean, p_looks integer, p_each integer)
returns setof pawl.delivery_lane
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
  v_nil constant uuid := '00000000-0000-0000-0000-000000000000';
  v_looked integer := 0;
  v_listed integer := 0;
  v_tenant text := p_after;
  v_next text;
  v_callbacks timestamptz;
  v_due record;
  v_health record;
  v_lane pawl.delivery_lane;
begin
  while v_looked < p_looks loop
    v_next := null;
    v_callbacks := null;
    if p_rest then
      v_listed := v_listed + 1;
      v_next := p_tenants[v_listed];
    else
      select d.tenant_id into v_next
      from pawl.delivery d
      where d.tenant_id > v_tenant and d.status = 'pending' and d.next_attempt_at is not null and not d.callback
      order by d.tenant_id, d.subscription_id
      limit 1;
      select d.tenant_id, d.next_attempt_at into v_due
      from pawl.delivery d
      where d.tenant_id > v_tenant and d.status = 'pending' and d.next_attempt_at is not null and d.callback
      order by d.tenant_id, d.next_attempt_at
      limit 1;
      if found and v_due.tenant_id <= coalesce(v_next, v_due.tenant_id) then
        v_next := v_due.tenant_id;
        v_callbacks := v_due.next_attempt_at;
      end if;
    end if;
    exit when v_next is null;
    v_tenant := v_next;
    if pawl_private.is_disabled(v_tenant) then
      v_lane := (v_tenant, v_nil, false, false);
      return next v_lane;
      v_looked := v_looked + 1;
      continue;
    end if;
    if v_callbacks is not null then
      v_lane := (v_tenant, v_nil, v_callbacks <= v_now, false);
      return next v_lane;
      v_looked := v_looked + 1;
    end if;
    v_lane.subscription_id := coalesce(p_places[array_position(p_tenants, v_tenant)], v_nil);
    for look in 1..p_each loop
      select d.subscription_id, d.next_attempt_at into v_due
      from pawl.delivery d
      where d.tenant_id = v_tenant and d.subscription_id > v_lane.subscription_id
        and d.status = 'pending' and d.next_attempt_at is not null and not d.callback
      order by d.tenant_id, d.subscription_id, d.next_attempt_at
      limit 1;
      if not found then
        exit when p_rest or look > 1 or v_lane.subscription_id = v_nil;
        v_lane.subscription_id := v_nil; -- There is none after its place: from the beginning.
        continue;
      end if;
      select s.failures, s.circuit_open_until, s.disabled_at into v_health
      from pawl.subscription s
      where s.tenant_id = v_tenant and s.id = v_due.subscription_id;
      if found then
        v_lane := (
          v_tenant, v_due.subscription_id,
          v_due.next_attempt_at <= v_now and v_health.disabled_at is null and coalesce(v_health.circuit_open_until <= v_now, true),
          pawl_private.circuit_open_for(v_health.failures, interval '1 second') is not null);
      else
        v_lane := (v_tenant, v_due.subscription_id, true, false);
      end if;
      return next v_lane;
      v_looked := v_looked + 1;
    end loop;
  end loop;
end
$$;
