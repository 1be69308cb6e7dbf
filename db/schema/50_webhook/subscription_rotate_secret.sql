-- subscription_rotate_secret replaces a subscription's secret. For p_overlap the previous one signs, too.
-- Returns: the subscription, or no row
-- Locks:   subscription
-- Writes:  subscription
create function pawl.subscription_rotate_secret(p_tenant text, p_id uuid, p_secret text, p_overlap interval)
returns setof pawl.subscription
language sql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
  update pawl.subscription s
  set secret = p_secret, previous_secret = s.secret, previous_secret_until = pawl.now() + p_overlap
  where s.tenant_id = p_tenant and s.id = p_id
  returning s.*
$$;
