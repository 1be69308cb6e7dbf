-- delivery_messages reads the messages of the given steps.
-- Returns: one message per step that has not been purged, in no order
create function pawl.delivery_messages(p_tenants text[], p_instances uuid[], p_versions bigint[]) returns setof pawl.message
language sql stable security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
  select e.*
  from unnest(p_tenants, p_instances, p_versions) as k (tenant_id, instance_id, version)
  cross join lateral (
    select h as step
    from pawl.history h
    where h.tenant_id = k.tenant_id and h.instance_id = k.instance_id and h.version = k.version
    limit 1
  ) h
  cross join lateral pawl_private.message_of(h.step) e
$$;
