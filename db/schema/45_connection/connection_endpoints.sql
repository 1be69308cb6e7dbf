-- connection_endpoints reads how to call the services of connections.
-- Returns: one row per connection that exists, in no order
create function pawl.connection_endpoints(p_tenants text[], p_names text[]) returns setof pawl.connection_endpoint
language sql stable security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
as $$
  select
    c.tenant_id::text, c.name, c.base_url, c.auth::jsonb, coalesce(c.secret, ''), c.headers::jsonb, c.timeout, c.concurrency,
    coalesce(c.tls_ca, ''), c.finding is not null
  from unnest(p_tenants, p_names) as k (tenant_id, name)
  cross join lateral (
    select c.* from pawl.connection c where c.tenant_id = k.tenant_id and c.name = k.name limit 1
  ) c
$$;
