-- delivery_route reads the next page of steps of the consumer `webhooks`, creates their deliveries, and moves
-- the cursor. Without subscriptions and callbacks it moves the cursor and reads no step. It renews the lease
-- when it moves the cursor, and when a third of the lease has passed.
-- Returns: leads: whether p_term still leads; steps: how many were read; deliveries: how many were created;
--          more: whether there may be more steps; wanted: whether there are subscriptions or callbacks
-- Locks:   consumer
-- Writes:  consumer, delivery
create function pawl.delivery_route(
  p_term bigint, p_limit integer, p_lease interval,
  out leads boolean, out steps integer, out deliveries integer, out more boolean, out wanted boolean
)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
declare
  v_consumer pawl.consumer;
  v_low_watermark bigint := pawl_private.next_low_watermark();
  -- Taken before the steps that it sees and before the subscriptions are read.
  v_snapshot pg_snapshot := pg_current_snapshot();
  v_batch pg_snapshot;
  v_place bigint;
begin
  leads := false; steps := 0; deliveries := 0; more := false; wanted := true;
  select * into v_consumer from pawl.consumer c where c.name = 'webhooks' and c.term = p_term;
  if not found then
    return;
  end if;
  v_batch := coalesce(v_consumer.batch, v_snapshot);
  if not exists (select from pawl.subscription s where s.disabled_at is null limit 1)
    and not exists (select from pawl.callback b limit 1) then
    wanted := false;
    if exists (select from pawl.history h where h.xid >= pg_snapshot_xmax(v_consumer.cursor) limit 1) then
      leads := pawl.consumer_advance(
        p_consumer => 'webhooks', p_term => p_term, p_batch => v_snapshot, p_seq => null, p_relayed => 0,
        p_lease => p_lease);
    else
      leads := pawl_private.consumer_keep_lead('webhooks', p_term, p_lease);
    end if;
    return;
  end if;
  if v_consumer.batch is null and pawl_private.place_after(v_consumer) is null and not exists (
    select from pawl_private.consumer_steps(v_consumer, v_batch, 1)
  ) then
    leads := pawl_private.consumer_keep_lead('webhooks', p_term, p_lease);
    return;
  end if;

  perform from pawl.consumer c where c.name = 'webhooks' and c.term = p_term for no key update;
  if not found then
    return;
  end if;
  select m.steps, m.deliveries, m.place
  into steps, deliveries, v_place
  from pawl_private.create_deliveries(p_consumer => v_consumer, p_batch => v_batch, p_limit => p_limit) m;
  more := v_place is not null;
  leads := pawl.consumer_advance(
    p_consumer => 'webhooks', p_term => p_term, p_batch => v_batch, p_seq => v_place, p_relayed => steps,
    p_lease => p_lease, p_low_watermark => v_low_watermark);
end
$$;
