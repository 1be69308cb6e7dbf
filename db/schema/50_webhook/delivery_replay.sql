-- delivery_replay makes settled deliveries pending again, with the full number of attempts: those of p_ids,
-- or up to p_limit that match the filter, after the id p_after. The deliveries of an instance are sent in
-- their order again. What is known of a delivery stays until there is a new result. A delivery whose
-- subscription, callback, step or finding is gone cannot be sent any more, and does not change.
-- p_earlier: how many were replayed by earlier calls of the same act. The audit has one row for an act: that of its only
--            call. An act of more calls has two: one of the first call, with "more", so that none is without its row if
--            it is cut off, and one of the last call, with the sum
-- Returns: replayed: how many; gone: how many cannot be sent any more; looked_at: how many were read; last: the
--          id of the last one that was read
-- Locks:   consumer
-- Writes:  delivery, audit
create function pawl.delivery_replay(
  p_tenant text, p_ids uuid[], p_subscription uuid, p_status text, p_from timestamptz, p_to timestamptz, p_after uuid,
  p_limit integer, p_caller jsonb default null, p_earlier bigint default 0, out replayed integer, out gone integer, out looked_at integer, out last uuid
)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
as $$
declare
  v_after uuid := greatest(p_after, pawl.uuid_v7_floor(coalesce(p_from, '-infinity')));
  v_before uuid := pawl.uuid_v7_floor(coalesce(p_to, 'infinity') + interval '1 millisecond');
  v_ids uuid[];
  v_more boolean;
  v_earlier bigint := coalesce(p_earlier, 0);
begin
  -- Before the deliveries are chosen, so that none of them is settled meanwhile.
  perform from pawl.consumer c where c.name = 'webhooks' for no key update;
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
  select r.* into replayed, gone, looked_at, last from pawl_private.replay_deliveries(p_tenant, v_ids) r;
  last := coalesce(last, p_after);
  v_more := p_ids is null and looked_at > 0 and looked_at >= p_limit;
  if replayed > 0 and v_earlier = 0 or v_earlier > 0 and not v_more then
    perform pawl_private.audit(
      p_tenant => p_tenant, p_caller => p_caller, p_action => 'delivery.replay',
      p_target => coalesce(case when cardinality(p_ids) = 1 then p_ids[1]::text end, p_subscription::text),
      p_after => jsonb_build_object('replayed', v_earlier + replayed, 'status', p_status)
        || case when v_more then jsonb_build_object('more', true) else '{}' end);
  end if;
end
$$;
