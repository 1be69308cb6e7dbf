-- delivery_tenants reads what tenants may have sent.
-- Returns: one row per tenant that exists, in no order. attempts: how many attempts may be under way; null for no limit
create function pawl.delivery_tenants(p_tenants text[]) returns setof pawl.delivery_tenant
language sql stable security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
as $$
  select t.id::text, t.disabled_at is not null, least((t.limits ->> 'webhook_attempts')::bigint, 1000000)::integer
  from pawl.tenant t
  where t.id = any (p_tenants)
$$;
