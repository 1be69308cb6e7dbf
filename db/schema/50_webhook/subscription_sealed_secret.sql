-- subscription_sealed_secret shows a subscription's secret if it is sealed, so that the service can seal it for another
-- column.
-- Returns: the sealed secret; '' if it is not sealed; null if there is no such subscription
create function pawl.subscription_sealed_secret(p_tenant text, p_id uuid) returns text
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
  select case when s.secret like 'sealed:%' then s.secret else '' end
  from pawl.subscription s
  where s.tenant_id = p_tenant and s.id = p_id
$$;
