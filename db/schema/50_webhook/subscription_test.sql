-- subscription_test creates a delivery without a step. It is sent before all others, and at once even if
-- the endpoint's circuit is open.
-- Returns: the delivery, or no row if there is no such subscription
-- Locks:   subscription
-- Writes:  subscription, delivery, audit
create function pawl.subscription_test(p_tenant text, p_id uuid, p_caller jsonb default null) returns setof pawl.delivery
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz := pawl.now();
begin
  update pawl.subscription s
  set circuit_open_until = case when s.circuit_open_until > v_now then v_now else s.circuit_open_until end
  where s.tenant_id = p_tenant and s.id = p_id;
  if found then
    perform pawl_private.audit(p_tenant => p_tenant, p_caller => p_caller, p_action => 'subscription.test', p_target => p_id::text);
    return query
    insert into pawl.delivery (
      tenant_id, id, subscription_id, callback, type, status, attempts, next_attempt_at, created_at)
    values (p_tenant, pawl_private.uuid_v7(v_now), p_id, false, 'pawl.subscription.test', 'pending', 0, 'epoch', v_now)
    returning *;
  end if;
end
$$;
