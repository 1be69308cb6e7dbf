-- delivery_replay makes settled deliveries pending again, with the full number of attempts: those of p_ids,
-- or up to p_limit that match the filter, after the id p_after. The deliveries of an instance are sent in
-- their order again. What is known of a delivery stays until there is a new result. A delivery whose
-- subscription, callback or instance is gone cannot be sent any more, and does not change.
-- Returns: replayed: how many; gone: how many cannot be sent any more; looked_at: how many were read; last: the
--          id of the last one that was read
-- Locks:   consumer
-- Writes:  delivery
create function pawl.delivery_replay(
  p_tenant text, p_ids uuid[], p_subscription uuid, p_status text, p_from timestamptz, p_to timestamptz, p_after uuid,
  p_limit integer, out replayed integer, out gone integer, out looked_at integer, out last uuid
)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
as $$
declare
  v_now timestamptz;
  v_after uuid := greatest(p_after, pawl.uuid_v7_floor(coalesce(p_from, '-infinity')));
  v_before uuid := pawl.uuid_v7_floor(coalesce(p_to, 'infinity') + interval '1 millisecond');
  v_ids uuid[];
  v_row record;
begin
  replayed := 0; gone := 0; looked_at := 0; last := p_after;
  perform from pawl.consumer c where c.name = 'webhooks' for no key update;
  v_now := pawl.now();
  -- Dead letters have an index of their own.
  if p_ids is not null then
    v_ids := p_ids;
  elsif p_status = 'dead' then
    v_ids := array(
      select d.id
      from pawl.delivery d
      where d.tenant_id = p_tenant and d.id > v_after and d.id < v_before and d.status = 'dead'
        and coalesce(d.created_at > p_from, true) and coalesce(d.created_at < p_to, true)
        and coalesce(d.subscription_id = p_subscription, true)
      order by d.tenant_id, d.id
      limit greatest(p_limit, 0)
    );
  else
    v_ids := array(
      select d.id
      from pawl.delivery d
      where d.tenant_id = p_tenant and d.id > v_after and d.id < v_before and d.status = p_status
        and coalesce(d.created_at > p_from, true) and coalesce(d.created_at < p_to, true)
        and coalesce(d.subscription_id = p_subscription, true)
      order by d.tenant_id, d.id
      limit greatest(p_limit, 0)
    );
  end if;
  for v_row in
    select d.id, d.subscription_id, d.instance_id, d.version, d.callback, d.status
    from unnest(v_ids) as u (id)
    cross join lateral (
      select d.* from pawl.delivery d where d.tenant_id = p_tenant and d.id = u.id limit 1
    ) d
    order by d.id
  loop
    looked_at := looked_at + 1;
    last := v_row.id;
    continue when v_row.status = 'pending';
    if not exists (
      select from pawl.subscription s where s.tenant_id = p_tenant and s.id = v_row.subscription_id
      union all
      select from pawl.callback b where v_row.callback and b.tenant_id = p_tenant and b.instance_id = v_row.instance_id
    ) or v_row.instance_id is not null and not exists (
      select from pawl.history h
      where h.tenant_id = p_tenant and h.instance_id = v_row.instance_id and h.version = v_row.version
    ) then
      gone := gone + 1;
      continue;
    end if;
    -- It is due before the instance's later pending deliveries, and waits for earlier ones that failed.
    update pawl.delivery d
    set status = 'pending', replayed = true,
      next_attempt_at = (
        select case
          when not coalesce(bool_or(o.version < v_row.version and pawl_private.delivery_failed(o)), false)
            then least(v_now, min(o.next_attempt_at) filter (where o.version > v_row.version))
        end
        from pawl.delivery o
        where o.tenant_id = p_tenant and o.subscription_id = v_row.subscription_id
          and o.instance_id = v_row.instance_id and o.status = 'pending'
      )
    where d.tenant_id = p_tenant and d.id = v_row.id;
    replayed := replayed + 1;
  end loop;
end
$$;
