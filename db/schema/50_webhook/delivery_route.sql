-- delivery_route reads the next page of steps and findings of the consumer `webhooks`, creates their deliveries, and moves
-- its position. Steps with more subscriptions than are looked at in one call are put off. It then creates
-- deliveries of steps that were put off, of one tenant: the next one after p_turn. Without subscriptions,
-- callbacks and unrouted steps it moves the position and reads no step. It renews the lease when it moves the
-- position, and when a third of the lease has passed.
-- p_limit: the most rows of the page, and the most pairs of a row and a subscription of one tenant
-- Returns: leads: whether p_leader still leads in p_term; steps: how many were read, findings included; deliveries: how many were
--          created; more: whether there may be more to route; wanted: whether there are subscriptions or
--          callbacks; turn: the tenant whose unrouted steps were routed, for the next call
-- Raises:  40001 the log has begun an epoch meanwhile; nothing is routed
-- Locks:   consumer
-- Writes:  consumer, delivery, unrouted_step
create function pawl.delivery_route(
  p_leader text, p_term bigint, p_limit integer, p_lease interval, p_turn text,
  out leads boolean, out steps integer, out deliveries integer, out more boolean, out wanted boolean, out turn text
)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
declare
  v_consumer pawl.consumer;
  v_head pawl.log_head;
  v_until bigint;
  v_unrouted boolean := exists (select from pawl.unrouted_step limit 1);
  v_added integer;
begin
  leads := false; steps := 0; deliveries := 0; more := false; wanted := true; turn := p_turn;
  select * into v_consumer from pawl.consumer c where c.name = 'webhooks' and c.leader = p_leader and c.term = p_term;
  if not found then
    return;
  end if;
  -- The end of the log is read before the subscriptions: then all of its steps were committed before a subscription
  -- that is not seen.
  select * into strict v_head from pawl.log_head h;
  if not v_unrouted
    and not exists (select from pawl.subscription s where s.disabled_at is null limit 1)
    and not exists (select from pawl.callback b limit 1) then
    wanted := false;
    v_until := nullif(v_head.position, v_consumer.position);
  else
    v_until := pawl_private.log_until(v_consumer.position, p_limit);
  end if;
  if v_until is null and not v_unrouted then
    leads := pawl_private.consumer_keep_lead('webhooks', p_leader, p_term, p_lease);
    return;
  end if;

  perform from pawl.consumer c where c.name = 'webhooks' and c.leader = p_leader and c.term = p_term for no key update;
  if not found then
    return;
  end if;
  if v_until is null then
    leads := pawl_private.consumer_keep_lead('webhooks', p_leader, p_term, p_lease);
  else
    if wanted then
      select m.steps, m.deliveries
      into steps, deliveries
      from pawl_private.route_page(
        p_after => v_consumer.position, p_until => v_until, p_limit => p_limit, p_head => v_head) m;
    end if;
    leads := pawl.consumer_advance(
      p_consumer => 'webhooks', p_leader => p_leader, p_term => p_term, p_epoch => v_head.epoch, p_position => v_until,
      p_relayed => steps, p_lease => p_lease);
    if not leads then
      -- The epoch has changed since it was read. What was routed is rolled back.
      raise exception 'the log has begun an epoch' using errcode = 'serialization_failure';
    end if;
  end if;
  if not wanted then
    return;
  end if;
  select coalesce(u.tenant, p_turn), u.deliveries
  into turn, v_added
  from pawl_private.route_unrouted(p_after => p_turn, p_limit => p_limit, p_head => v_head) u;
  deliveries := deliveries + v_added;
  more := coalesce(v_until < v_head.position, false) or exists (select from pawl.unrouted_step limit 1);
end
$$;
