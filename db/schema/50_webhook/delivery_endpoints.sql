-- delivery_endpoints reads where deliveries go.
-- p_ids:   of subscriptions, and of instances with a callback
-- Returns: one row per subscription or callback that still exists, in no order. previous_secret: while it
--          still signs, else ''
create function pawl.delivery_endpoints(p_tenants text[], p_ids uuid[]) returns setof pawl.endpoint
language sql stable security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
as $$
  select
    s.tenant_id::text, s.id, s.url, s.secret, coalesce(case when s.previous_secret_until > pawl.now() then s.previous_secret end, ''),
    s.disabled_at is not null, false, s.finding is not null
  from unnest(p_tenants, p_ids) as k (tenant_id, id)
  cross join lateral (
    select s.* from pawl.subscription s where s.tenant_id = k.tenant_id and s.id = k.id limit 1
  ) s
  union all
  select b.tenant_id::text, b.instance_id, b.url, coalesce(b.secret, ''), '', false, true, false
  from unnest(p_tenants, p_ids) as k (tenant_id, id)
  cross join lateral (
    select b.* from pawl.callback b where b.tenant_id = k.tenant_id and b.instance_id = k.id limit 1
  ) b
$$;
