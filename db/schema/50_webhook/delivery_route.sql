-- delivery_route reads the next page of steps of the consumer `webhooks`, creates their deliveries, and moves
-- the cursor. Steps with more subscriptions than are looked at in one call are put off. It then creates
-- deliveries of steps that were put off, of one tenant: the next one after p_turn. Without subscriptions,
-- callbacks and unrouted steps it moves the cursor and reads no step. It renews the lease when it moves the
-- cursor, and when a third of the lease has passed.
-- p_limit: the most steps of the page, and the most pairs of a step and a subscription of one tenant
-- Returns: leads: whether p_term still leads; steps: how many were read; deliveries: how many were created;
--          more: whether there may be more to route; wanted: whether there are subscriptions or callbacks;
--          turn: the tenant whose unrouted steps were routed, for the next call
-- Locks:   consumer
-- Writes:  consumer, delivery, unrouted_step
create function pawl.delivery_route(
  p_term bigint, p_limit integer, p_lease interval, p_turn text,
  out leads boolean, out steps integer, out deliveries integer, out more boolean, out wanted boolean, out turn text
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
  v_unrouted boolean := exists (select from pawl.unrouted_step limit 1);
  v_page boolean;
  v_added integer;
begin
  leads := false; steps := 0; deliveries := 0; more := false; wanted := true; turn := p_turn;
  select * into v_consumer from pawl.consumer c where c.name = 'webhooks' and c.term = p_term;
  if not found then
    return;
  end if;
  v_batch := coalesce(v_consumer.batch, v_snapshot);
  if not v_unrouted
    and not exists (select from pawl.subscription s where s.disabled_at is null limit 1)
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
  v_page := v_consumer.batch is not null or pawl_private.place_after(v_consumer) is not null or exists (
    select from pawl_private.consumer_steps(v_consumer, v_batch, 1)
  );
  if not v_page and not v_unrouted then
    leads := pawl_private.consumer_keep_lead('webhooks', p_term, p_lease);
    return;
  end if;

  perform from pawl.consumer c where c.name = 'webhooks' and c.term = p_term for no key update;
  if not found then
    return;
  end if;
  if v_page then
    select m.steps, m.deliveries, m.place
    into steps, deliveries, v_place
    from pawl_private.route_page(p_consumer => v_consumer, p_batch => v_batch, p_limit => p_limit) m;
    leads := pawl.consumer_advance(
      p_consumer => 'webhooks', p_term => p_term, p_batch => v_batch, p_seq => v_place, p_relayed => steps,
      p_lease => p_lease, p_low_watermark => v_low_watermark);
  else
    leads := pawl_private.consumer_keep_lead('webhooks', p_term, p_lease);
  end if;
  select coalesce(u.tenant, p_turn), u.deliveries
  into turn, v_added
  from pawl_private.route_unrouted(p_after => p_turn, p_limit => p_limit) u;
  deliveries := deliveries + v_added;
  more := v_place is not null or exists (select from pawl.unrouted_step limit 1);
end
$$;
