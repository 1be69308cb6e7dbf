-- subscription_delete deletes a subscription. Its pending deliveries are abandoned; the others stay in the
-- log of deliveries.
-- Returns: whether it existed
-- Locks:   subscription
-- Writes:  subscription, audit
create function pawl.subscription_delete(p_tenant text, p_id uuid, p_caller jsonb default null) returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_before jsonb := pawl_private.subscription_document(p_tenant, p_id);
begin
  delete from pawl.subscription s where s.tenant_id = p_tenant and s.id = p_id;
  if not found then
    return false;
  end if;
  perform pawl_private.audit(
    p_tenant => p_tenant, p_caller => p_caller, p_action => 'subscription.delete', p_target => p_id::text, p_before => v_before);
  return true;
end
$$;
