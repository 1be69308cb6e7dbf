-- subscription_delete deletes a subscription. Its pending deliveries are abandoned; the others stay in the
-- log of deliveries.
-- Returns: whether it existed
-- Locks:   subscription
-- Writes:  subscription
create function pawl.subscription_delete(p_tenant text, p_id uuid) returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  delete from pawl.subscription s where s.tenant_id = p_tenant and s.id = p_id;
  return found;
end
$$;
